package storage

import (
	"errors"
	"fmt"
	"strings"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// ErrMoved is the answer to an append to a room that another process has appended to meanwhile, or that came into being
// meanwhile: load the room again and build anew.
var ErrMoved = errors.New("the room has moved on")

// RoomAppend is what one write does to one room.
type RoomAppend struct {
	// Room is the room as it shall be. Its Seq is raised, and its Pos set, by AppendRooms.
	Room Room
	// Create is set for a room that has no row yet.
	Create bool
	// Events are new. Those with Pos NewPos get one, in this order.
	Events []*Event
	// Roots are the room's current state after each of Events.
	Roots []StateRoot
	// OldRoot is the current state before. If it differs from Room.Root though no event gets a position, the change gets one.
	OldRoot StateRoot
	// Updates are copies of stored events that differ in Pos, Flags, Before, RedactedBy or content. NewPos gives a position.
	Updates []*Event
	// Nodes are the new nodes of the states that are named here.
	Nodes *StateNodes
	// Members are changed memberships. Their Pos is that of Event, or that of the write if it is nil or has none.
	Members []MemberChange
	// Relations are new, Unrelated gone (their event was redacted).
	Relations, Unrelated []Relation
	// Missing are prev_events that are not here, Found some that were missing and now are.
	Missing []MissingPrev
	Found   []matrix.EventID
	// PendingRedactions are redactions whose target is not here; Arrived are targets whose pending redactions are done with.
	PendingRedactions []*Event
	Arrived           []matrix.EventID
	// Partial is what becomes of a room that was joined with the members left out.
	Partial PartialChange
	// Purge is what one step of a purge does; nil mostly.
	Purge *PurgeStep

	// Err is what came of it: nil, ErrMoved, or a database's error. Nothing is written unless it is nil.
	Err error
}

// MemberChange is a membership to be stored.
type MemberChange struct {
	Membership
	Event *Event // whose position is the membership's; may be nil
}

// Relation says that the event Num relates to Parent.
type Relation struct {
	Parent  matrix.EventID
	Num     int64
	RelType string
	Type    string
	Sender  matrix.UserID
	Depth   int64
}

// MissingPrev is an event that we do not have and that the event Num has among its prev_events.
type MissingPrev struct {
	ID    matrix.EventID
	Num   int64
	Depth int64 // of the event Num
}

// AppendRooms writes to several rooms at once. A room that has moved meanwhile gets Err ErrMoved, and nothing of it is
// written; the others are not disturbed. The error is of the database; nothing is written then.
func (tx *Tx) AppendRooms(appends []*RoomAppend) error {
	positions := 0
	for _, a := range appends {
		positions += a.positions()
	}
	next := int64(0)
	if positions > 0 {
		var err error
		if next, err = tx.Next(positions); err != nil {
			return err
		}
	}
	kept := make([]*RoomAppend, 0, len(appends))
	for _, a := range appends {
		next = a.place(next)
		if err := tx.writeRoom(a); err != nil {
			return err
		}
		if a.Err == nil {
			kept = append(kept, a)
		}
	}
	for _, write := range []func([]*RoomAppend) error{tx.insertEvents, tx.updateEvents, tx.writePartial, tx.writeStates, tx.writeMembers, tx.writeRelations, tx.writeGaps,
		tx.writeVoiceMessages, tx.writeLive, tx.forgetTranscripts, tx.forgetPlayed, tx.queueForIndex, tx.writeEventMedia, tx.writePurges} {
		if err := write(kept); err != nil {
			return err
		}
	}
	tx.AfterCommit(func() { tx.cacheAppends(kept) })
	return nil
}

// positions counts the positions that the append needs.
func (a *RoomAppend) positions() int {
	n := 0
	for _, list := range [][]*Event{a.Events, a.Updates} {
		for _, e := range list {
			if e.Pos == NewPos {
				n++
			}
		}
	}
	if n == 0 && (a.Room.Root != a.OldRoot || len(a.Members) > 0 || a.Partial.Done) {
		n = 1
	}
	return n
}

// place gives out positions from next on and returns the first that is left.
func (a *RoomAppend) place(next int64) int64 {
	n := int64(a.positions())
	if n == 0 {
		return next
	}
	last := next + n - 1
	for _, list := range [][]*Event{a.Events, a.Updates} {
		for _, e := range list {
			if e.Pos == NewPos {
				e.Pos = next
				next++
			}
		}
	}
	for i := range a.Members {
		m := &a.Members[i]
		m.Pos = last
		if m.Event != nil && m.Event.Pos > 0 {
			m.Pos = m.Event.Pos
		}
	}
	if len(a.Room.Tip) > 0 {
		a.Room.Pos = last
	}
	return last + 1
}

// writeRoom writes the room's row, if nobody else has since it was read.
func (tx *Tx) writeRoom(a *RoomAppend) error {
	a.Err = nil
	r := &a.Room
	if a.Purge != nil {
		if held, err := tx.roomHeld(r.ID); err != nil {
			return fmt.Errorf("look for a hold: %w", err)
		} else if held {
			a.Err = ErrMoved
			return nil
		}
	}
	tip, root := encodeTip(r.Tip), r.Root.Bytes()
	var changed int64
	var err error
	if a.Create {
		changed, err = tx.exec("INSERT INTO rooms (num, room_id, version, seq, pos, tip, root, depth, flags) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
			r.Num, string(r.ID), r.Version.ID, r.Seq, r.Pos, tip, root, r.Depth, r.Flags)
	} else {
		changed, err = tx.exec("UPDATE rooms SET seq = seq + 1, pos = ?, tip = ?, root = ?, depth = ?, flags = ? WHERE num = ? AND seq = ?",
			r.Pos, tip, root, r.Depth, r.Flags, r.Num, r.Seq)
	}
	switch {
	case err != nil:
		return fmt.Errorf("write room: %w", err)
	case changed == 0:
		a.Err = ErrMoved
	case !a.Create:
		r.Seq++
	}
	return nil
}

func (tx *Tx) insertEvents(appends []*RoomAppend) error {
	in := tx.inserter("events", "num, pos, room, depth, ts, event_id, type, state_key, sender, flags, root, redacted_by, txn, json", "")
	for _, a := range appends {
		for _, e := range a.Events {
			var stateKey any
			if key, ok := e.StateKey(); ok {
				stateKey = key
			}
			var txn any
			if e.TxnID != "" {
				txn = txnKey(e.Device, e.Type(), e.TxnID)
			}
			in.add(e.Num, nullIfZero(e.Pos), a.Room.Num, e.Depth(), e.OriginServerTS(), string(e.ID()), e.Type(), stateKey, string(e.Sender()),
				e.Flags, e.rootColumn(), nullIfZero(string(e.RedactedBy)), txn, e.JSON())
		}
	}
	if err := in.flush(); errors.Is(err, gorm.ErrDuplicatedKey) {
		return fmt.Errorf("%w: %w", ErrMoved, err) // another process has stored the event, or one with the same transaction ID
	} else {
		return err
	}
}

func (e *Event) rootColumn() any {
	if e.Flags&Outlier != 0 {
		return nil
	}
	return e.Before.Bytes()
}

func nullIfZero[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

func (tx *Tx) updateEvents(appends []*RoomAppend) error {
	for _, a := range appends {
		for _, e := range a.Updates {
			if err := tx.keepHeld(a, e); err != nil {
				return err
			}
			_, err := tx.exec("UPDATE events SET pos = ?, flags = ?, root = ?, redacted_by = ?, json = ? WHERE num = ?",
				nullIfZero(e.Pos), e.Flags, e.rootColumn(), nullIfZero(string(e.RedactedBy)), e.JSON(), e.Num)
			if err != nil {
				return fmt.Errorf("update event: %w", err)
			}
		}
	}
	return nil
}

// writeStates stores the new nodes and notes the positions at which the current state of the rooms changed.
func (tx *Tx) writeStates(appends []*RoomAppend) error {
	for _, a := range appends {
		if a.Nodes != nil {
			if err := tx.writeNodes(a.Room.Num, a.Room.Generation, a.Nodes); err != nil {
				return err
			}
		}
	}
	in := tx.inserter("room_states", "room, pos, root", " ON CONFLICT (room, pos) DO UPDATE SET root = excluded.root")
	for _, a := range appends {
		known := a.OldRoot
		for i, root := range a.Roots {
			if pos := a.Events[i].Pos; root != known && pos > 0 {
				in.add(a.Room.Num, pos, root.Bytes())
				known = root
			}
		}
		if known != a.Room.Root {
			in.add(a.Room.Num, a.Room.Pos, a.Room.Root.Bytes())
		}
	}
	return in.flush()
}

func (tx *Tx) writeMembers(appends []*RoomAppend) error {
	in := tx.inserter("memberships", "room, server, user_id, membership, num, pos, forgotten, stripped",
		` ON CONFLICT (room, server, user_id) DO UPDATE SET num = excluded.num, stripped = excluded.stripped,
		pos = CASE WHEN memberships.membership = excluded.membership THEN memberships.pos ELSE excluded.pos END,
		forgotten = CASE WHEN memberships.membership = excluded.membership THEN memberships.forgotten ELSE 0 END,
		membership = excluded.membership`)
	for _, a := range appends {
		last := make(map[matrix.UserID]int, len(a.Members)) // PostgreSQL refuses to write a row twice in one statement
		for i := range a.Members {
			last[a.Members[i].User] = i
		}
		for i := range a.Members {
			if m := &a.Members[i]; last[m.User] == i {
				in.add(a.Room.Num, string(m.User.Server()), string(m.User), m.Membership.Membership, m.Num, m.Pos, 0, []byte(m.Stripped))
			}
		}
	}
	return in.flush()
}

func (tx *Tx) writeRelations(appends []*RoomAppend) error {
	in := tx.inserter("relations", "room, parent, num, rel_type, type, sender, depth", " ON CONFLICT DO NOTHING")
	for _, a := range appends {
		for _, r := range a.Relations {
			in.add(a.Room.Num, string(r.Parent), r.Num, r.RelType, r.Type, string(r.Sender), r.Depth)
		}
	}
	if err := in.flush(); err != nil {
		return err
	}
	for _, a := range appends {
		for _, r := range a.Unrelated {
			if err := tx.Exec("DELETE FROM relations WHERE room = ? AND parent = ? AND num = ?", a.Room.Num, string(r.Parent), r.Num).Error; err != nil {
				return fmt.Errorf("delete relation: %w", err)
			}
		}
	}
	return nil
}

// writeGaps notes what is missing and what is not any more.
func (tx *Tx) writeGaps(appends []*RoomAppend) error {
	missing := tx.inserter("missing_prev", "room, event_id, num, depth", " ON CONFLICT DO NOTHING")
	pending := tx.inserter("pending_redactions", "target, num", " ON CONFLICT DO NOTHING")
	for _, a := range appends {
		for _, m := range a.Missing {
			missing.add(a.Room.Num, string(m.ID), m.Num, m.Depth)
		}
		for _, e := range a.PendingRedactions {
			pending.add(string(e.Redacts()), e.Num)
		}
	}
	if err := errors.Join(missing.flush(), pending.flush()); err != nil {
		return err
	}
	for _, a := range appends {
		for _, id := range a.Found {
			if err := tx.Exec("DELETE FROM missing_prev WHERE room = ? AND event_id = ?", a.Room.Num, string(id)).Error; err != nil {
				return fmt.Errorf("delete missing event: %w", err)
			}
		}
		for _, id := range a.Arrived {
			if err := tx.Exec("DELETE FROM pending_redactions WHERE target = ?", string(id)).Error; err != nil {
				return fmt.Errorf("delete pending redaction: %w", err)
			}
		}
	}
	return nil
}

// cacheAppends makes the caches say what the database says now.
func (tx *Tx) cacheAppends(appends []*RoomAppend) {
	db := tx.batch.db
	for _, a := range appends {
		if a.Create {
			db.roomNames.put(a.Room.Num, &roomName{a.Room.ID, a.Room.Version}, 100)
		}
		for _, e := range a.Events {
			db.events.put(e.Num, e, e.size())
			db.eventIDs.put(e.ID(), e.Num, len(e.ID()))
		}
		for _, e := range a.Updates {
			db.events.replace(e.Num, e, e.size())
		}
		if a.Nodes != nil {
			for i, h := range a.Nodes.order {
				db.nodes.put(h, a.Nodes.fresh[h], len(a.Nodes.bytes[i]))
			}
		}
	}
}

// inserter gathers rows of one table and writes them with few statements of few different lengths.
type inserter struct {
	tx                     *Tx
	table, columns, suffix string
	width                  int
	args                   []any
	err                    error
}

func (tx *Tx) inserter(table, columns, suffix string) *inserter {
	return &inserter{tx: tx, table: table, columns: columns, suffix: suffix, width: strings.Count(columns, ",") + 1}
}

// maxRows is the most rows that one statement writes.
const maxRows = 32

func (in *inserter) add(values ...any) {
	in.args = append(in.args, values...)
	if len(in.args) == maxRows*in.width && in.err == nil {
		in.err = in.write(in.args)
		in.args = in.args[:0]
	}
}

// flush writes what is left.
func (in *inserter) flush() error {
	for rows := maxRows / 2; rows > 0 && in.err == nil; rows /= 2 {
		if n := rows * in.width; len(in.args) >= n {
			in.err = in.write(in.args[:n])
			in.args = in.args[n:]
		}
	}
	return in.err
}

func (in *inserter) write(args []any) error {
	if _, err := in.tx.exec(in.statement(len(args)/in.width), args...); err != nil {
		return fmt.Errorf("insert into %s: %w", in.table, err)
	}
	return nil
}

// statement is that for so many rows. SQLite copies every page that a statement of several rows touches, to be able to take back the
// statement alone: OR FAIL spares that. We take back the whole write.
func (in *inserter) statement(rows int) string {
	insert := "INSERT INTO "
	if rows > 1 && in.suffix == "" && in.tx.Dialect() == SQLite {
		insert = "INSERT OR FAIL INTO "
	}
	return insert + in.table + " (" + in.columns + ") VALUES " + placeholders(rows, in.width) + in.suffix
}

// placeholders is "(?,?),(?,?)" for so many rows of so many columns.
func placeholders(rows, columns int) string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", columns), ",") + ")"
	return strings.TrimSuffix(strings.Repeat(row+",", rows), ",")
}
