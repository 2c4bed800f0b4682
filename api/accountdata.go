package api

import (
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/syncer"
)

// accountDataRoutes are what clients keep here for their user. Spec v1.19 client-server-api/#client-config
func (a *api) accountDataRoutes() []route {
	user := client + "/user/{userId}"
	return []route{
		{method: get, path: user + "/account_data/{type}", handle: a.accountData, suspended: true},
		{method: put, path: user + "/account_data/{type}", handle: a.setAccountData, limit: limitAccount, suspended: true},
		{method: get, path: user + "/rooms/{roomId}/account_data/{type}", handle: a.accountData, suspended: true},
		{method: put, path: user + "/rooms/{roomId}/account_data/{type}", handle: a.setAccountData, limit: limitAccount, suspended: true},
		{method: get, path: user + "/rooms/{roomId}/tags", handle: a.tags, suspended: true},
		{method: put, path: user + "/rooms/{roomId}/tags/{tag}", handle: a.setTag, limit: limitAccount, suspended: true},
		{method: del, path: user + "/rooms/{roomId}/tags/{tag}", handle: a.deleteTag, limit: limitAccount, suspended: true},
		{method: post, path: user + "/filter", handle: a.newFilter, limit: limitAccount, suspended: true, maxBody: 256 << 10},
		{method: get, path: user + "/filter/{filterId}", handle: a.filter, suspended: true},
		{method: post, path: user + "/openid/request_token", handle: a.openIDToken, limit: limitAccount},
	}
}

// ownRoom is the path's {userId}, which must be the asker, and {roomId}, which is "" on global paths.
func (c *call) ownRoom() (matrix.UserID, matrix.RoomID, error) {
	u, err := c.own()
	if err != nil {
		return "", "", err
	}
	if _, ok := c.Params.Get("roomId"); !ok {
		return u, "", nil
	}
	room, err := c.roomID()
	return u, room, err
}

func (a *api) accountData(c *call) error {
	u, room, err := c.ownRoom()
	if err != nil {
		return err
	}
	typ := c.Param("type")
	if room == "" && typ == "m.push_rules" {
		return c.replyRaw(a.Push.Rules(c.ctx(), u))
	}
	return c.replyRaw(a.Users.AccountData(c.ctx(), u, room, typ))
}

func (a *api) setAccountData(c *call) error {
	u, room, err := c.ownRoom()
	if err != nil {
		return err
	}
	body, err := c.object()
	if err != nil {
		return err
	}
	if err := a.Users.SetAccountData(c.ctx(), u, room, c.Param("type"), body); err != nil {
		return err
	}
	return c.done()
}

func (a *api) tags(c *call) error {
	u, room, err := c.ownRoom()
	if err != nil {
		return err
	}
	return c.replyRaw(a.Users.Tags(c.ctx(), u, room))
}

func (a *api) setTag(c *call) error {
	u, room, err := c.ownRoom()
	if err != nil {
		return err
	}
	body, err := c.object()
	if err != nil {
		return err
	}
	if err := a.Users.SetTag(c.ctx(), u, room, c.Param("tag"), body); err != nil {
		return err
	}
	return c.done()
}

func (a *api) deleteTag(c *call) error {
	u, room, err := c.ownRoom()
	if err != nil {
		return err
	}
	if err := a.Users.DeleteTag(c.ctx(), u, room, c.Param("tag")); err != nil {
		return err
	}
	return c.done()
}

func (a *api) newFilter(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	body, err := c.object()
	if err != nil {
		return err
	}
	if _, err := syncer.ParseFilter(body); err != nil {
		return err
	}
	id, err := a.Users.NewFilter(c.ctx(), u, body)
	return c.answer(map[string]string{"filter_id": id}, err)
}

func (a *api) filter(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	return c.replyRaw(a.Users.Filter(c.ctx(), u, c.Param("filterId")))
}

// Spec v1.19 client-server-api/#openid
func (a *api) openIDToken(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	if _, err := c.optionalObject(); err != nil {
		return err
	}
	return c.answer(a.Users.NewOpenIDToken(c.ctx(), u))
}
