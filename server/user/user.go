// Package user decides who may come in: accounts, passwords, registration, login, tokens, devices, profiles and
// account data of the people of this server.
//
// Everything lasting lies in storage/users*.go. In memory stay the sessions of access tokens that were seen lately
// (so that Authenticate needs no query), running user-interactive authentications, and when a device was last seen.
package user

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Config is the part of the configuration that says who may come in.
type Config struct {
	// Registration says who may make an account: "closed" (nobody but the admin API and the shared secret), "token"
	// (with a registration token) or "open" (anybody; only for tests).
	Registration string `mapstructure:"registration" yaml:"registration"`
	// RegistrationSharedSecret allows Synapse's /_synapse/admin/v1/register with this secret. Empty switches it off.
	RegistrationSharedSecret string `mapstructure:"registration_shared_secret" yaml:"registration_shared_secret"`
	// PasswordLogin lets people sign in with a password of this server. Without it only sign-in with a company account is left.
	PasswordLogin bool `mapstructure:"password_login" yaml:"password_login"`
	// SSO lets people in with the account that they have with their company. docs/operations.md leads through it.
	SSO SSOConfig `mapstructure:"sso" yaml:"sso"`
	// MinPasswordLength in Unicode characters.
	MinPasswordLength int `mapstructure:"min_password_length" yaml:"min_password_length"`
	// PasswordMemoryKiB is argon2id's memory for one hash, in KiB. 19456 (19 MiB) is the OWASP figure.
	PasswordMemoryKiB uint32 `mapstructure:"password_memory_kib" yaml:"password_memory_kib"`
	// PasswordTime is argon2id's number of passes.
	PasswordTime uint32 `mapstructure:"password_time" yaml:"password_time"`
	// PasswordHashes is how many passwords are hashed at the same time; others wait.
	PasswordHashes int `mapstructure:"password_hashes" yaml:"password_hashes"`
	// AccessTokenLifetime is how long an access token of a client that can refresh is valid.
	AccessTokenLifetime time.Duration `mapstructure:"access_token_lifetime" yaml:"access_token_lifetime"`
	// RefreshTokenLifetime is how long an unused refresh token is valid. 0 means for ever.
	RefreshTokenLifetime time.Duration `mapstructure:"refresh_token_lifetime" yaml:"refresh_token_lifetime"`
	// UIALifetime is how long a user-interactive authentication may take.
	UIALifetime time.Duration `mapstructure:"uia_lifetime" yaml:"uia_lifetime"`
	// UIASessions is how many of them may be under way; the oldest gives way.
	UIASessions int `mapstructure:"uia_sessions" yaml:"uia_sessions"`
	// CachedTokens is how many access tokens are kept in memory.
	CachedTokens int `mapstructure:"cached_tokens" yaml:"cached_tokens"`
	// MaxDevices is how many devices one account may have; a login past it is refused.
	MaxDevices int `mapstructure:"max_devices" yaml:"max_devices"`
	// MaxAccountDataBytes limits one piece of account data.
	MaxAccountDataBytes int `mapstructure:"max_account_data_bytes" yaml:"max_account_data_bytes"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{
		Registration:         "token",
		PasswordLogin:        true,
		MinPasswordLength:    8,
		PasswordMemoryKiB:    19 * 1024,
		PasswordTime:         2,
		PasswordHashes:       2,
		AccessTokenLifetime:  time.Hour,
		RefreshTokenLifetime: 0,
		UIALifetime:          15 * time.Minute,
		UIASessions:          10000,
		CachedTokens:         50000,
		MaxDevices:           200,
		MaxAccountDataBytes:  256 * 1024,
	}
}

// CheapPasswords makes hashing take no time worth mentioning: for tests and the development world only.
func (c Config) CheapPasswords() Config {
	c.PasswordMemoryKiB, c.PasswordTime, c.PasswordHashes = 64, 1, 8
	return c
}

// Remote asks other servers about their users.
type Remote interface {
	// QueryProfile asks server for the profile of its user; with a field it asks for this field alone.
	// The error is a *matrix.Error with M_NOT_FOUND if there is no such user or field.
	QueryProfile(ctx context.Context, server matrix.ServerName, user matrix.UserID, field string) (map[string]json.RawMessage, error)
}

// Options are what New needs.
type Options struct {
	Config     Config
	ServerName matrix.ServerName
	DB         *storage.DB
	Remote     Remote           // nil: no other servers
	SSO        *http.Client     // for Config.SSO's providers; nil: http.DefaultClient
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default()
}

// Users is the room. Safe for concurrent use.
type Users struct {
	cfg    Config
	server matrix.ServerName
	db     *storage.DB
	remote Remote
	now    func() time.Time
	log    *slog.Logger

	hashing  chan struct{} // a place for each password that is being hashed
	noHash   func() string // verified in vain when there is no such user, so that the answer takes as long
	sessions *storage.Memo[tokenHash, *Session]
	exist    *storage.Memo[matrix.UserID, bool]
	names    *storage.Memo[matrix.UserID, nameAndAvatar]
	ignored  *storage.Memo[matrix.UserID, map[matrix.UserID]bool]
	filters  *storage.Memo[filterKey, json.RawMessage]
	uia      uiaSessions
	nonces   nonces
	seen     lastSeen

	providers []*provider // in the order of the configuration
	stop      func()
}

// New builds the room; nothing runs before Run. Close is for those whose database lives on.
func New(o Options) *Users {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	u := &Users{
		cfg: o.Config, server: o.ServerName, db: o.DB, remote: o.Remote, now: o.Now, log: o.Log,
		hashing:  make(chan struct{}, max(1, o.Config.PasswordHashes)),
		sessions: storage.NewMemo[tokenHash, *Session](max(1, o.Config.CachedTokens)),
		exist:    storage.NewMemo[matrix.UserID, bool](keptUsers),
		names:    storage.NewMemo[matrix.UserID, nameAndAvatar](keptUsers),
		ignored:  storage.NewMemo[matrix.UserID, map[matrix.UserID]bool](keptUsers),
		filters:  storage.NewMemo[filterKey, json.RawMessage](keptUsers),
	}
	u.noHash = sync.OnceValue(func() string { return hashPassword("", o.Config) })
	client := o.SSO
	if client == nil {
		client = http.DefaultClient
	}
	for _, p := range o.Config.SSO.Providers {
		u.providers = append(u.providers, newProvider(p, client, o.Now))
	}
	u.uia.max, u.uia.lifetime = max(1, o.Config.UIASessions), o.Config.UIALifetime
	u.stop = o.DB.Listen(u.hear)
	return u
}

// keptUsers is how many users' small properties are kept in memory.
const keptUsers = 20000

// Close stops listening to the database.
func (u *Users) Close() { u.stop() }

// hear drops from memory what a commit changed.
func (u *Users) hear(c storage.Commit) {
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			u.sessions.Clear()
			u.exist.Clear()
			u.names.Clear()
			u.ignored.Clear()
		}
		for _, w := range c.Changes[i].Wakes {
			switch w.Topic {
			case storage.TopicAccountData:
				u.ignored.Drop(w.User)
			case storage.TopicProfile:
				u.names.Drop(w.User)
			}
		}
	}
}

// Run writes out "last seen" from time to time, forgets what has expired, and ends with ctx.
func (u *Users) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			u.flushSeen(last)
			return nil
		case <-tick.C:
		}
		u.flushSeen(ctx)
		u.uia.expire(u.now())
		if err := u.db.ForgetExpired(ctx, u.now().UnixMilli()); err != nil && ctx.Err() == nil {
			u.log.Error("forget expired tokens", "err", err)
		}
	}
}

// flushEvery is how often "last seen" is written out: rarely, because each costs a commit.
const flushEvery = 5 * time.Minute
