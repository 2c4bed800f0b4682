package api

import (
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// directoryRoutes find rooms: aliases, the public list, spaces. Spec v1.19 client-server-api/#room-aliases
func (a *api) directoryRoutes() []route {
	alias, list := client+"/directory/room/{roomAlias}", client+"/directory/list/room/{roomId}"
	hierarchy, summary := "/_matrix/client/v1/rooms/{roomId}/hierarchy", "/_matrix/client/v1/room_summary/{roomIdOrAlias}"
	return []route{
		{method: get, path: alias, handle: a.resolveAlias, auth: anybody, limit: limitOther},
		{method: put, path: alias, handle: a.createAlias, limit: limitMessage, maxBody: 64 << 10},
		{method: del, path: alias, handle: a.deleteAlias, limit: limitMessage},
		{method: get, path: client + "/rooms/{roomId}/aliases", handle: a.roomAliases, suspended: true},
		{method: get, path: list, handle: a.isPublished, auth: anybody, limit: limitOther},
		{method: put, path: list, handle: a.setPublished, limit: limitMessage, maxBody: 64 << 10},
		{method: get, path: client + "/publicRooms", handle: a.publicRooms, auth: anybody, limit: limitOther},
		{method: post, path: client + "/publicRooms", handle: a.searchPublicRooms, limit: limitSearch, suspended: true, maxBody: 64 << 10},
		{method: get, path: hierarchy, handle: a.hierarchy, suspended: true,
			aliases: []string{"/_matrix/client/unstable/org.matrix.msc2946/rooms/{roomId}/hierarchy"}},
		{method: get, path: summary, handle: a.roomSummary, auth: optional, limit: limitOther, suspended: true,
			aliases: []string{"/_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}",
				"/_matrix/client/unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary"}},
	}
}

func (c *call) roomAlias() (matrix.RoomAlias, error) {
	return matrix.ParseRoomAlias(c.Param("roomAlias"))
}

func (a *api) resolveAlias(c *call) error {
	alias, err := c.roomAlias()
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.ResolveAlias(c.ctx(), alias))
}

func (a *api) createAlias(c *call) error {
	alias, err := c.roomAlias()
	if err != nil {
		return err
	}
	var r struct {
		RoomID *matrix.RoomID `json:"room_id"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.RoomID == nil {
		return matrix.MissingParam("room_id is missing")
	}
	id, err := matrix.ParseRoomID(string(*r.RoomID))
	if err != nil {
		return err
	}
	if err := a.Rooms.CreateAlias(c.ctx(), c.userID(), alias, id); err != nil {
		return err
	}
	return c.done()
}

func (a *api) deleteAlias(c *call) error {
	alias, err := c.roomAlias()
	if err != nil {
		return err
	}
	if err := a.Rooms.DeleteAlias(c.ctx(), c.userID(), alias, c.session.Admin); err != nil {
		return err
	}
	return c.done()
}

func (a *api) roomAliases(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	aliases, err := a.Rooms.LocalAliases(c.ctx(), c.userID(), id)
	return c.answer(map[string][]matrix.RoomAlias{"aliases": aliases}, err)
}

// Spec v1.19 client-server-api/#published-room-directory
func (a *api) isPublished(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	published, err := a.Rooms.Published(c.ctx(), id)
	visibility := "private"
	if published {
		visibility = "public"
	}
	return c.answer(map[string]string{"visibility": visibility}, err)
}

func (a *api) setPublished(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	r := struct {
		Visibility string `json:"visibility"`
	}{Visibility: "public"}
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if r.Visibility != "public" && r.Visibility != "private" {
		return matrix.InvalidParam("visibility must be public or private")
	}
	if err := a.Rooms.SetPublished(c.ctx(), c.userID(), id, r.Visibility == "public", c.session.Admin); err != nil {
		return err
	}
	return c.done()
}

// publicRooms needs no access token, as the specification has it; other servers' lists are only asked for by people
// who are signed in, with POST.
func (a *api) publicRooms(c *call) error {
	limit, err := c.number("limit", 0)
	if err != nil {
		return err
	}
	if server := c.Query("server"); server != "" && server != string(a.ServerName) {
		if err := c.requireToken(); err != nil {
			return err
		}
	}
	return a.listRooms(c, room.PublicRoomsRequest{Limit: int(min(limit, 1000)), Since: c.Query("since")})
}

func (a *api) searchPublicRooms(c *call) error {
	var r room.PublicRoomsRequest
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if r.Limit < 0 {
		return matrix.InvalidParam("limit must not be negative")
	}
	return a.listRooms(c, r)
}

func (a *api) listRooms(c *call, r room.PublicRoomsRequest) error {
	server := a.ServerName
	if s := c.Query("server"); s != "" {
		var err error
		if server, err = matrix.ParseServerName(s); err != nil {
			return err
		}
	}
	return c.answer(a.Rooms.PublicRoomsAt(c.ctx(), server, r))
}

// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidhierarchy
func (a *api) hierarchy(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	q := room.HierarchyRequest{From: c.Query("from")}
	if q.SuggestedOnly, err = c.boolean("suggested_only"); err != nil {
		return err
	}
	if q.Limit, err = c.limit(50, 50); err != nil {
		return err
	}
	if c.Query("max_depth") != "" {
		depth, err := c.number("max_depth", 0)
		if err != nil {
			return err
		}
		n := int(min(depth, 1000))
		q.MaxDepth = &n
	}
	return c.answer(a.Rooms.Hierarchy(c.ctx(), c.userID(), id, q))
}

// Spec v1.19 client-server-api/#get_matrixclientv1room_summaryroomidoralias
func (a *api) roomSummary(c *call) error {
	id, via, err := c.roomIDOrAlias()
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.Summary(c.ctx(), c.userID(), id, via))
}
