package syncer

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// appendRoom writes what is new in a room, and reports whether anything is.
func (l *sliding) appendRoom(ctx context.Context, b []byte, c *candidate, config slidingConfig) ([]byte, bool, error) {
	was, sent := l.base.rooms[c.id]
	a := l.answer // what is new depends on what was sent of this room
	a.from = Token{Pos: was.upTo}
	it := &c.item
	it.whole = !sent
	it.joinedThroughout = sent && c.pos <= was.upTo
	expanded := sent && config.TimelineLimit > was.config.TimelineLimit
	required := sent && slices.ContainsFunc(config.RequiredState, func(r [2]string) bool { return !slices.Contains(was.config.RequiredState, r) })
	l.s.mu.RLock()
	it.timelineNew = c.rc.pos > was.upTo
	it.stateNew = c.rc.statePos > was.upTo
	receipts := c.rc.receiptPos > was.upTo
	l.s.mu.RUnlock()
	moved := sent && c.pos > was.upTo
	if sent && !it.timelineNew && !moved && !expanded && !required && !receipts {
		return b, false, nil
	}
	l.sent[c.id] = sentRoom{upTo: l.to.Pos, config: config}
	r, err := l.roomOf(ctx, it)
	if err != nil {
		return b, false, err
	}
	b = append(b, '{')
	if it.membership != matrix.Join || r == nil {
		if sent && !moved {
			return b, false, nil
		}
		b, err = l.appendOutside(ctx, b, &a, it)
		return b, true, err
	}
	if moved || config.everyMember() && r.Snapshot().WholePos > was.upTo { // the members have been fetched meanwhile
		it.whole = true
		sent = false
	}
	f := &Filter{}
	f.Room.Timeline.Limit = &config.TimelineLimit
	a.f = f
	if expanded {
		it.whole, it.joinedThroughout = true, false // the timeline from the end on, as long as is asked for
	}
	t, err := a.timeline(ctx, it)
	if err != nil {
		return b, false, err
	}
	if sent && len(t.events) == 0 && !t.limited && !it.stateNew && !expanded && !required && !receipts {
		return b, false, nil
	}
	return l.appendInside(ctx, b, &a, c, r, &t, config, slidingChange{first: !sent, expanded: expanded, required: required})
}

// slidingChange says why a room is written.
type slidingChange struct{ first, expanded, required bool }

// appendInside writes a room that the user is joined to.
func (l *sliding) appendInside(ctx context.Context, b []byte, a *answer, c *candidate, r *room.Room, t *timeline, config slidingConfig, why slidingChange) ([]byte, bool, error) {
	it, snapshot := &c.item, r.Snapshot()
	if why.first {
		b = append(b, `"initial":true`...)
	}
	if why.expanded {
		b = append(comma(b), `"unstable_expanded_timeline":true`...)
	}
	b, err := l.appendNames(ctx, b, it, r, snapshot)
	if err != nil {
		return b, false, err
	}
	state, err := l.requiredState(ctx, a, it, t, config, why.first || why.required)
	if err != nil {
		return b, false, err
	}
	b = append(comma(b), `"required_state":[`...)
	for i, e := range state {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.appendStateEvent(b, e)
	}
	b = append(b, `],"timeline":[`...)
	live := 0
	for i, e := range t.events {
		if i > 0 {
			b = append(b, ',')
		}
		if e.pos > l.base.token.Pos {
			live++
		}
		b = a.appendEvent(b, it, e)
	}
	if why.first && l.initial {
		live = 0
	}
	b = append(b, `],"prev_batch":"s`...)
	b = strconv.AppendInt(b, t.start, 10)
	b = append(b, `","limited":`...)
	b = strconv.AppendBool(b, t.limited)
	b = append(b, `,"num_live":`...)
	b = strconv.AppendInt(b, int64(live), 10)
	b = append(b, `,"joined_count":`...)
	b = strconv.AppendInt(b, int64(snapshot.JoinedCount), 10)
	b = append(b, `,"invited_count":`...)
	b = strconv.AppendInt(b, int64(snapshot.InvitedCount), 10)
	u := a.unreadOf(it)
	u.Lock()
	err = a.count(ctx, it, r, u)
	notifications, highlights := len(u.list), 0
	for _, e := range u.list {
		if e.highlight {
			highlights++
		}
	}
	u.Unlock()
	b = append(b, `,"notification_count":`...)
	b = strconv.AppendInt(b, int64(notifications), 10)
	b = append(b, `,"highlight_count":`...)
	b = strconv.AppendInt(b, int64(highlights), 10)
	b = append(b, `,"bump_stamp":`...)
	b = strconv.AppendInt(b, c.bump, 10)
	b = append(b, `,"is_dm":`...)
	b = strconv.AppendBool(b, l.direct[it.id])
	return append(b, '}'), true, err
}

// appendNames writes name, avatar and heroes.
func (l *sliding) appendNames(ctx context.Context, b []byte, it *item, r *room.Room, snapshot *room.Snapshot) ([]byte, error) {
	for _, v := range []struct{ key, typ, field string }{{"name", "m.room.name", "name"}, {"avatar", "m.room.avatar", "url"}} {
		value, err := l.stateString(ctx, it.id, snapshot, v.typ, v.field)
		if err != nil {
			return b, err
		}
		if value != "" {
			b = append(comma(b), '"')
			b = append(b, v.key...)
			b = append(b, `":`...)
			b = appendString(b, value)
		}
	}
	list, err := l.heroes(ctx, it, r, snapshot)
	if err != nil || len(list) == 0 {
		return b, err
	}
	b = append(comma(b), `"heroes":[`...)
	for i, u := range list {
		e, err := l.s.o.Rooms.StateAt(ctx, it.id, snapshot.Root, "m.room.member", string(u))
		if err != nil {
			return b, err
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"user_id":`...)
		b = appendString(b, string(u))
		if e != nil {
			for _, v := range []struct{ key, field string }{{"displayname", "displayname"}, {"avatar_url", "avatar_url"}} {
				if value := contentString(e.Event, v.field); value != "" {
					b = append(b, `,"`...)
					b = append(b, v.key...)
					b = append(b, `":`...)
					b = appendString(b, value)
				}
			}
		}
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

// appendOutside writes a room that the user is invited to, knocks at or has left.
func (l *sliding) appendOutside(ctx context.Context, b []byte, a *answer, it *item) ([]byte, error) {
	b = append(b, `"initial":true`...)
	if it.membership == matrix.Invite || it.membership == matrix.Knock {
		var wrapped struct {
			State struct {
				Events json.RawMessage `json:"events"`
			} `json:"invite_state"`
		}
		raw, err := a.appendStripped(ctx, []byte{'{'}, it, "invite_state")
		if err != nil {
			return b, err
		}
		if err := json.Unmarshal(append(raw, '}'), &wrapped); err != nil {
			return b, err
		}
		if len(wrapped.State.Events) > 0 {
			b = append(b, `,"invite_state":`...)
			b = append(b, wrapped.State.Events...)
		}
	} else if member, err := l.memberEvent(ctx, it); err != nil {
		return b, err
	} else if member != nil {
		b = append(b, `,"required_state":[`...)
		b = a.appendStateEvent(b, member.Event)
		b = append(b, ']')
	}
	b = append(b, `,"bump_stamp":`...)
	b = strconv.AppendInt(b, it.pos, 10)
	return append(b, '}'), nil
}

// requiredState picks the state that the client asked for: all of it, or what is new.
func (l *sliding) requiredState(ctx context.Context, a *answer, it *item, t *timeline, config slidingConfig, all bool) ([]*matrix.Event, error) {
	root, err := l.s.o.Rooms.RootAt(ctx, it.id, it.upTo)
	if err != nil {
		return nil, err
	}
	lazy := false
	var members []matrix.UserID
	for _, r := range config.RequiredState {
		if r[0] != "m.room.member" && r[0] != "*" {
			continue
		}
		switch r[1] {
		case "$LAZY":
			lazy = true
		case "$ME":
			members = append(members, l.r.User)
		case "*":
		default:
			if r[0] == "m.room.member" {
				members = append(members, matrix.UserID(r[1]))
			}
		}
	}
	m := stateSet{}
	if all {
		part := storage.OtherState
		if config.everyMember() {
			part = storage.AllState
		}
		events, err := l.s.o.Rooms.StateEvents(ctx, it.id, root, part)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if config.requires(e.Event, l.r.User) {
				m[e.Tuple()] = e.Event
			}
		}
		if err := l.addMemberEvents(ctx, it, root, members, m); err != nil {
			return nil, err
		}
	} else {
		before, err := l.s.o.Rooms.RootAt(ctx, it.id, a.from.Pos)
		if err != nil {
			return nil, err
		}
		events, err := l.s.o.Rooms.StateDelta(ctx, it.id, before, root)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if config.requires(e.Event, l.r.User) {
				m[e.Tuple()] = e.Event
			}
		}
	}
	if lazy {
		if err := a.addSenders(ctx, it, t, m, true); err != nil {
			return nil, err
		}
	}
	return m.list(), nil
}

// everyMember reports whether the client asked for all members.
func (c *slidingConfig) everyMember() bool {
	return slices.ContainsFunc(c.RequiredState, func(r [2]string) bool {
		return r[1] == "*" && (r[0] == matrix.TypeMember || r[0] == "*")
	})
}

// requires reports whether the client asked for a state event. Members that are loaded lazily are not among these.
func (c *slidingConfig) requires(e *matrix.Event, me matrix.UserID) bool {
	key, _ := e.StateKey()
	for _, r := range c.RequiredState {
		if !wildcard(r[0], e.Type()) {
			continue
		}
		if r[1] == "$ME" && key == string(me) || wildcard(r[1], key) {
			return true
		}
	}
	return false
}

// appendExtensions writes ,"extensions":{…} and reports whether there is anything new in them.
func (l *sliding) appendExtensions(ctx context.Context, b []byte, all []candidate, shown map[matrix.RoomID]bool) ([]byte, bool, error) {
	ext := &l.body.Extensions
	some := false
	b = append(b, `,"extensions":{`...)
	if ext.ToDevice.Enabled {
		var err error
		if b, some, err = l.appendToDevice(ctx, b); err != nil {
			return b, false, err
		}
	}
	if ext.E2EE.Enabled {
		if err := l.gatherDevices(ctx); err != nil {
			return b, false, err
		}
		some = some || l.keysNews || len(l.changed) > 0 || len(l.left) > 0
		b = append(comma(b), `"e2ee":{`...)
		inner := l.appendDeviceLists(nil)
		inner, err := l.appendKeyCounts(ctx, inner)
		if err != nil {
			return b, false, err
		}
		b = append(b, inner[1:]...) // each part begins with a comma
		b = append(b, '}')
	}
	if ext.AccountData.Enabled {
		var news bool
		b, news = l.appendSlidingAccount(ctx, comma(b), shown)
		some = some || news
	}
	if ext.Receipts.Enabled {
		var news bool
		var err error
		if b, news, err = l.appendSlidingReceipts(ctx, comma(b), all, shown); err != nil {
			return b, false, err
		}
		some = some || news
	}
	if ext.Typing.Enabled {
		b = append(comma(b), `"typing":{"rooms":{`...)
		for i := range all {
			c := &all[i]
			if _, known := l.sent[c.id]; known && c.membership == matrix.Join && (c.typingNew || shown[c.id] && len(c.typing) > 0) {
				b = comma(b)
				b = appendString(b, string(c.id))
				b = appendTyping(append(b, ':'), c.typing)
				some = true
			}
		}
		b = append(b, `}}`...)
	}
	return append(b, '}'), some, nil
}

func (l *sliding) appendToDevice(ctx context.Context, b []byte) ([]byte, bool, error) {
	var since int64
	if token := l.body.Extensions.ToDevice.Since; token != "" {
		var err error
		if since, err = strconv.ParseInt(token, 10, 64); err != nil || since < 0 {
			return b, false, matrix.InvalidParam("since of to_device is not one that this server gave out")
		}
	}
	limit := l.body.Extensions.ToDevice.Limit
	if limit <= 0 || limit > maxToDevice {
		limit = maxToDevice
	}
	msgs, err := l.s.o.Keys.ToDevice(ctx, l.r.User, l.r.Device, since, l.to.Pos, limit)
	if err != nil {
		return b, false, err
	}
	next := l.to.Pos
	events := make([]json.RawMessage, len(msgs))
	for i, m := range msgs {
		events[i] = m.Event
		if len(msgs) == limit {
			next = m.Pos
		}
	}
	b = append(b, `"to_device":{"next_batch":"`...)
	b = strconv.AppendInt(b, next, 10)
	b = append(b, `","events":[`...)
	b = appendRaw(b, events)
	return append(b, `]}`...), len(msgs) > 0, nil
}

func (l *sliding) appendSlidingAccount(ctx context.Context, b []byte, shown map[matrix.RoomID]bool) ([]byte, bool) {
	since := l.base.token.Pos
	news := false
	pick := func(room matrix.RoomID, whole bool) []storage.AccountData {
		var list []storage.AccountData
		for _, d := range l.account[room] {
			if whole || d.Pos > since {
				list = append(list, d)
			}
		}
		return list
	}
	write := func(list []storage.AccountData) {
		b = append(b, '[')
		for i, d := range list {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"type":`...)
			b = appendString(b, d.Type)
			b = append(b, `,"content":`...)
			b = append(b, d.Content...)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	global := pick("", l.initial)
	if l.initial || slices.ContainsFunc(global, func(d storage.AccountData) bool { return d.Type == pushRules }) {
		if content, err := l.s.o.Push.Rules(ctx, l.r.User); err == nil {
			global = slices.DeleteFunc(global, func(d storage.AccountData) bool { return d.Type == pushRules })
			global = append(global, storage.AccountData{Type: pushRules, Content: content})
		}
	}
	news = len(global) > 0
	b = append(b, `"account_data":{"global":`...)
	write(global)
	b = append(b, `,"rooms":{`...)
	for id := range l.account {
		_, known := l.sent[id]
		if id == "" || !known {
			continue
		}
		_, before := l.base.rooms[id]
		list := pick(id, !before)
		if len(list) == 0 {
			continue
		}
		news = true
		b = comma(b)
		b = appendString(b, string(id))
		b = append(b, ':')
		write(list)
	}
	return append(b, `}}`...), news
}

func (l *sliding) appendSlidingReceipts(ctx context.Context, b []byte, all []candidate, shown map[matrix.RoomID]bool) ([]byte, bool, error) {
	var fresh, known []matrix.RoomID
	for i := range all {
		c := &all[i]
		if _, ok := l.sent[c.id]; !ok || c.membership != matrix.Join {
			continue
		}
		if _, before := l.base.rooms[c.id]; !before {
			fresh = append(fresh, c.id)
			continue
		}
		l.s.mu.RLock()
		moved := c.rc.receiptPos > l.base.token.Pos
		l.s.mu.RUnlock()
		if moved {
			known = append(known, c.id)
		}
	}
	list, err := l.s.o.DB.ReceiptsBetween(ctx, l.r.User, fresh, 0, l.to.Pos)
	if err != nil {
		return b, false, err
	}
	newer, err := l.s.o.DB.ReceiptsBetween(ctx, l.r.User, known, l.base.token.Pos, l.to.Pos)
	if err != nil {
		return b, false, err
	}
	byRoom := map[matrix.RoomID][]storage.Receipt{}
	for _, r := range slices.Concat(list, newer) {
		byRoom[r.Room] = append(byRoom[r.Room], r)
	}
	b = append(b, `"receipts":{"rooms":{`...)
	some := false
	for id, receipts := range byRoom {
		// There is room for one event only: unthreaded receipts win over threaded ones for the same event.
		slices.SortStableFunc(receipts, func(a, b storage.Receipt) int { return len(a.Thread) - len(b.Thread) })
		batch, _ := splitReceipts(receipts)
		b = comma(b)
		b = appendString(b, string(id))
		b = appendReceiptEvent(append(b, ':'), batch)
		some = true
	}
	return append(b, `}}`...), some, nil
}
