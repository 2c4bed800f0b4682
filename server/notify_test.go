package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// phoneGateway is a push gateway that hands on what it gets.
func phoneGateway(t *testing.T) (url string, got chan map[string]any) {
	got = make(chan map[string]any, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("gateway: %v", err)
		}
		_, _ = w.Write([]byte(`{"rejected":[]}`))
		got <- body["notification"]
	}))
	t.Cleanup(s.Close)
	return s.URL + "/_matrix/push/v1/notify", got
}

func next(t *testing.T, got chan map[string]any) map[string]any {
	t.Helper()
	select {
	case n := <-got:
		return n
	case <-time.After(20 * time.Second):
		t.Fatal("nothing reached the gateway")
		return nil
	}
}

func TestNotificationReachesThePhone(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		startInProcess(t, w.servers[0], nil)
		alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[0], "bob")
		gateway, got := phoneGateway(t)
		bob.must("POST", "/_matrix/client/v3/pushers/set", map[string]any{"kind": "http", "app_id": "im.parley.test", "pushkey": "key",
			"app_display_name": "Test", "device_display_name": "Phone", "lang": "en", "data": map[string]any{"url": gateway}}, nil)

		var created struct {
			RoomID string `json:"room_id"`
		}
		alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"name": "Voices", "invite": []string{bob.ID}}, &created)
		if n := next(t, got); n["type"] != "m.room.member" || n["user_is_target"] != true || n["room_name"] != "Voices" {
			t.Errorf("got %v, want the invite", n)
		}
		room := url.PathEscape(created.RoomID)
		bob.must("POST", "/_matrix/client/v3/join/"+room, map[string]any{}, nil)
		bob.send(created.RoomID, "1", map[string]any{"msgtype": "m.text", "body": "my own"})
		event := alice.send(created.RoomID, "1", map[string]any{"msgtype": "m.text", "body": "hello"})
		n := next(t, got)
		for n["event_id"] == nil { // a count that bob's own message changed
			n = next(t, got)
		}
		if n["event_id"] != event || dig(n, "content", "body") != "hello" || dig(n, "counts", "unread") != 1.0 || n["sender"] != alice.ID {
			t.Errorf("got %v, want alice's message", n)
		}
		bob.must("POST", "/_matrix/client/v3/rooms/"+room+"/receipt/m.read/"+url.PathEscape(event), map[string]any{}, nil)
		if n := next(t, got); n["event_id"] != nil || dig(n, "counts", "unread") != 0.0 {
			t.Errorf("got %v, want a count of 0 after reading", n)
		}
	})
}

// What is said comes along in the notification, unless a pusher takes event IDs only or its user does not want it.
func TestNotificationBringsWhatIsSaid(t *testing.T) {
	w := testWorld(t, false)
	release := make(chan struct{})
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_ENDPOINT", speechService(t, func(int) string {
		<-release
		return strings.Repeat("Bis Dienstag. ", 200)
	}))
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_PUSH_WAIT", "30s")
	startInProcess(t, w.servers[0], nil)
	alice, bob, carol := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[0], "bob"), newPerson(t, w.servers[0], "carol")
	var created struct {
		RoomID string `json:"room_id"`
	}
	alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &created)
	room := created.RoomID
	pusher := func(p *person, key string, data map[string]any) chan map[string]any {
		gateway, got := phoneGateway(t)
		data["url"] = gateway
		p.must("POST", "/_matrix/client/v3/pushers/set", map[string]any{"kind": "http", "app_id": "im.parley.test", "pushkey": key, "append": true,
			"app_display_name": "Test", "device_display_name": "Phone", "lang": "en", "data": data}, nil)
		return got
	}
	for _, p := range []*person{bob, carol} {
		p.must("POST", "/_matrix/client/v3/join/"+url.PathEscape(room), map[string]any{}, nil)
	}
	full, ids := pusher(bob, "full", map[string]any{}), pusher(bob, "ids", map[string]any{"format": "event_id_only"})
	unwanted := pusher(carol, "key", map[string]any{})
	carol.setAccountData("", "im.parley.voice.transcripts", map[string]any{"push": false})

	recording, err := os.ReadFile("audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	var uploaded struct {
		ContentURI string `json:"content_uri"`
	}
	alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", recording, &uploaded)
	voice := alice.send(room, "1", voiceContent(uploaded.ContentURI, len(recording)))
	text := alice.send(room, "2", map[string]any{"msgtype": "m.text", "body": "not held up"})
	if n := next(t, full); n["event_id"] != text {
		t.Errorf("got %v, want the text first", n)
	}
	close(release)
	n := next(t, full)
	said, _ := dig(n, "content", "im.parley.voice", "transcript", "text").(string)
	if n["event_id"] != voice || !strings.HasPrefix(said, "Bis Dienstag. Bis") || !strings.HasSuffix(said, "…") || len(said) > maxPushedWords ||
		dig(n, "content", "url") != uploaded.ContentURI || dig(n, "content", "im.parley.voice", "transcript", "language") != "de" {
		t.Errorf("got %v, want the voice message with its words", n)
	}
	for n := next(t, ids); ; n = next(t, ids) {
		if n["content"] != nil {
			t.Errorf("event_id_only: got %v", n)
		}
		if n["event_id"] == voice {
			break
		}
	}
	n = next(t, unwanted)
	for n["event_id"] != voice {
		n = next(t, unwanted)
	}
	if dig(n, "content", "url") != uploaded.ContentURI || dig(n, "content", "im.parley.voice") != nil {
		t.Errorf("carol, who does not want it, got %v", n)
	}
}

// A speech service that takes its time holds nothing up for longer than is configured.
func TestNotificationDoesNotWaitForEver(t *testing.T) {
	w := testWorld(t, false)
	release := make(chan struct{})
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_ENDPOINT", speechService(t, func(int) string { <-release; return "" }))
	defer close(release)
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_PUSH_WAIT", "50ms")
	startInProcess(t, w.servers[0], nil)
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[0], "bob")
	room, _ := meet(t, w, 0, alice, bob)
	gateway, got := phoneGateway(t)
	bob.must("POST", "/_matrix/client/v3/pushers/set", map[string]any{"kind": "http", "app_id": "im.parley.test", "pushkey": "key",
		"app_display_name": "Test", "device_display_name": "Phone", "lang": "en", "data": map[string]any{"url": gateway}}, nil)
	recording := voiceMessage(t, 3)
	var uploaded struct {
		ContentURI string `json:"content_uri"`
	}
	alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", recording, &uploaded)
	voice := alice.send(room, "1", voiceContent(uploaded.ContentURI, len(recording)))
	if n := next(t, got); n["event_id"] != voice || dig(n, "content", "url") != uploaded.ContentURI || dig(n, "content", "im.parley.voice") != nil {
		t.Errorf("got %v", n)
	}
}

func TestShortenedIsCutAtAWord(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"short", 10, "short"},
		{"exactly 10", 10, "exactly 10"},
		{"a word or two", 10, "a word…"},
		{"你好世界你好世界", 12, "你好世…"},
		{strings.Repeat("x", 100), 53, strings.Repeat("x", 50) + "…"},
	} {
		if got := shortened(c.text, c.limit); got != c.want {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}
