package federation

import (
	"encoding/json"
	"errors"
	"net/http"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// maxOnBind bounds the invites of one 3pid/onbind.
const maxOnBind = 20

func (c *call) roomAndUser() (matrix.RoomID, matrix.UserID, error) {
	id, err := c.roomID()
	if err != nil {
		return "", "", err
	}
	user, err := c.userID()
	if err == nil && user.Server() != c.origin {
		err = matrix.Forbidden("%s is not a user of %s", user, c.origin)
	}
	return id, user, err
}

// versions are the room versions that the other server supports; version 1 if it does not say.
func (c *call) versions() []string {
	if versions := c.QueryArray("ver"); len(versions) > 0 {
		return versions
	}
	return []string{"1"}
}

// Spec v1.19 server-server-api/#get_matrixfederationv1make_joinroomiduserid
func (c *call) makeJoin() (any, error) {
	id, user, err := c.roomAndUser()
	if err != nil {
		return nil, err
	}
	return c.h.Rooms.MakeJoin(c.ctx(), c.origin, id, user, c.versions())
}

// Spec v1.19 server-server-api/#put_matrixfederationv2send_joinroomideventid
func (c *call) sendJoin() (any, error) {
	id, event, err := c.membershipEvent()
	if err != nil {
		return nil, err
	}
	answer, err := c.h.Rooms.SendJoin(c.ctx(), c.origin, id, event, c.body, c.flag("omit_members"))
	if err != nil {
		return nil, err
	}
	answer.State, answer.AuthChain = list(answer.State), list(answer.AuthChain)
	return struct {
		Origin matrix.ServerName `json:"origin"`
		room.SendJoinResponse
	}{c.h.server, answer}, c.relay(id, event)
}

// inPair gives the answer of v2 in the shape of v1, which spec v1.18 removed and old servers fall back to: [200, answer].
func inPair(v2 func(*call) (any, error)) func(*call) (any, error) {
	return func(c *call) (any, error) {
		answer, err := v2(c)
		return []any{http.StatusOK, answer}, err
	}
}

// Spec v1.19 server-server-api/#get_matrixfederationv1make_leaveroomiduserid
func (c *call) makeLeave() (any, error) {
	id, user, err := c.roomAndUser()
	if err != nil {
		return nil, err
	}
	return c.h.Rooms.MakeLeave(c.ctx(), c.origin, id, user)
}

// Spec v1.19 server-server-api/#put_matrixfederationv2send_leaveroomideventid
func (c *call) sendLeave() (any, error) {
	id, event, err := c.membershipEvent()
	if err != nil {
		return nil, err
	}
	if err := c.h.Rooms.SendLeave(c.ctx(), c.origin, id, event, c.body); err != nil {
		return nil, err
	}
	return struct{}{}, c.relay(id, event)
}

// Spec v1.19 server-server-api/#get_matrixfederationv1make_knockroomiduserid
func (c *call) makeKnock() (any, error) {
	id, user, err := c.roomAndUser()
	if err != nil {
		return nil, err
	}
	return c.h.Rooms.MakeKnock(c.ctx(), c.origin, id, user, c.versions())
}

// Spec v1.19 server-server-api/#put_matrixfederationv1send_knockroomideventid
func (c *call) sendKnock() (any, error) {
	id, event, err := c.membershipEvent()
	if err != nil {
		return nil, err
	}
	state, err := c.h.Rooms.SendKnock(c.ctx(), c.origin, id, event, c.body)
	if err != nil {
		return nil, err
	}
	return map[string]any{"knock_room_state": list(state)}, c.relay(id, event)
}

func (c *call) membershipEvent() (matrix.RoomID, matrix.EventID, error) {
	id, event, err := c.roomAndEvent()
	if err == nil {
		var object map[string]json.RawMessage
		err = c.decode(&object)
	}
	return id, event, err
}

// relay sends a membership event that another server handed in on to the other servers in the room. It is written down
// before the answer, since the sender will not send it to anybody else itself.
func (c *call) relay(id matrix.RoomID, event matrix.EventID) error {
	e, err := c.h.Rooms.EventByID(c.ctx(), event)
	if err != nil {
		return err
	}
	r, err := c.h.Rooms.Room(c.ctx(), id)
	if err != nil {
		return err
	}
	if e.Hidden() {
		return nil
	}
	var others []matrix.ServerName
	for server := range r.Snapshot().Servers {
		if server != c.origin && server != c.h.server && c.h.cfg.permits(server) {
			others = append(others, server)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return c.h.Client.o.DB.Write(c.ctx(), func(tx *storage.Tx) error {
		return tx.QueueEDU(others, relayedPDU, e.JSON())
	})
}

// Spec v1.19 server-server-api/#put_matrixfederationv2inviteroomideventid
func (c *call) inviteV2() (any, error) {
	id, event, err := c.roomAndEvent()
	if err != nil {
		return nil, err
	}
	var invite room.InviteRequest
	if err := c.decode(&invite); err != nil {
		return nil, err
	}
	if invite.RoomVersion == "" || len(invite.Event) == 0 {
		return nil, matrix.MissingParam("room_version or event is missing")
	}
	signed, err := c.h.Rooms.ReceiveInvite(c.ctx(), c.origin, id, event, invite)
	if err != nil {
		return nil, err
	}
	return map[string]json.RawMessage{"event": signed}, nil
}

// Spec v1.19 server-server-api/#put_matrixfederationv1inviteroomideventid
func (c *call) inviteV1() (any, error) {
	id, event, err := c.roomAndEvent()
	if err != nil {
		return nil, err
	}
	var body struct {
		Unsigned struct {
			State []json.RawMessage `json:"invite_room_state"`
		} `json:"unsigned"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	signed, err := c.h.Rooms.ReceiveInvite(c.ctx(), c.origin, id, event, room.InviteRequest{RoomVersion: "1", Event: c.body, InviteRoomState: body.Unsigned.State})
	if err != nil {
		return nil, err
	}
	return []any{200, map[string]json.RawMessage{"event": signed}}, nil
}

// Spec v1.19 server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid
func (c *call) exchangeThirdPartyInvite() (any, error) {
	id, err := c.roomID()
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := c.decode(&object); err != nil {
		return nil, err
	}
	return struct{}{}, c.h.Rooms.ReceiveThirdPartyInvite(c.ctx(), c.origin, id, c.body)
}

// onBind is called by an identity server when somebody of ours has claimed an address to which there were invites.
// Nothing about the caller is known: what makes an invite good is the identity server's signature in it, which the server
// in the room checks. Spec v1.19 server-server-api/#put_matrixfederationv13pidonbind
func (c *call) onBind() (any, error) {
	var body struct {
		MXID    string `json:"mxid"`
		Invites []struct {
			RoomID matrix.RoomID   `json:"room_id"`
			Sender matrix.UserID   `json:"sender"`
			Signed json.RawMessage `json:"signed"`
		} `json:"invites"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	user, err := c.localUser(body.MXID)
	if err != nil {
		return nil, err
	}
	if exists, err := c.h.Users.Exists(c.ctx(), user); err != nil {
		return nil, err
	} else if !exists {
		return nil, matrix.NotFound("%s is not known here", user)
	}
	if len(body.Invites) > maxOnBind {
		return nil, matrix.InvalidParam("more than %d invites", maxOnBind)
	}
	select {
	case c.h.onbind <- struct{}{}:
		defer func() { <-c.h.onbind }()
	default:
		return nil, matrix.LimitExceeded(firstBackoff)
	}
	for _, i := range body.Invites {
		if _, err := matrix.ParseRoomID(string(i.RoomID)); err != nil {
			return nil, matrix.InvalidParam("%s", err)
		}
		if _, err := matrix.ParseUserID(string(i.Sender)); err != nil {
			return nil, matrix.InvalidParam("%s", err)
		}
		member, err := encode(map[string]any{
			"type": "m.room.member", "room_id": i.RoomID, "sender": i.Sender, "state_key": user,
			"content": map[string]any{"membership": "invite", "third_party_invite": map[string]any{"display_name": user.Localpart(), "signed": i.Signed}},
		})
		if err != nil {
			return nil, err
		}
		err = c.h.Rooms.ReceiveThirdPartyInvite(c.ctx(), c.h.server, i.RoomID, member)
		if known := new(matrix.Error); errors.As(err, &known) && known.Status == http.StatusNotFound {
			// We are not in the room: the inviter's server is.
			err = c.h.Client.ExchangeThirdPartyInvite(c.ctx(), i.Sender.Server(), i.RoomID, member)
		}
		if err != nil {
			c.h.log.Warn("third-party invite", "room", i.RoomID, "user", user, "err", err)
		}
	}
	return struct{}{}, nil
}
