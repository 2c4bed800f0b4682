package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// eachKind runs a test with a function that opens databases of one kind.
func eachKind(t *testing.T, test func(t *testing.T, open func() *storage.DB)) {
	t.Run("sqlite", func(t *testing.T) { test(t, func() *storage.DB { return storagetest.New(t) }) })
	t.Run("postgres", func(t *testing.T) {
		test(t, func() *storage.DB {
			db, err := storage.Open(t.Context(), storage.Config{URL: storagetest.PostgreSQLURL(t), Readers: 3}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return db
		})
	})
}

// all lists every event of the room's graph, in the order of the history.
func (a *at) all(room matrix.RoomID) []*storage.Event {
	a.t.Helper()
	r, err := a.Room(context.Background(), room)
	if err != nil {
		a.t.Fatal(err)
	}
	places, err := a.o.DB.Doomed(context.Background(), r.Num, storage.PurgeCriterion{Before: storage.Place(lastPlace), Pos: lastPlace.Depth}, storage.Place{}, 10_000)
	if err != nil {
		a.t.Fatal(err)
	}
	var nums []int64
	for _, p := range places {
		nums = append(nums, p.Num)
	}
	events, err := a.o.DB.Events(context.Background(), nums)
	if err != nil {
		a.t.Fatal(err)
	}
	return events
}

func ids(events []*storage.Event) []matrix.EventID {
	list := []matrix.EventID{}
	for _, e := range events {
		list = append(list, e.ID())
	}
	slices.Sort(list)
	return list
}

// reading is all that can be asked about an event of the graph.
type reading struct {
	JSON                     string
	Flags                    storage.EventFlags
	Before, After, AuthChain []matrix.EventID
	Visible                  bool
	Current                  []matrix.EventID // state at the stream position before it
}

func (a *at) reading(e *storage.Event, reader matrix.UserID) reading {
	a.t.Helper()
	ctx := context.Background()
	got := reading{JSON: string(e.JSON()), Flags: e.Flags}
	check := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatalf("%s, %s: %v", e.ID(), e.Type(), err)
		}
	}
	state, err := a.StateEvents(ctx, e.RoomID(), e.Before, storage.AllState)
	check(err)
	got.Before = ids(state)
	after, err := a.RootAfter(ctx, e)
	check(err)
	state, err = a.StateEvents(ctx, e.RoomID(), after, storage.AllState)
	check(err)
	got.After = ids(state)
	chain, err := a.AuthChain(ctx, append(state, e))
	check(err)
	got.AuthChain = ids(chain)
	if seen, err := a.VisibleTo(ctx, reader, []*storage.Event{e}); err != nil {
		check(err)
	} else {
		got.Visible = len(seen) > 0
	}
	if e.Pos > 0 {
		root, err := a.RootAt(ctx, e.RoomID(), e.Pos-1)
		check(err)
		state, err = a.StateEvents(ctx, e.RoomID(), root, storage.AllState)
		check(err)
		got.Current = ids(state)
	}
	return got
}

// page lists the IDs of the messages that a user pages through from the end, and checks that the last page says that there are no more.
func (a *at) pages(room matrix.RoomID, reader matrix.UserID) []matrix.EventID {
	a.t.Helper()
	var found []matrix.EventID
	from := ""
	for range 1000 {
		chunk, err := a.Messages(context.Background(), room, Reader{User: reader}, MessagesRequest{From: from, Limit: 7})
		if err != nil {
			a.t.Fatal(err)
		}
		for _, raw := range chunk.Chunk {
			var e struct {
				ID matrix.EventID `json:"event_id"`
			}
			if err := json.Unmarshal(raw, &e); err != nil {
				a.t.Fatal(err)
			}
			found = append(found, e.ID)
		}
		if chunk.End == "" {
			return found
		}
		from = chunk.End
	}
	a.t.Fatal("the pages have no end")
	return nil
}

// purge does the purges that wait.
func (a *at) purge() {
	a.t.Helper()
	if err := a.Purge(context.Background()); err != nil {
		a.t.Fatal(err)
	}
}

// TestWhatAPurgeLeavesReadsAsBefore purges rooms with forks at a random point, between what others do and late news from them.
func TestWhatAPurgeLeavesReadsAsBefore(t *testing.T) {
	t.Parallel() // long, and only with itself
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		for i, version := range []string{"2", "6", "10", "11", "12"} {
			seeds := uint64(2)
			if strings.HasSuffix(t.Name(), "/postgres") {
				seeds = uint64(i % 2) // each of its databases takes its time
			}
			for seed := range seeds {
				t.Run(fmt.Sprintf("version %s, seed %d", version, seed), func(t *testing.T) {
					s := &story{t: t, rng: rand.New(rand.NewPCG(seed, uint64(i)+100)), version: version, waiting: map[matrix.ServerName][]*storage.Event{}, open: open}
					s.begin()
					for range 3 {
						for range 25 {
							if s.rng.IntN(3) > 0 {
								s.act()
							} else {
								s.deliver(s.servers[s.rng.IntN(3)], 1+s.rng.IntN(4))
							}
						}
						s.purgeSomewhere()
					}
					for range 2 { // the last purge must not be too fresh for late news
						for _, server := range s.servers {
							s.deliver(server, 100)
						}
					}
					s.end()
				})
			}
		}
	})
}

func (s *story) purgeSomewhere() {
	a := s.servers[s.rng.IntN(3)]
	a.purgeBatch = 1 + s.rng.IntN(9)
	reader := a.user("u0")
	events := a.all(s.room)
	point := events[s.rng.IntN(len(events))]
	kept, gone := map[matrix.EventID]reading{}, []*storage.Event{}
	tip := a.snap(s.room).Tip
	for _, e := range events {
		if before(e).compare(before(point)) < 0 {
			gone = append(gone, e)
		} else {
			kept[e.ID()] = a.reading(e, reader)
		}
	}
	var pages []matrix.EventID
	for _, id := range a.pages(s.room, reader) {
		if _, ok := kept[id]; ok {
			pages = append(pages, id)
		}
	}
	state := a.wholeState(s.room)
	if _, err := a.PurgeHistory(context.Background(), HistoryPurge{Room: s.room, Event: point.ID()}); err != nil {
		s.t.Fatal(err)
	}
	a.purge()

	isTip := func(e *storage.Event) bool {
		return slices.ContainsFunc(tip, func(o *storage.Event) bool { return o.Num == e.Num })
	}
	got := map[matrix.EventID]reading{}
	for _, e := range a.all(s.room) {
		if _, ok := kept[e.ID()]; !ok && isTip(e) {
			continue
		}
		got[e.ID()] = a.reading(e, reader)
	}
	if diff := cmp.Diff(kept, got); diff != "" {
		s.t.Errorf("what is left reads otherwise: %s", diff)
	}
	if diff := cmp.Diff(state, a.wholeState(s.room)); diff != "" {
		s.t.Errorf("the current state is another: %s", diff)
	}
	if diff := cmp.Diff(pages, a.pages(s.room, reader)); diff != "" {
		s.t.Errorf("the pages differ: %s", diff)
	}
	for _, e := range gone {
		if left := a.flags(e.ID()); left != -1 && !e.IsState() && !isTip(e) {
			s.t.Errorf("%s, %s, is still here, flags %b", e.ID(), e.Type(), left)
		}
	}
	s.checkNothingIsLeftOver(a)
}

// checkNothingIsLeftOver finds rows that nothing needs.
func (s *story) checkNothingIsLeftOver(a *at) {
	s.t.Helper()
	ctx := context.Background()
	r, err := a.Room(ctx, s.room)
	if err != nil {
		s.t.Fatal(err)
	}
	for what, query := range map[string]string{
		"relations":    "SELECT count(*) FROM relations WHERE room = ? AND num NOT IN (SELECT num FROM events)",
		"missing_prev": "SELECT count(*) FROM missing_prev WHERE room = ? AND num NOT IN (SELECT num FROM events)",
		"flags":        "SELECT count(*) FROM events WHERE room = ? AND flags >= 8 AND root IS NULL",
	} {
		var n int
		if err := a.o.DB.Read(ctx).Raw(query, r.Num).Row().Scan(&n); err != nil {
			s.t.Fatal(err)
		}
		if n > 0 {
			s.t.Errorf("%d rows left over: %s", n, what)
		}
	}
	mark, err := a.o.DB.MarkRoom(ctx, r.Num)
	if err != nil {
		s.t.Fatal(err)
	}
	var nodes int
	if err := a.o.DB.Read(ctx).Raw("SELECT count(*) FROM state_nodes WHERE room = ?", r.Num).Row().Scan(&nodes); err != nil {
		s.t.Fatal(err)
	}
	if nodes != mark.Nodes() {
		s.t.Errorf("%d nodes of states, of which %d are needed", nodes, mark.Nodes())
	}
}

var errCrash = errors.New("crash")

// smallRoom makes a room with a bit of everything on a server of its own, the same each time, and names an event in the middle.
func smallRoom(t *testing.T, open func() *storage.DB) (a *at, room matrix.RoomID, middle matrix.EventID) {
	w := newWorldOn(t, open, "one")
	a = w.at("one")
	room = a.newRoom("@a:one", "11", "public")
	reply := func(to *storage.Event, rel string) {
		a.post(room, matrix.Builder{Sender: "@a:one", Type: matrix.TypeMessage, Content: json.RawMessage(fmt.Sprintf(
			`{"body":"re","m.relates_to":{"rel_type":%q,"event_id":%q},"m.new_content":{"body":"new"}}`, rel, to.ID()))})
	}
	for i := range 30 {
		e := a.say(room, "@a:one", fmt.Sprint("message ", i))
		switch i % 5 {
		case 0:
			a.set(room, "@a:one", matrix.TypeTopic, "", fmt.Sprintf(`{"topic":"%d"}`, i))
		case 1:
			reply(e, relReplace)
		case 2:
			reply(e, relThread)
		case 3:
			a.set(room, "@a:one", matrix.TypeMember, "@a:one", fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, i))
		case 4:
			if _, err := a.Redact(t.Context(), RedactRequest{Room: room, Sender: "@a:one", Event: e.ID()}); err != nil {
				t.Fatal(err)
			}
		}
		if i == 20 {
			middle = e.ID()
		}
	}
	a.purgeBatch = 7
	return a, room, middle
}

// rows dumps what a purge may change.
func (a *at) rows() []string {
	a.t.Helper()
	var all []string
	for _, query := range []string{
		"SELECT num, pos, event_id, flags, root, redacted_by, json FROM events ORDER BY num", "SELECT room, hash, node FROM state_nodes ORDER BY room, hash",
		"SELECT room, pos, root FROM room_states ORDER BY room, pos", "SELECT room, parent, num FROM relations ORDER BY room, parent, num",
		"SELECT room_id, pos, tip, root, purged_depth, purged_num, purged_ts, purged_pos, purged_gap FROM rooms", "SELECT room_id, event_id FROM receipts ORDER BY event_id",
		"SELECT room, user_id, membership, num FROM memberships ORDER BY room, user_id",
	} {
		rows, err := a.o.DB.Read(context.Background()).Raw(query).Rows()
		if err != nil {
			a.t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			a.t.Fatal(err)
		}
		for rows.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new(any)
			}
			if err := rows.Scan(values...); err != nil {
				a.t.Fatal(err)
			}
			line := query[:30]
			for _, v := range values {
				line += fmt.Sprintf("|%v", *v.(*any))
			}
			all = append(all, line)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			a.t.Fatal(err)
		}
	}
	return all
}

// restart is the server as another process finds its database.
func (a *at) restart() *at {
	w := a.w
	s := New(Options{Config: a.o.Config, ServerName: a.name, DB: a.o.DB, Key: a.o.Key, Keys: w, Remote: a.o.Remote, Log: a.o.Log, Now: a.o.Now})
	s.purgeBatch = a.purgeBatch
	a.t.Cleanup(func() { s.Close() })
	w.servers[a.name] = s
	if err := a.o.DB.ReleasePurges(context.Background()); err != nil {
		a.t.Fatal(err)
	}
	return w.at(a.name)
}

// TestPurgeThatIsCutOffEndsAsIfItWereNot stops a purge at each boundary between two steps, on one of the databases.
func TestPurgeThatIsCutOffEndsAsIfItWereNot(t *testing.T) {
	t.Parallel() // long, and only with itself
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		for name, ask := range map[string]func(a *at, room matrix.RoomID, middle matrix.EventID) error{
			"history": func(a *at, room matrix.RoomID, middle matrix.EventID) error {
				_, err := a.PurgeHistory(t.Context(), HistoryPurge{Room: room, Event: middle})
				return err
			},
			"all": func(a *at, room matrix.RoomID, _ matrix.EventID) error {
				_, err := a.PurgeHistory(t.Context(), HistoryPurge{Room: room, Before: a.o.Now()})
				return err
			},
			"room": func(a *at, room matrix.RoomID, _ matrix.EventID) error {
				_, err := a.PurgeRoom(t.Context(), RoomPurge{Room: room, Forced: true})
				return err
			},
		} {
			t.Run(name, func(t *testing.T) {
				a, room, middle := smallRoom(t, open)
				if err := ask(a, room, middle); err != nil {
					t.Fatal(err)
				}
				boundaries := 0
				a.atBoundary = func() error { boundaries++; return nil }
				before := len(a.rows())
				a.purge()
				want := a.rows()
				if boundaries < 5 || len(want) > before/2 {
					t.Fatalf("%d boundaries, %d rows of %d left: this test is not worth much", boundaries, len(want), before)
				}
				// One database takes the odd boundaries, the other the even ones.
				first := 1
				if strings.Contains(t.Name(), "/postgres/") {
					first = 2
				}
				for n := first; n <= boundaries; n += 2 {
					a, room, middle := smallRoom(t, open)
					if err := ask(a, room, middle); err != nil {
						t.Fatal(err)
					}
					at := 0
					a.atBoundary = func() error {
						if at++; at == n {
							return errCrash
						}
						return nil
					}
					if err := a.Purge(t.Context()); !errors.Is(err, errCrash) {
						t.Fatalf("at boundary %d: %v", n, err)
					}
					a = a.restart()
					a.purge()
					got := a.rows()
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("cut off at boundary %d of %d: %s", n, boundaries, diff)
					}
					jobs, err := a.o.DB.PurgeJobs(t.Context(), "", 10)
					if err != nil || len(jobs) != 1 || jobs[0].Status != storage.PurgeDone {
						t.Fatalf("%+v, %v", jobs, err)
					}
				}
			})
		}
	})
}

// TestRoomIsDeletedWithoutATrace purges a whole room.
func TestRoomIsDeletedWithoutATrace(t *testing.T) {
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		a, room, _ := smallRoom(t, open)
		other := a.newRoom("@a:one", "11", "public")
		a.say(other, "@a:one", "stays")
		want := len(a.all(other))
		var badState *matrix.Error
		if _, err := a.PurgeRoom(t.Context(), RoomPurge{Room: room}); !errors.As(err, &badState) || badState.Code != "M_BAD_STATE" {
			t.Errorf("with users in it: %v", err)
		}
		if _, err := a.PurgeRoom(t.Context(), RoomPurge{Room: room, Forced: true}); err != nil {
			t.Fatal(err)
		}
		left := false
		defer a.o.DB.Listen(func(c storage.Commit) {
			for _, change := range c.Changes {
				for _, e := range change.Events {
					left = left || e.Room == room && e.Event.Is(matrix.TypeMember, "@a:one") && e.Event.Membership() == matrix.Leave
				}
			}
		})()
		a.purge()
		if !left {
			t.Error("nobody has left")
		}
		if _, err := a.Room(t.Context(), room); !errors.Is(err, errNoRoom) {
			t.Errorf("the room: %v", err)
		}
		if n := len(a.all(other)); n != want {
			t.Errorf("%d of %d events of the other room", n, want)
		}
		r, err := a.Room(t.Context(), other)
		if err != nil {
			t.Fatal(err)
		}
		for _, query := range []string{
			"events WHERE room <> ?", "state_nodes WHERE room <> ?", "room_states WHERE room <> ?", "memberships WHERE room <> ?", "relations WHERE room <> ?", "rooms WHERE num <> ?",
		} {
			var n int
			if err := a.o.DB.Read(t.Context()).Raw("SELECT count(*) FROM "+query, r.Num).Row().Scan(&n); err != nil || n > 0 {
				t.Errorf("%d rows in %s, %v", n, query, err)
			}
		}
		if rooms, err := a.JoinedRooms(t.Context(), "@a:one"); err != nil || !slices.Equal(rooms, []matrix.RoomID{other}) {
			t.Errorf("joined to %v, %v", rooms, err)
		}
	})
}

// TestPurgedHistoryIsNotFetchedAgain has two servers in a room; one purges, the other has all still, and may say so.
func TestPurgedHistoryIsNotFetchedAgain(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@a:one", "11", "public")
	for i := range 5 {
		one.say(room, "@a:one", fmt.Sprint("early ", i))
	}
	two.join(room, "@b:two", "one")
	one.get("two", two.snap(room).Tip[0])
	var last *storage.Event
	for i := range 10 {
		last = one.say(room, "@a:one", fmt.Sprint("said ", i))
		two.get("one", last)
	}
	if got := len(two.pages(room, "@b:two")); got < 15 {
		t.Fatalf("two sees %d events before", got)
	}
	if _, err := two.PurgeHistory(t.Context(), HistoryPurge{Room: room, Event: last.ID()}); err != nil {
		t.Fatal(err)
	}
	two.purge()
	backfills := w.count("backfill one")
	for range 3 {
		if got := two.pages(room, "@b:two"); !slices.Equal(got, []matrix.EventID{last.ID()}) {
			t.Errorf("two sees %v", got)
		}
	}
	if n := w.count("backfill one") - backfills; n > 0 {
		t.Errorf("asked %d times for what was purged", n)
	}
	if c, err := two.Context(t.Context(), room, Reader{User: "@b:two"}, last.ID(), 10, nil); err != nil || len(c.EventsBefore) != 0 {
		t.Errorf("context at the edge: %d events before, %v", len(c.EventsBefore), err)
	}
	if got, err := two.ServeBackfill(t.Context(), "one", room, []matrix.EventID{last.ID()}, 10); err != nil || len(got) != 1 {
		t.Errorf("backfill gives %d events, %v", len(got), err)
	}
	if got, err := two.ServeMissingEvents(t.Context(), "one", room, MissingEventsRequest{LatestEvents: []matrix.EventID{last.ID()}}); err != nil || len(got) != 0 {
		t.Errorf("missing events: %d, %v", len(got), err)
	}
	if _, err := two.StateIDsAt(t.Context(), "one", room, last.PrevEvents()[0]); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("state at a purged event: %v", err)
	}
	if _, err := two.StateIDsAt(t.Context(), "one", room, last.ID()); err != nil {
		t.Errorf("state at the edge: %v", err)
	}
	// What one sends again is not taken again.
	old, err := one.EventByID(t.Context(), last.PrevEvents()[0])
	if err != nil {
		t.Fatal(err)
	}
	two.get("one", old)
	// New events flow both ways.
	e := one.say(room, "@a:one", "after")
	two.get("one", e)
	back := two.say(room, "@b:two", "and back")
	one.get("two", back)
	if got := two.timeline(room); !slices.Equal(got, []string{"said 9", "after", "and back"}) {
		t.Errorf("two has %q", got)
	}
	if got := one.timeline(room); len(got) != 17 {
		t.Errorf("one has %d messages", len(got))
	}
}

// TestForkFromBeforeThePurgeIsTaken gets an event whose predecessor was purged here: its sender was away for long.
func TestForkFromBeforeThePurgeIsTaken(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@a:one", "11", "public")
	two.join(room, "@b:two", "one")
	one.get("two", two.snap(room).Tip[0])
	base := one.say(room, "@a:one", "seen by both")
	two.get("one", base)
	late := two.say(room, "@b:two", "from far away")
	var last *storage.Event
	for i := range 5 {
		last = one.say(room, "@a:one", fmt.Sprint("meanwhile ", i))
	}
	if _, err := one.PurgeHistory(t.Context(), HistoryPurge{Room: room, Event: last.ID()}); err != nil {
		t.Fatal(err)
	}
	one.purge()
	one.get("two", late)
	after := two.say(room, "@b:two", "still there")
	one.get("two", after)
	if got := one.timeline(room); !slices.Contains(got, "still there") {
		t.Errorf("one has %q", got)
	}
	if got := one.flags(base.ID()); got != -1 && got&storage.Outlier == 0 {
		t.Errorf("what was purged is back, flags %b", got)
	}
	e := one.say(room, "@a:one", "both again")
	two.get("one", e)
	if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
		t.Error(diff)
	}
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// retained is a configuration in which rooms may ask for any lifetime.
func retained(a *at, c RetentionConfig) {
	c.Enabled, c.Interval = true, time.Hour
	a.o.Config.Retention = c
}

func (a *at) expire() {
	a.t.Helper()
	if err := a.scheduleRetention(context.Background()); err != nil {
		a.t.Fatal(err)
	}
	a.purge()
}

// TestExpiredMessagesCannotBeReadAndThenGo lets messages become too old.
func TestExpiredMessagesCannotBeReadAndThenGo(t *testing.T) {
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		a, room, _ := smallRoom(t, open)
		retained(a, RetentionConfig{})
		a.set(room, "@a:one", typeRetention, "", `{"max_lifetime":3600000}`)
		old := a.say(room, "@a:one", "old words")
		a.w.pass(50 * time.Minute)
		young := a.say(room, "@a:one", "young words")
		a.post(room, matrix.Builder{Sender: "@a:one", Type: matrix.TypeMessage, Content: json.RawMessage(fmt.Sprintf(
			`{"body":"reply","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, old.ID()))})
		if got := a.timelineSeen(room); !slices.Contains(got, "old words") {
			t.Fatalf("before: %q", got)
		}
		a.w.pass(20 * time.Minute)
		ctx, reader := t.Context(), Reader{User: "@a:one"}
		look := func(when string) {
			t.Helper()
			if got := a.timelineSeen(room); !slices.Equal(got, []string{"young words", "reply"}) {
				t.Errorf("%s: messages %q", when, got)
			}
			if _, err := a.Event(ctx, room, reader, old.ID()); matrix.ErrorCode(err) != "M_NOT_FOUND" {
				t.Errorf("%s: event: %v", when, err)
			}
			if _, err := a.Context(ctx, room, reader, old.ID(), 5, nil); matrix.ErrorCode(err) != "M_NOT_FOUND" {
				t.Errorf("%s: context: %v", when, err)
			}
			if _, err := a.Relations(ctx, room, reader, RelationsRequest{Event: old.ID()}); matrix.ErrorCode(err) != "M_NOT_FOUND" {
				t.Errorf("%s: relations: %v", when, err)
			}
			raw, err := a.Search(ctx, reader, SearchRequest{SearchTerm: "words"}, "")
			var found struct{ Count int }
			if err != nil || json.Unmarshal(raw, &found) != nil || found.Count != 1 {
				t.Errorf("%s: search finds %d, %v", when, found.Count, err)
			}
			if c, err := a.Context(ctx, room, reader, young.ID(), 50, nil); err != nil || slices.Contains(bodies(t, c.EventsBefore), "old words") {
				t.Errorf("%s: context of a young one: %v, %v", when, bodies(t, c.EventsBefore), err)
			}
			if page, err := a.Threads(ctx, room, reader, false, "", 0); err != nil || len(page.Chunk) != 0 {
				t.Errorf("%s: threads %s, %v", when, page.Chunk, err)
			}
			if e, err := a.TimestampToEvent(ctx, room, "@a:one", old.OriginServerTS(), false); err != nil || e.EventID != young.ID() {
				t.Errorf("%s: by time: %v, %v", when, e, err)
			}
		}
		look("not deleted yet")
		state := a.wholeState(room)
		a.expire()
		look("deleted")
		if a.flags(old.ID()) != -1 {
			t.Error("the row is still there")
		}
		if diff := cmp.Diff(state, a.wholeState(room)); diff != "" {
			t.Errorf("the state: %s", diff)
		}
		// The room falls silent: nothing of it can be read in the end, and it goes on.
		a.w.pass(2 * time.Hour)
		if got := a.timelineSeen(room); len(got) != 0 {
			t.Errorf("silent: %q", got)
		}
		a.expire()
		var contents int
		if err := a.o.DB.Read(ctx).Raw("SELECT count(*) FROM events WHERE type = 'm.room.message' AND instr(json, CAST('body' AS BLOB)) > 0").Row().Scan(&contents); a.o.DB.Dialect() == storage.SQLite && (err != nil || contents > 0) {
			t.Errorf("%d messages still have content, %v", contents, err)
		}
		a.say(room, "@a:one", "again")
		if got := a.timelineSeen(room); !slices.Equal(got, []string{"again"}) {
			t.Errorf("in the end: %q", got)
		}
		if diff := cmp.Diff(state, a.wholeState(room)); diff != "" {
			t.Errorf("the state in the end: %s", diff)
		}
	})
}

// timelineSeen lists the messages that the room's creator can page through, oldest first.
func (a *at) timelineSeen(room matrix.RoomID) []string {
	a.t.Helper()
	chunk, err := a.Messages(context.Background(), room, Reader{User: "@a:one"}, MessagesRequest{Limit: 1000})
	if err != nil {
		a.t.Fatal(err)
	}
	got := bodies(a.t, chunk.Chunk)
	slices.Reverse(got)
	return slices.DeleteFunc(got, func(s string) bool { return s == "" })
}

func TestLifetimeIsWhatTheRoomAsksForWithinThePolicy(t *testing.T) {
	const h = time.Hour
	for _, c := range []struct {
		policy RetentionPolicy
		asked  retention
		want   time.Duration
	}{
		{RetentionPolicy{}, retention{}, 0},
		{RetentionPolicy{}, retention{max: h}, h},
		{RetentionPolicy{Default: 5 * h}, retention{}, 5 * h},
		{RetentionPolicy{Default: 5 * h}, retention{max: h}, h},
		{RetentionPolicy{Min: 2 * h}, retention{max: h}, 2 * h},
		{RetentionPolicy{Min: 2 * h}, retention{}, 0},
		{RetentionPolicy{Max: 3 * h}, retention{}, 3 * h},
		{RetentionPolicy{Max: 3 * h}, retention{max: 9 * h}, 3 * h},
		{RetentionPolicy{Max: 3 * h, Default: h}, retention{min: 2 * h}, 2 * h},
		{RetentionPolicy{Max: 3 * h, Default: h}, retention{min: 5 * h}, 3 * h},
	} {
		if got := c.policy.within(c.asked); got != c.want {
			t.Errorf("%+v, asked for %+v: %v, want %v", c.policy, c.asked, got, c.want)
		}
	}
	for content, want := range map[string]retention{
		`{}`: {}, `{"max_lifetime":1000}`: {max: time.Second}, `{"max_lifetime":"1000"}`: {}, `{"max_lifetime":-1}`: {}, `{"max_lifetime":0}`: {},
		`{"min_lifetime":2000,"max_lifetime":1000}`: {}, `{"min_lifetime":1000}`: {min: time.Second}, `{"max_lifetime":9007199254740991}`: {},
	} {
		b := matrix.Builder{RoomID: "!r:one", Sender: "@a:one", Type: typeRetention, StateKey: new(string), Content: json.RawMessage(content), Depth: 1, Time: time.UnixMilli(1)}
		e, err := b.Build(matrix.LookupRoomVersion("11"), "one", testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := parseRetention(&storage.Event{Event: e}); got != want {
			t.Errorf("%s: %+v, want %+v", content, got, want)
		}
	}
}

func TestClassOfARoomDecidesItsPolicy(t *testing.T) {
	w := newWorld(t, "one")
	a := w.at("one")
	retained(a, RetentionConfig{Direct: RetentionPolicy{Default: time.Hour}, Private: RetentionPolicy{Default: 2 * time.Hour}, Public: RetentionPolicy{Default: 3 * time.Hour}})
	lifetime := func(room matrix.RoomID) time.Duration {
		r, err := a.Room(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		l, err := a.lifetime(t.Context(), r, r.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		return l / time.Hour
	}
	public, private := a.newRoom("@a:one", "11", "public"), a.newRoom("@a:one", "11", "invite")
	if l := lifetime(public); l != 3 {
		t.Errorf("public: %d", l)
	}
	for i, want := range []time.Duration{1, 1, 2} {
		if l := lifetime(private); l != want {
			t.Errorf("after %d invites: %d", i, l)
		}
		a.set(private, "@a:one", matrix.TypeMember, fmt.Sprintf("@u%d:one", i), `{"membership":"invite"}`)
	}
	a.set(private, "@a:one", matrix.TypeMember, "@u1:one", `{"membership":"leave"}`)
	a.set(private, "@a:one", matrix.TypeMember, "@u2:one", `{"membership":"leave"}`)
	if l := lifetime(private); l != 2 {
		t.Errorf("after others have left: %d", l)
	}
}

// TestLegalHoldKeepsWhatIsDeleted holds a room, then a user.
func TestLegalHoldKeepsWhatIsDeleted(t *testing.T) {
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		ctx := t.Context()
		a, room, middle := smallRoom(t, open)
		db := a.o.DB
		hold := func(kind, target string) {
			t.Helper()
			if err := db.SetHold(ctx, storage.Hold{Kind: kind, Target: target, SetBy: "@admin:one", Set: a.o.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		held := func() map[matrix.EventID]string {
			t.Helper()
			list, err := db.HeldEvents(ctx, room, "", 0, 1000)
			if err != nil {
				t.Fatal(err)
			}
			all := map[matrix.EventID]string{}
			for _, e := range list {
				all[e.EventID] = string(e.JSON)
			}
			return all
		}
		// A purge that was asked for before the hold waits; one that is asked for after it is refused.
		if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Event: middle}); err != nil {
			t.Fatal(err)
		}
		hold(storage.HoldRoom, string(room))
		rows := len(a.rows())
		a.purge()
		if n := len(a.rows()); n != rows {
			t.Errorf("%d rows of %d under a hold", n, rows)
		}
		if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Event: middle}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
			t.Errorf("purge of a held room: %v", err)
		}
		if _, err := a.PurgeRoom(ctx, RoomPurge{Room: room, Forced: true}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
			t.Errorf("purge of a held room: %v", err)
		}
		// What is redacted is kept aside.
		secret := a.say(room, "@a:one", "secret")
		if _, err := a.Redact(ctx, RedactRequest{Room: room, Sender: "@a:one", Event: secret.ID()}); err != nil {
			t.Fatal(err)
		}
		if got := held(); got[secret.ID()] != string(secret.JSON()) || len(got) != 1 {
			t.Errorf("kept of a redacted event: %v", got)
		}
		if _, err := a.Event(ctx, room, Reader{User: "@a:one"}, secret.ID()); err != nil {
			t.Error(err)
		}
		// Lifted, the purge goes on, and what was kept goes.
		if err := db.LiftHold(ctx, storage.HoldRoom, string(room)); err != nil {
			t.Fatal(err)
		}
		a.purge()
		if got := held(); len(got) != 0 || len(a.rows()) >= rows {
			t.Errorf("after the hold: kept %v, %d rows of %d", got, len(a.rows()), rows)
		}
		// A user under a hold: what they sent is purged from the room, and kept.
		hold(storage.HoldUser, "@a:one")
		last := a.say(room, "@a:one", "the last")
		if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Before: a.o.Now()}); err != nil {
			t.Fatal(err)
		}
		want := map[matrix.EventID]string{}
		for _, e := range a.all(room) {
			if !e.IsState() && e.RedactedBy == "" {
				want[e.ID()] = string(e.JSON())
			}
		}
		a.purge()
		got := held()
		for id := range got {
			if want[id] == "" { // superseded state is kept as well
				delete(got, id)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kept of a held user: %s", diff)
		}
		if got := a.timelineSeen(room); len(got) != 0 {
			t.Errorf("still to be read: %q", got)
		}
		if a.flags(last.ID()) != storage.Purged {
			t.Errorf("the tip: %b", a.flags(last.ID()))
		}
		if err := db.LiftHold(ctx, storage.HoldUser, "@a:one"); err != nil {
			t.Fatal(err)
		}
		a.purge()
		if got := held(); len(got) != 0 {
			t.Errorf("after the hold: %v", got)
		}
	})
}

func TestRetentionPolicyThatCannotHoldIsRefused(t *testing.T) {
	for _, c := range []struct {
		policy RetentionPolicy
		ok     bool
	}{
		{RetentionPolicy{}, true},
		{RetentionPolicy{Default: 2, Min: 1, Max: 3}, true},
		{RetentionPolicy{Min: 1}, true},
		{RetentionPolicy{Min: -1}, false},
		{RetentionPolicy{Min: 2, Max: 1}, false},
		{RetentionPolicy{Default: 2, Max: 1}, false},
		{RetentionPolicy{Default: 1, Min: 2}, false},
	} {
		if err := (RetentionConfig{Public: c.policy}).Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.policy, err)
		}
	}
}
