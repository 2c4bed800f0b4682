package matrix

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// history makes random rooms: a graph of events by members of several servers, with forks and merges, in which every
// event that its own state allows is accepted.
type history struct {
	t       testing.TB
	r       *rand.Rand
	version *RoomVersion
	key     *SigningKey
	room    RoomID
	users   []UserID

	events   []*Event // in the order of acceptance
	byID     map[EventID]*Event
	number   map[EventID]int64
	after    map[EventID]StateMap // the state after an event
	rejected map[EventID]bool
	clock    int64

	// merged is called with every resolution that the history needs.
	merged func(states []StateMap, resolved StateMap)
}

func newHistory(t testing.TB, version *RoomVersion, seed uint64) *history {
	h := &history{t: t, r: rand.New(rand.NewPCG(seed, 1)), version: version, key: testKey(t),
		byID: map[EventID]*Event{}, number: map[EventID]int64{}, after: map[EventID]StateMap{}, rejected: map[EventID]bool{},
		clock: 1700000000000}
	for i, name := range []string{"alice", "bob", "carol", "dave", "erin", "frank"} {
		h.users = append(h.users, UserID(fmt.Sprintf("@%s:%c.example", name, 'a'+i%3)))
	}
	create := `{"creator":"@alice:a.example","room_version":"` + version.ID + `"}`
	if version.PrivilegedCreators {
		create = `{"room_version":"12","additional_creators":["@dave:a.example"]}`
	}
	if !version.RoomIDIsCreateID {
		h.room = "!room:a.example"
	}
	key := ""
	c := h.must(&Builder{RoomID: h.room, Sender: "@alice:a.example", Type: TypeCreate, StateKey: &key, Content: []byte(create)}, nil)
	h.room = c.RoomID()
	h.extend(c.ID(), "@alice:a.example", TypeMember, "@alice:a.example", `{"membership":"join"}`)
	levels := `{"users":{"@alice:a.example":100,"@bob:b.example":50,"@carol:c.example":50}}`
	if version.PrivilegedCreators {
		levels = `{"users":{"@bob:b.example":50,"@carol:c.example":50}}`
	}
	h.extend(h.last(), "@alice:a.example", TypePowerLevels, "", levels)
	h.extend(h.last(), "@alice:a.example", TypeJoinRules, "", `{"join_rule":"public"}`)
	return h
}

func (h *history) last() EventID { return h.events[len(h.events)-1].ID() }

func (h *history) powerLevels() string {
	level := func() int { return []int{0, 0, 10, 50, 50, 99, 100}[h.r.IntN(7)] }
	users := `"@alice:a.example":100,`
	if h.version.PrivilegedCreators {
		users = ""
	}
	return fmt.Sprintf(`{"users":{%s"@bob:b.example":%d,"@carol:c.example":%d,"@erin:b.example":%d},"invite":%d,"kick":%d,"ban":%d,`+
		`"state_default":%d,"events":{"m.room.name":%d,"m.room.power_levels":%d}}`,
		users, level(), level(), level(), level(), level(), level(), level(), level(), level())
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// step adds one random event, after one or several of the latest events.
func (h *history) step() {
	recent := h.events[max(0, len(h.events)-6):]
	prev := []EventID{pick(h.r, recent).ID()}
	for h.r.IntN(3) == 0 && len(prev) < 3 {
		if id := pick(h.r, recent).ID(); id != prev[0] {
			prev = append(prev, id)
		}
	}
	state := h.stateAfter(prev)
	sender, target := pick(h.r, h.users), pick(h.r, h.users)
	var typ, key, content string
	switch h.r.IntN(12) {
	case 0, 1, 2:
		typ, key, content = TypeMember, string(sender), `{"membership":"join"}`
	case 3:
		typ, key, content = TypeMember, string(target), `{"membership":"invite"}`
	case 4:
		typ, key, content = TypeMember, string(target), `{"membership":"leave"}`
	case 5:
		typ, key, content = TypeMember, string(target), `{"membership":"ban"}`
	case 6:
		typ, key, content = TypeMember, string(sender), `{"membership":"leave"}`
	case 7, 8:
		typ, content = TypePowerLevels, h.powerLevels()
	case 9:
		typ, content = TypeJoinRules, fmt.Sprintf(`{"join_rule":%q}`, pick(h.r, []string{"public", "invite", "public", "knock"}))
	case 10:
		typ, content = TypeName, fmt.Sprintf(`{"name":"%d"}`, h.r.IntN(1000))
	case 11:
		typ, content = TypeTopic, fmt.Sprintf(`{"topic":"%d"}`, h.r.IntN(1000))
	}
	h.add(prev, state, sender, typ, key, content)
}

func (h *history) extend(prev EventID, sender UserID, typ, key, content string) {
	if !h.add([]EventID{prev}, h.after[prev], sender, typ, key, content) {
		h.t.Fatalf("%s of %s was rejected", typ, sender)
	}
}

// add builds an event; if its state does not allow it, it is dropped, or now and then kept as rejected.
func (h *history) add(prev []EventID, state StateMap, sender UserID, typ, key, content string) bool {
	b := &Builder{RoomID: h.room, Sender: sender, Type: typ, StateKey: &key, Content: []byte(content), PrevEvents: prev}
	for _, t := range b.AuthKeys(h.version) {
		if id, ok := state[t]; ok {
			b.AuthEvents = append(b.AuthEvents, id)
		}
	}
	for _, p := range prev {
		b.Depth = max(b.Depth, h.byID[p].Depth()+1)
	}
	e := h.build(b)
	err := Authorize(e, func(typ, key string) *Event { return h.byID[state[StateTuple{typ, key}]] })
	if err != nil {
		return false
	}
	h.accept(e, state)
	return true
}

func (h *history) build(b *Builder) *Event {
	h.clock += int64(h.r.IntN(3)) * 10
	b.Time = time.UnixMilli(h.clock - int64(h.r.IntN(4))*20)
	e, err := b.Build(h.version, b.Sender.Server(), h.key)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func (h *history) must(b *Builder, state StateMap) *Event {
	e := h.build(b)
	h.accept(e, state)
	return e
}

func (h *history) accept(e *Event, before StateMap) {
	if h.byID[e.ID()] != nil {
		return
	}
	h.events = append(h.events, e)
	h.byID[e.ID()] = e
	h.number[e.ID()] = int64(len(h.events))
	after := StateMap{}
	for k, v := range before {
		after[k] = v
	}
	after[e.Tuple()] = e.ID()
	h.after[e.ID()] = after
}

func (h *history) stateAfter(prev []EventID) StateMap {
	if len(prev) == 1 {
		return h.after[prev[0]]
	}
	var states []StateMap
	for _, p := range prev {
		states = append(states, h.after[p])
	}
	resolved, err := ResolveStates(h.version, states, h.load, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if h.merged != nil {
		h.merged(states, resolved)
	}
	return resolved
}

func (h *history) load(ids []EventID) (events []*Event, err error) {
	for _, id := range ids {
		if e := h.byID[id]; e != nil {
			events = append(events, e)
		}
	}
	return events, nil
}
