package user

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"parley.im/parley/storage"
)

// provider speaks to one OpenID provider. What it needs to know of it is asked for when somebody signs in first, so that this server
// starts without it.
type provider struct {
	cfg    SSOProvider
	client *http.Client
	now    func() time.Time

	turn   chan struct{} // who has put something in may ask the provider, and see and change what follows
	known  *oidc.Provider
	askAt  time.Time // when it is asked again
	failed error     // of the last time
}

const (
	// providerTimeout bounds one sign-in's requests to its provider.
	providerTimeout = 20 * time.Second
	// providerKnown is how long what a provider says of itself holds. Its keys are asked for when an unknown one is met.
	providerKnown = 24 * time.Hour
	// providerPause is how long a provider that did not answer is left alone, so that those who wait do not queue up.
	providerPause = 5 * time.Second
)

func newProvider(cfg SSOProvider, client *http.Client, now func() time.Time) *provider {
	return &provider{cfg: cfg, client: client, now: now, turn: make(chan struct{}, 1)}
}

// Check asks the provider about itself, and looks whether what the configuration says of it is there.
func (p SSOProvider) Check(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	asked := newProvider(p, client, time.Now)
	known, err := asked.discover(ctx)
	if err != nil {
		return err
	}
	_, err = asked.oauth(known, "")
	return err
}

// discover finds out where the provider's endpoints are.
func (p *provider) discover(ctx context.Context) (*oidc.Provider, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.now().Before(p.askAt) {
		return p.known, p.failed
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.cfg.Issuer)
	switch {
	case err == nil:
		p.known, p.failed, p.askAt = found, nil, p.now().Add(providerKnown)
	case p.known != nil: // what was true yesterday will do for now
		p.askAt = p.now().Add(providerPause)
	case ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded):
		p.failed, p.askAt = fmt.Errorf("ask %s about itself: %w", p.cfg.Issuer, err), p.now().Add(providerPause)
	default: // only this browser has gone away
		return nil, err
	}
	return p.known, p.failed
}

func (p *provider) oauth(known *oidc.Provider, callback string) (*oauth2.Config, error) {
	c := &oauth2.Config{ClientID: p.cfg.ClientID, Endpoint: known.Endpoint(), RedirectURL: callback, Scopes: p.cfg.scopes()}
	if p.cfg.ClientSecretFile != "" {
		secret, err := os.ReadFile(p.cfg.ClientSecretFile) // each time, so that it can be changed
		if err != nil {
			return nil, fmt.Errorf("client_secret_file of %s: %w", p.cfg.ID, err)
		}
		c.ClientSecret = strings.TrimSpace(string(secret))
	}
	c.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	var methods struct {
		Supported []string `json:"token_endpoint_auth_methods_supported"`
	}
	// Without the list it is the header. Trying out one after the other would use up the code.
	if err := known.Claims(&methods); err == nil && len(methods.Supported) > 0 && !slices.Contains(methods.Supported, "client_secret_basic") {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	if c.ClientSecret == "" {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return c, nil
}

// freshness is how long ago a person may have signed in at the provider when a sensitive request is confirmed there.
const freshness = time.Minute

// authorizeURL is where the browser goes. fresh has the provider ask for the password though the person is signed in there.
func (p *provider) authorizeURL(ctx context.Context, t ticket, callback string, fresh bool) (string, error) {
	known, err := p.discover(ctx)
	if err != nil {
		return "", err
	}
	c, err := p.oauth(known, callback)
	if err != nil {
		return "", err
	}
	options := []oauth2.AuthCodeOption{oidc.Nonce(t.Nonce), oauth2.S256ChallengeOption(t.Verifier)}
	if fresh {
		options = append(options, oauth2.SetAuthURLParam("max_age", fmt.Sprint(int(freshness.Seconds()))))
	}
	return c.AuthCodeURL(t.State, options...), nil
}

// whose asks the provider who has signed in, with what the browser brought back from there.
func (p *provider) whose(ctx context.Context, t ticket, answer url.Values, callback string) (storage.ExternalID, claims, error) {
	var nobody storage.ExternalID
	known, err := p.discover(ctx)
	if err != nil {
		return nobody, nil, err
	}
	// Spec RFC 9207: an answer of another provider than the one that was asked.
	if issuer := answer.Get("iss"); issuer != "" && issuer != p.cfg.Issuer {
		return nobody, nil, fmt.Errorf("the answer is from %q, not from %s", clip(issuer), p.cfg.Issuer)
	}
	ctx = oidc.ClientContext(ctx, p.client)
	c, err := p.oauth(known, callback)
	if err != nil {
		return nobody, nil, err
	}
	token, err := c.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(t.Verifier))
	if err != nil {
		return nobody, nil, fmt.Errorf("exchange the code: %w", withoutBody(err))
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := known.Verifier(&oidc.Config{ClientID: p.cfg.ClientID, Now: p.now}).Verify(ctx, raw)
	if err != nil {
		return nobody, nil, fmt.Errorf("the ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(t.Nonce)) != 1 {
		return nobody, nil, errors.New("the ID token was made for another sign-in")
	}
	var said claims
	if err := id.Claims(&said); err != nil {
		return nobody, nil, err
	}
	if at, ok := said["auth_time"].(float64); ok && t.Confirms != "" && int64(at) < t.BegunMS/1000-2*int64(freshness.Seconds()) {
		return nobody, nil, errors.New("the provider did not ask for the password again")
	}
	if p.lacks(said) {
		if err := p.more(ctx, known, token, id.Subject, said); err != nil {
			return nobody, nil, err
		}
	}
	return storage.ExternalID{Issuer: id.Issuer, Subject: id.Subject}, said, nil
}

// lacks reports whether an ID token says less than is wanted: then the userinfo endpoint may say it.
func (p *provider) lacks(said claims) bool {
	if said.text(p.cfg.userNameClaim()) == "" || said.text(p.cfg.displayNameClaim()) == "" {
		return true
	}
	for _, r := range slices.Concat(p.cfg.Require, p.cfg.Administrators) {
		if said.find(r.Claim) == nil {
			return true
		}
	}
	return false
}

// more adds what the userinfo endpoint says. The ID token is signed and goes first.
func (p *provider) more(ctx context.Context, known *oidc.Provider, token *oauth2.Token, subject string, said claims) error {
	if known.UserInfoEndpoint() == "" {
		return nil
	}
	user, err := known.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return fmt.Errorf("ask for more about the person: %s", clean(err.Error(), 200)) // it may have the whole answer in it
	}
	if user.Subject != subject {
		return errors.New("the provider's userinfo is about somebody else")
	}
	also := claims{}
	if err := user.Claims(&also); err != nil {
		return err
	}
	maps.Copy(also, said)
	maps.Copy(said, also)
	return nil
}

// withoutBody is what may be logged of an error of the token endpoint: its answer could hold a token.
func withoutBody(err error) error {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.Response != nil {
		return fmt.Errorf("%s %s %s", refused.Response.Status, clip(refused.ErrorCode), clean(refused.ErrorDescription, 200))
	}
	return err
}
