package federation

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"parley.im/parley/server/matrix"
)

// statement is what a server says about its keys, signed with the given ones.
func statement(t *testing.T, server matrix.ServerName, validUntil time.Time, used, old map[matrix.KeyID]*matrix.SigningKey, signers ...*matrix.SigningKey) []byte {
	t.Helper()
	said := serverKeys{ServerName: server, ValidUntil: validUntil.UnixMilli(), VerifyKeys: map[matrix.KeyID]verifyKey{}, OldKeys: map[matrix.KeyID]oldKey{}}
	for id, k := range used {
		said.VerifyKeys[id] = verifyKey{base64.RawStdEncoding.EncodeToString(k.Public().Bytes())}
	}
	for id, k := range old {
		said.OldKeys[id] = oldKey{base64.RawStdEncoding.EncodeToString(k.Public().Bytes()), 1_000_000_000_000}
	}
	raw, err := json.Marshal(said)
	for _, k := range signers {
		if err == nil {
			raw, err = matrix.SignJSON(raw, server, k)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// keyServer answers only GET /_matrix/key/v2/server, with what say returns.
func keyServer(t *testing.T, a *authority, say func(name matrix.ServerName) []byte) (name matrix.ServerName, asked *int) {
	asked = new(int)
	s := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_matrix/key/v2/server" {
			w.WriteHeader(404)
			return
		}
		*asked++
		w.Write(say(name))
	}), "127.0.0.1")
	name = matrix.ServerName(s.Listener.Addr().String())
	return name, asked
}

func TestKeyValidity(t *testing.T) {
	a := newAuthority(t)
	used, old, unsigned := newKey(t, "ed25519:used"), newKey(t, "ed25519:old"), newKey(t, "ed25519:unsigned")
	now := time.Now().Truncate(time.Millisecond)
	server, asked := keyServer(t, a, func(name matrix.ServerName) []byte {
		return statement(t, name, now.Add(30*24*time.Hour), map[matrix.KeyID]*matrix.SigningKey{used.ID: used, unsigned.ID: unsigned}, map[matrix.KeyID]*matrix.SigningKey{old.ID: old}, used)
	})
	clock := now
	p := newTestServer(t, a, func(o *Options) { o.Now = func() time.Time { return clock } })
	for _, tt := range []struct {
		id      matrix.KeyID
		validAt time.Time
		ok      bool
	}{
		{used.ID, now, true},
		{used.ID, time.Time{}, true},
		{used.ID, now.Add(7*24*time.Hour - time.Second), true},
		{used.ID, now.Add(8 * 24 * time.Hour), false}, // whatever the server says, no longer than seven days
		{used.ID, now.Add(-1000 * time.Hour), true},
		{old.ID, time.UnixMilli(999_999_999_999), true},
		{old.ID, time.UnixMilli(1_000_000_000_001), false},
		{old.ID, time.Time{}, true},
		{unsigned.ID, now, false}, // it has not signed the statement
		{"ed25519:other", now, false},
		{"rsa:used", now, false},
	} {
		key, err := p.Key(context.Background(), server, tt.id, tt.validAt)
		if (err == nil) != tt.ok {
			t.Errorf("%s at %s: %v", tt.id, tt.validAt, err)
		}
		if err == nil && tt.id == used.ID && string(key.Bytes()) != string(used.Public().Bytes()) {
			t.Error("another key")
		}
	}
	if *asked != 1 {
		t.Errorf("asked %d times for keys that it does not have", *asked)
	}
	// The keys survive a restart, and are asked for again once they are no longer valid.
	again := newKeyring(p.Client)
	if _, err := again.Key(context.Background(), server, used.ID, now); err != nil || *asked != 1 {
		t.Error(err, *asked)
	}
	clock = now.Add(8 * 24 * time.Hour)
	if _, err := again.Key(context.Background(), server, used.ID, clock); err != nil || *asked != 2 {
		t.Error(err, *asked)
	}
}

func TestBadStatementsOfKeysAreNotBelieved(t *testing.T) {
	a := newAuthority(t)
	key, other := newKey(t, "ed25519:1"), newKey(t, "ed25519:1")
	keys := map[matrix.KeyID]*matrix.SigningKey{key.ID: key}
	soon := time.Now().Add(time.Hour)
	for name, say := range map[string]func(matrix.ServerName) []byte{
		"unsigned":        func(n matrix.ServerName) []byte { return statement(t, n, soon, keys, nil) },
		"of another":      func(n matrix.ServerName) []byte { return statement(t, "other.example", soon, keys, nil, key) },
		"signed by other": func(n matrix.ServerName) []byte { return statement(t, n, soon, keys, nil, other) },
		"no longer valid": func(n matrix.ServerName) []byte { return statement(t, n, time.Now().Add(-time.Hour), keys, nil, key) },
		"no JSON":         func(n matrix.ServerName) []byte { return []byte("<html>") },
		"too large":       func(n matrix.ServerName) []byte { return []byte(`{"x":"` + strings.Repeat("y", maxKeyAnswer) + `"}`) },
		"old keys only":   func(n matrix.ServerName) []byte { return statement(t, n, soon, nil, keys, key) },
		"more keys than a": func(n matrix.ServerName) []byte {
			many := map[matrix.KeyID]*matrix.SigningKey{key.ID: key}
			for i := range maxKeysPerAnswer {
				many[matrix.KeyID(fmt.Sprintf("ed25519:x%d", i))] = other
			}
			return statement(t, n, soon, many, nil, key)
		},
	} {
		server, _ := keyServer(t, a, say)
		p := newTestServer(t, a)
		if _, err := p.Key(context.Background(), server, key.ID, time.Now()); err == nil {
			t.Errorf("%s: believed", name)
		}
	}
}

func TestOwnKeysArePublishedSigned(t *testing.T) {
	a := newAuthority(t)
	old := newKey(t, "ed25519:before")
	p := newTestServer(t, a, func(o *Options) {
		o.OldKeys = []OldKey{{ID: old.ID, Key: old.Public(), ExpiredAt: time.UnixMilli(1_600_000_000_000)}}
	})
	q := newTestServer(t, a)
	if _, err := q.Key(context.Background(), p.name, p.o.Key.ID, time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := q.Key(context.Background(), p.name, old.ID, time.UnixMilli(1_500_000_000_000)); err != nil {
		t.Error(err)
	}
	if _, err := q.Key(context.Background(), p.name, old.ID, time.Now()); err == nil {
		t.Error("an expired key is good for today")
	}
	// Our own keys need no network.
	if _, err := p.Key(context.Background(), p.name, old.ID, time.UnixMilli(1_500_000_000_000)); err != nil {
		t.Error(err)
	}
	if _, err := p.Key(context.Background(), p.name, old.ID, time.Now()); err == nil {
		t.Error("our own expired key is good for today")
	}
}

func TestNotary(t *testing.T) {
	a := newAuthority(t)
	key := newKey(t, "ed25519:1")
	away := false
	origin, _ := keyServer(t, a, func(n matrix.ServerName) []byte {
		if away {
			return nil
		}
		return statement(t, n, time.Now().Add(time.Hour), map[matrix.KeyID]*matrix.SigningKey{key.ID: key}, nil, key)
	})
	notary := newTestServer(t, a)
	get := func(path string) []json.RawMessage {
		t.Helper()
		var answer struct {
			Keys []json.RawMessage `json:"server_keys"`
		}
		r, _ := http.NewRequest("GET", notary.server.URL+path, nil)
		status, body := send(t, notary, r)
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
			t.Fatal(status, body)
		}
		return answer.Keys
	}
	answer := get("/_matrix/key/v2/query/" + string(origin))
	if len(answer) != 1 {
		t.Fatal(answer)
	}
	if err := matrix.VerifyJSON(answer[0], string(notary.name), notary.o.Key.ID, notary.o.Key.Public()); err != nil {
		t.Error("the notary's signature:", err)
	}
	if err := matrix.VerifyJSON(answer[0], string(origin), key.ID, key.Public()); err != nil {
		t.Error("the origin's signature:", err)
	}
	if got := get("/_matrix/key/v2/query/" + string(notary.name)); len(got) != 1 {
		t.Error("about itself:", got)
	}
	if got := get("/_matrix/key/v2/query/127.0.0.1:1"); len(got) != 0 {
		t.Error("about nobody:", got)
	}

	// A client of the notary learns the keys of a server that is away, and believes only what both have signed.
	away = true
	trusting := newTestServer(t, a, func(o *Options) { o.Config.Notaries = []string{string(notary.name)} })
	if _, err := trusting.Key(context.Background(), origin, key.ID, time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := newTestServer(t, a).Key(context.Background(), origin, key.ID, time.Now()); err == nil {
		t.Error("there is a default notary")
	}
	liar := newTestServer(t, a)
	engine := gin.New()
	engine.NoRoute(func(g *gin.Context) {
		forged := statement(t, origin, time.Now().Add(time.Hour), map[matrix.KeyID]*matrix.SigningKey{key.ID: key}, nil, key)
		body, _ := json.Marshal(map[string]any{"server_keys": []json.RawMessage{forged}}) // not signed by the notary
		g.Data(200, "application/json", body)
	})
	liar.handle(engine)
	deceived := newTestServer(t, a, func(o *Options) { o.Config.Notaries = []string{string(liar.name)} })
	if _, err := deceived.Key(context.Background(), origin, key.ID, time.Now()); err == nil {
		t.Error("believed a notary that has not signed")
	}
}

func TestNotaryPost(t *testing.T) {
	a := newAuthority(t)
	p, q := newTestServer(t, a), newTestServer(t, a)
	post := func(body string) (int, string) {
		r, _ := http.NewRequest("POST", p.server.URL+"/_matrix/key/v2/query", strings.NewReader(body))
		return send(t, p, r)
	}
	status, body := post(`{"server_keys":{"` + string(q.name) + `":{"ed25519:a":{"minimum_valid_until_ts":1}},"` + string(p.name) + `":{}}}`)
	if status != 200 || strings.Count(body, `"verify_keys"`) != 2 {
		t.Error(status, body)
	}
	var many []string
	for i := range maxQueriedServers + 1 {
		many = append(many, fmt.Sprintf(`"s%d.example":{}`, i))
	}
	for _, bad := range []string{``, `[]`, `{`, `{"server_keys":1}`, `{}`, `{"server_keys":{"not a name":{}}}`, `{"server_keys":{` + strings.Join(many, ",") + `}}`} {
		if status, body := post(bad); status != 400 {
			t.Errorf("%.40s: %d %s", bad, status, body)
		}
	}
}

func TestServerThatDoesNotAnswerIsGivenARest(t *testing.T) {
	a := newAuthority(t)
	clock := time.Now()
	p := newTestServer(t, a, func(o *Options) { o.Now = func() time.Time { return clock }; o.Config.MaxBackoff = 10 * time.Minute })
	const nobody = "127.0.0.1:1"
	try := func() error {
		return p.call(context.Background(), request{server: nobody, method: "GET", path: "/x"}, nil)
	}
	var pauses []time.Duration
	for range 14 {
		if err := try(); err == nil {
			t.Fatal("somebody listens on port 1")
		}
		wait := p.peers.retryAt(nobody).Sub(clock)
		pauses = append(pauses, wait)
		if !p.peers.backingOff(nobody) {
			t.Fatal("no pause")
		}
		if err := try(); err == nil || !strings.Contains(err.Error(), ErrBackingOff.Error()) {
			t.Errorf("in the pause: %v", err)
		}
		clock = clock.Add(wait + time.Millisecond)
	}
	if pauses[0] > 2*time.Second || pauses[3] < 8*time.Second || pauses[13] < 10*time.Minute || pauses[13] > 13*time.Minute {
		t.Errorf("pauses %v", pauses)
	}
	// A restart does not forget.
	again, err := loadPeers(context.Background(), p.o)
	if err != nil || again.byServer[nobody].failures != 14 {
		t.Errorf("after a restart: %+v, %v", again.byServer[nobody], err)
	}
	// Hearing from it ends the pause, and an answer all memory of it.
	try()
	alive := 0
	p.peers.onAlive(func(matrix.ServerName) { alive++ })
	clock = clock.Add(heardAgain)
	p.peers.heard(nobody)
	if p.peers.backingOff(nobody) || alive != 1 {
		t.Error("still backing off, or nobody told", alive)
	}
	p.peers.answered(context.Background(), nobody)
	known, err := p.o.DB.Destinations(context.Background())
	if err != nil || len(known) != 1 || known[0].Failures != 0 || !known[0].RetryAt.IsZero() {
		t.Errorf("%+v %v", known, err)
	}
}

func TestLimitOnOneRequestIsNoFailureOfTheServer(t *testing.T) {
	a := newAuthority(t)
	busy := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "90")
		w.WriteHeader(429)
		fmt.Fprint(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down"}`)
	}), "127.0.0.1")
	p := newTestServer(t, a)
	name := matrix.ServerName(busy.Listener.Addr().String())
	err := p.call(context.Background(), request{server: name, method: "GET", path: "/x"}, nil)
	var refusal *matrix.Error
	if !errors.As(err, &refusal) || refusal.Code != "M_LIMIT_EXCEEDED" || refusal.RetryAfter != 90*time.Second || p.peers.backingOff(name) {
		t.Error(err, p.peers.retryAt(name))
	}
}
