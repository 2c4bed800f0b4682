package federation

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-fed/httpsig"

	"parley.im/parley/server/matrix"
)

// HTTP Signatures (draft-cavage-http-signatures-12), made and checked by go-fed/httpsig, beside X-Matrix on every
// request. The library leaves much to its caller. What it leaves open is closed here, in this order:
//
//  1. it never compares the Digest with the body       -> checkDigest, constant time
//  2. the sender chooses what is covered               -> requestCoverage is demanded, and nothing beyond it allowed
//  3. it signs the decoded path                        -> both sides use a clone whose Path is the escaped path
//  4. no replay protection, (created) and Date unused  -> a window of at most signatureLifetime, and replayCache
//  5. duplicate parameters: the last one wins          -> parseSignature refuses them, and a second header
//  6. it also looks into Authorization                 -> the clone has only the covered headers
//  7. a short key panics                               -> the length is checked
const (
	// signatureLifetime is how long a signature may be used: the longest (expires) - (created) we make or accept.
	signatureLifetime = 60 * time.Second
	// clockSkew is how far the other server's clock may be off. It is the library's own tolerance, which cannot be set.
	clockSkew = 10 * time.Second
	// inReplyToHeader binds a signed answer to the one request it answers: base64 of the SHA-256 of the request's
	// Signature header, or of its Authorization header where it has no Signature.
	inReplyToHeader = "Parley-In-Reply-To"
	// nonceHeader makes every request's signature its own: ed25519 is deterministic and (created) has whole seconds, so
	// without it the second of two equal queries in one second would look like a replay.
	nonceHeader = "Parley-Nonce"
	// maxSignatureHeader bounds the headers that we are willing to parse.
	maxSignatureHeader = 2048
)

var (
	requestCoverage  = []string{httpsig.RequestTarget, "(created)", "(expires)", "host", "date", "digest", "parley-nonce"}
	responseCoverage = []string{"(created)", "(expires)", "date", "digest", "parley-in-reply-to"}
)

// errUnsigned says that there was no Signature header at all. Whether that matters is the policy's affair.
var errUnsigned = errors.New("no HTTP Signature")

// signature is a parsed and plausible Signature header. Nothing in it is verified yet.
type signature struct {
	Server  matrix.ServerName
	KeyID   matrix.KeyID
	Created time.Time
	Expires time.Time
	covered []string
	raw     string // the signature as sent: the replay cache's key
}

// signRequest adds Date, Digest, Parley-Nonce and Signature to r. r.Host must be what will be sent, and body the exact bytes of
// the body, nil for none. A request is signed once: a retry is a new request.
func signRequest(r *http.Request, body []byte, server matrix.ServerName, key *matrix.SigningKey) error {
	// One signer per request: it fixes (created) and (expires) when it is made.
	signer, _, err := httpsig.NewSigner([]httpsig.Algorithm{httpsig.ED25519}, httpsig.DigestSha256, requestCoverage,
		httpsig.Signature, int64(signatureLifetime/time.Second))
	if err != nil {
		return fmt.Errorf("make a signer: %w", err)
	}
	r.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	r.Header.Set("Digest", digestOf(body))
	r.Header.Set(nonceHeader, rand.Text())
	clone, err := signable(r, r.Host, requestCoverage)
	if err != nil {
		return err
	}
	// nil: the Digest is ours already, also of an empty body, for which the library would make none.
	if err := signer.SignRequest(key.Private(), signatureKeyID(server, key.ID), clone, nil); err != nil {
		return fmt.Errorf("sign the request: %w", err)
	}
	r.Header.Set("Signature", clone.Header.Get("Signature"))
	return nil
}

// parseRequestSignature reads the Signature header of a request and refuses it if it is malformed, covers less or
// more than it must, or lies outside the window around now. It returns errUnsigned if there is none.
func parseRequestSignature(h http.Header, now time.Time) (*signature, error) {
	sig, err := parseSignatureHeader(h, requestCoverage)
	if err != nil {
		return nil, err
	}
	return sig, sig.checkTime(h, now)
}

// verifyRequest checks the signature over the headers of r with the sender's key. hosts are the names this server
// may have been addressed by: a reverse proxy may have changed the Host header on the way. The body is checked
// separately, by checkDigest, since it need not have been read yet.
func (s *signature) verifyRequest(r *http.Request, hosts []string, key *matrix.PublicKey) error {
	if len(key.Bytes()) != ed25519.PublicKeySize {
		return fmt.Errorf("the key has %d bytes, not %d", len(key.Bytes()), ed25519.PublicKeySize)
	}
	err := errors.New("the request names no host")
	for _, host := range hosts {
		if host == "" {
			continue
		}
		var clone *http.Request
		if clone, err = signable(r, host, s.covered); err != nil {
			return err
		}
		clone.Header["Signature"] = r.Header["Signature"]
		var verifier httpsig.Verifier
		if verifier, err = httpsig.NewVerifier(clone); err != nil {
			return err
		}
		if err = verifier.Verify(key.Bytes(), httpsig.ED25519); err == nil {
			return nil
		}
	}
	return err
}

// signable is r as both sides see it for signing: the escaped path where the library would use the decoded one, and no
// headers but the covered ones. Control characters never get into a signing string.
func signable(r *http.Request, host string, covered []string) (*http.Request, error) {
	path := r.URL.EscapedPath()
	if hasControl(path) || hasControl(r.URL.RawQuery) || hasControl(host) {
		return nil, errors.New("control character in the request target or host")
	}
	clone := &http.Request{
		Method: r.Method, Host: host,
		URL:    &url.URL{Path: path, RawQuery: r.URL.RawQuery},
		Header: http.Header{"Host": {host}},
	}
	for _, name := range covered {
		if name == "host" || name[0] == '(' {
			continue
		}
		values := r.Header.Values(name)
		if len(values) != 1 {
			return nil, fmt.Errorf("%d %s headers instead of one", len(values), name)
		}
		clone.Header.Set(name, values[0])
	}
	return clone, nil
}

// signResponse adds Date, Parley-In-Reply-To and Signature to the headers of an answer to request. digest is the
// Digest header's value over the whole body that will follow.
func signResponse(w http.ResponseWriter, request http.Header, digest string, server matrix.ServerName, key *matrix.SigningKey) error {
	signer, _, err := httpsig.NewSigner([]httpsig.Algorithm{httpsig.ED25519}, httpsig.DigestSha256, responseCoverage,
		httpsig.Signature, int64(signatureLifetime/time.Second))
	if err != nil {
		return fmt.Errorf("make a signer: %w", err)
	}
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	w.Header().Set("Digest", digest)
	w.Header().Set(inReplyToHeader, requestDigest(request))
	if err := signer.SignResponse(key.Private(), signatureKeyID(server, key.ID), w, nil); err != nil {
		return fmt.Errorf("sign the answer: %w", err)
	}
	return nil
}

// parseResponseSignature is parseRequestSignature for an answer to a request with the given headers. An answer to
// another request is refused, so an answer cannot be replayed.
func parseResponseSignature(answer, request http.Header, now time.Time) (*signature, error) {
	sig, err := parseSignatureHeader(answer, responseCoverage)
	if err != nil {
		return nil, err
	}
	got := answer.Values(inReplyToHeader)
	if len(got) != 1 || subtle.ConstantTimeCompare([]byte(got[0]), []byte(requestDigest(request))) != 1 {
		return nil, errors.New("the answer was signed for another request")
	}
	return sig, sig.checkTime(answer, now)
}

// verifyResponse checks the signature over the headers of an answer; the body is checked by its Digest.
func (s *signature) verifyResponse(answer http.Header, key *matrix.PublicKey) error {
	if len(key.Bytes()) != ed25519.PublicKeySize {
		return fmt.Errorf("the key has %d bytes, not %d", len(key.Bytes()), ed25519.PublicKeySize)
	}
	clone := &http.Response{Header: http.Header{"Signature": answer["Signature"]}}
	for _, name := range s.covered {
		if name[0] == '(' {
			continue
		}
		values := answer.Values(name)
		if len(values) != 1 {
			return fmt.Errorf("%d %s headers instead of one", len(values), name)
		}
		clone.Header.Set(name, values[0])
	}
	verifier, err := httpsig.NewResponseVerifier(clone)
	if err != nil {
		return err
	}
	return verifier.Verify(key.Bytes(), httpsig.ED25519)
}

// parseSignatureHeader reads the one Signature header. It must cover exactly what we demand: a superset would let a
// sender make us depend on headers that proxies add and change.
func parseSignatureHeader(h http.Header, want []string) (*signature, error) {
	values := h.Values("Signature")
	if len(values) == 0 {
		return nil, errUnsigned
	}
	if len(values) > 1 {
		return nil, errors.New("more than one Signature header")
	}
	params, err := parseSignatureParams(values[0])
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"keyId", "headers", "signature", "created", "expires"} {
		if params[name] == "" {
			return nil, fmt.Errorf("the Signature lacks %s", name)
		}
	}
	if a := params["algorithm"]; a != "" && a != "hs2019" && a != "ed25519" {
		return nil, fmt.Errorf("unknown signature algorithm %q", a)
	}
	covered := strings.Split(params["headers"], " ")
	if !slices.Equal(slices.Sorted(slices.Values(covered)), slices.Sorted(slices.Values(want))) {
		return nil, fmt.Errorf("the Signature covers %q, not %q", params["headers"], strings.Join(want, " "))
	}
	sig := &signature{covered: covered, raw: params["signature"]}
	if raw, err := base64.StdEncoding.Strict().DecodeString(sig.raw); err != nil || len(raw) != ed25519.SignatureSize {
		return nil, errors.New("the signature is not 64 bytes in base64")
	}
	if sig.Created, err = parseUnix(params["created"]); err != nil {
		return nil, fmt.Errorf("created: %w", err)
	}
	if sig.Expires, err = parseUnix(params["expires"]); err != nil {
		return nil, fmt.Errorf("expires: %w", err)
	}
	server, keyID, ok := strings.Cut(params["keyId"], "|")
	if !ok {
		return nil, errors.New("the keyId is not server|key")
	}
	if sig.Server, err = matrix.ParseServerName(server); err != nil {
		return nil, fmt.Errorf("keyId: %w", err)
	}
	if sig.KeyID, err = matrix.ParseKeyID(keyID); err != nil {
		return nil, fmt.Errorf("keyId: %w", err)
	}
	return sig, nil
}

// parseSignatureParams reads `name="value",name=123,…`. It is at least as strict as the library's parser, which
// splits at every comma and takes the last of duplicates: whatever passes here reads the same there.
func parseSignatureParams(s string) (map[string]string, error) {
	if len(s) > maxSignatureHeader {
		return nil, fmt.Errorf("the Signature header is longer than %d bytes", maxSignatureHeader)
	}
	params := map[string]string{}
	for _, part := range strings.Split(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			return nil, errors.New("malformed Signature header")
		}
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		} else if name != "created" && name != "expires" {
			return nil, fmt.Errorf("the Signature's %q is not quoted", name)
		}
		if strings.ContainsAny(value, "\"\\") || hasControl(value) {
			return nil, fmt.Errorf("bad character in the Signature's %q", name)
		}
		switch name {
		case "keyId", "algorithm", "headers", "signature", "created", "expires":
		default:
			return nil, fmt.Errorf("unknown Signature parameter %q", name)
		}
		if _, seen := params[name]; seen {
			return nil, fmt.Errorf("the Signature has %s twice", name)
		}
		params[name] = value
	}
	return params, nil
}

// checkTime refuses a signature that is not of now: made in the future, expired, valid for too long, or with a Date
// that disagrees.
func (s *signature) checkTime(h http.Header, now time.Time) error {
	switch {
	case s.Expires.Before(s.Created) || s.Expires.Sub(s.Created) > signatureLifetime:
		return fmt.Errorf("the signature is valid for longer than %s", signatureLifetime)
	case s.Created.After(now.Add(clockSkew)):
		return errors.New("the signature was made in the future: is the clock right?")
	case now.After(s.Expires.Add(clockSkew)):
		return errors.New("the signature has expired: is the clock right?")
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return errors.New("the Date is missing or not an HTTP date")
	}
	if d := now.Sub(date); d > signatureLifetime+clockSkew || d < -clockSkew {
		return fmt.Errorf("the Date is %s off: is the clock right?", d.Round(time.Second))
	}
	return nil
}

func signatureKeyID(server matrix.ServerName, keyID matrix.KeyID) string {
	return string(server) + "|" + string(keyID)
}

// digestOf is the Digest header's value for body.
func digestOf(body []byte) string {
	sum := sha256.Sum256(body)
	return digestHeaderOf(sum[:])
}

func digestHeaderOf(sum []byte) string {
	return "SHA-256=" + base64.StdEncoding.EncodeToString(sum)
}

// checkDigest compares the Digest header with the SHA-256 of what was received.
func checkDigest(h http.Header, sum []byte) error {
	values := h.Values("Digest")
	if len(values) != 1 {
		return fmt.Errorf("%d Digest headers instead of one", len(values))
	}
	if subtle.ConstantTimeCompare([]byte(values[0]), []byte(digestHeaderOf(sum))) != 1 {
		return errors.New("the body is not the one the Digest was made of")
	}
	return nil
}

// requestDigest identifies one request: no two have the same Signature, since the nonce is part of it.
func requestDigest(h http.Header) string {
	b := []byte(h.Get("Signature"))
	if len(b) == 0 {
		b = []byte(h.Get("Authorization"))
	}
	sum := sha256.Sum256(bytes.TrimSpace(b))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func parseUnix(s string) (time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > 1<<40 {
		return time.Time{}, errors.New("not a time in seconds since 1970")
	}
	return time.Unix(n, 0), nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}
