package main

import (
	"errors"
	"net/http"
	"net/url"
)

// speechClient speaks to the speech service of the configuration and to nothing else: it opens connections to that host
// and port only, wherever they are, and follows no redirects. nil without a service.
func speechClient(endpoint string) *http.Client {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return nil
	}
	return &http.Client{
		Transport:     transportTo(hostAndPort(u)),
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the speech service redirects") },
	}
}
