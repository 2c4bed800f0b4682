package storage_test

import (
	"fmt"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// listened makes a user who is in many rooms and has played all voice messages there but each keep-th. The rows are written as they
// lie, without their rooms and events: an inbox reads no more of them than whether they were redacted.
func listened(t testing.TB, db *storage.DB, user matrix.UserID, rooms, messages, keep int) {
	t.Helper()
	write := func(fn func(tx *storage.Tx) error) {
		if err := db.Write(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	for r := range rooms {
		write(func(tx *storage.Tx) error {
			id := fmt.Sprintf("!%d:here", r)
			if err := tx.Exec("INSERT INTO rooms (num, room_id, version, seq, pos, tip, root, depth, flags) VALUES (?, ?, '11', 1, 0, ?, ?, 1, 0)", 1000+r, id, []byte{}, []byte{}).Error; err != nil {
				return err
			}
			return tx.Exec("INSERT INTO memberships (room, server, user_id, membership, num, pos, forgotten) VALUES (?, 'here', ?, 'join', 0, 0, 0)", 1000+r, user).Error
		})
	}
	for m := range messages {
		write(func(tx *storage.Tx) error {
			pos, err := tx.Next(rooms)
			if err != nil {
				return err
			}
			for r := range rooms {
				n := m*rooms + r
				event := fmt.Sprintf("$%043d", n)
				num, at := 1_000_000+n, pos+int64(r)
				json := fmt.Sprintf(`{"type":"m.room.message","room_id":"!%d:here","sender":"@alice:here","content":{"body":"v"}}`, r)
				if err := tx.Exec(`INSERT INTO events (num, pos, room, depth, ts, event_id, type, sender, flags, json) VALUES (?, ?, ?, ?, 0, ?, 'm.room.message', '@alice:here', 0, ?)`,
					num, at, 1000+r, m, event, []byte(json)).Error; err != nil {
					return err
				}
				if err := tx.Exec("INSERT INTO voice_messages (num, room, pos, event_id, sender) VALUES (?, ?, ?, ?, '@alice:here')", num, 1000+r, at, event).Error; err != nil {
					return err
				}
				if keep > 0 && n%keep == 0 {
					continue
				}
				if err := tx.Exec("INSERT INTO voice_played (user_id, event_id, room_id, played, position_ms, pos) VALUES (?, ?, ?, 1, 0, ?)",
					user, event, fmt.Sprintf("!%d:here", r), at).Error; err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// An inbox of somebody in 1,000 rooms with 100 voice messages each, of which they have played all but one in a hundred.
func BenchmarkInbox(b *testing.B) {
	db := storagetest.New(b)
	const rooms, messages, keep = 1000, 100, 100
	listened(b, db, "@bob:here", rooms, messages, keep)
	for b.Loop() {
		events, total, err := db.UnplayedVoice(b.Context(), "@bob:here", 0, 50)
		if err != nil || total != rooms*messages/keep || len(events) != 50 {
			b.Fatal(len(events), total, err)
		}
	}
}
