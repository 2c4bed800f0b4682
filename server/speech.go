package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// speechClient speaks to the speech service of the configuration and to nothing else: it opens connections to that host
// and port only, wherever they are, and follows no redirects. nil without a service.
func speechClient(endpoint string) *http.Client {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	only := net.JoinHostPort(u.Hostname(), port)
	dialer := net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if address != only {
					return nil, fmt.Errorf("%s is not the speech service", address)
				}
				return dialer.DialContext(ctx, network, address)
			},
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        90 * time.Second,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the speech service redirects") },
	}
}
