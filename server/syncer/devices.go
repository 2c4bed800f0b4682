package syncer

import (
	"context"
	"slices"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// maxMembersTold is up to how many members of an unencrypted room are told as having come to share it.
const maxMembersTold = 500

// gatherDevices finds whose devices the client must look at again, and whose it may forget.
// Spec v1.19 client-server-api/#e2e-extensions-to-sync
func (a *answer) gatherDevices(ctx context.Context) error {
	a.changed, a.left = nil, nil
	if a.initial {
		return nil
	}
	m := &deviceMoves{}
	if a.devicesNews {
		users, err := a.s.o.Keys.Changed(ctx, a.r.User, a.from.Pos, a.to.Pos)
		if err != nil {
			return err
		}
		m.devices = users
	}
	for i := range a.items {
		it := &a.items[i]
		completed, err := a.completed(ctx, it)
		if err != nil {
			return err
		}
		switch {
		case it.membership == matrix.Join && it.whole && !it.joinedThroughout, completed:
			m.entered = append(m.entered, it.id)
		case it.membership == matrix.Leave || it.membership == matrix.Ban:
			m.left = append(m.left, it.id)
		case it.membership == matrix.Join && it.stateNew:
			if err := a.memberMoves(ctx, it, m); err != nil {
				return err
			}
		}
	}
	var err error
	a.changed, a.left, err = a.s.deviceLists(ctx, a.r.User, m)
	return err
}

// deviceMoves is what happened that bears upon whose devices a client must know.
type deviceMoves struct {
	devices       []matrix.UserID // changed devices, whether or not they share a room
	entered, left []matrix.RoomID // rooms that the user entered or left
	came, went    []matrix.UserID // who entered or left a room of the user's
}

// memberMoves adds who came into a room or left it.
func (a *answer) memberMoves(ctx context.Context, it *item, m *deviceMoves) error {
	if a.from.Pos >= it.horizon {
		for _, e := range it.news(a) {
			key, _ := e.ev.StateKey()
			if err := a.s.addMove(ctx, it.id, matrix.UserID(key), e.ev.Membership(), a.from.Pos, m); err != nil {
				return err
			}
		}
		return nil
	}
	from, err := a.s.o.Rooms.RootAt(ctx, it.id, a.from.Pos)
	if err != nil {
		return err
	}
	to, err := a.s.o.Rooms.RootAt(ctx, it.id, it.upTo)
	if err != nil {
		return err
	}
	return a.s.movesBetween(ctx, it.id, from, to, a.from.Pos, m)
}

func (s *Service) movesBetween(ctx context.Context, id matrix.RoomID, from, to storage.StateRoot, fromPos int64, m *deviceMoves) error {
	if from.Members == to.Members {
		return nil
	}
	events, err := s.o.Rooms.StateDelta(ctx, id, from, to)
	if err != nil {
		return err
	}
	for _, e := range events {
		if e.Type() != "m.room.member" {
			continue
		}
		key, _ := e.StateKey()
		if err := s.addMove(ctx, id, matrix.UserID(key), e.Membership(), fromPos, m); err != nil {
			return err
		}
	}
	return nil
}

// addMove notes that somebody came or went, but not who only changed their name.
func (s *Service) addMove(ctx context.Context, id matrix.RoomID, user matrix.UserID, membership string, fromPos int64, m *deviceMoves) error {
	now, err := s.o.Rooms.Membership(ctx, id, user)
	if err != nil && !isNotFound(err) {
		return err
	}
	switch {
	case now.Pos <= fromPos && now.Membership == membership:
	case membership == matrix.Join:
		m.came = append(m.came, user)
	case membership == matrix.Leave || membership == matrix.Ban:
		m.went = append(m.went, user)
	}
	return nil
}

// deviceLists works out who is to be told as changed and as left.
func (s *Service) deviceLists(ctx context.Context, user matrix.UserID, m *deviceMoves) (changed, left map[matrix.UserID]bool, err error) {
	if len(m.devices) == 0 && len(m.entered) == 0 && len(m.left) == 0 && len(m.came) == 0 && len(m.went) == 0 {
		return nil, nil, nil
	}
	changed, left = map[matrix.UserID]bool{}, map[matrix.UserID]bool{}
	for _, id := range m.entered {
		members, err := s.members(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		for _, u := range members {
			changed[u] = true
		}
	}
	for _, u := range slices.Concat(m.devices, m.came) {
		if changed[u] {
			continue
		}
		share := u == user
		if !share {
			if share, err = s.sharesRoom(ctx, user, u); err != nil {
				return nil, nil, err
			}
		}
		if share {
			changed[u] = true
		}
	}
	gone := slices.Clone(m.went)
	for _, id := range m.left {
		members, err := s.members(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		gone = append(gone, members...)
	}
	for _, u := range gone {
		if u == user || left[u] {
			continue
		}
		share, err := s.sharesRoom(ctx, user, u)
		if err != nil {
			return nil, nil, err
		}
		if !share {
			left[u] = true
			delete(changed, u)
		}
	}
	return changed, left, nil
}

// members lists who is joined to a room; nobody if the room is large and not encrypted.
func (s *Service) members(ctx context.Context, id matrix.RoomID) ([]matrix.UserID, error) {
	r, err := s.o.Rooms.Room(ctx, id)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	snapshot := r.Snapshot()
	if !snapshot.Encrypted && snapshot.JoinedCount > maxMembersTold {
		return nil, nil
	}
	return s.o.DB.JoinedMembers(ctx, r.Num)
}

// DeviceListChanges answers GET /keys/changes: who changed devices, or came to share a room, between two sync tokens, and
// with whom none is shared any more. to may be "" for now. Error: M_INVALID_PARAM.
// Spec v1.19 client-server-api/#get_matrixclientv3keyschanges
func (s *Service) DeviceListChanges(ctx context.Context, user matrix.UserID, from, to string) (changed, left []matrix.UserID, err error) {
	changed, left = []matrix.UserID{}, []matrix.UserID{}
	since, err := ParseToken(from)
	if err != nil {
		return nil, nil, err
	}
	if err := s.catchUp(ctx); err != nil {
		return nil, nil, err
	}
	a := &answer{s: s, r: &Request{User: user}, f: &Filter{}, since: since, from: since}
	if _, _, err := a.look(ctx); err != nil {
		return nil, nil, err
	}
	if to != "" {
		until, err := ParseToken(to)
		if err != nil {
			return nil, nil, err
		}
		if until.Pos < since.Pos {
			return nil, nil, matrix.InvalidParam("to must not be before from")
		}
		a.to.Pos = min(a.to.Pos, until.Pos)
	}
	a.devicesNews = true
	if err := a.gatherDevices(ctx); err != nil {
		return nil, nil, err
	}
	for u := range a.changed {
		changed = append(changed, u)
	}
	for u := range a.left {
		left = append(left, u)
	}
	return changed, left, nil
}

func (a *answer) appendDeviceLists(b []byte) []byte {
	if len(a.changed) == 0 && len(a.left) == 0 {
		return b
	}
	b = append(b, `,"device_lists":{"changed":`...)
	b = appendUsers(b, a.changed)
	b = append(b, `,"left":`...)
	b = appendUsers(b, a.left)
	return append(b, '}')
}

func appendUsers(b []byte, users map[matrix.UserID]bool) []byte {
	b = append(b, '[')
	first := len(b)
	for u := range users {
		if len(b) > first {
			b = append(b, ',')
		}
		b = appendString(b, string(u))
	}
	return append(b, ']')
}

// appendKeyCounts writes how many one-time keys the device has left, and which fallback keys nobody has used.
func (a *answer) appendKeyCounts(ctx context.Context, b []byte) ([]byte, error) {
	counts, fallback, err := a.s.o.Keys.OneTimeKeyCounts(ctx, a.r.User, a.r.Device)
	if err != nil {
		return b, err
	}
	b = append(b, `,"device_one_time_keys_count":{`...)
	for algorithm, n := range counts {
		b = comma(b)
		b = appendString(b, algorithm)
		b = append(b, ':')
		b = strconv.AppendInt(b, int64(n), 10)
	}
	b = append(b, `},"device_unused_fallback_key_types":[`...)
	for i, algorithm := range fallback {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, algorithm)
	}
	return append(b, ']'), nil
}
