package room

import (
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
)

// ErrNotPermitted is the error of a [Remote] that must not talk to a server.
var ErrNotPermitted = errors.New("the configuration does not allow to talk to this server")

// Remote is what a room asks of other servers. *federation.Client implements it; tests connect two Services directly.
//
// Every method sends one signed request to server (server names as in event IDs; discovery is the implementation's affair),
// bounds it by ctx and by a time limit of its own, caps the answer's size, and checks nothing in the answer but its shape: events come back
// raw, exactly as received, and it is this package that verifies them. A nil slice means the field was absent or empty.
//
// An answer that is not 2xx comes back as a *matrix.Error with the other server's errcode, message and status. A server that
// could not be reached, is backing off, is not allowed by this server's policy (ErrNotPermitted), or answered with something that is no JSON
// of the expected shape comes back as any other error: the caller then tries the next server.
type Remote interface {
	// MakeJoin asks for the template of user's join event: GET /_matrix/federation/v1/make_join.
	// versions are the room versions we support.
	MakeJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error)
	// SendJoin hands in the signed join: PUT /_matrix/federation/v2/send_join. With omitMembers the answer may leave out
	// the membership events (SendJoinResponse.MembersOmitted).
	//
	// The events of the state and of its auth chain go to events as they come in; the lists of the response are nil. Nothing may be made of them
	// unless the error is nil.
	SendJoin(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID, join json.RawMessage, omitMembers bool, events EventSink) (SendJoinResponse, error)
	// MakeLeave asks for the template of a leave event, to reject an invite or take back a knock: GET /v1/make_leave.
	MakeLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MakeResponse, error)
	// SendLeave hands in the signed leave: PUT /v2/send_leave.
	SendLeave(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID, leave json.RawMessage) error
	// MakeKnock asks for the template of a knock: GET /v1/make_knock.
	MakeKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error)
	// SendKnock hands in the signed knock: PUT /v1/send_knock. The answer is the stripped state of the room
	// (knock_room_state), each a full event or a stripped one.
	SendKnock(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID, knock json.RawMessage) ([]json.RawMessage, error)
	// Invite asks server to sign an invite of one of its users: PUT /v2/invite, or, if that answers 400 or 404 with an
	// unknown route and the room is version 1 or 2, PUT /v1/invite. It returns the event with the added signature.
	Invite(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID, invite InviteRequest) (json.RawMessage, error)
	// ExchangeThirdPartyInvite hands a third-party invite that one of our users has claimed to a server in the
	// room: PUT /v1/exchange_third_party_invite.
	ExchangeThirdPartyInvite(ctx context.Context, server matrix.ServerName, room matrix.RoomID, member json.RawMessage) error

	// AskPolicyServer asks a room's policy server to sign an event: POST /_matrix/policy/v1/sign. The answer is signatures by server and
	// key ID; the error is a *matrix.Error if the server refuses to sign.
	AskPolicyServer(ctx context.Context, server matrix.ServerName, event json.RawMessage) (map[matrix.ServerName]map[matrix.KeyID]string, error)

	// Backfill asks for events before from, from itself included: GET /v1/backfill. At most limit events.
	Backfill(ctx context.Context, server matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error)
	// MissingEvents asks for what lies between two sets of events: POST /v1/get_missing_events.
	MissingEvents(ctx context.Context, server matrix.ServerName, room matrix.RoomID, query MissingEventsRequest) ([]json.RawMessage, error)
	// Event fetches one event: GET /v1/event. The error is a *matrix.Error if the server does not have it or will not give it.
	Event(ctx context.Context, server matrix.ServerName, event matrix.EventID) (json.RawMessage, error)
	// EventAuth fetches the whole auth chain of an event, the event excluded: GET /v1/event_auth.
	EventAuth(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) ([]json.RawMessage, error)
	// State fetches the room's state before event, with its auth chain: GET /v1/state. The events go to events as they come in.
	// Nothing may be made of them unless the error is nil.
	State(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID, events EventSink) error
	// StateIDs fetches the event IDs of the room's state before event, and of its auth chain: GET /v1/state_ids.
	StateIDs(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (StateIDsResponse, error)
	// TimestampToEvent asks for the event closest to a time: GET /v1/timestamp_to_event. ts is in milliseconds since
	// the epoch; backwards looks for the nearest event at or before it.
	TimestampToEvent(ctx context.Context, server matrix.ServerName, room matrix.RoomID, ts int64, backwards bool) (TimestampToEventResponse, error)

	// ResolveAlias asks the server of an alias where it points: GET /v1/query/directory.
	ResolveAlias(ctx context.Context, server matrix.ServerName, alias matrix.RoomAlias) (AliasResponse, error)
	// PublicRooms asks for another server's room list: GET or POST /v1/publicRooms (POST when there is a filter).
	PublicRooms(ctx context.Context, server matrix.ServerName, query PublicRoomsRequest) (PublicRoomsResponse, error)
	// Hierarchy asks for one level of a space: GET /v1/hierarchy.
	Hierarchy(ctx context.Context, server matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (HierarchyResponse, error)
}

// MakeResponse is the answer to make_join, make_leave and make_knock.
type MakeResponse struct {
	// RoomVersion is empty where the resident server left it out; make_join then means version 1.
	RoomVersion string `json:"room_version,omitempty"`
	// Event is the unsigned template.
	Event json.RawMessage `json:"event"`
}

// SendJoinResponse is the answer to send_join.
type SendJoinResponse struct {
	AuthChain []json.RawMessage `json:"auth_chain"`
	// State is the room's state before the join.
	State []json.RawMessage `json:"state"`
	// Event is the join as the resident server sends it to others; nil from servers older than spec v1.2.
	Event json.RawMessage `json:"event,omitempty"`
	// MembersOmitted says that membership events are missing from State.
	MembersOmitted bool `json:"members_omitted"`
	// ServersInRoom are the servers with joined members; always there when MembersOmitted.
	ServersInRoom []matrix.ServerName `json:"servers_in_room,omitempty"`
}

// InviteRequest is the body of PUT /v2/invite.
type InviteRequest struct {
	RoomVersion string          `json:"room_version"`
	Event       json.RawMessage `json:"event"`
	// InviteRoomState are the events by which the invited person knows the room. Full events, m.room.create among them.
	InviteRoomState []json.RawMessage `json:"invite_room_state,omitempty"`
}

// MissingEventsRequest is the body of POST /v1/get_missing_events.
type MissingEventsRequest struct {
	// Limit is the most events to return: 10 if zero.
	Limit int `json:"limit,omitempty"`
	// MinDepth is the lowest depth of events to return.
	MinDepth int64 `json:"min_depth,omitempty"`
	// EarliestEvents are the newest events that the asker has; they and what is behind them are not returned.
	EarliestEvents []matrix.EventID `json:"earliest_events"`
	// LatestEvents are the events whose predecessors are wanted; they themselves are not returned.
	LatestEvents []matrix.EventID `json:"latest_events"`
}

// StateResponse is the answer to GET /v1/state.
type StateResponse struct {
	PDUs      []json.RawMessage `json:"pdus"`
	AuthChain []json.RawMessage `json:"auth_chain"`
}

// StateIDsResponse is the answer to GET /v1/state_ids.
type StateIDsResponse struct {
	PDUIDs       []matrix.EventID `json:"pdu_ids"`
	AuthChainIDs []matrix.EventID `json:"auth_chain_ids"`
}

// TimestampToEventResponse is the answer to GET timestamp_to_event, on both APIs.
type TimestampToEventResponse struct {
	EventID matrix.EventID `json:"event_id"`
	// OriginServerTS is in milliseconds since the epoch.
	OriginServerTS int64 `json:"origin_server_ts"`
}

// AliasResponse is the answer to GET /v1/query/directory and to GET /v3/directory/room.
type AliasResponse struct {
	RoomID matrix.RoomID `json:"room_id"`
	// Servers are in the room, or were when the alias was made.
	Servers []matrix.ServerName `json:"servers"`
}

// PublicRoomsRequest asks for a room list: the body of POST /v3/publicRooms and of POST /v1/publicRooms.
type PublicRoomsRequest struct {
	// Limit is the most rooms to return; zero means as many as the server gives.
	Limit int `json:"limit,omitempty"`
	// Since is a NextBatch or PrevBatch of an earlier answer.
	Since                string             `json:"since,omitempty"`
	Filter               *PublicRoomsFilter `json:"filter,omitempty"`
	IncludeAllNetworks   bool               `json:"include_all_networks,omitempty"`
	ThirdPartyInstanceID string             `json:"third_party_instance_id,omitempty"`
}

// PublicRoomsFilter narrows a room list.
type PublicRoomsFilter struct {
	// GenericSearchTerm is looked for in name, topic and canonical alias, without regard to case.
	GenericSearchTerm string `json:"generic_search_term,omitempty"`
	// RoomTypes keeps rooms of these types; a nil element stands for rooms without a type. Nil keeps all.
	RoomTypes []*string `json:"room_types,omitempty"`
}

// PublicRoomsResponse is one page of a room list.
type PublicRoomsResponse struct {
	Chunk                  []RoomSummary `json:"chunk"`
	NextBatch              string        `json:"next_batch,omitempty"`
	PrevBatch              string        `json:"prev_batch,omitempty"`
	TotalRoomCountEstimate int           `json:"total_room_count_estimate"`
}

// HierarchyResponse is the answer to GET /v1/hierarchy.
type HierarchyResponse struct {
	Room                 HierarchyRoom   `json:"room"`
	Children             []RoomSummary   `json:"children"`
	InaccessibleChildren []matrix.RoomID `json:"inaccessible_children"`
}

// RoomSummary describes a room to those who are not in it: in room lists, space hierarchies and room summaries.
type RoomSummary struct {
	RoomID           matrix.RoomID `json:"room_id"`
	NumJoinedMembers int           `json:"num_joined_members"`
	WorldReadable    bool          `json:"world_readable"`
	GuestCanJoin     bool          `json:"guest_can_join"`
	Name             string        `json:"name,omitempty"`
	Topic            string        `json:"topic,omitempty"`
	CanonicalAlias   string        `json:"canonical_alias,omitempty"`
	AvatarURL        string        `json:"avatar_url,omitempty"`
	// JoinRule is empty for the default, public (in room lists) or invite (elsewhere), where the server left it out.
	JoinRule string `json:"join_rule,omitempty"`
	RoomType string `json:"room_type,omitempty"`
	// Encryption is the algorithm, empty if the room is not encrypted.
	Encryption  string `json:"encryption,omitempty"`
	RoomVersion string `json:"room_version,omitempty"`
	// AllowedRoomIDs are the rooms whose members may join a restricted room.
	AllowedRoomIDs []matrix.RoomID `json:"allowed_room_ids,omitempty"`
	// ChildrenState are the m.space.child events, stripped, with origin_server_ts; only in hierarchies, where it is never nil.
	ChildrenState []json.RawMessage `json:"children_state,omitempty"`
	// Membership is the asking user's, only in answers to GET /v1/room_summary with an access token.
	Membership string `json:"membership,omitempty"`
}
