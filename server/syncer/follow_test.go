package syncer

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
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

func TestNothingIsLostOrDoubledWhileManyWriteAndWait(t *testing.T) {
	each(t, func(w *world) {
		people := []matrix.UserID{alice, bob, carol}
		rooms := []matrix.RoomID{w.room(alice), w.room(bob)}
		for _, id := range rooms {
			w.join(id, people...)
		}
		const messages = 30 // of each person in each room: a reader who comes last finds all within the limit
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for _, u := range people {
			for _, device := range []matrix.DeviceID{"PHONE", "LAPTOP"} {
				c := w.client(u)
				c.Device = device
				c.sync()
				c.Timeout, c.Filter = time.Minute, `{"room":{"timeline":{"limit":100}}}`
				all.Go(func() {
					seen := map[matrix.RoomID][]string{}
					for len(seen[rooms[0]]) < messages*len(people) || len(seen[rooms[1]]) < messages*len(people) {
						raw, err := w.sync.Sync(ctx, c.Request)
						if err != nil {
							t.Errorf("%s %s: %v", u, device, err)
							return
						}
						a := w.answered(raw)
						c.Since = a.text("next_batch")
						for _, id := range rooms {
							if a.joined(id).at("timeline", "limited").v == true {
								t.Errorf("%s %s has a gap", u, device)
							}
							seen[id] = append(seen[id], a.joined(id).bodies()...)
						}
					}
					for _, id := range rooms {
						next := map[string]int{}
						for _, body := range seen[id] {
							who, n, _ := strings.Cut(body, " ")
							if n != strconv.Itoa(next[who]) {
								t.Errorf("%s %s got %q, want number %d", u, device, body, next[who])
								return
							}
							next[who]++
						}
					}
				})
			}
		}
		for _, u := range people {
			all.Go(func() {
				for i := range messages {
					for _, id := range rooms {
						_, err := w.rooms.Send(ctx, room.SendRequest{Room: id, Sender: u, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"%s %d"}`, u, i)})
						if err != nil {
							t.Error(err)
							return
						}
					}
					if i%10 == 5 { // as if another process had written
						w.sync.ring(storage.Commit{Position: w.db.Position(), Changes: []storage.Change{{Foreign: true}}})
					}
				}
			})
		}
		all.Wait()
	})
}
