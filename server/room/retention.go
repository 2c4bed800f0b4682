package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// typeRetention is the state event that says how long a room's messages live (MSC1763).
const typeRetention = "m.room.retention"

// RetentionConfig is the server's policy on how long messages live. A room may ask for a lifetime with m.room.retention; what holds is
// within the bounds for its class. State of rooms is no message and does not expire as long as it is the current one.
type RetentionConfig struct {
	// Enabled has messages expire at all, and m.room.retention heeded.
	Enabled bool `mapstructure:"enabled" yaml:"enabled"`
	// Direct is for rooms that nobody but two people have ever been in or invited to, and that not everyone may join.
	Direct RetentionPolicy `mapstructure:"direct" yaml:"direct"`
	// Private is for all other rooms that not everyone may join.
	Private RetentionPolicy `mapstructure:"private" yaml:"private"`
	// Public is for rooms that everyone may join.
	Public RetentionPolicy `mapstructure:"public" yaml:"public"`
	// Interval is how often expired messages are deleted. They cannot be read from the moment they expire.
	Interval time.Duration `mapstructure:"interval" yaml:"interval"`
}

// RetentionPolicy bounds the lifetime of messages in one class of rooms. 0 is: none.
type RetentionPolicy struct {
	// Default is the lifetime in rooms that do not ask for one.
	Default time.Duration `mapstructure:"default" yaml:"default"`
	// Min is the shortest lifetime, whatever a room asks for.
	Min time.Duration `mapstructure:"min" yaml:"min"`
	// Max is the longest lifetime, also in rooms that do not ask for one.
	Max time.Duration `mapstructure:"max" yaml:"max"`
}

// Validate refuses bounds that nothing could keep to.
func (c RetentionConfig) Validate() error {
	for _, p := range []struct {
		name   string
		policy RetentionPolicy
	}{{"direct", c.Direct}, {"private", c.Private}, {"public", c.Public}} {
		switch {
		case p.policy.Default < 0 || p.policy.Min < 0 || p.policy.Max < 0:
			return fmt.Errorf("%s: a lifetime cannot be negative", p.name)
		case p.policy.Max > 0 && (p.policy.Min > p.policy.Max || p.policy.Default > p.policy.Max):
			return fmt.Errorf("%s: max is shorter than min or default", p.name)
		case p.policy.Default > 0 && p.policy.Default < p.policy.Min:
			return fmt.Errorf("%s: default is shorter than min", p.name)
		}
	}
	return nil
}

// retention is what a room asks for; 0 is nothing.
type retention struct{ min, max time.Duration }

// maxLifetimeMS bounds what is taken for a lifetime: 100 years.
const maxLifetimeMS = 100 * 366 * 24 * 3600 * 1000

// parseRetention reads m.room.retention; e may be nil. What is not valid counts as nothing.
func parseRetention(e *storage.Event) (r retention) {
	if e == nil {
		return r
	}
	var content struct {
		Min *int64 `json:"min_lifetime"`
		Max *int64 `json:"max_lifetime"`
	}
	if json.Unmarshal(e.Content(), &content) != nil {
		return r
	}
	for _, l := range []struct {
		ms *int64
		to *time.Duration
	}{{content.Min, &r.min}, {content.Max, &r.max}} {
		if l.ms == nil {
			continue
		}
		if *l.ms <= 0 || *l.ms > maxLifetimeMS {
			return retention{}
		}
		*l.to = time.Duration(*l.ms) * time.Millisecond
	}
	if r.max > 0 && r.min > r.max {
		return retention{}
	}
	return r
}

// within is the lifetime that holds for a room that asks for r; 0: messages do not expire.
func (p RetentionPolicy) within(r retention) time.Duration {
	l := r.max
	if l == 0 {
		l = p.Default
	}
	if l == 0 {
		l = p.Max
	}
	if l == 0 {
		return 0
	}
	l = max(l, r.min, p.Min)
	if p.Max > 0 {
		l = min(l, p.Max)
	}
	return l
}

// lifetime is how long messages live in a room; 0 is for ever.
func (s *Service) lifetime(ctx context.Context, r *Room, snap *Snapshot) (time.Duration, error) {
	c := &s.o.Config.Retention
	if !c.Enabled || snap.retention == (retention{}) && c.Direct == (RetentionPolicy{}) && c.Private == (RetentionPolicy{}) && c.Public == (RetentionPolicy{}) {
		return 0, nil
	}
	switch {
	case snap.JoinRule == matrix.JoinRulePublic:
		return c.Public.within(snap.retention), nil
	case c.Direct == c.Private:
		return c.Private.within(snap.retention), nil
	}
	people, err := s.o.DB.StateCount(ctx, r.Num, snap.Root, storage.MembersState)
	if err != nil {
		return 0, err
	}
	if people <= 2 {
		return c.Direct.within(snap.retention), nil
	}
	return c.Private.within(snap.retention), nil
}

// Past says what of a room's history may not be read any more: what was purged, even if it is not deleted yet, and what has expired.
type Past struct {
	point   storage.PurgePoint
	expired int64 // messages with an older origin_server_ts (ms) have expired; 0: none have
}

// Past finds out what of a room may not be read any more.
func (s *Service) Past(ctx context.Context, r *Room) (Past, error) {
	snap := r.Snapshot()
	p := Past{point: snap.row.Purged}
	lifetime, err := s.lifetime(ctx, r, snap)
	if lifetime > 0 {
		p.expired = s.o.Now().Add(-lifetime).UnixMilli()
	}
	return p, err
}

// IsZero reports whether all may be read.
func (p Past) IsZero() bool { return p == Past{} }

// Hides reports whether an event may not be read.
func (p Past) Hides(e *matrix.Event, num, pos int64) bool {
	if p.expired > 0 && e.OriginServerTS() < p.expired && !e.IsState() {
		return true
	}
	return p.point.Pos > 0 && p.point.Covers(storage.Place{Depth: e.Depth(), Num: num}, e.OriginServerTS(), pos)
}

// floor is the origin_server_ts (ms) before which mostly nothing may be read.
func (p Past) floor() int64 { return max(p.expired, p.point.BeforeMS) }

// GapAfter reports whether something was purged of what came into the timeline after a position.
func (p Past) GapAfter(pos int64) bool { return pos < p.point.Gap }

// isOver reports whether an event that is not here is of a part of the history that was purged or has expired: it must not be fetched.
func (p Past) isOver(e *matrix.Event) bool { return p.Hides(e, 0, 0) }

// wasTaken reports whether an event that was sent to us as new is of what was purged or has expired.
func (p Past) wasTaken(e *matrix.Event) bool {
	return p.isOver(e) && (p.point.FromMS == 0 || e.OriginServerTS() < max(p.point.FromMS, p.point.BeforeMS, p.expired))
}

// IsPast reports whether an event has expired, or was purged, so that nobody may read it any more.
func (s *Service) IsPast(ctx context.Context, e *storage.Event) (bool, error) {
	r, err := s.Room(ctx, e.RoomID())
	if errors.Is(err, errNoRoom) || errors.Is(err, errBeingDeleted) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	p, err := s.Past(ctx, r)
	return p.Hides(e.Event, e.Num, e.Pos), err
}

// scheduleRetention makes purges for the rooms in which messages have expired.
func (s *Service) scheduleRetention(ctx context.Context) error {
	if !s.o.Config.Retention.Enabled {
		return nil
	}
	asking := storage.AsksRetention
	if c := &s.o.Config.Retention; c.Direct != (RetentionPolicy{}) || c.Private != (RetentionPolicy{}) || c.Public != (RetentionPolicy{}) {
		asking = 0 // the policy is for all rooms
	}
	after := matrix.RoomID("")
	for {
		ids, err := s.o.DB.RoomIDsWith(ctx, asking, after, 100)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		for _, id := range ids {
			if err := s.scheduleExpired(ctx, id); err != nil {
				return err
			}
		}
	}
}

func (s *Service) scheduleExpired(ctx context.Context, id matrix.RoomID) error {
	r, err := s.Room(ctx, id)
	if errors.Is(err, errNoRoom) || errors.Is(err, errBeingDeleted) {
		return nil
	}
	if err != nil {
		return err
	}
	snap := r.Snapshot()
	lifetime, err := s.lifetime(ctx, r, snap)
	if err != nil || lifetime == 0 {
		return err
	}
	before := s.o.Now().Add(-lifetime).UnixMilli()
	if some, err := s.o.DB.HasOlder(ctx, snap.row, before); err != nil || !some {
		return err
	}
	if busy, err := s.o.DB.UnfinishedPurge(ctx, id); err != nil || busy {
		return err
	}
	if held, err := s.o.DB.IsHeld(ctx, storage.HoldRoom, string(id)); err != nil || held {
		return err
	}
	return s.o.DB.AddPurgeJob(ctx, &storage.PurgeJob{ID: newPurgeID(), Room: id, Kind: storage.PurgeRetention, Status: storage.PurgeWaiting, Created: s.o.Now(),
		What: storage.PurgeCriterion{BeforeMS: before, Pos: snap.Pos}})
}
