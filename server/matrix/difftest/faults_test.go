package difftest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gmsl "github.com/matrix-org/gomatrixserverlib"
	"parley.im/parley/server/matrix"
)

// What the other implementations are known to do against the spec. Each case shows the fault; a case that fails has
// been mended, and what the comparison leaves out for its sake can go.

// verdicts gives our verdict on an event and that of gomatrixserverlib.
func verdicts(t *testing.T, version string, state []event, e event) (ours, theirs error) {
	m := newRoom(t, matrix.LookupRoomVersion(version), 1)
	g := newGMSL(m)
	m.id = "!room:a.example"
	content := `{"creator":"@alice:a.example","room_version":"` + version + `"}`
	events := []*matrix.Event{m.make(event{"@alice:a.example", matrix.TypeCreate, "", content})}
	for _, s := range state {
		events = append(events, m.make(s))
	}
	tried := m.make(e)
	lookup := matrix.Lookup(events)
	var auth []gmsl.PDU
	for _, k := range tried.AuthKeys() {
		if x := lookup(k.Type, k.StateKey); x != nil {
			auth = append(auth, g.pdu(x))
		}
	}
	provider, err := gmsl.NewAuthEvents(auth)
	if err != nil {
		t.Fatal(err)
	}
	return matrix.Authorize(tried, lookup), gmsl.Allowed(g.pdu(tried), provider, sender)
}

type event struct {
	sender             matrix.UserID
	typ, key, contents string
}

func (m *room) make(e event) *matrix.Event {
	b := &matrix.Builder{RoomID: m.id, Sender: e.sender, Type: e.typ, StateKey: &e.key, Content: []byte(e.contents), Time: time.UnixMilli(1)}
	if e.typ != matrix.TypeCreate {
		b.PrevEvents = []matrix.EventID{"$some:where"}
	}
	if m.version.EventIDInEvent {
		b.EventID = matrix.EventID(fmt.Sprintf("$%s:%s", strings.ReplaceAll(e.typ, ".", "_"), e.sender.Server()))
	}
	built, err := b.Build(m.version, e.sender.Server(), m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	return built
}

// signedInvite is the signed part of a third-party invite of carol with token1.
func signedInvite(t *testing.T) string {
	b, err := matrix.SignJSON([]byte(`{"mxid":"@carol:c.example","token":"token1"}`), "magic.example", newRoom(t, matrix.LookupRoomVersion("11"), 1).key)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFaultsOfGomatrixserverlibInVerdicts(t *testing.T) {
	alice := event{"@alice:a.example", matrix.TypeMember, "@alice:a.example", `{"membership":"join"}`}
	bob := event{"@bob:b.example", matrix.TypeMember, "@bob:b.example", `{"membership":"join"}`}
	key, invite := newRoom(t, matrix.LookupRoomVersion("11"), 1).key.Public().String(), signedInvite(t)
	for name, c := range map[string]struct {
		version string
		state   []event
		event   event
		allowed bool // by the spec
	}{
		// rooms/v11/#authorisation-rules 4.5.1: "If the sender matches state_key, allow if and only if that user's
		// current membership state is invite, join, or knock."
		"leaveFromOutside": {"11", []event{alice}, event{"@bob:b.example", matrix.TypeMember, "@bob:b.example", `{"membership":"leave"}`}, false},
		// rooms/v11/#authorisation-rules 4.3.6: "If the join_rule is public, allow", also who has knocked before.
		"joinAfterKnocking": {"11", []event{alice, {"@bob:b.example", matrix.TypeMember, "@bob:b.example", `{"membership":"knock"}`}, {"@alice:a.example", matrix.TypeJoinRules, "", `{"join_rule":"public"}`}}, bob, true},
		// rooms/v6/#authorisation-rules 4.2.4: "If the join_rule is invite then allow if membership state is invite or
		// join", 4.2.5 "If the join_rule is public, allow", 4.2.6 "Otherwise, reject": no other rule lets anybody in,
		// not even who is invited or in the room.
		"joinByAnyRule": {"6", []event{alice, bob, {"@alice:a.example", matrix.TypeJoinRules, "", `{"join_rule":"private"}`}}, bob, false},
		// rooms/v11/#authorisation-rules 4.5.4: "If the sender's power level is greater than or equal to the kick level, and
		// the target user's power level is less than the sender's power level, allow", 4.5.5 "Otherwise, reject", and the
		// note: to unban somebody takes power "greater than the target user's power level".
		"unbanOfAnEqual": {"11", []event{alice, {"@alice:a.example", matrix.TypeMember, "@bob:b.example", `{"membership":"ban"}`}, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":50}`}},
			event{"@alice:a.example", matrix.TypeMember, "@bob:b.example", `{"membership":"leave"}`}, false},
		// rooms/v8/#authorisation-rules 4.7.1: "If the join_rule is anything other than knock, reject." Room version 10 adds
		// knock_restricted.
		"knockRestrictedBeforeItsTime": {"9", []event{alice, {"@alice:a.example", matrix.TypeJoinRules, "", `{"join_rule":"knock_restricted"}`}},
			event{"@bob:b.example", matrix.TypeMember, "@bob:b.example", `{"membership":"knock"}`}, false},
		// rooms/v11/#authorisation-rules 9.5: "For the properties users_default, … check if they were added, changed or
		// removed. For each found alteration: … 2. If the new value is higher than the sender's current power level, reject."
		"usersDefaultAboveOneself": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users":{"@alice:a.example":60}}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users":{"@alice:a.example":60},"users_default":61}`}, false},
		// rooms/v11/#authorisation-rules 9.8: "For each entry being changed in, or removed from, the users property": an
		// entry that is added has no current value to compare.
		"levelsThatAreNotThere": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":50}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":50,"users":{"@bob:b.example":10}}`}, true},
		// The same 9.8, for entries that are removed: that users_default gives the same level does not matter.
		"removedUserWhoKeepsTheLevel": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":50,"users":{"@bob:b.example":50}}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":50}`}, false},
		"levelAddedWithItsDefault": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0,"kick":50}`}, false},
		// Likewise 9.5.1 for one that is removed: "If the current value is higher than the sender's current power level, reject."
		"levelRemovedFromItsDefault": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0,"ban":50}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0}`}, false},
		// 9.9, "For each entry being added to, or changed in, the users property", likewise.
		"addedUserWithTheDefault": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":99,"users":{"@alice:a.example":50}}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":99,"users":{"@alice:a.example":50,"@bob:b.example":99}}`}, false},
		// rooms/v11/#authorisation-rules 4.4.1.6: "If sender does not match sender of the m.room.third_party_invite, reject."
		"thirdPartyInviteOfAnother": {"11", []event{alice, bob, {"@bob:b.example", matrix.TypeThirdPartyInvite, "token1", `{"display_name":"x","public_keys":[{"public_key":"` + key + `"}]}`}},
			event{"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":` + invite + `}}`}, false},
		// The same 4.4.1.7: the signature is of all that is in signed. gomatrixserverlib verifies what it knows of it.
		"thirdPartyInviteWithMore": {"11", []event{alice, {"@alice:a.example", matrix.TypeThirdPartyInvite, "token1", `{"display_name":"x","public_keys":[{"public_key":"` + key + `"}]}`}},
			event{"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"more":true,` + invite[1:] + `}}`}, false},
		// The same 4.4.1.1: "If target user is banned, reject."
		"thirdPartyInviteOfTheBanned": {"11", []event{alice, {"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"ban"}`},
			{"@alice:a.example", matrix.TypeThirdPartyInvite, "token1", `{"display_name":"x","public_keys":[{"public_key":"` + key + `"}]}`}},
			event{"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":` + invite + `}}`}, false},
		// The same: "The public keys are in content of m.room.third_party_invite as: 1. A single public key in the public_key
		// property." gomatrixserverlib looks at public_keys only.
		"thirdPartyInviteOfTheOneKey": {"11", []event{alice, {"@alice:a.example", matrix.TypeThirdPartyInvite, "token1", `{"display_name":"x","public_key":"` + key + `"}`}},
			event{"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":` + invite + `}}`}, true},
		// rooms/v6/: "m.room.aliases events no longer have a special meaning": its sender must be in the room.
		"aliasesRuleAfterItsTime": {"11", []event{alice}, event{"@bob:b.example", matrix.TypeAliases, "b.example", `{}`}, false},
		// Likewise 9.5 for levels by name, "added, changed or removed"; gomatrixserverlib says itself that it differs from
		// Synapse here, and mautrix judges as Synapse and we do.
		"levelsThatAreNotThere, by name": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"state_default":0,"redact":0}`}, true},
		"levelsThatAreNotThere, notifications": {"11", []event{alice, {"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":40,"state_default":40}`}},
			event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users_default":40,"state_default":40,"notifications":{"room":10}}`}, true},
	} {
		ours, theirs := verdicts(t, c.version, c.state, c.event)
		if (ours == nil) != c.allowed {
			t.Errorf("%s: we are wrong: %v", name, ours)
		}
		if (theirs == nil) == c.allowed {
			t.Errorf("%s has been mended: take it out of knownVerdict", name)
		}
	}
}

// rooms/v2/#state-resolution, iterative auth checks: "If a (event_type, state_key) key that is required for checking the
// authorisation rules is not present in the state, then the appropriate state event from the event's auth_events is
// used". gomatrixserverlib adds the event itself instead (stateresolutionv2.go, addFromAuthEventsIfNotRejected). By its source it
// also enlarges the power events by the conflicted state set instead of the full conflicted set, runs Kahn's algorithm
// from the latest event instead of the earliest, breaks ties of mainline positions by steps before time, and takes the
// position of an event that never meets the mainline for the oldest one.
func TestFaultsOfGomatrixserverlibInResolution(t *testing.T) {
	m := newRoom(t, matrix.LookupRoomVersion("11"), 1)
	m.id = "!room:a.example"
	add := func(prev matrix.EventID, e event) matrix.EventID {
		m.clock++
		before := m.after[prev]
		b := &matrix.Builder{RoomID: m.id, Sender: e.sender, Type: e.typ, StateKey: &e.key, Content: []byte(e.contents), Time: time.UnixMilli(m.clock)}
		if prev != "" {
			b.PrevEvents = []matrix.EventID{prev}
		}
		for _, k := range b.AuthKeys(m.version) {
			if id, ok := before[k]; ok {
				b.AuthEvents = append(b.AuthEvents, id)
			}
		}
		built, err := b.Build(m.version, e.sender.Server(), m.key)
		if err != nil {
			t.Fatal(err)
		}
		m.accept(built, before)
		return built.ID()
	}
	// One state has alice's power levels and her membership after them, the other only another membership of hers. When
	// the power levels are checked, no membership is resolved yet: that of their auth events counts.
	create := add("", event{"@alice:a.example", matrix.TypeCreate, "", `{"room_version":"11"}`})
	join := add(create, event{"@alice:a.example", matrix.TypeMember, "@alice:a.example", `{"membership":"join"}`})
	levels := add(join, event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users":{"@alice:a.example":100}}`})
	one := add(levels, event{"@alice:a.example", matrix.TypeMember, "@alice:a.example", `{"membership":"join","displayname":"1"}`})
	other := add(join, event{"@alice:a.example", matrix.TypeMember, "@alice:a.example", `{"membership":"join","displayname":"2"}`})
	states := []matrix.StateMap{m.after[one], m.after[other]}
	ours, err := matrix.ResolveStates(m.version, states, m.load, nil)
	if err != nil || ours[matrix.StateTuple{Type: matrix.TypePowerLevels}] != levels {
		t.Errorf("we lost the power levels: %v, %v", ours, err)
	}
	g := newGMSL(m)
	var sets [][]gmsl.PDU
	for _, state := range states {
		var set []gmsl.PDU
		for _, id := range state {
			set = append(set, g.pdu(m.byID[id]))
		}
		sets = append(sets, set)
	}
	var auth []gmsl.PDU
	for _, e := range m.events {
		auth = append(auth, g.pdu(e))
	}
	theirs, err := gmsl.ResolveConflictsNew(gmsl.RoomVersionV11, sets, auth, sender, func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range theirs {
		if p.Type() == matrix.TypePowerLevels {
			t.Error("gomatrixserverlib keeps the power levels: it has been mended")
		}
	}
}

// rooms/v12/#state-resolution. ResolveConflictsNew panics in every room of version 12 that has a conflict between power
// levels, as it looks for the create event in a state that starts empty.
func TestGomatrixserverlibPanicsInVersion12(t *testing.T) {
	panicked := false
	for seed := uint64(0); seed < 20 && !panicked; seed++ {
		m := newRoom(t, matrix.LookupRoomVersion("12"), seed)
		g := newGMSL(m)
		m.oracles = []oracle{{merged: func(states []matrix.StateMap, _ matrix.StateMap) {
			if panicked {
				return
			}
			defer func() { panicked = recover() != nil }()
			var sets [][]gmsl.PDU
			var all []matrix.EventID
			for _, state := range states {
				var set []gmsl.PDU
				for _, id := range state {
					set, all = append(set, g.pdu(m.byID[id])), append(all, id)
				}
				sets = append(sets, set)
			}
			var auth []gmsl.PDU
			for _, e := range m.chain(all) {
				auth = append(auth, g.pdu(e))
			}
			_, _ = gmsl.ResolveConflictsNew(gmsl.RoomVersionV12, sets, auth, sender, func(string) bool { return false })
		}}}
		m.start()
		for range 30 {
			m.step()
		}
	}
	if !panicked {
		t.Error("it does not panic any more: compare room version 12 as well")
	}
}

// rooms/v11/#redactions: m.room.member "allows the signed key of the third_party_invite key". gomatrixserverlib drops it,
// and so gives such events a wrong ID.
func TestGomatrixserverlibDropsSignedInvites(t *testing.T) {
	m := newRoom(t, matrix.LookupRoomVersion("11"), 1)
	m.id = "!room:a.example"
	e := m.make(event{"@alice:a.example", matrix.TypeMember, "@carol:c.example", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":` + signedInvite(t) + `}}`})
	if theirs := newGMSL(m).pdu(e).EventID(); theirs == string(e.ID()) {
		t.Error("it has been mended: compare the IDs of such events")
	}
}

// rooms/v1/#authorisation-rules 4.1: "If event has no state_key, reject." Allowed reads the state key all the same.
func TestGomatrixserverlibPanicsOnAliasesWithoutStateKey(t *testing.T) {
	for _, version := range []string{"1", "5"} {
		m := newRoom(t, matrix.LookupRoomVersion(version), 1)
		m.id = "!room:a.example"
		g := newGMSL(m)
		create := m.make(event{"@alice:a.example", matrix.TypeCreate, "", `{"creator":"@alice:a.example"}`})
		provider, err := gmsl.NewAuthEvents([]gmsl.PDU{g.pdu(create)})
		if err != nil {
			t.Fatal(err)
		}
		b := &matrix.Builder{RoomID: m.id, Sender: "@alice:a.example", Type: matrix.TypeAliases, Content: []byte(`{}`), PrevEvents: []matrix.EventID{create.ID()}}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("version %s: it has been mended: ask it about such events", version)
				}
			}()
			_ = gmsl.Allowed(g.pdu(m.build(b)), provider, sender)
		}()
	}
}

// appendices/#canonical-json: keys are strings, and a quote in a string is written \".
func TestGomatrixserverlibWritesWrongJSON(t *testing.T) {
	got, err := gmsl.EnforcedCanonicalJSON([]byte(`{"a\"b":1}`), gmsl.RoomVersionV11)
	if err != nil || string(got) != `{"a"b":1}` {
		t.Errorf("it has been mended: %s, %v", got, err)
	}
	if ours, err := matrix.CanonicalJSON(nil, []byte(`{"a\"b":1}`)); err != nil || string(ours) != `{"a\"b":1}` {
		t.Errorf("ours is %s, %v", ours, err)
	}
}
