package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// versionsToTest are those that differ in what lies here: event IDs in the event, create event in auth_events, room ID of the create event.
func versionsToTest(t *testing.T) []string {
	if onPostgreSQL(t) { // the database does not know of versions
		return []string{"12"}
	}
	return []string{"1", "3", "10", "11", "12"}
}

// together makes a room of @alice:one that @bob:two has joined.
func together(t *testing.T, version string, more ...matrix.ServerName) (w *world, one, two *at, room matrix.RoomID) {
	w = newWorld(t, append([]matrix.ServerName{"one", "two"}, more...)...)
	one, two = w.at("one"), w.at("two")
	room = one.newRoom("@alice:one", version, "public")
	two.join(room, "@bob:two", "one")
	return w, one, two, room
}

func TestJoinThroughAnotherServerGivesTheSameState(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			_, one, two, room := together(t, version)
			if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
				t.Errorf("the states differ: %s", diff)
			}
			snap := two.snap(room)
			if snap.JoinedCount != 2 || snap.Servers["one"] != 1 || snap.Servers["two"] != 1 || !snap.Joined() {
				t.Errorf("joined %d, servers %v", snap.JoinedCount, snap.Servers)
			}
			one.get("two", two.say(room, "@bob:two", "hi"))
			two.get("one", one.say(room, "@alice:one", "hello"))
			for _, s := range []*at{one, two} {
				if diff := cmp.Diff([]string{"hi", "hello"}, s.timeline(room)); diff != "" {
					t.Errorf("%s: %s", s.name, diff)
				}
			}
		})
	}
}

func TestAGapIsFilledWithMissingEventsAlone(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			w, one, two, room := together(t, version)
			var want []string
			var last *storage.Event
			for i := range 7 {
				want = append(want, fmt.Sprint("m", i))
				last = one.say(room, "@alice:one", want[i])
			}
			if err := two.get("one", last)[last.ID()]; err != nil {
				t.Errorf("the sender is told %v", err)
			}
			if diff := cmp.Diff(want, two.timeline(room)); diff != "" {
				t.Error(diff)
			}
			if w.count("state_ids one")+w.count("state one") > 0 {
				t.Error("a state was asked for though the gap was filled")
			}
			if waiting, _ := two.o.DB.Inbound(context.Background(), room, 10); len(waiting) > 0 {
				t.Errorf("%d events wait still", len(waiting))
			}
		})
	}
}

func TestALongGapIsFilledInRounds(t *testing.T) {
	w, one, two, room := together(t, "11")
	var last *storage.Event
	for i := range 3 * gapLimit {
		last = one.say(room, "@alice:one", fmt.Sprint("m", i))
	}
	two.get("one", last)
	if got := len(two.timeline(room)); got != 3*gapLimit {
		t.Errorf("got %d messages, want %d", got, 3*gapLimit)
	}
	if n := w.count("state_ids one"); n > 0 {
		t.Errorf("a state was asked for %d times", n)
	}
}

func TestAGapTooLongIsBridgedByTheStateAtItsEnd(t *testing.T) {
	w, one, two, room := together(t, "11")
	one.set(room, "@alice:one", matrix.TypeTopic, "", `{"topic":"news"}`)
	for i := range gapRounds*gapLimit + 5 {
		one.say(room, "@alice:one", fmt.Sprint("m", i))
	}
	two.get("one", one.say(room, "@alice:one", "last"))
	got := two.timeline(room)
	if len(got) != gapRounds*gapLimit+1 || got[len(got)-1] != "last" {
		t.Errorf("got %d messages", len(got))
	}
	if w.count("state_ids one") != 1 {
		t.Errorf("the state was asked for %d times", w.count("state_ids one"))
	}
	if got := two.state(room, matrix.TypeTopic, ""); got != `{"topic":"news"}` {
		t.Errorf("the topic is %q", got)
	}
	// The rest of the gap is history, and can be had.
	page, err := two.Messages(context.Background(), room, Reader{User: "@bob:two"}, MessagesRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Chunk) < gapRounds*gapLimit+6+4 {
		t.Errorf("the whole history has %d events", len(page.Chunk))
	}
}

func TestAnotherServerFillsTheGapWhenTheFirstDoesNotAnswer(t *testing.T) {
	w, one, two, room := together(t, "11", "three")
	three := w.at("three")
	three.join(room, "@carol:three", "one")
	join := three.snap(room).Tip[0]
	two.get("one", join)
	missed := one.say(room, "@alice:one", "missed")
	three.get("one", missed)
	last := one.say(room, "@alice:one", "last")
	three.get("one", last)
	w.fault["missing one"] = func() error { return errNoAnswer }
	two.get("one", last)
	if diff := cmp.Diff([]string{"missed", "last"}, two.timeline(room)); diff != "" {
		t.Error(diff)
	}
}

func TestForksConverge(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			_, one, two, room := together(t, version)
			levels := `{"users":{"@alice:one":100,"@bob:two":100},"invite":0}`
			if version == "12" {
				levels = `{"users":{"@bob:two":100},"invite":0}`
			}
			two.get("one", one.set(room, "@alice:one", matrix.TypePowerLevels, "", levels))
			// Both go on without hearing of each other.
			a := []*storage.Event{one.set(room, "@alice:one", matrix.TypeName, "", `{"name":"A"}`), one.set(room, "@alice:one", matrix.TypeTopic, "", `{"topic":"A"}`), one.say(room, "@alice:one", "a")}
			b := []*storage.Event{two.set(room, "@bob:two", matrix.TypeName, "", `{"name":"B"}`), two.set(room, "@bob:two", matrix.TypeJoinRules, "", `{"join_rule":"invite"}`), two.say(room, "@bob:two", "b")}
			one.get("two", b...)
			two.get("one", a...)
			if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
				t.Errorf("after the exchange the states differ: %s", diff)
			}
			if one.snap(room).Root.IsZero() || len(one.snap(room).Tip) != 2 {
				t.Errorf("the tip has %d events, want 2", len(one.snap(room).Tip))
			}
			// The next event joins the branches.
			two.get("one", one.say(room, "@alice:one", "joined"))
			if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
				t.Errorf("after the merge the states differ: %s", diff)
			}
			if len(two.snap(room).Tip) != 1 {
				t.Errorf("the tip has %d events, want 1", len(two.snap(room).Tip))
			}
		})
	}
}

func TestAnEventThatOnlyThePastAllowsIsSoftFailed(t *testing.T) {
	_, one, two, room := together(t, "11")
	before := two.snap(room).Tip[0]
	ban := one.set(room, "@alice:one", matrix.TypeMember, "@bob:two", `{"membership":"ban"}`)
	// bob's server makes as if it had not heard of the ban.
	late := two.forge(before, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"still here"}`)})
	if err := one.getRaw("two", late)[late.ID()]; err != nil {
		t.Errorf("the sender is told %v", err)
	}
	if got := one.flags(late.ID()); got != storage.SoftFailed {
		t.Errorf("flags %v, want soft-failed", got)
	}
	if got := one.timeline(room); len(got) > 0 {
		t.Errorf("clients see %v", got)
	}
	if tip := one.snap(room).Tip; len(tip) != 1 || tip[0].ID() != ban.ID() {
		t.Error("a soft-failed event has become part of the tip")
	}
	if _, err := one.Accept(context.Background(), "two", room, late.JSON()); !errors.Is(err, ErrSoftFailed) {
		t.Errorf("the second time: %v, want ErrSoftFailed", err)
	}
}

func TestAnEventThatTheStateBeforeItForbidsIsRejected(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			_, one, two, room := together(t, version)
			empty := ""
			bad := two.forge(two.snap(room).Tip[0], matrix.Builder{Sender: "@bob:two", Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(`{"users":{"@bob:two":100}}`)})
			var refused *matrix.AuthError
			if _, err := one.Accept(context.Background(), "two", room, bad.JSON()); !errors.As(err, &refused) {
				t.Errorf("got %v, want an authorization error", err)
			}
			if got := one.flags(bad.ID()); got != storage.Rejected {
				t.Errorf("flags %v, want rejected", got)
			}
			// What follows on it is judged by the state without it.
			after := two.forge(two.snap(room).Tip[0], matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"fine"}`), PrevEvents: []matrix.EventID{bad.ID()}})
			one.getRaw("two", after)
			if diff := cmp.Diff([]string{"fine"}, one.timeline(room)); diff != "" {
				t.Error(diff)
			}
			if got := len(one.snap(room).Tip); got != 1 {
				t.Errorf("the tip has %d events: what stands before a rejected event must leave it", got)
			}
		})
	}
}

func TestAnEventWithARejectedAuthEventIsRejected(t *testing.T) {
	w, one, two, room := together(t, "11")
	tip := two.snap(room).Tip[0]
	empty, bob := "", "@bob:two"
	bad := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(`{"users":{"@bob:two":100}}`)})
	one.getRaw("two", bad)
	member := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"join","x":1}`)})
	auth := append(append([]matrix.EventID{}, member.AuthEvents()...), bad.ID())
	outlier := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"join","x":1}`), AuthEvents: auth[1:]})
	message := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"bad"}`)})
	message = two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"bad"}`), AuthEvents: append(message.AuthEvents()[:2:2], outlier.ID())})
	// The other server does not have the outlier itself: the test gives it.
	w.fault["event_auth two"] = func() error { return matrix.NotFound("no") }
	w.fault["event two"] = func() error { return nil }
	one.o.Remote = &givenEvents{wire: one.o.Remote.(*wire), events: map[matrix.EventID]json.RawMessage{outlier.ID(): outlier.JSON()}}
	one.getRaw("two", message)
	if got := one.flags(outlier.ID()); got != storage.Outlier|storage.Rejected {
		t.Errorf("the outlier has the flags %v, want rejected", got)
	}
	if got := one.flags(message.ID()); got != storage.Rejected {
		t.Errorf("the event has the flags %v, want rejected", got)
	}
	if got := one.timeline(room); len(got) > 0 {
		t.Errorf("clients see %v", got)
	}
}

// givenEvents answers for some events itself.
type givenEvents struct {
	*wire
	events map[matrix.EventID]json.RawMessage
}

func (g *givenEvents) Event(ctx context.Context, to matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	if raw := g.events[id]; raw != nil {
		return raw, nil
	}
	return g.wire.Event(ctx, to, id)
}

func TestReceiveRefusesWhatItMustNotTake(t *testing.T) {
	w, one, two, room := together(t, "11")
	w.addKey("evil", 99)
	tip := two.snap(room).Tip[0]
	good := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"x"}`)})
	for name, raw := range map[string]string{
		"no JSON":              `{`,
		"no event":             `{"room_id":"` + string(room) + `"}`,
		"unknown room":         `{"room_id":"!nowhere:two"}`,
		"changed sender":       replaced(t, good, `@bob:two`, `@eve:two`),
		"signature of another": replaced(t, good, `"two":{"ed25519:1"`, `"evil":{"ed25519:1"`),
		"too many prev events": replaced(t, good, `"prev_events":[`, `"prev_events":[`+many(21)),
	} {
		one.Receive(context.Background(), "two", []json.RawMessage{json.RawMessage(raw)})
		one.quiet()
		if got := one.snap(room).Tip[0].ID(); got != tip.ID() || len(one.snap(room).Tip) != 1 {
			t.Fatalf("%s: the room has changed", name)
		}
	}
	// A changed content is taken, but redacted.
	changed := replaced(t, good, `"body":"x"`, `"body":"y"`)
	one.Receive(context.Background(), "two", []json.RawMessage{json.RawMessage(changed)})
	if got := string(one.snap(room).Tip[0].Content()); got != `{}` {
		t.Errorf("got content %s, want it redacted", got)
	}
}

func many(n int) string {
	s := ""
	for i := range n {
		s += fmt.Sprintf(`"$%d",`, i)
	}
	return s
}

func replaced(t *testing.T, e *matrix.Event, old, with string) string {
	t.Helper()
	s := string(e.JSON())
	i := len(s)
	for j := 0; j+len(old) <= len(s); j++ {
		if s[j:j+len(old)] == old {
			i = j
			break
		}
	}
	if i == len(s) {
		t.Fatalf("%q is not in %s", old, s)
	}
	return s[:i] + with + s[i+len(old):]
}

func TestADeniedServerIsNotHeard(t *testing.T) {
	_, one, two, room := together(t, "11")
	acl := one.set(room, "@alice:one", matrix.TypeServerACL, "", `{"allow":["*"],"deny":["two"]}`)
	two.get("one", acl)
	e := two.say(room, "@bob:two", "blocked")
	if err := one.get("two", e)[e.ID()]; matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	if got := one.timeline(room); len(got) > 0 {
		t.Errorf("clients see %v", got)
	}
	if one.ServerAllowed(context.Background(), room, "two") || !one.ServerAllowed(context.Background(), room, "three") {
		t.Error("ServerAllowed does not follow the ACL")
	}
	if _, err := one.ServeBackfill(context.Background(), "two", room, []matrix.EventID{acl.ID()}, 10); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("backfill: got %v, want M_FORBIDDEN", err)
	}
	if _, err := one.MakeJoin(context.Background(), "two", room, "@ben:two", []string{"11"}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("make_join: got %v, want M_FORBIDDEN", err)
	}
}

func TestAMaliciousGapCostsLittleAndChangesNothing(t *testing.T) {
	w, one, two, room := together(t, "11")
	tip := two.snap(room).Tip[0]
	missing := matrix.EventID("$" + string(tip.ID()[1:20]) + "AAAAAAAAAAAAAAAAAAAAAAAA")
	pushed := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"trust me"}`), PrevEvents: []matrix.EventID{missing}, Depth: 50})
	// Asked for what is missing, the server always has something else that is missing, and states of its own making.
	n := 0
	w.tweak["missing two"] = func(answer any) error {
		var more []json.RawMessage
		for range gapLimit {
			n++
			e := two.forge(tip, matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"spam"}`),
				PrevEvents: []matrix.EventID{matrix.EventID(fmt.Sprintf("$%043d", n))}, Depth: 40})
			more = append(more, e.JSON())
		}
		*answer.(*[]json.RawMessage) = more
		return nil
	}
	w.fault["state_ids two"] = func() error { return nil }
	one.getRaw("two", pushed)
	if got := one.timeline(room); len(got) > 0 {
		t.Errorf("clients see %v", got)
	}
	if got := one.snap(room).Tip; len(got) != 1 || got[0].ID() != tip.ID() {
		t.Error("the tip has moved")
	}
	if n := len(w.asked); n > 60 {
		t.Errorf("one event cost %d requests", n)
	}
}

func TestASecondCreateEventIsRejected(t *testing.T) {
	_, one, two, room := together(t, "11")
	empty := ""
	second := one.forge(one.snap(room).Tip[0], matrix.Builder{Sender: "@alice:one", Type: matrix.TypeCreate, StateKey: &empty, Content: json.RawMessage(`{"room_version":"11","x":1}`),
		PrevEvents: []matrix.EventID{}, AuthEvents: []matrix.EventID{}, Depth: 1})
	was := two.wholeState(room)
	two.getRaw("one", second)
	if diff := cmp.Diff(was, two.wholeState(room)); diff != "" {
		t.Error(diff)
	}
}

func TestWaitingEventsAreTakenUpAfterARestart(t *testing.T) {
	_, one, two, room := together(t, "11")
	one.say(room, "@alice:one", "missed")
	last := one.say(room, "@alice:one", "last")
	err := two.o.DB.KeepInbound(context.Background(), 10, []storage.InboundEvent{{RoomID: room, EventID: last.ID(), Origin: "one", Depth: last.Depth(), JSON: last.JSON()}})
	if err != nil {
		t.Fatal(err)
	}
	two.get("one") // the first transaction after the start
	if diff := cmp.Diff([]string{"missed", "last"}, two.timeline(room)); diff != "" {
		t.Error(diff)
	}
}

func TestAGapThatCannotBeFilledIsAskedForAgainWithTheNextEvent(t *testing.T) {
	w, one, two, room := together(t, "11")
	one.say(room, "@alice:one", "missed")
	second, third := one.say(room, "@alice:one", "second"), one.say(room, "@alice:one", "third")
	w.tweak["missing one"] = func(answer any) error {
		raw := answer.(*[]json.RawMessage)
		for i := range *raw {
			(*raw)[i] = json.RawMessage(`{"type":"m.room.message","content":{"bad_val":1.1}}`)
		}
		return nil
	}
	for i, e := range []*storage.Event{second, third} {
		two.get("one", e)
		if n := w.count("missing one"); n != i+1 {
			t.Errorf("after event %d it was asked %d times", i, n)
		}
	}
	if got := two.timeline(room); len(got) > 0 {
		t.Errorf("clients see %v", got)
	}
	delete(w.tweak, "missing one")
	two.get("one", one.say(room, "@alice:one", "fourth"))
	if diff := cmp.Diff([]string{"missed", "second", "third", "fourth"}, two.timeline(room)); diff != "" {
		t.Error(diff)
	}
}

func TestAuthEventsThatComeAlongAreNotAskedFor(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	two.join(room, "@bob:two", "one")
	join := one.set(room, "@carl:one", matrix.TypeMember, "@carl:one", `{"membership":"join"}`)
	said := one.say(room, "@carl:one", "hello")
	two.get("one", join, said)
	if got := two.timeline(room); !slices.Equal(got, []string{"hello"}) || w.count("event_auth one") > 0 {
		t.Errorf("got %q, asked %v", got, w.asked)
	}
}
