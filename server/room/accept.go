package room

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// Receive takes the events of a transaction of origin, at most 50, and returns when each is either in its room, refused, or kept
// for later in a row: what it returned for may be answered 200. The answer has an entry for each event whose room we know, with a
// nil error for what was taken or is kept; the error is meant for the other server's eyes. Rooms are worked on side by side, and the
// events of a room that wait for a gap to be filled do not hold the answer up.
// Spec v1.19 server-server-api/#transactions
func (s *Service) Receive(ctx context.Context, origin matrix.ServerName, pdus []json.RawMessage) map[matrix.EventID]error {
	return nil
}

// Accept takes an event that origin sent us and appends it to its room, fetching what is missing first.
// It returns nil for an event we already have. The error is a *matrix.AuthError if a rule rejected the event,
// ErrSoftFailed if it was kept out of the timeline; anything else is our fault and the sender may retry.
// Spec v1.19 server-server-api/#checks-performed-on-receipt-of-a-pdu
func (s *Service) Accept(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw json.RawMessage) (matrix.EventID, error) {
	return "", errNotYet
}

// ServerAllowed reports whether the room's ACL lets a server take part, for EDUs. A room we do not know lets nobody.
func (s *Service) ServerAllowed(ctx context.Context, room matrix.RoomID, server matrix.ServerName) bool {
	return false
}
