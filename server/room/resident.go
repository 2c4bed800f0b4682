package room

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// The methods here answer other servers. origin has been authenticated by the caller; everything else is checked here, and
// errors are *matrix.Error that may be answered as they are.

// MakeJoin answers GET /make_join: the template of user's join. versions are the room versions that origin supports.
// Errors: M_NOT_FOUND (we are not in the room), M_FORBIDDEN, M_INCOMPATIBLE_ROOM_VERSION, M_UNABLE_TO_AUTHORISE_JOIN,
// M_UNABLE_TO_GRANT_JOIN.
func (s *Service) MakeJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	return MakeResponse{}, errNotYet
}

// SendJoin answers PUT /send_join: it takes the join into the room and gives the state before it. omitMembers asks for the answer without
// the members (faster joins).
func (s *Service) SendJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, join json.RawMessage, omitMembers bool) (SendJoinResponse, error) {
	return SendJoinResponse{}, errNotYet
}

// MakeLeave answers GET /make_leave.
func (s *Service) MakeLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MakeResponse, error) {
	return MakeResponse{}, errNotYet
}

// SendLeave answers PUT /send_leave.
func (s *Service) SendLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, leave json.RawMessage) error {
	return errNotYet
}

// MakeKnock answers GET /make_knock.
func (s *Service) MakeKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	return MakeResponse{}, errNotYet
}

// SendKnock answers PUT /send_knock with the room's stripped state.
func (s *Service) SendKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, knock json.RawMessage) ([]json.RawMessage, error) {
	return nil, errNotYet
}

// ReceiveInvite answers PUT /invite, both versions: it returns the event with our signature. For v1, whose body is the event alone, the caller sets
// RoomVersion to "1" and takes InviteRoomState from the event's unsigned. Errors: M_INCOMPATIBLE_ROOM_VERSION, M_INVALID_PARAM,
// M_FORBIDDEN, M_INVITE_BLOCKED.
func (s *Service) ReceiveInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, invite InviteRequest) (json.RawMessage, error) {
	return nil, errNotYet
}

// ReceiveThirdPartyInvite answers PUT /exchange_third_party_invite: member is the event that origin proposes; it becomes an invite if the
// room has a matching m.room.third_party_invite.
func (s *Service) ReceiveThirdPartyInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, member json.RawMessage) error {
	return errNotYet
}

// ServeBackfill answers GET /backfill: events before from, from itself included, newest first, at most limit (and at most 100). What origin may
// not see is redacted.
func (s *Service) ServeBackfill(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	return nil, errNotYet
}

// ServeMissingEvents answers POST /get_missing_events: what lies between, oldest first.
func (s *Service) ServeMissingEvents(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, query MissingEventsRequest) ([]json.RawMessage, error) {
	return nil, errNotYet
}

// ServeTimestampToEvent answers GET /timestamp_to_event from what is here.
func (s *Service) ServeTimestampToEvent(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, ts int64, backwards bool) (TimestampToEventResponse, error) {
	return TimestampToEventResponse{}, errNotYet
}
