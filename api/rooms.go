package api

import (
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// roomRoutes make rooms and list one's own. Spec v1.19 client-server-api/#rooms-1
func (a *api) roomRoutes() []route {
	return []route{
		{method: post, path: client + "/createRoom", handle: a.createRoom, limit: limitCreateRoom, maxBody: 1 << 20},
		{method: post, path: client + "/rooms/{roomId}/upgrade", handle: a.upgradeRoom, limit: limitCreateRoom, maxBody: 64 << 10},
		{method: get, path: client + "/joined_rooms", handle: a.joinedRooms, suspended: true},
		{method: get, path: "/_matrix/client/v1/mutual_rooms", handle: a.mutualRooms, limit: limitSearch,
			aliases: []string{"/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"}},
	}
}

func (a *api) createRoom(c *call) error {
	var r room.CreateRequest
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	r.Creator, r.Device = c.userID(), c.deviceID()
	for range r.Invite {
		if err := a.limits.allow(limitInvite, c.who()); err != nil {
			return err
		}
	}
	id, err := a.Rooms.Create(c.ctx(), r)
	return c.answer(map[string]matrix.RoomID{"room_id": id}, err)
}

func (a *api) upgradeRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	var r room.UpgradeRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.NewVersion == "" {
		return matrix.MissingParam("new_version is missing")
	}
	r.Room, r.User = id, c.userID()
	replacement, err := a.Rooms.Upgrade(c.ctx(), r)
	if err != nil {
		return err
	}
	a.replaced(c, id, replacement)
	return c.reply(map[string]matrix.RoomID{"replacement_room": replacement})
}

// replaced takes the tags and push rules of our users in an old room over to the one that replaces it.
func (a *api) replaced(c *call, from, to matrix.RoomID) {
	old, err := a.Rooms.Room(c.ctx(), from)
	if err != nil {
		a.log.Warn("settings do not follow to the new room", "request", c.id, "room", to, "err", err)
		return
	}
	for u := range old.Snapshot().Local {
		a.follow(c, u, from, to)
	}
}

// follow is replaced for one user. What does not work is logged: the room has been replaced all the same.
func (a *api) follow(c *call, u matrix.UserID, from, to matrix.RoomID) {
	err := errors.Join(a.Users.CopyRoomAccountData(c.ctx(), u, from, to), a.Push.CopyRoomRules(c.ctx(), u, from, to))
	if err != nil {
		a.log.Warn("settings do not follow to the new room", "request", c.id, "user", u, "room", to, "err", err)
	}
}

// predecessor is the room that a room says it replaces; "" if none.
func (a *api) predecessor(c *call, id matrix.RoomID) matrix.RoomID {
	r, err := a.Rooms.Room(c.ctx(), id)
	if err != nil || r.Snapshot().Create == nil {
		return ""
	}
	var content struct {
		Predecessor struct {
			RoomID matrix.RoomID `json:"room_id"`
		} `json:"predecessor"`
	}
	// What does not fit was written by another server and names no room.
	if json.Unmarshal(r.Snapshot().Create.Content(), &content) != nil {
		return ""
	}
	return content.Predecessor.RoomID
}

func (a *api) joinedRooms(c *call) error {
	rooms, err := a.Rooms.JoinedRooms(c.ctx(), c.userID())
	return c.answer(map[string][]matrix.RoomID{"joined_rooms": rooms}, err)
}

// Spec v1.19 client-server-api/#get_matrixclientv1mutual_rooms
func (a *api) mutualRooms(c *call) error {
	if c.Query("user_id") == "" {
		return matrix.MissingParam("user_id is missing")
	}
	other, err := matrix.ParseUserID(c.Query("user_id"))
	switch {
	case err != nil:
		return err
	case other == c.userID():
		return matrix.InvalidParam("this is your own user ID")
	}
	rooms, next, err := a.Rooms.MutualRooms(c.ctx(), c.userID(), other, c.Query("from"))
	answer := map[string]any{"joined": rooms, "count": len(rooms)}
	if next != "" {
		answer["next_batch"] = next
	}
	return c.answer(answer, err)
}

// leaveAll takes a user who closes the account out of all rooms. What does not work is passed over: another server may be
// away, and the account is closed all the same.
func (a *api) leaveAll(c *call, u matrix.UserID) error {
	rooms, err := a.Rooms.RoomsOf(c.ctx(), u)
	if err != nil {
		return err
	}
	for _, m := range rooms {
		switch m.Membership {
		case matrix.Join, matrix.Invite, matrix.Knock:
			err := a.Rooms.Leave(c.ctx(), room.MemberRequest{Room: m.Room, Sender: u})
			if err != nil && !errors.As(err, new(*matrix.Error)) {
				a.log.Warn("deactivated user stays in room", "request", c.id, "user", u, "room", m.Room, "err", err)
			}
		}
	}
	return nil
}
