package storage

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// EventsNear finds the events of the timeline whose origin_server_ts is closest to ts (ms) on one side of it, at most limit, the closest
// first; of those with the same time the first first, or with backwards the last.
//
// It asks the table event_times, which is brought forward with the index, and looks at the events that the index has not passed. While
// an index is begun for a database that is not empty, and where there is none, the room's events are read.
func (db *DB) EventsNear(ctx context.Context, room, ts int64, backwards bool, limit int) ([]*Event, error) {
	near := func(from, column string) string {
		side := column + " >= ? ORDER BY " + column + ", e.depth, e.num LIMIT ?"
		if backwards {
			side = column + " <= ? ORDER BY " + column + " DESC, e.depth DESC, e.num DESC LIMIT ?"
		}
		return "WHERE num IN (SELECT num FROM (SELECT e.num FROM " + from + " AND e.flags = 0 AND " + side + ") nearest)"
	}
	state, err := db.IndexState(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err != nil || state.Back > 0 {
		events, err := db.queryEvents(ctx, near("events e WHERE e.room = ?", "e.ts"), room, ts, limit)
		sortNear(events, backwards)
		return events, err
	}
	var all []*Event
	for _, q := range []struct {
		from, column string
		args         []any
	}{
		{"event_times t JOIN events e ON e.num = t.num WHERE t.room = ?", "t.ts", []any{room, ts, limit}},
		{"events e WHERE e.room = ? AND e.pos > ?", "e.ts", []any{room, state.To, ts, limit}},
		{"index_queue t JOIN events e ON e.num = t.num WHERE t.room = ?", "t.ts", []any{room, ts, limit}},
	} {
		some, err := db.queryEvents(ctx, near(q.from, q.column), q.args...)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	sortNear(all, backwards)
	all = slices.CompactFunc(all, func(a, b *Event) bool { return a.Num == b.Num })
	return all[:min(len(all), limit)], nil
}

func sortNear(events []*Event, backwards bool) {
	slices.SortFunc(events, func(a, b *Event) int {
		if backwards {
			a, b = b, a
		}
		return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.Depth(), b.Depth()), cmp.Compare(a.Num, b.Num))
	})
}
