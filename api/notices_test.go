package api

import (
	"testing"

	"parley.im/parley/server/user"
)

func TestServerNotices(t *testing.T) {
	w := newWorld(t, quiet())
	root, alice := w.account(user.NewAccount{Localpart: "root", Admin: true}), w.person("alice")
	path := "/_synapse/admin/v1/send_server_notice"
	notice := map[string]any{"user_id": "@alice:test", "content": text("The server is going down for tea.")}
	alice.refused(post, path, notice, 403, "M_FORBIDDEN")
	root.refused(post, path, map[string]any{"user_id": "@nobody:test", "content": text("x")}, 404, "M_NOT_FOUND")
	root.must(post, path, notice)

	invites, err := w.api.Rooms.RoomsOf(t.Context(), "@alice:test")
	if err != nil || len(invites) != 1 {
		t.Fatalf("got %v, %v", invites, err)
	}
	room := string(invites[0].Room)
	alice.refused(post, "/rooms/"+room+"/leave", nil, 403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
	alice.must(post, "/join/"+room, nil)
	alice.refused(put, "/rooms/"+room+"/send/m.room.message/1", text("no"), 403, "M_FORBIDDEN")
	if got := alice.must(get, "/user/@alice:test/rooms/"+room+"/tags", nil)["tags"].(map[string]any); got["m.server_notice"] == nil {
		t.Errorf("tags: got %v", got)
	}
	alice.must(post, "/rooms/"+room+"/leave", nil)
	alice.must(post, "/rooms/"+room+"/forget", nil)

	first := root.must(put, path+"/t1", notice)["event_id"]
	if again := root.must(put, path+"/t1", notice)["event_id"]; again != first {
		t.Errorf("the same transaction made two notices: %v, %v", first, again)
	}
	alice.must(post, "/join/"+room, nil)
	w.stranger().refused(post, "/login", password("_server", ""), 403, "M_FORBIDDEN")
}
