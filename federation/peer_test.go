package federation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// authority signs the certificates of the servers in these tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) certificate(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

// serve starts a TLS server on 127.0.0.1 with a certificate for names.
func (a *authority) serve(t testing.TB, handler http.Handler, names ...string) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.certificate(t, names...)}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func newKey(t testing.TB, id matrix.KeyID) *matrix.SigningKey {
	t.Helper()
	seed := make([]byte, 32)
	rand.Read(seed)
	key, err := matrix.NewSigningKey(id, seed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// testServer is a server with nothing but a client and a handler; its name is its address.
type testServer struct {
	*Client
	name   matrix.ServerName
	server *httptest.Server

	mu      sync.Mutex
	handler http.Handler
	seen    []*http.Request
}

func (p *testServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	h := p.handler
	p.seen = append(p.seen, r.Clone(context.Background()))
	p.mu.Unlock()
	h.ServeHTTP(w, r)
}

func (p *testServer) handle(h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handler = h
}

func (p *testServer) requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// newTestServer starts a server that answers with the real handler, as far as that needs no rooms.
func newTestServer(t testing.TB, a *authority, change ...func(*Options)) *testServer {
	t.Helper()
	p := &testServer{}
	p.server = a.serve(t, p, "127.0.0.1")
	p.name = matrix.ServerName(p.server.Listener.Addr().String())
	o := Options{Config: DefaultConfig(), Server: p.name, Key: newKey(t, "ed25519:a"), DB: storagetest.New(t), Log: slog.New(slog.DiscardHandler)}
	o.Config.AllowPrivateAddresses = true
	o.Config.CAFile = a.file
	for _, fn := range change {
		fn(&o)
	}
	var err error
	if p.Client, err = NewClient(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Client.Close)
	p.handler = NewHandler(HandlerOptions{Client: p.Client, Version: "test"})
	return p
}

// echo answers every signed request with its origin and body.
func (p *testServer) echo() (h *handler) {
	h = &handler{HandlerOptions: HandlerOptions{Client: p.Client}, cfg: p.o.Config, server: p.name, log: p.o.Log, now: p.o.Now,
		hosts: []string{string(p.name)}, inFlight: map[matrix.ServerName]int{}, patience: bodyTimeout}
	rest := NewHandler(h.HandlerOptions)
	engine := gin.New()
	engine.NoRoute(func(g *gin.Context) {
		if g.Request.URL.Path == "/_matrix/key/v2/server" {
			rest.ServeHTTP(g.Writer, g.Request)
			return
		}
		h.serve(g, route{signed: true, handle: func(c *call) (any, error) {
			return map[string]any{"origin": c.origin, "body": string(c.body)}, nil
		}})
	})
	p.handle(engine)
	return h
}
