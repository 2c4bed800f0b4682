package syncer

import (
	"errors"
	"strings"
	"testing"

	"parley.im/parley/server/matrix"
)

func TestWildcardsStandForAnyLetters(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"m.room.message", "m.room.message", true},
		{"m.room.message", "m.room.messages", false},
		{"m.room.*", "m.room.member", true},
		{"m.room.*", "m.room.", true},
		{"*", "", true},
		{"*.member", "m.room.member", true},
		{"m.*.member", "m.room.member", true},
		{"m.*.member", "m.room.members", false},
		{"*a*b*", "xxaxxbxx", true},
		{"*a*b*", "xxbxxaxx", false},
		{"", "", true},
		{"", "x", false},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 200), false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("wildcard(%q, %q) = %v, want %v", c.pattern, c.s, got, c.want)
		}
	}
}

func TestFilterChoosesEvents(t *testing.T) {
	for _, c := range []struct {
		filter string
		typ    string
		sender matrix.UserID
		url    bool
		want   bool
	}{
		{`{}`, "a", "@a:x", false, true},
		{`{"types":[]}`, "a", "@a:x", false, false},
		{`{"types":["a","b"]}`, "b", "@a:x", false, true},
		{`{"types":["a*"],"not_types":["ab"]}`, "ab", "@a:x", false, false},
		{`{"senders":["@b:x"]}`, "a", "@a:x", false, false},
		{`{"senders":["@a:x"],"not_senders":["@a:x"]}`, "a", "@a:x", false, false},
		{`{"contains_url":true}`, "a", "@a:x", false, false},
		{`{"contains_url":true}`, "a", "@a:x", true, true},
		{`{"contains_url":false}`, "a", "@a:x", true, false},
	} {
		f, err := ParseFilter([]byte(`{"room":{"timeline":` + c.filter + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Room.Timeline.wants(c.typ, c.sender, func() bool { return c.url }); got != c.want {
			t.Errorf("%s lets %s of %s (url %v) through: %v, want %v", c.filter, c.typ, c.sender, c.url, got, c.want)
		}
	}
}

func TestFilterThatIsNotValidIsRefused(t *testing.T) {
	for filter, code := range map[string]string{
		`{"room":{"timeline":{"limit":-1}}}`:           "M_INVALID_PARAM",
		`{"room":{"timeline":{"limit":"x"}}}`:          "M_BAD_JSON",
		`{"room":{"timeline":{"senders":["alice"]}}}`:  "M_INVALID_PARAM",
		`{"room":{"state":{"rooms":["#not:a.room"]}}}`: "M_INVALID_PARAM",
		`{"event_format":"xml"}`:                       "M_INVALID_PARAM",
		`{"room":`:                                     "M_BAD_JSON",
		`{"room":{"timeline":{"types":["` + strings.Repeat(`x","`, 2000) + `"]}}}`: "M_INVALID_PARAM",
	} {
		_, err := ParseFilter([]byte(filter))
		if !errors.Is(err, &matrix.Error{Code: code}) {
			t.Errorf("%.60s: got %v, want %s", filter, err, code)
		}
	}
}

func TestTokensComeBackAsTheyWere(t *testing.T) {
	for _, want := range []Token{{}, {Pos: 7, ToDevice: 7}, {Pos: 7, Eph: 9, ToDevice: 7}, {Pos: 7, Eph: 9, ToDevice: 3}, {Pos: 7, ToDevice: 3}} {
		got, err := ParseToken(want.String())
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", want, got, err, want)
		}
	}
	for _, s := range []string{"", "s", "7", "s-1", "s+1", "sx", "s1_", "s1_2_3_4", "t1", "s99999999999999999999", "s1_-2"} {
		if _, err := ParseToken(s); !errors.Is(err, &matrix.Error{Code: "M_INVALID_PARAM"}) {
			t.Errorf("token %q: got %v, want M_INVALID_PARAM", s, err)
		}
	}
}
