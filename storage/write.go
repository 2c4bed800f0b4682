package storage

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

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

// exec is Exec for statements that are run often and give no rows; it returns how many rows were changed.
func (tx *Tx) exec(query string, args ...any) (changed int64, err error) {
	return tx.batch.tx.exec(query, args...)
}

// Ring adds a change to what the bell announces after the commit.
func (tx *Tx) Ring(c Change) { tx.changes = append(tx.changes, c) }

// AfterCommit has fn run after the commit and before the bell, in commit order, on the writer's goroutine, which is that of one of
// those who called Write: it must be quick and must not write. It is not run when the write is rolled back.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

type job struct {
	fn   func(*Tx) error
	done chan bool // true: err is set; false: run the writes that wait yourself
	tx   *Tx
	err  error
}

// writeQueue is the writes that wait for the one under way. Whoever finds none under way runs those that wait, on its own goroutine: to hand
// them to another one, and be woken by it, costs more than half of a small write.
type writeQueue struct {
	mu      sync.Mutex // guards all below
	waiting []*job
	busy    bool // somebody runs writes
	closed  bool
	idle    chan struct{} // closed when closed is set and nobody runs writes
}

// panicked carries a panic of a write's function to the goroutine that asked for the write.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic in a write: %v\n%s", p.value, p.stack) }

// Write runs fn in a transaction and returns nil once it is durable. fn must be short and must not wait for anything but
// the database; when it returns an error, nothing of it remains and Write returns that error as it is. fn may run
// although ctx ends meanwhile; Write then still waits and reports what happened, so that a caller never guesses. fn may run on the
// goroutine of another call of Write.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{fn: fn}
	q := &db.writes
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	lead := !q.busy
	q.busy = true
	if !lead {
		j.done = make(chan bool, 1)
	}
	q.waiting = append(q.waiting, j)
	q.mu.Unlock()
	if lead || !<-j.done {
		db.runWaiting(j)
	}
	if p, ok := j.err.(*panicked); ok {
		panic(p)
	}
	return j.err
}

// runWaiting runs the writes that wait, up to maxBatch of them, of which mine is the first, and has the next that came meanwhile go on.
func (db *DB) runWaiting(mine *job) {
	q := &db.writes
	q.mu.Lock()
	n := min(len(q.waiting), maxBatch)
	jobs := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	q.mu.Unlock()
	returned := false
	defer func() {
		if !returned { // a listener or an AfterCommit panicked: memory may not say what the rows say, so nobody may recover from it
			crash(recover())
		}
	}()
	db.runBatch(jobs)
	returned = true
	q.mu.Lock()
	if len(q.waiting) > 0 {
		q.waiting[0].done <- false
	} else {
		q.busy = false
		q.waiting = nil
		if q.closed {
			close(q.idle)
		}
	}
	q.mu.Unlock()
	for _, j := range jobs {
		if j != mine {
			j.done <- true
		}
	}
}

// crash ends the process with a panic that nobody can recover from.
func crash(v any) {
	stack := debug.Stack()
	go func() { panic(fmt.Sprintf("%v\n%s", v, stack)) }()
	select {}
}

// close refuses writes from now on and waits for those that are there.
func (q *writeQueue) close() {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		if !q.busy {
			close(q.idle)
		}
	}
	q.mu.Unlock()
	<-q.idle
}

// batch is one transaction that several writes share.
type batch struct {
	db *DB
	tx *transaction
	counter
	foreign bool // another process has taken positions since our last commit
}

// counter is how a batch stands with the counter of positions.
type counter struct {
	position int64 // last one given
	reserved int64 // SQLite: as DB.reserved
	stored   int64 // PostgreSQL: what the counter's row says in this transaction
	locked   bool  // PostgreSQL: this transaction holds the row
}

func (db *DB) runBatch(jobs []*job) {
	b := &batch{db: db, counter: counter{position: db.position.Load(), reserved: db.reserved}}
	err := b.run(jobs)
	if err == nil {
		commit := Commit{}
		if b.foreign {
			commit.Changes = append(commit.Changes, Change{Foreign: true})
		}
		if b.locked || db.dialect == SQLite {
			db.position.Store(b.position)
			db.reserved = b.reserved
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
	j.tx = &Tx{DB: b.tx.handle(), batch: b}
	before := b.counter
	defer func() {
		if v := recover(); v != nil {
			j.err = &panicked{v, debug.Stack()}
		}
		if j.err != nil {
			b.counter = before // rolled back with the rest: another process may take positions meanwhile
		}
		if alone {
			return
		}
		if j.err != nil {
			if _, err := b.tx.exec("ROLLBACK TO SAVEPOINT w"); err != nil {
				b.db.log.Error("roll back one write", "err", err)
			}
		}
		if _, err := b.tx.exec("RELEASE SAVEPOINT w"); err != nil && j.err == nil {
			j.err = fmt.Errorf("release savepoint: %w", err)
		}
	}()
	if !alone {
		if _, j.err = b.tx.exec("SAVEPOINT w"); j.err != nil {
			return
		}
	}
	j.err = j.fn(j.tx)
}
