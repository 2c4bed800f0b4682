package difftest

import (
	"crypto/sha1"
	"maps"
	"math"
	"sort"

	"parley.im/parley/server/matrix"
)

// referee is state resolution as the spec words it, with sets instead of algorithms. It decides where we and
// gomatrixserverlib do not agree, and shares with us nothing but the authorization rules.
type referee struct {
	version *matrix.RoomVersion
	events  map[matrix.EventID]*matrix.Event
}

type idSet map[matrix.EventID]bool

func (s *referee) chain(id matrix.EventID, into idSet) idSet {
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

func (s *referee) resolve(states []matrix.StateMap) matrix.StateMap {
	if s.version.StateResolution == matrix.StateResolutionV1 {
		return s.resolveV1(states)
	}
	// Unconflicted state map and conflicted state set.
	unconflicted, conflicted := matrix.StateMap{}, idSet{}
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
	if s.version.StateResolution == matrix.StateResolutionV21 {
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
	var enlarge func(id matrix.EventID)
	enlarge = func(id matrix.EventID) {
		if x[id] {
			return
		}
		x[id] = true
		for _, a := range s.events[id].AuthEvents() {
			if full[a] {
				enlarge(a)
			}
		}
	}
	for id := range full {
		e := s.events[id]
		kick := e.Type() == matrix.TypeMember && (e.Membership() == matrix.Leave || e.Membership() == matrix.Ban) && !e.Is(matrix.TypeMember, string(e.Sender()))
		if e.Type() == matrix.TypePowerLevels || e.Type() == matrix.TypeJoinRules || kick {
			enlarge(id)
		}
	}
	state := matrix.StateMap{}
	if s.version.StateResolution != matrix.StateResolutionV21 {
		for k, v := range unconflicted {
			state[k] = v
		}
	}
	// 2.
	s.check(s.powerOrder(x), state)
	// 3. and 4.
	var rest []matrix.EventID
	for id := range full {
		if !x[id] {
			rest = append(rest, id)
		}
	}
	s.mainline(rest, state[matrix.StateTuple{Type: matrix.TypePowerLevels}])
	s.check(rest, state)
	// 5.
	for k, v := range unconflicted {
		state[k] = v
	}
	return state
}

func (s *referee) powerLevelsOf(id matrix.EventID) matrix.EventID {
	for _, a := range s.events[id].AuthEvents() {
		if e := s.events[a]; e != nil && e.Is(matrix.TypePowerLevels, "") {
			return a
		}
	}
	return ""
}

func (s *referee) create(e *matrix.Event) *matrix.Event {
	if s.version.RoomIDIsCreateID {
		return s.events[e.RoomID().CreateEventID()]
	}
	for _, a := range e.AuthEvents() {
		if c := s.events[a]; c != nil && c.Type() == matrix.TypeCreate {
			return c
		}
	}
	if e.Type() == matrix.TypeCreate {
		return e
	}
	return nil
}

func (s *referee) power(id matrix.EventID) int64 {
	e := s.events[id]
	return matrix.PowerLevelsOf(s.create(e), s.events[s.powerLevelsOf(id)]).User(e.Sender())
}

func (s *referee) powerOrder(x idSet) (sorted []matrix.EventID) {
	left := idSet{}
	for id := range x {
		left[id] = true
	}
	for len(left) > 0 {
		var best matrix.EventID
		for id := range left {
			free := true
			for _, a := range s.events[id].AuthEvents() {
				free = free && !left[a]
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

func (s *referee) less(a, b matrix.EventID) bool {
	if pa, pb := s.power(a), s.power(b); pa != pb {
		return pa > pb
	}
	return s.older(a, b)
}

func (s *referee) older(a, b matrix.EventID) bool {
	x, y := s.events[a], s.events[b]
	if x.OriginServerTS() != y.OriginServerTS() {
		return x.OriginServerTS() < y.OriginServerTS()
	}
	return a < b
}

func (s *referee) mainline(events []matrix.EventID, levels matrix.EventID) {
	position := map[matrix.EventID]int{}
	for i := 0; levels != ""; i++ {
		position[levels] = i
		levels = s.powerLevelsOf(levels)
	}
	find := func(id matrix.EventID) int {
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

func (s *referee) check(events []matrix.EventID, state matrix.StateMap) {
	for _, id := range events {
		e := s.events[id]
		if matrix.Authorize(e, func(typ, stateKey string) *matrix.Event {
			if have, ok := state[matrix.StateTuple{Type: typ, StateKey: stateKey}]; ok {
				return s.events[have]
			}
			for _, a := range e.AuthEvents() {
				if x := s.events[a]; x != nil && x.Is(typ, stateKey) {
					return x
				}
			}
			if typ == matrix.TypeCreate {
				return s.create(e)
			}
			return nil
		}) == nil {
			state[e.Tuple()] = id
		}
	}
}

// resolveV1 is the first algorithm, rooms/v1/#state-resolution.
func (s *referee) resolveV1(states []matrix.StateMap) matrix.StateMap {
	// R is the union of the states without conflicting events.
	r := matrix.StateMap{}
	conflicts := map[matrix.StateTuple][]matrix.EventID{}
	for tuple, id := range union(states) {
		if id != "" {
			r[tuple] = id
			continue
		}
		seen := idSet{}
		for _, state := range states {
			if id := state[tuple]; id != "" && !seen[id] {
				seen[id] = true
				conflicts[tuple] = append(conflicts[tuple], id)
			}
		}
		// Ascending depth, then descending sha1(event_id).
		sort.Slice(conflicts[tuple], func(i, j int) bool {
			a, b := s.events[conflicts[tuple][i]], s.events[conflicts[tuple][j]]
			if a.Depth() != b.Depth() {
				return a.Depth() < b.Depth()
			}
			x, y := sha1.Sum([]byte(a.ID())), sha1.Sum([]byte(b.ID()))
			return string(x[:]) > string(y[:])
		})
	}
	allowed := func(id matrix.EventID, state matrix.StateMap) bool {
		return matrix.Authorize(s.events[id], func(typ, key string) *matrix.Event {
			return s.events[state[matrix.StateTuple{Type: typ, StateKey: key}]]
		}) == nil
	}
	for _, typ := range []string{matrix.TypePowerLevels, matrix.TypeJoinRules, matrix.TypeMember} {
		decided := matrix.StateMap{}
		for tuple, list := range conflicts {
			if tuple.Type != typ {
				continue
			}
			with := maps.Clone(r)
			with[tuple] = list[0]
			for _, id := range list[1:] {
				if !allowed(id, with) {
					break
				}
				with[tuple] = id
			}
			decided[tuple] = with[tuple]
			delete(conflicts, tuple)
		}
		maps.Copy(r, decided)
	}
	rest := matrix.StateMap{}
	for tuple, list := range conflicts {
		for _, id := range list {
			if rest[tuple] == "" || allowed(id, r) {
				rest[tuple] = id
			}
		}
	}
	maps.Copy(r, rest)
	return r
}
