package room

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// A room may be joined with the members left out of the answer (omit_members). It is then partial: its state lacks members, and what
// servers are in it is known from a list alone. The row in partial_rooms says so, and outlives the process. In the background the
// members are fetched; then everything that has happened since the join is judged again, in its order (see replay.go), which leads to what
// would have come about had the whole state been there from the start.
// Spec v1.19 server-server-api/#put_matrixfederationv2send_joinroomideventid

const (
	// maxPartialServers is how many servers are noted as being in a partial room.
	maxPartialServers = 50_000
	// wholeServers is how many servers are asked for the state in one round.
	wholeServers = 20
	// wholeWorkers is how many rooms are made whole at the same time.
	wholeWorkers = 4
	// wholeTimeout bounds what is done with the help of one server.
	wholeTimeout = 15 * time.Minute
	// strictRounds is in how many rounds a server must give all events of the state that it tells. After that, what the server through which
	// we came gives has to do: somebody's events may be lost for good.
	strictRounds = 3
	// The pause after a round in which no server gave the state doubles from leastPause to mostPause.
	leastPause, mostPause = 5 * time.Second, 30 * time.Minute
	// clientPatience is how long a client waits for a state that is not whole, serverPatience how long another server does.
	clientPatience, serverPatience = time.Minute, 20 * time.Second
	// memberBatch is how many rows of members one write holds.
	memberBatch = 500
)

// partialRoom is what a snapshot knows of a partial room. It does not change.
type partialRoom struct {
	storage.PartialRoom
	whole chan struct{} // closed when this is not what is known of the room any more
	once  sync.Once
}

func newPartialRoom(p storage.PartialRoom) *partialRoom {
	return &partialRoom{PartialRoom: p, whole: make(chan struct{})}
}

// replace makes snap the room's snapshot and wakes who waits for the room to be whole, to look again.
func (r *Room) replace(snap *Snapshot) {
	old := r.snap.Swap(snap)
	if old != nil && old.partial != nil && old.partial != snap.partial {
		old.partial.once.Do(func() { close(old.partial.whole) })
	}
}

// countUnknown counts one member more of each server that is said to be in the room, or takes them away again: while the room is
// partial, no server is taken to be out of it because those of its members that we know have left.
func (s *Snapshot) countUnknown(delta int) {
	s.Servers = maps.Clone(s.Servers)
	for _, server := range s.partial.Servers {
		if s.Servers[server] += delta; s.Servers[server] <= 0 {
			delete(s.Servers, server)
		}
	}
}

// beginPartial notes that the room has been entered with the event join, before which there was a state without all members.
func (u *update) beginPartial(join *storage.Event, before storage.StateRoot, servers []matrix.ServerName) {
	p := storage.PartialRoom{Join: join.Num, Before: before, Servers: servers, SinceMS: u.s.o.Now().UnixMilli()}
	u.add.Partial.Begin = &p
	u.snap.partial, u.snap.WholePos = newPartialRoom(p), 0
	u.snap.countUnknown(1)
}

// endPartial notes that the state is whole, or that nobody needs it any more.
func (u *update) endPartial() {
	if u.snap.partial != nil {
		u.snap.countUnknown(-1)
	}
	u.snap.partial = nil
	u.setFlags(0, storage.PartialState)
	u.add.Partial.Done = true
	u.dirty = true
}

// partialServers are those of an answer to send_join that were in the room, the one that has answered first.
func (s *Service) partialServers(through matrix.ServerName, told []matrix.ServerName) []matrix.ServerName {
	seen := map[matrix.ServerName]bool{s.o.ServerName: true, through: true}
	list := []matrix.ServerName{through}
	for _, server := range validServers(told[:min(len(told), maxPartialServers)]) {
		if !seen[server] {
			seen[server] = true
			list = append(list, server)
		}
	}
	return list
}

// ResumePartial goes on to fetch what was missing of the state of rooms when the server was last stopped. It returns at once; the work ends
// with Close.
func (s *Service) ResumePartial(ctx context.Context) error {
	rooms, err := s.o.DB.PartialRooms(ctx)
	for _, room := range rooms {
		s.foreign.partial.kick(s, room)
	}
	return err
}

// AwaitWhole waits until the whole state of a room is known, for patience at most. Errors: M_NOT_FOUND (room),
// M_UNABLE_DUE_TO_PARTIAL_STATE with status 503.
func (s *Service) AwaitWhole(ctx context.Context, room matrix.RoomID, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		r, err := s.Room(ctx, room)
		if err != nil {
			return err
		}
		p := r.Snapshot().partial
		if p == nil {
			return nil
		}
		// Another process may make the room whole; that shows only when one looks.
		look := time.NewTimer(time.Second)
		select {
		case <-p.whole:
		case <-look.C:
		case <-ctx.Done():
			look.Stop()
			return matrix.NewError(http.StatusServiceUnavailable, "M_UNABLE_DUE_TO_PARTIAL_STATE", "this server has joined the room only just now and does not know all of its members yet")
		}
		look.Stop()
	}
}

// errPartial is the answer to other servers that need more of a room's state than is here.
var errPartial = matrix.NotFound("this server has joined the room only just now and does not know its whole state yet; ask another one")

// partialQueues fetch the states of partial rooms: one goroutine per room. The zero value is ready for use.
type partialQueues struct {
	mu      sync.Mutex
	rooms   map[matrix.RoomID]chan struct{} // being worked on; a send ends the pause
	slots   chan struct{}
	ctx     context.Context // ends when the service is closed
	stop    context.CancelFunc
	closed  bool
	running sync.WaitGroup
}

// kick has the state of a room fetched, now if that is being put off.
func (q *partialQueues) kick(s *Service, room matrix.RoomID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || s.o.Remote == nil {
		return
	}
	if q.rooms == nil {
		q.rooms = map[matrix.RoomID]chan struct{}{}
		q.slots = make(chan struct{}, wholeWorkers)
		q.ctx, q.stop = context.WithCancel(context.Background())
	}
	if again, busy := q.rooms[room]; busy {
		select {
		case again <- struct{}{}:
		default:
		}
		return
	}
	again := make(chan struct{}, 1)
	q.rooms[room] = again
	q.running.Go(func() { q.work(s, room, again) })
}

// close stops the work and waits for it. What is not done goes on at the next start.
func (q *partialQueues) close() {
	q.mu.Lock()
	q.closed = true
	if q.stop != nil {
		q.stop()
	}
	q.mu.Unlock()
	q.running.Wait()
}

func (q *partialQueues) work(s *Service, room matrix.RoomID, again chan struct{}) {
	for round := 0; ; round++ {
		select {
		case q.slots <- struct{}{}:
		case <-q.ctx.Done():
			return
		}
		done := s.tryWhole(q.ctx, room, round)
		<-q.slots
		if done && q.finished(room, again) {
			return
		}
		pause := time.NewTimer(s.wholePause(round))
		select {
		case <-pause.C:
		case <-again:
			round = -1
		case <-q.ctx.Done():
		}
		pause.Stop()
		if q.ctx.Err() != nil {
			return
		}
	}
}

// finished takes the room out of the queue unless it was asked for again meanwhile.
func (q *partialQueues) finished(room matrix.RoomID, again chan struct{}) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(again) > 0 {
		return false
	}
	delete(q.rooms, room)
	return true
}

func (s *Service) wholePause(round int) time.Duration {
	return min(leastPause<<min(round, 20), mostPause)
}

// tryWhole asks the servers in a room, one after the other, for what is missing of its state. It reports whether there is nothing left
// to do.
func (s *Service) tryWhole(ctx context.Context, id matrix.RoomID, round int) (done bool) {
	log := s.o.Log.With("room", id)
	r, err := s.pin(ctx, id)
	if errors.Is(err, errNoRoom) {
		return true // it has been purged
	}
	if err != nil {
		log.Error("find a partial room", "err", err)
		return false
	}
	defer r.pins.Add(-1)
	p := r.Snapshot().partial
	if p == nil {
		return true
	}
	if _, err := s.o.DB.Event(ctx, p.Join); errors.Is(err, storage.ErrNotFound) {
		log.Warn("the event by which this server came into a room has been deleted; the state of the room stays without some members")
		return s.giveUpPartial(ctx, r, func(*update) bool { return true })
	}
	for i, server := range s.whoHasState(r, p) {
		err := s.makeWhole(ctx, r, p, server, round >= strictRounds && i == 0)
		switch {
		case err == nil:
			log.Info("know the whole state of a room", "server", server, "took", time.Duration(s.o.Now().UnixMilli()-p.SinceMS)*time.Millisecond)
			return true
		case ctx.Err() != nil, errors.Is(err, errNoRoom):
			return true
		case errors.Is(err, errOtherPartial):
			return false
		}
		log.Info("a server did not give the state of a room", "server", server, "err", err)
	}
	if !r.Snapshot().Joined() { // nobody here needs it, and nobody gives it to us
		return s.giveUpPartial(ctx, r, func(u *update) bool { return !u.snap.Joined() })
	}
	return false
}

// giveUpPartial leaves the room as it is, if still holds.
func (s *Service) giveUpPartial(ctx context.Context, r *Room, still func(u *update) bool) bool {
	err := s.run(ctx, r, func(u *update) error {
		if u.snap.partial != nil && still(u) {
			u.endPartial()
		}
		return nil
	})
	return err == nil
}

// whoHasState lists whom to ask: the server through which we came, then others that are in the room.
func (s *Service) whoHasState(r *Room, p *partialRoom) []matrix.ServerName {
	snap := r.Snapshot()
	var list []matrix.ServerName
	for _, server := range slices.Concat(p.Servers[:min(len(p.Servers), wholeServers)], s.serversToJoinThrough(snap), p.Servers) {
		if len(list) == wholeServers {
			break
		}
		if server != s.o.ServerName && snap.ACL.Allows(server) && !slices.Contains(list, server) {
			list = append(list, server)
		}
	}
	return list
}

// errOtherPartial says that the room has been entered anew meanwhile.
var errOtherPartial = errors.New("the room has been entered anew meanwhile")

// makeWhole fetches the members from one server and puts them in. With lenient, events that the server names and does not give
// are done without.
func (s *Service) makeWhole(ctx context.Context, r *Room, p *partialRoom, server matrix.ServerName, lenient bool) error {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	join, err := s.o.DB.Event(ctx, p.Join)
	if err != nil {
		return err
	}
	members, err := s.toldMembers(ctx, r, p, join, server, lenient)
	if err != nil {
		return err
	}
	entries := make([]storage.StateEntry, 0, len(members))
	for user, m := range members {
		entries = append(entries, storage.StateEntry{Type: matrix.TypeMember, Key: string(user), Num: m.Num})
	}
	var nodes storage.StateNodes
	before, err := s.o.DB.UpdateState(ctx, r.Num, p.Before, entries, &nodes)
	if err != nil {
		return err
	}
	if err := s.o.DB.StageNodes(ctx, r.Num, &nodes); err != nil {
		return err
	}
	if err := s.stageTold(ctx, r, p, members); err != nil {
		return err
	}
	return s.replay(ctx, r, p, join, before)
}

// toldMembers asks a server for the members before our join that were left out of the answer to it. What else it says of the state is not
// looked at: that is here.
func (s *Service) toldMembers(ctx context.Context, r *Room, p *partialRoom, join *storage.Event, server matrix.ServerName, lenient bool) (map[matrix.UserID]storage.MemberRow, error) {
	// The state after the one event before the join is that before the join, which not every server may have.
	at := join.ID()
	if prev := join.PrevEvents(); len(prev) == 1 {
		at = prev[0]
	}
	told, missing, err := s.toldState(ctx, server, r, at)
	if err != nil {
		return nil, err
	}
	if missing > 0 && !lenient {
		return nil, fmt.Errorf("it names a state of which it does not give %d events", missing)
	}
	create := r.Snapshot().Create
	if !slices.ContainsFunc(told, func(e stateEvent) bool { return create != nil && e.Num == create.Num }) {
		return nil, errors.New("what it tells is not a state of the room")
	}
	members := make(map[matrix.UserID]storage.MemberRow, len(told))
	for _, e := range told {
		if e.Type != matrix.TypeMember || e.Num == join.Num {
			continue
		}
		_, err := s.o.DB.StateNum(ctx, r.Num, p.Before, matrix.TypeMember, e.Key, nil)
		if errors.Is(err, storage.ErrNotFound) {
			user := matrix.UserID(e.Key)
			members[user] = storage.MemberRow{User: user, Membership: e.membership, Num: e.Num}
		} else if err != nil {
			return nil, err
		}
	}
	// A state that does not let us in is not the one in which we were let in.
	known, err := s.lookup(ctx, r.Num, p.Before, join.AuthKeys(), nil)
	if err != nil {
		return nil, err
	}
	err = matrix.Authorize(join.Event, func(typ, key string) *matrix.Event {
		if e := known(typ, key); e != nil || typ != matrix.TypeMember {
			return e
		}
		if m, ok := members[matrix.UserID(key)]; ok {
			e, err := s.o.DB.Event(ctx, m.Num)
			if err == nil {
				return e.Event
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("in the state that it tells we were not let in: %w", err)
	}
	return members, nil
}

// stageTold writes the rows of members of whom the room's current state says nothing, in writes of bounded size.
func (s *Service) stageTold(ctx context.Context, r *Room, p *partialRoom, members map[matrix.UserID]storage.MemberRow) error {
	left := maps.Clone(members)
	err := s.o.DB.MemberRows(ctx, r.Num, func(row storage.MemberRow) {
		if m, ok := left[row.User]; ok && m == row {
			delete(left, row.User)
		}
	})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Values(left)), memberBatch) {
		err := s.run(ctx, r, func(u *update) error {
			if u.snap.partial == nil || u.snap.partial.Join != p.Join {
				return errOtherPartial
			}
			for _, m := range chunk {
				_, err := s.o.DB.StateNum(u.ctx, r.Num, u.snap.Root, matrix.TypeMember, string(m.User), &u.fresh.nodes)
				if err == nil {
					continue
				}
				if !errors.Is(err, storage.ErrNotFound) {
					return err
				}
				u.add.Members = append(u.add.Members, storage.MemberChange{Membership: storage.Membership{
					Room: r.ID, RoomNum: r.Num, User: m.User, Membership: m.Membership, Num: m.Num}})
				u.dirty = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// withClaimed looks where state has no member also among the event's own auth events: while the room is partial, that is the best to go by.
func (u *update) withClaimed(e *matrix.Event, state matrix.StateLookup) (matrix.StateLookup, error) {
	claimed := map[string]*matrix.Event{}
	for _, id := range e.AuthEvents() {
		a, err := u.known(id)
		if err != nil {
			return nil, err
		}
		if a != nil && a.Type() == matrix.TypeMember && a.IsState() && a.Flags&storage.Rejected == 0 {
			claimed[stateKey(a.Event)] = a.Event
		}
	}
	return func(typ, key string) *matrix.Event {
		if known := state(typ, key); known != nil || typ != matrix.TypeMember {
			return known
		}
		return claimed[key]
	}, nil
}

// MemberOf finds the member event of an event's sender that the event itself goes by, for rooms whose state lacks it; nil if there is none.
func (s *Service) MemberOf(ctx context.Context, e *matrix.Event) (*storage.Event, error) {
	auth, err := s.o.DB.EventsByID(ctx, e.AuthEvents())
	if err != nil {
		return nil, err
	}
	for _, a := range auth {
		if a.Is(matrix.TypeMember, string(e.Sender())) && a.RoomID() == e.RoomID() && a.Flags&storage.Rejected == 0 {
			return a, nil
		}
	}
	return nil, nil
}
