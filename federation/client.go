package federation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/room"
	"parley.im/parley/server/user"
	"parley.im/parley/storage"
)

// Client talks to other servers for all rooms of the house.
var (
	_ room.Remote      = (*Client)(nil)
	_ keys.Remote      = (*Client)(nil)
	_ media.Remote     = (*Client)(nil)
	_ user.Remote      = (*Client)(nil)
	_ matrix.KeySource = (*Client)(nil)
)

const (
	// maxAnswer bounds ordinary answers; those with the state of a room have Config.MaxResponseBytes.
	maxAnswer    = 16 << 20
	maxKeyAnswer = 256 << 10
	maxErrorBody = 64 << 10
)

// lax reads answers of others: names must match in case, but one event with a duplicate key must not spoil the other
// thousand. Each event is parsed strictly later.
var lax = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// Options are what a Client is made of.
type Options struct {
	Config Config
	Server matrix.ServerName
	Key    *matrix.SigningKey
	// OldKeys are published so that what they signed stays valid.
	OldKeys []OldKey
	DB      *storage.DB
	// Resolver answers all DNS questions; nil for the system's.
	Resolver *net.Resolver
	Now      func() time.Time      // nil: time.Now
	Log      *slog.Logger          // nil: slog.Default()
	Metrics  prometheus.Registerer // nil: nothing is measured
}

// OldKey is a key with which this server no longer signs.
type OldKey struct {
	ID        matrix.KeyID
	Key       *matrix.PublicKey
	ExpiredAt time.Time
}

// Client makes requests to other servers: signed twice, bounded in time and size, only to servers that the
// configuration allows, and not to those that have not answered lately. It is safe for concurrent use.
type Client struct {
	o         Options
	guard     *Guard
	discovery *discovery
	http      *http.Client
	fetch     *http.Client // without our signatures: /.well-known and redirected media
	peers     *peers
	keys      *keyring
	metrics   *metrics

	ctx   context.Context // ends with Close; for what several requests wait for together
	close context.CancelFunc
	wait  sync.WaitGroup
}

// NewClient makes a client. Close must be called in the end.
func NewClient(ctx context.Context, o Options) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	guard, err := NewGuard(o.Config.AllowPrivateAddresses, o.Config.AllowAddresses)
	if err != nil {
		return nil, err
	}
	roots, err := o.Config.roots()
	if err != nil {
		return nil, err
	}
	c := &Client{o: o, guard: guard, metrics: newMetrics(o.Metrics)}
	if c.peers, err = loadPeers(ctx, o); err != nil {
		return nil, err
	}
	plain := NewGuardedTransport(guard, o.Resolver)
	plain.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	c.fetch = &http.Client{Transport: plain, CheckRedirect: checkRedirect}
	c.discovery = newDiscovery(o.Resolver, c.fetch, o.Now)
	c.http = &http.Client{
		Transport: &http.Transport{
			DialTLSContext:         (&serverDialer{guard.Dialer(o.Resolver), c.discovery, roots}).dial,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    8,
			MaxConnsPerHost:        64,
			IdleConnTimeout:        2 * time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: 20 * time.Second, PingTimeout: 10 * time.Second},
		},
		// No endpoint redirects, and a redirect would carry our signatures elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.ctx, c.close = context.WithCancel(context.Background())
	c.keys = newKeyring(c)
	return c, nil
}

// Close ends what is under way and gives up all connections.
func (c *Client) Close() {
	c.close()
	c.wait.Wait()
	c.http.CloseIdleConnections()
	c.fetch.CloseIdleConnections()
}

// Guard is what all connections of this server to addresses that others name must ask.
func (c *Client) Guard() *Guard { return c.guard }

// roots are the trusted authorities; nil for the system's.
func (c Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("federation.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !c.OnlyOwnCA {
		if system, err := x509.SystemCertPool(); err == nil {
			pool = system
		}
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("federation.ca_file: no certificate in %s", c.CAFile)
	}
	return pool, nil
}

// serverDialer connects to the server whose name is hidden in the address.
type serverDialer struct {
	net       *net.Dialer
	discovery *discovery
	roots     *x509.CertPool
}

func (d *serverDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	server, err := serverOfPool(address)
	if err != nil {
		return nil, err
	}
	t, err := d.discovery.find(ctx, server)
	if err != nil {
		return nil, err
	}
	// ServerName is checked against the certificate, and sent as SNI unless it is an IP address.
	cfg := &tls.Config{ServerName: t.tlsName, RootCAs: d.roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	var errs []error
	for _, address := range t.dial {
		conn, err := d.connect(ctx, network, address, cfg)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	d.discovery.forget(server)
	return nil, errors.Join(errs...)
}

func (d *serverDialer) connect(ctx context.Context, network, address string, cfg *tls.Config) (net.Conn, error) {
	raw, err := d.net.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with %s: %w", address, err)
	}
	return conn, nil
}

// request is one request to another server.
type request struct {
	server  matrix.ServerName
	method  string
	path    string // escaped, with the query
	body    []byte // JSON, nil for none
	limit   int64  // of the answer's body; 0 means maxAnswer
	timeout time.Duration
	urgent  bool // somebody waits who would rather see it fail than not be tried
}

// open sends q and returns the answer if it is a 200, with its body unread, and the headers that were sent. Other answers
// become a *matrix.Error. What happens is noted in peers.
func (c *Client) open(ctx context.Context, q request) (*http.Response, http.Header, error) {
	if q.server == c.o.Server {
		return nil, nil, errors.New("this server does not talk to itself")
	}
	if !c.o.Config.permits(q.server) {
		return nil, nil, fmt.Errorf("%s: %w", q.server, room.ErrNotPermitted)
	}
	if !q.urgent && c.peers.backingOff(q.server) {
		return nil, nil, fmt.Errorf("%s: %w", q.server, ErrBackingOff)
	}
	began := time.Now()
	answer, sent, err := c.send(ctx, q)
	c.metrics.sent(answer, time.Since(began))
	if err != nil {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			c.peers.failed(ctx, q.server, 0)
		}
		return nil, nil, fmt.Errorf("%s %s of %s: %w", q.method, pathOnly(q.path), q.server, err)
	}
	if answer.StatusCode == http.StatusOK {
		c.peers.answered(ctx, q.server)
		return answer, sent, nil
	}
	defer answer.Body.Close()
	refusal, err := readError(answer)
	switch answer.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if err == nil && refusal.Code == "M_NOT_YET_UPLOADED" { // a 504 about a file, not about the server
			c.peers.answered(ctx, q.server)
			break
		}
		c.peers.failed(ctx, q.server, retryAfter(answer.Header))
	default: // also 429, which is about one kind of request, not about the server
		c.peers.answered(ctx, q.server)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s of %s: %w", q.method, pathOnly(q.path), q.server, err)
	}
	return nil, nil, refusal
}

// send makes one attempt, and a second one with signatures of its own if the connection broke and nothing can have been
// done twice.
func (c *Client) send(ctx context.Context, q request) (*http.Response, http.Header, error) {
	for attempt := 1; ; attempt++ {
		t, err := c.discovery.find(ctx, q.server)
		if err != nil {
			return nil, nil, err
		}
		r, err := c.newRequest(ctx, q, t)
		if err != nil {
			return nil, nil, err
		}
		answer, err := c.http.Do(r)
		if err == nil {
			return answer, r.Header, nil
		}
		if urlErr := new(url.Error); errors.As(err, &urlErr) {
			err = urlErr.Err // its text has the hexadecimal name
		}
		broken := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err)
		if attempt == 2 || !broken || q.method == http.MethodPost || ctx.Err() != nil {
			return nil, nil, err
		}
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op != "dial"
}

// newRequest builds and signs a request.
func (c *Client) newRequest(ctx context.Context, q request, t target) (*http.Request, error) {
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, "https://"+poolHost(q.server)+q.path, body)
	if err != nil {
		return nil, err
	}
	r.Host = t.host
	r.Header.Set("User-Agent", "Parley")
	if q.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	x, err := signXMatrix(q.method, r.URL.RequestURI(), q.body, c.o.Server, q.server, c.o.Key)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", x.header())
	if err := signRequest(r, q.body, c.o.Server, c.o.Key); err != nil {
		return nil, err
	}
	return r, nil
}

// call sends q and reads the JSON of the answer into answer, unless that is nil.
func (c *Client) call(ctx context.Context, q request, answer any) error {
	return c.read(ctx, q, func(answered io.Reader, limit int64) error {
		body, err := readAll(answered, limit)
		if err == nil && answer != nil {
			err = json.Unmarshal(body, answer, lax)
		}
		return err
	})
}

// read sends q and has the answer's body read, of which no more than limit bytes must be.
func (c *Client) read(ctx context.Context, q request, read func(body io.Reader, limit int64) error) error {
	if q.timeout == 0 {
		q.timeout = c.o.Config.RequestTimeout
	}
	if q.limit == 0 {
		q.limit = maxAnswer
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	response, _, err := c.open(ctx, q)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := read(response.Body, q.limit); err != nil {
		return fmt.Errorf("answer of %s to %s: %w", q.server, pathOnly(q.path), err)
	}
	return nil
}

// readAll reads at most limit bytes and fails if there are more.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	return body, err
}

// readError makes an error of an answer that is not 200.
func readError(answer *http.Response) (*matrix.Error, error) {
	body, err := readAll(answer.Body, maxErrorBody)
	if err != nil {
		return nil, err
	}
	var content struct {
		Code        string `json:"errcode"`
		Message     string `json:"error"`
		RoomVersion string `json:"room_version"`
	}
	if err := json.Unmarshal(body, &content, lax); err != nil || content.Code == "" {
		return nil, statusError(answer.StatusCode)
	}
	e := matrix.NewError(answer.StatusCode, content.Code, "%s", content.Message)
	if content.RoomVersion != "" {
		e = e.With("room_version", content.RoomVersion)
	}
	e.RetryAfter = retryAfter(answer.Header)
	return e, nil
}

// statusError is an answer with that status and no error in Matrix's form.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// pathOnly leaves the query out of what is logged.
func pathOnly(path string) string {
	p, _, _ := strings.Cut(path, "?")
	return p
}

// encode is v in JSON. The standard library's omitempty is what the types of the rooms are written for.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := stdjson.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// escape joins the parts of a path, each of them escaped.
func escape(prefix string, parts ...string) string {
	for _, p := range parts {
		prefix += "/" + url.PathEscape(p)
	}
	return prefix
}
