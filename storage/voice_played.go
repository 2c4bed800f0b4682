package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"parley.im/parley/server/matrix"
)

const (
	// PlayedType is the type of the room account data in which a user's devices see what was played lately, and of the EDU by
	// which the sender's server hears of it.
	PlayedType = "im.parley.voice.played"
	// PlayedReceiptsType is the type of the account data, global or of a room, by which a user lets senders know what was
	// played: {"enabled": true}. That of the room comes first. Without any, nobody is told.
	PlayedReceiptsType = "im.parley.voice.played_receipts"

	// playedWindow is how many of the latest changes that account data holds: enough for devices that sync; others ask for all.
	playedWindow = 50
	// maxHeard is how many people are kept of those who have played one message.
	maxHeard = 1000
)

// Played is how far one user is with one voice message.
type Played struct {
	Played     bool  `json:"played"`
	PositionMS int64 `json:"position"`
}

// PlayedChange is what a device of one of our users says of a voice message. What is nil stays as it was.
type PlayedChange struct {
	User       matrix.UserID
	Room       matrix.RoomID
	Event      matrix.EventID
	Played     *bool
	PositionMS *int64
	// Sender is who sent the message; empty for nobody to be told. Elsewhere is the sender's server, empty if it is this one.
	Sender    matrix.UserID
	Elsewhere matrix.ServerName
	At        time.Time
}

// PlayedReceipt tells the sender of a voice message that somebody has played it.
type PlayedReceipt struct {
	Room   matrix.RoomID
	Event  matrix.EventID
	User   matrix.UserID // who has played it
	Sender matrix.UserID // one of our users
	TS     int64         // ms
	Pos    int64         // stream position; given by AddPlayedReceipt
}

// ChangePlayed stores how far a user is with a voice message and tells the user's other devices; if the message has now been
// played and the user lets senders know, it tells the sender. Changes of several devices add up, in whatever order they come.
func (db *DB) ChangePlayed(ctx context.Context, c PlayedChange) error {
	return db.Write(ctx, func(tx *Tx) error {
		found, err := scanPlayed(tx.Raw("SELECT event_id, played, position_ms FROM voice_played WHERE user_id = ? AND event_id = ?", c.User, c.Event).Rows())
		if err != nil {
			return err
		}
		before := found[c.Event]
		after := before
		if c.Played != nil {
			after.Played = *c.Played
		}
		if c.PositionMS != nil {
			after.PositionMS = *c.PositionMS
		}
		if after == before {
			return nil
		}
		if err := tx.setPlayed(c.User, c.Room, c.Event, after); err != nil {
			return err
		}
		if before.Played != after.Played {
			if err := tx.noteInInbox(c.User, c.Event, after.Played); err != nil {
				return err
			}
		}
		if before.Played || !after.Played || c.Sender == "" || c.Sender == c.User {
			return nil
		}
		tells, err := tx.tellsPlayed(c.User, c.Room)
		if err != nil || !tells {
			return err
		}
		return tx.tellPlayed(c)
	})
}

func (tx *Tx) setPlayed(user matrix.UserID, room matrix.RoomID, event matrix.EventID, p Played) error {
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
}

// tellsPlayed reports whether a user lets the senders in a room know what was played.
func (tx *Tx) tellsPlayed(user matrix.UserID, room matrix.RoomID) (bool, error) {
	var raw []byte
	err := tx.Raw("SELECT content FROM account_data WHERE user_id = ? AND type = ? AND room_id IN ('', ?) ORDER BY length(room_id) DESC LIMIT 1",
		user, PlayedReceiptsType, room).Row().Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return enablesPlayed(raw), err
}

// enablesPlayed reads {"enabled": true}; what cannot be read is no consent.
func enablesPlayed(content []byte) bool {
	var said struct {
		Enabled bool `json:"enabled"`
	}
	return json.Unmarshal(content, &said) == nil && said.Enabled
}

func (tx *Tx) tellPlayed(c PlayedChange) error {
	if c.Elsewhere == "" {
		return tx.addPlayedReceipt(PlayedReceipt{Room: c.Room, Event: c.Event, User: c.User, Sender: c.Sender, TS: c.At.UnixMilli()})
	}
	content, err := json.Marshal(map[string]any{"room_id": c.Room, "event_id": c.Event, "user_id": c.User, "ts": c.At.UnixMilli()})
	if err != nil {
		return err
	}
	return tx.queue(OutboxEDU{User: c.User, Type: PlayedType, Content: content}, []matrix.ServerName{c.Elsewhere})
}

// forgetPlayedReceipts takes back what has not left yet, when a user no longer wants senders to know; room "" is all rooms.
func (tx *Tx) forgetPlayedReceipts(user matrix.UserID, room matrix.RoomID, setting []byte) error {
	if enablesPlayed(setting) {
		return nil
	}
	var waiting []struct {
		Pos     int64
		Content []byte
	}
	if err := tx.Raw("SELECT pos, content FROM outbox WHERE user_id = ? AND type = ?", user, PlayedType).Scan(&waiting).Error; err != nil {
		return fmt.Errorf("find played receipts that wait: %w", err)
	}
	for _, w := range waiting {
		var edu struct {
			Room matrix.RoomID `json:"room_id"`
		}
		if err := json.Unmarshal(w.Content, &edu); err != nil {
			return err
		}
		if room == "" {
			// A room of which the user has said otherwise keeps its own.
			if tells, err := tx.tellsPlayed(user, edu.Room); err != nil || tells {
				if err != nil {
					return err
				}
				continue
			}
		} else if edu.Room != room {
			continue
		}
		if err := tx.Exec("DELETE FROM outbox WHERE pos = ?", w.Pos).Error; err != nil {
			return err
		}
	}
	return nil
}

// AddPlayedReceipt stores that somebody has played a message of one of our users, and tells the sender's devices. One that is known
// already changes nothing; of one message the first thousand people are kept.
func (db *DB) AddPlayedReceipt(ctx context.Context, r PlayedReceipt) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.addPlayedReceipt(r) })
}

func (tx *Tx) addPlayedReceipt(r PlayedReceipt) error {
	var known int
	var again bool
	if err := tx.Raw("SELECT count(*), coalesce(max(CASE WHEN user_id = ? THEN 1 ELSE 0 END), 0) = 1 FROM voice_heard WHERE event_id = ?", r.User, r.Event).
		Row().Scan(&known, &again); err != nil || again || known >= maxHeard {
		return err
	}
	pos, err := tx.Next(1)
	if err != nil {
		return err
	}
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicPlayedReceipt, Pos: pos, User: r.Sender, Room: r.Room}}})
	return tx.Exec("INSERT INTO voice_heard (event_id, user_id, sender, room_id, ts, pos) VALUES (?, ?, ?, ?, ?, ?)",
		r.Event, r.User, r.Sender, r.Room, r.TS, pos).Error
}

// PlayedReceiptsBetween lists who has played what sender, one of our users, sent: the receipts with positions in (from, to], of
// them the latest limit, the latest first.
func (db *DB) PlayedReceiptsBetween(ctx context.Context, sender matrix.UserID, from, to int64, limit int) ([]PlayedReceipt, error) {
	return scanHeard(db.Read(ctx).Raw(`SELECT room_id, event_id, user_id, sender, ts, pos FROM voice_heard WHERE sender = ? AND pos > ? AND pos <= ?
		ORDER BY pos DESC LIMIT ?`, sender, from, to, limit).Rows())
}

// PlayedReceiptsIn is the same for one room, whenever that was.
func (db *DB) PlayedReceiptsIn(ctx context.Context, sender matrix.UserID, room matrix.RoomID, limit int) ([]PlayedReceipt, error) {
	return scanHeard(db.Read(ctx).Raw(`SELECT room_id, event_id, user_id, sender, ts, pos FROM voice_heard WHERE sender = ? AND room_id = ?
		ORDER BY pos DESC LIMIT ?`, sender, room, limit).Rows())
}

func scanHeard(rows *sql.Rows, err error) (all []PlayedReceipt, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r PlayedReceipt
		if err := rows.Scan(&r.Room, &r.Event, &r.User, &r.Sender, &r.TS, &r.Pos); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

const playedQuery = "SELECT event_id, played, position_ms FROM voice_played WHERE user_id = ? AND room_id = ? ORDER BY pos DESC LIMIT ?"

// PlayedIn lists what a user has played in a room, the latest changes first taken, at most limit.
func (db *DB) PlayedIn(ctx context.Context, user matrix.UserID, room matrix.RoomID, limit int) (map[matrix.EventID]Played, error) {
	return scanPlayed(db.Read(ctx).Raw(playedQuery, user, room, limit).Rows())
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

// forgetPlayed takes messages that were redacted out of all inboxes and deletes who has played them. What users know of their own
// playing stays.
func (tx *Tx) forgetPlayed(appends []*RoomAppend) error {
	for _, a := range appends {
		for _, e := range a.Updates {
			if e.RedactedBy == "" || e.Type() != matrix.TypeMessage && e.Type() != "m.room.encrypted" {
				continue
			}
			if err := tx.Exec("DELETE FROM voice_messages WHERE num = ?", e.Num).Error; err != nil {
				return fmt.Errorf("take a message out of the inboxes: %w", err)
			}
			if err := tx.Exec("DELETE FROM voice_heard WHERE event_id = ?", e.ID()).Error; err != nil {
				return fmt.Errorf("delete who has played: %w", err)
			}
		}
	}
	return nil
}
