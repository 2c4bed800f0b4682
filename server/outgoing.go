package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"parley.im/parley/server/user"
)

// transportTo opens connections to these hosts and ports only, wherever they are: services that the configuration names may be in
// the company's own network.
func transportTo(addresses ...string) *http.Transport {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if !slices.Contains(addresses, address) {
				return nil, fmt.Errorf("%s is not in the configuration", address)
			}
			return dialer.DialContext(ctx, network, address)
		},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// hostAndPort is where a URL is reached.
func hostAndPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// ssoTransport reaches sign-in providers wherever they are, and the other hosts that a provider names (for its keys or its userinfo)
// only as all that is not in the configuration: through the guard.
type ssoTransport struct {
	issuers         []string // hosts and ports
	inside, outside http.RoundTripper
}

// maxSSOAnswer bounds what is read of an answer of a provider, in bytes.
const maxSSOAnswer = 1 << 20

func (t *ssoTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	by := t.outside
	if slices.Contains(t.issuers, hostAndPort(r.URL)) {
		by = t.inside
	}
	answer, err := by.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxSSOAnswer), answer.Body}
	}
	return answer, err
}

// ssoClient speaks to the sign-in providers of the configuration. It follows no redirects: what it sends is secret.
func ssoClient(cfg user.SSOConfig, outside *http.Client) *http.Client {
	t := &ssoTransport{outside: outside.Transport}
	for _, p := range cfg.Providers {
		if u, err := url.Parse(p.Issuer); err == nil {
			t.issuers = append(t.issuers, hostAndPort(u))
		}
	}
	t.inside = transportTo(t.issuers...)
	return &http.Client{
		Transport:     t,
		Timeout:       15 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the sign-in provider redirects") },
	}
}
