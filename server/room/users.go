package room

import (
	"context"
	"errors"
	"slices"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// users remembers which rooms the users of this server are in.
type users struct {
	mu    sync.Mutex
	rooms map[matrix.UserID][]storage.Membership // the lists are not written to
	epoch int64                                  // raised with each change
}

// maxUsers is how many users' rooms are remembered.
const maxUsers = 5000

// changeUsers takes in what was committed. It runs on the writer's goroutine.
func (s *Service) changeUsers(changes []storage.MemberChange) {
	var local []*storage.Membership
	for i := range changes {
		if m := &changes[i].Membership; m.User.Server() == s.o.ServerName {
			local = append(local, m)
		}
	}
	if len(local) == 0 {
		return
	}
	s.users.mu.Lock()
	defer s.users.mu.Unlock()
	s.users.epoch++
	for _, m := range local {
		list, ok := s.users.rooms[m.User]
		if !ok {
			continue
		}
		list = slices.Clone(list)
		changed := *m
		i := slices.IndexFunc(list, func(old storage.Membership) bool { return old.RoomNum == m.RoomNum })
		switch {
		case i < 0:
			list = append(list, changed)
		case list[i].Membership == m.Membership: // as the database does it
			changed.Pos, changed.Forgotten = list[i].Pos, list[i].Forgotten
			fallthrough
		default:
			list[i] = changed
		}
		s.users.rooms[m.User] = list
	}
}

// forgetUsers drops what is remembered, because it may have changed elsewhere.
func (s *Service) forgetUsers(who ...matrix.UserID) {
	s.users.mu.Lock()
	defer s.users.mu.Unlock()
	s.users.epoch++
	if len(who) == 0 {
		clear(s.users.rooms)
	}
	for _, user := range who {
		delete(s.users.rooms, user)
	}
}

// RoomsOf lists the rooms that a user of this server has a membership in, forgotten ones included, from memory. The slice
// must not be written to. For users of other servers it asks the database.
func (s *Service) RoomsOf(ctx context.Context, user matrix.UserID) ([]storage.Membership, error) {
	s.users.mu.Lock()
	list, ok := s.users.rooms[user]
	epoch := s.users.epoch
	s.users.mu.Unlock()
	if ok {
		return list, nil
	}
	list, err := s.o.DB.MembershipsOf(ctx, user)
	if err != nil || user.Server() != s.o.ServerName {
		return list, err
	}
	s.users.mu.Lock()
	defer s.users.mu.Unlock()
	if s.users.epoch == epoch {
		if len(s.users.rooms) >= maxUsers {
			clear(s.users.rooms)
		}
		s.users.rooms[user] = list
	}
	return list, nil
}

// JoinedRooms lists the rooms that a user of this server is joined to.
func (s *Service) JoinedRooms(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	list, err := s.RoomsOf(ctx, user)
	if err != nil {
		return nil, err
	}
	rooms := []matrix.RoomID{}
	for i := range list {
		if list[i].Membership == matrix.Join {
			rooms = append(rooms, list[i].Room)
		}
	}
	return rooms, nil
}

// Membership is how a user stands to a room: "leave" with number 0 for who has never been there, or if nobody knows the room.
func (s *Service) Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (storage.Membership, error) {
	none := storage.Membership{Room: room, User: user, Membership: matrix.Leave}
	if user.Server() == s.o.ServerName {
		list, err := s.RoomsOf(ctx, user)
		if err != nil {
			return none, err
		}
		for i := range list {
			if list[i].Room == room {
				return list[i], nil
			}
		}
		return none, nil
	}
	r, err := s.Room(ctx, room)
	if errors.Is(err, errNoRoom) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	m, err := s.o.DB.Membership(ctx, r.Num, user)
	if errors.Is(err, storage.ErrNotFound) {
		return none, nil
	}
	return m, err
}

// SharedRooms lists the rooms in which both are joined, of whom one is a user of this server.
func (s *Service) SharedRooms(ctx context.Context, a, b matrix.UserID) ([]matrix.RoomID, error) {
	first, err := s.RoomsOf(ctx, a)
	if err != nil {
		return nil, err
	}
	second, err := s.RoomsOf(ctx, b)
	if err != nil {
		return nil, err
	}
	joined := map[int64]bool{}
	for i := range first {
		joined[first[i].RoomNum] = first[i].Membership == matrix.Join
	}
	shared := []matrix.RoomID{}
	for i := range second {
		if second[i].Membership == matrix.Join && joined[second[i].RoomNum] {
			shared = append(shared, second[i].Room)
		}
	}
	return shared, nil
}

// MayShareRoom reports whether there is a room in which both are joined, or may be, as far as is known of partial rooms. a is a user of this server.
func (s *Service) MayShareRoom(ctx context.Context, a, b matrix.UserID) (bool, error) {
	shared, err := s.SharedRooms(ctx, a, b)
	if err != nil || len(shared) > 0 || b.Server() == s.o.ServerName {
		return len(shared) > 0, err
	}
	rooms, err := s.RoomsOf(ctx, a)
	if err != nil {
		return false, err
	}
	for i := range rooms {
		if rooms[i].Membership != matrix.Join {
			continue
		}
		r, err := s.Room(ctx, rooms[i].Room)
		if err != nil {
			return false, err
		}
		if !r.Snapshot().PartialState {
			continue
		}
		if may, err := s.MayBeJoined(ctx, r.ID, b); err != nil || may {
			return may, err
		}
	}
	return false, nil
}

// MayBeJoined reports whether a user of another server is joined to a room, or may be, as far as is known of a partial room.
func (s *Service) MayBeJoined(ctx context.Context, room matrix.RoomID, user matrix.UserID) (bool, error) {
	m, err := s.Membership(ctx, room, user)
	if err != nil || m.Num != 0 {
		return m.Membership == matrix.Join, err
	}
	r, err := s.Room(ctx, room)
	if errors.Is(err, errNoRoom) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	snap := r.Snapshot()
	return snap.PartialState && snap.Servers[user.Server()] > 0, nil
}

// SharesRoom lists those who are joined to a room in which user is joined, user included: users of this server only, if
// localOnly.
func (s *Service) SharesRoom(ctx context.Context, user matrix.UserID, localOnly bool) (map[matrix.UserID]bool, error) {
	var server matrix.ServerName
	if localOnly {
		server = s.o.ServerName
	}
	list, err := s.o.DB.UsersSharing(ctx, user, server)
	if err != nil {
		return nil, err
	}
	set := make(map[matrix.UserID]bool, len(list))
	for _, u := range list {
		set[u] = true
	}
	return set, nil
}

// resolved remembers the outcomes of state resolutions by the states that were resolved.
type resolved struct {
	mu         sync.Mutex
	young, old map[string][]storage.StateEntry
}

// maxResolved is about how many outcomes are remembered; one holds at most maxResolvedChanges entries.
const (
	maxResolved        = 500
	maxResolvedChanges = 2000
)

func (c *resolved) get(key string) ([]storage.StateEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.young[key]
	if !ok {
		v, ok = c.old[key]
	}
	return v, ok
}

func (c *resolved) put(key string, changes []storage.StateEntry) {
	if len(changes) > maxResolvedChanges {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.young == nil || len(c.young) >= maxResolved/2 {
		c.old, c.young = c.young, map[string][]storage.StateEntry{}
	}
	c.young[key] = changes
}

// sentTxn is a transaction ID that was used in a room.
type sentTxn struct {
	user   matrix.UserID
	device matrix.DeviceID
	typ    string
	id     string
	event  matrix.EventID
}

func (t *sentTxn) same(o *sentTxn) bool {
	return t.id == o.id && t.device == o.device && t.user == o.user && t.typ == o.typ
}

// sentTxns are the newest transaction IDs of a room: those that may have been used since somebody looked in the database.
type sentTxns struct {
	list []sentTxn
	next int
}

const maxSentTxns = 2 * maxJobs

func (s *sentTxns) add(t sentTxn) {
	if len(s.list) < maxSentTxns {
		s.list = append(s.list, t)
		return
	}
	s.list[s.next] = t
	s.next = (s.next + 1) % maxSentTxns
}

func findTxn(list []sentTxn, t *sentTxn) (matrix.EventID, bool) {
	for i := range list {
		if list[i].same(t) {
			return list[i].event, true
		}
	}
	return "", false
}
