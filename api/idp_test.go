package api

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"parley.im/parley/server/user"
)

// idp is an OpenID provider where whoever comes is signed in already, as the person of the moment.
type idp struct {
	t      *testing.T
	server *httptest.Server
	key    *rsa.PrivateKey

	mu        sync.Mutex
	down      bool
	person    map[string]any              // the claims of the ID token
	userinfo  map[string]any              // what the userinfo endpoint says besides
	refuse    string                      // the error with which people are sent back
	forge     func(claims map[string]any) // changes an ID token before it is signed
	signer    *rsa.PrivateKey             // nil: key
	codes     map[string]url.Values       // of the requests that they were given out for
	keysAsked int
	seen      []url.Values                       // requests to authorize
	answer    func(back url.Values, at *url.URL) // changes what the browser brings back
}

const idpSecret = "the client's secret"

func newIDP(t *testing.T) *idp {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &idp{t: t, key: key, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		p.json(w, map[string]any{"issuer": p.server.URL, "authorization_endpoint": p.server.URL + "/authorize", "token_endpoint": p.server.URL + "/token",
			"jwks_uri": p.server.URL + "/keys", "userinfo_endpoint": p.server.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"RS256"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		p.keysAsked++
		p.json(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer provider-token" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if p.userinfo == nil {
			p.json(w, map[string]any{"sub": p.person["sub"]})
			return
		}
		p.json(w, p.userinfo)
	})
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(p.server.Close)
	return p
}

func (p *idp) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		p.t.Error(err)
	}
}

func (p *idp) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p.seen = append(p.seen, q)
	if q.Get("response_type") != "code" || q.Get("client_id") != "parley" || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" {
		http.Error(w, "not a good request: "+r.URL.RawQuery, http.StatusBadRequest)
		return
	}
	back := url.Values{"state": {q.Get("state")}}
	if p.refuse != "" {
		back.Set("error", p.refuse)
	} else {
		code := fmt.Sprintf("code%d", len(p.seen))
		p.codes[code] = q
		back.Set("code", code)
	}
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		p.t.Error(err)
	}
	if p.answer != nil {
		p.answer(back, to)
	}
	to.RawQuery = back.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

func (p *idp) token(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	asked, ok := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code"))
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	switch {
	case id != "parley" || secret != url.QueryEscape(idpSecret):
		http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
		return
	case !ok || asked.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(challenge[:]) || asked.Get("redirect_uri") != r.PostFormValue("redirect_uri"):
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	now := time.Now().Unix()
	claims := map[string]any{"iss": p.server.URL, "aud": "parley", "iat": now, "exp": now + 300, "nonce": asked.Get("nonce")}
	maps.Copy(claims, p.person)
	if p.forge != nil {
		p.forge(claims)
	}
	p.json(w, map[string]any{"access_token": "provider-token", "token_type": "Bearer", "id_token": p.sign(claims)})
}

func (p *idp) sign(claims map[string]any) string {
	key := p.key
	if p.signer != nil {
		key = p.signer
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		p.t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return compact
}

// is says who comes to the provider next.
func (p *idp) is(person map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.person = person
}

// with changes the provider.
func (p *idp) with(change func(*idp)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// config is what Parley is told of the provider.
func (p *idp) config() user.SSOProvider {
	file := filepath.Join(p.t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(idpSecret+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return user.SSOProvider{ID: "acme", Name: "ACME", Brand: "google", Issuer: p.server.URL, ClientID: "parley", ClientSecretFile: file}
}
