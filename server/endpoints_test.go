package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every operation that docs/endpoints.tsv calls served is known to the house, and no other is.
func TestListedEndpointsAreServedAndNoOthers(t *testing.T) {
	list, err := os.ReadFile("../docs/endpoints.tsv")
	if err != nil {
		t.Fatal(err)
	}
	w := testWorld(t, false)
	h := startInProcess(t, w.servers[0], nil)
	parameter := regexp.MustCompile(`\{[^}]*\}`)
	for line := range strings.Lines(string(list)) {
		cells := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(cells) != 10 || cells[0] != "client-server" && cells[0] != "server-server" {
			continue
		}
		path := parameter.ReplaceAllString(cells[2], "x")
		answer := httptest.NewRecorder()
		h.handler().ServeHTTP(answer, httptest.NewRequest(cells[1], path, http.NoBody))
		known := !strings.Contains(answer.Body.String(), "M_UNRECOGNIZED")
		if served := cells[9] == "yes"; known != served {
			t.Errorf("%s %s: the list says %q, but the answer is %d %s", cells[1], cells[2], cells[9], answer.Code, answer.Body)
		}
	}
}
