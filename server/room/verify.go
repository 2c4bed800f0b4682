package room

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"parley.im/parley/server/matrix"
)

// Limits on what one answer of another server may make us do.
const (
	maxStateEvents = 150_000 // in the state, and again in the auth chain, of one room
	maxKeyWaits    = 32      // servers whose keys are fetched at the same time
)

// parseEvents reads events that another server answered. What is not a valid event of the room is left out, and of events with
// the same ID all but the first; at most limit are looked at. Signatures are not checked.
func parseEvents(raw []json.RawMessage, version *matrix.RoomVersion, room matrix.RoomID, limit int) []*matrix.Event {
	raw = raw[:min(len(raw), limit)]
	parsed := make([]*matrix.Event, len(raw))
	parallel(len(raw), runtime.GOMAXPROCS(0), func(i int) {
		if e, err := matrix.ParseEvent(raw[i], version); err == nil && e.RoomID() == room {
			parsed[i] = e
		}
	})
	seen := make(map[matrix.EventID]bool, len(parsed))
	events := parsed[:0]
	for _, e := range parsed {
		if e != nil && !seen[e.ID()] {
			seen[e.ID()] = true
			events = append(events, e)
		}
	}
	return events
}

// verifyEvents returns those of the events that carry all the signatures they need, in the same order. The rest, also those of
// servers whose keys cannot be had within ctx, is left out.
func (s *Service) verifyEvents(ctx context.Context, events []*matrix.Event) []*matrix.Event {
	// First one event per server, so that many keys are fetched at once and the rest finds them in the keyring.
	good := make([]bool, len(events))
	var first, rest []int
	seen := map[matrix.ServerName]bool{}
	for i, e := range events {
		if server := e.Sender().Server(); !seen[server] {
			seen[server] = true
			first = append(first, i)
		} else {
			rest = append(rest, i)
		}
	}
	check := func(list []int) func(int) {
		return func(i int) { good[list[i]] = matrix.VerifyEvent(ctx, events[list[i]], s.o.Keys) == nil }
	}
	parallel(len(first), maxKeyWaits, check(first))
	parallel(len(rest), runtime.GOMAXPROCS(0), check(rest))
	verified := make([]*matrix.Event, 0, len(events))
	for i, e := range events {
		if good[i] {
			verified = append(verified, e)
		}
	}
	return verified
}

// parallel calls fn for 0 to n-1 on up to workers goroutines and waits for all.
func parallel(n, workers int, fn func(i int)) {
	if workers = min(workers, n); workers <= 1 {
		for i := range n {
			fn(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(i)
			}
		})
	}
	wg.Wait()
}

// byAuth orders events so that each comes after those of its auth events that are among them. Event IDs are hashes, so
// there are no cycles from room version 3 on; in older versions what is on a cycle is left out.
func byAuth(events []*matrix.Event) []*matrix.Event {
	return topological(events, (*matrix.Event).AuthEvents)
}

// byPrev orders events so that each comes after those of its prev events that are among them.
func byPrev(events []*matrix.Event) []*matrix.Event {
	return topological(events, (*matrix.Event).PrevEvents)
}

// topological puts lower depths first where it has the choice: events that are stored in about the order of their depth touch fewer pages of
// the database. Depth alone is no order, as it is what others say.
func topological(events []*matrix.Event, parents func(*matrix.Event) []matrix.EventID) []*matrix.Event {
	sorted := slices.Clone(events)
	slices.SortStableFunc(sorted, func(a, b *matrix.Event) int { return cmp.Compare(a.Depth(), b.Depth()) })
	index := make(map[matrix.EventID]int32, len(sorted))
	for i, e := range sorted {
		index[e.ID()] = int32(i)
	}
	// The children of each event are a list in two arrays: a large room's hundred thousand lists would be as many slices.
	type link struct{ child, next int32 }
	links := make([]link, 1, 4*len(sorted)+1) // 0 ends a list
	children := make([]int32, len(sorted))
	waitsFor := make([]uint8, len(sorted)) // an event has at most MaxPrevEvents parents
	var stack [matrix.MaxPrevEvents]int32
	for i := len(sorted) - 1; i >= 0; i-- { // so that the lists are in the order of sorted
		seen := stack[:0]
		for _, id := range parents(sorted[i]) {
			p, ok := index[id]
			if !ok || slices.Contains(seen, p) {
				continue
			}
			seen = append(seen, p)
			links = append(links, link{int32(i), children[p]})
			children[p] = int32(len(links) - 1)
		}
		waitsFor[i] = uint8(len(seen))
	}
	queue := make([]int32, 0, len(sorted))
	for i := range sorted {
		if waitsFor[i] == 0 {
			queue = append(queue, int32(i))
		}
	}
	ordered := make([]*matrix.Event, 0, len(sorted))
	for at := 0; at < len(queue); at++ {
		ordered = append(ordered, sorted[queue[at]])
		for l := children[queue[at]]; l != 0; l = links[l].next {
			child := links[l].child
			if waitsFor[child]--; waitsFor[child] == 0 {
				queue = append(queue, child)
			}
		}
	}
	return ordered
}

// errNoAuth says that an event's auth events are not all there.
var errNoAuth = errors.New("not all auth events are known")

// judged is an event with the verdict of its own auth events.
type judged struct {
	*matrix.Event
	err error // nil if they allow it; *matrix.AuthError if a rule refuses it; errNoAuth if it cannot be told
}

// judge checks events, which are ordered by [byAuth] and verified, each against its auth events. known finds events that we have
// already and whether they are rejected; it may return nil. What depends on an event that cannot be told cannot be told
// either: one missing link takes all that hangs on it along.
func judge(events []*matrix.Event, create *matrix.Event, known func(matrix.EventID) (e *matrix.Event, rejected bool)) []judged {
	here := make(map[matrix.EventID]*judged, len(events))
	all := make([]judged, len(events))
	rejected := func(id matrix.EventID) bool {
		if j := here[id]; j != nil {
			return j.err != nil
		}
		_, rejected := known(id)
		return rejected
	}
	for i, e := range events {
		all[i] = judged{Event: e}
		j := &all[i]
		here[e.ID()] = j
		auth := make([]*matrix.Event, 0, len(e.AuthEvents()))
		for _, id := range e.AuthEvents() {
			if a := here[id]; a != nil && a != j {
				if errors.Is(a.err, errNoAuth) {
					j.err = errNoAuth
				}
				auth = append(auth, a.Event)
			} else if a, _ := known(id); a != nil {
				auth = append(auth, a)
			} else {
				j.err = errNoAuth
			}
		}
		if j.err == nil && e.Type() == matrix.TypeCreate && create != nil && e.ID() != create.ID() {
			j.err = &matrix.AuthError{Rule: "1", Reason: "the room has another create event"}
		}
		if j.err == nil {
			j.err = matrix.AuthorizeByAuthEvents(e, auth, create, rejected)
		}
	}
	return all
}
