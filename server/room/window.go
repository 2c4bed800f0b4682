package room

import (
	"context"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// window is the recent past of a room, in memory.
type window struct {
	// events holds all of the timeline with a position above from, oldest first.
	events []*storage.Event
	from   int64
	// roots holds the changes of the current state after rootsFrom, at which it was rootAtStart.
	roots       []rootChange
	rootsFrom   int64
	rootAtStart storage.StateRoot
}

type rootChange struct {
	pos  int64
	root storage.StateRoot
}

// add returns the window with newer events and changes. The slices are shared with w, whose length bounds what it sees.
// It is called on the newest window of a room only, by the writer.
func (w window) add(events []*storage.Event, roots []rootChange, size int) window {
	w.events = append(w.events, events...)
	if over := len(w.events) - size; over >= size {
		w.from = w.events[over-1].Pos
		w.events = slices.Clone(w.events[over:])
	}
	w.roots = append(w.roots, roots...)
	if over := len(w.roots) - size; over >= size {
		w.rootsFrom, w.rootAtStart = w.roots[over-1].pos, w.roots[over-1].root
		w.roots = slices.Clone(w.roots[over:])
	}
	return w
}

// replace returns the window with a new copy of an event, if it holds that event.
func (w window) replace(e *storage.Event) window {
	i := slices.IndexFunc(w.events, func(old *storage.Event) bool { return old.Num == e.Num })
	if i >= 0 {
		w.events = slices.Clone(w.events)
		w.events[i] = e
	}
	return w
}

// rootAt is the current state at a position; ok is false if memory does not reach back to it.
func (w *window) rootAt(pos int64) (root storage.StateRoot, ok bool) {
	for i := len(w.roots) - 1; i >= 0; i-- {
		if w.roots[i].pos <= pos {
			return w.roots[i].root, true
		}
	}
	return w.rootAtStart, pos >= w.rootsFrom
}

// Timeline is a stretch of a room's timeline, in stream order.
type Timeline struct {
	Events []*storage.Event
	// Limited is set when there are more events between the positions asked for than were returned; the oldest are left out.
	Limited bool
}

// Timeline gives the newest events of a room with from < position <= to, at most limit, oldest first. What is recent comes from
// memory. It does not look at visibility: see [Service.VisibleTo].
func (s *Service) Timeline(ctx context.Context, room matrix.RoomID, from, to int64, limit int) (Timeline, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return Timeline{}, err
	}
	w := r.Snapshot().window
	if t, ok := w.timeline(from, to, limit); ok {
		return t, nil
	}
	return s.olderTimeline(ctx, r, from, to, limit)
}

func (w *window) timeline(from, to int64, limit int) (Timeline, bool) {
	first, _ := slices.BinarySearchFunc(w.events, from+1, comparePos)
	end, _ := slices.BinarySearchFunc(w.events, to+1, comparePos)
	found := w.events[first:max(first, end)]
	if len(found) > limit {
		return Timeline{found[len(found)-limit:], true}, true
	}
	return Timeline{Events: found}, from >= w.from
}

func comparePos(e *storage.Event, pos int64) int {
	switch {
	case e.Pos < pos:
		return -1
	case e.Pos > pos:
		return 1
	}
	return 0
}

// olderTimeline reads from the database, and keeps what it read when it joins up with the window.
func (s *Service) olderTimeline(ctx context.Context, r *Room, from, to int64, limit int) (Timeline, error) {
	r.windowMu.Lock()
	defer r.windowMu.Unlock()
	w := r.Snapshot().window
	if t, ok := w.timeline(from, to, limit); ok { // somebody else has just read it
		return t, nil
	}
	events, err := s.o.DB.EventsInStream(ctx, r.Num, from, to, limit+1)
	if err != nil {
		return Timeline{}, err
	}
	slices.Reverse(events)
	if to >= w.from && len(events) > 0 && limit <= s.o.Config.Window {
		r.extendWindow(events, from, len(events) > limit)
	}
	if len(events) > limit {
		return Timeline{events[len(events)-limit:], true}, nil
	}
	return Timeline{Events: events}, nil
}

// extendWindow puts events, all those after from or the newest of them, before those of the window. windowMu is held.
func (r *Room) extendWindow(events []*storage.Event, from int64, limited bool) {
	if limited {
		from = events[0].Pos - 1
	}
	for {
		old := r.snap.Load()
		if from >= old.window.from {
			return
		}
		snap := *old
		end, _ := slices.BinarySearchFunc(events, old.window.from+1, comparePos)
		snap.window.events = append(slices.Clone(events[:end]), old.window.events...)
		snap.window.from = from
		if r.snap.CompareAndSwap(old, &snap) {
			return
		}
	}
}

// RootAt is the room's current state as it was at a stream position; the zero root if the room was not there then.
func (s *Service) RootAt(ctx context.Context, room matrix.RoomID, pos int64) (storage.StateRoot, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return storage.StateRoot{}, err
	}
	snap := r.Snapshot()
	if root, ok := snap.window.rootAt(pos); ok {
		return root, nil
	}
	return s.o.DB.RootAt(ctx, r.Num, pos)
}
