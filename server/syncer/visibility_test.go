package syncer

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestEveryReadShowsWhatTheSpecAllows makes random rooms with forks, changes of the history visibility, and people who are invited, join, leave, are thrown
// out and come back, and compares every way of reading with a slow model that is written from the spec alone.
func TestEveryReadShowsWhatTheSpecAllows(t *testing.T) {
	w := newWorld(t, storagetest.New(t))
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, w)
		for range rapid.IntRange(5, 25).Draw(rt, "steps") {
			m.step()
		}
		for _, u := range []matrix.UserID{bob, carol} {
			m.check(u)
		}
		for _, u := range []matrix.UserID{alice, bob, carol} { // the next room is to be the only one
			_ = w.rooms.Leave(w.ctx, room.MemberRequest{Room: m.room, Sender: u})
		}
	})
}

// node is an event of the model's room.
type node struct {
	event *matrix.Event
	// before and after are the states around it: event IDs by type and state key.
	before, after map[string]matrix.EventID
	hidden        bool // rejected or soft-failed
}

// visibilityModel is a room as the spec has it.
type visibilityModel struct {
	*rapid.T
	w     *world
	room  matrix.RoomID
	nodes []*node
	byID  map[matrix.EventID]*node
	// current are the memberships after each event had come.
	current []map[matrix.UserID]string
	first   matrix.EventID // a message that others relate to
	seen    map[matrix.UserID]*client
	synced  map[matrix.UserID]map[matrix.EventID]bool
	section map[matrix.UserID]string // where the room was shown last
}

func newModel(t *rapid.T, w *world) *visibilityModel {
	m := &visibilityModel{T: t, w: w, byID: map[matrix.EventID]*node{}, seen: map[matrix.UserID]*client{}, synced: map[matrix.UserID]map[matrix.EventID]bool{}, section: map[matrix.UserID]string{}}
	m.room = w.room(alice, room.InitialState{Type: matrix.TypePowerLevels, Content: json.RawMessage(`{"users":{"@dave:there":90,"@alice:here":100}}`)})
	m.first = w.say(m.room, alice, "needle 0")
	for _, e := range m.stored() {
		m.add(e.Event)
	}
	for _, u := range []matrix.UserID{bob, carol} {
		m.seen[u], m.synced[u] = w.client(u), map[matrix.EventID]bool{}
		m.seen[u].Filter = `{"room":{"timeline":{"limit":50}}}`
	}
	m.send(dave, matrix.TypeMember, new(string(dave)), `{"membership":"join"}`, m.last(), m.last().after)
	return m
}

func new[T any](v T) *T { return &v }

func (m *visibilityModel) last() *node { return m.nodes[len(m.nodes)-1] }

// stored are the events of the room as they came.
func (m *visibilityModel) stored() []*storage.Event {
	r, err := m.w.rooms.Room(m.w.ctx, m.room)
	m.must(err)
	events, err := m.w.db.EventsFromStream(m.w.ctx, r.Num, 0, 1<<60, 1000)
	m.must(err)
	return events
}

func (m *visibilityModel) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// add takes in an event that the server has, with one or no event before it.
func (m *visibilityModel) add(e *matrix.Event) {
	before := map[string]matrix.EventID{}
	if len(e.PrevEvents()) > 0 {
		before = m.byID[e.PrevEvents()[0]].after
	}
	m.addAfter(e, before)
}

func (m *visibilityModel) addAfter(e *matrix.Event, before map[string]matrix.EventID) {
	stored, err := m.w.db.EventByID(m.w.ctx, e.ID())
	m.must(err)
	n := &node{event: e, before: before, after: before, hidden: stored.Hidden()}
	if key, ok := e.StateKey(); ok && stored.Flags&storage.Rejected == 0 {
		n.after = maps.Clone(before)
		n.after[e.Type()+"|"+key] = e.ID()
	}
	m.nodes = append(m.nodes, n)
	m.byID[e.ID()] = n
	now := map[matrix.UserID]string{}
	for _, u := range []matrix.UserID{alice, bob, carol} {
		member, err := m.w.rooms.Membership(m.w.ctx, m.room, u)
		m.must(err)
		now[u] = member.Membership
	}
	m.current = append(m.current, now)
}

// content reads a field of a state event.
func (m *visibilityModel) content(state map[string]matrix.EventID, typ, key, field, otherwise string) string {
	n := m.byID[state[typ+"|"+key]]
	if n == nil {
		return otherwise
	}
	var content map[string]any
	m.must(json.Unmarshal(n.event.Content(), &content))
	if s, ok := content[field].(string); ok {
		return s
	}
	return otherwise
}

// step adds an event, after all others or somewhere in the past.
func (m *visibilityModel) step() {
	r, err := m.w.rooms.Room(m.w.ctx, m.room)
	m.must(err)
	snap := r.Snapshot()
	var prev []*node
	var before map[string]matrix.EventID
	if rapid.IntRange(0, 3).Draw(m.T, "fork") > 0 {
		for _, t := range snap.Tip {
			prev = append(prev, m.byID[t.ID()])
		}
		before = prev[0].after
		if len(prev) > 1 { // how states are resolved is not the matter here
			before = map[string]matrix.EventID{}
			state, err := m.w.rooms.StateEvents(m.w.ctx, m.room, snap.Root, storage.AllState)
			m.must(err)
			for _, e := range state {
				key, _ := e.StateKey()
				before[e.Type()+"|"+key] = e.ID()
			}
		}
	} else {
		var past []*node
		for i, n := range m.nodes {
			if !n.hidden && i > 8 {
				past = append(past, n)
			}
		}
		if len(past) == 0 {
			return
		}
		prev = []*node{rapid.SampledFrom(past).Draw(m.T, "after")}
		before = prev[0].after
	}
	u := rapid.SampledFrom([]matrix.UserID{bob, carol}).Draw(m.T, "user")
	is := m.content(before, matrix.TypeMember, string(u), "membership", "leave")
	member := func(sender matrix.UserID, membership string) {
		m.sendAfter(sender, matrix.TypeMember, new(string(u)), `{"membership":"`+membership+`"}`, prev, before)
	}
	text := func(sender matrix.UserID) {
		related := ""
		if rapid.Bool().Draw(m.T, "related") {
			related = fmt.Sprintf(`,"m.relates_to":{"rel_type":"m.reference","event_id":%q}`, m.first)
		}
		m.sendAfter(sender, matrix.TypeMessage, nil, fmt.Sprintf(`{"msgtype":"m.text","body":"needle %d"%s}`, len(m.nodes), related), prev, before)
	}
	switch action := rapid.SampledFrom([]string{"say", "say", "say", "visibility", "visibility", "member", "member", "member", "throw", "speak", "sync"}).Draw(m.T, "action"); {
	case action == "say":
		text(dave)
	case action == "visibility":
		value := rapid.SampledFrom([]string{"world_readable", "shared", "invited", "joined", "nonsense"}).Draw(m.T, "visibility")
		m.sendAfter(dave, matrix.TypeHistoryVisibility, new(""), `{"history_visibility":"`+value+`"}`, prev, before)
	case action == "sync":
		m.sync(u)
	case action == "speak" && is == "join":
		text(u)
	case action == "throw" && is == "ban":
		member(dave, "leave")
	case action == "throw":
		member(dave, rapid.SampledFrom([]string{"leave", "ban"}).Draw(m.T, "how"))
	case is == "join":
		member(u, rapid.SampledFrom([]string{"leave", "leave", "join"}).Draw(m.T, "membership"))
	case is == "invite":
		member(u, rapid.SampledFrom([]string{"leave", "join"}).Draw(m.T, "membership"))
	case is == "leave" && rapid.Bool().Draw(m.T, "invited"):
		member(dave, "invite")
	case is == "leave":
		member(u, "join")
	}
}

func (m *visibilityModel) send(sender matrix.UserID, typ string, key *string, content string, prev *node, before map[string]matrix.EventID) {
	m.sendAfter(sender, typ, key, content, []*node{prev}, before)
}

// sendAfter has the event come from another server.
func (m *visibilityModel) sendAfter(sender matrix.UserID, typ string, key *string, content string, prev []*node, before map[string]matrix.EventID) {
	events := make([]*matrix.Event, len(prev))
	for i, p := range prev {
		events[i] = p.event
	}
	e, err := m.w.comes(m.room, sender, typ, key, content, before, events...)
	m.must(err)
	m.addAfter(e, before)
}

// comes has an event come from another server, in the place after prev, where the state is before: event IDs by type and state key.
func (w *world) comes(id matrix.RoomID, sender matrix.UserID, typ string, key *string, content string, before map[string]matrix.EventID, prev ...*matrix.Event) (*matrix.Event, error) {
	r, err := w.rooms.Room(w.ctx, id)
	if err != nil {
		return nil, err
	}
	b := matrix.Builder{RoomID: id, Sender: sender, Type: typ, StateKey: key, Content: json.RawMessage(content), Time: w.clock.Now()}
	w.clock.move(1e6)
	for _, p := range prev {
		b.PrevEvents = append(b.PrevEvents, p.ID())
		b.Depth = max(b.Depth, p.Depth()+1)
	}
	for _, k := range b.AuthKeys(r.Version) {
		if id, ok := before[k.Type+"|"+k.StateKey]; ok {
			b.AuthEvents = append(b.AuthEvents, id)
		}
	}
	e, err := b.Build(r.Version, sender.Server(), w.key)
	if err != nil {
		return nil, err
	}
	for _, err := range w.rooms.Receive(w.ctx, "there", []json.RawMessage{e.JSON()}) {
		if err != nil && !strings.Contains(err.Error(), "soft") && matrix.ErrorCode(err) != "M_FORBIDDEN" {
			return nil, fmt.Errorf("%s: %w", e.JSON(), err)
		}
	}
	return e, nil
}

// sees is the spec's list. Spec v1.19 client-server-api/#server-behaviour-6
func (m *visibilityModel) sees(u matrix.UserID, at int) bool {
	n := m.nodes[at]
	if n.hidden {
		return false
	}
	joinedLater := slices.ContainsFunc(m.current[at:], func(now map[matrix.UserID]string) bool { return now[u] == "join" })
	allows := func(visibility, membership map[string]matrix.EventID) bool {
		v := m.content(visibility, matrix.TypeHistoryVisibility, "", "history_visibility", "shared")
		is := m.content(membership, matrix.TypeMember, string(u), "membership", "leave")
		switch {
		case v == "world_readable":
			return true
		case is == "join":
			return true
		case v != "invited" && v != "joined" && joinedLater:
			return true
		}
		return v == "invited" && is == "invite"
	}
	visibilities, memberships := []map[string]matrix.EventID{n.before}, []map[string]matrix.EventID{n.before}
	if n.event.Is(matrix.TypeHistoryVisibility, "") {
		visibilities = append(visibilities, n.after)
	}
	if n.event.Is(matrix.TypeMember, string(u)) {
		memberships = append(memberships, n.after)
	}
	return slices.ContainsFunc(visibilities, func(v map[string]matrix.EventID) bool {
		return slices.ContainsFunc(memberships, func(mem map[string]matrix.EventID) bool { return allows(v, mem) })
	})
}

// visible lists the events that a user may see and that which picks.
func (m *visibilityModel) visible(u matrix.UserID, which func(i int, e *matrix.Event) bool) []matrix.EventID {
	ids := []matrix.EventID{}
	for i, n := range m.nodes {
		if m.sees(u, i) && which(i, n.event) {
			ids = append(ids, n.event.ID())
		}
	}
	slices.Sort(ids)
	return ids
}

func all(int, *matrix.Event) bool { return true }

func idsOf(t interface{ Fatal(...any) }, raw []json.RawMessage) []matrix.EventID {
	ids := []matrix.EventID{}
	for _, r := range raw {
		var e struct {
			ID matrix.EventID `json:"event_id"`
		}
		if err := json.Unmarshal(r, &e); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	slices.Sort(ids)
	return ids
}

func (m *visibilityModel) same(what string, u matrix.UserID, want, got []matrix.EventID) {
	m.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		var story strings.Builder
		for i, n := range m.nodes {
			key, _ := n.event.StateKey()
			fmt.Fprintf(&story, "%2d %.8s after %.30s %s %s %s %s, hidden %v; then %v\n", i, n.event.ID(), n.event.PrevEvents(), n.event.Type(), n.event.Sender(), key, n.event.Content(), n.hidden, m.current[i])
		}
		m.Fatalf("%s of %s (-want +got)\n%s\n%s", what, u, diff, story.String())
	}
}

// sync asks for what is new and wants nothing that may not be seen, and the room shown as one that the user is in if that is so.
func (m *visibilityModel) sync(u matrix.UserID) {
	a := m.seen[u].sync()
	for _, section := range []string{"join", "invite", "leave"} {
		if a.there("rooms", section, string(m.room)) {
			m.section[u] = section
		}
	}
	if now := m.current[len(m.current)-1][u]; (now == "join") != (m.section[u] == "join") {
		m.same("the room, as a client has it that follows: "+m.section[u]+" instead of "+now, u, nil, []matrix.EventID{""})
	}
	for _, section := range []*answered{a.joined(m.room), a.left(m.room)} {
		for _, e := range section.list("timeline", "events") {
			id := matrix.EventID(e.text("event_id"))
			m.synced[u][id] = true
			i := slices.IndexFunc(m.nodes, func(n *node) bool { return n.event.ID() == id })
			if !m.sees(u, i) && !m.nodes[i].event.Is(matrix.TypeMember, string(u)) { // what becomes of oneself one is told
				m.same("a timeline", u, nil, []matrix.EventID{id})
			}
		}
	}
}

// check reads in every way there is.
func (m *visibilityModel) check(u matrix.UserID) {
	r := room.Reader{User: u}
	for i, n := range m.nodes {
		_, err := m.w.rooms.Event(m.w.ctx, m.room, r, n.event.ID())
		if err != nil && matrix.ErrorCode(err) != "M_NOT_FOUND" {
			m.Fatal(err)
		}
		if (err == nil) != m.sees(u, i) {
			m.same("event", u, []matrix.EventID{n.event.ID()}, []matrix.EventID{})
		}
	}
	m.sync(u)
	was, now := false, m.current[len(m.current)-1][u]
	for _, c := range m.current {
		was = was || c[u] == "join"
	}
	rooms, err := m.w.rooms.Room(m.w.ctx, m.room)
	m.must(err)
	page, err := m.w.rooms.Messages(m.w.ctx, m.room, r, room.MessagesRequest{Forward: true, Limit: 1000})
	if may := was || rooms.Snapshot().HistoryVisibility == "world_readable"; !may {
		if matrix.ErrorCode(err) != "M_FORBIDDEN" {
			m.same("messages, forbidden", u, nil, idsOf(m, page.Chunk))
		}
		return
	}
	m.must(err)
	m.same("messages forwards", u, m.visible(u, all), idsOf(m, page.Chunk))
	page, err = m.w.rooms.Messages(m.w.ctx, m.room, r, room.MessagesRequest{From: fmt.Sprint("s", m.w.db.Position(), "_0"), Limit: 1000})
	m.must(err)
	m.same("messages backwards", u, m.visible(u, all), idsOf(m, page.Chunk))
	isNeedle := func(_ int, e *matrix.Event) bool { return e.Type() == matrix.TypeMessage }
	if was && now != "invite" {
		limit := 100
		raw, err := m.w.rooms.Search(m.w.ctx, r, room.SearchRequest{SearchTerm: "needle", Filter: &room.EventFilter{Limit: &limit, Rooms: []matrix.RoomID{m.room}}}, "")
		m.must(err)
		var found struct {
			Results []struct{ Result json.RawMessage }
		}
		m.must(json.Unmarshal(raw, &found))
		var results []json.RawMessage
		for _, one := range found.Results {
			results = append(results, one.Result)
		}
		m.same("search", u, m.visible(u, isNeedle), idsOf(m, results))
	}
	seen := m.visible(u, all)
	if len(seen) > 0 {
		at := rapid.SampledFrom(seen).Draw(m.T, "context of")
		c, err := m.w.rooms.Context(m.w.ctx, m.room, r, at, 100, nil)
		m.must(err)
		m.same("context", u, seen, idsOf(m, slices.Concat(c.EventsBefore, []json.RawMessage{c.Event}, c.EventsAfter)))
	}
	relations, err := m.w.rooms.Relations(m.w.ctx, m.room, r, room.RelationsRequest{Event: m.first})
	if slices.Contains(seen, m.first) {
		m.must(err)
		m.same("relations", u, m.visible(u, func(_ int, e *matrix.Event) bool { return strings.Contains(string(e.Content()), "m.relates_to") }), idsOf(m, relations.Chunk))
	} else if matrix.ErrorCode(err) != "M_NOT_FOUND" {
		m.same("relations, of what is not seen", u, nil, idsOf(m, relations.Chunk))
	}
	m.checkSync(u, now)
}

// checkSync wants all that may be seen of the timeline in an initial sync of who is in the room.
func (m *visibilityModel) checkSync(u matrix.UserID, now string) {
	if now != "join" {
		return
	}
	c := m.w.client(u)
	c.Filter = `{"room":{"timeline":{"limit":50}}}`
	var got []matrix.EventID
	for _, e := range c.peek().joined(m.room).list("timeline", "events") {
		got = append(got, matrix.EventID(e.text("event_id")))
	}
	slices.Sort(got)
	m.same("an initial sync", u, m.visible(u, all), got)
}

// TestMembershipThatAMergeOfBranchesDecidesIsShown has bob thrown out on one branch while he comes back on another. What the room then says of him is
// not what the event says that came last.
func TestMembershipThatAMergeOfBranchesDecidesIsShown(t *testing.T) {
	each(t, func(w *world) {
		id := w.room(alice, room.InitialState{Type: matrix.TypePowerLevels, Content: json.RawMessage(`{"users":{"@dave:there":90,"@alice:here":100}}`)})
		state := func() (map[string]matrix.EventID, []*matrix.Event) {
			r, err := w.rooms.Room(w.ctx, id)
			w.must(err)
			events, err := w.rooms.StateEvents(w.ctx, id, r.Snapshot().Root, storage.AllState)
			w.must(err)
			ids := map[string]matrix.EventID{}
			for _, e := range events {
				key, _ := e.StateKey()
				ids[e.Type()+"|"+key] = e.ID()
			}
			var tip []*matrix.Event
			for _, e := range r.Snapshot().Tip {
				tip = append(tip, e.Event)
			}
			return ids, tip
		}
		comes := func(sender matrix.UserID, member matrix.UserID, membership string, before map[string]matrix.EventID, prev ...*matrix.Event) (*matrix.Event, map[string]matrix.EventID) {
			e, err := w.comes(id, sender, matrix.TypeMember, new(string(member)), `{"membership":"`+membership+`"}`, before, prev...)
			w.must(err)
			after := maps.Clone(before)
			after[matrix.TypeMember+"|"+string(member)] = e.ID()
			return e, after
		}
		before, tip := state()
		comes(dave, dave, "join", before, tip...)
		w.join(id, bob)
		c, a, l := w.client(bob), w.client(alice), w.slider(bob, roomList)
		c.sync()
		l.sync()
		before, tip = state()
		kick, kicked := comes(dave, bob, "leave", before, tip...)
		w.equal("kicked: left", c.sync().there("rooms", "leave", string(id)), true)
		l.sync()
		w.join(id, bob)
		w.equal("back: joined", c.sync().there("rooms", "join", string(id)), true)
		l.sync()
		ban, banned := comes(dave, bob, "ban", kicked, kick)
		w.equal("banned on a branch: left", c.sync().there("rooms", "leave", string(id)), true)
		w.equal("banned on a branch, sliding", shown(l.sync().slid(id).list("required_state")), []string{"ban @bob:here"})
		a.sync()
		comes(dave, bob, "leave", banned, ban) // the join that did not see the ban holds again
		member, err := w.rooms.Membership(w.ctx, id, bob)
		w.must(err)
		w.equal("in the room again", member.Membership, "join")
		w.equal("shown as joined", c.sync().there("rooms", "join", string(id)), true)
		w.equal("shown as joined, sliding", slices.Contains(shown(l.sync().slid(id).list("required_state")), "join @bob:here"), true)
		w.say(id, alice, "hello")
		w.equal("hears what is said", c.sync().joined(id).bodies(), []string{"hello"})
		w.equal("joined members as alice has them", a.sync().joined(id).number("summary", "m.joined_member_count"), 3)
	})
}
