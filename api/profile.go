package api

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// profileRoutes are what people say of themselves. Spec v1.19 client-server-api/#profiles
func (a *api) profileRoutes() []route {
	field := "/profile/{userId}/{keyName}"
	unstable := []string{"/_matrix/client/unstable/uk.tcpip.msc4133" + field}
	return []route{
		{method: get, path: client + "/profile/{userId}", handle: a.profile, auth: anybody, limit: limitOther},
		{method: get, path: client + field, handle: a.profileField, auth: anybody, limit: limitOther, aliases: unstable},
		{method: put, path: client + field, handle: a.setProfileField, limit: limitAccount, aliases: unstable},
		{method: del, path: client + field, handle: a.deleteProfileField, limit: limitAccount, aliases: unstable},
	}
}

func (a *api) profile(c *call) error {
	u, err := c.pathUser()
	if err != nil {
		return err
	}
	return c.answer(a.Users.Profile(c.ctx(), u))
}

func (a *api) profileField(c *call) error {
	u, err := c.pathUser()
	if err != nil {
		return err
	}
	return c.answer(a.Users.ProfileField(c.ctx(), u, c.Param("keyName")))
}

func (a *api) setProfileField(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	var body map[string]json.RawMessage
	if err := c.decode(&body); err != nil {
		return err
	}
	field := c.Param("keyName")
	value, ok := body[field]
	if !ok {
		return matrix.MissingParam("the body has no %q", field)
	}
	return a.changeProfile(c, u, field, value)
}

func (a *api) deleteProfileField(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	return a.changeProfile(c, u, c.Param("keyName"), nil)
}

// changeProfile also puts a new name or picture into the rooms that the user is in.
func (a *api) changeProfile(c *call, u matrix.UserID, field string, value json.RawMessage) error {
	changed, err := a.Users.SetProfileField(c.ctx(), u, field, value)
	if err != nil {
		return err
	}
	if changed && (field == "displayname" || field == "avatar_url") {
		if err := a.Rooms.UpdateProfile(c.ctx(), u); err != nil {
			return err
		}
	}
	return c.done()
}
