package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
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
