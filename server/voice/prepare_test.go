package voice

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const alice = matrix.UserID("@alice:here.example")

// newService has a recording of 3.96 s and 11,242 bytes, and returns its URI.
func newService(t *testing.T, change func(*Config)) (*Service, media.URI) {
	t.Helper()
	blobs, err := storage.OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	files := media.New(media.Options{Config: media.DefaultConfig(), Server: "here.example", DB: storagetest.New(t), Blobs: blobs, Log: log})
	t.Cleanup(func() { files.Close() })
	config := DefaultConfig()
	if change != nil {
		change(&config)
	}
	s := New(Options{Config: config, Media: files, Log: log})
	content, err := os.ReadFile("../audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	return s, upload(t, s, string(content))
}

func upload(t testing.TB, s *Service, content string) media.URI {
	t.Helper()
	uri, err := s.Media.Upload(t.Context(), alice, media.Upload{Body: strings.NewReader(content), Size: -1, ContentType: "audio/ogg"})
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

func voiceMessage(uri media.URI, more string) json.RawMessage {
	return json.RawMessage(`{"msgtype":"m.audio","body":"Voice <message>.ogg","url":"` + uri.String() + `","org.matrix.msc3245.voice":{}` + more + `}`)
}

func prepare(t *testing.T, s *Service, content json.RawMessage) map[string]any {
	t.Helper()
	out, err := s.Prepare(t.Context(), "!room:here.example", alice, "m.room.message", content)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestClaimsAreCorrected(t *testing.T) {
	s, uri := newService(t, nil)
	for name, more := range map[string]string{
		"nothing claimed": ``,
		"all wrong":       `,"info":{"duration":59000,"size":1,"mimetype":"audio/mp4"},"org.matrix.msc1767.audio":{"duration":1,"waveform":[1,2]}`,
		"no objects":      `,"info":7,"org.matrix.msc1767.audio":[]`,
		"right":           `,"info":{"duration":3960,"size":11242,"mimetype":"audio/ogg"},"org.matrix.msc1767.audio":{"duration":3960}`,
	} {
		got := prepare(t, s, voiceMessage(uri, more))
		sound := got["org.matrix.msc1767.audio"].(map[string]any)
		if waveform, _ := sound["waveform"].([]any); len(waveform) != 100 {
			t.Errorf("%s: waveform %v", name, sound["waveform"])
		}
		delete(sound, "waveform")
		want := map[string]any{
			"msgtype": "m.audio", "body": "Voice <message>.ogg", "url": uri.String(), "org.matrix.msc3245.voice": map[string]any{},
			"info":                     map[string]any{"duration": 3960.0, "size": 11242.0, "mimetype": "audio/ogg"},
			"org.matrix.msc1767.audio": map[string]any{"duration": 3960.0},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestWhatTheClientKnowsBetterStays(t *testing.T) {
	s, uri := newService(t, nil)
	got := prepare(t, s, voiceMessage(uri, `,"info":{"mimetype":"audio/ogg; codecs=opus","x":1},"org.matrix.msc1767.audio":{"waveform":[0,1024]},
		"org.matrix.msc1767.file":{"name":"Voice","size":1},"m.mentions":{"user_ids":["@bob:here.example"]}`))
	want := map[string]any{
		"info":                     map[string]any{"duration": 3960.0, "size": 11242.0, "mimetype": "audio/ogg; codecs=opus", "x": 1.0},
		"org.matrix.msc1767.audio": map[string]any{"duration": 3960.0, "waveform": []any{0.0, 1024.0}},
		"org.matrix.msc1767.file":  map[string]any{"name": "Voice", "size": 11242.0, "mimetype": "audio/ogg"},
		"m.mentions":               map[string]any{"user_ids": []any{"@bob:here.example"}},
	}
	for name := range want {
		if diff := cmp.Diff(want[name], got[name]); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestOtherEventsStayAsTheyAre(t *testing.T) {
	s, uri := newService(t, nil)
	text := upload(t, s, "no recording")
	for _, content := range []json.RawMessage{
		json.RawMessage(`{"msgtype":"m.text","body":"say \"m.audio\""}`),
		json.RawMessage(`{"msgtype":"m.audio","body":"music.ogg","url":"` + uri.String() + `","info":{"duration":1}}`),
		json.RawMessage(`{"msgtype":"m.audio","org.matrix.msc3245.voice":{},"file":{"url":"` + uri.String() + `"},"info":{"duration":1}}`),
		voiceMessage(text, `,"info":{"duration":1}`),
		voiceMessage(media.URI{Server: "there.example", MediaID: "unknown"}, ``),
		json.RawMessage(`{"msgtype":"m.audio","org.matrix.msc3245.voice":{},"url":"https://here.example/a"}`),
		json.RawMessage(`{"msgtype":"m.audio","org.matrix.msc3245.voice":{},"url":7}`),
	} {
		got, err := s.Prepare(t.Context(), "!room:here.example", alice, "m.room.message", content)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s became %s, %v", content, got, err)
		}
	}
	sticker := voiceMessage(uri, ``)
	if got, err := s.Prepare(t.Context(), "!room:here.example", alice, "m.sticker", sticker); err != nil || !bytes.Equal(got, sticker) {
		t.Errorf("%s, %v", got, err)
	}
}

// Safari before 18.4 records AAC: how long it is can be told, what it sounds like cannot.
func TestAACIsCountedAndNotHeard(t *testing.T) {
	s, _ := newService(t, nil)
	file := recordingFile(t, "speech-aac.mp4")
	uri := upload(t, s, file)
	want := map[string]any{
		"info":                     map[string]any{"duration": 3960.0, "size": float64(len(file)), "mimetype": "audio/mp4"},
		"org.matrix.msc1767.audio": map[string]any{"duration": 3960.0, "waveform": []any{0.0, 1024.0}},
	}
	got := prepare(t, s, voiceMessage(uri, `,"info":{"duration":59000,"size":1},"org.matrix.msc1767.audio":{"waveform":[0,1024]}`))
	for name := range want {
		if diff := cmp.Diff(want[name], got[name]); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	got = prepare(t, s, voiceMessage(uri, `,"org.matrix.msc1767.audio":{"waveform":[1,2]}`)) // no waveform that can be drawn
	if diff := cmp.Diff(map[string]any{"duration": 3960.0}, got["org.matrix.msc1767.audio"]); diff != "" {
		t.Error(diff)
	}
	for name, change := range map[string]func(*Config){
		"M_TOO_LARGE":     func(c *Config) { c.MaxDuration = 3900 * time.Millisecond },
		"M_INVALID_PARAM": func(c *Config) { c.RequireOpus = true },
	} {
		s, _ := newService(t, change)
		content := voiceMessage(upload(t, s, file), `,"info":{"duration":1000}`)
		if _, err := s.Prepare(t.Context(), "!room:here.example", alice, "m.room.message", content); matrix.ErrorCode(err) != name {
			t.Errorf("got %v, want %s", err, name)
		}
	}
}

func TestLimitsOfVoiceMessages(t *testing.T) {
	refused := func(change func(*Config), content func(*Service, media.URI) json.RawMessage, code string) {
		t.Helper()
		s, uri := newService(t, change)
		if _, err := s.Prepare(t.Context(), "!room:here.example", alice, "m.room.message", content(s, uri)); matrix.ErrorCode(err) != code {
			t.Errorf("got %v, want %s", err, code)
		}
	}
	// What the message claims does not help.
	short := func(_ *Service, uri media.URI) json.RawMessage { return voiceMessage(uri, `,"info":{"duration":1000}`) }
	refused(func(c *Config) { c.MaxDuration = 3900 * time.Millisecond }, short, "M_TOO_LARGE")
	refused(func(c *Config) { c.FalseClaims = RefuseClaims }, short, "M_INVALID_PARAM")
	refused(func(c *Config) { c.FalseClaims = RefuseClaims }, func(_ *Service, uri media.URI) json.RawMessage {
		return voiceMessage(uri, `,"info":{"duration":3900,"size":11243}`)
	}, "M_INVALID_PARAM")
	refused(func(c *Config) { c.FalseClaims = RefuseClaims }, func(_ *Service, uri media.URI) json.RawMessage {
		return voiceMessage(uri, `,"info":{"duration":3000,"size":11242}`) // measured with a stopwatch
	}, "")
	refused(func(c *Config) { c.RequireOpus = true }, func(s *Service, _ media.URI) json.RawMessage {
		return voiceMessage(upload(t, s, "no recording"), ``)
	}, "M_INVALID_PARAM")
}

func BenchmarkPrepareText(b *testing.B) {
	s := New(Options{})
	content := json.RawMessage(`{"msgtype":"m.text","body":"` + strings.Repeat("text ", 20) + `"}`)
	for b.Loop() {
		if _, err := s.Prepare(b.Context(), "!room:here.example", alice, "m.room.message", content); err != nil {
			b.Fatal(err)
		}
	}
}
