package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"parley.im/parley/server/matrix"
)

// EventFlags say how an event stands in its room.
type EventFlags int64

// The flags of an event. Each of them keeps it out of the history that clients see.
const (
	// Rejected: an authorization rule refused it. It is kept so that we need not ask for it again, and is shown to nobody.
	Rejected EventFlags = 1 << iota
	// SoftFailed: allowed by the state before it but not by the current state. It is in the graph, but not in the timeline.
	SoftFailed
	// Outlier: we know it, but not the state before it: it was sent to us as part of a state or an auth chain.
	Outlier
	// Purged: a row that is left of a purged event, because the state or the graph needs it. What is no state event has lost its content.
	Purged
)

// NewPos, in place of a position, asks for one when the event is written.
const NewPos = -1

// Event is a stored event. It is not changed once it is committed: what changes is a copy.
type Event struct {
	*matrix.Event
	// Num is the event's number, given by [DB.EventNums]. State trees hold it.
	Num int64
	// Pos is the stream position at which the event entered the timeline, or 0: outliers, backfilled, rejected and
	// soft-failed events have none.
	Pos int64
	// RoomNum is the number of the room's row.
	RoomNum int64
	Flags   EventFlags
	// Before is the state before the event; zero for outliers and for the create event.
	Before StateRoot
	// RedactedBy is the redaction that was applied; the event itself is in its redacted form then.
	RedactedBy matrix.EventID
	// Device and TxnID are set on events that a client of this server sent with a transaction ID.
	Device matrix.DeviceID
	TxnID  string
}

// Hidden reports whether the event must not be shown to clients as part of the room's history: it is rejected,
// soft-failed, an outlier or purged.
func (e *Event) Hidden() bool { return e.Flags&(Rejected|SoftFailed|Outlier|Purged) != 0 }

// txnKey is what the column txn holds. A transaction ID is good for one device and one endpoint.
// Spec v1.19 client-server-api/#transaction-identifiers
func txnKey(device matrix.DeviceID, typ, txnID string) string {
	return string(device) + "\n" + typ + "\n" + txnID
}

// eventBlock is how many event numbers a process takes at a time.
const eventBlock = 10_000

// EventNums gives n event numbers and returns the first of them. It may wait for a write, so it must not be called inside one. Numbers that are not
// used are lost, which is no harm.
func (db *DB) EventNums(ctx context.Context, n int) (first int64, err error) {
	db.nums.Lock()
	defer db.nums.Unlock()
	if db.nums.end-db.nums.next < int64(n) {
		block := max(int64(n), eventBlock)
		var end int64
		err := db.Write(ctx, func(tx *Tx) error {
			return tx.Raw(`INSERT INTO facts (name, value) VALUES ('event_num', ?) ON CONFLICT (name) DO UPDATE
				SET value = CAST(CAST(facts.value AS BIGINT) + ? AS TEXT) RETURNING CAST(value AS BIGINT)`,
				fmt.Sprint(block), block).Row().Scan(&end)
		})
		if err != nil {
			return 0, fmt.Errorf("take event numbers: %w", err)
		}
		db.nums.next, db.nums.end = end-block+1, end+1
	}
	first = db.nums.next
	db.nums.next += int64(n)
	return first, nil
}

const eventColumns = "num, pos, room, event_id, flags, root, redacted_by, txn, json"

// scanEvent reads a row of eventColumns.
func (db *DB) scanEvent(ctx context.Context, rows *sql.Rows) (*Event, error) {
	var (
		e               Event
		pos             sql.NullInt64
		id              string
		root, raw       []byte
		redactedBy, txn sql.NullString
	)
	err := rows.Scan(&e.Num, &pos, &e.RoomNum, &id, &e.Flags, &root, &redactedBy, &txn, &raw)
	if err != nil {
		return nil, err
	}
	e.Pos, e.RedactedBy = pos.Int64, matrix.EventID(redactedBy.String)
	if e.Before, err = ParseStateRoot(root); err != nil {
		return nil, err
	}
	if parts := strings.SplitN(txn.String, "\n", 3); len(parts) == 3 {
		e.Device, e.TxnID = matrix.DeviceID(parts[0]), parts[2]
	}
	name, err := db.roomName(ctx, e.RoomNum)
	if err != nil {
		return nil, err
	}
	if e.Event, err = matrix.LoadEvent(raw, name.version, matrix.EventID(id)); err != nil {
		return nil, fmt.Errorf("event %s: %w", id, err)
	}
	return &e, nil
}

func (e *Event) size() int { return 600 + 2*len(e.JSON()) }

// queryEvents runs a query for eventColumns and keeps what it finds in the cache.
func (db *DB) queryEvents(ctx context.Context, query string, args ...any) ([]*Event, error) {
	epoch := db.events.now()
	rows, err := db.Read(ctx).Raw("SELECT "+eventColumns+" FROM events "+query, args...).Rows()
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var events []*Event
	for rows.Next() {
		e, err := db.scanEvent(ctx, rows)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	for _, e := range events {
		db.events.putAt(epoch, e.Num, e, e.size())
		db.eventIDs.put(e.ID(), e.Num, len(e.ID()))
	}
	return events, nil
}

// Events reads events by their numbers, in that order. A number that does not exist is an error.
func (db *DB) Events(ctx context.Context, nums []int64) ([]*Event, error) {
	events := make([]*Event, len(nums))
	var missing []int64
	for i, num := range nums {
		if e, ok := db.events.get(num); ok {
			events[i] = e
		} else {
			missing = append(missing, num)
		}
	}
	if len(missing) == 0 {
		return events, nil
	}
	slices.Sort(missing)
	found := make(map[int64]*Event, len(missing))
	for chunk := range slices.Chunk(missing, maxIn) {
		some, err := db.queryEvents(ctx, "WHERE num IN ?", padded(chunk))
		if err != nil {
			return nil, err
		}
		for _, e := range some {
			found[e.Num] = e
		}
	}
	for i, num := range nums {
		if events[i] == nil {
			if events[i] = found[num]; events[i] == nil {
				return nil, fmt.Errorf("event number %d: %w", num, ErrNotFound)
			}
		}
	}
	return events, nil
}

// Event reads one event by its number.
func (db *DB) Event(ctx context.Context, num int64) (*Event, error) {
	if e, ok := db.events.get(num); ok {
		return e, nil
	}
	events, err := db.Events(ctx, []int64{num})
	if err != nil {
		return nil, err
	}
	return events[0], nil
}

// ForgetEvents empties the cache of events, because another process may have redacted some.
func (db *DB) ForgetEvents() { db.events.clear() }

// CachedEvent is the event of that number if it is in memory.
func (db *DB) CachedEvent(num int64) (*Event, bool) { return db.events.get(num) }

// EventsByID reads the events that are here, in the order of ids; the others are left out.
func (db *DB) EventsByID(ctx context.Context, ids []matrix.EventID) ([]*Event, error) {
	found := make(map[matrix.EventID]*Event, len(ids))
	var missing []matrix.EventID
	for _, id := range ids {
		if num, ok := db.eventIDs.get(id); ok {
			if e, ok := db.events.get(num); ok {
				found[id] = e
				continue
			}
		}
		missing = append(missing, id)
	}
	for chunk := range slices.Chunk(missing, maxIn) {
		some, err := db.queryEvents(ctx, "WHERE event_id IN ?", padded(chunk))
		if err != nil {
			return nil, err
		}
		for _, e := range some {
			found[e.ID()] = e
		}
	}
	events := make([]*Event, 0, len(ids))
	for _, id := range ids {
		if e := found[id]; e != nil {
			events = append(events, e)
			delete(found, id)
		}
	}
	return events, nil
}

// EventByID reads one event; ErrNotFound if it is not here.
func (db *DB) EventByID(ctx context.Context, id matrix.EventID) (*Event, error) {
	events, err := db.EventsByID(ctx, []matrix.EventID{id})
	if err == nil && len(events) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return events[0], nil
}

// EventByTxn finds the event that a device sent into a room with a transaction ID; ErrNotFound if there is none.
func (db *DB) EventByTxn(ctx context.Context, room int64, sender matrix.UserID, device matrix.DeviceID, typ, txnID string) (matrix.EventID, error) {
	var id string
	err := db.Read(ctx).Raw("SELECT event_id FROM events WHERE room = ? AND sender = ? AND txn = ?", room, string(sender), txnKey(device, typ, txnID)).Row().Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return matrix.EventID(id), err
}

// EventsInStream reads the events of a room with from < pos <= to, the newest limit of them, newest first.
func (db *DB) EventsInStream(ctx context.Context, room, from, to int64, limit int) ([]*Event, error) {
	return db.queryEvents(ctx, "WHERE room = ? AND pos > ? AND pos <= ? ORDER BY pos DESC LIMIT ?", room, from, to, limit)
}

// EventsFromStream reads the events of a room with from < pos <= to, the oldest limit of them, oldest first.
func (db *DB) EventsFromStream(ctx context.Context, room, from, to int64, limit int) ([]*Event, error) {
	return db.queryEvents(ctx, "WHERE room = ? AND pos > ? AND pos <= ? ORDER BY pos LIMIT ?", room, from, to, limit)
}

// Place is a place in the order of a room's history: before the event with this depth and number, after those with lower ones.
type Place struct{ Depth, Num int64 }

// EventsBefore reads the events before a place, newest first; those that are hidden are left out.
func (db *DB) EventsBefore(ctx context.Context, room int64, at Place, limit int) ([]*Event, error) {
	return db.queryEvents(ctx, "WHERE room = ? AND (depth, num) < (?, ?) AND flags = 0 ORDER BY depth DESC, num DESC LIMIT ?", room, at.Depth, at.Num, limit)
}

// EventsFrom reads the events from a place on, oldest first; those that are hidden are left out.
func (db *DB) EventsFrom(ctx context.Context, room int64, at Place, limit int) ([]*Event, error) {
	return db.queryEvents(ctx, "WHERE room = ? AND (depth, num) >= (?, ?) AND flags = 0 ORDER BY depth, num LIMIT ?", room, at.Depth, at.Num, limit)
}

// maxIn is the longest list in an IN.
const maxIn = 256

// padded fills a list of at most maxIn up to a power of two by repeating its last entry, so that there are few different
// statements to keep prepared.
func padded[T any](list []T) []T {
	n := 1
	for n < len(list) {
		n *= 2
	}
	all := make([]T, n)
	copy(all, list)
	for i := len(list); i < n; i++ {
		all[i] = list[len(list)-1]
	}
	return all
}
