package syncer

import (
	"context"
	"fmt"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// appendRooms writes ,"rooms":{…} unless there is nothing to write.
func (a *answer) appendRooms(ctx context.Context, b []byte) ([]byte, error) {
	start := len(b)
	b = append(b, `,"rooms":{`...)
	none := len(b)
	for _, section := range []struct {
		name        string
		memberships [2]string
		write       func(context.Context, []byte, *item) ([]byte, error)
	}{
		{"join", [2]string{matrix.Join}, a.appendJoined},
		{"invite", [2]string{matrix.Invite}, a.appendInvited},
		{"knock", [2]string{matrix.Knock}, a.appendKnocked},
		{"leave", [2]string{matrix.Leave, matrix.Ban}, a.appendLeft},
	} {
		before := len(b)
		if before > none {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, section.name...)
		b = append(b, `":{`...)
		first := len(b)
		for i := range a.items {
			it := &a.items[i]
			if it.membership != section.memberships[0] && it.membership != section.memberships[1] {
				continue
			}
			mark := len(b)
			if mark > first {
				b = append(b, ',')
			}
			b = appendString(b, string(it.id))
			b = append(b, `:{`...)
			empty := len(b)
			var err error
			if b, err = section.write(ctx, b, it); err != nil {
				return b, err
			}
			if len(b) == empty {
				b = b[:mark]
				continue
			}
			b = append(b, '}')
		}
		if len(b) == first {
			b = b[:before]
			continue
		}
		b = append(b, '}')
	}
	if len(b) == none {
		return b[:start], nil
	}
	return append(b, '}'), nil
}

// appendJoined writes what is new in a room that the user is joined to; nothing if the client has it all.
func (a *answer) appendJoined(ctx context.Context, b []byte, it *item) ([]byte, error) {
	r, err := a.roomOf(ctx, it)
	if err != nil || r == nil {
		return b, err
	}
	t, err := a.timeline(ctx, it)
	if err != nil {
		return b, err
	}
	start := len(b)
	if it.whole && !it.joinedThroughout && !a.initial {
		t.limited = true // whatever the client has of an earlier stay does not join up with this
	}
	b, stateful, err := a.appendState(ctx, b, it, r, &t)
	if err != nil {
		return b, err
	}
	something := stateful || it.whole || len(t.events) > 0 || t.limited
	b = a.appendTimeline(b, it, &t)
	mark := len(b)
	b = a.appendEphemeral(b, it)
	b = appendAccountEvents(b, a.account[it.id], &a.f.Room.AccountData)
	if !something && len(b) == mark && !it.receiptsOfMine(a) {
		return b[:start], nil
	}
	if it.whole || it.stateNew && a.newState(it, &t) {
		if b, err = a.appendSummary(ctx, b, it, r); err != nil {
			return b, err
		}
	}
	return a.appendUnread(ctx, b, it, r)
}

// timeline is what is shown of a room's timeline.
type timeline struct {
	events  []*entry
	limited bool
	// start is the position just before the first event, or the end of the stretch if there is none.
	start int64
	// plain: events are all events of the stretch, and each follows the one before it in the graph.
	plain bool
}

// timeline finds the events to show.
func (a *answer) timeline(ctx context.Context, it *item) (timeline, error) {
	t := timeline{start: it.upTo}
	if !it.timelineNew && !it.whole {
		t.plain = true
		return t, nil
	}
	r, err := a.roomOf(ctx, it)
	if err != nil || r == nil {
		return t, err
	}
	if it.past, err = a.s.o.Rooms.Past(ctx, r); err != nil {
		return t, err
	}
	from := a.from.Pos
	if it.whole && !it.joinedThroughout {
		from = 0
	}
	t, err = a.findTimeline(ctx, it, from)
	if it.past.GapAfter(from) { // something has gone that the client may not have seen
		t.limited, t.plain = true, false
	}
	return t, err
}

// findTimeline finds the events to show of those after from.
func (a *answer) findTimeline(ctx context.Context, it *item, from int64) (timeline, error) {
	f := &a.f.Room.Timeline
	t := timeline{start: it.upTo}
	limit := min(f.limit(), a.s.o.Config.MaxTimeline)
	if !f.wantsRoom(it.id) || limit == 0 || f.Types != nil && len(f.Types) == 0 {
		t.limited = it.timelineNew && limit == 0 && f.wantsRoom(it.id)
		return t, nil
	}
	if it.joinedThroughout && from >= it.horizon {
		if t, ok, err := a.windowTimeline(ctx, it, from, limit); ok || err != nil {
			return t, err
		}
	}
	return a.storedTimeline(ctx, it, from, limit)
}

// stretch is the part of the window with from < position <= to.
func stretch(window []*entry, from, to int64) []*entry {
	end := len(window)
	for end > 0 && window[end-1].pos > to {
		end--
	}
	begin := end
	for begin > 0 && window[begin-1].pos > from {
		begin--
	}
	return window[begin:end]
}

// windowTimeline takes the events from memory. ok is false if one of them must be read anew.
func (a *answer) windowTimeline(ctx context.Context, it *item, from int64, limit int) (t timeline, ok bool, err error) {
	events := stretch(it.window, from, it.upTo)
	t = timeline{start: it.upTo, plain: true}
	for i := len(events) - 1; i >= 0; i-- {
		gap, err := events[i].afterGap(ctx, a.s)
		if err != nil {
			return t, false, err
		}
		if gap {
			events, t.limited, t.plain = events[i:], true, false
			break
		}
	}
	f := &a.f.Room.Timeline
	picked := events
	if !f.all() || len(a.ignored) > 0 || !it.past.IsZero() {
		picked = make([]*entry, 0, len(events))
		for _, e := range events {
			if a.wants(f, e) && !it.past.Hides(e.ev, e.num, e.pos) {
				picked = append(picked, e)
			}
		}
		t.plain = t.plain && len(picked) == len(events)
	}
	if len(picked) > limit {
		picked = picked[len(picked)-limit:]
		t.limited, t.plain = true, false
	}
	for _, e := range picked {
		if e.stale || !e.straight { // of another branch: whether the user may see it is to be looked up
			return t, false, nil
		}
		t.plain = t.plain && e.linear
	}
	if len(picked) > 0 {
		t.start = picked[0].pos - 1
	}
	t.events = picked
	return t, true, nil
}

// wants reports whether the filter and the user let an event through.
func (a *answer) wants(f *EventFilter, e *entry) bool {
	if a.ignored[e.ev.Sender()] && !e.ev.IsState() {
		return false
	}
	return f.wants(e.ev.Type(), e.ev.Sender(), e.hasURL)
}

// maxScanned is how many events of a room are looked at for those that a filter lets through.
const maxScanned = 1000

// storedTimeline takes the events from the rooms and looks at each whether the user may see it.
func (a *answer) storedTimeline(ctx context.Context, it *item, from int64, limit int) (timeline, error) {
	f := &a.f.Room.Timeline
	t := timeline{start: it.upTo}
	var picked []*storage.Event
	to := it.upTo
	for scanned := 0; ; {
		page, err := a.s.o.Rooms.Timeline(ctx, it.id, from, to, limit)
		if err != nil {
			return t, err
		}
		events := page.Events
		if len(events) == 0 {
			break
		}
		if gap, err := a.gap(ctx, events, page.Limited); err != nil {
			return t, err
		} else if gap >= 0 {
			events, page.Limited, t.limited = events[gap:], false, true
		}
		to = events[0].Pos - 1
		scanned += len(events)
		if events, err = a.s.o.Rooms.VisibleTo(ctx, a.r.User, events); err != nil {
			return t, err
		}
		wanted := make([]*storage.Event, 0, len(events)+len(picked))
		for _, e := range events {
			if a.ignored[e.Sender()] && !e.IsState() || it.past.Hides(e.Event, e.Num, e.Pos) {
				continue
			}
			if f.all() || f.wants(e.Type(), e.Sender(), func() bool { return contentHasURL(e.Event) }) {
				wanted = append(wanted, e)
			}
		}
		picked = append(wanted, picked...)
		if len(picked) > limit {
			picked = picked[len(picked)-limit:]
			t.limited = true
			break
		}
		if !page.Limited {
			break
		}
		if len(picked) == limit || scanned >= maxScanned {
			t.limited = true
			break
		}
	}
	if len(picked) > 0 {
		t.start = picked[0].Pos - 1
	} else if t.limited {
		t.start = to
	}
	var err error
	t.events, err = a.entries(ctx, picked)
	return t, err
}

// gap finds the last of the events that follows something that this server does not have, -1 if there is none. What comes
// before it is not shown together with it. more says that there are earlier events than these.
func (a *answer) gap(ctx context.Context, events []*storage.Event, more bool) (int, error) {
	here := make(map[matrix.EventID]bool, len(events))
	var doubtful []int64
	for i, e := range events {
		for _, prev := range e.PrevEvents() {
			if !here[prev] && !(i == 0 && more) {
				doubtful = append(doubtful, e.Num)
				break
			}
		}
		here[e.ID()] = true
	}
	gaps, err := a.s.o.DB.AfterGaps(ctx, events[0].RoomNum, doubtful)
	if err != nil || len(gaps) == 0 {
		return -1, err
	}
	last := -1
	for i, e := range events {
		if gaps[e.Num] {
			last = i
		}
	}
	return last, nil
}

// appendTimeline writes ,"timeline":{…}, or nothing if there are no events and the client need not be told that.
func (a *answer) appendTimeline(b []byte, it *item, t *timeline) []byte {
	if len(t.events) == 0 && !t.limited && !it.whole && it.membership == matrix.Join {
		return b
	}
	b = comma(b)
	b = append(b, `"timeline":{"events":[`...)
	for i, e := range t.events {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.appendEvent(b, it, e)
	}
	b = append(b, `],"limited":`...)
	b = strconv.AppendBool(b, t.limited)
	b = append(b, `,"prev_batch":"s`...)
	b = strconv.AppendInt(b, t.start, 10)
	return append(b, `"}`...)
}

// comma separates what follows from what stands before in the same object.
func comma(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return b
}

func (a *answer) appendEvent(b []byte, it *item, e *entry) []byte {
	switch {
	case a.f.EventFormat == "federation":
		return append(b, e.ev.JSON()...)
	case len(a.f.EventFields) > 0:
		return e.ev.AppendClient(b, &matrix.ClientOptions{
			OmitRoomID: true, Fields: matrix.ParseEventFields(a.f.EventFields),
			HasAge: true, AgeMS: a.nowMS - e.ev.OriginServerTS(),
		})
	case e.read:
		return append(b, e.client...)
	}
	membership := ""
	if it.joinedThroughout {
		membership = matrix.Join
	}
	if e.ev.Is("m.room.member", string(a.r.User)) {
		membership = e.ev.Membership()
	}
	return e.appendTo(b, a.r.User, a.r.Device, a.nowMS, membership)
}

// appendInvited writes the stripped state of a room that the user is invited to.
func (a *answer) appendInvited(ctx context.Context, b []byte, it *item) ([]byte, error) {
	return a.appendStripped(ctx, b, it, "invite_state")
}

// appendKnocked writes the stripped state of a room that the user knocks at.
func (a *answer) appendKnocked(ctx context.Context, b []byte, it *item) ([]byte, error) {
	return a.appendStripped(ctx, b, it, "knock_state")
}

// strippedTypes is the state that those who are not in a room may know of it.
// Spec v1.19 client-server-api/#stripped-state
var strippedTypes = []string{
	"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules", "m.room.canonical_alias", "m.room.encryption",
}

func (a *answer) appendStripped(ctx context.Context, b []byte, it *item, key string) ([]byte, error) {
	member, err := a.memberEvent(ctx, it)
	if err != nil {
		return b, err
	}
	if member != nil && it.membership == matrix.Invite && a.ignored[member.Sender()] {
		return b, nil
	}
	b = append(b, '"')
	b = append(b, key...)
	b = append(b, `":{"events":[`...)
	if stripped := it.stripped; len(stripped) > 2 {
		b = append(b, stripped[1:len(stripped)-1]...)
		if member != nil && !hasMember(stripped, a.r.User) {
			b = append(b, ',')
			b = member.AppendStripped(b)
		}
		return append(b, `]}`...), nil
	}
	first := len(b)
	if r, err := a.roomOf(ctx, it); err != nil {
		return b, err
	} else if r != nil && r.Snapshot().Joined() {
		keys := make([]matrix.StateTuple, 0, len(strippedTypes)+1)
		for _, typ := range strippedTypes {
			keys = append(keys, matrix.StateTuple{Type: typ})
		}
		if member != nil && member.Sender() != a.r.User {
			keys = append(keys, matrix.StateTuple{Type: "m.room.member", StateKey: string(member.Sender())})
		}
		root := r.Snapshot().Root
		for _, k := range keys {
			e, err := a.s.o.Rooms.StateAt(ctx, it.id, root, k.Type, k.StateKey)
			if err != nil {
				return b, err
			}
			if e == nil {
				continue
			}
			if len(b) > first {
				b = append(b, ',')
			}
			b = e.AppendStripped(b)
			if k.Type == "m.room.create" { // as in what other servers' invites give, so that clients can tell how old the room is
				b = fmt.Appendf(b[:len(b)-1], `,"origin_server_ts":%d}`, e.OriginServerTS())
			}
		}
	}
	if member != nil {
		if len(b) > first {
			b = append(b, ',')
		}
		b = member.AppendStripped(b)
	}
	return append(b, `]}`...), nil
}

// memberEvent is the event that made the user's membership what it is; nil if it is not here.
func (a *answer) memberEvent(ctx context.Context, it *item) (*storage.Event, error) {
	e, err := a.s.o.DB.Event(ctx, it.num)
	if isNotFound(err) {
		return nil, nil
	}
	return e, err
}

// appendLeft writes what the user may still see of a room that they are out of: up to their leaving.
func (a *answer) appendLeft(ctx context.Context, b []byte, it *item) ([]byte, error) {
	r, err := a.roomOf(ctx, it)
	if err != nil {
		return b, err
	}
	member, err := a.memberEvent(ctx, it)
	if err != nil {
		return b, err
	}
	was := ""
	if r != nil {
		if was, err = a.membershipAt(ctx, it.id, it.pos-1); err != nil {
			return b, err
		}
	}
	t := timeline{start: it.upTo}
	if was != matrix.Join {
		// Nothing but the own event, which says that the invite, the knock or the hope is over.
		if member != nil && a.f.Room.Timeline.wants(member.Type(), member.Sender(), nil) && a.f.Room.Timeline.limit() > 0 {
			if t.events, err = a.entries(ctx, []*storage.Event{member}); err != nil {
				return b, err
			}
			t.start = it.pos - 1
		}
		b = append(b, `"state":{"events":[]}`...)
		return a.appendTimeline(b, it, &t), nil
	}
	if !it.whole {
		before, err := a.membershipAt(ctx, it.id, a.from.Pos)
		if err != nil {
			return b, err
		}
		it.whole = before != matrix.Join
	}
	it.stateNew, it.timelineNew = true, true
	if t, err = a.timeline(ctx, it); err != nil {
		return b, err
	}
	b, _, err = a.appendState(ctx, b, it, r, &t)
	if err != nil {
		return b, err
	}
	b = a.appendTimeline(b, it, &t)
	return appendAccountEvents(b, a.account[it.id], &a.f.Room.AccountData), nil
}

// membershipAt is the user's membership at a stream position, "" for none.
func (a *answer) membershipAt(ctx context.Context, id matrix.RoomID, pos int64) (string, error) {
	root, err := a.s.o.Rooms.RootAt(ctx, id, pos)
	if err != nil || root.IsZero() {
		return "", err
	}
	e, err := a.s.o.Rooms.StateAt(ctx, id, root, "m.room.member", string(a.r.User))
	if err != nil || e == nil {
		return "", err
	}
	return e.Membership(), nil
}

// heroes are the members after whom a room without a name is called.
type heroes struct{ present, gone []matrix.UserID }

// maxHeroes is how many are named.
const maxHeroes = 5

// appendSummary writes ,"summary":{…}.
func (a *answer) appendSummary(ctx context.Context, b []byte, it *item, r *room.Room) ([]byte, error) {
	snapshot := r.Snapshot()
	b = comma(b)
	b = append(b, `"summary":{"m.joined_member_count":`...)
	b = strconv.AppendInt(b, int64(snapshot.JoinedCount), 10)
	b = append(b, `,"m.invited_member_count":`...)
	b = strconv.AppendInt(b, int64(snapshot.InvitedCount), 10)
	list, err := a.heroes(ctx, it, r, snapshot)
	if err != nil {
		return b, err
	}
	for i, u := range list {
		if i == 0 {
			b = append(b, `,"m.heroes":[`...)
		} else {
			b = append(b, ',')
		}
		b = appendString(b, string(u))
	}
	if len(list) > 0 {
		b = append(b, ']')
	}
	return append(b, '}'), nil
}

// heroes lists after whom the room may be called; none if it has a name.
func (a *answer) heroes(ctx context.Context, it *item, r *room.Room, snapshot *room.Snapshot) ([]matrix.UserID, error) {
	for typ, field := range map[string]string{"m.room.name": "name", "m.room.canonical_alias": "alias"} {
		e, err := a.s.o.Rooms.StateAt(ctx, it.id, snapshot.Root, typ, "")
		if err != nil {
			return nil, err
		}
		if e != nil && contentString(e.Event, field) != "" {
			return nil, nil
		}
	}
	h := it.rc.heroes.Load()
	if h == nil {
		present, gone, err := a.s.o.DB.Heroes(ctx, r.Num, maxHeroes+1)
		if err != nil {
			return nil, err
		}
		h = &heroes{present, gone}
		it.rc.heroes.Store(h)
	}
	list := h.others(h.present, a.r.User)
	if len(list) == 0 {
		list = h.others(h.gone, a.r.User)
	}
	return list, nil
}

func (h *heroes) others(all []matrix.UserID, me matrix.UserID) []matrix.UserID {
	var list []matrix.UserID
	for _, u := range all {
		if u != me && len(list) < maxHeroes {
			list = append(list, u)
		}
	}
	return list
}
