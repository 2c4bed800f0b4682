package room

import (
	"context"

	"parley.im/parley/server/matrix"
)

// HierarchyRequest is GET /rooms/{room}/hierarchy.
type HierarchyRequest struct {
	SuggestedOnly bool
	Limit         int  // rooms per page: 0 means 50, which is also the most
	MaxDepth      *int // nil: no limit but the server's own
	From          string
}

// HierarchyPage is a page of a space's rooms, depth first.
type HierarchyPage struct {
	Rooms     []RoomSummary `json:"rooms"`
	NextBatch string        `json:"next_batch,omitempty"`
}

// Hierarchy walks a space, asking other servers for what is not here. Errors: M_FORBIDDEN (the user may not know of the room),
// M_INVALID_PARAM (from, or other parameters than on the page before).
// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidhierarchy
func (s *Service) Hierarchy(ctx context.Context, user matrix.UserID, room matrix.RoomID, q HierarchyRequest) (HierarchyPage, error) {
	return HierarchyPage{}, errNotYet
}

// ServeHierarchy answers GET /federation/v1/hierarchy. M_NOT_FOUND if origin may not know of the room.
func (s *Service) ServeHierarchy(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (HierarchyResponse, error) {
	return HierarchyResponse{}, errNotYet
}

// Summary is GET /room_summary: what the room shows to those outside. user is empty without an access token. via are servers to ask
// about a room that we are not in. M_NOT_FOUND if there is no such room or the user may not know of it.
func (s *Service) Summary(ctx context.Context, user matrix.UserID, room matrix.RoomID, via []matrix.ServerName) (RoomSummary, error) {
	return RoomSummary{}, errNotYet
}
