package user

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const alice = matrix.UserID("@alice:hs1")

func TestProfileFields(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, nil)
		register(t, u, "alice")
		for _, test := range []struct {
			field, value, code string
			changed            bool
		}{
			{"displayname", `"Älice <&> \"A\""`, "", true},
			{"displayname", `"Älice <&> \"A\""`, "", false},
			{"avatar_url", `"mxc://hs1/a"`, "", true},
			{"m.tz", `"Europe/Berlin"`, "", true},
			{"im.parley.custom", `{ "a": [1, null] }`, "", true},
			{"im.parley.custom", `{"a":[1,null]}`, "", false},
			{"displayname", `7`, "M_BAD_JSON", false},
			{"displayname", `"a\u0000"`, "M_INVALID_PARAM", false},
			{"displayname", `"` + strings.Repeat("x", 257) + `"`, "M_INVALID_PARAM", false},
			{"Bad", `1`, "M_INVALID_PARAM", false},
			{strings.Repeat("x", 256), `1`, "M_KEY_TOO_LARGE", false},
			{"im.parley.big", `"` + strings.Repeat("x", 65536) + `"`, "M_PROFILE_TOO_LARGE", false},
		} {
			changed, err := u.SetProfileField(t.Context(), alice, test.field, json.RawMessage(test.value))
			if matrix.ErrorCode(err) != test.code || changed != test.changed {
				t.Errorf("%s %.40s: got %v %v, want %v %q", test.field, test.value, changed, err, test.changed, test.code)
			}
		}
		got, err := u.Profile(t.Context(), alice)
		want := map[string]json.RawMessage{"displayname": json.RawMessage(`"Älice <&> \"A\""`), "avatar_url": json.RawMessage(`"mxc://hs1/a"`),
			"m.tz": json.RawMessage(`"Europe/Berlin"`), "im.parley.custom": json.RawMessage(`{"a":[1,null]}`)}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
		if name, avatar, err := u.DisplayNameAndAvatar(t.Context(), alice); name != `Älice <&> "A"` || avatar != "mxc://hs1/a" || err != nil {
			t.Errorf("got %q %q %v", name, avatar, err)
		}
		for _, field := range []string{"displayname", "m.tz"} {
			if changed, err := u.SetProfileField(t.Context(), alice, field, nil); !changed || err != nil {
				t.Errorf("delete %s: got %v %v", field, changed, err)
			}
			_, err := u.ProfileField(t.Context(), alice, field)
			wantCode(t, err, "M_NOT_FOUND")
		}
		if name, _, _ := u.DisplayNameAndAvatar(t.Context(), alice); name != "" {
			t.Errorf("got %q from memory after it was deleted", name)
		}
		_, err = u.SetProfileField(t.Context(), "@nobody:hs1", "displayname", json.RawMessage(`"x"`))
		wantCode(t, err, "M_NOT_FOUND")
	})
}

// otherServer answers profile queries.
type otherServer struct{ err error }

func (o otherServer) QueryProfile(_ context.Context, _ matrix.ServerName, _ matrix.UserID, _ string) (map[string]json.RawMessage, error) {
	return map[string]json.RawMessage{"displayname": json.RawMessage(`"Bob"`)}, o.err
}

func TestRemoteProfileIsAskedFor(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	u.remote = otherServer{}
	if got, err := u.ProfileField(t.Context(), "@bob:hs2", "displayname"); err != nil || string(got["displayname"]) != `"Bob"` {
		t.Errorf("got %s %v", got, err)
	}
	_, err := u.ProfileField(t.Context(), "@bob:hs2", "avatar_url")
	wantCode(t, err, "M_NOT_FOUND")
	u.remote = otherServer{errors.New("connection refused")}
	_, err = u.Profile(t.Context(), "@bob:hs2")
	wantCode(t, err, "M_UNKNOWN")
}

func TestAccountData(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, nil)
		register(t, u, "alice")
		since := db.Position()
		for _, room := range []matrix.RoomID{"", "!r:hs1"} {
			_, err := u.AccountData(t.Context(), alice, room, "m.x")
			wantCode(t, err, "M_NOT_FOUND")
			if err := u.SetAccountData(t.Context(), alice, room, "m.x", json.RawMessage(` {"a" : 1}`)); err != nil {
				t.Fatal(err)
			}
			if got, err := u.AccountData(t.Context(), alice, room, "m.x"); string(got) != `{"a":1}` || err != nil {
				t.Errorf("got %s %v", got, err)
			}
		}
		changed, err := db.AccountDataSince(t.Context(), alice, since, db.Position())
		if err != nil || len(changed) != 2 || changed[0].Room != "" || changed[1].Room != "!r:hs1" {
			t.Errorf("got %+v %v", changed, err)
		}
		for typ, content := range map[string]string{"m.a": `[]`, "m.b": `"x"`, "m.push_rules": `{}`} {
			wantCode(t, u.SetAccountData(t.Context(), alice, "", typ, json.RawMessage(content)), "M_BAD_JSON")
		}
		wantCode(t, u.SetAccountData(t.Context(), alice, "!r:hs1", "m.fully_read", json.RawMessage(`{}`)), "M_BAD_JSON")
		wantCode(t, u.SetAccountData(t.Context(), alice, "", "a\x00b", json.RawMessage(`{}`)), "M_INVALID_PARAM")
		wantCode(t, u.SetAccountData(t.Context(), alice, "", "m.x", json.RawMessage(`{"a":`)), "M_NOT_JSON")
		wantCode(t, u.SetAccountData(t.Context(), alice, "", "m.x", json.RawMessage(`{"a":"`+strings.Repeat("x", 300000)+`"}`)), "M_TOO_LARGE")
	})
}

func TestIgnoredUsersFollowAccountData(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	register(t, u, "alice")
	for content, want := range map[string]map[matrix.UserID]bool{
		`{"ignored_users":{"@bob:hs2":{},"@alice:hs1":{}}}`: {"@bob:hs2": true},
		`{"ignored_users":{}}`:                              {},
		`{"ignored_users":7}`:                               nil,
	} {
		if err := u.SetAccountData(t.Context(), alice, "", "m.ignored_user_list", json.RawMessage(content)); err != nil {
			t.Fatal(err)
		}
		got, err := u.Ignored(t.Context(), alice)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", content, err, diff)
		}
	}
}

func TestTags(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	register(t, u, "alice")
	if got, err := u.Tags(t.Context(), alice, "!r:hs1"); string(got) != `{"tags":{}}` || err != nil {
		t.Errorf("got %s %v", got, err)
	}
	if err := u.SetTag(t.Context(), alice, "!r:hs1", "m.favourite", json.RawMessage(`{"order":0.5}`)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, u.SetTag(t.Context(), alice, "!r:hs1", "u.x", json.RawMessage(`{"order":2}`)), "M_INVALID_PARAM")
	wantCode(t, u.SetTag(t.Context(), alice, "!r:hs1", "u.x", json.RawMessage(`{"order":"0"}`)), "M_BAD_JSON")
	wantCode(t, u.SetTag(t.Context(), alice, "!r:hs1", strings.Repeat("x", 256), json.RawMessage(`{}`)), "M_INVALID_PARAM")
	if err := u.SetAccountData(t.Context(), alice, "", "m.direct", json.RawMessage(`{"@bob:hs2":["!r:hs1"]}`)); err != nil {
		t.Fatal(err)
	}
	if err := u.CopyRoomAccountData(t.Context(), alice, "!r:hs1", "!new:hs1"); err != nil {
		t.Fatal(err)
	}
	if got, _ := u.Tags(t.Context(), alice, "!new:hs1"); string(got) != `{"tags":{"m.favourite":{"order":0.5}}}` {
		t.Errorf("got %s", got)
	}
	if got, _ := u.AccountData(t.Context(), alice, "", "m.direct"); string(got) != `{"@bob:hs2":["!r:hs1","!new:hs1"]}` {
		t.Errorf("got %s", got)
	}
	for range 2 {
		if err := u.DeleteTag(t.Context(), alice, "!r:hs1", "m.favourite"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := u.Tags(t.Context(), alice, "!r:hs1"); string(got) != `{"tags":{}}` {
		t.Errorf("got %s", got)
	}
}

func TestEqualFiltersShareAnID(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, nil)
		register(t, u, "alice")
		var ids []string
		for _, f := range []string{`{"room":{}}`, `{"presence":{}}`, ` { "room" : {} }`} {
			id, err := u.NewFilter(t.Context(), alice, json.RawMessage(f))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		if diff := cmp.Diff([]string{"0", "1", "0"}, ids); diff != "" {
			t.Error(diff)
		}
		if f, err := u.Filter(t.Context(), alice, "1"); string(f) != `{"presence":{}}` || err != nil {
			t.Errorf("got %s %v", f, err)
		}
		for _, id := range []string{"2", "x", "+1", "99999999999999999999"} {
			_, err := u.Filter(t.Context(), alice, id)
			wantCode(t, err, "M_NOT_FOUND")
		}
		_, err := u.Filter(t.Context(), "@bob:hs1", "1")
		wantCode(t, err, "M_NOT_FOUND")
	})
}
