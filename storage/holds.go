package storage

import (
	"context"
	"fmt"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
)

// The kinds of legal holds.
const (
	HoldRoom = "room"
	HoldUser = "user"
)

// Hold is a legal hold on a room, or on what a user sends.
type Hold struct {
	Kind   string // HoldRoom or HoldUser
	Target string // the ID of the room or user
	SetBy  matrix.UserID
	Set    time.Time
}

// SetHold puts a hold. One that is there already stays as it is.
func (db *DB) SetHold(ctx context.Context, h Hold) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("INSERT INTO holds (kind, target, set_by, set_ms) VALUES (?, ?, ?, ?) ON CONFLICT (kind, target) DO NOTHING",
			h.Kind, h.Target, string(h.SetBy), h.Set.UnixMilli()).Error
	})
}

// LiftHold takes a hold away. ErrNotFound if there is none. What only it kept stays until DropUnheld is called.
func (db *DB) LiftHold(ctx context.Context, kind, target string) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("DELETE FROM holds WHERE kind = ? AND target = ?", kind, target)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// Holds lists all holds, ordered by kind and target.
func (db *DB) Holds(ctx context.Context) ([]Hold, error) {
	rows, err := db.Read(ctx).Raw("SELECT kind, target, set_by, set_ms FROM holds ORDER BY kind, target").Rows()
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Hold
	for rows.Next() {
		var h Hold
		var by string
		var ms int64
		if err := rows.Scan(&h.Kind, &h.Target, &by, &ms); err != nil {
			return nil, err
		}
		h.SetBy, h.Set = matrix.UserID(by), time.UnixMilli(ms)
		all = append(all, h)
	}
	return all, rows.Err()
}

// IsHeld reports whether there is a hold on a room or user.
func (db *DB) IsHeld(ctx context.Context, kind, target string) (held bool, err error) {
	err = db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM holds WHERE kind = ? AND target = ?)", kind, target).Row().Scan(&held)
	return held, err
}

func (tx *Tx) roomHeld(room matrix.RoomID) (held bool, err error) {
	err = tx.Raw("SELECT EXISTS (SELECT 1 FROM holds WHERE kind = 'room' AND target = ?)", string(room)).Row().Scan(&held)
	return held, err
}

// HeldEvent is what a hold keeps of an event that was redacted or purged.
type HeldEvent struct {
	Num     int64
	RoomID  matrix.RoomID
	EventID matrix.EventID
	Sender  matrix.UserID
	KeptMS  int64
	JSON    []byte // as it was before
}

// HeldEvents lists what holds keep of a room's or, with room "", of a user's events, after a number, in their order.
func (db *DB) HeldEvents(ctx context.Context, room matrix.RoomID, user matrix.UserID, after int64, limit int) ([]HeldEvent, error) {
	where, args := "sender = ?", []any{string(user)}
	if room != "" {
		where, args = "room_id = ?", []any{string(room)}
		if user != "" {
			where, args = where+" AND sender = ?", append(args, string(user))
		}
	}
	var all []HeldEvent
	err := db.Read(ctx).Raw("SELECT num, room_id, event_id, sender, kept_ms, json FROM held_events WHERE "+where+" AND num > ? ORDER BY num LIMIT ?",
		append(args, after, limit)...).Scan(&all).Error
	return all, err
}

const copyHeld = `INSERT INTO held_events (num, room_id, event_id, sender, kept_ms, json)
	SELECT e.num, ?, e.event_id, e.sender, ?, e.json FROM events e WHERE e.num IN ? AND e.redacted_by IS NULL AND (e.flags < ? OR e.state_key IS NOT NULL)
	AND EXISTS (SELECT 1 FROM holds h WHERE h.kind = 'user' AND h.target = e.sender OR h.kind = 'room' AND h.target = ?)
	ON CONFLICT (num) DO NOTHING`

// keepHeld keeps the content of an event that is about to lose it, if there is a hold on it.
func (tx *Tx) keepHeld(a *RoomAppend, e *Event) error {
	if e.RedactedBy == "" && (e.Flags&Purged == 0 || e.IsState()) {
		return nil
	}
	err := tx.Exec(copyHeld, string(a.Room.ID), time.Now().UnixMilli(), []int64{e.Num}, Purged, string(a.Room.ID)).Error
	if err != nil {
		return fmt.Errorf("keep what is under a hold: %w", err)
	}
	return nil
}

// keepHeldOf keeps what is held of events that are about to go, and tells which of them are held.
func (tx *Tx) keepHeldOf(room matrix.RoomID, nums []int64) (map[int64]bool, error) {
	if err := tx.Exec(copyHeld, string(room), time.Now().UnixMilli(), nums, Purged, string(room)).Error; err != nil {
		return nil, fmt.Errorf("keep what is under a hold: %w", err)
	}
	var found []int64
	if err := tx.Raw("SELECT num FROM held_events WHERE num IN ?", nums).Scan(&found).Error; err != nil {
		return nil, err
	}
	held := make(map[int64]bool, len(found))
	for _, num := range found {
		held[num] = true
	}
	return held, nil
}

// DropUnheld deletes what was kept for holds that have been lifted, at most limit events, with the files that only they named. It returns how
// many events that were.
func (db *DB) DropUnheld(ctx context.Context, now time.Time, limit int) (n int, err error) {
	const free = `SELECT num FROM held_events e WHERE NOT EXISTS
		(SELECT 1 FROM holds h WHERE h.kind = 'user' AND h.target = e.sender OR h.kind = 'room' AND h.target = e.room_id) LIMIT ?`
	var nums []int64
	if err := db.Read(ctx).Raw(free, limit).Scan(&nums).Error; err != nil || len(nums) == 0 {
		return 0, err
	}
	err = db.Write(ctx, func(tx *Tx) error {
		if err := tx.Raw(free, limit).Scan(&nums).Error; err != nil {
			return err
		}
		n = len(nums)
		for chunk := range slices.Chunk(nums, maxIn) {
			in := padded(chunk)
			if err := tx.Exec("DELETE FROM held_events WHERE num IN ?", in).Error; err != nil {
				return err
			}
			// Of a redacted event the row is still there, and names its files until it goes.
			var still []int64
			if err := tx.Raw("SELECT num FROM events WHERE num IN ?", in).Scan(&still).Error; err != nil {
				return err
			}
			kept := map[int64]bool{}
			for _, num := range still {
				kept[num] = true
			}
			if _, err := tx.forgetEventMedia(in, kept, now); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}
