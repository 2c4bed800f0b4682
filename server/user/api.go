package user

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"parley.im/parley/server/matrix"
)

var errNotYet = errors.New("not implemented yet")

// Users is the room. Safe for concurrent use.
type Users struct{ o Options }

// New builds the room; nothing runs before Run.
func New(o Options) *Users { return &Users{o: o} }

// Run flushes "last seen", forgets what has expired, and ends with ctx.
func (u *Users) Run(ctx context.Context) error { return errNotYet }

// FirstAdminToken returns a one-time registration token whose user becomes admin, made anew at every start for as
// long as the server has no account at all; "" once there is one.
func (u *Users) FirstAdminToken(ctx context.Context) (string, error) { return "", errNotYet }

// ---- sessions

// Authenticate finds whose access token this is, without a query if it was seen lately.
// Errors: M_UNKNOWN_TOKEN (with soft_logout when it has expired and can be refreshed or logged in again).
// A locked account's Session has Locked set and no error; the caller refuses all but logout.
func (u *Users) Authenticate(ctx context.Context, token string) (*Session, error) {
	return nil, errNotYet
}

// Seen notes, in memory, that the session was used now from this address (written out rarely).
func (u *Users) Seen(s *Session, ip, userAgent string) {}

// Login is the answer to register and login.
type Login struct {
	UserID       matrix.UserID   `json:"user_id"`
	AccessToken  string          `json:"access_token,omitempty"`
	DeviceID     matrix.DeviceID `json:"device_id,omitempty"`
	RefreshToken string          `json:"refresh_token,omitempty"`
	ExpiresInMS  int64           `json:"expires_in_ms,omitempty"`
	HomeServer   string          `json:"home_server,omitempty"` // deprecated, but old clients read it
}

// LoginRequest is the body of POST /login.
type LoginRequest struct {
	Type       string          `json:"type"`
	Identifier json.RawMessage `json:"identifier"`
	User       string          `json:"user"` // deprecated form of identifier
	Medium     string          `json:"medium"`
	Address    string          `json:"address"`
	Password   string          `json:"password"`
	Token      string          `json:"token"`
	DeviceID   string          `json:"device_id"`
	Name       string          `json:"initial_device_display_name"`
	Refresh    bool            `json:"refresh_token"`
}

// LoginFlows is the answer to GET /login.
func (u *Users) LoginFlows() json.RawMessage { return nil }

// Login checks the password or login token and makes a session. Errors: M_FORBIDDEN (wrong, without saying what),
// M_USER_DEACTIVATED, M_USER_LOCKED, M_UNKNOWN (unknown type), M_INVALID_PARAM, M_BAD_JSON.
// A device ID that exists is taken over and its old tokens end.
func (u *Users) Login(ctx context.Context, r LoginRequest, ip string) (*Login, error) {
	return nil, errNotYet
}

// LoginToken makes a short-lived single-use token with which another client logs in as this user.
func (u *Users) LoginToken(ctx context.Context, user matrix.UserID) (token string, expires time.Duration, err error) {
	return "", 0, errNotYet
}

// Refresh exchanges a refresh token. The old pair stays valid until the new one is first used.
// Errors: M_UNKNOWN_TOKEN (soft_logout true).
func (u *Users) Refresh(ctx context.Context, refreshToken string) (*Login, error) {
	return nil, errNotYet
}

// Logout ends the session and deletes its device, its keys and its to-device messages.
func (u *Users) Logout(ctx context.Context, s *Session) error { return errNotYet }

// LogoutAll ends all sessions of the user and deletes all devices.
func (u *Users) LogoutAll(ctx context.Context, user matrix.UserID) error { return errNotYet }

// ---- registration and user-interactive authentication

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
	return nil, nil, errNotYet
}

// Available answers GET /register/available: nil if the user name can be had.
func (u *Users) Available(ctx context.Context, localpart string) error { return errNotYet }

// RegistrationTokenValid answers GET /register/m.login.registration_token/validity.
func (u *Users) RegistrationTokenValid(ctx context.Context, token string) (bool, error) {
	return false, errNotYet
}

// NewAccount is an account that an administrator or a sign-in provider makes.
type NewAccount struct {
	Localpart   string
	Password    string // "": cannot log in with a password
	Admin       bool
	DisplayName string
}

// Create makes an account without asking anybody. Errors as Register.
func (u *Users) Create(ctx context.Context, a NewAccount) (matrix.UserID, error) {
	return "", errNotYet
}

// OpenSession makes a session for the user without asking for a password, as login does after its checks.
// device "" makes a new one.
func (u *Users) OpenSession(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string, refresh bool, ip string) (*Login, error) {
	return nil, errNotYet
}

// SharedSecretNonce is GET /_synapse/admin/v1/register. Error: M_UNKNOWN 400 if the secret is not set.
func (u *Users) SharedSecretNonce() (string, error) { return "", errNotYet }

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

// SharedSecretRegister is POST /_synapse/admin/v1/register.
func (u *Users) SharedSecretRegister(ctx context.Context, r SharedSecretRequest, ip string) (*Login, error) {
	return nil, errNotYet
}

// Challenge is the body of a 401 answer that asks for (more) authentication.
// Spec v1.19 client-server-api/#user-interactive-api-in-the-rest-api
type Challenge struct {
	Session   string                     `json:"session"`
	Flows     []Flow                     `json:"flows"`
	Params    map[string]json.RawMessage `json:"params"`
	Completed []string                   `json:"completed,omitempty"`
	Code      string                     `json:"errcode,omitempty"`
	Message   string                     `json:"error,omitempty"`
}

// Flow is one way of authenticating.
type Flow struct {
	Stages []string `json:"stages"`
}

// Reauthenticate asks a logged-in user for the password again before a sensitive call (delete devices, change the
// password, deactivate, replace cross-signing keys). operation names the call, body is the whole request: it must
// stay the same, but for "auth", while one session goes on. nil, nil means: go ahead.
func (u *Users) Reauthenticate(ctx context.Context, s *Session, operation string, body []byte) (*Challenge, error) {
	return nil, errNotYet
}

// ---- devices

// Device is as clients see it.
type Device struct {
	UserID      matrix.UserID   `json:"user_id,omitempty"`
	DeviceID    matrix.DeviceID `json:"device_id"`
	DisplayName *string         `json:"display_name,omitempty"`
	LastSeenIP  string          `json:"last_seen_ip,omitempty"`
	LastSeenMS  int64           `json:"last_seen_ts,omitempty"`
	UserAgent   string          `json:"-"`
}

// Devices lists all devices of a user of this server, oldest first.
func (u *Users) Devices(ctx context.Context, user matrix.UserID) ([]Device, error) {
	return nil, errNotYet
}

// Device finds one. Error: M_NOT_FOUND.
func (u *Users) Device(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (*Device, error) {
	return nil, errNotYet
}

// RenameDevice sets the display name; other servers and users hear of it. Error: M_NOT_FOUND.
func (u *Users) RenameDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error {
	return errNotYet
}

// DeleteDevices ends the devices' sessions and deletes them with keys and messages. Unknown ones are passed over.
// Call Reauthenticate first.
func (u *Users) DeleteDevices(ctx context.Context, user matrix.UserID, devices []matrix.DeviceID) error {
	return errNotYet
}

// ---- the account

// ChangePassword sets a new password. With logoutOthers all devices but the session's are deleted.
// Error: M_WEAK_PASSWORD. Call Reauthenticate first.
func (u *Users) ChangePassword(ctx context.Context, s *Session, password string, logoutOthers bool) error {
	return errNotYet
}

// Deactivate ends the account for good: no login, no devices, no profile, the name stays taken. The caller leaves
// the rooms. With erase the user also asked that old messages are not shown to new members.
func (u *Users) Deactivate(ctx context.Context, user matrix.UserID, erase bool) error {
	return errNotYet
}

// Account is what administrators see.
type Account struct {
	UserID      matrix.UserID
	CreatedMS   int64
	Admin       bool
	Locked      bool
	Suspended   bool
	Deactivated bool
	Erased      bool
	HasPassword bool
}

// Account finds an account of this server. Error: M_NOT_FOUND.
func (u *Users) Account(ctx context.Context, user matrix.UserID) (*Account, error) {
	return nil, errNotYet
}

// Accounts pages through all accounts in order of their IDs, starting after the given one.
func (u *Users) Accounts(ctx context.Context, after matrix.UserID, limit int) ([]Account, error) {
	return nil, errNotYet
}

// SetPassword is an administrator's reset. SetAdmin, SetLocked and SetSuspended take effect on open sessions at once.
func (u *Users) SetPassword(ctx context.Context, user matrix.UserID, password string, logout bool) error {
	return errNotYet
}

// SetAdmin makes the user an administrator, or no longer.
func (u *Users) SetAdmin(ctx context.Context, user matrix.UserID, admin bool) error { return errNotYet }

// SetLocked locks the account: every call but logout fails with M_USER_LOCKED until it is unlocked.
func (u *Users) SetLocked(ctx context.Context, user matrix.UserID, locked bool) error {
	return errNotYet
}

// SetSuspended suspends the account: it can read, leave and redact only.
func (u *Users) SetSuspended(ctx context.Context, user matrix.UserID, suspended bool) error {
	return errNotYet
}

// IsLocal reports whether the user ID belongs to this server (not whether the account exists).
func (u *Users) IsLocal(user matrix.UserID) bool { return user.Server() == u.o.ServerName }

// Exists reports whether there is an account, deactivated ones excepted. Cached when true.
func (u *Users) Exists(ctx context.Context, user matrix.UserID) (bool, error) {
	return false, errNotYet
}

// RegistrationToken lets people register.
type RegistrationToken struct {
	Token       string `json:"token"`
	UsesAllowed *int   `json:"uses_allowed"` // nil: any number
	Pending     int    `json:"pending"`
	Completed   int    `json:"completed"`
	ExpiryMS    *int64 `json:"expiry_time"` // nil: never
	Admin       bool   `json:"-"`
}

// NewRegistrationToken stores t; an empty Token is made up. Errors: M_INVALID_PARAM (grammar, taken).
func (u *Users) NewRegistrationToken(ctx context.Context, t RegistrationToken) (*RegistrationToken, error) {
	return nil, errNotYet
}

// RegistrationTokens lists all.
func (u *Users) RegistrationTokens(ctx context.Context) ([]RegistrationToken, error) {
	return nil, errNotYet
}

// DeleteRegistrationToken forgets one. Error: M_NOT_FOUND.
func (u *Users) DeleteRegistrationToken(ctx context.Context, token string) error { return errNotYet }

// ---- OpenID

// OpenIDToken is the answer to request_token.
type OpenIDToken struct {
	AccessToken      string            `json:"access_token"`
	TokenType        string            `json:"token_type"`
	MatrixServerName matrix.ServerName `json:"matrix_server_name"`
	ExpiresIn        int64             `json:"expires_in"` // seconds
}

// NewOpenIDToken makes a token that a third party shows to this server's /openid/userinfo.
func (u *Users) NewOpenIDToken(ctx context.Context, user matrix.UserID) (*OpenIDToken, error) {
	return nil, errNotYet
}

// OpenIDUser finds whose token it is. Error: M_UNKNOWN_TOKEN 401.
func (u *Users) OpenIDUser(ctx context.Context, token string) (matrix.UserID, error) {
	return "", errNotYet
}

// ---- profiles

// Profile returns all fields of the user's profile; a remote user's server is asked. Error: M_NOT_FOUND.
func (u *Users) Profile(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	return nil, errNotYet
}

// ProfileField returns {field: value}; a remote user's server is asked. Error: M_NOT_FOUND.
func (u *Users) ProfileField(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	return nil, errNotYet
}

// LocalProfile returns all fields of a user of this server without asking anybody. Error: M_NOT_FOUND.
func (u *Users) LocalProfile(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	return nil, errNotYet
}

// DisplayNameAndAvatar are a local user's, for member events; "" if not set. From memory when warm.
func (u *Users) DisplayNameAndAvatar(ctx context.Context, user matrix.UserID) (name, avatarURL string, err error) {
	return "", "", errNotYet
}

// SetProfileField sets one field of a local user; value nil or JSON null deletes it. changed is false if it had
// this value already. The caller sends the member events when displayname or avatar_url changed.
// Errors: M_KEY_TOO_LARGE, M_PROFILE_TOO_LARGE, M_INVALID_PARAM, M_BAD_JSON, M_NOT_FOUND (no such user).
func (u *Users) SetProfileField(ctx context.Context, user matrix.UserID, field string, value json.RawMessage) (changed bool, err error) {
	return false, errNotYet
}

// Found is a result of the user directory.
type Found struct {
	UserID      matrix.UserID `json:"user_id"`
	DisplayName string        `json:"display_name,omitempty"`
	AvatarURL   string        `json:"avatar_url,omitempty"`
}

// Search looks for term in the user IDs and display names of the people of this server.
func (u *Users) Search(ctx context.Context, searcher matrix.UserID, term string, limit int) (found []Found, limited bool, err error) {
	return nil, false, errNotYet
}

// ---- account data, tags, filters

// AccountData returns the content; room "" is global. Error: M_NOT_FOUND.
// Global m.push_rules belongs to server/push, which adds the defaults; m.fully_read of a room is account data.
func (u *Users) AccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	return nil, errNotYet
}

// SetAccountData replaces the content and tells the user's syncs. room "" is global.
// Errors: M_BAD_JSON (no object), M_TOO_LARGE, 405 M_BAD_JSON for m.fully_read and m.push_rules, which have endpoints
// of their own.
func (u *Users) SetAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) error {
	return errNotYet
}

// Tags returns {"tags": …} of the room.
func (u *Users) Tags(ctx context.Context, user matrix.UserID, room matrix.RoomID) (json.RawMessage, error) {
	return nil, errNotYet
}

// SetTag sets one tag. Errors: M_BAD_JSON, M_INVALID_PARAM (name over 255 bytes, order not in 0..1).
func (u *Users) SetTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string, content json.RawMessage) error {
	return errNotYet
}

// DeleteTag removes one tag; it is no error if it is not there.
func (u *Users) DeleteTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string) error {
	return errNotYet
}

// CopyRoomAccountData copies tags and push rules of one user from a room to the one that replaces it.
func (u *Users) CopyRoomAccountData(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	return errNotYet
}

// Ignored is whom the user ignores (m.ignored_user_list); shared, must not be changed. From memory when warm.
func (u *Users) Ignored(ctx context.Context, user matrix.UserID) (map[matrix.UserID]bool, error) {
	return nil, errNotYet
}

// NewFilter stores a filter and returns its ID; an equal filter gets the ID it has.
// Errors: M_BAD_JSON, M_TOO_LARGE (64 KiB).
func (u *Users) NewFilter(ctx context.Context, user matrix.UserID, filter json.RawMessage) (string, error) {
	return "", errNotYet
}

// Filter finds a stored filter. It never changes: callers may keep it. Error: M_NOT_FOUND.
func (u *Users) Filter(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	return nil, errNotYet
}
