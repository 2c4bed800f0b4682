package room

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// CreateRequest is the body of POST /createRoom. Spec v1.19 client-server-api/#post_matrixclientv3createroom
type CreateRequest struct {
	Visibility                string           `json:"visibility"` // "public" or "private"; "" is private
	RoomAliasName             string           `json:"room_alias_name"`
	Name                      string           `json:"name"`
	Topic                     string           `json:"topic"`
	Invite                    []matrix.UserID  `json:"invite"`
	Invite3PID                []Invite3PID     `json:"invite_3pid"`
	RoomVersion               string           `json:"room_version"`
	CreationContent           json.RawMessage  `json:"creation_content"`
	InitialState              []InitialState   `json:"initial_state"`
	Preset                    string           `json:"preset"`
	IsDirect                  bool             `json:"is_direct"`
	PowerLevelContentOverride json.RawMessage  `json:"power_level_content_override"`
	Creator                   matrix.UserID    `json:"-"`
	Device                    matrix.DeviceID  `json:"-"`
	predecessor               *roomPredecessor // of an upgrade
}

type roomPredecessor struct {
	RoomID  matrix.RoomID  `json:"room_id"`
	EventID matrix.EventID `json:"event_id,omitempty"`
}

// InitialState is one state event of a new room.
type InitialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// Invite3PID is an invite by e-mail address or the like. This server has no identity server, so it is refused.
type Invite3PID struct {
	IDServer      string `json:"id_server"`
	IDAccessToken string `json:"id_access_token"`
	Medium        string `json:"medium"`
	Address       string `json:"address"`
}

// Create makes a room, with its alias and its entry in the room list, and invites. Errors: M_ROOM_IN_USE (alias), M_UNSUPPORTED_ROOM_VERSION,
// M_INVALID_ROOM_STATE, M_INVALID_PARAM, M_BAD_JSON.
func (s *Service) Create(ctx context.Context, r CreateRequest) (matrix.RoomID, error) {
	return "", errNotYet
}

// Upgrade makes a room of another version that replaces room: tombstone, copied state, moved aliases.
// Errors: M_UNSUPPORTED_ROOM_VERSION, M_FORBIDDEN. Spec v1.19 client-server-api/#room-upgrades
func (s *Service) Upgrade(ctx context.Context, r UpgradeRequest) (matrix.RoomID, error) {
	return "", errNotYet
}

// UpgradeRequest is POST /rooms/{room}/upgrade.
type UpgradeRequest struct {
	Room               matrix.RoomID   `json:"-"`
	User               matrix.UserID   `json:"-"`
	NewVersion         string          `json:"new_version"`
	AdditionalCreators []matrix.UserID `json:"additional_creators"`
}
