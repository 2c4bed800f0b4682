package voice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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

// SetPlayed stores how far a user is with a voice message, for all the user's devices, and lets the sender know if that is what
// the user wants. event is what the user sees under this ID, so the caller has checked that they may. Error: M_INVALID_PARAM if it is
// no voice message or the position makes no sense.
func (s *Service) SetPlayed(ctx context.Context, user matrix.UserID, room matrix.RoomID, id matrix.EventID, event json.RawMessage, c PlayedChange) error {
	var e struct {
		Type    string                     `json:"type"`
		Sender  matrix.UserID              `json:"sender"`
		Content map[string]json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return err
	}
	if !mayBeVoice(e.Type, e.Content) {
		return matrix.InvalidParam("the event is not a voice message")
	}
	if c.Position != nil && (*c.Position < 0 || *c.Position > maxPosition) {
		return matrix.InvalidParam("position is in milliseconds, from 0 to a day")
	}
	change := storage.PlayedChange{User: user, Room: room, Event: id, Played: c.Played, PositionMS: c.Position, Sender: e.Sender, At: s.Now()}
	if server := e.Sender.Server(); server != user.Server() {
		change.Elsewhere = server
	}
	return s.DB.ChangePlayed(ctx, change)
}

// mayBeVoice is true for voice messages and for encrypted events: the server cannot tell what those are; the client can.
func mayBeVoice(eventType string, content map[string]json.RawMessage) bool {
	return eventType == "m.room.encrypted" || eventType == typeMessage && isVoice(content)
}

// ReceivePlayed takes the EDU by which another server tells that one of its users has played a voice message of one of ours. It may
// come more than once. Errors are M_BAD_JSON and M_FORBIDDEN for what is not origin's to say, or about nothing that we have sent.
func (s *Service) ReceivePlayed(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var said struct {
		Room  matrix.RoomID  `json:"room_id"`
		Event matrix.EventID `json:"event_id"`
		User  matrix.UserID  `json:"user_id"`
		TS    int64          `json:"ts"`
	}
	if err := json.Unmarshal(content, &said); err != nil {
		return matrix.BadJSON("%s: %v", storage.PlayedType, err)
	}
	if _, err := matrix.ParseUserID(string(said.User)); err != nil || said.User.Server() != origin {
		return matrix.Forbidden("a server tells what its own users have played")
	}
	none := matrix.Forbidden("no voice message of a user of this server")
	e, err := s.DB.EventByID(ctx, said.Event)
	if errors.Is(err, storage.ErrNotFound) {
		return none
	}
	if err != nil {
		return fmt.Errorf("find what was played: %w", err)
	}
	var m map[string]json.RawMessage
	if e.RoomID() != said.Room || e.Hidden() || e.RedactedBy != "" || e.Sender().Server() != s.Media.Server || json.Unmarshal(e.Content(), &m) != nil || !mayBeVoice(e.Type(), m) {
		return none
	}
	// Who has left may have played it before.
	member, err := s.Rooms.Membership(ctx, said.Room, said.User)
	if err != nil {
		return fmt.Errorf("find who has played: %w", err)
	}
	if member.Num == 0 || member.Membership == matrix.Invite || member.Membership == matrix.Knock {
		return matrix.Forbidden("the user is not in the room")
	}
	// Not before it was sent, not in the future: clocks differ.
	ts := min(max(said.TS, e.OriginServerTS()), s.Now().UnixMilli())
	return s.DB.AddPlayedReceipt(ctx, storage.PlayedReceipt{Room: said.Room, Event: said.Event, User: said.User, Sender: e.Sender(), TS: ts})
}

// PlayedBy tells who has played what a user sent to a room and lets them know: the latest thousand.
func (s *Service) PlayedBy(ctx context.Context, sender matrix.UserID, room matrix.RoomID) ([]storage.PlayedReceipt, error) {
	return s.DB.PlayedReceiptsIn(ctx, sender, room, maxPlayed)
}

// Played lists how far a user is with the voice messages of a room: those that changed last, up to a thousand.
func (s *Service) Played(ctx context.Context, user matrix.UserID, room matrix.RoomID) (map[matrix.EventID]storage.Played, error) {
	return s.DB.PlayedIn(ctx, user, room, maxPlayed)
}

// Inbox lists the voice messages in clear that a user has not played yet, over all rooms, oldest first, from after a stream
// position, and counts all of them.
func (s *Service) Inbox(ctx context.Context, user matrix.UserID, after int64, limit int) (events []*storage.Event, total int, err error) {
	// A page is filled up, since a short one would be taken for the last.
	for gone := 0; len(events) < limit; {
		asked := limit - len(events)
		found, all, err := s.DB.UnplayedVoice(ctx, user, after, asked)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range found {
			past, err := s.Rooms.IsPast(ctx, e)
			if err != nil {
				return nil, 0, err
			}
			if past {
				gone++
			} else {
				events = append(events, e)
			}
		}
		total = all - gone
		if len(found) < asked {
			break
		}
		after = found[len(found)-1].Pos
	}
	return events, total, nil
}
