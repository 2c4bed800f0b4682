package room

import (
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// JoinRequest asks to join, or to knock on, a room. An alias is resolved by the caller, with ResolveAlias.
type JoinRequest struct {
	Room matrix.RoomID
	User matrix.UserID // of this server
	// Via are servers that may help, best first; those of the invite, and the room ID's, are tried as well.
	Via    []matrix.ServerName
	Reason string
	// Content holds further fields of the member event's content; may be nil.
	Content json.RawMessage
}

// Join makes the user a member, through another server if this one is not in the room or may not let the user in. Joining a
// room one is in succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND, M_UNABLE_TO_AUTHORISE_JOIN, M_UNABLE_TO_GRANT_JOIN,
// M_INCOMPATIBLE_ROOM_VERSION.
func (s *Service) Join(ctx context.Context, r JoinRequest) (matrix.RoomID, error) {
	content, err := s.memberContent(ctx, r.User, matrix.Join, r.Reason, r.Content)
	if err != nil {
		return "", err
	}
	for range 3 {
		room, err := s.Room(ctx, r.Room)
		if err != nil && !errors.Is(err, errNoRoom) {
			return "", err
		}
		if err != nil || !room.Snapshot().Joined() {
			err = s.joinThrough(ctx, r, content, false)
		} else if snap := room.Snapshot(); snap.PartialState && snap.Local[r.User] == 0 { // who may be banned, for all we know
			err = s.joinThrough(ctx, r, content, true)
		} else {
			err = s.joinHere(ctx, r, content)
			if errors.Is(err, errCannotGrant) {
				err = s.joinThrough(ctx, r, content, true)
			}
		}
		if !errors.Is(err, errJoinedMeanwhile) {
			return r.Room, err
		}
	}
	return "", errJoinedMeanwhile
}

// errCannotGrant says that another server may be able to let a user into a room with restricted joins.
var errCannotGrant = errors.New("nobody on this server can let the user in")

// joinHere joins a user to a room that this server is in.
func (s *Service) joinHere(ctx context.Context, r JoinRequest, content json.RawMessage) error {
	room, err := s.pin(ctx, r.Room)
	if err != nil {
		return err
	}
	defer room.pins.Add(-1)
	if snap := room.Snapshot(); snap.Local[r.User] != 0 {
		return nil
	}
	return s.run(ctx, room, func(u *update) error {
		if u.snap.Local[r.User] != 0 {
			return nil
		}
		via, err := u.authoriser(r.User)
		if err != nil {
			return err
		}
		content, err := withFields(content, map[string]any{authorisedVia: string(via)})
		if err != nil {
			return err
		}
		_, err = u.setMember(r.User, r.User, content)
		return err
	})
}

// authoriser finds the user of this server by whose power user may join: "" if the join needs none.
// errCannotGrant if it needs one and there is none, or if it cannot be told here whether user fulfils the conditions.
// M_FORBIDDEN if user does not. Spec v1.19 client-server-api/#restricted-rooms
func (u *update) authoriser(user matrix.UserID) (matrix.UserID, error) {
	if u.snap.JoinRule != matrix.JoinRuleRestricted && u.snap.JoinRule != matrix.JoinRuleKnockRestricted {
		return "", nil
	}
	member, err := u.state(matrix.TypeMember, string(user))
	if err != nil {
		return "", err
	}
	if member != nil && (member.Membership() == matrix.Invite || member.Membership() == matrix.Join || member.Membership() == matrix.Ban) {
		return "", nil
	}
	allowed, sure, err := u.mayJoinRestricted(user)
	if err != nil {
		return "", err
	}
	if !allowed && sure {
		return "", matrix.Forbidden("you are in none of the rooms whose members may join this room")
	}
	if !allowed {
		return "", errCannotGrant
	}
	if via := u.inviter(); via != "" {
		return via, nil
	}
	return "", errCannotGrant
}

// mayJoinRestricted reports whether user is in one of the rooms whose members may join. sure is false if the answer is no but this
// server is not in all of those rooms.
func (u *update) mayJoinRestricted(user matrix.UserID) (allowed, sure bool, err error) {
	rooms, err := u.allowedRooms()
	if err != nil {
		return false, false, err
	}
	sure = true
	for _, id := range rooms {
		other, err := u.s.Room(u.ctx, id)
		if errors.Is(err, errNoRoom) || err == nil && !other.Snapshot().Joined() {
			sure = false
			continue
		}
		if err != nil {
			return false, false, err
		}
		m, err := u.s.Membership(u.ctx, id, user)
		if err != nil {
			return false, false, err
		}
		if m.Membership == matrix.Join {
			return true, true, nil
		}
		sure = sure && !other.Snapshot().PartialState
	}
	return false, sure, nil
}

// allowedRooms are the rooms whose members may join a restricted room.
func (u *update) allowedRooms() ([]matrix.RoomID, error) {
	rules, err := u.state(matrix.TypeJoinRules, "")
	if err != nil || rules == nil {
		return nil, err
	}
	var content struct {
		Allow []json.RawMessage `json:"allow"`
	}
	_ = json.Unmarshal(rules.Content(), &content) // what is not a list allows nobody
	var rooms []matrix.RoomID
	for _, raw := range content.Allow {
		var condition struct {
			Type   string        `json:"type"`
			RoomID matrix.RoomID `json:"room_id"`
		}
		if json.Unmarshal(raw, &condition) == nil && condition.Type == "m.room_membership" && condition.RoomID != "" {
			rooms = append(rooms, condition.RoomID)
		}
	}
	return rooms, nil
}

// inviter is a user of this server in the room who may invite, the mightiest first; "" if there is none.
func (u *update) inviter() matrix.UserID {
	var best matrix.UserID
	for user := range u.snap.Local {
		if !u.snap.Power.CanInvite(user) {
			continue
		}
		power, bestPower := u.snap.Power.User(user), u.snap.Power.User(best)
		if best == "" || power > bestPower || power == bestPower && user < best {
			best = user
		}
	}
	return best
}

// setMember sends a member event. content holds the membership.
func (u *update) setMember(sender, target matrix.UserID, content json.RawMessage) (*storage.Event, error) {
	key := string(target)
	e, err := u.build(&matrix.Builder{Sender: sender, Type: matrix.TypeMember, StateKey: &key, Content: content})
	if err != nil {
		return nil, err
	}
	if err := u.allow(e); err != nil {
		return nil, err
	}
	return u.appendOwn(entry{event: e, before: u.snap.Root, built: true})
}

// memberContent is the content of a member event. The profile of a user of this server is put in where it becomes visible to others anyway.
func (s *Service) memberContent(ctx context.Context, target matrix.UserID, membership, reason string, extra json.RawMessage) (json.RawMessage, error) {
	fields := map[string]any{"membership": membership, "reason": reason, authorisedVia: nil}
	if target.Server() == s.o.ServerName && s.o.Profile != nil && (membership == matrix.Join || membership == matrix.Invite || membership == matrix.Knock) {
		p, err := s.o.Profile(ctx, target)
		if err != nil {
			return nil, err
		}
		fields["displayname"], fields["avatar_url"] = p.DisplayName, p.AvatarURL
	}
	return withFields(extra, fields)
}

// Knock asks to be invited. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Knock(ctx context.Context, r JoinRequest) (matrix.RoomID, error) {
	content, err := s.memberContent(ctx, r.User, matrix.Knock, r.Reason, r.Content)
	if err != nil {
		return "", err
	}
	room, err := s.Room(ctx, r.Room)
	if errors.Is(err, errNoRoom) || err == nil && !room.Snapshot().Joined() {
		return r.Room, s.knockThrough(ctx, r, content)
	}
	if err != nil {
		return "", err
	}
	return r.Room, s.update(ctx, r.Room, func(u *update) error {
		_, err := u.setMember(r.User, r.User, content)
		return err
	})
}

// MemberRequest is what one user asks to happen to another's membership, or to their own.
type MemberRequest struct {
	Room   matrix.RoomID
	Sender matrix.UserID // of this server
	Target matrix.UserID
	Reason string
	// IsDirect marks an invite as one to a direct chat.
	IsDirect bool
	// Content holds further fields of the member event's content; may be nil.
	Content json.RawMessage
}

// Invite invites Target; inviting who is invited already succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Invite(ctx context.Context, r MemberRequest) error {
	if _, err := s.joinedRoom(ctx, r.Room, r.Sender); err != nil {
		return err
	}
	content, err := s.inviteContent(ctx, r)
	if err != nil {
		return err
	}
	if r.Target.Server() != s.o.ServerName {
		key := string(r.Target)
		_, err := s.inviteThrough(ctx, r.Room, matrix.Builder{Sender: r.Sender, Type: matrix.TypeMember, StateKey: &key, Content: content})
		return err
	}
	if s.o.InviteAllowed != nil {
		if err := s.o.InviteAllowed(ctx, r.Target, r.Sender, r.Room); err != nil {
			return err
		}
	}
	return s.update(ctx, r.Room, func(u *update) error {
		_, err := u.setMember(r.Sender, r.Target, content)
		return err
	})
}

func (s *Service) inviteContent(ctx context.Context, r MemberRequest) (json.RawMessage, error) {
	content, err := s.memberContent(ctx, r.Target, matrix.Invite, r.Reason, r.Content)
	if err == nil && r.IsDirect {
		content, err = withFields(content, map[string]any{"is_direct": true})
	}
	return content, err
}

// joinedRoom finds a room that user is in; M_FORBIDDEN if user is not.
func (s *Service) joinedRoom(ctx context.Context, id matrix.RoomID, user matrix.UserID) (*Room, error) {
	room, err := s.Room(ctx, id)
	if errors.Is(err, errNoRoom) || err == nil && room.Snapshot().Local[user] == 0 {
		return nil, matrix.Forbidden("you are not in this room")
	}
	return room, err
}

// Leave takes Sender out of the room, or rejects an invite, or takes back a knock; Target is not looked at. Leaving a room one
// has left already succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Leave(ctx context.Context, r MemberRequest) error {
	room, err := s.Room(ctx, r.Room)
	if err != nil {
		return err
	}
	content, err := s.memberContent(ctx, r.Sender, matrix.Leave, r.Reason, r.Content)
	if err != nil {
		return err
	}
	m, err := s.Membership(ctx, r.Room, r.Sender)
	switch {
	case err != nil:
		return err
	case m.Num == 0:
		return matrix.Forbidden("you are not in this room")
	case m.Membership == matrix.Leave:
		return nil
	case !room.Snapshot().Joined():
		return s.leaveThrough(ctx, r.Room, r.Sender, content)
	}
	return s.update(ctx, r.Room, func(u *update) error {
		_, err := u.setMember(r.Sender, r.Sender, content)
		return err
	})
}

// Kick takes Target, who is joined, invited or knocking, out of the room. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Kick(ctx context.Context, r MemberRequest) error {
	return s.changeOther(ctx, r, matrix.Leave, func(current string) error {
		if current == matrix.Leave || current == matrix.Ban {
			return matrix.Forbidden("%s is not in the room", r.Target)
		}
		return nil
	})
}

// Ban bans Target. Banning who is banned succeeds. Errors: M_FORBIDDEN, M_NOT_FOUND.
func (s *Service) Ban(ctx context.Context, r MemberRequest) error {
	return s.changeOther(ctx, r, matrix.Ban, func(string) error { return nil })
}

// Unban lifts a ban. Errors: M_FORBIDDEN, M_BAD_STATE (not banned), M_NOT_FOUND.
func (s *Service) Unban(ctx context.Context, r MemberRequest) error {
	return s.changeOther(ctx, r, matrix.Leave, func(current string) error {
		if current != matrix.Ban {
			return matrix.BadState("%s is not banned", r.Target)
		}
		return nil
	})
}

// changeOther sets the membership of Target, if check allows it in view of the current one.
func (s *Service) changeOther(ctx context.Context, r MemberRequest, membership string, check func(current string) error) error {
	if _, err := s.joinedRoom(ctx, r.Room, r.Sender); err != nil {
		return err
	}
	content, err := s.memberContent(ctx, r.Target, membership, r.Reason, r.Content)
	if err != nil {
		return err
	}
	return s.update(ctx, r.Room, func(u *update) error {
		old, err := u.state(matrix.TypeMember, string(r.Target))
		if err != nil {
			return err
		}
		current := matrix.Leave
		if old != nil {
			current = old.Membership()
		}
		if err := check(current); err != nil && (old != nil || !u.snap.PartialState) {
			return err
		}
		_, err = u.setMember(r.Sender, r.Target, content)
		return err
	})
}

// Forget hides a room that the user has left from the user. Errors: M_UNKNOWN with status 400 while still in the room.
func (s *Service) Forget(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	m, err := s.Membership(ctx, room, user)
	if err != nil {
		return err
	}
	switch {
	case m.Num == 0:
		return matrix.NotFound("you have never been in this room")
	case m.Membership != matrix.Leave && m.Membership != matrix.Ban:
		return matrix.BadRequest("leave the room before forgetting it")
	}
	err = s.o.DB.Write(ctx, func(tx *storage.Tx) error {
		tx.AfterCommit(func() { s.forgetUsers(user) })
		tx.Ring(storage.Change{Wakes: []storage.Wake{{Topic: storage.TopicMembership, User: user, Room: room}}})
		return tx.SetForgotten(m.RoomNum, user, true)
	})
	return err
}

// UpdateProfile writes the user's profile into the member events of all rooms that the user is joined to. Rooms that refuse it
// are passed over.
func (s *Service) UpdateProfile(ctx context.Context, user matrix.UserID) error {
	rooms, err := s.JoinedRooms(ctx, user)
	if err != nil || s.o.Profile == nil {
		return err
	}
	profile, err := s.o.Profile(ctx, user)
	if err != nil {
		return err
	}
	for _, id := range rooms {
		err := s.update(ctx, id, func(u *update) error { return u.setProfile(user, profile) })
		if e := (*matrix.Error)(nil); err != nil && !errors.As(err, &e) {
			return err
		}
	}
	return nil
}

func (u *update) setProfile(user matrix.UserID, p Profile) error {
	old, err := u.state(matrix.TypeMember, string(user))
	if err != nil || old == nil || old.Membership() != matrix.Join {
		return err
	}
	var content map[string]json.RawMessage
	if err := json.Unmarshal(old.Content(), &content); err != nil {
		return err
	}
	for _, key := range []string{"displayname", "avatar_url", "reason", authorisedVia} {
		delete(content, key)
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if raw, err = withFields(raw, map[string]any{"displayname": p.DisplayName, "avatar_url": p.AvatarURL}); err != nil {
		return err
	}
	if sameJSON(old.Content(), raw) {
		return nil
	}
	_, err = u.setMember(user, user, raw)
	return err
}
