package room

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// job is a function that waits for its turn in a room.
type job struct {
	ctx context.Context
	fn  func(u *update) error
	err error
	// alone is set if fn must not share its write with others.
	alone bool
	done  chan bool // true: it is done, and err is set; false: run the queue yourself
}

const (
	// maxJobs is the most functions that share one write.
	maxJobs = 64
	// writeTimeout bounds the reads of one turn; functions must not wait for anything else.
	writeTimeout = 30 * time.Second
	// maxMoved is how often a room may have moved on before we give up.
	maxMoved = 20
)

// update runs fn with the room to itself and writes what fn adds to it. It returns fn's error, after which nothing of what fn did remains, or that
// of the write. fn must not wait for anything but reads from the database, and not call update; it may be run
// several times, each on a new update, when another process has moved the room on. Errors: M_NOT_FOUND (room).
func (s *Service) update(ctx context.Context, room matrix.RoomID, fn func(u *update) error) error {
	r, err := s.pin(ctx, room)
	if err != nil {
		return err
	}
	defer r.pins.Add(-1)
	return s.run(ctx, r, fn)
}

// updateNew is update for a room that may not have a row yet: it gets one if fn succeeds. u.snap.stored tells.
func (s *Service) updateNew(ctx context.Context, room matrix.RoomID, version *matrix.RoomVersion, fn func(u *update) error) error {
	r, err := s.pin(ctx, room)
	if err == nil {
		defer r.pins.Add(-1)
		return s.run(ctx, r, fn)
	}
	if !errors.Is(err, errNoRoom) {
		return err
	}
	num, err := s.o.DB.EventNums(ctx, 1)
	if err != nil {
		return err
	}
	row := storage.Room{Num: num, ID: room, Version: version}
	r = s.adopt(row, emptySnapshot(row), s.epoch.Load())
	if r == nil {
		return fmt.Errorf("room %s: %w", room, storage.ErrMoved)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.pins.Add(-1) == 0 && !r.Snapshot().stored {
			delete(s.rooms, room)
		}
	}()
	return s.run(ctx, r, fn)
}

func emptySnapshot(row storage.Room) *Snapshot {
	return &Snapshot{row: row, JoinRule: matrix.JoinRuleInvite, HistoryVisibility: visibilityShared,
		Local: map[matrix.UserID]int64{}, Servers: map[matrix.ServerName]int{}}
}

// run queues fn. Who finds nobody running the queue runs it, once: it then hands that over to the next in the queue.
func (s *Service) run(ctx context.Context, r *Room, fn func(u *update) error) error {
	return s.runSigned(ctx, r, fn)
}

// runAlone is run for a function that needs all that was done before it to be in the database.
func (s *Service) runAlone(ctx context.Context, r *Room, fn func(u *update) error) error {
	return s.runJob(r, &job{ctx: ctx, fn: fn, alone: true, done: make(chan bool, 1)})
}

func (s *Service) runJob(r *Room, j *job) error {
	r.mu.Lock()
	r.queue = append(r.queue, j)
	lead := !r.busy
	r.busy = true
	r.mu.Unlock()
	if !lead && <-j.done {
		return j.err
	}
	r.mu.Lock()
	n := min(len(r.queue), maxJobs)
	for i := range n { // who wants to be alone is alone
		if r.queue[i].alone {
			n = max(i, 1)
			break
		}
	}
	jobs := slices.Clone(r.queue[:n]) // j is the first: those before it have been run by others
	r.queue = r.queue[n:]
	r.mu.Unlock()
	s.runJobs(r, jobs)
	for _, other := range jobs[1:] {
		other.done <- true
	}
	r.mu.Lock()
	if len(r.queue) > 0 {
		r.queue[0].done <- false
	} else {
		r.busy = false
		r.queue = nil
	}
	r.mu.Unlock()
	return j.err
}

// runJobs runs the functions and writes what they added, until the room does not move meanwhile. An event whose transaction ID was used
// before cannot be written: the functions are run again, and then look for it in the database.
func (s *Service) runJobs(r *Room, jobs []*job) {
	// The work of several callers does not end because one of them has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(jobs[0].ctx), writeTimeout)
	defer cancel()
	err := s.tryJobs(ctx, r, jobs, 0)
	for moved := 1; errors.Is(err, storage.ErrMoved) && moved < maxMoved; moved++ {
		if err = s.reload(ctx, r); err == nil {
			err = s.tryJobs(ctx, r, jobs, moved)
		}
	}
	if err == nil {
		return
	}
	for _, j := range jobs {
		if j.err == nil || errors.Is(j.err, storage.ErrMoved) {
			j.err = err
		}
	}
}

// tryJobs leaves the error of each function in its job and returns that of the write.
func (s *Service) tryJobs(ctx context.Context, r *Room, jobs []*job, moved int) error {
	u := newUpdate(ctx, s, r, moved)
	if u.snap.row.Flags&storage.BeingDeleted != 0 {
		return errBeingDeleted
	}
	for _, j := range jobs {
		if j.err = j.ctx.Err(); j.err != nil {
			continue
		}
		before := *u
		if j.err = call(j.fn, u); errors.Is(j.err, storage.ErrMoved) {
			return j.err
		} else if j.err != nil {
			u.restore(before)
		}
	}
	if !u.dirty {
		return nil
	}
	return u.commit()
}

// call turns a panic into an error: others wait for this goroutine.
func call(fn func(*update) error, u *update) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return fn(u)
}

// reload reads the room anew, because another process has written to it.
func (s *Service) reload(ctx context.Context, r *Room) error {
	row, err := s.o.DB.RoomByID(ctx, r.ID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // it is still to be created
	}
	if err != nil {
		return err
	}
	snap, err := s.load(ctx, row)
	if err != nil {
		return err
	}
	r.Num = row.Num
	r.replace(snap)
	s.forgetUsers()
	return nil
}

// pending is a write that waits for its turn.
type pending struct {
	append *storage.RoomAppend
	ring   func() storage.Change // after the write, before the commit
	apply  func()                // after the commit, before the bell
	done   chan error
}

// write hands p to the database together with what other rooms have to write at that moment, or alone if that has failed.
func (s *Service) write(p *pending, alone bool) error {
	if alone {
		err := s.o.DB.Write(context.Background(), func(tx *storage.Tx) error { return writeAll(tx, []*pending{p}) })
		return errors.Join(err, p.append.Err)
	}
	s.writeMu.Lock()
	s.pending = append(s.pending, p)
	lead := !s.writing
	s.writing = true
	s.writeMu.Unlock()
	if lead {
		s.writePending()
	}
	return <-p.done
}

func (s *Service) writePending() {
	var mine []*pending
	take := func() {
		if mine != nil {
			return
		}
		s.writeMu.Lock()
		defer s.writeMu.Unlock()
		mine, s.pending, s.writing = s.pending, nil, false
	}
	err := s.o.DB.Write(context.Background(), func(tx *storage.Tx) error {
		take()
		return writeAll(tx, mine)
	})
	take()
	if err != nil && len(mine) > 1 {
		err = fmt.Errorf("%w, or another room with it: %w", storage.ErrMoved, err) // each builds again, and writes alone
	}
	for _, p := range mine {
		p.done <- errors.Join(err, p.append.Err)
	}
}

func writeAll(tx *storage.Tx, all []*pending) error {
	appends := make([]*storage.RoomAppend, len(all))
	for i, p := range all {
		appends[i] = p.append
	}
	if err := tx.AppendRooms(appends); err != nil {
		return err
	}
	for _, p := range all {
		if p.append.Err == nil {
			tx.Ring(p.ring())
			tx.AfterCommit(p.apply)
		}
	}
	return nil
}
