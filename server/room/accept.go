package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// ErrSoftFailed says that an event was kept out of the timeline: the state before it allows it, the current state does not.
// Spec v1.19 server-server-api/#soft-failure
var ErrSoftFailed = errors.New("the current state of the room does not allow the event")

// errGap says that an event has prev_events that are not here.
var errGap = errors.New("not all prev events are known")

const (
	// maxTransactionPDUs is the most events in one transaction. Spec v1.19 server-server-api/#transactions
	maxTransactionPDUs = 50
	// maxWaiting is how many events of one room may wait for a gap to be filled.
	maxWaiting = 500
)

// Receive takes the events of a transaction of origin, at most 50, and returns when each is either in its room, refused, or kept
// for later in a row: what it returned for may be answered 200. The answer has an entry for each event whose room we know, with a
// nil error for what was taken or is kept; the error is meant for the other server's eyes. Rooms are worked on side by side, and the
// events of a room that wait for a gap to be filled do not hold the answer up.
// Spec v1.19 server-server-api/#transactions
func (s *Service) Receive(ctx context.Context, origin matrix.ServerName, pdus []json.RawMessage) map[matrix.EventID]error {
	s.foreign.resume.Do(func() {
		if err := s.resumeInbound(ctx); err != nil {
			s.o.Log.Error("take up events that wait", "err", err)
		}
	})
	byRoom := map[matrix.RoomID][]json.RawMessage{}
	var rooms []matrix.RoomID
	for _, raw := range pdus[:min(len(pdus), maxTransactionPDUs)] {
		var e struct {
			RoomID matrix.RoomID `json:"room_id"`
		}
		if json.Unmarshal(raw, &e) != nil || e.RoomID == "" {
			continue
		}
		if byRoom[e.RoomID] == nil {
			rooms = append(rooms, e.RoomID)
		}
		byRoom[e.RoomID] = append(byRoom[e.RoomID], raw)
	}
	results := map[matrix.EventID]error{}
	var mu sync.Mutex // guards results
	parallel(len(rooms), maxTransactionPDUs, func(i int) {
		some := s.receiveInto(ctx, origin, rooms[i], byRoom[rooms[i]])
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(results, some)
	})
	return results
}

// receiveInto takes the events of one room, those that can be taken at once in one write, and keeps the others for later. That a rule
// refused an event is not the sender's to know.
func (s *Service) receiveInto(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, pdus []json.RawMessage) map[matrix.EventID]error {
	results := map[matrix.EventID]error{}
	report := func(e *matrix.Event, err error) {
		if e != nil {
			results[e.ID()] = s.tell(origin, room, e.ID(), err)
		}
	}
	events, errs := make([]*matrix.Event, len(pdus)), make([]error, len(pdus))
	parallel(len(pdus), runtime.GOMAXPROCS(0), func(i int) {
		_, events[i], errs[i] = s.check(ctx, origin, room, pdus[i])
	})
	var good []*matrix.Event
	for i, e := range events {
		if errs[i] != nil {
			report(e, errs[i])
		} else if e != nil {
			good = append(good, e)
		}
	}
	if len(good) == 0 {
		return results
	}
	good, late, err := s.sortOut(ctx, origin, room, good)
	if err == nil {
		s.askPolicies(ctx, room, good)
	}
	verdicts, refusals := make([]error, len(good)), make([]error, len(good))
	if err == nil && len(good) > 0 {
		err = s.update(ctx, room, func(u *update) (err error) {
			if err := u.foresee(good); err != nil {
				return err
			}
			for i, e := range good {
				_, verdicts[i], refusals[i] = u.accept(e, arrival{})
				if refusals[i] != nil && !errors.Is(refusals[i], errGap) && !errors.Is(refusals[i], errNoAuth) {
					return refusals[i]
				}
			}
			return nil
		})
	}
	for i, e := range good {
		switch {
		case err != nil:
			report(e, err)
		case errors.Is(refusals[i], errGap):
			late = append(late, e)
		default:
			report(e, errors.Join(verdicts[i], refusals[i]))
		}
	}
	if err == nil {
		err = s.keepForLater(ctx, origin, room, late)
	}
	for _, e := range late {
		report(e, err)
	}
	return results
}

// sortOut parts the events whose prev_events are here, or among them, from those that must wait, and fetches the auth events
// that the former lack.
func (s *Service) sortOut(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, events []*matrix.Event) (now, late []*matrix.Event, err error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, events, err
	}
	here, err := s.whatIsHere(ctx, events...)
	if err != nil {
		return nil, events, err
	}
	coming := map[matrix.EventID]bool{}
	for _, e := range byPrev(events) {
		missing := unknownAmong(here, e)
		if slices.ContainsFunc(missing, func(id matrix.EventID) bool { return !coming[id] }) {
			late = append(late, e)
			continue
		}
		auth := slices.DeleteFunc(slices.Clone(e.AuthEvents()), func(id matrix.EventID) bool { return coming[id] })
		if auth, err = s.notHere(ctx, auth); err == nil && len(auth) > 0 {
			err = s.fetchAuth(ctx, origin, r, e)
		}
		if err != nil {
			return nil, events, err
		}
		coming[e.ID()] = true
		now = append(now, e)
	}
	return now, late, nil
}

// keepForLater puts events into rows, where they wait for what comes before them, and has somebody look for that.
func (s *Service) keepForLater(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, events []*matrix.Event) error {
	if len(events) == 0 {
		return nil
	}
	waiting := make([]storage.InboundEvent, len(events))
	for i, e := range events {
		waiting[i] = storage.InboundEvent{RoomID: room, EventID: e.ID(), Origin: origin, Depth: e.Depth(), ReceivedMS: s.o.Now().UnixMilli(), JSON: e.JSON()}
	}
	if err := s.o.DB.KeepInbound(ctx, maxWaiting, waiting); err != nil {
		return err
	}
	s.foreign.inbound.kick(s, room)
	return nil
}

func idOf(e *matrix.Event) matrix.EventID {
	if e == nil {
		return ""
	}
	return e.ID()
}

// tell turns what came of an event into what its sender is told, and logs the rest.
func (s *Service) tell(origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, err error) error {
	var refused *matrix.AuthError
	var known *matrix.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused), errors.Is(err, ErrSoftFailed), errors.Is(err, errNoAuth):
		s.o.Log.Info("refused an event", "room", room, "event", event, "server", origin, "err", err)
		return nil
	case errors.As(err, &known):
		s.o.Log.Debug("refused an event", "room", room, "event", event, "server", origin, "err", err)
		return known
	}
	s.o.Log.Warn("could not take an event", "room", room, "event", event, "server", origin, "err", err)
	return matrix.Unknown("the event could not be processed")
}

// Accept takes an event that origin sent us and appends it to its room, fetching what is missing first.
// It returns nil for an event we already have. The error is a *matrix.AuthError if a rule rejected the event,
// ErrSoftFailed if it was kept out of the timeline, a *matrix.Error if it may not come from origin or is not valid; anything else is our
// fault and the sender may retry.
// Spec v1.19 server-server-api/#checks-performed-on-receipt-of-a-pdu
func (s *Service) Accept(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw json.RawMessage) (matrix.EventID, error) {
	r, e, err := s.check(ctx, origin, room, raw)
	if err != nil || e == nil {
		return idOf(e), err
	}
	return e.ID(), s.takeLate(ctx, origin, r, e)
}

// check does what needs no look at the graph. The event is nil without an error if there is nothing left to do with it: it
// was an answer to an invite into a room that we are not in.
func (s *Service) check(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw json.RawMessage) (*Room, *matrix.Event, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, nil, err
	}
	// 1. Is a valid event, otherwise it is dropped.
	// 3. Passes hash checks, otherwise it is redacted before being processed further: ParseEvent does both.
	e, err := matrix.ParseEvent(raw, r.Version)
	if err != nil {
		return nil, nil, err
	}
	if e.RoomID() != room {
		return nil, e, matrix.InvalidParam("the event is of another room")
	}
	snap := r.Snapshot()
	if !snap.Joined() {
		return nil, nil, s.outside(ctx, r, e)
	}
	// The room's ACL lets the server take part. Spec v1.19 client-server-api/#server-access-control-lists-acls-for-rooms
	if !snap.ACL.Allows(origin) {
		return nil, e, matrix.Forbidden("this room does not let your server take part")
	}
	// 2. Passes signature checks, otherwise it is dropped.
	if err := matrix.VerifyEvent(ctx, e, s.o.Keys); err != nil {
		return nil, e, matrix.Forbidden("the signatures of the event cannot be verified")
	}
	return r, e, nil
}

// ServerAllowed reports whether the room's ACL lets a server take part, for EDUs. A room that this server is not in lets nobody.
func (s *Service) ServerAllowed(ctx context.Context, room matrix.RoomID, server matrix.ServerName) bool {
	r, err := s.Room(ctx, room)
	return err == nil && r.Snapshot().Joined() && r.Snapshot().ACL.Allows(server)
}

// take appends a checked event whose prev_events are here; errGap if they are not.
func (s *Service) take(ctx context.Context, origin matrix.ServerName, r *Room, e *matrix.Event) error {
	if missing, err := s.unknownPrevs(ctx, e); err != nil {
		return err
	} else if len(missing) > 0 {
		return errGap
	}
	return s.takeWith(ctx, origin, r, e, arrival{})
}

// takeLate is take that fills the gap before the event first, by asking origin and others.
func (s *Service) takeLate(ctx context.Context, origin matrix.ServerName, r *Room, e *matrix.Event) error {
	err := s.take(ctx, origin, r, e)
	if !errors.Is(err, errGap) {
		return err
	}
	if err := s.fillGap(ctx, origin, r, e); err != nil {
		return err
	}
	// What was pushed to us could become the only tip of the room, and its sender has no excuse for not telling us its
	// prev_events: we do not take a state from it on trust.
	if err = s.take(ctx, origin, r, e); errors.Is(err, errGap) {
		return s.takeAfterPurge(ctx, origin, r, e)
	}
	return err
}

// unknownPrevs lists the prev_events that are not in the graph here; nil if the event itself is.
func (s *Service) unknownPrevs(ctx context.Context, e *matrix.Event) ([]matrix.EventID, error) {
	here, err := s.whatIsHere(ctx, e)
	return unknownAmong(here, e), err
}

// whatIsHere tells which of some events and their prev_events are here, other than as outliers.
func (s *Service) whatIsHere(ctx context.Context, events ...*matrix.Event) (map[matrix.EventID]bool, error) {
	asked := map[matrix.EventID]bool{}
	for _, e := range events {
		asked[e.ID()] = true
		for _, id := range e.PrevEvents() {
			asked[id] = true
		}
	}
	found, err := s.o.DB.EventsByID(ctx, slices.Collect(maps.Keys(asked)))
	if err != nil {
		return nil, err
	}
	here := make(map[matrix.EventID]bool, len(found))
	for _, e := range found {
		here[e.ID()] = e.Flags&storage.Outlier == 0
	}
	return here, nil
}

// unknownAmong is unknownPrevs for what whatIsHere has told.
func unknownAmong(here map[matrix.EventID]bool, e *matrix.Event) (missing []matrix.EventID) {
	if here[e.ID()] {
		return nil
	}
	for _, id := range e.PrevEvents() {
		if !here[id] && !slices.Contains(missing, id) {
			missing = append(missing, id)
		}
	}
	return missing
}

// arrival says how an event comes to us.
type arrival struct {
	// history marks an event from before what we have: no position, no tip, no soft failure.
	history bool
	// states are those after prev_events that are not here, told by another server.
	states map[matrix.EventID][]storage.StateEntry
	// generation is that of the room before states were asked for: if it has been purged since, they may hold what has gone.
	generation int64
}

// takeWith fetches the auth events that are missing and appends a checked event.
func (s *Service) takeWith(ctx context.Context, origin matrix.ServerName, r *Room, e *matrix.Event, how arrival) error {
	if err := s.fetchAuth(ctx, origin, r, e); err != nil {
		return err
	}
	var verdict error
	err := s.update(ctx, r.ID, func(u *update) (err error) {
		_, verdict, err = u.accept(e, how)
		return err
	})
	if err != nil {
		return err
	}
	return verdict
}

// accept judges an event whose signatures have been checked and appends it, rejected and soft-failed ones with their flags. verdict is
// a *matrix.AuthError or ErrSoftFailed for those; err says that nothing was appended: errNoAuth, errGap, or a database's error.
// Spec v1.19 server-server-api/#checks-performed-on-receipt-of-a-pdu
func (u *update) accept(e *matrix.Event, how arrival) (added *storage.Event, verdict, err error) {
	old, err := u.known(e.ID())
	if err != nil {
		return nil, nil, err
	}
	if old != nil && old.Flags&storage.Outlier == 0 {
		switch {
		case old.Flags&storage.Rejected != 0:
			return old, &matrix.AuthError{Reason: "the event was rejected before"}, nil
		case old.Flags&storage.SoftFailed != 0:
			return old, ErrSoftFailed, nil
		}
		return old, nil, nil
	}
	before, told, err := u.stateBefore(e, how)
	if err != nil {
		return nil, nil, err
	}
	if !how.history && u.snap.row.Flags&storage.HasMissing != 0 {
		// What others here follow on is history, even if it comes only now.
		missing, err := u.s.o.DB.MissingAmong(u.ctx, u.room.Num, []matrix.EventID{e.ID()})
		if err != nil {
			return nil, nil, err
		}
		how.history = missing[e.ID()]
	}
	in := entry{event: e, before: before, history: how.history, told: told}
	// 4. Passes authorization rules based on the event's auth events, otherwise it is rejected.
	verdict, err = u.judgeByAuthEvents(e)
	if err != nil {
		return nil, nil, err
	}
	// 5. Passes authorization rules based on the state before the event, otherwise it is rejected.
	if verdict == nil {
		verdict, err = u.authorizeIn(e, before)
		if err != nil {
			return nil, nil, err
		}
	}
	if verdict != nil {
		in.flags = storage.Rejected
	} else if !how.history && before != u.snap.Root {
		// 6. Passes authorization rules based on the current state of the room, otherwise it is “soft failed”.
		refused, err := u.authorizeIn(e, u.snap.Root)
		if err != nil {
			return nil, nil, err
		}
		if refused != nil {
			in.flags, verdict = storage.SoftFailed, fmt.Errorf("%w: %w", ErrSoftFailed, refused)
		}
	}
	// 7. Is validated by the policy server, if the room is using one, otherwise it is “soft failed”.
	if verdict == nil && !how.history {
		signed, refused, err := u.recommended(e)
		if err != nil {
			return nil, nil, err
		}
		if in.event = signed; refused != nil {
			in.event, in.flags, verdict = e, storage.SoftFailed, fmt.Errorf("%w: %w", ErrSoftFailed, refused)
		}
	}
	added, err = u.append(in)
	return added, verdict, err
}

// stateBefore resolves the states after the event's prev_events. Those that are not here come from how.states and are returned, too; errGap if
// they are not there either.
func (u *update) stateBefore(e *matrix.Event, how arrival) (before storage.StateRoot, told []storage.StateRoot, err error) {
	var roots []storage.StateRoot
	for _, id := range e.PrevEvents() {
		p, err := u.known(id)
		if err != nil {
			return before, nil, err
		}
		var root storage.StateRoot
		if p != nil && p.Flags&storage.Outlier == 0 {
			root, err = u.after(p)
		} else if entries, ok := how.states[id]; ok && how.generation == u.snap.row.Generation {
			if err := u.rescueNums(entries); err != nil {
				return storage.StateRoot{}, nil, err
			}
			root, err = u.s.o.DB.UpdateState(u.ctx, u.room.Num, storage.StateRoot{}, entries, &u.fresh.nodes)
			told = append(told, root)
		} else {
			err = errGap
		}
		if err != nil {
			return before, nil, err
		}
		if !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	switch len(roots) {
	case 0:
		return before, told, nil
	case 1:
		return roots[0], told, nil
	}
	before, err = u.s.resolve(u.ctx, u.room, roots, u.fresh)
	return before, told, err
}

// judgeByAuthEvents checks the event against its own auth events; err is errNoAuth if they are not all here.
func (u *update) judgeByAuthEvents(e *matrix.Event) (verdict, err error) {
	auth := make([]*matrix.Event, 0, len(e.AuthEvents()))
	rejected := map[matrix.EventID]bool{}
	for _, id := range e.AuthEvents() {
		a, err := u.known(id)
		if err != nil {
			return nil, err
		}
		if a == nil {
			return nil, errNoAuth
		}
		auth = append(auth, a.Event)
		rejected[id] = a.Flags&storage.Rejected != 0
	}
	// A room has one create event; another one, which no event authorizes, would start a room of its own inside this one.
	if u.snap.Create != nil && e.Type() == matrix.TypeCreate && e.ID() != u.snap.Create.ID() {
		return &matrix.AuthError{Rule: "1", Reason: "the room has a create event already"}, nil
	}
	return matrix.AuthorizeByAuthEvents(e, auth, eventOf(u.snap.Create), func(id matrix.EventID) bool { return rejected[id] }), nil
}

// authorizeIn checks the event against a state of the room. While that lacks members, those that the event itself goes by stand in.
func (u *update) authorizeIn(e *matrix.Event, root storage.StateRoot) (verdict, err error) {
	state, err := u.s.lookup(u.ctx, u.room.Num, root, e.AuthKeys(), u.fresh)
	if err == nil && u.snap.PartialState && !u.whole {
		state, err = u.withClaimed(e, state)
	}
	if err != nil {
		return nil, err
	}
	err = matrix.Authorize(e, state)
	var refused *matrix.AuthError
	if errors.As(err, &refused) {
		return refused, nil
	}
	return nil, err
}

// outside looks at an event of a room that this server is not in: the one who invited a user of ours, or the user's own server, may
// take the invite back. Anything else is refused.
func (s *Service) outside(ctx context.Context, r *Room, e *matrix.Event) error {
	user, isState := e.StateKey()
	target := matrix.UserID(user)
	if e.Type() != matrix.TypeMember || !isState || target.Server() != s.o.ServerName || e.Membership() != matrix.Leave && e.Membership() != matrix.Ban {
		return matrix.Forbidden("this server is not in the room")
	}
	m, err := s.o.DB.Membership(ctx, r.Num, target)
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.Forbidden("this server is not in the room")
	} else if err != nil {
		return err
	}
	if m.Membership != matrix.Invite && m.Membership != matrix.Knock {
		return matrix.Forbidden("this server is not in the room")
	}
	invite, err := s.o.DB.Event(ctx, m.Num)
	if err != nil {
		return err
	}
	if m.Membership == matrix.Invite && e.Sender() != invite.Sender() {
		return matrix.Forbidden("only who has invited a user may take the invite back where this server cannot check more")
	}
	if m.Membership == matrix.Knock {
		return matrix.Forbidden("this server is not in the room and cannot tell who may refuse a knock")
	}
	if err := matrix.VerifyEvent(ctx, e, s.o.Keys); err != nil {
		return matrix.Forbidden("the signatures of the event cannot be verified")
	}
	return s.setOutsideMembership(ctx, r.ID, r.Version, e, nil, func(u *update) error {
		if u.snap.Joined() {
			return errGap
		}
		return nil
	})
}

// setOutsideMembership notes a member event of a user of ours in a room that this server is not in. check may refuse it; nil lets it.
func (s *Service) setOutsideMembership(ctx context.Context, room matrix.RoomID, version *matrix.RoomVersion, e *matrix.Event, stripped json.RawMessage, check func(*update) error) error {
	return s.updateNew(ctx, room, version, func(u *update) error {
		if check != nil {
			if err := check(u); err != nil {
				return err
			}
		}
		added, err := u.append(entry{event: e, flags: storage.Outlier})
		if err != nil {
			return err
		}
		user, _ := e.StateKey()
		u.setMembership(matrix.UserID(user), added, stripped)
		return nil
	})
}

// behindRefused adds to prev_events what stands behind those that were rejected or soft-failed: they have not become part of the tip, so
// what stands before them has not left it.
func (u *update) behindRefused(tip []*storage.Event, prev []matrix.EventID) ([]matrix.EventID, error) {
	inTip := func(id matrix.EventID) bool {
		return slices.ContainsFunc(tip, func(t *storage.Event) bool { return t.ID() == id })
	}
	if !slices.ContainsFunc(prev, func(id matrix.EventID) bool { return !inTip(id) }) {
		return prev, nil
	}
	all := slices.Clone(prev)
	for i := 0; i < len(all) && len(all) < 100; i++ {
		e, err := u.known(all[i])
		if err != nil {
			return nil, err
		}
		if e != nil && e.Flags&(storage.Rejected|storage.SoftFailed) != 0 && e.Flags&storage.Outlier == 0 {
			all = append(all, e.PrevEvents()...)
		}
	}
	return all, nil
}
