package room

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// historyTimeout bounds how long a reader waits for other servers' history.
	historyTimeout = 20 * time.Second
	// historyRetry is how long a room whose history nobody gave is left alone.
	historyRetry = time.Minute
	// maxHistoryFrom is how many missing events are asked for at a time.
	maxHistoryFrom = 10
	// leastHistory is how many events are fetched at least, so that paging in small steps does not ask each time.
	leastHistory = 50
)

// fillHistory asks other servers for events of a room that are missing between two depths, about limit of them, within a time
// limit of its own. It reports whether any came; that none could be had is no error.
// Spec v1.19 server-server-api/#backfilling-and-retrieving-missing-events
func (s *Service) fillHistory(ctx context.Context, r *Room, lowest, highest int64, limit int) (bool, error) {
	if s.o.Remote == nil || !r.Snapshot().Joined() {
		return false, nil
	}
	if _, failed := s.foreign.noHistory.get(r.ID, s.o.Now()); failed {
		return false, nil
	}
	missing, err := s.o.DB.MissingPrevs(ctx, r.Num, highest, maxHistoryFrom)
	missing = slices.DeleteFunc(missing, func(m storage.MissingPrev) bool { return m.Depth <= lowest })
	if err != nil || len(missing) == 0 {
		return false, err
	}
	// One reader at a time: the second finds what the first has fetched.
	unlock, err := s.foreign.histories.lock(ctx, r.ID)
	if err != nil {
		return false, err
	}
	defer unlock()
	asking, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	for _, server := range s.whoToAsk(r, s.sendersOf(ctx, missing)...) {
		still, err := s.notInGraph(ctx, missing)
		if err != nil {
			return false, err
		}
		if len(still) < len(missing) {
			return true, nil
		}
		raw, err := s.o.Remote.Backfill(asking, server, r.ID, still, max(leastHistory, min(limit, maxBackfill)))
		if err != nil {
			s.o.Log.Debug("ask for history", "room", r.ID, "server", server, "err", err)
			continue
		}
		events, err := s.notOver(asking, r, parseEvents(raw, r.Version, r.ID, maxBackfill))
		if err != nil {
			return false, err
		}
		events = s.verifyEvents(asking, s.onlyNew(asking, events, false))
		if err := s.pull(asking, server, r, events, true); err != nil && ctx.Err() != nil {
			return false, err
		}
	}
	still, err := s.notInGraph(ctx, missing)
	if err == nil && len(still) == len(missing) {
		s.foreign.noHistory.put(r.ID, struct{}{}, s.o.Now().Add(historyRetry))
	}
	return len(still) < len(missing), err
}

// notOver leaves out events of a part of the room's history that was purged here or has expired. That they are missing is forgotten: they
// are not asked for again.
func (s *Service) notOver(ctx context.Context, r *Room, events []*matrix.Event) ([]*matrix.Event, error) {
	past, err := s.Past(ctx, r)
	if err != nil || past.IsZero() {
		return events, err
	}
	var over []matrix.EventID
	kept := slices.DeleteFunc(events, func(e *matrix.Event) bool {
		if past.isOver(e) {
			over = append(over, e.ID())
			return true
		}
		return false
	})
	return kept, s.o.DB.ForgetMissing(ctx, r.Num, over)
}

// notInGraph lists those of the missing events that are missing still.
func (s *Service) notInGraph(ctx context.Context, missing []storage.MissingPrev) ([]matrix.EventID, error) {
	var ids []matrix.EventID
	for _, m := range missing {
		if !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
	}
	here, err := s.o.DB.EventsByID(ctx, ids)
	for _, e := range here {
		if e.Flags&storage.Outlier == 0 {
			ids = slices.DeleteFunc(ids, func(id matrix.EventID) bool { return id == e.ID() })
		}
	}
	return ids, err
}

// sendersOf lists the servers of those who sent the events behind which something is missing: they should have it.
func (s *Service) sendersOf(ctx context.Context, missing []storage.MissingPrev) []matrix.ServerName {
	var servers []matrix.ServerName
	for _, m := range missing {
		if e, err := s.o.DB.Event(ctx, m.Num); err == nil && !slices.Contains(servers, e.Sender().Server()) {
			servers = append(servers, e.Sender().Server())
		}
	}
	return servers
}

// remoteTimestampToEvent asks other servers for an event that is closer to ts than local, which may be nil, and fetches it, if the viewer may see it.
func (s *Service) remoteTimestampToEvent(ctx context.Context, a *access, ts int64, backwards bool, local *storage.Event) (TimestampToEventResponse, bool) {
	r := a.room
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	for _, server := range s.whoToAsk(r) {
		answer, err := s.o.Remote.TimestampToEvent(ctx, server, r.ID, ts, backwards)
		if err != nil || backwards && answer.OriginServerTS > ts || !backwards && answer.OriginServerTS < ts {
			continue
		}
		if local != nil && distance(local.OriginServerTS(), ts) <= distance(answer.OriginServerTS, ts) {
			continue
		}
		e := s.fetchHistoric(ctx, server, r, answer.EventID)
		if e == nil {
			continue
		}
		if ok, err := a.viewer.sees(ctx, e); err == nil && ok {
			return TimestampToEventResponse{EventID: e.ID(), OriginServerTS: e.OriginServerTS()}, true
		}
	}
	return TimestampToEventResponse{}, false
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// fetchHistoric finds an event of the graph, or fetches it from server as part of the room's history; nil if it cannot be had.
func (s *Service) fetchHistoric(ctx context.Context, server matrix.ServerName, r *Room, id matrix.EventID) *storage.Event {
	for range 2 {
		e, err := s.o.DB.EventByID(ctx, id)
		if err == nil && e.RoomNum == r.Num && !e.Hidden() {
			return e
		}
		raw, err := s.o.Remote.Event(ctx, server, id)
		if err != nil {
			return nil
		}
		events, err := s.notOver(ctx, r, s.verifyEvents(ctx, parseEvents([]json.RawMessage{raw}, r.Version, r.ID, 1)))
		if err != nil || len(events) == 0 {
			return nil
		}
		if err := s.pull(ctx, server, r, events, true); err != nil {
			return nil
		}
	}
	return nil
}
