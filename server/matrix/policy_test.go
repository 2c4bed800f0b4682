package matrix

import (
	"context"
	"encoding/json"
	"testing"
	"time"
)

func TestOnlyACompletePolicyNamesAServer(t *testing.T) {
	key := policyTestKey(t).Public().String()
	for content, want := range map[string]ServerName{
		`{}`:                                     "",
		`{"via":"ps"}`:                           "",
		`{"via":"ps","public_keys":null}`:        "",
		`{"via":"ps","public_keys":{"rsa":"x"}}`: "",
		`{"via":"ps","public_keys":{"ed25519":7}}`:                             "",
		`{"via":"ps","public_keys":{"ed25519":null}}`:                          "",
		`{"via":null,"public_keys":{"ed25519":"` + key + `"}}`:                 "",
		`{"via":["ps"],"public_keys":{"ed25519":"` + key + `"}}`:               "",
		`{"via":"ps","public_keys":"` + key + `"}`:                             "",
		`{"via":"ps","public_keys":{"ed25519":"` + key + `"}}`:                 "ps",
		`{"via":"ps","public_keys":{"ed25519":"` + key + `","rsa":7},"x":"y"}`: "ps",
		`{"via":"ps","public_keys":{"ed25519":"no key"}}`:                      "ps", // by which nothing can be signed
	} {
		got := ServerName("")
		if p := ParsePolicy([]byte(content)); p != nil {
			got = p.Server
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", content, got, want)
		}
	}
}

func policyTestKey(t *testing.T) *SigningKey {
	t.Helper()
	key, err := NewSigningKey("ed25519:1", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// oneKey knows one key of every server.
type oneKey struct{ *SigningKey }

func (k oneKey) Key(_ context.Context, _ ServerName, id KeyID, _ time.Time) (*PublicKey, error) {
	if id != k.ID {
		return nil, NotFound("no such key")
	}
	return k.Public(), nil
}

func TestThePolicySignatureStandsBesideThatOfTheServer(t *testing.T) {
	key := policyTestKey(t)
	policyKey, err := NewSigningKey(PolicyKeyID, append(make([]byte, 31), 1))
	if err != nil {
		t.Fatal(err)
	}
	p := ParsePolicy([]byte(`{"via":"ps","public_keys":{"ed25519":"` + policyKey.Public().String() + `"}}`))
	b := Builder{RoomID: "!r:ps", Sender: "@a:ps", Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`), Time: time.UnixMilli(1), Depth: 1}
	e, err := b.Build(LookupRoomVersion("11"), "ps", key) // of the policy server itself
	if err != nil {
		t.Fatal(err)
	}
	if p.Recommends(e) {
		t.Error("it is recommended without a signature")
	}
	signed := e.WithSignature("ps", policyKey)
	if !p.Recommends(signed) || signed.ID() != e.ID() {
		t.Error("it is not recommended")
	}
	if err := VerifyEvent(context.Background(), signed, oneKey{key}); err != nil {
		t.Errorf("the other signature has become invalid: %v", err)
	}
	if err := VerifyEvent(context.Background(), b.mustBuild(t, policyKey), oneKey{key}); err == nil {
		t.Error("the policy server's key stands in for that of the server")
	}
	if p.Recommends(e.WithSignature("other", policyKey)) {
		t.Error("a signature in the name of another server counts")
	}
	if _, err := p.Accept(e, map[ServerName]map[KeyID]string{"ps": {PolicyKeyID: "AAAA"}}); err == nil {
		t.Error("any answer is taken for a signature")
	}
	if _, err := p.Accept(e, nil); err == nil {
		t.Error("no answer is taken for a signature")
	}
}

func (b Builder) mustBuild(t *testing.T, key *SigningKey) *Event {
	t.Helper()
	e, err := b.Build(LookupRoomVersion("11"), "ps", key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
