package matrix

import (
	"encoding/json"
	"strconv"
	"strings"
)

// ClientOptions say how an event is written for a client. The zero value writes the event with its room ID and
// without unsigned.
type ClientOptions struct {
	OmitRoomID bool // in /sync, where the room is known

	// What goes into unsigned; zero values are left out.
	HasAge          bool // whether AgeMS is written
	AgeMS           int64
	TransactionID   string          // only for the device that sent the event
	PrevContent     json.RawMessage // of the state event that this one replaced
	PrevSender      UserID
	ReplacesState   EventID
	RedactedBecause *Event          // the redaction; the event itself should be in its redacted form
	Membership      string          // of the reader at the time of the event
	Relations       json.RawMessage // the object for m.relations
	// Unsigned holds further members of unsigned as `"key":value,"key":value`, without braces.
	Unsigned []byte

	Fields *EventFields // event_fields of a filter, nil for all
}

// AppendClient appends the event in the format of the client-server API; o may be nil. Redactions have redacts at
// both places, as the spec asks for the sake of old and new clients.
// Spec v1.19 client-server-api/#room-event-format, rooms/v11/#event-format
func (e *Event) AppendClient(dst []byte, o *ClientOptions) []byte {
	if o == nil {
		o = &ClientOptions{}
	}
	start := len(dst)
	dst = append(dst, `{"content":`...)
	dst = e.appendClientContent(dst)
	dst = AppendJSONString(append(dst, `,"event_id":`...), string(e.id))
	dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), e.originServerTS, 10)
	if e.redacts != "" {
		dst = AppendJSONString(append(dst, `,"redacts":`...), string(e.redacts))
	}
	if !o.OmitRoomID {
		dst = AppendJSONString(append(dst, `,"room_id":`...), string(e.roomID))
	}
	dst = AppendJSONString(append(dst, `,"sender":`...), string(e.sender))
	if e.hasStateKey {
		dst = AppendJSONString(append(dst, `,"state_key":`...), e.stateKey)
	}
	dst = AppendJSONString(append(dst, `,"type":`...), e.typ)
	dst = append(o.appendUnsigned(dst), '}')
	if o.Fields != nil {
		whole := append([]byte(nil), dst[start:]...)
		dst = o.Fields.append(dst[:start], whole)
	}
	return dst
}

// appendClientContent appends the content, that of a redaction in an old room version with redacts.
func (e *Event) appendClientContent(dst []byte) []byte {
	if e.redacts != "" && !e.version.RedactsInContent && e.ContentMember("redacts") == nil {
		return append(dst, setMember(e.content, "redacts", AppendJSONString(nil, string(e.redacts)))...)
	}
	return append(dst, e.content...)
}

func (o *ClientOptions) appendUnsigned(dst []byte) []byte {
	before := len(dst)
	dst = append(dst, `,"unsigned":{`...)
	start := len(dst)
	if o.HasAge {
		dst = strconv.AppendInt(appendKey(dst, "age"), o.AgeMS, 10)
	}
	if o.Membership != "" {
		dst = AppendJSONString(appendKey(dst, "membership"), o.Membership)
	}
	if o.PrevContent != nil {
		dst = append(appendKey(dst, "prev_content"), o.PrevContent...)
	}
	if o.PrevSender != "" {
		dst = AppendJSONString(appendKey(dst, "prev_sender"), string(o.PrevSender))
	}
	if o.RedactedBecause != nil {
		dst = o.RedactedBecause.AppendClient(appendKey(dst, "redacted_because"), &ClientOptions{OmitRoomID: o.OmitRoomID})
	}
	if o.ReplacesState != "" {
		dst = AppendJSONString(appendKey(dst, "replaces_state"), string(o.ReplacesState))
	}
	if o.TransactionID != "" {
		dst = AppendJSONString(appendKey(dst, "transaction_id"), o.TransactionID)
	}
	if o.Relations != nil {
		dst = append(appendKey(dst, "m.relations"), o.Relations...)
	}
	if len(o.Unsigned) > 0 {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, o.Unsigned...)
	}
	if len(dst) == start {
		return dst[:before]
	}
	return append(dst, '}')
}

// Stripped is the event as stripped state: content, sender, state_key and type only.
// Spec v1.19 client-server-api/#stripped-state
func (e *Event) Stripped() json.RawMessage {
	return e.AppendStripped(make([]byte, 0, len(e.content)+len(e.sender)+len(e.stateKey)+len(e.typ)+64))
}

// AppendStripped appends what Stripped returns.
func (e *Event) AppendStripped(dst []byte) []byte {
	dst = append(append(dst, `{"content":`...), e.content...)
	if e.typ == TypeCreate { // of which those outside get a little more
		dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), e.originServerTS, 10)
	}
	dst = AppendJSONString(append(dst, `,"sender":`...), string(e.sender))
	dst = AppendJSONString(append(dst, `,"state_key":`...), e.stateKey)
	dst = AppendJSONString(append(dst, `,"type":`...), e.typ)
	return append(dst, '}')
}

// EventFields are the paths of a filter's event_fields. Spec v1.19 client-server-api/#filtering
type EventFields struct {
	paths [][]string
}

// ParseEventFields reads the paths: "content.body", a literal dot or backslash escaped by a backslash. Without paths
// it returns nil, which stands for all fields.
func ParseEventFields(paths []string) *EventFields {
	if len(paths) == 0 {
		return nil
	}
	f := &EventFields{}
	for _, p := range paths {
		var path []string
		var part strings.Builder
		for i := 0; i < len(p); i++ {
			switch {
			case p[i] == '\\' && i+1 < len(p) && (p[i+1] == '.' || p[i+1] == '\\'):
				i++
				part.WriteByte(p[i])
			case p[i] == '.':
				path = append(path, part.String())
				part.Reset()
			default:
				part.WriteByte(p[i])
			}
		}
		f.paths = append(f.paths, append(path, part.String()))
	}
	return f
}

// append appends those fields of an object, compact JSON, that the paths name.
func (f *EventFields) append(dst, object []byte) []byte {
	return appendFields(dst, object, f.paths)
}

func appendFields(dst, object []byte, paths [][]string) []byte {
	dst = append(dst, '{')
	members(object, func(k, value []byte) bool {
		key := unsafeString(unquoteRaw(k))
		var deeper [][]string
		whole := false
		for _, p := range paths {
			if p[0] != key {
				continue
			}
			if whole = whole || len(p) == 1; !whole {
				deeper = append(deeper, p[1:])
			}
		}
		before := len(dst)
		switch {
		case whole:
			dst = append(appendKey(dst, string(k)), value...)
		case deeper != nil && isObject(value):
			dst = appendKey(dst, string(k))
			inner := len(dst)
			if dst = appendFields(dst, value, deeper); len(dst) == inner+len("{}") {
				dst = dst[:before]
			}
		}
		return true
	})
	return append(dst, '}')
}
