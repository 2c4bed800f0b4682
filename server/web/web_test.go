package web

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func handler(t *testing.T) http.Handler {
	t.Helper()
	h, err := Handler(http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func get(h http.Handler, path string, header ...string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestPageAndAllItRefersToAreServedUnderAStrictPolicy(t *testing.T) {
	h := handler(t)
	page := get(h, "/")
	text, _ := io.ReadAll(page.Body)
	if page.StatusCode != 200 || !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("got %s %s", page.Status, page.Header.Get("Content-Type"))
	}
	for _, forbidden := range []string{"unsafe-inline", "'unsafe-eval'", "http:", "https:", "*"} {
		if strings.Contains(page.Header.Get("Content-Security-Policy"), forbidden) {
			t.Errorf("the policy allows %s", forbidden)
		}
	}
	if regexp.MustCompile(`<script[^>]*>[^<]|<style|\son\w+=|style=`).Match(text) {
		t.Errorf("the page has inline script or style: %s", text)
	}
	found := 0
	for _, m := range regexp.MustCompile(`(?:src|href)="\./([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		found++
		if got := get(h, "/"+m[1]); got.StatusCode != 200 {
			t.Errorf("%s: %s", m[1], got.Status)
		}
	}
	if found == 0 {
		t.Error("the page refers to no script")
	}
}

func TestCompressedAndPlainHaveTheSameContentAndDifferentTags(t *testing.T) {
	h := handler(t)
	plain, packed := get(h, "/"), get(h, "/", "Accept-Encoding", "gzip")
	want, _ := io.ReadAll(plain.Body)
	got, _ := io.ReadAll(packed.Body)
	if packed.Header.Get("Content-Encoding") == "gzip" {
		r, err := gzip.NewReader(strings.NewReader(string(got)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if plain.Header.Get("ETag") == packed.Header.Get("ETag") {
			t.Error("the same tag for different bytes")
		}
	}
	if string(got) != string(want) {
		t.Error("the compressed page differs")
	}
	if again := get(h, "/", "If-None-Match", plain.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("got %s for what the browser has", again.Status)
	}
}

func TestWhatIsNotAFileGoesOn(t *testing.T) {
	h := handler(t)
	for _, path := range []string{"/nothing", "/assets/", "/../web.go", "/_matrix/client/versions"} {
		if got := get(h, path); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
}
