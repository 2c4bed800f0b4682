package api

import (
	"encoding/json"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// sessionRoutes are signing in and out. Spec v1.19 client-server-api/#client-authentication
func (a *api) sessionRoutes() []route {
	return []route{
		{method: get, path: client + "/login", handle: a.loginFlows, auth: anybody},
		{method: post, path: client + "/login", handle: a.login, auth: anybody, limit: limitLoginAddress, maxBody: 64 << 10},
		{method: post, path: "/_matrix/client/v1/login/get_token", handle: a.loginToken, limit: limitLoginAccount, maxBody: 64 << 10},
		{method: post, path: client + "/refresh", handle: a.refresh, auth: anybody, limit: limitOther, maxBody: 64 << 10},
		{method: post, path: client + "/logout", handle: a.logout, suspended: true, locked: true},
		{method: post, path: client + "/logout/all", handle: a.logoutAll, suspended: true, locked: true},
		{method: get, path: client + "/account/whoami", handle: a.whoami, suspended: true},
	}
}

func (a *api) loginFlows(c *call) error {
	return c.reply(map[string]any{"flows": a.Users.LoginFlows()})
}

func (a *api) login(c *call) error {
	var r user.LoginRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	// A login token names nobody, and cannot be guessed.
	if r.Type != "m.login.token" {
		if err := a.limits.allow(limitLoginAccount, loginName(r)); err != nil {
			return err
		}
	}
	return c.answer(a.Users.Login(c.ctx(), r, c.ClientIP()))
}

// loginName is whose account somebody tries to get into, as they wrote it, for the rate limit.
func loginName(r user.LoginRequest) string {
	var id struct {
		User string `json:"user"`
	}
	if len(r.Identifier) > 0 {
		// What does not fit is refused by Login with the right error.
		_ = json.Unmarshal(r.Identifier, &id)
	}
	if id.User == "" {
		id.User = r.User
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.ToLower(id.User), "@"), ":")
	return name
}

// The token logs in another device of the same person, so the person must authenticate anew each time.
// Spec v1.19 client-server-api/#post_matrixclientv1loginget_token
func (a *api) loginToken(c *call) error {
	body, err := c.optionalObject()
	if err != nil {
		return err
	}
	if ok, err := c.reauthenticate("get_login_token", body); !ok {
		return err
	}
	token, expires, err := a.Users.LoginToken(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	return c.reply(map[string]any{"login_token": token, "expires_in_ms": expires.Milliseconds()})
}

func (a *api) refresh(c *call) error {
	var r struct {
		RefreshToken *string `json:"refresh_token"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.RefreshToken == nil {
		return matrix.MissingParam("refresh_token is missing")
	}
	return c.answer(a.Users.Refresh(c.ctx(), *r.RefreshToken))
}

func (a *api) logout(c *call) error {
	if err := a.Users.Logout(c.ctx(), c.session); err != nil {
		return err
	}
	return c.done()
}

func (a *api) logoutAll(c *call) error {
	if err := a.Users.LogoutAll(c.ctx(), c.userID()); err != nil {
		return err
	}
	return c.done()
}

func (a *api) whoami(c *call) error {
	return c.reply(map[string]any{"user_id": c.userID(), "device_id": c.deviceID(), "is_guest": false})
}

// reauthenticate asks the person for the password again. ok is false if the request ends here: with err, or with the
// challenge that has been written.
func (c *call) reauthenticate(operation string, body []byte) (ok bool, err error) {
	challenge, err := c.a.Users.Reauthenticate(c.ctx(), c.session, operation, body)
	if err != nil {
		return false, err
	}
	if challenge != nil {
		return false, c.challenge(challenge)
	}
	return true, nil
}
