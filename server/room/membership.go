package room

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// JoinRequest asks to join, or to knock on, a room. An alias is resolved by the caller, with ResolveAlias.
type JoinRequest struct {
	Room matrix.RoomID
	User matrix.UserID // of this server
	// Via are servers that may help, best first; those of the invite, and the room ID's, are tried as well.
	Via    []matrix.ServerName
	Reason string
	// Content holds further fields of the member event's content; may be nil.
	Content json.RawMessage
}

// Join makes the user a member, through another server if this one is not in the room or may not let the user in. Joining a room one is
// in succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND, M_UNABLE_TO_AUTHORISE_JOIN, M_UNABLE_TO_GRANT_JOIN, M_INCOMPATIBLE_ROOM_VERSION.
func (s *Service) Join(ctx context.Context, r JoinRequest) (matrix.RoomID, error) {
	return "", errNotYet
}

// Knock asks to be invited. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Knock(ctx context.Context, r JoinRequest) (matrix.RoomID, error) {
	return "", errNotYet
}

// MemberRequest is what one user asks to happen to another's membership, or to their own.
type MemberRequest struct {
	Room   matrix.RoomID
	Sender matrix.UserID // of this server
	Target matrix.UserID
	Reason string
	// IsDirect marks an invite as one to a direct chat.
	IsDirect bool
	// Content holds further fields of the member event's content; may be nil.
	Content json.RawMessage
}

// Invite invites Target. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Invite(ctx context.Context, r MemberRequest) error { return errNotYet }

// Leave takes Sender out of the room, or rejects an invite, or takes back a knock; Target is not looked at. Leaving a room one has
// left already succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Leave(ctx context.Context, r MemberRequest) error { return errNotYet }

// Kick takes Target, who is joined, invited or knocking, out of the room. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Kick(ctx context.Context, r MemberRequest) error { return errNotYet }

// Ban bans Target. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Ban(ctx context.Context, r MemberRequest) error { return errNotYet }

// Unban lifts a ban. Errors: M_FORBIDDEN, M_BAD_STATE (not banned), M_NOT_FOUND.
func (s *Service) Unban(ctx context.Context, r MemberRequest) error { return errNotYet }

// Forget hides a room that the user has left from the user. Errors: M_UNKNOWN with status 400 while still in the room.
func (s *Service) Forget(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	return errNotYet
}

// UpdateProfile writes the user's profile into the member events of all rooms that the user is joined to. Rooms that refuse it are
// passed over.
func (s *Service) UpdateProfile(ctx context.Context, user matrix.UserID) error { return errNotYet }
