package room

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// staged are nodes and events that are not in the database yet.
type staged struct {
	nodes  storage.StateNodes
	events []*storage.Event // few; byNum and byID find them when they are many
	nums   map[int64]int
	ids    map[matrix.EventID]int
}

// fewStaged is how many events are looked through without maps.
const fewStaged = 8

// put adds an event or puts it in place of the one with the same number.
func (f *staged) put(e *storage.Event) {
	i := f.index(e.Num)
	if i < 0 {
		i = len(f.events)
		f.events = append(f.events, nil)
	}
	f.events[i] = e
	switch {
	case len(f.events) <= fewStaged:
	case f.nums == nil:
		f.nums, f.ids = make(map[int64]int, 64), make(map[matrix.EventID]int, 64)
		for i, e := range f.events {
			f.nums[e.Num], f.ids[e.ID()] = i, i
		}
	default:
		f.nums[e.Num], f.ids[e.ID()] = i, i
	}
}

func (f *staged) index(num int64) int {
	if f.nums != nil {
		if i, ok := f.nums[num]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(f.events, func(e *storage.Event) bool { return e.Num == num })
}

// byNum is nil for what is not staged.
func (f *staged) byNum(num int64) *storage.Event {
	if f == nil {
		return nil
	}
	if i := f.index(num); i >= 0 {
		return f.events[i]
	}
	return nil
}

// byID is nil for what is not staged.
func (f *staged) byID(id matrix.EventID) *storage.Event {
	if f == nil {
		return nil
	}
	if f.ids != nil {
		if i, ok := f.ids[id]; ok {
			return f.events[i]
		}
		return nil
	}
	for _, e := range f.events {
		if e.ID() == id {
			return e
		}
	}
	return nil
}

// update is a room as it shall be, for functions given to [Service.update]. It is valid only while the function runs.
type update struct {
	ctx   context.Context
	s     *Service
	room  *Room
	snap  Snapshot // as of all that was added so far; its window is that of before
	moved int      // how often the room has moved on under this function

	fresh *staged
	add   storage.RoomAppend
	lives []*storage.Event // those of add.Events and add.Updates that enter the timeline
	// straight says of each of lives whether the state before it was the current one.
	straight []bool
	dirty    bool
	sent     []sentTxn
	// handed is the event by which we come into the room through another server.
	handed matrix.EventID
	// asked are events of ours that the function has built before, and about which the policy server has been asked meanwhile.
	asked []*matrix.Event
	// whole is set while what happened in a partial room is judged again in view of its whole state.
	whole bool
	// resetWindow has the recent past read from the database again: it is not what it was.
	resetWindow bool
	built       builtEvent
	// absent are events that were found not to be stored, which nobody else changes: see foresee.
	absent map[matrix.EventID]bool
}

// builtEvent is the newest event that build made, with the state that it looked up for it: enough to authorize the event.
type builtEvent struct {
	event *matrix.Event
	root  storage.StateRoot
	state []*matrix.Event
}

func newUpdate(ctx context.Context, s *Service, r *Room, moved int) *update {
	u := &update{ctx: ctx, s: s, room: r, snap: *r.Snapshot(), moved: moved}
	u.fresh = &staged{}
	u.add.OldRoot = u.snap.Root
	u.add.Create = !u.snap.stored
	u.add.Nodes = &u.fresh.nodes
	return u
}

// entry is an event to be added to a room.
type entry struct {
	event *matrix.Event
	// before is the state before the event, made of events that are stored or staged. Not looked at for outliers.
	before storage.StateRoot
	// flags: 0 for an event that enters the timeline.
	flags storage.EventFlags
	// history marks an event from before what we have (backfill): it gets no position and does not become part of the tip.
	history bool
	device  matrix.DeviceID
	txnID   string
	// built says that the event was made by [update.build] just now, so that it cannot be here yet.
	built bool
	// told are the states after prev_events that are not here; before is made of them.
	told []storage.StateRoot
}

// append adds an event to the room. Whether it is allowed has been decided by the caller. An event that is here as an outlier is
// taken over; one that is here otherwise is returned as it is.
//
// An entry without flags and history becomes part of the tip in place of its prev_events, and the current state becomes the
// resolution of the states after the events of the tip.
func (u *update) append(in entry) (*storage.Event, error) {
	var old *storage.Event
	var err error
	if !in.built {
		if old, err = u.known(in.event.ID()); err != nil {
			return nil, err
		}
	}
	if old != nil && (old.Flags&storage.Outlier == 0 || in.flags&storage.Outlier != 0) {
		return old, nil
	}
	e := &storage.Event{Event: in.event, RoomNum: u.room.Num, Flags: in.flags, Device: in.device, TxnID: in.txnID}
	if in.flags&storage.Outlier == 0 {
		e.Before = in.before
	}
	live := in.flags == 0 && !in.history
	if live {
		e.Pos = storage.NewPos
	}
	if old != nil {
		e.Num, e.RedactedBy = old.Num, old.RedactedBy
		if e.RedactedBy != "" {
			e.Event = old.Event
		}
	} else if e.Num, err = u.s.o.DB.EventNums(u.ctx, 1); err != nil {
		return nil, err
	}
	if !e.Hidden() && !in.built {
		if err := u.gaps(e); err != nil {
			return nil, err
		}
	}
	u.stage(e, old == nil)
	if u.snap.partial != nil && !in.history && in.flags&storage.Outlier == 0 {
		u.add.Partial.Events = append(u.add.Partial.Events, storage.PartialEvent{Num: e.Num, Told: in.told})
	}
	if err := u.rescue(slices.Clone(e.AuthEvents())); err != nil {
		return nil, err
	}
	if live {
		straight := e.Before == u.snap.Root
		if err := u.advance(e); err != nil {
			return nil, err
		}
		u.lives, u.straight = append(u.lives, e), append(u.straight, straight)
	}
	if e.Flags&storage.Outlier == 0 && !live {
		if _, err := u.after(e); err != nil { // so that its nodes are stored, as RootAfter promises
			return nil, err
		}
	}
	if old == nil {
		u.add.Roots = append(u.add.Roots, u.snap.Root)
	}
	if e.Hidden() {
		return e, nil
	}
	u.relate(e)
	return e, u.redactions(e)
}

// restore takes back what was added since before was copied from u.
func (u *update) restore(before update) {
	// Nodes that nothing names do no harm.
	fresh := u.fresh
	*u = before
	fresh.events, fresh.nums, fresh.ids = nil, nil, nil
	for _, list := range [][]*storage.Event{u.add.Events, u.add.Updates} {
		for _, e := range list {
			fresh.put(e)
		}
	}
}

func (u *update) stage(e *storage.Event, isNew bool) {
	if isNew {
		u.add.Events = append(u.add.Events, e)
	} else {
		u.add.Updates = append(u.add.Updates, e)
	}
	u.fresh.put(e)
	u.dirty = true
}

// known finds an event that is stored or staged; nil if there is none.
func (u *update) known(id matrix.EventID) (*storage.Event, error) {
	if e := u.fresh.byID(id); e != nil {
		return e, nil
	}
	if !u.snap.stored && u.room.Version.RoomIDIsCreateID || u.absent[id] {
		return nil, nil
	}
	e, err := u.s.o.DB.EventByID(u.ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err == nil && e.RoomNum != u.room.Num {
		err = fmt.Errorf("event %s belongs to another room", id)
	}
	return e, err
}

// foresee looks with one query for events that are about to be added, so that known need not ask for each of them. What is not here is not
// here until this update has been written: an event of a room is only added by who has the room to itself, or by another process, and then
// this update fails and is made anew.
func (u *update) foresee(events []*matrix.Event) error {
	ids := make([]matrix.EventID, len(events))
	for i, e := range events {
		ids[i] = e.ID()
	}
	found, err := u.s.o.DB.EventsByID(u.ctx, ids)
	if err != nil {
		return err
	}
	absent := make(map[matrix.EventID]bool, len(ids))
	maps.Copy(absent, u.absent)
	for _, id := range ids {
		absent[id] = true
	}
	for _, e := range found {
		delete(absent, e.ID())
	}
	u.absent = absent
	return nil
}

// advance makes e part of the tip and moves the current state on.
func (u *update) advance(e *storage.Event) error {
	tip, err := u.nextTip(u.snap.Tip, e)
	if err != nil {
		return err
	}
	root, err := u.rootOf(tip)
	if err != nil {
		return err
	}
	simple := len(tip) == 1 && e.Before == u.snap.Root
	u.snap.Tip = tip
	u.snap.Depth = 0
	for _, t := range tip {
		u.snap.Depth = max(u.snap.Depth, t.Depth())
	}
	return u.setRoot(root, e, simple)
}

// nextTip is the tip that comes of another by adding e.
func (u *update) nextTip(tip []*storage.Event, e *storage.Event) ([]*storage.Event, error) {
	prev, err := u.behindRefused(tip, e.PrevEvents())
	if err != nil {
		return nil, err
	}
	next := make([]*storage.Event, 0, len(tip)+1)
	for _, t := range tip {
		if !slices.Contains(prev, t.ID()) {
			next = append(next, t)
		}
	}
	return append(next, e), nil
}

// rootOf is the state at a tip: the resolution of the states after its events.
func (u *update) rootOf(tip []*storage.Event) (root storage.StateRoot, err error) {
	if len(tip) == 1 {
		return u.after(tip[0])
	}
	roots := make([]storage.StateRoot, len(tip))
	for i, t := range tip {
		if roots[i], err = u.after(t); err != nil {
			return root, err
		}
	}
	return u.s.resolve(u.ctx, u.room, roots, u.fresh)
}

// setRoot makes root the current state. cause is the event by which it came about, or nil; with simple, the two states differ in cause alone.
func (u *update) setRoot(root storage.StateRoot, cause *storage.Event, simple bool) error {
	old := u.snap.Root
	if root == old {
		return nil
	}
	u.dirty = true
	u.snap.Root = root
	if old.Others != root.Others {
		if err := u.s.decode(u.ctx, &u.snap, u.fresh); err != nil {
			return err
		}
	}
	if old.Members == root.Members {
		return nil
	}
	if simple {
		previous, err := u.s.stateEvent(u.ctx, u.room.Num, old, matrix.TypeMember, stateKey(cause.Event), u.fresh)
		if err != nil {
			return err
		}
		u.member(previous, cause, cause)
		return nil
	}
	diffs, err := u.s.o.DB.DiffState(u.ctx, u.room.Num, old, root, storage.MembersState, &u.fresh.nodes)
	if err != nil {
		return err
	}
	for _, d := range diffs {
		a, b, err := u.pair(d)
		if err != nil {
			return err
		}
		u.member(a, b, cause)
	}
	return nil
}

func (u *update) pair(d storage.StateDiff) (a, b *storage.Event, err error) {
	if d.A != 0 {
		if a, err = u.s.event(u.ctx, d.A, u.fresh); err != nil {
			return nil, nil, err
		}
	}
	if d.B != 0 {
		b, err = u.s.event(u.ctx, d.B, u.fresh)
	}
	return a, b, err
}

// member notes that the member event of a user has changed from a to b, either of which may be nil.
func (u *update) member(a, b, cause *storage.Event) {
	var user matrix.UserID
	was, is := matrix.Leave, matrix.Leave
	change := storage.MemberChange{Event: cause}
	if a != nil {
		user, was = matrix.UserID(stateKey(a.Event)), a.Membership()
	}
	if b != nil {
		user, is = matrix.UserID(stateKey(b.Event)), b.Membership()
		change.Num = b.Num
	}
	change.Room, change.RoomNum, change.User, change.Membership.Membership = u.room.ID, u.room.Num, user, is
	u.add.Members = append(u.add.Members, change)
	server := user.Server()
	if delta := count(is == matrix.Join) - count(was == matrix.Join); delta != 0 {
		u.snap.JoinedCount += delta
		u.snap.Servers = maps.Clone(u.snap.Servers)
		if u.snap.Servers[server] += delta; u.snap.Servers[server] <= 0 {
			delete(u.snap.Servers, server)
		}
	}
	u.snap.InvitedCount += count(is == matrix.Invite) - count(was == matrix.Invite)
	if server != u.s.o.ServerName {
		return
	}
	u.snap.Local = maps.Clone(u.snap.Local)
	if is == matrix.Join {
		u.snap.Local[user] = b.Num
	} else {
		delete(u.snap.Local, user)
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// setMembership notes a membership that does not follow from the current state: an invite or a knock of one of our users in a room that
// this server is not in, with its stripped state, or the end of it. member is stored or staged.
func (u *update) setMembership(user matrix.UserID, member *storage.Event, stripped json.RawMessage) {
	change := storage.MemberChange{Event: member}
	change.Room, change.RoomNum, change.User = u.room.ID, u.room.Num, user
	change.Membership.Membership, change.Num, change.Stripped = member.Membership(), member.Num, stripped
	u.add.Members = append(u.add.Members, change)
	u.dirty = true
}

// setFlags sets or clears flags of the room.
func (u *update) setFlags(set, clear storage.RoomFlags) {
	flags := u.snap.row.Flags&^clear | set
	if flags != u.snap.row.Flags {
		u.snap.row.Flags = flags
		u.snap.PartialState = flags&storage.PartialState != 0
		u.dirty = true
	}
}

// relate notes the relation of an event to another.
func (u *update) relate(e *storage.Event) {
	if r, ok := relationOf(e.Event); ok {
		u.add.Relations = append(u.add.Relations, storage.Relation{Parent: r.EventID, Num: e.Num, RelType: r.RelType,
			Type: e.Type(), Sender: e.Sender(), Depth: e.Depth()})
	}
}

// relation is what m.relates_to says.
type relation struct {
	RelType string         `json:"rel_type"`
	EventID matrix.EventID `json:"event_id"`
	Key     string         `json:"key"`
}

var relatesTo = []byte(`"m.relates_to"`)

func mayRelate(content []byte) bool { return bytes.Contains(content, relatesTo) }

func relationOf(e *matrix.Event) (relation, bool) {
	if !mayRelate(e.Content()) {
		return relation{}, false
	}
	var content struct {
		RelatesTo json.RawMessage `json:"m.relates_to"`
	}
	var r relation
	if json.Unmarshal(e.Content(), &content) != nil || json.Unmarshal(content.RelatesTo, &r) != nil {
		return relation{}, false
	}
	return r, r.RelType != "" && r.EventID != "" && len(r.RelType) <= 255 && len(r.EventID) <= 255
}

// gaps notes which prev_events of e are not here, and that e itself is not missing any more. e is not part of the tip yet.
func (u *update) gaps(e *storage.Event) error {
	if u.snap.row.Flags&storage.HasMissing != 0 {
		u.add.Found = append(u.add.Found, e.ID())
	}
	prev := e.PrevEvents()
	here := 0
	for _, t := range u.snap.Tip {
		here += count(slices.Contains(prev, t.ID()))
	}
	if here == len(prev) {
		return nil
	}
	for _, id := range prev {
		p, err := u.known(id)
		if err != nil {
			return err
		}
		if p == nil || p.Flags&storage.Outlier != 0 {
			u.add.Missing = append(u.add.Missing, storage.MissingPrev{ID: id, Num: e.Num, Depth: e.Depth()})
			u.setFlags(storage.HasMissing, 0)
		}
	}
	return nil
}

// after is the state after an event that is not an outlier.
func (u *update) after(e *storage.Event) (storage.StateRoot, error) {
	return u.s.after(u.ctx, e, u.fresh)
}

// commit writes what was added.
func (u *update) commit() error {
	if open := u.snap.JoinRule == matrix.JoinRulePublic || u.snap.HistoryVisibility == visibilityWorldReadable; open && u.snap.Create != nil {
		u.setFlags(storage.OpenRoom, 0)
	} else {
		u.setFlags(0, storage.OpenRoom)
	}
	if u.snap.retention != (retention{}) {
		u.snap.row.Flags |= storage.AsksRetention
	}
	row := &u.add.Room
	*row = u.snap.row
	row.Root, row.Depth, row.Tip = u.snap.Root, u.snap.Depth, make([]int64, len(u.snap.Tip))
	for i, t := range u.snap.Tip {
		row.Tip[i] = t.Num
	}
	u.snap.stored = true
	clients := make([][]byte, len(u.lives))
	for i, e := range u.lives {
		var err error
		if clients[i], err = u.s.encode(u.ctx, e, u.fresh); err != nil {
			return err
		}
	}
	err := u.s.write(&pending{append: &u.add, done: make(chan error, 1), apply: u.apply, ring: func() storage.Change { return u.change(clients) }}, u.moved > 0)
	if err != nil {
		return err
	}
	for _, t := range u.sent {
		u.room.sent.add(t)
	}
	return nil
}

// change is what the bell tells.
func (u *update) change(clients [][]byte) storage.Change {
	var c storage.Change
	if u.add.Purge != nil {
		c.Purged = []matrix.RoomID{u.room.ID}
	}
	onlyHere := len(u.snap.Servers) == 1 && u.snap.Servers[u.s.o.ServerName] > 0 && !u.snap.PartialState
	c.Events = make([]storage.CommittedEvent, 0, len(u.lives))
	for i, e := range u.lives {
		c.Events = append(c.Events, storage.CommittedEvent{Pos: e.Pos, Num: e.Num, Room: u.room.ID, Event: e.Event,
			Client: clients[i], TxnID: e.TxnID, Device: e.Device, Straight: u.straight[i], Handed: e.ID() == u.handed,
			OnlyHere: onlyHere && e.Type() != matrix.TypeMember})
	}
	slices.SortStableFunc(c.Events, func(a, b storage.CommittedEvent) int { return cmp.Compare(a.Pos, b.Pos) })
	for i := range u.add.Members {
		m := &u.add.Members[i]
		told := slices.IndexFunc(c.Events, func(e storage.CommittedEvent) bool { return e.Num == m.Num && m.Num != 0 })
		if told >= 0 {
			c.Events[told].Stands = true
		} else if m.User.Server() == u.s.o.ServerName || m.Event != nil {
			c.Wakes = append(c.Wakes, storage.Wake{Topic: storage.TopicMembership, Pos: m.Pos, User: m.User, Room: u.room.ID})
		}
	}
	if u.add.Partial.Done { // to some the room is shown only now, and all may have come to share it with others
		for user := range u.snap.Local {
			c.Wakes = append(c.Wakes, storage.Wake{Topic: storage.TopicMembership, Pos: u.add.Room.Pos, User: user, Room: u.room.ID})
		}
	}
	if u.add.Partial.Done || u.add.Partial.Begin != nil {
		c.Wakes = append(c.Wakes, storage.Wake{Topic: storage.TopicPartial, Pos: u.add.Room.Pos, Room: u.room.ID})
	}
	return c
}

// apply makes the snapshot new. It runs on the writer's goroutine.
func (u *update) apply() {
	snap := &u.snap
	snap.row = u.add.Room
	snap.Pos = snap.row.Pos
	var roots []rootChange
	known := u.add.OldRoot
	for i, root := range u.add.Roots {
		if pos := u.add.Events[i].Pos; pos > 0 && root != known {
			roots = append(roots, rootChange{pos, root})
			known = root
		}
	}
	if known != snap.Root {
		roots = append(roots, rootChange{snap.Pos, snap.Root})
	}
	slices.SortStableFunc(u.lives, func(a, b *storage.Event) int { return comparePos(a, b.Pos) })
	w := u.room.Snapshot().window
	if u.add.Create {
		w = window{}
	}
	w = w.add(u.lives, roots, u.s.o.Config.Window)
	if u.add.Purge != nil {
		w = window{from: snap.Pos, rootsFrom: snap.Pos, rootAtStart: snap.Root}
		u.s.related.clear()
	}
	for _, e := range u.add.Updates {
		w = w.replace(e)
	}
	if u.resetWindow {
		w = window{from: snap.Pos, rootsFrom: snap.Pos, rootAtStart: snap.Root}
	}
	if u.add.Partial.Done {
		snap.WholePos = snap.Pos
	}
	snap.window = w
	final := *snap
	u.room.replace(&final)
	u.s.changeUsers(u.add.Members)
	u.s.related.commit(&u.add, u.lives)
}
