package matrix

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"slices"
)

// resolveV1 is the first algorithm. Spec v1.19 rooms/v1/#state-resolution
//
// The spec speaks of one list per event type; like all servers we take one list per type and state key, and decide the
// conflicts of one type against the result of the types before it.
func (s *resolver) resolveV1() (map[StateTuple]int32, error) {
	conflicts := map[StateTuple][]int32{}
	for _, n := range s.conflicted {
		t := s.nodes[n].event.Tuple()
		conflicts[t] = append(conflicts[t], n)
	}
	if err := s.loadAuthState(s.conflicted); err != nil {
		return nil, err
	}
	// What only some states have, but those the same, is no conflict here: it is there from the start.
	resolved := map[StateTuple]int32{}
	for tuple, events := range conflicts {
		if len(events) == 1 {
			resolved[tuple] = events[0]
			delete(conflicts, tuple)
		}
	}
	for _, typ := range []string{TypePowerLevels, TypeJoinRules, TypeMember} {
		decided := map[StateTuple]int32{}
		for tuple, events := range conflicts {
			if tuple.Type == typ {
				decided[tuple] = s.lastAuthorized(events, resolved)
				delete(conflicts, tuple)
			}
		}
		for tuple, n := range decided {
			resolved[tuple] = n
		}
	}
	others := map[StateTuple]int32{}
	for tuple, events := range conflicts {
		others[tuple] = s.bestAuthorized(events, resolved)
	}
	for tuple, n := range others {
		resolved[tuple] = n
	}
	return resolved, nil
}

// byDepth sorts events by ascending depth, then descending SHA-1 of the event ID.
func (s *resolver) byDepth(events []int32) []int32 {
	slices.SortFunc(events, func(a, b int32) int {
		x, y := s.nodes[a].event, s.nodes[b].event
		if c := cmp.Compare(x.depth, y.depth); c != 0 {
			return c
		}
		hx, hy := sha1.Sum([]byte(x.id)), sha1.Sum([]byte(y.id))
		return bytes.Compare(hy[:], hx[:])
	})
	return events
}

// lastAuthorized goes through the events by depth as long as each is authorized with the one before it in place.
func (s *resolver) lastAuthorized(events []int32, resolved map[StateTuple]int32) int32 {
	events = s.byDepth(events)
	best := events[0]
	for _, n := range events[1:] {
		if !s.authorizedV1(n, resolved, best) {
			return best
		}
		best = n
	}
	return best
}

// bestAuthorized is the deepest event that is authorized, and the least deep if none is.
func (s *resolver) bestAuthorized(events []int32, resolved map[StateTuple]int32) int32 {
	events = s.byDepth(events)
	for i := len(events) - 1; i > 0; i-- {
		if s.authorizedV1(events[i], resolved, -1) {
			return events[i]
		}
	}
	return events[0]
}

func (s *resolver) authorizedV1(n int32, resolved map[StateTuple]int32, over int32) bool {
	return Authorize(s.nodes[n].event, func(typ, stateKey string) *Event {
		if over >= 0 && s.nodes[over].event.Is(typ, stateKey) {
			return s.nodes[over].event
		}
		t := StateTuple{typ, stateKey}
		if r, ok := resolved[t]; ok {
			return s.nodes[r].event
		}
		return s.unconflictedEvent(t)
	}) == nil
}
