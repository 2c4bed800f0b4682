package difftest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
)

var (
	rooms = flag.Int("rooms", 1000, "random rooms to compare")
	first = flag.Int("first", 0, "seed of the first room of every version; a long run can be made in parts")
)

const stepsPerRoom = 60

// room is a random room: a graph of events by users of several servers, with forks and merges. Every event that is
// tried is shown to the oracles with the state before it and our verdict. Those that are allowed are kept; of the others
// some are kept as rejected, and stand in prev_events, never in the state. Now and then an event is redacted, and is from
// then on what the redaction leaves of it.
type room struct {
	t       testing.TB
	r       *rand.Rand
	version *matrix.RoomVersion
	key     *matrix.SigningKey
	id      matrix.RoomID
	users   []matrix.UserID
	creator matrix.UserID

	create   *matrix.Event
	events   []*matrix.Event
	byID     map[matrix.EventID]*matrix.Event
	after    map[matrix.EventID]matrix.StateMap
	rejected map[matrix.EventID]bool
	clock    int64

	oracles []oracle
	counted *tally
}

// oracle says what another implementation thinks of a room. Each question may be nil.
type oracle struct {
	built    func(e *matrix.Event)                                      // an event was built, allowed or not
	tried    func(e *matrix.Event, state matrix.StateLookup, err error) // it was checked against a state
	received func(e *matrix.Event, auth []*matrix.Event, err error)     // it was checked by its own auth_events
	merged   func(states []matrix.StateMap, resolved matrix.StateMap)   // states were resolved
}

// tally counts what was compared in all rooms of a run.
type tally struct {
	rooms, events, refused, byAuthEvents, byAuthEventsRefused, redacted, rejected, merges, conflicts atomic.Int64
	same, different                                                                                  atomic.Int64 // resolutions of gomatrixserverlib
}

func (c *tally) String() string {
	return fmt.Sprintf("%d rooms: %d events, %d of them refused by their state; %d checked by auth events of their own, %d of them refused; "+
		"%d rejected events kept, %d redacted; %d merges, %d of them of states that differ; gomatrixserverlib has the same result in %d, in %d the referee was for us",
		c.rooms.Load(), c.events.Load(), c.refused.Load(), c.byAuthEvents.Load(), c.byAuthEventsRefused.Load(), c.rejected.Load(), c.redacted.Load(),
		c.merges.Load(), c.conflicts.Load(), c.same.Load(), c.different.Load())
}

// ask names the oracles of a room; mautrix_test.go adds its own.
var ask = []func(m *room, counted *tally) oracle{askGMSL, askReferee}

// TestRandomRooms makes random rooms of all versions and asks every oracle about every event and every merge.
func TestRandomRooms(t *testing.T) {
	var counted tally
	t.Cleanup(func() { t.Log(counted.String()) })
	for _, id := range allVersions {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			for i := range max(1, *rooms/len(allVersions)) {
				seed := *first + i
				m := newRoom(t, matrix.LookupRoomVersion(id), uint64(seed))
				for _, with := range ask {
					m.oracles = append(m.oracles, with(m, &counted))
				}
				m.counted = &counted
				m.start()
				for range stepsPerRoom {
					m.step()
				}
				counted.rooms.Add(1)
				if t.Failed() {
					t.Fatalf("the room was made of seed %d", seed)
				}
				if i%1000 == 999 {
					t.Logf("version %s: seeds %d to %d compared", id, *first, seed)
				}
			}
		})
	}
}

func newRoom(t testing.TB, version *matrix.RoomVersion, seed uint64) *room {
	key, err := matrix.NewSigningKey("ed25519:1", []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	m := &room{t: t, r: rand.New(rand.NewPCG(seed, 7)), version: version, key: key, byID: map[matrix.EventID]*matrix.Event{},
		after: map[matrix.EventID]matrix.StateMap{}, rejected: map[matrix.EventID]bool{}, clock: 1700000000000,
		counted: new(tally)}
	for i, name := range []string{"alice", "bob", "carol", "dave", "erin"} {
		m.users = append(m.users, matrix.UserID(fmt.Sprintf("@%s:%c.example", name, 'a'+i%3)))
	}
	m.creator = m.users[0]
	return m
}

// start makes the first events of the room.
func (m *room) start() {
	content := map[string]any{"room_version": m.version.ID}
	if m.version.CreatorInContent {
		content["creator"] = m.creator
	}
	if m.version.PrivilegedCreators && m.r.IntN(2) == 0 {
		content["additional_creators"] = []matrix.UserID{m.users[3]}
	}
	if m.r.IntN(12) == 0 {
		content["m.federate"] = false
	}
	if !m.version.RoomIDIsCreateID {
		m.id = "!room:a.example"
	}
	m.create = m.build(&matrix.Builder{RoomID: m.id, Sender: m.creator, Type: matrix.TypeCreate, StateKey: new(string), Content: marshal(content)})
	m.id = m.create.RoomID()
	m.accept(m.create, nil)
	m.add([]matrix.EventID{m.last()}, m.after[m.last()], m.creator, matrix.TypeMember, key(string(m.creator)), map[string]any{"membership": "join"})
	if m.r.IntN(5) > 0 {
		users := map[string]any{string(m.creator): 100}
		if m.version.PrivilegedCreators {
			users = map[string]any{}
		}
		m.add([]matrix.EventID{m.last()}, m.after[m.last()], m.creator, matrix.TypePowerLevels, key(""), map[string]any{"users": users})
	}
	m.add([]matrix.EventID{m.last()}, m.after[m.last()], m.creator, matrix.TypeJoinRules, key(""), map[string]any{"join_rule": "public"})
}

func key(s string) *string { return &s }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (m *room) last() matrix.EventID { return m.events[len(m.events)-1].ID() }

// level draws a power level: an integer, and in old room versions now and then a string.
func (m *room) level() any {
	n := pick(m.r, 0, 0, 1, 10, 50, 50, 99, 100, 101, -5)
	if !m.version.IntegerPowers && m.r.IntN(8) == 0 {
		return pick(m.r, fmt.Sprint(n), fmt.Sprintf("%04d", n), fmt.Sprintf(" %d ", n))
	}
	return n
}

// powerLevels draws the content of a power levels event; most of it is what is there, so that some are allowed.
func (m *room) powerLevels(state matrix.StateMap) map[string]any {
	content := map[string]any{}
	if old := m.byID[state[matrix.StateTuple{Type: matrix.TypePowerLevels}]]; old != nil {
		content = unmarshal(old.Content())
	}
	change := func(object map[string]any, name string) {
		if m.r.IntN(4) == 0 {
			delete(object, name)
		} else {
			object[name] = m.level()
		}
	}
	inner := func(name, entry string) {
		object, ok := content[name].(map[string]any)
		if !ok {
			object = map[string]any{}
		}
		change(object, entry)
		content[name] = object
	}
	for range 1 + m.r.IntN(3) {
		switch m.r.IntN(8) {
		case 0, 1:
			change(content, pick(m.r, "users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"))
		case 2:
			inner("events", pick(m.r, "m.room.name", "m.room.power_levels", "m.room.message", "m.room.join_rules"))
		case 3:
			inner("notifications", "room")
		default:
			inner("users", string(pick(m.r, m.users...)))
		}
	}
	return content
}

// step tries one random event after one or several of the latest ones.
func (m *room) step() {
	recent := m.events[max(0, len(m.events)-6):]
	prev := []matrix.EventID{pick(m.r, recent...).ID()}
	for m.r.IntN(3) == 0 && len(prev) < 3 {
		if id := pick(m.r, recent...).ID(); !slices.Contains(prev, id) {
			prev = append(prev, id)
		}
	}
	state := m.stateAfter(prev)
	sender, target := pick(m.r, m.users...), pick(m.r, m.users...)
	if m.r.IntN(3) == 0 {
		sender = m.creator // who mostly has power: otherwise little would be allowed
	}
	member := func(of matrix.UserID, membership string) {
		content := map[string]any{"membership": membership}
		if m.version.RestrictedJoins && membership == matrix.Join && m.r.IntN(3) == 0 {
			content["join_authorised_via_users_server"] = pick(m.r, m.users...)
		}
		m.add(prev, state, sender, matrix.TypeMember, key(string(of)), content)
	}
	switch m.r.IntN(23) {
	case 0, 1, 2, 3:
		member(sender, matrix.Join)
	case 4, 5:
		member(target, matrix.Invite)
	case 6, 7:
		member(target, matrix.Leave)
	case 8, 9:
		member(target, matrix.Ban)
	case 10:
		member(sender, matrix.Leave)
	case 11:
		member(pick(m.r, sender, sender, target), matrix.Knock)
	case 12, 13, 14:
		m.add(prev, state, sender, matrix.TypePowerLevels, key(""), m.powerLevels(state))
	case 15:
		rule := pick(m.r, "public", "invite", "public", "knock", "restricted", "knock_restricted", "private")
		m.add(prev, state, sender, matrix.TypeJoinRules, key(""), map[string]any{"join_rule": rule})
	case 16:
		m.add(prev, state, sender, matrix.TypeName, key(""), map[string]any{"name": fmt.Sprint(m.r.IntN(1000))})
	case 17:
		m.add(prev, state, sender, "org.example.own", key(string(target)), map[string]any{"n": m.r.IntN(1000)})
	case 18:
		m.add(prev, state, sender, matrix.TypeMessage, nil, map[string]any{"body": pick(m.r, "hi", "<é>\u2028", "\"\\\x01\x7f", "😀")})
	case 19:
		m.add(prev, state, sender, matrix.TypeThirdPartyInvite, key(pick(m.r, "token1", "token2")), m.thirdPartyKeys())
	case 20:
		m.add(prev, state, sender, matrix.TypeMember, key(string(target)), map[string]any{"membership": matrix.Invite, "third_party_invite": m.thirdPartyInvite(target)})
	case 21:
		m.redact(prev, state, sender)
	case 22:
		servers := []string{"a.example", "b.example", "c.example"}
		m.add(prev, state, sender, matrix.TypeAliases, pick(m.r, key(string(sender.Server())), key(pick(m.r, servers...)), nil), map[string]any{"aliases": []string{}})
	}
}

// thirdPartyKeys is the content of an m.room.third_party_invite: with the right key, among others or not, or without.
func (m *room) thirdPartyKeys() map[string]any {
	right := m.key.Public().String()
	content := map[string]any{"display_name": "x", "key_validity_url": "x", "public_key": pick(m.r, right, right, right[1:]+"A")}
	if m.r.IntN(3) == 0 {
		content["public_keys"] = []map[string]any{{"public_key": right[1:] + "A"}, {"public_key": right}}
	}
	return content
}

// thirdPartyInvite is a signed invite of the target, or one of another user, or spoiled.
func (m *room) thirdPartyInvite(target matrix.UserID) map[string]any {
	signed := map[string]any{"mxid": pick(m.r, target, target, target, m.users[0]), "token": pick(m.r, "token1", "token2")}
	switch m.r.IntN(8) {
	case 0:
		delete(signed, "token")
	case 1:
		delete(signed, "mxid")
	}
	b, err := matrix.SignJSON(marshal(signed), "magic.example", m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	signed = unmarshal(b)
	switch m.r.IntN(8) {
	case 0:
		signed["more"] = true // the signature is of something else
	case 1:
		return map[string]any{"display_name": "x"}
	}
	return map[string]any{"display_name": "x", "signed": signed}
}

// redact sends a redaction of some event; if it is allowed, the event may be redacted from now on.
func (m *room) redact(prev []matrix.EventID, state matrix.StateMap, sender matrix.UserID) {
	target := pick(m.r, m.events...)
	if m.send(&matrix.Builder{Sender: sender, Type: matrix.TypeRedaction, Content: []byte(`{}`), Redacts: target.ID(), PrevEvents: prev}, state) &&
		target != m.create && m.byID[target.ID()] == target {
		redacted := target.Redact()
		m.events[slices.Index(m.events, target)] = redacted
		m.byID[target.ID()] = redacted
		m.counted.redacted.Add(1)
	}
}

func (m *room) add(prev []matrix.EventID, state matrix.StateMap, sender matrix.UserID, typ string, stateKey *string, content map[string]any) {
	m.send(&matrix.Builder{Sender: sender, Type: typ, StateKey: stateKey, Content: marshal(content), PrevEvents: prev}, state)
}

// send builds an event after others, whose state it is given, and has it judged; false if it was refused.
func (m *room) send(b *matrix.Builder, state matrix.StateMap) bool {
	b.RoomID = m.id
	for _, t := range b.AuthKeys(m.version) {
		if id, ok := state[t]; ok {
			b.AuthEvents = append(b.AuthEvents, id)
		}
	}
	for _, p := range b.PrevEvents {
		b.Depth = max(b.Depth, m.byID[p].Depth()+1)
	}
	m.receive(b)
	e := m.build(b)
	lookup := func(typ, key string) *matrix.Event { return m.byID[state[matrix.StateTuple{Type: typ, StateKey: key}]] }
	err := matrix.Authorize(e, lookup)
	for _, o := range m.oracles {
		if o.tried != nil {
			o.tried(e, lookup, err)
		}
	}
	m.counted.events.Add(1)
	if err == nil {
		m.accept(e, state)
		return true
	}
	m.counted.refused.Add(1)
	if m.r.IntN(20) == 0 && m.byID[e.ID()] == nil {
		m.counted.rejected.Add(1)
		m.rejected[e.ID()] = true
		m.events, m.byID[e.ID()], m.after[e.ID()] = append(m.events, e), e, state
	}
	return false
}

// receive lets the event be judged by auth events that its sender chose wrongly now and then.
func (m *room) receive(b *matrix.Builder) {
	if m.r.IntN(4) != 0 || b.Type == matrix.TypeCreate {
		return
	}
	spoiled := *b
	spoiled.AuthEvents = slices.Clone(b.AuthEvents)
	for range m.r.IntN(3) {
		switch n := len(spoiled.AuthEvents); m.r.IntN(4) {
		case 0:
			if n > 0 {
				i := m.r.IntN(n)
				spoiled.AuthEvents = slices.Delete(spoiled.AuthEvents, i, i+1)
			}
		case 1:
			if n > 0 {
				spoiled.AuthEvents = append(spoiled.AuthEvents, pick(m.r, spoiled.AuthEvents...))
			}
		default: // another event of the room: an older one in the place of one, or one too many
			other := pick(m.r, m.events...)
			for i, id := range spoiled.AuthEvents {
				if other.IsState() && m.byID[id].Tuple() == other.Tuple() && m.r.IntN(4) > 0 {
					spoiled.AuthEvents[i], other = other.ID(), nil
					break
				}
			}
			if other != nil && m.r.IntN(3) == 0 {
				spoiled.AuthEvents = append(spoiled.AuthEvents, other.ID())
			}
		}
	}
	e := m.build(&spoiled)
	auth := make([]*matrix.Event, len(spoiled.AuthEvents))
	for i, id := range spoiled.AuthEvents {
		auth[i] = m.byID[id]
	}
	err := matrix.AuthorizeByAuthEvents(e, auth, m.create, func(id matrix.EventID) bool { return m.rejected[id] })
	m.counted.byAuthEvents.Add(1)
	if err != nil {
		m.counted.byAuthEventsRefused.Add(1)
	}
	for _, o := range m.oracles {
		if o.received != nil {
			o.received(e, auth, err)
		}
	}
}

func (m *room) build(b *matrix.Builder) *matrix.Event {
	m.clock += int64(m.r.IntN(3)) * 10
	b.Time = time.UnixMilli(m.clock - int64(m.r.IntN(4))*20)
	if m.version.EventIDInEvent {
		b.EventID = matrix.EventID(fmt.Sprintf("$%d-%d:%s", len(m.events), m.r.Uint64(), b.Sender.Server()))
		b.ReferenceHash = func(id matrix.EventID) [32]byte { return m.byID[id].ReferenceHash() }
	}
	e, err := b.Build(m.version, b.Sender.Server(), m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	if via := matrix.UserID(e.ContentString("join_authorised_via_users_server")); via != "" {
		e = e.WithSignature(via.Server(), m.key)
	}
	for _, o := range m.oracles {
		if o.built != nil {
			o.built(e)
		}
	}
	return e
}

func (m *room) accept(e *matrix.Event, before matrix.StateMap) {
	if m.byID[e.ID()] != nil {
		return
	}
	m.events = append(m.events, e)
	m.byID[e.ID()] = e
	after := matrix.StateMap{}
	for k, v := range before {
		after[k] = v
	}
	if e.IsState() {
		after[e.Tuple()] = e.ID()
	}
	m.after[e.ID()] = after
}

func (m *room) stateAfter(prev []matrix.EventID) matrix.StateMap {
	if len(prev) == 1 {
		return m.after[prev[0]]
	}
	var states []matrix.StateMap
	for _, p := range prev {
		states = append(states, m.after[p])
	}
	resolved, err := matrix.ResolveStates(m.version, states, m.load, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	m.counted.merges.Add(1)
	for _, state := range states[1:] {
		if !maps.Equal(states[0], state) {
			m.counted.conflicts.Add(1)
			break
		}
	}
	for _, o := range m.oracles {
		if o.merged != nil {
			o.merged(states, resolved)
		}
	}
	return resolved
}

func (m *room) load(ids []matrix.EventID) (events []*matrix.Event, err error) {
	for _, id := range ids {
		if e := m.byID[id]; e != nil {
			events = append(events, e)
		}
	}
	return events, nil
}

// chain is the auth chain of events, with them.
func (m *room) chain(ids []matrix.EventID) map[matrix.EventID]*matrix.Event {
	chain := map[matrix.EventID]*matrix.Event{}
	for len(ids) > 0 {
		id := ids[len(ids)-1]
		ids = ids[:len(ids)-1]
		if e := m.byID[id]; e != nil && chain[id] == nil {
			chain[id] = e
			ids = append(ids, e.AuthEvents()...)
		}
	}
	return chain
}

var allVersions = []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}
