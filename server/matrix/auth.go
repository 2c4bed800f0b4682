package matrix

import "encoding/json"

// AuthError says which rule rejected an event.
type AuthError struct {
	Rule   string // the rule's number in the spec of the room's version, such as "4.3.2"
	Reason string // a sentence for people
}

func (e *AuthError) Error() string { return "authorization rule " + e.Rule + ": " + e.Reason }

// AuthKeys lists the state that authorizes an event and that must be in its auth_events as far as the room has it,
// without duplicates. Spec v1.19 server-server-api/#auth-events-selection
func AuthKeys(version *RoomVersion, sender UserID, typ string, stateKey *string, content json.RawMessage) []StateTuple {
	return nil
}

// AuthKeys lists the state that authorizes the event. The create event, which Authorize also looks up, is among them only in room versions
// whose auth_events have it.
func (e *Event) AuthKeys() []StateTuple { return nil }

// Authorize checks the event against the authorization rules of its room version in a room state; nil allows. The
// error is always a *AuthError. state must know what e.AuthKeys lists, and the create event always. Signatures are not looked at,
// but for third-party invites: [VerifyEvent] has seen them. Spec v1.19 rooms/v11/#authorisation-rules
func Authorize(e *Event, state StateLookup) error { return errNotImplemented }

// AuthorizeByAuthEvents checks the event's own auth_events: no duplicates, nothing that does not belong there, nothing
// rejected, all of this room (rules "considering the event's auth_events"), and then the event against the state that
// they make. authEvents are those of e.AuthEvents() in any order; for room version 12 create is the room's
// create event, in other versions it may be nil. rejected may be nil. The error is always a *AuthError.
func AuthorizeByAuthEvents(e *Event, authEvents []*Event, create *Event, rejected func(EventID) bool) error {
	return errNotImplemented
}
