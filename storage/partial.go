package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"parley.im/parley/server/matrix"
)

// PartialRoom is a room that was joined with the members left out of its state.
type PartialRoom struct {
	// Join is the number of the event by which this server came in, Before the state before it as far as it was told.
	Join   int64
	Before StateRoot
	// Servers are those that were in the room, in the order in which they are asked.
	Servers []matrix.ServerName
	SinceMS int64
	// WholePos is the stream position at which the state became whole; 0 while it is not.
	WholePos int64
}

// PartialEvent is an event that entered a partial room.
type PartialEvent struct {
	At  PartialPlace
	Num int64
	// Told are the states after those of its prev_events that are not here, as another server has told them.
	Told []StateRoot
}

// PartialPlace is a place in the order in which events entered a partial room; the zero value is before all.
type PartialPlace struct{ Seq, Place int64 }

// RootAt is the state of a room from a stream position on.
type RootAt struct {
	Pos  int64
	Root StateRoot
}

// PartialChange is what an append does to what is known of a room's partial state.
type PartialChange struct {
	// Begin says that the room is partial from this write on, in place of what was noted before.
	Begin *PartialRoom
	// Events entered the room with this write; their At is not looked at.
	Events []PartialEvent
	// Roots replace what was noted as the room's current state at the positions from From up to To.
	Roots    []RootAt
	From, To int64
	// Done says that the state is whole now. It gives the write a position.
	Done bool
}

// PartialRoom reads what is known of a room that is, or was, partial; ErrNotFound for others.
func (db *DB) PartialRoom(ctx context.Context, room int64) (PartialRoom, error) {
	var p PartialRoom
	var root []byte
	err := db.Read(ctx).Raw("SELECT join_num, root, since_ms, whole_pos FROM partial_rooms WHERE room = ?", room).Row().
		Scan(&p.Join, &root, &p.SinceMS, &p.WholePos)
	if errors.Is(err, sql.ErrNoRows) {
		return p, ErrNotFound
	}
	if err == nil {
		p.Before, err = ParseStateRoot(root)
	}
	if err == nil {
		err = db.Read(ctx).Raw("SELECT server FROM partial_servers WHERE room = ? ORDER BY place", room).Scan(&p.Servers).Error
	}
	if err != nil {
		return p, fmt.Errorf("read partial room: %w", err)
	}
	return p, nil
}

// PartialRooms lists the rooms whose state is not whole.
func (db *DB) PartialRooms(ctx context.Context) ([]matrix.RoomID, error) {
	var ids []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT r.room_id FROM partial_rooms p JOIN rooms r ON r.num = p.room WHERE p.whole_pos = 0 ORDER BY p.since_ms").Scan(&ids).Error
	return ids, err
}

// PartialEvents lists the events that entered a partial room after a place, in their order; at most limit.
func (db *DB) PartialEvents(ctx context.Context, room int64, after PartialPlace, limit int) ([]PartialEvent, error) {
	return scanAll(db.Read(ctx).Raw("SELECT seq, place, num, told FROM partial_events WHERE room = ? AND (seq, place) > (?, ?) ORDER BY seq, place LIMIT ?",
		room, after.Seq, after.Place, limit), func(rows *sql.Rows) (e PartialEvent, err error) {
		var told []byte
		if err := rows.Scan(&e.At.Seq, &e.At.Place, &e.Num, &told); err != nil {
			return e, err
		}
		for ; len(told) >= 32; told = told[32:] {
			root, err := ParseStateRoot(told[:32])
			if err != nil {
				return e, err
			}
			e.Told = append(e.Told, root)
		}
		return e, nil
	})
}

// IsPartialEvent reports whether an event entered its room while that is partial.
func (db *DB) IsPartialEvent(ctx context.Context, room, num int64) (found bool, err error) {
	err = db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM partial_events WHERE room = ? AND num = ?)", room, num).Row().Scan(&found)
	return found, err
}

// roomsOfUser are the rooms that a user is joined to, and those partial ones in which the user may be because the user's server is: a
// subquery for three placeholders, user, server and user.
const roomsOfUser = `(SELECT room FROM memberships WHERE user_id = ? AND membership = 'join'
	UNION SELECT p.room FROM partial_servers p WHERE p.server = ?
	AND NOT EXISTS (SELECT 1 FROM memberships x WHERE x.room = p.room AND x.server = p.server AND x.user_id = ?))`

// writePartial notes what becomes of partial rooms. It comes before writeStates, which notes the newest state.
func (tx *Tx) writePartial(appends []*RoomAppend) error {
	for _, a := range appends {
		p := &a.Partial
		if p.Begin != nil {
			if err := tx.beginPartial(a); err != nil {
				return err
			}
		}
		if p.To > 0 {
			if err := tx.Exec("DELETE FROM room_states WHERE room = ? AND pos >= ? AND pos <= ?", a.Room.Num, p.From, p.To).Error; err != nil {
				return fmt.Errorf("forget partial states: %w", err)
			}
		}
		if p.Done {
			if err := tx.forgetPartial(a.Room.Num); err != nil {
				return err
			}
			if err := tx.Exec("UPDATE partial_rooms SET whole_pos = ? WHERE room = ?", a.Room.Pos, a.Room.Num).Error; err != nil {
				return fmt.Errorf("note a whole state: %w", err)
			}
		}
	}
	events := tx.inserter("partial_events", "room, seq, place, num, told", "")
	roots := tx.inserter("room_states", "room, pos, root", " ON CONFLICT (room, pos) DO UPDATE SET root = excluded.root")
	for _, a := range appends {
		for i, e := range a.Partial.Events {
			var told []byte
			for _, root := range e.Told {
				told = append(told, root.Bytes()...)
			}
			events.add(a.Room.Num, a.Room.Seq, i, e.Num, told)
		}
		for _, r := range a.Partial.Roots {
			roots.add(a.Room.Num, r.Pos, r.Root.Bytes())
		}
	}
	return errors.Join(events.flush(), roots.flush())
}

func (tx *Tx) beginPartial(a *RoomAppend) error {
	b := a.Partial.Begin
	if err := tx.forgetPartial(a.Room.Num); err != nil {
		return err
	}
	err := tx.Exec(`INSERT INTO partial_rooms (room, join_num, root, since_ms, whole_pos) VALUES (?, ?, ?, ?, 0) ON CONFLICT (room) DO UPDATE
		SET join_num = excluded.join_num, root = excluded.root, since_ms = excluded.since_ms, whole_pos = 0`, a.Room.Num, b.Join, b.Before.Bytes(), b.SinceMS).Error
	if err != nil {
		return fmt.Errorf("note a partial room: %w", err)
	}
	servers := tx.inserter("partial_servers", "room, server, place", " ON CONFLICT DO NOTHING")
	for i, s := range b.Servers {
		servers.add(a.Room.Num, string(s), i)
	}
	return servers.flush()
}

// forgetPartial deletes what is needed only while a room is partial.
func (tx *Tx) forgetPartial(room int64) error {
	for _, table := range []string{"partial_events", "partial_servers"} {
		if err := tx.Exec("DELETE FROM "+table+" WHERE room = ?", room).Error; err != nil {
			return fmt.Errorf("forget a partial state: %w", err)
		}
	}
	return nil
}
