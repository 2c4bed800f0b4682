package matrix

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func testKey(t testing.TB) *SigningKey {
	t.Helper()
	k, err := NewSigningKey("ed25519:1", []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestBuiltEventParsesToItself(t *testing.T) {
	for _, v := range RoomVersions() {
		room := RoomID("!room:a.example")
		if v.RoomIDIsCreateID {
			room = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
		}
		b := Builder{RoomID: room, Sender: "@alice:a.example", Type: TypeMessage,
			Content: []byte(`{ "msgtype":"m.text", "body": "h\u00e9 \"x\"" }`), PrevEvents: []EventID{"$a:b"}, AuthEvents: []EventID{"$a:b", "$c:d"},
			Depth: 3, Time: time.UnixMilli(1700000000000)}
		e, err := b.Build(v, "a.example", testKey(t))
		if err != nil {
			t.Fatal(v, err)
		}
		p, err := ParseEvent(e.JSON(), v)
		if err != nil {
			t.Fatal(v, err)
		}
		if p.Redacted() || p.ID() != e.ID() || !bytes.Equal(p.JSON(), e.JSON()) || len(p.PrevEvents()) != 1 || len(p.AuthEvents()) != 2 {
			t.Errorf("version %s: parsed %s %s", v, p.ID(), p.JSON())
		}
		l, err := LoadEvent(e.JSON(), v, e.ID())
		if err != nil || l.RoomID() != room || l.Sender() != "@alice:a.example" || l.Depth() != 3 {
			t.Errorf("version %s: loaded %v %v", v, l, err)
		}
		// A changed content makes it the redacted event with the same ID.
		changed := strings.Replace(string(e.JSON()), "m.text", "m.note", 1)
		c, err := ParseEvent([]byte(changed), v)
		if err != nil || !c.Redacted() || c.ID() != e.ID() || string(c.Content()) != "{}" {
			t.Errorf("version %s: changed event is %v, %v", v, c, err)
		}
	}
}

// edited returns a valid event of a version with its JSON changed: each edit is "old→new".
func edited(t *testing.T, v *RoomVersion, edits ...string) []byte {
	t.Helper()
	r := newRoom(t, v)
	raw := string(r.event(ev{sender: bob, typ: "some.type", key: "some key", content: `{}`}).JSON())
	for _, e := range edits {
		from, to, _ := strings.Cut(e, "→")
		if !strings.Contains(raw, from) {
			t.Fatalf("%s does not contain %s", raw, from)
		}
		raw = strings.Replace(raw, from, to, 1)
	}
	return []byte(raw)
}

func TestParseEventRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	refs := func(n int) string { return `"$a"` + strings.Repeat(`,"$a"`, n-1) }
	for _, c := range []struct{ version, edit, code string }{
		{"11", `"depth":1→"depth":1.0`, "M_BAD_JSON"},
		{"11", `"depth":1→"depth":-1`, "M_BAD_JSON"},
		{"11", `"depth":1→"depth":"1"`, "M_BAD_JSON"},
		{"11", `"depth":1→"depth":9007199254740992`, "M_BAD_JSON"},
		{"5", `"depth":1→"depth":9223372036854775808`, "M_BAD_JSON"},
		{"11", `"depth":1→"depth":1,"depth":2`, "M_BAD_JSON"},
		{"11", `"depth":1,→`, "M_BAD_JSON"},
		{"11", `"origin_server_ts":1,→`, "M_BAD_JSON"},
		{"11", `"origin_server_ts":1→"origin_server_ts":null`, "M_BAD_JSON"},
		{"11", `"content":{}→"content":[]`, "M_BAD_JSON"},
		{"11", `"content":{},→`, "M_BAD_JSON"},
		{"11", `"type":"some.type"→"type":1`, "M_BAD_JSON"},
		{"11", `"type":"some.type"→"type":"` + long + `"`, "M_TOO_LARGE"},
		{"11", `"state_key":"some key"→"state_key":1`, "M_BAD_JSON"},
		{"11", `"state_key":"some key"→"state_key":"` + long + `"`, "M_TOO_LARGE"},
		{"11", `"state_key":"some key"→"state_key":"` + strings.Repeat("ä", 128) + `"`, "M_TOO_LARGE"},
		{"11", `"sender":"@bob:b.example"→"sender":"bob"`, "M_BAD_JSON"},
		{"11", `"sender":"@bob:b.example"→"sender":"@` + long + `:b.example"`, "M_BAD_JSON"},
		{"11", `"room_id":"!room:a.example"→"room_id":"!room"`, "M_BAD_JSON"},
		{"11", `"room_id":"!room:a.example"→"room_id":7`, "M_BAD_JSON"},
		{"12", `"room_id":"!→"room_id":"!x:a.example","x":"!`, "M_BAD_JSON"},
		{"11", `"prev_events":["$some:where"]→"prev_events":"$some:where"`, "M_BAD_JSON"},
		{"11", `"prev_events":["$some:where"]→"prev_events":["some:where"]`, "M_BAD_JSON"},
		{"11", `"prev_events":["$some:where"]→"prev_events":[["$some:where",{}]]`, "M_BAD_JSON"},
		{"11", `"prev_events":["$some:where"],→`, "M_BAD_JSON"},
		{"11", `"prev_events":["$some:where"]→"prev_events":[` + refs(21) + `]`, "M_BAD_JSON"},
		{"11", `"auth_events":[]→"auth_events":[` + refs(11) + `]`, "M_BAD_JSON"},
		{"1", `"prev_events":[["$some:where",{}]]→"prev_events":["$some:where"]`, "M_BAD_JSON"},
		{"1", `"event_id":"$→"event_id":"`, "M_BAD_JSON"},
		{"11", `"hashes":{→"hashes":1,"x":{`, "M_BAD_JSON"},
		{"11", `"sha256"→"md5"`, "M_BAD_JSON"},
		{"11", `"signatures":{→"signatures":1,"x":{`, "M_BAD_JSON"},
		{"11", `"content":{}→"content":{"x":"` + strings.Repeat("x", 65536) + `"}`, "M_TOO_LARGE"},
		{"11", `"content":{}→"content":{"x":1.5}`, "M_BAD_JSON"},
		{"11", `}→`, "M_NOT_JSON"},
	} {
		e, err := ParseEvent(edited(t, LookupRoomVersion(c.version), c.edit), LookupRoomVersion(c.version))
		if ErrorCode(err) != c.code {
			t.Errorf("version %s, %.60s: got %v, %v, want %s", c.version, c.edit, e != nil, err, c.code)
		}
	}
	for _, raw := range []string{"[]", "1", `"x"`, "null"} {
		if _, err := ParseEvent([]byte(raw), LookupRoomVersion("11")); err == nil {
			t.Errorf("%s is an event", raw)
		}
	}
}

func TestParseEventTakes(t *testing.T) {
	for _, c := range []struct{ version, edit string }{
		{"11", `"depth":1→"depth":9007199254740991`},
		{"5", `"depth":1→"depth":9223372036854775807`},
		{"5", `"content":{}→"content":{"x":1.5}`},
		{"11", `"origin_server_ts":1→"origin_server_ts":-5`},
		{"11", `"auth_events":[]→"auth_events":["$a"]`},
		{"11", `"sender":"@bob:b.example"→"sender":"@BÖB !:b.example"`},
		{"11", `"signatures":{→"unsigned":{"age":1,"x":"` + strings.Repeat("x", 65536) + `"},"signatures":{`},
		{"11", `"type"→"unknown":[1,{"x":null}],"type"`},
	} {
		e, err := ParseEvent(edited(t, LookupRoomVersion(c.version), c.edit), LookupRoomVersion(c.version))
		if err != nil {
			t.Errorf("version %s, %.60s: %v", c.version, c.edit, err)
		} else if bytes.Contains(e.JSON(), []byte("unsigned")) {
			t.Errorf("%s has unsigned", e.JSON())
		}
	}
}

func TestRoomIDOfVersion12IsThatOfTheCreateEvent(t *testing.T) {
	r := newRoom(t, LookupRoomVersion("12"))
	if r.create.RoomID() != RoomID("!"+r.create.ID()[1:]) || bytes.Contains(r.create.JSON(), []byte("room_id")) {
		t.Errorf("%s in %s: %s", r.create.ID(), r.create.RoomID(), r.create.JSON())
	}
	if p, err := ParseEvent(r.create.JSON(), r.version); err != nil || p.RoomID() != r.create.RoomID() {
		t.Errorf("got %v, %v", p, err)
	}
	// A room ID in it is for the rules to reject.
	raw := setMember(r.create.JSON(), "room_id", []byte(`"!x:y"`))
	p, err := ParseEvent(raw, r.version)
	if err != nil {
		t.Fatal(err)
	}
	var rule *AuthError
	if err := Authorize(p, nil); !errors.As(err, &rule) || rule.Rule != "1.2" {
		t.Errorf("got %v", err)
	}
}

func TestRedaction(t *testing.T) {
	for _, c := range []struct{ versions, typ, content, want string }{
		{"1-12", "m.room.message", `{"body":"x"}`, `{}`},
		{"1-8", TypeMember, `{"membership":"join","displayname":"x","join_authorised_via_users_server":"@a:b"}`, `{"membership":"join"}`},
		{"9-12", TypeMember, `{"membership":"join","displayname":"x","join_authorised_via_users_server":"@a:b"}`, `{"join_authorised_via_users_server":"@a:b","membership":"join"}`},
		{"1-10", TypeMember, `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"a":1}}}`, `{"membership":"invite"}`},
		{"11-12", TypeMember, `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"a":1}}}`, `{"membership":"invite","third_party_invite":{"signed":{"a":1}}}`},
		{"11-12", TypeMember, `{"membership":"invite","third_party_invite":"x"}`, `{"membership":"invite"}`},
		{"1-10", TypeCreate, `{"creator":"@a:b","m.federate":false}`, `{"creator":"@a:b"}`},
		{"11-12", TypeCreate, `{"creator":"@a:b","m.federate":false}`, `{"creator":"@a:b","m.federate":false}`},
		{"1-7", TypeJoinRules, `{"allow":[],"join_rule":"x","y":1}`, `{"join_rule":"x"}`},
		{"8-12", TypeJoinRules, `{"allow":[],"join_rule":"x","y":1}`, `{"allow":[],"join_rule":"x"}`},
		{"1-10", TypePowerLevels, `{"ban":1,"events":{},"events_default":1,"invite":1,"kick":1,"notifications":{},"redact":1,"state_default":1,"users":{},"users_default":1,"x":1}`,
			`{"ban":1,"events":{},"events_default":1,"kick":1,"redact":1,"state_default":1,"users":{},"users_default":1}`},
		{"11-12", TypePowerLevels, `{"ban":1,"invite":1,"notifications":{}}`, `{"ban":1,"invite":1}`},
		{"1-5", TypeAliases, `{"aliases":[],"x":1}`, `{"aliases":[]}`},
		{"6-12", TypeAliases, `{"aliases":[],"x":1}`, `{}`},
		{"1-12", TypeHistoryVisibility, `{"history_visibility":"shared","x":1}`, `{"history_visibility":"shared"}`},
		{"1-10", TypeRedaction, `{"redacts":"$x","reason":"y"}`, `{}`},
		{"11-12", TypeRedaction, `{"redacts":"$x","reason":"y"}`, `{"redacts":"$x"}`},
	} {
		for id := range answers(t, c.versions+":ok") {
			r := newRoom(t, LookupRoomVersion(id))
			e := r.event(ev{sender: alice, typ: c.typ, content: c.content})
			redacted := e.Redact()
			if string(redacted.Content()) != c.want || redacted.ID() != e.ID() || redacted.RoomID() != e.RoomID() || redacted.ReferenceHash() != e.ReferenceHash() {
				t.Errorf("version %s, %s: got %s %s", id, c.typ, redacted.ID(), redacted.Content())
			}
		}
	}
}

func TestRedactionDropsOldTopLevelKeysFromVersion11On(t *testing.T) {
	for id, want := range answers(t, "1-10:kept 11-12:dropped") {
		v := LookupRoomVersion(id)
		e, err := ParseEvent(edited(t, v, `"origin_server_ts"→"origin":"a","membership":"b","prev_state":[],"age_ts":1,"origin_server_ts"`), v)
		if err != nil || !e.Redacted() {
			t.Fatal(err)
		}
		for _, key := range []string{"origin", "membership", "prev_state"} {
			if has := member(e.JSON(), key) != nil; has != (want == "kept") {
				t.Errorf("version %s: %s in %s", id, key, e.JSON())
			}
		}
		if member(e.JSON(), "age_ts") != nil {
			t.Errorf("version %s: %s", id, e.JSON())
		}
	}
}

func TestClientFormat(t *testing.T) {
	r := newRoom(t, LookupRoomVersion("11"))
	e := r.event(ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join"}`})
	redaction := r.event(ev{sender: alice, typ: TypeRedaction, key: "-", content: `{"reason":"x"}`, redacts: e.ID()})
	for name, c := range map[string]struct {
		o    *ClientOptions
		want string
	}{
		"plain": {nil, `{"content":{"membership":"join"},"event_id":"ID","origin_server_ts":1,"room_id":"!room:a.example","sender":"@bob:b.example","state_key":"@bob:b.example","type":"m.room.member"}`},
		"in sync": {&ClientOptions{OmitRoomID: true, HasAge: true, AgeMS: 5, Membership: "join", TransactionID: "t\"1", PrevContent: []byte(`{}`), PrevSender: alice, ReplacesState: "$x", Relations: []byte(`{}`), Unsigned: []byte(`"a":1`)},
			`{"content":{"membership":"join"},"event_id":"ID","origin_server_ts":1,"sender":"@bob:b.example","state_key":"@bob:b.example","type":"m.room.member","unsigned":{"age":5,"membership":"join","prev_content":{},"prev_sender":"@alice:a.example","replaces_state":"$x","transaction_id":"t\"1","m.relations":{},"a":1}}`},
		"only unsigned": {&ClientOptions{Unsigned: []byte(`"a":1`), Fields: ParseEventFields([]string{"unsigned.a"})}, `{"unsigned":{"a":1}}`},
		"fields":        {&ClientOptions{Fields: ParseEventFields([]string{"type", "content.membership", "content.x", "sender.x", "nothing"})}, `{"content":{"membership":"join"},"type":"m.room.member"}`},
		"field prefix":  {&ClientOptions{Fields: ParseEventFields([]string{"content.membership", "content"})}, `{"content":{"membership":"join"}}`},
		"escaped":       {&ClientOptions{Fields: ParseEventFields([]string{`content\.membership`, `a\\b`})}, `{}`},
	} {
		got := strings.Replace(string(e.AppendClient(nil, c.o)), string(e.ID()), "ID", 1)
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
	got := string(e.Redact().AppendClient(nil, &ClientOptions{RedactedBecause: redaction}))
	if !json.Valid([]byte(got)) || !strings.Contains(got, `"redacted_because":{"content":{"reason":"x","redacts":"`+string(e.ID())) {
		t.Errorf("got %s", got)
	}
	if got := string(e.Stripped()); got != `{"content":{"membership":"join"},"sender":"@bob:b.example","state_key":"@bob:b.example","type":"m.room.member"}` {
		t.Errorf("got %s", got)
	}
}

func TestClientsSeeRedactsAtBothPlaces(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newRoom(t, v)
		e := r.event(ev{sender: alice, typ: TypeRedaction, key: "-", content: `{}`, redacts: "$x:y"})
		got := e.AppendClient(nil, nil)
		if top, _ := stringMember(got, "redacts"); top != "$x:y" {
			t.Errorf("version %s: %s", v, got)
		}
		if inside, _ := stringMember(member(got, "content"), "redacts"); inside != "$x:y" {
			t.Errorf("version %s: %s", v, got)
		}
	}
}

func TestTemplateBecomesTheEvent(t *testing.T) {
	for _, v := range RoomVersions() {
		room := RoomID("!room:a.example")
		if v.RoomIDIsCreateID {
			room = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
		}
		key := string(bob)
		b := &Builder{RoomID: room, Sender: bob, Type: TypeMember, StateKey: &key, Content: []byte(`{"membership":"join"}`),
			PrevEvents: []EventID{"$p:a"}, AuthEvents: []EventID{"$a:a", "$b:a"}, Depth: 7, ReferenceHash: func(EventID) [32]byte { return [32]byte{1} }}
		template, err := b.Template(v)
		if err != nil {
			t.Fatal(err)
		}
		copied, err := ParseTemplate(template, v)
		if err != nil {
			t.Fatal(v, err)
		}
		copied.Time = time.UnixMilli(5)
		e, err := copied.Build(v, "b.example", testKey(t))
		if err != nil {
			t.Fatal(v, err)
		}
		if !e.Is(TypeMember, string(bob)) || e.Depth() != 7 || len(e.AuthEvents()) != 2 || e.PrevEvents()[0] != "$p:a" || e.Membership() != Join {
			t.Errorf("version %s: %s", v, e.JSON())
		}
		if v.EventIDInEvent && !bytes.Contains(e.JSON(), []byte(`"prev_events":[["$p:a",{"sha256":"AQAA`)) {
			t.Errorf("version %s lost the hashes: %s", v, e.JSON())
		}
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"type":"m.room.member"}`} {
		if _, err := ParseTemplate([]byte(bad), LookupRoomVersion("11")); err == nil {
			t.Errorf("%s is a template", bad)
		}
	}
}

func TestBuildRefusesWhatOthersWould(t *testing.T) {
	v := LookupRoomVersion("11")
	long := strings.Repeat("x", 256)
	for name, b := range map[string]Builder{
		"float":          {Content: []byte(`{"x":1.5}`)},
		"no object":      {Content: []byte(`[]`)},
		"no JSON":        {Content: []byte(`{`)},
		"no content":     {},
		"duplicate":      {Content: []byte(`{"a":1,"a":2}`)},
		"large":          {Content: []byte(`{"x":"` + strings.Repeat("x", 65536) + `"}`)},
		"long state key": {Content: []byte(`{}`), StateKey: &long},
		"many prev":      {Content: []byte(`{}`), PrevEvents: make([]EventID, 21)},
	} {
		b.RoomID, b.Sender, b.Type, b.Time = "!room:a.example", alice, "x", time.UnixMilli(1)
		if e, err := b.Build(v, "a.example", testKey(t)); !errors.As(err, new(*Error)) {
			t.Errorf("%s: got %v, %v", name, e, err)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, v := range RoomVersions() {
		r := newRoom(f, v)
		f.Add(r.create.JSON(), byte(0))
		f.Add(r.event(ev{sender: bob, typ: TypeMember, key: string(bob), content: `{"membership":"join"}`}).JSON(), byte(1))
	}
	versions := RoomVersions()
	f.Fuzz(func(t *testing.T, raw []byte, n byte) {
		v := versions[int(n)%len(versions)]
		e, err := ParseEvent(raw, v)
		if err != nil {
			if !errors.As(err, new(*Error)) {
				t.Fatalf("%v is no *Error", err)
			}
			return
		}
		again, err := ParseEvent(e.JSON(), v)
		if err != nil || again.ID() != e.ID() || !bytes.Equal(again.JSON(), e.JSON()) {
			t.Fatalf("%s is not itself again: %v", e.JSON(), err)
		}
		if r := e.Redact(); r.ReferenceHash() != e.ReferenceHash() || !bytes.Equal(r.Redact().JSON(), r.JSON()) {
			t.Fatalf("%s has another hash when redacted", e.JSON())
		}
		if got := e.AppendClient(nil, &ClientOptions{HasAge: true, Fields: ParseEventFields([]string{"content.body"})}); !json.Valid(got) {
			t.Fatalf("not JSON: %s", got)
		}
		if got := e.AppendClient(nil, nil); !json.Valid(got) {
			t.Fatalf("not JSON: %s", got)
		}
		e.AuthKeys()
		e.RequiredSigners()
	})
}

func FuzzAuthorize(f *testing.F) {
	f.Add(`{"membership":"join"}`, `{"users":{"@alice:a.example":100}}`, `{"join_rule":"restricted"}`, byte(11), byte(0))
	f.Add(`{"users":{"@b:c":"1"}}`, `{"users":[],"ban":1e400}`, `{"join_rule":1}`, byte(1), byte(1))
	f.Add(`{"membership":"invite","third_party_invite":{"signed":{"mxid":"@bob:b.example","token":"t","signatures":{"x":{"ed25519:1":"AA"}}}}}`, `{}`, `{}`, byte(8), byte(0))
	versions := RoomVersions()
	types := []string{TypeMember, TypePowerLevels, TypeCreate, TypeRedaction, TypeThirdPartyInvite, TypeJoinRules, TypeName}
	f.Fuzz(func(t *testing.T, content, levels, rules string, version, typ byte) {
		r := newRoom(t, versions[int(version)%len(versions)])
		state := []*Event{r.create, r.event(membership(bob, Join)), r.event(membership(alice, Join))}
		event := func(sender UserID, typ, key, content string) *Event {
			b := Builder{RoomID: r.create.RoomID(), Sender: sender, Type: typ, StateKey: &key, Content: []byte(content), Time: time.UnixMilli(1)}
			e, err := b.Build(r.version, sender.Server(), testKey(t))
			if err != nil {
				t.Skip()
			}
			return e
		}
		state = append(state, event(alice, TypePowerLevels, "", levels), event(alice, TypeJoinRules, "", rules), event(alice, TypeThirdPartyInvite, "t", levels))
		err := Authorize(event(bob, types[int(typ)%len(types)], string(bob), content), Lookup(state))
		if err != nil && !errors.As(err, new(*AuthError)) {
			t.Fatalf("%v is no *AuthError", err)
		}
	})
}
