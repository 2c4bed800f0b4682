package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"
)

const (
	// reclaimStep is how many pages of SQLite are given back in one write: it holds up others for about a millisecond.
	reclaimStep = 64
	// spareShare is which part of an SQLite file may be free before it is given back where nobody asked for it: what expires each
	// day is written anew each day.
	spareShare = 10 // one in
)

// Reclaim gives space that deleted rows have left back to the file system. On SQLite it cuts the file down in small steps, between other
// writes; a file that was not made by Parley cannot be cut down and is left alone: see Vacuum. On PostgreSQL it runs a plain VACUUM on the
// tables of rooms, which holds nobody up: the space is used again by these tables, and only free pages at their ends are given back. Without
// all, little free space is left as it is.
func (db *DB) Reclaim(ctx context.Context, all bool) error {
	if db.dialect == PostgreSQL {
		if !all {
			return nil // its own autovacuum does that
		}
		return db.vacuumTables(ctx, "VACUUM")
	}
	for {
		free, total, err := db.pages(ctx)
		if err != nil || free == 0 || !all && free < total/spareShare {
			return err
		}
		if err := db.Write(ctx, func(tx *Tx) error { return tx.Exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", reclaimStep)).Error }); err != nil {
			return fmt.Errorf("give back free pages: %w", err)
		}
		left, _, err := db.pages(ctx)
		if err != nil {
			return err
		}
		if left >= free || left == 0 {
			return db.checkpoint(ctx)
		}
	}
}

// spaceFact says that a purge has begun after which space is to be given back: what is left to do if the process ends before.
const spaceFact = "space"

// OweSpace notes, for good, that space has to be given back until SpaceGiven is called.
func (db *DB) OweSpace(ctx context.Context) error { return db.SetFact(ctx, spaceFact, "owed") }

// SpaceGiven notes that Reclaim has been through.
func (db *DB) SpaceGiven(ctx context.Context) error { return db.SetFact(ctx, spaceFact, "") }

// OwesSpace reports whether space has to be given back.
func (db *DB) OwesSpace(ctx context.Context) (bool, error) {
	value, err := db.Fact(ctx, spaceFact)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return value != "", err
}

// pages counts the free pages of an SQLite file and all of them.
func (db *DB) pages(ctx context.Context) (free, total int64, err error) {
	if err = db.Read(ctx).Raw("PRAGMA freelist_count").Row().Scan(&free); err == nil {
		err = db.Read(ctx).Raw("PRAGMA page_count").Row().Scan(&total)
	}
	return free, total, err
}

// checkpoint brings what is in the log into the file, which then has its new size. It waits for nobody: what readers still need stays in the log
// until the next time.
func (db *DB) checkpoint(ctx context.Context) error {
	var busy, log, done int
	if err := db.Read(ctx).Raw("PRAGMA wal_checkpoint(PASSIVE)").Row().Scan(&busy, &log, &done); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Vacuum rewrites the whole database without free space; nobody else may use it meanwhile. It needs as much space again while it works. An SQLite file
// can be cut down by Reclaim from then on.
func (db *DB) Vacuum(ctx context.Context) error {
	if db.dialect == PostgreSQL {
		return db.vacuumTables(ctx, "VACUUM (FULL, ANALYZE)")
	}
	db.stopOnce.Do(func() { close(db.stop) }) // the writing connection is ours from here on
	db.running.Wait()
	for _, statement := range []string{"PRAGMA auto_vacuum = INCREMENTAL", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if err := db.write.WithContext(ctx).Exec(statement).Error; err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// roomTables are those from which a purge deletes most.
var roomTables = []string{
	"events", "state_nodes", "room_states", "memberships", "relations", "missing_prev", "pending_redactions", "receipts", "voice_messages", "voice_played",
	"transcribed", "transcripts", "event_media", "media", "blobs", "derivatives", "recordings", "held_events",
}

func (db *DB) vacuumTables(ctx context.Context, command string) error {
	for _, table := range roomTables {
		if err := db.write.Session(&gorm.Session{NewDB: true, Context: ctx}).Exec(command + " " + table).Error; err != nil {
			return fmt.Errorf("%s %s: %w", command, table, err)
		}
	}
	return nil
}

// Size is how many bytes the database takes: the SQLite file, or the tables and indexes of PostgreSQL.
func (db *DB) Size(ctx context.Context) (int64, error) {
	var size int64
	if db.dialect == PostgreSQL {
		err := db.Read(ctx).Raw("SELECT pg_database_size(current_database())").Row().Scan(&size)
		return size, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := db.Read(ctx).Raw("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").Row().Scan(&size)
	return size, err
}
