package matrix

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	voi "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// SigningKey is a private ed25519 key of a server with its ID, "ed25519:…".
type SigningKey struct {
	ID      KeyID
	private ed25519.PrivateKey
	public  *PublicKey
}

// NewSigningKey makes a key of a 32-byte seed. The ID must have the algorithm ed25519.
func NewSigningKey(id KeyID, seed []byte) (*SigningKey, error) {
	switch {
	case id.Algorithm() != "ed25519" || id.Identifier() == "":
		return nil, fmt.Errorf("signing key %q: the ID must be ed25519:identifier", string(id))
	case len(seed) != ed25519.SeedSize:
		return nil, fmt.Errorf("signing key %s: the seed has %d bytes instead of %d", id, len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public, err := NewPublicKey(private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", id, err)
	}
	return &SigningKey{ID: id, private: private, public: public}, nil
}

// ParseSigningKey reads the file format of all homeservers: "ed25519 IDENTIFIER SEED", the seed in unpadded base64.
// Errors do not tell the content.
func ParseSigningKey(file []byte) (*SigningKey, error) {
	words := strings.Fields(string(file))
	if len(words) != 3 || words[0] != "ed25519" {
		return nil, errors.New("a signing key file must hold one line: ed25519 IDENTIFIER SEED")
	}
	id, err := ParseKeyID(words[0] + ":" + words[1])
	if err != nil {
		return nil, err
	}
	seed, err := decodeBase64(words[2])
	if err != nil {
		return nil, errors.New("the seed of the signing key is not base64")
	}
	return NewSigningKey(id, seed)
}

// Format writes the key in the format that [ParseSigningKey] reads, with a newline.
func (k *SigningKey) Format() []byte {
	return fmt.Appendf(nil, "ed25519 %s %s\n", k.ID.Identifier(), base64.RawStdEncoding.EncodeToString(k.private.Seed()))
}

// Private is the key for signers that are not of Matrix (HTTP Signatures).
func (k *SigningKey) Private() ed25519.PrivateKey { return k.private }

// Public is the public half.
func (k *SigningKey) Public() *PublicKey { return k.public }

// Sign returns the ed25519 signature of message, 64 bytes. Both libraries make the same; voi's takes three quarters of the time.
func (k *SigningKey) Sign(message []byte) []byte {
	return voi.Sign(voi.PrivateKey(k.private), message)
}

// SignJSON returns object, canonical, with a signature of server added; signatures and unsigned that are there stay.
// Spec v1.19 appendices/#signing-details
func SignJSON(object []byte, server ServerName, key *SigningKey) ([]byte, error) {
	canonical, err := CanonicalJSONLoose(nil, object)
	if err != nil {
		return nil, err
	}
	if !isObject(canonical) {
		return nil, BadJSON("only JSON objects can be signed")
	}
	return addSignature(canonical, string(server), key.ID, key.Sign(appendSignable(nil, canonical))), nil
}

// addSignature puts a signature into a canonical object.
func addSignature(object []byte, signer string, id KeyID, signature []byte) []byte {
	all := member(object, "signatures")
	if !isObject(all) {
		all = []byte("{}")
	}
	own := memberEscaped(all, signer)
	if !isObject(own) {
		own = []byte("{}")
	}
	own = setMember(own, string(id), AppendJSONString(nil, base64.RawStdEncoding.EncodeToString(signature)))
	return setMember(object, "signatures", setMember(all, signer, own))
}

// appendSignable appends what of a canonical object is signed.
func appendSignable(dst, object []byte) []byte {
	return appendWithout(dst, object, func(k []byte) bool { return string(k) == "signatures" || string(k) == "unsigned" })
}

// VerifyJSON checks that object carries a valid signature of signer, a server or, in end-to-end keys, a user, made
// with key. The error is a *SignatureError, or a *Error if object is no JSON object.
// Spec v1.19 appendices/#checking-for-a-signature
func VerifyJSON(object []byte, signer string, id KeyID, key *PublicKey) error {
	canonical, err := CanonicalJSONLoose(nil, object)
	if err != nil {
		return err
	}
	if !isObject(canonical) {
		return BadJSON("only JSON objects are signed")
	}
	signature, err := signatureOf(canonical, signer, id)
	if err != nil {
		return err
	}
	if !key.Verify(appendSignable(nil, canonical), signature) {
		return &SignatureError{ServerName(signer), "the signature with " + string(id) + " is wrong"}
	}
	return nil
}

// signatureOf finds a signature in a canonical object.
func signatureOf(object []byte, signer string, id KeyID) ([]byte, error) {
	text, ok := stringValue(memberEscaped(memberEscaped(member(object, "signatures"), signer), string(id)))
	if !ok {
		return nil, &SignatureError{ServerName(signer), "there is no signature with " + string(id)}
	}
	signature, err := decodeBase64(text)
	if err != nil || len(signature) != ed25519.SignatureSize {
		return nil, &SignatureError{ServerName(signer), "the signature with " + string(id) + " is not base64 of 64 bytes"}
	}
	return signature, nil
}

// SignatureKeyIDs lists the IDs of the ed25519 keys with which signer has signed object, in order; nil if it has not.
// object need not be canonical.
func SignatureKeyIDs(object []byte, signer string) []KeyID {
	canonical, err := CanonicalJSONLoose(nil, object)
	if err != nil {
		return nil
	}
	return signatureKeyIDs(canonical, signer)
}

func signatureKeyIDs(object []byte, signer string) (ids []KeyID) {
	members(memberEscaped(member(object, "signatures"), signer), func(k, _ []byte) bool {
		if bytes.HasPrefix(k, []byte("ed25519:")) {
			ids = append(ids, KeyID(unquoteRaw(k)))
		}
		return true
	})
	return ids
}

// memberEscaped is member for a key that may need escapes.
func memberEscaped(object []byte, key string) []byte {
	quoted := AppendJSONString(nil, key)
	return member(object, string(quoted[1:len(quoted)-1]))
}

// PublicKey verifies signatures of one ed25519 key. It is safe for concurrent use; keep it, as making it is the
// expensive part.
type PublicKey struct {
	raw      ed25519.PublicKey
	expanded *voi.ExpandedPublicKey
}

// verifyOptions make voi accept exactly the signatures that crypto/ed25519 accepts.
var verifyOptions = &voi.Options{Verify: voi.VerifyOptionsStdLib}

// NewPublicKey takes the 32 bytes of a key. It is an error if they are no point of the curve.
func NewPublicKey(raw []byte) (*PublicKey, error) {
	if len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("an ed25519 key has %d bytes, not %d", ed25519.PublicKeySize, len(raw))
	}
	raw = bytes.Clone(raw)
	expanded, err := voi.NewExpandedPublicKey(raw)
	if err != nil {
		return nil, fmt.Errorf("not an ed25519 key: %w", err)
	}
	return &PublicKey{raw: raw, expanded: expanded}, nil
}

// ParsePublicKey takes a key in base64, padded or not, in the standard or the URL-safe alphabet.
func ParsePublicKey(base64 string) (*PublicKey, error) {
	raw, err := decodeBase64(base64)
	if err != nil {
		return nil, fmt.Errorf("an ed25519 key must be base64: %w", err)
	}
	return NewPublicKey(raw)
}

// Bytes are the 32 bytes of the key.
func (k *PublicKey) Bytes() ed25519.PublicKey { return k.raw }

// String is the key in unpadded base64.
func (k *PublicKey) String() string { return base64.RawStdEncoding.EncodeToString(k.raw) }

// Verify reports whether signature is one of message.
func (k *PublicKey) Verify(message, signature []byte) bool {
	return len(signature) == ed25519.SignatureSize &&
		voi.VerifyExpandedWithOptions(k.expanded, message, signature, verifyOptions)
}

// decodeBase64 decodes base64 of either alphabet, padded or not. Spec v1.19 appendices/#unpadded-base64
func decodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "-_") {
		return base64.RawURLEncoding.DecodeString(s)
	}
	return base64.RawStdEncoding.DecodeString(s)
}

// KeySource finds the signing keys of other servers.
type KeySource interface {
	// Key returns a key of server that was valid at validAt; a zero validAt asks for the key whenever it was valid
	// (room versions 1 to 4). The error is a *Error or of the network; it does not say that the signature is wrong.
	Key(ctx context.Context, server ServerName, id KeyID, validAt time.Time) (*PublicKey, error)
}

// maxKeysPerSigner bounds for how many keys of a server one event makes us ask.
const maxKeysPerSigner = 4

// VerifyEvent checks the signatures of all servers that must have signed the event: each must have signed with a key
// that keys knows, and none of its signatures with known keys may be wrong. The error is a *SignatureError if a
// signature is missing or wrong; anything else is why a key could not be had.
// Spec v1.19 server-server-api/#validating-hashes-and-signatures-on-received-events
func VerifyEvent(ctx context.Context, e *Event, keys KeySource) error {
	signers := e.RequiredSigners()
	if len(signers) == 0 {
		return nil
	}
	var stack [2048]byte
	f, _ := fieldsOf(e.json)
	signed := appendRedacted(stack[:0], e.json, &f, e.version, true)
	var validAt time.Time
	if e.version.KeyValidityPeriod {
		validAt = e.Time()
	}
	for _, server := range signers {
		if err := verifySigner(ctx, e, signed, server, validAt, keys); err != nil {
			return err
		}
	}
	return nil
}

func verifySigner(ctx context.Context, e *Event, signed []byte, server ServerName, validAt time.Time, keys KeySource) error {
	ids := slices.DeleteFunc(signatureKeyIDs(e.json, string(server)), func(id KeyID) bool { return id == PolicyKeyID })
	if len(ids) == 0 {
		return &SignatureError{server, "the event is not signed by this server"}
	}
	ids = ids[:min(len(ids), maxKeysPerSigner)]
	valid := false
	var unknown error
	for _, id := range ids {
		key, err := keys.Key(ctx, server, id, validAt)
		if err != nil {
			unknown = fmt.Errorf("key %s of %s: %w", id, server, err)
			continue
		}
		signature, err := signatureOf(e.json, string(server), id)
		if err != nil {
			return err
		}
		if !key.Verify(signed, signature) {
			return &SignatureError{server, "the signature with " + string(id) + " is wrong"}
		}
		valid = true
	}
	if valid {
		return nil
	}
	return unknown
}

// SignatureError says that an event or object lacks a valid signature of Server.
type SignatureError struct {
	Server ServerName
	Reason string
}

func (e *SignatureError) Error() string { return "signature of " + string(e.Server) + ": " + e.Reason }

// WithSignature returns the event with a signature of server added: for invites, and for restricted joins that we
// authorize.
func (e *Event) WithSignature(server ServerName, key *SigningKey) *Event {
	return e.withSignature(server, key.ID, key.Sign(e.signable()))
}

// SignedBy reports whether the event carries a signature of server; it does not check it.
func (e *Event) SignedBy(server ServerName) bool {
	return len(signatureKeyIDs(e.json, string(server))) > 0
}

// RequiredSigners lists the servers whose signatures the event must carry, without duplicates.
// Spec v1.19 server-server-api/#validating-hashes-and-signatures-on-received-events
func (e *Event) RequiredSigners() []ServerName {
	var signers []ServerName
	add := func(s ServerName) {
		for _, have := range signers {
			if have == s {
				return
			}
		}
		signers = append(signers, s)
	}
	// The sender's server, but for third-party invites, which another server may send.
	if e.typ != TypeMember || e.membership != Invite || e.ContentMember("third_party_invite") == nil {
		add(e.sender.Server())
	}
	// Room versions 1 and 2: the server of the event ID.
	if e.version.EventIDInEvent {
		add(e.id.Server())
	}
	// Room version 8 on: the server that let the user into a restricted room.
	if e.version.RestrictedJoins && e.typ == TypeMember {
		if via, ok := stringValue(e.ContentMember("join_authorised_via_users_server")); ok {
			add(UserID(via).Server())
		}
	}
	return signers
}
