package room

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// maxBackfill is the most events in one answer to backfill.
	maxBackfill = 100
	// maxMissing is the most events in one answer to get_missing_events, 10 are the default.
	maxMissing     = 50
	defaultMissing = 10
)

// ServeBackfill answers GET /backfill: events before from, from itself included, newest first, at most limit (and at most 100). What origin may
// not see is redacted. Spec v1.19 server-server-api/#get_matrixfederationv1backfillroomid
func (s *Service) ServeBackfill(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	if err := s.CheckServer(ctx, room, origin); err != nil {
		return nil, err
	}
	events, err := s.walkBack(ctx, room, from, min(limit, maxBackfill), func(*storage.Event) bool { return true })
	if err != nil {
		return nil, err
	}
	return s.forServer(ctx, origin, events)
}

// ServeMissingEvents answers POST /get_missing_events: what lies between, oldest first.
// Spec v1.19 server-server-api/#post_matrixfederationv1get_missing_eventsroomid
func (s *Service) ServeMissingEvents(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, query MissingEventsRequest) ([]json.RawMessage, error) {
	if err := s.CheckServer(ctx, room, origin); err != nil {
		return nil, err
	}
	limit := min(query.Limit, maxMissing)
	if limit <= 0 {
		limit = defaultMissing
	}
	latest, err := s.ofRoom(ctx, room, query.LatestEvents)
	if err != nil {
		return nil, err
	}
	var from []matrix.EventID
	for _, e := range latest {
		from = append(from, e.PrevEvents()...)
	}
	events, err := s.walkBack(ctx, room, from, limit, func(e *storage.Event) bool {
		return e.Depth() >= query.MinDepth && !slices.Contains(query.EarliestEvents, e.ID()) && !slices.Contains(query.LatestEvents, e.ID())
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(events)
	return s.forServer(ctx, origin, events)
}

// ofRoom loads events of one room that are in its graph.
func (s *Service) ofRoom(ctx context.Context, room matrix.RoomID, ids []matrix.EventID) ([]*storage.Event, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, err
	}
	past, err := s.Past(ctx, r)
	if err != nil {
		return nil, err
	}
	events, err := s.EventsByID(ctx, ids[:min(len(ids), maxBackfill)])
	return slices.DeleteFunc(events, func(e *storage.Event) bool {
		return e.RoomID() != room || e.Flags&storage.Outlier != 0 || past.Hides(e.Event, e.Num, e.Pos)
	}), err
}

// walkBack goes from some events to those before them, the newest first, over those that want lets through; at most limit are returned.
// Rejected events are passed through, but not returned.
func (s *Service) walkBack(ctx context.Context, room matrix.RoomID, from []matrix.EventID, limit int, want func(*storage.Event) bool) ([]*storage.Event, error) {
	seen := map[matrix.EventID]bool{}
	var front, found []*storage.Event
	next := from
	for looked := 0; len(found) < limit && looked < 10*maxBackfill; looked++ {
		fresh := next[:0:0]
		for _, id := range next {
			if !seen[id] {
				seen[id] = true
				fresh = append(fresh, id)
			}
		}
		events, err := s.ofRoom(ctx, room, fresh)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if want(e) {
				front = append(front, e)
			}
		}
		if len(front) == 0 {
			break
		}
		slices.SortFunc(front, func(a, b *storage.Event) int {
			return cmp.Or(cmp.Compare(a.Depth(), b.Depth()), cmp.Compare(a.Num, b.Num))
		})
		e := front[len(front)-1]
		front = front[:len(front)-1]
		if e.Flags&storage.Rejected == 0 {
			found = append(found, e)
		}
		next = e.PrevEvents()
	}
	return found, nil
}

// forServer writes events of one room for a server: what it may not see is redacted.
func (s *Service) forServer(ctx context.Context, server matrix.ServerName, events []*storage.Event) ([]json.RawMessage, error) {
	visible, err := s.VisibleToServer(ctx, server, events)
	if err != nil {
		return nil, err
	}
	all := make([]json.RawMessage, len(events))
	for i, e := range events {
		if all[i] = e.JSON(); !visible[i] {
			all[i] = e.Redact().JSON()
		}
	}
	return all, nil
}

// ServeTimestampToEvent answers GET /timestamp_to_event from what is here.
// Spec v1.19 server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
func (s *Service) ServeTimestampToEvent(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, ts int64, backwards bool) (TimestampToEventResponse, error) {
	if err := s.CheckServer(ctx, room, origin); err != nil {
		return TimestampToEventResponse{}, err
	}
	r, err := s.Room(ctx, room)
	if err != nil {
		return TimestampToEventResponse{}, err
	}
	past, err := s.Past(ctx, r)
	if err != nil {
		return TimestampToEventResponse{}, err
	}
	if !backwards { // what is older has mostly gone
		ts = max(ts, past.floor())
	}
	near, err := s.o.DB.EventsNear(ctx, r.Num, ts, backwards, 1)
	if err != nil {
		return TimestampToEventResponse{}, err
	}
	if len(near) == 0 || past.Hides(near[0].Event, near[0].Num, near[0].Pos) {
		return TimestampToEventResponse{}, matrix.NotFound("there is no event in that direction")
	}
	return TimestampToEventResponse{EventID: near[0].ID(), OriginServerTS: near[0].OriginServerTS()}, nil
}
