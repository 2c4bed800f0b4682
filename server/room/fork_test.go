package room

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestResolutionOfAForkReachesMembersAndSnapshot puts two events on the same tip, of which the ban wins over the name of the banned.
func TestResolutionOfAForkReachesMembersAndSnapshot(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		for _, version := range []string{"1", "6", "11", "12"} {
			s := newService(t, db)
			ctx := t.Context()
			room := create(t, s, CreateRequest{Preset: "public_chat", RoomVersion: version})
			if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
				t.Fatal(err)
			}
			var fork [2]*matrix.Event
			var before storage.StateRoot
			err := s.update(ctx, room, func(u *update) (err error) {
				key := string(bob)
				before = u.snap.Root
				if fork[0], err = u.build(&matrix.Builder{Sender: alice, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(`{"membership":"ban"}`)}); err != nil {
					return err
				}
				fork[1], err = u.build(&matrix.Builder{Sender: bob, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(`{"membership":"join","displayname":"new"}`)})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range fork {
				if err := s.update(ctx, room, func(u *update) error {
					_, err := u.append(entry{event: e, before: before})
					return err
				}); err != nil {
					t.Fatal(i, err)
				}
			}
			for _, s := range []*Service{s, newService(t, db)} {
				r, err := s.Room(ctx, room)
				if err != nil {
					t.Fatal(err)
				}
				snap := r.Snapshot()
				m, err := s.Membership(ctx, room, bob)
				if err != nil || m.Membership != matrix.Ban || snap.Local[bob] != 0 || snap.JoinedCount != 1 || len(snap.Tip) != 2 {
					t.Errorf("v%s: membership %q, %v; local %v, joined %d, tip of %d", version, m.Membership, err, snap.Local, snap.JoinedCount, len(snap.Tip))
				}
			}
			say(t, s, room, alice, "after")
			r, _ := s.Room(ctx, room)
			if n := len(r.Snapshot().Tip); n != 1 {
				t.Errorf("v%s: tip of %d after a message", version, n)
			}
		}
	})
}

// TestAnotherProcessIsFollowed reads with one process what another wrote.
func TestAnotherProcessIsFollowed(t *testing.T) {
	url := storagetest.PostgreSQLURL(t)
	var all [2]*Service
	for i := range all {
		db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		all[i] = newService(t, db)
	}
	rung := make(chan bool, 100)
	defer all[1].o.DB.Listen(func(storage.Commit) { rung <- true })()
	until := func(seen func() bool) {
		t.Helper()
		for !seen() {
			select {
			case <-rung:
			case <-time.After(10 * time.Second):
				t.Fatal("what the other process wrote is not seen")
			}
		}
	}
	ctx := t.Context()
	room := create(t, all[0], CreateRequest{Preset: "public_chat"})
	for i := range 3 {
		id := say(t, all[0], room, alice, fmt.Sprint(i))
		until(func() bool { // at first the room itself is news
			page, err := all[1].Messages(ctx, room, Reader{User: alice}, MessagesRequest{Limit: 100})
			return err == nil && len(bodies(t, page.Chunk)) == i+1
		})
		if _, err := all[0].Redact(ctx, RedactRequest{Room: room, Sender: alice, Event: id}); err != nil {
			t.Fatal(err)
		}
		until(func() bool {
			e, err := all[1].EventByID(ctx, id)
			return err == nil && e.RedactedBy != ""
		})
	}
	if _, err := all[0].Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
		t.Fatal(err)
	}
	until(func() bool {
		rooms, err := all[1].JoinedRooms(ctx, bob)
		return err == nil && len(rooms) == 1
	})
	if r, err := all[1].Room(ctx, room); err != nil || r.Snapshot().Local[bob] == 0 {
		t.Errorf("the snapshot has not followed: %v", err)
	}
}
