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
	// past is what nobody may read any more.
	past Past
}

// viewer finds out what does not depend on the event.
func (s *Service) viewer(ctx context.Context, user matrix.UserID, room int64, roomID matrix.RoomID) (*viewer, error) {
	v := &viewer{s: s, user: user, room: room}
	r, err := s.Room(ctx, roomID)
	if err != nil {
		return nil, err
	}
	if v.past, err = s.Past(ctx, r); err != nil {
		return nil, err
	}
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
	v.joinedUntil, err = s.lastStay(ctx, roomID, user, m.Pos)
	return v, err
}

// maxMemberSteps bounds how far back the last stay of a user who has left is looked for.
const maxMemberSteps = 50

// lastStay finds the position at which a user, who became what they are now at a position, was in the room last, by the current state of that
// time; 0 if never. A member event's own past would not do: of two branches, it may come from the one in which the user never was there.
func (s *Service) lastStay(ctx context.Context, room matrix.RoomID, user matrix.UserID, pos int64) (int64, error) {
	memberAt := func(pos int64) (*storage.Event, error) {
		root, err := s.RootAt(ctx, room, pos)
		if err != nil {
			return nil, err
		}
		return s.StateAt(ctx, room, root, matrix.TypeMember, string(user))
	}
	for range maxMemberSteps {
		member, err := memberAt(pos - 1)
		if err != nil || member == nil {
			return 0, err
		}
		if member.Membership() == matrix.Join {
			return pos, nil
		}
		if member.Pos == 0 || member.Pos >= pos {
			return 0, nil
		}
		// Mostly an event holds from when it came. If it came on a branch that lost at first, it is found out since when.
		first, last := member.Pos, pos-1
		for at := first; first < last; at = (first + last) / 2 {
			then, err := memberAt(at)
			if err != nil {
				return 0, err
			}
			if then != nil && then.Num == member.Num {
				last = at
			} else {
				first = at + 1
			}
		}
		pos = last
	}
	return 0, nil
}

// sees reports whether the viewer may see the event. Spec v1.19 client-server-api/#server-behaviour-6
func (v *viewer) sees(ctx context.Context, e *storage.Event) (bool, error) {
	if e.Hidden() || v.past.Hides(e.Event, e.Num, e.Pos) {
		return false, nil
	}
	visibility, err := v.visibilityAt(ctx, e)
	if err != nil {
		return false, err
	}
	// For m.room.history_visibility events themselves, the one before or after; of these neither is always the more open one.
	after := visibility
	if e.Is(matrix.TypeHistoryVisibility, "") {
		after = historyVisibility(e)
	}
	joinedLater := v.joinedNow || e.Pos < v.joinedUntil
	if allows(visibility, "", joinedLater) || allows(after, "", joinedLater) {
		return true, nil
	}
	membership, err := v.s.stateEvent(ctx, v.room, e.Before, matrix.TypeMember, string(v.user), nil)
	if err != nil {
		return false, err
	}
	// Likewise, for the user's own m.room.member events, the membership before or after.
	for _, m := range []*storage.Event{membership, e} {
		if m != nil && m.Is(matrix.TypeMember, string(v.user)) && (allows(visibility, m.Membership(), joinedLater) || allows(after, m.Membership(), joinedLater)) {
			return true, nil
		}
	}
	return false, nil
}

// allows is the list of rules. joinedLater: the user was in the room at any point after the event was sent.
func allows(visibility, membership string, joinedLater bool) bool {
	switch {
	case visibility == visibilityWorldReadable, // 1. If the history_visibility was set to world_readable, allow.
		membership == matrix.Join,                                      // 2. If the user's membership was join, allow.
		visibility == visibilityShared && joinedLater,                  // 3. If history_visibility was set to shared, and the user joined the room at any point after the event was sent, allow.
		membership == matrix.Invite && visibility == visibilityInvited: // 4. If the user's membership was invite, and the history_visibility was set to invited, allow.
		return true
	}
	return false // 5. Otherwise, deny.
}

// visibilityAt is the visibility before the event.
func (v *viewer) visibilityAt(ctx context.Context, e *storage.Event) (string, error) {
	if v.lastVisibility == "" || v.lastRoot.Others != e.Before.Others {
		set, err := v.s.stateEvent(ctx, v.room, e.Before, matrix.TypeHistoryVisibility, "", nil)
		if err != nil {
			return "", err
		}
		v.lastRoot, v.lastVisibility = e.Before, historyVisibility(set)
	}
	return v.lastVisibility, nil
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
