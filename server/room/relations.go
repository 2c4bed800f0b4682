package room

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The relation types that the server knows.
const (
	relReplace    = "m.replace"
	relThread     = "m.thread"
	relReference  = "m.reference"
	relAnnotation = "m.annotation"
)

// related remembers what relates to events that were looked at or committed lately; mostly nothing does.
type related struct {
	mu         sync.Mutex
	young, old map[matrix.EventID][]storage.Relation
	epoch      int64 // raised with each change
}

// maxRelated is about how many events' relations are remembered.
const maxRelated = 20_000

func (c *related) get(id matrix.EventID) (list []storage.Relation, ok bool, epoch int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, ok = c.young[id]
	if !ok {
		if list, ok = c.old[id]; ok {
			c.put(id, list)
		}
	}
	return list, ok, c.epoch
}

// put adds an entry. mu is held.
func (c *related) put(id matrix.EventID, list []storage.Relation) {
	if c.young == nil || len(c.young) >= maxRelated/2 {
		c.old, c.young = c.young, map[matrix.EventID][]storage.Relation{}
	}
	c.young[id] = list
}

func (c *related) fill(epoch int64, ids []matrix.EventID, found map[matrix.EventID][]storage.Relation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch {
		return
	}
	for _, id := range ids {
		c.put(id, found[id])
	}
}

// clear forgets everything, because it may have changed elsewhere.
func (c *related) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.young, c.old = nil, nil
}

// commit takes in what was written. It runs on the writer's goroutine.
func (c *related) commit(a *storage.RoomAppend, live []*storage.Event) {
	if len(a.Relations) == 0 && len(a.Unrelated) == 0 && len(live) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range live {
		if e.TxnID != "" { // just made here: nothing can relate to it yet
			c.put(e.ID(), nil)
		}
	}
	for _, list := range [][]storage.Relation{a.Relations, a.Unrelated} {
		for _, r := range list {
			c.epoch++
			delete(c.young, r.Parent)
			delete(c.old, r.Parent)
		}
	}
}

// relationsOf finds what relates to events of one room, by the event.
func (s *Service) relationsOf(ctx context.Context, room int64, events []*storage.Event) (map[matrix.EventID][]storage.Relation, error) {
	all := map[matrix.EventID][]storage.Relation{}
	var missing []matrix.EventID
	var epoch int64
	for _, e := range events {
		list, ok, at := s.related.get(e.ID())
		if ok && list != nil {
			all[e.ID()] = list
		} else if !ok {
			if missing == nil {
				epoch = at
			}
			missing = append(missing, e.ID())
		}
	}
	if len(missing) == 0 {
		return all, nil
	}
	found, err := s.o.DB.Relations(ctx, room, missing)
	if err != nil {
		return nil, err
	}
	byParent := map[matrix.EventID][]storage.Relation{}
	for _, r := range found {
		byParent[r.Parent] = append(byParent[r.Parent], r)
	}
	for id, list := range byParent {
		all[id] = list
	}
	s.related.fill(epoch, missing, byParent)
	return all, nil
}

// aggregations is the object for m.relations of an event, nil if there is nothing to tell.
// Spec v1.19 client-server-api/#aggregations-of-child-events
func (s *Service) aggregations(ctx context.Context, e *storage.Event, relations []storage.Relation, r Reader) (json.RawMessage, error) {
	if len(relations) == 0 {
		return nil, nil
	}
	relations, v, err := s.countable(ctx, e, relations, r)
	if err != nil || len(relations) == 0 {
		return nil, err
	}
	bundle := map[string]any{}
	replacement, err := s.replacement(ctx, e, relations, r, v)
	if err != nil {
		return nil, err
	}
	if replacement != nil {
		bundle[relReplace] = replacement
	}
	thread, err := s.thread(ctx, e, relations, r, v)
	if err != nil {
		return nil, err
	}
	if thread != nil {
		bundle[relThread] = thread
	}
	references, err := s.references(ctx, relations)
	if err != nil {
		return nil, err
	}
	if len(references) > 0 {
		bundle[relReference] = map[string]any{"chunk": references}
	}
	if len(bundle) == 0 {
		return nil, nil
	}
	return json.Marshal(bundle)
}

// countable are the relations to an event that count for a reader: none of ignored users, and where not all members may see everything, of what the
// reader may see. In other rooms that is left to who shows an event.
func (s *Service) countable(ctx context.Context, e *storage.Event, relations []storage.Relation, r Reader) ([]storage.Relation, *viewer, error) {
	ignored, err := s.ignored(ctx, r.User)
	if err != nil {
		return nil, nil, err
	}
	if len(ignored) > 0 {
		relations = slices.DeleteFunc(slices.Clone(relations), func(rel storage.Relation) bool { return ignored[rel.Sender] })
	}
	room, err := s.Room(ctx, e.RoomID())
	if err != nil {
		return nil, nil, err
	}
	v, err := s.viewer(ctx, r.User, e.RoomNum, e.RoomID())
	if err != nil {
		return nil, nil, err
	}
	if now := room.Snapshot().HistoryVisibility; v.joinedNow && (now == visibilityShared || now == visibilityWorldReadable) {
		return relations, v, nil
	}
	var seen []storage.Relation
	for _, rel := range relations {
		child, err := s.o.DB.EventsHere(ctx, []int64{rel.Num})
		if err != nil {
			return nil, nil, err
		}
		if len(child) == 0 {
			continue
		}
		if ok, err := v.sees(ctx, child[0]); err != nil {
			return nil, nil, err
		} else if ok {
			seen = append(seen, rel)
		}
	}
	return seen, v, nil
}

// ignored is whom a user ignores.
func (s *Service) ignored(ctx context.Context, user matrix.UserID) (map[matrix.UserID]bool, error) {
	if s.o.Ignored == nil || user.Server() != s.o.ServerName {
		return nil, nil
	}
	return s.o.Ignored(ctx, user)
}

// replacement is the newest edit that is valid and seen. Spec v1.19 client-server-api/#event-replacements
func (s *Service) replacement(ctx context.Context, e *storage.Event, relations []storage.Relation, r Reader, v *viewer) (json.RawMessage, error) {
	edits, err := s.edits(ctx, e, relations)
	if err != nil {
		return nil, err
	}
	for _, edit := range edits {
		if ok, err := v.sees(ctx, edit); err != nil {
			return nil, err
		} else if ok {
			return s.plainClient(ctx, edit, r)
		}
	}
	return nil, nil
}

// edits are those of an event that are valid, the newest first.
func (s *Service) edits(ctx context.Context, e *storage.Event, relations []storage.Relation) ([]*storage.Event, error) {
	if e.IsState() || e.RedactedBy != "" {
		return nil, nil
	}
	if own, ok := relationOf(e.Event); ok && own.RelType == relReplace {
		return nil, nil
	}
	var nums []int64
	for _, rel := range relations {
		if rel.RelType == relReplace && rel.Sender == e.Sender() && rel.Type == e.Type() {
			nums = append(nums, rel.Num)
		}
	}
	if len(nums) == 0 {
		return nil, nil
	}
	edits, err := s.readable(ctx, nums)
	if err != nil {
		return nil, err
	}
	edits = slices.DeleteFunc(edits, func(c *storage.Event) bool {
		return c.Hidden() || c.RedactedBy != "" || c.IsState() || !validEdit(c.Event)
	})
	slices.SortFunc(edits, func(a, b *storage.Event) int {
		return cmp.Or(cmp.Compare(b.OriginServerTS(), a.OriginServerTS()), cmp.Compare(b.ID(), a.ID()))
	})
	return edits, nil
}

func validEdit(e *matrix.Event) bool {
	if e.Type() == matrix.TypeEncrypted {
		return true
	}
	var content map[string]json.RawMessage
	return json.Unmarshal(e.Content(), &content) == nil && len(content["m.new_content"]) > 0 && content["m.new_content"][0] == '{'
}

// plainClient is the event without aggregations.
func (s *Service) plainClient(ctx context.Context, e *storage.Event, r Reader) (json.RawMessage, error) {
	return s.appendClient(ctx, nil, e, Reader{User: r.User, Device: r.Device}, nil, &pastMembership{})
}

// maxLatest is how many of the newest events of a thread are looked at for one that may be seen.
const maxLatest = 20

// thread sums up the thread of which e is the root. Spec v1.19 client-server-api/#server-side-aggregation-of-mthread-relationships
func (s *Service) thread(ctx context.Context, e *storage.Event, relations []storage.Relation, r Reader, v *viewer) (any, error) {
	participated := e.Sender() == r.User
	var thread []storage.Relation
	for _, rel := range relations {
		if rel.RelType == relThread {
			thread = append(thread, rel)
			participated = participated || rel.Sender == r.User
		}
	}
	slices.SortFunc(thread, func(a, b storage.Relation) int { return placeOf(b).compare(placeOf(a)) })
	for _, rel := range thread[:min(len(thread), maxLatest)] {
		last, err := s.readable(ctx, []int64{rel.Num})
		if err != nil {
			return nil, err
		}
		if len(last) == 0 {
			continue
		}
		latest := last[0]
		if ok, err := v.sees(ctx, latest); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		below, err := s.relationsOf(ctx, e.RoomNum, []*storage.Event{latest})
		if err != nil {
			return nil, err
		}
		edits := slices.DeleteFunc(slices.Clone(below[latest.ID()]), func(rel storage.Relation) bool { return rel.RelType != relReplace })
		written, err := s.appendClient(ctx, nil, latest, Reader{User: r.User, Device: r.Device}, edits, &pastMembership{})
		if err != nil {
			return nil, err
		}
		return map[string]any{"latest_event": json.RawMessage(written), "count": len(thread), "current_user_participated": participated}, nil
	}
	return nil, nil
}

// checkThread refuses to begin a thread at an event that relates to another. Spec v1.19 client-server-api/#validation-of-mthread-relationships
func (u *update) checkThread(r *SendRequest) error {
	if r.StateKey != nil || !mayRelate(r.Content) {
		return nil
	}
	var content struct {
		RelatesTo relation `json:"m.relates_to"`
	}
	if json.Unmarshal(r.Content, &content) != nil || content.RelatesTo.RelType != relThread {
		return nil
	}
	root, err := u.known(content.RelatesTo.EventID)
	if err != nil || root == nil {
		return nil // it may be an event that we do not have
	}
	if _, related := relationOf(root.Event); related {
		return matrix.NewError(http.StatusBadRequest, "M_UNKNOWN", "a thread cannot begin at an event that relates to another")
	}
	return nil
}

func (s *Service) references(ctx context.Context, relations []storage.Relation) ([]map[string]matrix.EventID, error) {
	var nums []int64
	for _, rel := range relations {
		if rel.RelType == relReference {
			nums = append(nums, rel.Num)
		}
	}
	events, err := s.readable(ctx, nums)
	if err != nil {
		return nil, err
	}
	var chunk []map[string]matrix.EventID
	for _, e := range events {
		if !e.Hidden() && e.RedactedBy == "" {
			chunk = append(chunk, map[string]matrix.EventID{"event_id": e.ID()})
		}
	}
	return chunk, nil
}

// readable loads events of one room that have not been purged and have not expired.
func (s *Service) readable(ctx context.Context, nums []int64) ([]*storage.Event, error) {
	events, err := s.o.DB.EventsHere(ctx, nums)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	r, err := s.Room(ctx, events[0].RoomID())
	if err != nil {
		return nil, err
	}
	past, err := s.Past(ctx, r)
	return slices.DeleteFunc(slices.Clone(events), func(e *storage.Event) bool { return past.Hides(e.Event, e.Num, e.Pos) }), err
}

// checkAnnotation refuses a reaction that its sender has made already.
// Spec v1.19 client-server-api/#avoiding-duplicate-annotations
func (u *update) checkAnnotation(r *SendRequest) error {
	if r.StateKey != nil || !mayRelate(r.Content) {
		return nil
	}
	var content struct {
		RelatesTo relation `json:"m.relates_to"`
	}
	if json.Unmarshal(r.Content, &content) != nil || content.RelatesTo.RelType != relAnnotation {
		return nil
	}
	existing, err := u.s.o.DB.Relations(u.ctx, u.room.Num, []matrix.EventID{content.RelatesTo.EventID})
	if err != nil {
		return err
	}
	existing = append(existing, u.add.Relations...)
	for _, rel := range existing {
		if rel.Parent != content.RelatesTo.EventID || rel.RelType != relAnnotation || rel.Sender != r.Sender || rel.Type != r.Type {
			continue
		}
		e, err := u.s.event(u.ctx, rel.Num, u.fresh)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if old, _ := relationOf(e.Event); old.Key == content.RelatesTo.Key {
			return matrix.DuplicateAnnotation("you have reacted like that already")
		}
	}
	return nil
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

const (
	maxRecursion     = 3 // recommended by the spec
	maxRelationsPage = 100
	maxRelationsSeen = 10_000 // events looked at for one request
)

// Relations lists the events that relate to one. M_NOT_FOUND if the reader may not see it.
// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidrelationseventid
func (s *Service) Relations(ctx context.Context, room matrix.RoomID, r Reader, q RelationsRequest) (RelationsPage, error) {
	parent, err := s.VisibleEvent(ctx, room, r.User, q.Event)
	if err != nil {
		return RelationsPage{}, err
	}
	found, err := s.allRelations(ctx, parent, q)
	if err != nil {
		return RelationsPage{}, err
	}
	slices.SortFunc(found, func(a, b storage.Relation) int { return placeOf(a).compare(placeOf(b)) })
	if !q.Forward {
		slices.Reverse(found)
	}
	snap, err := s.place(ctx, room, q.From, !q.Forward)
	if err != nil {
		return RelationsPage{}, err
	}
	end, err := s.place(ctx, room, q.To, q.Forward)
	if err != nil {
		return RelationsPage{}, err
	}
	limit := clampLimit(q.Limit, 50, maxRelationsPage)
	page := RelationsPage{Chunk: []json.RawMessage{}}
	if q.Recurse {
		page.RecursionDepth = maxRecursion
	}
	var nums []int64
	for _, rel := range found {
		at := placeOf(rel)
		if q.Forward && (at.compare(snap) < 0 || q.To != "" && at.compare(end) >= 0) ||
			!q.Forward && (at.compare(snap) >= 0 || q.To != "" && at.compare(end) < 0) {
			continue
		}
		if len(nums) == limit {
			page.NextBatch = lastToken(nums, found, q.Forward)
			break
		}
		nums = append(nums, rel.Num)
	}
	page.PrevBatch = q.From
	events, err := s.readable(ctx, nums)
	if err != nil {
		return RelationsPage{}, err
	}
	if events, err = s.VisibleTo(ctx, r.User, events); err != nil {
		return RelationsPage{}, err
	}
	page.Chunk, err = s.Clients(ctx, events, r)
	return page, err
}

func placeOf(r storage.Relation) place { return place{r.Depth, r.Num} }

// lastToken goes on after the last of nums, which is in found.
func lastToken(nums []int64, found []storage.Relation, forward bool) string {
	last := nums[len(nums)-1]
	i := slices.IndexFunc(found, func(r storage.Relation) bool { return r.Num == last })
	at := placeOf(found[i])
	if forward {
		at.Num++
	}
	return at.token()
}

// allRelations finds the events that relate to one, and with Recurse those that relate to these. Types are chosen at each step: what relates to the
// event through one that is not chosen does not count. Spec v1.19 client-server-api/#relationships-api
func (s *Service) allRelations(ctx context.Context, parent *storage.Event, q RelationsRequest) ([]storage.Relation, error) {
	related := func(ids []matrix.EventID) ([]storage.Relation, error) {
		found, err := s.o.DB.Relations(ctx, parent.RoomNum, ids)
		return slices.DeleteFunc(found, func(rel storage.Relation) bool {
			return q.RelType != "" && rel.RelType != q.RelType || q.EventType != "" && rel.Type != q.EventType
		}), err
	}
	found, err := related([]matrix.EventID{parent.ID()})
	if err != nil || !q.Recurse {
		return found, err
	}
	seen := map[int64]bool{parent.Num: true}
	level := found
	for depth := 1; depth < maxRecursion && len(level) > 0 && len(found) < maxRelationsSeen; depth++ {
		var nums []int64
		for _, rel := range level {
			if !seen[rel.Num] {
				seen[rel.Num] = true
				nums = append(nums, rel.Num)
			}
		}
		events, err := s.o.DB.EventsHere(ctx, nums)
		if err != nil {
			return nil, err
		}
		ids := make([]matrix.EventID, len(events))
		for i, e := range events {
			ids[i] = e.ID()
		}
		if level, err = related(ids); err != nil {
			return nil, err
		}
		for _, rel := range level {
			if !seen[rel.Num] {
				found = append(found, rel)
			}
		}
	}
	return found, nil
}

// Threads is GET /rooms/{room}/threads: thread roots, the thread with the newest reply first. participated keeps those that
// the user has taken part in. limit 0 means 20. Errors: M_FORBIDDEN, M_INVALID_PARAM (from).
func (s *Service) Threads(ctx context.Context, room matrix.RoomID, r Reader, participated bool, from string, limit int) (RelationsPage, error) {
	a, err := s.access(ctx, room, r.User)
	if err != nil {
		return RelationsPage{}, err
	}
	limit = clampLimit(limit, 20, maxRelationsPage)
	before := int64(1<<63 - 1)
	if from != "" {
		if _, err := fmt.Sscanf(from, "h%d", &before); err != nil {
			return RelationsPage{}, matrix.InvalidParam("from is not a token that this server gave out")
		}
	}
	page := RelationsPage{Chunk: []json.RawMessage{}}
	for len(page.Chunk) < limit {
		threads, err := s.o.DB.Threads(ctx, a.room.Num, before, limit)
		if err != nil {
			return RelationsPage{}, err
		}
		for _, t := range threads {
			before = t.Newest
			root, err := s.threadRoot(ctx, a, t.Root, r, participated)
			if err != nil {
				return RelationsPage{}, err
			}
			if root != nil {
				page.Chunk = append(page.Chunk, root)
			}
			if len(page.Chunk) == limit {
				break
			}
		}
		if len(threads) < limit {
			if len(page.Chunk) < limit {
				return page, nil
			}
			break
		}
	}
	page.NextBatch = fmt.Sprintf("h%d", before)
	return page, nil
}

// threadRoot is the root of a thread if it is to be listed, else nil.
func (s *Service) threadRoot(ctx context.Context, a *access, id matrix.EventID, r Reader, participated bool) (json.RawMessage, error) {
	root, err := s.o.DB.EventByID(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ok, err := a.viewer.sees(ctx, root); err != nil || !ok || root.RoomNum != a.room.Num {
		return nil, err
	}
	if participated && root.Sender() != r.User {
		relations, err := s.relationsOf(ctx, root.RoomNum, []*storage.Event{root})
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(relations[id], func(rel storage.Relation) bool { return rel.RelType == relThread && rel.Sender == r.User }) {
			return nil, nil
		}
	}
	ignored, err := s.ignored(ctx, r.User)
	if err != nil {
		return nil, err
	}
	if ignored[root.Sender()] { // "the event is returned redacted to the caller"
		redacted := *root
		redacted.Event = root.Redact()
		root = &redacted
	}
	return s.AppendClient(ctx, nil, root, r)
}

func clampLimit(limit, otherwise, most int) int {
	if limit <= 0 {
		return otherwise
	}
	return min(limit, most)
}
