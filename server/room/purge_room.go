package room

import (
	"context"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// RoomPurge asks for a whole room to be deleted from this server.
type RoomPurge struct {
	Room matrix.RoomID
	// Forced has the users of this server leave first; otherwise a room in which there are any is refused.
	Forced      bool
	RequestedBy matrix.UserID
}

// PurgeRoom stores a purge of a whole room, which is done in the background, and returns its ID. Errors: M_NOT_FOUND, M_FORBIDDEN (legal hold),
// M_BAD_STATE (users of this server are in the room).
func (s *Service) PurgeRoom(ctx context.Context, q RoomPurge) (string, error) {
	r, err := s.Room(ctx, q.Room)
	if err != nil {
		return "", err
	}
	if err := s.mayPurge(ctx, q.Room); err != nil {
		return "", err
	}
	if n := len(r.Snapshot().Local); n > 0 && !q.Forced {
		return "", matrix.BadState("%d users of this server are in the room: have them leave, or make them", n)
	}
	job := &storage.PurgeJob{ID: newPurgeID(), Room: q.Room, Kind: storage.PurgeRoom, Forced: q.Forced, RequestedBy: q.RequestedBy,
		Status: storage.PurgeWaiting, Created: s.o.Now()}
	return job.ID, s.addPurge(ctx, job)
}

func (s *Service) purgeRoom(ctx context.Context, job *storage.PurgeJob) error {
	r, err := s.pin(ctx, job.Room)
	switch {
	case errors.Is(err, errNoRoom):
		return nil
	case errors.Is(err, errBeingDeleted): // it was begun before
	case err != nil:
		return err
	default:
		defer r.pins.Add(-1)
		if err := s.emptyRoom(ctx, r, job); err != nil {
			return err
		}
		if err := s.closeRoom(ctx, r, job); err != nil {
			return err
		}
	}
	for more := true; more; {
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		if more, err = s.o.DB.EraseRoom(ctx, job, s.purgeBatch, s.o.Now()); err != nil {
			return err
		}
	}
	s.dropErased(job.Room)
	return s.o.DB.ForgetReceipts(ctx, job.Room)
}

// emptyRoom has all users of this server leave a room. Who cannot leave as the room's rules want it is out all the same, in the end.
func (s *Service) emptyRoom(ctx context.Context, r *Room, job *storage.PurgeJob) error {
	members, err := s.o.DB.RoomMembers(ctx, r.Num, s.o.ServerName, "")
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Membership != matrix.Join && m.Membership != matrix.Invite && m.Membership != matrix.Knock {
			continue
		}
		if m.Membership == matrix.Join && !job.Forced {
			return matrix.BadState("a user of this server has joined the room meanwhile")
		}
		if err := s.boundary(ctx, job); err != nil {
			return err
		}
		if held, err := s.o.DB.IsHeld(ctx, storage.HoldRoom, string(r.ID)); err != nil {
			return err
		} else if held {
			return storage.ErrHeld
		}
		if err := s.Leave(ctx, MemberRequest{Room: r.ID, Sender: m.User}); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.o.Log.Info("have a user leave a room that is to be deleted", "room", r.ID, "user", m.User, "err", err)
		}
		if m.Membership == matrix.Join {
			job.LeftUsers = append(job.LeftUsers, m.User)
		}
	}
	job.Total, _, err = s.o.DB.CountDoomed(ctx, r.Num, storage.PurgeCriterion{Before: storage.Place(lastPlace), Pos: lastPlace.Depth})
	return err
}

// closeRoom has nobody use the room any more. Who of this server is still in it is out.
func (s *Service) closeRoom(ctx context.Context, r *Room, job *storage.PurgeJob) error {
	return s.step(ctx, r, job, func(u *update, _ *storage.PurgeStep) error {
		if len(u.snap.Local) > 0 && !job.Forced {
			return matrix.BadState("a user of this server has joined the room meanwhile")
		}
		for user, num := range u.snap.Local {
			u.add.Members = append(u.add.Members, storage.MemberChange{Membership: storage.Membership{
				Room: r.ID, RoomNum: r.Num, User: user, Membership: matrix.Leave, Num: num}})
		}
		u.snap.Local = map[matrix.UserID]int64{}
		u.setFlags(storage.BeingDeleted, 0)
		return nil
	})
}

// dropErased forgets a room whose row has gone.
func (s *Service) dropErased(id matrix.RoomID) {
	s.mu.Lock()
	delete(s.rooms, id)
	s.epoch.Add(1)
	s.mu.Unlock()
	s.related.clear()
	s.forgetUsers()
}
