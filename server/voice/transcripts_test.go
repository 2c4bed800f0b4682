package voice

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// speechServer stands in for a speech service. It answers from the audio that it gets, so that a wrong one shows.
type speechServer struct {
	t      testing.TB
	server *httptest.Server

	mu     sync.Mutex // guards what follows
	calls  int
	fields []string
	// before answers in its place if it returns true.
	before func(call int, w http.ResponseWriter, r *http.Request, format string) bool
}

func newSpeechServer(t testing.TB) *speechServer {
	f := &speechServer{t: t}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func (f *speechServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/audio/transcriptions" {
		http.NotFound(w, r)
		return
	}
	file, _, err := r.FormFile("file")
	if err != nil {
		f.t.Errorf("no file: %v", err)
		http.Error(w, "no file", http.StatusBadRequest)
		return
	}
	wav, err := io.ReadAll(file)
	if err != nil {
		f.t.Error(err)
	}
	format := r.FormValue("response_format")
	f.mu.Lock()
	f.calls++
	call, before := f.calls, f.before
	f.fields = append(f.fields, strings.Join([]string{r.FormValue("model"), r.FormValue("language"), format, r.Header.Get("Authorization")}, " "))
	f.mu.Unlock()
	if before != nil && before(call, w, r, format) {
		return
	}
	text, err := hear(wav)
	if err != nil {
		f.t.Errorf("what was sent is no WAV file: %v", err)
	}
	answer := map[string]any{"text": " " + text + "\n"}
	if format == "verbose_json" {
		answer["language"], answer["duration"], answer["segments"] = "english", 4.0, []any{}
	}
	json.NewEncoder(w).Encode(answer)
}

func (f *speechServer) called() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// hear understands a WAV file: how long it is and how many stretches of 100 ms in it are loud.
func hear(wav []byte) (string, error) {
	if len(wav) < 44 || string(wav[:4])+string(wav[8:16]) != "RIFFWAVEfmt " {
		return "", fmt.Errorf("%d bytes without header", len(wav))
	}
	format := wav[20:36]
	if !bytes.Equal(format[:4], []byte{1, 0, 1, 0}) || binary.LittleEndian.Uint32(format[4:]) != 16000 || format[14] != 16 {
		return "", fmt.Errorf("format %v", format)
	}
	pcm := wav[44:]
	if int(binary.LittleEndian.Uint32(wav[40:])) != len(pcm) {
		return "", fmt.Errorf("%d bytes of sound, not as many as the header says", len(pcm))
	}
	loud := 0
	for part := range chunks(pcm, 3200) {
		power := 0.0
		for i := 0; i+1 < len(part); i += 2 {
			s := float64(int16(binary.LittleEndian.Uint16(part[i:]))) / math.MaxInt16
			power += s * s
		}
		if power/float64(len(part)/2) > 1e-3 {
			loud++
		}
	}
	return fmt.Sprintf("Guten Tag, %d laut von %d 你好世界", loud, len(pcm)/3200), nil
}

func chunks(b []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(size, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// studio is a server with a room, a recording and a speech service.
type studio struct {
	*Service
	t      testing.TB
	speech *speechServer
	room   matrix.RoomID
	uri    media.URI
	now    time.Time
	txn    int
}

func newStudio(t testing.TB, db *storage.DB, change func(*Config)) *studio {
	t.Helper()
	blobs, err := storage.OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	key, err := matrix.NewSigningKey("ed25519:1", bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := &studio{t: t, speech: newSpeechServer(t), now: time.Unix(1_800_000_000, 0)}
	files := media.New(media.Options{Config: media.DefaultConfig(), Server: "here.example", DB: db, Blobs: blobs, Log: log})
	t.Cleanup(func() { files.Close() })
	rooms := room.New(room.Options{
		Config: room.DefaultConfig(), ServerName: "here.example", DB: db, Key: key, Log: log, SearchTranscripts: true,
		AudioUnsigned: func(ctx context.Context, e *storage.Event) ([]byte, error) { return s.Unsigned(ctx, e) },
	})
	t.Cleanup(func() { rooms.Close() })
	config := DefaultConfig()
	config.Transcripts.Endpoint = s.speech.server.URL
	if change != nil {
		change(&config)
	}
	s.Service = New(Options{
		Config: config, DB: db, Media: files, Rooms: rooms, Client: s.speech.server.Client(), Log: log, Now: func() time.Time { return s.now },
	})
	t.Cleanup(func() { s.Close() })
	if s.room, err = rooms.Create(t.Context(), room.CreateRequest{Creator: alice, Preset: "public_chat"}); err != nil {
		t.Fatal(err)
	}
	s.uri = upload(t, s.Service, recordingFile(t, "speech.ogg"))
	s.transcribeAll() // from here on
	return s
}

func recordingFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("../audio/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// said is what the speech service must hear in a recording.
func said(t *testing.T, name string) string {
	t.Helper()
	content := recordingFile(t, name)
	var wav bytes.Buffer
	if err := audio.WriteWAV(&wav, strings.NewReader(content), int64(len(content)), 0); err != nil {
		t.Fatal(err)
	}
	text, err := hear(wav.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s *studio) send(user matrix.UserID, typ string, content json.RawMessage) *storage.Event {
	s.t.Helper()
	s.txn++
	id, err := s.Rooms.Send(s.t.Context(), room.SendRequest{Room: s.room, Sender: user, Type: typ, Content: content, Device: "D", TxnID: fmt.Sprint(s.txn)})
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := s.DB.EventByID(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *studio) speak(more string) *storage.Event {
	s.t.Helper()
	return s.send(alice, "m.room.message", voiceMessage(s.uri, more))
}

func (s *studio) set(typ, content string) {
	s.t.Helper()
	empty := ""
	if _, err := s.Rooms.Send(s.t.Context(), room.SendRequest{Room: s.room, Sender: alice, Type: typ, StateKey: &empty, Content: json.RawMessage(content)}); err != nil {
		s.t.Fatal(err)
	}
}

// transcribeAll does all jobs that are due and tells when the next one will be.
func (s *studio) transcribeAll() (next time.Time) {
	s.t.Helper()
	for {
		worked, next, err := s.transcribeNext(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		if !worked {
			return next
		}
	}
}

// text is the transcript of an event; "none" and "pending" if there is none.
func (s *studio) text(e *storage.Event) string {
	s.t.Helper()
	t, pending, err := s.Transcript(s.t.Context(), e.ID(), 0)
	switch {
	case matrix.ErrorCode(err) == "M_NOT_FOUND":
		return "none"
	case err != nil:
		s.t.Fatal(err)
	case pending:
		return "pending"
	}
	return t.Text
}

func (s *studio) want(e *storage.Event, text string, calls int) {
	s.t.Helper()
	if got := s.text(e); got != text {
		s.t.Errorf("the transcript is %q, want %q", got, text)
	}
	if got := s.speech.called(); got != calls {
		s.t.Errorf("the speech service was called %d times, want %d", got, calls)
	}
}

// unsigned is im.parley.voice of an event as alice reads it.
func (s *studio) unsigned(e *storage.Event) any {
	s.t.Helper()
	raw, err := s.Rooms.Event(s.t.Context(), s.room, room.Reader{User: alice}, e.ID())
	if err != nil {
		s.t.Fatal(err)
	}
	var read struct {
		Unsigned map[string]any `json:"unsigned"`
	}
	if err := json.Unmarshal(raw, &read); err != nil {
		s.t.Fatal(err)
	}
	return read.Unsigned["im.parley.voice"]
}

func (s *studio) search(user matrix.UserID, term string) (found []string) {
	s.t.Helper()
	raw, err := s.Rooms.Search(s.t.Context(), room.Reader{User: user}, room.SearchRequest{SearchTerm: term}, "")
	if err != nil {
		s.t.Fatal(err)
	}
	var answer struct {
		Count   int `json:"count"`
		Results []struct {
			Result struct {
				EventID string `json:"event_id"`
			} `json:"result"`
		} `json:"results"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range answer.Results {
		found = append(found, r.Result.EventID)
	}
	if answer.Count != len(found) {
		s.t.Errorf("count is %d of %d", answer.Count, len(found))
	}
	return found
}

func TestVoiceMessageIsTranscribedOncePerBlobAndFound(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newStudio(t, db, func(c *Config) {
			key := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(key, []byte("sesame\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.Transcripts.APIKeyFile, c.Transcripts.Model, c.Transcripts.Language = key, "large", "de"
		})
		words := said(t, "speech.ogg")
		first, again := s.speak(""), s.speak("")
		s.want(first, "pending", 0)
		s.transcribeAll()
		s.want(first, words, 1)
		s.want(again, words, 1)
		if got := s.speech.fields[0]; got != "large de verbose_json Bearer sesame" {
			t.Errorf("asked with %s", got)
		}
		want := map[string]any{"transcript": map[string]any{"text": words, "language": "en"}}
		if diff := cmp.Diff(any(want), s.unsigned(first)); diff != "" {
			t.Error(diff)
		}

		s.uri = upload(t, s.Service, recordingFile(t, "speech-silk.ogg"))
		other := s.speak("")
		s.transcribeAll()
		s.want(other, said(t, "speech-silk.ogg"), 2)

		for term, want := range map[string]int{"你好": 3, "guten TAG": 3, "guten nacht": 0, "voice": 3} {
			if got := s.search(alice, term); len(got) != want {
				t.Errorf("search %s: got %v, want %d", term, got, want)
			}
		}
		// The room's history visibility holds for what was said, too.
		s.set("m.room.history_visibility", `{"history_visibility":"joined"}`)
		hidden := s.speak("")
		s.transcribeAll()
		if _, err := s.Rooms.Join(t.Context(), room.JoinRequest{Room: s.room, User: "@bob:here.example"}); err != nil {
			t.Fatal(err)
		}
		if got := s.search("@bob:here.example", "世界"); len(got) != 3 {
			t.Errorf("bob finds %v, want 3 of which %s is none", got, hidden.ID())
		}
		if got := s.search("@carol:here.example", "世界"); len(got) != 0 {
			t.Errorf("carol, who is not in the room, finds %v", got)
		}

		// A redaction takes the words along, but from no other message with the same recording.
		for i, e := range []*storage.Event{other, hidden} {
			if _, err := s.Rooms.Redact(t.Context(), room.RedactRequest{Room: s.room, Sender: alice, Event: e.ID()}); err != nil {
				t.Fatal(err)
			}
			var left int
			if err := db.Read(t.Context()).Raw("SELECT count(*) FROM transcripts").Row().Scan(&left); err != nil || left != 2-i {
				t.Errorf("%d transcripts are left, want %d: %v", left, 2-i, err)
			}
			if got := s.search(alice, "你好"); len(got) != 3-i {
				t.Errorf("after a redaction: %v", got)
			}
		}
	})
}

func TestTranscriptIsNeverMadeOfWhatIsNotToBeHeard(t *testing.T) {
	s := newStudio(t, storagetest.New(t), nil)
	file := `,"file":{"url":"` + s.uri.String() + `","key":{},"iv":"","hashes":{}}`
	var quiet []*storage.Event
	quiet = append(quiet,
		s.send(alice, "m.room.message", json.RawMessage(`{"msgtype":"m.audio","body":"v"`+file+`,"org.matrix.msc3245.voice":{}}`)),
		s.speak(file),
		s.send(alice, "m.room.encrypted", json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"x"}`)),
		s.send(alice, "m.room.message", json.RawMessage(`{"msgtype":"m.audio","body":"music","url":"`+s.uri.String()+`"}`)),
		s.speak(`,"im.parley.voice.transcripts":{"enabled":false}`),
		s.speak(`,"im.parley.voice.transcripts":"no"`))
	s.transcribeAll()
	s.set(TranscriptsType, `{"enabled":false}`)
	quiet = append(quiet, s.speak(""))
	s.transcribeAll()
	s.set(TranscriptsType, `{"enabled":true}`)
	if err := s.DB.SetAccountData(t.Context(), alice, "", TranscriptsType, json.RawMessage(`{"enabled":false}`)); err != nil {
		t.Fatal(err)
	}
	quiet = append(quiet, s.speak(""))
	s.transcribeAll()
	if err := s.DB.SetAccountData(t.Context(), alice, "", TranscriptsType, json.RawMessage(`{"enabled":true}`)); err != nil {
		t.Fatal(err)
	}
	redacted := s.speak("")
	if _, err := s.Rooms.Redact(t.Context(), room.RedactRequest{Room: s.room, Sender: alice, Event: redacted.ID()}); err != nil {
		t.Fatal(err)
	}
	s.uri.MediaID = "nothing"
	quiet = append(quiet, redacted, s.speak(""))
	s.transcribeAll()
	s.uri = upload(t, s.Service, "no recording at all")
	quiet = append(quiet, s.speak(""))
	s.transcribeAll()
	for _, e := range quiet {
		s.want(e, "none", 0)
		if got := s.unsigned(e); got != nil {
			t.Errorf("unsigned has %v", got)
		}
	}
}

func TestTooLongARecordingIsNotTranscribed(t *testing.T) {
	s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.MaxDuration = 3 * time.Second })
	e := s.speak("")
	s.transcribeAll()
	s.want(e, "none", 0)
}

func TestMessagesOfOtherServersAreLeftOutIfWanted(t *testing.T) {
	s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.Remote = false })
	s.Media.Server = "elsewhere.example" // which makes alice a user of another server
	e := s.speak("")
	s.transcribeAll()
	s.want(e, "none", 0)
	// What was counted in their recording is told all the same.
	s.Media.Server = "here.example"
	m, _, err := s.Media.Recording(t.Context(), s.uri)
	if err != nil {
		t.Fatal(err)
	}
	waveform, err := s.Media.Waveform(t.Context(), m.Hash)
	if err != nil {
		t.Fatal(err)
	}
	s.Media.Server = "elsewhere.example"
	known, _ := s.unsigned(e).(map[string]any)
	if points, _ := known["waveform"].([]any); known["duration"] != 3960.0 || len(points) != len(waveform) {
		t.Errorf("unsigned has %v", known)
	}
}

func TestSpeechServiceThatFailsIsAskedAgainLater(t *testing.T) {
	status := func(code int, header ...string) func(int, http.ResponseWriter, *http.Request, string) bool {
		return func(_ int, w http.ResponseWriter, _ *http.Request, _ string) bool {
			if len(header) > 0 {
				w.Header().Set(header[0], header[1])
			}
			w.WriteHeader(code)
			fmt.Fprint(w, `{"error":{"message":"no"}}`)
			return true
		}
	}
	released := make(chan struct{})
	defer close(released)
	for name, c := range map[string]struct {
		answer func(int, http.ResponseWriter, *http.Request, string) bool
		wait   time.Duration // 0: never again
	}{
		"error":             {status(500), firstRetry},
		"wrong key":         {status(401), firstRetry},
		"busy":              {status(429, "Retry-After", "90"), 90 * time.Second},
		"busy, not for how": {status(429), defaultPause},
		"overloaded":        {status(503, "Retry-After", "2"), 2 * time.Second},
		"cannot read it":    {status(400), 0},
		"too large":         {status(413), 0},
		"no JSON": {func(_ int, w http.ResponseWriter, _ *http.Request, _ string) bool {
			fmt.Fprint(w, "<html>")
			return true
		}, firstRetry},
		"no text": {func(_ int, w http.ResponseWriter, _ *http.Request, _ string) bool {
			fmt.Fprint(w, `{"error":"x"}`)
			return true
		}, firstRetry},
		"redirect": {status(307, "Location", "/elsewhere"), firstRetry},
		"time-out": {func(_ int, _ http.ResponseWriter, r *http.Request, _ string) bool {
			select {
			case <-r.Context().Done():
			case <-released:
			}
			return true
		}, firstRetry},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.Timeout = 20 * time.Second })
			s.Client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			if name == "time-out" {
				s.Config.Transcripts.Timeout = time.Second // enough for the service to be reached on a busy machine
			}
			s.speech.before = c.answer
			e := s.speak("")
			next := s.transcribeAll()
			s.speech.mu.Lock()
			s.speech.before = nil
			s.speech.mu.Unlock()
			if c.wait == 0 {
				s.want(e, "none", 1)
				again := s.speak("") // the same recording
				s.transcribeAll()
				s.want(again, "none", 1)
				return
			}
			s.want(e, "pending", 1)
			if got := next.Sub(s.now); got != c.wait {
				t.Errorf("the next attempt is after %v, want %v", got, c.wait)
			}
			s.now = next.Add(-time.Millisecond)
			s.transcribeAll()
			s.want(e, "pending", 1)
			s.now = next
			s.Config.Transcripts.Timeout = 20 * time.Second
			s.transcribeAll()
			s.want(e, said(t, "speech.ogg"), 2)
		})
	}
}

func TestTranscriptIsGivenUpAtLast(t *testing.T) {
	s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.Attempts = 4 })
	s.speech.before = func(_ int, w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.WriteHeader(500)
		return true
	}
	e := s.speak("")
	var waits []time.Duration
	for next := s.transcribeAll(); !next.IsZero(); next = s.transcribeAll() {
		waits = append(waits, next.Sub(s.now))
		s.now = next
	}
	s.want(e, "none", 4)
	if diff := cmp.Diff([]time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry}, waits); diff != "" {
		t.Error(diff)
	}
}

func TestServiceThatKnowsJSONOnlyIsAskedForThat(t *testing.T) {
	s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.Language = "de" })
	s.speech.before = func(_ int, w http.ResponseWriter, _ *http.Request, format string) bool {
		if format == "json" {
			return false
		}
		w.WriteHeader(400)
		fmt.Fprint(w, `{"error":{"message":"response_format 'verbose_json' is not compatible with model","param":"response_format"}}`)
		return true
	}
	e := s.speak("")
	s.transcribeAll()
	s.want(e, said(t, "speech.ogg"), 2)
	if tr, _, err := s.Transcript(t.Context(), e.ID(), 0); err != nil || tr.Language != "de" {
		t.Errorf("language %q, %v", tr.Language, err)
	}
	s.uri = upload(t, s.Service, recordingFile(t, "speech-silk.ogg"))
	e = s.speak("")
	s.transcribeAll()
	s.want(e, said(t, "speech-silk.ogg"), 3) // it remembers
}

func TestSenderCorrectsTheTranscript(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newStudio(t, db, nil)
		e, early := s.speak(""), s.speak("")
		if err := s.CorrectTranscript(t.Context(), alice, early.ID(), "früh", ""); err != nil {
			t.Fatal(err)
		}
		s.transcribeAll()
		s.want(early, "früh", 1)
		if err := s.CorrectTranscript(t.Context(), alice, e.ID(), "Bis Dienstag, 再见", "de"); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"transcript": map[string]any{"text": "Bis Dienstag, 再见", "language": "de", "corrected": true}}
		if diff := cmp.Diff(any(want), s.unsigned(e)); diff != "" {
			t.Error(diff)
		}
		if got := s.search(alice, "再见 dienstag"); len(got) != 1 || got[0] != string(e.ID()) {
			t.Errorf("found %v", got)
		}
		if got := s.search(alice, "你好"); len(got) != 0 {
			t.Errorf("what was corrected is still found: %v", got)
		}
		err := s.CorrectTranscript(t.Context(), "@bob:here.example", e.ID(), "x", "")
		if matrix.ErrorCode(err) != "M_FORBIDDEN" {
			t.Errorf("bob corrects alice: %v", err)
		}
		for name, change := range map[string]struct {
			event *storage.Event
			text  string
		}{
			"too long": {e, strings.Repeat("x", maxTranscript+1)},
			"text":     {s.send(alice, "m.room.message", json.RawMessage(`{"msgtype":"m.text","body":"v"}`)), "x"},
		} {
			if err := s.CorrectTranscript(t.Context(), alice, change.event.ID(), change.text, ""); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.CorrectTranscript(t.Context(), alice, e.ID(), "", ""); err != nil {
			t.Fatal(err)
		}
		if got := s.unsigned(e); got != nil {
			t.Errorf("unsigned has %v after the text was taken away", got)
		}
	})
}

func TestQueueOutlivesTheProcess(t *testing.T) {
	storagetest.EachURL(t, func(t *testing.T, url string) {
		open := func() *storage.DB {
			db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
		db := open()
		s := newStudio(t, db, nil)
		e := s.speak("")
		// One that dies in the middle of a job.
		if err := s.queue(t.Context()); err != nil {
			t.Fatal(err)
		}
		until := s.now.Add(time.Minute)
		job, _, err := s.DB.ClaimTranscriptJob(t.Context(), s.now, until)
		if err != nil || job == nil {
			t.Fatal(job, err)
		}
		m, err := s.Media.Fetch(t.Context(), media.Request{URI: s.uri})
		if err != nil {
			t.Fatal(err)
		}
		if mine, err := s.DB.ClaimTranscript(t.Context(), *job, m.Hash, s.now, until); err != nil || !mine {
			t.Fatal(mine, err)
		}
		later := s.speak("") // the same recording
		if err := s.queue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}

		db = open()
		defer db.Close()
		next := New(Options{Config: s.Config, DB: db, Rooms: s.Rooms, Client: s.Client, Log: s.Log, Now: s.Service.Now})
		next.Rooms = room.New(room.Options{Config: room.DefaultConfig(), ServerName: "here.example", DB: db, Log: s.Log})
		next.Media = media.New(media.Options{Config: media.DefaultConfig(), Server: "here.example", DB: db, Blobs: s.Media.Blobs, Log: s.Log})
		defer next.Media.Close()
		defer next.Close()
		s.Service = next
		due := s.transcribeAll()
		s.want(e, "pending", 0)
		s.want(later, "pending", 0)
		if !due.Equal(until) {
			t.Errorf("the job is taken up at %v, want %v", due, until)
		}
		s.now = until
		s.transcribeAll()
		s.want(e, said(t, "speech.ogg"), 1)
		s.want(later, said(t, "speech.ogg"), 1)
	})
}

func TestWhoWaitsGetsTheTranscriptWhenItIsThere(t *testing.T) {
	s := newStudio(t, storagetest.New(t), func(c *Config) { c.Transcripts.Workers = 2 })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	e := s.speak("")
	got, pending, err := s.Transcript(ctx, e.ID(), time.Minute)
	if err != nil || pending || got.Text != said(t, "speech.ogg") {
		t.Errorf("got %+v, %v, %v", got, pending, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWithoutAServiceNothingIsQueued(t *testing.T) {
	s := newStudio(t, storagetest.New(t), nil)
	before := s.speak("")
	s.Config.Transcripts.Endpoint = ""
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	cancel()
	<-ended
	if err := s.DB.ForgetTranscriptQueue(t.Context()); err != nil { // as Run does, unless it was stopped first
		t.Fatal(err)
	}
	off := s.speak("")
	s.want(off, "none", 0)
	s.Config.Transcripts.Endpoint = s.speech.server.URL
	s.transcribeAll() // turned on again: from now on
	after := s.speak("")
	s.transcribeAll()
	s.want(before, "none", 1)
	s.want(off, "none", 1)
	s.want(after, said(t, "speech.ogg"), 1)
}

func TestLanguageAndText(t *testing.T) {
	for name, want := range map[string]string{"english": "en", "German": "de", "fr": "fr", "yue": "yue", "": "", "klingon": "", "e1": ""} {
		if got := languageTag(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	if got := cleanText(" a\x00b\r\nc\xff "); got != "a b \nc" {
		t.Errorf("got %q", got)
	}
	if got := len(cleanText(strings.Repeat("é", maxTranscript))); got > maxTranscript {
		t.Errorf("%d bytes", got)
	}
	for base, want := range map[string]string{
		"http://a:1": "http://a:1/v1/audio/transcriptions", "http://a/": "http://a/v1/audio/transcriptions", "https://a/x/v1/": "https://a/x/v1/audio/transcriptions",
	} {
		c := DefaultConfig()
		c.Transcripts.Endpoint = base
		if got := c.Transcripts.url(); got != want || c.Validate() != nil {
			t.Errorf("%s: got %s", base, got)
		}
	}
	for _, base := range []string{"a", "ftp://a", "http://", "http://a?x"} {
		c := DefaultConfig()
		c.Transcripts.Endpoint = base
		if c.Validate() == nil {
			t.Errorf("%s is taken", base)
		}
	}
}
