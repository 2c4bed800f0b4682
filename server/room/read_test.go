package room

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// State that takes several pieces to write is one list, with everything in it once.
func TestLongStateIsWrittenInPieces(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{Preset: "public_chat"})
	if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
		t.Fatal(err)
	}
	const more = 2*statePiece + 1
	for i := range more {
		key := fmt.Sprint(i)
		if _, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: "x.y", StateKey: &key, Content: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	var written bytes.Buffer
	if err := s.State(t.Context(), &written, room, Reader{User: bob}); err != nil {
		t.Fatal(err)
	}
	var events []struct {
		Type     string
		StateKey string `json:"state_key"`
	}
	if err := json.Unmarshal(written.Bytes(), &events); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range events {
		seen[e.Type+" "+e.StateKey] = true
	}
	if len(events) != len(seen) || !seen["m.room.create "] || !seen["m.room.member "+string(bob)] || !seen[fmt.Sprint("x.y ", more-1)] {
		t.Errorf("%d events, %d different", len(events), len(seen))
	}
	for membership, want := range map[string]int{"": 2, matrix.Join: 2, matrix.Ban: 0} {
		written.Reset()
		if err := s.Members(t.Context(), &written, room, Reader{User: bob}, MembersRequest{Membership: membership}); err != nil {
			t.Fatal(err)
		}
		var members struct{ Chunk []json.RawMessage }
		if err := json.Unmarshal(written.Bytes(), &members); err != nil || members.Chunk == nil || len(members.Chunk) != want {
			t.Errorf("members with %q: %s, %v", membership, written.String(), err)
		}
	}
}
