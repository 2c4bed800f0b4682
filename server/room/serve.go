package room

import (
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The methods here give other servers what they may see. server has been authenticated by the caller.

// CheckServer returns nil if this server takes part in the room, and the other has a user in it and is allowed by its ACL. Errors: M_NOT_FOUND,
// M_FORBIDDEN.
func (s *Service) CheckServer(ctx context.Context, room matrix.RoomID, server matrix.ServerName) error {
	r, err := s.Room(ctx, room)
	if err != nil {
		return err
	}
	snap := r.Snapshot()
	switch {
	case !snap.Joined():
		return errNoRoom
	case snap.Servers[server] == 0:
		return matrix.Forbidden("your server is not in this room")
	case !snap.ACL.Allows(server):
		return matrix.Forbidden("this room does not let your server take part")
	}
	return nil
}

// EventByID finds an event, whatever became of it; M_NOT_FOUND if it is not here.
func (s *Service) EventByID(ctx context.Context, id matrix.EventID) (*storage.Event, error) {
	e, err := s.o.DB.EventByID(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("there is no such event here")
	}
	return e, err
}

// EventsByID finds events; those that are not here are left out.
func (s *Service) EventsByID(ctx context.Context, ids []matrix.EventID) ([]*storage.Event, error) {
	return s.o.DB.EventsByID(ctx, ids)
}

// EventForServer gives an event that server may see: it has a user in the room, and may see the event's content, or else gets it redacted.
// Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) EventForServer(ctx context.Context, server matrix.ServerName, id matrix.EventID) (*storage.Event, error) {
	e, err := s.EventByID(ctx, id)
	if err != nil {
		return nil, err
	}
	if e.Flags&storage.Rejected != 0 {
		return nil, matrix.NotFound("there is no such event here")
	}
	if err := s.CheckServer(ctx, e.RoomID(), server); err != nil {
		return nil, err
	}
	if gone, err := s.IsPast(ctx, e); err != nil {
		return nil, err
	} else if gone && !e.IsState() {
		return nil, matrix.NotFound("there is no such event here")
	}
	visible, err := s.VisibleToServer(ctx, server, []*storage.Event{e})
	if err != nil || visible[0] {
		return e, err
	}
	redacted := *e
	redacted.Event = e.Redact()
	return &redacted, nil
}

// maxServerUsers is how many users of a server are looked at to find one who may see an event.
const maxServerUsers = 1000

// VisibleToServer says, for each event of one room, whether one of server's users may see its content. State events may always be
// seen by servers in the room: without them they cannot follow it. Spec v1.19 server-server-api/#backfilling-and-retrieving-missing-events
func (s *Service) VisibleToServer(ctx context.Context, server matrix.ServerName, events []*storage.Event) ([]bool, error) {
	visible := make([]bool, len(events))
	if len(events) == 0 {
		return visible, nil
	}
	v := viewer{s: s, room: events[0].RoomNum}
	var users []storage.Membership // of server, read when needed
	for i, e := range events {
		if e.Sender().Server() == server || e.IsState() {
			visible[i] = true
			continue
		}
		visibility, err := v.visibilityAt(ctx, e)
		if err != nil {
			return nil, err
		}
		if visibility == visibilityWorldReadable || visibility == visibilityShared || e.Flags&storage.Outlier != 0 {
			visible[i] = true
			continue
		}
		if users == nil {
			if users, err = s.o.DB.RoomMembers(ctx, e.RoomNum, server, ""); err != nil {
				return nil, err
			}
			users = users[:min(len(users), maxServerUsers)]
		}
		for _, u := range users {
			membership, err := (&pastMembership{}).at(ctx, s, e, u.User)
			if err != nil {
				return nil, err
			}
			if membership == matrix.Join || membership == matrix.Invite && visibility == visibilityInvited {
				visible[i] = true
				break
			}
		}
	}
	return visible, nil
}

// AuthChain lists the auth chains of events, the events themselves left out unless they are in each other's, without duplicates. It
// walks level by level, so that a chain of n levels costs n reads at most, and none where the cache holds it.
func (s *Service) AuthChain(ctx context.Context, events []*storage.Event) ([]*storage.Event, error) {
	seen := map[matrix.EventID]bool{}
	var chain []*storage.Event
	for level := events; len(level) > 0; {
		var ids []matrix.EventID
		for _, e := range level {
			for _, id := range e.AuthEvents() {
				if !seen[id] {
					seen[id] = true
					ids = append(ids, id)
				}
			}
		}
		found, err := s.o.DB.EventsByID(ctx, ids)
		if err != nil {
			return nil, err
		}
		chain = append(chain, found...)
		level = found
	}
	return chain, nil
}

// stateForServer gives the state before an event of the room that server asks for, and its auth chain.
func (s *Service) stateForServer(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (state, chain []*storage.Event, err error) {
	if err := s.CheckServer(ctx, room, server); err != nil {
		return nil, nil, err
	}
	e, err := s.EventByID(ctx, event)
	if err != nil {
		return nil, nil, err
	}
	gone, err := s.IsPast(ctx, e)
	if err != nil {
		return nil, nil, err
	}
	if e.RoomID() != room || e.Flags&storage.Outlier != 0 || gone {
		return nil, nil, matrix.NotFound("the state before that event is not known here")
	}
	if e, err = s.withWholeState(ctx, e); err != nil {
		return nil, nil, err
	}
	if state, err = s.StateEvents(ctx, room, e.Before, storage.AllState); err != nil {
		return nil, nil, err
	}
	chain, err = s.AuthChain(ctx, state)
	return state, chain, err
}

// withWholeState waits until the whole state before an event is known, and gives the event as it is then. Errors: M_NOT_FOUND (it takes too long).
func (s *Service) withWholeState(ctx context.Context, e *storage.Event) (*storage.Event, error) {
	r, err := s.Room(ctx, e.RoomID())
	if err != nil {
		return nil, err
	}
	p := r.Snapshot().partial
	if p == nil {
		return e, nil
	}
	if since, err := s.o.DB.IsPartialEvent(ctx, r.Num, e.Num); err != nil {
		return nil, err
	} else if !since && e.Num != p.Join {
		return e, nil
	}
	if err := s.AwaitWhole(ctx, r.ID, serverPatience); matrix.ErrorCode(err) == "M_UNABLE_DUE_TO_PARTIAL_STATE" {
		return nil, errPartial
	} else if err != nil {
		return nil, err
	}
	return s.EventByID(ctx, e.ID())
}

// StateIDsAt answers GET /federation/v1/state_ids: the state before an event and its auth chain. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) StateIDsAt(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (StateIDsResponse, error) {
	state, chain, err := s.stateForServer(ctx, server, room, event)
	return StateIDsResponse{PDUIDs: idsOf(state), AuthChainIDs: idsOf(chain)}, err
}

func idsOf(events []*storage.Event) []matrix.EventID {
	ids := make([]matrix.EventID, len(events))
	for i, e := range events {
		ids[i] = e.ID()
	}
	return ids
}

// StateAtEvent answers GET /federation/v1/state. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) StateAtEvent(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (StateResponse, error) {
	state, chain, err := s.stateForServer(ctx, server, room, event)
	return StateResponse{PDUs: jsonOf(state), AuthChain: jsonOf(chain)}, err
}

func jsonOf(events []*storage.Event) []json.RawMessage {
	all := make([]json.RawMessage, len(events))
	for i, e := range events {
		all[i] = e.JSON()
	}
	return all
}

// EventAuthChain answers GET /federation/v1/event_auth. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) EventAuthChain(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) ([]json.RawMessage, error) {
	if err := s.CheckServer(ctx, room, server); err != nil {
		return nil, err
	}
	e, err := s.EventByID(ctx, event)
	if err != nil {
		return nil, err
	}
	if e.RoomID() != room {
		return nil, matrix.NotFound("there is no such event in that room")
	}
	chain, err := s.AuthChain(ctx, []*storage.Event{e})
	return jsonOf(chain), err
}
