package matrix

import (
	"context"
	"crypto/ed25519"
	"time"
)

// SigningKey is a private ed25519 key of a server with its ID, "ed25519:…".
type SigningKey struct {
	ID      KeyID
	private ed25519.PrivateKey
	public  *PublicKey
}

// NewSigningKey makes a key of a 32-byte seed. The ID must have the algorithm ed25519.
func NewSigningKey(id KeyID, seed []byte) (*SigningKey, error) { return nil, errNotImplemented }

// ParseSigningKey reads the file format of all homeservers: "ed25519 IDENTIFIER SEED", the seed in unpadded base64.
func ParseSigningKey(file []byte) (*SigningKey, error) { return nil, errNotImplemented }

// Format writes the key in the format that [ParseSigningKey] reads, with a newline.
func (k *SigningKey) Format() []byte { return nil }

// Private is the key for signers that are not of Matrix (HTTP Signatures).
func (k *SigningKey) Private() ed25519.PrivateKey { return k.private }

// Public is the public half.
func (k *SigningKey) Public() *PublicKey { return k.public }

// Sign returns the ed25519 signature of message.
func (k *SigningKey) Sign(message []byte) []byte { return nil }

// SignJSON returns object, canonical, with a signature of server added; signatures and unsigned that are there stay.
// Spec v1.19 appendices/#signing-details
func SignJSON(object []byte, server ServerName, key *SigningKey) ([]byte, error) {
	return nil, errNotImplemented
}

// VerifyJSON checks that object carries a valid signature of server (or user, in end-to-end keys) made with key.
// Spec v1.19 appendices/#checking-for-a-signature
func VerifyJSON(object []byte, signer string, id KeyID, key *PublicKey) error {
	return errNotImplemented
}

// SignatureKeyIDs lists the IDs of the ed25519 keys with which signer has signed object, sorted; nil if it has not.
func SignatureKeyIDs(object []byte, signer string) []KeyID { return nil }

// PublicKey verifies signatures of one ed25519 key. It is safe for concurrent use; keep it, as making it is the
// expensive part.
type PublicKey struct {
	raw ed25519.PublicKey
}

// NewPublicKey takes the 32 bytes of a key.
func NewPublicKey(raw []byte) (*PublicKey, error) { return nil, errNotImplemented }

// ParsePublicKey takes a key in base64, padded or not, in the standard or the URL-safe alphabet.
func ParsePublicKey(base64 string) (*PublicKey, error) { return nil, errNotImplemented }

// Bytes are the 32 bytes of the key.
func (k *PublicKey) Bytes() ed25519.PublicKey { return k.raw }

// String is the key in unpadded base64.
func (k *PublicKey) String() string { return "" }

// Verify reports whether signature is one of message.
func (k *PublicKey) Verify(message, signature []byte) bool { return false }

// KeySource finds the signing keys of other servers.
type KeySource interface {
	// Key returns a key of server that was valid at validAt; a zero validAt asks for the key whenever it was valid
	// (room versions 1 to 4). The error is a *Error or of the network; it does not say that the signature is wrong.
	Key(ctx context.Context, server ServerName, id KeyID, validAt time.Time) (*PublicKey, error)
}

// VerifyEvent checks the signatures of all servers that must have signed the event. The error is a
// *SignatureError if a signature is missing or wrong; anything else is why a key could not be had.
// Spec v1.19 server-server-api/#validating-hashes-and-signatures-on-received-events
func VerifyEvent(ctx context.Context, e *Event, keys KeySource) error { return errNotImplemented }

// SignatureError says that an event or object lacks a valid signature of Server.
type SignatureError struct {
	Server ServerName
	Reason string
}

func (e *SignatureError) Error() string { return "signature of " + string(e.Server) + ": " + e.Reason }
