package api

import (
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// registerRoutes make accounts. Spec v1.19 client-server-api/#account-registration
func (a *api) registerRoutes() []route {
	tokens := "/_synapse/admin/v1/registration_tokens"
	return []route{
		{method: post, path: client + "/register", handle: a.registerAccount, auth: anybody, limit: limitRegistration, maxBody: 64 << 10},
		{method: get, path: client + "/register/available", handle: a.registerAvailable, auth: anybody, limit: limitOther},
		{method: get, path: "/_matrix/client/v1/register/m.login.registration_token/validity", handle: a.registrationTokenValidity,
			auth: anybody, limit: limitRegistration},
		{method: get, path: "/_synapse/admin/v1/register", handle: a.sharedSecretNonce, auth: anybody, limit: limitOther},
		{method: post, path: "/_synapse/admin/v1/register", handle: a.sharedSecretRegister, auth: anybody, limit: limitOther, maxBody: 64 << 10},
		{method: get, path: tokens, handle: a.registrationTokens, auth: admin},
		{method: post, path: tokens + "/new", handle: a.newRegistrationToken, auth: admin, maxBody: 64 << 10},
		{method: del, path: tokens + "/{token}", handle: a.deleteRegistrationToken, auth: admin},
	}
}

func (a *api) registerAccount(c *call) error {
	var r user.RegisterRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	login, challenge, err := a.Users.Register(c.ctx(), c.Query("kind"), r, c.ClientIP())
	if challenge != nil {
		return c.challenge(challenge)
	}
	return c.answer(login, err)
}

func (a *api) registerAvailable(c *call) error {
	name := c.Query("username")
	if name == "" {
		return matrix.MissingParam("username is missing")
	}
	if err := a.Users.Available(c.ctx(), name); err != nil {
		return err
	}
	return c.reply(map[string]bool{"available": true})
}

func (a *api) registrationTokenValidity(c *call) error {
	token := c.Query("token")
	if token == "" {
		return matrix.MissingParam("token is missing")
	}
	valid, err := a.Users.RegistrationTokenValid(c.ctx(), token)
	return c.answer(map[string]bool{"valid": valid}, err)
}

// What follows is Synapse's way for scripts to make accounts with a secret that they share with the server.

func (a *api) sharedSecretNonce(c *call) error {
	nonce, err := a.Users.SharedSecretNonce()
	return c.answer(map[string]string{"nonce": nonce}, err)
}

func (a *api) sharedSecretRegister(c *call) error {
	var r user.SharedSecretRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	return c.answer(a.Users.SharedSecretRegister(c.ctx(), r, c.ClientIP()))
}

// registrationTokens lists the tokens with which people can make accounts. This and what follows are for administrators, at
// Synapse's paths and in its format, which tools know; the spec has the tokens but no way to make them.
func (a *api) registrationTokens(c *call) error {
	all, err := a.Users.RegistrationTokens(c.ctx())
	return c.answer(map[string]any{"registration_tokens": all}, err)
}

func (a *api) newRegistrationToken(c *call) error {
	var t user.RegistrationToken
	if err := c.decode(&t); err != nil {
		return err
	}
	made, err := a.Users.NewRegistrationToken(c.ctx(), t)
	return c.answer(made, err)
}

func (a *api) deleteRegistrationToken(c *call) error {
	if err := a.Users.DeleteRegistrationToken(c.ctx(), c.Param("token")); err != nil {
		return err
	}
	return c.done()
}
