package syncer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// typing is who types, by the m.typing event of an answer; nil if there is none.
func (a *answered) typing(id matrix.RoomID) any {
	for _, e := range a.joined(id).list("ephemeral", "events") {
		if e.text("type") == "m.typing" {
			if e.there("room_id") {
				a.w.Error("m.typing has a room_id")
			}
			return e.at("content", "user_ids").v
		}
	}
	return nil
}

func TestTypingIsToldUntilItEndsOrTimesOut(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b, c := w.client(bob), w.client(carol)
		b.sync()
		c.sync()
		w.must(w.sync.SetTyping(w.ctx, alice, id, true, 10*time.Second))
		w.equal("typing", b.sync().typing(id), []string{"@alice:here"})
		if got := c.sync(); got.there("rooms") {
			t.Errorf("carol is told %s", got.raw)
		}
		w.must(w.sync.SetTyping(w.ctx, alice, id, true, 10*time.Second))
		w.equal("nothing new", b.sync().typing(id), nil)
		w.must(w.sync.SetTyping(w.ctx, alice, id, false, 0))
		w.equal("stopped", b.sync().typing(id), []string{})

		w.must(w.sync.SetTyping(w.ctx, alice, id, true, 10*time.Second))
		b.sync()
		w.clock.move(9 * time.Second)
		w.sync.endTyping()
		w.equal("not yet over", b.sync().typing(id), nil)
		w.clock.move(time.Second)
		w.sync.endTyping()
		w.equal("timed out", b.sync().typing(id), []string{})

		var told []string
		for _, e := range w.takeEDUs() {
			if e.Type == "m.typing" {
				told = append(told, string(e.Content))
			}
		}
		want := []string{}
		for _, typing := range []bool{true, false, true, false} {
			want = append(want, fmt.Sprintf(`{"room_id":%q,"user_id":"@alice:here","typing":%v}`, id, typing))
		}
		w.equal("told to other servers", told, want)
		if err := w.sync.SetTyping(w.ctx, carol, id, true, 0); !errors.Is(err, &matrix.Error{Code: "M_FORBIDDEN"}) {
			t.Errorf("carol is not in the room: %v", err)
		}
	})
}

func TestServersSpeakForTheirOwnUsersOnly(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.sync()
		event := w.say(id, alice, "x")
		b.sync()
		for _, origin := range []matrix.ServerName{"there", "here.example"} {
			w.must(w.sync.ReceiveTyping(w.ctx, origin, json.RawMessage(fmt.Sprintf(`{"room_id":%q,"user_id":"@alice:here","typing":true}`, id))))
			w.must(w.sync.ReceiveReceipts(w.ctx, origin, json.RawMessage(fmt.Sprintf(`{%q:{"m.read":{"@alice:here":{"event_ids":[%q],"data":{"ts":1}}}}}`, id, event))))
			w.must(w.sync.ReceivePresence(w.ctx, origin, json.RawMessage(`{"push":[{"user_id":"@alice:here","presence":"unavailable","last_active_ago":1}]}`)))
			// Not a member:
			w.must(w.sync.ReceiveTyping(w.ctx, "there", json.RawMessage(fmt.Sprintf(`{"room_id":%q,"user_id":"@dave:there","typing":true}`, id))))
		}
		if got := b.sync(); got.there("rooms") || strings.Contains(string(got.raw), `"unavailable"`) {
			t.Errorf("believed: %s", got.raw)
		}
		for _, err := range []error{
			w.sync.ReceiveTyping(w.ctx, "there", json.RawMessage(`[]`)),
			w.sync.ReceiveReceipts(w.ctx, "there", json.RawMessage(`"x"`)),
			w.sync.ReceivePresence(w.ctx, "there", json.RawMessage(`{"push":1}`)),
		} {
			if !errors.Is(err, &matrix.Error{Code: "M_BAD_JSON"}) {
				t.Errorf("got %v, want M_BAD_JSON", err)
			}
		}
	})
}

// receipts are the receipts in an answer as "type user thread event".
func (a *answered) receipts(id matrix.RoomID) []string {
	out := []string{}
	for _, e := range a.joined(id).list("ephemeral", "events") {
		if e.text("type") != "m.receipt" {
			continue
		}
		events, _ := e.at("content").v.(map[string]any)
		for event, types := range events {
			for typ, users := range types.(map[string]any) {
				for user, data := range users.(map[string]any) {
					thread, _ := data.(map[string]any)["thread_id"].(string)
					out = append(out, fmt.Sprintf("%s %s %s %s", typ, user, thread, event))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestReceiptsGoForwardOnlyAndPrivateOnesStayPrivate(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		one, two, three := w.say(id, alice, "1"), w.say(id, alice, "2"), w.say(id, alice, "3")
		a, b := w.client(alice), w.client(bob)
		a.sync()
		b.sync()
		read := func(typ string, event matrix.EventID) {
			t.Helper()
			w.must(w.sync.SetReceipt(w.ctx, bob, id, typ, event, nil))
		}
		read("m.read", two)
		w.equal("alice sees it", a.sync().receipts(id), []string{"m.read @bob:here  " + string(two)})
		w.equal("bob too", b.sync().receipts(id), []string{"m.read @bob:here  " + string(two)})
		read("m.read", one)
		read("m.read", two)
		if got := a.sync(); got.there("rooms") {
			t.Errorf("a receipt went back: %s", got.raw)
		}
		read("m.read.private", three)
		if got := a.sync(); got.there("rooms") {
			t.Errorf("a private receipt is shown to somebody else: %s", got.raw)
		}
		before := b.with(func(*Request) {})
		w.equal("bob sees his own", b.sync().receipts(id), []string{"m.read.private @bob:here  " + string(three)})
		w.restart()
		w.equal("after a restart", before.sync().receipts(id), []string{"m.read.private @bob:here  " + string(three)})
		w.equal("initial", w.client(alice).sync().receipts(id), []string{"m.read @bob:here  " + string(two)})
		var told []string
		for _, e := range w.takeEDUs() {
			if e.Type == "m.receipt" {
				told = append(told, string(e.Content))
			}
		}
		w.equal("told to other servers", told, []string{
			fmt.Sprintf(`{%q:{"m.read":{"@bob:here":{"event_ids":[%q],"data":{"ts":1760000000000}}}}}`, id, two)})
	})
}

func TestReceiptsThatMakeNoSenseAreRefused(t *testing.T) {
	each(t, func(w *world) {
		id, other := w.room(alice), w.room(alice)
		event, elsewhere := w.say(id, alice, "x"), w.say(other, alice, "y")
		threaded := w.inThread(id, alice, "z", event)
		text := func(s string) *string { return &s }
		for _, c := range []struct {
			user   matrix.UserID
			typ    string
			event  matrix.EventID
			thread *string
			code   string
		}{
			{alice, "m.seen", event, nil, "M_INVALID_PARAM"},
			{carol, "m.read", event, nil, "M_FORBIDDEN"},
			{alice, "m.read", elsewhere, nil, "M_NOT_FOUND"},
			{alice, "m.read", "$unknown", nil, "M_NOT_FOUND"},
			{alice, "m.read", event, text(""), "M_INVALID_PARAM"},
			{alice, "m.read", event, text("x"), "M_INVALID_PARAM"},
			{alice, "m.read", threaded, text("main"), "M_INVALID_PARAM"},
			{alice, "m.fully_read", event, text("main"), "M_INVALID_PARAM"},
			{alice, "m.fully_read", elsewhere, nil, "M_NOT_FOUND"},
		} {
			if err := w.sync.SetReceipt(w.ctx, c.user, id, c.typ, c.event, c.thread); !errors.Is(err, &matrix.Error{Code: c.code}) {
				t.Errorf("%s %s %s: got %v, want %s", c.user, c.typ, c.event, err, c.code)
			}
		}
		w.must(w.sync.SetReceipt(w.ctx, alice, id, "m.read", threaded, text(string(event))))
		w.must(w.sync.SetReceipt(w.ctx, alice, id, "m.read", event, text("main")))
	})
}

func TestUnthreadedAndThreadedReceiptsForOneEventAreBothShown(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		root := w.say(id, alice, "root")
		event := w.inThread(id, alice, "reply", root)
		a := w.client(alice)
		a.sync()
		thread := string(root)
		w.must(w.sync.SetReceipt(w.ctx, alice, id, "m.read", event, nil))
		w.must(w.sync.SetReceipt(w.ctx, alice, id, "m.read", event, &thread))
		want := []string{"m.read @alice:here  " + string(event), "m.read @alice:here " + thread + " " + string(event)}
		w.equal("both", a.sync().receipts(id), want)
	})
}

func TestReadMarkersMoveAllThree(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		one, two := w.say(id, alice, "1"), w.say(id, alice, "2")
		a := w.client(alice)
		a.sync()
		w.must(w.sync.SetReadMarkers(w.ctx, alice, id, ReadMarkers{FullyRead: two, Read: two, ReadPrivate: one}))
		got := a.sync()
		w.equal("receipts", got.receipts(id), []string{"m.read @alice:here  " + string(two), "m.read.private @alice:here  " + string(one)})
		marker := got.joined(id).list("account_data", "events")[0]
		w.equal("marker", marker.v, map[string]any{"type": "m.fully_read", "content": map[string]any{"event_id": string(two)}})
		w.must(w.sync.SetReadMarkers(w.ctx, alice, id, ReadMarkers{FullyRead: one}))
		if got := a.sync(); got.there("rooms") {
			t.Errorf("the marker went back: %s", got.raw)
		}
	})
}

// unreadCounts are notifications, highlights and, by thread, notifications.
func (a *answered) unreadCounts(id matrix.RoomID) string {
	room := a.joined(id)
	s := fmt.Sprintf("%d %d", room.number("unread_notifications", "notification_count"), room.number("unread_notifications", "highlight_count"))
	threads, _ := room.at("unread_thread_notifications").v.(map[string]any)
	for _, counts := range threads {
		c := counts.(map[string]any)
		s += fmt.Sprintf(" thread %v %v", c["notification_count"], c["highlight_count"])
	}
	return s
}

func TestUnreadNotificationsAreCountedByThreadAndClearedByReceipts(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		start := b.with(func(*Request) {})
		start.Since = b.sync().text("next_batch")
		root := w.say(id, alice, "root")
		w.inThread(id, alice, "in the thread", root)
		last := w.inThread(id, alice, "again", root)
		main := w.say(id, alice, "main")
		w.event(room.SendRequest{Room: id, Sender: alice, Type: "m.room.message",
			Content: json.RawMessage(`{"msgtype":"m.text","body":"you","m.mentions":{"user_ids":["@bob:here"]}}`)})
		threads := start.with(func(r *Request) { r.Filter = `{"room":{"timeline":{"unread_thread_notifications":true}}}` })
		check := func(what, plain, byThread string) {
			t.Helper()
			w.equal(what, start.peek().unreadCounts(id), plain)
			w.equal(what+", by thread", threads.peek().unreadCounts(id), byThread)
			w.restart()
			w.equal(what+", after a restart", start.peek().unreadCounts(id), plain)
			w.equal(what+", by thread, after a restart", threads.peek().unreadCounts(id), byThread)
		}
		check("all", "5 1", "3 1 thread 2 0")
		thread, mainThread := string(root), "main"
		w.must(w.sync.SetReceipt(w.ctx, bob, id, "m.read", root, &mainThread))
		check("the root is read", "4 1", "2 1 thread 2 0")
		w.must(w.sync.SetReceipt(w.ctx, bob, id, "m.read.private", last, &thread))
		check("the thread is read", "2 1", "2 1")
		w.must(w.sync.SetReceipt(w.ctx, bob, id, "m.read", main, nil))
		check("the main timeline is read but for the last", "1 1", "1 1")
		w.say(id, bob, "answering means having read")
		check("bob has answered", "0 0", "0 0")
		n, err := w.sync.UnreadRooms(w.ctx, bob)
		w.must(err)
		w.equal("unread rooms", n, 0)
		w.say(id, alice, "one more")
		n, err = w.sync.UnreadRooms(w.ctx, bob)
		w.must(err)
		w.equal("unread rooms", n, 1)
	})
}

// presenceOf are the states in an answer, by user.
func (a *answered) presenceOf() map[string]string {
	out := map[string]string{}
	for _, e := range a.list("presence", "events") {
		out[e.text("sender")] = e.text("content", "presence")
	}
	return out
}

func TestPresenceIsToldToThoseWhoShareARoom(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		a, b, c := w.client(alice), w.client(bob), w.client(carol)
		for _, cl := range []*client{a, b, c} {
			cl.SetPresence = "offline"
			cl.sync()
		}
		w.takeEDUs()
		msg := "in a meeting"
		w.must(w.sync.SetPresence(w.ctx, alice, "PHONE", "unavailable", &msg))
		w.equal("bob", b.sync().presenceOf(), map[string]string{"@alice:here": "unavailable"})
		w.equal("carol", c.sync().presenceOf(), map[string]string{})
		w.equal("bob again", b.sync().presenceOf(), map[string]string{})
		got, err := w.sync.PresenceOf(w.ctx, bob, alice)
		w.must(err)
		if got.Presence != "unavailable" || got.StatusMsg == nil || *got.StatusMsg != msg {
			t.Errorf("got %+v", got)
		}
		if _, err := w.sync.PresenceOf(w.ctx, carol, alice); !errors.Is(err, &matrix.Error{Code: "M_FORBIDDEN"}) {
			t.Errorf("carol shares no room: %v", err)
		}
		edus := w.takeEDUs()
		if len(edus) != 1 || edus[0].Type != "m.presence" || edus[0].User != alice {
			t.Errorf("told to other servers: %v", edus)
		}
		w.join(id, carol)
		w.equal("carol joins", c.sync().presenceOf(), map[string]string{"@alice:here": "unavailable"})
	})
}

func TestPresenceFollowsActivityAndTime(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		b := w.client(bob)
		b.SetPresence = "offline"
		b.sync()
		w.client(alice).sync()
		w.equal("alice syncs", b.sync().presenceOf(), map[string]string{"@alice:here": "online"})
		w.clock.move(DefaultConfig().PresenceOffline)
		w.sync.ageing()
		w.equal("alice is gone", b.sync().presenceOf(), map[string]string{"@alice:here": "offline"})
		idle := w.client(alice)
		idle.SetPresence = "unavailable"
		idle.sync()
		w.equal("alice is idle", b.sync().presenceOf(), map[string]string{"@alice:here": "unavailable"})
		idle.SetPresence = "online"
		idle.sync()
		w.equal("alice is back", b.sync().presenceOf(), map[string]string{"@alice:here": "online"})
		for range int(DefaultConfig().PresenceIdle / (20 * time.Second)) {
			w.clock.move(20 * time.Second)
			w.client(alice).sync()
			w.sync.ageing()
		}
		w.equal("alice does nothing", b.sync().presenceOf(), map[string]string{"@alice:here": "unavailable"})
		w.say(id, alice, "here")
		w.equal("alice writes", b.sync().presenceOf(), map[string]string{"@alice:here": "online"})
	})
}

func TestToDeviceMessagesStayUntilTheNextTokenIsUsed(t *testing.T) {
	each(t, func(w *world) {
		b := w.client(bob)
		b.sync()
		send := func(body string) {
			w.must(w.keys.SendToDevice(w.ctx, alice, "org.example", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{
				bob: {"PHONE": json.RawMessage(`{"body":"` + body + `"}`)}}))
		}
		send("1")
		for range 2 {
			w.equal("until acknowledged", shown(b.peek().list("to_device", "events")), []string{"1"})
		}
		w.restart()
		w.equal("after a restart", shown(b.sync().list("to_device", "events")), []string{"1"})
		send("2")
		w.equal("the next", shown(b.sync().list("to_device", "events")), []string{"2"})
		if got := b.sync(); got.there("to_device") {
			t.Errorf("told twice: %s", got.raw)
		}
		for i := range maxToDevice + 5 {
			send(fmt.Sprint("many", i))
		}
		first, second := len(b.sync().list("to_device", "events")), len(b.sync().list("to_device", "events"))
		if first != maxToDevice || second != 5 {
			t.Errorf("got %d and %d messages, want %d and 5", first, second, maxToDevice)
		}
		if got := b.sync(); got.there("to_device") {
			t.Errorf("told twice: %s", got.raw)
		}
	})
}

func TestDeviceListsTellWhoChangedWhoCameAndWhoLeft(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		a := w.client(alice)
		a.sync()
		start := a.Since
		users := func(a *answered, section string) []string {
			out := []string{}
			for _, u := range a.list("device_lists", section) {
				out = append(out, u.v.(string))
			}
			slices.Sort(out)
			return out
		}
		w.join(id, bob)
		w.equal("bob came", users(a.sync(), "changed"), []string{"@bob:here"})
		w.newDeviceKeys(bob)
		w.equal("bob has a new device", users(a.sync(), "changed"), []string{"@bob:here"})
		w.newDeviceKeys(carol)
		w.equal("carol is a stranger", users(a.sync(), "changed"), []string{})
		again := a.with(func(*Request) {})
		w.leave(id, bob)
		w.equal("bob left", users(a.sync(), "left"), []string{"@bob:here"})
		w.restart()
		w.equal("after a restart", users(again.sync(), "left"), []string{"@bob:here"})
		w.join(id, carol)
		changed, left, err := w.sync.DeviceListChanges(w.ctx, alice, start, "")
		w.must(err)
		slices.Sort(changed)
		w.equal("changed since the start", changed, []string{"@carol:here"})
		w.equal("left since the start", left, []string{"@bob:here"})
	})
}

// newDeviceKeys gives the user a device with keys.
func (w *world) newDeviceKeys(u matrix.UserID) {
	w.Helper()
	_, err := w.keys.Upload(w.ctx, u, "PHONE", json.RawMessage(fmt.Sprintf(
		`{"device_keys":{"user_id":%q,"device_id":"PHONE","algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"curve25519:PHONE":"x","ed25519:PHONE":"y"},"signatures":{%q:{"ed25519:PHONE":"z"}}}}`, u, u)))
	w.must(err)
}

// remoteMember puts somebody of another server into a room, as far as memberships go.
func (w *world) remoteMember(id matrix.RoomID, u matrix.UserID) {
	w.Helper()
	r, err := w.rooms.Room(w.ctx, id)
	w.must(err)
	w.must(w.db.Write(w.ctx, func(tx *storage.Tx) error {
		return tx.Exec("INSERT INTO memberships (room, server, user_id, membership, num, pos, forgotten) VALUES (?, ?, ?, 'join', 1, 1, 0)",
			r.Num, string(u.Server()), string(u)).Error
	}))
}

func TestWhatOtherServersTellReachesWhoSharesARoom(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		event := w.say(id, alice, "x")
		w.remoteMember(id, dave)
		a, c := w.client(alice), w.client(carol)
		a.sync()
		c.sync()
		w.must(w.sync.ReceiveTyping(w.ctx, "there", json.RawMessage(fmt.Sprintf(`{"room_id":%q,"user_id":"@dave:there","typing":true}`, id))))
		w.must(w.sync.ReceiveReceipts(w.ctx, "there", json.RawMessage(fmt.Sprintf(`{%q:{"m.read":{"@dave:there":{"event_ids":[%q],"data":{"ts":7,"thread_id":"main"}}},"m.read.private":{"@dave:there":{"event_ids":[%q],"data":{"ts":7}}}}}`, id, event, event))))
		w.must(w.sync.ReceivePresence(w.ctx, "there", json.RawMessage(`{"push":[{"user_id":"@dave:there","presence":"online","last_active_ago":5000,"currently_active":true,"status_msg":"hi"},{"user_id":"@nobody:there","presence":"online","last_active_ago":1}]}`)))
		got := a.sync()
		w.equal("typing", got.typing(id), []string{"@dave:there"})
		w.equal("receipts", got.receipts(id), []string{"m.read @dave:there main " + string(event)})
		w.equal("presence", got.list("presence", "events")[0].v, map[string]any{"type": "m.presence", "sender": "@dave:there",
			"content": map[string]any{"presence": "online", "status_msg": "hi", "last_active_ago": 5000, "currently_active": true}})
		if got := c.sync(); got.there("rooms") || got.there("presence") {
			t.Errorf("carol is told %s", got.raw)
		}
		w.clock.move(remoteOffline)
		w.sync.ageingElsewhere()
		w.equal("silence", a.sync().presenceOf()["@dave:there"], "offline")
		if edus := w.takeEDUs(); slices.ContainsFunc(edus, func(e EDU) bool { return e.User == dave }) {
			t.Errorf("told on behalf of others: %v", edus)
		}
	})
}
