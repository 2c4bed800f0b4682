package room

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// # How history is purged
//
// A purge is a row, so that it survives a crash, and is done in steps of bounded size, each of which is one write. Every step can be done again:
// after a crash the purge begins anew and finds what is left.
//
//  1. The room is told what was purged: from then on nobody can read it, and no history from before is fetched.
//  2. Messages go; state events leave the graph and become outliers with the flag Purged. The tip of the room stays, without content.
//  3. It is found out which of the latter are still in a state that can be asked for, or in an auth chain, and which nodes of states.
//  4. The others go. Whoever refers to one of them meanwhile takes it back: see [update.rescue].
//  5. So do the nodes.
//  6. Files that nothing names any more are deleted, and the space is given back. That it is owed is noted from the beginning on.
//
// Each step goes through [Service.update]: it is not taken if something else is written to the room meanwhile, also by another process, and
// what is being built upon the events that it takes is built again.

const (
	// defaultPurgeBatch is how many events one step takes.
	defaultPurgeBatch = 100
	// purgeClaim is how long a purge is left to the process that is at it after it was last heard of.
	purgeClaim = 2 * time.Minute
	// purgePause is how often purges are looked for, apart from those that are asked for here.
	purgePause = 15 * time.Second
	// purgeRemembered is how long finished purges can be asked for.
	purgeRemembered = 30 * 24 * time.Hour
	// sweepBatch is how many nodes of states are looked at in one step.
	sweepBatch = 500
)

// HistoryPurge asks for the history of a room before a point to be deleted: an event, which stays, or a time. One of the two is set.
type HistoryPurge struct {
	Room        matrix.RoomID
	Event       matrix.EventID
	Before      time.Time
	KeepLocal   bool // what users of this server sent stays
	RequestedBy matrix.UserID
}

func newPurgeID() string {
	b := make([]byte, 12)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// PurgeHistory stores a purge of a room's history, which is done in the background, and returns its ID. Errors: M_NOT_FOUND (room or event),
// M_FORBIDDEN (legal hold), M_INVALID_PARAM.
func (s *Service) PurgeHistory(ctx context.Context, q HistoryPurge) (string, error) {
	r, err := s.Room(ctx, q.Room)
	if err != nil {
		return "", err
	}
	if err := s.mayPurge(ctx, q.Room); err != nil {
		return "", err
	}
	snap := r.Snapshot()
	job := &storage.PurgeJob{ID: newPurgeID(), Room: q.Room, Kind: storage.PurgeHistory, KeepLocal: q.KeepLocal, RequestedBy: q.RequestedBy,
		Status: storage.PurgeWaiting, Created: s.o.Now(), What: storage.PurgeCriterion{Pos: snap.Pos}}
	switch {
	case q.Event != "":
		e, err := s.o.DB.EventByID(ctx, q.Event)
		if errors.Is(err, storage.ErrNotFound) || err == nil && (e.RoomNum != r.Num || e.Flags&storage.Outlier != 0) {
			return "", matrix.NotFound("there is no such event in the history of this room")
		}
		if err != nil {
			return "", err
		}
		job.What.Before = storage.Place(before(e))
	case !q.Before.IsZero():
		if q.Before.After(s.o.Now()) {
			return "", matrix.InvalidParam("the time lies in the future")
		}
		job.What.BeforeMS = q.Before.UnixMilli()
	default:
		return "", matrix.MissingParam("an event or a time before which the history is to be deleted is missing")
	}
	return job.ID, s.addPurge(ctx, job)
}

// mayPurge refuses rooms under a legal hold and those that are being purged.
func (s *Service) mayPurge(ctx context.Context, room matrix.RoomID) error {
	if held, err := s.o.DB.IsHeld(ctx, storage.HoldRoom, string(room)); err != nil {
		return err
	} else if held {
		return matrix.Forbidden("the room is under a legal hold")
	}
	if busy, err := s.o.DB.UnfinishedPurge(ctx, room); err != nil {
		return err
	} else if busy {
		return matrix.BadRequest("a purge of this room is under way")
	}
	return nil
}

func (s *Service) addPurge(ctx context.Context, job *storage.PurgeJob) error {
	if err := s.o.DB.AddPurgeJob(ctx, job); err != nil {
		return err
	}
	s.o.Log.Info("purge asked for", "room", job.Room, "purge", job.ID, "kind", job.Kind, "user", job.RequestedBy)
	select {
	case s.purges <- struct{}{}:
	default:
	}
	return nil
}

// RunPurges does the purges that are asked for and those of retention, until ctx ends.
func (s *Service) RunPurges(ctx context.Context) error {
	tick := time.NewTicker(purgePause)
	defer tick.Stop()
	var retained time.Time
	if s.o.DB.Dialect() == storage.SQLite {
		if err := s.o.DB.ReleasePurges(ctx); err != nil {
			return err
		}
	}
	for {
		if err := s.Purge(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.Error("purge", "err", err)
		}
		if c := &s.o.Config.Retention; c.Enabled && s.o.Now().Sub(retained) >= c.Interval {
			retained = s.o.Now()
			if err := s.scheduleRetention(ctx); err != nil && ctx.Err() == nil {
				s.o.Log.Error("look for expired messages", "err", err)
			}
			continue
		}
		select {
		case <-s.purges:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Purge does all purges that wait, and deletes what was kept for holds that are lifted. It returns when there is nothing left to do.
func (s *Service) Purge(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = s.o.DB.IndexEventMedia(ctx, sweepBatch); err != nil {
			return err
		}
	}
	owed, err := s.o.DB.OwesSpace(ctx) // by a purge that ended when the process did
	if err != nil {
		return err
	}
	asked, did := owed, owed
	for {
		now := s.o.Now()
		job, err := s.o.DB.ClaimPurgeJob(ctx, now, now.Add(purgeClaim))
		if err != nil {
			return err
		}
		if job == nil {
			break
		}
		did, asked = true, asked || job.Kind != storage.PurgeRetention
		if asked && !owed {
			if err := s.o.DB.OweSpace(ctx); err != nil {
				return err
			}
			owed = true
		}
		if err := s.runPurge(ctx, job); err != nil {
			return fmt.Errorf("purge %s of %s: %w", job.ID, job.Room, err)
		}
	}
	for {
		n, err := s.o.DB.DropUnheld(ctx, s.o.Now(), s.purgeBatch)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		did = true
	}
	if !did {
		return nil
	}
	if s.o.DeleteBlobs != nil {
		if err := s.o.DeleteBlobs(ctx); err != nil {
			return err
		}
	}
	if err := s.o.DB.ForgetPurgeJobs(ctx, s.o.Now().Add(-purgeRemembered)); err != nil {
		return err
	}
	if err := s.o.DB.Reclaim(ctx, asked); err != nil || !asked {
		return err
	}
	return s.o.DB.SpaceGiven(ctx)
}

// runPurge does one purge. Its error is worth trying again later.
func (s *Service) runPurge(ctx context.Context, job *storage.PurgeJob) error {
	log := s.o.Log.With("room", job.Room, "purge", job.ID)
	start := time.Now()
	job.Status = storage.PurgeRunning
	var err error
	if job.Kind == storage.PurgeRoom {
		err = s.purgeRoom(ctx, job)
	} else {
		err = s.purgeHistory(ctx, job)
	}
	var final *matrix.Error
	switch {
	case errors.Is(err, storage.ErrHeld):
		log.Info("purge waits for a legal hold to be lifted")
		job.Claimed = time.Time{}
		return s.o.DB.SavePurgeJob(ctx, job)
	case errors.Is(err, errStillPartial):
		job.Claimed = s.o.Now().Add(purgeClaim)
		return s.o.DB.SavePurgeJob(ctx, job)
	case errors.As(err, &final):
		job.Status, job.Error = storage.PurgeFailed, final.Message
	case err != nil:
		return err
	default:
		job.Status, job.Error = storage.PurgeDone, ""
	}
	job.Ended = s.o.Now()
	log.Info("purge ended", "kind", job.Kind, "status", job.Status, "events", job.Events, "nodes", job.Nodes, "files", job.Media, "took", time.Since(start))
	return s.o.DB.SavePurgeJob(ctx, job)
}

// boundary is called between two steps of a purge.
func (s *Service) boundary(ctx context.Context, job *storage.PurgeJob) error {
	job.Claimed = s.o.Now().Add(purgeClaim)
	if s.atBoundary != nil {
		if err := s.atBoundary(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *Service) purgeHistory(ctx context.Context, job *storage.PurgeJob) error {
	r, err := s.pin(ctx, job.Room)
	if errors.Is(err, errNoRoom) || errors.Is(err, errBeingDeleted) {
		return nil // it has gone meanwhile, and its history with it
	}
	if err != nil {
		return err
	}
	defer r.pins.Add(-1)
	if err := s.beginPurge(ctx, r, job); err != nil {
		return err
	}
	at := storage.Place{Num: -1}
	for {
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		places, err := s.o.DB.Doomed(ctx, r.Num, job.What, at, s.purgeBatch)
		if err != nil {
			return err
		}
		if len(places) == 0 {
			break
		}
		if err := s.takeOut(ctx, r, job, places); err != nil {
			return err
		}
		at = places[len(places)-1]
	}
	for more := true; more; {
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		if more, err = s.o.DB.TrimStates(ctx, r.Num, sweepBatch); err != nil {
			return err
		}
	}
	if err := s.sweepRoom(ctx, r, job); err != nil {
		return err
	}
	return s.o.DB.ForgetReceipts(ctx, r.ID)
}

// errStillPartial says that a purge has to wait until the members of the room have been fetched.
var errStillPartial = errors.New("the members of the room are still being fetched")

// step runs one step of a purge; the room is under no legal hold.
func (s *Service) step(ctx context.Context, r *Room, job *storage.PurgeJob, fn func(u *update, step *storage.PurgeStep) error) error {
	return s.run(ctx, r, func(u *update) error {
		if held, err := s.o.DB.IsHeld(u.ctx, storage.HoldRoom, string(r.ID)); err != nil {
			return err
		} else if held {
			return storage.ErrHeld
		}
		if u.snap.PartialState && job.Kind != storage.PurgeRoom {
			return errStillPartial
		}
		step := &storage.PurgeStep{Job: job, Now: s.o.Now()}
		if err := fn(u, step); err != nil {
			return err
		}
		u.add.Purge, u.dirty = step, true
		return nil
	})
}

// beginPurge has the room say what was purged.
func (s *Service) beginPurge(ctx context.Context, r *Room, job *storage.PurgeJob) error {
	total, gap, err := s.o.DB.CountDoomed(ctx, r.Num, job.What)
	if err != nil {
		return err
	}
	if job.Total == 0 {
		job.Total = total
	}
	return s.step(ctx, r, job, func(u *update, step *storage.PurgeStep) error {
		point := storage.PurgePoint{Gap: gap}
		if job.Kind == storage.PurgeHistory && !job.KeepLocal { // what retention takes has expired in any case
			point.Before, point.BeforeMS, point.Pos = job.What.Before, job.What.BeforeMS, job.What.Pos
			if e, err := s.o.DB.EventsHere(u.ctx, []int64{point.Before.Num}); err != nil {
				return err
			} else if len(e) > 0 {
				point.FromMS = e[0].OriginServerTS()
			}
		}
		merged := u.snap.row.Purged.Merge(point)
		u.snap.row.Purged = merged
		step.Purged = &merged
		return nil
	})
}

// takeOut takes events out of the graph: messages go, state events become outliers for now.
func (s *Service) takeOut(ctx context.Context, r *Room, job *storage.PurgeJob, places []storage.Place) error {
	nums := make([]int64, len(places))
	for i, p := range places {
		nums[i] = p.Num
	}
	return s.step(ctx, r, job, func(u *update, step *storage.PurgeStep) error {
		events, err := s.o.DB.EventsHere(u.ctx, nums)
		if err != nil {
			return err
		}
		for _, e := range events {
			if changed := u.fresh.byNum(e.Num); changed != nil {
				e = changed
			}
			tip := false
			if i := slices.IndexFunc(u.snap.Tip, func(t *storage.Event) bool { return t.Num == e.Num }); i >= 0 {
				tip, e = true, u.snap.Tip[i]
			}
			switch {
			case e.RoomNum != r.Num, e.Flags&storage.Outlier != 0, job.KeepLocal && e.Sender().Server() == s.o.ServerName:
			case tip && (e.IsState() || e.Flags&storage.Purged != 0):
			case tip:
				step.Prune = append(step.Prune, e)
				pruned := *e
				pruned.Event, pruned.Pos, pruned.Flags = e.Redact(), 0, e.Flags|storage.Purged
				u.replace(e, &pruned)
			case e.IsState():
				out := *e
				out.Pos, out.Flags, out.Before = 0, e.Flags|storage.Outlier|storage.Purged, storage.StateRoot{}
				u.replace(e, &out)
			default:
				step.Delete = append(step.Delete, e)
			}
		}
		return nil
	})
}

// sweepRoom deletes what nothing needs any more.
func (s *Service) sweepRoom(ctx context.Context, r *Room, job *storage.PurgeJob) error {
	if err := s.boundary(ctx, job); err != nil {
		return err
	}
	mark, err := s.o.DB.MarkRoom(ctx, r.Num)
	if err != nil {
		return err
	}
	for after := int64(0); ; {
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		nums, err := s.o.DB.PurgedRows(ctx, r.Num, after, s.purgeBatch)
		if err != nil {
			return err
		}
		if len(nums) == 0 {
			break
		}
		after = nums[len(nums)-1]
		if err := s.dropRows(ctx, r, job, nums, mark); err != nil {
			return err
		}
	}
	for after := []byte(nil); ; {
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		if after, err = mark.SweepNodes(ctx, job, after, sweepBatch); err != nil || after == nil {
			return err
		}
	}
}

// dropRows deletes those rows that a purge has left and that are not needed. The others are outliers like all others from now on.
func (s *Service) dropRows(ctx context.Context, r *Room, job *storage.PurgeJob, nums []int64, mark *storage.PurgeMark) error {
	return s.step(ctx, r, job, func(u *update, step *storage.PurgeStep) error {
		events, err := s.o.DB.EventsHere(u.ctx, nums)
		if err != nil {
			return err
		}
		for _, e := range events {
			if changed := u.fresh.byNum(e.Num); changed != nil {
				e = changed
			}
			switch {
			case e.Flags&storage.Purged == 0 || e.Flags&storage.Outlier == 0 || e.RoomNum != r.Num:
			case mark.Needed[e.Num]:
				u.keep(e)
			default:
				step.Delete = append(step.Delete, e)
			}
		}
		return nil
	})
}

// keep takes the flag Purged from an outlier.
func (u *update) keep(e *storage.Event) {
	kept := *e
	kept.Flags &^= storage.Purged
	u.replace(e, &kept)
	if u.add.Purge != nil {
		step := *u.add.Purge
		step.Delete = slices.DeleteFunc(slices.Clone(step.Delete), func(d *storage.Event) bool { return d.Num == e.Num })
		u.add.Purge = &step
	}
}

// rescue takes back events, and their auth chains, that a purge has taken out of the graph and would delete if nothing referred to them. What is
// not here is passed over.
func (u *update) rescue(ids []matrix.EventID) error {
	for len(ids) > 0 {
		id := ids[len(ids)-1]
		ids = ids[:len(ids)-1]
		e, err := u.known(id)
		if err != nil {
			return nil // of another room
		}
		if e == nil || e.Flags&storage.Purged == 0 || e.Flags&storage.Outlier == 0 {
			continue
		}
		u.keep(e)
		ids = append(ids, e.AuthEvents()...)
	}
	return nil
}

// rescueNums is rescue for events that are to be part of a state.
func (u *update) rescueNums(entries []storage.StateEntry) error {
	purged := map[int64]bool{}
	for after := int64(0); ; {
		nums, err := u.s.o.DB.PurgedRows(u.ctx, u.room.Num, after, u.s.purgeBatch)
		if err != nil {
			return err
		}
		if len(nums) == 0 {
			break
		}
		for _, num := range nums {
			purged[num] = true
		}
		after = nums[len(nums)-1]
	}
	if len(purged) == 0 {
		return nil
	}
	for _, entry := range entries {
		if !purged[entry.Num] {
			continue
		}
		e, err := u.s.event(u.ctx, entry.Num, u.fresh)
		if err == nil {
			err = u.rescue([]matrix.EventID{e.ID()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
