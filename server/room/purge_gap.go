package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// takeAfterPurge takes an event that follows on history that was purged here or has expired: its sender was away for long, or the purge was recent.
// What stands before it is not fetched again; only the state there is asked for, of the server that sent the event. The error is errGap if
// something else is missing.
func (s *Service) takeAfterPurge(ctx context.Context, server matrix.ServerName, r *Room, e *matrix.Event) error {
	past, err := s.Past(ctx, r)
	if err != nil || past.IsZero() || past.wasTaken(e) || s.o.Remote == nil {
		return firstOf(err, errGap)
	}
	missing, err := s.unknownPrevs(ctx, e)
	if err != nil || len(missing) > maxGapStates {
		return firstOf(err, errGap)
	}
	how := arrival{generation: r.Snapshot().row.Generation, states: map[matrix.EventID][]storage.StateEntry{}}
	for _, id := range missing {
		entries, err := s.stateAfterPurged(ctx, server, r, id, past)
		if err != nil {
			s.o.Log.Info("ask for the state behind a purge", "room", r.ID, "server", server, "event", id, "err", err)
			return errGap
		}
		how.states[id] = entries
	}
	return s.takeWith(ctx, server, r, e, how)
}

func firstOf(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// stateAfterPurged asks server for the state after an event of the history that was purged here, and stores the events of it as outliers, the event
// itself only if it is part of that state.
func (s *Service) stateAfterPurged(ctx context.Context, server matrix.ServerName, r *Room, id matrix.EventID, past Past) ([]storage.StateEntry, error) {
	raw, err := s.o.Remote.Event(ctx, server, id)
	if err != nil {
		return nil, err
	}
	at := s.verifyEvents(ctx, parseEvents([]json.RawMessage{raw}, r.Version, r.ID, 1))
	if len(at) != 1 || at[0].ID() != id || !past.isOver(at[0]) {
		return nil, fmt.Errorf("%s is not of the history that was purged", id)
	}
	answer, err := s.o.Remote.StateIDs(ctx, server, r.ID, id)
	if err != nil {
		return nil, err
	}
	if len(answer.PDUIDs) > maxStateEvents || len(answer.AuthChainIDs) > maxStateEvents {
		return nil, fmt.Errorf("a state of %d events with %d auth events", len(answer.PDUIDs), len(answer.AuthChainIDs))
	}
	if err := s.fetchWanted(ctx, server, r, id, slices.Concat(answer.PDUIDs, answer.AuthChainIDs)); err != nil {
		return nil, err
	}
	ids := answer.PDUIDs
	if at[0].IsState() {
		if err := s.storeOutliers(ctx, r, at); err != nil {
			return nil, err
		}
		ids = append(slices.Clone(ids), id) // the last of a key counts
	}
	state, err := s.o.DB.EventsByID(ctx, ids)
	return entriesOf(slices.DeleteFunc(state, func(e *storage.Event) bool {
		return e.RoomNum != r.Num || !e.IsState() || e.Flags&storage.Rejected != 0
	})), err
}
