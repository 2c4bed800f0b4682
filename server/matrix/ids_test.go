package matrix

import (
	"strings"
	"testing"
)

func TestServerNames(t *testing.T) {
	for _, s := range []string{"matrix.org", "matrix.org:8888", "1.2.3.4", "1.2.3.4:1234", "[1234:5678::abcd]", "[1234:5678::abcd]:5678", "a-b", "UPPER.example", "localhost:1"} {
		name, err := ParseServerName(s)
		if err != nil || string(name) != s {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"", ":80", "a:", "a:b", "a:123456", "a b", "a_b", "a/b", "[1::2", "[1.2.3.4]", "[::1%eth0]", "[]", "a:80:80", "ä.example", strings.Repeat("a", 256)} {
		if _, err := ParseServerName(s); err == nil {
			t.Errorf("%q is a server name", s)
		}
	}
	if n := ServerName("[::1]:80"); n.Host() != "[::1]" || n.Port() != "80" {
		t.Errorf("got %s and %s", n.Host(), n.Port())
	}
	if n := ServerName("[::1]"); n.Host() != "[::1]" || n.Port() != "" {
		t.Errorf("got %s and %s", n.Host(), n.Port())
	}
}

func TestUserIDs(t *testing.T) {
	for s, compliant := range map[string]bool{
		"@alice:a.example": true, "@Alice:a.example:80": true, "@a b:a.example": false, "@:a.example": false, "@ä:a.example": false, "@!~:a.example": true,
	} {
		u, err := ParseUserID(s)
		if err != nil || u.Compliant() != compliant {
			t.Errorf("%s: compliant %v, %v", s, u.Compliant(), err)
		}
	}
	for _, s := range []string{"", "alice", "@alice", "alice:a.example", "@alice:", "@al\x00ice:a.example", "@\xff:a.example", "@alice:a b", "@" + strings.Repeat("a", 250) + ":a.ex"} {
		if _, err := ParseUserID(s); ErrorCode(err) != "M_INVALID_PARAM" {
			t.Errorf("%q: got %v", s, err)
		}
	}
	if u := UserID("@alice:a.example:80"); u.Localpart() != "alice" || u.Server() != "a.example:80" {
		t.Errorf("got %s on %s", u.Localpart(), u.Server())
	}
}

func TestNewUserIDsAreOfTodaysGrammar(t *testing.T) {
	if u, err := NewUserID("a.b_c=d-e/f+9", "a.example"); err != nil || u != "@a.b_c=d-e/f+9:a.example" {
		t.Errorf("got %s, %v", u, err)
	}
	for _, s := range []string{"", "Alice", "a b", "a:b", "ä", strings.Repeat("a", 250)} {
		if _, err := NewUserID(s, "a.example"); ErrorCode(err) != "M_INVALID_USERNAME" {
			t.Errorf("%q: got %v", s, err)
		}
	}
}

func TestOtherIDs(t *testing.T) {
	hash := strings.Repeat("A", 43)
	if r, err := ParseRoomID("!" + hash); err != nil || r.CreateEventID() != EventID("$"+hash) || r.Server() != "" {
		t.Errorf("got %s, %v", r, err)
	}
	if r, err := ParseRoomID("!x:a.example"); err != nil || r.CreateEventID() != "" || r.Server() != "a.example" {
		t.Errorf("got %s, %v", r, err)
	}
	for _, s := range []string{"", "!", "!short", "x:a", "!" + hash + "A", "!" + strings.Repeat("+", 43), "!x:"} {
		if _, err := ParseRoomID(s); err == nil {
			t.Errorf("%q is a room ID", s)
		}
	}
	if a, err := ParseRoomAlias("#ä b:a.example"); err != nil || a.Localpart() != "ä b" || a.Server() != "a.example" {
		t.Errorf("got %s, %v", a, err)
	}
	for _, s := range []string{"$", "$\xff", "$" + strings.Repeat("a", 255), "x"} {
		if _, err := ParseEventID(s); err == nil {
			t.Errorf("%q is an event ID", s)
		}
	}
	for _, s := range []string{"", "a\nb", strings.Repeat("a", 256), "\xff"} {
		if _, err := ParseDeviceID(s); err == nil {
			t.Errorf("%q is a device ID", s)
		}
	}
	if k, err := ParseKeyID("ed25519:a_b"); err != nil || k.Algorithm() != "ed25519" || k.Identifier() != "a_b" {
		t.Errorf("got %s, %v", k, err)
	}
	for _, s := range []string{"", "ed25519", "ed25519:", ":1"} {
		if _, err := ParseKeyID(s); err == nil {
			t.Errorf("%q is a key ID", s)
		}
	}
}

func TestErrorsTellOnlyAPieceOfWhatIsTooLong(t *testing.T) {
	_, err := ParseUserID("@" + strings.Repeat("x", 100000))
	if len(err.Error()) > 300 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}
