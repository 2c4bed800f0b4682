package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// What one missing event may cost: each bound below limits the requests, or the events looked at, for one event that was pushed to us.
const (
	gapServers = 3  // servers asked to fill a gap
	gapLimit   = 20 // events asked for at a time
	gapRounds  = 10 // times one server is asked for more
	// maxGapStates is how often the state at the far end of a gap is asked for.
	maxGapStates = 3
	// fetchWorkers is how many single events are fetched at the same time.
	fetchWorkers = 8
	// maxSingleEvents is how many events are fetched one by one; more of them are had with the whole state.
	maxSingleEvents = 500
	// maxAuthChain is how many events of an auth chain are looked at.
	maxAuthChain = 20_000
	// maxAuthRounds is how deep an auth chain is followed event by event.
	maxAuthRounds = 10
)

// fillGap asks origin for the events between the room's tip and e, and takes them in. Other servers in the room are asked only while nobody
// answers: who sends an event knows what stands before it, and a server that makes up events must not have us pester others. What
// cannot be had is not an error: the caller looks whether the gap is closed.
// Spec v1.19 server-server-api/#backfilling-and-retrieving-missing-events
func (s *Service) fillGap(ctx context.Context, origin matrix.ServerName, r *Room, e *matrix.Event) error {
	for _, server := range s.whoToAsk(r, origin, e.Sender().Server()) {
		events, asked := s.askMissing(ctx, server, r, e)
		if asked != nil {
			s.o.Log.Debug("ask for missing events", "room", r.ID, "server", server, "err", asked)
		}
		if err := s.pull(ctx, server, r, events, false); err != nil {
			return err
		}
		missing, err := s.unknownPrevs(ctx, e)
		if err != nil || asked == nil || len(missing) == 0 {
			return err
		}
	}
	return nil
}

// whoToAsk lists up to gapServers servers in the room that may know about an event: first first.
func (s *Service) whoToAsk(r *Room, first ...matrix.ServerName) []matrix.ServerName {
	if s.o.Remote == nil {
		return nil
	}
	snap := r.Snapshot()
	var list []matrix.ServerName
	for _, server := range slices.Concat(first, s.serversToJoinThrough(snap)) {
		if server != "" && server != s.o.ServerName && snap.ACL.Allows(server) && !slices.Contains(list, server) {
			list = append(list, server)
		}
	}
	return list[:min(len(list), gapServers)]
}

// askMissing collects what one server has between the tip and e, in as many rounds as it takes, and verifies it.
func (s *Service) askMissing(ctx context.Context, server matrix.ServerName, r *Room, e *matrix.Event) ([]*matrix.Event, error) {
	query := MissingEventsRequest{Limit: gapLimit, LatestEvents: []matrix.EventID{e.ID()}}
	for _, t := range r.Snapshot().Tip {
		if len(query.EarliestEvents) < matrix.MaxPrevEvents {
			query.EarliestEvents = append(query.EarliestEvents, t.ID())
		}
	}
	var all []*matrix.Event
	seen := map[matrix.EventID]bool{e.ID(): true}
	behind := map[matrix.EventID]bool{}
	for range gapRounds {
		raw, err := s.o.Remote.MissingEvents(ctx, server, r.ID, query)
		if err != nil {
			return all, err
		}
		parsed, err := s.notBehind(ctx, r, parseEvents(raw, r.Version, r.ID, gapLimit), behind)
		if err != nil {
			return all, err
		}
		var fresh []*matrix.Event
		for _, got := range s.verifyEvents(ctx, parsed) {
			if !seen[got.ID()] {
				seen[got.ID()] = true
				fresh = append(fresh, got)
			}
		}
		all = append(all, fresh...)
		if len(raw) < gapLimit || len(fresh) == 0 {
			return all, nil
		}
		// Go on from the events whose prev_events we have not seen.
		query.LatestEvents = query.LatestEvents[:0:0]
		for _, got := range fresh {
			missing, err := s.unknownPrevs(ctx, got)
			if err != nil {
				return all, err
			}
			if slices.ContainsFunc(missing, func(id matrix.EventID) bool { return !seen[id] }) && len(query.LatestEvents) < matrix.MaxPrevEvents {
				query.LatestEvents = append(query.LatestEvents, got.ID())
			}
		}
		if len(query.LatestEvents) == 0 {
			return all, nil
		}
	}
	return all, nil
}

// notBehind leaves out events from before what we have of the room: a server that does not know our tip goes further back than the
// gap reaches, past the point where we came in, and what lies there is history. behind gathers what is known to lie there.
func (s *Service) notBehind(ctx context.Context, r *Room, events []*matrix.Event, behind map[matrix.EventID]bool) ([]*matrix.Event, error) {
	ids := make([]matrix.EventID, len(events))
	for i, e := range events {
		ids[i] = e.ID()
	}
	missing, err := s.o.DB.MissingAmong(ctx, r.Num, ids)
	if err != nil {
		return nil, err
	}
	maps.Copy(behind, missing)
	past, err := s.Past(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		if past.isOver(e) {
			behind[e.ID()] = true
		}
	}
	for _, e := range slices.Backward(byPrev(events)) { // those that follow come first
		if behind[e.ID()] {
			for _, id := range e.PrevEvents() {
				behind[id] = true
			}
		}
	}
	return slices.DeleteFunc(events, func(e *matrix.Event) bool { return behind[e.ID()] }), nil
}

// pull takes in events that we have asked server for, oldest first. Their signatures have been checked. Where their prev_events are not
// here, the state there is asked for, too. history marks events from before what we have. What a rule refuses or what cannot be
// judged is passed over.
func (s *Service) pull(ctx context.Context, server matrix.ServerName, r *Room, events []*matrix.Event, history bool) error {
	if !history {
		s.askPolicies(ctx, r.ID, events)
	}
	states := 0
	for _, e := range byPrev(events) {
		missing, err := s.unknownPrevs(ctx, e)
		if err != nil {
			return err
		}
		how := arrival{history: history, generation: r.Snapshot().row.Generation, states: map[matrix.EventID][]storage.StateEntry{}}
		for _, id := range missing {
			if states++; states > maxGapStates {
				break
			}
			entries, err := s.stateAfter(ctx, server, r, id)
			if err != nil {
				s.o.Log.Info("ask for the state before a gap", "room", r.ID, "server", server, "event", id, "err", err)
				break
			}
			how.states[id] = entries
		}
		if len(how.states) < len(missing) {
			continue
		}
		if err := s.takeWith(ctx, server, r, e, how); err != nil && ctx.Err() != nil {
			return err
		} else if err != nil {
			s.o.Log.Debug("passed over an event", "room", r.ID, "server", server, "event", e.ID(), "err", err)
		}
	}
	return nil
}

// stateAfter asks server for the state after an event that is not in our graph, stores the events of it as outliers, and returns its
// entries.
func (s *Service) stateAfter(ctx context.Context, server matrix.ServerName, r *Room, event matrix.EventID) ([]storage.StateEntry, error) {
	state, _, err := s.toldState(ctx, server, r, event)
	if err != nil {
		return nil, err
	}
	entries := make([]storage.StateEntry, len(state))
	for i, e := range state {
		entries[i] = e.StateEntry
	}
	return entries, nil
}

// entriesOf makes entries of stored events.
func entriesOf(state []*storage.Event) []storage.StateEntry {
	entries := make([]storage.StateEntry, len(state))
	for i, e := range state {
		entries[i] = storage.StateEntry{Type: e.Type(), Key: stateKey(e.Event), Num: e.Num}
	}
	return entries
}

// toldState is the state before an event as server tells it, and the event itself last if it is of the state after it; missing counts the events
// of it that could not be had.
func (s *Service) toldState(ctx context.Context, server matrix.ServerName, r *Room, event matrix.EventID) (state []stateEvent, missing int, err error) {
	ids, err := s.o.Remote.StateIDs(ctx, server, r.ID, event)
	if err != nil {
		return nil, 0, err
	}
	if len(ids.PDUIDs) > maxStateEvents || len(ids.AuthChainIDs) > maxStateEvents {
		return nil, 0, fmt.Errorf("a state of %d events with %d auth events", len(ids.PDUIDs), len(ids.AuthChainIDs))
	}
	wanted := slices.Concat(ids.PDUIDs, ids.AuthChainIDs, []matrix.EventID{event})
	if err := s.fetchWanted(ctx, server, r, event, wanted); err != nil {
		return nil, 0, err
	}
	named := make(map[matrix.EventID]bool, len(ids.PDUIDs))
	all := make([]matrix.EventID, 0, len(ids.PDUIDs)+1)
	for _, id := range ids.PDUIDs {
		if id != event && !named[id] {
			named[id] = true
			all = append(all, id)
		}
	}
	all = append(all, event) // in this order: the event itself last
	var last matrix.EventID
	missing = len(all)
	for chunk := range slices.Chunk(all, outlierBatch) { // so that not all of them are in memory
		found, err := s.o.DB.EventsByID(ctx, chunk)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range found {
			missing--
			if last = e.ID(); e.RoomNum == r.Num && e.IsState() && e.Flags&storage.Rejected == 0 {
				state = append(state, stateEventOf(e))
			}
		}
	}
	if last != event {
		return nil, 0, fmt.Errorf("the server gives the state before %s, but not the event", event)
	}
	return state, missing, nil
}

// fetchWanted fetches those of the wanted events that are not here, and stores them as outliers. at is an event before which all of them
// are state or auth events.
func (s *Service) fetchWanted(ctx context.Context, server matrix.ServerName, r *Room, at matrix.EventID, wanted []matrix.EventID) error {
	missing, err := s.notHere(ctx, wanted)
	if err != nil || len(missing) == 0 {
		return err
	}
	isWanted := make(map[matrix.EventID]bool, len(missing))
	for _, id := range missing {
		isWanted[id] = true
	}
	var events []*matrix.Event
	if len(missing)*10 >= len(wanted) && len(missing) > 2*fetchWorkers || len(missing) > maxSingleEvents {
		in := newIntake(r.Version, r.ID)
		err := s.o.Remote.State(ctx, server, r.ID, at, in.take)
		state, chain := in.end()
		if err != nil {
			return err
		}
		events = append(chain, state...)
		missing = []matrix.EventID{at} // the event itself is not in it
	}
	events = append(events, parseEvents(s.fetchEvents(ctx, server, missing), r.Version, r.ID, len(missing))...)
	events = slices.DeleteFunc(events, func(e *matrix.Event) bool {
		wanted := isWanted[e.ID()]
		delete(isWanted, e.ID()) // once
		return !wanted
	})
	return s.storeOutliers(ctx, r, s.verifyEvents(ctx, events))
}

// notHere lists those of the events that we do not have at all.
func (s *Service) notHere(ctx context.Context, ids []matrix.EventID) ([]matrix.EventID, error) {
	here, err := s.o.DB.EventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	seen := make(map[matrix.EventID]bool, len(here))
	for _, e := range here {
		seen[e.ID()] = true
	}
	var missing []matrix.EventID
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// fetchEvents fetches single events; those that the server does not give are left out.
func (s *Service) fetchEvents(ctx context.Context, server matrix.ServerName, ids []matrix.EventID) []json.RawMessage {
	found := make([]json.RawMessage, len(ids))
	parallel(len(ids), fetchWorkers, func(i int) {
		if raw, err := s.o.Remote.Event(ctx, server, ids[i]); err == nil {
			found[i] = raw
		}
	})
	return slices.DeleteFunc(found, func(raw json.RawMessage) bool { return raw == nil })
}

// fetchAuth fetches the auth chain of e as far as it is not here. What cannot be had is not an error: judging the event finds it missing.
// Spec v1.19 server-server-api/#retrieving-event-authorisation-information
func (s *Service) fetchAuth(ctx context.Context, server matrix.ServerName, r *Room, e *matrix.Event) error {
	missing, err := s.notHere(ctx, e.AuthEvents())
	if err != nil || len(missing) == 0 || s.o.Remote == nil {
		return err
	}
	raw, err := s.o.Remote.EventAuth(ctx, server, r.ID, e.ID())
	if err == nil {
		events := s.verifyEvents(ctx, s.onlyNew(ctx, chainOf(e, parseEvents(raw, r.Version, r.ID, maxAuthChain)), true))
		if err := s.storeOutliers(ctx, r, events); err != nil {
			return err
		}
		if missing, err = s.notHere(ctx, e.AuthEvents()); err != nil {
			return err
		}
	}
	var chain []*matrix.Event
	asked := map[matrix.EventID]bool{}
	for round := 0; round < maxAuthRounds && len(missing) > 0 && len(asked) < maxSingleEvents; round++ {
		missing = missing[:min(len(missing), maxSingleEvents-len(asked))]
		for _, id := range missing {
			asked[id] = true
		}
		got := s.verifyEvents(ctx, parseEvents(s.fetchEvents(ctx, server, missing), r.Version, r.ID, len(missing)))
		chain = append(chain, got...)
		var next []matrix.EventID
		for _, a := range got {
			next = append(next, a.AuthEvents()...)
		}
		if next, err = s.notHere(ctx, next); err != nil {
			return err
		}
		missing = slices.DeleteFunc(next, func(id matrix.EventID) bool { return asked[id] })
	}
	return s.storeOutliers(ctx, r, chain)
}

// chainOf picks the events of which e's auth chain is made: what else a server adds to it is not kept.
func chainOf(e *matrix.Event, events []*matrix.Event) []*matrix.Event {
	byID := make(map[matrix.EventID]*matrix.Event, len(events))
	for _, a := range events {
		byID[a.ID()] = a
	}
	var chain []*matrix.Event
	for level := []*matrix.Event{e}; len(level) > 0; {
		var next []*matrix.Event
		for _, l := range level {
			for _, id := range l.AuthEvents() {
				if a := byID[id]; a != nil {
					delete(byID, id)
					next = append(next, a)
				}
			}
		}
		chain = append(chain, next...)
		level = next
	}
	return chain
}

// onlyNew leaves out the events that are in the graph here already and, with alsoOutliers, those that are here as outliers.
func (s *Service) onlyNew(ctx context.Context, events []*matrix.Event, alsoOutliers bool) []*matrix.Event {
	ids := make([]matrix.EventID, len(events))
	for i, e := range events {
		ids[i] = e.ID()
	}
	here, err := s.o.DB.EventsByID(ctx, ids)
	if err != nil {
		return events // they are looked up again when they are stored
	}
	known := make(map[matrix.EventID]bool, len(here))
	for _, e := range here {
		known[e.ID()] = e.Flags&storage.Outlier == 0 || alsoOutliers
	}
	return slices.DeleteFunc(events, func(e *matrix.Event) bool { return known[e.ID()] })
}

// outlierBatch is how many outliers are written at a time: each write holds the room and the database's writer for as long.
const outlierBatch = 1000

// storeOutliers judges verified events by their auth events and stores them, the rejected with that flag. Those whose auth events are not
// all here or among them are left out. M_NOT_FOUND if the room has been deleted meanwhile: it does not come back by this.
func (s *Service) storeOutliers(ctx context.Context, r *Room, events []*matrix.Event) error {
	if len(events) == 0 {
		return nil
	}
	known, create, err := s.knownAuth(ctx, r.ID, r.Version, events)
	if err != nil {
		return err
	}
	verdicts := judge(byAuth(events), create, func(id matrix.EventID) (*matrix.Event, bool) {
		e := known[id]
		return eventOf(e), e != nil && e.Flags&storage.Rejected != 0
	})
	return storeJudged(verdicts, nil, func(fn func(u *update) error) error { return s.update(ctx, r.ID, fn) })
}

// storeJudged stores those that could be judged, in writes of bounded size, and calls stored for each of them as it is in the database now, which
// may be because it was there before. Events that are stored already are let be. stored may be nil; the verdicts are used up. write is an update of
// the room.
func storeJudged(verdicts []judged, stored func(*storage.Event), write func(fn func(u *update) error) error) error {
	verdicts = slices.DeleteFunc(verdicts, func(j judged) bool { return errors.Is(j.err, errNoAuth) })
	for chunk := range slices.Chunk(verdicts, outlierBatch) {
		var all []*storage.Event
		err := write(func(u *update) (err error) {
			all, err = u.appendOutliers(chunk)
			return err
		})
		if err != nil {
			return err
		}
		if stored != nil {
			for _, e := range all {
				stored(e)
			}
		}
		clear(chunk) // so that no event is in memory for longer than it must
	}
	return nil
}

// appendOutliers adds judged events that are not here yet, and returns all as they are here.
func (u *update) appendOutliers(verdicts []judged) ([]*storage.Event, error) {
	ids := make([]matrix.EventID, len(verdicts))
	for i, j := range verdicts {
		ids[i] = j.ID()
	}
	all := make([]*storage.Event, 0, len(verdicts))
	here := make(map[matrix.EventID]bool, len(verdicts))
	if u.snap.stored || !u.room.Version.RoomIDIsCreateID {
		known, err := u.s.o.DB.EventsByID(u.ctx, ids)
		if err != nil {
			return nil, err
		}
		for _, e := range known {
			if e.RoomNum != u.room.Num {
				return nil, fmt.Errorf("event %s belongs to another room", e.ID())
			}
			here[e.ID()] = true
		}
		all = append(all, known...)
	}
	for _, j := range verdicts {
		switch e := u.fresh.byID(j.ID()); {
		case here[j.ID()]:
			continue
		case e != nil:
			all = append(all, e)
			continue
		}
		e := &storage.Event{Event: j.Event, RoomNum: u.room.Num, Flags: storage.Outlier}
		if j.err != nil {
			e.Flags |= storage.Rejected
		}
		var err error
		if e.Num, err = u.s.o.DB.EventNums(u.ctx, 1); err != nil {
			return nil, err
		}
		u.stage(e, true)
		u.add.Roots = append(u.add.Roots, u.snap.Root)
		all = append(all, e)
	}
	return all, nil
}

// knownAuth loads the auth events of events that are here, and the create event, from among them or from here.
func (s *Service) knownAuth(ctx context.Context, room matrix.RoomID, version *matrix.RoomVersion, events []*matrix.Event) (map[matrix.EventID]*storage.Event, *matrix.Event, error) {
	var ids []matrix.EventID
	var create *matrix.Event
	seen := map[matrix.EventID]bool{}
	for _, e := range events {
		if e.Is(matrix.TypeCreate, "") && create == nil {
			create = e
		}
		for _, id := range e.AuthEvents() {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	here, err := s.o.DB.EventsByID(ctx, ids)
	if err != nil {
		return nil, nil, err
	}
	known := make(map[matrix.EventID]*storage.Event, len(here))
	for _, e := range here {
		if e.RoomID() == room {
			known[e.ID()] = e
		}
	}
	if r, err := s.Room(ctx, room); err == nil && r.Snapshot().Create != nil {
		create = r.Snapshot().Create.Event
	}
	return known, create, nil
}
