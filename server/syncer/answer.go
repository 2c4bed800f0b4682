package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// answer is the answer to one /sync while it is made.
type answer struct {
	s     *Service
	r     *Request
	f     *Filter
	u     *userCache
	now   time.Time
	nowMS int64

	// since is where the client is; initial if it has nothing yet.
	since   Token
	initial bool
	// from is since, or a later point up to which there was nothing for this client.
	from Token
	to   Token

	items   []item
	partial map[matrix.RoomID]bool // rooms that are left out because not all of their members are known
	ignored map[matrix.UserID]bool

	accountNews, toDeviceNews, devicesNews, keysNews, heardNews bool
	presence                                                    []presence
	strangers                                                   []presence // presence of people of whom it must be found out whether they share a room

	account  map[matrix.RoomID][]storage.AccountData
	receipts map[matrix.RoomID][]storage.Receipt
	heard    map[matrix.RoomID][]storage.PlayedReceipt
	words    map[matrix.RoomID][]word
	toDevice []json.RawMessage
	changed  map[matrix.UserID]bool
	left     map[matrix.UserID]bool

	b     []byte
	empty bool // nothing was written that the client did not know
}

// item is one room in an answer.
type item struct {
	ur *userRoom
	rc *roomCache
	id matrix.RoomID
	// What the userRoom said when the answer was begun.
	membership string
	pos, num   int64
	stripped   []byte
	// whole: the client has nothing of the room, or asks for everything.
	whole bool
	// joinedThroughout: the user has been joined since before from.
	joinedThroughout bool

	window    []*entry // of the timeline, with positions up to to
	horizon   int64    // window has all above this
	typing    []matrix.UserID
	typingNew bool
	receipts  []storage.Receipt
	// askReceipts: the receipts must be read from the database.
	askReceipts bool
	// askWords: transcripts may have come.
	askWords    bool
	stateNew    bool // there may be state events that the client has not seen
	timelineNew bool
	// past is what nobody may read any more.
	past room.Past
	// upTo is the position up to which the room is shown: the answer's, or where the user left.
	upTo int64
}

// Sync answers GET /sync: the JSON of the whole answer, which the caller must not change. It waits at most the
// request's timeout, until ctx ends or the service closes.
// Errors: M_INVALID_PARAM (since, filter), M_NOT_FOUND (filter), M_BAD_JSON (filter).
// Spec v1.19 client-server-api/#get_matrixclientv3sync
func (s *Service) Sync(ctx context.Context, r Request) ([]byte, error) {
	a := &answer{s: s, r: &r}
	if err := a.prepare(ctx); err != nil {
		return nil, err
	}
	end := s.syncBegins(r.User, r.Device, r.SetPresence)
	defer end()
	if err := s.catchUp(ctx); err != nil {
		return nil, err
	}
	var deadline *time.Timer
	if r.Timeout > 0 && !a.initial && !r.FullState {
		deadline = time.NewTimer(min(r.Timeout, s.o.Config.MaxTimeout))
		defer deadline.Stop()
	}
	for {
		wake, news, err := a.look(ctx)
		if err != nil {
			return nil, err
		}
		if news || a.initial || r.FullState || deadline == nil {
			if err := a.leaveOutPartial(ctx); err != nil {
				return nil, err
			}
			if err := a.write(ctx); err != nil {
				return nil, err
			}
			if !a.empty || a.initial || r.FullState || deadline == nil {
				return a.b, nil
			}
			// What happened was not for this client.
			a.from = a.to
			continue
		}
		select {
		case <-wake:
		case <-deadline.C:
			deadline = nil
		case <-s.closing:
			deadline = nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (a *answer) prepare(ctx context.Context) error {
	switch a.r.SetPresence {
	case "", online, unavailable, offline:
	default:
		return matrix.InvalidParam("set_presence must be online, unavailable or offline")
	}
	if a.r.Since == "" {
		a.initial = true
	} else {
		since, err := ParseToken(a.r.Since)
		if err != nil {
			return err
		}
		a.since, a.from = since, since
	}
	f, err := a.s.filter(ctx, a.r.User, a.r.Filter)
	a.f = f
	return err
}

// catchUp waits until memory is at what the bell has told so far, so that who writes and then syncs finds it.
func (s *Service) catchUp(ctx context.Context) error {
	s.queue.Lock()
	rung := s.queue.rung
	s.queue.Unlock()
	for {
		s.mu.RLock()
		heard, ch := s.heard, s.appliedCh
		s.mu.RUnlock()
		if heard >= rung {
			return nil
		}
		select {
		case <-ch:
		case <-s.closing:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look finds out what may be new, and whether anything is; wake is closed when there is more.
func (a *answer) look(ctx context.Context) (wake <-chan struct{}, news bool, err error) {
	for {
		if a.u, err = a.s.user(ctx, a.r.User); err != nil {
			return nil, false, err
		}
		if wake, news, ok := a.plan(); ok {
			return wake, news, nil
		}
	}
}

// plan looks in memory for what is new. It holds the lock for as long as it takes to copy. ok is false if what is kept for
// the user has just been dropped: nobody would wake who waits there.
func (a *answer) plan() (wake <-chan struct{}, news, ok bool) {
	s, u := a.s, a.u
	a.now = s.now()
	a.nowMS = a.now.UnixMilli()
	a.items, a.presence, a.strangers = a.items[:0], a.presence[:0], a.strangers[:0]
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.users[u.id] != u {
		return nil, false, false
	}
	a.to = Token{Pos: s.applied, Eph: s.eph, ToDevice: s.applied}
	for id, ur := range u.rooms {
		a.planRoom(id, ur)
	}
	old := a.from.Pos < u.loadPos || a.initial
	a.accountNews = old || u.accountPos > a.from.Pos
	a.toDeviceNews = a.from.ToDevice < u.loadPos || u.toDevicePos[a.r.Device] > a.from.ToDevice || a.initial
	a.devicesNews = !a.initial && (old || u.devicePos > a.from.Pos)
	a.keysNews = u.keysPos[a.r.Device] > a.from.Pos
	a.heardNews = old || u.heardPos > a.from.Pos
	for i := range a.items {
		a.accountNews = a.accountNews || a.items[i].whole && a.items[i].membership == matrix.Join
	}
	a.planPresence()
	news = len(a.items) > 0 || a.accountNews || a.toDeviceNews || a.devicesNews || a.keysNews || a.heardNews || len(a.presence) > 0 || len(a.strangers) > 0
	u.waiting.Store(true)
	return u.wake, news, true
}

func (a *answer) planRoom(id matrix.RoomID, ur *userRoom) {
	rc := ur.room
	moved := a.initial || ur.pos > a.from.Pos
	full := a.initial || a.r.FullState
	it := item{
		ur: ur, rc: rc, id: id, membership: ur.membership, pos: ur.pos, num: ur.num, stripped: ur.stripped,
		upTo: a.to.Pos,
	}
	switch ur.membership {
	case matrix.Join:
		it.whole = full || moved
		it.joinedThroughout = !moved
		it.timelineNew = rc.pos > a.from.Pos
		it.stateNew = rc.statePos > a.from.Pos
		typing := a.s.typing[id]
		it.typingNew = typing != nil && typing.eph > a.from.Eph || typing != nil && it.whole && len(typing.list) > 0
		receiptsNew := rc.receiptPos > a.from.Pos
		it.askWords = !it.whole && rc.wordsPos > a.from.Pos
		if !it.whole && !it.timelineNew && !it.typingNew && !receiptsNew && !it.askWords {
			return
		}
		it.window, it.horizon = rc.window, rc.horizon
		if it.typingNew {
			it.typing = typing.list
		}
		if it.whole || a.from.Pos < rc.receiptHorizon {
			it.askReceipts = true
		} else if receiptsNew {
			it.receipts = rc.receipts
		}
	case matrix.Invite, matrix.Knock:
		if !moved && !full {
			return
		}
	case matrix.Leave, matrix.Ban:
		switch {
		case moved && !a.initial: // told once, even if the user has forgotten the room meanwhile
		case !full || ur.forgotten || !a.f.Room.IncludeLeave:
			return
		}
		it.whole = full
		it.upTo = min(it.upTo, ur.pos)
	default:
		return
	}
	if !a.f.Room.wantsRoom(id) {
		return
	}
	a.items = append(a.items, it)
}

// write makes the answer in a.b.
func (a *answer) write(ctx context.Context) error {
	if err := a.gather(ctx); err != nil {
		return err
	}
	b := make([]byte, 0, a.size())
	b = append(b, `{"next_batch":"`...)
	b = a.to.append(b)
	b = append(b, '"')
	plain := len(b)
	b = a.appendAccountData(b)
	b = a.appendPresences(b)
	b, err := a.appendRooms(ctx, b)
	if err != nil {
		return err
	}
	if len(a.toDevice) > 0 {
		b = append(b, `,"to_device":{"events":[`...)
		b = appendRaw(b, a.toDevice)
		b = append(b, `]}`...)
	}
	b = a.appendDeviceLists(b)
	a.empty = len(b) == plain && !a.keysNews
	if a.b, err = a.appendKeyCounts(ctx, b); err != nil {
		return err
	}
	a.b = append(a.b, '}')
	return nil
}

// size guesses how long the answer will be.
func (a *answer) size() int {
	n := 256
	for i := range a.items {
		n += 300
		it := &a.items[i]
		if it.whole || a.from.Pos < it.horizon {
			n += 4096
			continue
		}
		for _, e := range stretch(it.window, a.from.Pos, it.upTo) {
			n += len(e.client) + 100
		}
	}
	return n
}

func appendRaw(b []byte, list []json.RawMessage) []byte {
	for i, m := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, m...)
	}
	return b
}

// maxToDevice is how many to-device messages are in one answer.
const maxToDevice = 100

// gather asks the database for what memory does not have.
func (a *answer) gather(ctx context.Context) error {
	var err error
	if a.ignored, err = a.s.o.Users.Ignored(ctx, a.r.User); err != nil {
		return err
	}
	a.account = nil
	if a.accountNews {
		if err := a.gatherAccountData(ctx); err != nil {
			return err
		}
	}
	a.toDevice = nil
	if a.toDeviceNews {
		msgs, err := a.s.o.Keys.ToDevice(ctx, a.r.User, a.r.Device, a.since.ToDevice, a.to.Pos, maxToDevice)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			a.toDevice = append(a.toDevice, m.Event)
		}
		if len(msgs) == maxToDevice {
			a.to.ToDevice = msgs[len(msgs)-1].Pos
		}
	}
	if err := a.gatherReceipts(ctx); err != nil {
		return err
	}
	if err := a.gatherVoice(ctx); err != nil {
		return err
	}
	if err := a.gatherPresence(ctx); err != nil {
		return err
	}
	return a.gatherDevices(ctx)
}

func (a *answer) gatherAccountData(ctx context.Context) error {
	from := a.from.Pos
	if a.initial || a.r.FullState {
		from = 0
	}
	for i := range a.items {
		if a.items[i].membership == matrix.Join && a.items[i].whole {
			from = 0 // what was set before joining, too
		}
	}
	all, err := a.s.o.DB.AccountDataSince(ctx, a.r.User, from, a.to.Pos)
	if err != nil {
		return err
	}
	whole := map[matrix.RoomID]bool{}
	for _, it := range a.items {
		whole[it.id] = it.whole
	}
	a.account = map[matrix.RoomID][]storage.AccountData{}
	rules := false
	for _, d := range all {
		if d.Pos > a.from.Pos || whole[d.Room] || a.initial || a.r.FullState {
			rules = rules || d.Room == "" && d.Type == pushRules
			a.account[d.Room] = append(a.account[d.Room], d)
		}
	}
	if rules || a.initial || a.r.FullState {
		if err := a.addPushRules(ctx); err != nil {
			return err
		}
	}
	addRooms(a, a.account)
	return nil
}

const pushRules = "m.push_rules"

// addPushRules puts the user's push rules, the default ones among them, in place of what is stored.
func (a *answer) addPushRules(ctx context.Context) error {
	content, err := a.s.o.Push.Rules(ctx, a.r.User)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(a.account[""], func(d storage.AccountData) bool { return d.Type == pushRules })
	a.account[""] = append(list, storage.AccountData{Type: pushRules, Content: content})
	return nil
}

// addRooms adds the rooms of which nothing else is new.
func addRooms[T any](a *answer, news map[matrix.RoomID]T) {
	present := map[matrix.RoomID]bool{}
	for _, it := range a.items {
		present[it.id] = true
	}
	a.s.mu.RLock()
	defer a.s.mu.RUnlock()
	for id := range news {
		ur := a.u.rooms[id]
		if ur != nil && ur.membership == matrix.Join && !present[id] && !a.partial[id] && a.f.Room.wantsRoom(id) {
			a.items = append(a.items, item{
				ur: ur, rc: ur.room, id: id, membership: ur.membership, pos: ur.pos, num: ur.num, joinedThroughout: true,
				upTo: a.to.Pos, horizon: a.to.Pos,
			})
		}
	}
}

func (a *answer) gatherReceipts(ctx context.Context) error {
	a.receipts = nil
	var rooms []matrix.RoomID
	from := a.from.Pos
	for _, it := range a.items {
		if it.askReceipts && a.f.Room.Ephemeral.wantsType("m.receipt") {
			rooms = append(rooms, it.id)
			if it.whole {
				from = 0
			}
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	all, err := a.s.o.DB.ReceiptsBetween(ctx, a.r.User, rooms, from, a.to.Pos)
	if err != nil {
		return err
	}
	a.receipts = map[matrix.RoomID][]storage.Receipt{}
	for _, r := range all {
		a.receipts[r.Room] = append(a.receipts[r.Room], r)
	}
	return nil
}

func (a *answer) appendAccountData(b []byte) []byte {
	return appendAccountEvents(b, a.account[""], &a.f.AccountData)
}

// appendAccountEvents writes "account_data":{"events":[…]} unless there is nothing to write.
func appendAccountEvents(b []byte, list []storage.AccountData, f *EventFilter) []byte {
	start := len(b)
	b = comma(b)
	b = append(b, `"account_data":{"events":[`...)
	none := len(b)
	for _, d := range list {
		if !f.wantsType(d.Type) || !f.wantsRoom(d.Room) {
			continue
		}
		if len(b) > none {
			b = append(b, ',')
		}
		b = append(b, `{"type":`...)
		b = appendString(b, d.Type)
		b = append(b, `,"content":`...)
		b = append(b, d.Content...)
		b = append(b, '}')
	}
	if len(b) == none {
		return b[:start]
	}
	return append(b, `]}`...)
}

func isNotFound(err error) bool {
	var e *matrix.Error
	return errors.Is(err, storage.ErrNotFound) || errors.As(err, &e) && e.Code == "M_NOT_FOUND"
}

// roomOf finds the room of an item; nil if this server knows nothing of it.
func (a *answer) roomOf(ctx context.Context, it *item) (*room.Room, error) {
	r, err := a.s.o.Rooms.Room(ctx, it.id)
	if isNotFound(err) {
		return nil, nil
	}
	return r, err
}
