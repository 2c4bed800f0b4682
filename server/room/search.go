package room

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
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

const (
	maxSearchTerm    = 500 // bytes
	maxSearchContext = 10  // events on each side of a result
	// rankedWindow is how many of the newest events that match are put in order of rank; the next so many come after them.
	rankedWindow = 500
	recentWindow = 100
	// maxSearchSeen is how many events are looked at for one page; a filter may keep them all back.
	maxSearchSeen = 3000
)

// searchableKeys are what keys may name, and what is searched without them.
var searchableKeys = []string{"content.body", "content.name", "content.topic"}

type searchAnswer struct {
	Count      int                                      `json:"count"`
	Highlights []string                                 `json:"highlights"`
	Results    []searchResult                           `json:"results"`
	NextBatch  string                                   `json:"next_batch,omitempty"`
	State      map[matrix.RoomID][]json.RawMessage      `json:"state,omitempty"`
	Groups     map[string]map[string]*searchAnswerGroup `json:"groups,omitempty"`
	// Indexing says that older messages are not in the index yet.
	Indexing bool `json:"im.parley.indexing,omitempty"`
}

type searchAnswerGroup struct {
	Order     int              `json:"order"`
	Results   []matrix.EventID `json:"results"`
	NextBatch string           `json:"next_batch,omitempty"`
}

type searchResult struct {
	Rank    float64              `json:"rank"`
	Result  json.RawMessage      `json:"result"`
	Context *searchResultContext `json:"context,omitempty"`
}

type searchResultContext struct {
	Start   string                          `json:"start"`
	End     string                          `json:"end"`
	Before  []json.RawMessage               `json:"events_before"`
	After   []json.RawMessage               `json:"events_after"`
	Profile map[matrix.UserID]searchProfile `json:"profile_info,omitempty"`
}

type searchProfile struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// Search looks for events that contain all words of the search term, in the rooms that the reader is or was in, and gives the value of
// room_events. What counts as a word, see words.go. Rooms that are encrypted are left out. A message that was edited is found by its new text; a
// voice message also by what is said in it. nextBatch is that of the page before, "" for the first.
// Errors: M_INVALID_PARAM, M_FORBIDDEN where there is no search.
//
// In the order of rank, the newest events that match are put in order, then the next so many behind them: the work for a page is bounded.
func (s *Service) Search(ctx context.Context, r Reader, q SearchRequest, nextBatch string) (json.RawMessage, error) {
	if !s.o.Config.Search {
		return nil, matrix.Forbidden("there is no search on this server")
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	f := finder{s: s, r: r, q: q, sought: newSought(q.SearchTerm), rooms: map[int64]*access{}}
	var err error
	if f.at, err = parseSearchToken(nextBatch); err != nil {
		return nil, err
	}
	answer := searchAnswer{Highlights: highlights(q.SearchTerm), Results: []searchResult{}}
	if answer.Indexing, err = s.indexForSearch(ctx); err != nil {
		return nil, err
	}
	limit := 10
	if q.Filter != nil && q.Filter.Limit != nil {
		limit = clampLimit(*q.Filter.Limit, 10, 100)
	}
	page, err := f.page(ctx, limit)
	if err != nil {
		return nil, err
	}
	answer.Count = f.at.given + f.left
	if len(page) > 0 || !f.done { // also after the last, as others do: the page after it is empty
		answer.NextBatch = f.at.token()
	}
	if err := s.writeMatches(ctx, &answer, page, r, q); err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

func (q *SearchRequest) check() error {
	if len(q.SearchTerm) > maxSearchTerm {
		return matrix.InvalidParam("the search term may be %d bytes long", maxSearchTerm)
	}
	if strings.TrimSpace(q.SearchTerm) == "" {
		return matrix.InvalidParam("the search term is empty")
	}
	if q.OrderBy != "" && q.OrderBy != "rank" && q.OrderBy != "recent" {
		return matrix.InvalidParam("order_by may be rank or recent")
	}
	if len(q.Keys) == 0 {
		q.Keys = searchableKeys
	}
	for _, key := range q.Keys {
		if !slices.Contains(searchableKeys, key) {
			return matrix.InvalidParam("keys may be content.body, content.name and content.topic")
		}
	}
	return nil
}

// writeMatches puts a page of matches into the answer.
func (s *Service) writeMatches(ctx context.Context, answer *searchAnswer, page []match, r Reader, q SearchRequest) error {
	for i, m := range page {
		raw, err := s.AppendClient(ctx, nil, m.event, r)
		if err != nil {
			return err
		}
		result := searchResult{Rank: m.rank, Result: raw}
		if q.EventContext != nil {
			if result.Context, err = s.searchContext(ctx, m, r, q.EventContext); err != nil {
				return err
			}
		}
		answer.Results = append(answer.Results, result)
		answer.group(m.event, i, q)
		if room := m.event.RoomID(); q.IncludeState && answer.State[room] == nil {
			if answer.State == nil {
				answer.State = map[matrix.RoomID][]json.RawMessage{}
			}
			events, err := s.StateEvents(ctx, room, m.access.root, storage.AllState)
			if err != nil {
				return err
			}
			if answer.State[room], err = s.stateClients(ctx, events); err != nil {
				return err
			}
		}
	}
	return nil
}

// group notes a result under the groups that were asked for.
func (a *searchAnswer) group(e *storage.Event, order int, q SearchRequest) {
	for _, by := range q.Groupings.GroupBy {
		value := ""
		switch by.Key {
		case "room_id":
			value = string(e.RoomID())
		case "sender":
			value = string(e.Sender())
		default:
			continue
		}
		if a.Groups == nil {
			a.Groups = map[string]map[string]*searchAnswerGroup{}
		}
		if a.Groups[by.Key] == nil {
			a.Groups[by.Key] = map[string]*searchAnswerGroup{}
		}
		g := a.Groups[by.Key][value]
		if g == nil {
			g = &searchAnswerGroup{Order: order}
			if a.NextBatch != "" {
				g.NextBatch = groupToken(a.NextBatch, by.Key, value)
			}
			a.Groups[by.Key][value] = g
		}
		g.Results = append(g.Results, e.ID())
	}
}

func (s *Service) searchContext(ctx context.Context, m match, r Reader, q *SearchContext) (*searchResultContext, error) {
	limit := func(p *int) int {
		if p == nil {
			return 5
		}
		return max(0, min(*p, maxSearchContext))
	}
	earlier := pager{s: s, access: m.access, at: before(m.event), end: firstPlace}
	later := pager{s: s, access: m.access, at: after(m.event), end: lastPlace, forward: true}
	if err := earlier.collect(ctx, limit(q.BeforeLimit)); err != nil {
		return nil, err
	}
	if err := later.collect(ctx, limit(q.AfterLimit)); err != nil {
		return nil, err
	}
	c := &searchResultContext{Start: earlier.at.token(), End: later.at.token()}
	var err error
	if c.Before, err = s.Clients(ctx, earlier.found, r); err != nil {
		return nil, err
	}
	if c.After, err = s.Clients(ctx, later.found, r); err != nil {
		return nil, err
	}
	if !q.IncludeProfile {
		return c, nil
	}
	c.Profile = map[matrix.UserID]searchProfile{}
	for _, e := range slices.Concat(earlier.found, []*storage.Event{m.event}, later.found) {
		member, err := s.stateEvent(ctx, e.RoomNum, e.Before, matrix.TypeMember, string(e.Sender()), nil)
		if err != nil {
			return nil, err
		}
		c.Profile[e.Sender()] = searchProfile{contentString(member, "displayname", ""), contentString(member, "avatar_url", "")}
	}
	return c, nil
}
