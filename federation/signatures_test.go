package federation

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-fed/httpsig"

	"parley.im/parley/server/matrix"
)

func newSigned(t testing.TB, key *matrix.SigningKey, target, body string) *http.Request {
	t.Helper()
	r := httptest.NewRequest("PUT", target, strings.NewReader(body))
	r.Host = "b.example"
	if err := signRequest(r, []byte(body), "a.example", key); err != nil {
		t.Fatal(err)
	}
	return r
}

func verify(r *http.Request, key *matrix.PublicKey, now time.Time) error {
	sig, err := parseRequestSignature(r.Header, now)
	if err != nil {
		return err
	}
	return sig.verifyRequest(r, []string{r.Host}, key)
}

func TestSignatureCoversThePathAsSent(t *testing.T) {
	key := newKey(t, "ed25519:1")
	r := newSigned(t, key, "/media/a%2Fb?x=1%2B1", "{}")
	if err := verify(r, key.Public(), time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"/media/a/b?x=1%2B1", "/media/a%2fb?x=1%2B1", "/media/a%2Fb?x=1+1", "/media/a%2Fb"} {
		spoilt := httptest.NewRequest("PUT", other, nil)
		spoilt.Host, spoilt.Header = r.Host, r.Header
		if verify(spoilt, key.Public(), time.Now()) == nil {
			t.Errorf("a signature of %s is good for %s", r.URL, other)
		}
	}
	if err := signRequest(httptest.NewRequest("GET", "/x", nil), nil, "a.example", key); err != nil {
		t.Fatal(err)
	}
	injected := httptest.NewRequest("GET", "/x", nil)
	injected.Host = "b.example\ndate: now"
	if signRequest(injected, nil, "a.example", key) == nil {
		t.Error("a newline in the host was signed")
	}
}

func TestSignatureOverAuthorizationThatLooksLikeOne(t *testing.T) {
	// The library searches Authorization for the words keyId, headers and signature.
	key := newKey(t, "ed25519:1")
	r := newSigned(t, key, "/x", "{}")
	r.Header.Set("Authorization", `X-Matrix origin="headers.example.org",key="ed25519:keyId",sig="signature"`)
	if err := verify(r, key.Public(), time.Now()); err != nil {
		t.Error(err)
	}
}

func TestSignatureBehindAProxyThatChangesTheHost(t *testing.T) {
	key := newKey(t, "ed25519:1")
	r := newSigned(t, key, "/x", "{}")
	sig, err := parseRequestSignature(r.Header, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "127.0.0.1:8008"
	if err := sig.verifyRequest(r, []string{r.Host, "b.example"}, key.Public()); err != nil {
		t.Error(err)
	}
	if sig.verifyRequest(r, []string{r.Host, "", "c.example"}, key.Public()) == nil {
		t.Error("good for another host")
	}
}

func TestSignatureWindow(t *testing.T) {
	key := newKey(t, "ed25519:1")
	r := newSigned(t, key, "/x", "{}")
	now := time.Now()
	for _, tt := range []struct {
		later time.Duration
		ok    bool
	}{{0, true}, {-8 * time.Second, true}, {-13 * time.Second, false}, {65 * time.Second, true}, {75 * time.Second, false}} {
		_, err := parseRequestSignature(r.Header, now.Add(tt.later))
		if ok := err == nil; ok != tt.ok {
			t.Errorf("%s later: %v", tt.later, err)
		}
	}
}

func TestSignatureThatCoversTooLittle(t *testing.T) {
	key := newKey(t, "ed25519:1")
	for _, covered := range [][]string{
		{"date"},
		{"(request-target)", "host", "date", "digest"},
		{"(created)", "(expires)", "host", "date", "digest", "parley-nonce"},
		{"(request-target)", "(created)", "(expires)", "host", "date", "parley-nonce"},
		{"(request-target)", "(created)", "(expires)", "host", "date", "digest", "parley-nonce", "x-forwarded-for"},
		{"(request-target)", "(created)", "(expires)", "host", "date", "digest", "digest", "parley-nonce"},
	} {
		r := newSigned(t, key, "/x", "{}")
		r.Header.Del("Signature")
		r.Header.Set("X-Forwarded-For", "1.2.3.4")
		signer, _, err := httpsig.NewSigner([]httpsig.Algorithm{httpsig.ED25519}, httpsig.DigestSha256, covered, httpsig.Signature, 60)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Host", r.Host)
		if err := signer.SignRequest(key.Private(), "a.example|ed25519:1", r, nil); err != nil {
			t.Fatal(err)
		}
		if err := verify(r, key.Public(), time.Now()); err == nil {
			t.Errorf("accepted with %v", covered)
		}
	}
}

func TestSignatureByAKeyOfTheWrongLengthDoesNotPanic(t *testing.T) {
	r := newSigned(t, newKey(t, "ed25519:1"), "/x", "{}")
	if err := verify(r, &matrix.PublicKey{}, time.Now()); err == nil {
		t.Error("accepted")
	}
}

func TestDigest(t *testing.T) {
	body := []byte("hello")
	for name, tt := range map[string]struct {
		headers []string
		ok      bool
	}{
		"right":        {[]string{digestOf(body)}, true},
		"none":         {nil, false},
		"other body":   {[]string{digestOf([]byte("hellO"))}, false},
		"two":          {[]string{digestOf(body), digestOf(body)}, false},
		"list":         {[]string{digestOf(body) + "," + digestOf(body)}, false},
		"SHA-512 only": {[]string{"SHA-512=AAAA"}, false},
	} {
		sum := sha256.Sum256(body)
		if err := checkDigest(http.Header{"Digest": tt.headers}, sum[:]); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignedAnswer(t *testing.T) {
	key := newKey(t, "ed25519:1")
	request := http.Header{"Signature": {`keyId="x",signature="abc"`}}
	w := httptest.NewRecorder()
	if err := signResponse(w, request, digestOf([]byte("file")), "a.example", key); err != nil {
		t.Fatal(err)
	}
	check := func(answer, request http.Header, now time.Time) error {
		sig, err := parseResponseSignature(answer, request, now)
		if err != nil {
			return err
		}
		return sig.verifyResponse(answer, key.Public())
	}
	if err := check(w.Header(), request, time.Now()); err != nil {
		t.Fatal(err)
	}
	if check(w.Header(), http.Header{"Signature": {`keyId="x",signature="abd"`}}, time.Now()) == nil {
		t.Error("an answer to another request is accepted")
	}
	if check(w.Header(), request, time.Now().Add(2*time.Minute)) == nil {
		t.Error("an old answer is accepted")
	}
	for _, name := range []string{"Digest", "Date", inReplyToHeader} {
		spoilt := w.Header().Clone()
		spoilt.Set(name, digestOf([]byte("other")))
		if check(spoilt, request, time.Now()) == nil {
			t.Errorf("%s changed, and accepted", name)
		}
	}
	stripped := w.Header().Clone()
	stripped.Del("Signature")
	if err := check(stripped, request, time.Now()); !errors.Is(err, errUnsigned) {
		t.Error(err)
	}
}

func FuzzParseSignature(f *testing.F) {
	key := newKey(f, "ed25519:1")
	good := newSigned(f, key, "/x", "{}")
	f.Add(good.Header.Get("Signature"))
	f.Add(`keyId="a|ed25519:1",created=1,expires=2,headers="(request-target) (created)",signature="AA=="`)
	f.Fuzz(func(t *testing.T, header string) {
		h := http.Header{"Signature": {header}}
		sig, err := parseSignatureHeader(h, requestCoverage)
		if err != nil {
			return
		}
		// What we read must be what the library reads, or the two could be played off against each other.
		r := good.Clone(t.Context())
		r.Header.Set("Signature", header)
		r.Header.Set("Host", "b.example")
		v, err := httpsig.NewVerifier(r)
		if err != nil {
			if strings.Contains(err.Error(), "expired") || strings.Contains(err.Error(), "future") {
				return
			}
			t.Fatalf("we accept what the library does not: %v", err)
		}
		if v.KeyId() != signatureKeyID(sig.Server, sig.KeyID) {
			t.Errorf("keyId %q and %q", v.KeyId(), signatureKeyID(sig.Server, sig.KeyID))
		}
	})
}
