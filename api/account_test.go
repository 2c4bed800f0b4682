package api

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"

	"parley.im/parley/server/user"
)

// stranger is somebody without an account.
func (w *world) stranger() *person { return &person{w: w} }

// as gives the person the access token of an answer to /login or /register.
func (p *person) as(answer map[string]any) *person {
	token, _ := answer["access_token"].(string)
	return &person{w: p.w, id: p.id, token: token}
}

func password(name, secret string) map[string]any {
	return map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": name}, "password": secret}
}

func TestRegisterAsksForAuthenticationAndThenMakesTheAccount(t *testing.T) {
	w := newWorld(t, quiet())
	s := w.stranger()
	body := map[string]any{"username": "Alice", "password": "correct horse", "device_id": "PHONE", "refresh_token": true}
	answer := s.ask(post, "/register", body)
	var challenge struct {
		Session string
		Flows   []struct{ Stages []string }
		Params  map[string]any
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &challenge); err != nil || answer.Code != 401 || challenge.Session == "" ||
		len(challenge.Flows) == 0 || challenge.Params == nil {
		t.Fatalf("got %d %s", answer.Code, answer.Body)
	}
	body["auth"] = map[string]any{"type": "m.login.dummy", "session": challenge.Session}
	made := s.must(post, "/register", body)
	if made["user_id"] != "@alice:test" || made["device_id"] != "PHONE" || made["refresh_token"] == nil || made["expires_in_ms"] == nil {
		t.Errorf("got %v", made)
	}
	s.refused(post, "/register", map[string]any{"username": "alice", "password": "another one", "auth": map[string]any{"type": "m.login.dummy"}}, 400, "M_USER_IN_USE")
	s.refused(get, "/register/available?username=alice", nil, 400, "M_USER_IN_USE")
	s.refused(get, "/register/available?username=a,b", nil, 400, "M_INVALID_USERNAME")
	s.must(get, "/register/available?username=bob", nil)
	s.refused(post, "/register?kind=guest", map[string]any{}, 403, "M_GUEST_ACCESS_FORBIDDEN")

	alice := s.as(made)
	if got := alice.must(get, "/account/whoami", nil); got["user_id"] != "@alice:test" || got["device_id"] != "PHONE" {
		t.Errorf("whoami: got %v", got)
	}
	renewed := s.must(post, "/refresh", map[string]any{"refresh_token": made["refresh_token"]})
	s.as(renewed).must(get, "/account/whoami", nil)
	s.refused(post, "/refresh", map[string]any{"refresh_token": "nonsense"}, 401, "M_UNKNOWN_TOKEN")
	s.refused(post, "/refresh", map[string]any{}, 400, "M_MISSING_PARAM")
}

func TestSharedSecretRegistration(t *testing.T) {
	w := newWorld(t, quiet())
	s := w.stranger()
	ask := func(name string, admin bool, secret string) map[string]any {
		nonce := s.must(get, "/_synapse/admin/v1/register", nil)["nonce"].(string)
		mac := hmac.New(sha1.New, []byte(secret))
		role := "notadmin"
		if admin {
			role = "admin"
		}
		fmt.Fprintf(mac, "%s\x00%s\x00%s\x00%s", nonce, name, "a long password", role)
		return map[string]any{"nonce": nonce, "username": name, "password": "a long password", "admin": admin,
			"mac": hex.EncodeToString(mac.Sum(nil))}
	}
	root := s.as(s.must(post, "/_synapse/admin/v1/register", ask("Root", true, "shared")))
	root.refused(get, "/_matrix/client/v1/admin/lock/@nobody:test", nil, 404, "M_NOT_FOUND")
	s.refused(post, "/_synapse/admin/v1/register", ask("eve", true, "guessed"), 403, "M_FORBIDDEN")
	s.refused(post, "/_synapse/admin/v1/register", ask("us,er", false, "shared"), 400, "M_INVALID_USERNAME")
	replay := ask("bob", false, "shared")
	s.must(post, "/_synapse/admin/v1/register", replay)
	if w := s.ask(post, "/_synapse/admin/v1/register", replay); w.Code != 400 {
		t.Errorf("a nonce was taken twice: %d %s", w.Code, w.Body)
	}
}

func TestAnAdministratorInvitesPeopleWithTokens(t *testing.T) {
	w := newWorld(t, quiet())
	alice, s := w.person("alice"), w.stranger()
	tokens := "/_synapse/admin/v1/registration_tokens"
	alice.refused(post, tokens+"/new", map[string]any{}, 403, "M_FORBIDDEN")
	alice.refused(get, tokens, nil, 403, "M_FORBIDDEN")
	alice.refused(del, tokens+"/x", nil, 403, "M_FORBIDDEN")

	root := w.account(user.NewAccount{Localpart: "root", Admin: true})
	token := root.must(post, tokens+"/new", map[string]any{"uses_allowed": 1})["token"].(string)
	root.refused(post, tokens+"/new", map[string]any{"token": token}, 400, "M_INVALID_PARAM")
	root.refused(post, tokens+"/new", map[string]any{"expiry_time": 1}, 400, "M_INVALID_PARAM")
	validity := "/_matrix/client/v1/register/m.login.registration_token/validity?token=" + token
	if got := s.must(get, validity, nil); got["valid"] != true {
		t.Errorf("a fresh token: got %v", got)
	}
	if got := root.must(get, tokens, nil)["registration_tokens"].([]any); len(got) != 1 || got[0].(map[string]any)["token"] != token {
		t.Errorf("got %v", got)
	}
	root.must(del, tokens+"/"+token, nil)
	if got := s.must(get, validity, nil); got["valid"] != false {
		t.Errorf("a deleted token: got %v", got)
	}
	root.refused(del, tokens+"/"+token, nil, 404, "M_NOT_FOUND")
}

func TestLoginDevicesAndLogout(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	s := w.stranger()
	s.refused(post, "/login", password("alice", "wrong"), 403, "M_FORBIDDEN")
	s.refused(post, "/login", password("nobody", "wrong"), 403, "M_FORBIDDEN")
	s.refused(post, "/login", map[string]any{"type": "m.login.magic"}, 400, "M_UNKNOWN")
	in := password("@ALICE:test", "password of alice")
	in["device_id"], in["initial_device_display_name"] = "LAPTOP", "My laptop"
	laptop := s.as(s.must(post, "/login", in))

	if got := laptop.must(get, "/devices", nil)["devices"].([]any); len(got) != 2 {
		t.Errorf("devices: got %v", got)
	}
	alice.must(put, "/devices/LAPTOP", map[string]any{"display_name": "Old laptop"})
	if got := alice.must(get, "/devices/LAPTOP", nil); got["display_name"] != "Old laptop" {
		t.Errorf("device: got %v", got)
	}
	alice.refused(get, "/devices/NONE", nil, 404, "M_NOT_FOUND")
	alice.refused(put, "/devices/NONE", map[string]any{"display_name": "x"}, 404, "M_NOT_FOUND")
	alice.refused(put, "/devices/NONE", map[string]any{}, 404, "M_NOT_FOUND")

	if got := alice.ask(del, "/devices/LAPTOP", nil); got.Code != 401 || errcode(t, got) != "" {
		t.Errorf("delete without authentication: got %d %s", got.Code, got.Body)
	}
	alice.refused(del, "/devices/LAPTOP", map[string]any{"auth": password("alice", "wrong")}, 401, "M_FORBIDDEN")
	laptop.must(get, "/account/whoami", nil)
	alice.must(del, "/devices/LAPTOP", map[string]any{"auth": password("alice", "password of alice")})
	laptop.refused(get, "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")

	again := s.as(s.must(post, "/login", password("alice", "password of alice")))
	again.must(post, "/logout", nil)
	again.refused(get, "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")
	alice.must(get, "/account/whoami", nil)
	alice.must(post, "/logout/all", map[string]any{})
	alice.refused(get, "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")
}

func TestLoginTokenLogsInOnce(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	if got := alice.ask(post, "/_matrix/client/v1/login/get_token", map[string]any{}); got.Code != 401 {
		t.Fatalf("without authentication: got %d %s", got.Code, got.Body)
	}
	got := alice.must(post, "/_matrix/client/v1/login/get_token", map[string]any{"auth": password("alice", "password of alice")})
	in := map[string]any{"type": "m.login.token", "token": got["login_token"]}
	w.stranger().must(post, "/login", in)
	w.stranger().refused(post, "/login", in, 403, "M_FORBIDDEN")
}

func TestPasswordChangeEndsOtherSessions(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	s := w.stranger()
	other := s.as(s.must(post, "/login", password("alice", "password of alice")))
	change := func(old, secret string, more ...any) map[string]any {
		body := map[string]any{"auth": password("alice", old), "new_password": secret}
		if len(more) > 0 {
			body["logout_devices"] = more[0]
		}
		return body
	}
	alice.refused(post, "/account/password", change("wrong", "a new password"), 401, "M_FORBIDDEN")
	alice.refused(post, "/account/password", change("password of alice", "short"), 400, "M_WEAK_PASSWORD")
	other.must(get, "/account/whoami", nil)
	alice.must(post, "/account/password", change("password of alice", "a new password"))
	alice.must(get, "/account/whoami", nil)
	other.refused(get, "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")
	s.refused(post, "/login", password("alice", "password of alice"), 403, "M_FORBIDDEN")
	kept := s.as(s.must(post, "/login", password("alice", "a new password")))
	alice.must(post, "/account/password", change("a new password", "a newer password", false))
	kept.must(get, "/account/whoami", nil)
}

func TestDeactivatedAccountIsGoneAndItsNameStaysTaken(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	room := bob.must(post, "/createRoom", map[string]any{"preset": "public_chat"})["room_id"].(string)
	alice.must(post, "/join/"+room, nil)
	alice.refused(post, "/account/deactivate", map[string]any{"auth": password("alice", "wrong")}, 401, "M_FORBIDDEN")
	alice.must(post, "/account/deactivate", map[string]any{"auth": password("alice", "password of alice")})
	alice.refused(get, "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")
	if got := w.stranger().ask(post, "/login", password("alice", "password of alice")); got.Code != 403 {
		t.Errorf("login: got %d %s", got.Code, got.Body)
	}
	w.stranger().refused(get, "/register/available?username=alice", nil, 400, "M_USER_IN_USE")
	members := bob.must(get, "/rooms/"+room+"/joined_members", nil)["joined"].(map[string]any)
	if len(members) != 1 {
		t.Errorf("still in the room: %v", members)
	}
}

func TestLockedAndSuspendedAccounts(t *testing.T) {
	w := newWorld(t, quiet())
	root, alice := w.account(user.NewAccount{Localpart: "root", Admin: true}), w.person("alice")
	room := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	lock, suspend := "/_matrix/client/v1/admin/lock/@alice:test", "/_matrix/client/v1/admin/suspend/@alice:test"

	root.must(put, suspend, map[string]any{"suspended": true})
	if got := root.must(get, suspend, nil); got["suspended"] != true {
		t.Errorf("got %v", got)
	}
	alice.refused(put, "/rooms/"+room+"/send/m.room.message/1", map[string]any{"msgtype": "m.text", "body": "x"}, 403, "M_USER_SUSPENDED")
	alice.refused(post, "/createRoom", map[string]any{}, 403, "M_USER_SUSPENDED")
	alice.refused(put, "/profile/@alice:test/displayname", map[string]any{"displayname": "x"}, 403, "M_USER_SUSPENDED")
	alice.must(get, "/sync", nil)
	alice.must(get, "/rooms/"+room+"/joined_members", nil)
	root.must(put, suspend, map[string]any{"suspended": false})
	alice.must(put, "/rooms/"+room+"/send/m.room.message/1", map[string]any{"msgtype": "m.text", "body": "x"})

	root.must(put, lock, map[string]any{"locked": true})
	alice.refused(get, "/sync", nil, 401, "M_USER_LOCKED")
	alice.must(post, "/logout", nil)
	root.refused(put, "/_matrix/client/v1/admin/lock/@root:test", map[string]any{"locked": true}, 403, "M_FORBIDDEN")
	root.refused(get, "/_matrix/client/v1/admin/lock/@alice:elsewhere", nil, 400, "M_INVALID_PARAM")
}

func TestTokensInTheQueryCanBeSwitchedOff(t *testing.T) {
	cfg := quiet()
	w := newWorld(t, cfg)
	alice := w.person("alice")
	path := "/account/whoami?access_token=" + alice.token
	if got := ask(w.handler, get, client+path, ""); got.Code != 200 {
		t.Errorf("got %d %s", got.Code, got.Body)
	}
	w.api.cfg.QueryTokens = false
	if got := ask(w.handler, get, client+path, ""); got.Code != 401 || errcode(t, got) != "M_MISSING_TOKEN" {
		t.Errorf("switched off: got %d %s", got.Code, got.Body)
	}
}

func TestProfileAccountDataAndFilters(t *testing.T) {
	w := newWorld(t, quiet())
	alice, s := w.person("alice"), w.stranger()
	me := "/profile/@alice:test"
	alice.must(put, me+"/displayname", map[string]any{"displayname": "Alice"})
	alice.must(put, me+"/m.tz", map[string]any{"m.tz": "Europe/Berlin"})
	alice.refused(put, me+"/displayname", map[string]any{"avatar_url": "x"}, 400, "M_MISSING_PARAM")
	if got := s.must(get, me, nil); got["displayname"] != "Alice" || got["m.tz"] != "Europe/Berlin" {
		t.Errorf("profile: got %v", got)
	}
	alice.must(del, me+"/m.tz", nil)
	s.refused(get, me+"/m.tz", nil, 404, "M_NOT_FOUND")
	s.refused(get, "/profile/@nobody:test", nil, 404, "M_NOT_FOUND")

	data := "/user/@alice:test/account_data/"
	alice.refused(get, data+"m.x", nil, 404, "M_NOT_FOUND")
	alice.must(put, data+"m.x", map[string]any{"a": "b"})
	if got := alice.must(get, data+"m.x", nil); got["a"] != "b" {
		t.Errorf("account data: got %v", got)
	}
	alice.refused(put, data+"m.push_rules", map[string]any{}, 405, "M_BAD_JSON")
	if got := alice.must(get, data+"m.push_rules", nil); got["global"] == nil {
		t.Errorf("push rules: got %v", got)
	}
	alice.must(put, "/user/@alice:test/rooms/!a:test/tags/u.work", map[string]any{"order": 0.5})
	if got := alice.must(get, "/user/@alice:test/rooms/!a:test/tags", nil)["tags"].(map[string]any); got["u.work"] == nil {
		t.Errorf("tags: got %v", got)
	}
	alice.must(del, "/user/@alice:test/rooms/!a:test/tags/u.work", nil)

	id := alice.must(post, "/user/@alice:test/filter", map[string]any{"room": map[string]any{"timeline": map[string]any{"limit": 5}}})["filter_id"]
	alice.must(get, fmt.Sprintf("/user/@alice:test/filter/%v", id), nil)
	alice.refused(get, "/user/@alice:test/filter/999", nil, 404, "M_NOT_FOUND")
	alice.refused(post, "/user/@alice:test/filter", map[string]any{"room": map[string]any{"timeline": "x"}}, 400, "M_BAD_JSON")
	if got := alice.must(post, "/user/@alice:test/openid/request_token", map[string]any{}); got["matrix_server_name"] != "test" || got["access_token"] == nil {
		t.Errorf("openid: got %v", got)
	}
}

func TestSendToDeviceIsDoneOnce(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	body := map[string]any{"messages": map[string]any{"@bob:test": map[string]any{"*": map[string]any{"hello": "bob"}}}}
	for range 3 {
		alice.must(put, "/sendToDevice/m.test/t1", body)
	}
	alice.must(put, "/sendToDevice/m.test/t2", body)
	events := bob.must(get, "/sync", nil)["to_device"].(map[string]any)["events"].([]any)
	if len(events) != 2 {
		t.Errorf("bob got %d messages, want 2: %v", len(events), events)
	}
}
