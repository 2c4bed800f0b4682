package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if matrix.ErrorCode(err) != code {
		t.Errorf("error %v, want %s", err, code)
	}
}

func TestTransactionIDGivesTheSameEventAlsoAfterARestart(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{})
		r := SendRequest{Room: room, Sender: alice, Device: "D", TxnID: "1", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"a"}`)}
		first, err := s.Send(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, again := range []*Service{s, newService(t, db)} {
			if id, err := again.Send(t.Context(), r); err != nil || id != first {
				t.Errorf("%s, %v; want %s", id, err, first)
			}
		}
		for _, other := range []SendRequest{
			{Room: room, Sender: alice, Device: "E", TxnID: "1", Type: r.Type, Content: r.Content},
			{Room: room, Sender: alice, Device: "D", TxnID: "2", Type: r.Type, Content: r.Content},
			{Room: room, Sender: alice, Device: "D", TxnID: "1", Type: "other", Content: r.Content},
		} {
			if id, err := s.Send(t.Context(), other); err != nil || id == first {
				t.Errorf("another request gave %s, %v", id, err)
			}
		}
	})
}

func TestManySendersAtOnceLoseAndDoubleNothing(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		rooms := []matrix.RoomID{create(t, s, CreateRequest{}), create(t, s, CreateRequest{})}
		var mu sync.Mutex
		var seen []int64
		defer db.Listen(func(c storage.Commit) {
			mu.Lock()
			defer mu.Unlock()
			for _, change := range c.Changes {
				for _, e := range change.Events {
					seen = append(seen, e.Pos)
					r, _ := s.Room(t.Context(), e.Room)
					if r.Snapshot().Pos < e.Pos {
						t.Errorf("the bell rang for %d, the snapshot is of %d", e.Pos, r.Snapshot().Pos)
					}
				}
			}
		})()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 10 {
					say(t, s, rooms[j%2], alice, fmt.Sprint(i, " ", j))
				}
			})
		}
		wg.Wait()
		if len(seen) != 200 {
			t.Errorf("the bell told of %d events", len(seen))
		}
		for _, room := range rooms {
			page, err := s.Messages(t.Context(), room, Reader{User: alice}, MessagesRequest{Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]bool{}
			for _, b := range bodies(t, page.Chunk) {
				got[b] = true
			}
			if len(got) != 100 {
				t.Errorf("%d different messages", len(got))
			}
			r, _ := s.Room(t.Context(), room)
			if tip := r.Snapshot().Tip; len(tip) != 1 {
				t.Errorf("%d events in the tip", len(tip))
			}
		}
	})
}

func TestTwoProcessesExtendOneTip(t *testing.T) {
	url := storagetest.PostgreSQLURL(t)
	var all [2]*Service
	for i := range all {
		db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		all[i] = newService(t, db)
	}
	room := create(t, all[0], CreateRequest{})
	var wg sync.WaitGroup
	for i, s := range all {
		for j := range 4 {
			wg.Go(func() {
				for k := range 10 {
					say(t, s, room, alice, fmt.Sprint(i, j, k))
				}
			})
		}
	}
	wg.Wait()
	s := newService(t, all[0].o.DB)
	page, err := s.Messages(t.Context(), room, Reader{User: alice}, MessagesRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(bodies(t, page.Chunk)); got != 80 {
		t.Errorf("%d messages", got)
	}
	r, _ := s.Room(t.Context(), room)
	if depth := r.Snapshot().Depth; depth < 80 {
		t.Errorf("depth %d: the tip was forked", depth)
	}
}

// TestSnapshotIsTheSameAfterLoading compares what memory holds with what is read anew.
func TestSnapshotIsTheSameAfterLoading(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{Preset: "public_chat", Invite: []matrix.UserID{carol}})
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		say(t, s, room, bob, "x")
		if err := s.Kick(t.Context(), MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		if err := s.Ban(t.Context(), MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		a, _ := s.Room(t.Context(), room)
		fresh := newService(t, db)
		b, err := fresh.Room(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		type view struct {
			Pos, Depth      int64
			Root            storage.StateRoot
			Local           map[matrix.UserID]int64
			Servers         map[matrix.ServerName]int
			Joined, Invited int
			Rule, Visible   string
		}
		of := func(s *Snapshot) view {
			return view{s.Pos, s.Depth, s.Root, s.Local, s.Servers, s.JoinedCount, s.InvitedCount, s.JoinRule, s.HistoryVisibility}
		}
		if diff := cmp.Diff(of(a.Snapshot()), of(b.Snapshot())); diff != "" {
			t.Error(diff)
		}
		for _, user := range []matrix.UserID{alice, bob, carol} {
			x, _ := s.RoomsOf(t.Context(), user)
			y, _ := fresh.RoomsOf(t.Context(), user)
			if diff := cmp.Diff(x, y); diff != "" {
				t.Error(user, diff)
			}
		}
		for pos := int64(0); pos <= a.Snapshot().Pos; pos++ {
			x, _ := s.RootAt(t.Context(), room, pos)
			y, _ := fresh.RootAt(t.Context(), room, pos)
			if x != y {
				t.Errorf("root at %d differs", pos)
			}
			for _, limit := range []int{2, 50} {
				x, _ := s.Timeline(t.Context(), room, pos, a.Snapshot().Pos, limit)
				y, _ := fresh.Timeline(t.Context(), room, pos, a.Snapshot().Pos, limit)
				if len(x.Events) != len(y.Events) || x.Limited != y.Limited {
					t.Errorf("timeline from %d: %d events, limited %v; loaded %d, %v", pos, len(x.Events), x.Limited, len(y.Events), y.Limited)
				}
			}
		}
	})
}

func TestMembershipFollowsTheRules(t *testing.T) {
	s := newService(t, storagetest.New(t))
	ctx := t.Context()
	room := create(t, s, CreateRequest{})
	do := MemberRequest{Room: room, Sender: alice, Target: bob}
	_, err := s.Join(ctx, JoinRequest{Room: room, User: bob})
	wantCode(t, err, "M_FORBIDDEN")
	_, err = s.Send(ctx, SendRequest{Room: room, Sender: bob, Type: matrix.TypeMessage, Content: json.RawMessage(`{}`)})
	wantCode(t, err, "M_FORBIDDEN")
	wantCode(t, s.Invite(ctx, MemberRequest{Room: room, Sender: bob, Target: carol}), "M_FORBIDDEN")
	wantCode(t, s.Kick(ctx, do), "M_FORBIDDEN")
	wantCode(t, s.Unban(ctx, do), "M_BAD_STATE")
	if err := s.Invite(ctx, do); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Forget(ctx, room, bob), "M_UNKNOWN")
	if err := s.Ban(ctx, do); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Invite(ctx, do), "M_FORBIDDEN")
	if err := s.Unban(ctx, do); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(ctx, room, bob); err != nil {
		t.Fatal(err)
	}
	_, err = s.Messages(ctx, room, Reader{User: bob}, MessagesRequest{})
	wantCode(t, err, "M_FORBIDDEN")
	wantCode(t, s.Leave(ctx, MemberRequest{Room: room, Sender: carol}), "M_FORBIDDEN")
	wantCode(t, s.Leave(ctx, MemberRequest{Room: "!nowhere:here.example", Sender: carol}), "M_NOT_FOUND")
}

func TestStateThatChangesNothingIsNotSentAgain(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{})
	r := SendRequest{Room: room, Sender: alice, Type: "m.room.name", StateKey: new(string), Content: json.RawMessage(`{"name":"x"}`)}
	first, err := s.Send(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Send(t.Context(), r); err != nil || again != first {
		t.Errorf("%s, %v; want %s", again, err, first)
	}
}

func TestBadEventsAreRefused(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{})
	for content, code := range map[string]string{
		`[]`:                                   "M_BAD_JSON",
		`{"a":1.5}`:                            "M_BAD_JSON",
		`{"a":`:                                "M_NOT_JSON",
		``:                                     "M_BAD_JSON",
		`{"a":1,"a":2}`:                        "M_BAD_JSON",
		`"` + strings.Repeat("x", 70000) + `"`: "M_BAD_JSON",
		`{"a":"` + strings.Repeat("x", 70000) + `"}`: "M_TOO_LARGE",
	} {
		_, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: matrix.TypeMessage, Content: json.RawMessage(content)})
		if got := matrix.ErrorCode(err); got != code {
			t.Errorf("%.20s: %v, want %s", content, err, code)
		}
	}
	_, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: strings.Repeat("x", 300), Content: json.RawMessage(`{}`)})
	if e := (*matrix.Error)(nil); !errors.As(err, &e) || e.Status >= 500 {
		t.Errorf("long type: %v", err)
	}
}

func TestRedactionTakesTheContentAway(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		ctx := t.Context()
		room := create(t, s, CreateRequest{Preset: "public_chat"})
		if _, err := s.Join(ctx, JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		id := say(t, s, room, alice, "secret")
		_, err := s.Redact(ctx, RedactRequest{Room: room, Sender: bob, Event: id})
		wantCode(t, err, "M_FORBIDDEN")
		redaction, err := s.Redact(ctx, RedactRequest{Room: room, Sender: alice, Event: id, Reason: "oops"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Service{s, newService(t, db)} {
			raw, err := s.Event(ctx, room, Reader{User: bob}, id)
			if err != nil || strings.Contains(string(raw), "secret") || !strings.Contains(string(raw), string(redaction)) {
				t.Errorf("%s, %v", raw, err)
			}
			r, _ := s.Room(ctx, room)
			tl, err := s.Timeline(ctx, room, 0, r.Snapshot().Pos, 50)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range tl.Events {
				if strings.Contains(string(e.JSON()), "secret") {
					t.Error("the window still has it")
				}
			}
		}
	})
}

func TestAggregationsAreBundled(t *testing.T) {
	s := newService(t, storagetest.New(t))
	ctx := t.Context()
	room := create(t, s, CreateRequest{})
	root := say(t, s, room, alice, "root")
	now := time.Now()
	send := func(typ, content string) matrix.EventID {
		t.Helper()
		now = now.Add(time.Millisecond) // of two edits of the same time, the one with the greater ID would hold
		id, err := s.Send(ctx, SendRequest{Room: room, Sender: alice, Type: typ, Content: json.RawMessage(strings.ReplaceAll(content, "ROOT", string(root))), Time: now})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	send(matrix.TypeMessage, `{"body":"* a","m.new_content":{"body":"a"},"m.relates_to":{"rel_type":"m.replace","event_id":"ROOT"}}`)
	edit := send(matrix.TypeMessage, `{"body":"* b","m.new_content":{"body":"b"},"m.relates_to":{"rel_type":"m.replace","event_id":"ROOT"}}`)
	send(matrix.TypeMessage, `{"body":"1","m.relates_to":{"rel_type":"m.thread","event_id":"ROOT"}}`)
	reply := send(matrix.TypeMessage, `{"body":"2","m.relates_to":{"rel_type":"m.thread","event_id":"ROOT"}}`)
	send("m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"ROOT","key":"x"}}`)
	_, err := s.Send(ctx, SendRequest{Room: room, Sender: alice, Type: "m.reaction", Content: json.RawMessage(`{"m.relates_to":{"rel_type":"m.annotation","event_id":"` + string(root) + `","key":"x"}}`)})
	wantCode(t, err, "M_DUPLICATE_ANNOTATION")

	raw, err := s.Event(ctx, room, Reader{User: alice}, root)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Unsigned struct {
			Relations struct {
				Replace struct {
					EventID matrix.EventID `json:"event_id"`
				} `json:"m.replace"`
				Thread struct {
					Latest struct {
						EventID matrix.EventID `json:"event_id"`
					} `json:"latest_event"`
					Count        int
					Participated bool `json:"current_user_participated"`
				} `json:"m.thread"`
			} `json:"m.relations"`
		}
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	rel := got.Unsigned.Relations
	if rel.Replace.EventID != edit || rel.Thread.Latest.EventID != reply || rel.Thread.Count != 2 || !rel.Thread.Participated {
		t.Errorf("%s", raw)
	}
	page, err := s.Relations(ctx, room, Reader{User: alice}, RelationsRequest{Event: root, RelType: "m.thread", Limit: 1})
	if err != nil || fmt.Sprint(bodies(t, page.Chunk)) != "[2]" || page.NextBatch == "" {
		t.Fatalf("%+v, %v", page, err)
	}
	page, err = s.Relations(ctx, room, Reader{User: alice}, RelationsRequest{Event: root, RelType: "m.thread", Limit: 1, From: page.NextBatch})
	if err != nil || fmt.Sprint(bodies(t, page.Chunk)) != "[1]" || page.NextBatch != "" {
		t.Fatalf("%+v, %v", page, err)
	}
	threads, err := s.Threads(ctx, room, Reader{User: alice}, true, "", 0)
	if err != nil || len(threads.Chunk) != 1 {
		t.Errorf("%+v, %v", threads, err)
	}
}

func TestPagesJoinUpInBothDirections(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{})
	var want []string
	var ids []matrix.EventID
	for i := range 25 {
		ids = append(ids, say(t, s, room, alice, fmt.Sprint(i)))
		want = append(want, fmt.Sprint(i))
	}
	for _, forward := range []bool{true, false} {
		var got []string
		from := ""
		for {
			page, err := s.Messages(t.Context(), room, Reader{User: alice}, MessagesRequest{From: from, Forward: forward, Limit: 4})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, bodies(t, page.Chunk)...)
			if from = page.End; from == "" {
				break
			}
		}
		if !forward {
			for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
				got[i], got[j] = got[j], got[i]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("forward %v: %s", forward, diff)
		}
	}
	c, err := s.Context(t.Context(), room, Reader{User: alice}, ids[10], 4, nil)
	if err != nil || fmt.Sprint(bodies(t, c.EventsBefore), bodies(t, c.EventsAfter)) != "[9 8] [11 12]" {
		t.Fatalf("%+v, %v", c, err)
	}
	page, err := s.Messages(t.Context(), room, Reader{User: alice}, MessagesRequest{From: c.End, Forward: true, Limit: 2})
	if err != nil || fmt.Sprint(bodies(t, page.Chunk)) != "[13 14]" {
		t.Errorf("after the context: %+v, %v", page, err)
	}
	page, err = s.Messages(t.Context(), room, Reader{User: alice}, MessagesRequest{From: c.Start, Limit: 2})
	if err != nil || fmt.Sprint(bodies(t, page.Chunk)) != "[7 6]" {
		t.Errorf("before the context: %+v, %v", page, err)
	}
}

func TestUpgradeLeadsToTheNewRoom(t *testing.T) {
	s := newService(t, storagetest.New(t))
	for _, to := range []string{"11", "12"} {
		old := create(t, s, CreateRequest{RoomVersion: "10", Name: "n", RoomAliasName: "a" + to})
		room, err := s.Upgrade(t.Context(), UpgradeRequest{Room: old, User: alice, NewVersion: to})
		if err != nil {
			t.Fatal(err)
		}
		name, err := s.StateEvent(t.Context(), room, Reader{User: alice}, matrix.TypeName, "", false)
		if err != nil || string(name) != `{"name":"n"}` {
			t.Errorf("%s, %v", name, err)
		}
		tombstone, err := s.StateEvent(t.Context(), old, Reader{User: alice}, matrix.TypeTombstone, "", false)
		if err != nil || !strings.Contains(string(tombstone), string(room)) {
			t.Errorf("%s, %v", tombstone, err)
		}
		alias, err := s.ResolveAlias(t.Context(), matrix.RoomAlias("#a"+to+":here.example"))
		if err != nil || alias.RoomID != room {
			t.Errorf("%v, %v", alias, err)
		}
		canonical, err := s.StateEvent(t.Context(), room, Reader{User: alice}, matrix.TypeCanonicalAlias, "", false)
		if err != nil || !strings.Contains(string(canonical), "#a"+to) {
			t.Errorf("%s, %v", canonical, err)
		}
	}
}

func TestClientsDoNotSayByWhoseLeaveTheyJoined(t *testing.T) {
	one := newWorld(t, "one").at("one")
	room := one.newRoom("@alice:one", "11", "restricted")
	key := "@alice:one"
	_, err := one.Send(context.Background(), SendRequest{Room: room, Sender: "@alice:one", Type: matrix.TypeMember, StateKey: &key,
		Content: json.RawMessage(`{"membership":"join","displayname":"A","join_authorised_via_users_server":"unused"}`)})
	if got := one.state(room, matrix.TypeMember, key); err != nil || got != `{"displayname":"A","membership":"join"}` {
		t.Errorf("got %v, content %s", err, got)
	}
}

func TestCreatorsHaveNoPlaceAmongThePowerLevels(t *testing.T) {
	one := newWorld(t, "one").at("one")
	room := one.newRoom("@alice:one", "12", "public")
	empty := ""
	for _, typ := range []string{matrix.TypePowerLevels, matrix.TypeCreate} {
		_, err := one.Send(context.Background(), SendRequest{Room: room, Sender: "@alice:one", Type: typ, StateKey: &empty,
			Content: json.RawMessage(`{"users":{"@alice:one":100}}`)})
		if matrix.ErrorCode(err) != "M_INVALID_PARAM" {
			t.Errorf("%s: got %v", typ, err)
		}
	}
}

// Most JSON libraries write a blank after a colon.
func TestAuthEventsDoNotDependOnHowTheContentIsWritten(t *testing.T) {
	s := newService(t, storagetest.New(t))
	for _, content := range []string{`{"membership":"invite"}`, "{ \"membership\" : \"invite\" }", `{"reason":"x", "member\u0073hip": "invite"}`} {
		room := create(t, s, CreateRequest{})
		target := "@bob:" + string(s.o.ServerName)
		id, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: matrix.TypeMember, StateKey: &target, Content: json.RawMessage(content)})
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.o.DB.EventByID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(e.AuthEvents()); got != 4 { // create, power levels, alice's join, join rules
			t.Errorf("%s: %d auth events, want 4", content, got)
		}
	}
}
