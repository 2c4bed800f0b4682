package storage_test

import (
	"context"
	"errors"
	"testing"

	"gorm.io/gorm"

	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestRowOfAnEndedContextIsAnErrorAndNoPanic(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		var n int
		err := db.Snapshot(t.Context(), func(tx *gorm.DB) error {
			cancel()
			if err := tx.WithContext(ctx).Raw("SELECT 41").Row().Scan(&n); !errors.Is(err, context.Canceled) {
				t.Errorf("in a snapshot: got %v", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if err := db.Read(ctx).Raw("SELECT 42").Row().Scan(&n); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := db.Read(t.Context()).Raw("SELECT 43").Row().Scan(&n); err != nil || n != 43 {
			t.Errorf("got %d, %v", n, err)
		}
	})
}
