package storage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
)

// ErrHeld says that a legal hold forbids to delete.
var ErrHeld = errors.New("it is under a legal hold")

// PurgePoint says which events of a room have been purged, or are being purged and must not be read any more. The zero value: none.
type PurgePoint struct {
	// Before is a place in the history: what lies before it has been purged,
	Before Place
	// FromMS is the origin_server_ts of the event at that place: something older that comes in from before it is of what was purged.
	FromMS int64
	// BeforeMS a time in ms: so has what has an older origin_server_ts,
	BeforeMS int64
	// Pos the position of the stream when that was decided: events that came later are not meant.
	Pos int64
	// Gap is the position of the last event in the stream that was purged: a client that is behind it has missed something.
	Gap int64
}

// Covers reports whether an event was purged. pos is 0 for one without a position.
func (p PurgePoint) Covers(at Place, tsMS, pos int64) bool {
	return pos <= p.Pos && (at.Depth < p.Before.Depth || at.Depth == p.Before.Depth && at.Num < p.Before.Num || tsMS < p.BeforeMS)
}

// Merge is a point that covers what either covers.
func (p PurgePoint) Merge(o PurgePoint) PurgePoint {
	if p.Before.Depth < o.Before.Depth || p.Before.Depth == o.Before.Depth && p.Before.Num < o.Before.Num {
		p.Before, p.FromMS = o.Before, o.FromMS
	}
	p.BeforeMS, p.Pos, p.Gap = max(p.BeforeMS, o.BeforeMS), max(p.Pos, o.Pos), max(p.Gap, o.Gap)
	return p
}

// PurgeStep is what a purge does to a room in one write. It goes through [Tx.AppendRooms], whose compare and swap makes sure that
// nobody has built upon what it deletes. A room under a legal hold gives ErrMoved: look for the hold and give up.
type PurgeStep struct {
	// Job gets what was counted, and is written.
	Job *PurgeJob
	// Purged, unless it is nil, is what the room shall say was purged.
	Purged *PurgePoint
	// Delete are events whose rows go, with all that depends on them.
	Delete []*Event
	// Prune are events as they were, whose rows stay without content: see Updates of [RoomAppend].
	Prune []*Event
	Now   time.Time
}

func (tx *Tx) writePurges(appends []*RoomAppend) error {
	for _, a := range appends {
		if a.Purge == nil {
			continue
		}
		if err := tx.writePurge(a); err != nil {
			return fmt.Errorf("purge of room %d: %w", a.Room.Num, err)
		}
	}
	return nil
}

func (tx *Tx) writePurge(a *RoomAppend) error {
	p := a.Purge
	if _, err := tx.Next(1); err != nil { // so that other processes notice
		return err
	}
	if p.Purged != nil {
		a.Room.Purged = *p.Purged
	}
	a.Room.Generation++
	q := &a.Room.Purged
	err := tx.Exec("UPDATE rooms SET generation = ?, purged_depth = ?, purged_num = ?, purged_from = ?, purged_ts = ?, purged_pos = ?, purged_gap = ? WHERE num = ?",
		a.Room.Generation, q.Before.Depth, q.Before.Num, q.FromMS, q.BeforeMS, q.Pos, q.Gap, a.Room.Num).Error
	if err != nil {
		return err
	}
	media := 0
	for _, events := range [][]*Event{p.Delete, p.Prune} {
		n, err := tx.forgetEvents(&a.Room, events, p.Now)
		if err != nil {
			return err
		}
		media += n
	}
	if err := tx.deleteEvents(p.Delete); err != nil {
		return err
	}
	if p.Job == nil {
		return nil
	}
	job := *p.Job
	job.Events += int64(len(p.Delete))
	job.Media += int64(media)
	tx.AfterCommit(func() { *p.Job = job })
	return tx.savePurgeJob(&job)
}

func numsOf(events []*Event) []int64 {
	nums := make([]int64, len(events))
	for i, e := range events {
		nums[i] = e.Num
	}
	return nums
}

// deleteEvents deletes rows of events.
func (tx *Tx) deleteEvents(events []*Event) error {
	for chunk := range slices.Chunk(events, maxIn) {
		if err := tx.Exec("DELETE FROM events WHERE num IN ?", padded(numsOf(chunk))).Error; err != nil {
			return err
		}
	}
	db := tx.batch.db
	tx.AfterCommit(func() {
		for _, e := range events {
			db.events.drop(e.Num)
			db.eventIDs.drop(e.ID())
		}
	})
	return nil
}

// forgetEvents deletes all that depends on events of a room, but not their own rows, and returns how many files have gone with them.
// Their own rows must still be there. Whoever adds a table with rows that belong to an event deletes them here.
func (tx *Tx) forgetEvents(room *Room, events []*Event, now time.Time) (media int, err error) {
	for chunk := range slices.Chunk(events, maxIn) {
		nums := padded(numsOf(chunk))
		held, err := tx.keepHeldOf(room.ID, nums)
		if err != nil {
			return media, err
		}
		if err := tx.reindex("num IN ?", nums); err != nil {
			return media, err
		}
		for _, e := range chunk {
			if err := tx.forgetEdges(room, e); err != nil {
				return media, err
			}
		}
		if err := tx.forgetVoice(chunk); err != nil {
			return media, err
		}
		n, err := tx.forgetEventMedia(nums, held, now)
		media += n
		if err != nil {
			return media, err
		}
	}
	return media, nil
}

// forgetEdges deletes the rows that say to what an event relates and what comes before it.
func (tx *Tx) forgetEdges(room *Room, e *Event) error {
	var content struct {
		RelatesTo struct {
			EventID string `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if bytes.Contains(e.Content(), []byte(`"m.relates_to"`)) && json.Unmarshal(e.Content(), &content) == nil && content.RelatesTo.EventID != "" {
		err := tx.Exec("DELETE FROM relations WHERE room = ? AND parent = ? AND num = ?", room.Num, content.RelatesTo.EventID, e.Num).Error
		if err != nil {
			return err
		}
	}
	if room.Flags&HasMissing != 0 {
		for _, prev := range e.PrevEvents() {
			if err := tx.Exec("DELETE FROM missing_prev WHERE room = ? AND event_id = ? AND num = ?", room.Num, string(prev), e.Num).Error; err != nil {
				return err
			}
		}
	}
	if room.Flags&HasPendingRedactions != 0 && e.Redacts() != "" {
		return tx.Exec("DELETE FROM pending_redactions WHERE target = ? AND num = ?", string(e.Redacts()), e.Num).Error
	}
	return nil
}

// forgetVoice deletes what is kept of voice messages.
func (tx *Tx) forgetVoice(events []*Event) error {
	var nums []int64
	var ids []string
	for _, e := range events {
		if e.Type() == matrix.TypeEncrypted || e.Type() == matrix.TypeMessage && (e.RedactedBy != "" || bytes.Contains(e.Content(), []byte(`"m.audio"`)) || isVoice(e.Content())) {
			nums, ids = append(nums, e.Num), append(ids, string(e.ID()))
		}
	}
	if len(nums) == 0 {
		return nil
	}
	in := padded(nums)
	for _, query := range []string{"DELETE FROM voice_messages WHERE num IN ?", "DELETE FROM transcript_jobs WHERE num IN ?"} {
		if err := tx.Exec(query, in).Error; err != nil {
			return err
		}
	}
	for _, query := range []string{"DELETE FROM voice_played WHERE event_id IN ?", "DELETE FROM voice_heard WHERE event_id IN ?"} {
		if err := tx.Exec(query, padded(ids)).Error; err != nil {
			return err
		}
	}
	var hashes []string
	if err := tx.Raw("DELETE FROM transcribed WHERE num IN ? RETURNING hash", in).Scan(&hashes).Error; err != nil {
		return err
	}
	for _, hash := range hashes {
		err := tx.Exec("DELETE FROM transcripts WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM transcribed WHERE hash = ?)", hash, hash).Error
		if err != nil {
			return err
		}
	}
	return nil
}

// PurgeCriterion says which events of a room are to go.
type PurgeCriterion struct {
	Before   Place // those before this place,
	BeforeMS int64 // and those with an older origin_server_ts,
	Pos      int64 // of those that have no later position than this
}

func (c PurgeCriterion) where() (string, []any) {
	if c.BeforeMS > 0 {
		return "((depth, num) < (?, ?) OR ts < ?) AND coalesce(pos, 0) <= ?", []any{c.Before.Depth, c.Before.Num, c.BeforeMS, c.Pos}
	}
	return "(depth, num) < (?, ?) AND coalesce(pos, 0) <= ?", []any{c.Before.Depth, c.Before.Num, c.Pos}
}

// Doomed lists events of a room that a purge has to look at, those after a place, in their order. Outliers are left out.
func (db *DB) Doomed(ctx context.Context, room int64, c PurgeCriterion, after Place, limit int) ([]Place, error) {
	where, args := c.where()
	args = append(append([]any{room, after.Depth, after.Num}, args...), limit)
	var found []Place
	err := db.Read(ctx).Raw("SELECT depth, num FROM events WHERE room = ? AND (depth, num) > (?, ?) AND "+where+" AND root IS NOT NULL ORDER BY depth, num LIMIT ?", args...).
		Scan(&found).Error
	if err != nil {
		return nil, fmt.Errorf("list events to purge: %w", err)
	}
	return found, nil
}

// CountDoomed counts the events that Doomed lists, and finds the last position among them.
func (db *DB) CountDoomed(ctx context.Context, room int64, c PurgeCriterion) (n, lastPos int64, err error) {
	where, args := c.where()
	err = db.Read(ctx).Raw("SELECT count(*), coalesce(max(pos), 0) FROM events WHERE room = ? AND "+where+" AND root IS NOT NULL", append([]any{room}, args...)...).
		Row().Scan(&n, &lastPos)
	return n, lastPos, err
}

// HasOlder reports whether there are events of a room's history, other than those of its tip, with an origin_server_ts before ts (ms).
func (db *DB) HasOlder(ctx context.Context, room Room, tsMS int64) (bool, error) {
	var n int
	tip := padded(append([]int64{0}, room.Tip[:min(len(room.Tip), maxIn-1)]...))
	err := db.Read(ctx).Raw("SELECT count(*) FROM (SELECT 1 FROM events WHERE room = ? AND pos > 0 AND ts < ? AND num NOT IN ? LIMIT 1) AS older", room.Num, tsMS, tip).
		Row().Scan(&n)
	if err != nil || n > 0 {
		return n > 0, err
	}
	// Backfilled events have no position; they lie at the beginning.
	var ts int64
	err = db.Read(ctx).Raw("SELECT ts FROM events WHERE room = ? AND flags = 0 ORDER BY depth, num LIMIT 1", room.Num).Row().Scan(&ts)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return ts < tsMS, err
}

// PurgedRows lists the rows of events that a purge has left, after the number after.
func (db *DB) PurgedRows(ctx context.Context, room, after int64, limit int) ([]int64, error) {
	var nums []int64
	err := db.Read(ctx).Raw("SELECT num FROM events WHERE room = ? AND num > ? AND flags >= ? ORDER BY num LIMIT ?", room, after, Purged, limit).Scan(&nums).Error
	return nums, err
}

// EventsHere is [DB.Events] that leaves out what does not exist.
func (db *DB) EventsHere(ctx context.Context, nums []int64) ([]*Event, error) {
	events := make([]*Event, 0, len(nums))
	for chunk := range slices.Chunk(nums, maxIn) {
		some, err := db.Events(ctx, chunk)
		if errors.Is(err, ErrNotFound) {
			some, err = db.queryEvents(ctx, "WHERE num IN ?", padded(chunk))
		}
		if err != nil {
			return nil, err
		}
		events = append(events, some...)
	}
	return events, nil
}

// ForgetMissing has a room not miss some events any more: they are not to be had.
func (db *DB) ForgetMissing(ctx context.Context, room int64, ids []matrix.EventID) error {
	if len(ids) == 0 {
		return nil
	}
	return db.Write(ctx, func(tx *Tx) error {
		for chunk := range slices.Chunk(ids, maxIn) {
			if err := tx.Exec("DELETE FROM missing_prev WHERE room = ? AND event_id IN ?", room, padded(chunk)).Error; err != nil {
				return fmt.Errorf("forget missing events: %w", err)
			}
		}
		return nil
	})
}

// ReleasePurges has purges that were being done when this process last ended be taken up at once. Only for a database that no other process uses.
func (db *DB) ReleasePurges(ctx context.Context) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.Exec("UPDATE purge_jobs SET claimed_ms = 0 WHERE claimed_ms > 0").Error })
}
