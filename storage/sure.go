package storage

import (
	"context"
	"database/sql"

	"gorm.io/gorm"
)

// sureDB and sureTx are gorm's pools of prepared statements, but for one thing: when a statement cannot be prepared, because the
// context has ended or the database is closed, gorm gives back a row whose Scan panics. Here it has the error.
type sureDB struct{ *gorm.PreparedStmtDB }

type sureTx struct{ *gorm.PreparedStmtTX }

// QueryRowContext asks once more without preparing, which gives a row with the error, or the answer.
func (db *sureDB) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	row := db.PreparedStmtDB.QueryRowContext(ctx, query, args...)
	if *row == (sql.Row{}) {
		return db.ConnPool.QueryRowContext(ctx, query, args...)
	}
	return row
}

func (db *sureDB) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	pool, err := db.PreparedStmtDB.BeginTx(ctx, opts)
	if tx, ok := pool.(*gorm.PreparedStmtTX); ok && err == nil {
		return &sureTx{tx}, nil
	}
	return pool, err
}

func (tx *sureTx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	row := tx.PreparedStmtTX.QueryRowContext(ctx, query, args...)
	if *row == (sql.Row{}) {
		return tx.Tx.QueryRowContext(ctx, query, args...)
	}
	return row
}
