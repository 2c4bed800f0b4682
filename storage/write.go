package storage

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"gorm.io/gorm"
)

// maxBatch is the largest number of writes that share one commit: it bounds how long the first of them waits.
const maxBatch = 512

// Tx is one write under way. It is valid only inside the function given to [DB.Write], on that goroutine.
type Tx struct {
	*gorm.DB
	batch   *batch
	changes []Change
	after   []func()
}

// Dialect tells which database this is.
func (tx *Tx) Dialect() Dialect { return tx.batch.db.dialect }

// Next gives n stream positions and returns the first of them. They are in commit order: no reader ever sees one of them
// before all lower ones.
func (tx *Tx) Next(n int) (first int64, err error) { return tx.batch.next(int64(n)) }

// Ring adds a change to what the bell announces after the commit.
func (tx *Tx) Ring(c Change) { tx.changes = append(tx.changes, c) }

// AfterCommit has fn run after the commit and before the bell, in commit order, on the writer's goroutine: it must be
// quick and must not write. It is not run when the write is rolled back.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

type job struct {
	fn   func(*Tx) error
	done chan error
	tx   *Tx
	err  error
}

// panicked carries a panic of a write's function to the goroutine that asked for the write.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic in a write: %v\n%s", p.value, p.stack) }

// Write runs fn in a transaction and returns nil once it is durable. fn must be short and must not wait for anything but
// the database; when it returns an error, nothing of it remains and Write returns that error as it is. fn may run
// although ctx ends meanwhile; Write then still waits and reports what happened, so that a caller never guesses.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	j := &job{fn: fn, done: make(chan error, 1)}
	select {
	case <-db.stop: // checked first: select picks at random among those that are ready
		return ErrClosed
	default:
	}
	select {
	case db.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.stop:
		return ErrClosed
	}
	var err error
	select {
	case err = <-j.done:
	case <-db.writerDone:
		select { // the writer may have answered just before it ended
		case err = <-j.done:
		default:
			return ErrClosed
		}
	}
	if p, ok := err.(*panicked); ok {
		panic(p)
	}
	return err
}

func (db *DB) runWriter() {
	defer db.running.Done()
	defer close(db.writerDone)
	for {
		select {
		case j := <-db.jobs:
			db.runBatch(db.collect(j))
		case <-db.stop:
			for {
				select {
				case j := <-db.jobs:
					db.runBatch(db.collect(j))
				default:
					return
				}
			}
		}
	}
}

// collect takes all the writes that wait already; it never waits for more.
func (db *DB) collect(first *job) []*job {
	jobs := []*job{first}
	for len(jobs) < maxBatch {
		select {
		case j := <-db.jobs:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// batch is one transaction that several writes share.
type batch struct {
	db       *DB
	tx       *transaction
	position int64 // last one given
	stored   int64 // what the counter's row says in this transaction
	locked   bool  // this transaction holds the counter
	foreign  bool  // another process has taken positions since our last commit
}

func (db *DB) runBatch(jobs []*job) {
	b := &batch{db: db}
	err := b.run(jobs)
	if err == nil {
		commit := Commit{}
		if b.foreign {
			commit.Changes = append(commit.Changes, Change{Foreign: true})
		}
		if b.locked {
			db.position.Store(b.position)
		}
		for _, j := range jobs {
			if j.err != nil {
				continue
			}
			for _, fn := range j.tx.after {
				fn()
			}
			commit.Changes = append(commit.Changes, j.tx.changes...)
		}
		commit.Position = db.position.Load()
		if len(commit.Changes) > 0 {
			db.ring(commit)
		}
	}
	for _, j := range jobs {
		if j.err == nil {
			j.err = err
		}
		j.done <- j.err
	}
}

func (b *batch) run(jobs []*job) (err error) {
	if b.tx, err = b.db.begin(context.Background()); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	kept := 0
	for i, j := range jobs {
		alone := len(jobs) == 1
		if b.runJob(j, i, alone); j.err == nil {
			kept++
		} else if alone {
			return b.tx.rollback()
		}
	}
	if kept > 0 {
		err = b.storePosition()
	}
	if err != nil || kept == 0 {
		return errors.Join(err, b.tx.rollback())
	}
	if err := b.tx.commit(); err != nil {
		// SQLite leaves the transaction open after some failures, such as a full disk; the rollback then ends it, and
		// otherwise says that there is none.
		_ = b.tx.rollback()
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// runJob runs one write in a savepoint (none is needed when it is alone) and leaves its error in j.err.
func (b *batch) runJob(j *job, i int, alone bool) {
	j.tx = &Tx{DB: b.tx.Session(&gorm.Session{NewDB: true, Context: context.Background()}), batch: b}
	locked := b.locked
	defer func() {
		if v := recover(); v != nil {
			j.err = &panicked{v, debug.Stack()}
		}
		if j.err != nil && !locked {
			b.locked = false // rolled back with the rest: another process may take positions meanwhile
		}
		if alone {
			return
		}
		if j.err != nil {
			if err := b.tx.Exec("ROLLBACK TO SAVEPOINT w").Error; err != nil {
				b.db.log.Error("roll back one write", "err", err)
			}
		}
		if err := b.tx.Exec("RELEASE SAVEPOINT w").Error; err != nil && j.err == nil {
			j.err = fmt.Errorf("release savepoint: %w", err)
		}
	}()
	if !alone {
		if j.err = b.tx.Exec("SAVEPOINT w").Error; j.err != nil {
			return
		}
	}
	j.err = j.fn(j.tx)
}
