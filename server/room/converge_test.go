package room

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// story is a room on three servers whose users do as they like while the servers hear of each other late, in disorder, or not at all.
type story struct {
	t       *testing.T
	rng     *rand.Rand
	w       *world
	room    matrix.RoomID
	version string
	servers []*at
	// open makes a server's database; nil: SQLite.
	open func() *storage.DB
	// waiting is what each server has still to be told, with who made it.
	waiting map[matrix.ServerName][]*storage.Event
	// partial has server three join without being told the members.
	partial bool
}

func TestServersConvergeWhateverHappens(t *testing.T) {
	t.Parallel() // long, and only with itself
	for _, version := range []string{"2", "6", "10", "11", "12"} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("version %s, seed %d", version, seed), func(t *testing.T) {
				s := &story{t: t, rng: rand.New(rand.NewPCG(seed, 7)), version: version, waiting: map[matrix.ServerName][]*storage.Event{}}
				s.begin()
				for range 60 {
					if s.rng.IntN(3) > 0 {
						s.act()
					} else {
						s.deliver(s.servers[s.rng.IntN(3)], 1+s.rng.IntN(4))
					}
				}
				s.end()
			})
		}
	}
}

// One of the servers knows the room without its members for the first half.
func TestAPartialServerConvergesWithThoseThatKnewAllAlong(t *testing.T) {
	t.Parallel() // long, and only with itself
	for _, version := range []string{"2", "6", "10", "11", "12"} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("version %s, seed %d", version, seed), func(t *testing.T) {
				s := &story{t: t, rng: rand.New(rand.NewPCG(seed, 11)), version: version, waiting: map[matrix.ServerName][]*storage.Event{}, partial: true}
				s.begin()
				three := s.servers[2]
				for i := range 60 {
					if i == 30 {
						if !three.snap(s.room).PartialState {
							t.Fatal("the room is whole, so this tests nothing")
						}
						s.w.mu.Lock()
						clear(s.w.fault)
						s.w.mu.Unlock()
						three.foreign.partial.kick(three.Service, s.room)
						three.finish()
					}
					if s.rng.IntN(3) > 0 {
						s.act()
					} else {
						s.deliver(s.servers[s.rng.IntN(3)], 1+s.rng.IntN(4))
					}
				}
				s.end()
				rows := map[matrix.UserID]string{}
				if err := three.o.DB.MemberRows(context.Background(), three.snap(s.room).row.Num, func(m storage.MemberRow) { rows[m.User] = m.Membership }); err != nil {
					t.Fatal(err)
				}
				for _, e := range three.wholeStateEvents(s.room) {
					if user := matrix.UserID(stateKey(e.Event)); e.Type() == matrix.TypeMember && rows[user] != e.Membership() {
						t.Errorf("the row of %s says %q, the state %q", user, rows[user], e.Membership())
					}
				}
			})
		}
	}
}

func (s *story) begin() {
	if s.open == nil {
		s.open = func() *storage.DB { return storagetest.New(s.t) }
	}
	s.w = newWorldOn(s.t, s.open, "one", "two", "three")
	for _, name := range []matrix.ServerName{"one", "two", "three"} {
		s.servers = append(s.servers, s.w.at(name))
	}
	one := s.servers[0]
	s.room = one.newRoom("@u0:one", s.version, "public")
	if s.partial {
		for i := range 3 {
			one.set(s.room, one.user(fmt.Sprint("u", i)), matrix.TypeMember, string(one.user(fmt.Sprint("u", i))), `{"membership":"join"}`)
		}
		for _, name := range []string{"one", "two"} {
			s.w.fault["state_ids "+name] = func() error { return errNoAnswer }
		}
		s.servers[2].o.Config.PartialJoins = true
	}
	for _, other := range s.servers[1:] {
		other.join(s.room, other.user("u0"), "one")
	}
	s.servers[1].get("one", one.snap(s.room).Tip[0])
	levels := `{"users":{"@u0:one":100,"@u0:two":60,"@u0:three":50},"invite":0}`
	if s.version == "12" {
		levels = `{"users":{"@u0:two":60,"@u0:three":50},"invite":0}`
	}
	s.tell(one, one.set(s.room, "@u0:one", matrix.TypePowerLevels, "", levels))
	for _, server := range s.servers {
		s.deliver(server, 100)
	}
}

// tell notes that the other servers are to hear of an event; a third of all never do, until they ask.
func (s *story) tell(from *at, e *storage.Event) {
	for _, to := range s.servers {
		if to.name != from.name && s.rng.IntN(3) > 0 {
			s.waiting[to.name] = append(s.waiting[to.name], e)
		}
	}
}

// deliver tells a server some of what waits for it, in any order.
func (s *story) deliver(to *at, n int) {
	for ; n > 0 && len(s.waiting[to.name]) > 0; n-- {
		list := s.waiting[to.name]
		i := s.rng.IntN(len(list))
		e := list[i]
		s.waiting[to.name] = append(list[:i:i], list[i+1:]...)
		to.get(e.Sender().Server(), e)
	}
}

// act has a user of some server do something, if the room as their server sees it lets them.
func (s *story) act() {
	a := s.servers[s.rng.IntN(3)]
	user := a.user(fmt.Sprint("u", s.rng.IntN(3)))
	other := fmt.Sprintf("@u%d:%s", s.rng.IntN(3), s.servers[s.rng.IntN(3)].name)
	me, empty := string(user), ""
	n := s.rng.IntN(1000)
	builders := []matrix.Builder{
		{Type: matrix.TypeMessage, Content: json.RawMessage(fmt.Sprintf(`{"body":"%d"}`, n))},
		{Type: matrix.TypeName, StateKey: &empty, Content: json.RawMessage(fmt.Sprintf(`{"name":"%d"}`, n))},
		{Type: matrix.TypeTopic, StateKey: &empty, Content: json.RawMessage(fmt.Sprintf(`{"topic":"%d"}`, n))},
		{Type: matrix.TypeMember, StateKey: &me, Content: json.RawMessage(fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, n))},
		{Type: matrix.TypeMember, StateKey: &me, Content: json.RawMessage(`{"membership":"join"}`)},
		{Type: matrix.TypeMember, StateKey: &me, Content: json.RawMessage(`{"membership":"leave"}`)},
		{Type: matrix.TypeMember, StateKey: &other, Content: json.RawMessage(`{"membership":"ban"}`)},
		{Type: matrix.TypeMember, StateKey: &other, Content: json.RawMessage(`{"membership":"leave"}`)},
		{Type: matrix.TypeMember, StateKey: &other, Content: json.RawMessage(`{"membership":"invite"}`)},
		{Type: matrix.TypeJoinRules, StateKey: &empty, Content: json.RawMessage(`{"join_rule":"invite"}`)},
		{Type: matrix.TypeJoinRules, StateKey: &empty, Content: json.RawMessage(`{"join_rule":"public"}`)},
		{Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(s.levels(n))},
	}
	b := builders[s.rng.IntN(len(builders))]
	b.Sender = user
	// The first user of each server stays, so that all servers stay in the room.
	if b.Type == matrix.TypeMember && *b.StateKey != me && other[:3] == "@u0" || b.Type == matrix.TypeMember && me[:3] == "@u0" && string(b.Content) == `{"membership":"leave"}` && *b.StateKey == me {
		return
	}
	var e *storage.Event
	err := a.update(context.Background(), s.room, func(u *update) (err error) {
		e, err = u.post(b)
		return err
	})
	if err == nil {
		s.tell(a, e)
	}
}

// levels are power levels by which the first users keep theirs.
func (s *story) levels(n int) string {
	creator := `"@u0:one":100,`
	if s.version == "12" {
		creator = ""
	}
	return fmt.Sprintf(`{"users":{%s"@u0:two":60,"@u0:three":50,"@u1:two":%d},"invite":%d,"ban":%d}`, creator, n%60, n%40, 40+n%11)
}

// end has everybody hear everything and compares.
func (s *story) end() {
	for range 2 {
		for _, from := range s.servers {
			last := from.say(s.room, from.user("u0"), "the end")
			for _, to := range s.servers {
				if to.name != from.name {
					to.get(from.name, last)
				}
			}
		}
	}
	want := s.servers[0].wholeState(s.room)
	for _, server := range s.servers {
		if tip := server.snap(s.room).Tip; len(tip) != 1 {
			s.t.Errorf("%s has a tip of %d events", server.name, len(tip))
		}
		if diff := cmp.Diff(want, server.wholeState(s.room)); diff != "" {
			s.t.Errorf("one and %s differ: %s", server.name, diff)
		}
		joined := 0
		for _, e := range server.wholeStateEvents(s.room) {
			if e.Type() == matrix.TypeMember && e.Membership() == matrix.Join {
				joined++
			}
		}
		if snap := server.snap(s.room); snap.JoinedCount != joined {
			s.t.Errorf("%s counts %d members of %d", server.name, snap.JoinedCount, joined)
		}
	}
}

func (a *at) wholeStateEvents(room matrix.RoomID) []*storage.Event {
	a.t.Helper()
	events, err := a.StateEvents(context.Background(), room, a.snap(room).Root, storage.AllState)
	if err != nil {
		a.t.Fatal(err)
	}
	return events
}
