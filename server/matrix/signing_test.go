package matrix

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// The key of spec v1.19 appendices/#cryptographic-test-vectors.
func specKey(t testing.TB) *SigningKey {
	t.Helper()
	key, err := ParseSigningKey([]byte("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                       `{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}`,
		`{"one": 1, "two": "Two"}`: `{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}`,
	} {
		got, err := SignJSON([]byte(in), "domain", specKey(t))
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
		if err := VerifyJSON(got, "domain", "ed25519:1", specKey(t).Public()); err != nil {
			t.Error(err)
		}
	}
}

// The first event of spec v1.19 appendices/#event-signing.
func TestSignEvent(t *testing.T) {
	const vector = `{"auth_events":[],"content":{},"depth":3,"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},
		"origin":"domain","origin_server_ts":1000000,"prev_events":[],"room_id":"!x:domain","sender":"@a:domain","type":"X","unsigned":{"age_ts":1000000}}`
	e, err := ParseEvent([]byte(vector), LookupRoomVersion("10"))
	if err != nil || e.Redacted() {
		t.Fatalf("redacted %v, %v", e != nil && e.Redacted(), err)
	}
	signed := e.WithSignature("domain", specKey(t))
	const want = `"ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"`
	if !strings.Contains(string(signed.JSON()), want) {
		t.Errorf("got %s", signed.JSON())
	}
	keys := keyTable{"domain": {"ed25519:1": specKey(t).Public()}}
	if err := VerifyEvent(context.Background(), signed, keys); err != nil {
		t.Error(err)
	}
	if err := VerifyEvent(context.Background(), signed.Redact(), keys); err != nil {
		t.Error("redacted:", err)
	}
	if err := VerifyEvent(context.Background(), e, keys); !errors.As(err, new(*SignatureError)) {
		t.Errorf("unsigned: got %v", err)
	}
}

// The second event of the spec's vectors lacks fields that every event must have; its hash and signature are those of
// the bytes, though.
func TestHashAndSignatureOfIncompleteEvent(t *testing.T) {
	const event = `{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain","origin_server_ts":1000000,` +
		`"room_id":"!r:domain","sender":"@u:domain","signatures":{},"type":"m.room.message","unsigned":{"age_ts":1000000}}`
	hash := contentHash([]byte(event))
	body := setMember([]byte(event), "hashes", []byte(`{"sha256":"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"}`))
	f, _ := fieldsOf(body)
	if claimed, err := f.contentHash(); err != nil || claimed != hash {
		t.Errorf("the content hash is %x, %v", hash, err)
	}
	got := specKey(t).Sign(appendRedacted(nil, body, &f, LookupRoomVersion("1"), true))
	want, _ := decodeBase64("Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA")
	if string(got) != string(want) {
		t.Errorf("the signature is %x", got)
	}
}

// keyTable is a KeySource of known keys.
type keyTable map[ServerName]map[KeyID]*PublicKey

func (k keyTable) Key(_ context.Context, s ServerName, id KeyID, _ time.Time) (*PublicKey, error) {
	if key := k[s][id]; key != nil {
		return key, nil
	}
	return nil, NotFound("no key %s of %s", id, s)
}

func TestWhoMustHaveSigned(t *testing.T) {
	message := ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}
	for name, c := range map[string]struct {
		event ev
		want  string
	}{
		"message":            {message, "1-12:b.example"},
		"restricted join":    {change(bob, bob, Join, `,"join_authorised_via_users_server":"@alice:a.example"`), "1-7:b.example 8-12:b.example,a.example"},
		"third-party invite": {change(alice, bob, Invite, `,"third_party_invite":{}`), "1-2:a.example 3-12:"},
		"invite":             {change(alice, bob, Invite, ``), "1-12:a.example"},
	} {
		for id, want := range answers(t, c.want) {
			r := newRoom(t, LookupRoomVersion(id))
			var got []string
			for _, s := range r.event(c.event).RequiredSigners() {
				got = append(got, string(s))
			}
			if strings.Join(got, ",") != want {
				t.Errorf("%s, version %s: got %v, want %s", name, id, got, want)
			}
		}
	}
}

func TestEventNeedsAValidSignatureAndNoWrongOne(t *testing.T) {
	r := newRoom(t, LookupRoomVersion("11"))
	e := r.event(ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`})
	other, err := NewSigningKey("ed25519:2", []byte("another seed of thirty-two bytes"))
	if err != nil {
		t.Fatal(err)
	}
	good, wrong := testKey(t).Public(), other.Public()
	ctx := context.Background()
	if err := VerifyEvent(ctx, e, keyTable{"b.example": {"ed25519:1": good}}); err != nil {
		t.Error("good:", err)
	}
	if err := VerifyEvent(ctx, e, keyTable{"b.example": {"ed25519:1": wrong}}); !errors.As(err, new(*SignatureError)) {
		t.Error("wrong key:", err)
	}
	if err := VerifyEvent(ctx, e, keyTable{}); ErrorCode(err) != "M_NOT_FOUND" {
		t.Error("unknown key:", err)
	}
	// A signature with a key that is not known, as that of a policy server, is skipped.
	twice := e.WithSignature("b.example", other)
	if err := VerifyEvent(ctx, twice, keyTable{"b.example": {"ed25519:1": good}}); err != nil {
		t.Error("one unknown:", err)
	}
	if err := VerifyEvent(ctx, twice, keyTable{"b.example": {"ed25519:1": good, "ed25519:2": good}}); !errors.As(err, new(*SignatureError)) {
		t.Error("one wrong:", err)
	}
	if twice.ID() != e.ID() {
		t.Error("a signature changes the event ID")
	}
}

func TestKeysInAnyBase64(t *testing.T) {
	key := testKey(t)
	parsed, err := ParseSigningKey(key.Format())
	if err != nil || string(parsed.Private()) != string(key.Private()) || parsed.ID != key.ID {
		t.Errorf("got %v, %v", parsed, err)
	}
	for _, s := range []string{key.Public().String(), key.Public().String() + "=", strings.NewReplacer("+", "-", "/", "_").Replace(key.Public().String())} {
		if p, err := ParsePublicKey(s); err != nil || p.String() != key.Public().String() {
			t.Errorf("%s: got %v, %v", s, p, err)
		}
	}
	for _, file := range []string{"", "ed25519 1", "rsa 1 AAAA", "ed25519 1 !!", "ed25519 1 AAAA"} {
		if _, err := ParseSigningKey([]byte(file)); err == nil {
			t.Errorf("%q is a key", file)
		}
	}
}

// Voi verifies as the standard library does.
func TestVerifyIsThatOfTheStandardLibrary(t *testing.T) {
	key := testKey(t)
	message := []byte("message")
	good := key.Sign(message)
	for i := range 64 * 8 {
		s := append([]byte(nil), good...)
		s[i/8] ^= 1 << (i % 8)
		if key.Public().Verify(message, s) != ed25519.Verify(key.Public().Bytes(), message, s) {
			t.Fatalf("bit %d", i)
		}
	}
	if !key.Public().Verify(message, good) || key.Public().Verify(message, good[:63]) {
		t.Error("the good signature")
	}
}

func TestSignatureOfSignerWithStrangeName(t *testing.T) {
	signer := "@\"q\\\x01:a.example"
	object, err := json.Marshal(map[string]any{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := SignJSON(object, ServerName(signer), testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyJSON(signed, signer, "ed25519:1", testKey(t).Public()); err != nil {
		t.Error(err)
	}
	if ids := SignatureKeyIDs(signed, signer); len(ids) != 1 || ids[0] != "ed25519:1" {
		t.Errorf("got %v", ids)
	}
}
