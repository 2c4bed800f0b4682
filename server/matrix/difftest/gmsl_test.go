package difftest

import (
	"maps"
	"strings"

	"github.com/google/go-cmp/cmp"
	gmsl "github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"parley.im/parley/server/matrix"
)

// gmslRoom keeps gomatrixserverlib's reading of a room's events.
type gmslRoom struct {
	*room
	impl gmsl.IRoomVersion
	pdus map[*matrix.Event]gmsl.PDU
	ids  map[string]matrix.EventID // by the ID that gomatrixserverlib gives an event
	n    int                       // events built
}

func newGMSL(m *room) *gmslRoom {
	return &gmslRoom{room: m, impl: gmsl.MustGetRoomVersion(gmsl.RoomVersion(m.version.ID)), pdus: map[*matrix.Event]gmsl.PDU{}, ids: map[string]matrix.EventID{}}
}

func (g *gmslRoom) pdu(e *matrix.Event) gmsl.PDU {
	if p := g.pdus[e]; p != nil {
		return p
	}
	p, err := g.impl.NewEventFromUntrustedJSON(e.JSON())
	if err != nil {
		g.t.Fatalf("gomatrixserverlib does not take %s: %v", e.JSON(), err)
	}
	g.pdus[e] = p
	g.ids[p.EventID()] = e.ID()
	return p
}

func sender(_ spec.RoomID, id spec.SenderID) (*spec.UserID, error) {
	return spec.NewUserID(string(id), true)
}

// askGMSL asks gomatrixserverlib about events, what redaction leaves of them, verdicts and resolutions.
func askGMSL(m *room, counted *tally) oracle {
	g := newGMSL(m)
	o := oracle{built: g.built, tried: g.tried}
	if m.version.StateResolution != matrix.StateResolutionV21 { // there it panics, see faults_test.go
		o.merged = func(states []matrix.StateMap, ours matrix.StateMap) { g.merged(states, ours, counted) }
	}
	return o
}

func (g *gmslRoom) built(e *matrix.Event) {
	p := g.pdu(e)
	if g.version.RedactionOfVersion11 && e.ContentMember("third_party_invite") != nil {
		return // its event ID is wrong, see faults_test.go
	}
	if p.EventID() != string(e.ID()) || p.Redacted() || p.RoomID().String() != string(e.RoomID()) {
		g.t.Errorf("version %s: %s in %s, there %s in %s, redacted %v: %s", g.version, e.ID(), e.RoomID(), p.EventID(), p.RoomID(), p.Redacted(), e.JSON())
	}
	if g.n++; g.n%4 > 0 && e.Type() == matrix.TypeMember {
		return // most events are of this type, and this takes half of the time
	}
	p2, err := g.impl.NewEventFromUntrustedJSON(e.JSON())
	if err != nil {
		g.t.Fatal(err)
	}
	p2.Redact()
	ours, err1 := matrix.CanonicalJSON(nil, e.Redact().JSON())
	theirs, err2 := matrix.CanonicalJSON(nil, p2.JSON())
	if err1 != nil || err2 != nil || string(ours) != string(theirs) {
		g.t.Errorf("version %s, redacted:\n%s\nthere\n%s", g.version, ours, theirs)
	}
}

func (g *gmslRoom) tried(e *matrix.Event, state matrix.StateLookup, ours error) {
	if e.Type() == matrix.TypeAliases && (!e.IsState() || !e.Version().AliasesRule) {
		return // it panics, or has a rule that room version 6 took away; see faults_test.go
	}
	var auth []gmsl.PDU
	keys := append(e.AuthKeys(), matrix.StateTuple{Type: matrix.TypeCreate})
	for _, k := range keys {
		if x := state(k.Type, k.StateKey); x != nil {
			auth = append(auth, g.pdu(x))
		}
	}
	provider, err := gmsl.NewAuthEvents(auth)
	if err != nil {
		g.t.Fatal(err)
	}
	theirs := gmsl.Allowed(g.pdu(e), provider, sender)
	if (ours == nil) != (theirs == nil) && !g.knownVerdict(e, state, ours, theirs) {
		g.t.Errorf("version %s: %s\nours   %v\ntheirs %v\nstate %s", g.version, e.JSON(), ours, theirs, authState(keys, state))
	}
}

func authState(keys []matrix.StateTuple, state matrix.StateLookup) (text string) {
	for _, k := range keys {
		if x := state(k.Type, k.StateKey); x != nil {
			text += "\n  " + k.Type + " " + k.StateKey + " by " + string(x.Sender()) + " " + string(x.Content())
		}
	}
	return text
}

// knownVerdict tells the cases in which gomatrixserverlib is known to be wrong; see faults_test.go.
func (g *gmslRoom) knownVerdict(e *matrix.Event, state matrix.StateLookup, ours, theirs error) bool {
	membership, joinRule := "", ""
	if x := state(matrix.TypeJoinRules, ""); x != nil {
		joinRule = x.ContentString("join_rule")
	}
	if x := state(matrix.TypeMember, string(e.Sender())); x != nil {
		membership = x.Membership()
	}
	target := ""
	if key, ok := e.StateKey(); ok && state(matrix.TypeMember, key) != nil {
		target = state(matrix.TypeMember, key).Membership()
	}
	own := e.Is(matrix.TypeMember, string(e.Sender()))
	switch {
	case ours != nil && theirs == nil && own && e.Membership() == matrix.Leave && membership != matrix.Ban:
		return true // leaveFromOutside
	case ours != nil && theirs == nil && own && e.Membership() == matrix.Join && (membership == matrix.Join || membership == matrix.Invite):
		return true // joinByAnyRule
	case ours != nil && theirs == nil && e.Membership() == matrix.Leave && target == matrix.Ban:
		return strings.Contains(ours.Error(), "to kick") // unbanOfAnEqual
	case ours != nil && theirs == nil && e.Type() == matrix.TypeMember && joinRule == matrix.JoinRuleKnockRestricted && !g.version.KnockRestricted:
		return true // knockRestrictedBeforeItsTime
	case ours != nil && theirs == nil && e.Is(matrix.TypePowerLevels, ""):
		// usersDefaultAboveOneself, levelAddedWithItsDefault, removedUserWhoKeepsTheLevel, addedUserWithTheDefault, levelRemovedFromItsDefault
		return removesDefault(e, state, ours) || strings.Contains(ours.Error(), "has not the power to set") || strings.Contains(ours.Error(), "to change that of") ||
			strings.Contains(ours.Error(), "has not the power to give")
	case ours != nil && theirs == nil && e.Type() == matrix.TypeMember && e.ContentMember("third_party_invite") != nil:
		// thirdPartyInviteOfAnother, thirdPartyInviteWithMore, thirdPartyInviteOfTheBanned
		signed, _ := unmarshal(e.ContentMember("third_party_invite"))["signed"].(map[string]any)
		return strings.Contains(ours.Error(), "sent by somebody else") || strings.Contains(ours.Error(), "is banned from the room") ||
			strings.Contains(ours.Error(), "no signature of the third-party invite") && signed["more"] != nil
	case ours == nil && theirs != nil && own && e.Membership() == matrix.Join && membership == matrix.Knock:
		return strings.Contains(theirs.Error(), `"public" forbids it`) // joinAfterKnocking
	case ours == nil && theirs != nil && e.Type() == matrix.TypeMember && e.ContentMember("third_party_invite") != nil:
		return strings.Contains(theirs.Error(), "Couldn't verify signature on third-party invite") // thirdPartyInviteOfTheOneKey
	case ours == nil && theirs != nil && e.Is(matrix.TypePowerLevels, ""):
		for _, what := range []string{"change user", "notification level", "change level from"} {
			if strings.Contains(theirs.Error(), what) {
				return true // levelsThatAreNotThere
			}
		}
	}
	return false
}

// removesDefault tells whether what is refused is that a level is taken away that was what it is without being named.
func removesDefault(e *matrix.Event, state matrix.StateLookup, refusal error) bool {
	old := state(matrix.TypePowerLevels, "")
	for name, fallback := range map[string]string{"ban": "50", "kick": "50", "redact": "50", "state_default": "50", "invite": "0", "events_default": "0", "users_default": "0"} {
		if strings.HasSuffix(refusal.Error(), " to change "+name) {
			return old != nil && string(old.ContentMember(name)) == fallback && e.ContentMember(name) == nil
		}
	}
	return false
}

func (g *gmslRoom) merged(states []matrix.StateMap, ours matrix.StateMap, counted *tally) {
	var sets [][]gmsl.PDU
	ids := map[matrix.EventID]bool{}
	for _, state := range states {
		var set []gmsl.PDU
		for _, id := range state {
			set = append(set, g.pdu(g.byID[id]))
			ids[id] = true
		}
		sets = append(sets, set)
	}
	var all []matrix.EventID
	for id := range ids {
		all = append(all, id)
	}
	var auth []gmsl.PDU
	for _, e := range g.chain(all) {
		auth = append(auth, g.pdu(e))
	}
	if g.version.StateResolution == matrix.StateResolutionV1 {
		// The first algorithm of gomatrixserverlib wants what is not conflicted as its auth events.
		auth = auth[:0]
		for _, id := range union(states) {
			if id != "" {
				auth = append(auth, g.pdu(g.byID[id]))
			}
		}
	}
	resolved, err := gmsl.ResolveConflictsNew(gmsl.RoomVersion(g.version.ID), sets, auth, sender, func(string) bool { return false })
	if err != nil {
		g.t.Fatal(err)
	}
	theirs := matrix.StateMap{}
	for _, p := range resolved {
		theirs[matrix.StateTuple{Type: p.Type(), StateKey: *p.StateKey()}] = g.ids[p.EventID()]
	}
	if maps.Equal(ours, theirs) {
		counted.same.Add(1)
		return
	}
	// The second algorithm of gomatrixserverlib has the faults that faults_test.go lists, and its wrong verdicts
	// tell on both: the referee decides.
	counted.different.Add(1)
	g.referee(states, ours)
}

// askReferee has every resolution of algorithm 2.1 made a second time by the referee; that of the others it makes where
// gomatrixserverlib does not agree with us.
func askReferee(m *room, _ *tally) (o oracle) {
	if m.version.StateResolution == matrix.StateResolutionV21 {
		o.merged = m.referee
	}
	return o
}

func (m *room) referee(states []matrix.StateMap, ours matrix.StateMap) {
	if want := (&referee{version: m.version, events: m.byID}).resolve(states); !maps.Equal(want, ours) {
		m.t.Errorf("version %s: the referee is against us: %s", m.version, cmp.Diff(want, ours))
	}
}

// union is what states do not contradict each other about; where they do it has "".
func union(states []matrix.StateMap) matrix.StateMap {
	all := matrix.StateMap{}
	for _, state := range states {
		for tuple, id := range state {
			if have, ok := all[tuple]; ok && have != id {
				id = ""
			}
			all[tuple] = id
		}
	}
	return all
}
