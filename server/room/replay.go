package room

import (
	"context"
	"errors"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// defaultReplayBatch is how many events one write of a replay judges again.
const defaultReplayBatch = 200

// replayed is how far what happened in a partial room has been gone through again: the room as it would be at that point, had its state
// been whole from the start. It does not change; each step makes a new one.
type replayed struct {
	at    storage.PartialPlace
	begun bool
	pos   int64 // of the last event with a position
	tip   []*storage.Event
	root  storage.StateRoot
}

// replay goes through what has happened since our join again, in the order in which it did, with before as the state before the join, and makes
// the outcome the room's current state. Each event gets the state before it, is judged by it anew, and is shown or hidden accordingly; what was
// noted as the room's state at past positions is replaced. It is done in steps of bounded size; what comes in between is done in the last.
func (s *Service) replay(ctx context.Context, r *Room, p *partialRoom, join *storage.Event, before storage.StateRoot) error {
	var done replayed
	for finished := false; !finished; {
		var next replayed
		err := s.runAlone(ctx, r, func(u *update) (err error) {
			if u.snap.partial == nil || u.snap.partial.Join != p.Join {
				return errOtherPartial
			}
			next, finished, err = u.replayStep(done, join, before)
			return err
		})
		if err != nil {
			return err
		}
		done = next
	}
	return nil
}

// replayStep goes on from where done stands, to the end if that is near.
func (u *update) replayStep(done replayed, join *storage.Event, before storage.StateRoot) (replayed, bool, error) {
	u.whole = true
	batch := u.s.replayBatch
	waiting, err := u.s.o.DB.PartialEvents(u.ctx, u.room.Num, done.at, batch+1)
	if err != nil {
		return done, false, err
	}
	last := len(waiting) <= batch
	waiting = waiting[:min(len(waiting), batch)]
	change := &u.add.Partial
	change.From = done.pos + 1
	if !done.begun {
		done.begun = true
		change.From = join.Pos
		if err := u.again(&done, join, before, 0); err != nil {
			return done, false, err
		}
	}
	for _, w := range waiting {
		e, err := u.s.event(u.ctx, w.Num, u.fresh)
		if errors.Is(err, storage.ErrNotFound) { // deleted meanwhile
			done.at = w.At
			continue
		}
		if err != nil {
			return done, false, err
		}
		before, err := u.stateAgain(e, w.Told)
		if err != nil {
			return done, false, err
		}
		flags, err := u.judgeAgain(&done, e, before)
		if err != nil {
			return done, false, err
		}
		if err := u.again(&done, e, before, flags); err != nil {
			return done, false, err
		}
		done.at = w.At
	}
	change.To = done.pos
	u.dirty = true
	if last {
		change.To = max(u.snap.Pos, done.pos)
		return done, true, u.becomeWhole(&done)
	}
	return done, false, nil
}

// stateAgain resolves the states after the event's prev_events.
func (u *update) stateAgain(e *storage.Event, told []storage.StateRoot) (storage.StateRoot, error) {
	roots := slices.Clone(told)
	for _, id := range e.PrevEvents() {
		p, err := u.known(id)
		if err != nil {
			return storage.StateRoot{}, err
		}
		if p == nil || p.Flags&storage.Outlier != 0 {
			continue // its state has been told
		}
		root, err := u.after(p)
		if err != nil {
			return storage.StateRoot{}, err
		}
		if !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	if len(roots) == 0 {
		return e.Before, nil
	}
	return u.s.resolve(u.ctx, u.room, roots, u.fresh)
}

// judgeAgain judges an event as accept does, in view of the whole state.
func (u *update) judgeAgain(done *replayed, e *storage.Event, before storage.StateRoot) (storage.EventFlags, error) {
	verdict, err := u.judgeByAuthEvents(e.Event)
	if err == nil && verdict == nil {
		verdict, err = u.authorizeIn(e.Event, before)
	}
	switch {
	case err != nil:
		return 0, err
	case verdict != nil:
		return storage.Rejected, nil
	case e.Flags&storage.SoftFailed != 0 && !u.isRecommended(e.Event):
		return storage.SoftFailed, nil
	case before == done.root:
		return 0, nil
	}
	refused, err := u.authorizeIn(e.Event, done.root)
	if err != nil || refused == nil {
		return 0, err
	}
	return storage.SoftFailed, nil
}

// again puts an event into the replay, and what has become of it into the database.
func (u *update) again(done *replayed, e *storage.Event, before storage.StateRoot, flags storage.EventFlags) error {
	if before != e.Before || flags != e.Flags {
		changed := *e
		changed.Before, changed.Flags = before, flags
		switch {
		case changed.Hidden():
			changed.Pos = 0
			if !e.Hidden() {
				u.unrelate(e)
			}
		case e.Hidden():
			changed.Pos = storage.NewPos
		}
		u.stage(&changed, false)
		if e.Hidden() && !changed.Hidden() {
			u.lives, u.straight = append(u.lives, &changed), append(u.straight, false)
			u.relate(&changed)
			if err := u.redactions(&changed); err != nil {
				return err
			}
		}
		e = &changed
	}
	if e.Hidden() {
		_, err := u.after(e) // so that its nodes are stored, as RootAfter promises
		return err
	}
	tip, err := u.nextTip(done.tip, e)
	if err != nil {
		return err
	}
	root, err := u.rootOf(tip)
	if err != nil {
		return err
	}
	if e.Pos > 0 {
		done.pos = max(done.pos, e.Pos)
		if root != done.root {
			u.add.Partial.Roots = append(u.add.Partial.Roots, storage.RootAt{Pos: e.Pos, Root: root})
		}
	}
	done.tip, done.root = tip, root
	return nil
}

// unrelate takes back the relation of an event that is not shown any more.
func (u *update) unrelate(e *storage.Event) {
	if r, ok := relationOf(e.Event); ok {
		u.add.Unrelated = append(u.add.Unrelated, storage.Relation{Parent: r.EventID, Num: e.Num})
	}
}

// becomeWhole makes the outcome of a replay the room's tip and current state.
func (u *update) becomeWhole(done *replayed) error {
	p := u.snap.partial
	u.snap.Tip, u.snap.Depth = done.tip, 0
	for _, t := range done.tip {
		u.snap.Depth = max(u.snap.Depth, t.Depth())
	}
	// The rows of members say what the partial state says, and where that is silent, what was told of the state before the join.
	rows, err := u.rowsState(p)
	if err != nil {
		return err
	}
	u.endPartial()
	counted, err := u.s.countMembers(u.ctx, u.snap.row.Num)
	if err != nil {
		return err
	}
	u.snap.Servers, u.snap.JoinedCount, u.snap.InvitedCount = counted.servers, counted.joined, counted.invited
	u.snap.Root = rows
	if err := u.s.decode(u.ctx, &u.snap, u.fresh); err != nil {
		return err
	}
	u.resetWindow = true
	u.add.OldRoot = storage.StateRoot{} // so that the new state is noted in any case
	return u.setRoot(done.root, nil, false)
}

// rowsState is the state that the rows of members show at the end of a replay.
func (u *update) rowsState(p *partialRoom) (storage.StateRoot, error) {
	join, err := u.s.event(u.ctx, p.Join, u.fresh)
	if err != nil {
		return storage.StateRoot{}, err
	}
	diffs, err := u.s.o.DB.DiffState(u.ctx, u.room.Num, p.Before, u.snap.Root, storage.AllState, &u.fresh.nodes)
	if err != nil {
		return storage.StateRoot{}, err
	}
	changes := make([]storage.StateEntry, 0, len(diffs))
	for _, d := range diffs {
		e, err := u.s.event(u.ctx, firstSet(d.B, d.A), u.fresh)
		if err != nil {
			return storage.StateRoot{}, err
		}
		changes = append(changes, storage.StateEntry{Type: e.Type(), Key: stateKey(e.Event), Num: d.B})
	}
	return u.s.o.DB.UpdateState(u.ctx, u.room.Num, join.Before, changes, &u.fresh.nodes)
}

func firstSet(a, b int64) int64 {
	if a != 0 {
		return a
	}
	return b
}

// memberCounts are how many members a room has by its rows.
type memberCounts struct {
	servers         map[matrix.ServerName]int
	joined, invited int
}

func (s *Service) countMembers(ctx context.Context, room int64) (memberCounts, error) {
	c := memberCounts{servers: map[matrix.ServerName]int{}}
	counts, err := s.o.DB.MemberCounts(ctx, room)
	for _, n := range counts {
		switch n.Membership {
		case matrix.Join:
			c.servers[n.Server] = n.Count
			c.joined += n.Count
		case matrix.Invite:
			c.invited += n.Count
		}
	}
	return c, err
}
