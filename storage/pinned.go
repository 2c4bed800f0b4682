package storage

import (
	"context"
	"database/sql"
	"errors"

	"gorm.io/gorm"
)

// maxStatements bounds the statements that a pinned connection keeps prepared.
const maxStatements = 512

// pinned is SQLite's one writing connection, with its statements kept prepared on it. database/sql prepares a statement anew for
// each transaction that uses it, which cost more than a tenth of every write. It is for one goroutine.
type pinned struct {
	conn       *sql.Conn
	statements map[string]*sql.Stmt
}

func (p *pinned) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := p.statements[query]; ok {
		return s, nil
	}
	if len(p.statements) >= maxStatements { // rare: start afresh rather than keep an order
		if err := p.forget(); err != nil {
			return nil, err
		}
	}
	s, err := p.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	p.statements[query] = s
	return s, nil
}

func (p *pinned) forget() error {
	var errs []error
	for query, s := range p.statements {
		errs = append(errs, s.Close())
		delete(p.statements, query)
	}
	return errors.Join(errs...)
}

func (p *pinned) close() error { return errors.Join(p.forget(), p.conn.Close()) }

// PrepareContext is for GORM.
func (p *pinned) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return p.conn.PrepareContext(ctx, query)
}

// ExecContext is for GORM.
func (p *pinned) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
}

// QueryContext is for GORM.
func (p *pinned) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}

// QueryRowContext is for GORM.
func (p *pinned) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s, err := p.statement(ctx, query)
	if err != nil {
		return p.conn.QueryRowContext(ctx, query, args...) // carries the error in the row
	}
	return s.QueryRowContext(ctx, args...)
}

// Commit and Rollback are there so that GORM knows itself in a transaction, where a nested one is a savepoint.
func (p *pinned) Commit() error { return errNested }

// Rollback: see Commit.
func (p *pinned) Rollback() error { return errNested }

var errNested = errors.New("the transaction belongs to the writer")

// transaction is one transaction on the writing connection.
type transaction struct {
	*gorm.DB
	commit, rollback func() error
}

func (db *DB) begin(ctx context.Context) (*transaction, error) {
	if db.dialect == PostgreSQL {
		tx := db.write.WithContext(ctx).Begin()
		if tx.Error != nil {
			return nil, tx.Error
		}
		return &transaction{tx, func() error { return tx.Commit().Error }, func() error { return tx.Rollback().Error }}, nil
	}
	tx := db.write.WithContext(ctx)
	run := func(statement string) func() error {
		return func() error { return tx.Exec(statement).Error }
	}
	if err := run("BEGIN IMMEDIATE")(); err != nil {
		return nil, err
	}
	return &transaction{tx, run("COMMIT"), run("ROLLBACK")}, nil
}
