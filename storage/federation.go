package storage

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// OutboxEDU waits for another server.
type OutboxEDU struct {
	Pos     int64
	Server  matrix.ServerName // empty: all servers that share a room with User
	User    matrix.UserID     // empty unless Server is, or was
	Type    string
	Content json.RawMessage
}

// QueueEDU leaves an EDU for each of the servers, to be delivered once, in order, however long that takes. content is
// what the EDU's "content" will be. It rings TopicOutbox.
func (tx *Tx) QueueEDU(servers []matrix.ServerName, eduType string, content json.RawMessage) error {
	return tx.queue(OutboxEDU{Type: eduType, Content: content}, servers)
}

// QueueEDUForSharers leaves an EDU for every server that shares a room with user, a user of ours, whom federation looks
// up when it sends. It rings TopicOutbox with no server.
func (tx *Tx) QueueEDUForSharers(user matrix.UserID, eduType string, content json.RawMessage) error {
	return tx.queue(OutboxEDU{User: user, Type: eduType, Content: content}, []matrix.ServerName{""})
}

func (tx *Tx) queue(edu OutboxEDU, servers []matrix.ServerName) error {
	if len(servers) == 0 {
		return nil
	}
	pos, err := tx.Next(len(servers))
	if err != nil {
		return err
	}
	for i, server := range servers {
		if err := tx.Exec("INSERT INTO outbox (pos, server, user_id, type, content) VALUES (?, ?, ?, ?, ?)",
			pos+int64(i), server, edu.User, edu.Type, []byte(edu.Content)).Error; err != nil {
			return fmt.Errorf("queue %s for %s: %w", edu.Type, server, err)
		}
		tx.Ring(Change{Wakes: []Wake{{Topic: TopicOutbox, Pos: pos + int64(i), Server: server, User: edu.User}}})
	}
	return nil
}

// Outbox returns the oldest EDUs that wait for server, at most limit. The empty server asks for those that have not
// been addressed yet.
func (db *DB) Outbox(ctx context.Context, server matrix.ServerName, limit int) ([]OutboxEDU, error) {
	rows, err := db.Read(ctx).Raw("SELECT pos, server, user_id, type, content FROM outbox WHERE server = ? ORDER BY pos LIMIT ?", server, limit).Rows()
	if err != nil {
		return nil, fmt.Errorf("read the outbox of %q: %w", server, err)
	}
	defer rows.Close()
	var edus []OutboxEDU
	for rows.Next() {
		var e OutboxEDU
		var content []byte
		if err := rows.Scan(&e.Pos, &e.Server, &e.User, &e.Type, &content); err != nil {
			return nil, err
		}
		e.Content = content
		edus = append(edus, e)
	}
	return edus, rows.Err()
}

// AddressEDU replaces an EDU for all who share a room with somebody by one for each of the servers.
func (db *DB) AddressEDU(ctx context.Context, edu OutboxEDU, servers []matrix.ServerName) error {
	return db.Write(ctx, func(tx *Tx) error {
		deleted := tx.Exec("DELETE FROM outbox WHERE pos = ? AND server = ''", edu.Pos)
		if deleted.Error != nil || deleted.RowsAffected == 0 { // another process has addressed it
			return deleted.Error
		}
		return tx.queue(edu, servers)
	})
}

// OutboxServers returns the servers for which something waits.
func (db *DB) OutboxServers(ctx context.Context) ([]matrix.ServerName, error) {
	var servers []matrix.ServerName
	err := db.Read(ctx).Raw("SELECT DISTINCT server FROM outbox").Scan(&servers).Error
	return servers, err
}

// TrimOutbox keeps only the newest keep EDUs that wait for server: one that is away for good must not fill the disk.
func (db *DB) TrimOutbox(ctx context.Context, server matrix.ServerName, keep int) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM outbox WHERE server = ? AND pos <= (SELECT pos FROM outbox WHERE server = ? ORDER BY pos DESC LIMIT 1 OFFSET ?)",
			server, server, keep).Error
	})
}

// DeleteOutbox deletes EDUs that were delivered to server.
func (db *DB) DeleteOutbox(ctx context.Context, server matrix.ServerName, positions []int64) error {
	if len(positions) == 0 {
		return nil
	}
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM outbox WHERE server = ? AND pos IN ?", server, positions).Error
	})
}

// Destination is what is kept of another server.
type Destination struct {
	Server     matrix.ServerName
	Pos        int64     // events up to here have been delivered
	RetryAt    time.Time // do not try before; zero if it is well
	Failures   int       // in a row
	SignsSince time.Time // zero if it has never made an HTTP Signature
}

// Destinations returns all other servers that are known.
func (db *DB) Destinations(ctx context.Context) ([]Destination, error) {
	rows, err := db.Read(ctx).Raw("SELECT server, pos, retry_at, failures, signs_since FROM destinations").Rows()
	if err != nil {
		return nil, fmt.Errorf("read destinations: %w", err)
	}
	defer rows.Close()
	var all []Destination
	for rows.Next() {
		var d Destination
		var retryAt, signsSince int64
		if err := rows.Scan(&d.Server, &d.Pos, &retryAt, &d.Failures, &signsSince); err != nil {
			return nil, err
		}
		d.RetryAt, d.SignsSince = timeOf(retryAt), timeOf(signsSince)
		all = append(all, d)
	}
	return all, rows.Err()
}

// AddDestination notes a server that has been delivered everything up to pos, unless it is known already.
func (db *DB) AddDestination(ctx context.Context, server matrix.ServerName, pos int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("INSERT INTO destinations (server, pos) VALUES (?, ?) ON CONFLICT (server) DO NOTHING", server, pos).Error
	})
}

// MoveDestinations stores how far the servers have been delivered. A position never goes back.
func (db *DB) MoveDestinations(ctx context.Context, positions map[matrix.ServerName]int64) error {
	if len(positions) == 0 {
		return nil
	}
	return db.Write(ctx, func(tx *Tx) error {
		for server, pos := range positions {
			if err := tx.Exec("UPDATE destinations SET pos = ? WHERE server = ? AND pos < ?", pos, server, pos).Error; err != nil {
				return fmt.Errorf("move destination %s: %w", server, err)
			}
		}
		return nil
	})
}

// SetBackoff stores when server may be tried again; a zero time and no failures say that it is well.
func (db *DB) SetBackoff(ctx context.Context, server matrix.ServerName, retryAt time.Time, failures int) error {
	return db.Write(ctx, func(tx *Tx) error {
		pos := db.Position() // a server that is new has nothing coming from before
		return tx.Exec(`INSERT INTO destinations (server, pos, retry_at, failures) VALUES (?, ?, ?, ?)
			ON CONFLICT (server) DO UPDATE SET retry_at = excluded.retry_at, failures = excluded.failures`,
			server, pos, millisOf(retryAt), failures).Error
	})
}

// SetSigns notes that server makes HTTP Signatures, since at unless that is known already.
func (db *DB) SetSigns(ctx context.Context, server matrix.ServerName, at time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec(`INSERT INTO destinations (server, pos, signs_since) VALUES (?, ?, ?)
			ON CONFLICT (server) DO UPDATE SET signs_since = excluded.signs_since WHERE destinations.signs_since = 0`,
			server, db.Position(), millisOf(at)).Error
	})
}

// ServerKey is a signing key of another server.
type ServerKey struct {
	KeyID      matrix.KeyID
	Key        ed25519.PublicKey
	ValidUntil time.Time // as the server said; for an expired key, ExpiredAt
	ExpiredAt  time.Time // zero if it is in use
}

// ServerKeys returns all keys that we have ever had of server.
func (db *DB) ServerKeys(ctx context.Context, server matrix.ServerName) ([]ServerKey, error) {
	rows, err := db.Read(ctx).Raw("SELECT key_id, public_key, valid_until, expired_at FROM server_keys WHERE server = ?", server).Rows()
	if err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", server, err)
	}
	defer rows.Close()
	var keys []ServerKey
	for rows.Next() {
		var k ServerKey
		var key []byte
		var validUntil, expiredAt int64
		if err := rows.Scan(&k.KeyID, &key, &validUntil, &expiredAt); err != nil {
			return nil, err
		}
		k.Key, k.ValidUntil, k.ExpiredAt = key, timeOf(validUntil), timeOf(expiredAt)
		keys = append(keys, k)
	}
	return keys, rows.Err()
}

// StoreServerKeys stores keys of server in place of what was known of the same key IDs, and the answer they came in.
func (db *DB) StoreServerKeys(ctx context.Context, server matrix.ServerName, keys []ServerKey, answer KeyAnswer) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, k := range keys {
			if err := tx.Exec(`INSERT INTO server_keys (server, key_id, public_key, valid_until, expired_at) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key, valid_until = excluded.valid_until, expired_at = excluded.expired_at`,
				server, k.KeyID, []byte(k.Key), millisOf(k.ValidUntil), millisOf(k.ExpiredAt)).Error; err != nil {
				return fmt.Errorf("store key %s of %s: %w", k.KeyID, server, err)
			}
		}
		return tx.Exec(`INSERT INTO server_key_answers (server, answer, valid_until, fetched_at) VALUES (?, ?, ?, ?)
			ON CONFLICT (server) DO UPDATE SET answer = excluded.answer, valid_until = excluded.valid_until, fetched_at = excluded.fetched_at`,
			server, []byte(answer.JSON), millisOf(answer.ValidUntil), millisOf(answer.FetchedAt)).Error
	})
}

// KeyAnswer is a server's own statement of its keys, with its signatures.
type KeyAnswer struct {
	JSON       json.RawMessage
	ValidUntil time.Time
	FetchedAt  time.Time
}

// KeyAnswer returns the last statement that server made of its keys, or ErrNotFound.
func (db *DB) KeyAnswer(ctx context.Context, server matrix.ServerName) (KeyAnswer, error) {
	var a KeyAnswer
	var raw []byte
	var validUntil, fetchedAt int64
	err := db.Read(ctx).Raw("SELECT answer, valid_until, fetched_at FROM server_key_answers WHERE server = ?", server).Row().Scan(&raw, &validUntil, &fetchedAt)
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, gorm.ErrRecordNotFound) {
		return a, ErrNotFound
	}
	a.JSON, a.ValidUntil, a.FetchedAt = raw, timeOf(validUntil), timeOf(fetchedAt)
	return a, err
}

// millisOf and timeOf keep the zero time as 0.
func millisOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// JoinedServers returns all servers, our own among them, with a user joined to a room that we know.
func (db *DB) JoinedServers(ctx context.Context) ([]matrix.ServerName, error) {
	var servers []matrix.ServerName
	err := db.Read(ctx).Raw("SELECT DISTINCT server FROM memberships WHERE membership = 'join'").Scan(&servers).Error
	return servers, err
}

// RoomsForServer returns the rooms with an event of a later position than pos in which a user of server is joined.
func (db *DB) RoomsForServer(ctx context.Context, server matrix.ServerName, pos int64) ([]matrix.RoomID, error) {
	var rooms []matrix.RoomID
	err := db.Read(ctx).Raw(`SELECT room_id FROM rooms WHERE pos > ? AND EXISTS
		(SELECT 1 FROM memberships WHERE memberships.room = rooms.num AND server = ? AND membership = 'join')`, pos, server).Scan(&rooms).Error
	return rooms, err
}
