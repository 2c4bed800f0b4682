package main

import (
	"encoding/json"
	"net/url"
	"os"
	"testing"

	"parley.im/parley/server/matrix"
)

// What a client has not measured arrives at the other server all the same, in the format of Element and under a valid signature of the sender's server.
func TestMessageWithoutWaveformArrivesWithOne(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startInProcess(t, s, nil)
		}
		alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
		room, _ := meet(t, w, 0, alice, bob)
		recording, err := os.ReadFile("audio/testdata/speech.ogg")
		if err != nil {
			t.Fatal(err)
		}
		var uploaded struct {
			ContentURI string `json:"content_uri"`
		}
		alice.must("POST", "/_matrix/media/v3/upload?filename=voice.ogg", recording, &uploaded)
		id := alice.send(room, "1", map[string]any{"msgtype": "m.audio", "body": "Voice message.ogg", "url": uploaded.ContentURI,
			"info": map[string]any{"duration": 59000}, "org.matrix.msc3245.voice": map[string]any{}})
		var create map[string]any
		bob.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/state/m.room.create", nil, &create)
		version, _ := create["room_version"].(string)
		before := bob.since
		var event map[string]any
		bob.until("the voice message", timelineHas(room, "url", uploaded.ContentURI, &event))
		points := list(dig(event, "content", "org.matrix.msc1767.audio", "waveform"))
		highest := 0.0
		for _, p := range points {
			n, ok := p.(float64)
			if !ok || n < 0 || n > 1024 || n != float64(int(n)) {
				t.Errorf("the waveform has %v", p)
			}
			highest = max(highest, n)
		}
		if event["event_id"] != id || len(points) != 100 || highest <= 256 || dig(event, "content", "info", "duration") != 3960.0 ||
			dig(event, "content", "info", "mimetype") != "audio/ogg" || dig(event, "content", "org.matrix.msc1767.audio", "duration") != 3960.0 {
			t.Errorf("got %v", event)
		}

		// As it came over the wire.
		var synced struct {
			Rooms struct {
				Join map[string]struct {
					Timeline struct{ Events []json.RawMessage }
				}
			}
		}
		bob.must("GET", "/_matrix/client/v3/sync?since="+url.QueryEscape(before)+"&filter="+url.QueryEscape(`{"event_format":"federation"}`), nil, &synced)
		events := synced.Rooms.Join[room].Timeline.Events
		if len(events) == 0 {
			t.Fatal("no events in the format of servers")
		}
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(events[len(events)-1], &raw); err != nil {
			t.Fatal(err)
		}
		delete(raw, "unsigned")
		pdu, err := json.Marshal(raw)
		if err != nil {
			t.Fatal(err)
		}
		e, err := matrix.ParseEvent(pdu, matrix.LookupRoomVersion(version))
		if err != nil || string(e.ID()) != id || e.Redacted() {
			t.Fatalf("%v, %v", e, err)
		}
		signer := w.servers[0].ServerName
		keys := matrix.SignatureKeyIDs(pdu, signer)
		if len(keys) != 1 {
			t.Fatalf("signed with %v", keys)
		}
		published, err := publishedKey(t, w, signer, string(keys[0]))
		if err != nil {
			t.Fatal(err)
		}
		key, err := matrix.NewPublicKey(published)
		if err != nil {
			t.Fatal(err)
		}
		if err := matrix.VerifyJSON(e.Redact().JSON(), signer, keys[0], key); err != nil {
			t.Error(err)
		}
	})
}
