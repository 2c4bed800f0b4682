package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func (a *at) alias(user matrix.UserID, alias matrix.RoomAlias, room matrix.RoomID) {
	a.t.Helper()
	if err := a.CreateAlias(context.Background(), user, alias, room); err != nil {
		a.t.Fatal(err)
	}
}

func TestAliasesAreMadeByMembers(t *testing.T) {
	w := newWorld(t, "one")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	one.alias("@alice:one", "#a:one", room)
	for _, c := range []struct {
		user  matrix.UserID
		alias matrix.RoomAlias
		room  matrix.RoomID
		want  string
	}{
		{"@alice:one", "#a:one", room, "M_UNKNOWN"}, // taken
		{"@alice:one", "#a:two", room, "M_INVALID_PARAM"},
		{"@alice:one", "#b:one", "!nowhere:one", "M_NOT_FOUND"},
		{"@eve:one", "#b:one", room, "M_FORBIDDEN"},
	} {
		if err := one.CreateAlias(context.Background(), c.user, c.alias, c.room); matrix.ErrorCode(err) != c.want {
			t.Errorf("%s makes %s: got %v, want %s", c.user, c.alias, err, c.want)
		}
	}
	if _, err := one.LocalAliases(context.Background(), "@eve:one", room); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	got, err := one.LocalAliases(context.Background(), "@alice:one", room)
	if diff := cmp.Diff([]matrix.RoomAlias{"#a:one"}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	one.set(room, "@alice:one", matrix.TypeHistoryVisibility, "", `{"history_visibility":"world_readable"}`)
	if _, err := one.LocalAliases(context.Background(), "@eve:one", room); err != nil {
		t.Errorf("a world-readable room: %v", err)
	}
}

func TestAliasesOfOtherServersAreAsked(t *testing.T) {
	w, one, two, room := together(t, "11")
	one.alias("@alice:one", "#老虎:one", room)
	got, err := two.ResolveAlias(context.Background(), "#老虎:one")
	want := AliasResponse{RoomID: room, Servers: []matrix.ServerName{"one", "two"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	got, err = one.ResolveAlias(context.Background(), "#老虎:one")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, alias := range []matrix.RoomAlias{"#b:one", "#b:two"} {
		if _, err := two.ResolveAlias(context.Background(), alias); matrix.ErrorCode(err) != "M_NOT_FOUND" {
			t.Errorf("%s: got %v, want M_NOT_FOUND", alias, err)
		}
	}
	if _, err := two.ResolveAlias(context.Background(), "#b:nowhere"); matrix.ErrorCode(err) != "M_UNKNOWN" {
		t.Errorf("got %v, want M_UNKNOWN", err)
	}
	w.tweak["alias one"] = func(answer any) error {
		a := answer.(*AliasResponse)
		a.Servers = []matrix.ServerName{"bad name", "two", "two"}
		return nil
	}
	if got, err = two.ResolveAlias(context.Background(), "#老虎:one"); err != nil || !slices.Equal(got.Servers, []matrix.ServerName{"two"}) {
		t.Errorf("got %v, %v, want the valid server once", got, err)
	}
}

func TestAliasesAreDeletedByTheirMakersAndThePowerful(t *testing.T) {
	w := newWorld(t, "one")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	bob, ben := "@bob:one", "@ben:one"
	for _, user := range []*string{&bob, &ben} {
		one.post(room, matrix.Builder{Sender: matrix.UserID(*user), Type: matrix.TypeMember, StateKey: user, Content: joinContent})
	}
	one.alias("@bob:one", "#b:one", room)
	one.set(room, "@alice:one", matrix.TypeCanonicalAlias, "", `{"alias":"#b:one","alt_aliases":["#b:one","#c:one"]}`)
	ctx := context.Background()
	if err := one.DeleteAlias(ctx, "@ben:one", "#b:one", false); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	if err := one.DeleteAlias(ctx, "@bob:one", "#b:one", false); err != nil {
		t.Error(err)
	}
	if got := one.state(room, matrix.TypeCanonicalAlias, ""); got != `{"alias":"#b:one","alt_aliases":["#b:one","#c:one"]}` {
		t.Errorf("one without power has changed the canonical alias: %s", got)
	}
	one.alias("@bob:one", "#b:one", room)
	if err := one.DeleteAlias(ctx, "@alice:one", "#b:one", false); err != nil {
		t.Error(err)
	}
	if got := one.state(room, matrix.TypeCanonicalAlias, ""); got != `{"alt_aliases":["#c:one"]}` {
		t.Errorf("canonical alias %s", got)
	}
	one.alias("@bob:one", "#b:one", room)
	if err := one.DeleteAlias(ctx, "@admin:one", "#b:one", true); err != nil {
		t.Error(err)
	}
	if err := one.DeleteAlias(ctx, "@bob:one", "#b:one", false); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("got %v, want M_NOT_FOUND", err)
	}
}

func TestTheRoomListIsPagedAndFiltered(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	ctx := context.Background()
	var rooms []matrix.RoomID
	for i := range 5 {
		room := one.newRoom("@alice:one", "11", "public")
		one.set(room, "@alice:one", matrix.TypeName, "", fmt.Sprintf(`{"name":"Room %d"}`, i))
		for j := range i {
			user := fmt.Sprintf("@u%d:one", j)
			one.post(room, matrix.Builder{Sender: matrix.UserID(user), Type: matrix.TypeMember, StateKey: &user, Content: joinContent})
		}
		if err := one.SetPublished(ctx, "@alice:one", room, true, false); err != nil {
			t.Fatal(err)
		}
		rooms = append([]matrix.RoomID{room}, rooms...) // the largest first
	}
	hidden := one.newRoom("@alice:one", "11", "invite")
	if err := one.SetPublished(ctx, "@alice:one", hidden, true, false); err != nil {
		t.Fatal(err)
	}
	if err := one.SetPublished(ctx, "@u0:one", rooms[0], false, false); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	ids := func(r PublicRoomsResponse) (list []matrix.RoomID) {
		for _, c := range r.Chunk {
			list = append(list, c.RoomID)
		}
		return list
	}
	var all []matrix.RoomID
	q := PublicRoomsRequest{Limit: 2}
	var page PublicRoomsResponse
	for range 10 {
		var err error
		if page, err = two.PublicRoomsAt(ctx, "one", q); err != nil {
			t.Fatal(err)
		}
		all = append(all, ids(page)...)
		if q.Since = page.NextBatch; q.Since == "" {
			break
		}
	}
	if diff := cmp.Diff(rooms, all); diff != "" {
		t.Error(diff)
	}
	back, err := one.PublicRooms(ctx, PublicRoomsRequest{Limit: 2, Since: page.PrevBatch})
	if diff := cmp.Diff(rooms[2:4], ids(back)); err != nil || diff != "" {
		t.Errorf("backwards: %v %s", err, diff)
	}
	if back.TotalRoomCountEstimate != 5 {
		t.Errorf("an estimate of %d rooms", back.TotalRoomCountEstimate)
	}
	for name, c := range map[string]struct {
		filter PublicRoomsFilter
		want   []matrix.RoomID
	}{
		"name":          {PublicRoomsFilter{GenericSearchTerm: "room 3"}, rooms[1:2]},
		"rooms alone":   {PublicRoomsFilter{RoomTypes: []*string{nil}}, rooms},
		"spaces alone":  {PublicRoomsFilter{RoomTypes: []*string{new("m.space")}}, nil},
		"nothing wants": {PublicRoomsFilter{RoomTypes: []*string{}}, nil},
	} {
		got, err := one.PublicRooms(ctx, PublicRoomsRequest{Filter: &c.filter})
		if diff := cmp.Diff(c.want, ids(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	if _, err := one.PublicRooms(ctx, PublicRoomsRequest{Since: "x"}); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		t.Errorf("got %v, want M_INVALID_PARAM", err)
	}
	if err := one.SetPublishedBy(ctx, "irc", "net", hidden, true); err != nil {
		t.Fatal(err)
	}
	one.set(hidden, "@alice:one", matrix.TypeJoinRules, "", `{"join_rule":"knock"}`)
	got, err := one.PublicRooms(ctx, PublicRoomsRequest{ThirdPartyInstanceID: "irc|net"})
	if err != nil || len(got.Chunk) != 1 || got.Chunk[0].JoinRule != "knock" {
		t.Errorf("the network's list: %v %v", got, err)
	}
}

func TestMutualRooms(t *testing.T) {
	_, one, two, room := together(t, "11")
	one.get("two", two.snap(room).Tip[0])
	rooms, next, err := one.MutualRooms(context.Background(), "@alice:one", "@bob:two", "")
	if diff := cmp.Diff([]matrix.RoomID{room}, rooms); err != nil || next != "" || diff != "" {
		t.Error(err, next, diff)
	}
	if _, _, err := one.MutualRooms(context.Background(), "@alice:one", "@alice:one", ""); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		t.Errorf("got %v, want M_INVALID_PARAM", err)
	}
}

// space makes a space with children, in this order.
func (a *at) space(name, joinRule string, children ...matrix.RoomID) matrix.RoomID {
	a.t.Helper()
	room := a.namedRoom(name, joinRule, `,"type":"m.space"`)
	for _, child := range children {
		a.child(room, child, `{"via":["one","two"],"suggested":true}`)
	}
	return room
}

func (a *at) child(space, child matrix.RoomID, content string) {
	a.set(space, matrix.UserID("@alice:"+string(a.name)), matrix.TypeSpaceChild, string(child), content)
}

// namedRoom makes a room of alice with something more in the create event.
func (a *at) namedRoom(name, joinRule, create string) matrix.RoomID {
	a.t.Helper()
	v, empty := matrix.LookupRoomVersion("11"), ""
	alice := a.user("alice")
	key := string(alice)
	b := &matrix.Builder{RoomID: matrix.RoomID(fmt.Sprintf("!%s%d:%s", name, a.o.Now().UnixMilli(), a.name)), Sender: alice, Type: matrix.TypeCreate, StateKey: &empty,
		Content: json.RawMessage(`{"room_version":"11"` + create + `}`), Time: a.o.Now(), Depth: 1}
	first, err := b.Build(v, a.name, a.o.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	err = a.updateNew(context.Background(), first.RoomID(), v, func(u *update) error {
		if _, err := u.append(entry{event: first}); err != nil {
			return err
		}
		for _, b := range []matrix.Builder{
			{Sender: alice, Type: matrix.TypeMember, StateKey: &key, Content: joinContent},
			{Sender: alice, Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(`{"users":{"` + key + `":100}}`)},
			{Sender: alice, Type: matrix.TypeJoinRules, StateKey: &empty, Content: json.RawMessage(`{"join_rule":"` + joinRule + `"}`)},
			{Sender: alice, Type: matrix.TypeName, StateKey: &empty, Content: json.RawMessage(`{"name":"` + name + `"}`)},
		} {
			if _, err := u.post(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return first.RoomID()
}

func names(rooms []HierarchyRoom) (all []string) {
	for _, r := range rooms {
		all = append(all, r.Name)
	}
	return all
}

func TestHierarchyIsWalkedDepthFirst(t *testing.T) {
	w := newWorld(t, "one")
	one := w.at("one")
	r1, r2, r3 := one.namedRoom("R1", "public", ""), one.namedRoom("R2", "public", ""), one.namedRoom("R3", "public", "")
	secret := one.namedRoom("Secret", "invite", "")
	sub := one.space("Sub", "public", r3, secret)
	root := one.space("Root", "public", r1, sub, r2)
	one.child(root, secret, `{"via":["one"]}`)
	one.child(sub, root, `{"via":["one"]}`) // a circle
	one.child(r1, r2, `{"via":["one"]}`)    // not a space: is not looked at
	ctx := context.Background()
	depth1 := 1
	for name, c := range map[string]struct {
		user matrix.UserID
		q    HierarchyRequest
		want []string
	}{
		"all":                 {"@alice:one", HierarchyRequest{}, []string{"Root", "R1", "Sub", "R3", "Secret", "R2"}},
		"who is in no room":   {"@eve:one", HierarchyRequest{}, []string{"Root", "R1", "Sub", "R3", "R2"}},
		"not deep":            {"@eve:one", HierarchyRequest{MaxDepth: &depth1}, []string{"Root", "R1", "Sub", "R2"}},
		"suggested ones only": {"@eve:one", HierarchyRequest{SuggestedOnly: true}, []string{"Root", "R1", "Sub", "R3", "R2"}},
	} {
		var got []string
		for _, limit := range []int{0, 2} {
			got, c.q.Limit, c.q.From = nil, limit, ""
			for range 10 {
				page, err := one.Hierarchy(ctx, c.user, root, c.q)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, names(page.Rooms)...)
				if c.q.From = page.NextBatch; c.q.From == "" {
					break
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s, %d a page: %s", name, limit, diff)
			}
		}
	}
	page, err := one.Hierarchy(ctx, "@eve:one", root, HierarchyRequest{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(page.Rooms[0].ChildrenState); n != 4 {
		t.Errorf("the root has %d children", n)
	}
	if _, err := one.Hierarchy(ctx, "@eve:one", root, HierarchyRequest{From: page.NextBatch, SuggestedOnly: true}); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		t.Errorf("other parameters on the second page: %v", err)
	}
	if _, err := one.Hierarchy(ctx, "@eve:one", secret, HierarchyRequest{}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	one.child(root, sub, `{}`) // takes the link away
	page, err = one.Hierarchy(ctx, "@eve:one", root, HierarchyRequest{})
	if diff := cmp.Diff([]string{"Root", "R1", "R2"}, names(page.Rooms)); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestHierarchyAsksOtherServers(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	leaf, closed := two.namedRoom("Leaf", "public", ""), two.namedRoom("Closed", "invite", "")
	far := two.space("Far", "public", leaf, closed)
	root := one.space("Root", "public", far)
	one.child(root, "!gone:nowhere", `{"via":["nowhere"]}`)
	for range 2 {
		page, err := one.Hierarchy(context.Background(), "@eve:one", root, HierarchyRequest{})
		if diff := cmp.Diff([]string{"Root", "Far", "Leaf"}, names(page.Rooms)); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
	}
	if n := w.count("hierarchy two"); n != 1 {
		t.Errorf("the other server was asked %d times", n)
	}
	answer, err := two.ServeHierarchy(context.Background(), "one", far, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]matrix.RoomID{closed}, answer.InaccessibleChildren); diff != "" {
		t.Error(diff)
	}
	if _, err := two.ServeHierarchy(context.Background(), "one", closed, false); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("got %v, want M_NOT_FOUND", err)
	}
}

func TestRestrictedRoomsShowInHierarchiesOfMembers(t *testing.T) {
	w, one, two, space := together(t, "11")
	_ = w
	one.get("two", two.snap(space).Tip[0])
	inner := one.namedRoom("Inner", "public", "")
	one.set(inner, "@alice:one", matrix.TypeJoinRules, "", fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, space))
	for user, want := range map[matrix.UserID]string{"@alice:one": "", "@eve:one": "M_NOT_FOUND"} {
		sum, err := one.Summary(context.Background(), user, inner, nil)
		if matrix.ErrorCode(err) != want {
			t.Errorf("%s: got %v, want %q", user, err, want)
		}
		if err == nil && (sum.Membership != matrix.Join || !slices.Equal(sum.AllowedRoomIDs, []matrix.RoomID{space})) {
			t.Errorf("got %+v", sum)
		}
	}
	if _, err := one.ServeHierarchy(context.Background(), "two", inner, false); err != nil {
		t.Errorf("the server of a member of the space: %v", err)
	}
	if _, err := one.ServeHierarchy(context.Background(), "three", inner, false); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("got %v, want M_NOT_FOUND", err)
	}
	sum, err := two.Summary(context.Background(), "@bob:two", inner, []matrix.ServerName{"one"})
	if err != nil || sum.Name != "Inner" || sum.Membership != matrix.Leave {
		t.Errorf("over federation: %+v, %v", sum, err)
	}
	if _, err := two.Summary(context.Background(), "@ben:two", inner, []matrix.ServerName{"one"}); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("got %v, want M_NOT_FOUND", err)
	}
	if _, err := one.Summary(context.Background(), "", inner, nil); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("nobody: got %v, want M_NOT_FOUND", err)
	}
	if _, err := one.Summary(context.Background(), "", space, nil); err != nil {
		t.Errorf("nobody sees a public room: %v", err)
	}
}

func TestChildrenAreOrderedByOrderThenTime(t *testing.T) {
	link := func(room, order string, ts int) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"state_key":%q,"content":{"via":["one"],"order":%s},"origin_server_ts":%d}`, room, order, ts))
	}
	got := childLinks([]json.RawMessage{link("!e:x", `null`, 1), link("!d:x", `"b"`, 1), link("!c:x", `"a"`, 2), link("!b:x", `"a"`, 1), link("!f:x", `"ä"`, 2), link("bad", `"a"`, 0),
		json.RawMessage(`{"state_key":"!novia:x","content":{}}`)})
	var order []matrix.RoomID
	for _, l := range got {
		order = append(order, l.room)
	}
	if diff := cmp.Diff([]matrix.RoomID{"!b:x", "!c:x", "!d:x", "!e:x", "!f:x"}, order); diff != "" {
		t.Error(diff)
	}
}

func TestMemoForgets(t *testing.T) {
	var m memo[int, string]
	now := time.Unix(100, 0)
	m.put(1, "a", now.Add(time.Second))
	m.put(2, "b", time.Time{})
	if v, ok := m.get(1, now); !ok || v != "a" {
		t.Error("forgotten too early")
	}
	if _, ok := m.get(1, now.Add(2*time.Second)); ok {
		t.Error("remembered too long")
	}
	for i := range 2 * maxMemo {
		m.put(10+i, "x", time.Time{})
	}
	if len(m.items) > maxMemo {
		t.Errorf("%d items", len(m.items))
	}
}

func TestPeopleInOpenRoomsAreFound(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		s.o.Config.FindColleagues = false
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			for _, u := range []matrix.UserID{alice, bob, carol} {
				if err := tx.Exec("INSERT INTO users (user_id, password, created_ms, admin, locked, suspended, deactivated, erased) VALUES (?, '', 0, false, false, false, false, false)", u).Error; err != nil {
					return err
				}
				if err := tx.Exec("INSERT INTO profiles (user_id, displayname, name_key) VALUES (?, ?, ?)", u, []byte(u.Localpart()), u.Localpart()).Error; err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		room := create(t, s, CreateRequest{})
		for _, c := range []struct {
			typ, content string
			found        int
		}{
			{"", "", 0},
			{matrix.TypeJoinRules, `{"join_rule":"public"}`, 1},
			{matrix.TypeJoinRules, `{"join_rule":"invite"}`, 0},
			{matrix.TypeHistoryVisibility, `{"history_visibility":"world_readable"}`, 1},
			{matrix.TypeHistoryVisibility, `{"history_visibility":"shared"}`, 0},
		} {
			if c.typ != "" {
				if _, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: c.typ, StateKey: new(string), Content: json.RawMessage(c.content)}); err != nil {
					t.Fatal(err)
				}
			}
			found, _, err := s.SearchUsers(t.Context(), bob, "alice", 10)
			if err != nil || len(found) != c.found {
				t.Errorf("with %s bob finds %v, %v", c.content, found, err)
			}
		}
	})
}
