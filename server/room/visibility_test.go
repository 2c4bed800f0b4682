package room

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// TestHistoryVisibility follows bob through a room: m1 is said before his invite, m2 while he is invited, m3 while he is in the room, and m4
// after he has left. Spec v1.19 client-server-api/#room-history-visibility
func TestHistoryVisibility(t *testing.T) {
	s := newService(t, storagetest.New(t))
	ctx := t.Context()
	seen := func(room matrix.RoomID, user matrix.UserID) string {
		page, err := s.Messages(ctx, room, Reader{User: user}, MessagesRequest{Forward: true, Limit: 100})
		if err != nil {
			return matrix.ErrorCode(err)
		}
		return fmt.Sprint(bodies(t, page.Chunk))
	}
	for _, c := range []struct{ visibility, joined, left, stranger string }{
		{"world_readable", "[m1 m2 m3]", "[m1 m2 m3 m4]", "[m1 m2 m3 m4]"},
		{"shared", "[m1 m2 m3]", "[m1 m2 m3]", "M_FORBIDDEN"},
		{"invited", "[m2 m3]", "[m2 m3]", "M_FORBIDDEN"},
		{"joined", "[m3]", "[m3]", "M_FORBIDDEN"},
		{"nonsense", "[m1 m2 m3]", "[m1 m2 m3]", "M_FORBIDDEN"},
	} {
		t.Run(c.visibility, func(t *testing.T) {
			room := create(t, s, CreateRequest{InitialState: []InitialState{{Type: matrix.TypeHistoryVisibility,
				Content: json.RawMessage(`{"history_visibility":"` + c.visibility + `"}`)}}})
			m1 := say(t, s, room, alice, "m1")
			if err := s.Invite(ctx, MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
				t.Fatal(err)
			}
			say(t, s, room, alice, "m2")
			if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
				t.Fatal(err)
			}
			say(t, s, room, alice, "m3")
			if got := seen(room, bob); got != c.joined {
				t.Errorf("in the room bob sees %s, want %s", got, c.joined)
			}
			if err := s.Leave(ctx, MemberRequest{Room: room, Sender: bob}); err != nil {
				t.Fatal(err)
			}
			m4 := say(t, s, room, alice, "m4")
			if got := seen(room, bob); got != c.left {
				t.Errorf("after leaving bob sees %s, want %s", got, c.left)
			}
			if got := seen(room, carol); got != c.stranger {
				t.Errorf("carol sees %s, want %s", got, c.stranger)
			}
			for id, visible := range map[matrix.EventID]bool{m1: c.left[:3] == "[m1", m4: c.visibility == "world_readable"} {
				if _, err := s.Event(ctx, room, Reader{User: bob}, id); (err == nil) != visible {
					t.Errorf("event %s: %v, want visible %v", id, err, visible)
				}
			}
			var state strings.Builder
			if err := s.State(ctx, &state, room, Reader{User: bob}); err != nil || state.Len() < 10 {
				t.Errorf("state for bob: %.50s, %v", state.String(), err)
			}
			if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err == nil {
				t.Error("bob came back without an invite")
			}
		})
	}
}

func TestFormerMembersSeeTheStateAsItWas(t *testing.T) {
	s := newService(t, storagetest.New(t))
	ctx := t.Context()
	room := create(t, s, CreateRequest{Preset: "public_chat", Name: "old"})
	if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(ctx, MemberRequest{Room: room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(ctx, SendRequest{Room: room, Sender: alice, Type: matrix.TypeName, StateKey: new(string), Content: json.RawMessage(`{"name":"new"}`)}); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[matrix.UserID]string{alice: `{"name":"new"}`, bob: `{"name":"old"}`} {
		got, err := s.StateEvent(ctx, room, Reader{User: user}, matrix.TypeName, "", false)
		if err != nil || string(got) != want {
			t.Errorf("%s sees %s, %v; want %s", user, got, err, want)
		}
	}
	_, err := s.StateEvent(ctx, room, Reader{User: carol}, matrix.TypeName, "", false)
	wantCode(t, err, "M_FORBIDDEN")
	wantCode(t, s.JoinedMembers(ctx, io.Discard, room, bob), "M_FORBIDDEN")
}
