package matrix

import (
	"math"
	"sort"
)

// slowResolve is state resolution v2 and v2.1 as the spec words it, with sets instead of algorithms: quadratic and
// worse, but easy to compare with the text. literal makes the auth chains of power events count as a whole, where
// all servers follow them only within the full conflicted set.
type slowResolve struct {
	version  *RoomVersion
	events   map[EventID]*Event
	rejected map[EventID]bool
	literal  bool
}

type idSet map[EventID]bool

func (s *slowResolve) chain(id EventID, into idSet) idSet {
	if e := s.events[id]; e != nil {
		for _, a := range e.AuthEvents() {
			if !into[a] {
				into[a] = true
				s.chain(a, into)
			}
		}
	}
	return into
}

func (s *slowResolve) resolve(states []StateMap) StateMap {
	// Unconflicted state map and conflicted state set.
	unconflicted, conflicted := StateMap{}, idSet{}
	for _, state := range states {
		for tuple, id := range state {
			same := true
			for _, other := range states {
				same = same && other[tuple] == id
			}
			if same {
				unconflicted[tuple] = id
			} else {
				conflicted[id] = true
			}
		}
	}
	if len(conflicted) == 0 {
		return unconflicted
	}
	// Auth difference.
	var chains []idSet
	union := idSet{}
	for _, state := range states {
		c := idSet{}
		for _, id := range state {
			s.chain(id, c)
		}
		chains = append(chains, c)
		for id := range c {
			union[id] = true
		}
	}
	full := idSet{}
	for id := range union {
		for _, c := range chains {
			if !c[id] {
				full[id] = true
			}
		}
	}
	// Conflicted state subgraph.
	if s.version.StateResolution == StateResolutionV21 {
		for from := range conflicted {
			below := s.chain(from, idSet{})
			for x := range below {
				under := s.chain(x, idSet{})
				for to := range conflicted {
					if under[to] {
						full[x] = true
					}
				}
			}
		}
	}
	for id := range conflicted {
		full[id] = true
	}
	// 1. Power events and what of their chains is in the full conflicted set.
	x := idSet{}
	var enlarge func(id EventID)
	enlarge = func(id EventID) {
		if x[id] {
			return
		}
		x[id] = true
		if s.literal {
			for a := range s.chain(id, idSet{}) {
				if full[a] {
					enlarge(a)
				}
			}
			return
		}
		for _, a := range s.events[id].AuthEvents() {
			if full[a] {
				enlarge(a)
			}
		}
	}
	for id := range full {
		e := s.events[id]
		kick := e.Type() == TypeMember && (e.Membership() == Leave || e.Membership() == Ban) && string(e.Sender()) != e.stateKey
		if e.Type() == TypePowerLevels || e.Type() == TypeJoinRules || kick {
			enlarge(id)
		}
	}
	state := StateMap{}
	if s.version.StateResolution != StateResolutionV21 {
		for k, v := range unconflicted {
			state[k] = v
		}
	}
	// 2.
	s.check(s.powerOrder(x), state)
	// 3. and 4.
	var rest []EventID
	for id := range full {
		if !x[id] {
			rest = append(rest, id)
		}
	}
	s.mainline(rest, state[StateTuple{TypePowerLevels, ""}])
	s.check(rest, state)
	// 5.
	for k, v := range unconflicted {
		state[k] = v
	}
	return state
}

func (s *slowResolve) powerLevelsOf(id EventID) EventID {
	for _, a := range s.events[id].AuthEvents() {
		if e := s.events[a]; e != nil && e.Is(TypePowerLevels, "") {
			return a
		}
	}
	return ""
}

func (s *slowResolve) create(e *Event) *Event {
	if s.version.RoomIDIsCreateID {
		return s.events[e.RoomID().CreateEventID()]
	}
	for _, a := range e.AuthEvents() {
		if c := s.events[a]; c != nil && c.Type() == TypeCreate {
			return c
		}
	}
	if e.Type() == TypeCreate {
		return e
	}
	return nil
}

func (s *slowResolve) power(id EventID) int64 {
	e := s.events[id]
	return PowerLevelsOf(s.create(e), s.events[s.powerLevelsOf(id)]).User(e.Sender())
}

func (s *slowResolve) powerOrder(x idSet) (sorted []EventID) {
	left := idSet{}
	for id := range x {
		left[id] = true
	}
	for len(left) > 0 {
		var best EventID
		for id := range left {
			free := true
			if s.literal {
				for a := range s.chain(id, idSet{}) {
					free = free && !left[a]
				}
			} else {
				for _, a := range s.events[id].AuthEvents() {
					free = free && !left[a]
				}
			}
			if !free {
				continue
			}
			if best == "" || s.less(id, best) {
				best = id
			}
		}
		sorted = append(sorted, best)
		delete(left, best)
	}
	return sorted
}

func (s *slowResolve) less(a, b EventID) bool {
	if pa, pb := s.power(a), s.power(b); pa != pb {
		return pa > pb
	}
	return s.older(a, b)
}

func (s *slowResolve) older(a, b EventID) bool {
	x, y := s.events[a], s.events[b]
	if x.OriginServerTS() != y.OriginServerTS() {
		return x.OriginServerTS() < y.OriginServerTS()
	}
	return a < b
}

func (s *slowResolve) mainline(events []EventID, levels EventID) {
	position := map[EventID]int{}
	for i := 0; levels != ""; i++ {
		position[levels] = i
		levels = s.powerLevelsOf(levels)
	}
	find := func(id EventID) int {
		for p := s.powerLevelsOf(id); p != ""; p = s.powerLevelsOf(p) {
			if i, ok := position[p]; ok {
				return i
			}
		}
		return math.MaxInt
	}
	sort.Slice(events, func(i, j int) bool {
		if a, b := find(events[i]), find(events[j]); a != b {
			return a > b
		}
		return s.older(events[i], events[j])
	})
}

func (s *slowResolve) check(events []EventID, state StateMap) {
	for _, id := range events {
		e := s.events[id]
		if Authorize(e, func(typ, stateKey string) *Event {
			if have, ok := state[StateTuple{typ, stateKey}]; ok {
				return s.events[have]
			}
			for _, a := range e.AuthEvents() {
				if x := s.events[a]; x != nil && x.Is(typ, stateKey) && !s.rejected[a] {
					return x
				}
			}
			if typ == TypeCreate {
				return s.create(e)
			}
			return nil
		}) == nil {
			state[e.Tuple()] = id
		}
	}
}
