package federation

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
)

func TestParseXMatrix(t *testing.T) {
	sig := base64.RawStdEncoding.EncodeToString(make([]byte, 64))
	want := xMatrix{Origin: "a.example:8448", Destination: "b.example", KeyID: "ed25519:k1", Signature: make([]byte, 64)}
	for name, header := range map[string]string{
		"as sent":         `X-Matrix origin="a.example:8448",destination="b.example",key="ed25519:k1",sig="` + sig + `"`,
		"lower scheme":    `x-matrix origin="a.example:8448",destination="b.example",key="ed25519:k1",sig="` + sig + `"`,
		"unquoted":        `X-Matrix origin=a.example:8448,destination=b.example,key=ed25519:k1,sig=` + sig,
		"spaces and tabs": "X-Matrix   origin=\"a.example:8448\" ,\t destination=b.example , key=\"ed25519:k1\",sig=\"" + sig + "\"  ",
		"names in capitals, other order, unknown one": `X-Matrix SIG="` + sig + `",Key="ed25519:k1",foo=bar,ORIGIN="a.example:8448",Destination="b.example"`,
		"backslashes": `X-Matrix origin="a\.exa\mple:8448",destination="b.example",key="ed25519:k1",sig="` + sig + `"`,
		"padded":      `X-Matrix origin="a.example:8448",destination="b.example",key="ed25519:k1",sig="` + sig + `=="`,
	} {
		got, err := parseXMatrix(header)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, header := range map[string]string{
		"empty":              "",
		"other scheme":       `Bearer abc`,
		"no parameters":      `X-Matrix `,
		"no origin":          `X-Matrix key="ed25519:k1",sig="` + sig + `"`,
		"no key":             `X-Matrix origin="a.example",sig="` + sig + `"`,
		"key is no key":      `X-Matrix origin="a.example",key="k1",sig="` + sig + `"`,
		"no sig":             `X-Matrix origin="a.example",key="ed25519:k1"`,
		"short sig":          `X-Matrix origin="a.example",key="ed25519:k1",sig="AAAA"`,
		"origin twice":       `X-Matrix origin="a.example",origin="b.example",key="ed25519:k1",sig="` + sig + `"`,
		"twice, other case":  `X-Matrix origin="a.example",Origin="b.example",key="ed25519:k1",sig="` + sig + `"`,
		"open quotes":        `X-Matrix origin="a.example,key="ed25519:k1",sig="` + sig + `"`,
		"backslash at end":   `X-Matrix origin="a.example\`,
		"text after quotes":  `X-Matrix origin="a.example"b,key="ed25519:k1",sig="` + sig + `"`,
		"newline in a value": "X-Matrix origin=\"a.ex\nample\",key=\"ed25519:k1\",sig=\"" + sig + `"`,
		"empty destination":  `X-Matrix origin="a.example",destination="",key="ed25519:k1",sig="` + sig + `"`,
		"too long":           `X-Matrix origin="a.example",x="` + strings.Repeat("y", maxAuthorization) + `"`,
	} {
		if got, err := parseXMatrix(header); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestXMatrixSignsWhatTheSpecSays(t *testing.T) {
	key := newKey(t, "ed25519:k")
	x, err := signXMatrix("PUT", "/a%2Fb?q=1", []byte(`{"b": 1, "a": "é"}`), "a.example", "b.example", key)
	if err != nil {
		t.Fatal(err)
	}
	signed := []byte(`{"content":{"a":"é","b":1},"destination":"b.example","method":"PUT","origin":"a.example","uri":"/a%2Fb?q=1"}`)
	if !key.Public().Verify(signed, x.Signature) {
		t.Error("not a signature of the spec's object")
	}
	// The content is signed as JSON: how it is written does not matter, what it says does.
	if err := x.verify("PUT", "/a%2Fb?q=1", []byte(`{"a":"\u00e9","b":1}`), key.Public()); err != nil {
		t.Error(err)
	}
	for _, body := range []string{`{"a":"é","b":2}`, `{"a":"é"}`, ``, `{"a":"é","b":1,"b":1}`} {
		if x.verify("PUT", "/a%2Fb?q=1", []byte(body), key.Public()) == nil {
			t.Errorf("accepted %s", body)
		}
	}
	// Without a body there is no content.
	x, err = signXMatrix("GET", "/x", nil, "a.example", "b.example", key)
	if err != nil || !key.Public().Verify([]byte(`{"destination":"b.example","method":"GET","origin":"a.example","uri":"/x"}`), x.Signature) {
		t.Error("GET", err)
	}
}

func FuzzParseXMatrix(f *testing.F) {
	sig := base64.RawStdEncoding.EncodeToString(make([]byte, 64))
	f.Add(`X-Matrix origin="a.example",destination="b.example",key="ed25519:k1",sig="` + sig + `"`)
	f.Add(`X-Matrix origin=a.example , key=ed25519:k1 ,sig="\A"`)
	f.Fuzz(func(t *testing.T, header string) {
		x, err := parseXMatrix(header)
		if err != nil {
			return
		}
		if _, err := matrix.ParseServerName(string(x.Origin)); err != nil {
			t.Errorf("origin %q: %v", x.Origin, err)
		}
		again, err := parseXMatrix(x.header())
		if err != nil {
			t.Fatalf("%q, written again as %q: %v", header, x.header(), err)
		}
		if diff := cmp.Diff(x, again); diff != "" {
			t.Error(diff)
		}
	})
}
