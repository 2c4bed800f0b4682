package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// resident is the server "there" as "here" reaches it. It gives states when gate is closed.
type resident struct {
	room.Remote
	rooms *room.Service
	gate  chan struct{}
}

func (r *resident) MakeJoin(ctx context.Context, _ matrix.ServerName, id matrix.RoomID, user matrix.UserID, versions []string) (room.MakeResponse, error) {
	return r.rooms.MakeJoin(ctx, "here", id, user, versions)
}

func (r *resident) SendJoin(ctx context.Context, _ matrix.ServerName, id matrix.RoomID, event matrix.EventID, join json.RawMessage, omit bool, events room.EventSink) (room.SendJoinResponse, error) {
	answer, err := r.rooms.SendJoin(ctx, "here", id, event, join, omit)
	for _, raw := range answer.State {
		err = errors.Join(err, events(true, raw))
	}
	for _, raw := range answer.AuthChain {
		err = errors.Join(err, events(false, raw))
	}
	return answer, err
}

func (r *resident) StateIDs(ctx context.Context, _ matrix.ServerName, id matrix.RoomID, event matrix.EventID) (room.StateIDsResponse, error) {
	select {
	case <-r.gate:
	case <-ctx.Done():
		return room.StateIDsResponse{}, ctx.Err()
	}
	return r.rooms.StateIDsAt(ctx, "here", id, event)
}

func (r *resident) State(ctx context.Context, _ matrix.ServerName, id matrix.RoomID, event matrix.EventID, events room.EventSink) error {
	answer, err := r.rooms.StateAtEvent(ctx, "here", id, event)
	for _, raw := range answer.PDUs {
		err = errors.Join(err, events(true, raw))
	}
	for _, raw := range answer.AuthChain {
		err = errors.Join(err, events(false, raw))
	}
	return err
}

func (r *resident) Event(ctx context.Context, _ matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	e, err := r.rooms.EventForServer(ctx, "here", id)
	if err != nil {
		return nil, err
	}
	return e.JSON(), nil
}

func (r *resident) EventAuth(ctx context.Context, _ matrix.ServerName, id matrix.RoomID, event matrix.EventID) ([]json.RawMessage, error) {
	return r.rooms.EventAuthChain(ctx, "here", id, event)
}

// keyring knows the keys of all servers.
type keyring map[matrix.ServerName]*matrix.SigningKey

func (k keyring) Key(_ context.Context, server matrix.ServerName, _ matrix.KeyID, _ time.Time) (*matrix.PublicKey, error) {
	return k[server].Public(), nil
}

// partialRoom has alice in a room of "there", with dave and two others, whose members are not known before gate is closed.
func partialRoom(w *world, t *testing.T) (id matrix.RoomID, there *room.Service, gate chan struct{}) {
	t.Helper()
	keys := keyring{}
	for i, name := range []matrix.ServerName{"here", "there"} {
		seed := make([]byte, 32)
		seed[0] = byte(i)
		key, err := matrix.NewSigningKey("ed25519:test", seed)
		w.must(err)
		keys[name] = key
	}
	log := slog.New(slog.DiscardHandler)
	there = room.New(room.Options{Config: room.DefaultConfig(), ServerName: "there", DB: storagetest.New(t), Key: keys["there"], Keys: keys, Now: w.clock.Now, Log: log})
	t.Cleanup(func() { _ = there.Close() })
	gate = make(chan struct{})
	w.must(w.rooms.Close())
	w.rooms = room.New(room.Options{Config: room.DefaultConfig(), ServerName: "here", DB: w.db, Key: keys["here"], Keys: keys,
		Remote: &resident{rooms: there, gate: gate}, Now: w.clock.Now, Log: log})
	t.Cleanup(func() { _ = w.rooms.Close() })
	w.restart()
	id, err := there.Create(w.ctx, room.CreateRequest{Creator: dave, Preset: "public_chat", Name: "Far"})
	w.must(err)
	for i := range 2 {
		_, err := there.Join(w.ctx, room.JoinRequest{Room: id, User: matrix.UserID(fmt.Sprintf("@m%d:there", i))})
		w.must(err)
	}
	return id, there, gate
}

func lazy(c *client) *client {
	return c.with(func(r *Request) { r.Filter = `{"room":{"state":{"lazy_load_members":true}}}`; r.Since = "" })
}

func TestARoomWithoutItsMembersIsShownToWhomThatIsEnough(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, db)
		id, there, gate := partialRoom(w, t)
		eager, lazy := w.client(alice), lazy(w.client(alice))
		eager.sync()
		lazy.sync()
		_, err := w.rooms.Join(w.ctx, room.JoinRequest{Room: id, User: alice, Via: []matrix.ServerName{"there"}})
		w.must(err)
		if !lazy.sync().joined(id).there("timeline") {
			t.Error("a client that loads members lazily is not shown the room")
		}
		if eager.sync().joined(id).v != nil {
			t.Error("a client that wants all members is shown the room without them")
		}
		// Somebody speaks of whom only the event itself tells who it is.
		_, err = there.Send(w.ctx, room.SendRequest{Room: id, Sender: "@m0:there", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"hi","msgtype":"m.text"}`)})
		w.must(err)
		tl, err := there.Timeline(w.ctx, id, 0, 1<<60, 1)
		w.must(err)
		for event, err := range w.rooms.Receive(w.ctx, "there", []json.RawMessage{tl.Events[0].JSON()}) {
			if err != nil {
				t.Fatal(event, err)
			}
		}
		news := lazy.sync().joined(id)
		w.equal("timeline", news.bodies(), []string{"hi"})
		w.equal("state", news.stateTypes("state"), []string{"join @m0:there"})
		w.equal("eager", eager.sync().joined(id).bodies(), []string{})
		// A client waits, and is woken when the members are known.
		waiting := make(chan *answered)
		go func() {
			raw, err := w.sync.Sync(w.ctx, eager.with(func(r *Request) { r.Timeout = time.Minute }).Request)
			if err != nil {
				t.Error(err)
			}
			waiting <- w.answered(raw)
		}()
		close(gate)
		got := <-waiting
		w.equal("state when whole", got.joined(id).stateTypes("state"), []string{
			"join @dave:there", "join @m0:there", "join @m1:there", "m.room.create", "m.room.history_visibility", "m.room.join_rules",
			"m.room.name", "m.room.power_levels"})
		w.equal("members", got.joined(id).number("summary", "m.joined_member_count"), 4)
		if n := len(got.list("device_lists", "changed")); n != 4 {
			t.Errorf("%d users are told as having come, want all 4", n)
		}
		w.must(w.rooms.AwaitWhole(w.ctx, id, time.Minute))
		after := lazy.sync()
		if n := len(after.joined(id).stateTypes("state")); n > 0 {
			t.Errorf("a client that loads members lazily gets %d of them", n)
		}
		if n := len(after.list("device_lists", "changed")); n != 4 {
			t.Errorf("a client that loads members lazily: %d users are told as having come, want all 4", n)
		}
		if eager.Since = got.text("next_batch"); eager.sync().joined(id).v != nil {
			t.Error("the room is shown as new twice")
		}
	})
}
