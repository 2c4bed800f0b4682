package storage

import (
	"context"
	"database/sql"
	"errors"
)

// Fact reads a small fact about this server; ErrNotFound if it was never set.
func (db *DB) Fact(ctx context.Context, name string) (string, error) {
	var value string
	err := db.Read(ctx).Raw("SELECT value FROM facts WHERE name = ?", name).Row().Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", ErrNotFound
	}
	return value, err
}

// SetFact stores a small fact about this server in place of what was there.
func (db *DB) SetFact(ctx context.Context, name, value string) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value).Error
	})
}
