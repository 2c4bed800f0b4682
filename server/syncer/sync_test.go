package syncer

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

func TestMessageReachesWhoIsInTheRoomAndNobodyElse(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		a, b, c := w.client(alice), w.client(bob), w.client(carol)
		first := a.sync()
		if !first.there("rooms", "join", string(id), "timeline", "events") {
			t.Fatalf("the initial sync lacks the room: %s", first.raw)
		}
		b.sync()
		c.sync()
		w.say(id, alice, "hello")
		w.equal("alice", a.sync().joined(id).bodies(), []string{"hello"})
		w.equal("bob", b.sync().joined(id).bodies(), []string{"hello"})
		if got := c.sync(); got.there("rooms") {
			t.Errorf("carol is in no room but was told %s", got.raw)
		}
		for _, again := range []*client{a, b} {
			if got := again.sync(); got.there("rooms") {
				t.Errorf("told twice: %s", got.raw)
			}
		}
	})
}

func TestSameTokenGivesTheSameAnswer(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		a.sync()
		w.say(id, alice, "one")
		w.say(id, alice, "two")
		w.equal("first", a.peek().joined(id).bodies(), []string{"one", "two"})
		w.equal("again", a.peek().joined(id).bodies(), []string{"one", "two"})
		w.restart()
		w.equal("after a restart", a.peek().joined(id).bodies(), []string{"one", "two"})
	})
}

func TestWaitingSyncIsWokenByAnEvent(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.sync()
		waiting := make(chan *answered)
		go func() {
			raw, err := w.sync.Sync(w.ctx, b.with(func(r *Request) { r.Timeout = time.Minute }).Request)
			if err != nil {
				t.Error(err)
			}
			waiting <- w.answered(raw)
		}()
		w.say(id, alice, "wake up")
		w.equal("bob", (<-waiting).joined(id).bodies(), []string{"wake up"})
	})
}

func TestIdleSyncReturnsAtItsTimeout(t *testing.T) {
	each(t, func(w *world) {
		w.room(alice)
		a := w.client(alice)
		a.sync()
		a.Timeout = time.Millisecond
		got := a.peek()
		if got.there("rooms") || got.text("next_batch") == "" {
			t.Errorf("nothing happened, but: %s", got.raw)
		}
	})
}

func TestGapIsLimitedAndShowsTheStateBeforeIt(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.Filter = `{"room":{"timeline":{"limit":2}}}`
		b.sync()
		w.set(id, alice, "m.room.topic", "", `{"topic":"in the gap"}`)
		for _, body := range []string{"1", "2", "3"} {
			w.say(id, alice, body)
		}
		got := b.sync().joined(id)
		w.equal("timeline", got.bodies(), []string{"2", "3"})
		w.equal("limited", got.at("timeline", "limited").v, true)
		w.equal("state", got.stateTypes("state"), []string{"m.room.topic"})
		page, err := w.rooms.Messages(w.ctx, id, room.Reader{User: bob}, room.MessagesRequest{From: got.text("timeline", "prev_batch"), Limit: 2})
		w.must(err)
		if len(page.Chunk) != 2 || !strings.Contains(string(page.Chunk[0]), `"1"`) || !strings.Contains(string(page.Chunk[1]), "in the gap") {
			t.Errorf("prev_batch leads to %s", page.Chunk)
		}
	})
}

func TestStateAfterIsTheStateAtTheEnd(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.UseStateAfter = true
		first := b.sync().joined(id)
		if first.there("state") || !slices.Contains(first.stateTypes("state_after"), "join @bob:here") {
			t.Errorf("state_after is not the state at the end: %v", first.v)
		}
		w.set(id, alice, "m.room.topic", "", `{"topic":"new"}`)
		w.say(id, alice, "after it")
		got := b.sync().joined(id)
		w.equal("timeline", got.bodies(), []string{"m.room.topic", "after it"})
		w.equal("state_after", got.stateTypes("state_after"), []string{"m.room.topic"})
		w.say(id, alice, "no state")
		got = b.sync().joined(id)
		if got.there("state") || got.at("state_after", "events").v == nil {
			t.Errorf("state_after must be there even if empty, and state never: %v", got.v)
		}
	})
}

func TestNewlyJoinedRoomComesWhole(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		b := w.client(bob)
		b.sync()
		w.say(id, alice, "before")
		w.join(id, bob)
		got := b.sync().joined(id)
		if types := got.stateTypes("state"); !slices.Contains(types, "m.room.create") && !slices.Contains(got.bodies(), "m.room.create") {
			t.Errorf("the create event is neither in state %v nor in the timeline %v", types, got.bodies())
		}
		if bodies := got.bodies(); !slices.Contains(bodies, "before") || bodies[len(bodies)-1] != "join @bob:here" {
			t.Errorf("shared history is to be seen, up to the own join: %v", bodies)
		}
	})
}

func TestHistoryFromBeforeJoiningIsHiddenWhereItIsForMembersOnly(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice, room.InitialState{Type: "m.room.history_visibility", Content: json.RawMessage(`{"history_visibility":"joined"}`)})
		w.say(id, alice, "secret")
		w.join(id, bob)
		w.say(id, alice, "welcome")
		got := w.client(bob).sync().joined(id).bodies()
		if slices.Contains(got, "secret") || !slices.Contains(got, "join @bob:here") || got[len(got)-1] != "welcome" {
			t.Errorf("got %v", got)
		}
	})
}

func TestLeftRoomShowsWhatWasSeenBeforeLeaving(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.sync()
		before := b.Since
		w.say(id, alice, "before")
		w.leave(id, bob)
		w.say(id, alice, "after")
		w.set(id, alice, "m.room.topic", "", `{"topic":"after"}`)
		again := b.with(func(*Request) {})
		got := b.sync()
		w.equal("timeline", got.left(id).bodies(), []string{"before", "leave @bob:here"})
		w.equal("state", got.left(id).stateTypes("state"), []string{})
		if got := b.sync(); got.there("rooms") {
			t.Errorf("left rooms come once: %s", got.raw)
		}
		w.restart()
		w.equal("after a restart", again.sync().left(id).bodies(), []string{"before", "leave @bob:here"})

		fresh := w.client(bob)
		if got := fresh.peek(); got.there("rooms") {
			t.Errorf("an initial sync has left rooms only if asked for: %s", got.raw)
		}
		fresh.Filter = `{"room":{"include_leave":true}}`
		got = fresh.peek()
		if types := got.left(id).bodies(); types[len(types)-1] != "leave @bob:here" {
			t.Errorf("include_leave: %v", types)
		}
		w.must(w.rooms.Forget(w.ctx, id, bob))
		if got := fresh.peek(); got.there("rooms") {
			t.Errorf("a forgotten room is shown: %s", got.raw)
		}
		b.Since = before
		w.equal("who did not know of the leaving is told", b.sync().left(id).bodies(), []string{"before", "leave @bob:here"})
	})
}

func TestJoinThatWasLeftAndJoinedAgainIsShownAsJoined(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		b := w.client(bob)
		b.sync()
		w.join(id, bob)
		w.leave(id, bob)
		w.join(id, bob)
		got := b.sync()
		if !got.there("rooms", "join", string(id)) || got.there("rooms", "leave") {
			t.Errorf("got %s", got.raw)
		}
	})
}

func TestInviteComesWithStrippedStateUnlessTheInviterIsIgnored(t *testing.T) {
	each(t, func(w *world) {
		b := w.client(bob)
		b.sync()
		id, err := w.rooms.Create(w.ctx, room.CreateRequest{Creator: alice, Preset: "private_chat", Name: "Plans", Invite: []matrix.UserID{bob}})
		w.must(err)
		got := b.peek()
		types := shown(got.list("rooms", "invite", string(id), "invite_state", "events"))
		for _, want := range []string{"m.room.create", "m.room.name", "m.room.join_rules", "join @alice:here", "invite @bob:here"} {
			if !slices.Contains(types, want) {
				t.Errorf("invite_state lacks %s: %v", want, types)
			}
		}
		w.must(w.users.SetAccountData(w.ctx, bob, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"@alice:here":{}}}`)))
		if got := b.sync(); got.there("rooms", "invite") {
			t.Errorf("an invite of somebody ignored is shown: %s", got.raw)
		}
		w.leave(id, bob)
		got = b.sync()
		w.equal("rejected", got.left(id).bodies(), []string{"leave @bob:here"})
	})
}

func TestEventsOfIgnoredUsersAreLeftOutButState(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.sync()
		w.must(w.users.SetAccountData(w.ctx, bob, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"@alice:here":{}}}`)))
		b.sync()
		w.say(id, alice, "noise")
		w.set(id, alice, "m.room.topic", "", `{"topic":"shown"}`)
		w.equal("timeline", b.sync().joined(id).bodies(), []string{"m.room.topic"})
	})
}

func TestLazyLoadingSendsTheMembersThatSpeakOnce(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob, carol)
		w.set(id, alice, "m.room.name", "", `{"name":"No heroes"}`)
		for range 3 {
			w.say(id, alice, "hi")
		}
		b := w.client(bob)
		b.Filter = `{"room":{"timeline":{"limit":2},"state":{"lazy_load_members":true}}}`
		state := b.sync().joined(id).stateTypes("state")
		if !slices.Contains(state, "join @alice:here") || !slices.Contains(state, "join @bob:here") {
			t.Errorf("the sender and oneself are missing: %v", state)
		}
		w.say(id, carol, "me too")
		before := b.with(func(*Request) {})
		w.equal("carol speaks", b.sync().joined(id).stateTypes("state"), []string{"join @carol:here"})
		w.equal("the same again", before.sync().joined(id).stateTypes("state"), []string{"join @carol:here"})
		w.say(id, carol, "again")
		w.equal("carol is known", b.peek().joined(id).stateTypes("state"), []string{})
		b.Filter = `{"room":{"state":{"lazy_load_members":true,"include_redundant_members":true}}}`
		w.equal("redundant ones too", b.sync().joined(id).stateTypes("state"), []string{"join @carol:here"})
	})
}

func TestFilterHidesFromTheTimelineWhatStateThenShows(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		b := w.client(alice)
		b.Filter = `{"room":{"timeline":{"types":["m.room.message"]},"account_data":{"types":[]},"ephemeral":{"types":[]}}}`
		b.sync()
		w.set(id, alice, "m.room.topic", "", `{"topic":"x"}`)
		w.say(id, alice, "shown")
		got := b.sync().joined(id)
		w.equal("timeline", got.bodies(), []string{"shown"})
		w.equal("state", got.stateTypes("state"), []string{"m.room.topic"})
		b.Filter = `{"room":{"not_rooms":["` + string(id) + `"]}}`
		w.say(id, alice, "hidden")
		if got := b.sync(); got.there("rooms") {
			t.Errorf("not_rooms: %s", got.raw)
		}
	})
}

func TestEventFieldsAreAllThatIsShown(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		a.sync()
		w.say(id, alice, "hello")
		a.Filter = `{"event_fields":["type","content.body"]}`
		events := a.sync().joined(id).list("timeline", "events")
		if len(events) != 1 || events[0].text("content", "body") != "hello" || events[0].there("content", "msgtype") || events[0].there("sender") {
			t.Errorf("got %v", events)
		}
	})
}

func TestFullStateShowsAllStateAndOnlyNewTimeline(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		a.sync()
		w.say(id, alice, "new")
		a.FullState = true
		got := a.sync().joined(id)
		w.equal("timeline", got.bodies(), []string{"new"})
		if !slices.Contains(got.stateTypes("state"), "m.room.create") {
			t.Errorf("state: %v", got.stateTypes("state"))
		}
		if got := a.sync().joined(id); !slices.Contains(got.stateTypes("state"), "m.room.create") {
			t.Errorf("without news: %v", got.v)
		}
	})
}

func TestTransactionIDGoesToTheDeviceThatSent(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		phone := w.client(alice)
		laptop := phone.with(func(r *Request) { r.Device = "LAPTOP" })
		w.join(id, bob)
		other := w.client(bob)
		for _, c := range []*client{phone, laptop, other} {
			c.sync()
		}
		w.event(room.SendRequest{Room: id, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`), Device: "PHONE", TxnID: "t1"})
		for _, restarted := range []bool{false, true} {
			if restarted {
				w.restart()
			}
			for c, want := range map[*client]string{phone: "t1", laptop: "", other: ""} {
				e := c.peek().joined(id).list("timeline", "events")[0]
				if got := e.text("unsigned", "transaction_id"); got != want {
					t.Errorf("%s %s is told transaction %q, want %q", c.User, c.Device, got, want)
				}
				if e.number("unsigned", "age") < 0 || e.text("unsigned", "membership") != "join" {
					t.Errorf("unsigned: %v", e.v)
				}
			}
		}
	})
}

func TestRedactedEventIsNotShownToWhoComesLate(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		a.sync()
		event := w.say(id, alice, "regretted")
		_, err := w.rooms.Redact(w.ctx, room.RedactRequest{Room: id, Sender: alice, Event: event})
		w.must(err)
		got := a.sync()
		if strings.Contains(string(got.raw), "regretted") {
			t.Errorf("the redacted content is shown: %s", got.raw)
		}
		w.equal("timeline", got.joined(id).bodies(), []string{"m.room.message", "m.room.redaction"})
	})
}

func TestSummaryCountsMembersAndNamesHeroes(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.invite(id, alice, carol)
		a := w.client(alice)
		summary := a.sync().joined(id).at("summary")
		w.equal("joined", summary.number("m.joined_member_count"), 1)
		w.equal("invited", summary.number("m.invited_member_count"), 1)
		w.equal("heroes", summary.at("m.heroes").v, []string{string(carol)})
		w.join(id, bob)
		summary = a.sync().joined(id).at("summary")
		w.equal("joined", summary.number("m.joined_member_count"), 2)
		w.set(id, alice, "m.room.name", "", `{"name":"Named"}`)
		if got := a.sync().joined(id).at("summary"); got.there("m.heroes") {
			t.Errorf("a room with a name needs no heroes: %v", got.v)
		}
	})
}

func TestAccountDataIsToldGloballyAndByRoom(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		first := a.sync()
		if !slices.Contains(shown(first.list("account_data", "events")), "m.push_rules") {
			t.Errorf("the initial sync lacks the push rules: %s", first.raw)
		}
		w.must(w.users.SetAccountData(w.ctx, alice, "", "org.example.global", json.RawMessage(`{"a":1}`)))
		w.must(w.users.SetAccountData(w.ctx, alice, id, "m.tag", json.RawMessage(`{"tags":{}}`)))
		before := a.with(func(*Request) {})
		got := a.sync()
		w.equal("global", shown(got.list("account_data", "events")), []string{"org.example.global"})
		w.equal("room", shown(got.joined(id).list("account_data", "events")), []string{"m.tag"})
		if got := a.sync(); got.there("account_data") || got.there("rooms") {
			t.Errorf("told twice: %s", got.raw)
		}
		w.restart()
		w.equal("after a restart", shown(before.sync().list("account_data", "events")), []string{"org.example.global"})
	})
}

func TestBadRequestsAreRefused(t *testing.T) {
	each(t, func(w *world) {
		for what, change := range map[string]func(*Request){
			"M_INVALID_PARAM since":        func(r *Request) { r.Since = "x" },
			"M_INVALID_PARAM set_presence": func(r *Request) { r.SetPresence = "busy" },
			"M_BAD_JSON filter":            func(r *Request) { r.Filter = `{"room":1}` },
			"M_NOT_FOUND filter":           func(r *Request) { r.Filter = "4711" },
		} {
			c := w.client(alice)
			change(&c.Request)
			code, _, _ := strings.Cut(what, " ")
			if _, err := w.sync.Sync(w.ctx, c.Request); !errors.Is(err, &matrix.Error{Code: code}) {
				t.Errorf("%s: got %v", what, err)
			}
		}
	})
}
