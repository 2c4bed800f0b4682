package storage

import (
	"context"
	"fmt"
	"time"
)

// next gives n positions. The first call of a batch locks the counter's row until the commit, so that the order in which
// processes that share a PostgreSQL take positions is the order in which they commit.
func (b *batch) next(n int64) (int64, error) {
	if !b.locked {
		err := b.tx.Raw("UPDATE stream SET position = position + ? WHERE id = 1 RETURNING position", n).Row().Scan(&b.position)
		if err != nil {
			return 0, fmt.Errorf("take stream positions: %w", err)
		}
		b.locked, b.stored = true, b.position
		b.foreign = b.foreign || b.position-n > b.db.position.Load()
		return b.position - n + 1, nil
	}
	first := b.position + 1
	b.position += n
	return first, nil
}

func (b *batch) storePosition() error {
	if !b.locked || b.position == b.stored {
		return nil
	}
	if err := b.tx.Exec("UPDATE stream SET position = ? WHERE id = 1", b.position).Error; err != nil {
		return fmt.Errorf("store the stream position: %w", err)
	}
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
