package federation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// Guard decides which addresses outgoing connections may reach: public ones, and what the configuration allows. It is
// asked with the address that is about to be connected to, after resolution and at every redirect, so neither a name
// that resolves to a private address nor one that changes its mind between check and use gets past it.
type Guard struct {
	allow   []netip.Prefix
	private bool
}

// NewGuard makes a guard that lets connections reach public addresses, those within allow, and with private all.
func NewGuard(private bool, allow []string) (*Guard, error) {
	g := &Guard{private: private}
	for _, s := range allow {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			addr, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("%q is neither an address nor a range such as 10.0.0.0/8", s)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		g.allow = append(g.allow, prefix.Masked())
	}
	return g, nil
}

// ErrPrivateAddress is in the chain of the error of a connection that the guard refused.
var ErrPrivateAddress = errors.New("the address is not public")

// reserved is what netip's own predicates do not know as special.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), // documentation
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"), // NAT64, 6to4 and Teredo lead to IPv4 addresses that could be private
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("fec0::/10"),
}

// Permit returns nil if a connection to addr is allowed, else an error with ErrPrivateAddress in its chain.
func (g *Guard) Permit(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(addr) {
			return nil
		}
	}
	if g.private && addr.IsValid() && !addr.IsMulticast() {
		return nil
	}
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return fmt.Errorf("%s: %w", addr, ErrPrivateAddress)
	}
	for _, p := range reserved {
		if p.Contains(addr) {
			return fmt.Errorf("%s: %w", addr, ErrPrivateAddress)
		}
	}
	return nil
}

// Dialer is a net.Dialer that asks the guard. resolver may be nil for the system's.
func (g *Guard) Dialer(resolver *net.Resolver) *net.Dialer {
	return &net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 30 * time.Second,
		Resolver:  resolver,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			if network != "tcp4" && network != "tcp6" {
				return fmt.Errorf("%s is not allowed", network)
			}
			target, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return g.Permit(target.Addr())
		},
	}
}

// NewGuardedTransport makes an HTTP transport whose every connection, redirects included, asks the guard. It uses no
// proxy of the environment, since the guard would then see only the proxy. It is for whatever reads URLs that people
// give us: URL previews, push gateways, identity servers.
func NewGuardedTransport(g *Guard, resolver *net.Resolver) *http.Transport {
	return &http.Transport{
		DialContext:            g.Dialer(resolver).DialContext,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           100,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// NewGuardedClient is an HTTP client on NewGuardedTransport that follows at most five redirects, none of them from
// https to http.
func NewGuardedClient(g *Guard, resolver *net.Resolver, timeout time.Duration) *http.Client {
	return &http.Client{Transport: NewGuardedTransport(g, resolver), Timeout: timeout, CheckRedirect: checkRedirect}
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("more than five redirects")
	}
	if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return errors.New("redirect from https to " + r.URL.Scheme)
	}
	return nil
}
