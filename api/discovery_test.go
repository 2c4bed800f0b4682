package api

import (
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/user"
)

func TestDiscovery(t *testing.T) {
	cfg := quiet()
	w := newWorld(t, cfg)
	s, alice, root := w.stranger(), w.person("alice"), w.account(user.NewAccount{Localpart: "root", Admin: true})
	versions := s.must(get, "/_matrix/client/versions", nil)
	if got := versions["versions"].([]any); len(got) == 0 || got[len(got)-1] != "v1.19" {
		t.Errorf("versions: got %v", got)
	}
	for name := range versions["unstable_features"].(map[string]any) {
		if name == "" {
			t.Error("a feature has no name")
		}
	}
	for _, path := range []string{"/.well-known/matrix/client", "/.well-known/matrix/server", "/.well-known/matrix/support"} {
		if got := ask(w.handler, get, path, ""); got.Code != 404 || errcode(t, got) != "M_NOT_FOUND" {
			t.Errorf("%s without configuration: got %d %s", path, got.Code, got.Body)
		}
	}
	w.api.cfg.PublicURL, w.api.cfg.FederationAddress, w.api.cfg.SupportPage = "https://chat.example.org/", "fed.example.org:443", "https://help.example.org"
	w.api.cfg.RTCFoci = []RTCFocus{{ServiceURL: "https://rtc.example.org"}}
	for path, want := range map[string]string{
		"/.well-known/matrix/client":  `"base_url":"https://chat.example.org"`,
		"/.well-known/matrix/server":  `{"m.server":"fed.example.org:443"}`,
		"/.well-known/matrix/support": `"support_page":"https://help.example.org"`,
	} {
		if got := ask(w.handler, get, path, ""); got.Code != 200 || !strings.Contains(got.Body.String(), want) {
			t.Errorf("%s: got %d %s, want %s", path, got.Code, got.Body, want)
		}
	}
	if got := alice.ask(get, "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", nil).Body.String(); !strings.Contains(got, "https://rtc.example.org") {
		t.Errorf("transports: got %s", got)
	}
	capabilities := alice.must(get, "/capabilities", nil)["capabilities"].(map[string]any)
	if rooms := capabilities["m.room_versions"].(map[string]any); rooms["default"] != "11" || len(rooms["available"].(map[string]any)) != 12 {
		t.Errorf("room versions: got %v", rooms)
	}
	if capabilities["m.account_moderation"] != nil {
		t.Error("who is no administrator is told of moderation")
	}
	if got := root.must(get, "/capabilities", nil)["capabilities"].(map[string]any); got["m.account_moderation"] == nil {
		t.Errorf("administrator: got %v", got)
	}
	if got := alice.must(get, "/thirdparty/protocols", nil); len(got) != 0 {
		t.Errorf("protocols: got %v", got)
	}
	alice.refused(get, "/thirdparty/protocol/irc", nil, 404, "M_NOT_FOUND")
}

func TestTURNPasswordsAreOfTheUserAndEnd(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	if got := alice.must(get, "/voip/turnServer", nil); len(got) != 0 {
		t.Errorf("without TURN: got %v", got)
	}
	w.api.Now = func() time.Time { return time.Unix(1_000_000, 0) }
	w.api.cfg.TURN = TURN{URIs: []string{"turn:turn.example.org"}, SharedSecret: "n0rth", Lifetime: time.Hour}
	got := alice.must(get, "/voip/turnServer", nil)
	// echo -n 1003600:@alice:test | openssl dgst -sha1 -hmac n0rth -binary | base64
	if got["username"] != "1003600:@alice:test" || got["ttl"] != 3600.0 || got["password"] != "KeYdX/CZLFwu4NVAngGcgdRiSQc=" {
		t.Errorf("got %v", got)
	}
}

func TestLoginsToOneAccountAreLimitedFromWherever(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RateLimits.LoginAccount = Rate{PerSecond: 0.001, Burst: 3}
	cfg.RateLimits.LoginAddress = Rate{PerSecond: 1000, Burst: 1000}
	w := newWorld(t, cfg)
	w.person("alice")
	for _, name := range []string{"alice", "@alice:test", "ALICE"} {
		w.stranger().refused(post, "/login", password(name, "guess"), 403, "M_FORBIDDEN")
	}
	w.stranger().refused(post, "/login", password("Alice", "password of alice"), 429, "M_LIMIT_EXCEEDED")
	w.stranger().refused(post, "/login", password("bob", "guess"), 403, "M_FORBIDDEN")
}
