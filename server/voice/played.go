package voice

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// maxPosition is the largest position in a message that is taken: a day, in milliseconds.
	maxPosition = 24 * 60 * 60 * 1000
	// maxPlayed is how many states of one room are given at once.
	maxPlayed = 1000
)

// PlayedChange is what a client says of one voice message. What is nil stays as it was.
type PlayedChange struct {
	Played   *bool  `json:"played"`
	Position *int64 `json:"position"` // milliseconds
}

// SetPlayed stores how far a user is with a voice message, for all the user's devices. event is what the user sees under
// this ID, so the caller has checked that they may. Error: M_INVALID_PARAM if it is no voice message or the position makes no
// sense.
func (s *Service) SetPlayed(ctx context.Context, user matrix.UserID, room matrix.RoomID, id matrix.EventID, event json.RawMessage, c PlayedChange) error {
	var e struct {
		Type    string                     `json:"type"`
		Content map[string]json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return err
	}
	// The server cannot tell what an encrypted event is; the client can.
	if e.Type != "m.room.encrypted" && !isVoice(e.Content) {
		return matrix.InvalidParam("the event is not a voice message")
	}
	if c.Position != nil && (*c.Position < 0 || *c.Position > maxPosition) {
		return matrix.InvalidParam("position is in milliseconds, from 0 to a day")
	}
	state, err := s.DB.PlayedState(ctx, user, id)
	if err != nil {
		return err
	}
	before := state
	if c.Played != nil {
		state.Played = *c.Played
	}
	if c.Position != nil {
		state.PositionMS = *c.Position
	}
	if state == before {
		return nil
	}
	return s.DB.SetPlayed(ctx, user, room, id, state)
}

// Played lists how far a user is with the voice messages of a room: those that changed last, up to a thousand.
func (s *Service) Played(ctx context.Context, user matrix.UserID, room matrix.RoomID) (map[matrix.EventID]storage.Played, error) {
	return s.DB.PlayedIn(ctx, user, room, maxPlayed)
}

// Inbox lists the voice messages in clear that a user has not played yet, over all rooms, oldest first, from after a stream
// position, and counts all of them.
func (s *Service) Inbox(ctx context.Context, user matrix.UserID, after int64, limit int) (events []*storage.Event, total int, err error) {
	return s.DB.UnplayedVoice(ctx, user, after, limit)
}
