package room

import (
	"context"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The values of history_visibility. Spec v1.19 client-server-api/#room-history-visibility
const (
	visibilityWorldReadable = "world_readable"
	visibilityShared        = "shared"
	visibilityInvited       = "invited"
	visibilityJoined        = "joined"
)

// historyVisibility is what an m.room.history_visibility event says; e may be nil. What is no known value counts as shared.
func historyVisibility(e *storage.Event) string {
	switch v := contentString(e, "history_visibility", visibilityShared); v {
	case visibilityWorldReadable, visibilityInvited, visibilityJoined:
		return v
	}
	return visibilityShared
}

// viewer is a user who looks at events of one room.
type viewer struct {
	s    *Service
	user matrix.UserID
	room int64
	// joinedNow: the user is in the room. Otherwise joinedUntil is the position at which the user was last in it; 0 if never.
	joinedNow   bool
	joinedUntil int64
	// visibility remembers what the state of the last event said: mostly the next one has the same.
	lastRoot       storage.StateRoot
	lastVisibility string
}

// viewer finds out what does not depend on the event.
func (s *Service) viewer(ctx context.Context, user matrix.UserID, room int64, roomID matrix.RoomID) (*viewer, error) {
	v := &viewer{s: s, user: user, room: room}
	m, err := s.Membership(ctx, roomID, user)
	if err != nil {
		return nil, err
	}
	if m.Membership == matrix.Join {
		v.joinedNow = true
		return v, nil
	}
	if m.Num == 0 {
		return v, nil
	}
	e, err := s.o.DB.Event(ctx, m.Num)
	if err != nil {
		return nil, err
	}
	// Back through the user's member events to the one that ended their last stay.
	for range maxMemberSteps {
		if e.Flags&storage.Outlier != 0 {
			return v, nil
		}
		before, err := s.stateEvent(ctx, room, e.Before, matrix.TypeMember, string(user), nil)
		if err != nil || before == nil {
			return v, err
		}
		if before.Membership() == matrix.Join {
			v.joinedUntil = e.Pos
			if v.joinedUntil == 0 {
				v.joinedUntil = m.Pos
			}
			return v, nil
		}
		e = before
	}
	return v, nil
}

// maxMemberSteps bounds how far back the last stay of a user who has left is looked for.
const maxMemberSteps = 50

// sees reports whether the viewer may see the event. Spec v1.19 client-server-api/#server-behaviour-6
func (v *viewer) sees(ctx context.Context, e *storage.Event) (bool, error) {
	if e.Hidden() {
		return false, nil
	}
	visibility, err := v.visibilityAt(ctx, e)
	if err != nil {
		return false, err
	}
	// 1. If the history_visibility was set to world_readable, allow.
	if visibility == visibilityWorldReadable {
		return true, nil
	}
	// 3. If history_visibility was set to shared, and the user joined the room at any point after the event was sent, allow.
	if visibility == visibilityShared && (v.joinedNow || e.Pos < v.joinedUntil) {
		return true, nil
	}
	membership, err := v.membershipAt(ctx, e)
	if err != nil {
		return false, err
	}
	// 2. If the user's membership was join, allow.
	// 4. If the user's membership was invite, and the history_visibility was set to invited, allow.
	// 5. Otherwise, deny.
	return membership == matrix.Join || membership == matrix.Invite && visibility == visibilityInvited, nil
}

// visibilityAt is the visibility at the time of the event. An event that changes it is seen by those whom the value before it or the one after
// it lets see it.
func (v *viewer) visibilityAt(ctx context.Context, e *storage.Event) (string, error) {
	if v.lastVisibility == "" || v.lastRoot.Others != e.Before.Others {
		set, err := v.s.stateEvent(ctx, v.room, e.Before, matrix.TypeHistoryVisibility, "", nil)
		if err != nil {
			return "", err
		}
		v.lastRoot, v.lastVisibility = e.Before, historyVisibility(set)
	}
	visibility := v.lastVisibility
	if e.Is(matrix.TypeHistoryVisibility, "") {
		if after := historyVisibility(e); openness(after) > openness(visibility) {
			visibility = after
		}
	}
	return visibility, nil
}

func openness(visibility string) int {
	switch visibility {
	case visibilityWorldReadable:
		return 3
	case visibilityShared:
		return 2
	case visibilityInvited:
		return 1
	}
	return 0
}

// membershipAt is the user's membership at the time of the event. At the user's own member event it is the one of that before and the one after it
// which lets see more.
func (v *viewer) membershipAt(ctx context.Context, e *storage.Event) (string, error) {
	before, err := v.s.stateEvent(ctx, v.room, e.Before, matrix.TypeMember, string(v.user), nil)
	if err != nil {
		return "", err
	}
	membership := matrix.Leave
	if before != nil {
		membership = before.Membership()
	}
	if e.Is(matrix.TypeMember, string(v.user)) && membership != matrix.Join {
		if after := e.Membership(); after == matrix.Join || after == matrix.Invite || membership != matrix.Invite {
			membership = after
		}
	}
	return membership, nil
}

// VisibleTo picks the events that user may see by the room's history visibility, in their order. Events of one room only.
// Spec v1.19 client-server-api/#room-history-visibility
func (s *Service) VisibleTo(ctx context.Context, user matrix.UserID, events []*storage.Event) ([]*storage.Event, error) {
	if len(events) == 0 {
		return events, nil
	}
	v, err := s.viewer(ctx, user, events[0].RoomNum, events[0].RoomID())
	if err != nil {
		return nil, err
	}
	visible := events[:0:0]
	for _, e := range events {
		ok, err := v.sees(ctx, e)
		if err != nil {
			return nil, err
		}
		if ok {
			visible = append(visible, e)
		}
	}
	return visible, nil
}
