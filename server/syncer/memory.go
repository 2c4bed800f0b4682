package syncer

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

const (
	// windowEvents is how many recent events of a room are kept for those who wait.
	windowEvents = 64
	// windowBytes bounds them, in bytes of JSON for clients.
	windowBytes = 512 * 1024
	// recentReceipts is how many receipts of a room are kept.
	recentReceipts = 256
	// largeRoom is from how many connected people on receipts are gathered for a moment before all are told.
	largeRoom = 30
	// maxPeers bounds for how many people it is remembered which rooms they are in.
	maxPeers = 20_000
)

// userCache is what is kept in memory for a user of this server whose clients look for news. Guarded by Service.mu.
type userCache struct {
	id matrix.UserID
	// loaded is closed once rooms is complete; until then the bell may add to it already.
	loaded chan struct{}
	err    error // set before loaded is closed
	rooms  map[matrix.RoomID]*userRoom

	// Positions of the newest change of each kind. At loading all are set to the position of that moment: what was before
	// is asked of the database.
	accountPos  int64
	toDevicePos map[matrix.DeviceID]int64
	loadPos     int64
	devicePos   int64 // somebody's device list that concerns the user
	memberPos   int64 // the user's own memberships
	heardPos    int64 // somebody has played what the user said

	// keysPos is when one-time keys of a device became fewer or more.
	keysPos map[matrix.DeviceID]int64

	account atomic.Pointer[accountData] // for sliding sync

	waiting  atomic.Bool   // whether somebody waits for wake; set under a read lock
	wake     chan struct{} // closed when there is something new; a new one is made for who waits next
	lastUsed time.Time
}

// userRoom is how a user stands to a room.
type userRoom struct {
	room       *roomCache
	membership string
	// pos is the stream position at which the membership became so.
	pos       int64
	num       int64 // the member event
	forgotten bool
	stripped  []byte
	unread    *unread // nil until asked for
	sent      sentMembers
}

// roomCache is what is kept of a room that a user in memory has to do with. Guarded by Service.mu, but for what says
// otherwise.
type roomCache struct {
	id matrix.RoomID
	// pos is the position of the newest event of the timeline, or higher.
	pos int64
	// window holds all events of the timeline with positions above horizon, oldest first. It is appended to and cut
	// by taking a new slice: who has copied the slice under the lock may read it without.
	window  []*entry
	horizon int64
	bytes   int
	// receipts are those with positions above receiptHorizon, in order; as window.
	receipts       []storage.Receipt
	receiptPos     int64
	receiptHorizon int64
	// wordsPos is the position of the newest transcript, or higher; 0 if there are none on this server.
	wordsPos int64
	// users are those in memory who are joined.
	users map[*userCache]*userRoom
	// statePos is the position of the newest state event, or higher.
	statePos int64
	// bump is the position of the newest event that brings the room to the top of a list; 0 if it is not known.
	bump int64
	// known counts the users in memory that have a userRoom here.
	known int
	// heroes are those after whom a room without a name is called; nil when they have to be found anew.
	heroes atomic.Pointer[heroes]
}

// peer is which rooms somebody is joined to.
type peer map[matrix.RoomID]struct{}

// user finds what is kept for the user, loading it if need be.
func (s *Service) user(ctx context.Context, id matrix.UserID) (*userCache, error) {
	s.mu.Lock()
	u := s.users[id]
	if u == nil {
		u = &userCache{
			id: id, loaded: make(chan struct{}), rooms: map[matrix.RoomID]*userRoom{},
			wake: make(chan struct{}), toDevicePos: map[matrix.DeviceID]int64{}, keysPos: map[matrix.DeviceID]int64{},
			loadPos: s.applied, accountPos: s.applied, devicePos: s.applied, memberPos: s.applied, lastUsed: s.now(),
		}
		s.users[id] = u
		s.mu.Unlock()
		// Others wait for it, too: it must not end with this request.
		s.load(context.WithoutCancel(ctx), u)
	} else {
		u.lastUsed = s.now()
		s.mu.Unlock()
	}
	select {
	case <-u.loaded:
		return u, u.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Service) load(ctx context.Context, u *userCache) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	defer close(u.loaded)
	memberships, err := s.o.Rooms.RoomsOf(ctx, u.id)
	newest := make([]int64, len(memberships)) // position of the newest event of each room
	for i, m := range memberships {
		if err == nil && m.Membership == matrix.Join {
			var r *room.Room
			if r, err = s.o.Rooms.Room(ctx, m.Room); err == nil {
				newest[i] = r.Snapshot().Pos
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		u.err = err
		s.drop(u)
		return
	}
	for i, m := range memberships {
		ur := u.rooms[m.Room]
		if ur == nil {
			if s.applied > u.loadPos {
				newest[i] = max(newest[i], s.applied) // there was time for events that it does not count
			}
			ur = &userRoom{room: s.roomCache(m.Room, newest[i])}
			ur.room.known++
			u.rooms[m.Room] = ur
		}
		if m.Pos > ur.pos {
			ur.membership, ur.pos, ur.num = m.Membership, m.Pos, m.Num
		}
		if m.Pos >= ur.pos {
			ur.forgotten, ur.stripped = m.Forgotten, m.Stripped
		}
		s.enlist(u, ur)
	}
}

// enlist puts the user among the room's joined ones, or takes them out. s.mu is held.
func (s *Service) enlist(u *userCache, ur *userRoom) {
	if ur.membership == matrix.Join {
		ur.room.users[u] = ur
	} else {
		delete(ur.room.users, u)
	}
}

// roomCache finds or makes what is kept of a room whose newest event is at pos, as far as is known. s.mu is held.
func (s *Service) roomCache(id matrix.RoomID, pos int64) *roomCache {
	rc := s.rooms[id]
	if rc == nil {
		rc = &roomCache{
			id: id, users: map[*userCache]*userRoom{}, pos: pos, statePos: pos,
			// What the bell tells from here on is above these; what is at or below is in the database.
			horizon: s.applied, receiptPos: s.applied, receiptHorizon: s.applied,
		}
		if s.o.Transcripts {
			rc.wordsPos = s.applied
		}
		s.rooms[id] = rc
	}
	if rc.pos < pos { // it was made for somebody who is not joined
		rc.pos, rc.statePos = pos, pos
	}
	return rc
}

// drop forgets a user. Who waits is woken and loads anew. s.mu is held.
func (s *Service) drop(u *userCache) {
	if s.users[u.id] == u {
		delete(s.users, u.id)
	}
	for _, ur := range u.rooms {
		delete(ur.room.users, u)
		ur.room.known--
		if ur.room.known == 0 && s.rooms[ur.room.id] == ur.room {
			delete(s.rooms, ur.room.id)
		}
	}
}

// forgetIdle drops users whose clients have not asked for long.
func (s *Service) forgetIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, u := range s.users {
		if now.Sub(u.lastUsed) >= s.o.Config.ForgetUsers {
			select {
			case <-u.loaded:
				s.drop(u)
			default:
			}
		}
	}
	if len(s.peers) > maxPeers {
		clear(s.peers)
	}
	for id, t := range s.typing {
		if len(t.until) == 0 && s.rooms[id] == nil {
			delete(s.typing, id)
		}
	}
}

// ring takes in what the bell tells: at once if that is little, which spares a goroutine's waking, or else through the queue. It runs
// on the writer's goroutine.
func (s *Service) ring(c storage.Commit) {
	s.queue.Lock()
	q := queued{commit: c, receipts: s.queue.receipts}
	s.queue.receipts = nil
	s.queue.rung++
	first := len(s.queue.items) == 0 && !s.queue.busy // and stays it: the bell rings once at a time
	s.queue.Unlock()
	if first && s.applyAtOnce(q) {
		return
	}
	s.queue.Lock()
	s.queue.items = append(s.queue.items, q)
	s.queue.Unlock()
	select {
	case s.queue.signal <- struct{}{}:
	default:
	}
}

// receiptsStored queues receipts; the bell rings for them at once. It runs on the writer's goroutine.
func (s *Service) receiptsStored(rs []storage.Receipt) {
	s.queue.Lock()
	s.queue.receipts = append(s.queue.receipts, rs...)
	s.queue.Unlock()
}

// queued is a commit and what it brought that the bell does not tell.
type queued struct {
	commit   storage.Commit
	receipts []storage.Receipt
}

// listen applies commits until the service closes.
func (s *Service) listen() {
	defer s.running.Done()
	for {
		select {
		case <-s.queue.signal:
		case <-s.closing:
			return
		}
		s.queue.Lock()
		items := s.queue.items
		s.queue.items = nil
		s.queue.busy = len(items) > 0
		s.queue.Unlock()
		for _, q := range items {
			s.apply(q)
		}
		s.queue.Lock()
		s.queue.busy = false
		s.queue.Unlock()
	}
}

// apply brings memory up to a commit and wakes whom it concerns.
func (s *Service) apply(q queued) {
	deviceUsers := s.sharersOf(q.commit)
	s.mu.Lock()
	s.applyLocked(q, deviceUsers)
}

// maxAtOnce is of how many users the clients are told of an event on the writer's goroutine.
const maxAtOnce = 32

// applyAtOnce is apply for a commit that concerns few people and for which nothing must be waited. It reports whether it was one.
func (s *Service) applyAtOnce(q queued) bool {
	for _, c := range q.commit.Changes {
		if c.Foreign || slices.ContainsFunc(c.Wakes, func(w storage.Wake) bool { return w.Topic == storage.TopicDeviceList }) {
			return false
		}
	}
	if len(q.receipts) > 0 || !s.mu.TryLock() {
		return false
	}
	for _, c := range q.commit.Changes {
		for i := range c.Events {
			if rc := s.rooms[c.Events[i].Room]; rc != nil && len(rc.users) > maxAtOnce {
				s.mu.Unlock()
				return false
			}
		}
	}
	s.applyLocked(q, nil)
	return true
}

// applyLocked is apply with s.mu held, which it lets go.
func (s *Service) applyLocked(q queued, deviceUsers map[matrix.UserID]map[matrix.UserID]bool) {
	n := &news{s: s}
	for _, c := range q.commit.Changes {
		if c.Foreign {
			s.forgetAll(n)
		}
		for i := range c.Events {
			s.applyEvent(n, &c.Events[i])
		}
		for _, w := range c.Wakes {
			s.applyWake(n, w, deviceUsers)
		}
		for _, id := range c.Purged {
			s.applyPurge(id, q.commit.Position)
		}
	}
	for _, r := range q.receipts {
		s.applyReceipt(n, r)
	}
	s.applied = max(s.applied, q.commit.Position)
	s.heard++
	close(s.appliedCh)
	s.appliedCh = make(chan struct{})
	edus := s.presenceEDUs
	s.presenceEDUs = nil
	s.mu.Unlock()
	closeAll(n.wake)
	s.send(edus...)
}

// news gathers who is to be woken, so that they are woken once and after the lock is free.
type news struct {
	s    *Service
	wake []chan struct{}
}

func (n *news) tell(u *userCache) {
	if u.waiting.Swap(false) {
		n.wake = append(n.wake, u.wake)
		u.wake = make(chan struct{})
	}
}

func (n *news) tellRoom(rc *roomCache) {
	for u := range rc.users {
		n.tell(u)
	}
}

// wakeRoom gathers those of the room's joined users who wait. s.mu is held.
func (s *Service) wakeRoom(id matrix.RoomID) []chan struct{} {
	n := &news{s: s}
	if rc := s.rooms[id]; rc != nil {
		n.tellRoom(rc)
	}
	return n.wake
}

func closeAll(chans []chan struct{}) {
	for _, c := range chans {
		close(c)
	}
}

// forgetAll is for when another process wrote: nothing in memory can be relied on.
func (s *Service) forgetAll(n *news) {
	for _, u := range s.users {
		n.tell(u)
		s.drop(u)
	}
	clear(s.peers)
}

// applyPurge forgets what is kept of a room's past: it is read anew, as far as it is still there. s.mu is held.
func (s *Service) applyPurge(id matrix.RoomID, pos int64) {
	rc := s.rooms[id]
	if rc == nil {
		return
	}
	rc.window, rc.bytes, rc.horizon = nil, 0, max(rc.horizon, pos)
	rc.heroes.Store(nil)
	for _, ur := range rc.users {
		ur.unread = nil
	}
}

func (s *Service) applyEvent(n *news, e *storage.CommittedEvent) {
	rc := s.rooms[e.Room]
	if e.Event.Type() == "m.room.member" {
		if key, ok := e.Event.StateKey(); ok && e.Stands {
			rc = s.applyMember(n, e, matrix.UserID(key), rc)
		} else if ok { // of another branch, it need not be what holds now
			if rc != nil {
				rc.heroes.Store(nil)
			}
			s.readAnew(n, matrix.UserID(key))
		}
	}
	if e.Event.Sender().Server() == s.o.ServerName {
		s.activity(e.Event.Sender())
	}
	if rc == nil || e.Pos <= rc.horizon {
		return
	}
	rc.pos = max(rc.pos, e.Pos)
	if e.Event.IsState() {
		rc.statePos = max(rc.statePos, e.Pos)
	}
	if target := e.Event.Redacts(); target != "" {
		rc.redact(target)
	}
	if rc.bump != 0 && bumps(e.Event) {
		rc.bump = max(rc.bump, e.Pos)
	}
	added := newEntry(e)
	rc.append(added)
	if !added.linear {
		// Where branches of the graph meet, the state may change by more than the event.
		rc.statePos = max(rc.statePos, e.Pos)
	}
	n.tellRoom(rc)
}

// append adds a new event to the window and cuts the window when it has grown too long.
func (rc *roomCache) append(e *entry) {
	if n := len(rc.window); n > 0 {
		prev := e.ev.PrevEvents()
		e.linear = len(prev) == 1 && prev[0] == rc.window[n-1].ev.ID()
	}
	rc.window = append(rc.window, e)
	rc.bytes += len(e.client)
	if len(rc.window) <= 2*windowEvents && rc.bytes <= 2*windowBytes {
		return
	}
	keep, bytes := 0, 0
	for keep < windowEvents && keep < len(rc.window) {
		size := len(rc.window[len(rc.window)-1-keep].client)
		if bytes+size > windowBytes && keep > 0 {
			break
		}
		bytes += size
		keep++
	}
	cut := len(rc.window) - keep
	rc.horizon = rc.window[cut-1].pos
	rc.window = slices.Clone(rc.window[cut:])
	rc.bytes = bytes
}

// redact takes an event that has been redacted out of the window's memory: it is read anew when somebody asks for it.
func (rc *roomCache) redact(target matrix.EventID) {
	for i, e := range rc.window {
		if e.ev.ID() == target {
			rc.window = slices.Clone(rc.window)
			rc.window[i] = &entry{pos: e.pos, num: e.num, ev: e.ev, stale: true, linear: e.linear}
			return
		}
	}
}

// applyMember notes a change of membership and returns what is kept of the room, which may have come to be kept by it.
func (s *Service) applyMember(n *news, e *storage.CommittedEvent, user matrix.UserID, rc *roomCache) *roomCache {
	membership := e.Event.Membership()
	s.memberChanges++
	if p := s.peers[user]; p != nil {
		if membership == matrix.Join {
			p[e.Room] = struct{}{}
		} else {
			delete(p, e.Room)
		}
	}
	if rc != nil {
		rc.heroes.Store(nil)
	}
	u := s.users[user]
	if u == nil {
		return rc
	}
	ur := u.rooms[e.Room]
	if ur == nil {
		if rc == nil {
			// Not the whole of this commit: events before this one have passed.
			rc = s.roomCache(e.Room, e.Pos)
			rc.horizon = e.Pos - 1
		}
		ur = &userRoom{room: rc}
		rc.known++
		u.rooms[e.Room] = ur
	}
	if e.Pos <= ur.pos {
		return ur.room
	}
	if ur.membership != membership {
		ur.membership, ur.pos, ur.forgotten, ur.unread = membership, e.Pos, false, nil
		u.memberPos = e.Pos
	}
	ur.num, ur.stripped = e.Num, nil
	s.enlist(u, ur)
	n.tell(u)
	return ur.room
}

func (s *Service) applyWake(n *news, w storage.Wake, deviceUsers map[matrix.UserID]map[matrix.UserID]bool) {
	u := s.users[w.User]
	switch w.Topic {
	case storage.TopicAccountData, storage.TopicRoomAccountData:
		if u != nil {
			u.accountPos = max(u.accountPos, w.Pos)
			n.tell(u)
		}
	case storage.TopicToDevice:
		if u != nil {
			u.toDevicePos[w.Device] = max(u.toDevicePos[w.Device], w.Pos)
			n.tell(u)
		}
	case storage.TopicDeviceKeys:
		if u != nil {
			u.keysPos[w.Device] = max(u.keysPos[w.Device], w.Pos)
			n.tell(u)
		}
	case storage.TopicDeviceList:
		if w.Reader != "" {
			deviceUsers = map[matrix.UserID]map[matrix.UserID]bool{w.User: {w.Reader: true}}
		}
		for sharer := range deviceUsers[w.User] {
			if u := s.users[sharer]; u != nil {
				u.devicePos = max(u.devicePos, w.Pos)
				n.tell(u)
			}
		}
	case storage.TopicPlayedReceipt:
		if u != nil {
			u.heardPos = max(u.heardPos, w.Pos)
			n.tell(u)
		}
	case storage.TopicTranscript:
		if rc := s.rooms[w.Room]; rc != nil {
			rc.wordsPos = max(rc.wordsPos, w.Pos)
			n.tellRoom(rc)
		}
	case storage.TopicPartial:
		clear(s.peers)
		s.memberChanges++
		if rc := s.rooms[w.Room]; rc != nil {
			rc.heroes.Store(nil)
		}
	case storage.TopicMembership:
		if rc := s.rooms[w.Room]; rc != nil {
			rc.heroes.Store(nil)
		}
		// The row says more than the bell.
		s.readAnew(n, w.User)
	}
}

// readAnew forgets which rooms a user is in.
func (s *Service) readAnew(n *news, user matrix.UserID) {
	if u := s.users[user]; u != nil {
		n.tell(u)
		s.drop(u)
	}
	delete(s.peers, user)
	s.memberChanges++
}

func (s *Service) applyReceipt(n *news, r storage.Receipt) {
	rc := s.rooms[r.Room]
	if rc == nil {
		return
	}
	rc.receiptPos = max(rc.receiptPos, r.Pos)
	if len(rc.receipts) >= 2*recentReceipts {
		cut := len(rc.receipts) - recentReceipts
		rc.receiptHorizon = rc.receipts[cut-1].Pos
		rc.receipts = slices.Clone(rc.receipts[cut:])
	}
	rc.receipts = append(rc.receipts, r)
	if u := s.users[r.User]; u != nil {
		if ur := u.rooms[r.Room]; ur != nil && ur.unread != nil {
			ur.unread.read(r)
		}
	}
	if u := s.users[r.User]; u != nil {
		n.tell(u) // the user's other devices
	}
	switch {
	case r.Type == storage.ReceiptReadPrivate:
	case len(rc.users) > largeRoom:
		s.receiptNews[r.Room] = true
	default:
		n.tellRoom(rc)
	}
}

// sharersOf finds, for each device list that a commit changed, whom of our users it concerns.
func (s *Service) sharersOf(c storage.Commit) map[matrix.UserID]map[matrix.UserID]bool {
	var all map[matrix.UserID]map[matrix.UserID]bool
	for _, change := range c.Changes {
		for _, w := range change.Wakes {
			if w.Topic != storage.TopicDeviceList || w.Reader != "" || all[w.User] != nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			sharers, err := s.o.Rooms.SharesRoom(ctx, w.User, true)
			cancel()
			if err != nil {
				s.log.Error("find who shares a room", "user", w.User, "err", err)
			}
			set := map[matrix.UserID]bool{w.User: true}
			for u := range sharers {
				set[u] = true
			}
			if all == nil {
				all = map[matrix.UserID]map[matrix.UserID]bool{}
			}
			all[w.User] = set
		}
	}
	return all
}
