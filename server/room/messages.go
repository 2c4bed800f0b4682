package room

import (
	"context"
	"encoding/json"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Chunk is a page of events.
type Chunk struct {
	Start string            `json:"start,omitempty"`
	End   string            `json:"end,omitempty"` // "" at the end
	Chunk []json.RawMessage `json:"chunk"`
	State []json.RawMessage `json:"state,omitempty"`
}

// MessagesRequest is GET /rooms/{room}/messages.
type MessagesRequest struct {
	From, To string // tokens of /messages, /sync or /context; an empty From means the end the direction starts from
	Forward  bool
	Limit    int // at most 1000; 0 means 10
	Filter   *EventFilter
}

const (
	maxMessages = 1000
	// maxMessagesSeen is how many events are looked at for one page: those that the filter or the visibility keep back count.
	maxMessagesSeen = 5000
)

// Messages pages through the timeline. History that this server lacks is asked of others, within a time limit.
// Errors: M_INVALID_PARAM (token), M_FORBIDDEN. Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidmessages
func (s *Service) Messages(ctx context.Context, room matrix.RoomID, r Reader, q MessagesRequest) (Chunk, error) {
	a, err := s.access(ctx, room, r.User)
	if err != nil {
		return Chunk{}, err
	}
	from, err := s.place(ctx, room, q.From, !q.Forward)
	if err != nil {
		return Chunk{}, err
	}
	if q.From == "" && !q.Forward {
		if from, err = s.placeOfPos(ctx, room, a.until); err != nil {
			return Chunk{}, err
		}
	}
	to, err := s.place(ctx, room, q.To, q.Forward)
	if err != nil {
		return Chunk{}, err
	}
	p := pager{s: s, access: a, at: from, end: to, forward: q.Forward, filter: q.Filter}
	if err := p.collect(ctx, clampLimit(q.Limit, 10, maxMessages)); err != nil {
		return Chunk{}, err
	}
	chunk := Chunk{Start: from.token()}
	if !p.exhausted || q.Filter != nil && len(p.found) > 0 { // others always give one with what a filter has found
		chunk.End = p.at.token()
	}
	if chunk.Chunk, err = s.Clients(ctx, p.found, r); err != nil {
		return Chunk{}, err
	}
	if q.Filter != nil && q.Filter.LazyLoadMembers {
		chunk.State, err = s.sendersState(ctx, a.root, p.found)
	}
	return chunk, err
}

// pager walks through a room's history.
type pager struct {
	s         *Service
	access    *access
	at, end   place
	forward   bool
	filter    *EventFilter
	found     []*storage.Event
	exhausted bool // there is nothing more in that direction
}

// collect finds the next n events that may be seen.
func (p *pager) collect(ctx context.Context, n int) error {
	for seen := 0; len(p.found) < n && seen < maxMessagesSeen; {
		want := max(n-len(p.found), 10)
		events, more, err := p.next(ctx, want)
		if err != nil {
			return err
		}
		seen += want
		for _, e := range events {
			if p.forward && before(e).compare(p.end) >= 0 || !p.forward && before(e).compare(p.end) < 0 {
				p.exhausted = true
				return nil
			}
			if len(p.found) == n {
				return nil
			}
			if p.at = before(e); p.forward {
				p.at = after(e)
			}
			visible, err := p.access.viewer.sees(ctx, e)
			if err != nil {
				return err
			}
			if visible && p.filter.Allows(e.Event) {
				if ok, err := p.related(ctx, e); err != nil {
					return err
				} else if ok {
					p.found = append(p.found, e)
				}
			}
		}
		if !more {
			p.exhausted = len(p.found) < n || p.forward
			if !p.forward && len(p.found) == n && len(events) > 0 && events[len(events)-1].Is(matrix.TypeCreate, "") && p.found[n-1] == events[len(events)-1] {
				p.exhausted = true
			}
			return nil
		}
	}
	return nil
}

// next reads up to about want events from where the pager is. more is false if there are no others behind them.
func (p *pager) next(ctx context.Context, want int) (events []*storage.Event, more bool, err error) {
	if p.forward {
		events, err = p.s.o.DB.EventsFrom(ctx, p.access.room.Num, storage.Place(p.at), want+1)
		return events, len(events) > want, err
	}
	read := func() (err error) {
		events, err = p.s.o.DB.EventsBefore(ctx, p.access.room.Num, storage.Place(p.at), want+1)
		return err
	}
	if err := read(); err != nil {
		return nil, false, err
	}
	// Where there are holes behind us, they are filled first, so that nobody is told that there is nothing.
	for range maxFills {
		if p.access.room.Snapshot().row.Flags&storage.HasMissing == 0 {
			break
		}
		lowest := int64(0)
		if len(events) > want {
			lowest = events[len(events)-1].Depth()
		}
		more, err = p.s.fillHistory(ctx, p.access.room, lowest, p.at.Depth, want)
		if err != nil || !more {
			break
		}
		if err := read(); err != nil {
			return nil, false, err
		}
	}
	return events, more || len(events) > want, err
}

// maxFills is how often other servers are asked for one page.
const maxFills = 5

// related looks at what the filter says of relations.
func (p *pager) related(ctx context.Context, e *storage.Event) (bool, error) {
	if p.filter == nil || p.filter.RelatedByRelTypes == nil && p.filter.RelatedBySenders == nil {
		return true, nil
	}
	relations, err := p.s.relationsOf(ctx, e.RoomNum, []*storage.Event{e})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(relations[e.ID()], func(r storage.Relation) bool {
		return (p.filter.RelatedByRelTypes == nil || slices.Contains(p.filter.RelatedByRelTypes, r.RelType)) &&
			(p.filter.RelatedBySenders == nil || slices.Contains(p.filter.RelatedBySenders, r.Sender))
	}), nil
}

// sendersState are the member events of those who sent the events, in a state.
func (s *Service) sendersState(ctx context.Context, root storage.StateRoot, events []*storage.Event) ([]json.RawMessage, error) {
	var members []*storage.Event
	seen := map[matrix.UserID]bool{}
	for _, e := range events {
		if seen[e.Sender()] {
			continue
		}
		seen[e.Sender()] = true
		m, err := s.stateEvent(ctx, e.RoomNum, root, matrix.TypeMember, string(e.Sender()), nil)
		if err != nil {
			return nil, err
		}
		if m != nil {
			members = append(members, m)
		}
	}
	return s.stateClients(ctx, members)
}

// Context is the answer to GET /rooms/{room}/context/{event}.
type Context struct {
	Start        string            `json:"start"`
	End          string            `json:"end"`
	Event        json.RawMessage   `json:"event"`
	EventsBefore []json.RawMessage `json:"events_before"`
	EventsAfter  []json.RawMessage `json:"events_after"`
	State        []json.RawMessage `json:"state"`
}

// Context gives an event with what was said around it. limit 0 means 10. M_NOT_FOUND if the reader may not see the event.
// Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidcontexteventid
func (s *Service) Context(ctx context.Context, room matrix.RoomID, r Reader, event matrix.EventID, limit int, filter *EventFilter) (Context, error) {
	e, err := s.VisibleEvent(ctx, room, r.User, event)
	if err != nil {
		return Context{}, err
	}
	a, err := s.access(ctx, room, r.User)
	if err != nil {
		return Context{}, err
	}
	limit = max(0, min(limit, 100))
	earlier := pager{s: s, access: a, at: before(e), end: firstPlace, filter: filter}
	later := pager{s: s, access: a, at: after(e), end: lastPlace, forward: true, filter: filter}
	if err := earlier.collect(ctx, limit/2); err != nil {
		return Context{}, err
	}
	if err := later.collect(ctx, limit-limit/2); err != nil {
		return Context{}, err
	}
	c := Context{Start: earlier.at.token(), End: later.at.token()}
	if c.Event, err = s.AppendClient(ctx, nil, e, r); err != nil {
		return Context{}, err
	}
	if c.EventsBefore, err = s.Clients(ctx, earlier.found, r); err != nil {
		return Context{}, err
	}
	if c.EventsAfter, err = s.Clients(ctx, later.found, r); err != nil {
		return Context{}, err
	}
	last := e
	if n := len(later.found); n > 0 {
		last = later.found[n-1]
	}
	c.State, err = s.contextState(ctx, last, append(append(earlier.found, e), later.found...), filter)
	return c, err
}

// contextState is the state after the last event that is shown.
func (s *Service) contextState(ctx context.Context, last *storage.Event, shown []*storage.Event, filter *EventFilter) ([]json.RawMessage, error) {
	root, err := s.after(ctx, last, nil)
	if err != nil {
		return nil, err
	}
	part := storage.AllState
	lazy := filter != nil && filter.LazyLoadMembers
	if lazy {
		part = storage.OtherState
	}
	events, err := s.StateEvents(ctx, last.RoomID(), root, part)
	if err != nil {
		return nil, err
	}
	state, err := s.stateClients(ctx, events)
	if err != nil || !lazy {
		return state, err
	}
	members, err := s.sendersState(ctx, root, shown)
	return append(state, members...), err
}
