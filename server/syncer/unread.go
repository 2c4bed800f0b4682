package syncer

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

const (
	// maxUnread is how many notifying events of one room are counted.
	maxUnread = 1000
	// unreadPast is how many events are looked at to count anew, after a restart.
	unreadPast = 100
	// threadHops is how many relations are followed to find an event's thread.
	threadHops = 3
)

// unread is what notified one user in one room and was not read. It has its own lock, so that many count at the same
// time; it is taken after Service.mu or alone.
type unread struct {
	sync.Mutex
	loaded bool
	upTo   int64 // counted up to here
	list   []unreadEvent
	// Up to where was read: all, and each thread. "" is the key of the main timeline.
	all     int64
	threads map[matrix.EventID]int64
	name    string // display name, for old push rules
	nameNum int64  // of the member event that has it
}

type unreadEvent struct {
	pos       int64
	thread    matrix.EventID // "" for the main timeline
	highlight bool
}

// read takes a receipt of the user. Service.mu is held.
func (u *unread) read(r storage.Receipt) {
	u.Lock()
	defer u.Unlock()
	if u.loaded {
		u.apply(r.Thread, r.EventPos)
	}
}

func (u *unread) apply(thread string, pos int64) {
	switch thread {
	case "":
		u.all = max(u.all, pos)
		u.list = slices.DeleteFunc(u.list, func(e unreadEvent) bool { return e.pos <= pos })
		return
	case mainThread:
		thread = ""
	}
	id := matrix.EventID(thread)
	u.threads[id] = max(u.threads[id], pos)
	u.list = slices.DeleteFunc(u.list, func(e unreadEvent) bool { return e.thread == id && e.pos <= pos })
}

// appendUnread writes ,"unread_notifications" and, if asked for, ,"unread_thread_notifications".
// Spec v1.19 client-server-api/#receiving-notifications
func (a *answer) appendUnread(ctx context.Context, b []byte, it *item, r *room.Room) ([]byte, error) {
	u := a.unreadOf(it)
	u.Lock()
	defer u.Unlock()
	if err := a.count(ctx, it, r, u); err != nil {
		return b, err
	}
	byThread := a.f.Room.Timeline.UnreadThreadNotifications
	var main push.Counts
	var threads map[matrix.EventID]push.Counts
	for _, e := range u.list {
		if e.pos > a.to.Pos {
			continue
		}
		result := push.Result{Notify: true, Highlight: e.highlight}
		if e.thread == "" || !byThread {
			main.Add(result)
			continue
		}
		if threads == nil {
			threads = map[matrix.EventID]push.Counts{}
		}
		c := threads[e.thread]
		c.Add(result)
		threads[e.thread] = c
	}
	b = comma(b)
	b = append(b, `"unread_notifications":`...)
	b = appendCounts(b, main)
	if len(threads) == 0 {
		return b, nil
	}
	b = append(b, `,"unread_thread_notifications":{`...)
	for id, c := range threads {
		b = comma(b)
		b = appendString(b, string(id))
		b = append(b, ':')
		b = appendCounts(b, c)
	}
	return append(b, '}'), nil
}

func appendCounts(b []byte, c push.Counts) []byte {
	b = append(b, `{"notification_count":`...)
	b = strconv.AppendInt(b, int64(c.Notifications), 10)
	b = append(b, `,"highlight_count":`...)
	b = strconv.AppendInt(b, int64(c.Highlights), 10)
	return append(b, '}')
}

func (a *answer) unreadOf(it *item) *unread {
	a.s.mu.RLock()
	u := it.ur.unread
	a.s.mu.RUnlock()
	if u != nil {
		return u
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if it.ur.unread == nil {
		it.ur.unread = &unread{}
	}
	return it.ur.unread
}

// count brings u up to the answer's position. u is locked.
func (a *answer) count(ctx context.Context, it *item, r *room.Room, u *unread) error {
	if u.loaded && u.upTo >= a.to.Pos {
		return nil
	}
	if u.loaded && u.upTo >= it.horizon && it.window != nil {
		for _, e := range stretch(it.window, u.upTo, a.to.Pos) {
			if err := a.countEntry(ctx, r, u, e); err != nil {
				return err
			}
		}
		u.upTo = a.to.Pos
		return nil
	}
	if !u.loaded {
		if err := a.loadUnread(ctx, it, u); err != nil {
			return err
		}
	}
	page, err := a.s.o.Rooms.Timeline(ctx, it.id, u.upTo, a.to.Pos, unreadPast)
	if err != nil {
		return err
	}
	for _, e := range page.Events {
		if it.past.Hides(e.Event, e.Num, e.Pos) {
			continue
		}
		if err := a.countEntry(ctx, r, u, &entry{pos: e.Pos, num: e.Num, ev: e.Event}); err != nil {
			return err
		}
	}
	u.upTo = a.to.Pos
	return nil
}

// loadUnread starts from what the database knows to have been read. A receipt that is stored meanwhile comes by the
// bell as well, and does no harm twice.
func (a *answer) loadUnread(ctx context.Context, it *item, u *unread) error {
	u.threads, u.list, u.all = map[matrix.EventID]int64{}, nil, 0
	list, err := a.s.o.DB.UserReceipts(ctx, a.r.User, it.id)
	if err != nil {
		return err
	}
	for _, r := range list {
		u.apply(r.Thread, r.EventPos)
	}
	u.upTo = max(u.all, it.pos) // nothing from before joining
	u.loaded = true
	return nil
}

// countEntry counts one event. u is locked.
func (a *answer) countEntry(ctx context.Context, r *room.Room, u *unread, e *entry) error {
	if e.pos <= u.all {
		return nil
	}
	if e.ev.Sender() == a.r.User {
		// Who writes has read so far.
		thread, err := e.threadOf(ctx, a.s)
		if err != nil {
			return err
		}
		if thread == "" {
			thread = mainThread
		}
		if !e.ev.IsState() {
			u.apply(string(thread), e.pos)
		}
		return nil
	}
	rules, err := a.s.o.Push.Compiled(ctx, a.r.User)
	if err != nil {
		return err
	}
	snapshot := r.Snapshot()
	name, err := a.displayName(ctx, u, snapshot)
	if err != nil {
		return err
	}
	result := e.evaluate(rules, name, snapshot)
	if !result.Notify {
		return nil
	}
	thread, err := e.threadOf(ctx, a.s)
	if err != nil {
		return err
	}
	if e.pos <= u.threads[thread] || a.ignored[e.ev.Sender()] {
		return nil
	}
	if len(u.list) >= maxUnread {
		u.list = slices.Delete(u.list, 0, 1)
	}
	u.list = append(u.list, unreadEvent{e.pos, thread, result.Highlight})
	return nil
}

// displayName is the reader's in the room.
func (a *answer) displayName(ctx context.Context, u *unread, snapshot *room.Snapshot) (string, error) {
	num := snapshot.Local[a.r.User]
	if num == 0 || num == u.nameNum {
		return u.name, nil
	}
	e, err := a.s.o.DB.Event(ctx, num)
	if err != nil {
		return "", err
	}
	u.name, u.nameNum = contentString(e.Event, "displayname"), num
	return u.name, nil
}

// evaluate holds the event against rules.
func (e *entry) evaluate(rules *push.Compiled, displayName string, snapshot *room.Snapshot) push.Result {
	p := &e.prepared
	p.Lock()
	defer p.Unlock()
	if p.event == nil {
		ev := push.Event{Type: e.ev.Type(), Sender: e.ev.Sender(), RoomID: e.ev.RoomID(), Content: e.ev.Content(), Full: e.ev.JSON()}
		if key, ok := e.ev.StateKey(); ok {
			ev.StateKey = &key
		}
		power, sender := snapshot.Power, e.ev.Sender()
		p.event = push.Prepare(ev, push.Room{
			Members:         snapshot.JoinedCount,
			SenderMayNotify: func(key string) bool { return power == nil || power.User(sender) >= power.Notification(key) },
		})
	}
	return rules.Evaluate(p.event, displayName)
}

// threadOf is the root of the thread that the event is in, "" for the main timeline.
func (e *entry) threadOf(ctx context.Context, s *Service) (matrix.EventID, error) {
	p := &e.prepared
	p.Lock()
	defer p.Unlock()
	if !p.done {
		thread, err := s.threadOf(ctx, e.ev, threadHops)
		if err != nil {
			return "", err
		}
		p.thread, p.done = thread, true
	}
	return p.thread, nil
}

// threadOf follows relations, at most hops of them, to an event that is in a thread. An event that we do not have ends
// the search. Spec v1.19 client-server-api/#threading
func (s *Service) threadOf(ctx context.Context, e *matrix.Event, hops int) (matrix.EventID, error) {
	for ; ; hops-- {
		var content struct {
			Relation struct {
				Type  string         `json:"rel_type"`
				Event matrix.EventID `json:"event_id"`
			} `json:"m.relates_to"`
		}
		// Whatever is not of this shape is no relation.
		if !hasRelation(e.Content()) || json.Unmarshal(e.Content(), &content) != nil || content.Relation.Event == "" {
			return "", nil
		}
		if content.Relation.Type == "m.thread" {
			return content.Relation.Event, nil
		}
		if hops == 0 {
			return "", nil
		}
		parent, err := s.o.DB.EventByID(ctx, content.Relation.Event)
		if isNotFound(err) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if parent.RoomID() != e.RoomID() {
			return "", nil
		}
		e = parent.Event
	}
}

// hasRelation is a cheap look at whether there may be a relation.
func hasRelation(content []byte) bool { return bytes.Contains(content, []byte("m.relates_to")) }

// UnreadRooms is how many rooms hold unread notifications of the user, as pushers put it on the app's badge.
func (s *Service) UnreadRooms(ctx context.Context, user matrix.UserID) (int, error) {
	a := &answer{s: s, r: &Request{User: user}, f: &Filter{}, initial: true}
	if err := s.catchUp(ctx); err != nil {
		return 0, err
	}
	if _, _, err := a.look(ctx); err != nil {
		return 0, err
	}
	var err error
	if a.ignored, err = s.o.Users.Ignored(ctx, user); err != nil {
		return 0, err
	}
	n := 0
	for i := range a.items {
		it := &a.items[i]
		if it.membership == matrix.Invite {
			n++
		}
		if it.membership != matrix.Join {
			continue
		}
		r, err := a.roomOf(ctx, it)
		if err != nil {
			return 0, err
		}
		if r == nil {
			continue
		}
		u := a.unreadOf(it)
		u.Lock()
		err = a.count(ctx, it, r, u)
		if len(u.list) > 0 {
			n++
		}
		u.Unlock()
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}
