package matrix

import "encoding/json"

// ClientOptions say how an event is written for a client. The zero value writes the event with its room ID and
// without unsigned.
type ClientOptions struct {
	OmitRoomID bool // in /sync, where the room is known

	// What goes into unsigned; zero values are left out, but HasAge.
	HasAge          bool
	AgeMS           int64
	TransactionID   string          // only for the device that sent the event
	PrevContent     json.RawMessage // of the state event that this one replaced
	PrevSender      UserID
	ReplacesState   EventID
	RedactedBecause *Event          // the redaction; the event itself should be in its redacted form
	Membership      string          // of the reader at the time of the event, MSC4115
	Relations       json.RawMessage // the object for m.relations
	// Unsigned holds further members of unsigned as `"key":value,"key":value`, without braces.
	Unsigned []byte

	Fields *EventFields // event_fields of a filter, nil for all
}

// AppendClient appends the event in the format of the client-server API.
// Spec v1.19 client-server-api/#room-event-format
func (e *Event) AppendClient(dst []byte, o *ClientOptions) []byte { return dst }

// EventFields are the paths of a filter's event_fields. Spec v1.19 client-server-api/#filtering
type EventFields struct {
}

// ParseEventFields reads the paths: "content.body", a literal dot or backslash escaped by a backslash.
func ParseEventFields(paths []string) *EventFields { return nil }
