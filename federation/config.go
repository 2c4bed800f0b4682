package federation

import (
	"fmt"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
)

// Config is the section federation of the configuration.
type Config struct {
	// Enabled says whether this server talks to other servers at all. When false, only the endpoints that local software
	// needs are answered: version, the signing keys and OpenID user info.
	Enabled bool `mapstructure:"enabled" yaml:"enabled"`
	// Allow lists the server names this server talks to; "*.example.org" stands for all below example.org. Empty: all.
	// With a list, no other server is ever contacted or listened to.
	Allow []string `mapstructure:"allow" yaml:"allow"`
	// Deny lists server names, or patterns as in allow, this server does not talk to. It outweighs allow.
	Deny []string `mapstructure:"deny" yaml:"deny"`
	// Signatures is the policy for HTTP Signatures on incoming requests: "accept" takes requests without one,
	// "on-first-use" takes them until a server has signed once, "required" never. X-Matrix is demanded in any case, and a
	// signature that is there must be valid.
	Signatures string `mapstructure:"signatures" yaml:"signatures"`
	// Peers changes settings for single servers.
	Peers []Peer `mapstructure:"peers" yaml:"peers"`
	// AllowPrivateAddresses lets outgoing requests to other servers reach loopback and private addresses.
	AllowPrivateAddresses bool `mapstructure:"allow_private_addresses" yaml:"allow_private_addresses"`
	// AllowAddresses lists addresses and ranges ("10.1.0.0/16") that may be reached although they are private.
	AllowAddresses []string `mapstructure:"allow_addresses" yaml:"allow_addresses"`
	// CAFile is a PEM file of certificate authorities trusted for federation, in addition to the system's.
	CAFile string `mapstructure:"ca_file" yaml:"ca_file"`
	// OnlyOwnCA trusts the authorities of ca_file only, and not the system's.
	OnlyOwnCA bool `mapstructure:"only_own_ca" yaml:"only_own_ca"`
	// Notaries are servers asked for the keys of a server that cannot be reached itself. None by default: a notary
	// learns whom this server talks to, and is believed.
	Notaries []string `mapstructure:"notaries" yaml:"notaries"`
	// PublicHosts are further values of the Host header under which other servers may reach this one, for a reverse
	// proxy that changes it on the way. The server name is always among them.
	PublicHosts []string `mapstructure:"public_hosts" yaml:"public_hosts"`
	// RequestTimeout bounds an ordinary request to another server, answer included.
	RequestTimeout time.Duration `mapstructure:"request_timeout" yaml:"request_timeout"`
	// JoinTimeout bounds the requests whose answer may hold the whole state of a room.
	JoinTimeout time.Duration `mapstructure:"join_timeout" yaml:"join_timeout"`
	// MaxResponseBytes bounds the answers that may hold the whole state of a room; others have smaller fixed limits.
	MaxResponseBytes int64 `mapstructure:"max_response_bytes" yaml:"max_response_bytes"`
	// MaxRequestBytes bounds the body of an incoming request.
	MaxRequestBytes int64 `mapstructure:"max_request_bytes" yaml:"max_request_bytes"`
	// MaxBackoff is the longest pause before a server that does not answer is tried again. Hearing from it ends the pause.
	MaxBackoff time.Duration `mapstructure:"max_backoff" yaml:"max_backoff"`
	// ProfileQueries answers other servers' questions for the display names and avatars of users here.
	ProfileQueries bool `mapstructure:"profile_queries" yaml:"profile_queries"`
	// PublicRooms shows the public room directory to other servers.
	PublicRooms bool `mapstructure:"public_rooms" yaml:"public_rooms"`
	// Presence exchanges presence with other servers.
	Presence bool `mapstructure:"presence" yaml:"presence"`
}

// Peer is what differs for one server.
type Peer struct {
	// Server is the server name.
	Server string `mapstructure:"server" yaml:"server"`
	// Signatures is the policy for this server; empty for that of all.
	Signatures string `mapstructure:"signatures" yaml:"signatures"`
}

// The policies for HTTP Signatures on incoming requests.
const (
	policyAccept     = "accept"
	policyOnFirstUse = "on-first-use"
	policyRequired   = "required"
)

// DefaultConfig is an open server that talks to every Matrix server on public addresses.
func DefaultConfig() Config {
	return Config{
		Enabled:          true,
		Allow:            []string{},
		Deny:             []string{},
		Signatures:       policyOnFirstUse,
		Peers:            []Peer{},
		AllowAddresses:   []string{},
		Notaries:         []string{},
		PublicHosts:      []string{},
		RequestTimeout:   30 * time.Second,
		JoinTimeout:      2 * time.Minute,
		MaxResponseBytes: 128 << 20,
		MaxRequestBytes:  16 << 20,
		MaxBackoff:       time.Hour,
		ProfileQueries:   true,
		PublicRooms:      true,
		Presence:         true,
	}
}

// Validate says what is wrong with the configuration, naming the key.
func (c Config) Validate() error {
	for _, list := range []struct {
		key      string
		patterns []string
	}{{"allow", c.Allow}, {"deny", c.Deny}} {
		for _, p := range list.patterns {
			if strings.Trim(p, "*") == "" || strings.Contains(p[1:], "*") {
				return fmt.Errorf("federation.%s: %q is not a server name or pattern", list.key, p)
			}
		}
	}
	if !validPolicy(c.Signatures) {
		return fmt.Errorf("federation.signatures: %q is not accept, on-first-use or required", c.Signatures)
	}
	for _, p := range c.Peers {
		if _, err := matrix.ParseServerName(p.Server); err != nil {
			return fmt.Errorf("federation.peers: %w", err)
		}
		if p.Signatures != "" && !validPolicy(p.Signatures) {
			return fmt.Errorf("federation.peers: signatures of %s: %q is not accept, on-first-use or required", p.Server, p.Signatures)
		}
	}
	for _, n := range c.Notaries {
		if _, err := matrix.ParseServerName(n); err != nil {
			return fmt.Errorf("federation.notaries: %w", err)
		}
	}
	if c.OnlyOwnCA && c.CAFile == "" {
		return fmt.Errorf("federation.only_own_ca: there is no ca_file")
	}
	if c.RequestTimeout <= 0 || c.JoinTimeout <= 0 || c.MaxBackoff <= 0 {
		return fmt.Errorf("federation: request_timeout, join_timeout and max_backoff must be positive")
	}
	if c.MaxResponseBytes < 1<<20 || c.MaxRequestBytes < 1<<20 {
		return fmt.Errorf("federation: max_response_bytes and max_request_bytes must be at least 1 MiB")
	}
	_, err := NewGuard(c.AllowPrivateAddresses, c.AllowAddresses)
	if err != nil {
		return fmt.Errorf("federation.allow_addresses: %w", err)
	}
	return nil
}

func validPolicy(s string) bool {
	return s == policyAccept || s == policyOnFirstUse || s == policyRequired
}

// permits says whether this server talks to another one. The host counts, not the port.
func (c Config) permits(server matrix.ServerName) bool {
	if !c.Enabled {
		return false
	}
	return (len(c.Allow) == 0 || matchesServer(c.Allow, server)) && !matchesServer(c.Deny, server)
}

// matchesServer compares a server name, with and without its port, and regardless of case, with patterns.
func matchesServer(patterns []string, server matrix.ServerName) bool {
	full, host := strings.ToLower(string(server)), strings.ToLower(server.Host())
	for _, p := range patterns {
		p = strings.ToLower(p)
		if p == full || p == host {
			return true
		}
		if suffix, ok := strings.CutPrefix(p, "*"); ok && suffix != "" && (strings.HasSuffix(host, suffix) || strings.HasSuffix(full, suffix)) {
			return true
		}
	}
	return false
}

// policy is the policy for incoming requests of server.
func (c Config) policy(server matrix.ServerName) string {
	for _, p := range c.Peers {
		if strings.EqualFold(p.Server, string(server)) && p.Signatures != "" {
			return p.Signatures
		}
	}
	return c.Signatures
}
