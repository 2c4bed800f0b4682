package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// notifier tells people's phones of new events: it takes what enters the rooms, holds it against the push rules of those
// who have pushers, and queues it for their gateways. Up to where it has come is noted now and then, so that a restart
// loses nothing; what is told twice after a crash, gateways recognise by the event's ID.
type notifier struct {
	h    *house
	stop func()
	wake chan struct{}

	mu    sync.Mutex // guards what follows; held for a moment only, on the writer's goroutine too
	rooms map[matrix.RoomID]bool
	all   bool // too much to remember: all rooms
	read  map[matrix.UserID]bool
	heard bool  // transcripts have come
	none  int64 // the newest position at which nobody had a pusher: there is nothing to tell up to it

	held []held // in the order in which they are to be told; of run alone
}

const (
	notifiedFact  = "notified_position"
	noteEvery     = time.Minute
	maxDirty      = 10000     // rooms or readers that are remembered
	notifyAtOnce  = 100       // newest events of a room that are told after a pause
	tooOldToTell  = time.Hour // older events are not told after a restart
	notifyTimeout = 30 * time.Second
)

func newNotifier(h *house) *notifier {
	n := &notifier{h: h, wake: make(chan struct{}, 1), rooms: map[matrix.RoomID]bool{}, read: map[matrix.UserID]bool{}}
	n.stop = h.db.Listen(n.hear)
	return n
}

func (n *notifier) hear(c storage.Commit) {
	none := n.h.push.KnownNone()
	n.mu.Lock()
	defer n.mu.Unlock()
	if none {
		n.none = c.Position
		return
	}
	for i := range c.Changes {
		change := &c.Changes[i]
		n.all = n.all || change.Foreign
		for j := range change.Events {
			n.rooms[change.Events[j].Room] = true
		}
		for _, w := range change.Wakes {
			n.heard = n.heard || w.Topic == storage.TopicTranscript
			if w.Topic == storage.TopicReceipt && n.h.users.IsLocal(w.User) && len(n.read) < maxDirty {
				n.read[w.User] = true
			}
		}
	}
	if len(n.rooms) > maxDirty {
		n.all, n.rooms = true, map[matrix.RoomID]bool{}
	}
	if n.all || n.heard || len(n.rooms)+len(n.read) > 0 {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

// take empties the notes.
func (n *notifier) take() (rooms, read []string, all bool, none int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.rooms {
		rooms = append(rooms, string(id))
	}
	for id := range n.read {
		read = append(read, string(id))
	}
	all = n.all
	clear(n.rooms)
	clear(n.read)
	n.all, n.heard = false, false
	return rooms, read, all, n.none
}

// run ends with ctx.
func (n *notifier) run(ctx context.Context) error {
	defer n.stop()
	from, err := n.start(ctx)
	if err != nil {
		return err
	}
	noted, notedAt, fresh := from, time.Now(), false
	for {
		rooms, read, all, none := n.take()
		from = max(from, none)
		to := n.h.db.Position()
		any, err := n.h.push.Any(ctx)
		if err == nil && any {
			err = n.tell(ctx, rooms, all || !fresh, from, to)
			err = errors.Join(err, n.release(ctx), n.tellRead(ctx, read))
		}
		if err != nil && ctx.Err() == nil {
			n.h.log.Error("notify", "err", err)
		}
		from, fresh = to, true
		if told := n.toldUpTo(from); any && told > noted && time.Since(notedAt) >= noteEvery {
			n.note(ctx, told)
			noted, notedAt = told, time.Now()
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if told := n.toldUpTo(from); any && told > noted {
				n.note(last, told)
			}
			return nil
		case <-n.wake:
		case <-n.nextRelease():
		}
	}
}

// start finds out up to where everything has been told.
func (n *notifier) start(ctx context.Context) (int64, error) {
	text, err := n.h.db.Fact(ctx, notifiedFact)
	if errors.Is(err, storage.ErrNotFound) {
		return n.h.db.Position(), nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func (n *notifier) note(ctx context.Context, pos int64) {
	if err := n.h.db.SetFact(ctx, notifiedFact, strconv.FormatInt(pos, 10)); err != nil {
		n.h.log.Error("note up to where was notified", "err", err)
	}
}

// tell notifies of what entered the rooms, or all rooms, between two positions.
func (n *notifier) tell(ctx context.Context, rooms []string, all bool, from, to int64) error {
	if all {
		changed, err := n.h.db.RoomsChangedSince(ctx, from)
		if err != nil {
			return err
		}
		rooms = rooms[:0]
		for _, id := range changed {
			rooms = append(rooms, string(id))
		}
	}
	var errs []error
	for _, id := range rooms {
		if err := n.tellRoom(ctx, matrix.RoomID(id), from, to, all); err != nil {
			errs = append(errs, fmt.Errorf("room %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (n *notifier) tellRoom(ctx context.Context, id matrix.RoomID, from, to int64, late bool) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	r, err := n.h.rooms.Room(ctx, id)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return nil
	}
	if err != nil {
		return err
	}
	snapshot := r.Snapshot()
	people, err := n.reachable(ctx, snapshot)
	if err != nil {
		return err
	}
	page, err := n.h.rooms.Timeline(ctx, id, from, to, notifyAtOnce)
	if err != nil {
		return err
	}
	for _, e := range page.Events {
		if late && time.Since(e.Time()) > tooOldToTell {
			continue
		}
		if len(people) > 0 && !late {
			if held, err := n.hold(ctx, id, e); err != nil {
				return err
			} else if held {
				continue
			}
		}
		if err := n.tellEvent(ctx, id, snapshot, people, e); err != nil {
			return err
		}
	}
	return nil
}

// reachable are the people in the room who have pushers.
func (n *notifier) reachable(ctx context.Context, snapshot *room.Snapshot) (people []matrix.UserID, err error) {
	for user := range snapshot.Local {
		has, err := n.h.push.HasPushers(ctx, user)
		if err != nil {
			return nil, err
		}
		if has {
			people = append(people, user)
		}
	}
	return people, nil
}

func (n *notifier) tellEvent(ctx context.Context, id matrix.RoomID, snapshot *room.Snapshot, people []matrix.UserID, e *storage.Event) error {
	event := push.Event{Type: e.Type(), Sender: e.Sender(), RoomID: id, Content: e.Content(), Full: e.JSON()}
	if key, ok := e.StateKey(); ok {
		event.StateKey = &key
		// Who is invited is not in the room yet.
		if target := matrix.UserID(key); e.Type() == "m.room.member" && e.Membership() == matrix.Invite && n.h.users.IsLocal(target) {
			people = append(people[:len(people):len(people)], target)
		}
	}
	if len(people) == 0 {
		return nil
	}
	words, err := n.words(ctx, e)
	if err != nil {
		return err
	}
	sender := e.Sender()
	prepared := push.Prepare(event, push.Room{
		Members: snapshot.JoinedCount,
		SenderMayNotify: func(key string) bool {
			return snapshot.Power == nil || snapshot.Power.User(sender) >= snapshot.Power.Notification(key)
		},
	})
	for _, user := range people {
		if err := n.tellOne(ctx, told{id, snapshot, prepared, words, e}, user); err != nil {
			return err
		}
	}
	return nil
}

// told is an event made ready to be held against people's rules.
type told struct {
	room     matrix.RoomID
	snapshot *room.Snapshot
	prepared *push.Prepared
	words    json.RawMessage // what is said in it; nil if that is not known
	event    *storage.Event
}

func (n *notifier) tellOne(ctx context.Context, t told, user matrix.UserID) error {
	e := t.event
	rules, err := n.h.push.Compiled(ctx, user)
	if err != nil {
		return err
	}
	ignored, err := n.h.users.Ignored(ctx, user)
	if err != nil || ignored[e.Sender()] {
		return err
	}
	name, _, err := n.h.users.DisplayNameAndAvatar(ctx, user)
	if err != nil {
		return nil // an account that is gone
	}
	result := rules.Evaluate(t.prepared, name)
	if !result.Notify {
		return nil
	}
	unread, err := n.h.sync.UnreadRooms(ctx, user)
	if err != nil {
		return err
	}
	content, err := n.withWords(ctx, user, e.Content(), t.words)
	if err != nil {
		return err
	}
	key, _ := e.StateKey()
	notification := push.Notification{User: user, RoomID: t.room, EventID: e.ID(), Type: e.Type(), Sender: e.Sender(), Content: content,
		Result: result, Unread: max(1, unread), IsTarget: e.Type() == "m.room.member" && key == string(user)}
	if notification.SenderName, err = n.stateText(ctx, t.room, t.snapshot, "m.room.member", string(e.Sender()), "displayname"); err != nil {
		return err
	}
	if notification.RoomName, err = n.stateText(ctx, t.room, t.snapshot, "m.room.name", "", "name"); err != nil {
		return err
	}
	return n.h.push.Notify(ctx, notification)
}

func (n *notifier) stateText(ctx context.Context, id matrix.RoomID, snapshot *room.Snapshot, typ, stateKey, member string) (string, error) {
	e, err := n.h.rooms.StateAt(ctx, id, snapshot.Root, typ, stateKey)
	if e == nil || err != nil {
		return "", err
	}
	return e.ContentString(member), nil
}

// tellRead brings the numbers on the apps of those who have read something up to date.
func (n *notifier) tellRead(ctx context.Context, users []string) error {
	for _, id := range users {
		user := matrix.UserID(id)
		has, err := n.h.push.HasPushers(ctx, user)
		if err != nil {
			return err
		}
		if !has {
			continue
		}
		unread, err := n.h.sync.UnreadRooms(ctx, user)
		if err != nil {
			return err
		}
		if err := n.h.push.Read(ctx, user, unread); err != nil {
			return err
		}
	}
	return nil
}
