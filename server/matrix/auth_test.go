package matrix

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An ev is an event of a room in the tables: who sends what, with which content. A state key of "-" is none.
type ev struct {
	sender       UserID
	typ, key     string
	content      string
	prevIsCreate bool
	signedBy     ServerName // besides the sender's server
	redacts      EventID
}

const (
	alice = UserID("@alice:a.example") // the creator
	bob   = UserID("@bob:b.example")
	carol = UserID("@carol:c.example")
	dave  = UserID("@dave:a.example")
	erin  = UserID("@erin:e.example") // an additional creator in room version 12
)

func membership(of UserID, membership string) ev {
	return ev{of, TypeMember, string(of), fmt.Sprintf(`{"membership":%q}`, membership), false, "", ""}
}

func powers(content string) ev { return ev{sender: alice, typ: TypePowerLevels, content: content} }

func joinRule(rule string) ev {
	return ev{sender: alice, typ: TypeJoinRules, content: fmt.Sprintf(`{"join_rule":%q}`, rule)}
}

func change(by UserID, of UserID, membership, more string) ev {
	return ev{sender: by, typ: TypeMember, key: string(of), content: fmt.Sprintf(`{"membership":%q%s}`, membership, more)}
}

// authCases is the table of the authorization rules. want holds what each version answers, as "FROM-TO:RULE", with
// "ok" for an event that is allowed; versions that are not named are not tried.
var authCases = []struct {
	name  string
	state []ev
	event ev
	want  string
}{
	{"create with prev_events", nil, ev{sender: alice, typ: TypeCreate, content: `{"creator":"@alice:a.example"}`, prevIsCreate: true}, "1-12:1.1"},
	{"create by a user of another server", nil, ev{sender: bob, typ: TypeCreate, content: `{"creator":"@bob:b.example"}`}, "1-11:1.2 12:ok"},
	{"create of an unknown version", nil, ev{sender: alice, typ: TypeCreate, content: `{"creator":"@alice:a.example","room_version":"13"}`}, "1-12:1.3"},
	{"create of a version that is no string", nil, ev{sender: alice, typ: TypeCreate, content: `{"creator":"@alice:a.example","room_version":1}`}, "1-12:1.3"},
	{"create without creator", nil, ev{sender: alice, typ: TypeCreate, content: `{}`}, "1-10:1.4 11-12:ok"},
	{"create with bad additional creators", nil, ev{sender: alice, typ: TypeCreate, content: `{"creator":"x","additional_creators":["bob"]}`}, "1-11:ok 12:1.4"},
	{"create with additional creators that are no list", nil, ev{sender: alice, typ: TypeCreate, content: `{"creator":"x","additional_creators":"@bob:b.example"}`}, "1-11:ok 12:1.4"},

	{"aliases without state key", []ev{membership(alice, Join)}, ev{sender: alice, typ: TypeAliases, key: "-", content: `{}`}, "1-5:4.1 6-12:ok"},
	{"aliases of another server", []ev{membership(alice, Join)}, ev{sender: alice, typ: TypeAliases, key: "b.example", content: `{}`}, "1-5:4.2 6-12:ok"},
	{"aliases of one's server, from outside", nil, ev{sender: bob, typ: TypeAliases, key: "b.example", content: `{}`}, "1-5:ok 6-11:5 12:6"},

	{"member without state key", nil, ev{sender: bob, typ: TypeMember, key: "-", content: `{"membership":"join"}`}, "1-5:5.1 6-11:4.1 12:5.1"},
	{"member without membership", nil, ev{sender: bob, typ: TypeMember, key: string(bob), content: `{}`}, "1-5:5.1 6-11:4.1 12:5.1"},
	{"membership that is no string", nil, ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":1}`}, "1-5:5.1 6-11:4.1 12:5.1"},
	{"unknown membership", nil, change(bob, bob, "dance", ""), "1-5:5.6 6:4.6 7:4.7 8-11:4.8 12:5.8"},

	{"first join of the creator", nil, ev{sender: alice, typ: TypeMember, key: string(alice), content: `{"membership":"join"}`, prevIsCreate: true}, "1-12:ok"},
	{"first join of another", nil, ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join"}`, prevIsCreate: true}, "1-5:5.2.4 6-7:4.2.4 8-11:4.3.4 12:5.3.4"},
	{"join for another", []ev{joinRule("public")}, change(alice, bob, Join, ""), "1-5:5.2.2 6-7:4.2.2 8-11:4.3.2 12:5.3.2"},
	{"join when banned", []ev{joinRule("public"), membership(bob, Ban)}, change(bob, bob, Join, ""), "1-5:5.2.3 6-7:4.2.3 8-11:4.3.3 12:5.3.3"},
	{"join of a public room", []ev{joinRule("public")}, change(bob, bob, Join, ""), "1-12:ok"},
	{"join without invite", []ev{joinRule("invite")}, change(bob, bob, Join, ""), "1-5:5.2.4 6-7:4.2.4 8-11:4.3.4 12:5.3.4"},
	{"join with an invite", []ev{joinRule("invite"), membership(bob, Invite)}, change(bob, bob, Join, ""), "1-12:ok"},
	{"join again", []ev{joinRule("invite"), membership(bob, Join)}, change(bob, bob, Join, ""), "1-12:ok"},
	{"join after leaving", []ev{joinRule("invite"), membership(bob, Leave)}, change(bob, bob, Join, ""), "1-5:5.2.4 6-7:4.2.4 8-11:4.3.4 12:5.3.4"},
	{"join of a room to knock at, invited", []ev{joinRule("knock"), membership(bob, Invite)}, change(bob, bob, Join, ""), "1-5:5.2.6 6:4.2.6 7-12:ok"},
	{"join of a room to knock at", []ev{joinRule("knock"), membership(bob, Knock)}, change(bob, bob, Join, ""), "1-5:5.2.6 6:4.2.6 7:4.2.4 8-11:4.3.4 12:5.3.4"},
	{"join of a private room", []ev{joinRule("private"), membership(bob, Invite)}, change(bob, bob, Join, ""), "1-5:5.2.6 6-7:4.2.6 8-11:4.3.7 12:5.3.7"},
	{"restricted join, invited", []ev{joinRule("restricted"), membership(bob, Invite)}, change(bob, bob, Join, ""), "1-5:5.2.6 6-7:4.2.6 8-12:ok"},
	{"restricted join, nobody lets in", []ev{joinRule("restricted"), membership(alice, Join)}, change(bob, bob, Join, ""), "8-11:4.3.5.2 12:5.3.5.2"},
	{"restricted join, let in", []ev{joinRule("restricted"), membership(alice, Join)},
		ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join","join_authorised_via_users_server":"@alice:a.example"}`, signedBy: "a.example"}, "6-7:4.2.6 8-12:ok"},
	{"restricted join, let in but not signed", []ev{joinRule("restricted"), membership(alice, Join)},
		change(bob, bob, Join, `,"join_authorised_via_users_server":"@alice:a.example"`), "8-11:4.2.1 12:5.2.1"},
	{"restricted join, let in by no user ID", []ev{joinRule("restricted"), membership(alice, Join)},
		change(bob, bob, Join, `,"join_authorised_via_users_server":7`), "8-11:4.2.1 12:5.2.1"},
	{"restricted join, let in by one who left", []ev{joinRule("restricted"), membership(alice, Leave)},
		ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join","join_authorised_via_users_server":"@alice:a.example"}`, signedBy: "a.example"}, "8-11:4.3.5.2 12:5.3.5.2"},
	{"restricted join, let in by one who may not invite", []ev{joinRule("restricted"), membership(dave, Join), powers(`{"invite":50}`)},
		ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join","join_authorised_via_users_server":"@dave:a.example"}`, signedBy: "a.example"}, "8-11:4.3.5.2 12:5.3.5.2"},
	{"knock_restricted join, let in", []ev{joinRule("knock_restricted"), membership(alice, Join)},
		ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join","join_authorised_via_users_server":"@alice:a.example"}`, signedBy: "a.example"}, "7:4.2.6 8-9:4.3.7 10-12:ok"},

	{"invite", []ev{membership(alice, Join)}, change(alice, bob, Invite, ""), "1-12:ok"},
	{"invite from outside", nil, change(alice, bob, Invite, ""), "1-5:5.3.2 6-7:4.3.2 8-11:4.4.2 12:5.4.2"},
	{"invite of a member", []ev{membership(alice, Join), membership(bob, Join)}, change(alice, bob, Invite, ""), "1-5:5.3.3 6-7:4.3.3 8-11:4.4.3 12:5.4.3"},
	{"invite of the banned", []ev{membership(alice, Join), membership(bob, Ban)}, change(alice, bob, Invite, ""), "1-5:5.3.3 6-7:4.3.3 8-11:4.4.3 12:5.4.3"},
	{"invite without the power", []ev{membership(bob, Join), powers(`{"invite":1}`)}, change(bob, carol, Invite, ""), "1-5:5.3.5 6-7:4.3.5 8-11:4.4.5 12:5.4.5"},
	{"third-party invite of the banned", []ev{membership(bob, Ban)}, change(alice, bob, Invite, `,"third_party_invite":{}`), "1-5:5.3.1.1 6-7:4.3.1.1 8-11:4.4.1.1 12:5.4.1.1"},
	{"third-party invite, nothing signed", nil, change(alice, bob, Invite, `,"third_party_invite":{}`), "1-5:5.3.1.2 6-7:4.3.1.2 8-11:4.4.1.2 12:5.4.1.2"},
	{"third-party invite without token", nil, change(alice, bob, Invite, `,"third_party_invite":{"signed":{"mxid":"@bob:b.example"}}`), "1-5:5.3.1.3 6-7:4.3.1.3 8-11:4.4.1.3 12:5.4.1.3"},
	{"third-party invite of another", nil, change(alice, bob, Invite, `,"third_party_invite":{"signed":{"mxid":"@b:b.example","token":"t"}}`), "1-5:5.3.1.4 6-7:4.3.1.4 8-11:4.4.1.4 12:5.4.1.4"},
	{"third-party invite with unknown token", nil, change(alice, bob, Invite, `,"third_party_invite":{"signed":{"mxid":"@bob:b.example","token":"t"}}`), "1-5:5.3.1.5 6-7:4.3.1.5 8-11:4.4.1.5 12:5.4.1.5"},
	{"third-party invite of another sender", []ev{{sender: bob, typ: TypeThirdPartyInvite, key: "t", content: `{}`}},
		change(alice, bob, Invite, `,"third_party_invite":{"signed":{"mxid":"@bob:b.example","token":"t"}}`), "1-5:5.3.1.6 6-7:4.3.1.6 8-11:4.4.1.6 12:5.4.1.6"},
	{"third-party invite with a wrong signature", []ev{{sender: alice, typ: TypeThirdPartyInvite, key: "t", content: `{"public_key":"` + thirdPartyKey + `"}`}},
		change(alice, bob, Invite, `,"third_party_invite":{"signed":{"mxid":"@bob:b.example","token":"t","signatures":{"id":{"ed25519:0":"AA"}}}}`), "1-5:5.3.1.8 6-7:4.3.1.8 8-11:4.4.1.8 12:5.4.1.8"},
	{"third-party invite", []ev{{sender: alice, typ: TypeThirdPartyInvite, key: "t", content: `{"public_key":"` + thirdPartyKey + `"}`}},
		change(alice, bob, Invite, `,"third_party_invite":{"signed":`+signedInvite+`}`), "1-12:ok"},
	{"third-party invite, key in the list", []ev{{sender: alice, typ: TypeThirdPartyInvite, key: "t", content: `{"public_keys":[{"public_key":"x"},{"public_key":"` + thirdPartyKey + `"}]}`}},
		change(alice, bob, Invite, `,"third_party_invite":{"signed":`+signedInvite+`}`), "1-12:ok"},

	{"leave", []ev{membership(bob, Join)}, change(bob, bob, Leave, ""), "1-12:ok"},
	{"refuse an invite", []ev{membership(bob, Invite)}, change(bob, bob, Leave, ""), "1-12:ok"},
	{"take back a knock", []ev{membership(bob, Knock)}, change(bob, bob, Leave, ""), "1-5:5.4.1 6:4.4.1 7-12:ok"},
	{"leave when banned", []ev{membership(bob, Ban)}, change(bob, bob, Leave, ""), "1-5:5.4.1 6-7:4.4.1 8-11:4.5.1 12:5.5.1"},
	{"kick from outside", []ev{membership(bob, Join)}, change(alice, bob, Leave, ""), "1-5:5.4.2 6-7:4.4.2 8-11:4.5.2 12:5.5.2"},
	{"unban without the power", []ev{membership(carol, Join), membership(bob, Ban), powers(`{"users":{"@carol:c.example":50},"ban":51}`)}, change(carol, bob, Leave, ""), "1-5:5.4.3 6-7:4.4.3 8-11:4.5.3 12:5.5.3"},
	{"unban", []ev{membership(carol, Join), membership(bob, Ban), powers(`{"users":{"@carol:c.example":50}}`)}, change(carol, bob, Leave, ""), "1-12:ok"},
	{"kick", []ev{membership(carol, Join), membership(bob, Join), powers(`{"users":{"@carol:c.example":50}}`)}, change(carol, bob, Leave, ""), "1-12:ok"},
	{"kick without the power", []ev{membership(carol, Join), membership(bob, Join), powers(`{"users":{"@carol:c.example":49}}`)}, change(carol, bob, Leave, ""), "1-5:5.4.5 6-7:4.4.5 8-11:4.5.5 12:5.5.5"},
	{"kick of an equal", []ev{membership(carol, Join), membership(bob, Join), powers(`{"users":{"@carol:c.example":50,"@bob:b.example":50}}`)}, change(carol, bob, Leave, ""), "1-5:5.4.5 6-7:4.4.5 8-11:4.5.5 12:5.5.5"},
	{"kick of the creator", []ev{membership(carol, Join), membership(alice, Join), powers(`{"users":{"@carol:c.example":100}}`)}, change(carol, alice, Leave, ""), "1-11:ok 12:5.5.5"},

	{"ban", []ev{membership(carol, Join), powers(`{"users":{"@carol:c.example":50}}`)}, change(carol, bob, Ban, ""), "1-12:ok"},
	{"ban from outside", []ev{powers(`{"users":{"@carol:c.example":50}}`)}, change(carol, bob, Ban, ""), "1-5:5.5.1 6-7:4.5.1 8-11:4.6.1 12:5.6.1"},
	{"ban without the power", []ev{membership(carol, Join), powers(`{"users":{"@carol:c.example":49}}`)}, change(carol, bob, Ban, ""), "1-5:5.5.3 6-7:4.5.3 8-11:4.6.3 12:5.6.3"},
	{"ban of an equal", []ev{membership(carol, Join), powers(`{"users_default":50}`)}, change(carol, bob, Ban, ""), "1-5:5.5.3 6-7:4.5.3 8-11:4.6.3 12:5.6.3"},

	{"knock", []ev{joinRule("knock")}, change(bob, bob, Knock, ""), "1-5:5.6 6:4.6 7-12:ok"},
	{"knock at a closed room", []ev{joinRule("invite")}, change(bob, bob, Knock, ""), "7:4.6.1 8-11:4.7.1 12:5.7.1"},
	{"knock at a knock_restricted room", []ev{joinRule("knock_restricted")}, change(bob, bob, Knock, ""), "7:4.6.1 8-9:4.7.1 10-12:ok"},
	{"knock for another", []ev{joinRule("knock")}, change(bob, carol, Knock, ""), "7:4.6.2 8-11:4.7.2 12:5.7.2"},
	{"knock from within", []ev{joinRule("knock"), membership(bob, Join)}, change(bob, bob, Knock, ""), "7:4.6.4 8-11:4.7.4 12:5.7.4"},
	{"knock when banned", []ev{joinRule("knock"), membership(bob, Ban)}, change(bob, bob, Knock, ""), "7:4.6.4 8-11:4.7.4 12:5.7.4"},

	{"message from outside", []ev{membership(bob, Invite)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-5:6 6-11:5 12:6"},
	{"message", []ev{membership(bob, Join)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-12:ok"},
	{"third-party invite without the power", []ev{membership(bob, Join), powers(`{"invite":50}`)}, ev{sender: bob, typ: TypeThirdPartyInvite, key: "t", content: `{}`}, "1-5:7.1 6-11:6.1 12:7.1"},
	{"third-party invite takes only the invite level", []ev{membership(bob, Join), powers(`{"invite":0,"state_default":100}`)}, ev{sender: bob, typ: TypeThirdPartyInvite, key: "t", content: `{}`}, "1-12:ok"},
	{"message without the power", []ev{membership(bob, Join), powers(`{"events_default":1}`)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-5:8 6-11:7 12:8"},
	{"message with the power for its type", []ev{membership(bob, Join), powers(`{"events_default":1,"events":{"m.room.message":0}}`)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-12:ok"},
	{"state without power levels takes 50", []ev{membership(bob, Join)}, ev{sender: bob, typ: TypeName, content: `{}`}, "1-5:8 6-11:7 12:8"},
	{"state of the creator without power levels", []ev{membership(alice, Join)}, ev{sender: alice, typ: TypeName, content: `{}`}, "1-12:ok"},
	{"state that belongs to another", []ev{membership(alice, Join)}, ev{sender: alice, typ: "x", key: string(bob), content: `{}`}, "1-5:9 6-11:8 12:9"},
	{"powers in strings", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":" +050 "},"events_default":"50"}`)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-9:ok"},
	{"powers as floats", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":50.9},"events_default":51}`)}, ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "1-5:8"},
	{"an additional creator has all power", []ev{membership(erin, Join), powers(`{"events_default":1000}`)}, ev{sender: erin, typ: TypeMessage, key: "-", content: `{}`}, "6-11:7 12:ok"},

	{"powers that are strings", []ev{membership(alice, Join)}, powers(`{"ban":"50"}`), "1-9:ok 10-11:9.1 12:10.1"},
	{"powers that are nonsense", []ev{membership(alice, Join)}, powers(`{"ban":"many"}`), "1-5:10.1 6-9:9.1 10-11:9.1 12:10.1"},
	{"powers of events that are no object", []ev{membership(alice, Join)}, powers(`{"events":[]}`), "10-11:9.2 12:10.2"},
	{"powers of events that are strings", []ev{membership(alice, Join)}, powers(`{"notifications":{"room":"1"}}`), "1-9:ok 10-11:9.2 12:10.2"},
	{"powers of what is no user", []ev{membership(alice, Join)}, powers(`{"users":{"bob":1}}`), "1-5:10.1 6-9:9.1 10-11:9.3 12:10.3"},
	{"powers of users that are no object", []ev{membership(alice, Join)}, powers(`{"users":1}`), "1-5:10.1 6-9:9.1 10-11:9.3 12:10.3"},
	{"powers of the creator", []ev{membership(alice, Join)}, powers(`{"users":{"@alice:a.example":100}}`), "1-11:ok 12:10.4"},
	{"powers of an additional creator", []ev{membership(alice, Join)}, powers(`{"users":{"@erin:e.example":100}}`), "1-11:ok 12:10.4"},
	{"first powers may be anything", []ev{membership(alice, Join)}, powers(`{"users":{"@bob:b.example":9000},"ban":9000}`), "1-12:ok"},
	{"lower what is above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60},"ban":70}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"ban":50}`)), "1-5:10.3.1 6-9:9.3.1 10-11:9.5.1 12:10.6.1"},
	{"remove what is above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60},"ban":70}`)}, by(bob, powers(`{"users":{"@bob:b.example":60}}`)), "1-5:10.3.1 6-9:9.3.1 10-11:9.5.1 12:10.6.1"},
	{"raise above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"ban":61}`)), "1-5:10.3.2 6-9:9.3.2 10-11:9.5.2 12:10.6.2"},
	{"raise to oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"ban":60}`)), "1-12:ok"},
	{"lower an event above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60},"events":{"x":61}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"events":{"x":1}}`)), "1-5:10.4.1 6-9:9.4.1 10-11:9.6.1 12:10.7.1"},
	{"raise an event above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"events":{"x":61}}`)), "1-5:10.5.1 6-9:9.5.1 10-11:9.7.1 12:10.8.1"},
	{"raise a notification above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60},"notifications":{"room":61}}`)), "1-5:ok 6-9:9.5.1 10-11:9.7.1 12:10.8.1"},
	{"lower an equal", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60,"@x:x":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60,"@x:x":1}}`)), "1-5:10.6.1 6-9:9.6.1 10-11:9.8.1 12:10.9.1"},
	{"remove an equal", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60,"@x:x":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60}}`)), "1-5:10.6.1 6-9:9.6.1 10-11:9.8.1 12:10.9.1"},
	{"lower oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":1}}`)), "1-12:ok"},
	{"raise another above oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":60,"@x:x":61}}`)), "1-5:10.7.1 6-9:9.7.1 10-11:9.9.1 12:10.10.1"},
	{"raise oneself", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":60}}`)}, by(bob, powers(`{"users":{"@bob:b.example":61}}`)), "1-5:10.7.1 6-9:9.7.1 10-11:9.9.1 12:10.10.1"},

	{"redact an event of another server", []ev{membership(bob, Join)}, ev{sender: bob, typ: TypeRedaction, key: "-", content: `{}`, redacts: "$x:a.example"}, "1-2:11.3 3-12:ok"},
	{"redact an event of one's server", []ev{membership(bob, Join)}, ev{sender: bob, typ: TypeRedaction, key: "-", content: `{}`, redacts: "$x:b.example"}, "1-2:ok 3-12:ok"},
	{"redact with the power", []ev{membership(bob, Join), powers(`{"users":{"@bob:b.example":50}}`)}, ev{sender: bob, typ: TypeRedaction, key: "-", content: `{}`, redacts: "$x:a.example"}, "1-12:ok"},
}

func by(u UserID, e ev) ev { e.sender = u; return e }

// A third-party invite of bob, and the key of the identity server that signed it.
var signedInvite, thirdPartyKey = func() (string, string) {
	key, err := NewSigningKey("ed25519:0", []byte("third-party-invites-are-signed-!"))
	if err != nil {
		panic(err)
	}
	signed, err := SignJSON([]byte(`{"mxid":"@bob:b.example","token":"t"}`), "id.example", key)
	if err != nil {
		panic(err)
	}
	return string(signed), key.Public().String()
}()

// room builds the events of a table's case.
type room struct {
	t       testing.TB
	version *RoomVersion
	create  *Event
	state   []*Event
}

func newRoom(t testing.TB, v *RoomVersion) *room {
	r := &room{t: t, version: v}
	content := `{"creator":"@alice:a.example"}`
	if v.PrivilegedCreators {
		content = `{"additional_creators":["@erin:e.example"]}`
	}
	r.create = r.event(ev{sender: alice, typ: TypeCreate, content: content})
	r.state = []*Event{r.create}
	return r
}

func (r *room) event(e ev) *Event {
	r.t.Helper()
	b := Builder{RoomID: "!room:a.example", Sender: e.sender, Type: e.typ, Content: []byte(e.content), Redacts: e.redacts, Time: time.UnixMilli(1), Depth: 1}
	if e.key != "-" {
		b.StateKey = &e.key
	}
	if r.version.RoomIDIsCreateID && r.create != nil {
		b.RoomID = r.create.RoomID()
	}
	switch {
	case e.prevIsCreate && r.create != nil:
		b.PrevEvents = []EventID{r.create.ID()}
	case e.typ != TypeCreate:
		b.PrevEvents = []EventID{"$some:where"}
	}
	built, err := b.Build(r.version, e.sender.Server(), testKey(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	if e.signedBy != "" {
		built = built.WithSignature(e.signedBy, testKey(r.t))
	}
	return built
}

// answers reads "1-5:5.1 6:ok" as what each version answers.
func answers(t *testing.T, want string) map[string]string {
	m := map[string]string{}
	for _, part := range strings.Fields(want) {
		versions, rule, _ := strings.Cut(part, ":")
		from, to, isRange := strings.Cut(versions, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil {
			t.Fatalf("bad table: %q", part)
		}
		for v := first; v <= last; v++ {
			m[strconv.Itoa(v)] = rule
		}
	}
	return m
}

func TestAuthorizationRules(t *testing.T) {
	for _, c := range authCases {
		for id, want := range answers(t, c.want) {
			t.Run(c.name+"/"+id, func(t *testing.T) {
				r := newRoom(t, LookupRoomVersion(id))
				for _, s := range c.state {
					r.state = append(r.state, r.event(s))
				}
				err := Authorize(r.event(c.event), Lookup(r.state))
				got := "ok"
				var rule *AuthError
				if errors.As(err, &rule) {
					got = rule.Rule
				}
				if got != want {
					t.Errorf("got rule %s (%v), want %s", got, err, want)
				}
			})
		}
	}
}

func TestAuthEventsOfAnEvent(t *testing.T) {
	for _, id := range []string{"1", "6", "11", "12"} {
		v := LookupRoomVersion(id)
		section := "2"
		if v.RoomIDIsCreateID {
			section = "3"
		}
		r := newRoom(t, v)
		mine, levels := r.event(membership(bob, Join)), r.event(powers(`{"events_default":0}`))
		other := r.event(ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join","x":1}`})
		carols, message := r.event(membership(carol, Join)), r.event(ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`})
		base := []*Event{mine, levels}
		if !v.RoomIDIsCreateID {
			base = append(base, r.create)
		}
		foreign := func() *Event {
			b := Builder{RoomID: "!other:a.example", Sender: alice, Type: TypePowerLevels, StateKey: new(string), Content: []byte(`{}`), Time: time.UnixMilli(1)}
			if v.RoomIDIsCreateID {
				b.RoomID = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
			}
			e, err := b.Build(v, "a.example", testKey(t))
			if err != nil {
				t.Fatal(err)
			}
			return e
		}()
		for name, c := range map[string]struct {
			auth     []*Event
			rejected EventID
			want     string
		}{
			"all right":          {base, "", ""},
			"duplicate":          {append([]*Event{other}, base...), "", section + ".1"},
			"the same twice":     {append([]*Event{mine}, base...), "", section + ".1"},
			"excess":             {append([]*Event{carols}, base...), "", section + ".2"},
			"not a state event":  {append([]*Event{message}, base...), "", section + ".2"},
			"rejected":           {base, mine.ID(), section + ".3"},
			"of another room":    {append([]*Event{foreign}, base[0], base[len(base)-1]), "", section + ".5"},
			"without membership": {base[1:], "", map[bool]string{true: "6", false: "5"}[v.AliasesRule || v.RoomIDIsCreateID]},
			"rejected create":    {base, r.create.ID(), map[bool]string{true: "2", false: "2.3"}[v.RoomIDIsCreateID]},
		} {
			if name == "of another room" && v.RoomIDIsCreateID {
				c.auth = []*Event{foreign, mine}
			}
			err := AuthorizeByAuthEvents(message, c.auth, r.create, func(id EventID) bool { return id == c.rejected })
			got := ""
			var rule *AuthError
			if errors.As(err, &rule) {
				got = rule.Rule
			}
			if got != c.want {
				t.Errorf("version %s, %s: got %v, want %q", id, name, err, c.want)
			}
		}
		if v.RoomIDIsCreateID {
			if err := AuthorizeByAuthEvents(message, append([]*Event{r.create}, base...), r.create, nil); err == nil || err.(*AuthError).Rule != "3.2" {
				t.Errorf("create among the auth events of version 12: %v", err)
			}
			if err := AuthorizeByAuthEvents(message, base, nil, nil); err == nil || err.(*AuthError).Rule != "2" {
				t.Errorf("no create event: %v", err)
			}
		} else if err := AuthorizeByAuthEvents(message, base[:2], nil, nil); err == nil || err.(*AuthError).Rule != "2.4" {
			t.Errorf("version %s, no create event: %v", id, err)
		}
		if err := AuthorizeByAuthEvents(r.create, nil, nil, nil); err != nil {
			t.Errorf("version %s, create: %v", id, err)
		}
	}
}

func TestAuthEventsSelection(t *testing.T) {
	for _, c := range []struct {
		event ev
		want  string // the types and state keys but for the create event
		from  string
	}{
		{ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`}, "power_levels member@bob:b.example", "1-12"},
		{change(bob, bob, Join, ""), "power_levels member@bob:b.example join_rules", "1-12"},
		{change(bob, bob, Leave, ""), "power_levels member@bob:b.example", "1-12"},
		{change(alice, bob, Ban, ""), "power_levels member@alice:a.example member@bob:b.example", "1-12"},
		{change(alice, bob, Invite, ""), "power_levels member@alice:a.example member@bob:b.example join_rules", "1-12"},
		{change(alice, bob, Invite, `,"third_party_invite":{"signed":{"token":"t"}}`), "power_levels member@alice:a.example member@bob:b.example join_rules third_party_invitet", "1-12"},
		{change(bob, bob, Join, `,"join_authorised_via_users_server":"@alice:a.example"`), "power_levels member@bob:b.example join_rules", "1-7"},
		{change(bob, bob, Join, `,"join_authorised_via_users_server":"@alice:a.example"`), "power_levels member@bob:b.example join_rules member@alice:a.example", "8-12"},
		{change(bob, bob, Knock, ""), "power_levels member@bob:b.example join_rules", "7-12"},
	} {
		for id := range answers(t, c.from+":ok") {
			r := newRoom(t, LookupRoomVersion(id))
			want := "create " + c.want
			if r.version.RoomIDIsCreateID {
				want = c.want
			}
			var got []string
			for _, k := range r.event(c.event).AuthKeys() {
				got = append(got, strings.TrimPrefix(k.Type, "m.room.")+k.StateKey)
			}
			if strings.Join(got, " ") != want {
				t.Errorf("version %s, %s: got %v", id, want, got)
			}
		}
		if keys := newRoom(t, LookupRoomVersion("11")).create.AuthKeys(); keys != nil {
			t.Errorf("create has %v", keys)
		}
	}
}

func TestPowerLevels(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newRoom(t, v)
		none := PowerLevelsOf(r.create, nil)
		want := int64(100)
		if v.PrivilegedCreators {
			want = CreatorPower
		}
		if none.User(alice) != want || none.User(bob) != 0 || none.Event(TypeName, true) != 50 || none.Event(TypeMessage, false) != 0 ||
			none.Ban != 50 || none.Kick != 50 || none.Redact != 50 || none.Invite != 0 || none.Notification("room") != 50 {
			t.Errorf("version %s: without power levels %+v", v, none)
		}
		p := PowerLevelsOf(r.create, r.event(powers(`{"users":{"@bob:b.example":50},"users_default":1,"events":{"x":2},"state_default":3,"events_default":4,"notifications":{"room":5},"redact":49}`)))
		if p.User(bob) != 50 || p.User(carol) != 1 || p.Event("x", true) != 2 || p.Event("y", true) != 3 || p.Event("y", false) != 4 || p.Notification("room") != 5 {
			t.Errorf("version %s: %+v", v, p)
		}
		if (p.User(alice) == CreatorPower) != v.PrivilegedCreators {
			t.Errorf("version %s: the creator has %d", v, p.User(alice))
		}
		if !p.CanRedact(bob) || p.CanRedact(carol) || !p.CanKick(bob, carol) || p.CanKick(carol, bob) || !p.CanBan(bob, carol) || p.CanBan(bob, bob) || !p.CanInvite(carol) ||
			!p.CanSend(bob, "y", true) || p.CanSend(carol, "y", true) {
			t.Errorf("version %s: the questions", v)
		}
	}
	for content, version := range map[string]string{`{"ban":"1"}`: "10", `{"ban":1.5}`: "6", `{"users":{"x":1}}`: "1", `{"events":1}`: "1", `[`: "1", `{"ban":"1 1"}`: "1", `{"ban":"+-1"}`: "1", `{"ban":""}`: "1", `{"ban":true}`: "1"} {
		if _, err := ParsePowerLevels([]byte(content), LookupRoomVersion(version)); !errors.As(err, new(*Error)) {
			t.Errorf("version %s, %s: %v", version, content, err)
		}
	}
	for text, want := range map[string]int64{`"100"`: 100, `"000100"`: 100, `"+100"`: 100, `" -100 "`: -100, `5.114698E4`: 51146, `50.57`: 50, `-0.5`: 0, `1e300`: CreatorPower - 1, `"99999999999999999999"`: CreatorPower - 1, `null`: 50} {
		p, err := ParsePowerLevels([]byte(`{"ban":`+text+`}`), LookupRoomVersion("1"))
		if err != nil || p.Ban != want {
			t.Errorf("%s: got %v, %v", text, p, err)
		}
	}
}

func TestWhichRedactionsTakeEffect(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newRoom(t, v)
		levels := PowerLevelsOf(r.create, r.event(powers(`{"users":{"@carol:c.example":50}}`)))
		target := r.event(ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`})
		for by, want := range map[UserID]bool{bob: true, "@other:b.example": true, carol: true, dave: false} {
			redaction := r.event(ev{sender: by, typ: TypeRedaction, key: "-", content: `{}`, redacts: target.ID()})
			if MayRedact(redaction, target, levels) != want {
				t.Errorf("version %s, by %s: not %v", v, by, want)
			}
			if MayRedact(redaction, r.create, levels) {
				t.Errorf("version %s: it redacts another event", v)
			}
		}
	}
}
