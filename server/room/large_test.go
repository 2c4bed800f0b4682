package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/matrix/matrixtest"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// stateIDs is the whole state of the generated room as the server sees it.
func (w *largeWorld) stateIDs(t testing.TB, root storage.StateRoot) matrix.StateMap {
	t.Helper()
	events, err := w.StateEvents(t.Context(), w.room.ID, root, storage.AllState)
	if err != nil {
		t.Fatal(err)
	}
	all := matrix.StateMap{}
	for _, e := range events {
		all[e.Tuple()] = e.ID()
	}
	return all
}

// wantState compares the state, and all that is counted and kept beside it, with what it shall be.
func (w *largeWorld) wantState(t testing.TB, want map[matrix.StateTuple]matrix.EventID) {
	t.Helper()
	r, err := w.Service.Room(t.Context(), w.room.ID)
	if err != nil {
		t.Fatal(err)
	}
	snap := r.Snapshot()
	if diff := cmp.Diff(matrix.StateMap(want), w.stateIDs(t, snap.Root)); diff != "" {
		t.Errorf("state: %s", diff)
	}
	servers, invited := map[matrix.ServerName]int{}, 0
	rows := map[matrix.UserID]string{}
	for tuple, id := range want {
		if tuple.Type != matrix.TypeMember {
			continue
		}
		e, err := w.EventByID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		rows[matrix.UserID(tuple.StateKey)] = e.Membership()
		servers[matrix.UserID(tuple.StateKey).Server()] += count(e.Membership() == matrix.Join)
		invited += count(e.Membership() == matrix.Invite)
	}
	maps.DeleteFunc(servers, func(_ matrix.ServerName, n int) bool { return n == 0 })
	joined := 0
	for _, n := range servers {
		joined += n
	}
	if diff := cmp.Diff(servers, snap.Servers); diff != "" || joined != snap.JoinedCount || invited != snap.InvitedCount {
		t.Errorf("%d joined, %d invited; want %d and %d; servers: %s", snap.JoinedCount, snap.InvitedCount, joined, invited, diff)
	}
	got := map[matrix.UserID]string{}
	err = w.o.DB.MemberRows(t.Context(), r.Num, func(m storage.MemberRow) {
		if m.Num != 0 {
			got[m.User] = m.Membership
		}
	})
	if diff := cmp.Diff(rows, got); err != nil || diff != "" {
		t.Errorf("rows of members: %v %s", err, diff)
	}
}

func joinedState(w *largeWorld) map[matrix.StateTuple]matrix.EventID {
	want := w.room.Current()
	want[w.ours.Load().Tuple()] = w.ours.Load().ID()
	return want
}

func TestJoinOfAGeneratedRoom(t *testing.T) {
	for _, version := range []string{"6", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			storagetest.EachURL(t, func(t *testing.T, url string) {
				w := newLargeWorld(t, matrixtest.Size{Version: version, Members: 300, States: 100, Servers: 7})
				db := w.open(t, url)
				defer func() { db.Close() }()
				w.join(t)
				w.wantState(t, joinedState(w))
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = w.open(t, url)
				w.wantState(t, joinedState(w))
			})
		})
	}
}

// watched is a context that calls look whenever somebody looks whether it has ended, as happens before each write, and ends when look says so.
type watched struct {
	context.Context
	mu    sync.Mutex
	look  func() (end bool)
	ended bool
	done  chan struct{}
}

func (w *watched) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended && w.look() {
		w.ended = true
		close(w.done)
	}
	if w.ended {
		return context.Canceled
	}
	return nil
}

// Done does not look: it is called while the pool of connections is locked.
func (w *watched) Done() <-chan struct{} { return w.done }

// tryJoin is a join from the answer to send_join on, with a watched context.
func (w *largeWorld) tryJoin(t testing.TB, look func() bool) error {
	template, err := w.generated.MakeJoin(t.Context(), "", w.room.ID, largeUser, nil)
	if err != nil {
		t.Fatal(err)
	}
	join, err := w.fromTemplate(template, w.room.ID, largeUser, matrix.Join, joinContent)
	if err != nil {
		t.Fatal(err)
	}
	in := newIntake(join.Version(), w.room.ID)
	_, err = w.generated.SendJoin(t.Context(), "", w.room.ID, join.ID(), join.JSON(), false, in.take)
	state, chain := in.end()
	if err != nil {
		t.Fatal(err)
	}
	ctx := &watched{Context: t.Context(), look: look, done: make(chan struct{})}
	return w.joined(ctx, "s00.large.example", join, SendJoinResponse{}, state, chain)
}

// rows counts those of the tables that a join writes most to.
func (w *largeWorld) rows(t testing.TB) (n [3]int) {
	err := w.o.DB.Read(t.Context()).Raw("SELECT (SELECT COUNT(*) FROM events), (SELECT COUNT(*) FROM memberships), (SELECT COUNT(*) FROM state_nodes)").Row().Scan(&n[0], &n[1], &n[2])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A server that is killed in the middle of a join has what it had written, and nothing in memory.
func TestAJoinThatIsCutOffLeavesTheServerOutsideAndTheNextOneSucceeds(t *testing.T) {
	w := newLargeWorld(t, matrixtest.Size{Members: 2500, States: 200, Servers: 5})
	url := storagetest.SQLiteURL(t)
	left := map[[3]int]bool{} // what attempts have left behind
	const everything = 2960 + 2500 + 200
	for most := 0; ; most += 900 {
		db := w.open(t, url)
		err := w.tryJoin(t, func() bool {
			rows := w.rows(t)
			return most < everything && rows[0]+rows[1]+rows[2] >= most
		})
		if err == nil && most >= everything {
			w.wantState(t, joinedState(w))
			db.Close()
			break
		}
		if err == nil {
			t.Fatalf("an attempt that should have ended at %d rows succeeded", most)
		}
		left[w.rows(t)] = true
		if rooms, err := w.JoinedRooms(t.Context(), largeUser); err != nil || len(rooms) > 0 {
			t.Fatalf("joined to %v at %d rows, %v", rooms, most, err)
		}
		if r, err := w.Service.Room(t.Context(), w.room.ID); err == nil && (r.Snapshot().Joined() || len(r.Snapshot().Tip) > 0) {
			t.Fatalf("the server takes part at %d rows", most)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(left) < 6 {
		t.Errorf("the attempts ended with only these numbers of events, members and nodes: %v", left)
	}
	db := w.open(t, url)
	defer db.Close()
	w.wantState(t, joinedState(w))
}

func TestWritesOfAJoinAreBounded(t *testing.T) {
	w := newLargeWorld(t, matrixtest.Size{Members: 2500, States: 200, Servers: 5})
	db := w.open(t, "")
	defer db.Close()
	var before, most [3]int
	looks := 0
	note := func() bool {
		now := w.rows(t)
		for i := range now {
			most[i] = max(most[i], now[i]-before[i])
		}
		before = now
		looks++
		return false
	}
	if err := w.tryJoin(t, note); err != nil {
		t.Fatal(err)
	}
	note()
	if most[0] > outlierBatch || most[1] > 1000 || most[2] > 1000 || before[0] < 2700 || before[1] != 2501 {
		t.Errorf("one write had %v of %v events, members and nodes", most, before)
	}
}

// A state that is told by a server that lags, or lies, on the next attempt is the one that counts, and so are its members.
func TestRowsThatAnUnfinishedJoinHasLeftAreWrittenOver(t *testing.T) {
	w := newLargeWorld(t, matrixtest.Size{Members: 50, States: 5, Servers: 5})
	db := w.open(t, "")
	defer db.Close()
	w.join(t)
	// We leave; what the rows say from now on is of the past.
	_, err := w.Send(t.Context(), SendRequest{Room: w.room.ID, Sender: largeUser, Type: matrix.TypeMember, StateKey: new(string(largeUser)),
		Content: json.RawMessage(`{"membership":"leave"}`)})
	if err != nil {
		t.Fatal(err)
	}
	r, err := db.RoomByID(t.Context(), w.room.ID)
	if err != nil {
		t.Fatal(err)
	}
	stale := []storage.MemberChange{
		{Membership: storage.Membership{User: "@ghost:s01.large.example", Membership: matrix.Join, Num: 1}},
		{Membership: storage.Membership{User: w.room.Member(3), Membership: matrix.Ban, Num: 2}},
	}
	if err := db.StageMembers(t.Context(), r.Num, r.Tip, stale); err != nil {
		t.Fatal(err)
	}
	w.join(t)
	want := joinedState(w)
	got, err := w.o.DB.Membership(t.Context(), r.Num, "@ghost:s01.large.example")
	if err != nil || got.Membership != matrix.Leave {
		t.Errorf("the ghost: %v, %v", got, err)
	}
	w.wantState(t, want)
	if err := db.StageMembers(t.Context(), r.Num, r.Tip, stale); !errors.Is(err, storage.ErrMoved) {
		t.Errorf("members of a room that has been entered meanwhile: %v", err)
	}
}

// The shortcut of resolution through remembered chains gives what the whole states give.
func TestForksOfALargeRoomResolveAsWholeStatesDo(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		t.Run(version, func(t *testing.T) {
			w := newLargeWorld(t, matrixtest.Size{Version: version, Members: maxWalked + 500, States: 300, Servers: 5, Seed: 7})
			db := w.open(t, "")
			defer db.Close()
			w.join(t)
			base := w.room.Fork("base", w.ours.Load())
			var forks []*matrixtest.Fork
			for i := range 3 {
				forks = append(forks, w.room.Merge(fmt.Sprint("fork", i), base))
			}
			for round := range 6 {
				for _, f := range forks {
					events, err := f.Talk(30)
					if err != nil {
						t.Fatal(err)
					}
					w.receive(t, events)
				}
				r, err := w.Service.Room(t.Context(), w.room.ID)
				if err != nil {
					t.Fatal(err)
				}
				snap := r.Snapshot()
				var states []matrix.StateMap
				for _, e := range snap.Tip {
					root, err := w.RootAfter(t.Context(), e)
					if err != nil {
						t.Fatal(err)
					}
					states = append(states, w.stateIDs(t, root))
				}
				rejected := map[matrix.EventID]bool{}
				load := func(ids []matrix.EventID) (found []*matrix.Event, err error) {
					events, err := w.EventsByID(t.Context(), ids)
					for _, e := range events {
						found = append(found, e.Event)
						rejected[e.ID()] = e.Flags&storage.Rejected != 0
					}
					return found, err
				}
				want, err := matrix.ResolveStates(w.room.Version, states, load, func(id matrix.EventID) bool { return rejected[id] })
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, w.stateIDs(t, snap.Root)); diff != "" {
					t.Fatalf("round %d, %d tips: %s", round, len(snap.Tip), diff)
				}
			}
			if len(w.chains.rooms) == 0 {
				t.Error("the chains were not needed, so this test shows nothing")
			}
		})
	}
}
