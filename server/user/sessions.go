package user

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Session is an authenticated request: whose it is and from which device. It is shared and must not be changed.
type Session struct {
	User      matrix.UserID
	Device    matrix.DeviceID
	Admin     bool
	Locked    bool      // may only log out; api answers matrix.UserLocked
	Suspended bool      // may read, leave rooms and redact; api answers matrix.UserSuspended otherwise
	Expires   time.Time // zero: never
}

// tokenHash is the SHA-256 of a token, the only form in which it is stored.
type tokenHash = [sha256.Size]byte

// newToken makes a token that cannot be guessed. The prefix tells people who find it what it is.
func newToken(prefix string) string {
	return prefix + base64.RawURLEncoding.EncodeToString(randomBytes(32))
}

// maxTokenBytes is longer than any token that we made.
const maxTokenBytes = 128

// Authenticate finds whose access token this is, without a query if it was seen lately.
// Errors: M_UNKNOWN_TOKEN (with soft_logout when it has expired and can be refreshed or logged in again).
// A locked account's Session has Locked set and no error; the caller refuses all but logout.
func (u *Users) Authenticate(ctx context.Context, token string) (*Session, error) {
	if len(token) > maxTokenBytes {
		return nil, matrix.UnknownToken(false)
	}
	hash := sha256.Sum256([]byte(token))
	s, err := u.sessions.Load(hash, func() (*Session, error) { return u.loadSession(ctx, hash) })
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, matrix.UnknownToken(false)
	case err != nil:
		return nil, err
	case !s.Expires.IsZero() && !u.now().Before(s.Expires):
		return nil, matrix.UnknownToken(true)
	}
	return s, nil
}

func (u *Users) loadSession(ctx context.Context, hash tokenHash) (*Session, error) {
	o, err := u.db.TokenOwner(ctx, hash[:])
	if err != nil {
		return nil, err
	}
	if o.Replaces != nil { // first use of a refreshed token: the one before ends
		if err := u.db.ConfirmRefresh(ctx, o.Replaces); err != nil {
			return nil, err
		}
		// Not this hash itself: it is being loaded, and stays valid.
		u.sessions.DropKept(func(h tokenHash, s *Session) bool { return h != hash && s.User == o.User && s.Device == o.Device })
	}
	s := &Session{User: o.User, Device: o.Device, Admin: o.Admin, Locked: o.Locked, Suspended: o.Suspended}
	if o.ExpiresMS > 0 {
		s.Expires = time.UnixMilli(o.ExpiresMS)
	}
	return s, nil
}

// forget drops sessions of a user from memory after the database changed.
func (u *Users) forget(user matrix.UserID) {
	u.sessions.DropWhere(func(_ tokenHash, s *Session) bool { return s.User == user })
}

// Login is the answer to register, login and refresh.
type Login struct {
	UserID       matrix.UserID     `json:"user_id,omitempty"`
	AccessToken  string            `json:"access_token,omitempty"`
	DeviceID     matrix.DeviceID   `json:"device_id,omitempty"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	ExpiresInMS  int64             `json:"expires_in_ms,omitempty"`
	HomeServer   matrix.ServerName `json:"home_server,omitempty"` // deprecated, but old clients read it
}

// LoginRequest is the body of POST /login.
type LoginRequest struct {
	Type       string          `json:"type"`
	Identifier json.RawMessage `json:"identifier"`
	User       string          `json:"user"` // deprecated form of identifier
	Password   string          `json:"password"`
	Token      string          `json:"token"`
	DeviceID   string          `json:"device_id"`
	Name       string          `json:"initial_device_display_name"`
	Refresh    bool            `json:"refresh_token"`
}

// LoginFlow is a way to sign in. Spec v1.19 client-server-api/#get_matrixclientv3login
type LoginFlow struct {
	Type              string             `json:"type"`
	GetLoginToken     bool               `json:"get_login_token,omitempty"`
	IdentityProviders []IdentityProvider `json:"identity_providers,omitempty"`
}

// LoginFlows are the ways to sign in here.
func (u *Users) LoginFlows() (flows []LoginFlow) {
	if u.cfg.PasswordLogin {
		flows = append(flows, LoginFlow{Type: "m.login.password"})
	}
	if len(u.providers) > 0 {
		flows = append(flows, LoginFlow{Type: "m.login.sso", IdentityProviders: u.IdentityProviders()})
	}
	return append(flows, LoginFlow{Type: "m.login.token", GetLoginToken: true})
}

// Login checks the password or login token and makes a session. Errors: M_FORBIDDEN (wrong, without saying what),
// M_USER_LOCKED, M_UNKNOWN (unknown type), M_INVALID_PARAM, M_MISSING_PARAM.
// A device ID that exists is taken over and its old tokens end.
func (u *Users) Login(ctx context.Context, r LoginRequest, ip string) (*Login, error) {
	var user matrix.UserID
	var err error
	switch r.Type {
	case "m.login.password":
		if !u.cfg.PasswordLogin {
			return nil, matrix.Forbidden("nobody signs in with a password here: use your company account")
		}
		user, err = u.loginUser(r)
		if err == nil {
			err = u.checkUserPassword(ctx, user, r.Password)
		}
	case "m.login.token":
		user, err = u.useLoginToken(ctx, r.Token)
	case "":
		err = matrix.MissingParam("type is missing")
	default:
		err = matrix.BadRequest("login type %q is not supported here", clip(r.Type))
	}
	if err != nil {
		return nil, err
	}
	return u.openSession(ctx, opening{user: user, device: r.DeviceID, name: r.Name, refresh: r.Refresh, ip: ip})
}

var errLogin = matrix.Forbidden("wrong user name or password")

// loginUser reads whom the request means.
func (u *Users) loginUser(r LoginRequest) (matrix.UserID, error) {
	if len(r.Identifier) == 0 || string(r.Identifier) == "null" {
		if r.User == "" {
			return "", matrix.MissingParam("identifier is missing")
		}
		return u.localUser(r.User)
	}
	return u.identified(r.Identifier)
}

// identified reads a user identifier object. Spec v1.19 client-server-api/#identifier-types
func (u *Users) identified(identifier json.RawMessage) (matrix.UserID, error) {
	var id struct {
		Type string `json:"type"`
		User string `json:"user"`
	}
	if err := json.Unmarshal(identifier, &id); err != nil {
		return "", matrix.BadJSON("identifier must be an object with a type")
	}
	switch id.Type {
	case "m.id.user":
		if id.User == "" {
			return "", matrix.MissingParam("identifier.user is missing")
		}
		return u.localUser(id.User)
	case "m.id.thirdparty", "m.id.phone":
		return "", errLogin // this server knows no third-party IDs
	default:
		return "", matrix.BadRequest("identifier type %q is not supported here", clip(id.Type))
	}
}

// localUser makes the user ID from what a person types: with or without server name, in any case.
func (u *Users) localUser(name string) (matrix.UserID, error) {
	if strings.HasPrefix(name, "@") {
		user, err := matrix.ParseUserID(name)
		if err != nil || user.Server() != u.server {
			return "", errLogin
		}
		name = user.Localpart()
	}
	user, err := matrix.NewUserID(strings.ToLower(name), u.server)
	if err != nil {
		return "", errLogin
	}
	return user, nil
}

// checkUserPassword is errLogin if it is wrong or there is no such user, after the same time in both cases.
func (u *Users) checkUserPassword(ctx context.Context, user matrix.UserID, password string) error {
	phc, deactivated, locked, err := u.db.PasswordHash(ctx, user)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	none := err != nil || phc == "" || deactivated
	if none {
		phc = u.noHash()
	}
	right, outdated, err := u.verify(ctx, password, phc)
	switch {
	case err != nil:
		return err
	case none || !right:
		return errLogin
	case locked:
		return matrix.UserLocked()
	}
	if outdated {
		if hash, err := u.hash(ctx, password); err == nil {
			if err := u.db.ReplacePasswordHash(ctx, user, phc, hash); err != nil {
				u.log.Error("hash a password anew", "user", user, "err", err)
			}
		}
	}
	return nil
}

// opening is a session to be made.
type opening struct {
	user     matrix.UserID
	device   string // "": a new one
	name, ip string
	refresh  bool
}

// OpenSession makes a session for the user without asking for a password, as login does after its checks.
// device "" makes a new one.
func (u *Users) OpenSession(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string, refresh bool, ip string) (*Login, error) {
	return u.openSession(ctx, opening{user: user, device: string(device), name: name, refresh: refresh, ip: ip})
}

func (u *Users) openSession(ctx context.Context, o opening) (*Login, error) {
	chosen := o.device != ""
	if !chosen {
		o.device = newDeviceID()
	}
	device, err := matrix.ParseDeviceID(o.device)
	if err != nil {
		return nil, err
	}
	l, s := u.newTokens(o.refresh)
	l.UserID, l.DeviceID, l.HomeServer = o.user, device, u.server
	s.User, s.Device, s.Name, s.IP, s.MaxDevices = o.user, device, clean(o.name, maxDeviceName), clean(o.ip, 64), u.cfg.MaxDevices
	err = u.db.OpenSession(ctx, s)
	switch {
	case errors.Is(err, storage.ErrLimit):
		return nil, matrix.ResourceLimitExceeded("there are %d devices on this account already: delete some first", u.cfg.MaxDevices).
			With("admin_contact", "")
	case errors.Is(err, storage.ErrDeviceIsKey):
		return nil, matrix.Forbidden("this device ID is a cross-signing key")
	case errors.Is(err, storage.ErrNotFound):
		return nil, errLogin
	case err != nil:
		return nil, err
	}
	if chosen { // the device may have had other tokens
		u.sessions.DropWhere(func(_ tokenHash, old *Session) bool { return old.User == o.user && old.Device == device })
	}
	return l, nil
}

// newTokens makes the tokens of a session: with refresh a pair, of which the access token expires.
func (u *Users) newTokens(refresh bool) (*Login, storage.NewSession) {
	now := u.now()
	l := &Login{AccessToken: newToken("pat_")}
	access := sha256.Sum256([]byte(l.AccessToken))
	s := storage.NewSession{NowMS: now.UnixMilli(), Access: access[:]}
	if !refresh {
		return l, s
	}
	l.RefreshToken = newToken("prt_")
	l.ExpiresInMS = u.cfg.AccessTokenLifetime.Milliseconds()
	hash := sha256.Sum256([]byte(l.RefreshToken))
	s.Refresh = hash[:]
	s.AccessExpiresMS = now.Add(u.cfg.AccessTokenLifetime).UnixMilli()
	if u.cfg.RefreshTokenLifetime > 0 {
		s.RefreshExpiresMS = now.Add(u.cfg.RefreshTokenLifetime).UnixMilli()
	}
	return l, s
}

// newDeviceID is ten capital letters, which people can read out.
func newDeviceID() string {
	b := randomBytes(10)
	for i := range b {
		b[i] = 'A' + b[i]%26
	}
	return string(b)
}

// Refresh exchanges a refresh token. The old pair stays valid until the new one is first used.
// Errors: M_UNKNOWN_TOKEN (soft_logout true). Spec v1.19 client-server-api/#refreshing-access-tokens
func (u *Users) Refresh(ctx context.Context, refreshToken string) (*Login, error) {
	if len(refreshToken) > maxTokenBytes {
		return nil, matrix.UnknownToken(true)
	}
	old := sha256.Sum256([]byte(refreshToken))
	l, s := u.newTokens(true)
	err := u.db.Refresh(ctx, old[:], &s)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.UnknownToken(true)
	}
	if err != nil {
		return nil, err
	}
	u.sessions.DropWhere(func(_ tokenHash, o *Session) bool { return o.User == s.User && o.Device == s.Device })
	return l, nil
}

// Logout ends the session and deletes its device, its keys and its to-device messages.
func (u *Users) Logout(ctx context.Context, s *Session) error {
	return u.DeleteDevices(ctx, s.User, []matrix.DeviceID{s.Device})
}

// LogoutAll ends all sessions of the user and deletes all devices.
func (u *Users) LogoutAll(ctx context.Context, user matrix.UserID) error {
	defer u.forget(user)
	return u.db.DeleteDevices(ctx, user, nil)
}

// loginTokenLifetime is what the spec recommends. Spec v1.19 client-server-api/#post_matrixclientv1loginget_token
const loginTokenLifetime = 2 * time.Minute

// LoginToken makes a short-lived single-use token with which another client logs in as this user.
func (u *Users) LoginToken(ctx context.Context, user matrix.UserID) (token string, lifetime time.Duration, err error) {
	token = newToken("plt_")
	hash := sha256.Sum256([]byte(token))
	err = u.db.AddShortToken(ctx, "login", hash[:], user, u.now().Add(loginTokenLifetime).UnixMilli())
	return token, loginTokenLifetime, err
}

func (u *Users) useLoginToken(ctx context.Context, token string) (matrix.UserID, error) {
	if token == "" {
		return "", matrix.MissingParam("token is missing")
	}
	hash := sha256.Sum256([]byte(token))
	user, err := u.db.UseShortToken(ctx, "login", hash[:], u.now().UnixMilli())
	if errors.Is(err, storage.ErrNotFound) {
		return "", matrix.Forbidden("the login token is not valid, was used or has expired")
	}
	if err != nil {
		return "", err
	}
	_, deactivated, locked, err := u.db.PasswordHash(ctx, user)
	switch {
	case err != nil:
		return "", err
	case deactivated:
		return "", matrix.UserDeactivated("this account has been deactivated")
	case locked:
		return "", matrix.UserLocked()
	}
	return user, nil
}

// openIDLifetime is how long a third party may take to ask whose token it is.
const openIDLifetime = time.Hour

// OpenIDToken is the answer to request_token.
type OpenIDToken struct {
	AccessToken      string            `json:"access_token"`
	TokenType        string            `json:"token_type"`
	MatrixServerName matrix.ServerName `json:"matrix_server_name"`
	ExpiresIn        int64             `json:"expires_in"` // seconds
}

// NewOpenIDToken makes a token that a third party shows to this server's /openid/userinfo.
func (u *Users) NewOpenIDToken(ctx context.Context, user matrix.UserID) (*OpenIDToken, error) {
	token := newToken("pot_")
	hash := sha256.Sum256([]byte(token))
	err := u.db.AddShortToken(ctx, "openid", hash[:], user, u.now().Add(openIDLifetime).UnixMilli())
	return &OpenIDToken{token, "Bearer", u.server, int64(openIDLifetime / time.Second)}, err
}

// OpenIDUser finds whose token it is. Error: M_UNKNOWN_TOKEN 401.
func (u *Users) OpenIDUser(ctx context.Context, token string) (matrix.UserID, error) {
	hash := sha256.Sum256([]byte(token))
	user, err := u.db.ShortTokenOwner(ctx, "openid", hash[:], u.now().UnixMilli())
	if errors.Is(err, storage.ErrNotFound) {
		return "", matrix.UnknownToken(false)
	}
	return user, err
}

// lastSeen is when devices were last used, as far as it is not written out yet.
type lastSeen struct {
	mu sync.Mutex
	at map[deviceKey]storage.LastSeen
}

type deviceKey struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// Seen notes, in memory, that the session was used now from this address (written out rarely).
func (u *Users) Seen(s *Session, ip, userAgent string) {
	now := u.now().UnixMilli()
	key := deviceKey{s.User, s.Device}
	u.seen.mu.Lock()
	defer u.seen.mu.Unlock()
	if old, ok := u.seen.at[key]; ok && now-old.AtMS < 1000 && old.IP == ip {
		return
	}
	if u.seen.at == nil {
		u.seen.at = map[deviceKey]storage.LastSeen{}
	}
	u.seen.at[key] = storage.LastSeen{User: s.User, Device: s.Device, AtMS: now, IP: clean(ip, 64), UserAgent: clean(userAgent, 256)}
}

// flushSeen writes out what is in memory, in pieces that do not hold up other writers.
func (u *Users) flushSeen(ctx context.Context) {
	u.seen.mu.Lock()
	at := u.seen.at
	u.seen.at = nil
	u.seen.mu.Unlock()
	var piece []storage.LastSeen
	flush := func() {
		if len(piece) == 0 {
			return
		}
		if err := u.db.SetLastSeen(ctx, piece); err != nil {
			u.log.Warn("write out when devices were last seen", "err", err)
		}
		piece = piece[:0]
	}
	for _, s := range at {
		if piece = append(piece, s); len(piece) == 100 {
			flush()
		}
	}
	flush()
}
