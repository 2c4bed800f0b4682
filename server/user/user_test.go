package user

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

const secret = "correct horse"

func newUsers(t testing.TB, db *storage.DB, change func(*Config)) (*Users, *clock) {
	cfg := DefaultConfig().CheapPasswords()
	cfg.Registration = "open"
	if change != nil {
		change(&cfg)
	}
	c := &clock{t: time.UnixMilli(1_700_000_000_000)}
	u := New(Options{Config: cfg, ServerName: "hs1", DB: db, Now: c.now})
	t.Cleanup(u.Close)
	return u, c
}

// register makes an account by the way that clients go.
func register(t testing.TB, u *Users, name string) *Login {
	t.Helper()
	password := secret
	l, c, err := u.Register(t.Context(), "", RegisterRequest{Username: &name, Password: &password, Auth: json.RawMessage(`{"type":"m.login.dummy"}`)}, "127.0.0.1")
	if err != nil || c != nil {
		t.Fatalf("register %s: %v %v", name, c, err)
	}
	return l
}

func session(t testing.TB, u *Users, token string) *Session {
	t.Helper()
	s, err := u.Authenticate(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if got := matrix.ErrorCode(err); got != code {
		t.Errorf("got error %v, want %s", err, code)
	}
}

func passwordLogin(name, password string) LoginRequest {
	id, _ := json.Marshal(map[string]string{"type": "m.id.user", "user": name})
	return LoginRequest{Type: "m.login.password", Identifier: id, Password: password}
}

func TestRegisteredUserCanLogInAndOut(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, nil)
		l := register(t, u, "Alice")
		if l.UserID != "@alice:hs1" {
			t.Errorf("got %s: capitals must become small letters", l.UserID)
		}
		for _, name := range []string{"alice", "@alice:hs1", "ALICE"} {
			if _, err := u.Login(t.Context(), passwordLogin(name, secret), ""); err != nil {
				t.Errorf("log in as %s: %v", name, err)
			}
		}
		for _, r := range []LoginRequest{passwordLogin("alice", "wrong"), passwordLogin("nobody", secret),
			passwordLogin("@alice:hs2", secret), {Type: "m.login.password", Identifier: json.RawMessage(`{"type":"m.id.thirdparty"}`)}} {
			_, err := u.Login(t.Context(), r, "")
			wantCode(t, err, "M_FORBIDDEN")
		}
		_, err := u.Login(t.Context(), LoginRequest{Type: "m.login.magic"}, "")
		wantCode(t, err, "M_UNKNOWN")

		s := session(t, u, l.AccessToken)
		if s.User != l.UserID || s.Device != l.DeviceID {
			t.Errorf("got %+v", s)
		}
		if err := u.Logout(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		_, err = u.Authenticate(t.Context(), l.AccessToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
		if devices, _ := u.Devices(t.Context(), l.UserID); len(devices) != 3 {
			t.Errorf("got %d devices, want those of the three logins", len(devices))
		}
		if err := u.LogoutAll(t.Context(), l.UserID); err != nil {
			t.Fatal(err)
		}
		if devices, _ := u.Devices(t.Context(), l.UserID); len(devices) != 0 {
			t.Errorf("got %d devices after logging out everywhere", len(devices))
		}
	})
}

func TestLoginToExistingDeviceEndsItsOldToken(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	first := register(t, u, "alice")
	session(t, u, first.AccessToken)
	r := passwordLogin("alice", secret)
	r.DeviceID = string(first.DeviceID)
	second, err := u.Login(t.Context(), r, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = u.Authenticate(t.Context(), first.AccessToken)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	if s := session(t, u, second.AccessToken); s.Device != first.DeviceID {
		t.Errorf("got device %s, want %s", s.Device, first.DeviceID)
	}
}

func TestRegistrationRefusals(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	register(t, u, "alice")
	password, weak := secret, "short"
	name := func(s string) *string { return &s }
	for _, test := range []struct {
		kind string
		r    RegisterRequest
		code string
	}{
		{"", RegisterRequest{Username: name("alice"), Password: &password}, "M_USER_IN_USE"},
		{"", RegisterRequest{Username: name("al ice"), Password: &password}, "M_INVALID_USERNAME"},
		{"", RegisterRequest{Username: name("_bridge"), Password: &password}, "M_INVALID_USERNAME"},
		{"", RegisterRequest{Username: name(strings.Repeat("a", 255)), Password: &password}, "M_INVALID_USERNAME"},
		{"", RegisterRequest{Username: name("bob"), Password: &weak}, "M_WEAK_PASSWORD"},
		{"", RegisterRequest{Username: name("bob"), Password: &password, DeviceID: "a\x00"}, "M_INVALID_PARAM"},
		{"", RegisterRequest{Username: name("bob"), Password: &password, Auth: json.RawMessage(`[]`)}, "M_BAD_JSON"},
		{"", RegisterRequest{Username: name("bob"), Auth: json.RawMessage(`{"type":"m.login.dummy"}`)}, "M_MISSING_PARAM"},
		{"guest", RegisterRequest{}, "M_GUEST_ACCESS_FORBIDDEN"},
		{"robot", RegisterRequest{}, "M_INVALID_PARAM"},
	} {
		_, c, err := u.Register(t.Context(), test.kind, test.r, "")
		if got := matrix.ErrorCode(err); got != test.code || c != nil {
			t.Errorf("%+v: got %v %v, want %s", test.r, c, err, test.code)
		}
	}
}

func TestRegistrationTokenLimitsUses(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, clock := newUsers(t, db, func(c *Config) { c.Registration = "token" })
		one, soon := int64(1), clock.now().Add(time.Minute).UnixMilli()
		for _, token := range []RegistrationToken{{Token: "once", UsesAllowed: &one}, {Token: "soon", ExpiryMS: &soon}} {
			if _, err := u.NewRegistrationToken(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		_, err := u.NewRegistrationToken(t.Context(), RegistrationToken{Token: "once"})
		wantCode(t, err, "M_INVALID_PARAM")

		try := func(name, token, session string) (*Login, *Challenge) {
			t.Helper()
			password := secret
			auth, _ := json.Marshal(map[string]string{"type": stageToken, "token": token, "session": session})
			l, c, err := u.Register(t.Context(), "user", RegisterRequest{Username: &name, Password: &password, Auth: auth}, "")
			if err != nil {
				t.Fatal(err)
			}
			return l, c
		}
		_, first, _ := u.Register(t.Context(), "", RegisterRequest{}, "")
		if want := []Flow{{[]string{stageToken}}}; first == nil || !cmp.Equal(first.Flows, want) {
			t.Fatalf("got %+v, want flows %v", first, want)
		}
		_, c := try("alice", "wrong", first.Session)
		if c == nil || c.Code != "M_FORBIDDEN" || c.Session != first.Session {
			t.Errorf("got %+v, want M_FORBIDDEN within the session", c)
		}
		if l, c := try("alice", "once", first.Session); c != nil || l.UserID != "@alice:hs1" {
			t.Errorf("got %+v %+v", l, c)
		}
		if _, c := try("bob", "once", ""); c == nil || c.Code != "M_FORBIDDEN" {
			t.Errorf("got %+v: a used-up token must be refused", c)
		}
		if valid, err := u.RegistrationTokenValid(t.Context(), "soon"); !valid || err != nil {
			t.Errorf("got %v %v", valid, err)
		}
		clock.advance(2 * time.Minute)
		if valid, err := u.RegistrationTokenValid(t.Context(), "soon"); valid || err != nil {
			t.Errorf("got %v %v: an expired token must not be valid", valid, err)
		}
		list, err := u.RegistrationTokens(t.Context())
		if err != nil || len(list) != 2 || list[0].Completed != 1 {
			t.Errorf("got %+v %v", list, err)
		}
		if err := u.DeleteRegistrationToken(t.Context(), "once"); err != nil {
			t.Error(err)
		}
		wantCode(t, u.DeleteRegistrationToken(t.Context(), "once"), "M_NOT_FOUND")
	})
}

func TestFirstAdminTokenWorksOnce(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, func(c *Config) { c.Registration = "closed" })
		old, _ := u.FirstAdminToken(t.Context())
		token, err := u.FirstAdminToken(t.Context())
		if err != nil || token == "" || token == old {
			t.Fatalf("got %q %v", token, err)
		}
		password := secret
		try := func(name, token string) (*Login, *Challenge, error) {
			auth, _ := json.Marshal(map[string]string{"type": stageToken, "token": token})
			return u.Register(t.Context(), "", RegisterRequest{Username: &name, Password: &password, Auth: auth}, "")
		}
		if _, c, err := try("mallory", old); c == nil || err != nil {
			t.Errorf("got %v %v: the token of an earlier start must not work", c, err)
		}
		l, c, err := try("root", token)
		if err != nil || c != nil {
			t.Fatal(c, err)
		}
		if s := session(t, u, l.AccessToken); !s.Admin {
			t.Error("the first user is no administrator")
		}
		_, _, err = try("mallory", token)
		wantCode(t, err, "M_FORBIDDEN")
		if token, err := u.FirstAdminToken(t.Context()); token != "" || err != nil {
			t.Errorf("got %q %v: there is an account already", token, err)
		}
	})
}

func TestSharedSecretRegistration(t *testing.T) {
	u, clock := newUsers(t, storagetest.New(t), func(c *Config) { c.RegistrationSharedSecret, c.Registration = "shared", "closed" })
	request := func(name string, admin bool) SharedSecretRequest {
		nonce, err := u.SharedSecretNonce()
		if err != nil {
			t.Fatal(err)
		}
		role := map[bool]string{true: "admin", false: "notadmin"}[admin]
		mac := hmac.New(sha1.New, []byte("shared"))
		fmt.Fprintf(mac, "%s\x00%s\x00%s\x00%s", nonce, name, secret, role)
		return SharedSecretRequest{Nonce: nonce, Username: name, Password: secret, Admin: admin, MAC: hex.EncodeToString(mac.Sum(nil))}
	}
	r := request("Root", true)
	l, err := u.SharedSecretRegister(t.Context(), r, "")
	if err != nil || l.UserID != "@root:hs1" || !session(t, u, l.AccessToken).Admin {
		t.Fatalf("got %+v %v", l, err)
	}
	r.Username = "other"
	_, err = u.SharedSecretRegister(t.Context(), r, "")
	wantCode(t, err, "M_UNKNOWN") // nonce used

	r = request("bob", false)
	r.Admin = true
	_, err = u.SharedSecretRegister(t.Context(), r, "")
	wantCode(t, err, "M_FORBIDDEN") // mac is for another role

	r = request("bob", false)
	clock.advance(2 * nonceLifetime)
	_, err = u.SharedSecretRegister(t.Context(), r, "")
	wantCode(t, err, "M_UNKNOWN") // nonce expired

	_, err = u.SharedSecretRegister(t.Context(), request("b,ob", false), "")
	wantCode(t, err, "M_INVALID_USERNAME")
}

func reauth(password, session string) []byte {
	body, _ := json.Marshal(map[string]any{"new_password": "x", "auth": map[string]any{"type": stagePassword, "session": session,
		"identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": password}})
	return body
}

func TestSensitiveCallsAskForThePassword(t *testing.T) {
	u, clock := newUsers(t, storagetest.New(t), nil)
	s := session(t, u, register(t, u, "alice").AccessToken)
	register(t, u, "bob")

	c, err := u.Reauthenticate(t.Context(), s, "POST /account/password", []byte(`{"new_password":"x"}`))
	if err != nil || c == nil || c.Session == "" || !cmp.Equal(c.Flows, []Flow{{[]string{stagePassword}}}) {
		t.Fatalf("got %+v %v", c, err)
	}
	if c, err := u.Reauthenticate(t.Context(), s, "POST /account/password", reauth("wrong", c.Session)); err != nil || c == nil || c.Code != "M_FORBIDDEN" {
		t.Errorf("got %+v %v", c, err)
	}
	_, err = u.Reauthenticate(t.Context(), s, "POST /account/deactivate", reauth(secret, c.Session))
	wantCode(t, err, "M_FORBIDDEN") // another call
	_, err = u.Reauthenticate(t.Context(), s, "POST /account/password", []byte(strings.Replace(string(reauth(secret, c.Session)), `"x"`, `"y"`, 1)))
	wantCode(t, err, "M_FORBIDDEN") // another body
	if c, err := u.Reauthenticate(t.Context(), s, "POST /account/password", reauth(secret, c.Session)); c != nil || err != nil {
		t.Errorf("got %+v %v", c, err)
	}
	if c, err := u.Reauthenticate(t.Context(), s, "POST /account/password", reauth("wrong", c.Session)); c == nil || err != nil {
		t.Error("a session that has done its work was good for another call")
	}
	_, err = u.Reauthenticate(t.Context(), s, "x", []byte(strings.Replace(string(reauth(secret, "")), "alice", "bob", 1)))
	if !errors.Is(err, errOtherUser) {
		t.Errorf("got %v: another user's password must be refused", err)
	}

	c, _ = u.Reauthenticate(t.Context(), s, "x", nil)
	clock.advance(u.cfg.UIALifetime)
	if c2, err := u.Reauthenticate(t.Context(), s, "x", []byte(`{"auth":{"session":"`+c.Session+`","type":"m.login.password"}}`)); err != nil || c2 == nil || c2.Session == c.Session {
		t.Errorf("got %+v %v: an expired session must be replaced", c2, err)
	}
	c, _ = u.Reauthenticate(t.Context(), s, "x", nil)
	for range maxAttempts {
		_, _ = u.Reauthenticate(t.Context(), s, "x", []byte(`{"auth":{"session":"`+c.Session+`","type":"m.login.password","user":"alice","password":"guess"}}`))
	}
	if u.findUIA(c.Session) != nil {
		t.Error("a session can be tried without end")
	}
}

func TestRunningAuthenticationsAreBounded(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), func(c *Config) { c.UIASessions = 3 })
	for range 10 {
		_, _, _ = u.Register(t.Context(), "", RegisterRequest{}, "")
	}
	if len(u.uia.byID) != 3 || u.uia.age.Len() != 3 {
		t.Errorf("got %d sessions, want 3", len(u.uia.byID))
	}
}

func TestRefreshRotates(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, clock := newUsers(t, db, nil)
		register(t, u, "alice")
		r := passwordLogin("alice", secret)
		r.Refresh = true
		one, err := u.Login(t.Context(), r, "")
		if err != nil || one.RefreshToken == "" || one.ExpiresInMS != time.Hour.Milliseconds() {
			t.Fatalf("got %+v %v", one, err)
		}
		session(t, u, one.AccessToken)

		lost, err := u.Refresh(t.Context(), one.RefreshToken) // the answer gets lost
		if err != nil {
			t.Fatal(err)
		}
		two, err := u.Refresh(t.Context(), one.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.Authenticate(t.Context(), lost.AccessToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
		session(t, u, one.AccessToken) // valid until the new one is used
		if s := session(t, u, two.AccessToken); s.Device != one.DeviceID {
			t.Errorf("got device %s, want %s", s.Device, one.DeviceID)
		}
		_, err = u.Authenticate(t.Context(), one.AccessToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
		_, err = u.Refresh(t.Context(), one.RefreshToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")

		clock.advance(2 * time.Hour)
		_, err = u.Authenticate(t.Context(), two.AccessToken)
		var soft *matrix.Error
		if !errors.As(err, &soft) || soft.Extra["soft_logout"] != true {
			t.Errorf("got %v, want soft logout", err)
		}
		three, err := u.Refresh(t.Context(), two.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		four, err := u.Refresh(t.Context(), three.RefreshToken) // the refresh token alone was used
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.Refresh(t.Context(), two.RefreshToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
		if err := u.DeleteDevices(t.Context(), "@alice:hs1", []matrix.DeviceID{one.DeviceID}); err != nil {
			t.Fatal(err)
		}
		_, err = u.Refresh(t.Context(), four.RefreshToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
	})
}

func TestLoginTokenWorksOnce(t *testing.T) {
	u, clock := newUsers(t, storagetest.New(t), nil)
	register(t, u, "alice")
	token, _, err := u.LoginToken(t.Context(), "@alice:hs1")
	if err != nil {
		t.Fatal(err)
	}
	r := LoginRequest{Type: "m.login.token", Token: token}
	if l, err := u.Login(t.Context(), r, ""); err != nil || l.UserID != "@alice:hs1" {
		t.Errorf("got %+v %v", l, err)
	}
	_, err = u.Login(t.Context(), r, "")
	wantCode(t, err, "M_FORBIDDEN")
	token, lifetime, _ := u.LoginToken(t.Context(), "@alice:hs1")
	clock.advance(lifetime)
	_, err = u.Login(t.Context(), LoginRequest{Type: "m.login.token", Token: token}, "")
	wantCode(t, err, "M_FORBIDDEN")
}

func TestOpenIDToken(t *testing.T) {
	u, clock := newUsers(t, storagetest.New(t), nil)
	register(t, u, "alice")
	token, err := u.NewOpenIDToken(t.Context(), "@alice:hs1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if who, err := u.OpenIDUser(t.Context(), token.AccessToken); who != "@alice:hs1" || err != nil {
			t.Errorf("got %s %v", who, err)
		}
	}
	_, err = u.Login(t.Context(), LoginRequest{Type: "m.login.token", Token: token.AccessToken}, "")
	wantCode(t, err, "M_FORBIDDEN")
	_, err = u.Authenticate(t.Context(), token.AccessToken)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	clock.advance(openIDLifetime)
	_, err = u.OpenIDUser(t.Context(), token.AccessToken)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
}

func TestPasswordChangeEndsOtherSessions(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	mine := session(t, u, register(t, u, "alice").AccessToken)
	other, _ := u.Login(t.Context(), passwordLogin("alice", secret), "")
	session(t, u, other.AccessToken)
	wantCode(t, u.ChangePassword(t.Context(), mine, "short", true), "M_WEAK_PASSWORD")
	if err := u.ChangePassword(t.Context(), mine, "another horse", true); err != nil {
		t.Fatal(err)
	}
	_, err := u.Authenticate(t.Context(), other.AccessToken)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	_, err = u.Login(t.Context(), passwordLogin("alice", secret), "")
	wantCode(t, err, "M_FORBIDDEN")
	if _, err := u.Login(t.Context(), passwordLogin("alice", "another horse"), ""); err != nil {
		t.Error(err)
	}
}

func TestDeactivatedAccountIsGoneAndItsNameTaken(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, _ := newUsers(t, db, nil)
		l := register(t, u, "alice")
		session(t, u, l.AccessToken)
		if _, err := u.SetProfileField(t.Context(), l.UserID, "displayname", json.RawMessage(`"Alice"`)); err != nil {
			t.Fatal(err)
		}
		if err := u.Deactivate(t.Context(), l.UserID, true); err != nil {
			t.Fatal(err)
		}
		_, err := u.Authenticate(t.Context(), l.AccessToken)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
		_, err = u.Login(t.Context(), passwordLogin("alice", secret), "")
		wantCode(t, err, "M_FORBIDDEN")
		_, err = u.Login(t.Context(), passwordLogin("alice", ""), "")
		wantCode(t, err, "M_FORBIDDEN")
		_, err = u.LocalProfile(t.Context(), l.UserID)
		wantCode(t, err, "M_NOT_FOUND")
		wantCode(t, u.Available(t.Context(), "alice"), "M_USER_IN_USE")
		if exists, err := u.Exists(t.Context(), l.UserID); exists || err != nil {
			t.Errorf("got %v %v", exists, err)
		}
		if a, err := u.Account(t.Context(), l.UserID); err != nil || !a.Deactivated || !a.Erased || a.HasPassword {
			t.Errorf("got %+v %v", a, err)
		}
	})
}

func TestFlagsTakeEffectOnOpenSessions(t *testing.T) {
	u, _ := newUsers(t, storagetest.New(t), nil)
	l := register(t, u, "alice")
	session(t, u, l.AccessToken)
	for _, set := range []func(context.Context, matrix.UserID, bool) error{u.SetLocked, u.SetSuspended, u.SetAdmin} {
		if err := set(t.Context(), l.UserID, true); err != nil {
			t.Fatal(err)
		}
		wantCode(t, set(t.Context(), "@nobody:hs1", true), "M_NOT_FOUND")
	}
	if s := session(t, u, l.AccessToken); !s.Locked || !s.Suspended || !s.Admin {
		t.Errorf("got %+v", s)
	}
	_, err := u.Login(t.Context(), passwordLogin("alice", secret), "")
	wantCode(t, err, "M_USER_LOCKED")
}

func TestDevices(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		u, clock := newUsers(t, db, func(c *Config) { c.MaxDevices = 2 })
		l := register(t, u, "alice")
		s := session(t, u, l.AccessToken)
		if err := u.RenameDevice(t.Context(), s.User, s.Device, "my \x00phone\xff"); err != nil {
			t.Fatal(err)
		}
		clock.advance(time.Minute)
		u.Seen(s, "10.0.0.1", "Element")
		check := func() {
			t.Helper()
			d, err := u.Device(t.Context(), s.User, s.Device)
			if err != nil || *d.DisplayName != "my phone\ufffd" || d.LastSeenIP != "10.0.0.1" || d.LastSeenMS != clock.now().UnixMilli() {
				t.Errorf("got %+v %v", d, err)
			}
		}
		check()
		u.flushSeen(t.Context())
		check()
		wantCode(t, u.RenameDevice(t.Context(), s.User, "other", "x"), "M_NOT_FOUND")
		_, err := u.Device(t.Context(), "@bob:hs1", s.Device)
		wantCode(t, err, "M_NOT_FOUND")
		if _, err := u.Login(t.Context(), passwordLogin("alice", secret), ""); err != nil {
			t.Fatal(err)
		}
		_, err = u.Login(t.Context(), passwordLogin("alice", secret), "")
		wantCode(t, err, "M_RESOURCE_LIMIT_EXCEEDED")
	})
}

func BenchmarkAuthenticateWarm(b *testing.B) {
	u, _ := newUsers(b, storagetest.New(b), nil)
	l := register(b, u, "alice")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := u.Authenticate(context.Background(), l.AccessToken); err != nil {
				b.Error(err)
			}
		}
	})
}

func FuzzParsePHC(f *testing.F) {
	f.Add(hashPassword("x", DefaultConfig().CheapPasswords()))
	f.Fuzz(func(t *testing.T, s string) { _, _ = parsePHC(s) })
}
