package room

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// What these methods return is written for the reader: JSON of events in the client format, with bundled aggregations. All of them
// check that the reader may see what is asked for; M_FORBIDDEN otherwise.

// State is GET /rooms/{room}/state: the current state, or the state as the user left it. A JSON array.
func (s *Service) State(ctx context.Context, room matrix.RoomID, r Reader) (json.RawMessage, error) {
	return nil, errNotYet
}

// StateEvent is GET /rooms/{room}/state/{type}/{key}: the content, or with wholeEvent the event. M_NOT_FOUND if there is none.
func (s *Service) StateEvent(ctx context.Context, room matrix.RoomID, r Reader, typ, stateKey string, wholeEvent bool) (json.RawMessage, error) {
	return nil, errNotYet
}

// MembersRequest is GET /rooms/{room}/members.
type MembersRequest struct {
	// At is a sync or messages token at which to look; "" means now.
	At            string
	Membership    string // only this one; "" is all
	NotMembership string // not this one
}

// Members gives the {"chunk": …} of member events.
func (s *Service) Members(ctx context.Context, room matrix.RoomID, r Reader, q MembersRequest) (json.RawMessage, error) {
	return nil, errNotYet
}

// JoinedMembers is GET /rooms/{room}/joined_members, by user.
func (s *Service) JoinedMembers(ctx context.Context, room matrix.RoomID, user matrix.UserID) (map[matrix.UserID]JoinedMember, error) {
	return nil, errNotYet
}

// JoinedMember is a member as joined_members has it.
type JoinedMember struct {
	DisplayName *string `json:"display_name"`
	AvatarURL   *string `json:"avatar_url"`
}

// JoinedRooms lists the rooms that a user of this server is joined to.
func (s *Service) JoinedRooms(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	return nil, errNotYet
}

// EventFilter chooses events of rooms. A nil list wants all, an empty one none; '*' in types stands for any text.
// Spec v1.19 client-server-api/#filtering
type EventFilter struct {
	Limit                     *int            `json:"limit"`
	Types                     []string        `json:"types"`
	NotTypes                  []string        `json:"not_types"`
	Senders                   []matrix.UserID `json:"senders"`
	NotSenders                []matrix.UserID `json:"not_senders"`
	Rooms                     []matrix.RoomID `json:"rooms"`
	NotRooms                  []matrix.RoomID `json:"not_rooms"`
	ContainsURL               *bool           `json:"contains_url"`
	LazyLoadMembers           bool            `json:"lazy_load_members"`
	IncludeRedundantMembers   bool            `json:"include_redundant_members"`
	UnreadThreadNotifications bool            `json:"unread_thread_notifications"`
	RelatedByRelTypes         []string        `json:"related_by_rel_types"`
	RelatedBySenders          []matrix.UserID `json:"related_by_senders"`
}

// Allows reports whether the filter lets an event through; what it says of limits, rooms and relations is not looked at. nil lets all.
func (f *EventFilter) Allows(e *matrix.Event) bool { return true }

// Chunk is a page of events.
type Chunk struct {
	Start string            `json:"start,omitempty"`
	End   string            `json:"end,omitempty"` // "" at the end
	Chunk []json.RawMessage `json:"chunk"`
	State []json.RawMessage `json:"state,omitempty"`
}

// MessagesRequest is GET /rooms/{room}/messages.
type MessagesRequest struct {
	From, To string // tokens of /messages, /sync or /context; an empty From means the end the direction starts from
	Forward  bool
	Limit    int // at most 1000; 0 means 10
	Filter   *EventFilter
}

// Messages pages through the timeline. History that this server lacks is asked of others, within a time limit.
// Errors: M_INVALID_PARAM (token), M_FORBIDDEN.
func (s *Service) Messages(ctx context.Context, room matrix.RoomID, r Reader, q MessagesRequest) (Chunk, error) {
	return Chunk{}, errNotYet
}

// Context is the answer to GET /rooms/{room}/context/{event}.
type Context struct {
	Start        string            `json:"start"`
	End          string            `json:"end"`
	Event        json.RawMessage   `json:"event"`
	EventsBefore []json.RawMessage `json:"events_before"`
	EventsAfter  []json.RawMessage `json:"events_after"`
	State        []json.RawMessage `json:"state"`
}

// Context gives an event with what was said around it. limit 0 means 10. M_NOT_FOUND if the reader may not see the event.
func (s *Service) Context(ctx context.Context, room matrix.RoomID, r Reader, event matrix.EventID, limit int, filter *EventFilter) (Context, error) {
	return Context{}, errNotYet
}

// Event is GET /rooms/{room}/event/{event}. M_NOT_FOUND if the reader may not see it.
func (s *Service) Event(ctx context.Context, room matrix.RoomID, r Reader, event matrix.EventID) (json.RawMessage, error) {
	return nil, errNotYet
}

// VisibleEvent finds an event of a room that user may see; M_NOT_FOUND otherwise.
func (s *Service) VisibleEvent(ctx context.Context, room matrix.RoomID, user matrix.UserID, event matrix.EventID) (*storage.Event, error) {
	return nil, errNotYet
}

// RelationsRequest is GET /rooms/{room}/relations/{event}/{relType}/{eventType}.
type RelationsRequest struct {
	Event     matrix.EventID
	RelType   string // "" is any
	EventType string // "" is any
	From, To  string
	Forward   bool
	Limit     int // 0 means 50
	Recurse   bool
}

// RelationsPage is the answer to GET …/relations.
type RelationsPage struct {
	Chunk          []json.RawMessage `json:"chunk"`
	NextBatch      string            `json:"next_batch,omitempty"`
	PrevBatch      string            `json:"prev_batch,omitempty"`
	RecursionDepth int               `json:"recursion_depth,omitempty"`
}

// Relations lists the events that relate to one. M_NOT_FOUND if the reader may not see it.
func (s *Service) Relations(ctx context.Context, room matrix.RoomID, r Reader, q RelationsRequest) (RelationsPage, error) {
	return RelationsPage{}, errNotYet
}

// Threads is GET /rooms/{room}/threads: thread roots, the thread with the newest reply first. participated keeps those that the user has
// taken part in. limit 0 means 20.
func (s *Service) Threads(ctx context.Context, room matrix.RoomID, r Reader, participated bool, from string, limit int) (RelationsPage, error) {
	return RelationsPage{}, errNotYet
}

// TimestampToEvent finds the event closest to ts (milliseconds since 1970), at or after it, or with backwards at or before it, asking other servers
// when this one has a gap there. M_NOT_FOUND if there is none.
func (s *Service) TimestampToEvent(ctx context.Context, room matrix.RoomID, user matrix.UserID, ts int64, backwards bool) (TimestampToEventResponse, error) {
	return TimestampToEventResponse{}, errNotYet
}

// SearchRequest is the room_events part of POST /search. Spec v1.19 client-server-api/#post_matrixclientv3search
type SearchRequest struct {
	SearchTerm   string         `json:"search_term"`
	Keys         []string       `json:"keys"`
	Filter       *EventFilter   `json:"filter"`
	OrderBy      string         `json:"order_by"` // "rank" (default) or "recent"
	EventContext *SearchContext `json:"event_context"`
	IncludeState bool           `json:"include_state"`
	Groupings    struct {
		GroupBy []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
}

// SearchContext says what to send along with a result.
type SearchContext struct {
	BeforeLimit    *int `json:"before_limit"`
	AfterLimit     *int `json:"after_limit"`
	IncludeProfile bool `json:"include_profile"`
}

// Search looks for words in the rooms that the reader is or was in, and gives the value of room_events. nextBatch is that of the page before,
// "" for the first.
func (s *Service) Search(ctx context.Context, r Reader, q SearchRequest, nextBatch string) (json.RawMessage, error) {
	return nil, errNotYet
}
