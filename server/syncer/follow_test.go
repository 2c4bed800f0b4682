package syncer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// follower is what a client knows from the answers it got.
type follower struct {
	*client
	joined  map[string]map[string]string // room, "type|key", event ID
	invited map[string]bool
}

func follow(c *client) *follower {
	return &follower{client: c, joined: map[string]map[string]string{}, invited: map[string]bool{}}
}

// take asks for news and learns from the answer, as the spec has clients do it.
func (f *follower) take() {
	f.w.Helper()
	a := f.sync()
	section := func(name string) map[string]any {
		m, _ := a.at("rooms", name).v.(map[string]any)
		return m
	}
	for id := range section("join") {
		delete(f.invited, id)
		if f.joined[id] == nil {
			f.joined[id] = map[string]string{}
		}
		r := a.at("rooms", "join", id)
		f.learn(id, r.list("state", "events"))
		if f.UseStateAfter {
			f.learn(id, r.list("state_after", "events"))
		} else {
			f.learn(id, r.list("timeline", "events"))
		}
	}
	for id := range section("leave") {
		delete(f.joined, id)
		delete(f.invited, id)
	}
	for id := range section("invite") {
		delete(f.joined, id)
		f.invited[id] = true
	}
}

func (f *follower) learn(id string, events []*answered) {
	for _, e := range events {
		if key, ok := e.at("state_key").v.(string); ok {
			f.joined[id][e.text("type")+"|"+key] = e.text("event_id")
		}
	}
}

func TestFollowingFromAnyPointLeadsToTheStateOfAnInitialSync(t *testing.T) {
	each(t, func(w *world) {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 1))
		t.Log("seed", seed)
		people := []matrix.UserID{alice, bob, carol}
		var rooms []matrix.RoomID
		for _, u := range people {
			rooms = append(rooms, w.room(u))
		}
		filters := []string{``, `{"room":{"timeline":{"limit":1}}}`, `{"room":{"timeline":{"limit":3,"types":["m.room.message","m.room.member"]}}}`, `{"room":{"timeline":{"limit":0}}}`}
		var followers []*follower
		for _, u := range people {
			for i, filter := range filters {
				c := w.client(u)
				c.Filter, c.UseStateAfter = filter, i%2 == 1
				followers = append(followers, follow(c))
			}
		}
		for step := range 150 {
			id, who, other := rooms[r.IntN(len(rooms))], people[r.IntN(len(people))], people[r.IntN(len(people))]
			// Much of this is not allowed at the moment; then nothing happens.
			switch r.IntN(9) {
			case 0, 1, 2:
				_, _ = w.rooms.Join(w.ctx, room.JoinRequest{Room: id, User: who})
			case 3:
				_ = w.rooms.Leave(w.ctx, room.MemberRequest{Room: id, Sender: who})
			case 4:
				_ = w.rooms.Kick(w.ctx, room.MemberRequest{Room: id, Sender: who, Target: other})
			case 5:
				_ = w.rooms.Invite(w.ctx, room.MemberRequest{Room: id, Sender: who, Target: other})
			case 6:
				key := ""
				_, _ = w.rooms.Send(w.ctx, room.SendRequest{Room: id, Sender: who, Type: "m.room.topic", StateKey: &key,
					Content: fmt.Appendf(nil, `{"topic":"%d"}`, step)})
			default:
				_, _ = w.rooms.Send(w.ctx, room.SendRequest{Room: id, Sender: who, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"%d"}`, step)})
			}
			if r.IntN(3) == 0 {
				followers[r.IntN(len(followers))].take()
			}
			if r.IntN(50) == 0 {
				w.restart()
			}
		}
		for _, f := range followers {
			f.take()
			c := w.client(f.User)
			c.UseStateAfter = true
			fresh := follow(c)
			fresh.take()
			what := fmt.Sprintf("%s with %q", f.User, f.Filter)
			w.equal(what+": rooms", slices.Sorted(maps.Keys(f.joined)), slices.Sorted(maps.Keys(fresh.joined)))
			for id, state := range fresh.joined {
				for key, event := range state {
					if f.joined[id][key] != event {
						t.Errorf("%s: %s of %s is %s, want %s", what, key, id, w.describe(f.joined[id][key]), w.describe(event))
					}
				}
			}
			w.equal(what+": invites", f.invited, fresh.invited)
		}
	})
}

// describe says what an event is, for people.
func (w *world) describe(id string) string {
	e, err := w.db.EventByID(w.ctx, matrix.EventID(id))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s by %s at %d: %s", e.Type(), e.Sender(), e.Pos, e.Content())
}
