package storage_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func insertFact(tx *storage.Tx, name string) error {
	return tx.Exec("INSERT INTO facts (name, value) VALUES (?, '')", name).Error
}

func countFacts(t *testing.T, db *storage.DB) (n int) {
	t.Helper()
	if err := db.Read(t.Context()).Raw("SELECT count(*) FROM facts").Row().Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFailedWriteLeavesNothingAndDisturbsNoOther(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		refused := errors.New("refused")
		var group sync.WaitGroup
		for i := range 100 {
			group.Go(func() {
				err := db.Write(t.Context(), func(tx *storage.Tx) error {
					if err := insertFact(tx, fmt.Sprint(i)); err != nil {
						return err
					}
					switch i % 3 {
					case 1:
						return refused
					case 2:
						return insertFact(tx, fmt.Sprint(i)) // breaks the primary key
					}
					return nil
				})
				if (err == nil) != (i%3 == 0) || (i%3 == 1 && !errors.Is(err, refused)) {
					t.Errorf("write %d: %v", i, err)
				}
			})
		}
		group.Wait()
		if got := countFacts(t, db); got != 34 {
			t.Errorf("got %d rows, want 34", got)
		}
	})
}

func TestPositionsAreSeenInCommitOrder(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		var last int64
		stop := db.Listen(func(c storage.Commit) {
			for _, change := range c.Changes {
				for _, w := range change.Wakes {
					if w.Pos <= last || w.Pos > c.Position {
						t.Errorf("position %d came after %d in commit %d", w.Pos, last, c.Position)
					}
					last = w.Pos
				}
			}
		})
		defer stop()
		var group sync.WaitGroup
		for range 200 {
			group.Go(func() {
				err := db.Write(t.Context(), func(tx *storage.Tx) error {
					pos, err := tx.Next(1)
					tx.Ring(storage.Change{Wakes: []storage.Wake{{Pos: pos}}})
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if got := db.Position(); got != 200 || last != 200 {
			t.Errorf("position %d, last rung %d, want 200", got, last)
		}
	})
}

func TestPositionAndRowsSurviveReopening(t *testing.T) {
	storagetest.EachURL(t, func(t *testing.T, url string) {
		for want := range int64(3) {
			db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if got := db.Position(); got != want {
				t.Errorf("got position %d, want %d", got, want)
			}
			if err := db.Write(t.Context(), func(tx *storage.Tx) error { _, err := tx.Next(1); return err }); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err := db.Write(t.Context(), func(*storage.Tx) error { return nil }); !errors.Is(err, storage.ErrClosed) {
				t.Errorf("write after Close: %v", err)
			}
		}
	})
}

func TestPositionsNeverComeBackAfterAKill(t *testing.T) {
	storagetest.EachURL(t, func(t *testing.T, url string) {
		open := func() *storage.DB {
			db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return db
		}
		take := func(db *storage.DB, n int, verdict error) (first int64) {
			err := db.Write(t.Context(), func(tx *storage.Tx) (err error) {
				if first, err = tx.Next(n); err != nil {
					t.Fatal(err)
				}
				return verdict
			})
			if !errors.Is(err, verdict) {
				t.Fatal(err)
			}
			return first
		}
		refused := errors.New("refused")
		killed := open()
		if first := take(killed, 1, refused); first != 1 { // what set positions apart is rolled back
			t.Errorf("first position %d", first)
		}
		last := int64(0)
		for _, n := range []int{1, 5, 990, 20, 3000, 1} {
			take(killed, 7, refused)
			if first := take(killed, n, nil); first <= last {
				t.Errorf("position %d after %d", first, last)
			} else {
				last = first + int64(n) - 1
			}
		}
		if got := killed.Position(); got != last {
			t.Errorf("position %d, want %d", got, last)
		}
		after := open() // the first one is not closed: as if it had been killed
		if got := after.Position(); got < last {
			t.Errorf("position %d after a kill at %d", got, last)
		}
		if first := take(after, 1, nil); first <= last {
			t.Errorf("position %d was given again after a kill at %d", first, last)
		}
	})
}

func TestWritesTogetherKeepTheirPositionsApart(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		refused := errors.New("refused")
		var mu sync.Mutex
		taken := map[int64]bool{}
		var group sync.WaitGroup
		for i := range 300 {
			group.Go(func() {
				n := 1 + i%9
				var first int64
				err := db.Write(t.Context(), func(tx *storage.Tx) (err error) {
					if first, err = tx.Next(n); err == nil && i%4 == 3 {
						err = refused
					}
					return err
				})
				if errors.Is(err, refused) {
					return
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for p := first; p < first+int64(n); p++ {
					if taken[p] || p > db.Position() {
						t.Errorf("position %d was given twice or is not committed", p)
					}
					taken[p] = true
				}
			})
		}
		group.Wait()
	})
}

func TestOtherProcessOnTheSamePostgreSQLIsNoticed(t *testing.T) {
	url := storagetest.PostgreSQLURL(t)
	var dbs [2]*storage.DB
	for i := range dbs {
		var err error
		if dbs[i], err = storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		defer dbs[i].Close()
	}
	rung := make(chan storage.Commit, 1)
	defer dbs[1].Listen(func(c storage.Commit) { rung <- c })()
	if err := dbs[0].Write(t.Context(), func(tx *storage.Tx) error { _, err := tx.Next(5); return err }); err != nil {
		t.Fatal(err)
	}
	if c := <-rung; c.Position != 5 || !c.Changes[0].Foreign {
		t.Errorf("got %+v", c)
	}
}

func TestPanicInAWriteReachesItsCallerAndNobodyElse(t *testing.T) {
	db := storagetest.New(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = db.Write(t.Context(), func(tx *storage.Tx) error {
			if err := insertFact(tx, "a"); err != nil {
				return err
			}
			panic("bug")
		})
	}()
	if got := countFacts(t, db); got != 0 {
		t.Errorf("got %d rows of a write that panicked", got)
	}
	if err := db.SetFact(t.Context(), "b", "1"); err != nil {
		t.Error(err)
	}
}

func TestFact(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		if _, err := db.Fact(t.Context(), "x"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		for _, want := range []string{"1", "2"} {
			if err := db.SetFact(t.Context(), "x", want); err != nil {
				t.Fatal(err)
			}
			if got, err := db.Fact(t.Context(), "x"); err != nil || got != want {
				t.Errorf("got %q %v, want %q", got, err, want)
			}
		}
	})
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	url := storagetest.SQLiteURL(t)
	db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), func(tx *storage.Tx) error {
		return tx.Exec("INSERT INTO migrations (version, name) VALUES (999, 'future')").Error
	}); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a database of a newer version was opened")
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, parallel := range []int{1, 64} {
		b.Run(fmt.Sprint(parallel), func(b *testing.B) {
			db := storagetest.New(b)
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					err := db.Write(context.Background(), func(tx *storage.Tx) error {
						_, err := tx.Next(1)
						return err
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
