package room

import (
	"crypto/rand"
	"log/slog"
	"os"
	"strings"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestMessageDirtiesFewPages guards the disk budget: at most 12 pages of 4 kB in SQLite's log per message.
func TestMessageDirtiesFewPages(t *testing.T) {
	url := storagetest.SQLiteURL(t)
	db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := newService(t, db)
	room := create(t, s, CreateRequest{})
	send := func(n int) {
		for range n {
			_, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Device: "D", TxnID: rand.Text(), Type: matrix.TypeMessage, Content: benchContent})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	wal := func() int64 {
		info, err := os.Stat(strings.TrimPrefix(url, "sqlite:") + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	const n = 40 // fits before the next checkpoint
	most := int64(0)
	for range 20 { // a checkpoint in between hides some
		before := wal()
		send(n)
		most = max(most, (wal()-before)/n/4120)
	}
	t.Logf("%d pages per message", most)
	if most > 12 {
		t.Errorf("%d pages per message", most)
	}
}
