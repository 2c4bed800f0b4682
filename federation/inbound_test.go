package federation

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

const echoPath = "/_matrix/federation/v1/echo/a%2Fb?q=1%2B2"

// signedRequest is a PUT of alice's server to bob's, to be spoilt by the test and sent as it is.
func signedRequest(t *testing.T, from, to *testServer, body string) *http.Request {
	t.Helper()
	r, err := from.newRequest(context.Background(), request{server: to.name, method: "PUT", path: echoPath, body: []byte(body)}, target{host: string(to.name)})
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Host = string(to.name)
	return r
}

func send(t *testing.T, to *testServer, r *http.Request) (status int, body string) {
	t.Helper()
	answer, err := to.server.Client().Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(raw)
}

func setBody(r *http.Request, body string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	r.GetBody = nil
}

func TestSignedRequestIsAcceptedAndAttributed(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	bob.echo()
	var answer struct {
		Origin string `json:"origin"`
		Body   string `json:"body"`
	}
	if err := alice.call(context.Background(), request{server: bob.name, method: "PUT", path: echoPath, body: []byte(`{"a":1}`)}, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Origin != string(alice.name) || answer.Body != `{"a":1}` {
		t.Errorf("got %+v", answer)
	}
	for _, r := range bob.requests() {
		for _, h := range []string{"Authorization", "Signature", "Digest", "Date"} {
			if r.Header.Get(h) == "" {
				t.Errorf("%s %s went out without %s", r.Method, r.URL, h)
			}
		}
	}
	// What was learnt on the way: alice signs.
	if !bob.peers.signs(alice.name) {
		t.Error("not noted that the peer signs")
	}
}

func TestSpoiltRequestsAreRefused(t *testing.T) {
	a := newAuthority(t)
	alice, bob, carol := newTestServer(t, a), newTestServer(t, a), newTestServer(t, a)
	h := bob.echo()
	resign := func(r *http.Request, p *testServer) { // with the HTTP Signature of p, as it is now
		for _, name := range []string{"Signature", "Digest", "Date", nonceHeader} {
			r.Header.Del(name)
		}
		body, _ := io.ReadAll(r.Body)
		setBody(r, string(body))
		if err := signRequest(r, body, p.name, p.o.Key); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(r *http.Request, header, old, new string) {
		was := r.Header.Get(header)
		if !strings.Contains(was, old) {
			t.Fatalf("%s %q has no %q", header, was, old)
		}
		r.Header.Set(header, strings.Replace(was, old, new, 1))
	}
	for name, tt := range map[string]struct {
		spoil func(r *http.Request)
		code  string
	}{
		"nothing":                   {func(r *http.Request) {}, ""},
		"no Authorization":          {func(r *http.Request) { r.Header.Del("Authorization") }, "M_UNAUTHORIZED"},
		"two Authorizations":        {func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, "M_UNAUTHORIZED"},
		"tampered body":             {func(r *http.Request) { setBody(r, `{"a":2}`) }, "M_UNAUTHORIZED"},
		"tampered body, new Digest": {func(r *http.Request) { setBody(r, `{"a":2}`); r.Header.Set("Digest", digestOf([]byte(`{"a":2}`))) }, "M_UNAUTHORIZED"},
		"body with a space more":    {func(r *http.Request) { setBody(r, `{"a": 1}`) }, "M_UNAUTHORIZED"},
		"other path":                {func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/_matrix/federation/v1/echo/a/b", "" }, "M_UNAUTHORIZED"},
		"other query":               {func(r *http.Request) { r.URL.RawQuery = "q=1%2B3" }, "M_UNAUTHORIZED"},
		"other method":              {func(r *http.Request) { r.Method = "POST" }, "M_UNAUTHORIZED"},
		"other host":                {func(r *http.Request) { r.Host = "elsewhere.example"; h.hosts = nil }, "M_UNAUTHORIZED"},
		"no Digest":                 {func(r *http.Request) { r.Header.Del("Digest") }, "M_UNAUTHORIZED"},
		"two Digests":               {func(r *http.Request) { r.Header.Add("Digest", digestOf(nil)) }, "M_UNAUTHORIZED"},
		"no Date":                   {func(r *http.Request) { r.Header.Del("Date") }, "M_UNAUTHORIZED"},
		"other Date": {func(r *http.Request) {
			r.Header.Set("Date", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))
		}, "M_UNAUTHORIZED"},
		"Date of 2001":             {func(r *http.Request) { r.Header.Set("Date", "Mon, 01 Jan 2001 00:00:00 GMT") }, "M_UNAUTHORIZED"},
		"signature by another key": {func(r *http.Request) { resign(r, carol); edit(r, "Signature", string(carol.name), string(alice.name)) }, "M_UNAUTHORIZED"},
		"signature of another":     {func(r *http.Request) { resign(r, carol) }, "M_UNAUTHORIZED"},
		"two Signatures":           {func(r *http.Request) { r.Header.Add("Signature", r.Header.Get("Signature")) }, "M_UNAUTHORIZED"},
		"keyId twice": {func(r *http.Request) {
			edit(r, "Signature", `keyId=`, `keyId="`+string(carol.name)+`|ed25519:a",keyId=`)
		}, "M_UNAUTHORIZED"},
		"longer validity":       {func(r *http.Request) { edit(r, "Signature", "expires=1", "expires=2") }, "M_UNAUTHORIZED"},
		"covers less":           {func(r *http.Request) { edit(r, "Signature", "(request-target) ", "") }, "M_UNAUTHORIZED"},
		"unknown signature key": {func(r *http.Request) { edit(r, "Signature", "|ed25519:a", "|ed25519:b") }, "M_UNAUTHORIZED"},
		"X-Matrix of another": {func(r *http.Request) {
			edit(r, "Authorization", `origin="`+string(alice.name), `origin="`+string(carol.name))
		}, "M_UNAUTHORIZED"},
		"X-Matrix key unknown": {func(r *http.Request) { edit(r, "Authorization", "ed25519:a", "ed25519:zz") }, "M_UNAUTHORIZED"},
		"X-Matrix destination": {func(r *http.Request) {
			edit(r, "Authorization", `destination="`+string(bob.name), `destination="`+string(carol.name))
		}, "M_UNAUTHORIZED"},
		"X-Matrix origin twice":      {func(r *http.Request) { edit(r, "Authorization", `origin=`, `origin="`+string(carol.name)+`",origin=`) }, "M_UNAUTHORIZED"},
		"X-Matrix signature garbled": {func(r *http.Request) { edit(r, "Authorization", `sig="`, `sig="AAAA`) }, "M_UNAUTHORIZED"},
		"from ourselves": {func(r *http.Request) {
			edit(r, "Authorization", `origin="`+string(alice.name), `origin="`+string(bob.name))
		}, "M_UNAUTHORIZED"},
	} {
		t.Run(name, func(t *testing.T) {
			h.hosts = []string{string(bob.name)}
			r := signedRequest(t, alice, bob, `{"a":1}`)
			tt.spoil(r)
			status, body := send(t, bob, r)
			if tt.code == "" {
				if status != 200 {
					t.Errorf("got %d %s", status, body)
				}
			} else if status != 401 || !strings.Contains(body, tt.code) {
				t.Errorf("got %d %s, want %s", status, body, tt.code)
			}
		})
	}
}

func TestReplayIsRefused(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	bob.echo()
	r := signedRequest(t, alice, bob, `{}`)
	again := r.Clone(context.Background())
	setBody(again, `{}`)
	if status, body := send(t, bob, r); status != 200 {
		t.Fatal(status, body)
	}
	if status, body := send(t, bob, again); status != 401 || !strings.Contains(body, "used before") {
		t.Errorf("replay: got %d %s", status, body)
	}
	// The same question asked anew in the same second is no replay.
	for range 3 {
		if status, body := send(t, bob, signedRequest(t, alice, bob, `{}`)); status != 200 {
			t.Error(status, body)
		}
	}
}

func TestStaleRequestIsRefused(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	h := bob.echo()
	for _, later := range []time.Duration{-20 * time.Second, 71 * time.Second, time.Hour} {
		h.now = func() time.Time { return time.Now().Add(later) }
		if status, body := send(t, bob, signedRequest(t, alice, bob, `{}`)); status != 401 || !strings.Contains(body, "clock") {
			t.Errorf("%s: got %d %s", later, status, body)
		}
	}
}

func TestSignaturePolicy(t *testing.T) {
	a := newAuthority(t)
	strip := func(r *http.Request) *http.Request {
		for _, name := range []string{"Signature", "Digest", "Date", nonceHeader} {
			r.Header.Del(name)
		}
		return r
	}
	for _, tt := range []struct {
		policy        string
		before, after int // status of a plain X-Matrix request before and after a signed one
	}{{policyAccept, 200, 200}, {policyOnFirstUse, 200, 401}, {policyRequired, 401, 401}} {
		t.Run(tt.policy, func(t *testing.T) {
			alice := newTestServer(t, a)
			bob := newTestServer(t, a, func(o *Options) { o.Config.Signatures = tt.policy })
			bob.echo()
			if status, body := send(t, bob, strip(signedRequest(t, alice, bob, `{}`))); status != tt.before {
				t.Errorf("before: got %d %s", status, body)
			}
			if status, body := send(t, bob, signedRequest(t, alice, bob, `{}`)); status != 200 {
				t.Errorf("signed: got %d %s", status, body)
			}
			if status, body := send(t, bob, strip(signedRequest(t, alice, bob, `{}`))); status != tt.after {
				t.Errorf("after: got %d %s", status, body)
			}
			// It is known for good, not only in memory.
			again, err := loadPeers(context.Background(), bob.o)
			if err != nil || !again.signs(alice.name) {
				t.Errorf("after a restart: %v, signs %v", err, again.signs(alice.name))
			}
		})
	}
	t.Run("per peer", func(t *testing.T) {
		alice, carol := newTestServer(t, a), newTestServer(t, a)
		bob := newTestServer(t, a, func(o *Options) {
			o.Config.Signatures = policyAccept
			o.Config.Peers = []Peer{{Server: string(alice.name), Signatures: policyRequired}}
		})
		bob.echo()
		if status, _ := send(t, bob, strip(signedRequest(t, alice, bob, `{}`))); status != 401 {
			t.Errorf("alice: %d", status)
		}
		if status, _ := send(t, bob, strip(signedRequest(t, carol, bob, `{}`))); status != 200 {
			t.Errorf("carol: %d", status)
		}
	})
}

func TestPrivateFederationTalksToListedServersOnly(t *testing.T) {
	a := newAuthority(t)
	alice := newTestServer(t, a)
	bob := newTestServer(t, a, func(o *Options) { o.Config.Allow = []string{"partner.example"} })
	bob.echo()
	if status, body := send(t, bob, signedRequest(t, alice, bob, `{}`)); status != 403 || !strings.Contains(body, "M_FORBIDDEN") {
		t.Errorf("in: %d %s", status, body)
	}
	if _, err := bob.Event(context.Background(), alice.name, "$x"); !errors.Is(err, room.ErrNotPermitted) {
		t.Errorf("out: %v", err)
	}
	if n := len(alice.requests()); n != 0 {
		t.Errorf("%d requests reached a server that is not listed", n)
	}
}

func TestBodyOverTheLimitIsRefused(t *testing.T) {
	a := newAuthority(t)
	alice := newTestServer(t, a)
	bob := newTestServer(t, a, func(o *Options) { o.Config.MaxRequestBytes = 1 << 20 })
	bob.echo()
	big := `{"a":"` + strings.Repeat("x", 1<<20) + `"}`
	if status, body := send(t, bob, signedRequest(t, alice, bob, big)); status != 413 || !strings.Contains(body, "M_TOO_LARGE") {
		t.Errorf("got %d %s", status, body)
	}
	r := signedRequest(t, alice, bob, big)
	r.ContentLength = -1 // chunked
	if status, _ := send(t, bob, r); status != 413 {
		t.Errorf("chunked: got %d", status)
	}
}

func TestEveryRouteWithoutAuthentication(t *testing.T) {
	a := newAuthority(t)
	bob := newTestServer(t, a)
	h := &handler{HandlerOptions: HandlerOptions{Client: bob.Client}}
	for _, r := range h.routes() {
		if !r.signed {
			continue
		}
		path := r.path
		for _, p := range []string{":roomID", ":eventID", ":userID", ":txnID", ":mediaID"} {
			path = strings.ReplaceAll(path, p, "x")
		}
		for _, auth := range []string{"", "Bearer x", "X-Matrix", `X-Matrix origin="`, `X-Matrix origin="a.example",key="ed25519:a",sig="AAAA"`} {
			req, _ := http.NewRequest(r.method, bob.server.URL+path, bytes.NewReader([]byte("{")))
			if auth != "" {
				req.Header.Set("Authorization", auth)
			}
			if status, body := send(t, bob, req); status != 401 || !strings.Contains(body, "M_UNAUTHORIZED") {
				t.Errorf("%s %s with %q: %d %s", r.method, path, auth, status, body)
			}
		}
	}
}

func TestUnknownEndpoints(t *testing.T) {
	a := newAuthority(t)
	bob := newTestServer(t, a)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/_matrix/federation/v1/nothing", 404},
		{"GET", "/_matrix/federation/v9/version", 404},
		{"PUT", "/_matrix/federation/v3/send_join/x/y", 404},
		{"POST", "/_matrix/federation/v1/version", 405},
		{"GET", "/_matrix/federation/v1/send/1", 405},
		{"PATCH", "/_matrix/key/v2/server", 405},
	} {
		r, _ := http.NewRequest(tt.method, bob.server.URL+tt.path, nil)
		if status, body := send(t, bob, r); status != tt.status || !strings.Contains(body, "M_UNRECOGNIZED") {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, status, body)
		}
	}
}

func TestClosedServerStillAnswersLocalSoftware(t *testing.T) {
	a := newAuthority(t)
	bob := newTestServer(t, a, func(o *Options) { o.Config.Enabled = false })
	for path, status := range map[string]int{
		"/_matrix/federation/v1/version":              200,
		"/_matrix/key/v2/server":                      200,
		"/_matrix/key/v2/query/x.example":             403,
		"/_matrix/federation/v1/publicRooms":          403,
		"/_matrix/federation/v1/openid/userinfo":      401,
		"/_matrix/federation/v1/query/profile?user=x": 403,
	} {
		r, _ := http.NewRequest("GET", bob.server.URL+path, nil)
		if got, body := send(t, bob, r); got != status {
			t.Errorf("%s: %d %s, want %d", path, got, body, status)
		}
	}
}

func TestTransactionIsWorkedOnOnce(t *testing.T) {
	var done transactions
	key := transactionKey{"a.example", "1"}
	times := 0
	work := func() ([]byte, error) { times++; return []byte("answer"), nil }
	for range 3 {
		if got, err := done.once(t.Context(), key, work); err != nil || string(got) != "answer" {
			t.Fatal(string(got), err)
		}
	}
	if times != 1 {
		t.Errorf("worked on %d times", times)
	}
	// Another server may use the same ID, and what failed is tried again.
	done.once(t.Context(), transactionKey{"b.example", "1"}, work)
	fail := errors.New("no")
	if _, err := done.once(t.Context(), transactionKey{"a.example", "2"}, func() ([]byte, error) { return nil, fail }); err != fail {
		t.Error(err)
	}
	done.once(t.Context(), transactionKey{"a.example", "2"}, work)
	if times != 3 {
		t.Errorf("worked on %d times", times)
	}
	for i := range 2 * rememberedTransactions {
		done.once(t.Context(), transactionKey{"a.example", strconv.Itoa(i) + "x"}, work)
	}
	if len(done.byKey) > rememberedTransactions || len(done.order) > rememberedTransactions {
		t.Errorf("remembers %d", len(done.byKey))
	}
}

func TestReplayCacheIsBounded(t *testing.T) {
	var c replayCache
	now := time.Now()
	sig := func(server matrix.ServerName, n int) *signature {
		return &signature{Server: server, KeyID: "ed25519:a", raw: strconv.Itoa(n)}
	}
	for i := range maxReplayPerServer {
		if !c.firstUse(sig("noisy.example", i), now) {
			t.Fatalf("%d refused", i)
		}
	}
	if c.firstUse(sig("noisy.example", maxReplayPerServer), now) {
		t.Error("one server may fill the cache")
	}
	if !c.firstUse(sig("quiet.example", 1), now) || c.firstUse(sig("quiet.example", 1), now.Add(replayWindow-time.Second)) {
		t.Error("another server suffers")
	}
	// Half a generation later the old one is still known, and after two it is gone.
	if c.firstUse(sig("quiet.example", 1), now.Add(replayWindow+time.Second)) {
		t.Error("forgotten too early")
	}
	if !c.firstUse(sig("quiet.example", 2), now.Add(4*replayWindow)) || len(c.current)+len(c.last) > maxReplayPerServer+10 {
		t.Error("not turned")
	}
}

func TestBodyThatDoesNotArriveIsGivenUp(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newTestServer(t, a), newTestServer(t, a)
	bob.echo().patience = 50 * time.Millisecond
	r := signedRequest(t, alice, bob, `{"a":1}`)
	r.Header.Del("Signature") // signed headers would be looked at first
	never, hold := io.Pipe()
	defer hold.Close()
	r.Body, r.GetBody = never, nil
	if status, body := send(t, bob, r); status != http.StatusRequestTimeout {
		t.Errorf("got %d %s, want 408", status, body)
	}
}
