package push

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const (
	alice = matrix.UserID("@alice:hs1")
	bob   = matrix.UserID("@bob:hs2")
)

func newPush(t testing.TB, db *storage.DB) *Push {
	p := New(Options{Config: DefaultConfig(), DB: db, Now: func() time.Time { return time.UnixMilli(1_700_000_000_000) }})
	t.Cleanup(p.Close)
	return p
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if got := matrix.ErrorCode(err); got != code {
		t.Errorf("got error %v, want %q", err, code)
	}
}

// message is an event of bob's.
func message(typ, content string) Event {
	return Event{Type: typ, Sender: bob, RoomID: "!r:hs1", Content: json.RawMessage(content)}
}

func stateEvent(typ, key, content string) Event {
	e := message(typ, content)
	e.StateKey = &key
	return e
}

func defaults(user matrix.UserID) *Compiled {
	return &Compiled{user: user, rules: compile(defaultRules(anyUser), anyUser)}
}

func TestDefaultRules(t *testing.T) {
	may := func(string) bool { return true }
	mayNot := func(string) bool { return false }
	silent, notify, loud := Result{}, Result{Notify: true}, Result{Notify: true, Sound: "default"}
	mention := Result{Notify: true, Highlight: true, Sound: "default"}
	for name, test := range map[string]struct {
		event Event
		room  Room
		want  Result
	}{
		"message in a group":       {message("m.room.message", `{"msgtype":"m.text","body":"hi alice"}`), Room{Members: 3}, notify},
		"message in a one-to-one":  {message("m.room.message", `{"msgtype":"m.text","body":"hi"}`), Room{Members: 2}, loud},
		"encrypted in a group":     {message("m.room.encrypted", `{}`), Room{Members: 3}, notify},
		"encrypted in one-to-one":  {message("m.room.encrypted", `{}`), Room{Members: 2}, loud},
		"notice":                   {message("m.room.message", `{"msgtype":"m.notice","body":"hi"}`), Room{Members: 2}, silent},
		"mention":                  {message("m.room.message", `{"body":"hi","m.mentions":{"user_ids":["@x:y","@alice:hs1"]}}`), Room{Members: 3}, mention},
		"mention of somebody else": {message("m.room.message", `{"body":"hi","m.mentions":{"user_ids":["@alice:hs11"]}}`), Room{Members: 3}, notify},
		"mention in other case":    {message("m.room.message", `{"body":"hi","m.mentions":{"user_ids":["@ALICE:hs1"]}}`), Room{Members: 3}, notify},
		"room mention allowed":     {message("m.room.message", `{"m.mentions":{"room":true}}`), Room{Members: 3, SenderMayNotify: may}, Result{Notify: true, Highlight: true}},
		"room mention not allowed": {message("m.room.message", `{"m.mentions":{"room":true}}`), Room{Members: 3, SenderMayNotify: mayNot}, notify},
		"room mention not true":    {message("m.room.message", `{"m.mentions":{"room":"true"}}`), Room{Members: 3, SenderMayNotify: may}, notify},
		"edit":                     {message("m.room.message", `{"m.relates_to":{"rel_type":"m.replace"}}`), Room{Members: 2}, silent},
		"edit that mentions":       {message("m.room.message", `{"m.relates_to":{"rel_type":"m.replace"},"m.mentions":{"user_ids":["@alice:hs1"]}}`), Room{Members: 2}, mention},
		"reaction":                 {message("m.reaction", `{"m.relates_to":{"rel_type":"m.annotation"}}`), Room{Members: 2}, silent},
		"invite for me":            {stateEvent("m.room.member", "@alice:hs1", `{"membership":"invite"}`), Room{Members: 2}, loud},
		"invite for somebody else": {stateEvent("m.room.member", "@carol:hs1", `{"membership":"invite"}`), Room{Members: 2}, silent},
		"join":                     {stateEvent("m.room.member", "@bob:hs2", `{"membership":"join"}`), Room{Members: 2}, silent},
		"tombstone":                {stateEvent("m.room.tombstone", "", `{}`), Room{Members: 2}, Result{Notify: true, Highlight: true}},
		"tombstone as a message":   {message("m.room.tombstone", `{}`), Room{Members: 2}, silent},
		"server ACL":               {stateEvent("m.room.server_acl", "", `{}`), Room{Members: 2}, silent},
		"call":                     {message("m.call.invite", `{}`), Room{Members: 2}, Result{Notify: true, Sound: "ring"}},
		"other event":              {message("im.parley.x", `{}`), Room{Members: 2}, silent},
		"content that is no JSON":  {message("m.room.message", `{"body":`), Room{Members: 3}, notify},
		"content of wrong types":   {message("m.room.message", `{"msgtype":7,"body":[],"m.mentions":[]}`), Room{Members: 3}, notify},
	} {
		if got := defaults(alice).Evaluate(Prepare(test.event, test.room), ""); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
		if got := defaults(bob).Evaluate(Prepare(test.event, test.room), ""); got != silent {
			t.Errorf("%s: got %+v for the sender", name, got)
		}
	}
}

func TestConditions(t *testing.T) {
	event := stateEvent("m.room.topic", "", `{"topic":"Lunch plans","body":"An example event: exciting triple-whammy, Ümläut","n":7,"yes":true,
		"null":null,"list":["a",1,null,{"x":1},1.5],"m.x":{"a\\b":"deep"},"obj":{}}`)
	event.Full = json.RawMessage(`{"depth":5,"unsigned":{"age":3}}`)
	for condition, want := range map[string]bool{
		`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`:                          true,
		`{"kind":"event_match","key":"content.topic","pattern":"LUNCH PLANS"}`:                     true,
		`{"kind":"event_match","key":"content.topic","pattern":"lunch"}`:                           false,
		`{"kind":"event_match","key":"content.topic","pattern":"unch*"}`:                           false,
		`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`:                           true,
		`{"kind":"event_match","key":"content.body","pattern":"xample"}`:                           false,
		`{"kind":"event_match","key":"content.body","pattern":"EXAMPLE"}`:                          true,
		`{"kind":"event_match","key":"content.body","pattern":"whammy"}`:                           true,
		`{"kind":"event_match","key":"content.body","pattern":"ümläut"}`:                           true,
		`{"kind":"event_match","key":"content.body","pattern":"e.ample"}`:                          false,
		`{"kind":"event_match","key":"content.body","pattern":""}`:                                 false,
		`{"kind":"event_match","key":"content.n","pattern":"*"}`:                                   false,
		`{"kind":"event_match","key":"content.nosuch","pattern":"*"}`:                              false,
		`{"kind":"event_match","key":"content.m\\.x.a\\\\b","pattern":"deep"}`:                     true,
		`{"kind":"event_match","key":"content.topic"}`:                                             false,
		`{"kind":"event_match","key":"sender","pattern":"@bob:*"}`:                                 true,
		`{"kind":"event_match","key":"room_id","pattern":"!R:hs1"}`:                                true,
		`{"kind":"event_match","key":"state_key","pattern":""}`:                                    true,
		`{"kind":"event_property_is","key":"content.n","value":7}`:                                 true,
		`{"kind":"event_property_is","key":"content.n","value":"7"}`:                               false,
		`{"kind":"event_property_is","key":"content.yes","value":true}`:                            true,
		`{"kind":"event_property_is","key":"content.yes","value":1}`:                               false,
		`{"kind":"event_property_is","key":"content.null","value":null}`:                           true,
		`{"kind":"event_property_is","key":"content.nosuch","value":null}`:                         false,
		`{"kind":"event_property_is","key":"content.topic","value":"lunch plans"}`:                 false,
		`{"kind":"event_property_is","key":"content.obj","value":{}}`:                              false,
		`{"kind":"event_property_is","key":"unsigned.age","value":3}`:                              true,
		`{"kind":"event_property_contains","key":"content.list","value":"a"}`:                      true,
		`{"kind":"event_property_contains","key":"content.list","value":1}`:                        true,
		`{"kind":"event_property_contains","key":"content.list","value":null}`:                     true,
		`{"kind":"event_property_contains","key":"content.list","value":true}`:                     false,
		`{"kind":"event_property_contains","key":"content.topic","value":"a"}`:                     false,
		`{"kind":"room_member_count","is":"5"}`:                                                    true,
		`{"kind":"room_member_count","is":"==5"}`:                                                  true,
		`{"kind":"room_member_count","is":">=5"}`:                                                  true,
		`{"kind":"room_member_count","is":"<5"}`:                                                   false,
		`{"kind":"room_member_count","is":"<=5"}`:                                                  true,
		`{"kind":"room_member_count","is":">4"}`:                                                   true,
		`{"kind":"room_member_count","is":"five"}`:                                                 false,
		`{"kind":"room_member_count","is":"=<5"}`:                                                  false,
		`{"kind":"sender_notification_permission","key":"room"}`:                                   true,
		`{"kind":"sender_notification_permission","key":"other"}`:                                  false,
		`{"kind":"contains_display_name"}`:                                                         true,
		`{"kind":"im.parley.unknown"}`:                                                             false,
		`"event_match"`:                                                                            false,
		`{"kind":"event_match","key":"content.body","pattern":"` + longGlob(maxWildcards+1) + `"}`: false,
	} {
		rules := &ruleset{Override: []rule{{Enabled: true, Actions: rawStrings(`"notify"`), Conditions: rawStrings(condition)}}}
		c := &Compiled{user: alice, rules: compile(rules, alice)}
		p := Prepare(event, Room{Members: 5, SenderMayNotify: func(key string) bool { return key == "room" }})
		if got := c.Evaluate(p, "Exciting").Notify; got != want {
			t.Errorf("%s: got %v, want %v", condition, got, want)
		}
	}
}

func longGlob(n int) string { return strings.Repeat("a*", n) }

func TestActions(t *testing.T) {
	for actions, want := range map[string]Result{
		`[]`:                                   {},
		`["dont_notify"]`:                      {},
		`["notify"]`:                           {Notify: true},
		`[{"set_tweak":"highlight"}]`:          {},
		`["notify",{"set_tweak":"highlight"}]`: {Notify: true, Highlight: true},
		`["notify",{"set_tweak":"highlight","value":false}]`:             {Notify: true},
		`["coalesce","notify",{"set_tweak":"sound","value":"ping.wav"}]`: {Notify: true, Sound: "ping.wav"},
		`["notify",{"set_tweak":"sound","value":7},{"set_tweak":"x"}]`:   {Notify: true},
	} {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(actions), &list); err != nil {
			t.Fatal(err)
		}
		if got := resultOf(list); got != want {
			t.Errorf("%s: got %+v, want %+v", actions, got, want)
		}
	}
}

// ids lists the rules of a kind.
func ids(t testing.TB, p *Push, kind string) (all []string) {
	t.Helper()
	raw, err := p.KindRules(t.Context(), alice, kind)
	if err != nil {
		t.Fatal(err)
	}
	var rules []rule
	if err := json.Unmarshal(raw, &rules); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		all = append(all, r.ID)
	}
	return all
}

func TestRulesAreChangedAndOrdered(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		p := newPush(t, db)
		set := func(kind, id, before, after, body string) {
			t.Helper()
			if err := p.SetRule(t.Context(), alice, kind, id, before, after, json.RawMessage(body)); err != nil {
				t.Fatal(err)
			}
		}
		const content = `{"pattern":"x","actions":["notify"]}`
		set("content", "one", "", "", content)
		set("content", "two", "", "", content)
		set("content", "three", "one", "", content)
		set("content", "four", "", "one", content)
		if diff := cmp.Diff([]string{"two", "three", "one", "four"}, ids(t, p, "content")); diff != "" {
			t.Error(diff)
		}
		set("content", "one", "", "", content) // stays where it is
		set("content", "four", "two", "one", content)
		if diff := cmp.Diff([]string{"four", "two", "three", "one"}, ids(t, p, "content")); diff != "" {
			t.Error(diff)
		}
		set("override", "mine", "", "", `{"actions":["dont_notify"]}`)
		if got := ids(t, p, "override"); got[0] != master || got[1] != "mine" || len(got) != 11 {
			t.Errorf("got %v: own rules come after the master rule and before the others", got)
		}
		if raw, err := p.Rule(t.Context(), alice, "override", "mine"); err != nil || string(raw) != `{"actions":["dont_notify"],"conditions":[],"default":false,"enabled":true,"rule_id":"mine"}` {
			t.Errorf("got %s %v", raw, err)
		}

		if err := p.SetRuleEnabled(t.Context(), alice, "content", "one", false); err != nil {
			t.Fatal(err)
		}
		set("content", "one", "", "", content)
		if enabled, err := p.RuleEnabled(t.Context(), alice, "content", "one"); enabled || err != nil {
			t.Errorf("got %v %v: an update does not switch a rule on", enabled, err)
		}
		if err := p.SetRuleActions(t.Context(), alice, "underride", ".m.rule.message", json.RawMessage(`[]`)); err != nil {
			t.Fatal(err)
		}
		if actions, err := p.RuleActions(t.Context(), alice, "underride", ".m.rule.message"); err != nil || string(actions) != `[]` {
			t.Errorf("got %s %v", actions, err)
		}
		if err := p.DeleteRule(t.Context(), alice, "content", "one"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, p.DeleteRule(t.Context(), alice, "content", "one"), "M_NOT_FOUND")
		wantCode(t, p.DeleteRule(t.Context(), alice, "override", master), "M_INVALID_PARAM")

		set("room", "!old:hs1", "", "", `{"actions":[]}`)
		for range 2 {
			if err := p.CopyRoomRules(t.Context(), alice, "!old:hs1", "!new:hs1"); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.CopyRoomRules(t.Context(), alice, "!none:hs1", "!new2:hs1"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"!new:hs1", "!old:hs1"}, ids(t, p, "room")); diff != "" {
			t.Error(diff)
		}
		if raw, err := p.Rules(t.Context(), bob); err != nil || strings.Contains(string(raw), "mine") || !strings.Contains(string(raw), string(bob)) {
			t.Errorf("got %s %v", raw, err)
		}
	})
}

func TestRuleRefusals(t *testing.T) {
	p := newPush(t, storagetest.New(t))
	p.cfg.MaxRules = 1
	for _, test := range []struct{ kind, id, before, after, body, code string }{
		{"device", "x", "", "", `{"actions":[]}`, "M_INVALID_PARAM"},
		{"override", ".m.x", "", "", `{"actions":[]}`, "M_INVALID_PARAM"},
		{"override", "a/b", "", "", `{"actions":[]}`, "M_INVALID_PARAM"},
		{"override", `a\b`, "", "", `{"actions":[]}`, "M_INVALID_PARAM"},
		{"override", "x", "", "", `{}`, "M_MISSING_PARAM"},
		{"override", "x", "", "", `{"actions":7}`, "M_BAD_JSON"},
		{"override", "x", "", "", `{"actions":[7]}`, "M_BAD_JSON"},
		{"override", "x", "", "", `{"actions":[{"tweak":1}]}`, "M_BAD_JSON"},
		{"override", "x", "", "", `{"actions":[],"conditions":[7]}`, "M_BAD_JSON"},
		{"override", "x", "", "", `{"actions":[],"conditions":[{}]}`, "M_BAD_JSON"},
		{"content", "x", "", "", `{"actions":[]}`, "M_MISSING_PARAM"},
		{"content", "x", "", "", `{"actions":[],"pattern":"` + strings.Repeat("x", 1025) + `"}`, "M_INVALID_PARAM"},
		{"override", "x", "nosuch", "", `{"actions":[]}`, "M_UNKNOWN"},
		{"override", "x", "", master, `{"actions":[]}`, "M_UNKNOWN"},
		{"override", "x", "", "", `{"actions":[]}`, ""},
		{"override", "y", "", "", `{"actions":[]}`, "M_INVALID_PARAM"}, // too many
	} {
		err := p.SetRule(t.Context(), alice, test.kind, test.id, test.before, test.after, json.RawMessage(test.body))
		if got := matrix.ErrorCode(err); got != test.code {
			t.Errorf("%+v: got %v", test, err)
		}
	}
	wantCode(t, p.SetRuleEnabled(t.Context(), alice, "override", "nosuch", true), "M_NOT_FOUND")
	wantCode(t, p.SetRuleActions(t.Context(), alice, "override", "x", json.RawMessage(`null`)), "M_BAD_JSON")
	_, err := p.Rule(t.Context(), alice, "override", "nosuch")
	wantCode(t, err, "M_NOT_FOUND")
	_, err = p.KindRules(t.Context(), alice, "nosuch")
	wantCode(t, err, "M_INVALID_PARAM")
}

func TestCompiledRulesFollowChanges(t *testing.T) {
	p := newPush(t, storagetest.New(t))
	evaluate := func() Result {
		t.Helper()
		c, err := p.Compiled(t.Context(), alice)
		if err != nil {
			t.Fatal(err)
		}
		return c.Evaluate(Prepare(message("m.room.message", `{"body":"time for tea"}`), Room{Members: 3}), "")
	}
	if got := evaluate(); got != (Result{Notify: true}) {
		t.Errorf("got %+v", got)
	}
	if err := p.SetRule(t.Context(), alice, "content", "tea", "", "", json.RawMessage(`{"pattern":"TEA","actions":["notify",{"set_tweak":"highlight"}]}`)); err != nil {
		t.Fatal(err)
	}
	if got := evaluate(); got != (Result{Notify: true, Highlight: true}) {
		t.Errorf("got %+v", got)
	}
	if err := p.SetRule(t.Context(), alice, "room", "!r:hs1", "", "", json.RawMessage(`{"actions":[]}`)); err != nil {
		t.Fatal(err)
	}
	if err := p.SetRuleEnabled(t.Context(), alice, "content", "tea", false); err != nil {
		t.Fatal(err)
	}
	if got := evaluate(); got != (Result{}) {
		t.Errorf("got %+v in a muted room", got)
	}
	if err := p.SetRuleEnabled(t.Context(), alice, "override", master, true); err != nil {
		t.Fatal(err)
	}
	if got := evaluate(); got != (Result{}) {
		t.Errorf("got %+v with everything switched off", got)
	}
	// What is stored may be anything: it must not lock anybody out.
	for _, stored := range []string{`{"global":7}`, `{"global":{"override":[{"rule_id":".m.rule.gone"}]}}`} {
		if err := p.db.SetAccountData(t.Context(), alice, "", eventType, json.RawMessage(stored)); err != nil {
			t.Fatal(err)
		}
		if got := evaluate(); got != (Result{Notify: true}) {
			t.Errorf("%s: got %+v", stored, got)
		}
	}
}

func pusherBody(url string) string {
	return fmt.Sprintf(`{"pushkey":"key","kind":"http","app_id":"app","app_display_name":"App","device_display_name":"Phone","lang":"en","data":{"url":%q,"x":1}}`, url)
}

const gateway = "https://push.example.org/_matrix/push/v1/notify"

func TestPushers(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		p := newPush(t, db)
		list := func(user matrix.UserID) string {
			t.Helper()
			raw, err := p.Pushers(t.Context(), user)
			if err != nil {
				t.Fatal(err)
			}
			return string(raw)
		}
		if got := list(alice); got != `{"pushers":[]}` {
			t.Errorf("got %s", got)
		}
		set := func(user matrix.UserID, body string) {
			t.Helper()
			if err := p.SetPusher(t.Context(), user, "A", json.RawMessage(body)); err != nil {
				t.Fatal(err)
			}
		}
		set(alice, pusherBody(gateway))
		want := `{"pushers":[{"pushkey":"key","kind":"http","app_id":"app","app_display_name":"App","device_display_name":"Phone","lang":"en","data":{"url":"` + gateway + `","x":1}}]}`
		if got := list(alice); got != want {
			t.Errorf("got %s", got)
		}
		set(bob, strings.Replace(pusherBody(gateway), `"lang"`, `"append":true,"lang"`, 1))
		if list(alice) != want || list(bob) != want {
			t.Error("append must leave the pusher of the other user")
		}
		set(bob, pusherBody(gateway))
		if got := list(alice); got != `{"pushers":[]}` {
			t.Errorf("got %s: another user has the same key now", got)
		}
		set(bob, `{"pushkey":"key","app_id":"app","kind":null}`)
		if got := list(bob); got != `{"pushers":[]}` {
			t.Errorf("got %s after deleting", got)
		}
		for body, code := range map[string]string{
			`[]`:                           "M_BAD_JSON",
			`{}`:                           "M_MISSING_PARAM",
			`{"pushkey":"k","app_id":"a"}`: "M_MISSING_PARAM",
			`{"pushkey":"k","app_id":"a","kind":"http"}`:                                       "M_MISSING_PARAM",
			strings.Replace(pusherBody(gateway), `"http"`, `"email"`, 1):                       "M_INVALID_PARAM",
			strings.Replace(pusherBody(gateway), `"key"`, `"`+strings.Repeat("x", 513)+`"`, 1): "M_INVALID_PARAM",
			strings.Replace(pusherBody(gateway), `"app"`, `"`+strings.Repeat("x", 65)+`"`, 1):  "M_INVALID_PARAM",
			strings.Replace(pusherBody(gateway), `"key"`, `"a\u0000"`, 1):                      "M_INVALID_PARAM",
			pusherBody("http://push.example.org/_matrix/push/v1/notify"):                       "M_INVALID_PARAM",
			pusherBody("https://push.example.org/other"):                                       "M_INVALID_PARAM",
			pusherBody("https://user:pw@push.example.org/_matrix/push/v1/notify"):              "M_INVALID_PARAM",
			pusherBody(""): "M_MISSING_PARAM",
		} {
			err := p.SetPusher(t.Context(), alice, "A", json.RawMessage(body))
			if got := matrix.ErrorCode(err); got != code {
				t.Errorf("%.100s: got %v, want %s", body, err, code)
			}
		}
		if err := db.CreateUser(t.Context(), storage.NewUser{UserID: alice}); err != nil {
			t.Fatal(err)
		}
		if err := db.OpenSession(t.Context(), storage.NewSession{User: alice, Device: "A", Access: []byte("t"), MaxDevices: 9}); err != nil {
			t.Fatal(err)
		}
		set(alice, pusherBody(gateway))
		if err := db.DeleteDevices(t.Context(), alice, nil); err != nil {
			t.Fatal(err)
		}
		if got := list(alice); got != `{"pushers":[]}` {
			t.Errorf("got %s: a pusher goes with the device that set it", got)
		}
	})
}

// phone is a push gateway.
type phone struct {
	mu       sync.Mutex
	status   int
	answer   string
	received []map[string]any
}

func (g *phone) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	var n map[string]map[string]any
	_ = json.Unmarshal(body, &n)
	if g.status == 200 {
		g.received = append(g.received, n["notification"])
	}
	w.WriteHeader(g.status)
	_, _ = io.WriteString(w, g.answer)
}

func TestNotificationsReachTheGatewayInOrderAndAreRetried(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		g := &phone{status: 502, answer: `{}`}
		server := httptest.NewServer(g)
		defer server.Close()
		now := time.UnixMilli(1_700_000_000_000)
		cfg := DefaultConfig()
		cfg.InsecureGateways = true
		p := New(Options{Config: cfg, DB: db, Client: server.Client(), Now: func() time.Time { return now }})
		defer p.Close()
		if err := p.SetPusher(t.Context(), alice, "A", json.RawMessage(pusherBody(server.URL+gatewayPath))); err != nil {
			t.Fatal(err)
		}
		notify := func(event matrix.EventID, r Result) {
			t.Helper()
			if err := p.Notify(t.Context(), Notification{User: alice, RoomID: "!r:hs1", EventID: event, Type: "m.room.message", Sender: bob,
				Content: json.RawMessage(`{"body":"hi"}`), Result: r, SenderName: "Bob", Unread: 2}); err != nil {
				t.Fatal(err)
			}
		}
		notify("$1", Result{Notify: true, Sound: "default"})
		notify("$2", Result{Notify: true})
		notify("$3", Result{})
		if wait := p.deliver(t.Context()); wait != firstRetry || len(g.received) != 0 {
			t.Errorf("next in %v, want %v", wait, firstRetry)
		}
		g.status = 200
		now = now.Add(firstRetry)
		if wait := p.deliver(t.Context()); wait != idle || len(g.received) != 2 {
			t.Fatalf("next in %v, received %v", wait, g.received)
		}
		one := g.received[0]
		device := one["devices"].([]any)[0].(map[string]any)
		if one["event_id"] != "$1" || one["prio"] != "high" || one["sender_display_name"] != "Bob" || device["pushkey"] != "key" ||
			device["data"].(map[string]any)["url"] != nil || device["tweaks"].(map[string]any)["sound"] != "default" || g.received[1]["prio"] != "low" {
			t.Errorf("got %v", g.received)
		}

		body := strings.Replace(pusherBody(server.URL+gatewayPath), `"x":1`, `"format":"event_id_only"`, 1)
		if err := p.SetPusher(t.Context(), alice, "A", json.RawMessage(body)); err != nil {
			t.Fatal(err)
		}
		g.answer = `{"rejected":["key"]}`
		notify("$4", Result{Notify: true})
		notify("$5", Result{Notify: true})
		p.deliver(t.Context())
		if got := g.received[2]; len(g.received) != 3 || got["content"] != nil || got["sender"] != nil || got["event_id"] != "$4" {
			t.Errorf("got %v", g.received)
		}
		if raw, _ := p.Pushers(t.Context(), alice); string(raw) != `{"pushers":[]}` {
			t.Errorf("got %s: the gateway rejected the key", raw)
		}
	})
}

func TestQueueOfADeadGatewayIsBounded(t *testing.T) {
	p := newPush(t, storagetest.New(t))
	p.client = http.DefaultClient
	if err := p.SetPusher(t.Context(), alice, "A", json.RawMessage(pusherBody(gateway))); err != nil {
		t.Fatal(err)
	}
	for i := range maxQueued + 20 {
		if err := p.Notify(t.Context(), Notification{User: alice, EventID: matrix.EventID(fmt.Sprint("$", i)), Result: Result{Notify: true}, Content: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	due, _, err := p.db.DuePushes(t.Context(), p.now().UnixMilli(), 1000)
	if err != nil || len(due) != maxQueued || !strings.Contains(string(due[0].Body), "$20") {
		t.Errorf("got %d %v", len(due), err)
	}
}

func BenchmarkEvaluateMessage(b *testing.B) {
	c := defaults(alice)
	p := Prepare(message("m.room.message", `{"msgtype":"m.text","body":"Hello, this is an ordinary message"}`), Room{Members: 500})
	b.ReportAllocs()
	for b.Loop() {
		if !c.Evaluate(p, "Alice").Notify {
			b.Fatal("does not notify")
		}
	}
}

func FuzzEvaluate(f *testing.F) {
	f.Add([]byte(`{"body":"x","m.mentions":{"user_ids":["@alice:hs1"]}}`), []byte(`{"kind":"event_match","key":"content.body","pattern":"a*b?"}`))
	f.Add([]byte(`[]`), []byte(`{"kind":"room_member_count","is":"<"}`))
	f.Fuzz(func(t *testing.T, content, condition []byte) {
		rules := &ruleset{Override: []rule{{Enabled: true, Actions: rawStrings(`"notify"`), Conditions: []json.RawMessage{condition}}}}
		p := Prepare(Event{Type: "m.x", Sender: bob, Content: content, Full: content}, Room{})
		(&Compiled{user: alice, rules: compile(rules, alice)}).Evaluate(p, "Alice")
		defaults(alice).Evaluate(p, "Alice")
	})
}
