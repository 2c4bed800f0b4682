package room

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
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

// BenchmarkReceiveMany is a transaction of 50 messages.
func BenchmarkReceiveMany(b *testing.B) {
	one, two := benchWorld(b)
	room := one.newRoom("@alice:one", "11", "public")
	two.join(room, "@bob:two", "one")
	var events []json.RawMessage
	for range b.N * 50 {
		events = append(events, one.say(room, "@alice:one", "hello").JSON())
	}
	b.ResetTimer()
	for i := range b.N {
		two.Receive(context.Background(), "one", events[i*50:i*50+50])
	}
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
