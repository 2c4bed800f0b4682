package storage

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// EventNear finds the event of the timeline whose origin_server_ts is closest to ts (ms) on one side of it; of several with the same time
// the first, or with backwards the last. ErrNotFound if there is none.
//
// It asks the table event_times, which is brought forward with the index, and looks at the events that the index has not passed. While
// an index is begun for a database that is not empty, and where there is none, the room's events are read.
func (db *DB) EventNear(ctx context.Context, room, ts int64, backwards bool) (*Event, error) {
	side := func(ts string) string {
		if backwards {
			return ts + " <= ? ORDER BY " + ts + " DESC, e.depth DESC, e.num DESC LIMIT 1"
		}
		return ts + " >= ? ORDER BY " + ts + ", e.depth, e.num LIMIT 1"
	}
	state, err := db.IndexState(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	type question struct {
		from string
		args []any
	}
	questions := []question{{"events e WHERE e.room = ? AND e.flags = 0 AND " + side("e.ts"), []any{room, ts}}}
	if err == nil && state.Back == 0 {
		questions = []question{
			{"event_times t JOIN events e ON e.num = t.num WHERE t.room = ? AND e.flags = 0 AND " + side("t.ts"), []any{room, ts}},
			{"events e WHERE e.room = ? AND e.pos > ? AND e.flags = 0 AND " + side("e.ts"), []any{room, state.To, ts}},
			{"index_queue t JOIN events e ON e.num = t.num WHERE t.room = ? AND e.flags = 0 AND " + side("t.ts"), []any{room, ts}},
		}
	}
	var found []*Event
	for _, q := range questions {
		some, err := db.queryEvents(ctx, "WHERE num IN (SELECT num FROM (SELECT e.num FROM "+q.from+") nearest)", q.args...)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	if len(found) == 0 {
		return nil, ErrNotFound
	}
	byTime := func(a, b *Event) int {
		return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.Depth(), b.Depth()), cmp.Compare(a.Num, b.Num))
	}
	if backwards {
		return slices.MaxFunc(found, byTime), nil
	}
	return slices.MinFunc(found, byTime), nil
}
