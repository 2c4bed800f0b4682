package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// read parses what was answered and lists the bodies, "-" for what was redacted.
func (a *at) read(room matrix.RoomID, raw []json.RawMessage) []string {
	a.t.Helper()
	r, err := a.Room(context.Background(), room)
	if err != nil {
		a.t.Fatal(err)
	}
	all := []string{}
	for _, e := range parseEvents(raw, r.Version, room, 1000) {
		if e.Type() != matrix.TypeMessage {
			continue
		}
		body := contentString(&storage.Event{Event: e}, "body", "-")
		all = append(all, body)
	}
	return all
}

func TestHistoryIsServedByItsVisibility(t *testing.T) {
	for visibility, want := range map[string][]string{"world_readable": {"before", "after"}, "shared": {"before", "after"}, "invited": {"-", "after"}, "joined": {"-", "after"}} {
		w := newWorld(t, "one", "two")
		one, two := w.at("one"), w.at("two")
		room := one.newRoom("@alice:one", "11", "public")
		one.set(room, "@alice:one", matrix.TypeHistoryVisibility, "", `{"history_visibility":"`+visibility+`"}`)
		before := one.say(room, "@alice:one", "before")
		if _, err := one.ServeBackfill(context.Background(), "two", room, []matrix.EventID{before.ID()}, 10); matrix.ErrorCode(err) != "M_FORBIDDEN" {
			t.Errorf("%s: a server outside got %v, want M_FORBIDDEN", visibility, err)
		}
		two.join(room, "@bob:two", "one")
		after := one.say(room, "@alice:one", "after")
		missing, err := one.ServeMissingEvents(context.Background(), "two", room, MissingEventsRequest{EarliestEvents: []matrix.EventID{one.snap(room).Create.ID()}, LatestEvents: []matrix.EventID{after.ID()}, Limit: 20})
		if diff := cmp.Diff(want[:1], one.read(room, missing)); err != nil || diff != "" {
			t.Errorf("%s, missing events: %v %s", visibility, err, diff)
		}
		back, err := one.ServeBackfill(context.Background(), "two", room, []matrix.EventID{after.ID()}, 100)
		got := one.read(room, back)
		slices.Reverse(got)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s, backfill: %v %s", visibility, err, diff)
		}
	}
}

func TestMissingEventsStayWithinTheirBounds(t *testing.T) {
	_, one, two, room := together(t, "11")
	_ = two
	var all []*storage.Event
	for i := range 60 {
		all = append(all, one.say(room, "@alice:one", fmt.Sprint(i)))
	}
	for name, c := range map[string]struct {
		q    MissingEventsRequest
		want []string
	}{
		"between":   {MissingEventsRequest{EarliestEvents: []matrix.EventID{all[3].ID()}, LatestEvents: []matrix.EventID{all[7].ID()}}, []string{"4", "5", "6"}},
		"min_depth": {MissingEventsRequest{MinDepth: all[5].Depth(), LatestEvents: []matrix.EventID{all[7].ID()}}, []string{"5", "6"}},
		"limit":     {MissingEventsRequest{LatestEvents: []matrix.EventID{all[7].ID()}, Limit: 2}, []string{"5", "6"}},
		"unknown":   {MissingEventsRequest{LatestEvents: []matrix.EventID{"$unknown"}}, []string{}},
	} {
		raw, err := one.ServeMissingEvents(context.Background(), "two", room, c.q)
		if diff := cmp.Diff(c.want, one.read(room, raw)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	raw, err := one.ServeMissingEvents(context.Background(), "two", room, MissingEventsRequest{LatestEvents: []matrix.EventID{all[59].ID()}, Limit: 1 << 30})
	if err != nil || len(raw) != maxMissing {
		t.Errorf("without a limit of the asker's: %d events, %v", len(raw), err)
	}
}

func TestHistoryIsFetchedWhenItIsRead(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, "one", "two")
			one, two := w.at("one"), w.at("two")
			room := one.newRoom("@alice:one", version, "public")
			var want []string
			for i := range 130 {
				body := fmt.Sprint("m", i)
				want = append(want, body)
				one.say(room, "@alice:one", body)
			}
			two.join(room, "@bob:two", "one")
			slices.Reverse(want)
			var got []string
			q := MessagesRequest{Limit: 40}
			for range 20 {
				page, err := two.Messages(context.Background(), room, Reader{User: "@bob:two"}, q)
				if err != nil {
					t.Fatal(err)
				}
				for _, raw := range page.Chunk {
					var e struct {
						Content struct{ Body string }
					}
					if err := json.Unmarshal(raw, &e); err != nil {
						t.Fatal(err)
					}
					if e.Content.Body != "" {
						got = append(got, e.Content.Body)
					}
				}
				if q.From = page.End; q.From == "" {
					break
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s\nasked %v", diff, w.asked)
			}
			if n := w.count("backfill one"); n > 4 {
				t.Errorf("the other server was asked %d times", n)
			}
			if got := two.timeline(room); len(got) > 0 {
				t.Errorf("history has entered the timeline: %v", got)
			}
			if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
				t.Errorf("history has changed the state: %s", diff)
			}
		})
	}
}

func TestTimestampToEventAsksOthersAcrossAGap(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	early := one.say(room, "@alice:one", "early")
	for range 5 {
		one.say(room, "@alice:one", "later")
	}
	two.join(room, "@bob:two", "one")
	got, err := two.TimestampToEvent(context.Background(), room, "@bob:two", early.OriginServerTS(), false)
	if err != nil || got.EventID != early.ID() {
		t.Errorf("got %v, %v, want %s", got, err, early.ID())
	}
	got, err = one.ServeTimestampToEvent(context.Background(), "two", room, early.OriginServerTS(), true)
	if err != nil || got.EventID != early.ID() {
		t.Errorf("got %v, %v, want %s", got, err, early.ID())
	}
	if _, err = one.ServeTimestampToEvent(context.Background(), "three", room, early.OriginServerTS(), true); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
}
