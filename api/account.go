package api

import (
	"parley.im/parley/server/matrix"
)

// accountRoutes change the account itself. Spec v1.19 client-server-api/#account-management
func (a *api) accountRoutes() []route {
	noMail := func(path string) route {
		return route{method: post, path: client + path, handle: refuseThirdPartyID, auth: anybody, limit: limitOther, maxBody: 64 << 10}
	}
	noContact := func(path string) route {
		return route{method: post, path: client + path, handle: refuseContact, suspended: true, maxBody: 64 << 10}
	}
	return []route{
		{method: post, path: client + "/account/password", handle: a.changePassword, limit: limitLoginAccount, maxBody: 64 << 10},
		{method: post, path: client + "/account/deactivate", handle: a.deactivate, suspended: true, limit: limitLoginAccount, maxBody: 64 << 10},
		{method: get, path: client + "/account/3pid", handle: a.thirdPartyIDs, suspended: true},
		noContact("/account/3pid"),
		noContact("/account/3pid/add"),
		noContact("/account/3pid/bind"),
		noContact("/account/3pid/delete"),
		noContact("/account/3pid/unbind"),
		noMail("/account/3pid/email/requestToken"),
		noMail("/account/3pid/msisdn/requestToken"),
		noMail("/account/password/email/requestToken"),
		noMail("/account/password/msisdn/requestToken"),
		noMail("/register/email/requestToken"),
		noMail("/register/msisdn/requestToken"),
	}
}

func (a *api) changePassword(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	var r struct {
		NewPassword   *string `json:"new_password"`
		LogoutDevices *bool   `json:"logout_devices"`
	}
	if err := decodeJSON(body, &r); err != nil {
		return err
	}
	if ok, err := c.reauthenticate("password", body); !ok {
		return err
	}
	if r.NewPassword == nil {
		return matrix.MissingParam("new_password is missing")
	}
	logoutOthers := r.LogoutDevices == nil || *r.LogoutDevices
	if err := a.Users.ChangePassword(c.ctx(), c.session, *r.NewPassword, logoutOthers); err != nil {
		return err
	}
	return c.done()
}

// There are no third-party IDs here, so there is nothing to unbind: no-support is what the specification asks for.
func (a *api) deactivate(c *call) error {
	body, err := c.optionalObject()
	if err != nil {
		return err
	}
	var r struct {
		Erase bool `json:"erase"`
	}
	if err := decodeJSON(body, &r); err != nil {
		return err
	}
	if ok, err := c.reauthenticate("deactivate", body); !ok {
		return err
	}
	if err := a.Users.Deactivate(c.ctx(), c.userID(), r.Erase); err != nil {
		return err
	}
	if err := a.leaveAll(c, c.userID()); err != nil {
		return err
	}
	return c.reply(map[string]string{"id_server_unbind_result": "no-support"})
}

// thirdPartyIDs is always empty: this server keeps no e-mail addresses or telephone numbers.
func (a *api) thirdPartyIDs(c *call) error {
	return c.reply(map[string]any{"threepids": []string{}})
}

func refuseThirdPartyID(c *call) error {
	var r struct {
		ClientSecret string `json:"client_secret"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	return matrix.ThreePIDDenied("this server sends no e-mails and no text messages")
}

func refuseContact(c *call) error {
	if _, err := c.object(); err != nil {
		return err
	}
	return matrix.ThreePIDDenied("this server keeps no e-mail addresses and no telephone numbers")
}
