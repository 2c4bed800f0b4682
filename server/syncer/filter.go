package syncer

import (
	"context"
	"encoding/json"
	"strings"
	"sync"

	"parley.im/parley/server/matrix"
)

// Limits of filters.
const (
	maxFilterBytes       = 64 * 1024
	maxFilterItems       = 1000 // entries of one list
	defaultTimelineLimit = 10
	maxTimelineLimit     = 100
)

// Filter is what a client wants of a /sync. The zero value wants everything.
// Spec v1.19 client-server-api/#filtering
type Filter struct {
	EventFields []string    `json:"event_fields"`
	EventFormat string      `json:"event_format"`
	Presence    EventFilter `json:"presence"`
	AccountData EventFilter `json:"account_data"`
	Room        RoomFilter  `json:"room"`
}

// RoomFilter chooses rooms, and what of each.
type RoomFilter struct {
	Rooms        []matrix.RoomID `json:"rooms"`
	NotRooms     []matrix.RoomID `json:"not_rooms"`
	IncludeLeave bool            `json:"include_leave"`
	Ephemeral    EventFilter     `json:"ephemeral"`
	State        EventFilter     `json:"state"`
	Timeline     EventFilter     `json:"timeline"`
	AccountData  EventFilter     `json:"account_data"`
}

// EventFilter chooses events. A nil list of Types, Senders or Rooms wants all, an empty one none.
type EventFilter struct {
	// Limit is how many events at most; nil: the server's default.
	Limit      *int            `json:"limit"`
	Types      []string        `json:"types"`
	NotTypes   []string        `json:"not_types"`
	Senders    []matrix.UserID `json:"senders"`
	NotSenders []matrix.UserID `json:"not_senders"`

	// For events in rooms only.
	Rooms                     []matrix.RoomID `json:"rooms"`
	NotRooms                  []matrix.RoomID `json:"not_rooms"`
	ContainsURL               *bool           `json:"contains_url"`
	LazyLoadMembers           bool            `json:"lazy_load_members"`
	IncludeRedundantMembers   bool            `json:"include_redundant_members"`
	UnreadThreadNotifications bool            `json:"unread_thread_notifications"`
}

// ParseFilter reads a filter as clients write it. The error is a *matrix.Error that says what is wrong.
func ParseFilter(raw []byte) (*Filter, error) {
	if len(raw) > maxFilterBytes {
		return nil, matrix.TooLarge("a filter may have %d bytes", maxFilterBytes)
	}
	f := &Filter{}
	if err := json.Unmarshal(raw, f); err != nil {
		return nil, matrix.BadJSON("the filter is not valid: %v", err)
	}
	switch f.EventFormat {
	case "", "client", "federation":
	default:
		return nil, matrix.InvalidParam("event_format must be client or federation")
	}
	if len(f.EventFields) > maxFilterItems || len(f.Room.Rooms) > maxFilterItems || len(f.Room.NotRooms) > maxFilterItems {
		return nil, matrix.InvalidParam("a list in a filter may have %d entries", maxFilterItems)
	}
	for _, e := range []*EventFilter{&f.Presence, &f.AccountData, &f.Room.Ephemeral, &f.Room.State, &f.Room.Timeline, &f.Room.AccountData} {
		if err := e.check(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *EventFilter) check() error {
	for _, n := range []int{len(f.Types), len(f.NotTypes), len(f.Senders), len(f.NotSenders), len(f.Rooms), len(f.NotRooms)} {
		if n > maxFilterItems {
			return matrix.InvalidParam("a list in a filter may have %d entries", maxFilterItems)
		}
	}
	if f.Limit != nil && *f.Limit < 0 {
		return matrix.InvalidParam("limit in a filter must not be negative")
	}
	for _, list := range [][]matrix.UserID{f.Senders, f.NotSenders} {
		for _, u := range list {
			if _, err := matrix.ParseUserID(string(u)); err != nil {
				return matrix.InvalidParam("senders in a filter must be user IDs")
			}
		}
	}
	for _, list := range [][]matrix.RoomID{f.Rooms, f.NotRooms} {
		for _, r := range list {
			if _, err := matrix.ParseRoomID(string(r)); err != nil {
				return matrix.InvalidParam("rooms in a filter must be room IDs")
			}
		}
	}
	return nil
}

// wantsRoom reports whether the filter lets anything of room through.
func (f *RoomFilter) wantsRoom(room matrix.RoomID) bool {
	return listed(f.Rooms, f.NotRooms, room)
}

// all reports whether the filter lets every event through.
func (f *EventFilter) all() bool {
	return f.Types == nil && len(f.NotTypes) == 0 && f.Senders == nil && len(f.NotSenders) == 0 &&
		f.Rooms == nil && len(f.NotRooms) == 0 && f.ContainsURL == nil
}

// wantsRoom reports whether the filter lets anything of room through.
func (f *EventFilter) wantsRoom(room matrix.RoomID) bool {
	return listed(f.Rooms, f.NotRooms, room)
}

// wants reports whether the filter lets an event of this type and sender through. hasURL is asked only when needed.
func (f *EventFilter) wants(typ string, sender matrix.UserID, hasURL func() bool) bool {
	return f.wantsType(typ) && listed(f.Senders, f.NotSenders, sender) &&
		(f.ContainsURL == nil || hasURL != nil && *f.ContainsURL == hasURL())
}

func (f *EventFilter) wantsType(typ string) bool {
	for _, p := range f.NotTypes {
		if wildcard(p, typ) {
			return false
		}
	}
	if f.Types == nil {
		return true
	}
	for _, p := range f.Types {
		if wildcard(p, typ) {
			return true
		}
	}
	return false
}

// limit is how many events the filter wants at most.
func (f *EventFilter) limit() int {
	if f.Limit == nil {
		return defaultTimelineLimit
	}
	return min(*f.Limit, maxTimelineLimit)
}

func listed[T comparable](in, out []T, x T) bool {
	for _, y := range out {
		if x == y {
			return false
		}
	}
	if in == nil {
		return true
	}
	for _, y := range in {
		if x == y {
			return true
		}
	}
	return false
}

// wildcard matches s against a pattern in which "*" stands for any letters, in time linear in practice: only the last
// star is ever gone back to.
func wildcard(pattern, s string) bool {
	if strings.IndexByte(pattern, '*') < 0 {
		return pattern == s
	}
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// filters keeps filters ready for use: stored ones, which never change, and those of queries.
type filters struct {
	sync.Mutex
	byID map[filterKey]*Filter
}

type filterKey struct {
	user matrix.UserID
	id   string
}

const (
	// maxFilters bounds how many are kept, maxKeptFilter how many bytes of JSON one of them has.
	maxFilters    = 10_000
	maxKeptFilter = 4096
)

// filter finds the filter of a query: an ID, or JSON. It is shared and must not be changed.
func (s *Service) filter(ctx context.Context, user matrix.UserID, q string) (*Filter, error) {
	if len(q) > maxFilterBytes {
		return nil, matrix.TooLarge("a filter may have %d bytes", maxFilterBytes)
	}
	inline := q == "" || q[0] == '{'
	key := filterKey{user, q}
	if inline {
		key.user = "" // the same for everybody
	}
	s.filters.Lock()
	f := s.filters.byID[key]
	s.filters.Unlock()
	if f != nil {
		return f, nil
	}
	raw := []byte(q)
	switch {
	case q == "":
		raw = []byte("{}")
	case !inline:
		var err error
		if raw, err = s.o.Users.Filter(ctx, user, q); err != nil {
			return nil, err
		}
	}
	f, err := ParseFilter(raw)
	if err != nil || len(raw) > maxKeptFilter {
		return f, err
	}
	s.filters.Lock()
	defer s.filters.Unlock()
	if s.filters.byID == nil || len(s.filters.byID) >= maxFilters {
		s.filters.byID = map[filterKey]*Filter{}
	}
	s.filters.byID[key] = f
	return f, nil
}
