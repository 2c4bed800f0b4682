package federation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/media"
)

// spoken is a recording of alice's server that is being made.
type spoken struct {
	t          *testing.T
	repository *media.Repository
	uri        media.URI
	file       []byte
}

// speak begins a recording: all of it has been said, but it has not ended.
func speak(t *testing.T, repository *media.Repository) *spoken {
	t.Helper()
	file, err := os.ReadFile("../server/audio/testdata/live-ffmpeg.webm")
	if err != nil {
		t.Fatal(err)
	}
	repository.Live = media.DefaultLiveConfig()
	uri, _, err := repository.Create(t.Context(), "@alice:x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repository.AppendLive(t.Context(), "@alice:x", uri, media.LiveAppend{Content: file, ContentType: "audio/webm"}); err != nil {
		t.Fatal(err)
	}
	return &spoken{t, repository, uri, file}
}

func (s *spoken) end() {
	if _, _, err := s.repository.EndLive(context.Background(), "@alice:x", s.uri, false); err != nil {
		s.t.Error(err)
	}
}

// ending records an answer and ends what is spoken when its first bytes have been written.
type ending struct {
	*httptest.ResponseRecorder
	end func()
}

func (e *ending) Write(p []byte) (int, error) {
	if e.end != nil {
		e.end()
		e.end = nil
	}
	return e.ResponseRecorder.Write(p)
}

func TestSpoiltLiveMediaIsRefused(t *testing.T) {
	a := newAuthority(t)
	var earlier []byte
	var earlierType string
	proofAt := func(b []byte) int { return bytes.LastIndex(b, []byte("Content-Type: application/json")) }
	unproven := func(b []byte) []byte {
		boundary := b[:bytes.Index(b, []byte("\r\n"))]
		return append(bytes.Clone(b[:bytes.LastIndex(b[:proofAt(b)], []byte("\r\n--"))]), "\r\n"+string(boundary)+"--\r\n"...)
	}
	for name, tt := range map[string]struct {
		policy string
		spoil  func(h http.Header, b []byte) []byte
		ok     bool
	}{
		"nothing": {policyRequired, func(_ http.Header, b []byte) []byte { return b }, true},
		"a bit":   {policyAccept, func(_ http.Header, b []byte) []byte { b[len(b)/2] ^= 1; return b }, false},
		"the type": {policyAccept, func(_ http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte("Content-Type: audio/webm"), []byte("Content-Type: audio/mpeg"), 1)
		}, false},
		"the end": {policyAccept, func(_ http.Header, b []byte) []byte { return b[:proofAt(b)-100] }, false},
		"a piece is missing": {policyAccept, func(_ http.Header, b []byte) []byte {
			return append(bytes.Clone(b[:3000]), b[3100:]...)
		}, false},
		"the proof's size": {policyAccept, func(_ http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"size":11803`), []byte(`"size":11804`), 1)
		}, false},
		"the signature": {policyAccept, func(_ http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"signatures"`), []byte(`"signaturez"`), 1)
		}, false},
		"no proof":                        {policyAccept, func(_ http.Header, b []byte) []byte { return unproven(b) }, true},
		"no proof, though it is required": {policyRequired, func(_ http.Header, b []byte) []byte { return unproven(b) }, false},
		"called an ordinary file, though that must be signed": {policyRequired, func(h http.Header, b []byte) []byte { h.Del(liveHeader); return b }, false},
		"a fourth part": {policyAccept, func(_ http.Header, b []byte) []byte {
			boundary := b[:bytes.Index(b, []byte("\r\n"))]
			return append(bytes.TrimSuffix(b, []byte("--\r\n")), "\r\nContent-Type: text/plain\r\n\r\nx\r\n"+string(boundary)+"--\r\n"...)
		}, false},
		"an earlier answer": {policyAccept, func(h http.Header, b []byte) []byte {
			if earlier == nil {
				earlier, earlierType = bytes.Clone(b), h.Get("Content-Type")
			}
			h.Set("Content-Type", earlierType)
			return earlier
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			alice := newTestServer(t, a)
			bob := newTestServer(t, a, func(o *Options) { o.Config.Signatures = tt.policy })
			s := speak(t, withMedia(t, alice))
			mine := withMedia(t, bob)
			mine.Live = media.DefaultLiveConfig()
			real := alice.handler
			alice.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				recorded := &ending{httptest.NewRecorder(), nil}
				if strings.Contains(r.URL.Path, "/media/") {
					recorded.end = s.end
				}
				real.ServeHTTP(recorded, r)
				body := recorded.Body.Bytes()
				if strings.Contains(r.URL.Path, "/media/") {
					body = tt.spoil(recorded.Header(), body)
				}
				for name, values := range recorded.Header() {
					w.Header()[name] = values
				}
				w.WriteHeader(recorded.Code)
				w.Write(body)
			}))
			if name == "an earlier answer" {
				if _, _, err := fetch(bob, s.uri); err != nil {
					t.Fatal(err)
				}
				s = speak(t, s.repository) // the same words once more
			}
			file, err := mine.Open(t.Context(), media.Request{URI: s.uri, Wait: time.Second})
			var got []byte
			if err == nil {
				got, err = io.ReadAll(file)
				file.Close()
			}
			if ok := err == nil && bytes.Equal(got, s.file); ok != tt.ok {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			kept, err := mine.Open(t.Context(), media.Request{URI: s.uri, LocalOnly: true})
			if (err == nil) != tt.ok {
				t.Errorf("what was kept: %v", err)
			}
			if err == nil {
				kept.Close()
				if _, recording, err := mine.Recording(t.Context(), s.uri); err != nil || recording.DurationMS() < 3900 {
					t.Errorf("its recording is %+v, %v", recording, err)
				}
			}
		})
	}
}

// A server that signs with X-Matrix alone gets the two parts that the specification knows, while somebody speaks.
func TestLiveMediaForAServerWithoutHTTPSignatures(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	s := speak(t, withMedia(t, alice))
	pem, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	path := "/_matrix/federation/v1/media/download/" + s.uri.MediaID
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+string(alice.name)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	x, err := signXMatrix("GET", path, nil, bob.name, alice.name, bob.o.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", x.header())
	answer, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	_, params, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || answer.StatusCode != 200 || answer.ContentLength != -1 || answer.Header.Get(liveHeader) != "" {
		t.Fatalf("%d %v, %v", answer.StatusCode, answer.Header, err)
	}
	parts := multipart.NewReader(answer.Body, params["boundary"])
	first, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if meta, err := io.ReadAll(first); err != nil || string(meta) != "{}" {
		t.Errorf("the first part is %q, %v", meta, err)
	}
	second, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	begun := make([]byte, 4000)
	if _, err := io.ReadFull(second, begun); err != nil { // it has not ended
		t.Fatal(err)
	}
	s.end()
	rest, err := io.ReadAll(second)
	if err != nil || !bytes.Equal(append(begun, rest...), s.file) {
		t.Errorf("%d bytes, %v", len(begun)+len(rest), err)
	}
	if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
		t.Errorf("something follows: %v", err)
	}
}
