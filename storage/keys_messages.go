package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
)

// ToDevice is a message for a device of this server; Device "*" is all devices of the user.
type ToDevice struct {
	User   matrix.UserID
	Device matrix.DeviceID
	Event  json.RawMessage // {"type", "sender", "content"}
}

// RemoteToDevice is the content of an m.direct_to_device EDU.
type RemoteToDevice struct {
	Server  matrix.ServerName
	Content json.RawMessage
}

// SentToDevice is one sending of messages.
type SentToDevice struct {
	Local  []ToDevice
	Remote []RemoteToDevice
	// Origin and MessageID name a sending by another server; one that came before is passed over. Empty for our own.
	Origin    matrix.ServerName
	MessageID string
	NowMS     int64
	MaxInbox  int // messages that may wait for one device; the oldest give way
}

// SendToDevice puts messages into the inboxes of devices and the outboxes of servers. Devices that do not exist are
// passed over.
func (db *DB) SendToDevice(ctx context.Context, s SentToDevice) error {
	return db.Write(ctx, func(tx *Tx) error {
		if s.MessageID != "" {
			n, err := tx.affect("INSERT INTO to_device_seen (origin, message_id, received_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", s.Origin, s.MessageID, s.NowMS)
			if err != nil || n == 0 {
				return err
			}
		}
		for _, m := range s.Local {
			devices, err := tx.recipients(m)
			if err != nil {
				return err
			}
			for _, device := range devices {
				if err := tx.putInbox(m, device, s.MaxInbox); err != nil {
					return err
				}
			}
		}
		for _, r := range s.Remote {
			if err := tx.QueueEDU([]matrix.ServerName{r.Server}, "m.direct_to_device", r.Content); err != nil {
				return err
			}
		}
		return nil
	})
}

func (tx *Tx) recipients(m ToDevice) ([]matrix.DeviceID, error) {
	query, args := "SELECT device_id FROM devices WHERE user_id = ?", []any{m.User}
	if m.Device != "*" {
		query, args = query+" AND device_id = ?", append(args, m.Device)
	}
	return scanAll(tx.Raw(query, args...), func(rows *sql.Rows) (d matrix.DeviceID, err error) { return d, rows.Scan(&d) })
}

func (tx *Tx) putInbox(m ToDevice, device matrix.DeviceID, max int) error {
	pos, err := tx.Next(1)
	if err != nil {
		return err
	}
	var waiting int
	if err := tx.Raw("SELECT count(*) FROM to_device WHERE user_id = ? AND device_id = ?", m.User, device).Row().Scan(&waiting); err != nil {
		return err
	}
	if waiting >= max {
		err := tx.Exec(`DELETE FROM to_device WHERE user_id = ? AND device_id = ? AND pos IN
			(SELECT pos FROM to_device WHERE user_id = ? AND device_id = ? ORDER BY pos LIMIT ?)`,
			m.User, device, m.User, device, waiting-max+1).Error
		if err != nil {
			return err
		}
	}
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicToDevice, Pos: pos, User: m.User, Device: device}}})
	return tx.Exec("INSERT INTO to_device (user_id, device_id, pos, event) VALUES (?, ?, ?, ?)", m.User, device, pos, []byte(m.Event)).Error
}

// InboxMessage waits for a device.
type InboxMessage struct {
	Pos   int64
	Event json.RawMessage
}

// Inbox returns the oldest messages for a device after one position up to and including another, at most limit.
func (db *DB) Inbox(ctx context.Context, user matrix.UserID, device matrix.DeviceID, after, upTo int64, limit int) ([]InboxMessage, error) {
	return scanAll(db.Read(ctx).Raw("SELECT pos, event FROM to_device WHERE user_id = ? AND device_id = ? AND pos > ? AND pos <= ? ORDER BY pos LIMIT ?",
		user, device, after, upTo, limit), func(rows *sql.Rows) (m InboxMessage, err error) { return m, rows.Scan(&m.Pos, &m.Event) })
}

// InboxEmpty reports whether nothing at all waits for the device.
func (db *DB) InboxEmpty(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error) {
	var has bool
	err := db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM to_device WHERE user_id = ? AND device_id = ?)", user, device).Row().Scan(&has)
	return !has, err
}

// DeleteInbox deletes the messages up to and including a position, which the device has confirmed.
func (db *DB) DeleteInbox(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM to_device WHERE user_id = ? AND device_id = ? AND pos <= ?", user, device, upTo).Error
	})
}

// ForgetSeenMessages deletes the notes of messages that came before a time.
func (db *DB) ForgetSeenMessages(ctx context.Context, beforeMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM to_device_seen WHERE received_ms < ?", beforeMS).Error
	})
}

// KeyBackup is a version of a user's backup of room keys.
type KeyBackup struct {
	Version   int64
	Algorithm string
	AuthData  json.RawMessage
	ETag      int64
	Count     int64
}

// BackedUpKey is one room key in a backup.
type BackedUpKey struct {
	Room              matrix.RoomID
	Session           string
	FirstMessageIndex int64
	ForwardedCount    int64
	IsVerified        bool
	SessionData       json.RawMessage
}

// betterThan tells which of two keys of the same session to keep.
// Spec v1.19 client-server-api/#server-side-key-backups
func (k *BackedUpKey) betterThan(old *BackedUpKey) bool {
	switch {
	case k.IsVerified != old.IsVerified:
		return k.IsVerified
	case k.FirstMessageIndex != old.FirstMessageIndex:
		return k.FirstMessageIndex < old.FirstMessageIndex
	default:
		return k.ForwardedCount < old.ForwardedCount
	}
}

// AddKeyBackup makes a new version, which becomes the current one.
func (db *DB) AddKeyBackup(ctx context.Context, user matrix.UserID, algorithm string, authData json.RawMessage) (version int64, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		// Deleted versions keep their row, so that a number never comes back.
		if err := tx.Raw("SELECT COALESCE(max(version), 0) + 1 FROM key_backups WHERE user_id = ?", user).Row().Scan(&version); err != nil {
			return err
		}
		return tx.Exec("INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, deleted) VALUES (?, ?, ?, ?, 0, FALSE)",
			user, version, algorithm, []byte(authData)).Error
	})
	return version, err
}

// KeyBackup finds a version; 0 is the current one.
func (db *DB) KeyBackup(ctx context.Context, user matrix.UserID, version int64) (*KeyBackup, error) {
	return keyBackup(db.Read(ctx).Raw, user, version)
}

func keyBackup(raw rawQuery, user matrix.UserID, version int64) (*KeyBackup, error) {
	var b KeyBackup
	where, args := "", []any{user}
	if version != 0 {
		where, args = " AND b.version = ?", append(args, version)
	}
	err := raw(`SELECT b.version, b.algorithm, b.auth_data, b.etag,
		(SELECT count(*) FROM key_backup_keys k WHERE k.user_id = b.user_id AND k.version = b.version)
		FROM key_backups b WHERE b.user_id = ? AND NOT b.deleted`+where+" ORDER BY b.version DESC LIMIT 1", args...).Row().Scan(&b.Version, &b.Algorithm, &b.AuthData, &b.ETag, &b.Count)
	return &b, orNotFound(err)
}

// SetKeyBackupAuth replaces the auth_data of a version.
func (db *DB) SetKeyBackupAuth(ctx context.Context, user matrix.UserID, version int64, authData json.RawMessage) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE key_backups SET auth_data = ? WHERE user_id = ? AND version = ? AND NOT deleted", []byte(authData), user, version)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// DeleteKeyBackup deletes a version with its keys.
func (db *DB) DeleteKeyBackup(ctx context.Context, user matrix.UserID, version int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE key_backups SET deleted = TRUE WHERE user_id = ? AND version = ? AND NOT deleted", user, version)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		return tx.Exec("DELETE FROM key_backup_keys WHERE user_id = ? AND version = ?", user, version).Error
	})
}

// ErrNotCurrent is returned with the current version when keys are stored in another one.
var ErrNotCurrent = errors.New("not the current backup version")

// PutBackedUpKeys stores keys that are better than what is there and returns the backup as it is then.
// ErrNotFound if there is no backup, ErrNotCurrent with the current one.
func (db *DB) PutBackedUpKeys(ctx context.Context, user matrix.UserID, version int64, keys []BackedUpKey) (b *KeyBackup, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		if b, err = keyBackup(tx.Raw, user, 0); err != nil {
			return err
		}
		if b.Version != version {
			return ErrNotCurrent
		}
		changed := false
		for i := range keys {
			stored, err := tx.putBackedUpKey(user, version, &keys[i])
			if err != nil {
				return err
			}
			changed = changed || stored
		}
		if changed {
			if err := tx.Exec("UPDATE key_backups SET etag = etag + 1 WHERE user_id = ? AND version = ?", user, version).Error; err != nil {
				return err
			}
		}
		b, err = keyBackup(tx.Raw, user, version)
		return err
	})
	return b, err
}

func (tx *Tx) putBackedUpKey(user matrix.UserID, version int64, k *BackedUpKey) (stored bool, err error) {
	var old BackedUpKey
	err = tx.Raw("SELECT first_message_index, forwarded_count, is_verified FROM key_backup_keys WHERE user_id = ? AND version = ? AND room_id = ? AND session_id = ?",
		user, version, k.Room, k.Session).Row().Scan(&old.FirstMessageIndex, &old.ForwardedCount, &old.IsVerified)
	if err == nil && !k.betterThan(&old) {
		return false, nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	return true, tx.Exec(`INSERT INTO key_backup_keys (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE
		SET first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
		is_verified = excluded.is_verified, session_data = excluded.session_data`,
		user, version, k.Room, k.Session, k.FirstMessageIndex, k.ForwardedCount, k.IsVerified, []byte(k.SessionData)).Error
}

// backedUpWhere is the condition for the keys of a room, or of one session, or all.
func backedUpWhere(user matrix.UserID, version int64, room matrix.RoomID, session string) (string, []any) {
	where, args := " WHERE user_id = ? AND version = ?", []any{user, version}
	if room != "" {
		where, args = where+" AND room_id = ?", append(args, room)
	}
	if session != "" {
		where, args = where+" AND session_id = ?", append(args, session)
	}
	return where, args
}

// BackedUpKeys finds the keys of a version, of one room if it is not empty, of one session if it is not empty.
func (db *DB) BackedUpKeys(ctx context.Context, user matrix.UserID, version int64, room matrix.RoomID, session string) ([]BackedUpKey, error) {
	where, args := backedUpWhere(user, version, room, session)
	return scanAll(db.Read(ctx).Raw("SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM key_backup_keys"+where, args...),
		func(rows *sql.Rows) (k BackedUpKey, err error) {
			return k, rows.Scan(&k.Room, &k.Session, &k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, &k.SessionData)
		})
}

// DeleteBackedUpKeys deletes keys as BackedUpKeys finds them. ErrNotFound if there is no such version.
func (db *DB) DeleteBackedUpKeys(ctx context.Context, user matrix.UserID, version int64, room matrix.RoomID, session string) (b *KeyBackup, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		if b, err = keyBackup(tx.Raw, user, version); err != nil {
			return err
		}
		where, args := backedUpWhere(user, version, room, session)
		n, err := tx.affect("DELETE FROM key_backup_keys"+where, args...)
		if err != nil {
			return err
		}
		if n > 0 {
			if err := tx.Exec("UPDATE key_backups SET etag = etag + 1 WHERE user_id = ? AND version = ?", user, version).Error; err != nil {
				return err
			}
		}
		b, err = keyBackup(tx.Raw, user, version)
		return err
	})
	return b, err
}
