package syncer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/user"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const (
	alice = matrix.UserID("@alice:here")
	bob   = matrix.UserID("@bob:here")
	carol = matrix.UserID("@carol:here")
	dave  = matrix.UserID("@dave:there") // of another server
)

// world is one server with its people.
type world struct {
	testing.TB
	ctx   context.Context
	db    *storage.DB
	rooms *room.Service
	users *user.Users
	keys  *keys.Keys
	push  *push.Push
	sync  *Service
	clock *clock
	key   *matrix.SigningKey

	mu   sync.Mutex
	edus []EDU
}

// clock is a clock that stands still until it is moved.
type clock struct {
	sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.Lock()
	defer c.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.Lock()
	defer c.Unlock()
	c.now = c.now.Add(d)
}

func newWorld(t testing.TB, db *storage.DB) *world {
	t.Helper()
	key, err := matrix.NewSigningKey("ed25519:test", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, key: key, ctx: context.Background(), db: db, clock: &clock{now: time.UnixMilli(1_760_000_000_000)}}
	log := slog.New(slog.DiscardHandler)
	w.users = user.New(user.Options{Config: user.DefaultConfig().CheapPasswords(), ServerName: "here", DB: db, Now: w.clock.Now, Log: log})
	w.keys = keys.New(keys.Options{Config: keys.DefaultConfig(), ServerName: "here", DB: db, Now: w.clock.Now, Log: log})
	w.push = push.New(push.Options{Config: push.DefaultConfig(), DB: db, Now: w.clock.Now, Log: log})
	w.rooms = room.New(room.Options{Config: room.DefaultConfig(), ServerName: "here", DB: db, Key: key, Keys: oneKey{key}, Now: w.clock.Now, Log: log})
	t.Cleanup(func() {
		if err := w.rooms.Close(); err != nil {
			t.Error(err)
		}
	})
	w.restart()
	for _, u := range []matrix.UserID{alice, bob, carol} {
		_, err := w.users.Create(w.ctx, user.NewAccount{Localpart: u.Localpart(), Password: "correct horse"})
		w.must(err)
		_, err = w.users.OpenSession(w.ctx, u, "PHONE", "", false, "")
		w.must(err)
	}
	return w
}

// oneKey is the key of all servers.
type oneKey struct{ *matrix.SigningKey }

func (k oneKey) Key(context.Context, matrix.ServerName, matrix.KeyID, time.Time) (*matrix.PublicKey, error) {
	return k.Public(), nil
}

// restart builds the syncer anew: what was only in memory is gone.
func (w *world) restart() {
	w.Helper()
	if w.sync != nil {
		w.must(w.sync.Close())
	}
	s := New(Options{
		Config: DefaultConfig(), ServerName: "here", DB: w.db, Rooms: w.rooms, Users: w.users, Keys: w.keys, Push: w.push,
		Now: w.clock.Now, Log: slog.New(slog.DiscardHandler),
		OnEDU: func(e EDU) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.edus = append(w.edus, e)
		},
	})
	w.sync = s
	w.Cleanup(func() { w.must(s.Close()) })
}

func each(t *testing.T, story func(w *world)) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) { story(newWorld(t, db)) })
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// takeEDUs returns what was told to other servers since the last call.
func (w *world) takeEDUs() []EDU {
	w.mu.Lock()
	defer w.mu.Unlock()
	edus := w.edus
	w.edus = nil
	return edus
}

// room makes a public room.
func (w *world) room(creator matrix.UserID, state ...room.InitialState) matrix.RoomID {
	w.Helper()
	id, err := w.rooms.Create(w.ctx, room.CreateRequest{Creator: creator, Preset: "public_chat", InitialState: state})
	w.must(err)
	return id
}

func (w *world) join(id matrix.RoomID, users ...matrix.UserID) {
	w.Helper()
	for _, u := range users {
		_, err := w.rooms.Join(w.ctx, room.JoinRequest{Room: id, User: u})
		w.must(err)
	}
}

func (w *world) leave(id matrix.RoomID, users ...matrix.UserID) {
	w.Helper()
	for _, u := range users {
		w.must(w.rooms.Leave(w.ctx, room.MemberRequest{Room: id, Sender: u}))
	}
}

func (w *world) invite(id matrix.RoomID, sender, target matrix.UserID) {
	w.Helper()
	w.must(w.rooms.Invite(w.ctx, room.MemberRequest{Room: id, Sender: sender, Target: target}))
}

func (w *world) event(r room.SendRequest) matrix.EventID {
	w.Helper()
	id, err := w.rooms.Send(w.ctx, r)
	w.must(err)
	return id
}

func (w *world) say(id matrix.RoomID, sender matrix.UserID, body string) matrix.EventID {
	w.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return w.event(room.SendRequest{Room: id, Sender: sender, Type: "m.room.message", Content: content})
}

func (w *world) inThread(id matrix.RoomID, sender matrix.UserID, body string, root matrix.EventID) matrix.EventID {
	w.Helper()
	return w.event(room.SendRequest{Room: id, Sender: sender, Type: "m.room.message",
		Content: json.RawMessage(fmt.Sprintf(`{"msgtype":"m.text","body":%q,"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, body, root))})
}

func (w *world) set(id matrix.RoomID, sender matrix.UserID, typ, key, content string) matrix.EventID {
	w.Helper()
	return w.event(room.SendRequest{Room: id, Sender: sender, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
}

// client is one device of somebody.
type client struct {
	w *world
	Request
}

func (w *world) client(u matrix.UserID) *client {
	return &client{w: w, Request: Request{User: u, Device: "PHONE"}}
}

// sync asks for news since the last time.
func (c *client) sync() *answered {
	c.w.Helper()
	a := c.peek()
	c.Since = a.text("next_batch")
	return a
}

// peek asks for news and forgets that it has.
func (c *client) peek() *answered {
	c.w.Helper()
	raw, err := c.w.sync.Sync(c.w.ctx, c.Request)
	c.w.must(err)
	return c.w.answered(raw)
}

// with is a copy of the client that asks differently.
func (c *client) with(change func(*Request)) *client {
	other := *c
	change(&other.Request)
	return &other
}

func (w *world) answered(raw []byte) *answered {
	w.Helper()
	a := &answered{w: w, raw: raw}
	if err := json.Unmarshal(raw, &a.v); err != nil {
		w.Fatalf("the answer is no JSON: %v\n%s", err, raw)
	}
	return a
}

// answered is an answer, or a part of one.
type answered struct {
	w   *world
	v   any
	raw []byte
}

// at goes down by keys; v is nil where there is nothing.
func (a *answered) at(path ...string) *answered {
	v := a.v
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return &answered{w: a.w, v: v}
}

func (a *answered) there(path ...string) bool { return a.at(path...).v != nil }

func (a *answered) text(path ...string) string {
	s, _ := a.at(path...).v.(string)
	return s
}

func (a *answered) number(path ...string) int {
	n, ok := a.at(path...).v.(float64)
	if !ok {
		return -1
	}
	return int(n)
}

func (a *answered) list(path ...string) []*answered {
	var all []*answered
	list, _ := a.at(path...).v.([]any)
	for _, v := range list {
		all = append(all, &answered{w: a.w, v: v})
	}
	return all
}

func (a *answered) joined(id matrix.RoomID) *answered { return a.at("rooms", "join", string(id)) }
func (a *answered) left(id matrix.RoomID) *answered   { return a.at("rooms", "leave", string(id)) }

// bodies are the bodies of the messages in the timeline; other events are shown by their types, and members by theirs.
func (a *answered) bodies() []string {
	return shown(a.list("timeline", "events"))
}

// stateTypes are the state events, in order of their names.
func (a *answered) stateTypes(section string) []string {
	list := shown(a.list(section, "events"))
	slices.Sort(list)
	return list
}

func shown(events []*answered) []string {
	out := []string{}
	for _, e := range events {
		switch {
		case e.there("content", "body"):
			out = append(out, e.text("content", "body"))
		case e.text("type") == "m.room.member":
			out = append(out, e.text("content", "membership")+" "+e.text("state_key"))
		default:
			out = append(out, e.text("type"))
		}
	}
	return out
}

func (w *world) equal(what string, got, want any) {
	w.Helper()
	g, _ := json.Marshal(got)
	h, _ := json.Marshal(want)
	if string(g) != string(h) {
		w.Errorf("%s:\n got %s\nwant %s", what, g, h)
	}
}
