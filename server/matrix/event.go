package matrix

import (
	"encoding/json"
	"errors"
	"time"
)

var errNotImplemented = errors.New("matrix: not implemented yet")

// Limits on events. Spec v1.19 client-server-api/#size-limits
const (
	MaxEventBytes = 65536 // of an event in the federation format, canonical, with signatures
	MaxPrevEvents = 20
	MaxAuthEvents = 10
)

// Event is an event in the format of its room version. It is immutable and safe for concurrent use; slices that it
// gives out are shared and must not be written to.
type Event struct {
	version        *RoomVersion
	json           []byte
	id             EventID
	roomID         RoomID
	sender         UserID
	typ            string
	stateKey       string
	hasStateKey    bool
	redacted       bool
	content        []byte
	redacts        EventID
	membership     string
	depth          int64
	originServerTS int64
	prev, auth     []EventID
}

// ParseEvent reads an event from another server. It is strict: the error is a *Error that says what is wrong with
// the JSON, a field or a limit. The event ID is computed. If the content hash is missing or does not match, the result is the
// redacted form of the event (Redacted is true), as the spec demands. Unsigned data is dropped; signatures are not
// checked here, see [VerifyEvent]. raw may be reused afterwards.
// Spec v1.19 server-server-api/#checks-performed-on-receipt-of-a-pdu
func ParseEvent(raw []byte, version *RoomVersion) (*Event, error) { return nil, errNotImplemented }

// LoadEvent reads an event that [Event.JSON] wrote and our database kept. It takes over raw. The error
// means that the database is corrupt.
func LoadEvent(raw []byte, version *RoomVersion, id EventID) (*Event, error) {
	return nil, errNotImplemented
}

// JSON is the event in the federation format, canonical, with signatures, without unsigned.
func (e *Event) JSON() []byte { return e.json }

// Version is the version of the event's room.
func (e *Event) Version() *RoomVersion { return e.version }

// ID is the event's ID.
func (e *Event) ID() EventID { return e.id }

// RoomID is the event's room; that of a create event of room version 12 is derived from its ID.
func (e *Event) RoomID() RoomID { return e.roomID }

// Sender is the user who sent the event.
func (e *Event) Sender() UserID { return e.sender }

// Type is the event's type, such as "m.room.message".
func (e *Event) Type() string { return e.typ }

// StateKey is the state key; ok is false for an event that is not a state event.
func (e *Event) StateKey() (key string, ok bool) { return e.stateKey, e.hasStateKey }

// IsState reports whether the event has a state key.
func (e *Event) IsState() bool { return e.hasStateKey }

// Is reports whether this is the state event for the tuple.
func (e *Event) Is(typ, stateKey string) bool {
	return e.hasStateKey && e.typ == typ && e.stateKey == stateKey
}

// Tuple is the key of the event in room state. It is meaningless if the event has no state key.
func (e *Event) Tuple() StateTuple { return StateTuple{e.typ, e.stateKey} }

// Content is the content object, canonical JSON.
func (e *Event) Content() json.RawMessage { return e.content }

// PrevEvents are the IDs of the events before this one, at most 20.
func (e *Event) PrevEvents() []EventID { return e.prev }

// AuthEvents are the IDs of the events that authorize this one, at most 10.
func (e *Event) AuthEvents() []EventID { return e.auth }

// Depth is the depth that the sender's server claims.
func (e *Event) Depth() int64 { return e.depth }

// OriginServerTS is when the sender's server says the event was made, in milliseconds since 1970.
func (e *Event) OriginServerTS() int64 { return e.originServerTS }

// Time is OriginServerTS as a time.
func (e *Event) Time() time.Time { return time.UnixMilli(e.originServerTS) }

// Redacts is the event that an m.room.redaction redacts, wherever the room version keeps it; "" for none.
func (e *Event) Redacts() EventID { return e.redacts }

// Membership is content.membership of an m.room.member event, else "".
func (e *Event) Membership() string { return e.membership }

// Redacted reports whether this is the redacted form of an event.
func (e *Event) Redacted() bool { return e.redacted }

// Redact returns the redacted form of the event. Its ID and its signatures stay the same.
// Spec v1.19 client-server-api/#redactions and rooms/vN/#redactions
func (e *Event) Redact() *Event { return e }

// ReferenceHash is the SHA-256 of the redacted event, of which event IDs are made from room version 3 on.
func (e *Event) ReferenceHash() [32]byte { return [32]byte{} }

// WithSignature returns the event with a signature of server added: for invites, and for restricted joins that we
// authorize.
func (e *Event) WithSignature(server ServerName, key *SigningKey) *Event { return e }

// SignedBy reports whether the event carries a signature of server; it does not check it.
func (e *Event) SignedBy(server ServerName) bool { return false }

// RequiredSigners lists the servers whose signatures the event must carry, without duplicates.
// Spec v1.19 server-server-api/#validating-hashes-and-signatures-on-received-events
func (e *Event) RequiredSigners() []ServerName { return nil }

// Stripped is the event as stripped state: content, sender, state_key and type only.
// Spec v1.19 client-server-api/#stripped-state
func (e *Event) Stripped() json.RawMessage { return e.AppendStripped(nil) }

// AppendStripped appends what Stripped returns.
func (e *Event) AppendStripped(dst []byte) []byte { return dst }

// Builder makes a new event of a user of this server.
type Builder struct {
	RoomID     RoomID // empty for the create event of room version 12
	Sender     UserID
	Type       string
	StateKey   *string // nil for events that are not state
	Content    json.RawMessage
	Redacts    EventID // put where the room version wants it
	PrevEvents []EventID
	AuthEvents []EventID
	Depth      int64 // brought down to the version's maximum
	Time       time.Time

	// ReferenceHash gives the reference hash of a prev or auth event in room versions 1 and 2; nil leaves them out.
	ReferenceHash func(EventID) [32]byte
	// EventID is the new event's ID in room versions 1 and 2; one is drawn if it is empty.
	EventID EventID
}

// ParseTemplate reads the template of an event that another server answered to make_join, make_leave or make_knock.
// The caller checks that it is what was asked for, sets Time and calls Build.
func ParseTemplate(raw []byte, version *RoomVersion) (*Builder, error) {
	return nil, errNotImplemented
}

// Template is the event without hashes and signatures, for our answers to make_join and its like.
func (b *Builder) Template(version *RoomVersion) (json.RawMessage, error) {
	return nil, errNotImplemented
}

// AuthKeys lists the state that must be in the event's auth_events; see [AuthKeys].
func (b *Builder) AuthKeys(version *RoomVersion) []StateTuple { return nil }

// Build hashes and signs the event. The error is a *Error if the content is not canonical JSON of the version or a limit is exceeded.
func (b *Builder) Build(version *RoomVersion, server ServerName, key *SigningKey) (*Event, error) {
	return nil, errNotImplemented
}
