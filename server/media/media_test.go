package media

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const (
	alice = matrix.UserID("@alice:here.example")
	bob   = matrix.UserID("@bob:here.example")
)

// world is one server's repository with a clock and a network that the test holds.
type world struct {
	*Repository
	mu     sync.Mutex
	now    time.Time
	remote *fakeRemote
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	w.now = w.now.Add(d)
	w.mu.Unlock()
}

// fakeRemote is the other server.
type fakeRemote struct {
	asked    atomic.Int32
	download func(mediaID string) (*RemoteFile, error)
	thumb    func() (*RemoteFile, error)
}

func (f *fakeRemote) DownloadMedia(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*RemoteFile, error) {
	f.asked.Add(1)
	return f.download(mediaID)
}

func (f *fakeRemote) ThumbnailMedia(ctx context.Context, server matrix.ServerName, mediaID string, size ThumbnailSize, wait time.Duration) (*RemoteFile, error) {
	return f.thumb()
}

func newWorld(t *testing.T, change func(*Config)) *world {
	return newWorldOn(t, storagetest.New(t), change)
}

func newWorldOn(t *testing.T, db *storage.DB, change func(*Config)) *world {
	t.Helper()
	blobs, err := storage.OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config := DefaultConfig()
	config.MaxUploadBytes = 1 << 20
	if change != nil {
		change(&config)
	}
	w := &world{now: time.UnixMilli(1_800_000_000_000), remote: &fakeRemote{}}
	w.Repository = New(Options{
		Config: config, Server: "here.example", DB: db, Blobs: blobs, Remote: w.remote,
		Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		},
	})
	t.Cleanup(func() { w.Close() })
	return w
}

func file(content string) Upload {
	return Upload{Body: strings.NewReader(content), Size: int64(len(content)), ContentType: "audio/ogg", Filename: "Voice message.ogg"}
}

func (w *world) upload(t *testing.T, u Upload) URI {
	t.Helper()
	uri, err := w.Upload(t.Context(), alice, u)
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

func (w *world) read(t *testing.T, req Request) string {
	t.Helper()
	f, err := w.Open(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wantCode checks the code and the HTTP status of a *matrix.Error.
func wantCode(t *testing.T, err error, status int, code string) {
	t.Helper()
	var e *matrix.Error
	if !errors.As(err, &e) || e.Code != code || e.Status != status {
		t.Errorf("got %v, want %d %s", err, status, code)
	}
}

func (w *world) serve(t *testing.T, uri URI, header ...string) *http.Response {
	t.Helper()
	f, err := w.Open(t.Context(), Request{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return serveFile(f, http.MethodGet, header...)
}

func serveFile(f *File, method string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "/", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	f.ServeHTTP(rec, r)
	return rec.Result()
}

func TestUploadIsReadBackAsItWas(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w := newWorldOn(t, db, nil)
		uri := w.upload(t, file("hello"))
		f, err := w.Open(t.Context(), Request{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil || string(b) != "hello" || f.ContentType != "audio/ogg" || f.Filename != "Voice message.ogg" ||
			f.Size != 5 || f.Hash != sha256.Sum256([]byte("hello")) {
			t.Fatalf("%q %v %+v", b, err, f)
		}
	})
}

func TestUploadLimits(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxUploadBytes, c.UserQuotaBytes = 10, 15 })
	_, err := w.Upload(t.Context(), alice, file("01234567890"))
	wantCode(t, err, 413, "M_TOO_LARGE")
	unsaid := file("01234567890")
	unsaid.Size = -1
	_, err = w.Upload(t.Context(), alice, unsaid)
	wantCode(t, err, 413, "M_TOO_LARGE")
	short := file("0123")
	short.Size = 5
	_, err = w.Upload(t.Context(), alice, short)
	wantCode(t, err, 400, "M_UNKNOWN")
	w.upload(t, file("0123456789"))
	_, err = w.Upload(t.Context(), alice, file("012345"))
	wantCode(t, err, 403, "M_FORBIDDEN")
	if _, err := w.Upload(t.Context(), bob, file("012345")); err != nil {
		t.Fatal("one user's quota must not touch another's:", err)
	}
	err = w.Blobs.Each(t.Context(), func(b storage.BlobMeta) error {
		if known, _ := w.DB.KnowsBlob(t.Context(), b.Hash); !known && b.Size != 6 {
			return fmt.Errorf("a refused upload left %d bytes", b.Size)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreatedMediaIsFilledOnceByItsCreator(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxPendingUploads = 2 })
	ctx := t.Context()
	uri, expires, err := w.Create(ctx, alice)
	if err != nil || !expires.Equal(w.now.Add(24*time.Hour)) {
		t.Fatal(expires, err)
	}
	_, err = w.Open(ctx, Request{URI: uri})
	wantCode(t, err, 504, "M_NOT_YET_UPLOADED")
	wantCode(t, w.UploadTo(ctx, bob, uri, file("x")), 403, "M_FORBIDDEN")
	wantCode(t, w.UploadTo(ctx, alice, URI{"here.example", "nothing"}, file("x")), 404, "M_NOT_FOUND")
	wantCode(t, w.UploadTo(ctx, alice, URI{"there.example", uri.MediaID}, file("x")), 404, "M_NOT_FOUND")
	if err := w.UploadTo(ctx, alice, uri, file("hello")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.UploadTo(ctx, alice, uri, file("again")), 409, "M_CANNOT_OVERWRITE_MEDIA")
	if got := w.read(t, Request{URI: uri}); got != "hello" {
		t.Fatal(got)
	}

	late, _, err := w.Create(ctx, alice)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = w.Create(ctx, alice); err != nil {
		t.Fatal("a filled ID counts as pending:", err)
	}
	_, _, err = w.Create(ctx, alice)
	wantCode(t, err, 429, "M_LIMIT_EXCEEDED")
	w.pass(24 * time.Hour)
	wantCode(t, w.UploadTo(ctx, alice, late, file("x")), 404, "M_NOT_FOUND")
	_, err = w.Open(ctx, Request{URI: late})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func TestDownloadWaitsForTheUpload(t *testing.T) {
	w := newWorld(t, nil)
	uri, _, err := w.Create(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() { read <- w.read(t, Request{URI: uri, Wait: time.Minute}) }()
	if err := w.UploadTo(t.Context(), alice, uri, file("worth the wait")); err != nil {
		t.Fatal(err)
	}
	if got := <-read; got != "worth the wait" {
		t.Fatal(got)
	}
}

func TestServedFileCarriesItsHeaders(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.upload(t, file("hello"))
	res := w.serve(t, uri)
	etag := `"` + storage.BlobHash(sha256.Sum256([]byte("hello"))).String() + `"`
	for name, want := range map[string]string{
		"Content-Type": "audio/ogg", "Content-Length": "5", "Etag": etag, "Accept-Ranges": "bytes",
		"Content-Disposition":          `inline; filename="Voice message.ogg"`,
		"Cross-Origin-Resource-Policy": "cross-origin", "X-Content-Type-Options": "nosniff",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(res.Header.Get("Content-Security-Policy"), "sandbox; default-src 'none'") {
		t.Error("no Content-Security-Policy")
	}
}

func TestRangesAndConditions(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.upload(t, file("0123456789"))
	etag := w.serve(t, uri).Header.Get("ETag")
	for _, c := range []struct {
		header []string
		status int
		body   string
	}{
		{[]string{"Range", "bytes=2-4"}, 206, "234"},
		{[]string{"Range", "bytes=-3"}, 206, "789"},
		{[]string{"Range", "bytes=8-"}, 206, "89"},
		{[]string{"Range", "bytes=10-"}, 416, ""},
		{[]string{"Range", "bytes=2-4", "If-Range", etag}, 206, "234"},
		{[]string{"Range", "bytes=2-4", "If-Range", `"other"`}, 200, "0123456789"},
		{[]string{"If-None-Match", etag}, 304, ""},
		{[]string{"If-Match", `"other"`}, 412, ""},
	} {
		res := w.serve(t, uri, c.header...)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != c.status || res.StatusCode < 300 && string(body) != c.body {
			t.Errorf("%v: %d %q, want %d %q", c.header, res.StatusCode, body, c.status, c.body)
		}
	}
	f, err := w.Open(t.Context(), Request{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res := serveFile(f, http.MethodHead)
	if body, _ := io.ReadAll(res.Body); len(body) != 0 || res.ContentLength != 10 {
		t.Errorf("HEAD: %q, %d", body, res.ContentLength)
	}
}

func TestOnlySafeTypesAreShownInline(t *testing.T) {
	for contentType, want := range map[string]string{
		"image/png": "inline", "Image/PNG": "inline", "text/plain; charset=utf-8": "inline", "audio/ogg; codecs=opus": "inline",
		"text/html": "attachment", "image/svg+xml": "attachment", "application/xhtml+xml": "attachment", "": "attachment",
	} {
		f := File{ContentType: cleanContentType(contentType)}
		if got := f.ContentDisposition(); got != want {
			t.Errorf("%q: %q, want %q", contentType, got, want)
		}
	}
}

func TestNamesAndTypesOfStrangersAreCleaned(t *testing.T) {
	for s, want := range map[string]string{
		"plain.ogg": "plain.ogg", "two\r\nlines": "twolines", "nul\x00": "nul", "bad\xffutf8": "badutf8", "é–🎤": "é–🎤",
	} {
		if got := cleanFilename(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
	if got := cleanFilename(strings.Repeat("é", 200)); len(got) != 254 {
		t.Errorf("%d bytes", len(got))
	}
	for s, want := range map[string]string{
		"": defaultContentType, "image": defaultContentType, "a/b\r\nSet-Cookie: x": defaultContentType,
		"text/plain; charset=utf-8": "text/plain; charset=utf-8", "img/png": "img/png",
	} {
		if got := cleanContentType(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestMediaIDsCannotLeaveTheirPlace(t *testing.T) {
	for _, s := range []string{"", "..", "a/b", "a.b", "a%2Fb", "é", strings.Repeat("a", 256)} {
		if _, err := NewURI("here.example", s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
	for _, s := range []string{"mxc://here.example/abc_-9", "mxc://[::1]:8448/a"} {
		if uri, err := ParseURI(s); err != nil || uri.String() != s {
			t.Errorf("%q: %v %v", s, uri, err)
		}
	}
	for _, s := range []string{"http://here.example/a", "mxc://here.example", "mxc:///a", "mxc://here example/a"} {
		if _, err := ParseURI(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestUnauthenticatedDownloadsAreClosedUnlessConfigured(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.upload(t, file("hello"))
	_, err := w.Open(t.Context(), Request{URI: uri, Unauthenticated: true})
	wantCode(t, err, 404, "M_NOT_FOUND")
	w = newWorld(t, func(c *Config) { c.UnauthenticatedDownloads = true })
	uri = w.upload(t, file("hello"))
	if got := w.read(t, Request{URI: uri, Unauthenticated: true}); got != "hello" {
		t.Fatal(got)
	}
}

func remoteFile(content io.Reader) *RemoteFile {
	return &RemoteFile{Body: io.NopCloser(content), ContentType: "audio/ogg", ContentDisposition: `inline; filename="far.ogg"`}
}

var far = URI{"there.example", "abc"}

func TestRemoteMediaIsFetchedOnceAndKept(t *testing.T) {
	w := newWorld(t, nil)
	body, feed := io.Pipe()
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(body), nil }
	var readers sync.WaitGroup
	firstByte := make(chan struct{}, 3)
	for range 3 {
		readers.Go(func() {
			f, err := w.Open(t.Context(), Request{URI: far})
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			var one [1]byte
			if _, err := io.ReadFull(f, one[:]); err != nil {
				t.Error(err)
			}
			firstByte <- struct{}{}
			rest, err := io.ReadAll(f)
			if err != nil || string(one[:])+string(rest) != "hello from afar" {
				t.Errorf("%q, %v", rest, err)
			}
			if f.Filename != "far.ogg" || f.ContentType != "audio/ogg" {
				t.Errorf("%+v", f)
			}
		})
	}
	io.WriteString(feed, "hello ")
	for range 3 { // all read while the rest is still to come
		<-firstByte
	}
	io.WriteString(feed, "from afar")
	feed.Close()
	readers.Wait()
	if n := w.remote.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if res := w.serve(t, far, "Range", "bytes=0-4"); res.StatusCode != 206 {
		t.Errorf("a kept file: %d", res.StatusCode)
	}
	if n := w.remote.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestArrivingFileIsServedInParts(t *testing.T) {
	w := newWorld(t, nil)
	body, feed := io.Pipe()
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(body), nil }
	go func() {
		io.WriteString(feed, "hello ")
		io.WriteString(feed, "from afar")
		feed.Close()
	}()
	f, err := w.Open(t.Context(), Request{URI: far})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res := serveFile(f, http.MethodGet, "Range", "bytes=6-9")
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 206 || string(b) != "from" {
		t.Fatalf("%d %q", res.StatusCode, b)
	}
}

func TestRemoteMediaThatBreaksOffIsNotKept(t *testing.T) {
	w := newWorld(t, nil)
	body, feed := io.Pipe()
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(body), nil }
	go func() {
		io.WriteString(feed, "hello")
		feed.CloseWithError(errors.New("connection reset"))
	}()
	f, err := w.Open(t.Context(), Request{URI: far})
	if err == nil {
		defer f.Close()
		func() {
			defer func() {
				if recover() != http.ErrAbortHandler {
					t.Error("the client is not told that the file broke off")
				}
			}()
			serveFile(f, http.MethodGet)
		}()
	}
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(strings.NewReader("whole")), nil }
	for { // the broken fetch may still be ending
		f, err := w.Open(t.Context(), Request{URI: far})
		if err != nil {
			continue
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err == nil {
			if string(b) != "whole" {
				t.Fatalf("%q", b)
			}
			return
		}
	}
}

func TestErrorsOfTheOtherServer(t *testing.T) {
	for _, c := range []struct {
		answer error
		status int
		code   string
	}{
		{matrix.NotFound("no"), 404, "M_NOT_FOUND"},
		{matrix.NotYetUploaded("wait"), 504, "M_NOT_YET_UPLOADED"},
		{matrix.TooLarge("no"), 502, "M_TOO_LARGE"},
		{matrix.Forbidden("go away"), 502, "M_UNKNOWN"},
		{errors.New("connection refused"), 502, "M_UNKNOWN"},
	} {
		w := newWorld(t, nil)
		w.remote.download = func(string) (*RemoteFile, error) { return nil, c.answer }
		_, err := w.Open(t.Context(), Request{URI: far})
		wantCode(t, err, c.status, c.code)
	}
	w := newWorld(t, func(c *Config) { c.MaxRemoteBytes = 4 })
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(strings.NewReader("hello")), nil }
	_, err := w.complete(t.Context(), Request{URI: far})
	wantCode(t, err, 502, "M_TOO_LARGE")
	_, err = w.Open(t.Context(), Request{URI: far, LocalOnly: true})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func TestDeletedFileGivesItsSpaceBack(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	first, second := w.upload(t, file("same")), w.upload(t, file("same"))
	hash := storage.BlobHash(sha256.Sum256([]byte("same")))
	if err := w.Delete(ctx, first); err != nil {
		t.Fatal(err)
	}
	if got := w.read(t, Request{URI: second}); got != "same" {
		t.Fatal("the other file lost its content")
	}
	if n, err := w.DeleteUploads(ctx, alice); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if _, err := w.Blobs.Size(ctx, hash); !errors.Is(err, storage.ErrNoBlob) {
		t.Fatal("the bytes are still there:", err)
	}
	wantCode(t, w.Delete(ctx, second), 404, "M_NOT_FOUND")
	w.upload(t, file("same"))
}

func TestUploadOfWhatIsBeingDeletedIsNotLost(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				uri, err := w.Upload(ctx, alice, file("fought over"))
				if err != nil {
					t.Error(err)
					return
				}
				f, err := w.Open(ctx, Request{URI: uri})
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
				if err := w.Delete(ctx, uri); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := w.Blobs.Size(ctx, sha256.Sum256([]byte("fought over"))); !errors.Is(err, storage.ErrNoBlob) {
		t.Error("the bytes are still there:", err)
	}
}

func TestSweepExpiresShrinksAndFindsOrphans(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.RemoteCacheBytes = 6 })
	ctx := t.Context()
	w.remote.download = func(id string) (*RemoteFile, error) {
		return remoteFile(strings.NewReader("file " + id)), nil
	}
	mine := w.upload(t, file("mine"))
	old, recent := URI{"there.example", "1"}, URI{"there.example", "2"}
	w.read(t, Request{URI: recent})
	w.pass(time.Hour)
	w.read(t, Request{URI: old})
	w.pass(time.Hour)
	w.read(t, Request{URI: recent}) // used again
	orphan, err := w.Blobs.Stage()
	if err != nil {
		t.Fatal(err)
	}
	orphan.Write([]byte("orphan"))
	lost, _, err := orphan.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	orphan.Discard()
	for { // the row of the last fetch is written after its last byte was read
		if n, _ := w.DB.RemoteMediaBytes(ctx); n == 12 {
			break
		}
	}
	if err := w.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.sweepOrphans(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Blobs.Size(ctx, lost); (err == nil) != w.now.Add(-orphanAge).Before(time.Now()) {
		t.Error("orphan:", err)
	}
	w.read(t, Request{URI: mine})
	w.remote.download = func(string) (*RemoteFile, error) { return nil, matrix.NotFound("gone") }
	w.read(t, Request{URI: recent})
	_, err = w.Open(ctx, Request{URI: old})
	wantCode(t, err, 404, "M_NOT_FOUND")
}
