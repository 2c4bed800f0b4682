package storage

import (
	"context"
	"fmt"
	"slices"

	"parley.im/parley/server/matrix"
)

// InboundEvent is an event that another server handed us and that waits for what comes before it.
type InboundEvent struct {
	RoomID     matrix.RoomID
	EventID    matrix.EventID
	Origin     matrix.ServerName
	Depth      int64
	ReceivedMS int64
	JSON       []byte // as received
}

// KeepInbound stores events that wait, those that wait already excepted. Of each room at most limit wait: the
// rest is dropped, as the gap that they leave is filled when the next event arrives.
func (db *DB) KeepInbound(ctx context.Context, limit int, events []InboundEvent) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, e := range events {
			err := tx.Exec("INSERT INTO inbound_events (room_id, event_id, origin, depth, received_ms, json) "+
				"SELECT ?, ?, ?, ?, ?, ? WHERE (SELECT COUNT(*) FROM inbound_events WHERE room_id = ?) < ? ON CONFLICT (room_id, event_id) DO NOTHING",
				e.RoomID, e.EventID, e.Origin, e.Depth, e.ReceivedMS, e.JSON, e.RoomID, limit).Error
			if err != nil {
				return fmt.Errorf("keep inbound event: %w", err)
			}
		}
		return nil
	})
}

// DropInbound forgets a waiting event: it has entered its room or was given up.
func (db *DB) DropInbound(ctx context.Context, room matrix.RoomID, event matrix.EventID) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM inbound_events WHERE room_id = ? AND event_id = ?", room, event).Error
	})
}

// Inbound lists the waiting events of a room, lowest depth first, at most limit.
func (db *DB) Inbound(ctx context.Context, room matrix.RoomID, limit int) ([]InboundEvent, error) {
	var all []InboundEvent
	err := db.Read(ctx).Raw("SELECT room_id, event_id, origin, depth, received_ms, json FROM inbound_events WHERE room_id = ? ORDER BY depth, event_id LIMIT ?",
		room, limit).Scan(&all).Error
	return all, err
}

// InboundRooms lists the rooms in which events wait.
func (db *DB) InboundRooms(ctx context.Context) ([]matrix.RoomID, error) {
	var rooms []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT DISTINCT room_id FROM inbound_events").Scan(&rooms).Error
	return rooms, err
}

// MissingAmong picks the events that a room is known to lack: those that some event of its has among its prev_events.
func (db *DB) MissingAmong(ctx context.Context, room int64, ids []matrix.EventID) (map[matrix.EventID]bool, error) {
	missing := map[matrix.EventID]bool{}
	for chunk := range slices.Chunk(ids, maxIn) {
		var found []string
		err := db.Read(ctx).Raw("SELECT DISTINCT event_id FROM missing_prev WHERE room = ? AND event_id IN ?", room, padded(chunk)).Scan(&found).Error
		if err != nil {
			return nil, fmt.Errorf("read missing events: %w", err)
		}
		for _, id := range found {
			missing[matrix.EventID(id)] = true
		}
	}
	return missing, nil
}
