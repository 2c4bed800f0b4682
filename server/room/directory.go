package room

import (
	"context"

	"parley.im/parley/server/matrix"
)

// CreateAlias is PUT /directory/room/{alias}. Errors: M_INVALID_PARAM (not an alias of this server), M_NOT_FOUND (room),
// M_FORBIDDEN (the user is not in the room), M_UNKNOWN with status 409 (taken).
func (s *Service) CreateAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, room matrix.RoomID) error {
	return errNotYet
}

// DeleteAlias is DELETE /directory/room/{alias}: for who made it, who may send m.room.canonical_alias in its room, and administrators of
// the server. The alias goes out of the room's canonical alias event if the user may send one. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) DeleteAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, admin bool) error {
	return errNotYet
}

// ResolveAlias is GET /directory/room/{alias}: of this server or of another, which is asked. M_NOT_FOUND if there is none.
func (s *Service) ResolveAlias(ctx context.Context, alias matrix.RoomAlias) (AliasResponse, error) {
	return AliasResponse{}, errNotYet
}

// ServeAlias answers GET /federation/v1/query/directory: aliases of this server only.
func (s *Service) ServeAlias(ctx context.Context, alias matrix.RoomAlias) (AliasResponse, error) {
	return AliasResponse{}, errNotYet
}

// LocalAliases is GET /rooms/{room}/aliases. M_FORBIDDEN for who is not in the room, unless it is world-readable.
func (s *Service) LocalAliases(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	return nil, errNotYet
}

// Published is GET /directory/list/room/{room}: whether the room is in the public list. M_NOT_FOUND for a room we do not know.
func (s *Service) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	return false, errNotYet
}

// SetPublished is PUT /directory/list/room/{room}: for who may send m.room.canonical_alias there, and administrators of the server.
// Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) SetPublished(ctx context.Context, user matrix.UserID, room matrix.RoomID, published, admin bool) error {
	return errNotYet
}

// SetPublishedBy is PUT /directory/list/appservice/{network}/{room}; id is the application service's.
func (s *Service) SetPublishedBy(ctx context.Context, id, network string, room matrix.RoomID, published bool) error {
	return errNotYet
}

// PublicRooms is GET and POST /publicRooms, on both APIs: a page of this server's list. Errors: M_INVALID_PARAM (since).
func (s *Service) PublicRooms(ctx context.Context, query PublicRoomsRequest) (PublicRoomsResponse, error) {
	return PublicRoomsResponse{}, errNotYet
}

// PublicRoomsAt is PublicRooms with the server parameter: another server's list; our own if server is us.
func (s *Service) PublicRoomsAt(ctx context.Context, server matrix.ServerName, query PublicRoomsRequest) (PublicRoomsResponse, error) {
	return PublicRoomsResponse{}, errNotYet
}

// MutualRooms is GET /mutual_rooms: the rooms that both users are in, at most 100 a page. M_INVALID_PARAM if other is the user.
func (s *Service) MutualRooms(ctx context.Context, user, other matrix.UserID, from string) (rooms []matrix.RoomID, next string, err error) {
	return nil, "", errNotYet
}

// FoundUser is a result of SearchUsers.
type FoundUser struct {
	UserID      matrix.UserID `json:"user_id"`
	DisplayName string        `json:"display_name,omitempty"`
	AvatarURL   string        `json:"avatar_url,omitempty"`
}

// SearchUsers is POST /user_directory/search: those who share a room with user or are in a public room, and whose ID or profile name has term.
// limited says that there are more than limit; limit 0 means 10, at most 50.
func (s *Service) SearchUsers(ctx context.Context, user matrix.UserID, term string, limit int) (found []FoundUser, limited bool, err error) {
	return nil, false, errNotYet
}
