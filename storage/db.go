// Package storage is the only room that knows GORM, SQL, a file path or a bucket.
//
// # One writer, many readers
//
// Every change goes through [DB.Write]. One of those who call it takes all the writes that are waiting, runs each in a savepoint of
// one transaction, and commits once: a group commit. On SQLite a commit costs an fsync and there is one writer anyway; on
// PostgreSQL it costs a round trip and an fsync. Either way many writes share one. A write that fails is rolled back to
// its savepoint and disturbs none of the others.
//
// Reads use [DB.Read], a pool of connections that see the last commit.
//
// # One stream
//
// Whatever a /sync or a sender to another server must notice carries a position from one counter, which [Tx.Next] gives
// inside the transaction, in commit order: a reader that sees position 8 also sees 7. [DB.Position] is the last one
// committed. Positions may have holes (a write that was rolled back, a server that was killed) but never come back.
//
// # The bell
//
// After the commit the [Change]s of the transaction are handed, in commit order, to everyone who called [DB.Listen]. A
// listener that misses one loses time, never a message: whatever must be delivered follows from the rows.
package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/ncruces/go-sqlite3/gormlite"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// ErrNotFound is returned by reads of a single row that is not there.
var ErrNotFound = errors.New("not found")

// ErrClosed is returned by writes after Close.
var ErrClosed = errors.New("the database is closed")

// Config says where the database is.
type Config struct {
	// URL is "sqlite:PATH" (a file that is made when missing) or "postgres://…" as libpq has it.
	URL string `mapstructure:"url"`
	// Readers is how many connections read at the same time; 0 means 4 on SQLite and 16 on PostgreSQL.
	Readers int `mapstructure:"readers"`
}

// Dialect is the kind of database.
type Dialect int

// The two databases Parley runs on.
const (
	SQLite Dialect = iota
	PostgreSQL
)

// DB is an open database, ready for use by many goroutines.
type DB struct {
	dialect Dialect
	read    *gorm.DB
	write   *gorm.DB
	close   []func() error
	log     *slog.Logger

	pin      *pinned      // nil on PostgreSQL
	position atomic.Int64 // last committed stream position
	reserved int64        // SQLite: positions up to this one are ours to give; only for who runs writes
	roomCaches

	writes   writeQueue
	stop     chan struct{} // ends watchOthers
	stopOnce sync.Once
	running  sync.WaitGroup

	listeners struct {
		sync.Mutex // held while the listeners are called, so that a removed one is never called again
		all        []*func(Commit)
	}
}

// Open opens the database, brings its tables up to date and starts the writer. Close must be called in the end.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*DB, error) {
	db := &DB{log: log, writes: writeQueue{idle: make(chan struct{})}, stop: make(chan struct{})}
	db.roomCaches = newRoomCaches()
	err := db.open(ctx, cfg)
	if err == nil {
		err = db.migrate(ctx)
	}
	if err == nil {
		err = db.loadPosition(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.closeHandles())
	}
	if db.dialect == PostgreSQL {
		db.running.Add(1)
		go db.watchOthers()
	}
	return db, nil
}

// open opens the handles and no more.
func (db *DB) open(ctx context.Context, cfg Config) error {
	switch scheme, rest, _ := strings.Cut(cfg.URL, ":"); scheme {
	case "sqlite":
		return db.openSQLite(rest, cfg.Readers)
	case "postgres", "postgresql":
		return db.openPostgreSQL(ctx, cfg.URL, cfg.Readers)
	default:
		return fmt.Errorf("database url must start with sqlite: or postgres:, not %q", scheme)
	}
}

// gormConfig: no transaction around single statements (Write has one), statements kept prepared where the driver does
// not do so itself, and no logging of SQL, which would carry content.
func gormConfig(prepare bool) *gorm.Config {
	return &gorm.Config{
		SkipDefaultTransaction: true,
		PrepareStmt:            prepare,
		Logger:                 logger.Discard,
		TranslateError:         true,
	}
}

func (db *DB) openSQLite(path string, readers int) error {
	db.dialect = SQLite
	if path == "" {
		return errors.New("database url sqlite: needs a path, such as sqlite:data/parley.db")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if readers <= 0 {
		readers = 4
	}
	// Not fullfsync, which is for macOS: synchronous=FULL syncs the log at each commit, so a commit survives power loss.
	const shared = "_pragma=busy_timeout(10000)&_pragma=temp_store(memory)&_pragma=cache_size(-4000)"
	const writing = "&_txlock=immediate&_pragma=synchronous(full)&_pragma=auto_vacuum(incremental)&_pragma=journal_mode(wal)" +
		"&_pragma=journal_size_limit(16777216)"
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?vfs=" + walVFSName + "&" + shared
	writer, err := driver.Open(dsn + writing)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	writer.SetMaxOpenConns(1)
	db.close = append(db.close, writer.Close)
	if err := writer.Ping(); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	reader, err := driver.Open(dsn + "&_pragma=query_only(on)")
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	reader.SetMaxOpenConns(readers)
	reader.SetMaxIdleConns(readers)
	reader.SetConnMaxIdleTime(5 * time.Minute)
	db.close = append(db.close, reader.Close)
	conn, err := writer.Conn(context.Background())
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if db.pin, err = newPinned(conn); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", path, err), conn.Close())
	}
	db.close = append(db.close, db.pin.close)
	if db.write, err = gorm.Open(gormlite.OpenDB(db.pin), gormConfig(false)); err != nil {
		return err
	}
	if db.read, err = gorm.Open(gormlite.OpenDB(reader), gormConfig(true)); err != nil {
		return err
	}
	if prepared, ok := db.read.ConnPool.(*gorm.PreparedStmtDB); ok {
		db.read.ConnPool = &sureDB{prepared}
		db.read.Statement.ConnPool = db.read.ConnPool
	}
	return nil
}

func (db *DB) openPostgreSQL(ctx context.Context, dsn string, readers int) error {
	db.dialect = PostgreSQL
	if readers <= 0 {
		readers = 16
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return err // pgx leaves the password out of it
	}
	cfg.MaxConns = int32(readers) + 1
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	db.close = append(db.close, func() error { pool.Close(); return nil })
	if err := pool.Ping(ctx); err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	handle := stdlib.OpenDBFromPool(pool)
	db.close = append(db.close, handle.Close)
	if db.write, err = gorm.Open(postgres.New(postgres.Config{Conn: handle}), gormConfig(false)); err != nil {
		return err
	}
	db.read = db.write
	return nil
}

// Dialect tells which database this is, for the few statements that differ.
func (db *DB) Dialect() Dialect { return db.dialect }

// Read returns a handle for reads outside any transaction. Rows must not leave this package.
func (db *DB) Read(ctx context.Context) *gorm.DB { return db.read.WithContext(ctx) }

// Snapshot runs fn in a read-only transaction, so that several reads see one and the same state.
func (db *DB) Snapshot(ctx context.Context, fn func(*gorm.DB) error) error {
	opts := &sql.TxOptions{ReadOnly: true}
	if db.dialect == PostgreSQL {
		opts.Isolation = sql.LevelRepeatableRead
	}
	return db.read.WithContext(ctx).Transaction(fn, opts)
}

// Position is the last committed stream position.
func (db *DB) Position() int64 { return db.position.Load() }

// Ping asks the database whether it is alive.
func (db *DB) Ping(ctx context.Context) error { return db.Read(ctx).Exec("SELECT 1").Error }

// Close waits for the writes under way, refuses later ones and closes the database.
func (db *DB) Close() error {
	db.stopOnce.Do(func() { close(db.stop) })
	db.running.Wait()
	db.writes.close()
	return errors.Join(db.giveBackPositions(), db.closeHandles())
}

func (db *DB) closeHandles() error {
	var errs []error
	for i := len(db.close) - 1; i >= 0; i-- {
		errs = append(errs, db.close[i]())
	}
	db.close = nil
	return errors.Join(errs...)
}
