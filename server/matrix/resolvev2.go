package matrix

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
)

// resolveV2 is the second algorithm and, for room version 12, its revision 2.1.
// Spec v1.19 rooms/v2/#state-resolution, rooms/v12/#state-resolution
func (s *resolver) resolveV2() (map[StateTuple]int32, error) {
	full, err := s.fullConflictedSet()
	if err != nil {
		return nil, err
	}
	if err := s.loadAuthState(full); err != nil {
		return nil, err
	}
	// 1. The power events and what authorizes them, in reverse topological power ordering.
	power, rest := s.splitPowerEvents(full)
	if power, err = s.powerOrder(power); err != nil {
		return nil, err
	}
	// 2. Check them one after the other, from the unconflicted state on; 2.1 from nothing on.
	resolved := map[StateTuple]int32{}
	if err := s.check(power, resolved); err != nil {
		return nil, err
	}
	// 3. The rest in mainline ordering.
	if rest, err = s.mainlineOrder(rest, resolved); err != nil {
		return nil, err
	}
	// 4. Check them in turn. 5., putting the unconflicted state back, is left to Resolve.
	return resolved, s.check(rest, resolved)
}

// fromUnconflicted reports whether the checks start from the unconflicted state.
func (s *resolver) fromUnconflicted() bool { return s.Version.StateResolution != StateResolutionV21 }

// fullConflictedSet is the conflicted state set, the auth difference and in version 2.1 the conflicted state subgraph.
func (s *resolver) fullConflictedSet() ([]int32, error) {
	walked, difference, err := s.authDifference()
	if errors.Is(err, ErrOrder) {
		// Exactness goes before speed.
		if s.UnconflictedEvents == nil && s.UnconflictedAfter != nil {
			s.UnconflictedEvents = s.UnconflictedAfter(math.MinInt64)
		}
		s.Order, s.UnconflictedAfter, s.InUnconflictedChains = nil, nil, nil
		walked, difference, err = s.authDifference()
	}
	if err != nil {
		return nil, err
	}
	for _, n := range difference {
		s.nodes[n].full = true
	}
	if s.Version.StateResolution == StateResolutionV21 {
		s.markSubgraph(walked)
	}
	var full []int32
	for _, n := range walked {
		if s.nodes[n].full && s.nodes[n].event != nil && s.nodes[n].event.hasStateKey {
			full = append(full, n)
		}
	}
	return full, nil
}

// authDifference gives the events walked, in an order in which auth events come after what they authorize, and those of them that are in the auth
// chains of some states and not of all. What is conflicted is marked as full.
func (s *resolver) authDifference() (walked, difference []int32, err error) {
	if walked, err = s.walkChains(); err != nil {
		return nil, nil, err
	}
	for _, n := range walked {
		x := &s.nodes[n]
		if x.conflicted {
			x.full = true
		} else if x.chains != s.full {
			difference = append(difference, n)
		}
	}
	// What an unconflicted event leads to is in the chains of all states.
	difference, err = s.withoutUnconflicted(difference)
	return walked, difference, err
}

// markSubgraph puts the conflicted state subgraph into the full conflicted set: every event on a path from a conflicted
// event to another. All walked events are reached from a conflicted one, so it remains to see which lead to one.
func (s *resolver) markSubgraph(walked []int32) {
	for _, n := range slices.Backward(walked) {
		x := &s.nodes[n]
		x.seen = x.conflicted
		s.work += 1 + len(x.auth)
		for _, a := range x.auth {
			x.seen = x.seen || s.nodes[a].seen
		}
		x.full = x.full || x.seen
	}
	for _, n := range walked {
		s.nodes[n].seen = false
	}
}

// walkChains walks the auth chains of the conflicted events and notes for each event in which sets' chains it
// is. With an Order it stops where everything further is in the chains of all sets. It returns the events walked, each
// before its auth events.
func (s *resolver) walkChains() ([]int32, error) {
	for n := range s.nodes {
		s.nodes[n].chains, s.nodes[n].seen = 0, false
	}
	if s.Order == nil {
		if err := s.loadChains(); err != nil {
			return nil, err
		}
	}
	var walked []int32
	q := &orderQueue{s: s}
	var fresh []int32 // queued, and their auth events were not asked for yet
	push := func(n int32) {
		if !s.nodes[n].seen {
			s.nodes[n].seen = true
			heap.Push(q, n)
			fresh = append(fresh, n)
		}
	}
	for _, n := range s.conflicted {
		push(n)
	}
	partial := len(q.nodes) // how many in the queue are not in all chains yet, or are seeds
	isPartial := func(n int32) bool { return s.nodes[n].conflicted || s.nodes[n].chains != s.full }
	for q.Len() > 0 && (partial > 0 || s.Order == nil) {
		if s.Order != nil && slices.ContainsFunc(s.nodes[q.nodes[0]].auth, func(a int32) bool { return !s.nodes[a].loaded }) {
			// The others are loaded with it, in one batch.
			if err := s.loadParents(fresh); err != nil {
				return nil, err
			}
			fresh = fresh[:0]
		}
		n := heap.Pop(q).(int32)
		walked = append(walked, n)
		if isPartial(n) {
			partial--
		}
		out := s.nodes[n].chains | s.nodes[n].inSets
		s.work += 1 + len(s.nodes[n].auth)
		for _, a := range s.nodes[n].auth {
			if s.Order != nil && s.nodes[a].event != nil && s.nodes[a].order >= s.nodes[n].order {
				return nil, ErrOrder
			}
			known := s.nodes[a].seen
			was := known && isPartial(a)
			s.nodes[a].chains |= out
			if !known {
				push(a)
			}
			if now := isPartial(a); now && !known {
				partial++
			} else if was && !now {
				partial--
			}
		}
	}
	// What is left in the queue is in the chains of all sets.
	walked = append(walked, q.nodes...)
	for _, n := range walked {
		s.nodes[n].seen = false
	}
	return walked, nil
}

// ErrOrder says that Resolution.Order does not keep its word. Resolve then does without it; InUnconflictedChains may answer it as well.
var ErrOrder = errors.New("an event is not after its auth events")

// loadParents loads the auth events of queued nodes, as their order must be known before they are queued.
func (s *resolver) loadParents(nodes []int32) error {
	var parents []int32
	for _, n := range nodes {
		parents = append(parents, s.nodes[n].auth...)
	}
	return s.load(parents)
}

// loadChains loads the whole auth chains of the conflicted events and numbers them, each above its auth events.
func (s *resolver) loadChains() error {
	reached := slices.Clone(s.conflicted)
	for _, n := range reached {
		s.nodes[n].seen = true
	}
	for from := 0; from < len(reached); {
		batch := reached[from:]
		from = len(reached)
		if err := s.load(batch); err != nil {
			return err
		}
		for _, n := range batch {
			s.work += len(s.nodes[n].auth)
			for _, a := range s.nodes[n].auth {
				if !s.nodes[a].seen {
					s.nodes[a].seen = true
					reached = append(reached, a)
				}
			}
		}
	}
	for _, n := range reached {
		s.nodes[n].seen = false
	}
	s.number(reached)
	return nil
}

// number gives each node a number below those of the nodes that it authorizes, by Kahn's algorithm. Events on a cycle,
// which acceptance has excluded, keep the lowest number.
func (s *resolver) number(nodes []int32) {
	children := make(map[int32]int, len(nodes))
	for _, n := range nodes {
		s.work += 2 * len(s.nodes[n].auth) // here and below
		for _, a := range s.nodes[n].auth {
			children[a]++
		}
	}
	var ready []int32
	for _, n := range nodes {
		s.nodes[n].order = math.MinInt64
		if children[n] == 0 {
			ready = append(ready, n)
		}
	}
	next := int64(len(nodes))
	for len(ready) > 0 {
		n := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		s.nodes[n].order = next
		next--
		for _, a := range s.nodes[n].auth {
			if children[a]--; children[a] == 0 {
				ready = append(ready, a)
			}
		}
	}
}

// orderQueue gives the node with the highest order first.
type orderQueue struct {
	s     *resolver
	nodes []int32
}

func (q *orderQueue) Len() int { return len(q.nodes) }
func (q *orderQueue) Less(i, j int) bool {
	q.s.work++
	return q.s.nodes[q.nodes[i]].order > q.s.nodes[q.nodes[j]].order
}
func (q *orderQueue) Swap(i, j int) { q.nodes[i], q.nodes[j] = q.nodes[j], q.nodes[i] }
func (q *orderQueue) Push(n any)    { q.nodes = append(q.nodes, n.(int32)) }
func (q *orderQueue) Pop() any {
	last := len(q.nodes) - 1
	n := q.nodes[last]
	q.nodes = q.nodes[:last]
	return n
}

// withoutUnconflicted takes out of candidates what is in the auth chain of an unconflicted event, as it is in the
// chains of all sets.
func (s *resolver) withoutUnconflicted(candidates []int32) ([]int32, error) {
	if len(candidates) == 0 {
		return nil, nil
	}
	if s.Order != nil && s.InUnconflictedChains != nil {
		ids := make([]EventID, len(candidates))
		for i, n := range candidates {
			ids[i] = s.nodes[n].id
		}
		inAll, err := s.InUnconflictedChains(ids)
		if err != nil {
			return nil, fmt.Errorf("resolve state: %w", err)
		}
		return slices.DeleteFunc(candidates, func(n int32) bool { return inAll[s.nodes[n].id] }), nil
	}
	lowest := int64(math.MinInt64)
	unconflicted := s.UnconflictedEvents
	if unconflicted == nil {
		unconflicted = func(func(EventID) bool) {}
	}
	if s.Order != nil {
		lowest = math.MaxInt64
		for _, n := range candidates {
			lowest = min(lowest, s.nodes[n].order)
		}
		if s.UnconflictedAfter != nil {
			unconflicted = s.UnconflictedAfter(lowest)
		}
	}
	inAll, err := s.chainsOf(unconflicted, lowest)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(candidates, func(n int32) bool { return inAll[n] }), nil
}

// chainsOf is the union of the auth chains of events, as far down as the order lowest.
func (s *resolver) chainsOf(events iter.Seq[EventID], lowest int64) (map[int32]bool, error) {
	inChain := map[int32]bool{}
	var frontier, next []int32
	for id := range events {
		frontier = append(frontier, s.intern(id))
	}
	for len(frontier) > 0 {
		if err := s.load(frontier); err != nil {
			return nil, err
		}
		next = next[:0]
		for _, n := range frontier {
			if s.Order != nil && s.nodes[n].order <= lowest {
				continue
			}
			s.work += len(s.nodes[n].auth)
			for _, a := range s.nodes[n].auth {
				if !inChain[a] {
					inChain[a] = true
					next = append(next, a)
				}
			}
		}
		frontier, next = next, frontier
	}
	return inChain, nil
}

// splitPowerEvents divides the full conflicted set into the power events with those events of their auth chains that
// are in it, and the rest. Like all servers we follow the chains only within the full conflicted set.
func (s *resolver) splitPowerEvents(full []int32) (power, rest []int32) {
	for _, n := range full {
		if !s.nodes[n].seen && isPowerEvent(s.nodes[n].event) {
			s.nodes[n].seen = true
			power = append(power, n)
		}
	}
	for i := 0; i < len(power); i++ {
		s.work += len(s.nodes[power[i]].auth)
		for _, a := range s.nodes[power[i]].auth {
			if x := &s.nodes[a]; x.full && !x.seen && x.event != nil && x.event.hasStateKey {
				x.seen = true
				power = append(power, a)
			}
		}
	}
	for _, n := range full {
		if !s.nodes[n].seen {
			rest = append(rest, n)
		}
	}
	for _, n := range power {
		s.nodes[n].seen = false
	}
	return power, rest
}

// isPowerEvent: power levels, join rules, and members who were kicked or banned by another. Of the first two it is, as
// on all servers, those that take effect, with an empty state key.
func isPowerEvent(e *Event) bool {
	switch e.typ {
	case TypePowerLevels, TypeJoinRules:
		return e.stateKey == ""
	case TypeMember:
		return (e.membership == Leave || e.membership == Ban) && e.stateKey != string(e.sender)
	}
	return false
}

// powerOrder is the reverse topological power ordering: auth events first; among those that could be next the one whose
// sender has the greatest power, then the oldest, then the lowest event ID.
func (s *resolver) powerOrder(events []int32) ([]int32, error) {
	q := &powerQueue{s: s}
	waits := make(map[int32]int, len(events)) // for how many auth events
	children := make(map[int32][]int32, len(events))
	for _, n := range events {
		waits[n] = 0
	}
	for _, n := range events {
		for _, a := range s.nodes[n].auth {
			s.work++
			of := children[a]
			if _, ok := waits[a]; ok && (len(of) == 0 || of[len(of)-1] != n) { // an event may name another twice
				children[a] = append(of, n)
				waits[n]++
			}
		}
	}
	ready := func(n int32) error {
		power, err := s.senderPower(n)
		heap.Push(q, ranked{n, power, s.nodes[n].event})
		return err
	}
	for _, n := range events {
		if waits[n] == 0 {
			if err := ready(n); err != nil {
				return nil, err
			}
		}
	}
	sorted := make([]int32, 0, len(events))
	for q.Len() > 0 {
		n := heap.Pop(q).(ranked).node
		sorted = append(sorted, n)
		for _, c := range children[n] {
			if waits[c]--; waits[c] == 0 {
				if err := ready(c); err != nil {
					return nil, err
				}
			}
		}
	}
	return sorted, nil
}

type ranked struct {
	node  int32
	power int64
	event *Event
}

// powerQueue gives the smallest event first by the comparison of the reverse topological power ordering.
type powerQueue struct {
	s    *resolver
	list []ranked
}

func (q *powerQueue) Len() int { return len(q.list) }
func (q *powerQueue) Less(i, j int) bool {
	q.s.work++
	if q.list[i].power != q.list[j].power {
		return q.list[i].power > q.list[j].power
	}
	return compareAge(q.list[i].event, q.list[j].event) < 0
}
func (q *powerQueue) Swap(i, j int) { q.list[i], q.list[j] = q.list[j], q.list[i] }
func (q *powerQueue) Push(r any)    { q.list = append(q.list, r.(ranked)) }
func (q *powerQueue) Pop() any {
	last := len(q.list) - 1
	r := q.list[last]
	q.list = q.list[:last]
	return r
}

// compareAge compares events by their time, then by their ID.
func compareAge(x, y *Event) int {
	if c := cmp.Compare(x.originServerTS, y.originServerTS); c != 0 {
		return c
	}
	return strings.Compare(string(x.id), string(y.id))
}

// senderPower is the power of an event's sender by the event's auth events.
func (s *resolver) senderPower(n int32) (int64, error) {
	e := s.nodes[n].event
	levels, err := s.authEvent(n, TypePowerLevels)
	if err != nil {
		return 0, err
	}
	create, err := s.createOf(n)
	if err != nil {
		return 0, err
	}
	a := authorizer{Event: e, v: s.Version, create: create, state: func(string, string) *Event { return levels }}
	if create == nil {
		if levels == nil {
			return 0, nil
		}
		return levels.powerLevels().User(e.sender), nil
	}
	return a.power(e.sender), nil
}

// authEvent is the auth event of a type with an empty state key, nil if there is none.
func (s *resolver) authEvent(n int32, typ string) (*Event, error) {
	if err := s.load(s.nodes[n].auth); err != nil {
		return nil, err
	}
	for _, a := range s.nodes[n].auth {
		if e := s.nodes[a].event; e != nil && e.Is(typ, "") {
			return e, nil
		}
	}
	return nil, nil
}

// createOf is the room's create event: an auth event, or in room version 12 the event that the room ID names.
func (s *resolver) createOf(n int32) (*Event, error) {
	e := s.nodes[n].event
	switch {
	case e.typ == TypeCreate:
		return e, nil
	case s.Version.RoomIDIsCreateID:
		return s.event(s.intern(e.roomID.CreateEventID()))
	}
	return s.authEvent(n, TypeCreate)
}

// mainlineOrder is the mainline ordering based on the power levels that are resolved.
func (s *resolver) mainlineOrder(events []int32, resolved map[StateTuple]int32) ([]int32, error) {
	const none = math.MaxInt
	position := map[int32]int{} // of power levels events
	at, ok := resolved[StateTuple{TypePowerLevels, ""}]
	if !ok && s.fromUnconflicted() {
		if id := s.Unconflicted(StateTuple{TypePowerLevels, ""}); id != "" {
			at, ok = s.intern(id), true
		}
	}
	for i := 0; ok; i++ {
		s.work++
		if _, cycle := position[at]; cycle {
			break
		}
		position[at] = i
		var err error
		if at, ok, err = s.powerLevelsAbove(at); err != nil {
			return nil, err
		}
	}
	find := func(n int32) (int, error) {
		var path []int32
		found := none
		for {
			s.work++
			above, ok, err := s.powerLevelsAbove(n)
			if err != nil {
				return 0, err
			}
			if !ok {
				break
			}
			if i, known := position[above]; known {
				found = i
				break
			}
			position[above] = none // until it is known, which also ends cycles
			path = append(path, above)
			n = above
		}
		for _, p := range path {
			position[p] = found
		}
		return found, nil
	}
	type placed struct {
		node     int32
		position int
	}
	sorted := make([]placed, len(events))
	for i, n := range events {
		p, err := find(n)
		if err != nil {
			return nil, err
		}
		sorted[i] = placed{n, p}
	}
	slices.SortFunc(sorted, func(x, y placed) int {
		s.work++
		if c := cmp.Compare(y.position, x.position); c != 0 {
			return c
		}
		return compareAge(s.nodes[x.node].event, s.nodes[y.node].event)
	})
	result := make([]int32, len(sorted))
	for i, p := range sorted {
		result[i] = p.node
	}
	return result, nil
}

// powerLevelsAbove is the power levels event among an event's auth events.
func (s *resolver) powerLevelsAbove(n int32) (int32, bool, error) {
	if _, err := s.event(n); err != nil {
		return 0, false, err
	}
	e, err := s.authEvent(n, TypePowerLevels)
	if e == nil || err != nil {
		return 0, false, err
	}
	return s.index[e.id], true, nil
}

// check is the iterative auth checks: an event that the rules allow in the state so far goes into it.
func (s *resolver) check(events []int32, resolved map[StateTuple]int32) error {
	for _, n := range events {
		e := s.nodes[n].event
		if err := s.load(s.nodes[n].auth); err != nil {
			return err
		}
		create, err := s.createOf(n)
		if err != nil {
			return err
		}
		if Authorize(e, func(typ, stateKey string) *Event {
			s.work += 1 + len(s.nodes[n].auth)
			t := StateTuple{typ, stateKey}
			if r, ok := resolved[t]; ok {
				return s.nodes[r].event
			}
			if s.fromUnconflicted() {
				if known := s.unconflictedEvent(t); known != nil {
					return known
				}
			}
			for _, a := range s.nodes[n].auth {
				if x := s.nodes[a].event; x != nil && x.Is(typ, stateKey) && !s.rejected(a) {
					return x
				}
			}
			if s.Version.RoomIDIsCreateID && t == (StateTuple{TypeCreate, ""}) {
				return create
			}
			return nil
		}) == nil {
			resolved[e.Tuple()] = n
		}
	}
	return nil
}

// loadAuthState loads what the checks of the events will ask of the unconflicted state, and their auth events.
func (s *resolver) loadAuthState(events []int32) error {
	var need []int32
	for _, n := range events {
		need = append(need, s.nodes[n].auth...)
		e := s.nodes[n].event
		need = s.needUnconflicted(need, StateTuple{TypeCreate, ""})
		for _, t := range e.AuthKeys() {
			need = s.needUnconflicted(need, t)
		}
	}
	return s.load(need)
}

func (s *resolver) needUnconflicted(need []int32, t StateTuple) []int32 {
	if id := s.Unconflicted(t); id != "" {
		need = append(need, s.intern(id))
	}
	return need
}

// unconflictedEvent is an event of the unconflicted state that loadAuthState has loaded; nil if there is none.
func (s *resolver) unconflictedEvent(t StateTuple) *Event {
	id := s.Unconflicted(t)
	if id == "" {
		return nil
	}
	if n, ok := s.index[id]; ok {
		return s.nodes[n].event
	}
	return nil
}
