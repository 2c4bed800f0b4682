package user

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/oauth2"
	"golang.org/x/text/unicode/norm"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// IdentityProvider is as clients see one. Spec v1.19 client-server-api/#sso-client-loginauthentication
type IdentityProvider struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Brand string `json:"brand,omitempty"`
}

// IdentityProviders are where people can sign in with an account of their company's; none if that is not set up.
func (u *Users) IdentityProviders() []IdentityProvider {
	all := []IdentityProvider{}
	for _, p := range u.providers {
		all = append(all, IdentityProvider{p.cfg.ID, p.cfg.Name, p.cfg.Brand})
	}
	return all
}

// SSOReason is why somebody could not sign in with a company account.
type SSOReason string

// The reasons, for the page that tells them.
const (
	SSOExpired     SSOReason = "expired"     // it took too long, or was begun in another browser
	SSOCancelled   SSOReason = "cancelled"   // the person, or the provider, did not want to
	SSOUnavailable SSOReason = "unavailable" // the provider does not answer, or not as it should
	SSORefused     SSOReason = "refused"     // not among those who may
	SSONoAccount   SSOReason = "no_account"  // there is no account, and none is made
	SSOLocked      SSOReason = "locked"
	SSODeactivated SSOReason = "deactivated"
	SSOOther       SSOReason = "other_account" // signed in as somebody else than the one who has to confirm
)

// SSOError is a sign-in that did not work. Err is for the log.
type SSOError struct {
	Reason SSOReason
	Err    error
}

func (e *SSOError) Error() string {
	return fmt.Sprintf("sign-in with a company account: %s: %v", e.Reason, e.Err)
}

func (e *SSOError) Unwrap() error { return e.Err }

// ticket is what this server has to remember while a browser is at the provider. The browser keeps it, sealed, so that it
// outlives a restart, any process can go on with it, and nobody can fill this server's memory with it.
type ticket struct {
	Provider string
	State    string // goes to the provider and back
	Nonce    string // comes back in the ID token
	Verifier string // of PKCE
	Redirect string `json:",omitempty"` // the client's address that gets the login token
	Confirms string `json:",omitempty"` // the user-interactive authentication that is to be completed instead
	BegunMS  int64
}

const (
	// ssoLifetime is how long a person may take at the provider.
	ssoLifetime = 15 * time.Minute
	// maxRedirectBytes keeps a ticket within the size of a cookie.
	maxRedirectBytes = 1500
)

// SSOBegun is a browser on its way to a provider.
type SSOBegun struct {
	Authorize string // where it goes
	State     string // with which it comes back
	Ticket    string // what it has to show then: secret, for this browser only
	Lifetime  time.Duration
}

// BeginSSO sends a browser to a provider to sign in. redirect is the client's address that gets the login token, callback is this
// server's that the provider leads back to. Errors: M_NOT_FOUND (no such provider), M_INVALID_PARAM (redirect), *SSOError.
// Spec v1.19 client-server-api/#get_matrixclientv3loginssoredirect
func (u *Users) BeginSSO(ctx context.Context, provider, redirect, callback string) (*SSOBegun, error) {
	if _, err := parseRedirect(redirect); err != nil {
		return nil, err
	}
	return u.beginSSO(ctx, provider, ticket{Redirect: redirect}, callback)
}

// BeginConfirmation sends the browser to a provider to complete a user-interactive authentication. Errors as BeginSSO.
func (u *Users) BeginConfirmation(ctx context.Context, provider, session, callback string) (*SSOBegun, error) {
	c, err := u.Confirmation(ctx, session)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(c.Providers, func(p IdentityProvider) bool { return p.ID == provider }) {
		return nil, matrix.NotFound("the account has no link to this provider")
	}
	return u.beginSSO(ctx, provider, ticket{Confirms: session}, callback)
}

func (u *Users) beginSSO(ctx context.Context, name string, t ticket, callback string) (*SSOBegun, error) {
	p, err := u.provider(name)
	if err != nil {
		return nil, err
	}
	t.Provider, t.State, t.Nonce, t.Verifier, t.BegunMS = name, newToken(""), newToken(""), oauth2.GenerateVerifier(), u.now().UnixMilli()
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	authorize, err := p.authorizeURL(ctx, t, callback, t.Confirms != "")
	if err != nil {
		return nil, &SSOError{SSOUnavailable, err}
	}
	sealed, err := u.sealTicket(ctx, t)
	return &SSOBegun{Authorize: authorize, State: t.State, Ticket: sealed, Lifetime: ssoLifetime}, err
}

func (u *Users) provider(id string) (*provider, error) {
	for _, p := range u.providers {
		if p.cfg.ID == id {
			return p, nil
		}
	}
	return nil, matrix.NotFound("there is no identity provider of this ID")
}

// parseRedirect checks the address of a client. Any scheme may be an app's, but none that runs or shows what it carries itself.
func parseRedirect(redirect string) (*url.URL, error) {
	if redirect == "" {
		return nil, matrix.MissingParam("redirectUrl is missing")
	}
	to, err := url.Parse(redirect)
	switch {
	case len(redirect) > maxRedirectBytes:
		return nil, matrix.InvalidParam("redirectUrl is longer than %d bytes", maxRedirectBytes)
	case err != nil || to.Scheme == "" || to.User != nil:
		return nil, matrix.InvalidParam("redirectUrl must be an absolute URL without a user name")
	case slices.Contains([]string{"javascript", "data", "vbscript", "blob", "file", "filesystem", "about", "view-source", "ws", "wss", "ftp"}, to.Scheme):
		return nil, matrix.InvalidParam("redirectUrl must not have the scheme %s", to.Scheme)
	case (to.Scheme == "http" || to.Scheme == "https") && to.Host == "":
		return nil, matrix.InvalidParam("redirectUrl has no host")
	}
	return to, nil
}

// SSODone is how a sign-in at a provider ended.
type SSODone struct {
	User matrix.UserID
	// Redirect is the client's address with the login token; empty where a request has been confirmed instead.
	Redirect string
	// New says that the account was made just now.
	New bool
}

// FinishSSO takes up a browser that comes back from a provider with answer, the query of the callback, and the ticket that it was
// given. Error: *SSOError.
func (u *Users) FinishSSO(ctx context.Context, sealed string, answer url.Values, callback string) (*SSODone, error) {
	t, err := u.openTicket(ctx, sealed)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(t.State), []byte(answer.Get("state"))) != 1 {
		return nil, &SSOError{SSOExpired, errors.New("the browser shows a ticket of another sign-in")}
	}
	if code := answer.Get("error"); code != "" {
		reason := SSOUnavailable
		if code == "access_denied" || strings.HasSuffix(code, "_required") {
			reason = SSOCancelled
		}
		return nil, &SSOError{reason, fmt.Errorf("the provider says %s: %s", clip(code), clean(answer.Get("error_description"), 200))}
	}
	p, err := u.provider(t.Provider)
	if err != nil {
		return nil, &SSOError{SSOExpired, err} // it has been taken out of the configuration
	}
	asking, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	id, said, err := p.whose(asking, t, answer, callback)
	if err != nil {
		return nil, &SSOError{SSOUnavailable, err}
	}
	if !said.meet(p.cfg.Require) {
		return nil, &SSOError{SSORefused, fmt.Errorf("%q at %s does not meet the requirements", clip(id.Subject), p.cfg.ID)}
	}
	if t.Confirms != "" {
		return u.confirm(ctx, t.Confirms, id)
	}
	done := &SSODone{}
	if done.User, done.New, err = u.userOf(ctx, p.cfg, id, said); err != nil {
		return nil, err
	}
	token, _, err := u.LoginToken(ctx, done.User)
	if err != nil {
		return nil, err
	}
	to, err := parseRedirect(t.Redirect)
	if err != nil {
		return nil, err
	}
	query := to.Query()
	query.Set("loginToken", token)
	to.RawQuery = query.Encode()
	done.Redirect = to.String()
	return done, nil
}

// userOf finds the account of a person, or makes one.
func (u *Users) userOf(ctx context.Context, p SSOProvider, id storage.ExternalID, said claims) (user matrix.UserID, made bool, err error) {
	user, err = u.db.UserOfExternalID(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		user, made, err = u.newUserOf(ctx, p, id, said)
	}
	if err != nil {
		return "", false, err
	}
	a, err := u.db.Account(ctx, user)
	switch {
	case err != nil:
		return "", false, err
	case a.Deactivated:
		return "", false, &SSOError{SSODeactivated, fmt.Errorf("%s has been deactivated", user)}
	case a.Locked:
		return "", false, &SSOError{SSOLocked, fmt.Errorf("%s is locked", user)}
	}
	if admin := said.meet(p.Administrators); len(p.Administrators) > 0 && admin != a.Admin {
		u.log.Info("administrator by the company account", "user", user, "admin", admin)
		err = u.SetAdmin(ctx, user, admin)
	}
	return user, made, err
}

// maxNamesakes is how many names are tried when a new account's is taken.
const maxNamesakes = 100

// newUserOf gives a person, of whom this server knows nothing yet, an account.
func (u *Users) newUserOf(ctx context.Context, p SSOProvider, id storage.ExternalID, said claims) (user matrix.UserID, made bool, err error) {
	claim := p.userNameClaim()
	if verified, ok := said["email_verified"].(bool); claim == "email" && ok && !verified {
		return "", false, &SSOError{SSORefused, errors.New("the provider has not verified the e-mail address that is to be the user name")}
	}
	name := localpartOf(said.text(claim))
	if p.AdoptAccounts && name != "" {
		switch user, err := u.adopt(ctx, name, id); {
		case err == nil:
			return user, false, nil
		case !errors.Is(err, storage.ErrNotFound):
			return "", false, err
		}
	}
	if p.ExistingOnly {
		return "", false, &SSOError{SSONoAccount, fmt.Errorf("%q at %s has no account here", clip(id.Subject), p.ID)}
	}
	if name == "" {
		name = "u" + strings.ToLower(newDeviceID())
	}
	displayName := clean(said.text(p.displayNameClaim()), maxDisplayName)
	for n := 1; n <= maxNamesakes; n++ {
		candidate := name
		if n > 1 {
			candidate += strconv.Itoa(n)
		}
		if user, err = u.username(candidate); err != nil {
			return "", false, err
		}
		err = u.create(ctx, user, "", storage.NewUser{DisplayName: displayName, External: id})
		switch {
		case err == nil:
			return user, true, nil
		case errors.Is(err, storage.ErrLinked): // from a second window, just now
			user, err = u.db.UserOfExternalID(ctx, id)
			return user, false, err
		case matrix.ErrorCode(err) != "M_USER_IN_USE":
			return "", false, err
		}
	}
	return "", false, fmt.Errorf("the names %s to %s%d are all taken", name, name, maxNamesakes)
}

// adopt gives an account that exists to a person. ErrNotFound if there is none that could be.
func (u *Users) adopt(ctx context.Context, name string, id storage.ExternalID) (matrix.UserID, error) {
	user, err := u.username(name)
	if err != nil {
		return "", storage.ErrNotFound
	}
	err = u.db.LinkExternalID(ctx, user, id, u.now().UnixMilli())
	if errors.Is(err, storage.ErrLinked) { // its person is another one, or came in from a second window
		if now, err := u.db.UserOfExternalID(ctx, id); err == nil {
			return now, nil
		}
		err = storage.ErrNotFound
	}
	if err == nil {
		u.log.Info("an account now belongs to a company account", "user", user, "issuer", id.Issuer)
	}
	return user, err
}

// localpartOf makes a user name of what a provider calls somebody: "Jürgen.Groß@example.org" is jurgen.gross. It may be empty.
func localpartOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	var b strings.Builder
	for _, r := range norm.NFKD.String(strings.ToLower(strings.ReplaceAll(name, "ß", "ss"))) {
		switch {
		case unicode.Is(unicode.Mn, r):
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', strings.ContainsRune("._=-/+", r):
			b.WriteRune(r)
		case !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() >= 100 {
			break
		}
	}
	return strings.Trim(b.String(), "-_")
}

// Confirmation is a sensitive request that waits for its person to confirm it at a provider.
type Confirmation struct {
	Operation string // as it was given to Reauthenticate
	User      matrix.UserID
	Providers []IdentityProvider // those that know the person
}

// Confirmation finds one by the ID of its user-interactive authentication. Error: *SSOError with SSOExpired.
func (u *Users) Confirmation(ctx context.Context, session string) (*Confirmation, error) {
	s := u.findUIA(session)
	if s == nil || s.user == "" {
		return nil, &SSOError{SSOExpired, errors.New("no such authentication is under way")}
	}
	has, err := u.db.Authenticators(ctx, s.user)
	if err != nil {
		return nil, err
	}
	return &Confirmation{Operation: s.operation, User: s.user, Providers: u.providersOf(has)}, nil
}

// providersOf are the providers that know a user.
func (u *Users) providersOf(has storage.Authenticators) []IdentityProvider {
	return slices.DeleteFunc(u.IdentityProviders(), func(i IdentityProvider) bool {
		p, err := u.provider(i.ID)
		return err != nil || !slices.Contains(has.Issuers, p.cfg.Issuer)
	})
}

// confirm completes an authentication if it is its person who has signed in.
func (u *Users) confirm(ctx context.Context, session string, id storage.ExternalID) (*SSODone, error) {
	s := u.findUIA(session)
	if s == nil || s.user == "" {
		return nil, &SSOError{SSOExpired, errors.New("the authentication has expired")}
	}
	user, err := u.db.UserOfExternalID(ctx, id)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	if user != s.user {
		return nil, &SSOError{SSOOther, fmt.Errorf("%s has to confirm, but %q of %s has signed in", s.user, clip(id.Subject), id.Issuer)}
	}
	u.uia.mu.Lock()
	defer u.uia.mu.Unlock()
	if len(s.completed) == 0 {
		s.completed = []string{stageSSO}
	}
	return &SSODone{User: user}, nil
}

// ticketBox seals tickets with a key that all processes of this server have.
func (u *Users) ticketBox(ctx context.Context) (cipher.AEAD, error) {
	stored, err := u.db.InitFact(ctx, "sso_ticket_key", base64.RawStdEncoding.EncodeToString(randomBytes(32)))
	if err != nil {
		return nil, err
	}
	key, err := base64.RawStdEncoding.DecodeString(stored)
	if err != nil {
		return nil, fmt.Errorf("the key of sign-in tickets: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (u *Users) sealTicket(ctx context.Context, t ticket) (string, error) {
	box, err := u.ticketBox(ctx)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(box.Seal(nil, nil, text, nil)), err
}

// openTicket is an *SSOError with SSOExpired for whatever is not a ticket of ours that is still valid.
func (u *Users) openTicket(ctx context.Context, sealed string) (t ticket, err error) {
	box, err := u.ticketBox(ctx)
	if err != nil {
		return t, err
	}
	var text []byte
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err == nil {
		text, err = box.Open(nil, nil, raw, nil)
	}
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err == nil && u.now().Sub(time.UnixMilli(t.BegunMS)) > ssoLifetime {
		err = errors.New("the sign-in took too long")
	}
	if err != nil {
		return t, &SSOError{SSOExpired, err}
	}
	return t, nil
}
