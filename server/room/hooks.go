package room

import (
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// fillHistory asks other servers for events of a room that are missing between two depths, about limit of them, within a time
// limit of its own. It reports whether any came; that none could be had is no error.
func (s *Service) fillHistory(ctx context.Context, r *Room, lowest, highest int64, limit int) (bool, error) {
	return false, nil
}

// remoteTimestampToEvent asks other servers for an event that is closer to ts than local, which may be nil, and fetches it.
func (s *Service) remoteTimestampToEvent(ctx context.Context, r *Room, ts int64, backwards bool, local *storage.Event) (TimestampToEventResponse, bool) {
	return TimestampToEventResponse{}, false
}

var errJoinedMeanwhile = errors.New("this server has joined the room meanwhile")

func (s *Service) joinThrough(ctx context.Context, r JoinRequest, content json.RawMessage, inRoom bool) error {
	return matrix.NotFound("no server is known that is in the room")
}

func (s *Service) knockThrough(ctx context.Context, r JoinRequest, content json.RawMessage) error {
	return matrix.NotFound("no server is known that is in the room")
}

func (s *Service) leaveThrough(ctx context.Context, room matrix.RoomID, user matrix.UserID, content json.RawMessage) error {
	return errNotYet
}

func (s *Service) inviteThrough(ctx context.Context, room matrix.RoomID, b matrix.Builder) (*storage.Event, error) {
	return nil, errNotYet
}
