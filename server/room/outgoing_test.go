package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

var joinContent = json.RawMessage(`{"membership":"join","displayname":"Bob"}`)

func (a *at) tryJoin(room matrix.RoomID, user matrix.UserID, via ...matrix.ServerName) error {
	return a.joinThrough(context.Background(), JoinRequest{Room: room, User: user, Via: via}, joinContent, false)
}

func TestJoinTriesTheNextServer(t *testing.T) {
	w := newWorld(t, "one", "two", "three")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	if err := two.tryJoin(room, "@bob:two", "nobody", "three", "one"); err != nil {
		t.Fatal(err)
	}
	if w.count("make_join nobody") != 1 || w.count("make_join three") != 1 {
		t.Errorf("asked %v", w.asked)
	}
	if got := two.state(room, matrix.TypeMember, "@bob:two"); got != `{"displayname":"Bob","membership":"join"}` {
		t.Errorf("got member content %s", got)
	}
}

func TestOnlyTheNamedServersAreAskedToHelp(t *testing.T) {
	w := newWorld(t, "one", "two")
	room := w.at("one").newRoom("@alice:one", "11", "public")
	if err := w.at("two").tryJoin(room, "@bob:two", "nobody"); err == nil || w.count("make_join one") != 0 {
		t.Errorf("got %v, asked %v", err, w.asked)
	}
	if err := w.at("two").tryJoin(room, "@bob:two", "two"); err != nil { // who names ourselves names nobody
		t.Error(err)
	}
}

func TestJoinTellsWhyItFailed(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	invited := one.newRoom("@alice:one", "11", "invite")
	public := one.newRoom("@alice:one", "11", "public")
	one.set(public, "@alice:one", matrix.TypeMember, "@bob:two", `{"membership":"ban"}`)
	for _, c := range []struct {
		name string
		room matrix.RoomID
		via  []matrix.ServerName
		want string
	}{
		{"not invited", invited, []matrix.ServerName{"one"}, "M_FORBIDDEN"},
		{"banned", public, []matrix.ServerName{"one"}, "M_FORBIDDEN"},
		{"unknown room", "!nowhere:one", nil, "M_NOT_FOUND"},
		{"no server known", "!0123456789012345678901234567890123456789012", nil, "M_NOT_FOUND"},
		{"a refusal says more than ignorance", invited, []matrix.ServerName{"nobody", "one"}, "M_FORBIDDEN"},
		{"nobody answers", "!r:nobody", []matrix.ServerName{"nobody"}, "M_UNKNOWN"},
	} {
		if err := two.tryJoin(c.room, "@bob:two", c.via...); matrix.ErrorCode(err) != c.want {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
}

func TestATemplateOfAnotherEventIsNotSigned(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	for name, change := range map[string][2]string{
		"another user":       {`"state_key":"@bob:two"`, `"state_key":"@ben:two"`},
		"another sender":     {`"sender":"@bob:two"`, `"sender":"@ben:two"`},
		"another room":       {string(room), "!x:one"},
		"another type":       {"m.room.member", "m.room.message"},
		"another membership": {`"membership":"join"`, `"membership":"ban"`},
	} {
		w.tweak["make_join one"] = func(answer any) error {
			a := answer.(*MakeResponse)
			changed := strings.ReplaceAll(string(a.Event), change[0], change[1])
			if changed == string(a.Event) {
				t.Fatalf("%s: nothing to change in %s", name, a.Event)
			}
			a.Event = json.RawMessage(changed)
			return nil
		}
		if err := two.tryJoin(room, "@bob:two", "one"); err == nil {
			t.Errorf("%s: joined", name)
		}
		if w.count("send_join one") > 0 {
			t.Errorf("%s: the event was signed and sent", name)
		}
	}
}

func TestJoinDoesNotTrustTheStateItIsTold(t *testing.T) {
	for name, tweak := range map[string]func(a *SendJoinResponse, w *world){
		"no create event": func(a *SendJoinResponse, _ *world) {
			a.State = slices.DeleteFunc(a.State, func(raw json.RawMessage) bool { return strings.Contains(string(raw), "m.room.create") })
		},
		"create event of another version": func(a *SendJoinResponse, w *world) {
			empty := ""
			b := matrix.Builder{RoomID: "!r:one", Sender: "@alice:one", Type: matrix.TypeCreate, StateKey: &empty, Content: json.RawMessage(`{"room_version":"10"}`), Time: w.tick(), Depth: 1}
			e, err := b.Build(matrix.LookupRoomVersion("11"), "one", w.keys["one"])
			if err != nil {
				w.t.Fatal(err)
			}
			a.State = []json.RawMessage{e.JSON()}
		},
		"join rules that do not let us in": func(a *SendJoinResponse, _ *world) {
			a.State = slices.DeleteFunc(a.State, func(raw json.RawMessage) bool { return strings.Contains(string(raw), "m.room.join_rules") })
		},
		"signature of the create event gone": func(a *SendJoinResponse, _ *world) {
			for i, raw := range a.State {
				if strings.Contains(string(raw), "m.room.create") {
					a.State[i] = json.RawMessage(strings.Replace(string(raw), `"signatures":{"one"`, `"signatures":{"two"`, 1))
				}
			}
		},
		"nothing at all": func(a *SendJoinResponse, _ *world) { *a = SendJoinResponse{} },
	} {
		w := newWorld(t, "one", "two")
		one, two := w.at("one"), w.at("two")
		room := one.newRoom("@alice:one", "11", "public")
		w.tweak["send_join one"] = func(answer any) error { tweak(answer.(*SendJoinResponse), w); return nil }
		if err := two.tryJoin(room, "@bob:two", "one"); err == nil {
			t.Errorf("%s: joined", name)
		}
		if r, err := two.Room(context.Background(), room); err == nil && r.Snapshot().Joined() {
			t.Errorf("%s: this server takes itself to be in the room", name)
		}
	}
}

func TestJoinPassesOverStateThatCannotBeVerified(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	one.set(room, "@alice:one", matrix.TypeName, "", `{"name":"x"}`)
	one.set(room, "@alice:one", matrix.TypeTopic, "", `{"topic":"y"}`)
	w.tweak["send_join one"] = func(answer any) error {
		a := answer.(*SendJoinResponse)
		for i, raw := range a.State {
			if strings.Contains(string(raw), "m.room.name") {
				a.State[i] = json.RawMessage(strings.Replace(string(raw), `"signatures":{"one":{"ed25519:1"`, `"signatures":{"one":{"ed25519:2"`, 1))
			}
		}
		return nil
	}
	if err := two.tryJoin(room, "@bob:two", "one"); err != nil {
		t.Fatal(err)
	}
	if got := two.state(room, matrix.TypeName, ""); got != "" {
		t.Errorf("the name is %s though nobody has signed it", got)
	}
	if got := two.state(room, matrix.TypeTopic, ""); got != `{"topic":"y"}` {
		t.Errorf("the topic is %q", got)
	}
}

func TestSendJoinTakesJoinsOnly(t *testing.T) {
	_, one, two, room := together(t, "11")
	bob, ben := "@bob:two", "@ben:two"
	tip := two.snap(room).Tip[0]
	for name, b := range map[string]matrix.Builder{
		"message":           {Sender: "@bob:two", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"x"}`)},
		"no state":          {Sender: "@bob:two", Type: matrix.TypeMember, Content: json.RawMessage(`{"membership":"join"}`)},
		"leave":             {Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"leave"}`)},
		"of somebody else":  {Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &ben, Content: json.RawMessage(`{"membership":"join"}`)},
		"of another server": {Sender: "@alice:one", Type: matrix.TypeMember, StateKey: new("@alice:one"), Content: json.RawMessage(`{"membership":"join"}`)},
	} {
		e := two.forge(tip, b)
		if _, err := one.SendJoin(context.Background(), "two", room, e.ID(), e.JSON(), false); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
			t.Errorf("%s: got %v, want M_INVALID_PARAM", name, err)
		}
	}
	e := two.forge(tip, matrix.Builder{Sender: "@ben:two", Type: matrix.TypeMember, StateKey: &ben, Content: json.RawMessage(`{"membership":"join"}`)})
	if _, err := one.SendJoin(context.Background(), "two", room, "$other", e.JSON(), false); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		t.Errorf("another event ID: got %v, want M_INVALID_PARAM", err)
	}
	if _, err := one.SendJoin(context.Background(), "two", room, e.ID(), []byte(replaced(t, e, `"signatures":{"two"`, `"signatures":{"one"`)), false); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		t.Errorf("no signature: got %v, want M_INVALID_PARAM", err)
	}
}

func TestSendJoinOfABannedUserIsForbidden(t *testing.T) {
	w := newWorld(t, "one", "two")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	one.set(room, "@alice:one", matrix.TypeMember, "@bob:two", `{"membership":"ban"}`)
	bob := "@bob:two"
	e := one.forge(one.snap(room).Tip[0], matrix.Builder{Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &bob, Content: joinContent})
	if _, err := one.SendJoin(context.Background(), "two", room, e.ID(), e.JSON(), false); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	if got := one.membership(room, "@bob:two").Membership; got != matrix.Ban {
		t.Errorf("membership %q, want ban", got)
	}
}

func TestSendJoinLeavesMembersOutWhenAsked(t *testing.T) {
	w := newWorld(t, "one", "two")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	ann := "@ann:one"
	one.post(room, matrix.Builder{Sender: "@ann:one", Type: matrix.TypeMember, StateKey: &ann, Content: json.RawMessage(`{"membership":"join"}`)})
	answer, err := one.MakeJoin(context.Background(), "two", room, "@bob:two", []string{"11"})
	if err != nil {
		t.Fatal(err)
	}
	join, err := w.servers["two"].fromTemplate(answer, room, "@bob:two", matrix.Join, joinContent)
	if err != nil {
		t.Fatal(err)
	}
	got, err := one.SendJoin(context.Background(), "two", room, join.ID(), join.JSON(), true)
	if err != nil {
		t.Fatal(err)
	}
	var tuples []string
	for _, e := range parseEvents(got.State, join.Version(), room, 100) {
		tuples = append(tuples, e.Type()+"|"+stateKey(e))
	}
	slices.Sort(tuples)
	want := []string{"m.room.create|", "m.room.join_rules|", "m.room.member|@alice:one", "m.room.member|@ann:one", "m.room.power_levels|"} // heroes, as the room has no name
	if diff := cmp.Diff(want, tuples); diff != "" {
		t.Error(diff)
	}
	if len(got.AuthChain) != 0 || !got.MembersOmitted || !slices.Equal(got.ServersInRoom, []matrix.ServerName{"one"}) {
		t.Errorf("auth chain of %d, members omitted %t, servers %v", len(got.AuthChain), got.MembersOmitted, got.ServersInRoom)
	}
}

// invite has alice invite a user of another server.
func (a *at) invite(room matrix.RoomID, from, to matrix.UserID) (*storage.Event, error) {
	key := string(to)
	return a.inviteThrough(context.Background(), room, matrix.Builder{Sender: from, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
}

func TestInviteReachesTheOtherServerAndLetsItsUserIn(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, "one", "two")
			one, two := w.at("one"), w.at("two")
			room := one.newRoom("@alice:one", version, "invite")
			one.set(room, "@alice:one", matrix.TypeName, "", `{"name":"Secret"}`)
			e, err := one.invite(room, "@alice:one", "@bob:two")
			if err != nil {
				t.Fatal(err)
			}
			if !e.SignedBy("two") || !e.SignedBy("one") {
				t.Error("the invite does not carry both signatures")
			}
			m := two.membership(room, "@bob:two")
			if m.Membership != matrix.Invite || m.Pos == 0 {
				t.Fatalf("got %+v, want an invite that /sync sees", m)
			}
			if !strings.Contains(string(m.Stripped), "Secret") || !strings.Contains(string(m.Stripped), "m.room.create") || strings.Contains(string(m.Stripped), "signatures") {
				t.Errorf("stripped state %s", m.Stripped)
			}
			if two.snap(room).Joined() {
				t.Error("an invite makes nobody a member")
			}
			if err := two.tryJoin(room, "@bob:two"); err != nil { // it knows who has invited
				t.Fatal(err)
			}
			if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
				t.Error(diff)
			}
			snap := two.snap(room)
			if snap.InvitedCount != 0 || snap.JoinedCount != 2 {
				t.Errorf("invited %d, joined %d", snap.InvitedCount, snap.JoinedCount)
			}
		})
	}
}

func TestInviteIsRefused(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "invite")
	two.Service.o.UserExists = func(_ context.Context, u matrix.UserID) (bool, error) { return u != "@nobody:two", nil }
	two.Service.o.InviteAllowed = func(_ context.Context, u, inviter matrix.UserID, _ matrix.RoomID) error {
		if u == "@shy:two" {
			return matrix.InviteBlocked("the user takes no invites")
		}
		return nil
	}
	for user, want := range map[matrix.UserID]string{"@nobody:two": "M_FORBIDDEN", "@shy:two": "M_INVITE_BLOCKED", "@x:nowhere": "M_UNKNOWN"} {
		if _, err := one.invite(room, "@alice:one", user); matrix.ErrorCode(err) != want {
			t.Errorf("%s: got %v, want %s", user, err, want)
		}
		if got := one.membership(room, user).Membership; got != matrix.Leave {
			t.Errorf("%s: has membership %s though the invite was refused", user, got)
		}
	}
	tip := one.snap(room).Tip[0]
	bob, alice := "@bob:two", "@al:one"
	state := []json.RawMessage{one.snap(room).Create.JSON()}
	for name, b := range map[string]matrix.Builder{
		"join":              {Sender: "@alice:one", Type: matrix.TypeMember, StateKey: &bob, Content: joinContent},
		"message":           {Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{}`)},
		"of another server": {Sender: "@bob:two", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"invite"}`)},
		"to another server": {Sender: "@alice:one", Type: matrix.TypeMember, StateKey: &alice, Content: json.RawMessage(`{"membership":"invite"}`)},
	} {
		e := one.forge(tip, b)
		if _, err := two.ReceiveInvite(context.Background(), "one", room, e.ID(), InviteRequest{RoomVersion: "11", Event: e.JSON(), InviteRoomState: state}); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
			t.Errorf("%s: got %v, want M_INVALID_PARAM", name, err)
		}
	}
	e := one.forge(tip, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"invite"}`)})
	if _, err := two.ReceiveInvite(context.Background(), "one", room, e.ID(), InviteRequest{RoomVersion: "99", Event: e.JSON()}); matrix.ErrorCode(err) != "M_INCOMPATIBLE_ROOM_VERSION" {
		t.Errorf("got %v, want M_INCOMPATIBLE_ROOM_VERSION", err)
	}
}

func TestAnInviteOfVersion12NeedsTheCreateEvent(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "12", "invite")
	bob := "@bob:two"
	e := one.forge(one.snap(room).Tip[0], matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"invite"}`)})
	other := one.newRoom("@alice:one", "12", "invite")
	for name, state := range map[string][]json.RawMessage{"none": nil, "of another room": {one.snap(other).Create.JSON()}, "stripped": {one.snap(room).Create.Stripped()}} {
		if _, err := two.ReceiveInvite(context.Background(), "one", room, e.ID(), InviteRequest{RoomVersion: "12", Event: e.JSON(), InviteRoomState: state}); matrix.ErrorCode(err) != "M_INVALID_PARAM" {
			t.Errorf("%s: got %v, want M_INVALID_PARAM", name, err)
		}
	}
}

func TestInvitesCanBeRejectedAgainAndAgain(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "invite")
	var last int64
	for i := range 3 {
		if _, err := one.invite(room, "@alice:one", "@bob:two"); err != nil {
			t.Fatal(i, err)
		}
		if err := two.leaveThrough(context.Background(), room, "@bob:two", nil); err != nil {
			t.Fatal(i, err)
		}
		m := two.membership(room, "@bob:two")
		if m.Membership != matrix.Leave || m.Pos <= last {
			t.Errorf("round %d: got %+v", i, m)
		}
		last = m.Pos
		if got := one.membership(room, "@bob:two").Membership; got != matrix.Leave {
			t.Errorf("round %d: the inviting server has %s", i, got)
		}
	}
}

func TestAnInviteIntoAnEmptyRoomCanBeRejected(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "invite")
	if _, err := one.invite(room, "@alice:one", "@bob:two"); err != nil {
		t.Fatal(err)
	}
	one.set(room, "@alice:one", matrix.TypeMember, "@alice:one", `{"membership":"leave"}`)
	if err := two.leaveThrough(context.Background(), room, "@bob:two", nil); err != nil {
		t.Fatal(err)
	}
	if got := two.membership(room, "@bob:two").Membership; got != matrix.Leave {
		t.Errorf("membership %s, want leave", got)
	}
}

func TestOnlyTheInviterTakesAnInviteBack(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	ann := "@ann:one"
	one.post(room, matrix.Builder{Sender: "@ann:one", Type: matrix.TypeMember, StateKey: &ann, Content: json.RawMessage(`{"membership":"join"}`)})
	if _, err := one.invite(room, "@ann:one", "@bob:two"); err != nil {
		t.Fatal(err)
	}
	bob := "@bob:two"
	tip := one.snap(room).Tip[0]
	kick := matrix.Builder{Type: matrix.TypeMember, StateKey: &bob, Content: json.RawMessage(`{"membership":"leave"}`)}
	kick.Sender = "@alice:one"
	two.getRaw("one", one.forge(tip, kick))
	if got := two.membership(room, "@bob:two").Membership; got != matrix.Invite {
		t.Errorf("membership %s, want invite: a stranger has taken it back", got)
	}
	kick.Sender = "@ann:one"
	two.getRaw("one", one.forge(tip, kick))
	if got := two.membership(room, "@bob:two").Membership; got != matrix.Leave {
		t.Errorf("membership %s, want leave", got)
	}
}

func TestKnockThroughAnotherServer(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	closed := one.newRoom("@alice:one", "11", "invite")
	room := one.newRoom("@alice:one", "11", "knock")
	knock := func(room matrix.RoomID) error {
		return two.knockThrough(context.Background(), JoinRequest{Room: room, User: "@bob:two", Via: []matrix.ServerName{"one"}}, json.RawMessage(`{"reason":"please"}`))
	}
	if err := knock(closed); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	for range 2 { // one may knock again
		if err := knock(room); err != nil {
			t.Fatal(err)
		}
	}
	if got := one.state(room, matrix.TypeMember, "@bob:two"); got != `{"membership":"knock","reason":"please"}` {
		t.Errorf("got %s", got)
	}
	m := two.membership(room, "@bob:two")
	if m.Membership != matrix.Knock || !strings.Contains(string(m.Stripped), "m.room.join_rules") {
		t.Errorf("got %+v", m)
	}
	if err := two.leaveThrough(context.Background(), room, "@bob:two", nil); err != nil {
		t.Fatal(err)
	}
	if got := one.membership(room, "@bob:two").Membership; got != matrix.Leave {
		t.Errorf("taken back: %s", got)
	}
	if err := knock(room); err != nil {
		t.Fatal(err)
	}
	if _, err := one.invite(room, "@alice:one", "@bob:two"); err != nil {
		t.Fatal(err)
	}
	if got := two.membership(room, "@bob:two").Membership; got != matrix.Invite {
		t.Errorf("invited: %s", got)
	}
	if err := two.tryJoin(room, "@bob:two"); err != nil {
		t.Fatal(err)
	}
}

func TestRestrictedJoinThroughAServerThatCanGrantIt(t *testing.T) {
	for _, version := range []string{"8", "10", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, "one", "two", "three")
			one, two, three := w.at("one"), w.at("two"), w.at("three")
			space := one.newRoom("@alice:one", version, "public")
			room := one.newRoom("@alice:one", version, "public")
			empty := ""
			one.post(room, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeJoinRules, StateKey: &empty,
				Content: json.RawMessage(fmt.Sprintf(`{"join_rule":"restricted","allow":["x",{"type":"m.room_membership","room_id":%q}]}`, space))})
			if err := two.tryJoin(room, "@bob:two", "one"); matrix.ErrorCode(err) != "M_FORBIDDEN" {
				t.Fatalf("outside of the space: got %v, want M_FORBIDDEN", err)
			}
			if err := two.tryJoin(space, "@bob:two", "one"); err != nil {
				t.Fatal(err)
			}
			if err := two.tryJoin(room, "@bob:two", "one"); err != nil {
				t.Fatal(err)
			}
			join, err := two.StateAt(context.Background(), room, two.snap(room).Root, matrix.TypeMember, "@bob:two")
			if err != nil || !join.SignedBy("one") || !join.SignedBy("two") {
				t.Errorf("the join does not carry both signatures: %v", err)
			}
			// Nobody on two may invite, as levels say; the third server has to go on to one.
			levels := `{"users":{"@alice:one":100},"invite":50}`
			if version == "12" {
				levels = `{"invite":50}`
			}
			two.get("one", one.set(room, "@alice:one", matrix.TypePowerLevels, "", levels))
			if _, err := two.MakeJoin(context.Background(), "three", room, "@carol:three", versions()); matrix.ErrorCode(err) != "M_FORBIDDEN" {
				t.Errorf("not in the space: got %v, want M_FORBIDDEN", err)
			}
			three.join(space, "@carol:three", "one")
			two.get("one", one.snap(space).Tip[0])
			if _, err := two.MakeJoin(context.Background(), "three", room, "@carol:three", versions()); matrix.ErrorCode(err) != "M_UNABLE_TO_GRANT_JOIN" {
				t.Errorf("got %v, want M_UNABLE_TO_GRANT_JOIN", err)
			}
			if err := three.tryJoin(room, "@carol:three", "two", "one"); err != nil {
				t.Fatal(err)
			}
			// The second user of two is let in by one, too, though two is in the room.
			two.get("one", one.snap(room).Tip[0])
			if err := two.tryJoin(space, "@ben:two", "one"); !errors.Is(err, errJoinedMeanwhile) {
				t.Errorf("got %v, want errJoinedMeanwhile", err)
			}
			ben := "@ben:two"
			one.get("two", two.post(space, matrix.Builder{Sender: "@ben:two", Type: matrix.TypeMember, StateKey: &ben, Content: joinContent}))
			err = two.joinThrough(context.Background(), JoinRequest{Room: room, User: "@ben:two", Via: []matrix.ServerName{"one"}}, joinContent, true)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := two.snap(room).Local["@ben:two"]; !ok {
				t.Error("ben is not in the room")
			}
		})
	}
}

func TestARestrictedRoomOfUnknownRoomsCannotBeJudged(t *testing.T) {
	w := newWorld(t, "one", "two")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	one.set(room, "@alice:one", matrix.TypeJoinRules, "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!elsewhere:three"}]}`)
	if _, err := one.MakeJoin(context.Background(), "two", room, "@bob:two", versions()); matrix.ErrorCode(err) != "M_UNABLE_TO_AUTHORISE_JOIN" {
		t.Errorf("got %v, want M_UNABLE_TO_AUTHORISE_JOIN", err)
	}
}

func TestMakeJoinRefusesOldServersAndForeignUsers(t *testing.T) {
	w := newWorld(t, "one", "two")
	one := w.at("one")
	room := one.newRoom("@alice:one", "11", "public")
	if _, err := one.MakeJoin(context.Background(), "two", room, "@bob:two", []string{"1", "10"}); matrix.ErrorCode(err) != "M_INCOMPATIBLE_ROOM_VERSION" {
		t.Errorf("got %v, want M_INCOMPATIBLE_ROOM_VERSION", err)
	}
	if _, err := one.MakeJoin(context.Background(), "two", room, "@bob:three", versions()); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	if _, err := one.MakeJoin(context.Background(), "two", "!x:one", "@bob:two", versions()); matrix.ErrorCode(err) != "M_NOT_FOUND" {
		t.Errorf("got %v, want M_NOT_FOUND", err)
	}
}

func TestAServerThatLeftComesBackToTheNewState(t *testing.T) {
	_, one, two, room := together(t, "11")
	leave := two.set(room, "@bob:two", matrix.TypeMember, "@bob:two", `{"membership":"leave"}`)
	one.get("two", leave)
	one.set(room, "@alice:one", matrix.TypeTopic, "", `{"topic":"while you were away"}`)
	one.say(room, "@alice:one", "unheard")
	if err := two.tryJoin(room, "@bob:two", "one"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(one.wholeState(room), two.wholeState(room)); diff != "" {
		t.Error(diff)
	}
	snap := two.snap(room)
	if snap.JoinedCount != 2 || snap.Servers["one"] != 1 || len(snap.Tip) != 1 {
		t.Errorf("joined %d, servers %v, tip %d", snap.JoinedCount, snap.Servers, len(snap.Tip))
	}
	two.get("one", one.say(room, "@alice:one", "welcome back"))
	if diff := cmp.Diff([]string{"welcome back"}, two.timeline(room)); diff != "" {
		t.Error(diff)
	}
}

func TestTwoUsersJoinAnUnknownRoomAtOnce(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	errs := make(chan error, 2)
	for _, user := range []matrix.UserID{"@bob:two", "@ben:two"} {
		go func() { errs <- two.tryJoin(room, user, "one") }()
	}
	first, second := <-errs, <-errs
	if first != nil {
		first, second = second, first
	}
	if first != nil || !errors.Is(second, errJoinedMeanwhile) {
		t.Errorf("got %v and %v, want one to join and the other to be told so", first, second)
	}
}

func TestAJoinThatOurPolicyForbidsIsForbidden(t *testing.T) {
	w := newWorld(t, "one", "two", "three")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	w.fault["make_join one"] = func() error { return fmt.Errorf("one: %w", ErrNotPermitted) }
	if err := two.tryJoin(room, "@bob:two", "one"); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
	w.fault["make_join three"] = func() error { return errNoAnswer } // which might have helped
	if err := two.tryJoin(room, "@bob:two", "one", "three"); matrix.ErrorCode(err) != "M_UNKNOWN" {
		t.Errorf("one forbidden and one silent: got %v, want M_UNKNOWN", err)
	}
	w.fault["invite two"] = w.fault["make_join one"]
	if _, err := one.invite(room, "@alice:one", "@bob:two"); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("invite: got %v, want M_FORBIDDEN", err)
	}
}
