package voice

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// longRecording is speech of some seconds, by saying the same over and over.
func longRecording(t testing.TB, seconds int) string {
	t.Helper()
	return takeOf(t, seconds, 0)
}

// takeOf makes recordings of the same length that differ in their bytes.
func takeOf(t testing.TB, seconds, take int) string {
	t.Helper()
	r, err := audio.NewOggReader(strings.NewReader(recordingFile(t, "speech.ogg")))
	if err != nil {
		t.Fatal(err)
	}
	var packets [][]byte
	for {
		p, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, bytes.Clone(p))
	}
	var out bytes.Buffer
	w, err := audio.NewOggWriter(&out, audio.Head{Channels: 1, InputRate: 48000}, uint32(take))
	if err != nil {
		t.Fatal(err)
	}
	for i := range seconds * 50 { // packets of 20 ms
		if err := w.WritePacket(packets[(i+take)%len(packets)]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(0); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A message of 61 s that says it lasts 59 is refused where 60 are the limit, whoever sets it, and the answer says so.
func TestFalseClaimDoesNotHelpAgainstTheLimit(t *testing.T) {
	const claim = `,"info":{"duration":59000},"org.matrix.msc1767.audio":{"duration":59000}`
	s := newStudio(t, storagetest.New(t), nil)
	send := func(server time.Duration, state, content string) error {
		t.Helper()
		s.Config.MaxDuration = server
		s.set(LimitType, state)
		_, err := s.Prepare(t.Context(), s.room, alice, "m.room.message", json.RawMessage(content))
		return err
	}
	s.uri = upload(t, s.Service, longRecording(t, 61))
	long := string(voiceMessage(s.uri, claim))
	s.uri = upload(t, s.Service, longRecording(t, 60))
	exact := string(voiceMessage(s.uri, claim))
	unknown := func(ms string) string {
		return strings.Replace(string(voiceMessage(s.uri, `,"info":{"duration":`+ms+`}`)), s.uri.String(), "mxc://there.example/unknown", 1)
	}
	for name, c := range map[string]struct {
		server  time.Duration
		room    string
		content string
		refused string // part of the answer; empty if it is accepted
	}{
		"no limit":                     {0, `{}`, long, ""},
		"the server's":                 {time.Minute, `{}`, long, "lasts 61 seconds; at most 60 are allowed on this server"},
		"the room's":                   {0, `{"max_duration":60000}`, long, "lasts 61 seconds; at most 60 are allowed in this room"},
		"the room's is stricter":       {time.Hour, `{"max_duration":60000}`, long, "at most 60 are allowed in this room"},
		"the room allows more":         {time.Minute, `{"max_duration":3600000}`, long, "at most 60 are allowed on this server"},
		"the room's is none":           {time.Minute, `{"max_duration":0}`, long, "at most 60 are allowed on this server"},
		"the room's cannot be read":    {0, `{"max_duration":"a minute"}`, long, ""},
		"the room's is negative":       {0, `{"max_duration":-1}`, long, ""},
		"exactly as long as allowed":   {time.Minute, `{"max_duration":60000}`, exact, ""},
		"a fraction above":             {0, `{"max_duration":59990}`, exact, "lasts 60 seconds; at most 59.99 are allowed in this room"},
		"not here, claims too much":    {0, `{"max_duration":60000}`, unknown("61000"), "in this room"},
		"not here, claims little":      {0, `{"max_duration":60000}`, unknown("59000"), ""},
		"not here, claims what cannot": {0, `{"max_duration":60000}`, unknown("1e300"), "in this room"},
	} {
		err := send(c.server, c.room, c.content)
		if c.refused == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if matrix.ErrorCode(err) != "M_TOO_LARGE" || !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want M_TOO_LARGE with %q", name, err, c.refused)
		}
	}
	// Who is not in the room learns nothing of its limit.
	s.set(LimitType, `{"max_duration":1000}`)
	if _, err := s.Prepare(t.Context(), s.room, "@carol:here.example", "m.room.message", json.RawMessage(exact)); err != nil {
		t.Errorf("carol: %v", err)
	}
}
