package storage

import (
	"bytes"
	"context"

	"parley.im/parley/server/matrix"
)

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
