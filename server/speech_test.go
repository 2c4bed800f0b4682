package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What alice says on one server is written down on bob's, where there is a speech service, and bob finds it.
func TestSpeechFromAnotherServerIsWrittenDownAndFound(t *testing.T) {
	speech := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, _, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		wav, err := io.ReadAll(file)
		if err != nil {
			t.Error(err)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"text": fmt.Sprintf("Es dauert %d Millisekunden, 再见", (len(wav)-44)/32)})
	}))
	defer speech.Close()
	w := testWorld(t, false)
	startInProcess(t, w.servers[0], nil)
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_ENDPOINT", speech.URL)
	startInProcess(t, w.servers[1], nil)
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	var created struct {
		RoomID string `json:"room_id"`
	}
	alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"invite": []string{bob.ID}}, &created)
	room := created.RoomID
	bob.until("the invite", func(answer map[string]any) bool { return dig(answer, "rooms", "invite", room) != nil })
	bob.must("POST", "/_matrix/client/v3/join/"+url.PathEscape(room)+"?via="+url.QueryEscape(w.servers[0].ServerName), map[string]any{}, nil)

	recording, err := os.ReadFile("audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	var uploaded struct {
		ContentURI string `json:"content_uri"`
	}
	alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", recording, &uploaded)
	event := alice.send(room, "1", voiceContent(uploaded.ContentURI, len(recording)))
	bob.until("the voice message", timelineHas(room, "url", uploaded.ContentURI, nil))

	const words = "Es dauert 3960 Millisekunden, 再见"
	path := "/_matrix/client/unstable/im.parley.voice/rooms/" + url.PathEscape(room) + "/transcript/" + url.PathEscape(event)
	var transcript map[string]any
	bob.must("GET", path+"?timeout=30000", nil, &transcript)
	if transcript["text"] != words || transcript["pending"] != nil {
		t.Fatalf("got %v", transcript)
	}
	var read map[string]any
	bob.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/event/"+url.PathEscape(event), nil, &read)
	known := dig(read, "unsigned", "im.parley.voice")
	if dig(known, "transcript", "text") != words || dig(known, "duration") != 3960.0 {
		t.Errorf("unsigned has %v", known)
	}
	for term, want := range map[string]float64{"再见": 1, "MILLISEKUNDEN dauert": 1, "stunden": 0} {
		var found map[string]any
		bob.must("POST", "/_matrix/client/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{"search_term": term}}}, &found)
		if got := dig(found, "search_categories", "room_events", "count"); got != want {
			t.Errorf("search %s: %v, want %v", term, got, want)
		}
	}

	// Only the sender corrects, on the sender's server; alice's has no transcripts.
	for p, code := range map[*person]string{bob: "M_FORBIDDEN", alice: "M_NOT_FOUND"} {
		err := p.call(t.Context(), p.Token, "PUT", path, map[string]any{"text": "x"}, nil)
		if err == nil || !strings.Contains(err.Error(), code) {
			t.Errorf("%s corrects: %v, want %s", p.ID, err, code)
		}
	}
	if err := alice.call(t.Context(), alice.Token, "GET", path, nil, nil); err == nil || !strings.Contains(err.Error(), "M_NOT_FOUND") {
		t.Errorf("alice reads a transcript: %v", err)
	}
}

func TestSpeechClientReachesNothingButTheService(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	speech := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer speech.Close()
	c := speechClient(speech.URL)
	c.Timeout = 10 * time.Second
	for _, address := range []string{other.URL, speech.URL} { // elsewhere, and where it sends one
		if answer, err := c.Get(address); err == nil {
			answer.Body.Close()
			t.Errorf("%s: got %d", address, answer.StatusCode)
		}
	}
	if speechClient("") != nil {
		t.Error("there is a client without a service")
	}
}

// speechService answers with what say returns for a recording of so many milliseconds.
func speechService(t *testing.T, say func(ms int) string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, _, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		wav, err := io.ReadAll(file)
		if err != nil {
			t.Error(err)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"text": say((len(wav) - 44) / 32), "language": "german"})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A transcript comes when clients have had the message for long: they get it all the same, those who may see the message and no others.
func TestLateTranscriptReachesThoseWhoHaveTheMessage(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		heard := make(chan struct{})
		t.Setenv("PARLEY_VOICE_TRANSCRIPTS_ENDPOINT", speechService(t, func(ms int) string {
			<-heard
			return fmt.Sprintf("Es dauert %d Millisekunden", ms)
		}))
		startInProcess(t, w.servers[0], nil)
		alice, bob, carol := newDevice(newPerson(t, w.servers[0], "alice")), newDevice(newPerson(t, w.servers[0], "bob")), newDevice(newPerson(t, w.servers[0], "carol"))
		var created struct {
			RoomID string `json:"room_id"`
		}
		alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat", "initial_state": []any{
			map[string]any{"type": "m.room.history_visibility", "content": map[string]any{"history_visibility": "joined"}}}}, &created)
		room := created.RoomID
		join := "/_matrix/client/v3/join/" + url.PathEscape(room)
		bob.must("POST", join, map[string]any{}, nil)
		recording, err := os.ReadFile("audio/testdata/speech.ogg")
		if err != nil {
			t.Fatal(err)
		}
		var uploaded struct {
			ContentURI string `json:"content_uri"`
		}
		alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", recording, &uploaded)
		event := alice.send(room, "1", voiceContent(uploaded.ContentURI, len(recording)))
		carol.must("POST", join, map[string]any{}, nil)
		for _, d := range []*device{alice, bob, carol} {
			d.syncOnce(room)
			if len(d.words) > 0 {
				t.Fatalf("%s knows before anything was said: %v", d.ID, d.words)
			}
		}
		asleep := newDevice(&person{benchUser: bob.benchUser, t: t, since: bob.since})
		close(heard)
		know := func(d *device, want map[string]any) {
			t.Helper()
			if !cmp.Equal(want, d.words[event]) {
				d.until("the transcript", func(answer map[string]any) bool {
					d.learn(answer, room)
					return cmp.Equal(want, d.words[event])
				})
			}
		}
		words := map[string]any{"text": "Es dauert 3960 Millisekunden", "language": "de"}
		know(bob, words)
		know(alice, words)
		know(asleep, words)
		alice.must("PUT", voicePath+url.PathEscape(room)+"/transcript/"+url.PathEscape(event), map[string]any{"text": "Bis bald"}, nil)
		know(bob, map[string]any{"text": "Bis bald", "corrected": true})
		alice.must("PUT", voicePath+url.PathEscape(room)+"/transcript/"+url.PathEscape(event), map[string]any{"text": ""}, nil)
		know(bob, map[string]any{"text": "", "corrected": true})
		carol.syncOnce(room)
		if len(carol.words) > 0 {
			t.Errorf("carol, who came later, learns %v", carol.words)
		}
		var filtered map[string]any
		bob.must("GET", "/_matrix/client/v3/sync?since="+url.QueryEscape(asleep.since)+"&filter="+
			url.QueryEscape(`{"room":{"ephemeral":{"not_types":["im.parley.*"]}}}`), nil, &filtered)
		if dig(filtered, "rooms", "join", room, "ephemeral") != nil {
			t.Errorf("a filter lets through %v", filtered)
		}
	})
}
