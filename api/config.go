package api

import (
	"strings"
	"time"
)

// Config is the part of the configuration that is about the client-server API.
type Config struct {
	// PublicURL is the base URL at which clients reach this server, given out by /.well-known/matrix/client.
	// Empty: the well-known answers 404 and clients must be told the address.
	PublicURL string `mapstructure:"public_url" yaml:"public_url"`
	// FederationAddress is host:port at which other servers reach this one, given out by /.well-known/matrix/server.
	// Empty: the well-known answers 404 and servers use the server name with port 8448, or SRV records.
	FederationAddress string `mapstructure:"federation_address" yaml:"federation_address"`
	// SupportContacts are given out by /.well-known/matrix/support. Empty and without SupportPage: 404.
	SupportContacts []SupportContact `mapstructure:"support_contacts" yaml:"support_contacts"`
	// SupportPage is the URL of a page that helps the users of this server.
	SupportPage string `mapstructure:"support_page" yaml:"support_page"`

	// SSOClients are the addresses of web clients, such as https://app.element.io/, to which somebody who has signed in with the company
	// account is led back without being asked whether they know the client. The built-in web client always is one.
	SSOClients []string `mapstructure:"sso_clients" yaml:"sso_clients"`

	// TrustedProxies are the addresses or networks (CIDR) whose X-Forwarded-For is believed.
	TrustedProxies []string `mapstructure:"trusted_proxies" yaml:"trusted_proxies"`
	// QueryTokens accepts access tokens in the query string (?access_token=), as older clients send them. They end up in
	// the logs of proxies.
	QueryTokens bool `mapstructure:"query_tokens" yaml:"query_tokens"`

	// MaxBodyBytes limits the JSON body of a request where no smaller limit holds.
	MaxBodyBytes int64 `mapstructure:"max_body_bytes" yaml:"max_body_bytes"`
	// MaxEventBodyBytes limits the body of a request that sends one event. The event itself, as canonical JSON, is
	// limited to 65,536 bytes by the specification.
	MaxEventBodyBytes int64 `mapstructure:"max_event_body_bytes" yaml:"max_event_body_bytes"`

	// RateLimits slow down those who ask too much.
	RateLimits RateLimits `mapstructure:"rate_limits" yaml:"rate_limits"`
	// TURN servers for voice and video calls between clients.
	TURN TURN `mapstructure:"turn" yaml:"turn"`
	// RTCFoci are LiveKit services for Element Call, given out as rtc transports and in the well-known.
	RTCFoci []RTCFocus `mapstructure:"rtc_foci" yaml:"rtc_foci"`
}

// baseURL is PublicURL without the slash at its end.
func (c Config) baseURL() string { return strings.TrimRight(c.PublicURL, "/") }

// SupportContact is a person to turn to. Spec v1.19 client-server-api/#getwell-knownmatrixsupport
type SupportContact struct {
	// Role is "m.role.admin", "m.role.security" or another namespaced one.
	Role string `mapstructure:"role" yaml:"role" json:"role"`
	// MatrixID of the person; it or EmailAddress must be given.
	MatrixID string `mapstructure:"matrix_id" yaml:"matrix_id" json:"matrix_id,omitempty"`
	// EmailAddress of the person.
	EmailAddress string `mapstructure:"email_address" yaml:"email_address" json:"email_address,omitempty"`
}

// TURN configures GET /voip/turnServer.
type TURN struct {
	// URIs of the TURN servers, for example turn:turn.example.org:3478?transport=udp. Empty: clients are told of none.
	URIs []string `mapstructure:"uris" yaml:"uris"`
	// SharedSecret is coturn's static-auth-secret: each user gets a password of its own that ends with Lifetime.
	SharedSecret string `mapstructure:"shared_secret" yaml:"shared_secret"`
	// Username and Password are given to everybody where there is no SharedSecret.
	Username string `mapstructure:"username" yaml:"username"`
	// Password belongs to Username.
	Password string `mapstructure:"password" yaml:"password"`
	// Lifetime of what is given out.
	Lifetime time.Duration `mapstructure:"lifetime" yaml:"lifetime"`
}

// RTCFocus is a LiveKit service (lk-jwt-service).
type RTCFocus struct {
	// ServiceURL is the https URL of the service.
	ServiceURL string `mapstructure:"service_url" yaml:"service_url"`
}

// RateLimits holds one limit for each kind of request. What is below counts per user, or per client address where
// nobody is signed in.
type RateLimits struct {
	// Enabled false switches all of them off (the development world and tests do).
	Enabled bool `mapstructure:"enabled" yaml:"enabled"`
	// Message is sending events, per user.
	Message Rate `mapstructure:"message" yaml:"message"`
	// LoginAddress is signing in, per client address.
	LoginAddress Rate `mapstructure:"login_address" yaml:"login_address"`
	// LoginAccount is signing in to one account, from wherever.
	LoginAccount Rate `mapstructure:"login_account" yaml:"login_account"`
	// Registration is making accounts, per client address.
	Registration Rate `mapstructure:"registration" yaml:"registration"`
	// Join is joining and knocking on rooms, per user.
	Join Rate `mapstructure:"join" yaml:"join"`
	// Invite is inviting people, per user.
	Invite Rate `mapstructure:"invite" yaml:"invite"`
	// CreateRoom is making and upgrading rooms, per user.
	CreateRoom Rate `mapstructure:"create_room" yaml:"create_room"`
	// Media is uploads and URL previews, per user.
	Media Rate `mapstructure:"media" yaml:"media"`
	// Live is appending to voice messages that are heard while they are spoken, per user: some times a second for each.
	Live Rate `mapstructure:"live" yaml:"live"`
	// Keys is uploading, asking for and claiming keys and sending to devices, per user.
	Keys Rate `mapstructure:"keys" yaml:"keys"`
	// Search is searching messages, rooms and people, per user.
	Search Rate `mapstructure:"search" yaml:"search"`
	// Report is reporting to the administrators, per user.
	Report Rate `mapstructure:"report" yaml:"report"`
	// Account is changing passwords, devices, profile and account data, per user.
	Account Rate `mapstructure:"account" yaml:"account"`
	// Other is everything else that needs no access token, per client address.
	Other Rate `mapstructure:"other" yaml:"other"`
}

// Rate is a token bucket.
type Rate struct {
	// PerSecond is how many requests a second are allowed in the long run. 0: without limit.
	PerSecond float64 `mapstructure:"per_second" yaml:"per_second"`
	// Burst is how many may come at once.
	Burst int `mapstructure:"burst" yaml:"burst"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{
		QueryTokens:       true,
		MaxBodyBytes:      12 << 20,
		MaxEventBodyBytes: 256 << 10,
		TURN:              TURN{Lifetime: 24 * time.Hour},
		RateLimits: RateLimits{
			Enabled:      true,
			Message:      Rate{PerSecond: 10, Burst: 100},
			LoginAddress: Rate{PerSecond: 0.2, Burst: 10},
			LoginAccount: Rate{PerSecond: 0.1, Burst: 5},
			Registration: Rate{PerSecond: 0.2, Burst: 5},
			Join:         Rate{PerSecond: 1, Burst: 20},
			Invite:       Rate{PerSecond: 1, Burst: 50},
			CreateRoom:   Rate{PerSecond: 0.2, Burst: 20},
			Media:        Rate{PerSecond: 10, Burst: 100},
			Live:         Rate{PerSecond: 40, Burst: 400},
			Keys:         Rate{PerSecond: 20, Burst: 200},
			Search:       Rate{PerSecond: 2, Burst: 30},
			Report:       Rate{PerSecond: 1, Burst: 5},
			Account:      Rate{PerSecond: 10, Burst: 100},
			Other:        Rate{PerSecond: 20, Burst: 200},
		},
	}
}
