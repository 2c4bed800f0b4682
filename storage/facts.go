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

// InitFact stores a fact unless it is there already, and returns what is there then: several processes that ask get the
// same.
func (db *DB) InitFact(ctx context.Context, name, value string) (string, error) {
	stored, err := db.Fact(ctx, name)
	if !errors.Is(err, ErrNotFound) {
		return stored, err
	}
	err = db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", name, value).Error; err != nil {
			return err
		}
		return tx.Raw("SELECT value FROM facts WHERE name = ?", name).Row().Scan(&stored)
	})
	return stored, err
}
