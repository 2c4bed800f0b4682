package syncer

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// EDU is something short-lived that other servers must hear of: typing, a receipt or presence of a user of ours.
type EDU struct {
	// Type is "m.typing", "m.receipt" or "m.presence".
	Type string
	// Room is the room whose servers are told. Empty for presence: every server that shares a room with User is told.
	Room matrix.RoomID
	// User is whose doing it is.
	User matrix.UserID
	// Content is the EDU's content as the spec has it.
	Content json.RawMessage
}
