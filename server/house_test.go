package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/storage/storagetest"
)

// runAsParley makes the test binary be parley itself, for the tests that kill whole processes.
const runAsParley = "PARLEY_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsParley) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// voiceMessage makes a real Ogg Opus file of some seconds.
func voiceMessage(t *testing.T, seconds int) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := audio.NewOggWriter(&file, audio.Head{Channels: 1, PreSkip: 312, InputRate: 48000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range seconds * 50 {
		// A CELT packet of 20 ms, fullband mono (TOC 31<<3); what it encodes does not matter here.
		packet := append([]byte{31 << 3}, bytes.Repeat([]byte{byte(i), byte(i >> 3)}, 30)...)
		if err := w.WritePacket(packet); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(0); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// testWorld makes the directory of a development world for two servers.
func testWorld(t *testing.T, postgres bool) *devWorld {
	t.Helper()
	return testWorldOf(t, 2, postgres)
}

func testWorldOf(t *testing.T, servers int, postgres bool) *devWorld {
	t.Helper()
	w := &devWorld{dir: t.TempDir(), stderr: io.Discard}
	if err := w.authority(); err != nil {
		t.Fatal(err)
	}
	for i := range servers {
		dir := filepath.Join(w.dir, fmt.Sprintf("server%d", i+1))
		s := &devServer{DataDir: dir, ConfigFile: filepath.Join(dir, "parley.yaml")}
		if err := w.makeServer(t.Context(), i, s); err != nil {
			t.Fatal(err)
		}
		if postgres {
			replaceDatabase(t, s.ConfigFile, storagetest.PostgreSQLURL(t))
		}
		s, err := w.server(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		w.servers = append(w.servers, s)
	}
	return w
}

func replaceDatabase(t *testing.T, configFile, url string) {
	t.Helper()
	text, err := os.ReadFile(configFile)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if before, _, ok := strings.Cut(line, "url: sqlite:"); ok {
			line = before + "url: " + strconv.Quote(url) + "\n"
		}
		out.WriteString(line)
	}
	if err := os.WriteFile(configFile, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eachDatabase runs a test on SQLite and on PostgreSQL.
func eachDatabase(t *testing.T, test func(t *testing.T, postgres bool)) {
	t.Run("sqlite", func(t *testing.T) { test(t, false) })
	t.Run("postgres", func(t *testing.T) {
		storagetest.PostgreSQLURL(t) // skips, or fails, where there is none
		test(t, true)
	})
}

// startInProcess runs a server in this process and stops it with the test. wire sees every request from other servers.
func startInProcess(t *testing.T, s *devServer, wire func(http.Handler) http.Handler) *house {
	t.Helper()
	h, _ := runInProcess(t, s, wire)
	return h
}

// runInProcess is startInProcess for those who stop the server themselves, before the test ends.
func runInProcess(t *testing.T, s *devServer, wire func(http.Handler) http.Handler) (h *house, stop func()) {
	t.Helper()
	cfg, _, err := loadConfig(s.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h, err = build(ctx, cfg, testLog(t))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	if wire != nil {
		h.federation = wire(h.federation)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- h.serve(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", s.ServerName, err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return h, stop
}

// testLog shows the server's log only with -v.
func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// startProcess runs a server as a process of its own, from this test binary.
func startProcess(t *testing.T, s *devServer) {
	t.Helper()
	s.command = exec.Command(os.Args[0], "-config", s.ConfigFile)
	s.command.Env = append(os.Environ(), runAsParley+"=1")
	log, err := os.OpenFile(filepath.Join(s.DataDir, "parley.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.command.Stdout, s.command.Stderr = log, log
	s.command.SysProcAttr = childAttributes()
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	command, exited := s.command, make(chan struct{})
	s.exited = exited
	go func() { _ = command.Wait(); close(exited) }()
	t.Cleanup(func() { _ = command.Process.Kill(); <-exited })
	if err := s.ready(t.Context()); err != nil {
		text, _ := os.ReadFile(filepath.Join(s.DataDir, "parley.log"))
		t.Fatalf("%v\n%s", err, text)
	}
}

// kill ends a server as power loss or the kernel would.
func kill(t *testing.T, s *devServer) {
	t.Helper()
	if err := s.command.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.exited
}

// person is somebody with a client.
type person struct {
	*benchUser
	t     *testing.T
	since string
}

func newPerson(t *testing.T, s *devServer, name string) *person {
	t.Helper()
	u, err := newBenchServer(s.ClientURL, s.SharedSecret, 0, "").register(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return &person{benchUser: u, t: t}
}

func (p *person) must(method, path string, body, answer any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	if err := p.call(ctx, p.Token, method, path, body, answer); err != nil {
		p.t.Fatal(err)
	}
}

// until syncs until a sync answer satisfies found, and returns it.
func (p *person) until(what string, found func(answer map[string]any) bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	for {
		query := "?timeout=5000"
		if p.since != "" {
			query += "&since=" + url.QueryEscape(p.since)
		}
		var answer map[string]any
		if err := p.call(ctx, p.Token, "GET", "/_matrix/client/v3/sync"+query, nil, &answer); err != nil {
			p.t.Fatalf("%s waits for %s: %v", p.ID, what, err)
		}
		p.since, _ = answer["next_batch"].(string)
		if found(answer) {
			return
		}
	}
}

// dig follows keys into nested objects.
func dig(value any, keys ...string) any {
	for _, key := range keys {
		object, _ := value.(map[string]any)
		value = object[key]
	}
	return value
}

// timelineHas looks for an event in the room's timeline whose content has the value at key.
func timelineHas(room, key, value string, event *map[string]any) func(map[string]any) bool {
	return func(answer map[string]any) bool {
		events, _ := dig(answer, "rooms", "join", room, "timeline", "events").([]any)
		for _, e := range events {
			if dig(e, "content", key) == value {
				if event != nil {
					*event, _ = e.(map[string]any)
				}
				return true
			}
		}
		return false
	}
}

func (p *person) send(room, txn string, content map[string]any) (eventID string) {
	p.t.Helper()
	var answer struct {
		EventID string `json:"event_id"`
	}
	p.must("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+txn, content, &answer)
	return answer.EventID
}

// voiceContent is a voice message in the format that clients have sent since 2021.
func voiceContent(mxc string, bytes int) map[string]any {
	return map[string]any{
		"msgtype": "m.audio", "body": "Voice message.ogg", "url": mxc,
		"info":                     map[string]any{"duration": 3000, "mimetype": "audio/ogg", "size": bytes},
		"org.matrix.msc1767.audio": map[string]any{"duration": 3000, "waveform": []int{0, 231, 1024}},
		"org.matrix.msc3245.voice": map[string]any{},
		"m.mentions":               map[string]any{},
	}
}

// download fetches media through one's own server.
func (p *person) download(mxc string, header http.Header) (status int, body []byte, answer http.Header) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), "GET", p.url+"/_matrix/client/v1/media/download/"+strings.TrimPrefix(mxc, "mxc://"), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	for key, values := range header {
		r.Header[key] = values
	}
	r.Header.Set("Authorization", "Bearer "+p.Token)
	response, err := p.http.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(response.Body); err != nil {
		p.t.Fatal(err)
	}
	return response.StatusCode, body, response.Header
}

// firstVoiceMessage is the main job of Parley. between is called where the world may be turned off and on again.
func firstVoiceMessage(t *testing.T, w *devWorld, between func()) {
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	var created struct {
		RoomID string `json:"room_id"`
	}
	alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "private_chat", "name": "Voices", "invite": []string{bob.ID}}, &created)
	room := created.RoomID
	bob.until("the invite", func(answer map[string]any) bool { return dig(answer, "rooms", "invite", room) != nil })
	between()
	bob.must("POST", "/_matrix/client/v3/join/"+url.PathEscape(room)+"?via="+url.QueryEscape(w.servers[0].ServerName), map[string]any{}, nil)
	alice.until("bob's join", timelineHas(room, "membership", "join", nil))
	between()

	voice := voiceMessage(t, 3)
	var uploaded struct {
		ContentURI string `json:"content_uri"`
	}
	if err := alice.call(t.Context(), alice.Token, "POST", "/_matrix/media/v3/upload?filename=voice.ogg", voice, &uploaded); err != nil {
		t.Fatal(err)
	}
	sent := alice.send(room, "voice1", voiceContent(uploaded.ContentURI, len(voice)))
	between()
	var event map[string]any
	bob.until("the voice message", timelineHas(room, "url", uploaded.ContentURI, &event))
	if event["event_id"] != sent || event["sender"] != alice.ID || dig(event, "content", "org.matrix.msc3245.voice") == nil {
		t.Errorf("bob got %v", event)
	}

	status, got, header := bob.download(uploaded.ContentURI, nil)
	if status != http.StatusOK || !bytes.Equal(got, voice) || header.Get("Content-Type") != "audio/ogg" {
		t.Errorf("bob's download: %d, %d bytes of %d, %s", status, len(got), len(voice), header.Get("Content-Type"))
	}
	status, got, header = bob.download(uploaded.ContentURI, http.Header{"Range": {"bytes=100-199"}})
	if status != http.StatusPartialContent || !bytes.Equal(got, voice[100:200]) {
		t.Errorf("a part of it: %d, %d bytes, %s", status, len(got), header.Get("Content-Range"))
	}

	between()
	bob.send(room, "answer1", map[string]any{"msgtype": "m.text", "body": "I hear you"})
	alice.until("bob's answer", timelineHas(room, "body", "I hear you", nil))
	between()
	// The same transaction once more, as a client does that did not get the answer: the same event, not a second one.
	if again := alice.send(room, "voice1", voiceContent(uploaded.ContentURI, len(voice))); again != sent {
		t.Errorf("sent again: event %s, before it was %s", again, sent)
	}
	for _, p := range []*person{alice, bob} {
		var page struct {
			Chunk []struct{ Type string }
		}
		p.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=100", nil, &page)
		messages := 0
		for _, e := range page.Chunk {
			if e.Type == "m.room.message" {
				messages++
			}
		}
		if messages != 2 {
			t.Errorf("%s finds %d messages in the history, want 2", p.ID, messages)
		}
	}
}

// wireTap sees the requests from other servers.
type wireTap struct {
	mu       sync.Mutex
	requests int
	errs     []error
	keys     func(server, keyID string) ([]byte, error)
}

// The main job, with every request between the servers checked on the wire.
func TestVoiceMessageBetweenTwoServers(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		tap := &wireTap{keys: func(server, keyID string) ([]byte, error) { return publishedKey(t, w, server, keyID) }}
		for _, s := range w.servers {
			startInProcess(t, s, tap.handler)
		}
		firstVoiceMessage(t, w, func() {})
		tap.mu.Lock()
		defer tap.mu.Unlock()
		if tap.requests < 6 {
			t.Errorf("only %d requests between the servers were seen", tap.requests)
		}
		for _, err := range tap.errs {
			t.Error(err)
		}
	})
}

// The main job, with both servers killed at every step and started again.
func TestNothingAnsweredIsLostWhenServersAreKilled(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startProcess(t, s)
		}
		firstVoiceMessage(t, w, func() {
			for _, s := range w.servers {
				kill(t, s)
			}
			for _, s := range w.servers {
				startProcess(t, s)
			}
		})
	})
}

func (tap *wireTap) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_matrix/federation/") && r.URL.Path != "/_matrix/federation/v1/version" {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				err = tap.check(r, body)
			}
			tap.mu.Lock()
			tap.requests++
			if err != nil {
				tap.errs = append(tap.errs, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err))
			}
			tap.mu.Unlock()
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		next.ServeHTTP(w, r)
	})
}

// publishedKey fetches a server's key from where it publishes it.
func publishedKey(t *testing.T, w *devWorld, server, keyID string) ([]byte, error) {
	for _, s := range w.servers {
		if s.ServerName != server {
			continue
		}
		response, err := http.Get(s.ClientURL + "/_matrix/key/v2/server") // the same handler, without TLS
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		var keys struct {
			VerifyKeys map[string]struct{ Key string } `json:"verify_keys"`
		}
		if err := json.NewDecoder(response.Body).Decode(&keys); err != nil {
			return nil, err
		}
		return base64.RawStdEncoding.DecodeString(keys.VerifyKeys[keyID].Key)
	}
	return nil, fmt.Errorf("no server %q", server)
}

func TestSecondServerOnOneDataDirIsRefused(t *testing.T) {
	w := testWorld(t, false)
	startInProcess(t, w.servers[0], nil)
	cfg, _, err := loadConfig(w.servers[0].ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := build(t.Context(), cfg, testLog(t)); err == nil || !strings.Contains(err.Error(), "in use by another Parley") {
		h.close()
		t.Errorf("got %v", err)
	}
}

func TestServerNameCannotChange(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir = t.TempDir()
	for _, name := range []string{"one.example.org", "two.example.org"} {
		cfg.ServerName = name
		if err := cfg.complete(); err != nil {
			t.Fatal(err)
		}
		h, err := build(t.Context(), cfg, testLog(t))
		if (err == nil) != (name == "one.example.org") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			h.close()
		}
	}
}

func TestHealth(t *testing.T) {
	w := testWorld(t, false)
	h := startInProcess(t, w.servers[0], nil)
	recorder := httptest.NewRecorder()
	h.handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/_parley/health", nil))
	if recorder.Code != http.StatusOK {
		t.Errorf("got %d", recorder.Code)
	}
}
