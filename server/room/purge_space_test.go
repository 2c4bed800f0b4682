package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestSpaceOfAPurgeIsGivenBack looks at the file, or at what PostgreSQL says.
func TestSpaceOfAPurgeIsGivenBack(t *testing.T) { spaceOfAPurge(t, (*at).purge) }

// When the process is killed after the last row has gone, the next one finds that there is space to be given back.
func TestSpaceOfAPurgeIsGivenBackAfterAKill(t *testing.T) {
	spaceOfAPurge(t, func(a *at) {
		a.o.DeleteBlobs = func(context.Context) error { return errCrash }
		if err := a.Purge(a.t.Context()); !errors.Is(err, errCrash) {
			a.t.Fatal(err)
		}
		asked := 0
		a = a.restart()
		a.o.DeleteBlobs = func(context.Context) error { asked++; return nil }
		a.purge()
		a.purge()
		if asked != 1 {
			a.t.Errorf("files were deleted %d times after the restart", asked)
		}
	})
}

func spaceOfAPurge(t *testing.T, purge func(*at)) {
	storagetest.EachURL(t, func(t *testing.T, url string) {
		ctx := t.Context()
		a := newWorldOn(t, func() *storage.DB {
			db, err := storage.Open(ctx, storage.Config{URL: url}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return db
		}, "one").at("one")
		size := func() int64 {
			t.Helper()
			if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
				stat, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				return stat.Size()
			}
			n, err := a.o.DB.Size(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		empty := size()
		room := a.newRoom("@a:one", "11", "public")
		noise := rand.NewChaCha8([32]byte{1})
		long := make([]byte, 4000) // PostgreSQL compresses what it can
		for range 10 {
			err := a.update(ctx, room, func(u *update) error {
				for i := range 100 {
					_, _ = noise.Read(long)
					if _, err := u.post(matrix.Builder{Sender: "@a:one", Type: matrix.TypeMessage, Content: json.RawMessage(fmt.Sprintf(`{"body":"%d %x"}`, i, long))}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		last := a.say(room, "@a:one", "the last")
		if err := a.o.DB.Reclaim(ctx, true); err != nil { // brings the log into the file
			t.Fatal(err)
		}
		full := size()
		if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Event: last.ID()}); err != nil {
			t.Fatal(err)
		}
		purge(a)
		if a.o.DB.Dialect() == storage.PostgreSQL {
			if err := a.o.DB.Vacuum(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if got := size(); got > empty+(full-empty)/4 || full < empty+2<<20 {
			t.Errorf("%d kB before, %d kB with a room, %d kB after it was purged", empty>>10, full>>10, got>>10)
		}
		if got := a.timelineSeen(room); len(got) != 1 {
			t.Errorf("left to read: %q", got)
		}
	})
}

// TestFilesGoWithTheLastEventThatNamesThem purges events with files of several kinds.
func TestFilesGoWithTheLastEventThatNamesThem(t *testing.T) {
	eachKind(t, func(t *testing.T, open func() *storage.DB) {
		ctx := t.Context()
		a := newWorldOn(t, open, "one").at("one")
		db := a.o.DB
		room, other := a.newRoom("@a:one", "11", "public"), a.newRoom("@a:one", "11", "public")
		n := byte(0)
		file := func(server matrix.ServerName, id string, uploader matrix.UserID) string {
			t.Helper()
			n++
			err := db.AddMedia(ctx, storage.Media{Server: server, MediaID: id, Hash: storage.BlobHash{n}, Size: 1, Uploader: uploader, Created: a.o.Now()}, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			return "mxc://" + string(server) + "/" + id
		}
		name := func(room matrix.RoomID, uri string) {
			t.Helper()
			a.post(room, matrix.Builder{Sender: "@a:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"f","file":{"x":[{"url":"` + uri + `"}]}}`)})
		}
		only, both, elsewhere := file("one", "only", "@a:one"), file("one", "both", "@a:one"), file("two", "cached", "")
		foreign, unused, kept := file("one", "foreign", "@b:one"), file("one", "unused", "@a:one"), file("one", "kept", "@a:one")
		_ = unused
		err := db.SetAccountData(ctx, "@a:one", "", "m.pack", json.RawMessage(`{"images":"`+kept+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, uri := range []string{only, both, elsewhere, foreign, kept} {
			name(room, uri)
		}
		name(other, both)
		here := func() string {
			t.Helper()
			var found []string
			for _, m := range []struct {
				server matrix.ServerName
				id     string
			}{{"one", "only"}, {"one", "both"}, {"two", "cached"}, {"one", "foreign"}, {"one", "unused"}, {"one", "kept"}} {
				if _, err := db.Media(ctx, m.server, m.id); err == nil {
					found = append(found, m.id)
				}
			}
			return strings.Join(found, " ")
		}
		empty := func(room matrix.RoomID) {
			t.Helper()
			if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Before: a.o.Now()}); err != nil {
				t.Fatal(err)
			}
			a.purge()
		}
		// Under a hold neither the purge nor the sweeps of the cache take anything.
		if err := db.SetHold(ctx, storage.Hold{Kind: storage.HoldUser, Target: "@a:one", SetBy: "@a:one", Set: a.o.Now()}); err != nil {
			t.Fatal(err)
		}
		empty(room)
		future := a.o.Now().Add(time.Hour)
		for _, sweep := range []func() (int, error){
			func() (int, error) { return db.DeleteRemoteMedia(ctx, future, future, 100) },
			func() (int, error) { return db.ShrinkRemoteMedia(ctx, 1<<20, future, 100) },
			func() (int, error) { return db.DeleteUploads(ctx, "@a:one", 100, future) },
		} {
			if n, err := sweep(); n != 0 || err != nil {
				t.Errorf("a sweep took %d files under a hold, %v", n, err)
			}
		}
		if err := db.DeleteMedia(ctx, "one", "only", future); err != storage.ErrHeld {
			t.Errorf("delete under a hold: %v", err)
		}
		if got, want := here(), "only both cached foreign unused kept"; got != want {
			t.Errorf("under a hold there are %q, want %q", got, want)
		}
		if err := db.LiftHold(ctx, storage.HoldUser, "@a:one"); err != nil {
			t.Fatal(err)
		}
		a.purge()
		if got, want := here(), "both foreign unused kept"; got != want {
			t.Errorf("there are %q, want %q", got, want)
		}
		empty(other)
		if got, want := here(), "foreign unused kept"; got != want {
			t.Errorf("in the end there are %q, want %q", got, want)
		}
		doomed, err := db.ClaimDoomedBlobs(ctx, future, 100)
		if err != nil || len(doomed.Hashes) != 3 {
			t.Errorf("%d blobs to be deleted, %v", len(doomed.Hashes), err)
		}
	})
}

// TestEventsFromBeforeTheTableOfFilesAreCounted makes a database as it was before files were noted.
func TestEventsFromBeforeTheTableOfFilesAreCounted(t *testing.T) {
	a := newWorld(t, "one").at("one")
	ctx := context.Background()
	room := a.newRoom("@a:one", "11", "public")
	if err := a.o.DB.AddMedia(ctx, storage.Media{Server: "one", MediaID: "f", Hash: storage.BlobHash{1}, Size: 1, Uploader: "@a:one", Created: a.o.Now()}, nil, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a.post(room, matrix.Builder{Sender: "@a:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"url":"mxc://one/f"}`)})
	}
	last := a.snap(room).Tip[0]
	if err := a.o.DB.Write(ctx, func(tx *storage.Tx) error { return tx.Exec("DELETE FROM event_media").Error }); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Event: last.ID()}); err != nil {
		t.Fatal(err)
	}
	a.purge()
	if _, err := a.o.DB.Media(ctx, "one", "f"); err != nil {
		t.Errorf("the file is named by an event that is left, but: %v", err)
	}
	if _, err := a.PurgeHistory(ctx, HistoryPurge{Room: room, Before: a.o.Now()}); err != nil {
		t.Fatal(err)
	}
	a.purge()
	if _, err := a.o.DB.Media(ctx, "one", "f"); err != storage.ErrNotFound {
		t.Errorf("the file is left: %v", err)
	}
}
