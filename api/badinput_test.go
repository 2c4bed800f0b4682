package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"parley.im/parley/server/user"
)

// What a request must be able to get past before its body is looked at.
var samples = strings.NewReplacer(
	"{roomId}", "!room:test", "{roomIdOrAlias}", "!room:test", "{roomAlias}", "%23alias:test", "{eventId}", "$event:test",
	"{userId}", "@alice:test", "{eventType}", "m.test", "{stateKey}", "key", "{txnId}", "txn", "{type}", "m.test", "{tag}", "u.tag",
	"{keyName}", "displayname", "{deviceId}", "DEVICE", "{filterId}", "1", "{receiptType}", "m.read", "{kind}", "content",
	"{ruleId}", "rule", "{version}", "1", "{sessionId}", "session", "{serverName}", "test", "{mediaId}", "media", "{fileName}", "file",
	"{protocol}", "irc", "{relType}", "m.thread", "{purgeId}", "purge",
)

// bodiless are routes that take a body, by their method, but read none, or read one that is not JSON.
func bodiless(r route) bool {
	for _, suffix := range []string{"/logout", "/logout/all", "/upload", "/upload/{serverName}/{mediaId}", "/live/{serverName}/{mediaId}",
		"/fallback/web"} {
		if strings.HasSuffix(r.path, suffix) && !strings.Contains(r.path, "/keys/") && !strings.Contains(r.path, "/device_signing/") &&
			!strings.Contains(r.path, "/signatures/") {
			return true
		}
	}
	return r.method != put && r.method != post
}

// rows counts the rows of all tables: what has changed nothing leaves it as it was.
func (w *world) rows() string {
	w.t.Helper()
	db := w.db.Read(w.t.Context())
	var tables []string
	if err := db.Raw("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").Scan(&tables).Error; err != nil {
		w.t.Fatal(err)
	}
	var all strings.Builder
	for _, table := range tables {
		var n int
		if err := db.Raw("SELECT COUNT(*) FROM " + table).Row().Scan(&n); err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s %d\n", table, n)
	}
	fmt.Fprintf(&all, "position %d\n", w.db.Position())
	return all.String()
}

func TestBadInputOnEveryRoute(t *testing.T) {
	cfg := quiet()
	cfg.MaxBodyBytes = 1 << 20
	w := newWorld(t, cfg)
	alice := w.account(user.NewAccount{Localpart: "alice", Admin: true})
	before := w.rows()
	for _, r := range w.api.routes() {
		limit := r.maxBody
		if limit == 0 {
			limit = cfg.MaxBodyBytes
		}
		for _, path := range r.paths() {
			path := samples.Replace(path)
			if strings.Contains(path, "/room_keys/keys") {
				path += "?version=1"
			}
			check := func(what, token, body string, status int, code string) {
				t.Helper()
				var header []string
				if token != "" {
					header = []string{"Authorization", "Bearer " + token}
				}
				answer := ask(w.handler, r.method, path, body, header...)
				if r.method == http.MethodHead {
					if answer.Code != status {
						t.Errorf("%s %s with %s: got %d, want %d", r.method, path, what, answer.Code, status)
					}
					return
				}
				if answer.Code != status || errcode(t, answer) != code {
					t.Errorf("%s %s with %s: got %d %s, want %d %s", r.method, path, what, answer.Code, answer.Body, status, code)
				}
			}
			if r.auth == signedIn || r.auth == admin {
				check("no token", "", "", 401, "M_MISSING_TOKEN")
			}
			if r.auth != anybody {
				check("a bad token", "bad", "", 401, "M_UNKNOWN_TOKEN")
			}
			if bodiless(r) {
				continue
			}
			check("no JSON", alice.token, "{", 400, "M_NOT_JSON")
			check("invalid UTF-8", alice.token, "{\"a\":\"\x81\"}", 400, "M_NOT_JSON")
			check("a member twice", alice.token, `{"a":1,"a":1}`, 400, "M_NOT_JSON")
			check("an array", alice.token, "[]", 400, "M_BAD_JSON")
			check("a string", alice.token, `"text"`, 400, "M_BAD_JSON")
			check("too large a body", alice.token, `{"a":"`+strings.Repeat("a", int(limit))+`"}`, 413, "M_TOO_LARGE")
		}
	}
	if after := w.rows(); after != before {
		t.Errorf("something has changed; before:\n%s\nafter:\n%s", before, after)
	}
}

// Handlers of JSON with known members refuse other types by name.
func TestWrongTypesAreBadJSON(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.account(user.NewAccount{Localpart: "alice", Admin: true})
	before := w.rows()
	for _, c := range []struct{ method, path, body string }{
		{post, "/login", `{"type":1}`},
		{post, "/login", `{"type":"m.login.password","password":{}}`},
		{post, "/register", `{"username":1}`},
		{post, "/register", `{"auth":{"type":"m.login.dummy"},"username":"x","password":[]}`},
		{post, "/refresh", `{"refresh_token":1}`},
		{post, "/account/password", `{"new_password":1}`},
		{post, "/account/deactivate", `{"erase":"yes"}`},
		{put, "/devices/D", `{"display_name":1}`},
		{post, "/delete_devices", `{"devices":"D"}`},
		{post, "/createRoom", `{"room_version":1}`},
		{post, "/createRoom", `{"invite":"@bob:test"}`},
		{post, "/createRoom", `{"initial_state":{}}`},
		{post, "/createRoom", `{"is_direct":"yes"}`},
		{post, "/rooms/!a:test/invite", `{"user_id":1}`},
		{post, "/rooms/!a:test/kick", `{"user_id":[]}`},
		{post, "/rooms/!a:test/ban", `{"user_id":"@bob:test","reason":1}`},
		{post, "/rooms/!a:test/leave", `{"reason":{}}`},
		{post, "/join/!a:test", `{"reason":1}`},
		{put, "/rooms/!a:test/typing/@alice:test", `{"typing":"yes"}`},
		{post, "/rooms/!a:test/receipt/m.read/$e", `{"thread_id":1}`},
		{post, "/rooms/!a:test/read_markers", `{"m.read":1}`},
		{put, "/presence/@alice:test/status", `{"presence":1}`},
		{put, "/directory/room/%23a:test", `{"room_id":1}`},
		{put, "/directory/list/room/!a:test", `{"visibility":1}`},
		{post, "/publicRooms", `{"limit":"1"}`},
		{post, "/keys/query", `{"device_keys":[]}`},
		{post, "/keys/query", `{"device_keys":{"@a:test":"D"}}`},
		{post, "/keys/claim", `{"one_time_keys":[]}`},
		{put, "/sendToDevice/m.x/1", `{"messages":[]}`},
		{put, "/pushrules/global/content/x/enabled", `{"enabled":1}`},
		{post, "/search", `{"search_categories":{"room_events":{"search_term":1}}}`},
		{post, "/user_directory/search", `{"search_term":1}`},
		{post, "/rooms/!a:test/upgrade", `{"new_version":11}`},
		{post, "/rooms/!a:test/report/$e", `{"reason":1}`},
		{put, "/_matrix/client/v1/admin/lock/@bob:test", `{"locked":"yes"}`},
		{put, "/_matrix/client/v1/admin/suspend/@bob:test", `{"suspended":1}`},
		{post, "/_synapse/admin/v1/purge_history/!a:test", `{"purge_up_to_ts":"1"}`},
		{post, "/_synapse/admin/v1/purge_history/!a:test", `{"delete_local_events":1}`},
		{del, "/_synapse/admin/v2/rooms/!a:test", `{"block":1}`},
		{post, "/_parley/admin/v1/purges", `{"room_id":1}`},
		{post, "/_parley/admin/v1/purges", `{"room_id":"!a:test","before_ts":"x"}`},
		{post, "/_parley/admin/v1/purges", `{"room_id":"!a:test","whole_room":"yes"}`},
		{post, "/_synapse/admin/v1/register", `{"nonce":1}`},
		{post, "/_synapse/admin/v1/registration_tokens/new", `{"uses_allowed":"1"}`},
	} {
		alice.refused(c.method, c.path, c.body, 400, "M_BAD_JSON")
	}
	if after := w.rows(); after != before {
		t.Errorf("something has changed; before:\n%s\nafter:\n%s", before, after)
	}
}

// Paths with what is no ID, and queries with wrong values.
func TestBadParametersAreInvalid(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	for _, c := range []struct{ method, path, code string }{
		{get, "/rooms//state", "M_INVALID_PARAM"},
		{get, "/rooms/room/state", "M_INVALID_PARAM"},
		{get, "/rooms/!a:test/event/x", "M_INVALID_PARAM"},
		{get, "/rooms/!a:test/messages?dir=x", "M_INVALID_PARAM"},
		{get, "/rooms/!a:test/messages?dir=b&limit=x", "M_INVALID_PARAM"},
		{get, "/rooms/!a:test/messages?dir=b&filter=x", "M_BAD_JSON"},
		{get, "/rooms/!a:test/members?membership=x", "M_INVALID_PARAM"},
		{get, "/rooms/!a:test/state/m.room.name?format=x", "M_INVALID_PARAM"},
		{get, "/_matrix/client/v1/rooms/!a:test/timestamp_to_event?ts=1", "M_MISSING_PARAM"},
		{get, "/_matrix/client/v1/rooms/!a:test/timestamp_to_event?dir=f", "M_MISSING_PARAM"},
		{get, "/_matrix/client/v1/rooms/!a:test/threads?include=x", "M_INVALID_PARAM"},
		{get, "/_matrix/client/v1/mutual_rooms", "M_MISSING_PARAM"},
		{get, "/_matrix/client/v1/mutual_rooms?user_id=bob", "M_INVALID_PARAM"},
		{get, "/sync?timeout=x", "M_INVALID_PARAM"},
		{get, "/sync?full_state=x", "M_INVALID_PARAM"},
		{get, "/sync?since=x", "M_INVALID_PARAM"},
		{get, "/profile/bob", "M_INVALID_PARAM"},
		{get, "/directory/room/alias", "M_INVALID_PARAM"},
		{get, "/register/available", "M_MISSING_PARAM"},
		{get, "/keys/changes", "M_MISSING_PARAM"},
		{get, "/room_keys/keys", "M_MISSING_PARAM"},
		{get, "/publicRooms?limit=x", "M_INVALID_PARAM"},
	} {
		alice.refused(c.method, c.path, nil, 400, c.code)
	}
	for _, c := range []struct{ method, path, body string }{
		{put, "/user/@bob:test/account_data/m.x", `{}`},
		{get, "/user/@bob:test/account_data/m.x", ""},
		{put, "/profile/@bob:test/displayname", `{"displayname":"x"}`},
		{del, "/profile/@bob:test/displayname", ""},
		{put, "/rooms/!a:test/typing/@bob:test", `{"typing":true}`},
		{put, "/presence/@bob:test/status", `{"presence":"online"}`},
		{post, "/user/@bob:test/filter", `{}`},
		{post, "/user/@bob:test/openid/request_token", `{}`},
		{get, "/admin/whois/@bob:test", ""},
		{get, "/_matrix/client/v1/admin/lock/@bob:test", ""},
		{put, "/_matrix/client/v1/admin/lock/@bob:test", `{"locked":true}`},
	} {
		alice.refused(c.method, c.path, c.body, 403, "M_FORBIDDEN")
	}
}
