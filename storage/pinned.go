package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"gorm.io/gorm"
)

// maxStatements bounds the statements that a pinned connection keeps prepared.
const maxStatements = 512

// pinned is SQLite's one writing connection, with its statements kept prepared on it. database/sql prepares a statement anew for
// each transaction that uses it, which cost more than a tenth of every write. It is for one goroutine at a time.
type pinned struct {
	conn       *sql.Conn
	statements map[string]*sql.Stmt

	// The same connection without database/sql, for what every write does: see exec.
	raw    *sqlite3.Conn
	direct map[string]*sqlite3.Stmt
}

func newPinned(conn *sql.Conn) (*pinned, error) {
	p := &pinned{conn: conn, statements: map[string]*sql.Stmt{}, direct: map[string]*sqlite3.Stmt{}}
	err := conn.Raw(func(c any) error {
		own, ok := c.(driver.Conn)
		if !ok {
			return fmt.Errorf("the connection is a %T", c)
		}
		p.raw = own.Raw()
		return nil
	})
	return p, err
}

// exec runs a statement that gives no rows, past GORM and database/sql, and returns how many rows it changed. Its errors are those
// that GORM gives.
func (p *pinned) exec(query string, args []any) (changed int64, err error) {
	s, err := p.directStatement(query)
	if err != nil {
		return 0, err
	}
	for i, arg := range args {
		if err := bind(s, i+1, arg); err != nil {
			return 0, fmt.Errorf("bind value %d: %w", i+1, err)
		}
	}
	if err := s.Exec(); err != nil {
		if errors.Is(err, sqlite3.CONSTRAINT_UNIQUE) || errors.Is(err, sqlite3.CONSTRAINT_PRIMARYKEY) {
			err = gorm.ErrDuplicatedKey
		}
		return 0, err
	}
	return p.raw.Changes(), nil
}

func (p *pinned) directStatement(query string) (*sqlite3.Stmt, error) {
	if s, ok := p.direct[query]; ok {
		return s, nil
	}
	if len(p.direct) >= maxStatements {
		if err := p.forgetDirect(); err != nil {
			return nil, err
		}
	}
	s, _, err := p.raw.PrepareFlags(query, sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, err
	}
	p.direct[query] = s
	return s, nil
}

func (p *pinned) forgetDirect() error {
	var errs []error
	for query, s := range p.direct {
		errs = append(errs, s.Close())
		delete(p.direct, query)
	}
	return errors.Join(errs...)
}

// bind sets the parameter n, counted from 1.
func bind(s *sqlite3.Stmt, n int, value any) error {
	switch v := value.(type) {
	case nil:
		return s.BindNull(n)
	case int64:
		return s.BindInt64(n, v)
	case string:
		return s.BindText(n, v)
	case []byte:
		return s.BindBlob(n, v)
	case int:
		return s.BindInt(n, v)
	case bool:
		return s.BindBool(n, v)
	}
	switch v := reflect.ValueOf(value); v.Kind() { // types of our own
	case reflect.String:
		return s.BindText(n, v.String())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return s.BindInt64(n, v.Int())
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return s.BindInt64(n, int64(v.Uint()))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return s.BindBlob(n, v.Bytes())
		}
	}
	return fmt.Errorf("cannot store a %T", value)
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

func (p *pinned) close() error { return errors.Join(p.forgetDirect(), p.forget(), p.conn.Close()) }

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
	pin *pinned // nil on PostgreSQL
}

func (db *DB) begin(ctx context.Context) (*transaction, error) {
	if db.dialect == PostgreSQL {
		tx := db.write.WithContext(ctx).Begin()
		return &transaction{DB: tx}, tx.Error
	}
	tx := &transaction{db.write, db.pin} // its one connection
	_, err := tx.exec("BEGIN IMMEDIATE")
	return tx, err
}

// handle is what a write is given: one that starts each statement afresh.
func (t *transaction) handle() *gorm.DB {
	if t.pin != nil {
		return t.DB // is one already
	}
	return t.Session(&gorm.Session{NewDB: true, Context: context.Background()})
}

// exec runs a statement that gives no rows and returns how many rows it changed. It is Exec for what is done often.
func (t *transaction) exec(query string, args ...any) (changed int64, err error) {
	if t.pin != nil {
		return t.pin.exec(query, args)
	}
	result := t.Exec(query, args...)
	return result.RowsAffected, result.Error
}

func (t *transaction) commit() error {
	if t.pin == nil {
		return t.Commit().Error
	}
	_, err := t.exec("COMMIT")
	return err
}

func (t *transaction) rollback() error {
	if t.pin == nil {
		return t.Rollback().Error
	}
	_, err := t.exec("ROLLBACK")
	return err
}
