package federation

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/storage"
)

// withMedia gives a server a repository and the routes that need it.
func withMedia(t *testing.T, p *testServer) *media.Repository {
	t.Helper()
	blobs, err := storage.OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	repository := media.New(media.Options{Config: media.DefaultConfig(), Server: p.name, DB: p.o.DB, Blobs: blobs, Remote: p.Client, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { repository.Close() })
	p.handle(NewHandler(HandlerOptions{Client: p.Client, Media: repository}))
	return repository
}

func upload(t *testing.T, repository *media.Repository, content []byte) media.URI {
	t.Helper()
	uri, err := repository.Upload(context.Background(), "@alice:x", media.Upload{Body: bytes.NewReader(content), Size: int64(len(content)), ContentType: "audio/ogg", Filename: "Voice \"message\".ogg"})
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

// change lets a test spoil answers on the way.
func (p *testServer) change(spoil func(header http.Header, body []byte) []byte) {
	real := p.handler
	p.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorded := httptest.NewRecorder()
		real.ServeHTTP(recorded, r)
		body := recorded.Body.Bytes()
		if strings.Contains(r.URL.Path, "/media/") {
			body = spoil(recorded.Header(), body)
		}
		for name, values := range recorded.Header() {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(recorded.Code)
		w.Write(body)
	}))
}

func fetch(p *testServer, uri media.URI) ([]byte, *media.RemoteFile, error) {
	file, err := p.DownloadMedia(context.Background(), uri.Server, uri.MediaID, time.Second)
	if err != nil {
		return nil, nil, err
	}
	defer file.Body.Close()
	content, err := io.ReadAll(file.Body)
	return content, file, err
}

func TestMediaArrivesUnchangedAndSigned(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	repository := withMedia(t, alice)
	var signed bool
	alice.change(func(h http.Header, body []byte) []byte {
		signed = h.Get("Signature") != "" && h.Get("Digest") != "" && h.Get(inReplyToHeader) != ""
		return body
	})
	for _, size := range []int{1, 100, 70_000, 3_000_000} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(rand.Uint32())
		}
		got, file, err := fetch(bob, upload(t, repository, content))
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
		if file.ContentType != "audio/ogg" || !strings.Contains(file.ContentDisposition, "Voice") {
			t.Errorf("got %+v", file)
		}
		if !signed {
			t.Error("the answer was not signed")
		}
	}
	if !bob.peers.signs(alice.name) {
		t.Error("a signed answer is not taken as a sign that the server signs")
	}
}

func TestSpoiltMediaIsRefused(t *testing.T) {
	a := newAuthority(t)
	content := []byte(strings.Repeat("voice", 5000))
	var earlierHeader http.Header
	var earlierBody []byte
	unsign := func(h http.Header) {
		for _, name := range []string{"Signature", "Digest", inReplyToHeader} {
			h.Del(name)
		}
	}
	for name, tt := range map[string]struct {
		policy string
		known  bool // that alice signs
		spoil  func(h http.Header, body []byte) []byte
		ok     bool
	}{
		"nothing": {policyAccept, false, func(h http.Header, b []byte) []byte { return b }, true},
		"a bit":   {policyAccept, false, func(h http.Header, b []byte) []byte { b[len(b)/2] ^= 1; return b }, false},
		"the type": {policyAccept, false, func(h http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte("audio/ogg"), []byte("audio/xyz"), 1)
		}, false},
		"something after the end":   {policyAccept, false, func(h http.Header, b []byte) []byte { return append(b, "more"...) }, false},
		"much after the end":        {policyAccept, false, func(h http.Header, b []byte) []byte { return append(b, make([]byte, 100_000)...) }, false},
		"the Digest":                {policyAccept, false, func(h http.Header, b []byte) []byte { h.Set("Digest", digestOf([]byte("x"))); return b }, false},
		"body and Digest":           {policyAccept, false, func(h http.Header, b []byte) []byte { b[len(b)/2] ^= 1; h.Set("Digest", digestOf(b)); return b }, false},
		"unsigned":                  {policyAccept, false, func(h http.Header, b []byte) []byte { unsign(h); return b }, true},
		"unsigned, first contact":   {policyOnFirstUse, false, func(h http.Header, b []byte) []byte { unsign(h); return b }, true},
		"unsigned, though it signs": {policyOnFirstUse, true, func(h http.Header, b []byte) []byte { unsign(h); return b }, false},
		"unsigned, but required":    {policyRequired, false, func(h http.Header, b []byte) []byte { unsign(h); return b }, false},
		"an earlier answer": {policyAccept, false, func(h http.Header, b []byte) []byte {
			if earlierHeader == nil {
				earlierHeader, earlierBody = h.Clone(), bytes.Clone(b)
				return b
			}
			clear(h)
			for k, v := range earlierHeader {
				h[k] = v
			}
			return earlierBody
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			alice := newTestServer(t, a)
			bob := newTestServer(t, a, func(o *Options) { o.Config.Signatures = tt.policy })
			uri := upload(t, withMedia(t, alice), content)
			if tt.known {
				if err := bob.peers.signed(context.Background(), alice.name); err != nil {
					t.Fatal(err)
				}
			}
			alice.change(tt.spoil)
			got, _, err := fetch(bob, uri)
			if name == "an earlier answer" {
				got, _, err = fetch(bob, uri)
			}
			if ok := err == nil && bytes.Equal(got, content); ok != tt.ok {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestMediaErrorsKeepTheirCode(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	withMedia(t, alice)
	if _, _, err := fetch(bob, media.URI{Server: alice.name, MediaID: "nothing"}); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Error(err)
	}
	if bob.peers.backingOff(alice.name) {
		t.Error("a missing file is no failure of the server")
	}
}

func TestMediaOfOldServer(t *testing.T) {
	a := newAuthority(t)
	old := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_matrix/media/v3/download/"+r.Host+"/abc" || r.URL.Query().Get("allow_remote") != "false" {
			w.WriteHeader(404)
			io.WriteString(w, `{"errcode":"M_UNRECOGNIZED","error":"?"}`)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "old")
	}), "127.0.0.1")
	bob := newTestServer(t, a)
	got, file, err := fetch(bob, media.URI{Server: matrix.ServerName(old.Listener.Addr().String()), MediaID: "abc"})
	if err != nil || string(got) != "old" || file.ContentType != "text/plain" {
		t.Error(string(got), file, err)
	}
}

func TestMediaRedirect(t *testing.T) {
	a := newAuthority(t)
	store := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Signature") != "" {
			t.Error("our signature went to the redirect's target")
		}
		io.WriteString(w, "from elsewhere")
	}), "127.0.0.1")
	location := store.URL + "/x"
	server := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", `multipart/mixed; boundary="b"`)
		io.WriteString(w, "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nLocation: "+location+"\r\n\r\n\r\n--b--\r\n")
	}), "127.0.0.1")
	bob := newTestServer(t, a)
	uri := media.URI{Server: matrix.ServerName(server.Listener.Addr().String()), MediaID: "abc"}
	if got, _, err := fetch(bob, uri); err != nil || string(got) != "from elsewhere" {
		t.Error(string(got), err)
	}
	location = strings.Replace(location, "https:", "http:", 1)
	if _, _, err := fetch(bob, uri); err == nil {
		t.Error("followed to http")
	}
}

func TestMalformedMediaAnswers(t *testing.T) {
	a := newAuthority(t)
	var contentType, body string
	server := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}), "127.0.0.1")
	bob := newTestServer(t, a)
	for _, tt := range [][2]string{
		{"text/plain", "x"}, {"multipart/mixed", "x"}, {"multipart/mixed; boundary=b", ""}, {"multipart/mixed; boundary=b", "--b\r\n\r\n{}\r\n--b--\r\n"},
		{"multipart/mixed; boundary=b", "--b\r\n\r\n" + strings.Repeat(" ", 3*maxMediaMetadata) + "{}\r\n--b\r\n\r\nfile\r\n--b--\r\n"},
		{"multipart/mixed; boundary=b", "--b\r\n\r\n{}\r\n--b\r\n\r\ncut off"},
	} {
		contentType, body = tt[0], tt[1]
		if got, _, err := fetch(bob, media.URI{Server: matrix.ServerName(server.Listener.Addr().String()), MediaID: "abc"}); err == nil {
			t.Errorf("%.60q gave %q", tt, got)
		}
	}
}
