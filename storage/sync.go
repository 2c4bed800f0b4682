package storage

import (
	"context"
	"fmt"
	"slices"

	"parley.im/parley/server/matrix"
)

// The types of receipts that are kept.
const (
	ReceiptRead        = "m.read"
	ReceiptReadPrivate = "m.read.private"
)

// Receipt says up to which event a user has read a room.
type Receipt struct {
	Room   matrix.RoomID
	User   matrix.UserID
	Type   string // ReceiptRead or ReceiptReadPrivate
	Thread string // "": unthreaded; "main", or the event ID of a thread's root
	Event  matrix.EventID
	// EventPos is the stream position of Event, which orders receipts; 0 if we do not have it.
	EventPos int64
	TS       int64 // ms
	Pos      int64 // stream position of the receipt; given by SetReceipts
}

type receiptRow struct {
	RoomID   string
	UserID   string
	Type     string
	Thread   string
	EventID  string
	EventPos int64
	TS       int64 `gorm:"column:ts"`
	Pos      int64
}

func receipts(rows []receiptRow) []Receipt {
	out := make([]Receipt, len(rows))
	for i, r := range rows {
		out[i] = Receipt{
			Room: matrix.RoomID(r.RoomID), User: matrix.UserID(r.UserID), Type: r.Type, Thread: r.Thread,
			Event: matrix.EventID(r.EventID), EventPos: r.EventPos, TS: r.TS, Pos: r.Pos,
		}
	}
	return out
}

// SetReceipts stores the receipts that move forward, rings the bell for each and hands those, with their positions, to
// after, which runs after the commit and before the bell, on the writer's goroutine. after may be nil.
func (db *DB) SetReceipts(ctx context.Context, rs []Receipt, after func([]Receipt)) error {
	return db.Write(ctx, func(tx *Tx) error {
		moved := make([]Receipt, 0, len(rs))
		for _, r := range rs {
			forward, err := tx.movesForward(r)
			if err != nil {
				return err
			}
			if forward {
				moved = append(moved, r)
			}
		}
		if len(moved) == 0 {
			return nil
		}
		first, err := tx.Next(len(moved))
		if err != nil {
			return err
		}
		change := Change{}
		for i := range moved {
			r := &moved[i]
			r.Pos = first + int64(i)
			err := tx.Exec(`INSERT INTO receipts (room_id, user_id, type, thread, event_id, event_pos, ts, pos) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (room_id, user_id, type, thread) DO UPDATE SET
				event_id = excluded.event_id, event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos`,
				r.Room, r.User, r.Type, r.Thread, r.Event, r.EventPos, r.TS, r.Pos).Error
			if err != nil {
				return err
			}
			change.Wakes = append(change.Wakes, Wake{Topic: TopicReceipt, Pos: r.Pos, User: r.User, Room: r.Room})
		}
		tx.Ring(change)
		if after != nil {
			tx.AfterCommit(func() { after(moved) })
		}
		return nil
	})
}

// movesForward reports whether r points behind the receipt that it would replace. An event that we do not know may be
// anywhere, so it replaces only what is as unknown.
func (tx *Tx) movesForward(r Receipt) (bool, error) {
	var old []receiptRow
	err := tx.Raw("SELECT event_id, event_pos FROM receipts WHERE room_id = ? AND user_id = ? AND type = ? AND thread = ?",
		r.Room, r.User, r.Type, r.Thread).Scan(&old).Error
	if err != nil || len(old) == 0 {
		return err == nil, err
	}
	return r.Event != matrix.EventID(old[0].EventID) && r.EventPos >= old[0].EventPos, nil
}

// ReceiptsBetween returns the receipts in the rooms with positions in (from, to], by room and in their order:
// everybody's public ones, and the private ones of reader.
func (db *DB) ReceiptsBetween(ctx context.Context, reader matrix.UserID, rooms []matrix.RoomID, from, to int64) ([]Receipt, error) {
	if from >= to {
		return nil, nil
	}
	var all []Receipt
	for len(rooms) > 0 {
		n := min(len(rooms), 500)
		var rows []receiptRow
		err := db.Read(ctx).Raw(`SELECT room_id, user_id, type, thread, event_id, event_pos, ts, pos FROM receipts
			WHERE room_id IN ? AND pos > ? AND pos <= ? AND (type <> ? OR user_id = ?) ORDER BY room_id, pos`,
			padded(rooms[:n]), from, to, ReceiptReadPrivate, reader).Scan(&rows).Error
		if err != nil {
			return nil, err
		}
		all = append(all, receipts(rows)...)
		rooms = rooms[n:]
	}
	return all, nil
}

// UserReceipts returns all receipts of one user in a room.
func (db *DB) UserReceipts(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([]Receipt, error) {
	var rows []receiptRow
	err := db.Read(ctx).Raw(`SELECT room_id, user_id, type, thread, event_id, event_pos, ts, pos FROM receipts
		WHERE room_id = ? AND user_id = ?`, room, user).Scan(&rows).Error
	return receipts(rows), err
}

// JoinedRooms lists the rooms that a user, of this server or another, is joined to, or may be, as far as is known of a partial room.
func (db *DB) JoinedRooms(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	var rooms []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT rooms.room_id FROM "+roomsOfUser+" m JOIN rooms ON rooms.num = m.room", user, user.Server(), user).Scan(&rooms).Error
	return rooms, err
}

// Heroes lists the members of a room after whom it may be called, the longest there first: those joined or invited, and
// as many who have left or been banned; at most limit of each.
func (db *DB) Heroes(ctx context.Context, room int64, limit int) (present, gone []matrix.UserID, err error) {
	query := "SELECT user_id FROM memberships WHERE room = ? AND membership IN ? ORDER BY num LIMIT ?"
	err = db.Read(ctx).Raw(query, room, []string{"join", "invite"}, limit).Scan(&present).Error
	if err == nil {
		err = db.Read(ctx).Raw(query, room, []string{"leave", "ban"}, limit).Scan(&gone).Error
	}
	return present, gone, err
}

// JoinedMembers lists all who are joined to a room.
func (db *DB) JoinedMembers(ctx context.Context, room int64) ([]matrix.UserID, error) {
	var users []matrix.UserID
	err := db.Read(ctx).Raw("SELECT user_id FROM memberships WHERE room = ? AND membership = 'join'", room).Scan(&users).Error
	return users, err
}

// AfterGaps tells which of a room's events, by their numbers, follow one that this server does not have.
func (db *DB) AfterGaps(ctx context.Context, room int64, nums []int64) (map[int64]bool, error) {
	var gaps map[int64]bool
	for chunk := range slices.Chunk(nums, maxIn) {
		var found []int64
		err := db.Read(ctx).Raw("SELECT num FROM missing_prev WHERE room = ? AND num IN ?", room, padded(chunk)).Scan(&found).Error
		if err != nil {
			return nil, fmt.Errorf("look for gaps: %w", err)
		}
		for _, n := range found {
			if gaps == nil {
				gaps = map[int64]bool{}
			}
			gaps[n] = true
		}
	}
	return gaps, nil
}
