package matrix

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

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

	prevRefs, authRefs []byte // as another server gave them in room versions 1 and 2, with its hashes
}

// ParseTemplate reads the template of an event that another server answered to make_join, make_leave or make_knock.
// The caller checks that it is what was asked for, sets Time and calls Build. The error is a *Error.
func ParseTemplate(raw []byte, version *RoomVersion) (*Builder, error) {
	if len(raw) > maxRawBytes {
		return nil, TooLarge("an event has at most %d bytes", MaxEventBytes)
	}
	canonical, err := canonicalJSON(nil, raw, !version.CanonicalJSON)
	if err != nil {
		return nil, err
	}
	f, ok := fieldsOf(canonical)
	if !ok {
		return nil, BadJSON("an event must be a JSON object")
	}
	// What Build makes itself may be missing: check the template as if it were there.
	f.hashes = []byte("{}")
	f.originServerTS = []byte("0")
	f.eventID = []byte(`"$template:template"`)
	if err := f.check(version); err != nil {
		return nil, err
	}
	var e Event
	e.version = version
	e.fill(&f)
	b := &Builder{RoomID: e.roomID, Sender: e.sender, Type: e.typ, Content: e.content, Redacts: e.redacts,
		PrevEvents: e.prev, AuthEvents: e.auth, Depth: e.depth}
	if e.hasStateKey {
		b.StateKey = &e.stateKey
	}
	if version.EventIDInEvent {
		b.prevRefs, b.authRefs = f.prevEvents, f.authEvents
	}
	return b, nil
}

// Template is the event without hashes and signatures, for our answers to make_join and its like. The error is a
// *Error as that of Build.
func (b *Builder) Template(version *RoomVersion) (json.RawMessage, error) {
	template, _, err := b.appendUnsigned(nil, version, "")
	return template, err
}

// AuthKeys lists the state that must be in the event's auth_events; see [AuthKeys].
func (b *Builder) AuthKeys(version *RoomVersion) []StateTuple {
	content := b.Content
	if b.Type == TypeMember {
		if canonical, err := CanonicalJSONLoose(nil, content); err == nil { // Build tells the error
			content = canonical
		}
	}
	return AuthKeys(version, b.Sender, b.Type, b.StateKey, content)
}

// Build hashes and signs the event. The error is a *Error if the content is not canonical JSON of the version or a
// limit is exceeded.
func (b *Builder) Build(version *RoomVersion, server ServerName, key *SigningKey) (*Event, error) {
	id := b.EventID
	if version.EventIDInEvent && id == "" {
		id = EventID("$" + randomLetters() + ":" + string(server))
	}
	body, cuts, err := b.appendUnsigned(make([]byte, 0, len(b.Content)+1024), version, id)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(body)
	e := &Event{version: version}
	var signature []byte
	e.json, signature = cuts.insert(body, hash, server, key.ID)
	if len(e.json) > MaxEventBytes {
		return nil, TooLarge("the event would have %d bytes, more than %d", len(e.json), MaxEventBytes)
	}
	f, ok := fieldsOf(e.json)
	if !ok {
		return nil, fmt.Errorf("built an event that cannot be read")
	}
	if err := f.check(version); err != nil {
		return nil, err
	}
	signed := appendRedacted(body[:0], e.json, &f, version, true) // body is of no more use
	base64.RawStdEncoding.Encode(signature, key.Sign(signed))
	e.fill(&f)
	if !version.EventIDInEvent {
		e.id = eventIDOf(sha256.Sum256(signed), version) // the reference hash is of the same bytes
	}
	return e, e.finish()
}

// cuts are the offsets in an unsigned event at which its hashes and its signatures belong.
type cuts struct{ hashes, signatures int }

// insert returns the event with hashes, and where the base64 of the signature is to be written.
func (c cuts) insert(body []byte, hash [32]byte, server ServerName, key KeyID) (event, signature []byte) {
	size := base64.RawStdEncoding.EncodedLen(ed25519.SignatureSize)
	event = make([]byte, 0, len(body)+len(server)+len(key)+size+96)
	event = append(append(event, body[:c.hashes]...), `,"hashes":{"sha256":"`...)
	event = append(base64.RawStdEncoding.AppendEncode(event, hash[:]), `"}`...)
	event = append(append(event, body[c.hashes:c.signatures]...), `,"signatures":{`...)
	event = append(AppendJSONString(event, string(server)), `:{`...)
	event = append(AppendJSONString(event, string(key)), `:"`...)
	at := len(event)
	event = append(event, make([]byte, size)...)
	event = append(append(event, `"}}`...), body[c.signatures:]...)
	return event, event[at : at+size]
}

// appendUnsigned appends the event without hashes and signatures, its members in order.
func (b *Builder) appendUnsigned(dst []byte, v *RoomVersion, id EventID) (_ []byte, c cuts, err error) {
	content, err := canonicalJSON(make([]byte, 0, len(b.Content)+64), b.Content, !v.CanonicalJSON)
	if err != nil {
		return nil, c, err
	}
	if !isObject(content) {
		return nil, c, BadJSON("the content of an event must be an object")
	}
	if b.Redacts != "" && v.RedactsInContent {
		content = setMember(content, "redacts", AppendJSONString(nil, string(b.Redacts)))
	}
	dst = appendKey(append(dst, '{'), "auth_events")
	dst = b.appendRefs(dst, b.AuthEvents, b.authRefs, v)
	dst = append(appendKey(dst, "content"), content...)
	dst = strconv.AppendInt(appendKey(dst, "depth"), min(max(b.Depth, 0), v.MaxDepth), 10)
	if v.EventIDInEvent && id != "" {
		dst = AppendJSONString(appendKey(dst, "event_id"), string(id))
	}
	c.hashes = len(dst)
	if !b.Time.IsZero() {
		dst = strconv.AppendInt(appendKey(dst, "origin_server_ts"), b.Time.UnixMilli(), 10)
	}
	dst = appendKey(dst, "prev_events")
	dst = b.appendRefs(dst, b.PrevEvents, b.prevRefs, v)
	if b.Redacts != "" && !v.RedactsInContent {
		dst = AppendJSONString(appendKey(dst, "redacts"), string(b.Redacts))
	}
	if !v.RoomIDIsCreateID || b.Type != TypeCreate {
		dst = AppendJSONString(appendKey(dst, "room_id"), string(b.RoomID))
	}
	dst = AppendJSONString(appendKey(dst, "sender"), string(b.Sender))
	c.signatures = len(dst)
	if b.StateKey != nil {
		dst = AppendJSONString(appendKey(dst, "state_key"), *b.StateKey)
	}
	dst = AppendJSONString(appendKey(dst, "type"), b.Type)
	return append(dst, '}'), c, nil
}

// appendRefs appends prev_events or auth_events: IDs, or in room versions 1 and 2 pairs of an ID and a hash.
func (b *Builder) appendRefs(dst []byte, ids []EventID, given []byte, v *RoomVersion) []byte {
	if given != nil && v.EventIDInEvent {
		return append(dst, given...)
	}
	dst = append(dst, '[')
	for i, id := range ids {
		if i > 0 {
			dst = append(dst, ',')
		}
		if !v.EventIDInEvent {
			dst = AppendJSONString(dst, string(id))
			continue
		}
		dst = append(AppendJSONString(append(dst, '['), string(id)), `,{`...)
		if b.ReferenceHash != nil {
			hash := b.ReferenceHash(id)
			dst = base64.RawStdEncoding.AppendEncode(append(dst, `"sha256":"`...), hash[:])
			dst = append(dst, '"')
		}
		dst = append(dst, `}]`...)
	}
	return append(dst, ']')
}

// randomLetters is the localpart of a new event ID in room versions 1 and 2.
func randomLetters() string {
	var b [18]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
