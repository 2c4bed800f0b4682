package api

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"parley.im/parley/server/user"
)

// at walks into an answer: at(m, "a", "b") is m.a.b.
func at(m map[string]any, keys ...string) map[string]any {
	for _, key := range keys {
		m, _ = m[key].(map[string]any)
	}
	return m
}

// TestAdministratorPurgesHistoryAndRooms goes through all routes, in the words of Synapse and in ours.
func TestAdministratorPurgesHistoryAndRooms(t *testing.T) {
	w := newWorld(t, quiet())
	root, bob := w.account(user.NewAccount{Localpart: "root", Admin: true}), w.person("bob")
	room := bob.must(post, "/createRoom", map[string]any{"preset": "public_chat"})["room_id"].(string)
	say := func(body string) string {
		return bob.must(put, "/rooms/"+room+"/send/m.room.message/"+body, map[string]any{"msgtype": "m.text", "body": body})["event_id"].(string)
	}
	bodies := func() []string {
		all := []string{}
		for _, e := range bob.must(get, "/rooms/"+room+"/messages?dir=b&limit=100", nil)["chunk"].([]any) {
			if body, ok := at(e.(map[string]any), "content")["body"].(string); ok {
				all = append(all, body)
			}
		}
		slices.Reverse(all)
		return all
	}
	say("one")
	sync := bob.must(get, "/sync?timeout=0", nil)
	old := sync["next_batch"].(string)
	two := say("two")
	middle := say("three")
	bob.must(post, "/rooms/"+room+"/receipt/m.read/"+url.PathEscape(two), map[string]any{})
	say("four")
	done := func() {
		t.Helper()
		if err := w.api.Rooms.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	synapse, own := "/_synapse/admin", "/_parley/admin/v1"

	bob.refused(post, synapse+"/v1/purge_history/"+room+"/"+middle, map[string]any{}, 403, "M_FORBIDDEN")
	root.refused(post, synapse+"/v1/purge_history/"+room, map[string]any{}, 400, "M_MISSING_PARAM")
	root.refused(post, synapse+"/v1/purge_history/"+room+"/$nothing:test", map[string]any{}, 404, "M_NOT_FOUND")
	root.refused(post, synapse+"/v1/purge_history/!nowhere:test/"+middle, map[string]any{}, 404, "M_NOT_FOUND")
	root.refused(get, synapse+"/v1/purge_history_status/nothing", nil, 404, "M_NOT_FOUND")
	root.refused(post, own+"/purges", map[string]any{"room_id": room, "before_ts": time.Now().Add(time.Hour).UnixMilli()}, 400, "M_INVALID_PARAM")

	// As Synapse has it, what local users sent stays.
	id := root.must(post, synapse+"/v1/purge_history/"+room+"/"+middle, map[string]any{})["purge_id"].(string)
	if got := root.must(get, synapse+"/v1/purge_history_status/"+id, nil)["status"]; got != "active" {
		t.Errorf("before it was done: %v", got)
	}
	root.refused(post, own+"/purges", map[string]any{"room_id": room, "before_event_id": middle}, 400, "M_UNKNOWN")
	done()
	if got := bodies(); fmt.Sprint(got) != "[one two three four]" {
		t.Errorf("local messages: %v", got)
	}
	id = root.must(post, synapse+"/v1/purge_history/"+room, map[string]any{"purge_up_to_event_id": middle, "delete_local_events": true})["purge_id"].(string)
	done()
	if got := root.must(get, synapse+"/v1/purge_history_status/"+id, nil)["status"]; got != "complete" {
		t.Errorf("done: %v", got)
	}
	if got := bodies(); fmt.Sprint(got) != "[three four]" {
		t.Errorf("after the purge: %v", got)
	}
	job := root.must(get, own+"/purges/"+id, nil)
	if job["status"] != "done" || job["events"].(float64) < 2 || job["kind"] != "history" {
		t.Errorf("the purge: %v", job)
	}
	if got := root.must(get, own+"/purges?room_id="+url.QueryEscape(room), nil)["purges"].([]any); len(got) != 2 {
		t.Errorf("%d purges", len(got))
	}
	bob.refused(get, "/rooms/"+room+"/event/"+two, nil, 404, "M_NOT_FOUND")

	// A client that was away is told that it has missed something, and goes on.
	sync = bob.must(get, "/sync?timeout=0&since="+old, nil)
	timeline := at(sync, "rooms", "join", room, "timeline")
	if timeline["limited"] != true || len(timeline["events"].([]any)) != 2 {
		t.Errorf("sync from before the purge: %v", timeline)
	}
	since := sync["next_batch"].(string)
	say("five")
	timeline = at(bob.must(get, "/sync?timeout=0&since="+since, nil), "rooms", "join", room, "timeline")
	if timeline["limited"] != false || len(timeline["events"].([]any)) != 1 {
		t.Errorf("sync after the purge: %v", timeline)
	}
	first := at(bob.must(get, "/sync?timeout=0", nil), "rooms", "join", room)
	if n := len(at(first, "timeline")["events"].([]any)) + len(at(first, "state")["events"].([]any)); n != 8 {
		t.Errorf("a first sync has %d events and state: %v", n, first)
	}

	// Legal hold.
	hold := own + "/holds/rooms/" + room
	bob.refused(put, hold, nil, 403, "M_FORBIDDEN")
	root.must(put, hold, nil)
	root.refused(del, synapse+"/v2/rooms/"+room, map[string]any{}, 403, "M_FORBIDDEN")
	bob.must(put, "/rooms/"+room+"/redact/"+middle+"/x", map[string]any{})
	held := root.must(get, own+"/held_events?room_id="+url.QueryEscape(room), nil)["events"].([]any)
	if len(held) != 1 || at(held[0].(map[string]any), "event", "content")["body"] != "three" {
		t.Errorf("held: %v", held)
	}
	if got := root.must(get, own+"/holds", nil)["holds"].([]any); len(got) != 1 || got[0].(map[string]any)["room_id"] != room {
		t.Errorf("holds: %v", got)
	}
	root.must(del, hold, nil)
	root.refused(del, hold, nil, 404, "M_NOT_FOUND")
	root.must(put, own+"/holds/users/@bob:test", nil)
	root.must(del, own+"/holds/users/@bob:test", nil)
	root.refused(get, own+"/held_events", nil, 400, "M_MISSING_PARAM")

	// The whole room.
	root.refused(post, own+"/purges", map[string]any{"room_id": room, "whole_room": true}, 400, "M_BAD_STATE")
	root.refused(del, synapse+"/v2/rooms/"+room, map[string]any{"block": true}, 400, "M_INVALID_PARAM")
	root.refused(get, synapse+"/v2/rooms/"+room+"/delete_status", nil, 404, "M_NOT_FOUND")
	since = bob.must(get, "/sync?timeout=0", nil)["next_batch"].(string)
	id = root.must(del, synapse+"/v2/rooms/"+room, map[string]any{"purge": true})["delete_id"].(string)
	done()
	if got := root.must(get, synapse+"/v2/rooms/delete_status/"+id, nil); got["status"] != "complete" ||
		fmt.Sprint(at(got, "shutdown_room")["kicked_users"]) != "[@bob:test]" {
		t.Errorf("deleted: %v", got)
	}
	if got := root.must(get, synapse+"/v2/rooms/"+room+"/delete_status", nil)["results"].([]any); len(got) != 1 {
		t.Errorf("deletions: %v", got)
	}
	bob.refused(get, "/rooms/"+room+"/messages?dir=b", nil, 403, "M_FORBIDDEN")
	if got := bob.must(get, "/joined_rooms", nil)["joined_rooms"].([]any); len(got) != 0 {
		t.Errorf("joined to %v", got)
	}
	bob.must(get, "/sync?timeout=0&since="+since, nil)
	if got := at(bob.must(get, "/sync?timeout=0", nil), "rooms", "join"); len(got) != 0 {
		t.Errorf("a first sync has the room: %v", got)
	}
}
