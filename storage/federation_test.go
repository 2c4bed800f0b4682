package storage_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestOutbox(t *testing.T) { storagetest.Each(t, testOutbox) }

func testOutbox(t *testing.T, db *storage.DB) {
	ctx := context.Background()
	write := func(fn func(*storage.Tx) error) {
		t.Helper()
		if err := db.Write(ctx, fn); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		write(func(tx *storage.Tx) error {
			return tx.QueueEDU([]matrix.ServerName{"a.example", "b.example"}, "m.direct_to_device", json.RawMessage(fmt.Sprint(i)))
		})
	}
	write(func(tx *storage.Tx) error {
		return tx.QueueEDUForSharers("@alice:x", "m.device_list_update", json.RawMessage(`{}`))
	})
	rows, err := db.Outbox(ctx, "a.example", 3)
	if err != nil || len(rows) != 3 || string(rows[2].Content) != "2" || rows[0].Pos >= rows[1].Pos {
		t.Fatal(rows, err)
	}
	if err := db.DeleteOutbox(ctx, "a.example", []int64{rows[0].Pos, rows[2].Pos}); err != nil {
		t.Fatal(err)
	}
	if err := db.TrimOutbox(ctx, "a.example", 2); err != nil {
		t.Fatal(err)
	}
	rows, err = db.Outbox(ctx, "a.example", 10)
	if err != nil || len(rows) != 2 || string(rows[0].Content) != "3" {
		t.Error(rows, err)
	}
	shared, err := db.Outbox(ctx, "", 10)
	if err != nil || len(shared) != 1 || shared[0].User != "@alice:x" {
		t.Fatal(shared, err)
	}
	for range 2 { // the second time there is nothing left to address
		if err := db.AddressEDU(ctx, shared[0], []matrix.ServerName{"a.example", "c.example"}); err != nil {
			t.Fatal(err)
		}
	}
	servers, err := db.OutboxServers(ctx)
	if err != nil || len(servers) != 3 {
		t.Error(servers, err)
	}
	if rows, _ := db.Outbox(ctx, "c.example", 10); len(rows) != 1 {
		t.Error(rows)
	}
}

func TestDestinations(t *testing.T) { storagetest.Each(t, testDestinations) }

func testDestinations(t *testing.T, db *storage.DB) {
	ctx := context.Background()
	at := time.UnixMilli(1_700_000_000_000)
	for _, step := range []func() error{
		func() error { return db.AddDestination(ctx, "a.example", 5) },
		func() error { return db.AddDestination(ctx, "a.example", 9) }, // known already
		func() error {
			return db.MoveDestinations(ctx, map[matrix.ServerName]int64{"a.example": 7, "unknown.example": 7})
		},
		func() error { return db.MoveDestinations(ctx, map[matrix.ServerName]int64{"a.example": 6}) }, // never back
		func() error { return db.SetBackoff(ctx, "a.example", at, 3) },
		func() error { return db.SetSigns(ctx, "a.example", at) },
		func() error { return db.SetSigns(ctx, "a.example", at.Add(time.Hour)) }, // since the first time
		func() error { return db.SetSigns(ctx, "b.example", at) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := db.Destinations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []storage.Destination{{Server: "a.example", Pos: 7, RetryAt: at, Failures: 3, SignsSince: at}, {Server: "b.example", SignsSince: at}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestServerKeys(t *testing.T) { storagetest.Each(t, testServerKeys) }

func testServerKeys(t *testing.T, db *storage.DB) {
	ctx := context.Background()
	at := time.UnixMilli(1_700_000_000_000)
	if _, err := db.KeyAnswer(ctx, "a.example"); err != storage.ErrNotFound {
		t.Errorf("got %v", err)
	}
	first := []storage.ServerKey{{KeyID: "ed25519:1", Key: make([]byte, 32), ValidUntil: at}, {KeyID: "ed25519:2", Key: make([]byte, 32), ValidUntil: at}}
	then := []storage.ServerKey{{KeyID: "ed25519:1", Key: make([]byte, 32), ValidUntil: at, ExpiredAt: at}}
	for i, keys := range [][]storage.ServerKey{first, then} {
		answer := storage.KeyAnswer{JSON: json.RawMessage(fmt.Sprint(i)), ValidUntil: at, FetchedAt: at}
		if err := db.StoreServerKeys(ctx, "a.example", keys, answer); err != nil {
			t.Fatal(err)
		}
		if got, err := db.KeyAnswer(ctx, "a.example"); err != nil || cmp.Diff(answer, got) != "" {
			t.Error(got, err)
		}
	}
	got, err := db.ServerKeys(ctx, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]storage.ServerKey{then[0], first[1]}, got); diff != "" {
		t.Error(diff)
	}
}
