package api

import (
	"context"
	"encoding/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// membershipRoutes are who is in a room. Spec v1.19 client-server-api/#room-membership
func (a *api) membershipRoutes() []route {
	id := client + "/rooms/{roomId}"
	return []route{
		{method: post, path: client + "/join/{roomIdOrAlias}", handle: a.joinRoom, limit: limitJoin, maxBody: 256 << 10},
		{method: post, path: id + "/join", handle: a.joinRoom, limit: limitJoin, maxBody: 256 << 10},
		{method: post, path: client + "/knock/{roomIdOrAlias}", handle: a.knockRoom, limit: limitJoin, maxBody: 64 << 10},
		{method: post, path: id + "/invite", handle: a.invite, limit: limitInvite, maxBody: 64 << 10},
		{method: post, path: id + "/leave", handle: a.leaveRoom, suspended: true, maxBody: 64 << 10},
		{method: post, path: id + "/kick", handle: a.member((*room.Service).Kick), limit: limitMessage, maxBody: 64 << 10},
		{method: post, path: id + "/ban", handle: a.member((*room.Service).Ban), limit: limitMessage, maxBody: 64 << 10},
		{method: post, path: id + "/unban", handle: a.member((*room.Service).Unban), limit: limitMessage, maxBody: 64 << 10},
		{method: post, path: id + "/forget", handle: a.forgetRoom, suspended: true, maxBody: 64 << 10},
	}
}

// roomIDOrAlias is the room of the path's {roomId} or {roomIdOrAlias}, aliases resolved, and servers that may help to
// get in: those of the query, then those that know the alias.
func (c *call) roomIDOrAlias() (matrix.RoomID, []matrix.ServerName, error) {
	name := c.Param("roomIdOrAlias")
	if _, ok := c.Params.Get("roomId"); ok {
		name = c.Param("roomId")
	}
	via, err := c.via()
	if err != nil {
		return "", nil, err
	}
	if len(name) == 0 || name[0] != '#' {
		id, err := matrix.ParseRoomID(name)
		return id, via, err
	}
	alias, err := matrix.ParseRoomAlias(name)
	if err != nil {
		return "", nil, err
	}
	found, err := c.a.Rooms.ResolveAlias(c.ctx(), alias)
	if err != nil {
		return "", nil, err
	}
	return found.RoomID, append(via, found.Servers...), nil
}

// maxVia is how many servers a client may name.
const maxVia = 50

// via are the servers that the client names, by the parameter's name of today and that of before v1.12.
func (c *call) via() ([]matrix.ServerName, error) {
	names := append(c.QueryArray("via"), c.QueryArray("server_name")...)
	var via []matrix.ServerName
	for _, name := range names[:min(len(names), maxVia)] {
		server, err := matrix.ParseServerName(name)
		if err != nil {
			return nil, err
		}
		via = append(via, server)
	}
	return via, nil
}

// Spec v1.19 client-server-api/#post_matrixclientv3joinroomidoralias
func (a *api) joinRoom(c *call) error {
	r, err := a.joinRequest(c)
	if err != nil {
		return err
	}
	before, err := a.Rooms.Membership(c.ctx(), r.Room, r.User)
	if err != nil {
		return err
	}
	id, err := a.Rooms.Join(c.ctx(), r)
	if err != nil {
		return err
	}
	// Who comes for the first time finds the settings of the room that this one replaces.
	if before.Num == 0 || before.Membership == matrix.Invite {
		if from := a.predecessor(c, id); from != "" {
			a.follow(c, r.User, from, id)
		}
	}
	return c.reply(map[string]matrix.RoomID{"room_id": id})
}

func (a *api) knockRoom(c *call) error {
	r, err := a.joinRequest(c)
	if err != nil {
		return err
	}
	r.Content = nil
	id, err := a.Rooms.Knock(c.ctx(), r)
	return c.answer(map[string]matrix.RoomID{"room_id": id}, err)
}

// joinRequest reads the body before it looks for the room: what is wrong with it is said without asking anybody.
func (a *api) joinRequest(c *call) (room.JoinRequest, error) {
	body, err := c.optionalObject()
	if err != nil {
		return room.JoinRequest{}, err
	}
	var r struct {
		Reason           string          `json:"reason"`
		ThirdPartySigned json.RawMessage `json:"third_party_signed"`
	}
	if err := decodeJSON(body, &r); err != nil {
		return room.JoinRequest{}, err
	}
	id, via, err := c.roomIDOrAlias()
	if err != nil {
		return room.JoinRequest{}, err
	}
	return room.JoinRequest{Room: id, User: c.userID(), Via: via, Reason: r.Reason, Content: body}, nil
}

// Spec v1.19 client-server-api/#post_matrixclientv3roomsroomidinvite
func (a *api) invite(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	var r struct {
		UserID *matrix.UserID `json:"user_id"`
		Reason string         `json:"reason"`
		Medium *string        `json:"medium"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	switch {
	case r.UserID == nil && r.Medium != nil:
		return matrix.ThreePIDDenied("this server knows no e-mail addresses and telephone numbers; invite by user ID")
	case r.UserID == nil:
		return matrix.MissingParam("user_id is missing")
	}
	target, err := matrix.ParseUserID(string(*r.UserID))
	if err != nil {
		return err
	}
	if err := a.Rooms.Invite(c.ctx(), room.MemberRequest{Room: id, Sender: c.userID(), Target: target, Reason: r.Reason}); err != nil {
		return err
	}
	return c.done()
}

// member is a handler for what one does to another's membership.
func (a *api) member(do func(*room.Service, context.Context, room.MemberRequest) error) func(*call) error {
	return func(c *call) error {
		id, err := c.roomID()
		if err != nil {
			return err
		}
		var r struct {
			UserID *matrix.UserID `json:"user_id"`
			Reason string         `json:"reason"`
		}
		if err := c.decode(&r); err != nil {
			return err
		}
		if r.UserID == nil {
			return matrix.MissingParam("user_id is missing")
		}
		target, err := matrix.ParseUserID(string(*r.UserID))
		if err != nil {
			return err
		}
		if err := do(a.Rooms, c.ctx(), room.MemberRequest{Room: id, Sender: c.userID(), Target: target, Reason: r.Reason}); err != nil {
			return err
		}
		return c.done()
	}
}

func (a *api) leaveRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	var r struct {
		Reason string `json:"reason"`
	}
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if err := a.mayLeave(c, id); err != nil {
		return err
	}
	if err := a.Rooms.Leave(c.ctx(), room.MemberRequest{Room: id, Sender: c.userID(), Reason: r.Reason}); err != nil {
		return err
	}
	return c.done()
}

func (a *api) forgetRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	if _, err := c.optionalObject(); err != nil {
		return err
	}
	if err := a.Rooms.Forget(c.ctx(), id, c.userID()); err != nil {
		return err
	}
	return c.done()
}
