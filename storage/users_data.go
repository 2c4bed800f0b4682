package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
)

// Profile is what a person of this server shows of themselves. nil is not set.
type Profile struct {
	UserID      matrix.UserID
	DisplayName []byte          // plain text
	AvatarURL   []byte          // plain text
	Fields      json.RawMessage // an object of all other fields
}

func scanProfile(rows interface{ Scan(...any) error }) (p Profile, err error) {
	err = rows.Scan(&p.UserID, &p.DisplayName, &p.AvatarURL, (*[]byte)(&p.Fields)) // a RawMessage cannot be NULL
	return p, err
}

// Profile finds the profile of a person of this server; ErrNotFound if there is no such account or it is deactivated.
func (db *DB) Profile(ctx context.Context, user matrix.UserID) (*Profile, error) {
	p, err := scanProfile(db.Read(ctx).Raw(`SELECT p.user_id, p.displayname, p.avatar_url, p.fields FROM profiles p
		JOIN users u ON u.user_id = p.user_id WHERE p.user_id = ? AND NOT u.deactivated`, user).Row())
	return &p, orNotFound(err)
}

// ChangeProfile runs change on the profile and stores the outcome, with nameKey(profile) for the directory. change
// reports whether there is anything to store. ErrNotFound as Profile.
func (db *DB) ChangeProfile(ctx context.Context, user matrix.UserID, change func(*Profile) (bool, error), nameKey func(*Profile) string) error {
	return db.Write(ctx, func(tx *Tx) error {
		p, err := scanProfile(tx.Raw(`SELECT p.user_id, p.displayname, p.avatar_url, p.fields FROM profiles p
			JOIN users u ON u.user_id = p.user_id WHERE p.user_id = ? AND NOT u.deactivated`, user).Row())
		if err != nil {
			return orNotFound(err)
		}
		changed, err := change(&p)
		if err != nil || !changed {
			return err
		}
		pos, err := tx.Next(1)
		if err != nil {
			return err
		}
		tx.Ring(Change{Wakes: []Wake{{Topic: TopicProfile, Pos: pos, User: user}}})
		return tx.Exec("UPDATE profiles SET displayname = ?, avatar_url = ?, fields = ?, name_key = ? WHERE user_id = ?",
			orNull(p.DisplayName), orNull(p.AvatarURL), orNull(p.Fields), nameKey(&p), user).Error
	})
}

func likeEscape(s string) string {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' || s[i] == '_' || s[i] == '\\' {
			out = append(out, '\\')
		}
		out = append(out, s[i])
	}
	return string(out)
}

// AccountData is one piece of a user's account data; room "" is global.
type AccountData struct {
	Room    matrix.RoomID
	Type    string
	Content json.RawMessage
	Pos     int64
}

// AccountData finds one piece; ErrNotFound if it was never set.
func (db *DB) AccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	var content []byte
	err := db.Read(ctx).Raw("SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?", user, room, typ).Row().Scan(&content)
	return content, orNotFound(err)
}

// AccountDataSince lists what changed after a position, up to and including upTo, in order of change: global and of all
// rooms. since 0 lists everything.
func (db *DB) AccountDataSince(ctx context.Context, user matrix.UserID, since, upTo int64) ([]AccountData, error) {
	return scanAll(db.Read(ctx).Raw("SELECT room_id, type, content, pos FROM account_data WHERE user_id = ? AND pos > ? AND pos <= ? ORDER BY pos", user, since, upTo),
		func(rows *sql.Rows) (d AccountData, err error) {
			return d, rows.Scan(&d.Room, &d.Type, &d.Content, &d.Pos)
		})
}

// SetAccountData replaces one piece and tells the user's syncs.
func (db *DB) SetAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.SetAccountData(user, room, typ, content) })
}

// ChangeAccountData replaces one piece by what change makes of it; old is nil if it was never set. When change returns
// nil, nothing is stored.
func (db *DB) ChangeAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, change func(old json.RawMessage) (json.RawMessage, error)) error {
	return db.Write(ctx, func(tx *Tx) error {
		var old []byte
		err := tx.Raw("SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?", user, room, typ).Row().Scan(&old)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		content, err := change(old)
		if err != nil || content == nil {
			return err
		}
		return tx.SetAccountData(user, room, typ, content)
	})
}

// SetAccountData replaces one piece and tells the user's syncs, within a write.
func (tx *Tx) SetAccountData(user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) error {
	pos, err := tx.Next(1)
	if err != nil {
		return err
	}
	topic := TopicAccountData
	if room != "" {
		topic = TopicRoomAccountData
	}
	tx.Ring(Change{Wakes: []Wake{{Topic: topic, Pos: pos, User: user, Room: room}}})
	err = tx.Exec(`INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos`,
		user, room, typ, []byte(content), pos).Error
	if err == nil && typ == PlayedReceiptsType {
		err = tx.forgetPlayedReceipts(user, room, content)
	}
	return err
}

// AddFilter stores a filter, or finds the equal one that is there, and returns its number. ErrLimit at max filters.
func (db *DB) AddFilter(ctx context.Context, user matrix.UserID, hash, content []byte, max int64) (id int64, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		err := tx.Raw("SELECT filter_id FROM filters WHERE user_id = ? AND hash = ?", user, hash).Row().Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := tx.Raw("SELECT COALESCE(max(filter_id), -1) + 1 FROM filters WHERE user_id = ?", user).Row().Scan(&id); err != nil {
			return err
		}
		if id >= max {
			return ErrLimit
		}
		return tx.Exec("INSERT INTO filters (user_id, filter_id, hash, content) VALUES (?, ?, ?, ?)", user, id, hash, content).Error
	})
	return id, err
}

// Filter finds a filter.
func (db *DB) Filter(ctx context.Context, user matrix.UserID, id int64) (json.RawMessage, error) {
	var content []byte
	err := db.Read(ctx).Raw("SELECT content FROM filters WHERE user_id = ? AND filter_id = ?", user, id).Row().Scan(&content)
	return content, orNotFound(err)
}
