package matrix

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Limits on events. Spec v1.19 client-server-api/#size-limits
const (
	MaxEventBytes = 65536 // of an event in the federation format, canonical, with signatures
	MaxPrevEvents = 20
	MaxAuthEvents = 10
)

// Event is an event in the format of its room version. It is immutable and safe for concurrent use; slices that it
// gives out are shared and must not be written to. Its strings share memory with its JSON: clone those that outlive it.
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

	powers atomic.Pointer[PowerLevels] // what the content of a power levels event says, parsed once
}

// ParseEvent reads an event from another server. It is strict: the error is a *Error that says what is wrong with
// the JSON, a field or a limit. The event ID is computed. If the content hash does not match, the result is the
// redacted form of the event (Redacted is true), as the spec demands. Unsigned data is dropped; signatures are not
// checked here, see [VerifyEvent]. raw may be reused afterwards.
// Spec v1.19 server-server-api/#checks-performed-on-receipt-of-a-pdu
func ParseEvent(raw []byte, version *RoomVersion) (*Event, error) {
	if len(raw) > maxRawBytes {
		return nil, TooLarge("an event has at most %d bytes", MaxEventBytes)
	}
	// 1. JSON that has a canonical form.
	canonical, err := canonicalJSON(make([]byte, 0, len(raw)), raw, !version.CanonicalJSON)
	if err != nil {
		return nil, err
	}
	f, ok := fieldsOf(canonical)
	if !ok {
		return nil, BadJSON("an event must be a JSON object")
	}
	if f.unsigned != nil {
		canonical = appendWithout(make([]byte, 0, len(canonical)), canonical, isUnsigned)
		f, _ = fieldsOf(canonical)
	}
	// 2. The limit on the size, and the format of the fields.
	if len(canonical) > MaxEventBytes {
		return nil, TooLarge("the event has %d bytes, more than %d", len(canonical), MaxEventBytes)
	}
	if err := f.check(version); err != nil {
		return nil, err
	}
	// 3. The content hash: the event is redacted if it does not match.
	hash, err := f.contentHash()
	if err != nil {
		return nil, err
	}
	redacted := hash != contentHash(canonical)
	if redacted {
		canonical = appendRedacted(make([]byte, 0, len(canonical)), canonical, &f, version, false)
		f, _ = fieldsOf(canonical)
	}
	// 4. The event ID.
	e := &Event{version: version, json: canonical, redacted: redacted}
	e.fill(&f)
	if !version.EventIDInEvent {
		e.id = eventIDOf(e.referenceHash(&f), version)
	}
	return e, e.finish()
}

// maxRawBytes bounds what ParseEvent looks at: an event whose JSON is formatted wastefully and that has a large
// unsigned may shrink to the limit.
const maxRawBytes = 8 * MaxEventBytes

// LoadEvent reads an event that [Event.JSON] wrote and our database kept. It takes over raw. Redacted is false, even
// if the event was saved in its redacted form. The error means that the database is corrupt.
func LoadEvent(raw []byte, version *RoomVersion, id EventID) (*Event, error) {
	f, ok := fieldsOf(raw)
	if !ok || f.typ == nil || f.sender == nil || f.content == nil {
		return nil, fmt.Errorf("stored event %s is corrupt", id)
	}
	e := &Event{version: version, json: raw, id: id}
	e.fill(&f)
	if err := e.finish(); err != nil {
		return nil, fmt.Errorf("stored event %s is corrupt: %w", id, err)
	}
	return e, nil
}

// fields are the raw values of an event's members that have a meaning, nil where there is none.
type fields struct {
	authEvents, content, depth, eventID, hashes, originServerTS, prevEvents, redacts, roomID, sender []byte
	signatures, stateKey, typ, unsigned                                                              []byte
}

func fieldsOf(event []byte) (f fields, ok bool) {
	ok = members(event, func(k, v []byte) bool {
		switch string(k) {
		case "auth_events":
			f.authEvents = v
		case "content":
			f.content = v
		case "depth":
			f.depth = v
		case "event_id":
			f.eventID = v
		case "hashes":
			f.hashes = v
		case "origin_server_ts":
			f.originServerTS = v
		case "prev_events":
			f.prevEvents = v
		case "redacts":
			f.redacts = v
		case "room_id":
			f.roomID = v
		case "sender":
			f.sender = v
		case "signatures":
			f.signatures = v
		case "state_key":
			f.stateKey = v
		case "type":
			f.typ = v
		case "unsigned":
			f.unsigned = v
		}
		return true
	})
	return f, ok
}

// tooLong reports whether a type or state key is longer than 255 bytes. Up to room version 10 others have counted code points, so
// that rooms hold events which would be refused by bytes, and what stands behind them with them.
func (v *RoomVersion) tooLong(s string) bool {
	return len(s) > maxIDBytes && (v.RedactsInContent || utf8.RuneCountInString(s) > maxIDBytes)
}

// check checks the format of the fields.
// Spec v1.19 rooms/v6/#event-format, rooms/v12/#event-format, client-server-api/#size-limits
func (f *fields) check(v *RoomVersion) error {
	typ, ok := stringValue(f.typ)
	switch {
	case !ok:
		return BadJSON("the event's type must be a string")
	case v.tooLong(typ):
		return TooLarge("the event's type is longer than 255 bytes")
	case !isObject(f.content):
		return BadJSON("the event's content must be an object")
	case !isObject(f.hashes):
		return BadJSON("the event's hashes must be an object")
	case f.signatures != nil && !isObject(f.signatures):
		return BadJSON("the event's signatures must be an object")
	}
	if f.stateKey != nil {
		if key, ok := stringValue(f.stateKey); !ok {
			return BadJSON("the event's state_key must be a string")
		} else if v.tooLong(key) {
			return TooLarge("the event's state_key is longer than 255 bytes")
		}
	}
	if _, ok := intValue(f.originServerTS); !ok {
		return BadJSON("the event's origin_server_ts must be an integer")
	}
	if depth, ok := intValue(f.depth); !ok || depth < 0 || depth > v.MaxDepth {
		return BadJSON("the event's depth must be an integer from 0 to %d", v.MaxDepth)
	}
	if err := f.checkIDs(v, typ); err != nil {
		return err
	}
	if err := checkRefs("prev_events", f.prevEvents, MaxPrevEvents, v); err != nil {
		return err
	}
	return checkRefs("auth_events", f.authEvents, MaxAuthEvents, v)
}

func (f *fields) checkIDs(v *RoomVersion, typ string) error {
	sender, ok := stringValue(f.sender)
	if !ok {
		return BadJSON("the event's sender must be a string")
	}
	if _, err := ParseUserID(sender); err != nil {
		return badField("sender", err)
	}
	if v.EventIDInEvent {
		id, ok := stringValue(f.eventID)
		if !ok {
			return BadJSON("the event's event_id must be a string")
		}
		if err := checkID("event ID", '$', id); err != nil {
			return badField("event_id", err)
		}
	}
	if v.RoomIDIsCreateID && typ == TypeCreate && f.roomID == nil {
		return nil
	}
	room, ok := stringValue(f.roomID)
	switch {
	case !ok:
		return BadJSON("the event's room_id must be a string")
	case !v.RoomIDIsCreateID:
		if err := checkID("room ID", '!', room); err != nil {
			return badField("room_id", err)
		}
	case !isHashID('!', room) && typ != TypeCreate: // that a create event has a room ID is for the authorization rules
		return badField("room_id", idError("room ID", room, "it must be ! and a hash"))
	}
	return nil
}

func badField(name string, err error) *Error {
	e := BadJSON("the event's %s: %s", name, err.(*Error).Message)
	return e
}

// checkRefs checks a list of events: IDs, or in old versions pairs of an ID and an object of hashes.
func checkRefs(name string, list []byte, most int, v *RoomVersion) error {
	n, good := 0, true
	ok := elements(list, func(ref []byte) bool {
		n++
		id := ref
		if v.EventIDInEvent {
			pair := 0
			good = elements(ref, func(part []byte) bool {
				if pair++; pair == 1 {
					id = part
				}
				return pair == 1 && len(part) > 0 && part[0] == '"' || pair == 2 && isObject(part)
			}) && pair == 2
		}
		s, isString := stringValue(id)
		good = good && isString && len(s) > 1 && len(s) <= maxIDBytes && s[0] == '$'
		return good
	})
	switch {
	case !good || !ok:
		return BadJSON("the event's %s must be a list of event IDs", name)
	case n > most:
		return BadJSON("the event has %d %s, more than %d", n, name, most)
	}
	return nil
}

// contentHash is the hash that the event claims for its content.
func (f *fields) contentHash() (hash [32]byte, err error) {
	s, ok := stringMember(f.hashes, "sha256")
	if !ok {
		return hash, BadJSON("the event has no hash sha256")
	}
	sum, err := decodeBase64(s)
	if err != nil || len(sum) != len(hash) {
		return hash, nil // no hash of anything: as one that does not match
	}
	return [32]byte(sum), nil
}

// contentHash computes the hash of an event. Spec v1.19 server-server-api/#calculating-the-content-hash-for-an-event
func contentHash(event []byte) [32]byte {
	var stack [2048]byte
	return sha256.Sum256(appendWithout(stack[:0], event, func(k []byte) bool {
		return string(k) == "hashes" || string(k) == "signatures" || string(k) == "unsigned"
	}))
}

func isUnsigned(key []byte) bool { return string(key) == "unsigned" }

func (e *Event) referenceHash(f *fields) [32]byte {
	var stack [2048]byte
	return sha256.Sum256(appendRedacted(stack[:0], e.json, f, e.version, true))
}

// eventIDOf makes an event ID of a reference hash. Spec v1.19 rooms/v3/#event-ids, rooms/v4/#event-ids
func eventIDOf(hash [32]byte, v *RoomVersion) EventID {
	encoding := base64.RawURLEncoding
	if v.EventIDStdBase64 {
		encoding = base64.RawStdEncoding
	}
	id := make([]byte, 44)
	id[0] = '$'
	encoding.Encode(id[1:], hash[:])
	return EventID(unsafeString(id))
}

// fill takes over the fields but the room ID, which may need the event ID.
func (e *Event) fill(f *fields) {
	e.content = f.content
	e.typ, _ = stringValue(f.typ)
	e.stateKey, e.hasStateKey = stringValue(f.stateKey)
	sender, _ := stringValue(f.sender)
	e.sender = UserID(sender)
	room, _ := stringValue(f.roomID)
	e.roomID = RoomID(room)
	e.depth, _ = intValue(f.depth)
	e.originServerTS, _ = intValue(f.originServerTS)
	if e.version.EventIDInEvent && e.id == "" {
		id, _ := stringValue(f.eventID)
		e.id = EventID(id)
	}
	e.fillRefs(f)
	switch e.typ {
	case TypeMember:
		e.membership, _ = stringMember(f.content, "membership")
	case TypeRedaction:
		where := f.redacts
		if e.version.RedactsInContent {
			where = member(f.content, "redacts")
		}
		if s, ok := stringValue(where); ok && len(s) > 1 && len(s) <= maxIDBytes && s[0] == '$' {
			e.redacts = EventID(s)
		}
	}
}

// fillRefs reads both lists of events into one array.
func (e *Event) fillRefs(f *fields) {
	var stack [MaxPrevEvents + MaxAuthEvents]EventID
	prev := appendRefs(stack[:0], f.prevEvents)
	n := len(prev)
	both := appendRefs(prev, f.authEvents)
	if len(both) > 0 {
		refs := make([]EventID, len(both))
		copy(refs, both)
		e.prev, e.auth = refs[:n:n], refs[n:]
	}
}

func appendRefs(ids []EventID, list []byte) []EventID {
	elements(list, func(ref []byte) bool {
		if len(ref) > 0 && ref[0] == '[' {
			pair := ref
			ref = nil
			elements(pair, func(part []byte) bool { ref = part; return false })
		}
		if s, ok := stringValue(ref); ok {
			ids = append(ids, EventID(s))
		}
		return true
	})
	return ids
}

// finish derives the room ID of a create event of room version 12.
func (e *Event) finish() error {
	if e.version.RoomIDIsCreateID && e.typ == TypeCreate && e.hasStateKey {
		if len(e.id) < 2 {
			return BadJSON("the create event has no event ID")
		}
		e.roomID = RoomID("!" + e.id[1:])
	}
	if e.roomID == "" {
		return BadJSON("the event has no room ID")
	}
	return nil
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

// ContentMember is the value of a key of the content, nil if there is none. The key must need no escape in JSON.
func (e *Event) ContentMember(key string) json.RawMessage { return member(e.content, key) }

// ContentString is the string that the content has for a key, "" if there is none.
func (e *Event) ContentString(key string) string {
	s, _ := stringMember(e.content, key)
	return s
}

// Redact returns the redacted form of the event. Its ID and its signatures stay the same.
// Spec v1.19 client-server-api/#redactions, rooms/v11/#redactions
func (e *Event) Redact() *Event {
	if e.redacted {
		return e
	}
	f, _ := fieldsOf(e.json)
	r := &Event{version: e.version, id: e.id, redacted: true}
	r.json = appendRedacted(make([]byte, 0, len(e.json)), e.json, &f, e.version, false)
	f, _ = fieldsOf(r.json)
	r.fill(&f)
	r.roomID = e.roomID
	return r
}

// ReferenceHash is the SHA-256 of the redacted event, of which event IDs are made from room version 3 on.
// Spec v1.19 server-server-api/#calculating-the-reference-hash-for-an-event
func (e *Event) ReferenceHash() [32]byte {
	f, _ := fieldsOf(e.json)
	return e.referenceHash(&f)
}
