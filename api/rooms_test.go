package api

import (
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func text(body string) map[string]any { return map[string]any{"msgtype": "m.text", "body": body} }

func TestRoomStory(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	room := alice.must(post, "/createRoom", map[string]any{"preset": "private_chat", "name": "Kitchen", "topic": "Cooking"})["room_id"].(string)
	in := "/rooms/" + room

	bob.refused(post, "/join/"+room, nil, 403, "M_FORBIDDEN")
	bob.refused(get, in+"/messages?dir=b", nil, 403, "M_FORBIDDEN")
	bob.refused(get, "/rooms/!nowhere:test/messages?dir=b", nil, 403, "M_FORBIDDEN")
	alice.must(post, in+"/invite", map[string]any{"user_id": "@bob:test"})
	if got := bob.must(post, "/join/"+room, map[string]any{"foo": "bar"}); got["room_id"] != room {
		t.Errorf("join: got %v", got)
	}
	if got := alice.must(get, in+"/state/m.room.member/@bob:test", nil); got["membership"] != "join" || got["foo"] != "bar" {
		t.Errorf("member: got %v", got)
	}
	joined := alice.must(get, in+"/joined_members", nil)["joined"].(map[string]any)
	if len(joined) != 2 {
		t.Errorf("joined: got %v", joined)
	}

	first := alice.must(put, in+"/send/m.room.message/t1", text("hello"))["event_id"]
	if again := alice.must(put, in+"/send/m.room.message/t1", text("hello"))["event_id"]; again != first {
		t.Errorf("the same transaction made two events: %v, %v", first, again)
	}
	event := bob.must(get, in+"/event/"+first.(string), nil)
	if event["content"].(map[string]any)["body"] != "hello" || event["room_id"] != room {
		t.Errorf("event: got %v", event)
	}
	chunk := bob.must(get, in+"/messages?dir=b&limit=1", nil)["chunk"].([]any)
	if len(chunk) != 1 || chunk[0].(map[string]any)["event_id"] != first {
		t.Errorf("messages: got %v", chunk)
	}
	if got := bob.must(get, in+"/context/"+first.(string)+"?limit=2", nil); got["event"].(map[string]any)["event_id"] != first {
		t.Errorf("context: got %v", got)
	}
	alice.must(put, in+"/redact/"+first.(string)+"/r1", map[string]any{"reason": "typo"})
	if got := bob.must(get, in+"/event/"+first.(string), nil)["content"].(map[string]any); len(got) != 0 {
		t.Errorf("redacted content: got %v", got)
	}

	bob.refused(put, in+"/state/m.room.name", map[string]any{"name": "Cellar"}, 403, "M_FORBIDDEN")
	alice.must(put, in+"/state/m.room.name/", map[string]any{"name": "Cellar"})
	if got := bob.must(get, in+"/state/m.room.name", nil); got["name"] != "Cellar" {
		t.Errorf("name: got %v", got)
	}
	if got := bob.must(get, in+"/state/m.room.name/?format=event", nil); got["sender"] != "@alice:test" {
		t.Errorf("name event: got %v", got)
	}
	bob.refused(get, in+"/state/m.nothing", nil, 404, "M_NOT_FOUND")

	bob.refused(post, in+"/kick", map[string]any{"user_id": "@alice:test"}, 403, "M_FORBIDDEN")
	alice.must(post, in+"/kick", map[string]any{"user_id": "@bob:test", "reason": "noise"})
	alice.refused(post, in+"/forget", nil, 400, "M_UNKNOWN")
	bob.must(post, in+"/forget", map[string]any{})
	alice.must(post, in+"/ban", map[string]any{"user_id": "@bob:test"})
	alice.must(post, in+"/unban", map[string]any{"user_id": "@bob:test"})
	alice.must(post, in+"/leave", nil)
	if got := alice.must(get, "/joined_rooms", nil)["joined_rooms"].([]any); len(got) != 0 {
		t.Errorf("joined rooms: got %v", got)
	}
}

func TestWrongEventsAreRefusedAndChangeNothing(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	room := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	send := "/rooms/" + room + "/send/m.test/"
	before := w.db.Position()
	for _, c := range []struct {
		body   string
		status int
		code   string
	}{
		{`{"body": 9007199254740992}`, 400, "M_BAD_JSON"},
		{`{"body": -9007199254740992}`, 400, "M_BAD_JSON"},
		{`{"body": 1.1}`, 400, "M_BAD_JSON"},
		{`{"body": Infinity}`, 400, "M_NOT_JSON"},
		{`{"body": "` + strings.Repeat("a", 70_000) + `"}`, 413, "M_TOO_LARGE"},
		{`[]`, 400, "M_BAD_JSON"},
	} {
		alice.refused(put, send+"t", c.body, c.status, c.code)
		alice.refused(put, "/rooms/"+room+"/state/m.test", c.body, c.status, c.code)
	}
	alice.refused(put, "/rooms/!nowhere:test/send/m.test/t", `{}`, 403, "M_FORBIDDEN")
	alice.refused(post, "/createRoom", map[string]any{"room_version": "nonsense"}, 400, "M_UNSUPPORTED_ROOM_VERSION")
	alice.refused(post, "/createRoom", map[string]any{"preset": "nonsense"}, 400, "M_INVALID_PARAM")
	if after := w.db.Position(); after != before {
		t.Errorf("the stream went from %d to %d", before, after)
	}
}

func TestAliasesAndDirectory(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob, s := w.person("alice"), w.person("bob"), w.stranger()
	room := alice.must(post, "/createRoom", map[string]any{"preset": "public_chat", "visibility": "public", "room_alias_name": "küche"})["room_id"].(string)
	alias := "/directory/room/%23k%C3%BCche:test"
	if got := s.must(get, alias, nil); got["room_id"] != room || got["servers"] == nil {
		t.Errorf("alias: got %v", got)
	}
	bob.must(post, "/join/%23k%C3%BCche:test", nil)
	bob.refused(del, alias, nil, 403, "M_FORBIDDEN")
	bob.must(put, "/directory/room/%23bobs:test", map[string]any{"room_id": room})
	bob.refused(put, "/directory/room/%23bobs:elsewhere", map[string]any{"room_id": room}, 400, "M_INVALID_PARAM")
	if got := alice.must(get, "/rooms/"+room+"/aliases", nil)["aliases"].([]any); len(got) != 2 {
		t.Errorf("aliases: got %v", got)
	}
	bob.must(del, "/directory/room/%23bobs:test", nil)
	s.refused(get, "/directory/room/%23bobs:test", nil, 404, "M_NOT_FOUND")

	if got := s.must(get, "/publicRooms", nil)["chunk"].([]any); len(got) != 1 {
		t.Errorf("public rooms: got %v", got)
	}
	if got := bob.must(post, "/publicRooms", map[string]any{"filter": map[string]any{"generic_search_term": "no such"}})["chunk"].([]any); len(got) != 0 {
		t.Errorf("search: got %v", got)
	}
	bob.refused(put, "/directory/list/room/"+room, map[string]any{"visibility": "private"}, 403, "M_FORBIDDEN")
	alice.must(put, "/directory/list/room/"+room, map[string]any{"visibility": "private"})
	if got := s.must(get, "/directory/list/room/"+room, nil); got["visibility"] != "private" {
		t.Errorf("visibility: got %v", got)
	}
	if got := s.must(get, "/_matrix/client/v1/room_summary/"+room, nil); got["room_id"] != room || got["num_joined_members"] != 2.0 {
		t.Errorf("summary: got %v", got)
	}
	if got := bob.must(get, "/_matrix/client/v1/mutual_rooms?user_id=@alice:test", nil); len(got["joined"].([]any)) != 1 {
		t.Errorf("mutual rooms: got %v", got)
	}
}

func TestReportsAreKept(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	room := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	event := alice.must(put, "/rooms/"+room+"/send/m.room.message/1", text("rude"))["event_id"].(string)
	bob.refused(post, "/rooms/"+room+"/report/"+event, map[string]any{"reason": "rude"}, 404, "M_NOT_FOUND")
	alice.must(post, "/rooms/"+room+"/report/"+event, map[string]any{"reason": "rude", "score": -100})
	bob.must(post, "/rooms/"+room+"/report", map[string]any{"reason": "bad room"})
	bob.refused(post, "/rooms/!nowhere:test/report", map[string]any{}, 404, "M_NOT_FOUND")
	bob.must(post, "/users/@alice:test/report", map[string]any{"reason": "bad person"})
	reports, err := w.db.Reports(t.Context(), 0, 10)
	if err != nil || len(reports) != 3 {
		t.Fatalf("got %v, %v", reports, err)
	}
	if got := reports[2]; string(got.Event) != event || got.User != "@alice:test" || got.Reporter != "@alice:test" || got.Reason != "rude" {
		t.Errorf("got %+v", got)
	}
}

func TestMediaUploadDownloadRangeAndHead(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	file := strings.Repeat("voice ", 1000)
	request := func(method, path, body string, header ...string) *httptest.ResponseRecorder {
		return ask(w.handler, method, path, body, append(header, "Authorization", "Bearer "+alice.token)...)
	}
	answer := request(post, "/_matrix/media/v3/upload?filename=a.ogg", file, "Content-Type", "audio/ogg")
	if answer.Code != 200 {
		t.Fatalf("upload: got %d %s", answer.Code, answer.Body)
	}
	_, id, _ := strings.Cut(answer.Body.String(), "mxc://test/")
	path := "/_matrix/client/v1/media/download/test/" + strings.TrimRight(id, `"}`)
	if got := request(get, path, ""); got.Body.String() != file || got.Header().Get("Content-Type") != "audio/ogg" {
		t.Errorf("download: got %d, %d bytes, %v", got.Code, got.Body.Len(), got.Header())
	}
	got := request(get, path, "", "Range", "bytes=6-10")
	if got.Code != 206 || got.Body.String() != "voice" || got.Header().Get("Content-Range") != "bytes 6-10/6000" {
		t.Errorf("range: got %d %q %v", got.Code, got.Body, got.Header())
	}
	if got := request(get, path, "", "Range", "bytes=9000-"); got.Code != 416 {
		t.Errorf("range behind the end: got %d", got.Code)
	}
	if got := request(head, path, ""); got.Code != 200 || got.Body.Len() != 0 || got.Header().Get("Content-Length") != "6000" {
		t.Errorf("head: got %d %d bytes %v", got.Code, got.Body.Len(), got.Header())
	}
	if got := ask(w.handler, get, path, ""); got.Code != 401 {
		t.Errorf("without a token: got %d", got.Code)
	}
	if got := ask(w.handler, get, strings.Replace(path, "/client/v1/media/", "/media/v3/", 1), ""); got.Code != 404 {
		t.Errorf("on the old path: got %d", got.Code)
	}
	if got := request(get, "/_matrix/client/v1/media/download/test/none", ""); got.Code != 404 || errcode(t, got) != "M_NOT_FOUND" {
		t.Errorf("unknown: got %d %s", got.Code, got.Body)
	}
	if got := request(get, "/_matrix/client/v1/media/config", ""); !strings.Contains(got.Body.String(), `"m.upload.size":`) {
		t.Errorf("config: got %s", got.Body)
	}
}

func TestNotificationsAreListedNewestFirstInPages(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	room := alice.must(post, "/createRoom", map[string]any{"preset": "public_chat"})["room_id"].(string)
	bob.must(post, "/join/"+room, nil)
	var sent []string
	for _, body := range []string{"one", "two", "three @bob:test"} {
		content := text(body)
		if strings.Contains(body, "@bob") {
			content["m.mentions"] = map[string]any{"user_ids": []string{"@bob:test"}}
		}
		sent = append(sent, alice.must(put, "/rooms/"+room+"/send/m.room.message/"+body[:3], content)["event_id"].(string))
	}
	bob.must(post, "/rooms/"+room+"/receipt/m.read/"+sent[0], map[string]any{})
	page := bob.must(get, "/notifications?limit=2", nil)
	list := page["notifications"].([]any)
	if len(list) != 2 || page["next_token"] == nil {
		t.Fatalf("first page: got %v", page)
	}
	newest := list[0].(map[string]any)
	if newest["event"].(map[string]any)["event_id"] != sent[2] || newest["read"] != false || newest["room_id"] != room || newest["actions"] == nil {
		t.Errorf("newest: got %v", newest)
	}
	page = bob.must(get, "/notifications?from="+page["next_token"].(string), nil)
	list = page["notifications"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["read"] != true || page["next_token"] != nil {
		t.Errorf("second page: got %v", page)
	}
	if got := bob.must(get, "/notifications?only=highlight", nil)["notifications"].([]any); len(got) != 1 {
		t.Errorf("highlights: got %v", got)
	}
	if got := alice.must(get, "/notifications", nil)["notifications"].([]any); len(got) != 0 {
		t.Errorf("one's own messages: got %v", got)
	}
	bob.refused(get, "/notifications?from=x", nil, 400, "M_INVALID_PARAM")
}

// A room can be read from the database a moment before it is in memory: who syncs then must not be told that there is none.
func TestSyncWhileRoomsAreMade(t *testing.T) {
	w := newWorld(t, quiet())
	for i := range 20 {
		p := w.person(fmt.Sprintf("user%d", i))
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 3 {
				if got := p.ask(post, "/createRoom", map[string]any{}); got.Code != 200 {
					t.Errorf("create: got %d %s", got.Code, got.Body)
				}
			}
		}()
		for waiting := true; waiting; {
			if got := p.ask(get, "/sync", nil); got.Code != 200 {
				t.Errorf("sync: got %d %s", got.Code, got.Body)
			}
			select {
			case <-done:
				waiting = false
			default:
			}
		}
	}
}

// What Element X asks for: a list of rooms on one connection, encryption on another.
func TestSlidingSyncIsServedWhereItIsAnnounced(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	features := alice.must(get, "/_matrix/client/versions", nil)["unstable_features"].(map[string]any)
	if features["org.matrix.simplified_msc3575"] != true {
		t.Fatalf("not announced: %v", features)
	}
	room := alice.must(post, "/createRoom", map[string]any{"name": "Kitchen"})["room_id"].(string)
	alice.must(put, "/rooms/"+room+"/send/m.room.message/1", text("hello"))
	path := "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
	list := map[string]any{"conn_id": "room-list", "lists": map[string]any{"all": map[string]any{
		"ranges": [][]int{{0, 19}}, "timeline_limit": 1, "required_state": [][]string{{"m.room.name", ""}, {"m.room.member", "$ME"}},
	}}}
	answer := alice.must(post, path+"?timeout=0", list)
	got := answer["rooms"].(map[string]any)[room].(map[string]any)
	if got["name"] != "Kitchen" || len(got["timeline"].([]any)) != 1 || len(got["required_state"].([]any)) != 2 {
		t.Errorf("room: got %v", got)
	}
	alice.must(put, "/rooms/"+room+"/send/m.room.message/2", text("again"))
	answer = alice.must(post, path+"?timeout=0&pos="+url.QueryEscape(answer["pos"].(string)), list)
	if answer["rooms"].(map[string]any)[room] == nil {
		t.Errorf("the new message is not told: %v", answer)
	}
	encryption := map[string]any{"conn_id": "encryption", "extensions": map[string]any{
		"to_device": map[string]any{"enabled": true}, "e2ee": map[string]any{"enabled": true}}}
	extensions := alice.must(post, path+"?timeout=0", encryption)["extensions"].(map[string]any)
	if extensions["to_device"] == nil || extensions["e2ee"] == nil {
		t.Errorf("extensions: got %v", extensions)
	}
	alice.refused(post, path+"?pos=nonsense", list, 400, "M_UNKNOWN_POS")
}

func TestDelayedEventIsRefusedAndNotSentAtOnce(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	id := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	for _, path := range []string{"/send/m.room.message/1", "/state/org.example/key"} {
		alice.refused(put, "/rooms/"+id+path+"?org.matrix.msc4140.delay=8000", map[string]any{"body": "later"}, 400, "M_UNRECOGNIZED")
	}
	alice.refused(get, "/rooms/"+id+"/state/org.example/key", nil, 404, "M_NOT_FOUND")
}
