package syncer

import (
	"encoding/json"
	"strings"

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

	// raw is the filter as the client wrote it: filters with the same raw choose the same.
	raw string
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
	f.raw = string(raw)
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

// pickFields keeps of a JSON event only what the dot-separated paths name ("\" escapes a dot), and always event_id,
// which clients cannot do without. Spec v1.19 appendices/#dot-separated-property-paths
func pickFields(event []byte, paths []string) []byte {
	var whole map[string]any
	dec := json.NewDecoder(strings.NewReader(string(event)))
	dec.UseNumber()
	if dec.Decode(&whole) != nil {
		return event
	}
	picked := map[string]any{}
	for _, path := range append([]string{"event_id"}, paths...) {
		pickField(picked, whole, splitPath(path))
	}
	out, err := json.Marshal(picked)
	if err != nil {
		return event
	}
	return out
}

func pickField(to, from map[string]any, path []string) {
	value, ok := from[path[0]]
	if !ok {
		return
	}
	if len(path) == 1 {
		to[path[0]] = value
		return
	}
	inner, ok := value.(map[string]any)
	if !ok {
		return
	}
	target, ok := to[path[0]].(map[string]any)
	if !ok {
		target = map[string]any{}
	} else if sameMap(target, inner) {
		return // picked whole already
	}
	pickField(target, inner, path[1:])
	if len(target) > 0 {
		to[path[0]] = target
	}
}

// sameMap reports whether a was put in whole, which shows in having all keys of b.
func sameMap(a, b map[string]any) bool { return len(a) == len(b) }

func splitPath(path string) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			part.WriteByte(path[i])
		case path[i] == '.':
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteByte(path[i])
		}
	}
	return append(parts, part.String())
}
