package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// Every way to a recording knows HEAD, Range, If-Range and ETag, at home and, from the first request on, through another server.
func TestEveryDownloadIsHadInParts(t *testing.T) {
	t.Setenv("PARLEY_MEDIA_UNAUTHENTICATED_DOWNLOADS", "true")
	w := testWorld(t, false)
	for _, s := range w.servers {
		startInProcess(t, s, nil)
	}
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	original := voiceMessage(t, 3)
	parley := "/_matrix/client/unstable/im.parley.voice"
	ways := map[string]func(p *person, id string) string{
		"download":         func(_ *person, id string) string { return "/_matrix/client/v1/media/download/" + id },
		"with a file name": func(_ *person, id string) string { return "/_matrix/client/v1/media/download/" + id + "/a.ogg" },
		"before it was stable": func(_ *person, id string) string {
			return "/_matrix/client/unstable/org.matrix.msc3916/media/download/" + id
		},
		"without a token": func(_ *person, id string) string { return "/_matrix/media/v3/download/" + id },
		"without a token, with a file name": func(_ *person, id string) string {
			return "/_matrix/media/v3/download/" + id + "/a.ogg"
		},
		"as it is": func(_ *person, id string) string { return parley + "/media/" + id },
		"as WebM":  func(_ *person, id string) string { return parley + "/media/" + id + "?container=webm" },
		"as MP4":   func(_ *person, id string) string { return parley + "/media/" + id + "?container=mp4" },
		"by a link": func(p *person, id string) string {
			var link struct{ Path string }
			p.must("POST", parley+"/link/"+id, map[string]any{}, &link)
			return link.Path
		},
		"by a link, as WebM": func(p *person, id string) string {
			var link struct{ Path string }
			p.must("POST", parley+"/link/"+id+"?container=webm", map[string]any{}, &link)
			return link.Path
		},
	}
	for name, way := range ways {
		for _, p := range []*person{alice, bob} {
			// The first request is each kind in its turn, of a file that the other server has not got yet.
			for first := range partCases {
				t.Run(fmt.Sprintf("%s/%s/%s", name, strings.SplitN(p.ID, ":", 2)[0], partCases[first].name), func(t *testing.T) {
					var uploaded struct {
						ContentURI string `json:"content_uri"`
					}
					alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", original, &uploaded)
					path := way(p, strings.TrimPrefix(uploaded.ContentURI, "mxc://"))
					answer, body := p.part(t, partCases[first], path, "")
					whole, content := p.part(t, partCase{method: "GET"}, path, "")
					etag := whole.Header.Get("ETag")
					if whole.StatusCode != 200 || etag == "" || strings.HasPrefix(etag, "W/") || whole.Header.Get("Accept-Ranges") != "bytes" {
						t.Fatalf("the whole: %d %v", whole.StatusCode, whole.Header)
					}
					if !strings.Contains(name, "WebM") && !strings.Contains(name, "MP4") && !bytes.Equal(content, original) {
						t.Errorf("the whole has other bytes")
					}
					partCases[first].check(t, answer, body, content)
					for _, c := range partCases {
						answer, body := p.part(t, c, path, etag)
						c.check(t, answer, body, content)
						if got := answer.Header.Get("ETag"); got != etag && c.status != 416 {
							t.Errorf("%s: ETag %s, before it was %s", c.name, got, etag)
						}
					}
				})
			}
		}
	}
}

type partCase struct {
	name, method, header, value string // ETAG in a value stands for the file's
	status                      int
	part                        func(whole []byte) []byte
}

var partCases = []partCase{
	{"HEAD", "HEAD", "", "", 200, func([]byte) []byte { return nil }},
	{"a part", "GET", "Range", "bytes=100-199", 206, func(b []byte) []byte { return b[100:200] }},
	{"from the middle on", "GET", "Range", "bytes=2000-", 206, func(b []byte) []byte { return b[2000:] }},
	{"the last bytes", "GET", "Range", "bytes=-50", 206, func(b []byte) []byte { return b[len(b)-50:] }},
	{"beyond the end", "GET", "Range", "bytes=1000000-", 416, nil},
	{"HEAD of a part", "HEAD", "Range", "bytes=100-199", 206, func([]byte) []byte { return nil }},
	{"If-Range, unchanged", "GET", "If-Range", "ETAG", 206, func(b []byte) []byte { return b[100:200] }},
	{"If-Range, changed", "GET", "If-Range", `"other"`, 200, func(b []byte) []byte { return b }},
	{"If-None-Match", "GET", "If-None-Match", "ETAG", 304, func([]byte) []byte { return nil }},
}

// part asks for one. Without an ETag a condition on it is left out, and what comes is not looked at.
func (p *person) part(t *testing.T, c partCase, path, etag string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), c.method, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(path, "/_parley/") && !strings.HasPrefix(path, "/_matrix/media/") {
		r.Header.Set("Authorization", "Bearer "+p.Token)
	}
	if c.header != "" {
		r.Header.Set(c.header, strings.ReplaceAll(c.value, "ETAG", etag))
	}
	if c.header == "If-Range" {
		r.Header.Set("Range", "bytes=100-199")
	}
	answer, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, body
}

func (c partCase) check(t *testing.T, answer *http.Response, body, whole []byte) {
	t.Helper()
	if c.value == "ETAG" && answer.Request.Header.Get(c.header) == "" {
		return
	}
	if answer.StatusCode != c.status || c.part != nil && !bytes.Equal(body, c.part(whole)) {
		t.Errorf("%s: %d, %d bytes of %d, %v", c.name, answer.StatusCode, len(body), len(whole), answer.Header)
	}
	size := strconv.Itoa(len(whole))
	if want, got := map[int]string{206: "/" + size, 416: "bytes */" + size}[c.status], answer.Header.Get("Content-Range"); !strings.HasSuffix(got, want) || (want == "") != (got == "") {
		t.Errorf("%s: Content-Range is %q", c.name, got)
	}
	if c.method == "HEAD" && c.status == 200 && answer.Header.Get("Content-Length") != size {
		t.Errorf("%s: Content-Length is %s, want %s", c.name, answer.Header.Get("Content-Length"), size)
	}
}
