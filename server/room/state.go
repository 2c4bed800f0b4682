package room

import (
	"context"
	"errors"
	"iter"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

func stateKey(e *matrix.Event) string {
	key, _ := e.StateKey()
	return key
}

// event finds an event by its number, staged or stored. fresh may be nil.
func (s *Service) event(ctx context.Context, num int64, fresh *staged) (*storage.Event, error) {
	if e := fresh.byNum(num); e != nil {
		return e, nil
	}
	return s.o.DB.Event(ctx, num)
}

func (s *Service) events(ctx context.Context, nums []int64, fresh *staged) ([]*storage.Event, error) {
	if fresh == nil || len(fresh.events) == 0 {
		return s.o.DB.Events(ctx, nums)
	}
	events := make([]*storage.Event, len(nums))
	var stored []int64
	for i, num := range nums {
		if events[i] = fresh.byNum(num); events[i] == nil {
			stored = append(stored, num)
		}
	}
	found, err := s.o.DB.Events(ctx, stored)
	if err != nil {
		return nil, err
	}
	for i := range events {
		if events[i] == nil {
			events[i], found = found[0], found[1:]
		}
	}
	return events, nil
}

func (f *staged) stateNodes() *storage.StateNodes {
	if f == nil {
		return nil
	}
	return &f.nodes
}

// stateEvent looks up one event of a state; nil if there is none. fresh may be nil.
func (s *Service) stateEvent(ctx context.Context, room int64, root storage.StateRoot, typ, key string, fresh *staged) (*storage.Event, error) {
	num, err := s.o.DB.StateNum(ctx, room, root, typ, key, fresh.stateNodes())
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.event(ctx, num, fresh)
}

// lookup reads the state that an authorization needs: the create event and that of keys.
func (s *Service) lookup(ctx context.Context, room int64, root storage.StateRoot, keys []matrix.StateTuple, fresh *staged) (matrix.StateLookup, error) {
	found := make([]*matrix.Event, 0, len(keys)+1)
	for _, key := range append(keys[:len(keys):len(keys)], matrix.StateTuple{Type: matrix.TypeCreate}) {
		e, err := s.stateEvent(ctx, room, root, key.Type, key.StateKey, fresh)
		if err != nil {
			return nil, err
		}
		if e != nil {
			found = append(found, e.Event)
		}
	}
	return among(found), nil
}

// among looks events up in a short list.
func among(found []*matrix.Event) matrix.StateLookup {
	return func(typ, key string) *matrix.Event {
		for _, e := range found {
			if e.Is(typ, key) {
				return e
			}
		}
		return nil
	}
}

// authorize checks an event against a state. The error is a *matrix.AuthError, or of the database.
func (s *Service) authorize(ctx context.Context, room int64, e *matrix.Event, root storage.StateRoot, fresh *staged) error {
	state, err := s.lookup(ctx, room, root, e.AuthKeys(), fresh)
	if err != nil {
		return err
	}
	return matrix.Authorize(e, state)
}

// after is the state after an event that is not an outlier: the state before it, with the event itself if it is a state event that was not
// rejected.
func (s *Service) after(ctx context.Context, e *storage.Event, fresh *staged) (storage.StateRoot, error) {
	key, ok := e.StateKey()
	if !ok || e.Flags&storage.Rejected != 0 {
		return e.Before, nil
	}
	nodes := fresh.stateNodes()
	if nodes == nil {
		nodes = &storage.StateNodes{}
	}
	return s.o.DB.UpdateState(ctx, e.RoomNum, e.Before, []storage.StateEntry{{Type: e.Type(), Key: key, Num: e.Num}}, nodes)
}

// RootAfter is the state after an event: the state before it with the event itself. The zero root for outliers.
func (s *Service) RootAfter(ctx context.Context, e *storage.Event) (storage.StateRoot, error) {
	return s.after(ctx, e, nil)
}

// resolve is the state resolution of several states, whose nodes are stored or staged. The nodes of the result go to fresh.
// What was resolved once is remembered.
func (s *Service) resolve(ctx context.Context, r *Room, roots []storage.StateRoot, fresh *staged) (storage.StateRoot, error) {
	roots = slices.Clone(roots)
	slices.SortFunc(roots, compareRoots)
	roots = slices.Compact(roots)
	if len(roots) == 1 {
		return roots[0], nil
	}
	key := ""
	for _, root := range roots {
		key += string(root.Bytes())
	}
	q := &resolving{ctx: ctx, s: s, room: r, roots: roots, fresh: fresh}
	if changes, ok := s.resolved.get(key); ok {
		return s.o.DB.UpdateState(ctx, r.Num, roots[0], changes, &fresh.nodes)
	}
	changes, err := q.changes()
	if err != nil {
		return storage.StateRoot{}, err
	}
	if !q.partly {
		s.resolved.put(key, changes)
	}
	return s.o.DB.UpdateState(ctx, r.Num, roots[0], changes, &fresh.nodes)
}

func compareRoots(a, b storage.StateRoot) int { return slices.Compare(a.Bytes(), b.Bytes()) }

// resolving is one state resolution.
type resolving struct {
	ctx   context.Context
	s     *Service
	room  *Room
	roots []storage.StateRoot
	fresh *staged
	known map[matrix.EventID]*storage.Event
	// partly is set if the states differ in members that some of them lack because the room is partial.
	partly bool
}

// maxOneSided is how many members may be in one of two states only until that is taken to be so because the other one is partial.
const maxOneSided = 500

// changes are what the resolved state has in other ways than the first of the roots.
func (q *resolving) changes() ([]storage.StateEntry, error) {
	q.known = map[matrix.EventID]*storage.Event{}
	conflicted, err := q.conflicted()
	if err != nil {
		return nil, err
	}
	sets := make([]matrix.StateMap, len(q.roots))
	for i, root := range q.roots {
		sets[i] = matrix.StateMap{}
		for tuple := range conflicted {
			e, err := q.s.stateEvent(q.ctx, q.room.Num, root, tuple.Type, tuple.StateKey, q.fresh)
			if err != nil {
				return nil, err
			}
			if e != nil {
				sets[i][tuple] = e.ID()
				q.known[e.ID()] = e
			}
		}
	}
	var failed error
	resolved, err := matrix.Resolve(&matrix.Resolution{
		Version: q.room.Version,
		Sets:    sets,
		Unconflicted: func(t matrix.StateTuple) matrix.EventID {
			e, err := q.s.stateEvent(q.ctx, q.room.Num, q.roots[0], t.Type, t.StateKey, q.fresh)
			if err != nil {
				failed = err
			}
			if e == nil || conflicted[t] {
				return ""
			}
			q.known[e.ID()] = e
			return e.ID()
		},
		UnconflictedEvents: q.unconflicted(conflicted, &failed),
		// Events are numbered after their auth events. Should one not be, Resolve finds out and walks all.
		Order: func(id matrix.EventID) int64 {
			if e := q.known[id]; e != nil {
				return e.Num
			}
			return 0
		},
		InUnconflictedChains: func(ids []matrix.EventID) (map[matrix.EventID]bool, error) {
			return q.inUnconflictedChains(conflicted, ids)
		},
		Load: q.load,
		Rejected: func(id matrix.EventID) bool {
			e := q.known[id]
			return e != nil && e.Flags&storage.Rejected != 0
		},
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	changes := make([]storage.StateEntry, 0, len(conflicted))
	for tuple := range conflicted {
		change := storage.StateEntry{Type: tuple.Type, Key: tuple.StateKey}
		if id, ok := resolved[tuple]; ok {
			found, err := q.load([]matrix.EventID{id})
			if err != nil {
				return nil, err
			}
			if len(found) > 0 {
				change.Num = q.known[id].Num
			}
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// conflicted finds the keys on which not all states agree.
func (q *resolving) conflicted() (map[matrix.StateTuple]bool, error) {
	var nums []int64
	for _, other := range q.roots[1:] {
		diffs, err := q.s.o.DB.DiffState(q.ctx, q.room.Num, q.roots[0], other, storage.AllState, &q.fresh.nodes)
		if err != nil {
			return nil, err
		}
		if diffs, err = q.withoutUnknown(diffs, other); err != nil {
			return nil, err
		}
		for _, d := range diffs {
			if d.A != 0 {
				nums = append(nums, d.A)
			} else {
				nums = append(nums, d.B)
			}
		}
	}
	events, err := q.s.events(q.ctx, nums, q.fresh)
	if err != nil {
		return nil, err
	}
	tuples := make(map[matrix.StateTuple]bool, len(events))
	for _, e := range events {
		tuples[e.Tuple()] = true
	}
	return tuples, nil
}

// withoutUnknown leaves out the members that only one of two states has, if they are many and the room is partial: to resolve a part of a state
// with all of it would be a great effort for something that is done anew when all is known. Until then they may be missing in the outcome.
func (q *resolving) withoutUnknown(diffs []storage.StateDiff, other storage.StateRoot) ([]storage.StateDiff, error) {
	if len(diffs) <= maxOneSided || q.room.Snapshot().partial == nil {
		return diffs, nil
	}
	members, err := q.s.o.DB.DiffState(q.ctx, q.room.Num, q.roots[0], other, storage.MembersState, &q.fresh.nodes)
	if err != nil {
		return nil, err
	}
	oneSided := make(map[storage.StateDiff]bool, len(members))
	for _, d := range members {
		if d.A == 0 || d.B == 0 {
			oneSided[d] = true
		}
	}
	if len(oneSided) <= maxOneSided {
		return diffs, nil
	}
	q.partly = true
	return slices.DeleteFunc(diffs, func(d storage.StateDiff) bool { return oneSided[d] }), nil
}

// unconflicted yields the events of the unconflicted state.
func (q *resolving) unconflicted(conflicted map[matrix.StateTuple]bool, failed *error) iter.Seq[matrix.EventID] {
	return func(yield func(matrix.EventID) bool) {
		nums, err := q.s.o.DB.StateNums(q.ctx, q.room.Num, q.roots[0], storage.AllState, &q.fresh.nodes)
		if err != nil {
			*failed = err
			return
		}
		for chunk := range slices.Chunk(nums, 1000) {
			events, err := q.s.events(q.ctx, chunk, q.fresh)
			if err != nil {
				*failed = err
				return
			}
			for _, e := range events {
				if !conflicted[e.Tuple()] {
					q.known[e.ID()] = e
					if !yield(e.ID()) {
						return
					}
				}
			}
		}
	}
}

func (q *resolving) load(ids []matrix.EventID) ([]*matrix.Event, error) {
	found := make([]*matrix.Event, 0, len(ids))
	var missing []matrix.EventID
	for _, id := range ids {
		e := q.known[id]
		if e == nil {
			e = q.fresh.byID(id)
		}
		if e == nil {
			missing = append(missing, id)
			continue
		}
		q.known[id] = e
		found = append(found, e.Event)
	}
	stored, err := q.s.o.DB.EventsByID(q.ctx, missing)
	if err != nil {
		return nil, err
	}
	for _, e := range stored {
		if e.RoomNum == q.room.Num {
			q.known[e.ID()] = e
			found = append(found, e.Event)
		}
	}
	return found, nil
}

// StateEvents lists a part of a state. The order means nothing.
func (s *Service) StateEvents(ctx context.Context, room matrix.RoomID, root storage.StateRoot, part storage.StatePart) ([]*storage.Event, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, err
	}
	nums, err := s.o.DB.StateNums(ctx, r.Num, root, part, nil)
	if err != nil {
		return nil, err
	}
	return s.o.DB.Events(ctx, nums)
}

// StateAt looks up one event of a state; nil if there is none.
func (s *Service) StateAt(ctx context.Context, room matrix.RoomID, root storage.StateRoot, typ, stateKey string) (*storage.Event, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, err
	}
	return s.stateEvent(ctx, r.Num, root, typ, stateKey, nil)
}

// StateDelta lists the events of the state to that the state from lacks. It reads only what differs.
func (s *Service) StateDelta(ctx context.Context, room matrix.RoomID, from, to storage.StateRoot) ([]*storage.Event, error) {
	if from == to {
		return nil, nil
	}
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, err
	}
	diffs, err := s.o.DB.DiffState(ctx, r.Num, from, to, storage.AllState, nil)
	if err != nil {
		return nil, err
	}
	nums := make([]int64, 0, len(diffs))
	for _, d := range diffs {
		if d.B != 0 {
			nums = append(nums, d.B)
		}
	}
	return s.o.DB.Events(ctx, nums)
}
