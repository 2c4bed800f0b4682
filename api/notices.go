package api

import (
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/server/user"
	"parley.im/parley/storage"
)

// noticeRoutes let administrators speak to one of their users, in Synapse's way: a room of the server's own user with
// each of them. Spec v1.19 client-server-api/#server-notices
func (a *api) noticeRoutes() []route {
	path := "/_synapse/admin/v1/send_server_notice"
	return []route{
		{method: post, path: path, handle: a.sendNotice, auth: admin, maxBody: a.cfg.MaxEventBodyBytes},
		{method: put, path: path + "/{txnId}", handle: a.sendNotice, auth: admin, maxBody: a.cfg.MaxEventBodyBytes},
	}
}

// noticeName is the localpart of the user who sends notices.
const noticeName = "_server"

func (a *api) sendNotice(c *call) error {
	var r struct {
		UserID   matrix.UserID   `json:"user_id"`
		Type     string          `json:"type"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	to, err := matrix.ParseUserID(string(r.UserID))
	if err != nil {
		return err
	}
	if r.Content == nil {
		return matrix.MissingParam("content is missing")
	}
	if r.Type == "" {
		r.Type = matrix.TypeMessage
	}
	if exists, err := a.Users.Exists(c.ctx(), to); err != nil {
		return err
	} else if !exists || !a.Users.IsLocal(to) {
		return matrix.NotFound("there is no such user")
	}
	from, err := a.noticeSender(c)
	if err != nil {
		return err
	}
	id, err := a.noticeRoom(c, from, to)
	if err != nil {
		return err
	}
	event := room.SendRequest{Room: id, Sender: from, Type: r.Type, StateKey: r.StateKey, Content: r.Content}
	if txn := c.Param("txnId"); txn != "" {
		event.Device, event.TxnID = c.deviceID(), txn
	}
	return c.sent(a.Rooms.Send(c.ctx(), event))
}

// noticeSender is the user who sends notices. It is made when it is first needed, without a password.
func (a *api) noticeSender(c *call) (matrix.UserID, error) {
	id, err := matrix.NewUserID(noticeName, a.ServerName)
	if err != nil {
		return "", err
	}
	if exists, err := a.Users.Exists(c.ctx(), id); err != nil || exists {
		return id, err
	}
	_, err = a.Users.Create(c.ctx(), user.NewAccount{Localpart: noticeName, DisplayName: "Server notices", OfServer: true})
	if matrix.ErrorCode(err) == "M_USER_IN_USE" {
		err = nil // somebody was faster
	}
	return id, err
}

// noticeFact is the name of the fact that says in which room a user gets notices.
func noticeFact(u matrix.UserID) string { return "notices to " + string(u) }

// noticeRoom is the room in which a user gets notices. One who has left it is invited again.
func (a *api) noticeRoom(c *call, from, to matrix.UserID) (matrix.RoomID, error) {
	known, err := a.DB.Fact(c.ctx(), noticeFact(to))
	if err == nil {
		id := matrix.RoomID(known)
		m, err := a.Rooms.Membership(c.ctx(), id, to)
		if err != nil || m.Membership == matrix.Join || m.Membership == matrix.Invite {
			return id, err
		}
		return id, a.Rooms.Invite(c.ctx(), room.MemberRequest{Room: id, Sender: from, Target: to})
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return "", err
	}
	id, err := a.Rooms.Create(c.ctx(), room.CreateRequest{
		Creator: from, Preset: "private_chat", Name: "Server notices", Invite: []matrix.UserID{to},
		PowerLevelContentOverride: json.RawMessage(`{"users_default":-10}`),
	})
	if err != nil {
		return "", err
	}
	if err := a.Users.SetTag(c.ctx(), to, id, "m.server_notice", json.RawMessage(`{}`)); err != nil {
		return "", err
	}
	return id, a.DB.SetFact(c.ctx(), noticeFact(to), string(id))
}

// mayLeave refuses to let somebody turn down the invite to their notices; once seen, the room may be left.
func (a *api) mayLeave(c *call, id matrix.RoomID) error {
	known, err := a.DB.Fact(c.ctx(), noticeFact(c.userID()))
	if errors.Is(err, storage.ErrNotFound) || err == nil && matrix.RoomID(known) != id {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := a.Rooms.Membership(c.ctx(), id, c.userID())
	if err == nil && m.Membership == matrix.Invite {
		return matrix.CannotLeaveServerNoticeRoom("notices of the server cannot be turned down")
	}
	return err
}
