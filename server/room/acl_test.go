package room

import (
	"testing"

	"parley.im/parley/server/matrix"
)

func TestServerACL(t *testing.T) {
	for _, c := range []struct {
		name, content string
		server        matrix.ServerName
		want          bool
	}{
		{"allowed by a star", `{"allow":["*"]}`, "example.org", true},
		{"denied though allowed", `{"allow":["*"],"deny":["evil.com"]}`, "evil.com", false},
		{"the port does not count", `{"allow":["*"],"deny":["evil.com"]}`, "evil.com:8448", false},
		{"case does not count", `{"allow":["*"],"deny":["Evil.com"]}`, "EVIL.com", false},
		{"a subdomain is another name", `{"allow":["*"],"deny":["evil.com"]}`, "www.evil.com", true},
		{"star in front", `{"allow":["*"],"deny":["*.evil.com"]}`, "www.evil.com", false},
		{"question mark is one letter", `{"allow":["a?c"]}`, "abc", true},
		{"question mark is not two letters", `{"allow":["a?c"]}`, "abbc", false},
		{"several stars", `{"allow":["*a*b*"]}`, "xaxxbx", true},
		{"no allow denies all", `{"deny":[]}`, "example.org", false},
		{"empty content denies all", `{}`, "example.org", false},
		{"lists of wrong types are empty", `{"allow":"*","deny":7}`, "example.org", false},
		{"wrong items are left out", `{"allow":[1,"*",null]}`, "example.org", true},
		{"IP literals allowed by default", `{"allow":["*"]}`, "192.0.2.7:8448", true},
		{"IP literals denied", `{"allow":["*"],"allow_ip_literals":false}`, "192.0.2.7:8448", false},
		{"IPv6 literals denied", `{"allow":["*"],"allow_ip_literals":false}`, "[2001:db8::1]:8448", false},
		{"only false denies IP literals", `{"allow":["*"],"allow_ip_literals":"no"}`, "192.0.2.7", true},
	} {
		if got := parseACL([]byte(c.content)).Allows(c.server); got != c.want {
			t.Errorf("%s: %s of %s: got %v, want %v", c.name, c.server, c.content, got, c.want)
		}
	}
	if !(*ACL)(nil).Allows("example.org") {
		t.Error("a room without ACL must let everyone in")
	}
}
