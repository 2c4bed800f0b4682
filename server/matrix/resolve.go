package matrix

import (
	"fmt"
	"iter"
)

// Resolution is a question to state resolution: several states of a room, of which only what they do not agree on is
// listed.
type Resolution struct {
	Version *RoomVersion

	// Sets holds, for each state, its entries for the conflicted tuples: those that some state has and not all states
	// have with the same event. A state without a tuple lacks it here. At most 64 sets.
	Sets []StateMap

	// Unconflicted finds the event that all states have for a tuple, "" if there is none.
	Unconflicted func(StateTuple) EventID

	// UnconflictedEvents yields the events of the unconflicted state. They are asked for only when the auth difference
	// cannot be told without them, at most once.
	UnconflictedEvents iter.Seq[EventID]

	// Load finds events; what is not known is left out. It is called with what a step of the walk needs, in few large
	// batches, never twice for the same event.
	Load func(ids []EventID) ([]*Event, error)

	// Rejected reports whether an event was rejected; nil if none was.
	Rejected func(EventID) bool

	// Order, if it is not nil, gives a number to an event that Load has found, larger than those of all its auth
	// events: the order in which we accepted them. With it only as much of the auth chains is walked as is
	// needed; without it, all. It must not be the depth, which other servers choose as they like.
	Order func(EventID) int64

	// UnconflictedAfter, if it is not nil, is used with Order instead of UnconflictedEvents: it yields at least the
	// unconflicted events with a larger number than the given one.
	UnconflictedAfter func(order int64) iter.Seq[EventID]

	// InUnconflictedChains, if it is not nil, is used with Order instead of both: it picks the events that are in the auth chain of an unconflicted
	// event. It is for who knows that without walking the chains of a large room each time.
	InUnconflictedChains func(events []EventID) (map[EventID]bool, error)
}

// Resolve returns the resolved entries for the conflicted tuples; a conflicted tuple without an entry has none in the
// resolved state. In odd rooms there are entries for further tuples, which no state had. The error is that of Load, or
// says that a state names an event that cannot be loaded. The time grows as n log n with the number n of the
// events walked. Spec v1.19 rooms/v1/#state-resolution, rooms/v2/#state-resolution, rooms/v12/#state-resolution
func Resolve(r *Resolution) (StateMap, error) {
	state, _, err := resolve(r)
	return state, err
}

// resolve also tells how much work it was; see resolver.work.
func resolve(r *Resolution) (_ StateMap, work int, _ error) {
	if len(r.Sets) > 64 {
		return nil, 0, fmt.Errorf("resolve %d states: at most 64 are possible", len(r.Sets))
	}
	question := *r
	s := &resolver{Resolution: &question, index: map[EventID]int32{}, full: 1<<len(r.Sets) - 1}
	if err := s.seed(); err != nil {
		return nil, s.work, err
	}
	var resolved map[StateTuple]int32
	var err error
	if r.Version.StateResolution == StateResolutionV1 {
		resolved, err = s.resolveV1()
	} else {
		resolved, err = s.resolveV2()
	}
	if err != nil {
		return nil, s.work, err
	}
	state := make(StateMap, len(resolved))
	for tuple, n := range resolved {
		if r.Unconflicted(tuple) == "" {
			state[tuple] = s.nodes[n].id
		}
	}
	return state, s.work, nil
}

// ResolveStates resolves whole states, finding itself what is conflicted, and returns the whole resolved state.
func ResolveStates(version *RoomVersion, states []StateMap, load func([]EventID) ([]*Event, error), rejected func(EventID) bool) (StateMap, error) {
	unconflicted, sets := SplitStates(states)
	conflicted := false
	for _, set := range sets {
		conflicted = conflicted || len(set) > 0
	}
	if !conflicted {
		return unconflicted, nil
	}
	resolved, err := Resolve(&Resolution{
		Version: version, Sets: sets, Load: load, Rejected: rejected,
		Unconflicted: func(t StateTuple) EventID { return unconflicted[t] },
		UnconflictedEvents: func(yield func(EventID) bool) {
			for _, id := range unconflicted {
				if !yield(id) {
					return
				}
			}
		},
	})
	if err != nil {
		return nil, err
	}
	for tuple, id := range resolved {
		unconflicted[tuple] = id
	}
	return unconflicted, nil
}

// SplitStates divides states into what all of them agree on and what is left of each.
func SplitStates(states []StateMap) (unconflicted StateMap, conflicted []StateMap) {
	unconflicted = StateMap{}
	count := map[StateTuple]int{}
	first := map[StateTuple]EventID{}
	for _, state := range states {
		for tuple, id := range state {
			if count[tuple] == 0 {
				first[tuple] = id
			}
			if first[tuple] == id {
				count[tuple]++
			}
		}
	}
	for tuple, n := range count {
		if n == len(states) {
			unconflicted[tuple] = first[tuple]
		}
	}
	for _, state := range states {
		set := StateMap{}
		for tuple, id := range state {
			if unconflicted[tuple] != id {
				set[tuple] = id
			}
		}
		conflicted = append(conflicted, set)
	}
	return unconflicted, conflicted
}

// resolver is the work on one Resolution. Events are interned: a node is known by its index.
type resolver struct {
	*Resolution
	full  uint64 // the mask of all sets
	index map[EventID]int32
	nodes []node

	conflicted []int32 // the conflicted state set

	// work counts the steps of all loops: events and auth events looked at, comparisons, questions of the rules. A test bounds it.
	work int
}

type node struct {
	id     EventID
	event  *Event // nil if it is not known, or not loaded yet
	auth   []int32
	loaded bool

	inSets     uint64 // the sets whose conflicted part has the event
	chains     uint64 // the sets in whose auth chain it is
	conflicted bool
	full       bool // in the full conflicted set
	seen       bool // scratch of walks
	order      int64
}

func (s *resolver) intern(id EventID) int32 {
	n, ok := s.index[id]
	if !ok {
		n = int32(len(s.nodes))
		s.index[id] = n
		s.nodes = append(s.nodes, node{id: id})
	}
	return n
}

// seed interns and loads the conflicted state set.
func (s *resolver) seed() error {
	for i, set := range s.Sets {
		for _, id := range set {
			n := s.intern(id)
			if !s.nodes[n].conflicted {
				s.nodes[n].conflicted = true
				s.conflicted = append(s.conflicted, n)
			}
			s.nodes[n].inSets |= 1 << i
		}
	}
	if err := s.load(s.conflicted); err != nil {
		return err
	}
	for _, n := range s.conflicted {
		if s.nodes[n].event == nil {
			return fmt.Errorf("resolve state: event %s of the state is not known", s.nodes[n].id)
		}
	}
	return nil
}

// load loads those of the nodes that have not been loaded, in one batch.
func (s *resolver) load(nodes []int32) error {
	var ids []EventID
	s.work += len(nodes)
	for _, n := range nodes {
		if !s.nodes[n].loaded {
			s.nodes[n].loaded = true
			ids = append(ids, s.nodes[n].id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	events, err := s.Load(ids)
	if err != nil {
		return fmt.Errorf("resolve state: %w", err)
	}
	for _, e := range events {
		n, asked := s.index[e.id]
		if !asked {
			continue
		}
		s.work += len(e.auth)
		auth := make([]int32, len(e.auth))
		for i, id := range e.auth {
			auth[i] = s.intern(id)
		}
		x := &s.nodes[n]
		x.event, x.auth = e, auth
		if s.Order != nil {
			x.order = s.Order(e.id)
		}
	}
	return nil
}

// event is the event of a node, loaded if it must be; nil if it is not known.
func (s *resolver) event(n int32) (*Event, error) {
	if !s.nodes[n].loaded {
		if err := s.load([]int32{n}); err != nil {
			return nil, err
		}
	}
	return s.nodes[n].event, nil
}

func (s *resolver) rejected(n int32) bool {
	return s.Rejected != nil && s.Rejected(s.nodes[n].id)
}
