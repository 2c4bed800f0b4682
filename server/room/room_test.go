package room

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const (
	here  = matrix.ServerName("here.example")
	alice = matrix.UserID("@alice:here.example")
	bob   = matrix.UserID("@bob:here.example")
	carol = matrix.UserID("@carol:here.example")
)

func testKey(t testing.TB) *matrix.SigningKey {
	t.Helper()
	key, err := matrix.NewSigningKey("ed25519:test", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newService(t testing.TB, db *storage.DB) *Service {
	t.Helper()
	s := New(Options{Config: DefaultConfig(), ServerName: here, DB: db, Key: testKey(t), Log: slog.New(slog.DiscardHandler),
		Profile: func(_ context.Context, user matrix.UserID) (Profile, error) {
			return Profile{DisplayName: user.Localpart()}, nil
		}})
	t.Cleanup(func() { s.Close() })
	return s
}

func create(t testing.TB, s *Service, r CreateRequest) matrix.RoomID {
	t.Helper()
	if r.Creator == "" {
		r.Creator = alice
	}
	id, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func say(t testing.TB, s *Service, room matrix.RoomID, user matrix.UserID, body string) matrix.EventID {
	t.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	id, err := s.Send(t.Context(), SendRequest{Room: room, Sender: user, Type: matrix.TypeMessage, Content: content})
	if err != nil {
		t.Fatalf("%s says %q: %v", user, body, err)
	}
	return id
}

func bodies(t testing.TB, chunk []json.RawMessage) []string {
	t.Helper()
	all := []string{}
	for _, raw := range chunk {
		var e struct {
			Type    string
			Content struct{ Body string }
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err, string(raw))
		}
		if e.Type == matrix.TypeMessage {
			all = append(all, e.Content.Body)
		}
	}
	return all
}

func TestRoomOfEachVersionCanBeCreatedJoinedAndSpokenIn(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		for _, v := range matrix.RoomVersions() {
			t.Run("v"+v.ID, func(t *testing.T) {
				room := create(t, s, CreateRequest{RoomVersion: v.ID, Preset: "public_chat", Name: "n", Topic: "t"})
				if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
					t.Fatal(err)
				}
				say(t, s, room, bob, "hi")
				page, err := s.Messages(t.Context(), room, Reader{User: bob}, MessagesRequest{Limit: 100})
				if err != nil {
					t.Fatal(err)
				}
				if got := bodies(t, page.Chunk); fmt.Sprint(got) != "[hi]" {
					t.Errorf("messages %v", got)
				}
				var state bytes.Buffer
				if err := s.State(t.Context(), &state, room, Reader{User: bob}); err != nil {
					t.Fatal(err)
				}
				var events []json.RawMessage
				if err := json.Unmarshal(state.Bytes(), &events); err != nil || len(events) != 8 {
					t.Errorf("state of %d events, %v", len(events), err)
				}
			})
		}
	})
}
