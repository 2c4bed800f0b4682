package federation

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"parley.im/parley/server/matrix"
)

const (
	defaultPort = "8448"

	wellKnownTimeout  = 10 * time.Second
	maxWellKnownBytes = 50 << 10

	// How long what /.well-known/matrix/server says is believed. The spec's recommendations, and a lower bound, so that a
	// server that forbids caching is not asked with every request.
	wellKnownDefaultTTL = 24 * time.Hour
	wellKnownMaxTTL     = 48 * time.Hour
	wellKnownMinTTL     = 5 * time.Minute
	// Errors are believed for a minute, and after each further one twice as long, up to an hour.
	wellKnownFirstErrorTTL = time.Minute
	wellKnownMaxErrorTTL   = time.Hour

	// targetTTL is how long the outcome of all steps is kept. Go's resolver does not tell the TTL of SRV records.
	targetTTL = 5 * time.Minute
	// When the DNS could not say whether there are SRV records, we go on as if there were none (the certificate must be
	// for the same name either way), but ask again soon.
	doubtfulTTL = 15 * time.Second
	srvTimeout  = 4 * time.Second
	// maxCachedServers bounds each cache; beyond it something is thrown out.
	maxCachedServers = 10_000
)

// target is where requests to a server go.
type target struct {
	host    string   // value of the Host header
	tlsName string   // the certificate must be for this name or address
	dial    []string // host:port, in the order to try
	// doubtful: the DNS failed to answer a question on the way.
	doubtful bool
}

// discovery finds servers. Spec v1.19 server-server-api/#resolving-server-names
type discovery struct {
	dns       *net.Resolver
	wellKnown *http.Client // guarded, trusts the same authorities as federation
	wellPort  string       // port of /.well-known: 443, but for tests
	now       func() time.Time

	mu      sync.Mutex // guards the caches; not held during a look-up
	cache   map[string]*delegation
	targets map[matrix.ServerName]cachedTarget
}

// cachedTarget spares the SRV look-ups of targetTTL.
type cachedTarget struct {
	target
	until time.Time
}

// delegation is what a host's /.well-known said.
type delegation struct {
	server   matrix.ServerName // empty: there is none
	until    time.Time
	failures int
	pending  chan struct{} // closed when a look-up under way is done
}

func newDiscovery(dns *net.Resolver, client *http.Client, now func() time.Time) *discovery {
	if dns == nil {
		dns = net.DefaultResolver
	}
	return &discovery{dns: dns, wellKnown: client, wellPort: "443", now: now,
		cache: map[string]*delegation{}, targets: map[matrix.ServerName]cachedTarget{}}
}

// find tells where server is.
func (d *discovery) find(ctx context.Context, server matrix.ServerName) (target, error) {
	d.mu.Lock()
	known, ok := d.targets[server]
	d.mu.Unlock()
	if ok && d.now().Before(known.until) {
		return known.target, nil
	}
	t, err := d.look(ctx, server)
	if err != nil {
		return t, fmt.Errorf("find %s: %w", server, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.targets) >= maxCachedServers {
		clear(d.targets)
	}
	ttl := targetTTL
	if t.doubtful {
		ttl = doubtfulTTL
	}
	d.targets[server] = cachedTarget{t, d.now().Add(ttl)}
	return t, nil
}

// forget has the next request look again, after a connection failed.
func (d *discovery) forget(server matrix.ServerName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.targets, server)
}

// look goes the steps of the spec, by its numbers.
func (d *discovery) look(ctx context.Context, server matrix.ServerName) (target, error) {
	host, port := server.Host(), server.Port()
	// 1: an IP literal, with its port or 8448.
	if isIPLiteral(host) {
		return literal(server), nil
	}
	// 2: an explicit port.
	if port != "" {
		return target{host: string(server), tlsName: host, dial: []string{net.JoinHostPort(host, port)}}, nil
	}
	// 3: /.well-known delegates to another name.
	delegated, err := d.delegate(ctx, host)
	if err != nil {
		return target{}, err
	}
	if delegated != "" {
		dHost, dPort := delegated.Host(), delegated.Port()
		// 3.1
		if isIPLiteral(dHost) {
			return literal(delegated), nil
		}
		// 3.2
		if dPort != "" {
			return target{host: string(delegated), tlsName: dHost, dial: []string{net.JoinHostPort(dHost, dPort)}}, nil
		}
		// 3.3 to 3.5
		return d.findByDNS(ctx, dHost)
	}
	// 4 to 6
	return d.findByDNS(ctx, host)
}

// findByDNS looks for SRV records, new and old, and falls back to port 8448 (3.3 to 3.5, and 4 to 6).
func (d *discovery) findByDNS(ctx context.Context, host string) (target, error) {
	t := target{host: host, tlsName: host}
	for _, service := range []string{"matrix-fed", "matrix"} {
		records, err := d.lookUpSRV(ctx, service, host)
		if ctx.Err() != nil {
			return target{}, ctx.Err()
		}
		if missing := new(net.DNSError); err != nil && !(errors.As(err, &missing) && missing.IsNotFound) {
			t.doubtful = true
		}
		for _, r := range records {
			name := strings.TrimSuffix(r.Target, ".")
			if name == "" || len(t.dial) == 8 { // "." says that the service is not offered
				continue
			}
			t.dial = append(t.dial, net.JoinHostPort(name, strconv.Itoa(int(r.Port))))
		}
		if len(t.dial) > 0 {
			return t, nil
		}
	}
	t.dial = []string{net.JoinHostPort(host, defaultPort)}
	return t, nil
}

func (d *discovery) lookUpSRV(ctx context.Context, service, host string) ([]*net.SRV, error) {
	ctx, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	_, records, err := d.dns.LookupSRV(ctx, service, "tcp", host)
	return records, err
}

func literal(server matrix.ServerName) target {
	port := server.Port()
	if port == "" {
		port = defaultPort
	}
	ip := strings.Trim(server.Host(), "[]")
	return target{host: string(server), tlsName: ip, dial: []string{net.JoinHostPort(ip, port)}}
}

func isIPLiteral(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

// delegate returns what /.well-known/matrix/server of host names, or "" if it names nothing valid. Answers, good and
// bad, are cached; only the end of ctx is an error.
func (d *discovery) delegate(ctx context.Context, host string) (matrix.ServerName, error) {
	for {
		d.mu.Lock()
		known := d.cache[host]
		if known != nil && known.pending == nil && d.now().Before(known.until) {
			d.mu.Unlock()
			return known.server, nil
		}
		if known != nil && known.pending != nil { // somebody is asking already
			pending := known.pending
			d.mu.Unlock()
			select {
			case <-pending:
				continue
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		if known == nil {
			d.makeRoom()
			known = &delegation{}
			d.cache[host] = known
		}
		known.pending = make(chan struct{})
		d.mu.Unlock()

		server, ttl, err := d.fetchWellKnown(ctx, host)

		d.mu.Lock()
		close(known.pending)
		known.pending = nil
		switch {
		case err == nil:
			known.server, known.failures, known.until = server, 0, d.now().Add(ttl)
		case ctx.Err() != nil: // our patience ended, which says nothing about the host
		default:
			// What was valid before is better than nothing as long as the host only stumbles.
			if known.failures++; known.failures > 5 {
				known.server = ""
			}
			known.until = d.now().Add(errorTTL(known.failures))
		}
		server = known.server
		d.mu.Unlock()
		return server, ctx.Err()
	}
}

// makeRoom is called with mu held.
func (d *discovery) makeRoom() {
	for host, known := range d.cache {
		if len(d.cache) < maxCachedServers {
			return
		}
		if known.pending == nil {
			delete(d.cache, host)
		}
	}
}

func errorTTL(failures int) time.Duration {
	ttl := wellKnownFirstErrorTTL << min(failures-1, 6)
	ttl = min(ttl, wellKnownMaxErrorTTL)
	return ttl - time.Duration(rand.Int64N(int64(ttl/5)+1))
}

func (d *discovery) fetchWellKnown(ctx context.Context, host string) (matrix.ServerName, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, wellKnownTimeout)
	defer cancel()
	authority := host
	if d.wellPort != "443" {
		authority = net.JoinHostPort(host, d.wellPort)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+authority+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", 0, err
	}
	answer, err := d.wellKnown.Do(r)
	if err != nil {
		return "", 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", 0, fmt.Errorf("status %d", answer.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxWellKnownBytes+1))
	if err != nil {
		return "", 0, err
	}
	if len(body) > maxWellKnownBytes {
		return "", 0, errors.New("too large")
	}
	var content struct {
		Server string `json:"m.server"`
	}
	if err := json.Unmarshal(body, &content, lax); err != nil {
		return "", 0, err
	}
	server, err := matrix.ParseServerName(content.Server)
	return server, cacheTTL(answer.Header), err
}

// cacheTTL reads Cache-Control and Expires, within our own bounds.
func cacheTTL(h http.Header) time.Duration {
	ttl := wellKnownDefaultTTL
	if expires, err := http.ParseTime(h.Get("Expires")); err == nil {
		ttl = time.Until(expires)
	}
	for _, directive := range strings.Split(h.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
		switch name {
		case "no-store", "no-cache":
			ttl = 0
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				ttl = time.Duration(seconds) * time.Second
			}
		}
	}
	return min(max(ttl, wellKnownMinTTL), wellKnownMaxTTL)
}

// The connections of http.Transport are kept by the host of the URL. It must be the server's name, before delegation,
// and yet not be taken for a host: so it is the name in hexadecimal below a domain that does not exist.
const poolDomain = ".matrix.invalid"

func poolHost(server matrix.ServerName) string {
	return hex.EncodeToString([]byte(server)) + poolDomain
}

// serverOfPool undoes poolHost, given what http.Transport hands to the dialer.
func serverOfPool(address string) (matrix.ServerName, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	name, err := hex.DecodeString(strings.TrimSuffix(host, poolDomain))
	return matrix.ServerName(name), err
}
