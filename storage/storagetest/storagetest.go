// Package storagetest gives tests real databases: SQLite in a temporary directory, and PostgreSQL from a throw-away
// cluster that the test process starts itself, on a unix socket, where PostgreSQL's programs are on the machine.
//
// With PARLEY_TEST_POSTGRES=required a missing PostgreSQL fails the tests instead of skipping them.
package storagetest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"parley.im/parley/storage"
)

// New opens an empty SQLite database that goes with the test.
func New(t testing.TB) *storage.DB {
	t.Helper()
	return open(t, SQLiteURL(t))
}

// NewPostgreSQL opens an empty PostgreSQL database that goes with the test, or skips it: see PostgreSQLURL.
func NewPostgreSQL(t testing.TB) *storage.DB {
	t.Helper()
	return open(t, PostgreSQLURL(t))
}

// Each runs the test on an empty SQLite and on an empty PostgreSQL.
func Each(t *testing.T, test func(t *testing.T, db *storage.DB)) {
	t.Run("sqlite", func(t *testing.T) { test(t, New(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, NewPostgreSQL(t)) })
}

// EachURL is Each for tests that open the database themselves.
func EachURL(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, SQLiteURL(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, PostgreSQLURL(t)) })
}

// SQLiteURL is the URL of a database file that does not exist yet, in a directory that goes with the test.
func SQLiteURL(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "parley.db")
}

func open(t testing.TB, url string) *storage.DB {
	t.Helper()
	db, err := storage.Open(context.Background(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// PostgreSQLURL is the URL of an empty PostgreSQL database that goes with the test. The test is skipped where there is no
// PostgreSQL, unless PARLEY_TEST_POSTGRES=required.
func PostgreSQLURL(t testing.TB) string {
	t.Helper()
	c, err := cluster()
	if err != nil {
		if os.Getenv("PARLEY_TEST_POSTGRES") == "required" {
			t.Fatalf("PARLEY_TEST_POSTGRES=required: %v", err)
		}
		t.Skipf("no PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("test%d", c.databases.Add(1))
	c.exec(t, "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")
	t.Cleanup(func() { c.exec(t, "DROP DATABASE "+name+" WITH (FORCE)") })
	return c.url(name)
}

// server is a running cluster. It ends with the test process: a shell that holds the other end of its standard input
// stops it and deletes its directory, even when the tests are killed.
type server struct {
	dir       string
	alive     io.Closer // the shell's standard input, open until this process ends
	databases atomic.Int64
}

// The cluster is the one value that all tests of a process share, because starting one takes seconds.
var cluster = sync.OnceValues(startCluster)

func (c *server) url(database string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&user=parley&sslmode=disable", database, c.dir)
}

func (c *server) exec(t testing.TB, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.url("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

const supervise = `
"$1" -D "$2/data" -k "$2" -c listen_addresses= -c fsync=off -c max_connections=200 -c shared_buffers=32MB >"$2/log" 2>&1 &
cat >/dev/null
kill -QUIT $!
wait
rm -rf "$2"
`

func startCluster() (*server, error) {
	initdb, err := program("initdb")
	if err != nil {
		return nil, err
	}
	postgres, err := program("postgres")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "parley-pg") // short: a socket's path may have 107 bytes
	if err != nil {
		return nil, err
	}
	attr, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(initdb, "-D", filepath.Join(dir, "data"), "-U", "parley", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	cmd.SysProcAttr = attr
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	cmd = exec.Command("/bin/sh", "-c", supervise, "sh", postgres, dir)
	cmd.SysProcAttr = attr
	cmd.Dir = dir
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &server{dir: dir, alive: alive}
	for start := time.Now(); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, c.url("postgres"))
		if err == nil {
			err = conn.Close(ctx)
		}
		cancel()
		if err == nil {
			return c, nil
		}
		if time.Since(start) > 60*time.Second {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			return nil, fmt.Errorf("PostgreSQL did not start: %w\n%s", err, log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// program finds one of PostgreSQL's programs, also where Debian hides them.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return "", fmt.Errorf("%s is neither in PATH nor in /usr/lib/postgresql", name)
	}
	return found[len(found)-1], nil
}

// unprivileged gives dir to a user without rights when we are root, because PostgreSQL refuses to run as root.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return &syscall.SysProcAttr{Setpgid: true}, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		if account, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}
