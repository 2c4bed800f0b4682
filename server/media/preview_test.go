package media

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func previewWorld(t *testing.T, handler http.HandlerFunc) (*world, string) {
	site := httptest.NewServer(handler)
	t.Cleanup(site.Close)
	w := newWorld(t, func(c *Config) { c.URLPreviews, c.URLPreviewMaxBytes = true, 1<<16 })
	w.PreviewClient = site.Client()
	return w, site.URL
}

func TestPreviewDescribesThePage(t *testing.T) {
	picture := encoded(t, "png", flag(40, 20, 255))
	asked := 0
	w, site := previewWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/page":
			asked++
			rw.Header().Set("Content-Type", "text/html; charset=iso-8859-1")
			io.WriteString(rw, "<html><head><title>Not this</title><meta property='og:title' content='Caf\xe9  &amp; Bar'>"+
				"<meta name=description content='Where we meet'><meta property=og:image content='/picture.png'>"+
				"<meta property=og:image:width content=9999><script>\"<meta property=og:type content=no>\"</script></head></html>")
		case "/picture.png":
			rw.Header().Set("Content-Type", "image/png")
			io.WriteString(rw, picture)
		}
	})
	var got map[string]any
	for range 2 {
		body, err := w.Preview(t.Context(), alice, site+"/page#part", time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
	}
	if got["og:title"] != "Café & Bar" || got["og:description"] != "Where we meet" || got["og:image:width"] != 40.0 ||
		got["matrix:image:size"] != float64(len(picture)) || got["og:type"] != nil {
		t.Errorf("%v", got)
	}
	uri, err := ParseURI(got["og:image"].(string))
	if err != nil || w.read(t, Request{URI: uri}) != picture {
		t.Errorf("the picture: %v", err)
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	w.pass(2 * time.Hour)
	if _, err := w.Preview(t.Context(), alice, site+"/page", time.Time{}); err != nil || asked != 2 {
		t.Errorf("an old preview: %v, asked %d times", err, asked)
	}
}

func TestPreviewOfWhatIsNoPage(t *testing.T) {
	w, site := previewWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/zip":
			rw.Header().Set("Content-Type", "application/zip")
		case "/fake.png":
			rw.Header().Set("Content-Type", "image/png")
			io.WriteString(rw, "<script>")
		case "/large":
			rw.Header().Set("Content-Type", "text/html")
			io.WriteString(rw, strings.Repeat(" ", 1<<17))
		default:
			rw.WriteHeader(404)
		}
	})
	for _, path := range []string{"/zip", "/fake.png"} {
		if body, err := w.Preview(t.Context(), alice, site+path, time.Time{}); err != nil || string(body) != "{}" {
			t.Errorf("%s: %s, %v", path, body, err)
		}
	}
	for _, path := range []string{"/large", "/none"} {
		_, err := w.Preview(t.Context(), alice, site+path, time.Time{})
		wantCode(t, err, 502, "M_UNKNOWN")
	}
	for _, address := range []string{"", "file:///etc/passwd", "http://", "https://user:password@here.example/", "gopher://x/", "http://a/" + strings.Repeat("a", 3000)} {
		_, err := w.Preview(t.Context(), alice, address, time.Time{})
		wantCode(t, err, 400, "M_INVALID_PARAM")
	}
	w.Config.URLPreviews = false
	_, err := w.Preview(t.Context(), alice, site+"/zip", time.Time{})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func FuzzOpenGraph(f *testing.F) {
	f.Add([]byte("<meta property='og:title' content='a'><title>b"))
	f.Fuzz(func(t *testing.T, page []byte) {
		for name, value := range openGraph(page) {
			if len(name) > 100 || len(value) > maxPreviewTextBytes || value == "" {
				t.Fatalf("%q: %q", name, value)
			}
		}
	})
}
