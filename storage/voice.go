package storage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// PlayedType is the type of the room account data in which a user's devices see what was played lately.
const PlayedType = "im.parley.voice.played"

// playedWindow is how many of the latest changes that account data holds: enough for devices that sync; others ask for all.
const playedWindow = 50

// Played is how far one user is with one voice message.
type Played struct {
	Played     bool  `json:"played"`
	PositionMS int64 `json:"position"`
}

// isVoice looks for the marker of voice messages among the keys of a content, without parsing it: content is canonical JSON, in
// which a quotation mark behind { or , begins a key, since within a string it is escaped.
func isVoice(content []byte) bool {
	return bytes.Contains(content, []byte(`,"org.matrix.msc3245.voice"`)) || bytes.Contains(content, []byte(`{"org.matrix.msc3245.voice"`))
}

// writeVoiceMessages notes the voice messages among new events.
func (tx *Tx) writeVoiceMessages(appends []*RoomAppend) error {
	in := tx.inserter("voice_messages", "num, room, pos, event_id, sender", " ON CONFLICT DO NOTHING")
	for _, a := range appends {
		for _, e := range a.Events {
			if e.Pos > 0 && !e.Hidden() && e.Type() == "m.room.message" && isVoice(e.Content()) {
				in.add(e.Num, a.Room.Num, e.Pos, string(e.ID()), string(e.Sender()))
			}
		}
	}
	return in.flush()
}

// SetPlayed stores how far a user is with a voice message and tells the user's other devices.
func (db *DB) SetPlayed(ctx context.Context, user matrix.UserID, room matrix.RoomID, event matrix.EventID, p Played) error {
	return db.Write(ctx, func(tx *Tx) error {
		pos, err := tx.Next(1)
		if err != nil {
			return err
		}
		played := 0
		if p.Played {
			played = 1
		}
		if err := tx.Exec(`INSERT INTO voice_played (user_id, event_id, room_id, played, position_ms, pos) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (user_id, event_id) DO UPDATE SET played = excluded.played, position_ms = excluded.position_ms, pos = excluded.pos`,
			user, event, room, played, p.PositionMS, pos).Error; err != nil {
			return err
		}
		latest, err := scanPlayed(tx.Raw(playedQuery, user, room, playedWindow).Rows())
		if err != nil {
			return err
		}
		content, err := json.Marshal(map[string]any{"events": latest})
		if err != nil {
			return err
		}
		return tx.SetAccountData(user, room, PlayedType, content)
	})
}

const playedQuery = "SELECT event_id, played, position_ms FROM voice_played WHERE user_id = ? AND room_id = ? ORDER BY pos DESC LIMIT ?"

// PlayedIn lists what a user has played in a room, the latest changes first taken, at most limit.
func (db *DB) PlayedIn(ctx context.Context, user matrix.UserID, room matrix.RoomID, limit int) (map[matrix.EventID]Played, error) {
	return scanPlayed(db.Read(ctx).Raw(playedQuery, user, room, limit).Rows())
}

// PlayedState is how far a user is with one voice message; the zero value if it was never begun.
func (db *DB) PlayedState(ctx context.Context, user matrix.UserID, event matrix.EventID) (p Played, err error) {
	found, err := scanPlayed(db.Read(ctx).Raw("SELECT event_id, played, position_ms FROM voice_played WHERE user_id = ? AND event_id = ?", user, event).Rows())
	return found[event], err
}

func scanPlayed(rows *sql.Rows, err error) (map[matrix.EventID]Played, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[matrix.EventID]Played{}
	for rows.Next() {
		var id matrix.EventID
		var p Played
		var played int
		if err := rows.Scan(&id, &played, &p.PositionMS); err != nil {
			return nil, err
		}
		p.Played = played != 0
		all[id] = p
	}
	return all, rows.Err()
}

// unplayed joins the voice messages that others sent, while the user was in the room, and that the user has not played.
const unplayed = ` FROM memberships m JOIN voice_messages v ON v.room = m.room AND v.pos > m.pos
	JOIN events e ON e.num = v.num AND e.redacted_by IS NULL
	LEFT JOIN voice_played p ON p.user_id = m.user_id AND p.event_id = v.event_id
	WHERE m.user_id = ? AND m.membership = 'join' AND v.sender <> m.user_id AND coalesce(p.played, 0) = 0`

// UnplayedVoice lists the voice messages that a user has not played yet, over all rooms, in the order they came: at most
// limit after the stream position after. total counts all of them.
func (db *DB) UnplayedVoice(ctx context.Context, user matrix.UserID, after int64, limit int) (events []*Event, total int, err error) {
	if err := db.Read(ctx).Raw("SELECT count(*)"+unplayed, user).Row().Scan(&total); err != nil {
		return nil, 0, err
	}
	var nums []int64
	if err := db.Read(ctx).Raw("SELECT v.num"+unplayed+" AND v.pos > ? ORDER BY v.pos LIMIT ?", user, after, limit).Scan(&nums).Error; err != nil {
		return nil, 0, err
	}
	events, err = db.Events(ctx, nums)
	return events, total, err
}
