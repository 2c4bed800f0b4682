package federation

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

func TestGuard(t *testing.T) {
	strict, err := NewGuard(false, []string{"10.1.0.0/16", "192.168.7.7", "fd00:1::/64"})
	if err != nil {
		t.Fatal(err)
	}
	lax, _ := NewGuard(true, nil)
	for address, public := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1": true, "::ffff:8.8.8.8": true, "172.32.0.1": true,
		"10.1.2.3": true, "192.168.7.7": true, "fd00:1::5": true, "::ffff:10.1.2.3": true, // allowed
		"127.0.0.1": false, "127.8.8.8": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "::": false, "0.1.2.3": false,
		"10.2.0.1": false, "172.16.0.1": false, "192.168.7.8": false, "100.64.1.1": false, "169.254.169.254": false, "fe80::1": false, "fc00::1": false,
		"fec0::1": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false, "192.0.2.1": false, "198.18.0.1": false,
		"2001:db8::1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001::1": false, "::7f00:1": false, "240.0.0.1": false,
	} {
		addr := netip.MustParseAddr(address)
		if err := strict.Permit(addr); (err == nil) != public {
			t.Errorf("%s: %v", address, err)
		}
		if err := lax.Permit(addr); err != nil && !addr.Unmap().IsMulticast() {
			t.Errorf("%s, with private addresses: %v", address, err)
		}
	}
	for _, bad := range []string{"10.0.0.0/33", "example.org", ""} {
		if _, err := NewGuard(false, []string{bad}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestGuardedClientDoesNotReachPrivateAddresses(t *testing.T) {
	reached := 0
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached++ }))
	defer inner.Close()
	guard, _ := NewGuard(false, nil)
	client := NewGuardedClient(guard, nil, 5*time.Second)
	if _, err := client.Get(inner.URL); !errors.Is(err, ErrPrivateAddress) {
		t.Errorf("by address: %v", err)
	}
	// A name that resolves to a private address is caught after the resolution.
	if _, err := client.Get("http://localhost:" + inner.URL[len("http://127.0.0.1:"):]); !errors.Is(err, ErrPrivateAddress) {
		t.Errorf("by name: %v", err)
	}
	if reached != 0 {
		t.Errorf("reached %d times", reached)
	}
	// Through a redirect of a server that may be reached.
	outer := httptest.NewServer(http.RedirectHandler("http://127.0.0.2:1/", http.StatusFound))
	defer outer.Close()
	one, _ := NewGuard(false, []string{"127.0.0.1"})
	if _, err := NewGuardedClient(one, nil, 5*time.Second).Get(outer.URL); !errors.Is(err, ErrPrivateAddress) {
		t.Errorf("by redirect: %v", err)
	}
	loop := httptest.NewServer(http.RedirectHandler("/", http.StatusFound))
	defer loop.Close()
	if _, err := NewGuardedClient(one, nil, 5*time.Second).Get(loop.URL); err == nil {
		t.Error("a loop of redirects was followed")
	}
}
