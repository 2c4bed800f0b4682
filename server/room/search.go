package room

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
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
	maxSearched      = 100_000 // events looked at for one request
	maxMatches       = 2_000   // of which so many matches are ordered
	maxSearchTerm    = 500     // bytes
	maxSearchContext = 10      // events on each side of a result
)

// searchableKeys are what keys may name, and what is searched without them.
var searchableKeys = []string{"content.body", "content.name", "content.topic"}

// match is an event that was found.
type match struct {
	event  *storage.Event
	access *access
	rank   float64
}

type searchAnswer struct {
	Count      int                                      `json:"count"`
	Highlights []string                                 `json:"highlights"`
	Results    []searchResult                           `json:"results"`
	NextBatch  string                                   `json:"next_batch,omitempty"`
	State      map[matrix.RoomID][]json.RawMessage      `json:"state,omitempty"`
	Groups     map[string]map[string]*searchAnswerGroup `json:"groups,omitempty"`
}

type searchAnswerGroup struct {
	Order   int              `json:"order"`
	Results []matrix.EventID `json:"results"`
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

// Search looks for events that contain all words of the search term, in the rooms that the reader is in, and gives the value of room_events.
// Words are compared as text without regard to case and may be part of longer ones, so that it works for languages that do not put spaces
// between words. nextBatch is that of the page before, "" for the first. Errors: M_INVALID_PARAM.
//
// todo(speed): this reads the rooms' messages; issue 3 asks for an index.
func (s *Service) Search(ctx context.Context, r Reader, q SearchRequest, nextBatch string) (json.RawMessage, error) {
	words, err := searchWords(q.SearchTerm)
	if err != nil {
		return nil, err
	}
	keys := q.Keys
	if len(keys) == 0 {
		keys = searchableKeys
	}
	for _, key := range keys {
		if !slices.Contains(searchableKeys, key) {
			return nil, matrix.InvalidParam("keys may be content.body, content.name and content.topic")
		}
	}
	offset := 0
	if nextBatch != "" {
		if offset, err = strconv.Atoi(nextBatch); err != nil || offset < 0 {
			return nil, matrix.InvalidParam("next_batch is not a token that this server gave out")
		}
	}
	limit := 10
	if q.Filter != nil && q.Filter.Limit != nil {
		limit = clampLimit(*q.Filter.Limit, 10, 100)
	}
	found, err := s.matches(ctx, r, q, keys, words)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b match) int {
		if q.OrderBy != "recent" && a.rank != b.rank {
			return cmp.Compare(b.rank, a.rank)
		}
		return cmp.Or(cmp.Compare(b.event.OriginServerTS(), a.event.OriginServerTS()), cmp.Compare(b.event.Num, a.event.Num))
	})
	answer := searchAnswer{Count: len(found), Highlights: words, Results: []searchResult{}}
	page := found[min(offset, len(found)):min(offset+limit, len(found))]
	if len(page) > 0 { // also after the last, as others do: the page after it is empty
		answer.NextBatch = strconv.Itoa(offset + len(page))
	}
	if err := s.writeMatches(ctx, &answer, page, r, q); err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

func searchWords(term string) ([]string, error) {
	if len(term) > maxSearchTerm {
		return nil, matrix.InvalidParam("the search term may be %d bytes long", maxSearchTerm)
	}
	words := strings.Fields(strings.ToLower(term))
	if len(words) == 0 {
		return nil, matrix.InvalidParam("the search term is empty")
	}
	return words, nil
}

// matches finds the newest events that match.
func (s *Service) matches(ctx context.Context, r Reader, q SearchRequest, keys, words []string) ([]match, error) {
	rooms, err := s.JoinedRooms(ctx, r.User)
	if err != nil {
		return nil, err
	}
	var found []match
	searched := 0
	for _, id := range rooms {
		if f := q.Filter; f != nil && (f.Rooms != nil && !slices.Contains(f.Rooms, id) || slices.Contains(f.NotRooms, id)) {
			continue
		}
		a, err := s.access(ctx, id, r.User)
		if err != nil {
			return nil, err
		}
		have := len(found)
		if found, err = s.spokenMatches(ctx, a, found, q, keys, words); err != nil {
			return nil, err
		}
		spoken := found[have:]
		at := lastPlace
		for more := true; more && searched < maxSearched && len(found) < maxMatches; {
			var events []*storage.Event
			events, at, more, err = s.o.scanForWords(ctx, a.room.Num, at, words)
			if err != nil {
				return nil, err
			}
			searched += scanStep
			for _, e := range events {
				rank := rankOf(e, keys, words)
				if rank == 0 || !q.Filter.Allows(e.Event) || slices.ContainsFunc(spoken, func(m match) bool { return m.event.Num == e.Num }) {
					continue
				}
				if ok, err := a.viewer.sees(ctx, e); err != nil {
					return nil, err
				} else if ok {
					found = append(found, match{e, a, rank})
				}
			}
		}
	}
	return found, nil
}

// maxSpoken is how many transcripts of a room are looked at.
const maxSpoken = 20_000

// spokenMatches adds the voice messages of a room in which all words are said.
func (s *Service) spokenMatches(ctx context.Context, a *access, found []match, q SearchRequest, keys, words []string) ([]match, error) {
	if !s.o.SearchTranscripts || !slices.Contains(keys, "content.body") {
		return found, nil
	}
	events, texts, err := s.o.DB.SearchTranscripts(ctx, a.room.Num, maxSpoken, func(text string) bool { return rankText(text, words) > 0 })
	if err != nil {
		return nil, err
	}
	for i, e := range events {
		if len(found) >= maxMatches || e.RedactedBy != "" || !q.Filter.Allows(e.Event) {
			continue
		}
		if ok, err := a.viewer.sees(ctx, e); err != nil {
			return nil, err
		} else if ok {
			found = append(found, match{e, a, rankText(texts[i], words)})
		}
	}
	return found, nil
}

// scanStep is how many events are read at a time.
const scanStep = 1000

// scanForWords reads the events before a place that may match, and tells where to go on.
func (o *Options) scanForWords(ctx context.Context, room int64, at place, words []string) ([]*storage.Event, place, bool, error) {
	longest := slices.MaxFunc(words, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	events, last, err := o.DB.ScanText(ctx, room, storage.Place(at), scanStep, func(json string) bool {
		return strings.Contains(strings.ToLower(json), escaped(longest))
	})
	return events, place(last), last != (storage.Place{}), err
}

// escaped is a word as it stands in JSON.
func escaped(word string) string {
	b := matrix.AppendJSONString(nil, word)
	return string(b[1 : len(b)-1])
}

// rankOf is 0 if not all words are in the event's text, and greater the more of the text they make up.
func rankOf(e *storage.Event, keys, words []string) float64 {
	if e.RedactedBy != "" {
		return 0
	}
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content(), &content) != nil {
		return 0
	}
	best := 0.0
	for _, key := range keys {
		var text string
		name := strings.TrimPrefix(key, "content.")
		if name == "name" && e.Type() != matrix.TypeName || name == "topic" && e.Type() != matrix.TypeTopic || name == "body" && e.Type() != matrix.TypeMessage {
			continue
		}
		if json.Unmarshal(content[name], &text) != nil {
			continue
		}
		best = max(best, rankText(text, words))
	}
	return best
}

// rankText is 0 if not all words are in a text, and greater the more of the text they make up.
func rankText(text string, words []string) float64 {
	text = strings.ToLower(text)
	covered := 0
	for _, w := range words {
		n := strings.Count(text, w)
		if n == 0 {
			return 0
		}
		covered += n * len(w)
	}
	return float64(covered) / float64(len(text)+20)
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
