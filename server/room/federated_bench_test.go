package room

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// benchWorld is a world for benchmarks.
func benchWorld(b *testing.B) (one, two *at) {
	w := &world{servers: map[matrix.ServerName]*Service{}, keys: map[matrix.ServerName]*matrix.SigningKey{}, now: time.UnixMilli(1_700_000_000_000),
		fault: map[string]func() error{}, tweak: map[string]func(any) error{}}
	for i, name := range []matrix.ServerName{"one", "two"} {
		seed := make([]byte, 32)
		seed[0] = byte(i + 1)
		key, err := matrix.NewSigningKey("ed25519:1", seed)
		if err != nil {
			b.Fatal(err)
		}
		w.keys[name] = key
		w.servers[name] = New(Options{Config: DefaultConfig(), ServerName: name, DB: storagetest.New(b), Key: key, Keys: w, Remote: &wire{w, name},
			Log: slog.New(slog.DiscardHandler), Now: w.tick})
	}
	return &at{w.servers["one"], b, w, "one"}, &at{w.servers["two"], b, w, "two"}
}

// BenchmarkReceive is one message from another server, from the transaction to the commit.
func BenchmarkReceive(b *testing.B) {
	one, two := benchWorld(b)
	room := one.newRoom("@alice:one", "11", "public")
	two.join(room, "@bob:two", "one")
	var events []json.RawMessage
	for range b.N {
		events = append(events, one.say(room, "@alice:one", "hello").JSON())
	}
	b.ResetTimer()
	for _, e := range events {
		for id, err := range two.Receive(context.Background(), "one", []json.RawMessage{e}) {
			if err != nil {
				b.Fatal(id, err)
			}
		}
	}
}

// BenchmarkReceiveMany is transactions of 50 messages of another server: parsed, verified, authorized and appended, with durable commits. Those
// of one room come one after the other, as a server sends them; several servers send at the same time.
func BenchmarkReceiveMany(b *testing.B) {
	for _, rooms := range []int{1, 16} {
		b.Run(fmt.Sprintf("rooms=%d", rooms), func(b *testing.B) { benchReceive(b, rooms) })
	}
}

// benchReceive counts transactions: an operation is 50 events.
func benchReceive(b *testing.B, rooms int) {
	const each = 50
	one, two := benchWorld(b)
	transactions := make([][][]json.RawMessage, min(rooms, b.N))
	for r := range transactions {
		room := one.newRoom("@alice:one", "11", "public")
		two.join(room, "@bob:two", "one")
		for n := r; n < b.N; n += rooms {
			var events []json.RawMessage
			for range each {
				events = append(events, one.say(room, "@alice:one", "hello").JSON())
			}
			transactions[r] = append(transactions[r], events)
		}
	}
	before := cpuTime(b)
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, list := range transactions {
		wg.Go(func() {
			for _, events := range list {
				for id, err := range two.Receive(context.Background(), "one", events) {
					if err != nil {
						b.Error(id, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N*each)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N*each), "cpu-us/event")
}

// BenchmarkVerify checks the signatures of 1,000 events; -cpu 1,2 shows what a second core does.
func BenchmarkVerify(b *testing.B) {
	const size = 1000
	one, two := benchWorld(b)
	room := one.newRoom("@alice:one", "11", "public")
	var events []*matrix.Event
	for range size {
		events = append(events, one.say(room, "@alice:one", "hello").Event)
	}
	before := cpuTime(b)
	b.ResetTimer()
	for range b.N {
		if good := two.verifyEvents(b.Context(), events); len(good) != size {
			b.Fatal(len(good))
		}
	}
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N*size), "cpu-us/event")
}

// BenchmarkJoinLargeRoom joins a room of 2,000 members.
func BenchmarkJoinLargeRoom(b *testing.B) {
	for range b.N {
		b.StopTimer()
		one, two := benchWorld(b)
		room := one.newRoom("@alice:one", "11", "public")
		for i := range 20 {
			err := one.update(context.Background(), room, func(u *update) error {
				for j := range 100 {
					user := fmt.Sprintf("@u%d-%d:one", i, j)
					if _, err := u.post(matrix.Builder{Sender: matrix.UserID(user), Type: matrix.TypeMember, StateKey: &user, Content: joinContent}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		two.join(room, "@bob:two", "one")
	}
}
