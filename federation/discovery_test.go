package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"parley.im/parley/server/matrix"
)

// fakeDNS answers from zone lines such as "a.example. 60 IN A 127.0.0.1".
func fakeDNS(t *testing.T, lines ...string) *net.Resolver {
	t.Helper()
	var zone []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		zone = append(zone, rr)
	}
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: socket, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		known := false
		for _, rr := range zone {
			if strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				known = true
				if rr.Header().Rrtype == q.Question[0].Qtype {
					answer.Answer = append(answer.Answer, rr)
				}
			}
		}
		if strings.Contains(q.Question[0].Name, "broken") {
			answer.Rcode = dns.RcodeServerFailure
		} else if !known {
			answer.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(answer)
	})}
	done := make(chan struct{})
	go func() { defer close(done); server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { server.Shutdown(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", socket.LocalAddr().String())
	}}
}

// testDiscovery asks a fake DNS, and for /.well-known the given server.
func testDiscovery(t *testing.T, a *authority, resolver *net.Resolver, wellKnown *httptest.Server) *discovery {
	guard, _ := NewGuard(true, nil)
	transport := NewGuardedTransport(guard, resolver)
	transport.TLSClientConfig = &tls.Config{RootCAs: pool(t, a)}
	d := newDiscovery(resolver, &http.Client{Transport: transport, CheckRedirect: checkRedirect}, time.Now)
	if wellKnown != nil {
		_, d.wellPort, _ = net.SplitHostPort(wellKnown.Listener.Addr().String())
	} else {
		d.wellPort = "1" // nobody listens
	}
	return d
}

func pool(t *testing.T, a *authority) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p
}

func TestDiscovery(t *testing.T) {
	a := newAuthority(t)
	resolver := fakeDNS(t,
		"plain.example. 60 IN A 127.0.0.1",
		"srv.example. 60 IN A 127.0.0.1",
		"_matrix-fed._tcp.srv.example. 60 IN SRV 10 0 8449 host1.example.",
		"_matrix-fed._tcp.srv.example. 60 IN SRV 20 0 8450 host2.example.",
		"_matrix._tcp.srv.example. 60 IN SRV 10 0 1234 old.example.",
		"old.example. 60 IN A 127.0.0.1",
		"_matrix._tcp.old.example. 60 IN SRV 10 0 1234 target.old.example.",
		"well-ip.example. 60 IN A 127.0.0.1", "well-ip6.example. 60 IN A 127.0.0.1", "well-port.example. 60 IN A 127.0.0.1",
		"well-srv.example. 60 IN A 127.0.0.1", "well-bare.example. 60 IN A 127.0.0.1", "well-bad.example. 60 IN A 127.0.0.1",
		"well-500.example. 60 IN A 127.0.0.1", "well-huge.example. 60 IN A 127.0.0.1", "well-redirect.example. 60 IN A 127.0.0.1",
		"well-loop.example. 60 IN A 127.0.0.1",
		"_matrix-fed._tcp.delegated-srv.example. 60 IN SRV 10 0 999 there.example.",
		"_matrix-fed._tcp.none.example. 60 IN SRV 0 0 0 .",
		"none.example. 60 IN A 127.0.0.1",
	)
	names := []string{"plain.example", "srv.example", "old.example", "well-ip.example", "well-ip6.example", "well-port.example", "well-srv.example",
		"well-bare.example", "well-bad.example", "well-500.example", "well-huge.example", "well-redirect.example", "well-loop.example"}
	wellKnown := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		answers := map[string]string{
			"well-ip.example": `{"m.server":"127.0.0.5"}`, "well-ip6.example": `{"m.server":"[::1]:99"}`, "well-port.example": `{"m.server":"delegated.example:777"}`,
			"well-srv.example": `{"m.server":"delegated-srv.example"}`, "well-bare.example": `{"m.server":"delegated.example"}`,
			"well-bad.example": `{"m.server":"not a name"}`, "well-huge.example": `{"x":"` + strings.Repeat("y", maxWellKnownBytes) + `","m.server":"delegated.example:1"}`,
		}
		switch {
		case r.URL.Path == "/elsewhere":
			io.WriteString(w, `{"m.server":"redirected.example:5"}`)
		case host == "well-redirect.example":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case host == "well-loop.example":
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case host == "well-500.example":
			w.WriteHeader(500)
			io.WriteString(w, `{"m.server":"delegated.example:1"}`)
		case answers[host] != "" && r.URL.Path == "/.well-known/matrix/server":
			io.WriteString(w, answers[host])
		default:
			w.WriteHeader(404)
		}
	}), names...)
	d := testDiscovery(t, a, resolver, wellKnown)
	for server, want := range map[matrix.ServerName]target{
		// 1
		"1.2.3.4":       {"1.2.3.4", "1.2.3.4", []string{"1.2.3.4:8448"}, false},
		"1.2.3.4:5":     {"1.2.3.4:5", "1.2.3.4", []string{"1.2.3.4:5"}, false},
		"[2001:db8::1]": {"[2001:db8::1]", "2001:db8::1", []string{"[2001:db8::1]:8448"}, false},
		"[::1]:7":       {"[::1]:7", "::1", []string{"[::1]:7"}, false},
		// 2
		"port.example:443": {"port.example:443", "port.example", []string{"port.example:443"}, false},
		// 3.1 to 3.5
		"well-ip.example":       {"127.0.0.5", "127.0.0.5", []string{"127.0.0.5:8448"}, false},
		"well-ip6.example":      {"[::1]:99", "::1", []string{"[::1]:99"}, false},
		"well-port.example":     {"delegated.example:777", "delegated.example", []string{"delegated.example:777"}, false},
		"well-srv.example":      {"delegated-srv.example", "delegated-srv.example", []string{"there.example:999"}, false},
		"well-bare.example":     {"delegated.example", "delegated.example", []string{"delegated.example:8448"}, false},
		"well-redirect.example": {"redirected.example:5", "redirected.example", []string{"redirected.example:5"}, false},
		// 4, 5: by SRV, in order of priority; 6: neither
		"srv.example":       {"srv.example", "srv.example", []string{"host1.example:8449", "host2.example:8450"}, false},
		"old.example":       {"old.example", "old.example", []string{"target.old.example:1234"}, false},
		"plain.example":     {"plain.example", "plain.example", []string{"plain.example:8448"}, false},
		"well-bad.example":  {"well-bad.example", "well-bad.example", []string{"well-bad.example:8448"}, false},
		"well-500.example":  {"well-500.example", "well-500.example", []string{"well-500.example:8448"}, false},
		"well-huge.example": {"well-huge.example", "well-huge.example", []string{"well-huge.example:8448"}, false},
		"well-loop.example": {"well-loop.example", "well-loop.example", []string{"well-loop.example:8448"}, false},
		"none.example":      {"none.example", "none.example", []string{"none.example:8448"}, false},
	} {
		got, err := d.find(context.Background(), server)
		if err != nil {
			t.Errorf("%s: %v", server, err)
		} else if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" {
			t.Errorf("%s: %s", server, diff)
		}
	}
	if got, err := d.find(context.Background(), "broken.example"); err != nil || !got.doubtful || got.dial[0] != "broken.example:8448" {
		t.Errorf("with a failing DNS: %+v %v", got, err)
	}
}

func TestWellKnownIsCached(t *testing.T) {
	a := newAuthority(t)
	var asked, broken atomic.Int32
	wellKnown := a.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if broken.Load() > 0 {
			w.WriteHeader(500)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=7200")
		io.WriteString(w, `{"m.server":"to.example:1"}`)
	}), "a.example")
	d := testDiscovery(t, a, fakeDNS(t, "a.example. 60 IN A 127.0.0.1"), wellKnown)
	now := time.Now()
	d.now = func() time.Time { return now }
	find := func(want string, wantAsked int32) {
		t.Helper()
		got, err := d.find(context.Background(), "a.example")
		if err != nil || got.host != want || asked.Load() != wantAsked {
			t.Errorf("got %q %v after %d questions; want %q after %d", got.host, err, asked.Load(), want, wantAsked)
		}
	}
	find("to.example:1", 1)
	find("to.example:1", 1)
	now = now.Add(90 * time.Minute)
	find("to.example:1", 1)
	now = now.Add(time.Hour) // over two hours: asked again
	find("to.example:1", 2)
	broken.Store(1)
	now = now.Add(3 * time.Hour)
	find("to.example:1", 3) // what was valid goes on for a while
	now = now.Add(30 * time.Second)
	find("to.example:1", 3)
	for range 6 {
		now = now.Add(2 * time.Hour)
		d.find(context.Background(), "a.example")
	}
	now = now.Add(2 * time.Hour)
	if got, err := d.find(context.Background(), "a.example"); err != nil || got.host != "a.example" {
		t.Errorf("after many failures: %+v %v", got, err)
	}
	for ttl, header := range map[time.Duration]http.Header{
		wellKnownDefaultTTL: {}, wellKnownMaxTTL: {"Cache-Control": {"max-age=99999999"}}, wellKnownMinTTL: {"Cache-Control": {"no-store"}},
		time.Hour: {"Cache-Control": {`private, Max-Age="3600"`}},
	} {
		if got := cacheTTL(header); got != ttl {
			t.Errorf("%v: %s, want %s", header, got, ttl)
		}
	}
}

func TestCertificateMustBeForTheNameBeforeSRV(t *testing.T) {
	a := newAuthority(t)
	var sni atomic.Value
	hello := func(s *httptest.Server) {
		s.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { sni.Store(h.ServerName); return nil, nil }
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"pdus":["`+r.Host+`"]}`) })
	good := a.serve(t, handler, "a.example")
	hello(good)
	_, port, _ := net.SplitHostPort(good.Listener.Addr().String())
	resolver := fakeDNS(t, "_matrix-fed._tcp.a.example. 60 IN SRV 1 1 "+port+" host.example.", "host.example. 60 IN A 127.0.0.1",
		"_matrix-fed._tcp.b.example. 60 IN SRV 1 1 "+port+" host.example.")
	p := newTestServer(t, a, func(o *Options) { o.Resolver = resolver })
	p.discovery.wellPort = "1"
	var answer struct {
		PDUs []string `json:"pdus"`
	}
	if err := p.call(context.Background(), request{server: "a.example", method: "GET", path: "/x"}, &answer); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(answer.PDUs, ""); got != "a.example" {
		t.Errorf("Host was %q", got)
	}
	if sni.Load() != "a.example" {
		t.Errorf("SNI was %q", sni.Load())
	}
	var wrong x509.HostnameError
	if err := p.call(context.Background(), request{server: "b.example", method: "GET", path: "/x"}, nil); !errors.As(err, &wrong) {
		t.Errorf("a certificate for another name: %v", err)
	}
	// Nor is one of an unknown authority good enough.
	other := newAuthority(t).serve(t, handler, "127.0.0.1")
	var unknown x509.UnknownAuthorityError
	if err := p.call(context.Background(), request{server: matrix.ServerName(other.Listener.Addr().String()), method: "GET", path: "/x"}, nil); !errors.As(err, &unknown) {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestRequestsDoNotReachPrivateAddresses(t *testing.T) {
	a := newAuthority(t)
	bob := newTestServer(t, a)
	_, port, _ := net.SplitHostPort(string(bob.name))
	resolver := fakeDNS(t, "a.example. 60 IN A 127.0.0.1", "_matrix-fed._tcp.b.example. 60 IN SRV 1 1 "+port+" a.example.")
	p := newTestServer(t, a, func(o *Options) { o.Config.AllowPrivateAddresses, o.Resolver = false, resolver })
	for _, server := range []matrix.ServerName{bob.name, matrix.ServerName("a.example:" + port), "b.example", "a.example"} {
		if err := p.call(context.Background(), request{server: server, method: "GET", path: v1 + "/version"}, nil); !errors.Is(err, ErrPrivateAddress) {
			t.Errorf("%s: %v", server, err)
		}
	}
	if len(bob.requests()) > 0 {
		t.Error("reached")
	}
}

func TestPoolHostIsReversible(t *testing.T) {
	for _, server := range []matrix.ServerName{"a.example", "A.example:443", "[::1]:8448", "1.2.3.4"} {
		got, err := serverOfPool(net.JoinHostPort(poolHost(server), strconv.Itoa(443)))
		if err != nil || got != server {
			t.Errorf("%q: %q %v", server, got, err)
		}
	}
}
