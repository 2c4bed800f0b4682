package room

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// State resolution asks of some events whether they are in the auth chain of anything that all states agree on. In a large room that is
// nearly everything, and one old event, such as the join of a moderator who has kicked somebody in one of two forks, would have all of it walked,
// for each event of the forks. So, for a few rooms at a time, it is remembered which entries of a state lead to which events of its auth
// chain. The chain of an event never changes: whether the remembered entries are still agreed on is all that is left to be looked up.

const (
	// maxWalked is how many entries of a state are walked without anything being remembered.
	maxWalked = 1000
	// maxDrift is by how many entries a state may differ from the remembered one; what differs is walked each time.
	maxDrift = 2000
	// maxChains is for how many rooms something is remembered: about 45 bytes for each event of the auth chain.
	maxChains = 4
	// maxWitnesses is how many entries of the state are remembered for each event.
	maxWitnesses = 4
)

// chains is the auth chain of a state.
type chains struct {
	root storage.StateRoot
	left []int64 // entries that were left out, since the forks that were resolved then disagreed on them
	// nums are the events of the chain, ascending.
	nums      []int64
	witnesses []witnesses // by the index in nums
	// disordered says that an event is not numbered after its auth events, which several processes on one database make possible.
	disordered bool
}

// witnesses are entries of a state in whose auth chain an event is.
type witnesses struct {
	nums [maxWitnesses]int64 // 0: no more
	more bool                // there are more than these
}

func (w *witnesses) add(num int64) {
	for i, have := range w.nums {
		if have == num {
			return
		}
		if have == 0 {
			w.nums[i] = num
			return
		}
	}
	w.more = true
}

// rememberedChains are the chains of some rooms, that used last at the end. The zero value is ready for use.
type rememberedChains struct {
	mu    sync.Mutex
	rooms []int64
	byNum map[int64]*chains
}

func (r *rememberedChains) get(room int64) *chains {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.rooms, room); i >= 0 {
		r.rooms = append(slices.Delete(r.rooms, i, i+1), room)
	}
	return r.byNum[room]
}

func (r *rememberedChains) put(room int64, c *chains) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byNum == nil {
		r.byNum = map[int64]*chains{}
	}
	if r.byNum[room] == nil {
		if len(r.rooms) == maxChains {
			delete(r.byNum, r.rooms[0])
			r.rooms = slices.Delete(r.rooms, 0, 1)
		}
		r.rooms = append(r.rooms, room)
	}
	r.byNum[room] = c
}

// inUnconflictedChains is for matrix.Resolution. The events have been loaded.
func (q *resolving) inUnconflictedChains(conflicted map[matrix.StateTuple]bool, ids []matrix.EventID) (map[matrix.EventID]bool, error) {
	var asked []*storage.Event
	lowest := int64(1<<63 - 1)
	for _, id := range ids {
		if e := q.known[id]; e != nil { // nothing comes of events that are not here
			asked = append(asked, e)
			lowest = min(lowest, e.Num)
		}
	}
	if len(asked) == 0 {
		return nil, nil
	}
	newer, err := q.s.o.DB.StateNumsAfter(q.ctx, q.room.Num, q.roots[0], storage.AllState, lowest, &q.fresh.nodes)
	if err != nil {
		return nil, err
	}
	if len(newer) <= maxWalked {
		return q.reached(conflicted, newer, lowest)
	}
	c, changed, err := q.remembered(conflicted)
	if err == nil && c.disordered {
		err = matrix.ErrOrder
	}
	if err != nil {
		return nil, err
	}
	in, err := q.reached(conflicted, changed, lowest)
	if err != nil {
		return nil, err
	}
	for _, e := range asked {
		found, certain, err := q.witnessed(c, conflicted, e.Num)
		if err == nil && !certain && !in[e.ID()] {
			// All remembered entries are disagreed on now, and there were more: begin anew with those that are not.
			if c, err = q.rememberChains(conflicted); err == nil {
				found, _, err = q.witnessed(c, conflicted, e.Num)
			}
		}
		if err != nil {
			return nil, err
		}
		if found {
			in[e.ID()] = true
		}
	}
	return in, nil
}

// remembered gives what is remembered of the room's chains, and which entries of the first state must be looked at beside it.
func (q *resolving) remembered(conflicted map[matrix.StateTuple]bool) (*chains, []int64, error) {
	if c := q.s.chains.get(q.room.Num); c != nil {
		diffs, err := q.s.o.DB.DiffState(q.ctx, q.room.Num, c.root, q.roots[0], storage.AllState, &q.fresh.nodes)
		// The state may have been one of a write that failed, or have been purged.
		if err == nil && len(diffs) <= maxDrift {
			changed := slices.Clone(c.left)
			for _, d := range diffs {
				if d.B != 0 {
					changed = append(changed, d.B)
				}
			}
			return c, changed, nil
		}
		if q.ctx.Err() != nil {
			return nil, nil, q.ctx.Err()
		}
	}
	c, err := q.rememberChains(conflicted)
	return c, nil, err
}

// agreed picks the entries of the first state that are entries of it, and of all others.
func (q *resolving) agreed(conflicted map[matrix.StateTuple]bool, nums []int64) ([]*storage.Event, error) {
	events, err := q.s.events(q.ctx, nums, q.fresh)
	if err != nil {
		return nil, err
	}
	agreed := make([]*storage.Event, 0, len(events))
	for _, e := range events {
		if conflicted[e.Tuple()] {
			continue
		}
		now, err := q.s.stateEvent(q.ctx, q.room.Num, q.roots[0], e.Type(), stateKey(e.Event), q.fresh)
		if err != nil {
			return nil, err
		}
		if now != nil && now.Num == e.Num {
			agreed = append(agreed, e)
		}
	}
	return agreed, nil
}

// reached walks the auth chains of those of the entries that are agreed on, as far down as the event number lowest.
func (q *resolving) reached(conflicted map[matrix.StateTuple]bool, nums []int64, lowest int64) (map[matrix.EventID]bool, error) {
	in := map[matrix.EventID]bool{}
	nums = slices.DeleteFunc(slices.Clone(nums), func(num int64) bool { return num <= lowest })
	front, err := q.agreed(conflicted, nums)
	if err != nil {
		return nil, err
	}
	for len(front) > 0 {
		var next []matrix.EventID
		for _, e := range front {
			if e.Num <= lowest { // whatever is above comes later
				continue
			}
			for _, id := range e.AuthEvents() {
				if !in[id] {
					in[id] = true
					next = append(next, id)
				}
			}
		}
		if _, err := q.load(next); err != nil {
			return nil, err
		}
		for _, e := range front {
			for _, id := range e.AuthEvents() {
				if a := q.known[id]; a != nil && a.Num >= e.Num {
					return nil, matrix.ErrOrder
				}
			}
		}
		front = front[:0]
		for _, id := range next {
			if e := q.known[id]; e != nil {
				front = append(front, e)
			}
		}
	}
	return in, nil
}

// witnessed reports whether one of the remembered entries that lead to an event is agreed on. If none is, certain tells whether there
// are no others.
func (q *resolving) witnessed(c *chains, conflicted map[matrix.StateTuple]bool, num int64) (found, certain bool, err error) {
	i, ok := slices.BinarySearch(c.nums, num)
	if !ok {
		return false, true, nil
	}
	w := &c.witnesses[i]
	for _, n := range w.nums {
		if n == 0 {
			break
		}
		agreed, err := q.agreed(conflicted, []int64{n})
		if err != nil || len(agreed) > 0 {
			return len(agreed) > 0, true, err
		}
	}
	return false, !w.more, nil
}

// rememberChains walks the auth chains of all that the states agree on.
func (q *resolving) rememberChains(conflicted map[matrix.StateTuple]bool) (*chains, error) {
	nums, err := q.s.o.DB.StateNums(q.ctx, q.room.Num, q.roots[0], storage.AllState, &q.fresh.nodes)
	if err != nil {
		return nil, err
	}
	c := &chains{root: q.roots[0]}
	w := chainWalk{ids: map[matrix.EventID]int32{}}
	slices.Sort(nums) // about as they lie on the disk
	for chunk := range slices.Chunk(nums, maxWalked) {
		events, err := q.s.events(q.ctx, chunk, q.fresh)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if conflicted[e.Tuple()] {
				c.left = append(c.left, e.Num)
			} else {
				w.add(e, true)
			}
		}
	}
	for from := 0; from < len(w.events); { // level by level
		ids := w.unknown(from)
		from = len(w.events)
		for chunk := range slices.Chunk(ids, maxWalked) {
			found, err := q.chainEvents(q.ctx, chunk)
			if err != nil {
				return nil, err
			}
			for _, e := range found {
				w.nums[w.ids[e.ID()]] = e.Num
				if _, inState := slices.BinarySearch(nums, e.Num); !inState || conflicted[e.Tuple()] {
					w.add(e, false)
				}
			}
		}
	}
	w.spread(c)
	q.s.chains.put(q.room.Num, c)
	return c, nil
}

// chainEvents finds events, staged or stored, without remembering them.
func (q *resolving) chainEvents(ctx context.Context, ids []matrix.EventID) ([]*storage.Event, error) {
	found, err := q.s.o.DB.EventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if e := q.fresh.byID(id); e != nil {
			found = append(found, e)
		}
	}
	return slices.DeleteFunc(found, func(e *storage.Event) bool { return e.RoomNum != q.room.Num }), nil
}

// chainWalk gathers who authorizes whom.
type chainWalk struct {
	ids    map[matrix.EventID]int32 // of events that are in a chain, to the index of their number
	nums   []int64                  // 0: not here
	byIdx  []matrix.EventID
	events []chainLink
	auth   []int32 // of all events, one after the other
}

type chainLink struct {
	num       int64
	from, to  int32 // in auth
	isWitness bool
}

func (w *chainWalk) add(e *storage.Event, inState bool) {
	l := chainLink{num: e.Num, from: int32(len(w.auth)), isWitness: inState}
	for _, id := range e.AuthEvents() {
		i, ok := w.ids[id]
		if !ok {
			i = int32(len(w.nums))
			id = matrix.EventID(strings.Clone(string(id)))
			w.ids[id] = i
			w.nums = append(w.nums, 0)
			w.byIdx = append(w.byIdx, id)
		}
		w.auth = append(w.auth, i)
	}
	l.to = int32(len(w.auth))
	w.events = append(w.events, l)
}

// unknown lists the auth events of the events from an index on whose numbers are not known.
func (w *chainWalk) unknown(from int) []matrix.EventID {
	var ids []matrix.EventID
	seen := map[int32]bool{}
	for _, l := range w.events[from:] {
		for _, a := range w.auth[l.from:l.to] {
			if w.nums[a] == 0 && !seen[a] {
				seen[a] = true
				ids = append(ids, w.byIdx[a])
			}
		}
	}
	return ids
}

// spread hands the entries of the state down to what is in their chains, from the newest event on: events are numbered after their auth events.
func (w *chainWalk) spread(c *chains) {
	c.nums = slices.DeleteFunc(slices.Clone(w.nums), func(num int64) bool { return num == 0 })
	slices.Sort(c.nums)
	c.nums = slices.Clip(slices.Compact(c.nums))
	c.witnesses = make([]witnesses, len(c.nums))
	slices.SortFunc(w.events, func(a, b chainLink) int { return cmp.Compare(b.num, a.num) })
	for _, l := range w.events {
		var from *witnesses
		if i, ok := slices.BinarySearch(c.nums, l.num); ok {
			from = &c.witnesses[i]
		}
		for _, a := range w.auth[l.from:l.to] {
			i, ok := slices.BinarySearch(c.nums, w.nums[a])
			if !ok {
				continue
			}
			c.disordered = c.disordered || w.nums[a] >= l.num
			to := &c.witnesses[i]
			if l.isWitness {
				to.add(l.num)
			}
			if from == nil {
				continue
			}
			for _, n := range from.nums {
				if n != 0 {
					to.add(n)
				}
			}
			to.more = to.more || from.more
		}
	}
}
