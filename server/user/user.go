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
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default()
}

// Session is an authenticated request: whose it is and from which device. It is shared and must not be changed.
type Session struct {
	User      matrix.UserID
	Device    matrix.DeviceID
	Admin     bool
	Locked    bool // may only log out; api answers M_USER_LOCKED with soft_logout
	Suspended bool // may read, leave rooms and redact; api answers M_USER_SUSPENDED otherwise
	Expires   time.Time
	hash      [32]byte
}
