package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// partialWorld is a world in which server two joins with the members left out. Until open is called, nobody gives it the state.
type partialWorld struct {
	*world
	one, two *at
	room     matrix.RoomID
	closed   map[string]chan struct{}
}

// newPartialWorld has alice and n others in a room of one, which bob joins from two.
func newPartialWorld(t *testing.T, version string, n int, names ...matrix.ServerName) *partialWorld {
	t.Helper()
	w := &partialWorld{world: newWorld(t, append([]matrix.ServerName{"one", "two"}, names...)...), closed: map[string]chan struct{}{}}
	w.one, w.two = w.at("one"), w.at("two")
	w.room = w.one.newRoom("@alice:one", version, "public")
	w.one.set(w.room, "@alice:one", matrix.TypeName, "", `{"name":"Large"}`)
	for i := range n {
		w.one.comeIn(w.room, w.one.user(fmt.Sprintf("m%d", i)))
	}
	w.two.o.Config.PartialJoins = true
	return w
}

// comeIn joins a user of the server to a room that it is in.
func (a *at) comeIn(room matrix.RoomID, user matrix.UserID) *storage.Event {
	a.t.Helper()
	return a.set(room, user, matrix.TypeMember, string(user), `{"membership":"join"}`)
}

// hold has a server's answers to state_ids wait until open.
func (w *partialWorld) hold(servers ...matrix.ServerName) {
	for _, server := range servers {
		what := "state_ids " + string(server)
		gate := make(chan struct{})
		w.closed[what] = gate
		w.mu.Lock()
		w.fault[what] = func() error { <-gate; return nil }
		w.mu.Unlock()
		w.t.Cleanup(func() { w.open(server) })
	}
}

func (w *partialWorld) open(server matrix.ServerName) {
	what := "state_ids " + string(server)
	w.mu.Lock()
	defer w.mu.Unlock()
	if gate := w.closed[what]; gate != nil {
		close(gate)
		delete(w.closed, what)
		delete(w.fault, what)
	}
}

// finish waits until the work on partial rooms is done.
func (a *at) finish() {
	a.t.Helper()
	a.foreign.partial.running.Wait()
}

// give hands two the newest events of one.
func (w *partialWorld) give(events ...*storage.Event) { w.two.get("one", events...) }

func TestAPartialRoomIsThereAtOnceAndWholeInTheEnd(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			w := newPartialWorld(t, version, 3)
			w.hold("one")
			w.two.join(w.room, "@bob:two", "one")
			snap := w.two.snap(w.room)
			if !snap.PartialState || !snap.Joined() || snap.Servers["one"] == 0 {
				t.Fatalf("partial %t, joined %t, servers %v", snap.PartialState, snap.Joined(), snap.Servers)
			}
			if got := w.two.state(w.room, matrix.TypeName, ""); got != `{"name":"Large"}` {
				t.Errorf("the name is %s", got)
			}
			if got := w.two.state(w.room, matrix.TypeMember, "@m1:one"); got != "" {
				t.Errorf("a member is here already, so this tests nothing: %s", got)
			}
			w.two.say(w.room, "@bob:two", "hello")
			w.open("one")
			w.two.finish()
			snap = w.two.snap(w.room)
			if snap.PartialState || snap.WholePos == 0 || snap.JoinedCount != 5 || snap.Servers["one"] != 4 || snap.Servers["two"] != 1 {
				t.Errorf("partial %t since %d, joined %d, servers %v", snap.PartialState, snap.WholePos, snap.JoinedCount, snap.Servers)
			}
			if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
				t.Error(diff)
			}
			if m := w.two.membership(w.room, "@m1:one"); m.Membership != matrix.Join {
				t.Errorf("the row says %q", m.Membership)
			}
			if diff := cmp.Diff([]string{"hello"}, w.two.timeline(w.room)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheStateOfThePastIsWholeToo(t *testing.T) {
	w := newPartialWorld(t, "11", 3)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	pos := w.two.snap(w.room).Pos
	topic := w.two.set(w.room, "@bob:two", matrix.TypeMember, "@bob:two", `{"displayname":"Bob","membership":"join"}`)
	w.open("one")
	w.two.finish()
	for _, p := range []int64{pos, topic.Pos} {
		root, err := w.two.RootAt(context.Background(), w.room, p)
		if err != nil {
			t.Fatal(err)
		}
		e, err := w.two.StateAt(context.Background(), w.room, root, matrix.TypeMember, "@m2:one")
		if err != nil || e == nil {
			t.Errorf("at %d the state lacks a member: %v", p, err)
		}
	}
	stored, err := w.two.o.DB.EventByID(context.Background(), topic.ID())
	if err != nil {
		t.Fatal(err)
	}
	if e, err := w.two.StateAt(context.Background(), w.room, stored.Before, matrix.TypeMember, "@m2:one"); err != nil || e == nil {
		t.Errorf("the state before an event lacks a member: %v", err)
	}
}

func TestEventsOfUnknownMembersAreTakenWhilePartial(t *testing.T) {
	w := newPartialWorld(t, "11", 3)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	w.one.get("two", w.two.snap(w.room).Tip...)
	w.give(w.one.say(w.room, "@m0:one", "from a member"))
	w.give(w.one.comeIn(w.room, "@new:one"))
	w.give(w.one.say(w.room, "@new:one", "from a new one"))
	want := []string{"from a member", "from a new one"}
	if diff := cmp.Diff(want, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	w.open("one")
	w.two.finish()
	if diff := cmp.Diff(want, w.two.timeline(w.room)); diff != "" {
		t.Errorf("when it is whole: %s", diff)
	}
	if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
}

// A server kicks the sender of an event that it then sends with an old member event: on partial state nobody can tell.
func TestWhatThePartialStateCouldNotTellIsJudgedAgain(t *testing.T) {
	w := newPartialWorld(t, "11", 2)
	joined := w.one.state(w.room, matrix.TypeMember, "@m0:one")
	member, err := w.one.StateAt(context.Background(), w.room, w.one.snap(w.room).Root, matrix.TypeMember, "@m0:one")
	if err != nil || joined == "" {
		t.Fatal(err)
	}
	w.one.set(w.room, "@alice:one", matrix.TypeMember, "@m0:one", `{"membership":"ban"}`)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	tip := w.two.snap(w.room).Tip[0]
	w.one.get("two", tip)
	auth := []matrix.EventID{member.ID()}
	for _, typ := range []string{matrix.TypeCreate, matrix.TypePowerLevels} {
		e, err := w.one.StateAt(context.Background(), w.room, w.one.snap(w.room).Root, typ, "")
		if err != nil {
			t.Fatal(err)
		}
		auth = append(auth, e.ID())
	}
	bad := w.one.forge(tip, matrix.Builder{Sender: "@m0:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"I am banned"}`), AuthEvents: auth})
	w.two.getRaw("one", bad)
	if diff := cmp.Diff([]string{"I am banned"}, w.two.timeline(w.room)); diff != "" {
		t.Fatal("it was not taken, so this tests nothing: " + diff)
	}
	good := w.one.say(w.room, "@alice:one", "good")
	w.give(good)
	w.open("one")
	w.two.finish()
	if diff := cmp.Diff([]string{"good"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	if got := w.two.flags(bad.ID()); got != storage.Rejected {
		t.Errorf("flags %d, want rejected", got)
	}
}

// What was refused because of a kick that the whole state does not allow is let in again.
func TestWhatAWrongKickKeptOutComesBack(t *testing.T) {
	w := newPartialWorld(t, "11", 1)
	w.one.set(w.room, "@alice:one", matrix.TypePowerLevels, "", `{"users":{"@alice:one":100,"@m0:one":50,"@mod:one":50},"kick":50,"state_default":50}`)
	w.one.comeIn(w.room, "@mod:one")
	mod, err := w.one.StateAt(context.Background(), w.room, w.one.snap(w.room).Root, matrix.TypeMember, "@mod:one")
	if err != nil {
		t.Fatal(err)
	}
	w.one.set(w.room, "@alice:one", matrix.TypeMember, "@mod:one", `{"membership":"leave"}`) // so mod may kick nobody
	w.one.comeIn(w.room, "@guest:one")
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	tip := w.two.snap(w.room).Tip[0]
	w.one.get("two", tip)
	auth := []matrix.EventID{mod.ID()}
	for _, key := range []matrix.StateTuple{{Type: matrix.TypeCreate}, {Type: matrix.TypePowerLevels}, {Type: matrix.TypeMember, StateKey: "@guest:one"}} {
		e, err := w.one.StateAt(context.Background(), w.room, w.one.snap(w.room).Root, key.Type, key.StateKey)
		if err != nil {
			t.Fatal(err)
		}
		auth = append(auth, e.ID())
	}
	guest := "@guest:one"
	kick := w.one.forge(tip, matrix.Builder{Sender: "@mod:one", Type: matrix.TypeMember, StateKey: &guest, Content: json.RawMessage(`{"membership":"leave"}`), AuthEvents: auth})
	w.two.getRaw("one", kick)
	if got := w.two.flags(kick.ID()); got != 0 {
		t.Fatalf("the kick was refused, so this tests nothing: %d", got)
	}
	said := w.one.say(w.room, "@guest:one", "still here") // follows the tip, beside the kick
	w.give(said)
	if got := w.two.flags(said.ID()); got != storage.SoftFailed {
		t.Fatalf("flags %d: it was not refused, so this tests nothing", got)
	}
	w.open("one")
	w.two.finish()
	if got := w.two.flags(kick.ID()); got != storage.Rejected {
		t.Errorf("the kick has flags %d, want rejected", got)
	}
	if diff := cmp.Diff([]string{"still here"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
}

func TestAPartialRoomGoesOnAfterAKill(t *testing.T) {
	w := newPartialWorld(t, "11", 3)
	w.fault["state_ids one"] = func() error { return errNoAnswer }
	w.two.join(w.room, "@bob:two", "one")
	w.one.get("two", w.two.snap(w.room).Tip...)
	w.give(w.one.say(w.room, "@m0:one", "before"))
	// The process is gone: another one finds what is in the database.
	w.two.foreign.partial.close()
	o := w.two.o
	reborn := New(o)
	t.Cleanup(func() { reborn.foreign.partial.close() })
	w.servers["two"] = reborn
	two := w.at("two")
	snap := two.snap(w.room)
	if !snap.PartialState || snap.partial == nil || !slices.Equal(snap.partial.Servers, []matrix.ServerName{"one"}) || snap.Servers["one"] == 0 {
		t.Fatalf("it is not known that the room is partial: %+v", snap.partial)
	}
	two.get("one", w.one.say(w.room, "@m1:one", "after"))
	w.mu.Lock()
	delete(w.fault, "state_ids one")
	w.mu.Unlock()
	if err := two.ResumePartial(context.Background()); err != nil {
		t.Fatal(err)
	}
	two.finish()
	if diff := cmp.Diff(w.one.wholeState(w.room), two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"before", "after"}, two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	if rooms, err := o.DB.PartialRooms(context.Background()); err != nil || len(rooms) > 0 {
		t.Errorf("still partial: %v, %v", rooms, err)
	}
}

func TestWhoLiesAboutTheStateIsNotBelieved(t *testing.T) {
	w := newPartialWorld(t, "11", 2, "three")
	three := w.at("three")
	three.join(w.room, "@carol:three", "one")
	w.one.get("three", three.snap(w.room).Tip...)
	other := w.one.newRoom("@alice:one", "11", "public")
	for name, lie := range map[string]func(*StateIDsResponse){
		"nothing":              func(a *StateIDsResponse) { *a = StateIDsResponse{} },
		"another room's state": func(a *StateIDsResponse) { a.PDUIDs = idsOf(w.one.snap(other).Tip) },
		"events that are not there": func(a *StateIDsResponse) {
			for i := range 30 {
				a.PDUIDs = append(a.PDUIDs, matrix.EventID(fmt.Sprintf("$none%d", i)))
			}
		},
		"too much": func(a *StateIDsResponse) { a.PDUIDs = make([]matrix.EventID, maxStateEvents+1) },
	} {
		t.Run(name, func(t *testing.T) {
			w.tweak["state_ids one"] = func(answer any) error { lie(answer.(*StateIDsResponse)); return nil }
			user := matrix.UserID("@" + "u" + fmt.Sprint(len(name)) + ":two")
			w.hold("one")
			asked, fetched := w.count("state_ids one"), w.count("event one")
			w.two.join(w.room, user, "one")
			three.get("two", w.two.snap(w.room).Tip...)
			w.open("one")
			w.two.finish()
			if asked, fetched = w.count("state_ids one")-asked, w.count("event one")-fetched; asked != 1 || fetched > 31 {
				t.Errorf("the liar was asked %d times for the state and %d times for an event", asked, fetched)
			}
			if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
				t.Error(diff)
			}
			leave := w.two.set(w.room, user, matrix.TypeMember, string(user), `{"membership":"leave"}`)
			w.one.get("two", leave)
			three.get("two", leave)
		})
	}
}

func TestOtherServersDoNotGetWhatIsNotKnown(t *testing.T) {
	w := newPartialWorld(t, "11", 2)
	w.fault["state_ids one"] = func() error { return errNoAnswer }
	w.two.join(w.room, "@bob:two", "one")
	ctx := context.Background()
	if _, err := w.two.MakeJoin(ctx, "three", w.room, "@x:three", []string{"11"}); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("make_join: %v", err)
	}
	if _, err := w.two.MakeKnock(ctx, "three", w.room, "@x:three", []string{"11"}); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("make_knock: %v", err)
	}
	join := w.one.forge(w.one.snap(w.room).Tip[0], matrix.Builder{Sender: "@x:one", Type: matrix.TypeMember, StateKey: new("@x:one"), Content: joinContent})
	if _, err := w.two.SendJoin(ctx, "one", w.room, join.ID(), join.JSON(), false); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("send_join: %v", err)
	}
	if _, err := w.two.SendKnock(ctx, "one", w.room, join.ID(), join.JSON()); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("send_knock: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := w.two.StateIDsAt(short, "one", w.room, w.two.snap(w.room).Tip[0].ID()); err == nil {
		t.Error("state_ids was answered")
	}
	if err := w.two.JoinedMembers(short, io.Discard, w.room, "@bob:two"); matrix.ErrorCode(err) != "M_UNABLE_DUE_TO_PARTIAL_STATE" {
		t.Errorf("joined_members: %v", err)
	}
}

func TestWhoAsksForTheMembersWaitsForThem(t *testing.T) {
	w := newPartialWorld(t, "11", 2)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	got := make(chan string)
	go func() {
		var members strings.Builder
		if err := w.two.JoinedMembers(context.Background(), &members, w.room, "@bob:two"); err != nil {
			t.Error(err)
		}
		got <- members.String()
	}()
	w.open("one")
	if members := <-got; strings.Count(members, `"display_name"`) != 4 || !json.Valid([]byte(members)) {
		t.Errorf("the members are %s, want 4", members)
	}
}

func TestASecondUserJoinsAPartialRoomThroughAServerThatKnows(t *testing.T) {
	w := newPartialWorld(t, "11", 2)
	w.one.set(w.room, "@alice:one", matrix.TypeMember, "@bad:two", `{"membership":"ban"}`)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	w.one.get("two", w.two.snap(w.room).Tip...)
	w.two.o.Profile = nil
	if _, err := w.two.Join(context.Background(), JoinRequest{Room: w.room, User: "@bad:two"}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("a banned user: %v", err)
	}
	if _, err := w.two.Join(context.Background(), JoinRequest{Room: w.room, User: "@ben:two"}); err != nil {
		t.Fatal(err)
	}
	if !w.two.snap(w.room).PartialState {
		t.Error("it is whole, so this tests nothing")
	}
	w.open("one")
	w.two.finish()
	if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
}

func TestLeavingAPartialRoomDoesNotWait(t *testing.T) {
	w := newPartialWorld(t, "11", 2)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	leave := w.two.set(w.room, "@bob:two", matrix.TypeMember, "@bob:two", `{"membership":"leave"}`)
	w.one.get("two", leave)
	w.open("one") // which says that this server is not in the room
	w.two.finish()
	if snap := w.two.snap(w.room); snap.PartialState || snap.Joined() {
		t.Errorf("partial %t, joined %t", snap.PartialState, snap.Joined())
	}
	w.one.set(w.room, "@alice:one", matrix.TypeTopic, "", `{"topic":"new"}`)
	w.two.join(w.room, "@bob:two", "one")
	w.two.finish()
	if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
}

// on replaces server two by one on another database.
func (w *partialWorld) on(db *storage.DB) {
	w.two.foreign.partial.close()
	o := w.two.o
	o.DB = db
	s := New(o)
	w.servers["two"] = s
	w.two = w.at("two")
	w.t.Cleanup(func() { s.foreign.partial.close(); s.foreign.inbound.close() })
}

func TestAPartialRoomOnEachDatabase(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w := newPartialWorld(t, "11", 5)
		w.on(db)
		w.hold("one")
		w.two.join(w.room, "@bob:two", "one")
		w.one.get("two", w.two.snap(w.room).Tip...)
		w.give(w.one.comeIn(w.room, "@new:one"))
		w.give(w.one.say(w.room, "@m3:one", "hello"))
		w.give(w.one.set(w.room, "@m3:one", matrix.TypeMember, "@m3:one", `{"membership":"leave"}`))
		w.open("one")
		w.two.finish()
		if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"hello"}, w.two.timeline(w.room)); diff != "" {
			t.Error(diff)
		}
		w.on(db) // a restart
		if snap := w.two.snap(w.room); snap.PartialState || snap.WholePos == 0 || snap.JoinedCount != 7 || snap.Servers["one"] != 6 {
			t.Errorf("after a restart: partial %t, whole since %d, %d members, servers %v", snap.PartialState, snap.WholePos, snap.JoinedCount, snap.Servers)
		}
	})
}

// Between any two writes on the way to a whole state the process may be gone. What was judged again by then is judged once more.
func TestAReplayThatIsCutOffBeginsAnew(t *testing.T) {
	t.Parallel() // long, and only with itself
	storagetest.Each(t, func(t *testing.T, _ *storage.DB) {
		onPostgres, step := strings.HasSuffix(t.Name(), "/postgres"), 1
		if onPostgres {
			step = 3 // its databases take their time
		}
		for cut := 1; ; cut += step {
			w := newPartialWorld(t, "11", 5)
			if onPostgres {
				w.on(storagetest.NewPostgreSQL(t))
			}
			w.hold("one")
			w.two.join(w.room, "@bob:two", "one")
			w.one.get("two", w.two.snap(w.room).Tip...)
			for i := range 4 {
				w.give(w.one.say(w.room, w.one.user(fmt.Sprintf("m%d", i)), fmt.Sprint("hello ", i)))
				w.give(w.one.comeIn(w.room, w.one.user(fmt.Sprintf("late%d", i))))
			}
			// The partial server takes this for a kick of nobody, or by somebody without power, as it knows neither.
			w.give(w.one.set(w.room, "@alice:one", matrix.TypeMember, "@m3:one", `{"membership":"ban"}`))
			w.give(w.one.set(w.room, "@m1:one", matrix.TypeMember, "@m1:one", `{"membership":"leave"}`))
			w.two.replayBatch = 3
			q, writes := &w.two.foreign.partial, 0
			stop := w.two.o.DB.Listen(func(storage.Commit) {
				if writes++; writes == cut {
					q.stop()
				}
			})
			w.open("one")
			w.two.finish()
			stop()
			whole := !w.two.snap(w.room).PartialState
			w.on(w.two.o.DB) // another process
			if err := w.two.ResumePartial(context.Background()); err != nil {
				t.Fatal(err)
			}
			w.two.finish()
			if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
				t.Fatalf("cut off after write %d: %s", cut, diff)
			}
			if diff := cmp.Diff([]string{"hello 0", "hello 1", "hello 2", "hello 3"}, w.two.timeline(w.room)); diff != "" {
				t.Fatalf("cut off after write %d: %s", cut, diff)
			}
			snap, want := w.two.snap(w.room), w.one.snap(w.room)
			if snap.PartialState || snap.JoinedCount != want.JoinedCount || snap.Servers["one"] != want.Servers["one"] {
				t.Fatalf("cut off after write %d: partial %t, %d members of %d, servers %v", cut, snap.PartialState, snap.JoinedCount, want.JoinedCount, snap.Servers)
			}
			if whole {
				if cut < 5 {
					t.Errorf("whole after %d writes: this test is not worth much", cut)
				}
				return
			}
		}
	})
}

// The history of a room is purged only once its state is whole: what is needed to judge it again must not go. A whole room may go at any time.
func TestAPurgeOfHistoryWaitsUntilAPartialRoomIsWhole(t *testing.T) {
	ctx := context.Background()
	w := newPartialWorld(t, "11", 3)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	w.one.get("two", w.two.snap(w.room).Tip...)
	w.give(w.one.say(w.room, "@m0:one", "old"))
	last := w.one.say(w.room, "@m1:one", "new")
	w.give(last)
	id, err := w.two.PurgeHistory(ctx, HistoryPurge{Room: w.room, Event: last.ID()})
	if err != nil {
		t.Fatal(err)
	}
	w.two.purge()
	if job, err := w.two.o.DB.PurgeJobByID(ctx, id); err != nil || job.Status == storage.PurgeDone || job.Status == storage.PurgeFailed {
		t.Errorf("while partial: %+v, %v", job, err)
	}
	w.open("one")
	w.two.finish()
	w.mu.Lock()
	w.now = w.now.Add(2 * purgeClaim)
	w.mu.Unlock()
	w.two.purge()
	if job, err := w.two.o.DB.PurgeJobByID(ctx, id); err != nil || job.Status != storage.PurgeDone {
		t.Errorf("when whole: %+v, %v", job, err)
	}
	if diff := cmp.Diff([]string{"new"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(w.one.wholeState(w.room), w.two.wholeState(w.room)); diff != "" {
		t.Error(diff)
	}
}

func TestAPartialRoomCanBeDeleted(t *testing.T) {
	ctx := context.Background()
	w := newPartialWorld(t, "11", 3)
	w.hold("one")
	w.two.join(w.room, "@bob:two", "one")
	w.one.get("two", w.two.snap(w.room).Tip...)
	w.give(w.one.say(w.room, "@m0:one", "hello"))
	if _, err := w.two.PurgeRoom(ctx, RoomPurge{Room: w.room, Forced: true}); err != nil {
		t.Fatal(err)
	}
	w.two.purge()
	w.open("one") // and the work on its members ends
	w.two.finish()
	if _, err := w.two.Room(ctx, w.room); !errors.Is(err, errNoRoom) {
		t.Errorf("the room: %v", err)
	}
	for _, table := range []string{"rooms", "events", "memberships", "state_nodes", "room_states", "partial_rooms", "partial_servers", "partial_events", "inbound_events"} {
		var n int
		if err := w.two.o.DB.Read(ctx).Raw("SELECT count(*) FROM " + table).Row().Scan(&n); err != nil || n > 0 {
			t.Errorf("%d rows in %s, %v", n, table, err)
		}
	}
}
