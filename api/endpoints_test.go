package api

import (
	"os"
	"strings"
	"testing"
)

// docs/endpoints.tsv lists every operation of the specification; its last column says whether it is served, or why not.
func TestEndpointListAgreesWithRoutes(t *testing.T) {
	file, err := os.ReadFile("../docs/endpoints.tsv")
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, r := range newAPI(DefaultConfig(), Deps{}).routes() {
		for _, path := range r.paths() {
			served[r.method+" "+path] = true
		}
	}
	operations := 0
	for line := range strings.Lines(string(file)) {
		cells := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if cells[0] != "client-server" {
			continue
		}
		operations++
		if len(cells) != 10 {
			t.Fatalf("%q has %d cells", line, len(cells))
		}
		key, says := cells[1]+" "+cells[2], cells[9]
		switch {
		case says == "yes" && !served[key]:
			t.Errorf("%s is said to be served, but has no route", key)
		case says != "yes" && served[key]:
			t.Errorf("%s has a route, but the list says: %s", key, says)
		case says == "" || says == "no":
			t.Errorf("%s: say why it is not served", key)
		}
	}
	if operations < 166 {
		t.Errorf("the list has %d operations of the client-server API, the specification 166", operations)
	}
}
