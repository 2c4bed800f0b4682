package matrix

import "encoding/json"

const (
	// TypePolicy names a room's policy server. Spec v1.19 client-server-api/#mroompolicy
	TypePolicy = "m.room.policy"
	// PolicyKeyID is the ID of the key with which a policy server signs events. It is no key that the server publishes.
	// Spec v1.19 server-server-api/#validating-policy-server-signatures
	PolicyKeyID KeyID = "ed25519:policy_server"
)

// PolicyServer is the server that a room asks whether events shall be let in.
type PolicyServer struct {
	Server ServerName
	key    *PublicKey // of PolicyKeyID; nil if the room names none with which anything can be signed
}

// ParsePolicy reads the content of m.room.policy; nil if it names no policy server.
// Spec v1.19 server-server-api/#determining-if-a-policy-server-is-enabled-in-a-room
func ParsePolicy(content []byte) *PolicyServer {
	var raw struct {
		Via  *string                    `json:"via"`
		Keys map[string]json.RawMessage `json:"public_keys"`
	}
	var key *string
	if json.Unmarshal(content, &raw) != nil || raw.Via == nil || json.Unmarshal(raw.Keys["ed25519"], &key) != nil || key == nil {
		return nil
	}
	public, _ := ParsePublicKey(*key) // what is no key has made no signature
	return &PolicyServer{Server: ServerName(*raw.Via), key: public}
}

// Name tells this policy server, with its key, from others.
func (p *PolicyServer) Name() string {
	if p.key == nil {
		return string(p.Server)
	}
	return string(p.Server) + " " + p.key.String()
}

// Recommends reports whether the event carries a valid signature of the policy server.
func (p *PolicyServer) Recommends(e *Event) bool {
	signature, err := signatureOf(e.json, string(p.Server), PolicyKeyID)
	if err != nil {
		return false
	}
	return p.valid(e, signature)
}

func (p *PolicyServer) valid(e *Event, signature []byte) bool {
	return p.key != nil && p.key.Verify(e.signable(), signature)
}

// Accept adds a signature that the policy server has answered to the event. The error is a *SignatureError if it is not valid, or
// M_TOO_LARGE. answer is what POST /_matrix/policy/v1/sign gives, by server and key ID.
func (p *PolicyServer) Accept(e *Event, answer map[ServerName]map[KeyID]string) (*Event, error) {
	signature, err := decodeBase64(answer[p.Server][PolicyKeyID])
	if err != nil || !p.valid(e, signature) {
		return nil, &SignatureError{p.Server, "the policy server has answered without a valid signature"}
	}
	signed := e.withSignature(p.Server, PolicyKeyID, signature)
	if len(signed.json) > MaxEventBytes {
		return nil, TooLarge("the event would have %d bytes with the policy server's signature, more than %d", len(signed.json), MaxEventBytes)
	}
	return signed, nil
}

// Signs reports whether the policy server is to be asked about the event: about all but those that name a policy server.
func (p *PolicyServer) Signs(e *Event) bool { return !e.Is(TypePolicy, "") }

// signable is what of the event is signed: its redacted form without signatures.
func (e *Event) signable() []byte {
	f, _ := fieldsOf(e.json)
	return appendRedacted(nil, e.json, &f, e.version, true)
}

// withSignature returns the event with a signature added.
func (e *Event) withSignature(server ServerName, id KeyID, signature []byte) *Event {
	s := &Event{version: e.version, id: e.id, redacted: e.redacted}
	s.json = addSignature(e.json, string(server), id, signature)
	f, _ := fieldsOf(s.json)
	s.fill(&f)
	s.roomID = e.roomID
	return s
}
