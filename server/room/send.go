package room

import (
	"context"
	"encoding/json"
	"time"

	"parley.im/parley/server/matrix"
)

// SendRequest is an event that a user of this server sends.
type SendRequest struct {
	Room     matrix.RoomID
	Sender   matrix.UserID
	Type     string
	StateKey *string // nil: not a state event
	Content  json.RawMessage
	Redacts  matrix.EventID // of an m.room.redaction
	// Device and TxnID make the request one that may be repeated: the second time gives the same event ID. Both or none.
	Device matrix.DeviceID
	TxnID  string
	// Time is for application services that may say when an event was sent; zero means now.
	Time time.Time
}

// Send builds, authorizes, signs and stores an event, and returns once it is durable. A state event that says what the
// current one says already adds nothing, and the ID of the current one is returned.
// Errors: M_FORBIDDEN with the rule, M_NOT_FOUND (room), M_TOO_LARGE, M_BAD_JSON, M_BAD_ALIAS and M_INVALID_PARAM (canonical alias),
// M_DUPLICATE_ANNOTATION.
func (s *Service) Send(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	return "", errNotYet
}

// Redact redacts an event: PUT /rooms/{room}/redact/{event}/{txn}. Errors as Send.
func (s *Service) Redact(ctx context.Context, r RedactRequest) (matrix.EventID, error) {
	return "", errNotYet
}

// RedactRequest asks for a redaction.
type RedactRequest struct {
	Room   matrix.RoomID
	Sender matrix.UserID
	Event  matrix.EventID
	Reason string
	Device matrix.DeviceID
	TxnID  string
	// Content holds further fields of the redaction's content; may be nil.
	Content json.RawMessage
}
