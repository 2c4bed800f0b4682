package voice

import (
	"encoding/json"
	"fmt"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage/storagetest"
)

// What another server says has been played is stored only if it is about a voice message of ours and of its own user, who is in the room.
func TestPlayedReceiptsThatAreNotTheirsToGiveAreRefused(t *testing.T) {
	s := newStudio(t, storagetest.New(t), nil)
	voice := s.speak("")
	text := s.send(alice, "m.room.message", json.RawMessage(`{"msgtype":"m.text","body":"v"}`))
	gone := s.speak("")
	if _, err := s.Rooms.Redact(t.Context(), room.RedactRequest{Room: s.room, Sender: alice, Event: gone.ID()}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rooms.Join(t.Context(), room.JoinRequest{Room: s.room, User: "@bob:here.example"}); err != nil {
		t.Fatal(err)
	}
	edu := func(room matrix.RoomID, event matrix.EventID, user string) string {
		return fmt.Sprintf(`{"room_id":%q,"event_id":%q,"user_id":%q,"ts":1}`, room, event, user)
	}
	for name, c := range map[string]struct {
		origin  matrix.ServerName
		content string
		code    string
	}{
		"no object":                       {"there.example", `[]`, "M_BAD_JSON"},
		"wrong types":                     {"there.example", `{"room_id":7}`, "M_BAD_JSON"},
		"nothing":                         {"there.example", `{}`, "M_FORBIDDEN"},
		"another server's user":           {"there.example", edu(s.room, voice.ID(), "@eve:elsewhere.example"), "M_FORBIDDEN"},
		"no user":                         {"there.example", edu(s.room, voice.ID(), "eve"), "M_FORBIDDEN"},
		"our own user, from elsewhere":    {"there.example", edu(s.room, voice.ID(), "@bob:here.example"), "M_FORBIDDEN"},
		"somebody who is not in the room": {"there.example", edu(s.room, voice.ID(), "@eve:there.example"), "M_FORBIDDEN"},
		"an unknown event":                {"here.example", edu(s.room, "$unknown", "@bob:here.example"), "M_FORBIDDEN"},
		"another room":                    {"here.example", edu("!other:here.example", voice.ID(), "@bob:here.example"), "M_FORBIDDEN"},
		"a text":                          {"here.example", edu(s.room, text.ID(), "@bob:here.example"), "M_FORBIDDEN"},
		"what was redacted":               {"here.example", edu(s.room, gone.ID(), "@bob:here.example"), "M_FORBIDDEN"},
		"what is right":                   {"here.example", edu(s.room, voice.ID(), "@bob:here.example"), ""},
		"what is right, once more":        {"here.example", edu(s.room, voice.ID(), "@bob:here.example"), ""},
	} {
		if err := s.ReceivePlayed(t.Context(), c.origin, json.RawMessage(c.content)); matrix.ErrorCode(err) != c.code {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
	}
	got, err := s.PlayedBy(t.Context(), alice, s.room)
	if err != nil || len(got) != 1 || got[0].User != "@bob:here.example" || got[0].TS != voice.OriginServerTS() {
		t.Errorf("got %+v, %v", got, err) // and not played before it was sent
	}
	// Whoever plays it, a message that is taken back takes that along.
	if _, err := s.Rooms.Redact(t.Context(), room.RedactRequest{Room: s.room, Sender: alice, Event: voice.ID()}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.PlayedBy(t.Context(), alice, s.room); err != nil || len(got) != 0 {
		t.Errorf("after the redaction: %+v, %v", got, err)
	}
}
