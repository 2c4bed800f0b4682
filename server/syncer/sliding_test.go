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

// slider is a sliding connection of one device.
type slider struct {
	w *world
	SlidingRequest
}

func (w *world) slider(u matrix.UserID, body string) *slider {
	return &slider{w: w, SlidingRequest: SlidingRequest{User: u, Device: "PHONE", Body: json.RawMessage(body)}}
}

func (s *slider) sync() *answered {
	s.w.Helper()
	raw, err := s.w.sync.SlidingSync(s.w.ctx, s.SlidingRequest)
	s.w.must(err)
	a := s.w.answered(raw)
	s.Pos = a.text("pos")
	return a
}

func (a *answered) slid(id matrix.RoomID) *answered { return a.at("rooms", string(id)) }

const roomList = `{"conn_id":"room-list","lists":{"all":{"ranges":[[0,1]],"timeline_limit":1,"required_state":[["m.room.name",""],["m.room.member","$ME"],["m.room.member","$LAZY"]]}}}`

func TestSlidingListShowsTheNewestRoomsFirst(t *testing.T) {
	each(t, func(w *world) {
		first, second, third := w.room(alice), w.room(alice), w.room(alice)
		w.say(first, alice, "newest")
		s := w.slider(alice, roomList)
		got := s.sync()
		list := got.at("lists", "all")
		w.equal("count", list.number("count"), 3)
		w.equal("rooms", list.list("ops")[0].at("room_ids").v, []string{string(first), string(third)})
		r := got.slid(first)
		w.equal("initial", r.at("initial").v, true)
		w.equal("timeline", shown(r.list("timeline")), []string{"newest"})
		w.equal("required state", shown(r.list("required_state")), []string{"join @alice:here"})
		if got.there("rooms", string(second)) {
			t.Error("a room outside of the range is shown")
		}
		w.say(second, alice, "to the top")
		got = s.sync()
		w.equal("rooms", got.at("lists", "all").list("ops")[0].at("room_ids").v, []string{string(second), string(first)})
		if got.there("rooms", string(first)) {
			t.Error("a room without news is shown")
		}
		w.equal("initial", got.slid(second).at("initial").v, true)
		w.say(first, alice, "again")
		r = s.sync().slid(first)
		w.equal("not initial any more", r.at("initial").v, nil)
		w.equal("timeline", shown(r.list("timeline")), []string{"again"})
	})
}

func TestSlidingAnswerIsRepeatedForTheSamePos(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		s := w.slider(alice, roomList)
		s.sync()
		w.say(id, alice, "once")
		pos := s.Pos
		for range 2 {
			s.Pos = pos
			w.equal("timeline", shown(s.sync().slid(id).list("timeline")), []string{"once"})
		}
		if _, err := w.sync.SlidingSync(w.ctx, SlidingRequest{User: alice, Device: "PHONE", Pos: "99/s1", Body: json.RawMessage(roomList)}); !errors.Is(err, &matrix.Error{Code: "M_UNKNOWN_POS"}) {
			t.Errorf("got %v, want M_UNKNOWN_POS", err)
		}
	})
}

func TestSlidingSubscriptionShowsMoreOfARoom(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		for _, body := range []string{"1", "2", "3"} {
			w.say(id, alice, body)
		}
		s := w.slider(alice, roomList)
		w.equal("list", shown(s.sync().slid(id).list("timeline")), []string{"3"})
		s.Body = json.RawMessage(`{"conn_id":"room-list","room_subscriptions":{"` + string(id) + `":{"timeline_limit":3,"required_state":[["m.room.create",""]]}}}`)
		r := s.sync().slid(id)
		w.equal("subscription", shown(r.list("timeline")), []string{"1", "2", "3"})
		w.equal("expanded", r.at("unstable_expanded_timeline").v, true)
		w.equal("required state", shown(r.list("required_state")), []string{"m.room.create"})
	})
}

func TestSlidingWaitIsEndedByAnEvent(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		s := w.slider(alice, roomList)
		s.sync()
		s.Timeout = time.Minute
		waiting := make(chan *answered)
		go func() {
			raw, err := w.sync.SlidingSync(w.ctx, s.SlidingRequest)
			if err != nil {
				t.Error(err)
			}
			waiting <- w.answered(raw)
		}()
		w.say(id, alice, "wake up")
		w.equal("timeline", shown((<-waiting).slid(id).list("timeline")), []string{"wake up"})
	})
}

func TestSlidingInviteHasStrippedStateAndFiltersChoose(t *testing.T) {
	each(t, func(w *world) {
		id, err := w.rooms.Create(w.ctx, room.CreateRequest{Creator: alice, Preset: "private_chat", Name: "Plans", Invite: []matrix.UserID{bob}})
		w.must(err)
		joined := w.room(bob)
		w.must(w.users.SetAccountData(w.ctx, bob, "", "m.direct", json.RawMessage(`{"@alice:here":["`+string(joined)+`"]}`)))
		for filter, want := range map[string]matrix.RoomID{`{"is_invite":true}`: id, `{"is_invite":false}`: joined, `{"is_dm":true}`: joined, `{"is_dm":false}`: id} {
			s := w.slider(bob, `{"lists":{"x":{"ranges":[[0,10]],"timeline_limit":1,"filters":`+filter+`}}}`)
			got := s.sync()
			w.equal(filter, got.at("lists", "x").list("ops")[0].at("room_ids").v, []string{string(want)})
			if want == id && !slices.Contains(shown(got.slid(id).list("invite_state")), "m.room.name") {
				t.Errorf("invite_state: %v", got.slid(id).v)
			}
		}
	})
}

func TestSlidingListTellsOnceOfARoomThatWasLeft(t *testing.T) {
	each(t, func(w *world) {
		kicked, forgotten, stays := w.room(alice), w.room(alice), w.room(alice)
		w.join(kicked, bob)
		w.join(forgotten, bob)
		w.join(stays, bob)
		s := w.slider(bob, strings.Replace(roomList, "[[0,1]]", "[[0,9]]", 1))
		w.equal("rooms", s.sync().at("lists", "all").number("count"), 3)
		w.must(w.rooms.Kick(w.ctx, room.MemberRequest{Room: kicked, Sender: alice, Target: bob}))
		w.leave(forgotten, bob)
		w.must(w.rooms.Forget(w.ctx, forgotten, bob))
		for _, pos := range []string{s.Pos, s.Pos} { // the answer may have got lost
			s.Pos = pos
			got := s.sync()
			w.equal("rooms", got.at("lists", "all").number("count"), 1)
			for _, id := range []matrix.RoomID{kicked, forgotten} {
				w.equal("required state", shown(got.slid(id).list("required_state")), []string{"leave @bob:here"})
			}
		}
		got := s.sync()
		w.equal("told once", []bool{got.there("rooms", string(kicked)), got.there("rooms", string(forgotten))}, []bool{false, false})
	})
}

func TestSlidingExtensionsTellWhatIsNotInRooms(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice)
		w.join(id, bob)
		event := w.say(id, alice, "x")
		body := `{"lists":{"all":{"ranges":[[0,10]],"timeline_limit":1}},"extensions":{"to_device":{"enabled":true%s},"e2ee":{"enabled":true},"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true}}}`
		s := w.slider(bob, "")
		s.Body = json.RawMessage(replaceOnce(body, ""))
		got := s.sync().at("extensions")
		if !slices.Contains(shown(got.list("account_data", "global")), "m.push_rules") || !got.there("e2ee", "device_one_time_keys_count") {
			t.Errorf("got %v", got.v)
		}
		w.must(w.keys.SendToDevice(w.ctx, alice, "org.example", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{bob: {"PHONE": json.RawMessage(`{"body":"1"}`)}}))
		w.must(w.sync.SetReceipt(w.ctx, alice, id, "m.read", event, nil))
		w.must(w.sync.SetTyping(w.ctx, alice, id, true, 0))
		got = s.sync().at("extensions")
		w.equal("to-device", shown(got.list("to_device", "events")), []string{"1"})
		w.equal("typing", got.at("typing", "rooms", string(id), "content", "user_ids").v, []string{"@alice:here"})
		if !got.there("receipts", "rooms", string(id), "content", string(event), "m.read", "@alice:here") {
			t.Errorf("receipts: %v", got.at("receipts").v)
		}
		s.Body = json.RawMessage(replaceOnce(body, `,"since":"`+got.text("to_device", "next_batch")+`"`))
		w.equal("acknowledged", len(s.sync().at("extensions").list("to_device", "events")), 0)
	})
}

func replaceOnce(s, by string) string {
	i := slices.Index([]byte(s), '%')
	return s[:i] + by + s[i+2:]
}

func TestSlidingRequestsThatAreNotValidAreRefused(t *testing.T) {
	each(t, func(w *world) {
		for body, code := range map[string]string{
			`[]`:                                    "M_BAD_JSON",
			`{"lists":{"x":{"ranges":[[2,1]]}}}`:    "M_INVALID_PARAM",
			`{"lists":{"x":{"timeline_limit":-1}}}`: "M_INVALID_PARAM",
			`{"extensions":{"to_device":{"enabled":true,"since":"x"}}}`: "M_INVALID_PARAM",
		} {
			if _, err := w.sync.SlidingSync(w.ctx, w.slider(alice, body).SlidingRequest); !errors.Is(err, &matrix.Error{Code: code}) {
				t.Errorf("%s: got %v, want %s", body, err, code)
			}
		}
	})
}
