package room

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Room is a room that this server knows, in memory. Do not keep it: ask [Service.Room] each time, which costs a map lookup.
type Room struct {
	ID      matrix.RoomID
	Version *matrix.RoomVersion
	Num     int64 // the number of the room's row

	snap atomic.Pointer[Snapshot]
	pins atomic.Int32 // calls that keep it from being dropped; raised under Service.mu only
	used atomic.Int64 // when it was asked for last, by Service.clock
	// looked is the value of Service.elsewhere at which the room was last compared with the database.
	looked atomic.Int64

	mu    sync.Mutex // guards the two below
	queue []*job     // functions that wait for their turn
	busy  bool       // somebody runs functions

	windowMu sync.Mutex // held while older events are read into the window

	sent sentTxns // only for who runs functions
}

// Snapshot is the room as of the newest commit. Never nil; it costs nothing.
func (r *Room) Snapshot() *Snapshot { return r.snap.Load() }

// Snapshot is a room at one stream position. It is immutable.
type Snapshot struct {
	// Pos is the stream position of the newest event of the timeline.
	Pos int64
	// Root is the current state.
	Root storage.StateRoot
	// Tip are the forward extremities; empty if we only know of the room.
	Tip []*storage.Event
	// Depth is the greatest depth in the tip.
	Depth int64

	// Decoded from the current state:

	Create            *storage.Event // nil if we only know of the room
	Power             *matrix.PowerLevels
	JoinRule          string // matrix.JoinRuleInvite if there is none
	HistoryVisibility string // "shared" if there is none
	GuestAccess       bool
	Encrypted         bool
	RoomType          string // "m.space", or "" for an ordinary room
	ACL               *ACL   // nil: all servers may take part
	// Policy is the policy server that the room names, which need not be in the room; nil for none.
	Policy *matrix.PolicyServer

	// Local are the joined users of this server, with the numbers of their member events. It must not be written to.
	Local map[matrix.UserID]int64
	// Servers counts the joined users of each server. It must not be written to.
	Servers map[matrix.ServerName]int
	// JoinedCount and InvitedCount count members.
	JoinedCount, InvitedCount int
	// PartialState is set while the members of a room that we joined with the members left out are still being fetched. Servers
	// then counts one member more of each server that is said to be in the room.
	PartialState bool
	// WholePos is the stream position at which that was done; 0 if it never was.
	WholePos int64
	// retention is what the room's m.room.retention says.
	retention retention

	row     storage.Room
	stored  bool         // the row is in the database
	partial *partialRoom // nil unless PartialState

	window window
}

// Joined reports whether this server takes part in the room, that is whether one of its users is joined.
func (s *Snapshot) Joined() bool { return len(s.Local) > 0 }

// Room gives a room that this server knows, loading it if need be. A room that it only has an invite to is known, too:
// Snapshot().Joined() tells. Errors: M_NOT_FOUND.
func (s *Service) Room(ctx context.Context, id matrix.RoomID) (*Room, error) {
	r, err := s.pin(ctx, id)
	if err != nil {
		return nil, err
	}
	r.pins.Add(-1)
	return r, nil
}

// pin is Room, and keeps the room in memory until pins is lowered.
func (s *Service) pin(ctx context.Context, id matrix.RoomID) (*Room, error) {
	if r := s.loaded(id); r != nil {
		err := s.awaitStored(ctx, r)
		if err == nil {
			err = s.follow(ctx, r)
		}
		if err != nil {
			r.pins.Add(-1)
			return nil, err
		}
		if r.Snapshot().row.Flags&storage.BeingDeleted != 0 {
			r.pins.Add(-1)
			return nil, errBeingDeleted
		}
		return r, nil
	}
	for {
		epoch := s.epoch.Load()
		looked := s.elsewhere.Load()
		row, err := s.o.DB.RoomByID(ctx, id)
		if errors.Is(err, storage.ErrNotFound) {
			return nil, errNoRoom
		}
		if err != nil {
			return nil, err
		}
		if row.Flags&storage.BeingDeleted != 0 {
			return nil, errBeingDeleted
		}
		snap, err := s.load(ctx, row)
		if err != nil {
			return nil, err
		}
		if r := s.adopt(row, snap, epoch); r != nil {
			r.looked.CompareAndSwap(0, looked)
			return r, nil
		}
	}
}

// hear is called by the bell. It only notes that another process has written.
func (s *Service) hear(c storage.Commit) {
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			s.o.DB.ForgetEvents()
			s.related.clear()
			s.forgetUsers()
			s.elsewhere.Store(c.Position)
			return
		}
	}
}

// follow reads a room anew if another process has written to it since it was looked at last.
func (s *Service) follow(ctx context.Context, r *Room) error {
	elsewhere := s.elsewhere.Load()
	if r.looked.Load() >= elsewhere {
		return nil
	}
	row, err := s.o.DB.RoomByID(ctx, r.ID)
	if errors.Is(err, storage.ErrNotFound) && r.Snapshot().stored { // deleted by another process
		s.dropErased(r.ID)
		return errNoRoom
	}
	if errors.Is(err, storage.ErrNotFound) {
		return nil // it is just being made
	}
	if err != nil {
		return err
	}
	if snap := r.Snapshot(); row.Seq > snap.row.Seq || !snap.stored {
		err = s.run(ctx, r, func(u *update) error {
			if u.snap.stored && u.snap.row.Seq >= row.Seq {
				return nil
			}
			return storage.ErrMoved
		})
	}
	if err == nil {
		r.looked.Store(elsewhere)
	}
	return err
}

var errNoRoom = matrix.NotFound("this server does not know that room")

var errBeingDeleted = matrix.NotFound("this room is being deleted from this server")

// awaitStored refuses a room that is being made. Its row can be read, and what else was written with it, a moment before the
// snapshot is replaced: who has read it waits for that, a second at most.
func (s *Service) awaitStored(ctx context.Context, r *Room) error {
	for tries := 0; !r.Snapshot().stored; tries++ {
		if tries == 1000 {
			return errNoRoom
		}
		if _, err := s.o.DB.RoomByID(ctx, r.ID); errors.Is(err, storage.ErrNotFound) {
			return errNoRoom
		} else if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// loaded finds a room in memory and pins it.
func (s *Service) loaded(id matrix.RoomID) *Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[id]
	if r != nil {
		r.pins.Add(1)
		r.used.Store(s.clock.Add(1))
	}
	return r
}

// adopt puts a room that was read from the database into memory and pins it. It returns nil if what was read may be old: a room
// was dropped from memory, thus perhaps changed, since epoch.
func (s *Service) adopt(row storage.Room, snap *Snapshot, epoch int64) *Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[row.ID]
	switch {
	case r != nil:
	case s.epoch.Load() != epoch:
		return nil
	default:
		r = &Room{ID: row.ID, Version: row.Version, Num: row.Num}
		r.snap.Store(snap)
		s.makeSpace()
		s.rooms[row.ID] = r
	}
	r.pins.Add(1)
	r.used.Store(s.clock.Add(1))
	return r
}

// makeSpace drops the rooms that were not asked for lately. s.mu is held.
func (s *Service) makeSpace() {
	if len(s.rooms) < s.o.Config.LoadedRooms {
		return
	}
	all := slices.Collect(maps.Values(s.rooms))
	slices.SortFunc(all, func(a, b *Room) int { return int(a.used.Load() - b.used.Load()) })
	for _, r := range all[:len(all)/4] {
		s.dropRoom(r)
	}
}

// dropRoom takes a room out of memory if nobody works on it. s.mu is held.
func (s *Service) dropRoom(r *Room) {
	if r.pins.Load() == 0 {
		delete(s.rooms, r.ID)
		s.epoch.Add(1)
	}
}

// load reads what a snapshot holds from the database.
func (s *Service) load(ctx context.Context, row storage.Room) (*Snapshot, error) {
	snap := &Snapshot{row: row, stored: true, Pos: row.Pos, Root: row.Root, Depth: row.Depth,
		PartialState: row.Flags&storage.PartialState != 0,
		Local:        map[matrix.UserID]int64{}, Servers: map[matrix.ServerName]int{}}
	var err error
	if snap.Tip, err = s.o.DB.Events(ctx, row.Tip); err != nil {
		return nil, err
	}
	counts, err := s.countMembers(ctx, row.Num)
	if err != nil {
		return nil, err
	}
	snap.Servers, snap.JoinedCount, snap.InvitedCount = counts.servers, counts.joined, counts.invited
	if err := s.loadPartial(ctx, snap); err != nil {
		return nil, err
	}
	local, err := s.o.DB.RoomMembers(ctx, row.Num, s.o.ServerName, matrix.Join)
	if err != nil {
		return nil, err
	}
	for _, m := range local {
		snap.Local[m.User] = m.Num
	}
	snap.window = window{from: row.Pos, rootsFrom: row.Pos, rootAtStart: row.Root}
	return snap, s.decode(ctx, snap, nil)
}

// loadPartial reads what is known of a room that is, or was, partial.
func (s *Service) loadPartial(ctx context.Context, snap *Snapshot) error {
	if snap.row.Flags&storage.WasPartial == 0 {
		return nil
	}
	p, err := s.o.DB.PartialRoom(ctx, snap.row.Num)
	if err != nil {
		return err
	}
	snap.WholePos = p.WholePos
	if snap.PartialState {
		snap.partial = newPartialRoom(p)
		snap.countUnknown(1)
	}
	return nil
}

// decode sets what a snapshot holds decoded of its current state.
func (s *Service) decode(ctx context.Context, snap *Snapshot, fresh *staged) error {
	get := func(typ string) (*storage.Event, error) {
		return s.stateEvent(ctx, snap.row.Num, snap.Root, typ, "", fresh)
	}
	var err error
	if snap.Create, err = get(matrix.TypeCreate); err != nil || snap.Create == nil {
		return err
	}
	var create struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(snap.Create.Content(), &create) // anybody may write anything there
	snap.RoomType = create.Type
	power, err := get(matrix.TypePowerLevels)
	if err != nil {
		return err
	}
	snap.Power = matrix.PowerLevelsOf(snap.Create.Event, eventOf(power))
	rules, err := get(matrix.TypeJoinRules)
	if err != nil {
		return err
	}
	snap.JoinRule = contentString(rules, "join_rule", matrix.JoinRuleInvite)
	visibility, err := get(matrix.TypeHistoryVisibility)
	if err != nil {
		return err
	}
	snap.HistoryVisibility = historyVisibility(visibility)
	guests, err := get(matrix.TypeGuestAccess)
	if err != nil {
		return err
	}
	snap.GuestAccess = contentString(guests, "guest_access", "") == "can_join"
	encryption, err := get(matrix.TypeEncryption)
	if err != nil {
		return err
	}
	snap.Encrypted = encryption != nil
	acl, err := get(matrix.TypeServerACL)
	if err != nil {
		return err
	}
	lifetime, err := get(typeRetention)
	if err != nil {
		return err
	}
	snap.retention = parseRetention(lifetime)
	snap.ACL = nil
	if acl != nil {
		snap.ACL = parseACL(acl.Content())
	}
	policy, err := get(matrix.TypePolicy)
	if err != nil {
		return err
	}
	snap.Policy = nil
	if policy != nil {
		snap.Policy = matrix.ParsePolicy(policy.Content())
	}
	return nil
}

func eventOf(e *storage.Event) *matrix.Event {
	if e == nil {
		return nil
	}
	return e.Event
}

// contentString is a string in the content of an event that may be nil.
func contentString(e *storage.Event, key, otherwise string) string {
	if e == nil {
		return otherwise
	}
	if value := e.ContentString(key); value != "" {
		return value
	}
	return otherwise
}
