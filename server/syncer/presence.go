package syncer

import (
	"container/list"
	"context"
	"encoding/json"
	"strconv"
	"time"

	"parley.im/parley/server/matrix"
)

// The states of presence.
const (
	online      = "online"
	unavailable = "unavailable"
	offline     = "offline"
)

const (
	// activeFor is how long after the last activity somebody counts as currently active.
	activeFor = time.Minute
	// remoteOffline is after how long without news somebody of another server is taken for offline.
	remoteOffline = 30 * time.Minute
	// maxStatusMsg is the longest status message kept, in bytes.
	maxStatusMsg = 1024
	// maxPresencePerEDU bounds how many people of one EDU are looked at.
	maxPresencePerEDU = 500
	// maxStrangers bounds of how many people one answer looks up whether they share a room.
	maxStrangers = 100
	// maxRemotePresence bounds how many people of other servers are remembered.
	maxRemotePresence = 100_000
)

// presence is what is known of one user. Guarded by Service.mu.
type presence struct {
	user      matrix.UserID
	state     string
	statusMsg string // "" for none
	// lastActive is when the user last did something.
	lastActive time.Time
	active     bool // currently active
	eph        int64
	at         *list.Element // in Service.presenceOrder
	heard      time.Time     // remote users: when their server last told us

	// For our own users: what each device last said, and how many of its syncs are under way.
	devices map[matrix.DeviceID]*devicePresence
	// pinned: the user chose unavailable by PUT; a /sync that does not say online leaves it.
	pinned string
}

type devicePresence struct {
	state   string
	syncing int
	last    time.Time // when its last /sync ended
}

func better(a, b string) string {
	if a == online || b == online {
		return online
	}
	if a == unavailable || b == unavailable {
		return unavailable
	}
	return offline
}

// combined is what the devices make together.
func (p *presence) combined(now time.Time, offlineAfter, idleAfter time.Duration) string {
	state := offline
	for id, d := range p.devices {
		if d.syncing == 0 && now.Sub(d.last) >= offlineAfter {
			delete(p.devices, id)
			continue
		}
		state = better(state, d.state)
	}
	if state == online && now.Sub(p.lastActive) >= idleAfter {
		state = unavailable
	}
	if p.pinned != "" && state == online {
		state = p.pinned
	}
	return state
}

// presenceEntry finds or makes what is known of user. s.mu is held.
func (s *Service) presenceEntry(user matrix.UserID) *presence {
	p := s.presence[user]
	if p == nil {
		p = &presence{user: user, state: offline, devices: map[matrix.DeviceID]*devicePresence{}}
		s.presence[user] = p
	}
	return p
}

// changed notes that p has something new for others. s.mu is held.
func (s *Service) presenceChanged(p *presence) {
	s.eph++
	p.eph = s.eph
	if p.at != nil {
		s.presenceOrder.MoveToFront(p.at)
	} else {
		p.at = s.presenceOrder.PushFront(p)
	}
	s.presenceNews = append(s.presenceNews, p.user)
	switch {
	case p.user.Server() != s.o.ServerName:
	case p.state == offline:
		delete(s.awake, p)
	default:
		s.awake[p] = true
	}
}

// refresh works out a local user's state anew and reports whether others must hear of it. s.mu is held.
func (s *Service) refresh(p *presence) bool {
	now := s.now()
	state := p.combined(now, s.o.Config.PresenceOffline, s.o.Config.PresenceIdle)
	active := state == online && now.Sub(p.lastActive) < activeFor
	if state == p.state && active == p.active {
		return false
	}
	p.state, p.active = state, active
	s.presenceChanged(p)
	return true
}

// syncBegins notes that the device looks for news and is, but for "offline", there. The function it returns ends that.
func (s *Service) syncBegins(user matrix.UserID, device matrix.DeviceID, state string) (end func()) {
	if !s.o.Config.Presence || state == offline {
		return func() {}
	}
	explicit := state != ""
	if !explicit {
		state = online
	}
	s.mu.Lock()
	p := s.presenceEntry(user)
	d := p.devices[device]
	if d == nil {
		d = &devicePresence{state: offline}
		p.devices[device] = d
	}
	if d.state != online && state == online && (p.state == offline || explicit) {
		p.lastActive = s.now()
	}
	if explicit && state == online {
		p.pinned = ""
	}
	d.state = state
	d.syncing++
	tell := s.refresh(p)
	edu := s.presenceEDU(p, tell)
	s.mu.Unlock()
	s.send(edu)
	return func() {
		s.mu.Lock()
		d.syncing--
		d.last = s.now()
		s.mu.Unlock()
	}
}

// activity notes that a user of ours has done something.
func (s *Service) activity(user matrix.UserID) {
	if p := s.presence[user]; p != nil && p.state != offline {
		p.lastActive = s.now()
		if p.pinned == unavailable {
			p.pinned = ""
		}
		if s.refresh(p) {
			s.presenceEDUs = append(s.presenceEDUs, s.presenceEDU(p, true))
		}
	}
}

// SetPresence is PUT /presence/{user}/status. statusMsg nil removes the message. Error: M_INVALID_PARAM.
func (s *Service) SetPresence(ctx context.Context, user matrix.UserID, device matrix.DeviceID, state string, statusMsg *string) error {
	if state != online && state != unavailable && state != offline {
		return matrix.InvalidParam("presence must be online, unavailable or offline")
	}
	if statusMsg != nil && len(*statusMsg) > maxStatusMsg {
		return matrix.InvalidParam("status_msg may have %d bytes", maxStatusMsg)
	}
	if !s.o.Config.Presence {
		return nil
	}
	s.mu.Lock()
	p := s.presenceEntry(user)
	now := s.now()
	d := p.devices[device]
	if d == nil {
		d = &devicePresence{}
		p.devices[device] = d
	}
	d.state, d.last = state, now
	p.pinned = ""
	switch state {
	case online:
		p.lastActive = now
	case unavailable:
		p.pinned = unavailable
	case offline:
		for _, d := range p.devices {
			d.state = offline
		}
	}
	msg := ""
	if statusMsg != nil {
		msg = *statusMsg
	}
	news := msg != p.statusMsg
	p.statusMsg = msg
	if s.refresh(p) {
		news = true
	} else if news {
		s.presenceChanged(p)
	}
	edu := s.presenceEDU(p, news)
	s.mu.Unlock()
	s.send(edu)
	return nil
}

// Presence is what is known of somebody.
type Presence struct {
	Presence        string  `json:"presence"` // online, unavailable or offline
	StatusMsg       *string `json:"status_msg,omitempty"`
	LastActiveAgo   *int64  `json:"last_active_ago,omitempty"` // ms
	CurrentlyActive *bool   `json:"currently_active,omitempty"`
}

// PresenceOf is GET /presence/{user}/status. Error: M_FORBIDDEN if viewer shares no room with the user.
func (s *Service) PresenceOf(ctx context.Context, viewer, user matrix.UserID) (Presence, error) {
	if viewer != user {
		shares, err := s.sharesRoom(ctx, viewer, user)
		if err != nil {
			return Presence{}, err
		}
		if !shares {
			return Presence{}, matrix.Forbidden("you share no room with this user")
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := s.presence[user]
	if p == nil {
		return Presence{Presence: offline}, nil
	}
	out := Presence{Presence: p.state}
	if p.statusMsg != "" {
		msg := p.statusMsg
		out.StatusMsg = &msg
	}
	if !p.lastActive.IsZero() {
		ago := max(0, s.now().Sub(p.lastActive).Milliseconds())
		out.LastActiveAgo = &ago
	}
	if p.state == online {
		active := p.active
		out.CurrentlyActive = &active
	}
	return out, nil
}

// presencePush is one entry of an m.presence EDU.
type presencePush struct {
	UserID          matrix.UserID `json:"user_id"`
	Presence        string        `json:"presence"`
	StatusMsg       string        `json:"status_msg,omitempty"`
	LastActiveAgo   int64         `json:"last_active_ago"` // ms
	CurrentlyActive bool          `json:"currently_active,omitempty"`
}

// presenceEDU is what other servers are told; nil if nobody is. s.mu is held.
func (s *Service) presenceEDU(p *presence, tell bool) *EDU {
	if !tell {
		return nil
	}
	push := presencePush{
		UserID: p.user, Presence: p.state, StatusMsg: p.statusMsg, CurrentlyActive: p.active,
		LastActiveAgo: max(0, s.now().Sub(p.lastActive).Milliseconds()),
	}
	if p.lastActive.IsZero() {
		push.LastActiveAgo = 0
	}
	content, err := json.Marshal(map[string][]presencePush{"push": {push}})
	if err != nil {
		return nil
	}
	return &EDU{Type: "m.presence", User: p.user, Content: content}
}

func (s *Service) send(edus ...*EDU) {
	for _, e := range edus {
		if e != nil {
			s.o.OnEDU(*e)
		}
	}
}

// ReceivePresence takes an m.presence EDU. What is not origin's to say is passed over.
// Spec v1.19 server-server-api/#presence
func (s *Service) ReceivePresence(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	if !s.o.Config.Presence {
		return nil
	}
	var edu struct {
		Push []presencePush `json:"push"`
	}
	if err := json.Unmarshal(content, &edu); err != nil {
		return matrix.BadJSON("m.presence: %v", err)
	}
	strangers := map[matrix.UserID]bool{}
	for i, push := range edu.Push {
		if i >= maxPresencePerEDU {
			break
		}
		if _, err := matrix.ParseUserID(string(push.UserID)); err != nil || push.UserID.Server() != origin {
			continue
		}
		rooms, err := s.peer(ctx, push.UserID)
		if err != nil {
			return err
		}
		strangers[push.UserID] = len(rooms) == 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, push := range edu.Push {
		if stranger, ok := strangers[push.UserID]; !ok || stranger {
			continue // not origin's, or nobody here could see it
		}
		if push.Presence != online && push.Presence != unavailable && push.Presence != offline || len(push.StatusMsg) > maxStatusMsg {
			continue
		}
		if s.presence[push.UserID] == nil && len(s.presence) >= maxRemotePresence {
			continue
		}
		p := s.presenceEntry(push.UserID)
		p.heard = now
		p.lastActive = now.Add(-time.Duration(min(max(push.LastActiveAgo, 0), 1<<40)) * time.Millisecond)
		if p.eph != 0 && p.state == push.Presence && p.statusMsg == push.StatusMsg && p.active == push.CurrentlyActive {
			continue
		}
		p.state, p.statusMsg, p.active = push.Presence, push.StatusMsg, push.CurrentlyActive
		s.presenceChanged(p)
	}
	return nil
}

// ageing lets our users become idle or offline as time passes.
func (s *Service) ageing() {
	var edus []*EDU
	s.mu.Lock()
	for p := range s.awake {
		if s.refresh(p) {
			edus = append(edus, s.presenceEDU(p, true))
		}
	}
	s.mu.Unlock()
	s.send(edus...)
}

// ageingElsewhere takes people of other servers for offline whose servers have not told of them for long.
func (s *Service) ageingElsewhere() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, p := range s.presence {
		if p.state != offline && p.user.Server() != s.o.ServerName && now.Sub(p.heard) >= remoteOffline {
			p.state, p.active = offline, false
			s.presenceChanged(p)
		}
	}
}

// appendPresence writes the m.presence event of p.
func appendPresence(b []byte, p *presence, now time.Time) []byte {
	b = append(b, `{"type":"m.presence","sender":`...)
	b = appendString(b, string(p.user))
	b = append(b, `,"content":{"presence":"`...)
	b = append(b, p.state...)
	b = append(b, '"')
	if p.statusMsg != "" {
		b = append(b, `,"status_msg":`...)
		b = appendString(b, p.statusMsg)
	}
	if !p.lastActive.IsZero() {
		b = append(b, `,"last_active_ago":`...)
		b = strconv.AppendInt(b, max(0, now.Sub(p.lastActive).Milliseconds()), 10)
	}
	if p.state == online {
		b = append(b, `,"currently_active":`...)
		b = strconv.AppendBool(b, p.active)
	}
	return append(b, `}}`...)
}

// sharing says whether two people share a room, as far as memory knows.
type sharing int

const (
	unknown sharing = iota
	shares
	sharesNot
)

// shares looks in memory whether u shares a room with the user. s.mu is held.
func (s *Service) shares(u *userCache, user matrix.UserID) sharing {
	if user == u.id {
		return shares
	}
	if other := s.users[user]; other != nil {
		a, b := u, other
		if len(a.rooms) > len(b.rooms) {
			a, b = b, a
		}
		for id, ur := range a.rooms {
			if ur.membership != matrix.Join {
				continue
			}
			if there := b.rooms[id]; there != nil && there.membership == matrix.Join && s.showsPresence(ur.room) {
				return shares
			}
		}
		select {
		case <-other.loaded:
			return sharesNot
		default:
			return unknown
		}
	}
	p, ok := s.peers[user]
	if !ok {
		return unknown
	}
	for id := range p {
		if ur := u.rooms[id]; ur != nil && ur.membership == matrix.Join && s.showsPresence(ur.room) {
			return shares
		}
	}
	return sharesNot
}

// showsPresence reports whether the room is small enough to be worth the cost. s.mu is held.
func (s *Service) showsPresence(rc *roomCache) bool { return len(rc.users) <= s.o.Config.PresenceRoom }

// peer finds which rooms the user is joined to, from the database if need be.
func (s *Service) peer(ctx context.Context, user matrix.UserID) (peer, error) {
	s.mu.RLock()
	p, ok := s.peers[user]
	changes := s.memberChanges
	s.mu.RUnlock()
	if ok {
		return p, nil
	}
	rooms, err := s.o.DB.JoinedRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	p = make(peer, len(rooms))
	for _, id := range rooms {
		p[id] = struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memberChanges == changes {
		s.peers[user] = p
	}
	return p, nil
}

// planPresence finds whose presence is new to the client. s.mu is held.
func (a *answer) planPresence() {
	if !a.s.o.Config.Presence {
		return
	}
	for e := a.s.presenceOrder.Front(); e != nil; e = e.Next() {
		p := e.Value.(*presence)
		if p.eph <= a.from.Eph && !a.initial {
			return
		}
		if a.initial && p.state == offline && p.statusMsg == "" {
			continue
		}
		switch a.s.shares(a.u, p.user) {
		case shares:
			a.presence = append(a.presence, *p)
		case unknown:
			if len(a.strangers) < maxStrangers {
				a.strangers = append(a.strangers, *p)
			}
		}
	}
}

// gatherPresence adds those of whom memory did not know whether they share a room, and those who have just come to share one.
func (a *answer) gatherPresence(ctx context.Context) error {
	s := a.s
	if !s.o.Config.Presence {
		return nil
	}
	for _, p := range a.strangers {
		rooms, err := s.peer(ctx, p.user)
		if err != nil {
			return err
		}
		s.mu.RLock()
		for id := range rooms {
			if ur := a.u.rooms[id]; ur != nil && ur.membership == matrix.Join && s.showsPresence(ur.room) {
				a.presence = append(a.presence, p)
				break
			}
		}
		s.mu.RUnlock()
	}
	if a.initial {
		return nil
	}
	have := map[matrix.UserID]bool{}
	for _, p := range a.presence {
		have[p.user] = true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range a.items {
		it := &a.items[i]
		if it.membership != matrix.Join || !s.showsPresence(it.rc) {
			continue
		}
		if it.whole && !it.joinedThroughout {
			a.addPresenceIn(it.id, have)
			continue
		}
		for _, e := range it.news(a) {
			if e.ev.Membership() == matrix.Join {
				key, _ := e.ev.StateKey()
				a.addPresence(s.presence[matrix.UserID(key)], have)
			}
		}
	}
	return nil
}

func (a *answer) addPresence(p *presence, have map[matrix.UserID]bool) {
	if p != nil && p.eph != 0 && !have[p.user] {
		have[p.user] = true
		a.presence = append(a.presence, *p)
	}
}

// addPresenceIn adds everybody who is known to be in the room. s.mu is held.
func (a *answer) addPresenceIn(room matrix.RoomID, have map[matrix.UserID]bool) {
	for _, p := range a.s.presence {
		in := false
		if u := a.s.users[p.user]; u != nil {
			ur := u.rooms[room]
			in = ur != nil && ur.membership == matrix.Join
		} else if _, ok := a.s.peers[p.user][room]; ok {
			in = true
		}
		if in {
			a.addPresence(p, have)
		}
	}
}

func (a *answer) appendPresences(b []byte) []byte {
	start := len(b)
	b = append(b, `,"presence":{"events":[`...)
	none := len(b)
	for i := range a.presence {
		p := &a.presence[i]
		if a.ignored[p.user] || !a.f.Presence.wants("m.presence", p.user, nil) {
			continue
		}
		if len(b) > none {
			b = append(b, ',')
		}
		b = appendPresence(b, p, a.now)
	}
	if len(b) == none {
		return b[:start]
	}
	return append(b, `]}`...)
}

// tellLate wakes those who share a room with somebody whose presence is new, and those in large rooms with new receipts, and
// returns how many they were.
func (s *Service) tellLate(ctx context.Context) int {
	s.mu.Lock()
	users, rooms := s.presenceNews, s.receiptNews
	s.presenceNews, s.receiptNews = nil, map[matrix.RoomID]bool{}
	s.mu.Unlock()
	if len(users) == 0 && len(rooms) == 0 {
		return 0
	}
	for _, id := range users {
		if err := s.addRoomsOf(ctx, id, rooms); err != nil {
			s.log.Error("find the rooms of a user", "user", id, "err", err)
		}
	}
	n := &news{s: s}
	s.mu.Lock()
	for _, id := range users {
		if u := s.users[id]; u != nil {
			n.tell(u)
		}
	}
	for id := range rooms {
		if rc := s.rooms[id]; rc != nil {
			n.tellRoom(rc)
		}
	}
	s.mu.Unlock()
	closeAll(n.wake)
	return len(n.wake)
}

// addRoomsOf adds the rooms by which others see the user's presence.
func (s *Service) addRoomsOf(ctx context.Context, id matrix.UserID, rooms map[matrix.RoomID]bool) error {
	s.mu.RLock()
	u := s.users[id]
	if u != nil {
		for room, ur := range u.rooms {
			if ur.membership == matrix.Join && s.showsPresence(ur.room) {
				rooms[room] = true
			}
		}
	}
	s.mu.RUnlock()
	if u != nil {
		return nil
	}
	p, err := s.peer(ctx, id)
	if err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for room := range p {
		if rc := s.rooms[room]; rc != nil && s.showsPresence(rc) {
			rooms[room] = true
		}
	}
	return nil
}
