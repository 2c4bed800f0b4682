package room

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// attack is a server two that does its worst to a room of one.
type attack struct {
	*world
	one, two *at
	room     matrix.RoomID
	tip      *storage.Event

	state          []string
	requests, rows int
}

func newAttack(t *testing.T, version string) *attack {
	t.Helper()
	w, one, two, room := together(t, version)
	a := &attack{world: w, one: one, two: two, room: room, tip: two.snap(room).Tip[0], state: one.wholeState(room)}
	a.requests, a.rows = len(w.asked), a.stored()
	return a
}

// stored counts the events that one has.
func (a *attack) stored() int {
	a.t.Helper()
	var n int
	if err := a.one.o.DB.Read(context.Background()).Raw("SELECT COUNT(*) FROM events").Row().Scan(&n); err != nil {
		a.t.Fatal(err)
	}
	return n
}

// event is one of bob's, of server two, after the tip unless b says otherwise.
func (a *attack) event(b matrix.Builder) *matrix.Event {
	a.t.Helper()
	b.Sender = "@bob:two"
	if b.Type == "" {
		b.Type = matrix.TypeMessage
	}
	if b.Content == nil {
		b.Content = json.RawMessage(`{"body":"spam"}`)
	}
	return a.two.forge(a.tip, b)
}

// nowhere is the ID of an event that there is not.
func nowhere(n int) matrix.EventID { return matrix.EventID(fmt.Sprintf("$%043d", n)) }

// nowheres are some of them.
func nowheres(from, n int) []matrix.EventID {
	ids := make([]matrix.EventID, n)
	for i := range ids {
		ids[i] = nowhere(from + i)
	}
	return ids
}

// check wants nothing to be seen or changed, for at most so many requests and rows.
func (a *attack) check(requests, rows int) {
	a.t.Helper()
	if got := a.one.timeline(a.room); len(got) > 0 {
		a.t.Errorf("clients see %v", got)
	}
	if diff := cmp.Diff(a.state, a.one.wholeState(a.room)); diff != "" {
		a.t.Errorf("the state has changed: %s", diff)
	}
	if tip := a.one.snap(a.room).Tip; len(tip) != 1 || tip[0].ID() != a.tip.ID() {
		a.t.Errorf("the tip has moved")
	}
	if got := len(a.asked) - a.requests; got > requests {
		a.t.Errorf("it cost %d requests, want %d at most: %v", got, requests, a.asked[a.requests:min(len(a.asked), a.requests+20)])
	}
	if got := a.stored() - a.rows; got > rows {
		a.t.Errorf("%d events were stored, want %d at most", got, rows)
	}
}

// raw is an event's JSON with another value for a key of it, signed by nobody.
func rawWith(e *matrix.Event, key string, value any) json.RawMessage {
	var all map[string]any
	_ = json.Unmarshal(e.JSON(), &all)
	all[key] = value
	raw, _ := json.Marshal(all)
	return raw
}

func TestMalformedEventsCostNothing(t *testing.T) {
	t.Parallel() // long, and only with itself
	for name, make := range map[string]func(e *matrix.Event) json.RawMessage{
		"21 prev_events":  func(e *matrix.Event) json.RawMessage { return rawWith(e, "prev_events", nowheres(1, 21)) },
		"11 auth_events":  func(e *matrix.Event) json.RawMessage { return rawWith(e, "auth_events", nowheres(1, 11)) },
		"a million prevs": func(e *matrix.Event) json.RawMessage { return rawWith(e, "prev_events", nowheres(1, 1_000_000)) },
		"65 kB": func(e *matrix.Event) json.RawMessage {
			return rawWith(e, "content", map[string]string{"body": strings.Repeat("x", 65537)})
		},
		"a negative depth": func(e *matrix.Event) json.RawMessage { return rawWith(e, "depth", -1) },
		"deep nesting": func(e *matrix.Event) json.RawMessage {
			return rawWith(e, "content", json.RawMessage(`{"a":`+strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000)+`}`))
		},
		"other types":  func(e *matrix.Event) json.RawMessage { return rawWith(e, "prev_events", map[string]int{"a": 1}) },
		"no signature": func(e *matrix.Event) json.RawMessage { return rawWith(e, "signatures", map[string]any{}) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttack(t, "11")
			raw := make(a.event(matrix.Builder{}))
			for range 3 {
				a.one.Receive(context.Background(), "two", []json.RawMessage{raw})
			}
			a.one.quiet()
			a.check(0, 0)
			// The same as an answer to a question.
			a.lie["missing two"] = func(answer any) { *answer.(*[]json.RawMessage) = []json.RawMessage{raw, raw} }
			a.one.getRaw("two", a.event(matrix.Builder{PrevEvents: []matrix.EventID{nowhere(1)}}))
			a.check(1, 0)
		})
	}
}

func TestManyUnknownPrevEventsCostOneQuestion(t *testing.T) {
	a := newAttack(t, "11")
	a.lie["missing two"] = func(any) {}
	var events []*matrix.Event
	for i := range 50 {
		events = append(events, a.event(matrix.Builder{PrevEvents: nowheres(100*i, 20), Depth: 50}))
	}
	a.one.getRaw("two", events...)
	a.check(50, 0)
}

func TestAFanOfAuthEventsIsCutOff(t *testing.T) {
	a := newAttack(t, "11")
	var below []matrix.EventID
	for level, n := 0, 1000; n >= 10; level, n = level+1, n/10 {
		var here []matrix.EventID
		for i := range n {
			auth := nowheres(100_000+10*i, 10)
			if level > 0 {
				auth = below[10*i : 10*i+10]
			}
			e := a.event(matrix.Builder{AuthEvents: auth, Content: json.RawMessage(fmt.Sprintf(`{"n":"%d %d"}`, level, i))})
			a.made[e.ID()] = e.JSON()
			here = append(here, e.ID())
		}
		below = here
	}
	a.lie["event_auth two"] = func(any) {}
	a.one.getRaw("two", a.event(matrix.Builder{AuthEvents: below}))
	a.check(maxSingleEvents+1, 0)
}

func TestAnAuthChainIsNotAWayToStoreEvents(t *testing.T) {
	a := newAttack(t, "11")
	var flood []json.RawMessage
	for i := range 500 {
		flood = append(flood, a.event(matrix.Builder{Content: json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}).JSON())
	}
	a.lie["event_auth two"] = func(answer any) { *answer.(*[]json.RawMessage) = flood }
	a.one.getRaw("two", a.event(matrix.Builder{AuthEvents: []matrix.EventID{nowhere(1)}}))
	a.check(2, 0)
}

// Up to room version 2 a server gives its events the IDs it likes, so that they may refer to each other in a circle.
func TestACycleOfEventsEnds(t *testing.T) {
	for _, field := range []string{"prev_events", "auth_events"} {
		t.Run(field, func(t *testing.T) {
			a := newAttack(t, "1")
			first, second := matrix.EventID("$first:two"), matrix.EventID("$second:two")
			circle := func(id, other matrix.EventID) *matrix.Event {
				e := a.event(matrix.Builder{})
				var all map[string]any
				_ = json.Unmarshal(e.JSON(), &all)
				delete(all, "signatures")
				all["event_id"] = id
				all[field] = []any{[]any{other, map[string]string{"sha256": "x"}}}
				raw, _ := json.Marshal(all)
				hashed := a.signed(raw)
				parsed, err := matrix.ParseEvent(hashed, e.Version())
				if err != nil || parsed.ID() != id {
					t.Fatal(err)
				}
				return parsed
			}
			one, two := circle(first, second), circle(second, first)
			a.made[first], a.made[second] = one.JSON(), two.JSON()
			a.lie["missing two"] = func(answer any) { *answer.(*[]json.RawMessage) = []json.RawMessage{one.JSON(), two.JSON()} }
			a.lie["event_auth two"] = func(answer any) { *answer.(*[]json.RawMessage) = []json.RawMessage{one.JSON(), two.JSON()} }
			a.one.getRaw("two", one, two)
			a.check(2*(maxAuthRounds+gapServers+1), 2)
		})
	}
}

// signed signs a changed event in the name of two; its content hash does not hold.
func (a *attack) signed(raw json.RawMessage) json.RawMessage {
	a.t.Helper()
	e, err := matrix.ParseEvent(raw, matrix.LookupRoomVersion("1"))
	if err != nil {
		a.t.Fatal(err)
	}
	return e.WithSignature("two", a.keys["two"]).JSON()
}

// The far end of a gap is judged by a state that the server tells. Whatever it tells, nothing changes that the rules forbid.
func TestLiesAboutTheStateBeforeAGapChangeNothing(t *testing.T) {
	for name, lie := range map[string]func(a *attack) StateIDsResponse{
		"nothing": func(*attack) StateIDsResponse { return StateIDsResponse{} },
		"events that are not there": func(*attack) StateIDsResponse {
			return StateIDsResponse{PDUIDs: nowheres(1, 1000), AuthChainIDs: nowheres(5000, 1000)}
		},
		"too many": func(*attack) StateIDsResponse { return StateIDsResponse{PDUIDs: nowheres(1, maxStateEvents+1)} },
		"another room's state": func(a *attack) StateIDsResponse {
			other := a.two.newRoom("@bob:two", "11", "public")
			events, err := a.two.StateEvents(context.Background(), other, a.two.snap(other).Root, storage.AllState)
			if err != nil {
				a.t.Fatal(err)
			}
			return StateIDsResponse{PDUIDs: idsOf(events), AuthChainIDs: idsOf(events)}
		},
		"power that nobody gave": func(a *attack) StateIDsResponse {
			empty := ""
			e := a.event(matrix.Builder{Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(`{"users":{"@bob:two":100}}`)})
			a.made[e.ID()] = e.JSON()
			ids, err := a.two.StateIDsAt(context.Background(), "one", a.room, a.tip.ID())
			if err != nil {
				a.t.Fatal(err)
			}
			ids.PDUIDs = append(ids.PDUIDs, e.ID())
			return ids
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttack(t, "11")
			told := lie(a)
			a.requests, a.rows = len(a.asked), a.stored()
			a.lie["state_ids two"] = func(answer any) { *answer.(*StateIDsResponse) = told }
			a.lie["state two"] = func(any) {}
			empty := ""
			far := a.event(matrix.Builder{Type: matrix.TypeTopic, StateKey: &empty, Content: json.RawMessage(`{"topic":"mine"}`), PrevEvents: []matrix.EventID{nowhere(9999)}, Depth: 40})
			before := a.event(matrix.Builder{Content: json.RawMessage(`{"x":1}`)})
			a.made[nowhere(9999)] = before.JSON() // it has another ID
			a.lie["missing two"] = func(answer any) { *answer.(*[]json.RawMessage) = []json.RawMessage{far.JSON()} }
			a.one.getRaw("two", a.event(matrix.Builder{PrevEvents: []matrix.EventID{far.ID()}, Depth: 50}))
			a.check(maxSingleEvents+10, 5)
		})
	}
}

func TestHistoryOfAServersOwnMakingEnds(t *testing.T) {
	w, one, two, room := together(t, "11") // two came in, and lacks what was before
	state := two.wholeState(room)
	n := 0
	w.lie["backfill one"] = func(answer any) {
		for range maxBackfill {
			n++
			e := one.forge(one.snap(room).Tip[0], matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, PrevEvents: nowheres(100*n, 20), Content: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n))})
			*answer.(*[]json.RawMessage) = append(*answer.(*[]json.RawMessage), e.JSON())
		}
	}
	w.lie["state_ids one"] = func(any) {}
	r, err := two.Room(context.Background(), room)
	if err != nil {
		t.Fatal(err)
	}
	before := len(w.asked)
	for range 5 {
		if _, err := two.fillHistory(context.Background(), r, 0, 1<<40, 100); err != nil {
			t.Error(err)
		}
	}
	if n == 0 {
		t.Fatal("nobody asked for history, so this tests nothing")
	}
	if got := len(w.asked) - before; got > gapServers*(1+maxGapStates) {
		t.Errorf("it cost %d requests: %v", got, w.asked[before:])
	}
	if diff := cmp.Diff(state, two.wholeState(room)); diff != "" {
		t.Error(diff)
	}
}
