package syncer

import (
	"context"

	"parley.im/parley/server/matrix"
)

// A room that was joined with its members left out is shown at once to clients that load members lazily. To others it is shown when all of them
// are known, as if it had been joined then. Spec v1.19 client-server-api/#lazy-loading-room-members

// leaveOutPartial leaves out of an answer for a client that wants all members the rooms whose members are not known yet, and has those shown
// as new whose members have become known since.
func (a *answer) leaveOutPartial(ctx context.Context) error {
	if a.f.Room.State.LazyLoadMembers {
		return nil
	}
	a.partial = nil
	kept := a.items[:0]
	for i := range a.items {
		it := a.items[i]
		if it.membership == matrix.Join {
			r, err := a.roomOf(ctx, &it)
			if err != nil {
				return err
			}
			if r != nil && r.Snapshot().PartialState {
				if a.partial == nil {
					a.partial = map[matrix.RoomID]bool{}
				}
				a.partial[it.id] = true
				continue
			}
			if r != nil && !a.initial && r.Snapshot().WholePos > a.from.Pos {
				it.whole, it.joinedThroughout, it.askReceipts = true, false, true
				a.accountNews = true
			}
		}
		kept = append(kept, it)
	}
	a.items = kept
	return nil
}

// completed reports whether the members of a room became known since the client was here last.
func (a *answer) completed(ctx context.Context, it *item) (bool, error) {
	if it.membership != matrix.Join {
		return false, nil
	}
	r, err := a.roomOf(ctx, it)
	if err != nil || r == nil {
		return false, err
	}
	whole := r.Snapshot().WholePos
	return whole > a.from.Pos && whole <= a.to.Pos, nil
}

// addClaimed adds the member events of senders that the state lacks: those by which their own events go.
func (a *answer) addClaimed(ctx context.Context, it *item, t *timeline, senders []matrix.UserID, m stateSet) error {
	for _, u := range senders {
		key := matrix.StateTuple{Type: matrix.TypeMember, StateKey: string(u)}
		if m[key] != nil {
			continue
		}
		r, err := a.roomOf(ctx, it)
		if err != nil || r == nil || !r.Snapshot().PartialState {
			return err
		}
		for _, e := range t.events {
			if e.ev.Sender() != u {
				continue
			}
			member, err := a.s.o.Rooms.MemberOf(ctx, e.ev)
			if err != nil {
				return err
			}
			if member != nil {
				m[key] = member.Event
				a.sentMember(it, u)
			}
			break
		}
	}
	return nil
}
