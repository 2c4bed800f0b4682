package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Reader is for whom an event is written.
type Reader struct {
	User   matrix.UserID
	Device matrix.DeviceID // transaction IDs go to the device that sent the event
	// OmitRoomID leaves out room_id, as in /sync.
	OmitRoomID bool
	Fields     *matrix.EventFields
}

// AppendClient appends the event as the reader gets it, with unsigned: age, transaction ID, previous content, the redaction,
// the reader's membership at the time, and the bundled aggregations.
func (s *Service) AppendClient(ctx context.Context, dst []byte, e *storage.Event, r Reader) ([]byte, error) {
	relations, err := s.relationsOf(ctx, e.RoomNum, []*storage.Event{e})
	if err != nil {
		return nil, err
	}
	return s.appendClient(ctx, dst, e, r, relations[e.ID()], &pastMembership{})
}

func (s *Service) appendClient(ctx context.Context, dst []byte, e *storage.Event, r Reader, relations []storage.Relation, past *pastMembership) ([]byte, error) {
	o := matrix.ClientOptions{OmitRoomID: r.OmitRoomID, Fields: r.Fields, HasAge: true, AgeMS: s.o.Now().UnixMilli() - e.OriginServerTS()}
	if err := s.unsigned(ctx, &o, e, nil); err != nil {
		return nil, err
	}
	if s.o.AudioUnsigned != nil && e.Type() == matrix.TypeMessage && bytes.Contains(e.Content(), []byte(`"m.audio"`)) {
		more, err := s.o.AudioUnsigned(ctx, e)
		if err != nil {
			return nil, err
		}
		o.Unsigned = more
	}
	if e.TxnID != "" && e.Sender() == r.User && e.Device == r.Device {
		o.TransactionID = e.TxnID
	}
	if r.User != "" && e.Flags&storage.Outlier == 0 {
		membership, err := past.at(ctx, s, e, r.User)
		if err != nil {
			return nil, err
		}
		o.Membership = membership
	}
	var err error
	if o.Relations, err = s.aggregations(ctx, e, relations, r); err != nil {
		return nil, err
	}
	return e.AppendClient(dst, &o), nil
}

// Clients is AppendClient for several events of one room.
func (s *Service) Clients(ctx context.Context, events []*storage.Event, r Reader) ([]json.RawMessage, error) {
	all := make([]json.RawMessage, len(events))
	if len(events) == 0 {
		return all, nil
	}
	relations, err := s.relationsOf(ctx, events[0].RoomNum, events)
	if err != nil {
		return nil, err
	}
	var past pastMembership
	for i, e := range events {
		b, err := s.appendClient(ctx, make([]byte, 0, len(e.JSON())), e, r, relations[e.ID()], &past)
		if err != nil {
			return nil, err
		}
		all[i] = b
	}
	return all, nil
}

// encode is the event as all clients get it, as the bell hands it over: see [storage.CommittedEvent].
func (s *Service) encode(ctx context.Context, e *storage.Event, fresh *staged) ([]byte, error) {
	o := matrix.ClientOptions{OmitRoomID: true}
	if err := s.unsigned(ctx, &o, e, fresh); err != nil {
		return nil, err
	}
	return e.AppendClient(make([]byte, 0, len(e.JSON())), &o), nil
}

// unsigned sets what is the same for all readers.
func (s *Service) unsigned(ctx context.Context, o *matrix.ClientOptions, e *storage.Event, fresh *staged) error {
	if e.RedactedBy != "" {
		redaction := fresh.byID(e.RedactedBy)
		if redaction == nil {
			var err error
			if redaction, err = s.o.DB.EventByID(ctx, e.RedactedBy); err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
		}
		o.RedactedBecause = eventOf(redaction)
	}
	key, ok := e.StateKey()
	if !ok || e.Flags&storage.Outlier != 0 {
		return nil
	}
	old, err := s.stateEvent(ctx, e.RoomNum, e.Before, e.Type(), key, fresh)
	if err != nil || old == nil {
		return err
	}
	o.PrevContent, o.PrevSender, o.ReplacesState = old.Content(), old.Sender(), old.ID()
	return nil
}

// pastMembership finds what a user was in a room at the time of events. It remembers the last answer: mostly the members before the next
// event are the same. For one user and one room.
type pastMembership struct {
	root       storage.StateRoot // of the last event
	membership string            // "": there was none yet
}

// at is the membership at the time of an event; the user's own member event counts itself.
func (p *pastMembership) at(ctx context.Context, s *Service, e *storage.Event, user matrix.UserID) (string, error) {
	if e.Is(matrix.TypeMember, string(user)) {
		return e.Membership(), nil
	}
	if p.membership != "" && p.root.Members == e.Before.Members {
		return p.membership, nil
	}
	member, err := s.stateEvent(ctx, e.RoomNum, e.Before, matrix.TypeMember, string(user), nil)
	if err != nil {
		return "", err
	}
	p.root, p.membership = e.Before, matrix.Leave
	if member != nil {
		p.membership = member.Membership()
	}
	return p.membership, nil
}
