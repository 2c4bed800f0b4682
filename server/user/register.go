package user

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// RegisterRequest is the body of POST /register.
type RegisterRequest struct {
	Username     *string         `json:"username"`
	Password     *string         `json:"password"`
	DeviceID     string          `json:"device_id"`
	Name         string          `json:"initial_device_display_name"`
	InhibitLogin bool            `json:"inhibit_login"`
	Refresh      bool            `json:"refresh_token"`
	Auth         json.RawMessage `json:"auth"`
}

// Register is POST /register. kind is the query parameter: "" and "user" are accepted, "guest" is refused with
// M_GUEST_ACCESS_FORBIDDEN. It returns a challenge to be written with 401 while authentication is not complete.
// Errors: M_USER_IN_USE, M_INVALID_USERNAME, M_WEAK_PASSWORD, M_FORBIDDEN (registration closed).
func (u *Users) Register(ctx context.Context, kind string, r RegisterRequest, ip string) (*Login, *Challenge, error) {
	switch kind {
	case "", "user":
	case "guest":
		return nil, nil, matrix.GuestAccessForbidden("this server has no guest accounts")
	default:
		return nil, nil, matrix.InvalidParam("kind must be user or guest")
	}
	flows, err := u.registrationFlows(ctx)
	if err != nil {
		return nil, nil, err
	}
	user, err := u.newUserID(ctx, r.Username)
	if err != nil {
		return nil, nil, err
	}
	if r.Password != nil {
		if err := u.checkPassword(*r.Password); err != nil {
			return nil, nil, err
		}
	}
	if r.DeviceID != "" {
		if _, err := matrix.ParseDeviceID(r.DeviceID); err != nil {
			return nil, nil, err
		}
	}
	session, c, err := u.interact(interaction{operation: "register", flows: flows, auth: r.Auth,
		check: func(s *uiaSession, stage string, auth json.RawMessage) error {
			return u.checkRegistration(ctx, s, stage, auth)
		}})
	if c != nil || err != nil {
		return nil, c, err
	}
	if r.Password == nil {
		return nil, nil, matrix.MissingParam("password is missing")
	}
	_, token := u.uia.progress(session)
	err = u.create(ctx, user, *r.Password, storage.NewUser{RegistrationToken: token})
	if errors.Is(err, storage.ErrLimit) {
		u.uia.end(session.id)
		return nil, nil, matrix.Forbidden("the registration token has been used up or has expired")
	}
	if err != nil {
		return nil, nil, err
	}
	u.uia.end(session.id)
	if r.InhibitLogin {
		return &Login{UserID: user, HomeServer: u.server}, nil, nil
	}
	l, err := u.openSession(ctx, opening{user: user, device: r.DeviceID, name: r.Name, refresh: r.Refresh, ip: ip})
	return l, nil, err
}

// registrationFlows says how one may register. Where only a token helps, so does the first administrator's.
func (u *Users) registrationFlows(ctx context.Context) ([]Flow, error) {
	token, dummy := Flow{[]string{stageToken}}, Flow{[]string{stageDummy}}
	switch u.cfg.Registration {
	case "open":
		return []Flow{dummy, token}, nil
	case "token":
		return []Flow{token}, nil
	}
	has, err := u.db.HasUsers(ctx)
	if err != nil {
		return nil, err
	}
	if has {
		return nil, matrix.Forbidden("registration is closed on this server")
	}
	return []Flow{token}, nil
}

// checkRegistration checks one stage of a registration.
func (u *Users) checkRegistration(ctx context.Context, s *uiaSession, stage string, auth json.RawMessage) error {
	if stage == stageDummy {
		return nil
	}
	var a struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(auth, &a); err != nil || a.Token == "" {
		return matrix.Forbidden("auth.token must be a registration token")
	}
	valid, err := u.RegistrationTokenValid(ctx, a.Token)
	if err != nil {
		return err
	}
	if !valid {
		return matrix.Forbidden("the registration token is not valid, has expired or is used up")
	}
	u.uia.mu.Lock()
	defer u.uia.mu.Unlock()
	s.token = a.Token
	return nil
}

// newUserID makes the user ID that the client asks for, or a free one, and checks that it can be had.
func (u *Users) newUserID(ctx context.Context, username *string) (matrix.UserID, error) {
	if username == nil || *username == "" {
		return matrix.NewUserID("u"+strings.ToLower(newDeviceID()), u.server)
	}
	user, err := u.username(*username)
	if err != nil {
		return "", err
	}
	return user, u.free(ctx, user)
}

// username checks a user name that somebody wants. Capitals become small letters.
func (u *Users) username(name string) (matrix.UserID, error) {
	if rest, ok := strings.CutPrefix(name, "@"); ok { // some clients send the whole ID
		name, _ = strings.CutSuffix(rest, ":"+string(u.server))
	}
	if strings.HasPrefix(name, "_") {
		return "", matrix.InvalidUsername("a user name must not start with _")
	}
	return matrix.NewUserID(strings.ToLower(name), u.server)
}

func (u *Users) free(ctx context.Context, user matrix.UserID) error {
	_, err := u.db.Account(ctx, user)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err == nil:
		return matrix.UserInUse("the user name is taken")
	}
	return err
}

// Available answers GET /register/available: nil if the user name can be had.
func (u *Users) Available(ctx context.Context, localpart string) error {
	if localpart == "" {
		return matrix.MissingParam("username is missing")
	}
	user, err := u.username(localpart)
	if err != nil {
		return err
	}
	return u.free(ctx, user)
}

// create stores a new account; password "" means that it cannot log in with one.
func (u *Users) create(ctx context.Context, user matrix.UserID, password string, n storage.NewUser) error {
	if password != "" {
		hash, err := u.hash(ctx, password)
		if err != nil {
			return err
		}
		n.Password = hash
	}
	n.UserID, n.NowMS, n.NameKey = user, u.now().UnixMilli(), nameKey(user, n.DisplayName)
	err := u.db.CreateUser(ctx, n)
	if errors.Is(err, storage.ErrTaken) {
		return matrix.UserInUse("the user name is taken")
	}
	return err
}

// NewAccount is an account that an administrator or a sign-in provider makes.
type NewAccount struct {
	Localpart   string
	Password    string // "": cannot log in with a password
	Admin       bool
	DisplayName string
	// OfServer allows a name with a leading "_", which nobody can register: users that speak for the server itself.
	OfServer bool
}

// Create makes an account without asking anybody. Errors as Register.
func (u *Users) Create(ctx context.Context, a NewAccount) (matrix.UserID, error) {
	user, err := u.username(a.Localpart)
	if a.OfServer {
		user, err = matrix.NewUserID(a.Localpart, u.server)
	}
	if err == nil {
		err = u.free(ctx, user)
	}
	if err == nil && a.Password != "" {
		err = u.checkPassword(a.Password)
	}
	if err != nil {
		return "", err
	}
	return user, u.create(ctx, user, a.Password, storage.NewUser{Admin: a.Admin, DisplayName: clean(a.DisplayName, maxDisplayName)})
}

// FirstAdminToken returns a one-time registration token whose user becomes administrator, made anew at every start for
// as long as the server has no account at all; "" once there is one, and where nobody signs in with a password: such an account could not
// be used for long.
func (u *Users) FirstAdminToken(ctx context.Context) (string, error) {
	has, err := u.db.HasUsers(ctx)
	if err != nil {
		return "", err
	}
	token := ""
	if !has && u.cfg.PasswordLogin {
		token = newToken("first-")
	}
	return token, u.db.ReplaceAdminToken(ctx, token)
}

// RegistrationToken lets people register.
type RegistrationToken struct {
	Token       string `json:"token"`
	UsesAllowed *int64 `json:"uses_allowed"` // nil: any number
	Pending     int    `json:"pending"`
	Completed   int64  `json:"completed"`
	ExpiryMS    *int64 `json:"expiry_time"` // nil: never
}

// NewRegistrationToken stores t; an empty Token is made up. Errors: M_INVALID_PARAM (grammar, limits, taken).
// Spec v1.19 client-server-api/#token-authenticated-registration
func (u *Users) NewRegistrationToken(ctx context.Context, t RegistrationToken) (*RegistrationToken, error) {
	if t.Token == "" {
		t.Token = newToken("")[:24]
	}
	row := storage.RegistrationToken{Token: t.Token, UsesAllowed: -1}
	if t.UsesAllowed != nil {
		row.UsesAllowed = *t.UsesAllowed
	}
	if t.ExpiryMS != nil {
		row.ExpiresMS = *t.ExpiryMS
	}
	switch {
	case !isOpaqueID(t.Token, 64):
		return nil, matrix.InvalidParam("a registration token is 1 to 64 characters of a-z, A-Z, 0-9 and . _ ~ -")
	case t.UsesAllowed != nil && *t.UsesAllowed < 0:
		return nil, matrix.InvalidParam("uses_allowed must not be negative")
	case t.ExpiryMS != nil && *t.ExpiryMS <= u.now().UnixMilli():
		return nil, matrix.InvalidParam("expiry_time must not be in the past")
	}
	err := u.db.AddRegistrationToken(ctx, row)
	if errors.Is(err, storage.ErrTaken) {
		return nil, matrix.InvalidParam("this registration token exists already")
	}
	return &t, err
}

// isOpaqueID checks the grammar of opaque identifiers. Spec v1.19 appendices/#opaque-identifiers
func isOpaqueID(s string, max int) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '~' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= max
}

// RegistrationTokens lists all but the first administrator's.
func (u *Users) RegistrationTokens(ctx context.Context) ([]RegistrationToken, error) {
	rows, err := u.db.RegistrationTokens(ctx)
	all := []RegistrationToken{}
	for _, row := range rows {
		if row.Admin {
			continue
		}
		t := RegistrationToken{Token: row.Token, Completed: row.Completed, Pending: u.uia.pending(row.Token, u.now())}
		if row.UsesAllowed >= 0 {
			t.UsesAllowed = &row.UsesAllowed
		}
		if row.ExpiresMS > 0 {
			t.ExpiryMS = &row.ExpiresMS
		}
		all = append(all, t)
	}
	return all, err
}

// DeleteRegistrationToken forgets one. Error: M_NOT_FOUND.
func (u *Users) DeleteRegistrationToken(ctx context.Context, token string) error {
	err := u.db.DeleteRegistrationToken(ctx, token)
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no such registration token")
	}
	return err
}

// RegistrationTokenValid answers GET /register/m.login.registration_token/validity.
func (u *Users) RegistrationTokenValid(ctx context.Context, token string) (bool, error) {
	if !isOpaqueID(token, 64) {
		return false, nil
	}
	t, err := u.db.RegistrationToken(ctx, token)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now := u.now()
	return (t.ExpiresMS == 0 || t.ExpiresMS > now.UnixMilli()) &&
		(t.UsesAllowed < 0 || t.Completed+int64(u.uia.pending(token, now)) < t.UsesAllowed), nil
}

// nonces are given out for shared-secret registration, each good for one use within a minute.
type nonces struct {
	mu   sync.Mutex
	open map[string]time.Time
}

const (
	nonceLifetime = time.Minute
	maxNonces     = 1000
)

// SharedSecretNonce is GET /_synapse/admin/v1/register. Error: M_UNKNOWN 400 if the secret is not set.
func (u *Users) SharedSecretNonce() (string, error) {
	if u.cfg.RegistrationSharedSecret == "" {
		return "", matrix.BadRequest("shared secret registration is not switched on")
	}
	now := u.now()
	u.nonces.mu.Lock()
	defer u.nonces.mu.Unlock()
	if u.nonces.open == nil {
		u.nonces.open = map[string]time.Time{}
	}
	for n, expires := range u.nonces.open {
		if !now.Before(expires) || len(u.nonces.open) >= maxNonces {
			delete(u.nonces.open, n)
		}
	}
	nonce := hex.EncodeToString(randomBytes(32))
	u.nonces.open[nonce] = now.Add(nonceLifetime)
	return nonce, nil
}

func (u *Users) useNonce(nonce string) bool {
	u.nonces.mu.Lock()
	defer u.nonces.mu.Unlock()
	expires, ok := u.nonces.open[nonce]
	delete(u.nonces.open, nonce)
	return ok && u.now().Before(expires)
}

// SharedSecretRequest is the body of POST /_synapse/admin/v1/register.
type SharedSecretRequest struct {
	Nonce       string  `json:"nonce"`
	Username    string  `json:"username"`
	DisplayName string  `json:"displayname"`
	Password    string  `json:"password"`
	Admin       bool    `json:"admin"`
	UserType    *string `json:"user_type"`
	MAC         string  `json:"mac"`
}

// SharedSecretRegister is POST /_synapse/admin/v1/register, as Synapse documents it: whoever knows the secret may make
// accounts, administrators too, with any password.
func (u *Users) SharedSecretRegister(ctx context.Context, r SharedSecretRequest, ip string) (*Login, error) {
	if u.cfg.RegistrationSharedSecret == "" {
		return nil, matrix.BadRequest("shared secret registration is not switched on")
	}
	switch {
	case r.Nonce == "" || r.Username == "" || r.Password == "" || r.MAC == "":
		return nil, matrix.BadJSON("nonce, username, password and mac are needed")
	case len(r.Password) > maxPasswordBytes || strings.Contains(r.Password, "\x00") || strings.Contains(r.Username, "\x00"):
		return nil, matrix.BadRequest("username or password is not valid")
	case !u.useNonce(r.Nonce):
		return nil, matrix.BadRequest("the nonce is unknown, used or has expired")
	}
	if !u.macRight(r) {
		return nil, matrix.Forbidden("the mac is wrong")
	}
	user, err := u.username(r.Username)
	if err == nil {
		err = u.create(ctx, user, r.Password, storage.NewUser{Admin: r.Admin, DisplayName: clean(r.DisplayName, maxDisplayName)})
	}
	if err != nil {
		return nil, err
	}
	return u.openSession(ctx, opening{user: user, ip: ip})
}

func (u *Users) macRight(r SharedSecretRequest) bool {
	role := "notadmin"
	if r.Admin {
		role = "admin"
	}
	parts := []string{r.Nonce, r.Username, r.Password, role}
	if r.UserType != nil {
		parts = append(parts, *r.UserType)
	}
	mac := hmac.New(sha1.New, []byte(u.cfg.RegistrationSharedSecret))
	mac.Write([]byte(strings.Join(parts, "\x00")))
	given, err := hex.DecodeString(r.MAC)
	return err == nil && hmac.Equal(given, mac.Sum(nil))
}
