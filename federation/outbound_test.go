package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// houseOf is a server with rooms, keys and a sender, as main builds it.
type houseOf struct {
	*testServer
	rooms  *room.Service
	sender *Sender
	stop   func() // ends the sender; may be called twice

	mu   sync.Mutex
	got  []matrix.EventID // from other servers, in the order of the stream
	news chan struct{}    // closed and replaced when got grows
	sent [][]byte         // bodies of the transactions that arrived here
	away bool
}

func newHouse(t testing.TB, a *authority, change ...func(*Options)) *houseOf {
	t.Helper()
	h := &houseOf{testServer: newTestServer(t, a, change...), news: make(chan struct{})}
	o := h.o
	h.rooms = room.New(room.Options{Config: room.DefaultConfig(), ServerName: h.name, DB: o.DB, Key: o.Key, Keys: h.Client, Remote: h.Client, Log: o.Log})
	t.Cleanup(func() { h.rooms.Close() })
	k := keys.New(keys.Options{Config: keys.DefaultConfig(), ServerName: h.name, DB: o.DB, Remote: h.Client, Log: o.Log})
	u := user.New(user.Options{Config: user.DefaultConfig(), ServerName: h.name, DB: o.DB, Remote: h.Client, Log: o.Log})
	p := push.New(push.Options{Config: push.DefaultConfig(), DB: o.DB, Log: o.Log})
	s := syncer.New(syncer.Options{Config: syncer.DefaultConfig(), ServerName: h.name, DB: o.DB, Rooms: h.rooms, Users: u, Keys: k, Push: p, Log: o.Log})
	t.Cleanup(func() { s.Close() })
	real := NewHandler(HandlerOptions{Client: h.Client, Rooms: h.rooms, Keys: k, Sync: s})
	h.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		away := h.away
		h.mu.Unlock()
		if away {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if strings.Contains(r.URL.Path, "/send/") {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			h.mu.Lock()
			h.sent = append(h.sent, body)
			close(h.news)
			h.news = make(chan struct{})
			h.mu.Unlock()
		}
		real.ServeHTTP(w, r)
	}))
	stop := o.DB.Listen(func(c storage.Commit) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, change := range c.Changes {
			for _, e := range change.Events {
				if e.Event.Sender().Server() != h.name {
					h.got = append(h.got, e.Event.ID())
				}
			}
		}
		close(h.news)
		h.news = make(chan struct{})
	})
	t.Cleanup(stop)
	h.start(t)
	return h
}

// start runs a new sender, as after a restart.
func (h *houseOf) start(t testing.TB) {
	h.sender = NewSender(h.Client, h.rooms)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.sender.Run(ctx) }()
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("sender: %v", err)
			}
		})
	}
	t.Cleanup(h.stop)
}

func (h *houseOf) setAway(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

// waitFor waits until ok is true of what came from other servers.
func (h *houseOf) waitFor(t testing.TB, what string, ok func(got []matrix.EventID) bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		h.mu.Lock()
		news, done := h.news, ok(h.got)
		h.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-timeout:
			t.Fatalf("timed out waiting for %s; got %d events", what, len(h.got))
		}
	}
}

func (h *houseOf) user(name string) matrix.UserID {
	return matrix.UserID("@" + name + ":" + string(h.name))
}

func (h *houseOf) create(t testing.TB) matrix.RoomID {
	t.Helper()
	id, err := h.rooms.Create(context.Background(), room.CreateRequest{Creator: h.user("alice"), Preset: "public_chat"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (h *houseOf) join(t testing.TB, id matrix.RoomID, name string, via *houseOf) {
	t.Helper()
	if _, err := h.rooms.Join(context.Background(), room.JoinRequest{Room: id, User: h.user(name), Via: []matrix.ServerName{via.name}}); err != nil {
		t.Fatal(err)
	}
}

func (h *houseOf) say(t testing.TB, id matrix.RoomID, name, text string) matrix.EventID {
	t.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	event, err := h.rooms.Send(context.Background(), room.SendRequest{Room: id, Sender: h.user(name), Type: "m.room.message", Content: content})
	if err != nil {
		t.Fatal(err)
	}
	return event
}

func (h *houseOf) transactions() [][]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.sent)
}

func TestEventsReachOtherServersInOrder(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	var sent []matrix.EventID
	for i := range 120 {
		sent = append(sent, alice.say(t, id, "alice", fmt.Sprint(i)))
	}
	bob.waitFor(t, "the last message", func(got []matrix.EventID) bool { return slices.Contains(got, sent[len(sent)-1]) })
	got := bob.got[len(bob.got)-len(sent):]
	if !slices.Equal(got, sent) {
		t.Errorf("got them in another order, or not once each")
	}
	// And back.
	answer := bob.say(t, id, "bob", "hi")
	alice.waitFor(t, "the answer", func(got []matrix.EventID) bool { return slices.Contains(got, answer) })
	for _, body := range bob.transactions() {
		var txn struct {
			Origin matrix.ServerName `json:"origin"`
			PDUs   []any             `json:"pdus"`
			EDUs   []any             `json:"edus"`
		}
		if err := json.Unmarshal(body, &txn); err != nil || txn.Origin != alice.name || len(txn.PDUs) > maxPDUs || len(txn.EDUs) > maxEDUs {
			t.Errorf("%v: %d PDUs, %d EDUs of %s", err, len(txn.PDUs), len(txn.EDUs), txn.Origin)
		}
	}
}

func TestJoinIsRelayedToTheOthers(t *testing.T) {
	a := newAuthority(t)
	alice, bob, carol := newHouse(t, a), newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	carol.join(t, id, "carol", alice)
	// Bob's server learns of carol from alice's, and can send to her at once.
	bob.waitFor(t, "carol's join", func(got []matrix.EventID) bool {
		r, err := bob.rooms.Room(context.Background(), id)
		return err == nil && r.Snapshot().Servers[carol.name] == 1
	})
	hi := bob.say(t, id, "bob", "welcome")
	carol.waitFor(t, "bob's welcome", func(got []matrix.EventID) bool { return slices.Contains(got, hi) })
}

func TestServerThatWasAwayCatchesUp(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	bob.setAway(true)
	var sent []matrix.EventID
	for i := range maxPending + 50 { // more than is kept in memory
		sent = append(sent, alice.say(t, id, "alice", fmt.Sprint(i)))
	}
	bob.setAway(false)
	last := sent[len(sent)-1]
	bob.waitFor(t, "the last message", func(got []matrix.EventID) bool { return slices.Contains(got, last) })
}

func TestRefusedTransactionsAreSentAgainWhenAsked(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	real, refusals := bob.handler, 1
	bob.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refusals > 0 && strings.Contains(r.URL.Path, "/send/") {
			refusals--
			w.WriteHeader(429)
			io.WriteString(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down"}`)
			return
		}
		real.ServeHTTP(w, r)
	}))
	event := alice.say(t, id, "alice", "hello")
	bob.waitFor(t, "the message", func(got []matrix.EventID) bool { return slices.Contains(got, event) })
}

func TestSenderThatWasRestartedGoesOn(t *testing.T) { storagetest.Each(t, testRestart) }

func testRestart(t *testing.T, db *storage.DB) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a, func(o *Options) { o.DB = db }), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	first := alice.say(t, id, "alice", "first")
	bob.waitFor(t, "the first message", func(got []matrix.EventID) bool { return slices.Contains(got, first) })
	alice.stop()
	missed := alice.say(t, id, "alice", "nobody sends this")
	if err := alice.o.DB.Write(context.Background(), func(tx *storage.Tx) error {
		return tx.QueueEDU([]matrix.ServerName{bob.name}, "m.test", json.RawMessage(`{"kept":true}`))
	}); err != nil {
		t.Fatal(err)
	}
	alice.start(t)
	bob.waitFor(t, "the missed message and the EDU", func(got []matrix.EventID) bool {
		return slices.Contains(got, missed) && bytes.Contains(bytes.Join(bob.sent, nil), []byte("kept"))
	})
	alice.stop()
	all := string(bytes.Join(bob.transactions(), nil))
	if strings.Count(all, `{"kept":true}`) != 1 {
		t.Errorf("the outbox was delivered %d times", strings.Count(all, `{"kept":true}`))
	}
	if rows, err := alice.o.DB.Outbox(context.Background(), bob.name, 10); err != nil || len(rows) != 0 {
		t.Errorf("left in the outbox: %v %v", rows, err)
	}
	// All is delivered, so the next start has nothing to send.
	before := len(bob.transactions())
	known, err := alice.o.DB.Destinations(context.Background())
	if err != nil || len(known) != 1 || known[0].Pos < alice.o.DB.Position() {
		t.Errorf("position not written down: %+v, at %d, %v", known, alice.o.DB.Position(), err)
	}
	alice.start(t)
	alice.stop()
	if n := len(bob.transactions()); n != before {
		t.Errorf("%d transactions too many", n-before)
	}
}

func TestKickedServerHearsOfIt(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	if err := alice.rooms.Kick(context.Background(), room.MemberRequest{Room: id, Sender: alice.user("alice"), Target: bob.user("bob")}); err != nil {
		t.Fatal(err)
	}
	bob.waitFor(t, "the kick", func(got []matrix.EventID) bool {
		m, err := bob.rooms.Membership(context.Background(), id, bob.user("bob"))
		return err == nil && m.Membership == "leave"
	})
	// What is said afterwards is none of its business.
	before := len(bob.transactions())
	secret := alice.say(t, id, "alice", "secret")
	alice.stop()
	for _, body := range bob.transactions()[before:] {
		if bytes.Contains(body, []byte("secret")) {
			t.Errorf("%s was sent to a server that is not in the room", secret)
		}
	}
}

func TestEphemeralEDUs(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	for i := range 5 {
		alice.sender.SendEDU(syncer.EDU{Type: "m.typing", Room: id, User: alice.user("alice"), Content: json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))})
	}
	alice.sender.SendEDU(syncer.EDU{Type: "m.presence", User: alice.user("alice"), Content: json.RawMessage(`{"push":[]}`)})
	bob.waitFor(t, "the last typing notice and presence", func([]matrix.EventID) bool {
		all := bytes.Join(bob.sent, nil)
		return bytes.Contains(all, []byte(`{"n":4}`)) && bytes.Contains(all, []byte(`"m.presence"`))
	})
}

// BenchmarkDelivery measures from the start of the send here to the event's commit on the other server.
func BenchmarkDelivery(b *testing.B) {
	a := newAuthority(b)
	alice, bob := newHouse(b, a), newHouse(b, a)
	alice.o.Log = slog.New(slog.DiscardHandler)
	id := alice.create(b)
	bob.join(b, id, "bob", alice)
	warm := alice.say(b, id, "alice", "warm")
	bob.waitFor(b, "warm", func(got []matrix.EventID) bool { return slices.Contains(got, warm) })
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		event := alice.say(b, id, "alice", "hello")
		bob.waitFor(b, "the message", func(got []matrix.EventID) bool { return got[len(got)-1] == event })
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "ms-p95")
}

func TestJoinHandedToAnotherServerIsNotSentAgain(t *testing.T) {
	a := newAuthority(t)
	alice, bob := newHouse(t, a), newHouse(t, a)
	id := alice.create(t)
	bob.join(t, id, "bob", alice)
	hi := bob.say(t, id, "bob", "hi")
	alice.waitFor(t, "bob's message", func(got []matrix.EventID) bool { return slices.Contains(got, hi) })
	bob.stop()
	if all := bytes.Join(alice.transactions(), nil); bytes.Contains(all, []byte("m.room.member")) {
		t.Errorf("the join came a second time: %s", all)
	}
}
