package storage_test

import (
	"context"
	"flag"
	"fmt"
	"testing"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// The table in docs/architecture.md is of a room with 100000 members.
var stateMembers = flag.Int("members", 5_000, "members of the room of BenchmarkKeepingState; a fifth as many other state events")

// A stateKeeper keeps the states of a room after each of its changes. States are numbered from 0, the state before all changes.
type stateKeeper interface {
	change(tx *storage.Tx, n int, c storage.StateEntry) error // write state n, that before it with a change
	one(n int, member string) (int64, error)
	list(n int) (entries int, err error)
	diff(a, b int) (keys int, err error) // a before b
}

// BenchmarkKeepingState compares the state tree with what other servers do: a full snapshot for each state, and a chain of differences with
// a snapshot after each hundred (as Synapse's state groups). Each on a SQLite database of its own, each change in a transaction:
//
//	go test ./storage -run - -bench KeepingState -members 100000 -benchtime 10x
func BenchmarkKeepingState(b *testing.B) {
	ctx := context.Background()
	for _, kind := range []string{"tree", "snapshots", "chain"} {
		b.Run(kind, func(b *testing.B) {
			db := storagetest.New(b)
			keeper := newKeeper(b, kind, db)
			states := 0
			change := func() {
				c := storage.StateEntry{Type: matrix.TypeMember, Key: memberOf(states * 7 % *stateMembers), Num: int64(1_000_000 + states)}
				states++
				if err := db.Write(ctx, func(tx *storage.Tx) error { return keeper.change(tx, states, c) }); err != nil {
					b.Fatal(err)
				}
			}
			for range 300 {
				if kind == "snapshots" && states == 4 {
					break // enough to see what one costs
				}
				change()
			}
			b.Run("change", func(b *testing.B) {
				rounds := map[string]int{"tree": 20, "chain": 20, "snapshots": 1}[kind] // so that ten have two snapshots in the chain
				before := fileBytes(b, db)
				for range b.N * rounds {
					change()
				}
				changes := float64(b.N * rounds)
				b.ReportMetric(float64(fileBytes(b, db)-before)/changes, "file-B/change")
				b.ReportMetric(float64(b.Elapsed().Microseconds())/changes, "us/change")
			})
			read := func(name string, fn func(i int) error) {
				b.Run(name, func(b *testing.B) {
					for i := range b.N {
						b.StopTimer()
						db.ForgetRooms() // what others keep in memory counts for none of them
						b.StartTimer()
						if err := fn(i); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			old := max(0, states-100)
			read("one key", func(i int) error {
				_, err := keeper.one(states-i%min(states, 100), memberOf(i%*stateMembers))
				return err
			})
			read("list", func(int) error {
				n, err := keeper.list(states)
				if err == nil && n != *stateMembers+*stateMembers/5 {
					err = fmt.Errorf("%d entries", n)
				}
				return err
			})
			read("diff", func(int) error {
				n, err := keeper.diff(old, states)
				if err == nil && n != states-old {
					err = fmt.Errorf("%d of %d keys differ", n, states-old)
				}
				return err
			})
		})
	}
}

func memberOf(i int) string { return fmt.Sprintf("@user%d:server%d.example.org", i, i%50) }

func startState() []storage.StateEntry {
	entries := make([]storage.StateEntry, 0, *stateMembers+*stateMembers/5)
	for i := range *stateMembers {
		entries = append(entries, storage.StateEntry{Type: matrix.TypeMember, Key: memberOf(i), Num: int64(i + 1)})
	}
	for i := range *stateMembers / 5 {
		entries = append(entries, storage.StateEntry{Type: "m.space.child", Key: fmt.Sprintf("!room%d:example.org", i), Num: int64(500_000 + i)})
	}
	return entries
}

func fileBytes(b *testing.B, db *storage.DB) (n int64) {
	if err := db.Read(b.Context()).Raw("SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)").Row().Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func newKeeper(b *testing.B, kind string, db *storage.DB) stateKeeper {
	ctx := b.Context()
	if kind == "tree" {
		err := db.Write(ctx, func(tx *storage.Tx) error {
			return tx.Exec("INSERT INTO rooms (num, room_id, version, seq, pos, tip, root, depth, flags) VALUES (1, '!r:x', '12', 0, 0, '', '', 0, 0)").Error
		})
		if err != nil {
			b.Fatal(err)
		}
		k := &treeKeeper{db: db, roots: make([]storage.StateRoot, 1)}
		var nodes storage.StateNodes
		if k.roots[0], err = db.UpdateState(ctx, 1, storage.StateRoot{}, startState(), &nodes); err == nil {
			err = db.StageNodes(ctx, 1, &nodes)
		}
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	k := &rowKeeper{db: db, every: map[string]int{"snapshots": 1, "chain": 100}[kind]}
	err := db.Write(ctx, func(tx *storage.Tx) error {
		for _, statement := range []string{
			"CREATE TABLE chain (state INTEGER PRIMARY KEY, prev INTEGER)",
			"CREATE TABLE entries (state INTEGER, type TEXT, key TEXT, num INTEGER, PRIMARY KEY (state, type, key)) WITHOUT ROWID",
			"INSERT INTO chain VALUES (0, NULL)",
		} {
			if err := tx.Exec(statement).Error; err != nil {
				return err
			}
		}
		for _, e := range startState() {
			if err := tx.Exec("INSERT INTO entries VALUES (0, ?, ?, ?)", e.Type, e.Key, e.Num).Error; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return k
}

type treeKeeper struct {
	db    *storage.DB
	roots []storage.StateRoot
}

func (k *treeKeeper) change(tx *storage.Tx, n int, c storage.StateEntry) error {
	var nodes storage.StateNodes
	root, err := k.db.UpdateState(context.Background(), 1, k.roots[n-1], []storage.StateEntry{c}, &nodes)
	k.roots = append(k.roots[:n], root)
	if err != nil {
		return err
	}
	return storage.WriteNodes(tx, 1, &nodes)
}

func (k *treeKeeper) one(n int, member string) (int64, error) {
	return k.db.StateNum(context.Background(), 1, k.roots[n], matrix.TypeMember, member, nil)
}

func (k *treeKeeper) list(n int) (int, error) {
	nums, err := k.db.StateNums(context.Background(), 1, k.roots[n], storage.AllState, nil)
	return len(nums), err
}

func (k *treeKeeper) diff(a, b int) (int, error) {
	diffs, err := k.db.DiffState(context.Background(), 1, k.roots[a], k.roots[b], storage.AllState, nil)
	return len(diffs), err
}

// rowKeeper keeps states as rows: all of them with every state whose number every divides, otherwise what has changed.
type rowKeeper struct {
	db    *storage.DB
	every int
}

const upChain = "WITH RECURSIVE up (state) AS (VALUES (CAST(? AS INTEGER)) UNION ALL SELECT prev FROM chain JOIN up USING (state) WHERE prev IS NOT NULL) "

func (k *rowKeeper) change(tx *storage.Tx, n int, c storage.StateEntry) error {
	if n%k.every > 0 {
		if err := tx.Exec("INSERT INTO chain VALUES (?, ?)", n, n-1).Error; err != nil {
			return err
		}
		return tx.Exec("INSERT INTO entries VALUES (?, ?, ?, ?)", n, c.Type, c.Key, c.Num).Error
	}
	err := tx.Exec("INSERT INTO entries "+upChain+"SELECT ?, type, key, num FROM (SELECT type, key, num, max(state) FROM up CROSS JOIN entries USING (state) GROUP BY type, key)", n-1, n).Error
	if err == nil {
		err = tx.Exec("UPDATE entries SET num = ? WHERE state = ? AND type = ? AND key = ?", c.Num, n, c.Type, c.Key).Error
	}
	if err == nil {
		err = tx.Exec("INSERT INTO chain VALUES (?, NULL)", n).Error
	}
	return err
}

func (k *rowKeeper) read() *gorm.DB { return k.db.Read(context.Background()) }

func (k *rowKeeper) one(n int, member string) (num int64, err error) {
	err = k.read().Raw(upChain+"SELECT num FROM up CROSS JOIN entries USING (state) WHERE type = ? AND key = ? ORDER BY state DESC LIMIT 1", n, matrix.TypeMember, member).Row().Scan(&num)
	return num, err
}

func (k *rowKeeper) state(n int) (map[storage.StateEntry]int64, error) {
	rows, err := k.read().Raw(upChain+"SELECT type, key, num, max(state) FROM up CROSS JOIN entries USING (state) GROUP BY type, key", n).Rows()
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[storage.StateEntry]int64{}
	for rows.Next() {
		var e storage.StateEntry
		var num, state int64
		if err := rows.Scan(&e.Type, &e.Key, &num, &state); err != nil {
			return nil, err
		}
		all[e] = num
	}
	return all, rows.Err()
}

func (k *rowKeeper) list(n int) (int, error) {
	all, err := k.state(n)
	return len(all), err
}

// diff reads both, as neither design says where two states parted.
func (k *rowKeeper) diff(a, b int) (keys int, err error) {
	x, err := k.state(a)
	if err != nil {
		return 0, err
	}
	y, err := k.state(b)
	for e, num := range y {
		if x[e] != num {
			keys++
		}
	}
	return keys, err
}
