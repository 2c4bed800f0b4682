package room

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// match is an event that was found.
type match struct {
	event  *storage.Event
	access *access
	rank   float64
	hit    storage.SearchHit // where the index has the words
}

// finder finds a page of events for a search.
type finder struct {
	s      *Service
	r      Reader
	q      SearchRequest
	sought sought
	at     searchPlace
	rooms  map[int64]*access // that were needed so far; nil: not to be searched
	done   bool              // there is nothing after this page
	left   int               // about how many matches there are after this page
}

// searchPlace is where a page ends: after the first skip of the events that match and are older than before, and not older than after
// unless that is zero.
type searchPlace struct {
	before, after storage.SearchHit
	skip          int
	given         int    // matches on this page and those before it
	group, value  string // if set, only those of this group
}

func (p searchPlace) token() string {
	t := fmt.Sprintf("%d.%d.%d.%d.%d.%d", p.before.TS, p.before.Num, p.after.TS, p.after.Num, p.skip, p.given)
	if p.group != "" {
		return groupToken(t, p.group, p.value)
	}
	return t
}

// groupToken is a token with which a search goes on in one group.
func groupToken(token, group, value string) string {
	token, _, _ = strings.Cut(token, "~")
	return token + "~" + group + "~" + base64.RawURLEncoding.EncodeToString([]byte(value))
}

func parseSearchToken(token string) (p searchPlace, err error) {
	if token == "" {
		return p, nil
	}
	bad := matrix.InvalidParam("next_batch is not a token that this server gave out")
	numbers, group, grouped := strings.Cut(token, "~")
	n, err := fmt.Sscanf(numbers, "%d.%d.%d.%d.%d.%d", &p.before.TS, &p.before.Num, &p.after.TS, &p.after.Num, &p.skip, &p.given)
	if err != nil || n != 6 || p.skip < 0 || p.given < 0 {
		return p, bad
	}
	if !grouped {
		return p, nil
	}
	key, encoded, _ := strings.Cut(group, "~")
	value, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || key != "room_id" && key != "sender" {
		return p, bad
	}
	p.group, p.value = key, string(value)
	return p, nil
}

// allows reports whether an event is in the group that is asked for.
func (p *searchPlace) allows(e *storage.Event) bool {
	switch p.group {
	case "room_id":
		return string(e.RoomID()) == p.value
	case "sender":
		return string(e.Sender()) == p.value
	}
	return true
}

// page finds the next matches and moves on behind them.
func (f *finder) page(ctx context.Context, limit int) ([]match, error) {
	rooms, err := f.searchedRooms(ctx)
	if err != nil {
		return nil, err
	}
	query := storage.SearchQuery{Rooms: rooms, Words: f.words(), Limit: rankedWindow}
	if f.q.OrderBy == "recent" {
		query.Limit = recentWindow
	}
	var page []match
	for seen := 0; len(page) < limit && seen < maxSearchSeen; seen += query.Limit {
		query.Before, query.After = f.at.before, f.at.after
		found, err := f.s.o.DB.SearchWords(ctx, query)
		if err != nil {
			return nil, err
		}
		if len(found.Hits) > 0 && f.at.before == (storage.SearchHit{}) { // what comes in meanwhile moves nothing
			newest := found.Hits[0]
			f.at.before = storage.SearchHit{TS: newest.TS, Num: newest.Num + 1}
		}
		matches, err := f.matches(ctx, found.Hits)
		if err != nil {
			return nil, err
		}
		i := f.at.skip
		for ; i < len(matches) && len(page) < limit; i++ {
			if f.at.allows(matches[i].event) {
				page = append(page, matches[i])
			}
		}
		f.left = max(len(matches)-i, 0) + max(found.Seen-len(found.Hits), 0)
		full := len(found.Hits) == query.Limit || f.at.after != (storage.SearchHit{})
		switch {
		case i < len(matches): // the page is full
			f.at.skip = i
			if full && f.at.after == (storage.SearchHit{}) {
				oldest := found.Hits[len(found.Hits)-1]
				f.at.after = storage.SearchHit{TS: oldest.TS, Num: oldest.Num}
			}
		case !full:
			f.at.skip, f.done = i, true
			f.at.given += len(page)
			return page, nil
		case f.at.after != (storage.SearchHit{}):
			f.at.before, f.at.after, f.at.skip = f.at.after, storage.SearchHit{}, 0
		default:
			oldest := found.Hits[len(found.Hits)-1]
			f.at.before, f.at.skip = storage.SearchHit{TS: oldest.TS, Num: oldest.Num}, 0
		}
	}
	f.at.given += len(page)
	return page, nil
}

// words is how the index is asked: for names or topics alone, by the words that only these have.
func (f *finder) words() []storage.SearchWord {
	words := f.sought.indexed()
	if len(f.q.Keys) != 1 || f.q.Keys[0] == "content.body" {
		return words
	}
	mark := markOf(map[string]string{"content.name": matrix.TypeName, "content.topic": matrix.TypeTopic}[f.q.Keys[0]])
	for i := range words {
		words[i].Text = mark + words[i].Text
	}
	return words
}

// searchedRooms are the numbers of the rooms that the user is in, or has left and not forgotten, as far as the filter allows them.
func (f *finder) searchedRooms(ctx context.Context) ([]int64, error) {
	all, err := f.s.RoomsOf(ctx, f.r.User)
	if err != nil {
		return nil, err
	}
	var rooms []int64
	for i := range all {
		m := &all[i]
		was := m.Membership == matrix.Leave || m.Membership == matrix.Ban
		if m.Membership != matrix.Join && !(was && !m.Forgotten) {
			continue
		}
		if filter := f.q.Filter; filter == nil || (filter.Rooms == nil || slices.Contains(filter.Rooms, m.Room)) && !slices.Contains(filter.NotRooms, m.Room) {
			rooms = append(rooms, m.RoomNum)
		}
	}
	return rooms, nil
}

// access is what the user may read of a room; nil if nothing, or if the room is encrypted.
func (f *finder) access(ctx context.Context, e *storage.Event) (*access, error) {
	a, ok := f.rooms[e.RoomNum]
	if ok {
		return a, nil
	}
	a, err := f.s.access(ctx, e.RoomID(), f.r.User)
	if matrix.ErrorCode(err) == "M_FORBIDDEN" {
		a, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a != nil && a.snap.Encrypted {
		a = nil
	}
	f.rooms[e.RoomNum] = a
	return a, nil
}

// matches looks at what the index has found.
func (f *finder) matches(ctx context.Context, hits []storage.SearchHit) ([]match, error) {
	nums := make([]int64, len(hits))
	byNum := map[int64]storage.SearchHit{}
	for i, hit := range hits {
		nums[i], byNum[hit.Num] = hit.Num, hit
	}
	events, err := f.s.o.DB.EventsThere(ctx, nums)
	if err != nil {
		return nil, err
	}
	byRoom := map[int64][]*storage.Event{}
	for _, e := range events {
		byRoom[e.RoomNum] = append(byRoom[e.RoomNum], e)
	}
	for room, some := range byRoom { // all at once, into memory
		if _, err := f.s.relationsOf(ctx, room, some); err != nil {
			return nil, err
		}
	}
	var matches []match
	for _, e := range events {
		m, err := f.match(ctx, e)
		if err != nil {
			return nil, err
		}
		if m.rank > 0 && !slices.ContainsFunc(matches, func(o match) bool { return o.event.Num == m.event.Num }) {
			m.hit = byNum[e.Num]
			matches = append(matches, m)
		}
	}
	slices.SortFunc(matches, func(a, b match) int {
		if f.q.OrderBy != "recent" && a.rank != b.rank {
			return cmp.Compare(b.rank, a.rank)
		}
		return b.hit.Compare(a.hit)
	})
	return matches, nil
}

// match looks at an event that may match; rank is 0 if it does not. An edit stands for what it edits.
func (f *finder) match(ctx context.Context, e *storage.Event) (m match, err error) {
	if e.Hidden() || e.RedactedBy != "" {
		return m, nil
	}
	if m.access, err = f.access(ctx, e); m.access == nil || err != nil {
		return m, err
	}
	if m.event, err = f.edited(ctx, e); m.event == nil || err != nil {
		return m, err
	}
	if !f.q.Filter.Allows(m.event.Event) {
		return m, nil
	}
	rank, err := f.rank(ctx, e, m)
	if err != nil || rank == 0 {
		return m, err
	}
	p := pager{s: f.s, filter: f.q.Filter}
	if ok, err := p.related(ctx, m.event); err != nil || !ok {
		return m, err
	}
	if ok, err := m.access.viewer.sees(ctx, m.event); err != nil || !ok {
		return m, err
	}
	m.rank = rank
	return m, nil
}

// edited is the event that is shown if e matches: e, or what e edits. nil: it is not here any more.
func (f *finder) edited(ctx context.Context, e *storage.Event) (*storage.Event, error) {
	relation, ok := relationOf(e.Event)
	if !ok || relation.RelType != relReplace || e.Type() != matrix.TypeMessage {
		return e, nil
	}
	target, err := f.s.o.DB.EventByID(ctx, relation.EventID)
	if errors.Is(err, storage.ErrNotFound) || err == nil && (target.RoomNum != e.RoomNum || target.Hidden() || target.RedactedBy != "") {
		return nil, nil
	}
	return target, err
}

// rank is how well e matches, by which m.event is to be found: 0 if another event has the text of m.event that holds for the user.
func (f *finder) rank(ctx context.Context, e *storage.Event, m match) (float64, error) {
	key := "content." + strings.TrimPrefix(e.Type(), "m.room.")
	if e.Type() == matrix.TypeMessage {
		key = "content.body"
	}
	if !slices.Contains(f.q.Keys, key) {
		return 0, nil
	}
	if e.Type() != matrix.TypeMessage {
		return f.sought.rank(stateText(e.Event)), nil
	}
	spoken := 0.0
	if e.Num == m.event.Num && f.s.o.SearchTranscripts {
		text, err := f.s.spoken(ctx, e)
		if err != nil {
			return 0, err
		}
		spoken = f.sought.rank(text)
	}
	text, isEdit := messageText(e.Event)
	rank := f.sought.rank(text)
	if rank == 0 {
		return spoken, nil
	}
	current, err := f.current(ctx, m)
	if err != nil || current.Num != e.Num || isEdit != (e.Num != m.event.Num) {
		return spoken, err
	}
	return max(rank, spoken), nil
}

// current is the newest edit that the user may see, or the event itself.
func (f *finder) current(ctx context.Context, m match) (*storage.Event, error) {
	relations, err := f.s.relationsOf(ctx, m.event.RoomNum, []*storage.Event{m.event})
	if err != nil {
		return nil, err
	}
	edits, err := f.s.edits(ctx, m.event, relations[m.event.ID()])
	if err != nil {
		return nil, err
	}
	for _, edit := range edits {
		if ok, err := m.access.viewer.sees(ctx, edit); err != nil || ok {
			return edit, err
		}
	}
	return m.event, nil
}

// messageText is the text of a message; of an edit, that which it brings.
func messageText(e *matrix.Event) (text string, isEdit bool) {
	var content struct {
		Body json.RawMessage `json:"body"`
		New  json.RawMessage `json:"m.new_content"`
	}
	if json.Unmarshal(e.Content(), &content) != nil {
		return "", false
	}
	if relation, ok := relationOf(e); ok && relation.RelType == relReplace {
		isEdit = true
		var fresh struct {
			Body json.RawMessage `json:"body"`
		}
		if json.Unmarshal(content.New, &fresh) != nil {
			return "", true
		}
		content.Body = fresh.Body
	}
	_ = json.Unmarshal(content.Body, &text) // what is no string is no text
	return text, isEdit
}

// stateText is a room's name, or its topic with the plain text of the m.topic beside it.
func stateText(e *matrix.Event) string {
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content(), &content) != nil {
		return ""
	}
	var text string
	_ = json.Unmarshal(content[strings.TrimPrefix(e.Type(), "m.room.")], &text)
	var rich struct {
		Text []struct {
			MimeType string `json:"mimetype"`
			Body     string `json:"body"`
		} `json:"m.text"`
	}
	if e.Type() == matrix.TypeTopic && json.Unmarshal(content["m.topic"], &rich) == nil {
		for _, t := range rich.Text {
			if t.MimeType == "" || t.MimeType == "text/plain" {
				text += "\n" + t.Body
			}
		}
	}
	return text
}

// spoken is what is said in a voice message, "" if it is not known.
func (s *Service) spoken(ctx context.Context, e *storage.Event) (string, error) {
	if !bytes.Contains(e.Content(), []byte(`"m.audio"`)) {
		return "", nil
	}
	t, err := s.o.DB.Transcript(ctx, e.Num)
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	return t.Text, err
}
