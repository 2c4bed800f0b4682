package api

import (
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// adminRoutes are for administrators of this server. Spec v1.19 client-server-api/#server-administration
func (a *api) adminRoutes() []route {
	lock, suspend := "/_matrix/client/v1/admin/lock/{userId}", "/_matrix/client/v1/admin/suspend/{userId}"
	return []route{
		{method: get, path: lock, handle: a.isLocked, auth: admin},
		{method: put, path: lock, handle: a.setLocked, auth: admin, maxBody: 64 << 10},
		{method: get, path: suspend, handle: a.isSuspended, auth: admin},
		{method: put, path: suspend, handle: a.setSuspended, auth: admin, maxBody: 64 << 10},
		{method: get, path: client + "/admin/whois/{userId}", handle: a.whois, suspended: true},
	}
}

// managed is the account of the path's {userId}, which must be one of this server and no other administrator's.
func (c *call) managed() (*user.Account, error) {
	u, err := c.pathUser()
	if err != nil {
		return nil, err
	}
	if !c.a.Users.IsLocal(u) {
		return nil, matrix.InvalidParam("the user does not belong to this server")
	}
	account, err := c.a.Users.Account(c.ctx(), u)
	switch {
	case err != nil:
		return nil, err
	case account.Deactivated:
		return nil, matrix.NotFound("there is no such user")
	case account.Admin:
		return nil, matrix.Forbidden("the user is an administrator")
	}
	return account, nil
}

func (a *api) isLocked(c *call) error {
	account, err := c.managed()
	if err != nil {
		return err
	}
	return c.reply(map[string]bool{"locked": account.Locked})
}

func (a *api) setLocked(c *call) error {
	var r struct {
		Locked *bool `json:"locked"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Locked == nil {
		return matrix.MissingParam("locked is missing")
	}
	account, err := c.managed()
	if err != nil {
		return err
	}
	if err := a.Users.SetLocked(c.ctx(), account.UserID, *r.Locked); err != nil {
		return err
	}
	return c.reply(map[string]bool{"locked": *r.Locked})
}

func (a *api) isSuspended(c *call) error {
	account, err := c.managed()
	if err != nil {
		return err
	}
	return c.reply(map[string]bool{"suspended": account.Suspended})
}

func (a *api) setSuspended(c *call) error {
	var r struct {
		Suspended *bool `json:"suspended"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Suspended == nil {
		return matrix.MissingParam("suspended is missing")
	}
	account, err := c.managed()
	if err != nil {
		return err
	}
	if err := a.Users.SetSuspended(c.ctx(), account.UserID, *r.Suspended); err != nil {
		return err
	}
	return c.reply(map[string]bool{"suspended": *r.Suspended})
}

// whois is for administrators and for people about themselves.
// Spec v1.19 client-server-api/#get_matrixclientv3adminwhoisuserid
func (a *api) whois(c *call) error {
	u, err := c.pathUser()
	if err != nil {
		return err
	}
	if u != c.userID() && !c.session.Admin {
		return matrix.Forbidden("only an administrator may do this")
	}
	if _, err := a.Users.Account(c.ctx(), u); err != nil {
		return err
	}
	devices, err := a.Users.Devices(c.ctx(), u)
	if err != nil {
		return err
	}
	byDevice := map[matrix.DeviceID]any{}
	for _, d := range devices {
		connection := map[string]any{"ip": d.LastSeenIP, "last_seen": d.LastSeenMS, "user_agent": d.UserAgent}
		byDevice[d.DeviceID] = map[string]any{"sessions": []any{map[string]any{"connections": []any{connection}}}}
	}
	return c.reply(map[string]any{"user_id": u, "devices": byDevice})
}
