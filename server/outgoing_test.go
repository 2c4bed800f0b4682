package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"parley.im/parley/server/user"
)

// A provider in the company's network can be reached, but not what it leads to there; and what it says is bounded.
func TestSignInProvidersReachNothingElseInside(t *testing.T) {
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("something else inside was reached") }))
	defer inside.Close()
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, inside.URL, http.StatusFound)
			return
		}
		for range 3 {
			if _, err := io.WriteString(w, strings.Repeat("x", maxSSOAnswer/2)); err != nil {
				return
			}
		}
	}))
	defer provider.Close()
	guard := errors.New("the guard says no")
	outside := &http.Client{Transport: refusing{guard}}
	c := ssoClient(user.SSOConfig{Providers: []user.SSOProvider{{Issuer: provider.URL + "/realm"}}}, outside)
	answer, err := c.Get(provider.URL + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || len(text) != maxSSOAnswer {
		t.Errorf("read %d bytes, %v", len(text), err)
	}
	if _, err := c.Get(inside.URL); !errors.Is(err, guard) {
		t.Errorf("something else inside: %v", err)
	}
	if answer, err := c.Get(provider.URL + "/away"); err == nil {
		answer.Body.Close()
		t.Error("a redirect was followed")
	}
}

type refusing struct{ err error }

func (r refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, r.err }
