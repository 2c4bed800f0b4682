package room

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The methods here answer other servers. origin has been authenticated by the caller; everything else is checked here, and
// errors are *matrix.Error that may be answered as they are.

// resident gives a room that this server is in and that lets origin take part. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) resident(ctx context.Context, room matrix.RoomID, origin matrix.ServerName) (*Room, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return nil, err
	}
	snap := r.Snapshot()
	if !snap.Joined() {
		return nil, matrix.NotFound("this server is not in the room")
	}
	if !snap.ACL.Allows(origin) {
		return nil, matrix.Forbidden("this room does not let your server take part")
	}
	return r, nil
}

// wholeResident is resident for what needs the room's whole state.
func (s *Service) wholeResident(ctx context.Context, room matrix.RoomID, origin matrix.ServerName) (*Room, error) {
	r, err := s.resident(ctx, room, origin)
	if err == nil && r.Snapshot().PartialState {
		err = errPartial
	}
	return r, err
}

// MakeJoin answers GET /make_join: the template of user's join. versions are the room versions that origin supports.
// Errors: M_NOT_FOUND (we are not in the room), M_FORBIDDEN, M_INCOMPATIBLE_ROOM_VERSION, M_UNABLE_TO_AUTHORISE_JOIN,
// M_UNABLE_TO_GRANT_JOIN. Spec v1.19 server-server-api/#get_matrixfederationv1make_joinroomiduserid
func (s *Service) MakeJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	if len(versions) == 0 {
		versions = []string{"1"}
	}
	r, err := s.wholeResident(ctx, room, origin)
	if err != nil {
		return MakeResponse{}, err
	}
	if !slices.Contains(versions, r.Version.ID) {
		return MakeResponse{}, matrix.IncompatibleRoomVersion(r.Version.ID)
	}
	content := map[string]any{"membership": matrix.Join}
	via, err := s.authoriseRestricted(ctx, r, user)
	if err != nil {
		return MakeResponse{}, err
	}
	if via != "" {
		content["join_authorised_via_users_server"] = via
	}
	return s.template(ctx, origin, r, user, content)
}

// MakeLeave answers GET /make_leave.
func (s *Service) MakeLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MakeResponse, error) {
	r, err := s.resident(ctx, room, origin)
	if err != nil {
		return MakeResponse{}, err
	}
	answer, err := s.template(ctx, origin, r, user, map[string]any{"membership": matrix.Leave})
	if matrix.ErrorCode(err) == "M_FORBIDDEN" && r.Snapshot().PartialState { // we may not know that the user is there
		err = errPartial
	}
	return answer, err
}

// MakeKnock answers GET /make_knock. Errors: M_NOT_FOUND, M_FORBIDDEN, M_INCOMPATIBLE_ROOM_VERSION.
func (s *Service) MakeKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	r, err := s.wholeResident(ctx, room, origin)
	if err != nil {
		return MakeResponse{}, err
	}
	if !slices.Contains(versions, r.Version.ID) {
		return MakeResponse{}, matrix.IncompatibleRoomVersion(r.Version.ID)
	}
	return s.template(ctx, origin, r, user, map[string]any{"membership": matrix.Knock})
}

// template makes the template of a member event of a user of origin, if the room would allow the event.
func (s *Service) template(ctx context.Context, origin matrix.ServerName, r *Room, user matrix.UserID, content map[string]any) (MakeResponse, error) {
	if user.Server() != origin {
		return MakeResponse{}, matrix.Forbidden("the user is not of your server")
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return MakeResponse{}, err
	}
	answer := MakeResponse{RoomVersion: r.Version.ID}
	err = s.update(ctx, r.ID, func(u *update) error {
		key := string(user)
		b := &matrix.Builder{Sender: user, Type: matrix.TypeMember, StateKey: &key, Content: raw}
		e, err := u.build(b)
		if err != nil {
			return err
		}
		if err := u.allow(e); err != nil {
			return err
		}
		answer.Event, err = b.Template(r.Version)
		return err
	})
	return answer, err
}

// authoriseRestricted looks whether user may join a restricted room through us: it gives the user of ours in whose name
// (join_authorised_via_users_server), or "" if nobody's is needed: the room is not restricted, or the user is invited or joined
// already. Errors: M_FORBIDDEN (no condition is met), M_UNABLE_TO_AUTHORISE_JOIN (this server cannot tell), M_UNABLE_TO_GRANT_JOIN
// (nobody here may invite). Spec v1.19 server-server-api/#restricted-rooms
func (s *Service) authoriseRestricted(ctx context.Context, r *Room, user matrix.UserID) (matrix.UserID, error) {
	snap := r.Snapshot()
	if snap.JoinRule != matrix.JoinRuleRestricted && snap.JoinRule != matrix.JoinRuleKnockRestricted || !r.Version.RestrictedJoins {
		return "", nil
	}
	m, err := s.Membership(ctx, r.ID, user)
	if err != nil || m.Membership == matrix.Join || m.Membership == matrix.Invite {
		return "", err
	}
	rules, err := s.StateAt(ctx, r.ID, snap.Root, matrix.TypeJoinRules, "")
	if err != nil || rules == nil {
		return "", err
	}
	known, allowed := false, false
	conditions := allowedRooms(rules.Content())
	for _, id := range conditions {
		other, err := s.Room(ctx, id)
		if errors.Is(err, errNoRoom) || err == nil && !other.Snapshot().Joined() {
			continue
		} else if err != nil {
			return "", err
		}
		m, err := s.Membership(ctx, id, user)
		if err != nil {
			return "", err
		}
		allowed = m.Membership == matrix.Join
		known = known || allowed || !other.Snapshot().PartialState
		if allowed {
			break
		}
	}
	switch {
	case len(conditions) > 0 && !known:
		return "", matrix.UnableToAuthoriseJoin("this server is in none of the rooms whose members may join")
	case !allowed:
		return "", matrix.Forbidden("you are in none of the rooms whose members may join, and not invited")
	}
	var inviters []matrix.UserID
	for local := range snap.Local {
		if snap.Power.CanInvite(local) {
			inviters = append(inviters, local)
		}
	}
	if len(inviters) == 0 {
		return "", matrix.UnableToGrantJoin("nobody on this server may invite to the room")
	}
	return slices.MinFunc(inviters, func(a, b matrix.UserID) int {
		return cmp.Or(cmp.Compare(snap.Power.User(b), snap.Power.User(a)), cmp.Compare(a, b))
	}), nil
}

// handedIn checks a member event that origin hands in at send_join, send_leave or send_knock. A join that was authorized in the name of one of
// our users comes back with our signature.
func (s *Service) handedIn(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, raw json.RawMessage, membership string) (*Room, *matrix.Event, error) {
	resident := s.wholeResident
	if membership == matrix.Leave { // whose answer tells nothing of the state
		resident = s.resident
	}
	r, err := resident(ctx, room, origin)
	if err != nil {
		return nil, nil, err
	}
	e, err := matrix.ParseEvent(raw, r.Version)
	if err != nil {
		return nil, nil, matrix.InvalidParam("the event is not valid: %s", err)
	}
	key, isState := e.StateKey()
	switch {
	case e.RoomID() != room || e.ID() != id:
		return nil, nil, matrix.InvalidParam("the event has not the room and the ID of the path")
	case e.Type() != matrix.TypeMember || !isState || e.Membership() != membership:
		return nil, nil, matrix.InvalidParam("the event is not an m.room.member event with membership %s", membership)
	case key != string(e.Sender()):
		return nil, nil, matrix.InvalidParam("the sender and the state key of the event differ")
	case e.Sender().Server() != origin:
		return nil, nil, matrix.InvalidParam("the sender of the event is not of your server")
	case e.Redacted():
		return nil, nil, matrix.InvalidParam("the hash of the event does not match")
	}
	if membership == matrix.Join {
		if e, err = s.grantRestricted(ctx, r, e); err != nil {
			return nil, nil, err
		}
	}
	if err := matrix.VerifyEvent(ctx, e, s.o.Keys); err != nil {
		return nil, nil, matrix.InvalidParam("the signature of the event cannot be verified")
	}
	return r, e, nil
}

// grantRestricted adds our signature to a join that names one of our users as who authorizes it, after looking that the conditions are met.
func (s *Service) grantRestricted(ctx context.Context, r *Room, e *matrix.Event) (*matrix.Event, error) {
	var content struct {
		Via matrix.UserID `json:"join_authorised_via_users_server"`
	}
	if json.Unmarshal(e.Content(), &content) != nil || content.Via.Server() != s.o.ServerName || !r.Version.RestrictedJoins {
		return e, nil
	}
	if _, err := s.authoriseRestricted(ctx, r, e.Sender()); err != nil {
		return nil, err
	}
	return e.WithSignature(s.o.ServerName, s.o.Key), nil
}

// takeHandedIn appends what handedIn has let through. Refusals are M_FORBIDDEN here: the other server waits for its user.
func (s *Service) takeHandedIn(ctx context.Context, origin matrix.ServerName, r *Room, e *matrix.Event) (*storage.Event, error) {
	err := s.takeLate(ctx, origin, r, e)
	var refused *matrix.AuthError
	switch {
	case errors.Is(err, ErrSoftFailed):
		return nil, matrix.Forbidden("the room does not allow this now")
	case errors.As(err, &refused):
		return nil, matrix.Forbidden("%s", refused.Reason)
	case errors.Is(err, errGap), errors.Is(err, errNoAuth):
		return nil, matrix.BadRequest("the event refers to events that this server does not know")
	case err != nil:
		return nil, err
	}
	return s.o.DB.EventByID(ctx, e.ID())
}

// SendJoin answers PUT /send_join: it takes the join into the room and gives the state before it. omitMembers asks for the answer without
// the members (faster joins). Spec v1.19 server-server-api/#put_matrixfederationv2send_joinroomideventid
func (s *Service) SendJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, join json.RawMessage, omitMembers bool) (SendJoinResponse, error) {
	r, e, err := s.handedIn(ctx, origin, room, event, join, matrix.Join)
	if err != nil {
		return SendJoinResponse{}, err
	}
	answer := SendJoinResponse{ServersInRoom: []matrix.ServerName{}}
	for server := range r.Snapshot().Servers {
		answer.ServersInRoom = append(answer.ServersInRoom, server)
	}
	slices.Sort(answer.ServersInRoom)
	added, err := s.takeHandedIn(ctx, origin, r, e)
	if err != nil {
		return SendJoinResponse{}, err
	}
	var state []*storage.Event
	if answer.MembersOmitted = omitMembers; omitMembers {
		state, err = s.stateWithoutMembers(ctx, r, added.Before, e.Sender())
	} else {
		state, err = s.StateEvents(ctx, room, added.Before, storage.AllState)
	}
	if err != nil {
		return SendJoinResponse{}, err
	}
	chain, err := s.AuthChain(ctx, append(slices.Clone(state), added))
	if err != nil {
		return SendJoinResponse{}, err
	}
	if omitMembers { // what is in the state need not be said twice
		inState := make(map[int64]bool, len(state))
		for _, e := range state {
			inState[e.Num] = true
		}
		chain = slices.DeleteFunc(chain, func(e *storage.Event) bool { return inState[e.Num] })
	}
	answer.State, answer.AuthChain, answer.Event = jsonOf(state), jsonOf(chain), added.JSON()
	return answer, nil
}

// maxHeroes is how many members stand for the name of a room without one. Spec v1.19 client-server-api/#calculating-the-display-name-for-a-room
const maxHeroes = 5

// stateWithoutMembers is a state without its member events, but with the heroes' if the room has no name. It reads no more of the members
// than it needs.
func (s *Service) stateWithoutMembers(ctx context.Context, r *Room, root storage.StateRoot, joining matrix.UserID) ([]*storage.Event, error) {
	state, err := s.StateEvents(ctx, r.ID, root, storage.OtherState)
	named := slices.ContainsFunc(state, func(e *storage.Event) bool {
		return e.Is(matrix.TypeName, "") || e.Is(matrix.TypeCanonicalAlias, "")
	})
	if err != nil || named {
		return state, err
	}
	heroes := 0
	for members, err := range s.statePieces(ctx, r.Num, root, storage.MembersState) {
		if err != nil {
			return nil, err
		}
		for _, e := range members {
			if stateKey(e.Event) == string(joining) || e.Membership() != matrix.Join && e.Membership() != matrix.Invite {
				continue
			}
			state = append(state, e)
			if heroes++; heroes == maxHeroes {
				return state, nil
			}
		}
	}
	return state, nil
}

// SendLeave answers PUT /send_leave.
func (s *Service) SendLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, leave json.RawMessage) error {
	r, e, err := s.handedIn(ctx, origin, room, event, leave, matrix.Leave)
	if err != nil {
		return err
	}
	_, err = s.takeHandedIn(ctx, origin, r, e)
	return err
}

// SendKnock answers PUT /send_knock with the room's stripped state.
func (s *Service) SendKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, knock json.RawMessage) ([]json.RawMessage, error) {
	r, e, err := s.handedIn(ctx, origin, room, event, knock, matrix.Knock)
	if err != nil {
		return nil, err
	}
	if _, err = s.takeHandedIn(ctx, origin, r, e); err != nil {
		return nil, err
	}
	var state []json.RawMessage
	err = s.update(ctx, room, func(u *update) (err error) {
		state, err = u.inviteState("")
		return err
	})
	return state, err
}

// ReceiveInvite answers PUT /invite, both versions: it returns the event with our signature. For v1, whose body is the event alone, the caller sets
// RoomVersion to "1" and takes InviteRoomState from the event's unsigned. Errors: M_INCOMPATIBLE_ROOM_VERSION, M_INVALID_PARAM,
// M_FORBIDDEN, M_INVITE_BLOCKED. Spec v1.19 server-server-api/#inviting-to-a-room
func (s *Service) ReceiveInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, event matrix.EventID, invite InviteRequest) (json.RawMessage, error) {
	version := matrix.LookupRoomVersion(invite.RoomVersion)
	if version == nil {
		return nil, matrix.IncompatibleRoomVersion(invite.RoomVersion)
	}
	e, err := matrix.ParseEvent(invite.Event, version)
	if err != nil {
		return nil, matrix.InvalidParam("the invite is not valid: %s", err)
	}
	key, isState := e.StateKey()
	user, err := matrix.ParseUserID(key)
	switch {
	case e.RoomID() != room || e.ID() != event:
		return nil, matrix.InvalidParam("the event has not the room and the ID of the path")
	case e.Type() != matrix.TypeMember || !isState || e.Membership() != matrix.Invite:
		return nil, matrix.InvalidParam("the event is not an invite")
	case e.Sender().Server() != origin:
		return nil, matrix.InvalidParam("the sender of the event is not of your server")
	case err != nil || user.Server() != s.o.ServerName:
		return nil, matrix.InvalidParam("the invited user is not of this server")
	case e.Redacted():
		return nil, matrix.InvalidParam("the hash of the event does not match")
	}
	if err := matrix.VerifyEvent(ctx, e, s.o.Keys); err != nil {
		return nil, matrix.InvalidParam("the signature of the event cannot be verified")
	}
	if version.RoomIDIsCreateID && !hasCreate(invite.InviteRoomState, version, room) {
		return nil, matrix.InvalidParam("invite_room_state lacks the create event of the room")
	}
	if err := s.mayInvite(ctx, user, e.Sender(), room); err != nil {
		return nil, err
	}
	signed := e.WithSignature(s.o.ServerName, s.o.Key)
	err = s.setOutsideMembership(ctx, room, version, signed, cleanStripped(invite.InviteRoomState), func(u *update) error {
		if u.room.Version != version {
			return matrix.InvalidParam("the room has version %s", u.room.Version)
		}
		return refuseIfJoined(u)
	})
	if err != nil && !errors.Is(err, errJoinedMeanwhile) { // being in the room we get the invite as an event of it
		return nil, err
	}
	return signed.JSON(), nil
}

// mayInvite asks whether a user of ours is there and takes invites of inviter.
func (s *Service) mayInvite(ctx context.Context, user, inviter matrix.UserID, room matrix.RoomID) error {
	if s.o.UserExists != nil {
		if ok, err := s.o.UserExists(ctx, user); err != nil {
			return err
		} else if !ok {
			return matrix.Forbidden("there is no such user on this server")
		}
	}
	if s.o.InviteAllowed == nil {
		return nil
	}
	return s.o.InviteAllowed(ctx, user, inviter, room)
}

// hasCreate looks for the whole create event of a room whose ID is made of it.
func hasCreate(state []json.RawMessage, version *matrix.RoomVersion, room matrix.RoomID) bool {
	return slices.ContainsFunc(state[:min(len(state), maxStripped)], func(raw json.RawMessage) bool {
		e, err := matrix.ParseEvent(raw, version)
		return err == nil && e.Is(matrix.TypeCreate, "") && e.RoomID() == room
	})
}

// ReceiveThirdPartyInvite answers PUT /exchange_third_party_invite: member is the event that origin proposes; it becomes an invite if the
// room has a matching m.room.third_party_invite. Spec v1.19 server-server-api/#third-party-invites
func (s *Service) ReceiveThirdPartyInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, member json.RawMessage) error {
	if _, err := s.resident(ctx, room, origin); err != nil {
		return err
	}
	var proposed struct {
		Type     string                     `json:"type"`
		RoomID   matrix.RoomID              `json:"room_id"`
		Sender   matrix.UserID              `json:"sender"`
		StateKey string                     `json:"state_key"`
		Content  map[string]json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(member, &proposed); err != nil {
		return matrix.BadJSON("the body is not a member event")
	}
	target, err := matrix.ParseUserID(proposed.StateKey)
	var membership string
	_ = json.Unmarshal(proposed.Content["membership"], &membership)
	switch {
	case err != nil, proposed.Type != matrix.TypeMember, proposed.RoomID != room, membership != matrix.Invite, proposed.Content["third_party_invite"] == nil:
		return matrix.InvalidParam("the body is not a third-party invite into the room of the path")
	case proposed.Sender.Server() != s.o.ServerName:
		return matrix.InvalidParam("the sender of the invite is not of this server")
	}
	content, err := json.Marshal(map[string]json.RawMessage{"membership": proposed.Content["membership"], "third_party_invite": proposed.Content["third_party_invite"]})
	if err != nil {
		return err
	}
	b := matrix.Builder{Sender: proposed.Sender, Type: matrix.TypeMember, StateKey: &proposed.StateKey, Content: content}
	if target.Server() != s.o.ServerName {
		_, err = s.inviteThrough(ctx, room, b)
		return err
	}
	return s.update(ctx, room, func(u *update) error {
		e, err := u.build(&b)
		if err != nil {
			return err
		}
		if err := u.allow(e); err != nil {
			return err
		}
		_, err = u.appendOwn(entry{event: e, before: u.snap.Root})
		return err
	})
}
