package api

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// ssoWorld is a server that lets people in with an account of the provider.
type ssoWorld struct {
	*world
	idp    *idp
	server *httptest.Server
}

func newSSOWorld(t *testing.T, change func(*user.SSOProvider, *user.Config, *Config)) *ssoWorld {
	t.Helper()
	w := &ssoWorld{idp: newIDP(t)}
	var handler http.Handler
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_") {
			handler.ServeHTTP(rw, r)
		} // else it is the web client
	}))
	t.Cleanup(w.server.Close)
	cfg, provider := quiet(), w.idp.config()
	cfg.PublicURL = w.server.URL
	userConfig := user.DefaultConfig()
	if change != nil {
		change(&provider, &userConfig, &cfg)
	}
	w.world = newWorldWith(t, cfg, func(u *user.Config) {
		u.PasswordLogin, u.SSO.Providers = userConfig.PasswordLogin, append(userConfig.SSO.Providers, provider)
	})
	if err := (user.SSOConfig{Providers: []user.SSOProvider{provider}}).Validate(); err != nil {
		t.Fatal(err)
	}
	handler = w.handler
	return w
}

// browser keeps cookies and stops where the test looks.
type browser struct {
	*http.Client
	t  *testing.T
	at *url.URL // where it ended
}

// newBrowser follows redirects until it comes to an address with stop in it.
func (w *ssoWorld) newBrowser(t *testing.T) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t}
	b.Client = &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		b.at = r.URL
		if r.URL.Query().Has("loginToken") {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return b
}

// open returns the status and the page where an address leads to.
func (b *browser) open(address string) (int, string) {
	b.t.Helper()
	answer, err := b.Get(address)
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (w *ssoWorld) redirect(client string) string {
	return w.server.URL + "/_matrix/client/v3/login/sso/redirect/acme?redirectUrl=" + url.QueryEscape(client)
}

// signIn goes to the provider and back and gives the answer of POST /login.
func (w *ssoWorld) signIn(t *testing.T) *person {
	t.Helper()
	b := w.newBrowser(t)
	status, text := b.open(w.redirect(w.server.URL + "/?lang=de"))
	if status != http.StatusFound || !strings.HasPrefix(b.at.String(), w.server.URL+"/?lang=de&loginToken=") && b.at.Query().Get("lang") != "de" {
		t.Fatalf("got %d at %s: %s", status, b.at, text)
	}
	answer := ask(w.handler, "POST", "/_matrix/client/v3/login", `{"type":"m.login.token","token":"`+b.at.Query().Get("loginToken")+`"}`)
	var login struct {
		User  matrix.UserID `json:"user_id"`
		Token string        `json:"access_token"`
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &login); err != nil || answer.Code != 200 {
		t.Fatalf("login: %d %s", answer.Code, answer.Body)
	}
	return &person{w.world, login.User, login.Token}
}

func TestSignInWithACompanyAccount(t *testing.T) {
	w := newSSOWorld(t, nil)
	if got := ask(w.handler, "GET", "/_matrix/client/v3/login", "").Body.String(); !strings.Contains(got,
		`{"type":"m.login.sso","identity_providers":[{"id":"acme","name":"ACME","brand":"google"}]}`) {
		t.Errorf("GET /login: %s", got)
	}
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "Jürgen.Groß@acme.example", "name": "Jürgen Groß"})
	jurgen := w.signIn(t)
	if jurgen.id != "@jurgen.gross:test" {
		t.Errorf("got %s", jurgen.id)
	}
	if name := jurgen.must("GET", "/profile/"+string(jurgen.id)+"/displayname", nil)["displayname"]; name != "Jürgen Groß" {
		t.Errorf("the display name is %v", name)
	}
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "married.name"})
	if again := w.signIn(t); again.id != jurgen.id {
		t.Errorf("the same person under another name is %s", again.id)
	}
	w.idp.with(func(p *idp) {
		if p.keysAsked != 1 {
			t.Errorf("the provider was asked for its keys %d times", p.keysAsked)
		}
	})
	w.idp.is(map[string]any{"sub": "2", "preferred_username": "jurgen.gross"})
	if other := w.signIn(t); other.id != "@jurgen.gross2:test" {
		t.Errorf("a namesake is %s", other.id)
	}
	w.idp.is(map[string]any{"sub": "3"})
	if nameless := w.signIn(t); !regexp.MustCompile(`^@u[a-z]{10}:test$`).MatchString(string(nameless.id)) {
		t.Errorf("somebody without a name is %s", nameless.id)
	}
	if can := jurgen.must("GET", "/capabilities", nil)["capabilities"].(map[string]any)["m.change_password"].(map[string]any)["enabled"]; can != false {
		t.Error("the person is told of a password to change")
	}
}

// What the userinfo endpoint says counts where the ID token says nothing.
func TestCompanyAccountIsDescribedByUserinfoToo(t *testing.T) {
	w := newSSOWorld(t, func(p *user.SSOProvider, _ *user.Config, _ *Config) {
		p.Require = []user.SSORequirement{{Claim: "realm_access.roles", Values: []string{"staff", "guest"}}}
	})
	w.idp.is(map[string]any{"sub": "1", "name": "From the token"})
	w.idp.with(func(p *idp) {
		p.userinfo = map[string]any{"sub": "1", "preferred_username": "anna", "name": "From userinfo", "realm_access": map[string]any{"roles": []string{"x", "staff"}}}
	})
	anna := w.signIn(t)
	if name := anna.must("GET", "/profile/"+string(anna.id)+"/displayname", nil)["displayname"]; anna.id != "@anna:test" || name != "From the token" {
		t.Errorf("got %s, %v", anna.id, name)
	}
	w.idp.with(func(p *idp) { p.userinfo["sub"] = "2" })
	w.failsWith(t, "unavailable", http.StatusBadGateway)
	w.idp.with(func(p *idp) { p.userinfo = map[string]any{"sub": "1", "preferred_username": "anna"} })
	w.failsWith(t, "refused", http.StatusForbidden)
}

// failsWith signs in, which must not work and must say why.
func (w *ssoWorld) failsWith(t *testing.T, kind string, status int) {
	t.Helper()
	b := w.newBrowser(t)
	got, text := b.open(w.redirect(w.server.URL + "/"))
	if got != status || !strings.Contains(text, html.EscapeString(pageTexts[kind][0].Title)) {
		t.Errorf("got %d %s, want %d and the page %s", got, text, status, kind)
	}
	if b.at != nil && b.at.Query().Has("loginToken") {
		t.Error("a login token was given out")
	}
}

func TestForgedSignInIsRefused(t *testing.T) {
	w := newSSOWorld(t, nil)
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) func(*idp) {
		return func(p *idp) { p.forge = func(claims map[string]any) { claims[name] = value } }
	}
	answer := func(change func(back url.Values)) func(*idp) {
		return func(p *idp) { p.answer = func(back url.Values, _ *url.URL) { change(back) } }
	}
	for _, test := range []struct {
		name   string
		change func(*idp)
		kind   string
		status int
	}{
		{"another nonce", claim("nonce", "another"), "unavailable", 502},
		{"another audience", claim("aud", "somebody"), "unavailable", 502},
		{"another issuer", claim("iss", "https://elsewhere.example"), "unavailable", 502},
		{"expired", claim("exp", time.Now().Add(-time.Minute).Unix()), "unavailable", 502},
		{"another key", func(p *idp) { p.signer = stranger }, "unavailable", 502},
		{"another state", answer(func(back url.Values) { back.Set("state", back.Get("state")+"x") }), "expired", 400},
		{"no state", answer(func(back url.Values) { back.Del("state") }), "expired", 400},
		{"another code", answer(func(back url.Values) { back.Set("code", "guessed") }), "unavailable", 502},
		{"an answer of another provider", answer(func(back url.Values) { back.Set("iss", "https://elsewhere.example") }), "unavailable", 502},
		{"cancelled", func(p *idp) { p.refuse = "access_denied" }, "cancelled", 403},
		{"broken", func(p *idp) { p.refuse = "server_error" }, "unavailable", 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.idp.with(func(p *idp) { p.forge, p.signer, p.answer, p.refuse = nil, nil, nil, "" })
			w.idp.with(test.change)
			w.failsWith(t, test.kind, test.status)
		})
	}
	w.idp.with(func(p *idp) { p.forge, p.signer, p.answer, p.refuse = nil, nil, nil, "" })
	if exists, err := w.users.Exists(t.Context(), "@anna:test"); err != nil || exists {
		t.Errorf("an account was made: %v, %v", exists, err)
	}

	// The answer to one browser's sign-in is of no use in another, so that nobody can be signed in as somebody else by a link.
	var link string
	w.idp.with(func(p *idp) {
		p.answer = func(back url.Values, at *url.URL) {
			link = at.String() + "?" + back.Encode()
			*at = url.URL{Scheme: at.Scheme, Host: at.Host, Path: "/"}
		}
	})
	first := w.newBrowser(t)
	first.open(w.redirect(w.server.URL + "/"))
	if status, text := w.newBrowser(t).open(link); status != 400 || !strings.Contains(text, pageTexts["expired"][0].Title) {
		t.Errorf("another browser: %d %s", status, text)
	}
	if status, _ := first.open(link); status != http.StatusFound || !first.at.Query().Has("loginToken") {
		t.Errorf("the browser itself: %d at %s", status, first.at)
	}
}

func TestWhoMaySignInWithACompanyAccount(t *testing.T) {
	w := newSSOWorld(t, func(p *user.SSOProvider, _ *user.Config, _ *Config) {
		p.ExistingOnly, p.AdoptAccounts = true, true
	})
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	w.failsWith(t, "no_account", 403)
	anna := w.person("anna")
	if got := w.signIn(t); got.id != anna.id {
		t.Errorf("got %s", got.id)
	}
	w.idp.is(map[string]any{"sub": "2", "preferred_username": "anna"}) // somebody who took the name later
	w.failsWith(t, "no_account", 403)
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	if err := w.users.SetLocked(t.Context(), anna.id, true); err != nil {
		t.Fatal(err)
	}
	w.failsWith(t, "locked", 403)
	if err := w.users.SetLocked(t.Context(), anna.id, false); err != nil {
		t.Fatal(err)
	}
	if err := w.users.Deactivate(t.Context(), anna.id, false); err != nil {
		t.Fatal(err)
	}
	w.failsWith(t, "deactivated", 403)
}

func TestAdministratorsByTheCompanyAccount(t *testing.T) {
	w := newSSOWorld(t, func(p *user.SSOProvider, _ *user.Config, _ *Config) {
		p.Administrators = []user.SSORequirement{{Claim: "groups", Values: []string{"it"}}}
	})
	tokens := "/_synapse/admin/v1/registration_tokens"
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna", "groups": []string{"staff", "it"}})
	anna := w.signIn(t)
	anna.must("GET", tokens, nil)
	w.idp.is(map[string]any{"sub": "2", "preferred_username": "bob", "groups": "staff"})
	w.signIn(t).refused("GET", tokens, nil, 403, "M_FORBIDDEN")
	w.idp.is(map[string]any{"sub": "1", "groups": []string{"staff"}})
	w.signIn(t)
	anna.refused("GET", tokens, nil, 403, "M_FORBIDDEN") // on the other device, too
}

func TestUnverifiedAddressIsNoUserName(t *testing.T) {
	w := newSSOWorld(t, func(p *user.SSOProvider, _ *user.Config, _ *Config) { p.UserNameClaim = "email" })
	w.idp.is(map[string]any{"sub": "1", "email": "boss@acme.example", "email_verified": false})
	w.failsWith(t, "refused", 403)
	w.idp.is(map[string]any{"sub": "1", "email": "boss@acme.example", "email_verified": true})
	if got := w.signIn(t); got.id != "@boss:test" {
		t.Errorf("got %s", got.id)
	}
}

// A login token is the account. A client that this server does not know gets it only if the person says so.
func TestLoginTokenGoesToKnownClientsOnly(t *testing.T) {
	w := newSSOWorld(t, func(_ *user.SSOProvider, _ *user.Config, cfg *Config) {
		cfg.SSOClients = []string{"https://app.example.org/chat"}
	})
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	for client, known := range map[string]bool{
		"https://app.example.org/chat":           true,
		"https://app.example.org/chat/x#/login":  true,
		"https://app.example.org/chatter":        false,
		"https://app.example.org/":               false,
		"https://app.example.org/chat/../x":      false,
		"https://app.example.org/chat/%2e%2e/x":  false,
		"https://APP.example.org/chat?x=1":       true,
		"https://app.example.org.evil.example/x": false,
		"https://app.example.org@evil.example/":  false,
		"http://app.example.org/chat":            false,
		"io.element.app:/callback":               false,
		"http://127.0.0.1:1/x\"><script>":        false,
	} {
		b := w.newBrowser(t)
		status, text := b.open(w.redirect(client))
		if strings.Contains(client, "@evil") {
			if status != 400 || !strings.Contains(text, "M_INVALID_PARAM") {
				t.Errorf("%s: got %d %s", client, status, text)
			}
			continue
		}
		if known != (status == http.StatusFound) {
			t.Errorf("%s: got %d at %s", client, status, b.at)
		}
		if known {
			continue
		}
		link := regexp.MustCompile(`<a class="button" href="([^"]*)"`).FindStringSubmatch(text)
		if status != 200 || link == nil || !strings.Contains(html.UnescapeString(link[1]), "loginToken=plt_") || strings.Contains(text, "<script>") {
			t.Errorf("%s: got %d %s", client, status, text)
		}
	}
	for _, test := range []struct{ address, code string }{
		{"?redirectUrl=javascript:alert(1)", "M_INVALID_PARAM"},
		{"?redirectUrl=data:text/html,x", "M_INVALID_PARAM"},
		{"?redirectUrl=/relative", "M_INVALID_PARAM"},
		{"?redirectUrl=https:///nohost", "M_INVALID_PARAM"},
		{"?redirectUrl=https://x.example/" + strings.Repeat("x", 2000), "M_INVALID_PARAM"},
		{"", "M_MISSING_PARAM"},
		{"/nobody?redirectUrl=https://x.example/", "M_NOT_FOUND"},
	} {
		answer := ask(w.handler, "GET", "/_matrix/client/v3/login/sso/redirect"+test.address, "")
		if errcode(t, answer) != test.code {
			t.Errorf("%.60s: got %d %s, want %s", test.address, answer.Code, answer.Body, test.code)
		}
	}
}

func TestWithoutProvidersThereIsNoCompanySignIn(t *testing.T) {
	w := newWorld(t, quiet())
	if answer := ask(w.handler, "GET", "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://x.example/", ""); errcode(t, answer) != "M_NOT_FOUND" {
		t.Errorf("got %d %s", answer.Code, answer.Body)
	}
	if answer := ask(w.handler, "GET", "/_matrix/client/v3/login", ""); strings.Contains(answer.Body.String(), "sso") {
		t.Errorf("got %s", answer.Body)
	}
	if answer := ask(w.handler, "GET", "/_matrix/client/v3/auth/m.login.password/fallback/web?session=x", ""); errcode(t, answer) != "M_NOT_FOUND" {
		t.Errorf("got %d %s", answer.Code, answer.Body)
	}
}

func TestWhereThereAreSeveralProvidersThePersonChooses(t *testing.T) {
	other := newIDP(t)
	w := newSSOWorld(t, func(_ *user.SSOProvider, u *user.Config, _ *Config) {
		p := other.config()
		p.ID, p.Name = "other", "Other & <Sons>"
		u.SSO.Providers = []user.SSOProvider{p}
	})
	b := w.newBrowser(t)
	_, text := b.open(w.server.URL + "/_matrix/client/v3/login/sso/redirect?redirectUrl=" + url.QueryEscape(w.server.URL+"/?a=1"))
	links := regexp.MustCompile(`<a class="button" href="([^"]*)">([^<]*)<`).FindAllStringSubmatch(text, -1)
	if len(links) != 2 || html.UnescapeString(links[0][2]) != "Other & <Sons>" || links[1][2] != "ACME" {
		t.Fatalf("got %q in %s", links, text)
	}
	other.is(map[string]any{"sub": "1", "preferred_username": "otto"})
	if status, text := b.open(html.UnescapeString(links[0][1])); status != http.StatusFound || b.at.Query().Get("a") != "1" {
		t.Errorf("got %d at %s: %s", status, b.at, text)
	}
	// The same number at another provider is another person.
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	if anna := w.signIn(t); anna.id != "@anna:test" {
		t.Errorf("got %s", anna.id)
	}
}

func TestProviderThatIsDownIsAskedAgain(t *testing.T) {
	w := newSSOWorld(t, nil)
	w.idp.is(map[string]any{"sub": "1", "preferred_username": "anna"})
	w.idp.with(func(p *idp) { p.down = true })
	w.failsWith(t, "unavailable", http.StatusBadGateway)
	w.idp.with(func(p *idp) { p.down = false })
	for end := time.Now().Add(20 * time.Second); ; { // it is left alone for some seconds
		b := w.newBrowser(t)
		if status, _ := b.open(w.redirect(w.server.URL + "/")); status == http.StatusFound {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is not asked again")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// What needs a password elsewhere is confirmed at the provider.
func TestSensitiveRequestIsConfirmedWithTheCompanyAccount(t *testing.T) {
	w := newSSOWorld(t, nil)
	is := map[string]any{"sub": "1", "preferred_username": "anna"}
	w.idp.is(is)
	anna, phone := w.signIn(t), w.signIn(t)
	device := phone.must("GET", "/account/whoami", nil)["device_id"].(string)
	var challenge struct {
		Session string
		Flows   []struct{ Stages []string }
	}
	answer := anna.ask("DELETE", "/devices/"+device, nil)
	if err := json.Unmarshal(answer.Body.Bytes(), &challenge); err != nil || answer.Code != 401 || len(challenge.Flows) != 1 || challenge.Flows[0].Stages[0] != "m.login.sso" {
		t.Fatalf("got %d %s", answer.Code, answer.Body)
	}
	claimed := map[string]any{"auth": map[string]any{"type": "m.login.sso", "session": challenge.Session}}
	again := map[string]any{"auth": map[string]any{"session": challenge.Session}}
	anna.refused("DELETE", "/devices/"+device, claimed, 401, "M_FORBIDDEN")

	fallback := w.server.URL + "/_matrix/client/v3/auth/m.login.sso/fallback/web"
	b := w.newBrowser(t)
	status, text := b.open(fallback + "?session=" + url.QueryEscape(challenge.Session))
	if status != 200 || !strings.Contains(text, "Sign out devices") || !strings.Contains(text, "@anna:test") || !strings.Contains(text, "Confirm with ACME") {
		t.Fatalf("got %d %s", status, text)
	}
	press := func(b *browser, header ...string) (int, string) {
		t.Helper()
		form := url.Values{"session": {challenge.Session}, "provider": {"acme"}}
		r, err := http.NewRequest("POST", fallback, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		answer, err := b.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	if status, text := press(b, "Sec-Fetch-Site", "cross-site"); status != 403 {
		t.Errorf("pressed by another site: %d %s", status, text)
	}
	if status, text := press(b, "Origin", "https://evil.example"); status != 403 {
		t.Errorf("pressed by another site: %d %s", status, text)
	}
	for body, want := range map[string]int{
		"session=x&provider=acme":                     400, // a page: start again
		"session=%zz":                                 400,
		"session=" + strings.Repeat("x", 65<<10):      413,
		"provider=other&session=" + challenge.Session: 404,
	} {
		if answer := ask(w.handler, "POST", "/_matrix/client/v3/auth/m.login.sso/fallback/web", body); answer.Code != want {
			t.Errorf("%.40s: got %d %s, want %d", body, answer.Code, answer.Body, want)
		}
	}
	w.idp.is(map[string]any{"sub": "2", "preferred_username": "bob"})
	w.signIn(t)
	if status, text := press(b); status != 403 || !strings.Contains(text, pageTexts["other_account"][0].Title) {
		t.Errorf("somebody else: %d %s", status, text)
	}
	w.idp.is(map[string]any{"sub": "1", "auth_time": time.Now().Add(-time.Hour).Unix()})
	if status, text := press(b); status != 502 {
		t.Errorf("signed in long ago: %d %s", status, text)
	}
	anna.refused("DELETE", "/devices/"+device, claimed, 401, "M_FORBIDDEN")
	w.idp.is(map[string]any{"sub": "1", "auth_time": time.Now().Unix()})
	if status, text := press(b); status != 200 || !strings.Contains(text, pageTexts["confirmed"][0].Title) {
		t.Fatalf("got %d %s", status, text)
	}
	w.idp.with(func(p *idp) {
		if last := p.seen[len(p.seen)-1]; last.Get("max_age") != "60" {
			t.Errorf("the provider was not asked for a fresh sign-in: %v", last)
		}
	})
	anna.must("DELETE", "/devices/"+device, again)
	phone.refused("GET", "/account/whoami", nil, 401, "M_UNKNOWN_TOKEN")

	// Nobody gives the account a password, which would outlive the company account.
	answer = anna.ask("POST", "/account/password", map[string]any{"new_password": "a good password"})
	if err := json.Unmarshal(answer.Body.Bytes(), &challenge); err != nil || answer.Code != 401 {
		t.Fatalf("got %d %s", answer.Code, answer.Body)
	}
	if status, text := press(b); status != 200 {
		t.Fatalf("got %d %s", status, text)
	}
	anna.refused("POST", "/account/password", map[string]any{"new_password": "a good password", "auth": map[string]any{"session": challenge.Session}}, 403, "M_FORBIDDEN")
	// Others are asked for their password as ever.
	if answer := w.person("carl").ask("DELETE", "/devices/X", nil); answer.Code != 401 && answer.Code != 200 || strings.Contains(answer.Body.String(), "sso") {
		t.Errorf("got %d %s", answer.Code, answer.Body)
	}
}

func TestPasswordsCanBeSwitchedOff(t *testing.T) {
	w := newSSOWorld(t, func(_ *user.SSOProvider, u *user.Config, _ *Config) { u.PasswordLogin = false })
	w.person("anna")
	body := `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"anna"},"password":"password of anna"}`
	if answer := ask(w.handler, "POST", "/_matrix/client/v3/login", body); answer.Code != 403 || errcode(t, answer) != "M_FORBIDDEN" {
		t.Errorf("got %d %s", answer.Code, answer.Body)
	}
	if answer := ask(w.handler, "GET", "/_matrix/client/v3/login", ""); strings.Contains(answer.Body.String(), "m.login.password") {
		t.Errorf("got %s", answer.Body)
	}
}

// Many sign in with a token at nine o'clock, and none of them guesses anything.
func TestLoginTokensHaveNoLimitInCommon(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RateLimits.LoginAddress = Rate{}
	w := newWorld(t, cfg)
	for range 20 {
		if answer := ask(w.handler, "POST", "/_matrix/client/v3/login", `{"type":"m.login.token","token":"plt_x"}`); errcode(t, answer) != "M_FORBIDDEN" {
			t.Fatalf("got %d %s", answer.Code, answer.Body)
		}
	}
}

// Each page is there in each language, and its policy lets its own style and script through and nothing else.
func TestPagesForPeople(t *testing.T) {
	for kind, texts := range pageTexts {
		for i, lang := range []string{"en", "de-AT, en;q=0.5"} {
			var b strings.Builder
			p := page{Kind: kind, User: "@<b>:test", Operation: "deactivate", Client: "<i>", Providers: []link{{ID: `"x`, Name: "<u>", Href: "https://x/?a=1&b=2"}}}
			if err := p.write(&b, lang); err != nil {
				t.Fatal(err)
			}
			text := b.String()
			if !strings.Contains(text, texts[i].Title) || !strings.Contains(text, `<html lang="`+lang[:2]+`">`) {
				t.Errorf("%s in %s: %s", kind, lang, text)
			}
			if strings.Contains(text, "<b>") || strings.Contains(text, "<i>") || strings.Contains(text, "<u>") || strings.Contains(text, "ZgotmplZ") {
				t.Errorf("%s is not escaped: %s", kind, text)
			}
			for _, inline := range regexp.MustCompile(`(?s)<(?:style|script)>(.*?)</`).FindAllStringSubmatch(text, -1) {
				if !strings.Contains(pagePolicy, hashSource(inline[1])) {
					t.Errorf("the policy does not let %.40q… through", inline[1])
				}
			}
			if (kind == "confirmed") != strings.Contains(text, "<script>") {
				t.Errorf("the script of %s", kind)
			}
		}
	}
	for _, reason := range []user.SSOReason{user.SSOExpired, user.SSOCancelled, user.SSOUnavailable, user.SSORefused, user.SSONoAccount, user.SSOLocked,
		user.SSODeactivated, user.SSOOther} {
		if pageTexts[string(reason)] == nil {
			t.Errorf("there is no page for %s", reason)
		}
	}
	for operation, texts := range operationTexts {
		if len(texts) != len(pageLanguages) {
			t.Errorf("%s is not in all languages", operation)
		}
	}
	for kind, texts := range pageTexts {
		if len(texts) != len(pageLanguages) {
			t.Errorf("%s is not in all languages", kind)
		}
	}
}
