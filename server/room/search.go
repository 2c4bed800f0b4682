package room

import (
	"context"
	"encoding/json"
)

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

// Search looks for words in the rooms that the reader is or was in, and gives the value of room_events. nextBatch is that of
// the page before, "" for the first.
func (s *Service) Search(ctx context.Context, r Reader, q SearchRequest, nextBatch string) (json.RawMessage, error) {
	return nil, errNotYet
}
