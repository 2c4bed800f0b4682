package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
)

// PurgeMark finds out what of a room is still needed after events were purged: the nodes of all states that can still be asked for, and among
// the rows that the purge has left those that are in such a state or in an auth chain. What is written while it looks needs not be found:
// new nodes carry the generation of the purge, and whoever uses a purged row takes it back.
type PurgeMark struct {
	db   *DB
	room int64
	// generation is that of the room as the look began: what is written later has it or a higher one.
	generation int64
	nodes      map[nodeHash]struct{}
	purged     map[matrix.EventID]int64 // the rows in question
	purgedBy   map[int64]bool
	// Needed are the numbers of those that are needed.
	Needed map[int64]bool
}

// markStep is how many events are read at a time.
const markStep = 500

// MarkRoom looks through a room, without holding anything up. Its memory grows with the number of nodes that are kept.
func (db *DB) MarkRoom(ctx context.Context, room int64) (*PurgeMark, error) {
	m := &PurgeMark{db: db, room: room, nodes: map[nodeHash]struct{}{}, purged: map[matrix.EventID]int64{}, purgedBy: map[int64]bool{}, Needed: map[int64]bool{}}
	if err := db.Read(ctx).Raw("SELECT generation FROM rooms WHERE num = ?", room).Row().Scan(&m.generation); err != nil {
		return nil, err
	}
	for after := int64(0); ; {
		nums, err := db.PurgedRows(ctx, room, after, markStep)
		if err != nil {
			return nil, err
		}
		if len(nums) == 0 {
			break
		}
		after = nums[len(nums)-1]
		events, err := db.EventsHere(ctx, nums)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e.Flags&Outlier != 0 { // others are of the tip
				m.purged[e.ID()], m.purgedBy[e.Num] = e.Num, true
			}
		}
	}
	if err := m.markRoots(ctx); err != nil {
		return nil, err
	}
	if err := m.markEvents(ctx); err != nil {
		return nil, err
	}
	return m, m.closeChains(ctx)
}

// markRoots marks the current state and those that it had since the purge.
func (m *PurgeMark) markRoots(ctx context.Context) error {
	var roots [][]byte
	err := m.db.Read(ctx).Raw("SELECT root FROM rooms WHERE num = ? UNION SELECT root FROM room_states WHERE room = ?", m.room, m.room).Scan(&roots).Error
	if err != nil {
		return err
	}
	for _, raw := range roots {
		root, err := ParseStateRoot(raw)
		if err == nil {
			err = m.markState(ctx, root, nil)
		}
		if err != nil {
			return err
		}
	}
	if len(m.purged) == 0 {
		return nil
	}
	var members []int64
	if err := m.db.Read(ctx).Raw("SELECT num FROM memberships WHERE room = ?", m.room).Scan(&members).Error; err != nil {
		return err
	}
	for _, num := range members {
		m.need(num)
	}
	return nil
}

func (m *PurgeMark) need(num int64) {
	if m.purgedBy[num] {
		m.Needed[num] = true
	}
}

// markEvents marks the states before and after all events, and what their auth events are.
func (m *PurgeMark) markEvents(ctx context.Context) error {
	var at Place
	for {
		rows, err := m.db.Read(ctx).Raw("SELECT "+eventColumns+" FROM events WHERE room = ? AND (depth, num) > (?, ?) ORDER BY depth, num LIMIT ?",
			m.room, at.Depth, at.Num, markStep).Rows()
		if err != nil {
			return err
		}
		var events []*Event
		for rows.Next() {
			e, err := m.db.scanEvent(ctx, rows) // past the cache, which is for readers
			if err != nil {
				rows.Close()
				return err
			}
			events = append(events, e)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		for _, e := range events {
			if err := m.markEvent(ctx, e); err != nil {
				return err
			}
		}
		if len(events) < markStep {
			return nil
		}
		last := events[len(events)-1]
		at = Place{last.Depth(), last.Num}
	}
}

func (m *PurgeMark) markEvent(ctx context.Context, e *Event) error {
	if m.purgedBy[e.Num] {
		return nil // it counts only if something else needs it
	}
	if len(m.purged) > 0 {
		for _, id := range e.AuthEvents() {
			if num, ok := m.purged[id]; ok {
				m.Needed[num] = true
			}
		}
	}
	if e.Flags&Outlier != 0 {
		return nil
	}
	if err := m.markState(ctx, e.Before, nil); err != nil {
		return err
	}
	key, ok := e.StateKey()
	if !ok || e.Flags&Rejected != 0 {
		return nil
	}
	var fresh StateNodes
	after, err := m.db.UpdateState(ctx, m.room, e.Before, []StateEntry{{Type: e.Type(), Key: key, Num: e.Num}}, &fresh)
	if err != nil {
		return err
	}
	return m.markState(ctx, after, &fresh)
}

// markState marks the nodes of a state. fresh holds those that may not be stored; nil: all are.
func (m *PurgeMark) markState(ctx context.Context, root StateRoot, fresh *StateNodes) error {
	var level []nodeHash
	add := func(h nodeHash) {
		if _, ok := m.nodes[h]; !ok && h != (nodeHash{}) {
			m.nodes[h] = struct{}{}
			level = append(level, h)
		}
	}
	add(root.Others)
	add(root.Members)
	for len(level) > 0 {
		now := level
		level = nil
		nodes, err := m.db.stateNodes(ctx, m.room, now, fresh)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if len(m.purged) > 0 {
				for _, e := range n.entries {
					m.need(e.num)
				}
			}
			if n.children != nil {
				for i := range n.children {
					add(n.children[i].hash)
				}
			}
		}
	}
	return nil
}

// closeChains adds the auth chains of what is needed.
func (m *PurgeMark) closeChains(ctx context.Context) error {
	level := make([]int64, 0, len(m.Needed))
	for num := range m.Needed {
		level = append(level, num)
	}
	for len(level) > 0 {
		events, err := m.db.EventsHere(ctx, level)
		if err != nil {
			return err
		}
		level = level[:0]
		for _, e := range events {
			for _, id := range e.AuthEvents() {
				if num, ok := m.purged[id]; ok && !m.Needed[num] {
					m.Needed[num] = true
					level = append(level, num)
				}
			}
		}
	}
	return nil
}

// SweepNodes deletes nodes of a room that are not marked, of generations before the room's at that time; it looks at so many after the one given, and returns
// the last one it has looked at, nil at the end. The counts go to job.
func (m *PurgeMark) SweepNodes(ctx context.Context, job *PurgeJob, after []byte, limit int) (last []byte, err error) {
	var hashes [][]byte
	if after == nil {
		after = []byte{}
	}
	err = m.db.Read(ctx).Raw(`SELECT hash FROM state_nodes WHERE room = ? AND hash > ? ORDER BY hash LIMIT ?`, m.room, after, limit).Scan(&hashes).Error
	if err != nil || len(hashes) == 0 {
		return nil, err
	}
	var garbage []any
	for _, h := range hashes {
		if len(h) != len(nodeHash{}) {
			return nil, errBadNode
		}
		if _, ok := m.nodes[nodeHash(h)]; !ok {
			garbage = append(garbage, h)
		}
	}
	last = hashes[len(hashes)-1]
	if len(garbage) == 0 {
		return last, nil
	}
	return last, m.db.Write(ctx, func(tx *Tx) error {
		done := *job
		for chunk := range slices.Chunk(garbage, maxIn) {
			n, err := tx.affect("DELETE FROM state_nodes WHERE room = ? AND hash IN ? AND generation < ?", m.room, padded(chunk), m.generation)
			if err != nil {
				return fmt.Errorf("sweep nodes: %w", err)
			}
			done.Nodes += n
		}
		tx.AfterCommit(func() { *job = done })
		return tx.savePurgeJob(&done)
	})
}

// TrimStates deletes the notes of which current state a room had before the first event that is left, some at a time. It reports whether there may be more.
func (db *DB) TrimStates(ctx context.Context, room int64, limit int) (more bool, err error) {
	var keep int64
	err = db.Read(ctx).Raw(`SELECT coalesce(max(pos), 0) FROM room_states WHERE room = ? AND pos <
		coalesce((SELECT min(pos) FROM events WHERE room = ? AND pos > 0), (SELECT pos FROM rooms WHERE num = ?))`, room, room, room).Row().Scan(&keep)
	if err != nil {
		return false, err
	}
	var old []int64
	if err := db.Read(ctx).Raw("SELECT pos FROM room_states WHERE room = ? AND pos < ? ORDER BY pos LIMIT ?", room, keep, limit).Scan(&old).Error; err != nil || len(old) == 0 {
		return false, err
	}
	err = db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM room_states WHERE room = ? AND pos <= ?", room, old[len(old)-1]).Error
	})
	return len(old) == limit, err
}

// ForgetReceipts deletes the receipts in a room that point to events that have gone, and the notifications about such that wait.
func (db *DB) ForgetReceipts(ctx context.Context, room matrix.RoomID) error {
	err := db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM receipts WHERE room_id = ? AND event_pos > 0 AND NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = receipts.event_id)", string(room)).Error
	})
	if err != nil {
		return err
	}
	var waiting []struct {
		ID   int64
		Body []byte
	}
	if err := db.Read(ctx).Raw("SELECT id, body FROM push_queue").Scan(&waiting).Error; err != nil {
		return err
	}
	var gone []int64
	for _, w := range waiting {
		about, ok := notifiedEvent(w.Body, room)
		if !ok {
			continue
		}
		if _, err := db.EventByID(ctx, about); errors.Is(err, ErrNotFound) {
			gone = append(gone, w.ID)
		} else if err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return db.Write(ctx, func(tx *Tx) error {
		for chunk := range slices.Chunk(gone, maxIn) {
			if err := tx.Exec("DELETE FROM push_queue WHERE id IN ?", padded(chunk)).Error; err != nil {
				return err
			}
		}
		return nil
	})
}

// EraseRoom deletes some events of a room that is [BeingDeleted], or if none is left some of its other rows, or in the end the room itself. It reports
// whether there is more to do. ErrHeld if there is a hold on the room.
func (db *DB) EraseRoom(ctx context.Context, job *PurgeJob, limit int, now time.Time) (more bool, err error) {
	room, err := db.RoomByID(ctx, job.Room)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	events, err := db.queryEvents(ctx, "WHERE room = ? ORDER BY depth, num LIMIT ?", room.Num, limit)
	if err != nil {
		return false, err
	}
	more = true
	err = db.Write(ctx, func(tx *Tx) error {
		if held, err := tx.roomHeld(room.ID); err != nil {
			return err
		} else if held {
			return ErrHeld
		}
		if _, err := tx.Next(1); err != nil {
			return err
		}
		tx.Ring(Change{Purged: []matrix.RoomID{room.ID}})
		done := *job
		if len(events) > 0 {
			media, err := tx.forgetEvents(&room, events, now)
			if err == nil {
				err = tx.deleteEvents(events)
			}
			if err != nil {
				return err
			}
			done.Events += int64(len(events))
			done.Media += int64(media)
		} else if n, err := tx.eraseRest(&room, limit); err != nil {
			return err
		} else if n > 0 {
			done.Nodes += n
		} else {
			more = false
			if err := tx.eraseRoomRow(&room); err != nil {
				return err
			}
		}
		tx.AfterCommit(func() { *job = done })
		return tx.savePurgeJob(&done)
	})
	return more && err == nil, err
}

// eraseRest deletes at most about limit rows of the tables that hold many for a room.
func (tx *Tx) eraseRest(room *Room, limit int) (int64, error) {
	for _, t := range []struct{ table, key string }{
		{"state_nodes", "hash"}, {"room_states", "pos"}, {"relations", "parent, num"}, {"missing_prev", "event_id, num"},
		{"partial_events", "seq, place"}, {"partial_servers", "server"},
	} {
		n, err := tx.affect("DELETE FROM "+t.table+" WHERE room = ? AND ("+t.key+") IN (SELECT "+t.key+" FROM "+t.table+" WHERE room = ? LIMIT ?)", room.Num, room.Num, limit)
		if err != nil || n > 0 {
			return n, err
		}
	}
	n, err := tx.affect("DELETE FROM receipts WHERE room_id = ? AND (user_id, type, thread) IN (SELECT user_id, type, thread FROM receipts WHERE room_id = ? LIMIT ?)",
		string(room.ID), string(room.ID), limit)
	if err != nil || n > 0 {
		return n, err
	}
	var members []string
	if err := tx.Raw("SELECT user_id FROM memberships WHERE room = ? LIMIT ?", room.Num, limit).Scan(&members).Error; err != nil {
		return 0, err
	}
	for _, user := range members {
		if err := tx.Exec("DELETE FROM account_data WHERE user_id = ? AND room_id = ?", user, string(room.ID)).Error; err != nil {
			return 0, err
		}
		err := tx.Exec("DELETE FROM memberships WHERE room = ? AND server = ? AND user_id = ?", room.Num, string(matrix.UserID(user).Server()), user).Error
		if err != nil {
			return 0, err
		}
	}
	return int64(len(members)), nil
}

// eraseRoomRow deletes the last rows of a room.
func (tx *Tx) eraseRoomRow(room *Room) error {
	for _, query := range []string{
		"DELETE FROM aliases WHERE room_id = ?", "DELETE FROM published_rooms WHERE room_id = ?", "DELETE FROM inbound_events WHERE room_id = ?",
	} {
		if err := tx.Exec(query, string(room.ID)).Error; err != nil {
			return err
		}
	}
	if err := tx.Exec("DELETE FROM partial_rooms WHERE room = ?", room.Num).Error; err != nil {
		return err
	}
	tx.AfterCommit(func() { tx.batch.db.roomNames.drop(room.Num) })
	return tx.Exec("DELETE FROM rooms WHERE num = ?", room.Num).Error
}

// notifiedEvent is the event that a waiting notification tells of, if it is of the room.
func notifiedEvent(body []byte, room matrix.RoomID) (matrix.EventID, bool) {
	var b struct {
		Notification struct {
			RoomID  matrix.RoomID  `json:"room_id"`
			EventID matrix.EventID `json:"event_id"`
		} `json:"notification"`
	}
	err := json.Unmarshal(body, &b)
	return b.Notification.EventID, err == nil && b.Notification.RoomID == room && b.Notification.EventID != ""
}

// Nodes is how many nodes are marked.
func (m *PurgeMark) Nodes() int { return len(m.nodes) }
