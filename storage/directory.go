package storage

import (
	"context"
	"errors"
	"fmt"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// ErrTaken says that an alias exists already.
var ErrTaken = errors.New("the alias is taken")

// Alias is a name of a room on this server.
type Alias struct {
	Alias     matrix.RoomAlias
	RoomID    matrix.RoomID
	Creator   matrix.UserID
	CreatedMS int64
}

// CreateAlias adds an alias; the error is ErrTaken if there is one of that name, whatever it points to.
func (db *DB) CreateAlias(ctx context.Context, a Alias) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.CreateAlias(a) })
}

// CreateAlias is [DB.CreateAlias] within a write, for rooms that are created with their alias.
func (tx *Tx) CreateAlias(a Alias) error {
	r := tx.Exec("INSERT INTO aliases (alias, room_id, creator, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT (alias) DO NOTHING",
		a.Alias, a.RoomID, a.Creator, a.CreatedMS)
	if r.Error != nil {
		return fmt.Errorf("create alias: %w", r.Error)
	}
	if r.RowsAffected == 0 {
		return ErrTaken
	}
	return nil
}

// DeleteAlias removes an alias; the error is ErrNotFound if there is none.
func (db *DB) DeleteAlias(ctx context.Context, alias matrix.RoomAlias) error {
	return db.Write(ctx, func(tx *Tx) error {
		r := tx.Exec("DELETE FROM aliases WHERE alias = ?", alias)
		if r.Error == nil && r.RowsAffected == 0 {
			return ErrNotFound
		}
		return r.Error
	})
}

// MoveAliases points all aliases of one room to another, as a room upgrade does.
func (tx *Tx) MoveAliases(from, to matrix.RoomID) error {
	return tx.Exec("UPDATE aliases SET room_id = ? WHERE room_id = ?", to, from).Error
}

// Alias looks an alias up; the error is ErrNotFound if there is none.
func (db *DB) Alias(ctx context.Context, alias matrix.RoomAlias) (Alias, error) {
	var a Alias
	err := db.Read(ctx).Raw("SELECT alias, room_id, creator, created_ms FROM aliases WHERE alias = ?", alias).Take(&a).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		err = ErrNotFound
	}
	return a, err
}

// RoomAliases lists the aliases of a room on this server, in order.
func (db *DB) RoomAliases(ctx context.Context, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	var all []matrix.RoomAlias
	err := db.Read(ctx).Raw("SELECT alias FROM aliases WHERE room_id = ? ORDER BY alias", room).Scan(&all).Error
	return all, err
}

// SetPublished puts a room into a public list or takes it out. network is "" for the server's own list.
func (db *DB) SetPublished(ctx context.Context, network string, room matrix.RoomID, published bool) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.SetPublished(network, room, published) })
}

// SetPublished is [DB.SetPublished] within a write.
func (tx *Tx) SetPublished(network string, room matrix.RoomID, published bool) error {
	if published {
		return tx.Exec("INSERT INTO published_rooms (network, room_id) VALUES (?, ?) ON CONFLICT (network, room_id) DO NOTHING", network, room).Error
	}
	return tx.Exec("DELETE FROM published_rooms WHERE network = ? AND room_id = ?", network, room).Error
}

// Published reports whether a room is in the server's own public list.
func (db *DB) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	var n int
	err := db.Read(ctx).Raw("SELECT COUNT(*) FROM published_rooms WHERE network = '' AND room_id = ?", room).Row().Scan(&n)
	return n > 0, err
}

// PublishedRooms lists the rooms of a public list; with all, those of every network, each once.
func (db *DB) PublishedRooms(ctx context.Context, network string, all bool) ([]matrix.RoomID, error) {
	var rooms []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT DISTINCT room_id FROM published_rooms WHERE network = ? OR ? ORDER BY room_id", network, all).Scan(&rooms).Error
	return rooms, err
}
