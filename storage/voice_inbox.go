package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"parley.im/parley/server/matrix"
)

const (
	// maxInbox is how many unplayed messages are kept for a user; the oldest fall out.
	maxInbox = 10_000
	// inboxChunk is how many messages one write sorts into an inbox.
	inboxChunk = 500
	// inboxStep is how far the stream may move on, with nothing new for a user, before that is written down.
	inboxStep = 10_000
)

// inInbox joins what has been sorted into a user's inbox with the messages that are still there and that came while the user was in the
// room and is still.
const inInbox = ` FROM voice_unplayed u JOIN voice_messages v ON v.num = u.num JOIN memberships m ON m.user_id = u.user_id AND m.room = v.room
	WHERE u.user_id = ? AND m.server = ? AND m.membership = 'join' AND v.pos > m.pos`

// UnplayedVoice lists the voice messages that a user has not played yet, over all rooms, in the order they came: at most limit after
// the stream position after. total counts all of them, which are the latest ten thousand.
func (db *DB) UnplayedVoice(ctx context.Context, user matrix.UserID, after int64, limit int) (events []*Event, total int, err error) {
	if err := db.sortInbox(ctx, user); err != nil {
		return nil, 0, fmt.Errorf("sort what came into the inbox: %w", err)
	}
	if err := db.Read(ctx).Raw("SELECT count(*)"+inInbox, user, user.Server()).Row().Scan(&total); err != nil {
		return nil, 0, err
	}
	var nums []int64
	if err := db.Read(ctx).Raw("SELECT u.num"+inInbox+" AND u.pos > ? ORDER BY u.pos LIMIT ?", user, user.Server(), after, limit).Scan(&nums).Error; err != nil {
		return nil, 0, err
	}
	events, err = db.Events(ctx, nums)
	return events, total, err
}

// unsorted is a message that may belong into an inbox.
type unsorted struct {
	Pos, Num int64
	EventID  matrix.EventID
}

// sortInbox brings a user's inbox up to now.
func (db *DB) sortInbox(ctx context.Context, user matrix.UserID) error {
	now := db.position.Load() // all up to here can be read
	var from int64
	err := db.Read(ctx).Raw("SELECT upto FROM voice_inboxes WHERE user_id = ?", user).Row().Scan(&from)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if from >= now {
		return nil
	}
	fresh, err := scanAll(db.Read(ctx).Raw(`SELECT v.pos, v.num, v.event_id FROM memberships m
		JOIN voice_messages v ON v.room = m.room AND v.pos > CASE WHEN m.pos > ? THEN m.pos ELSE ? END AND v.pos <= ?
		LEFT JOIN voice_played p ON p.user_id = m.user_id AND p.event_id = v.event_id
		WHERE m.user_id = ? AND m.membership = 'join' AND v.sender <> m.user_id AND coalesce(p.played, 0) = 0 ORDER BY v.pos DESC LIMIT ?`,
		from, from, now, user, maxInbox), func(rows *sql.Rows) (u unsorted, err error) {
		return u, rows.Scan(&u.Pos, &u.Num, &u.EventID)
	})
	if err != nil || len(fresh) == 0 && now-from < inboxStep {
		return err
	}
	slices.Reverse(fresh)
	for len(fresh) > inboxChunk {
		if err := db.Write(ctx, func(tx *Tx) error { return tx.fillInbox(user, fresh[:inboxChunk]) }); err != nil {
			return err
		}
		fresh = fresh[inboxChunk:]
	}
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.fillInbox(user, fresh); err != nil {
			return err
		}
		if err := tx.tidyInbox(user); err != nil {
			return err
		}
		return tx.Exec(`INSERT INTO voice_inboxes (user_id, upto) VALUES (?, ?) ON CONFLICT (user_id) DO UPDATE SET upto = excluded.upto
			WHERE voice_inboxes.upto < excluded.upto`, user, now).Error
	})
}

// fillInbox adds messages, but for those that the user has played since they were looked for.
func (tx *Tx) fillInbox(user matrix.UserID, fresh []unsorted) error {
	for _, u := range fresh {
		if err := tx.Exec(`INSERT INTO voice_unplayed (user_id, pos, num) SELECT ?, pos, num FROM voice_messages WHERE num = ?
			AND NOT EXISTS (SELECT 1 FROM voice_played WHERE user_id = ? AND event_id = ? AND played = 1) ON CONFLICT DO NOTHING`,
			user, u.Num, user, u.EventID).Error; err != nil {
			return err
		}
	}
	return nil
}

// tidyInbox drops what is gone, or what the user has left behind, and what is too much.
func (tx *Tx) tidyInbox(user matrix.UserID) error {
	if err := tx.Exec(`DELETE FROM voice_unplayed WHERE user_id = ? AND pos IN (SELECT u.pos FROM voice_unplayed u
		LEFT JOIN voice_messages v ON v.num = u.num LEFT JOIN memberships m ON m.user_id = u.user_id AND m.server = ? AND m.room = v.room AND m.membership = 'join' AND v.pos > m.pos
		WHERE u.user_id = ? AND m.room IS NULL LIMIT ?)`, user, user.Server(), user, inboxChunk).Error; err != nil {
		return err
	}
	return tx.Exec("DELETE FROM voice_unplayed WHERE user_id = ? AND pos <= (SELECT pos FROM voice_unplayed WHERE user_id = ? ORDER BY pos DESC LIMIT 1 OFFSET ?)",
		user, user, maxInbox).Error
}

// noteInInbox takes a message out of the user's inbox when it has been played, and back in when the user calls it unplayed again.
func (tx *Tx) noteInInbox(user matrix.UserID, event matrix.EventID, played bool) error {
	if played {
		return tx.Exec("DELETE FROM voice_unplayed WHERE user_id = ? AND pos = (SELECT pos FROM events WHERE event_id = ?)", user, event).Error
	}
	return tx.Exec(`INSERT INTO voice_unplayed (user_id, pos, num) SELECT ?, v.pos, v.num FROM events e JOIN voice_messages v ON v.num = e.num
		WHERE e.event_id = ? AND v.sender <> ? ON CONFLICT DO NOTHING`, user, event, user).Error
}
