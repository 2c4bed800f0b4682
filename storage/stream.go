package storage

import (
	"context"
	"fmt"
	"time"
)

// reserve is how many positions are set apart at a time on SQLite.
const reserve = 1000

// next gives n positions.
func (b *batch) next(n int64) (first int64, err error) {
	take := b.take
	if b.db.dialect == SQLite {
		take = b.reserve
	}
	if err := take(n); err != nil {
		return 0, fmt.Errorf("take stream positions: %w", err)
	}
	first = b.position + 1
	b.position += n
	return first, nil
}

// reserve makes sure that the counter's row is at or above the next n positions. On SQLite one process writes: it sets positions apart in
// advance, so that most writes need not touch the row. What is left of them after a kill is skipped.
func (b *batch) reserve(n int64) error {
	if b.position+n <= b.reserved {
		return nil
	}
	more := max(n, reserve)
	var bound int64
	if err := b.tx.Raw("UPDATE stream SET position = position + ? WHERE id = 1 RETURNING position", more).Row().Scan(&bound); err != nil {
		return err
	}
	if bound-more > b.reserved { // the first time; or a command has written meanwhile
		b.position = bound - more
	}
	b.reserved = bound
	return nil
}

// take locks the counter's row the first time in a batch, until the commit, so that the order in which processes that share a PostgreSQL
// take positions is the order in which they commit.
func (b *batch) take(n int64) error {
	if b.locked {
		return nil
	}
	if err := b.tx.Raw("UPDATE stream SET position = position + ? WHERE id = 1 RETURNING position", n).Row().Scan(&b.stored); err != nil {
		return err
	}
	b.locked, b.position = true, b.stored-n
	b.foreign = b.foreign || b.position > b.db.position.Load()
	return nil
}

// storePosition is for PostgreSQL: it leaves in the row which positions were given.
func (b *batch) storePosition() error {
	if !b.locked || b.position == b.stored {
		return nil
	}
	if _, err := b.tx.exec("UPDATE stream SET position = ? WHERE id = 1", b.position); err != nil {
		return fmt.Errorf("store the stream position: %w", err)
	}
	return nil
}

// giveBackPositions makes the row say which position was given last, so that an orderly restart skips none.
func (db *DB) giveBackPositions() error {
	if db.dialect != SQLite || db.reserved == 0 {
		return nil
	}
	_, err := db.pin.exec("UPDATE stream SET position = ? WHERE id = 1 AND position = ?", []any{db.position.Load(), db.reserved})
	if err != nil {
		return fmt.Errorf("give back stream positions: %w", err)
	}
	db.reserved = 0
	return nil
}

func (db *DB) loadPosition(ctx context.Context) error {
	var position int64
	if err := db.Read(ctx).Raw("SELECT position FROM stream WHERE id = 1").Row().Scan(&position); err != nil {
		return fmt.Errorf("read the stream position: %w", err)
	}
	db.position.Store(position)
	return nil
}

// othersInterval is how soon at the latest this process notices what another one that shares the database wrote.
const othersInterval = 500 * time.Millisecond

// watchOthers looks for positions that another process committed and rings the bell for them.
func (db *DB) watchOthers() {
	defer db.running.Done()
	tick := time.NewTicker(othersInterval)
	defer tick.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		var position int64
		err := db.Read(ctx).Raw("SELECT position FROM stream WHERE id = 1").Row().Scan(&position)
		cancel()
		if err != nil {
			db.log.Warn("look for writes of other processes", "err", err)
			continue
		}
		// Only our own writer may be ahead of what we read here, never behind it for good.
		for {
			known := db.position.Load()
			if position <= known {
				break
			}
			if db.position.CompareAndSwap(known, position) {
				db.ring(Commit{Position: position, Changes: []Change{{Foreign: true}}})
				break
			}
		}
	}
}
