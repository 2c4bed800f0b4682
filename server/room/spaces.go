package room

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	spaceType = "m.space"
	// maxHierarchyPage is the longest page of a hierarchy.
	maxHierarchyPage = 50
	// maxHierarchyRooms is how far into a space one can page.
	maxHierarchyRooms = 2000
	// maxHierarchyDepth is how deep spaces may be nested.
	maxHierarchyDepth = 20
	// maxSpaceChildren is how many children of one space are looked at.
	maxSpaceChildren = 1000
	// maxHierarchyAsked is how many rooms one request may ask other servers for.
	maxHierarchyAsked = 50
	// hierarchyAge is how long another server's answer is remembered.
	hierarchyAge = 5 * time.Minute
	// viaServers is how many servers are asked for one room.
	viaServers = 3
)

// HierarchyRequest is GET /rooms/{room}/hierarchy.
type HierarchyRequest struct {
	SuggestedOnly bool
	Limit         int  // rooms per page: 0 means 50, which is also the most
	MaxDepth      *int // nil: no limit but the server's own
	From          string
}

// HierarchyPage is a page of a space's rooms, depth first.
type HierarchyPage struct {
	Rooms     []HierarchyRoom `json:"rooms"`
	NextBatch string          `json:"next_batch,omitempty"`
}

// HierarchyRoom is a room of a space; unlike a plain summary it always has children_state.
type HierarchyRoom struct {
	RoomSummary
	ChildrenState []json.RawMessage `json:"children_state"`
}

func hierarchyRoom(sum RoomSummary) HierarchyRoom {
	return HierarchyRoom{RoomSummary: sum, ChildrenState: append([]json.RawMessage{}, sum.ChildrenState...)}
}

// Hierarchy walks a space, asking other servers for what is not here. Errors: M_FORBIDDEN (the user may not know of the room),
// M_INVALID_PARAM (from, or other parameters than on the page before).
// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidhierarchy
func (s *Service) Hierarchy(ctx context.Context, user matrix.UserID, room matrix.RoomID, q HierarchyRequest) (HierarchyPage, error) {
	if q.Limit < 0 || q.MaxDepth != nil && *q.MaxDepth < 0 {
		return HierarchyPage{}, matrix.InvalidParam("limit and max_depth must not be negative")
	}
	depth := maxHierarchyDepth
	if q.MaxDepth != nil {
		depth = min(*q.MaxDepth, depth)
	}
	skip, err := parseHierarchyToken(q.From, q.SuggestedOnly, depth)
	if err != nil {
		return HierarchyPage{}, err
	}
	limit := min(q.Limit, maxHierarchyPage)
	if limit == 0 {
		limit = maxHierarchyPage
	}
	w := &hierarchyWalk{s: s, user: user, suggestedOnly: q.SuggestedOnly, maxDepth: depth, seen: map[matrix.RoomID]bool{}, given: map[matrix.RoomID]RoomSummary{}}
	w.todo = []spaceLink{{room: room}}
	page := HierarchyPage{Rooms: []HierarchyRoom{}}
	for n := 0; len(w.todo) > 0 && n < maxHierarchyRooms; {
		if len(page.Rooms) == limit {
			page.NextBatch = hierarchyToken(skip+limit, q.SuggestedOnly, depth)
			break
		}
		sum, err := w.next(ctx)
		if err != nil {
			return HierarchyPage{}, err
		}
		if sum == nil {
			if n == 0 {
				return HierarchyPage{}, matrix.Forbidden("there is no such space, or you may not see it")
			}
			continue
		}
		if n++; n > skip {
			page.Rooms = append(page.Rooms, hierarchyRoom(*sum))
		}
	}
	return page, nil
}

func hierarchyToken(skip int, suggestedOnly bool, depth int) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %t %d", skip, suggestedOnly, depth))
}

func parseHierarchyToken(token string, suggestedOnly bool, depth int) (skip int, err error) {
	if token == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	var suggested bool
	var max int
	if err == nil {
		_, err = fmt.Sscanf(string(raw), "%d %t %d", &skip, &suggested, &max)
	}
	if err != nil || skip < 0 || skip > maxHierarchyRooms {
		return 0, matrix.InvalidParam("from is not a token of this list")
	}
	if suggested != suggestedOnly || max != depth {
		return 0, matrix.InvalidParam("suggested_only and max_depth must be the same on all pages")
	}
	return skip, nil
}

// spaceLink leads to a room of a space.
type spaceLink struct {
	room  matrix.RoomID
	via   []matrix.ServerName
	depth int
}

// hierarchyWalk goes through a space depth first, each room once.
type hierarchyWalk struct {
	s             *Service
	user          matrix.UserID
	suggestedOnly bool
	maxDepth      int
	todo          []spaceLink // the next one last
	seen          map[matrix.RoomID]bool
	given         map[matrix.RoomID]RoomSummary // told by another server along with its parent
	closed        map[matrix.RoomID]bool        // said by another server to be closed to us
	asked         int
}

// next takes the next room; nil if the user may not see it, or nobody knows it, or it was there before.
func (w *hierarchyWalk) next(ctx context.Context) (*RoomSummary, error) {
	link := w.todo[len(w.todo)-1]
	w.todo = w.todo[:len(w.todo)-1]
	if w.seen[link.room] {
		return nil, nil
	}
	w.seen[link.room] = true
	sum, err := w.look(ctx, link)
	if sum == nil || err != nil {
		return nil, err
	}
	if sum.RoomType == spaceType && link.depth < w.maxDepth {
		for _, child := range slices.Backward(childLinks(sum.ChildrenState)) {
			child.depth = link.depth + 1
			w.todo = append(w.todo, child)
		}
	}
	return sum, nil
}

// look finds the summary of a room that the user may see.
func (w *hierarchyWalk) look(ctx context.Context, link spaceLink) (*RoomSummary, error) {
	sum, err := w.s.summaryWithChildren(ctx, link.room, w.suggestedOnly)
	if err == nil {
		ok, err := w.s.mayKnow(ctx, w.user, &sum)
		if !ok || err != nil {
			return nil, err
		}
		return &sum, nil
	} else if matrix.ErrorCode(err) != "M_NOT_FOUND" {
		return nil, err
	}
	sum, ok := w.given[link.room]
	if !ok {
		if w.closed[link.room] || w.asked >= maxHierarchyAsked {
			return nil, nil
		}
		w.asked++
		answer, err := w.s.askHierarchy(ctx, link.room, link.via, w.suggestedOnly)
		if err != nil {
			return nil, ctx.Err() // a server that does not answer leaves a hole, not an error
		}
		sum = answer.Room.RoomSummary
		sum.ChildrenState = answer.Room.ChildrenState
		for _, child := range answer.Children {
			if child.RoomType != spaceType { // whose children we have not been told
				w.given[child.RoomID] = child
			}
		}
		for _, id := range answer.InaccessibleChildren {
			if w.closed == nil {
				w.closed = map[matrix.RoomID]bool{}
			}
			w.closed[id] = true
		}
	}
	if ok, err := w.s.mayKnow(ctx, w.user, &sum); !ok || err != nil {
		return nil, err
	}
	return &sum, nil
}

// childLinks reads stripped m.space.child events, in the order in which clients show the rooms.
// Spec v1.19 client-server-api/#ordering-of-children-within-a-space
func childLinks(events []json.RawMessage) []spaceLink {
	type child struct {
		spaceLink
		order string
		ts    int64
	}
	var children []child
	for _, raw := range events {
		var e struct {
			StateKey       string          `json:"state_key"`
			Content        json.RawMessage `json:"content"`
			OriginServerTS int64           `json:"origin_server_ts"`
		}
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		room, err := matrix.ParseRoomID(e.StateKey)
		content := parseSpaceChild(e.Content)
		if err != nil || len(content.via) == 0 {
			continue
		}
		children = append(children, child{spaceLink{room: room, via: content.via}, content.order, e.OriginServerTS})
	}
	slices.SortFunc(children, func(a, b child) int {
		return cmp.Or(compareOrder(a.order, b.order), cmp.Compare(a.ts, b.ts), cmp.Compare(a.room, b.room))
	})
	links := make([]spaceLink, 0, len(children))
	for _, c := range children[:min(len(children), maxSpaceChildren)] {
		links = append(links, c.spaceLink)
	}
	return links
}

// compareOrder compares two orders of children; those without one come last.
func compareOrder(a, b string) int {
	if (a == "") != (b == "") {
		return cmp.Compare(b, a)
	}
	return cmp.Compare(a, b)
}

type spaceChild struct {
	via       []matrix.ServerName
	order     string // "" if there is none or it is not valid
	suggested bool
}

func parseSpaceChild(content json.RawMessage) (c spaceChild) {
	var raw struct {
		Via       json.RawMessage `json:"via"`
		Order     json.RawMessage `json:"order"`
		Suggested json.RawMessage `json:"suggested"`
	}
	_ = json.Unmarshal(content, &raw) // what is of the wrong type is not there
	var via []matrix.ServerName
	_ = json.Unmarshal(raw.Via, &via)
	c.via = validServers(via)
	if json.Unmarshal(raw.Order, &c.order) != nil || len(c.order) > 50 || slices.ContainsFunc([]byte(c.order), func(b byte) bool { return b < 0x20 || b > 0x7e }) {
		c.order = ""
	}
	c.suggested = string(raw.Suggested) == "true"
	return c
}

// mayKnow reports whether a user may know of a room: is in it or invited, or could peek into it or join it. Nobody ("") may know
// of what is open to all.
func (s *Service) mayKnow(ctx context.Context, user matrix.UserID, sum *RoomSummary) (bool, error) {
	if sum.isOpen() {
		return true, nil
	}
	if user == "" {
		return false, nil
	}
	m, err := s.Membership(ctx, sum.RoomID, user)
	if err != nil && matrix.ErrorCode(err) != "M_NOT_FOUND" {
		return false, err
	}
	if m.Membership == matrix.Join || m.Membership == matrix.Invite {
		return true, nil
	}
	for _, allowed := range sum.AllowedRoomIDs {
		m, err := s.Membership(ctx, allowed, user)
		if err != nil && matrix.ErrorCode(err) != "M_NOT_FOUND" {
			return false, err
		}
		if m.Membership == matrix.Join {
			return true, nil
		}
	}
	return false, nil
}

// isOpen reports whether everyone may know of the room.
func (sum *RoomSummary) isOpen() bool {
	switch sum.JoinRule {
	case matrix.JoinRulePublic, matrix.JoinRuleKnock, matrix.JoinRuleKnockRestricted:
		return true
	}
	return sum.WorldReadable
}

// mayServerKnow is mayKnow for a server: one of its users is in or invited, or it could peek or join.
func (s *Service) mayServerKnow(ctx context.Context, server matrix.ServerName, sum *RoomSummary) (bool, error) {
	if sum.isOpen() {
		return true, nil
	}
	r, err := s.Room(ctx, sum.RoomID)
	if err != nil {
		return false, err
	}
	if r.Snapshot().Servers[server] > 0 {
		return true, nil
	}
	invited, err := s.o.DB.RoomMembers(ctx, r.Num, server, matrix.Invite)
	if err != nil || len(invited) > 0 {
		return err == nil, err
	}
	for _, allowed := range sum.AllowedRoomIDs {
		if r, err := s.Room(ctx, allowed); err == nil && r.Snapshot().Servers[server] > 0 {
			return true, nil
		}
	}
	return false, nil
}

// askHierarchy asks servers about a room that we are not in, one after the other, and remembers the first good answer.
func (s *Service) askHierarchy(ctx context.Context, room matrix.RoomID, via []matrix.ServerName, suggestedOnly bool) (HierarchyResponse, error) {
	key := hierarchyKey{room, suggestedOnly}
	if answer, ok := s.foreign.hierarchies.get(key, s.o.Now()); ok {
		return answer, nil
	}
	err := error(matrix.NotFound("no server knows the room %s", room))
	if s.o.Remote == nil {
		return HierarchyResponse{}, err
	}
	for _, server := range s.others(via, viaServers) {
		answer, e := s.o.Remote.Hierarchy(ctx, server, room, suggestedOnly)
		if e != nil || answer.Room.RoomID != room {
			continue
		}
		answer.Children = answer.Children[:min(len(answer.Children), maxSpaceChildren)]
		s.foreign.hierarchies.put(key, answer, s.o.Now().Add(hierarchyAge))
		return answer, nil
	}
	return HierarchyResponse{}, err
}

// others are the first limit servers of a list that are not this one.
func (s *Service) others(servers []matrix.ServerName, limit int) []matrix.ServerName {
	var all []matrix.ServerName
	for _, server := range servers {
		if server != s.o.ServerName && !slices.Contains(all, server) {
			all = append(all, server)
		}
		if len(all) == limit {
			break
		}
	}
	return all
}

// ServeHierarchy answers GET /federation/v1/hierarchy. M_NOT_FOUND if origin may not know of the room.
// Spec v1.19 server-server-api/#get_matrixfederationv1hierarchyroomid
func (s *Service) ServeHierarchy(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (HierarchyResponse, error) {
	sum, err := s.summaryWithChildren(ctx, room, suggestedOnly)
	if err != nil {
		return HierarchyResponse{}, err
	}
	if ok, err := s.mayServerKnow(ctx, origin, &sum); err != nil {
		return HierarchyResponse{}, err
	} else if !ok {
		return HierarchyResponse{}, matrix.NotFound("there is no such room")
	}
	answer := HierarchyResponse{Room: hierarchyRoom(sum), Children: []RoomSummary{}, InaccessibleChildren: []matrix.RoomID{}}
	for _, link := range childLinks(sum.ChildrenState) {
		child, err := s.summaryWithChildren(ctx, link.room, suggestedOnly)
		if matrix.ErrorCode(err) == "M_NOT_FOUND" {
			continue // what we do not know is left out altogether
		} else if err != nil {
			return HierarchyResponse{}, err
		}
		ok, err := s.mayServerKnow(ctx, origin, &child)
		if err != nil {
			return HierarchyResponse{}, err
		}
		if ok {
			answer.Children = append(answer.Children, child)
		} else {
			answer.InaccessibleChildren = append(answer.InaccessibleChildren, child.RoomID)
		}
	}
	return answer, nil
}

// Summary is GET /room_summary: what the room shows to those outside. user is empty without an access token. via are servers to ask
// about a room that we are not in. M_NOT_FOUND if there is no such room or the user may not know of it.
// Spec v1.19 client-server-api/#get_matrixclientv1room_summaryroomidoralias
func (s *Service) Summary(ctx context.Context, user matrix.UserID, room matrix.RoomID, via []matrix.ServerName) (RoomSummary, error) {
	sum, err := s.summary(ctx, room)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" && user != "" {
		var answer HierarchyResponse
		answer, err = s.askHierarchy(ctx, room, append(slices.Clone(via), room.Server()), false)
		sum = answer.Room.RoomSummary
	}
	if err != nil {
		return RoomSummary{}, err
	}
	if ok, err := s.mayKnow(ctx, user, &sum); err != nil {
		return RoomSummary{}, err
	} else if !ok {
		return RoomSummary{}, matrix.NotFound("there is no such room, or you may not see it")
	}
	if user != "" {
		m, err := s.Membership(ctx, room, user)
		if err != nil && matrix.ErrorCode(err) != "M_NOT_FOUND" {
			return RoomSummary{}, err
		}
		if sum.Membership = m.Membership; sum.Membership == "" {
			sum.Membership = matrix.Leave
		}
	}
	return sum, nil
}

// summary describes a room that this server is in, without its children; M_NOT_FOUND for others.
func (s *Service) summary(ctx context.Context, id matrix.RoomID) (RoomSummary, error) {
	r, err := s.Room(ctx, id)
	if err != nil {
		return RoomSummary{}, err
	}
	snap := r.Snapshot()
	if snap.Create == nil || !snap.Joined() {
		return RoomSummary{}, matrix.NotFound("this server is not in the room")
	}
	root := storage.StateRoot{Others: snap.Root.Others}
	entry, ok := s.foreign.summaries.get(id, s.o.Now())
	if !ok || entry.root != root {
		entry.root = root
		if entry.sum, err = s.describe(ctx, r, snap); err != nil {
			return RoomSummary{}, err
		}
		s.foreign.summaries.put(id, entry, time.Time{})
	}
	entry.sum.NumJoinedMembers = snap.JoinedCount
	return entry.sum, nil
}

// describe reads the state that a summary shows.
func (s *Service) describe(ctx context.Context, r *Room, snap *Snapshot) (RoomSummary, error) {
	sum := RoomSummary{
		RoomID: r.ID, RoomVersion: r.Version.ID, RoomType: snap.RoomType, JoinRule: snap.JoinRule, GuestCanJoin: snap.GuestAccess,
		WorldReadable: snap.HistoryVisibility == "world_readable",
	}
	for _, f := range []struct {
		typ, key string
		to       *string
	}{
		{matrix.TypeName, "name", &sum.Name}, {matrix.TypeTopic, "topic", &sum.Topic}, {matrix.TypeAvatar, "url", &sum.AvatarURL},
		{matrix.TypeCanonicalAlias, "alias", &sum.CanonicalAlias}, {matrix.TypeEncryption, "algorithm", &sum.Encryption},
	} {
		e, err := s.StateAt(ctx, r.ID, snap.Root, f.typ, "")
		if err != nil {
			return sum, err
		}
		if e != nil {
			var content map[string]json.RawMessage
			_ = json.Unmarshal(e.Content(), &content) // content is always an object
			_ = json.Unmarshal(content[f.key], f.to)  // what is no string is not there
		}
	}
	if sum.JoinRule == matrix.JoinRuleRestricted || sum.JoinRule == matrix.JoinRuleKnockRestricted {
		e, err := s.StateAt(ctx, r.ID, snap.Root, matrix.TypeJoinRules, "")
		if err != nil {
			return sum, err
		}
		if e != nil {
			sum.AllowedRoomIDs = allowedRooms(e.Content())
		}
	}
	return sum, nil
}

// allowedRooms lists the rooms that a join rule names as conditions; what is not valid is left out.
// Spec v1.19 client-server-api/#restricted-rooms
func allowedRooms(joinRules json.RawMessage) []matrix.RoomID {
	var content struct {
		Allow json.RawMessage `json:"allow"`
	}
	_ = json.Unmarshal(joinRules, &content)
	var conditions []json.RawMessage
	_ = json.Unmarshal(content.Allow, &conditions)
	var rooms []matrix.RoomID
	for _, raw := range conditions {
		var c struct {
			Type   string `json:"type"`
			RoomID string `json:"room_id"`
		}
		if json.Unmarshal(raw, &c) != nil || c.Type != "m.room_membership" {
			continue
		}
		if room, err := matrix.ParseRoomID(c.RoomID); err == nil && !slices.Contains(rooms, room) {
			rooms = append(rooms, room)
		}
	}
	return rooms
}

// summaryWithChildren is summary with the m.space.child events of a space.
func (s *Service) summaryWithChildren(ctx context.Context, id matrix.RoomID, suggestedOnly bool) (RoomSummary, error) {
	sum, err := s.summary(ctx, id)
	if err != nil || sum.RoomType != spaceType {
		return sum, err
	}
	r, err := s.Room(ctx, id)
	if err != nil {
		return sum, err
	}
	events, err := s.StateEvents(ctx, id, r.Snapshot().Root, storage.OtherState)
	if err != nil {
		return sum, err
	}
	events = slices.DeleteFunc(events, func(e *storage.Event) bool {
		child := parseSpaceChild(e.Content())
		return e.Type() != matrix.TypeSpaceChild || len(child.via) == 0 || suggestedOnly && !child.suggested
	})
	// In the order in which clients show them: not all of them sort.
	slices.SortFunc(events, func(a, b *storage.Event) int {
		return cmp.Or(compareOrder(parseSpaceChild(a.Content()).order, parseSpaceChild(b.Content()).order),
			cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.Tuple().StateKey, b.Tuple().StateKey))
	})
	sum.ChildrenState = []json.RawMessage{}
	for _, e := range events {
		stripped := e.Stripped()
		stripped = append(slices.Clip(stripped[:len(stripped)-1]), fmt.Sprintf(`,"origin_server_ts":%d}`, e.OriginServerTS())...)
		sum.ChildrenState = append(sum.ChildrenState, stripped)
	}
	return sum, nil
}
