package syncer

import (
	"context"
	"encoding/json"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// appendState writes "state" or "state_after" and reports whether there was any.
//
// Let B be the state that the client knows, S the state at the start of the timeline shown, and E the state at its end.
// state_after is what E has and B lacks. state is what S has and B lacks; a client gets from there to E by the timeline,
// so what the timeline does not show of the way from S to E (a filter hides it, or state resolution brought it about) is
// added.
func (a *answer) appendState(ctx context.Context, b []byte, it *item, r *room.Room, t *timeline) ([]byte, bool, error) {
	after := a.r.UseStateAfter || a.r.UnstableStateAfter
	f := &a.f.Room.State
	var events []*matrix.Event
	var err error
	switch {
	case !f.wantsRoom(it.id) || f.Types != nil && len(f.Types) == 0:
	case !it.whole && (!it.stateNew || t.plain):
		if events, err = a.plainState(ctx, it, t, after); err != nil {
			return b, false, err
		}
	default:
		if events, err = a.stateBetween(ctx, it, t, after); err != nil {
			return b, false, err
		}
	}
	start := len(b)
	b = comma(b)
	switch {
	case a.r.UseStateAfter:
		b = append(b, `"state_after":{"events":[`...)
	case a.r.UnstableStateAfter:
		b = append(b, `"org.matrix.msc4222.state_after":{"events":[`...)
	default:
		b = append(b, `"state":{"events":[`...)
	}
	first := len(b)
	for _, e := range events {
		if !f.all() && !f.wants(e.Type(), e.Sender(), func() bool { return contentHasURL(e) }) {
			continue
		}
		if len(b) > first {
			b = append(b, ',')
		}
		b = a.appendStateEvent(b, e)
	}
	some := len(b) > first
	if !some && !it.whole && !after && it.membership == matrix.Join {
		return b[:start], false, nil
	}
	return append(b, `]}`...), some, nil
}

func (a *answer) appendStateEvent(b []byte, e *matrix.Event) []byte {
	if a.f.EventFormat == "federation" {
		return append(b, e.JSON()...)
	}
	o := matrix.ClientOptions{OmitRoomID: true, HasAge: true, AgeMS: a.nowMS - e.OriginServerTS()}
	if len(a.f.EventFields) > 0 {
		o.Fields = matrix.ParseEventFields(a.f.EventFields)
	}
	return e.AppendClient(b, &o)
}

// plainState is the state for a timeline that shows all there was: nothing, or for state_after the state events in it; and
// the senders' member events, with lazy loading.
func (a *answer) plainState(ctx context.Context, it *item, t *timeline, after bool) ([]*matrix.Event, error) {
	m := stateSet{}
	if after && it.stateNew {
		for _, e := range t.events {
			if e.ev.IsState() {
				m[e.ev.Tuple()] = e.ev
			}
		}
	}
	if a.f.Room.State.LazyLoadMembers {
		if err := a.addSenders(ctx, it, t, m, after); err != nil {
			return nil, err
		}
	}
	return m.list(), nil
}

// stateSet is state by its keys.
type stateSet map[matrix.StateTuple]*matrix.Event

func (m stateSet) add(events []*storage.Event) {
	for _, e := range events {
		m[e.Tuple()] = e.Event
	}
}

func (m stateSet) list() []*matrix.Event {
	if len(m) == 0 {
		return nil
	}
	list := make([]*matrix.Event, 0, len(m))
	for _, e := range m {
		list = append(list, e)
	}
	return list
}

// stateBetween works out the state from what the room's state was at the positions.
func (a *answer) stateBetween(ctx context.Context, it *item, t *timeline, after bool) ([]*matrix.Event, error) {
	rooms := a.s.o.Rooms
	lazy := a.f.Room.State.LazyLoadMembers
	end, err := rooms.RootAt(ctx, it.id, it.upTo)
	if err != nil {
		return nil, err
	}
	target := end
	if !after && t.start < it.upTo {
		if target, err = rooms.RootAt(ctx, it.id, t.start); err != nil {
			return nil, err
		}
	}
	m := stateSet{}
	if it.whole {
		part := storage.AllState
		if lazy {
			part = storage.OtherState
		}
		events, err := rooms.StateEvents(ctx, it.id, target, part)
		if err != nil {
			return nil, err
		}
		m.add(events)
	} else {
		known, err := rooms.RootAt(ctx, it.id, a.from.Pos)
		if err != nil {
			return nil, err
		}
		events, err := rooms.StateDelta(ctx, it.id, known, target)
		if err != nil {
			return nil, err
		}
		m.add(events)
	}
	if target != end {
		shown := make(map[matrix.EventID]bool, len(t.events))
		for _, e := range t.events {
			shown[e.ev.ID()] = true
		}
		events, err := rooms.StateDelta(ctx, it.id, target, end)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if !shown[e.ID()] {
				m[e.Tuple()] = e.Event
			}
		}
	}
	if lazy {
		if err := a.addSenders(ctx, it, t, m, after); err != nil {
			return nil, err
		}
		if it.whole {
			if err := a.addMembers(ctx, it, target, m, t, after); err != nil {
				return nil, err
			}
		}
	}
	return m.list(), nil
}

// addSenders adds the member events of those whose events are shown, unless the client has them.
// Spec v1.19 client-server-api/#lazy-loading-room-members
func (a *answer) addSenders(ctx context.Context, it *item, t *timeline, m stateSet, after bool) error {
	var missing []matrix.UserID
	for i, e := range t.events {
		sender := e.ev.Sender()
		if i > 0 && t.events[i-1].ev.Sender() == sender {
			continue
		}
		if m[matrix.StateTuple{Type: "m.room.member", StateKey: string(sender)}] == nil && !contains(missing, sender) && !a.hasMember(it, sender) {
			missing = append(missing, sender)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	pos := t.start
	if after {
		pos = it.upTo
	}
	root, err := a.s.o.Rooms.RootAt(ctx, it.id, pos)
	if err != nil {
		return err
	}
	if err := a.addMemberEvents(ctx, it, root, missing, m); err != nil {
		return err
	}
	return a.addClaimed(ctx, it, t, missing, m)
}

// addMembers adds, to the whole state of a room, the user's own member event and those of the heroes.
func (a *answer) addMembers(ctx context.Context, it *item, root storage.StateRoot, m stateSet, t *timeline, after bool) error {
	users := []matrix.UserID{a.r.User}
	if it.membership == matrix.Join {
		r, err := a.roomOf(ctx, it)
		if err != nil || r == nil {
			return err
		}
		heroes, err := a.heroes(ctx, it, r, r.Snapshot())
		if err != nil {
			return err
		}
		users = append(users, heroes...)
	}
	if !after {
		// Who came within the timeline is in it.
		shown := users[:0]
		for _, u := range users {
			if !t.hasMember(u) {
				shown = append(shown, u)
			}
		}
		users = shown
	}
	return a.addMemberEvents(ctx, it, root, users, m)
}

func (t *timeline) hasMember(u matrix.UserID) bool {
	for _, e := range t.events {
		if e.ev.Is("m.room.member", string(u)) {
			return true
		}
	}
	return false
}

func (a *answer) addMemberEvents(ctx context.Context, it *item, root storage.StateRoot, users []matrix.UserID, m stateSet) error {
	for _, u := range users {
		key := matrix.StateTuple{Type: "m.room.member", StateKey: string(u)}
		if m[key] != nil {
			continue
		}
		e, err := a.s.o.Rooms.StateAt(ctx, it.id, root, key.Type, key.StateKey)
		if err != nil {
			return err
		}
		if e != nil {
			m[key] = e.Event
			a.sentMember(it, u)
		}
	}
	return nil
}

// sentMembers remembers which member events lazy loading has sent to the devices of one user for one room.
type sentMembers struct {
	sync.Mutex
	// at is the position of the answer in which an event was sent: a client that comes with a token at or after that
	// has it, one that repeats an older token may not.
	at map[matrix.DeviceID]map[matrix.UserID]int64
}

// maxSentMembers bounds what is remembered for one device and room.
const maxSentMembers = 5000

func (a *answer) hasMember(it *item, u matrix.UserID) bool {
	if a.f.Room.State.IncludeRedundantMembers || a.initial || it.whole {
		return false
	}
	sent := &it.ur.sent
	sent.Lock()
	defer sent.Unlock()
	pos, ok := sent.at[a.r.Device][u]
	return ok && pos <= a.since.Pos
}

func (a *answer) sentMember(it *item, u matrix.UserID) {
	sent := &it.ur.sent
	sent.Lock()
	defer sent.Unlock()
	users := sent.at[a.r.Device]
	if users == nil || len(users) >= maxSentMembers {
		users = map[matrix.UserID]int64{}
		if sent.at == nil {
			sent.at = map[matrix.DeviceID]map[matrix.UserID]int64{}
		}
		sent.at[a.r.Device] = users
	}
	if pos, ok := users[u]; !ok || pos > a.to.Pos || pos > a.since.Pos {
		users[u] = a.to.Pos
	}
}

// newState reports whether member or name events are among what is new, so that the summary may have changed.
func (a *answer) newState(it *item, t *timeline) bool {
	if !t.plain {
		return true
	}
	for _, e := range t.events {
		if e.ev.IsState() {
			return true
		}
	}
	return false
}

// news lists the member events among what is new in the window.
func (it *item) news(a *answer) []*entry {
	var members []*entry
	for _, e := range stretch(it.window, a.from.Pos, it.upTo) {
		if e.ev.Type() == "m.room.member" {
			members = append(members, e)
		}
	}
	return members
}

func contains[T comparable](list []T, x T) bool {
	for _, y := range list {
		if x == y {
			return true
		}
	}
	return false
}

// hasMember reports whether stripped state has the user's member event.
func hasMember(stripped []byte, u matrix.UserID) bool {
	var events []struct {
		Type     string  `json:"type"`
		StateKey *string `json:"state_key"`
	}
	if json.Unmarshal(stripped, &events) != nil {
		return false
	}
	for _, e := range events {
		if e.Type == "m.room.member" && e.StateKey != nil && *e.StateKey == string(u) {
			return true
		}
	}
	return false
}

// contentString is a string in the content of an event; "" if it is not there.
func contentString(e *matrix.Event, field string) string {
	var content map[string]json.RawMessage
	var s string
	if json.Unmarshal(e.Content(), &content) != nil || json.Unmarshal(content[field], &s) != nil {
		return ""
	}
	return s
}
