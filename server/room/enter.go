package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// A room is entered in steps, each of them in writes of bounded size, so that a large one does not hold up what others write: its
// events as outliers, the nodes of its state, the rows of members of other servers, and last, in one write, the join with the room's tip
// and current state. Only that makes this server take part. What an attempt that ended before that has left behind is found again or
// written over by the next one.

// joined takes in what server answered to our join: the events of the state before it, and those that are in their auth chain only.
func (s *Service) joined(ctx context.Context, server matrix.ServerName, join *matrix.Event, answer SendJoinResponse, state, chain []*matrix.Event) error {
	if err := matrix.VerifyEvent(ctx, join, s.o.Keys); err != nil {
		return err
	}
	if r, err := s.Room(ctx, join.RoomID()); err == nil && r.Snapshot().Joined() {
		return s.takeLate(ctx, server, r, join)
	}
	if answer.MembersOmitted && !s.o.Config.PartialJoins {
		return errors.New("it has left out members that were asked for")
	}
	version, room := join.Version(), join.RoomID()
	generation := int64(0)
	if r, err := s.Room(ctx, room); err == nil {
		generation = r.Snapshot().row.Generation
	}
	state = s.verifyEvents(ctx, state)
	create, err := createOf(state, version)
	if err != nil {
		return err
	}
	inState := make(map[matrix.EventID]bool, len(state))
	for _, e := range state {
		inState[e.ID()] = e.IsState()
	}
	verified := append(state, s.verifyEvents(ctx, chain)...)
	if err := ctx.Err(); err != nil {
		return err
	}
	known, _, err := s.knownAuth(ctx, room, version, verified)
	if err != nil {
		return err
	}
	verdicts := judge(byAuth(verified), create, func(id matrix.EventID) (*matrix.Event, bool) {
		e := known[id]
		return eventOf(e), e != nil && e.Flags&storage.Rejected != 0
	})
	entries := make([]stateEvent, 0, len(inState))
	claimed := map[string]stateEvent{}
	err = storeJudged(verdicts, func(e *storage.Event) {
		switch {
		case e.Flags&storage.Rejected != 0:
		case inState[e.ID()]:
			entries = append(entries, stateEventOf(e))
		case e.Type() == matrix.TypeMember && slices.Contains(join.AuthEvents(), e.ID()):
			claimed[stateKey(e.Event)] = stateEventOf(e)
		}
	}, func(fn func(u *update) error) error { return s.updateNew(ctx, room, version, fn) })
	if err != nil {
		return err
	}
	if !answer.MembersOmitted {
		return s.startFrom(ctx, join, entries, nil, generation)
	}
	// The members by which the join goes are of the state before it, even where members are left out.
	for _, e := range entries {
		if e.Type == matrix.TypeMember {
			delete(claimed, e.Key)
		}
	}
	entries = slices.AppendSeq(entries, maps.Values(claimed))
	if err := s.startFrom(ctx, join, entries, s.partialServers(server, answer.ServersInRoom), generation); err != nil {
		return err
	}
	s.foreign.partial.kick(s, room)
	return nil
}

// createOf finds the one create event of a state, whose signatures have been checked, and checks that it makes a room of the version.
func createOf(state []*matrix.Event, version *matrix.RoomVersion) (*matrix.Event, error) {
	i := slices.IndexFunc(state, func(e *matrix.Event) bool { return e.Is(matrix.TypeCreate, "") })
	if i < 0 {
		return nil, errors.New("the state has no create event with a valid signature")
	}
	content := struct {
		RoomVersion string `json:"room_version"`
	}{"1"}
	if err := json.Unmarshal(state[i].Content(), &content); err != nil || content.RoomVersion != version.ID {
		return nil, fmt.Errorf("the room is said to have version %s, but was created with version %q", version, content.RoomVersion)
	}
	return state[i], nil
}

// stateEvent is what must be known of a stored event to make it part of a state.
type stateEvent struct {
	storage.StateEntry
	membership string // of a member event
}

// stateEventOf keeps nothing of e in memory.
func stateEventOf(e *storage.Event) stateEvent {
	se := stateEvent{StateEntry: storage.StateEntry{Type: strings.Clone(e.Type()), Key: strings.Clone(stateKey(e.Event)), Num: e.Num}}
	if se.Type == matrix.TypeMember {
		se.Type, se.membership = matrix.TypeMember, strings.Clone(e.Membership())
	}
	return se
}

// startFrom makes the join the room's tip, with the stored events of state before it. What we had of the room before is
// history. If members are left out of the state, servers are those that are in the room; else it is nil.
func (s *Service) startFrom(ctx context.Context, join *matrix.Event, state []stateEvent, servers []matrix.ServerName, generation int64) error {
	r, err := s.pin(ctx, join.RoomID())
	if err != nil {
		return err
	}
	defer r.pins.Add(-1)
	in, err := s.stageEntrance(ctx, r, state, generation)
	if errors.Is(err, storage.ErrMoved) {
		return errJoinedMeanwhile
	}
	if err != nil {
		return err
	}
	in.partial = servers
	return s.run(ctx, r, func(u *update) error { return u.enter(join, in) })
}

// entrance is a state that is ready to be that before our join: its nodes are stored, and the rows of members of other servers are
// as it says.
type entrance struct {
	room            int64
	generation      int64 // of the room before the state was looked at
	entries         []storage.StateEntry
	root            storage.StateRoot
	servers         map[matrix.ServerName]int // how many are joined
	joined, invited int
	local           map[matrix.UserID]storage.MemberRow // members of this server
	partial         []matrix.ServerName                 // if members are left out: the servers in the room
}

// stageEntrance makes ready what can be written before the room is entered. The error is storage.ErrMoved if it has been entered meanwhile.
func (s *Service) stageEntrance(ctx context.Context, r *Room, state []stateEvent, generation int64) (*entrance, error) {
	in := &entrance{room: r.Num, generation: generation, servers: map[matrix.ServerName]int{}, local: map[matrix.UserID]storage.MemberRow{}}
	entries := make([]storage.StateEntry, len(state))
	members := map[matrix.UserID]storage.MemberRow{}
	for i := range state {
		entries[i] = state[i].StateEntry
		if state[i].Type == matrix.TypeMember {
			user := matrix.UserID(state[i].Key)
			members[user] = storage.MemberRow{User: user, Membership: state[i].membership, Num: state[i].Num}
		}
	}
	in.entries = entries
	var nodes storage.StateNodes
	var err error
	if in.root, err = s.o.DB.UpdateState(ctx, r.Num, storage.StateRoot{}, entries, &nodes); err != nil {
		return nil, err
	}
	if err := s.o.DB.StageNodes(ctx, r.Num, &nodes); err != nil {
		return nil, err
	}
	for user, m := range members {
		in.count(m)
		if user.Server() == s.o.ServerName {
			in.local[user] = m
			delete(members, user)
		}
	}
	// The rows may be of an earlier stay or of an attempt that was not finished. Only what differs is written.
	var changes []storage.MemberChange
	change := func(m storage.MemberRow) {
		c := storage.MemberChange{Membership: storage.Membership{Room: r.ID, RoomNum: r.Num, User: m.User, Membership: m.Membership, Num: m.Num}}
		changes = append(changes, c)
	}
	err = s.o.DB.MemberRows(ctx, r.Num, func(row storage.MemberRow) {
		m, ok := members[row.User]
		switch {
		case row.User.Server() == s.o.ServerName:
		case !ok && row.Membership != matrix.Leave:
			change(storage.MemberRow{User: row.User, Membership: matrix.Leave})
		case m == row:
			delete(members, row.User)
		}
	})
	if err != nil {
		return nil, err
	}
	for m := range maps.Values(members) {
		change(m)
	}
	return in, s.o.DB.StageMembers(ctx, r.Num, r.Snapshot().row.Tip, changes)
}

func (in *entrance) count(m storage.MemberRow) {
	switch m.Membership {
	case matrix.Join:
		in.joined++
		in.servers[m.User.Server()]++
	case matrix.Invite:
		in.invited++
	}
}

// enter makes the join the tip of a room that this server is not in, in a state that was made ready.
func (u *update) enter(join *matrix.Event, in *entrance) error {
	if u.snap.Joined() || u.room.Num != in.room {
		return errJoinedMeanwhile
	}
	if u.snap.row.Generation != in.generation {
		return matrix.LimitExceeded(time.Second) // a purge is under way that may have taken what we have found here
	}
	if err := u.rescueNums(in.entries); err != nil {
		return err
	}
	if err := u.changeLocal(join, in); err != nil {
		return err
	}
	u.startOver(in)
	if err := u.s.decode(u.ctx, &u.snap, u.fresh); err != nil {
		return err
	}
	verdict, err := u.judgeByAuthEvents(join)
	if err == nil && verdict == nil {
		verdict, err = u.authorizeIn(join, in.root)
	}
	if err != nil {
		return err
	}
	if verdict != nil {
		return matrix.Forbidden("the server let the user in, but the room's state does not: %s", verdict)
	}
	u.handed = join.ID()
	added, err := u.append(entry{event: join, before: in.root})
	if err == nil && in.partial != nil {
		u.beginPartial(added, in.root, in.partial)
	}
	return err
}

// changeLocal notes how the members of this server stand to a room that it enters: as its state says, or out if the state that we knew had
// them and this one has not. Others whose row says something have it from elsewhere, such as from an invite that the state does not know yet.
func (u *update) changeLocal(join *matrix.Event, in *entrance) error {
	rows, err := u.s.o.DB.RoomMembers(u.ctx, u.room.Num, u.s.o.ServerName, "")
	if err != nil {
		return err
	}
	change := func(m storage.MemberRow) {
		if string(m.User) == stateKey(join) {
			return // follows from the join itself
		}
		u.add.Members = append(u.add.Members, storage.MemberChange{Membership: storage.Membership{
			Room: u.room.ID, RoomNum: u.room.Num, User: m.User, Membership: m.Membership, Num: m.Num}})
	}
	same := map[matrix.UserID]bool{}
	for _, row := range rows {
		m, ok := in.local[row.User]
		if ok {
			same[row.User] = m.Num == row.Num && m.Membership == row.Membership
			continue
		}
		old, err := u.s.stateEvent(u.ctx, u.room.Num, u.snap.Root, matrix.TypeMember, string(row.User), u.fresh)
		if err != nil {
			return err
		}
		if old != nil && old.Num == row.Num {
			change(storage.MemberRow{User: row.User, Membership: matrix.Leave})
		}
	}
	for user, m := range in.local {
		if !same[user] {
			change(m)
		}
	}
	return nil
}

// startOver puts the state in which the room is entered in the place of what was known of it. add.OldRoot stays, so that
// the position at which the state changed is noted.
func (u *update) startOver(in *entrance) {
	u.snap.Tip, u.snap.Depth = nil, 0
	u.snap.Root = in.root
	if u.snap.partial = nil; in.partial != nil {
		u.setFlags(storage.PartialState|storage.WasPartial, 0)
	} else if u.snap.PartialState { // as it was entered the last time
		u.setFlags(0, storage.PartialState)
		u.add.Partial.Done = true
	}
	u.snap.Servers, u.snap.JoinedCount, u.snap.InvitedCount = maps.Clone(in.servers), in.joined, in.invited
	u.snap.Local = map[matrix.UserID]int64{}
	for user, m := range in.local {
		if m.Membership == matrix.Join {
			u.snap.Local[user] = m.Num
		}
	}
	u.dirty = true
}
