package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const voicePath = "/_matrix/client/unstable/im.parley.voice/rooms/"

// capture keeps every byte that a server lets out to the others: its requests, seen where they arrive, and its answers.
type capture struct {
	server string

	mu     sync.Mutex // guards out
	out    []string
	change *sync.Cond
}

func newCapture(server string) *capture {
	c := &capture{server: server}
	c.change = sync.NewCond(&c.mu)
	return c
}

func (c *capture) add(parts ...string) {
	c.mu.Lock()
	c.out = append(c.out, strings.Join(parts, "\n"))
	c.mu.Unlock()
	c.change.Broadcast()
}

// arrivals is to be put before the handlers of other servers, answers before the server's own.
func (c *capture) arrivals(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Authorization"), `"`+c.server+`"`) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			c.add(r.Host, r.Method+" "+r.URL.RequestURI(), fmt.Sprint(r.Header), string(body))
		}
		next.ServeHTTP(w, r)
	})
}

func (c *capture) answers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		c.add(fmt.Sprint(recorder.Header()), recorder.Body.String())
		maps.Copy(w.Header(), recorder.Header())
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(recorder.Body.Bytes())
	})
}

// with lists what was let out, from the n-th on, that contains text.
func (c *capture) with(n int, text string) (found []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.out[n:] {
		if strings.Contains(m, text) {
			found = append(found, m)
		}
	}
	return found
}

func (c *capture) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out)
}

// device is somebody's client that keeps what it learns about voice messages from /sync alone.
type device struct {
	*person
	played map[string]any // by event: the account data of the room
	heard  map[string]any // by event and user: who has played what this user said
	words  map[string]any // by event: transcripts that came late
}

func newDevice(p *person) *device {
	return &device{person: p, played: map[string]any{}, heard: map[string]any{}, words: map[string]any{}}
}

// second signs in another device of the same person.
func (p *person) second() *person {
	p.t.Helper()
	u := *p.benchUser
	p.must("POST", "/_matrix/client/v3/login", map[string]any{"type": "m.login.password", "password": "correct horse battery staple",
		"identifier": map[string]any{"type": "m.id.user", "user": p.ID}}, &u)
	return &person{benchUser: &u, t: p.t}
}

// learn merges what a sync answer says into what the device knows.
func (d *device) learn(answer map[string]any, room string) {
	joined := dig(answer, "rooms", "join", room)
	for _, e := range list(dig(joined, "account_data", "events")) {
		if dig(e, "type") == "im.parley.voice.played" {
			maps.Copy(d.played, object(dig(e, "content", "events")))
		}
	}
	for _, e := range list(dig(joined, "ephemeral", "events")) {
		switch dig(e, "type") {
		case "im.parley.voice.played_by":
			for event, users := range object(dig(e, "content")) {
				known := object(d.heard[event])
				maps.Copy(known, object(users))
				d.heard[event] = known
			}
		case "im.parley.voice.transcript":
			maps.Copy(d.words, object(dig(e, "content")))
		}
	}
}

func list(v any) []any { l, _ := v.([]any); return l }

func object(v any) map[string]any {
	if m, _ := v.(map[string]any); m != nil {
		return m
	}
	return map[string]any{}
}

// syncOnce takes what is there without waiting.
func (d *device) syncOnce(room string) {
	d.t.Helper()
	query := "?timeout=0"
	if d.since != "" {
		query += "&since=" + url.QueryEscape(d.since)
	}
	var answer map[string]any
	d.must("GET", "/_matrix/client/v3/sync"+query, nil, &answer)
	d.since, _ = answer["next_batch"].(string)
	d.learn(answer, room)
}

// hears syncs until the device knows who has played the events.
func (d *device) hears(room string, events ...string) {
	d.t.Helper()
	missing := func() bool {
		return slices.ContainsFunc(events, func(e string) bool { return d.heard[e] == nil })
	}
	if missing() {
		d.until(fmt.Sprint("who has played ", events), func(answer map[string]any) bool {
			d.learn(answer, room)
			return !missing()
		})
	}
}

func (p *person) setAccountData(room, typ string, content any) {
	p.t.Helper()
	path := "/_matrix/client/v3/user/" + url.PathEscape(p.ID)
	if room != "" {
		path += "/rooms/" + url.PathEscape(room)
	}
	p.must("PUT", path+"/account_data/"+typ, content, nil)
}

func (p *person) play(room, event string, change map[string]any) {
	p.t.Helper()
	p.must("PUT", voicePath+url.PathEscape(room)+"/played/"+url.PathEscape(event), change, nil)
}

func (p *person) ask(room, what string) map[string]any {
	p.t.Helper()
	var answer struct{ Events map[string]any }
	p.must("GET", voicePath+url.PathEscape(room)+"/"+what, nil, &answer)
	return answer.Events
}

// meet makes a room of alice's with the others, each on a server of its own, and some voice messages of hers.
func meet(t *testing.T, w *devWorld, messages int, alice *person, others ...*person) (room string, events []string) {
	t.Helper()
	var created struct {
		RoomID string `json:"room_id"`
	}
	alice.must("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &created)
	room = created.RoomID
	for _, p := range others {
		p.must("POST", "/_matrix/client/v3/join/"+url.PathEscape(room)+"?via="+url.QueryEscape(w.servers[0].ServerName), map[string]any{}, nil)
	}
	for i := range messages {
		events = append(events, alice.send(room, fmt.Sprint("voice", i), voiceContent("mxc://"+w.servers[0].ServerName+"/nothing", 9000)))
	}
	alice.send(room, "end", map[string]any{"msgtype": "m.text", "body": "that was it"})
	for _, p := range others {
		p.until("alice's messages", timelineHas(room, "body", "that was it", nil))
	}
	return room, events
}

// With played receipts off, nothing of what is played leaves the server; with them on, the sender's server alone is told.
func TestPlayedStaysOnTheServerUnlessTheUserWantsOtherwise(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorldOf(t, 3, postgres)
		out := newCapture(w.servers[1].ServerName)
		startInProcess(t, w.servers[0], out.arrivals)
		startInProcess(t, w.servers[1], out.answers)
		startInProcess(t, w.servers[2], out.arrivals)
		alice, bob, carol := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob"), newPerson(t, w.servers[2], "carol")
		room, events := meet(t, w, 5, alice, bob, carol)

		from := out.len()
		silent := func(when string, events ...string) {
			t.Helper()
			// What bob says now comes after all that had to be told before.
			bob.send(room, when, map[string]any{"msgtype": "m.text", "body": when})
			alice.until(when, timelineHas(room, "body", when, nil))
			carol.until(when, timelineHas(room, "body", when, nil))
			for _, text := range append(events, "im.parley.voice") {
				if found := out.with(from, text); len(found) > 0 {
					t.Errorf("%s: %q leaves the server in\n%s", when, text, found[0])
				}
			}
			if len(out.with(from, when)) == 0 {
				t.Fatal("the capture sees nothing")
			}
			if got := alice.ask(room, "played_by"); len(got) != 0 {
				t.Errorf("%s: alice hears of %v", when, got)
			}
		}
		played, position := map[string]any{"played": true}, map[string]any{"position": 700}
		bob.play(room, events[0], played)
		bob.play(room, events[1], position)
		silent("never-asked", events...)
		bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": false})
		bob.play(room, events[1], played)
		bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": "yes"})
		bob.play(room, events[2], played)
		bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": true})
		bob.setAccountData(room, "im.parley.voice.played_receipts", map[string]any{"enabled": false})
		bob.play(room, events[3], played)
		bob.play(room, events[0], position) // played before, and still
		silent("turned-off", events...)

		bob.setAccountData(room, "im.parley.voice.played_receipts", map[string]any{"enabled": true})
		bob.play(room, events[4], position)
		silent("begun-only", events...)
		bob.play(room, events[4], played)
		listener := newDevice(alice)
		listener.hears(room, events[4])
		bob.send(room, "last", map[string]any{"msgtype": "m.text", "body": "last"})
		carol.until("last", timelineHas(room, "body", "last", nil))
		told := out.with(from, "im.parley.voice")
		if len(told) != 1 || !strings.HasPrefix(told[0], w.servers[0].ServerName+"\nPUT /_matrix/federation/v1/send/") {
			t.Errorf("told in %d requests: %q", len(told), told)
		}
		for _, e := range events[:4] {
			if found := out.with(from, e); len(found) > 0 {
				t.Errorf("%s is told later: %q", e, found)
			}
		}
		got := alice.ask(room, "played_by")
		if at, _ := dig(got, events[4], bob.ID, "ts").(float64); len(got) != 1 || time.Since(time.UnixMilli(int64(at))).Abs() > time.Minute {
			t.Errorf("alice asks: %v", got)
		}
		if diff := cmp.Diff(got, listener.heard); diff != "" {
			t.Error(diff)
		}
		if got := carol.ask(room, "played_by"); len(got) != 0 {
			t.Errorf("carol hears of what alice said: %v", got)
		}
		if got := bob.ask(room, "played_by"); len(got) != 0 {
			t.Errorf("bob hears of himself: %v", got)
		}
	})
}

// Who no longer wants to tell takes back what has not left yet.
func TestReceiptsThatWaitAreTakenBack(t *testing.T) {
	w := testWorld(t, false)
	out := newCapture(w.servers[1].ServerName)
	_, stop := runInProcess(t, w.servers[0], out.arrivals)
	startInProcess(t, w.servers[1], nil)
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	room, events := meet(t, w, 2, alice, bob)
	bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": true})
	stop()
	bob.play(room, events[0], map[string]any{"played": true})
	bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": false})
	bob.setAccountData(room, "im.parley.voice.played_receipts", map[string]any{"enabled": true})
	bob.play(room, events[1], map[string]any{"played": true})
	bob.setAccountData("", "im.parley.voice.played_receipts", map[string]any{}) // the room's own setting holds
	startInProcess(t, w.servers[0], out.arrivals)
	alice.send(room, "back", map[string]any{"msgtype": "m.text", "body": "back"})
	newDevice(alice).hears(room, events[1])
	if got := alice.ask(room, "played_by"); len(got) != 1 || got[events[1]] == nil || len(out.with(0, events[0])) > 0 {
		t.Errorf("got %v", got)
	}
}

// playedOp is what one of the devices does, or what happens to a server.
type playedOp struct {
	Kind     string
	Device   int // of bob's
	Message  int
	Position int64
}

var playedOps = rapid.Custom(func(t *rapid.T) playedOp {
	return playedOp{
		Kind: rapid.SampledFrom([]string{"play", "play", "play", "unplay", "position", "position", "on", "off", "room on", "room off", "sync", "sync",
			"alice syncs", "restart 1", "restart 2", "stop 1"}).Draw(t, "kind"),
		Device: rapid.IntRange(0, 1).Draw(t, "device"), Message: rapid.IntRange(0, 4).Draw(t, "message"),
		Position: rapid.Int64Range(0, 5000).Draw(t, "position"),
	}
})

// Three devices on two servers, in whatever order things happen and whoever is restarted or away meanwhile, come to know the same.
func TestPlayedStateConverges(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		out := newCapture(w.servers[1].ServerName)
		wires := []func(http.Handler) http.Handler{out.arrivals, out.answers}
		stops := make([]func(), 2)
		start := func(i int) {
			t.Helper()
			if stops[i] == nil {
				_, stops[i] = runInProcess(t, w.servers[i], wires[i])
			}
		}
		stop := func(i int) {
			if stops[i] != nil {
				stops[i]()
				stops[i] = nil
			}
		}
		start(0)
		start(1)
		sayer, player := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
		other := player.second()
		for story := range 4 {
			ops := rapid.SliceOfN(playedOps, 25, 35).Example(story)
			room, events := meet(t, w, 5, sayer, player)
			alice, bobs := newDevice(sayer), []*device{newDevice(player), newDevice(other)}
			player.setAccountData("", "im.parley.voice.played_receipts", map[string]any{"enabled": story%2 == 0})

			// What must come of it: bob's state by event; of whom alice must and may hear.
			state, must, may := map[string]any{}, map[string]bool{}, map[string]bool{}
			everywhere, inRoom := story%2 == 0, -1
			tells := func() bool { return inRoom == 1 || inRoom < 0 && everywhere }
			set := func(op playedOp, change map[string]any) {
				event := events[op.Message]
				bobs[op.Device].play(room, event, change)
				before := map[string]any{"played": false, "position": 0.0}
				after := maps.Clone(before)
				if known := object(state[event]); len(known) > 0 {
					before, after = known, maps.Clone(known)
				}
				maps.Copy(after, change)
				if _, ok := change["position"]; ok {
					after["position"] = float64(op.Position)
				}
				if len(object(state[event])) > 0 || !cmp.Equal(before, after) {
					state[event] = after
				}
				if before["played"] == false && after["played"] == true && tells() {
					must[event] = true
				}
			}
			setting := func(op playedOp, scope string, on bool) {
				bobs[op.Device].setAccountData(scope, "im.parley.voice.played_receipts", map[string]any{"enabled": on})
				if scope == "" {
					everywhere = on
				} else {
					inRoom = map[bool]int{true: 1}[on]
				}
				if !on { // what had not left was taken back
					for e := range must {
						may[e] = true
					}
					clear(must)
				}
			}
			for _, op := range ops {
				switch op.Kind {
				case "play", "unplay":
					set(op, map[string]any{"played": op.Kind == "play"})
				case "position":
					set(op, map[string]any{"position": op.Position})
				case "on", "off":
					setting(op, "", op.Kind == "on")
				case "room on", "room off":
					setting(op, room, op.Kind == "room on")
				case "sync":
					bobs[op.Device].syncOnce(room)
				case "alice syncs":
					if stops[0] != nil {
						alice.syncOnce(room)
					}
				case "stop 1":
					stop(0)
				case "restart 1":
					stop(0)
					start(0)
				case "restart 2":
					stop(1)
					start(1)
				}
			}
			start(0)
			sayer.send(room, "back", map[string]any{"msgtype": "m.text", "body": "back"}) // a sign of life
			alice.hears(room, slices.Sorted(maps.Keys(must))...)
			for i, bob := range bobs {
				bob.syncOnce(room)
				if diff := cmp.Diff(state, bob.played); diff != "" {
					t.Errorf("story %d: bob's device %d after %+v:\n%s", story, i, ops, diff)
				}
			}
			if diff := cmp.Diff(state, player.ask(room, "played")); diff != "" {
				t.Errorf("story %d: bob's server after %+v:\n%s", story, ops, diff)
			}
			alice.syncOnce(room)
			heard := sayer.ask(room, "played_by")
			if diff := cmp.Diff(heard, alice.heard); diff != "" {
				t.Errorf("story %d: alice's device differs from her server after %+v:\n%s", story, ops, diff)
			}
			for e, users := range heard {
				if !must[e] && !may[e] || len(object(users)) != 1 {
					t.Errorf("story %d: alice hears of %s %v after %+v", story, e, users, ops)
				}
			}
			for _, e := range events {
				if !must[e] && !may[e] && len(eduAbout(out, e)) > 0 {
					t.Errorf("story %d: %s leaves the server after %+v", story, e, ops)
				}
			}
		}
	})
}

// eduAbout finds played receipts about an event on the wire.
func eduAbout(c *capture, event string) (found []string) {
	for _, m := range c.with(0, "im.parley.voice") {
		lines := strings.Split(m, "\n")
		var body struct {
			EDUs []struct {
				Content map[string]any `json:"content"`
			} `json:"edus"`
		}
		if json.Unmarshal([]byte(lines[len(lines)-1]), &body) != nil {
			continue
		}
		for _, e := range body.EDUs {
			if e.Content["event_id"] == event {
				found = append(found, m)
			}
		}
	}
	return found
}
