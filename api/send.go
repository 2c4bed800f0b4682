package api

import (
	"encoding/json"
	"net/http"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// sendRoutes put events into rooms. Spec v1.19 client-server-api/#sending-events-to-a-room
func (a *api) sendRoutes() []route {
	id, state := client+"/rooms/{roomId}", client+"/rooms/{roomId}/state/{eventType}"
	events := a.cfg.MaxEventBodyBytes
	return []route{
		{method: put, path: id + "/send/{eventType}/{txnId}", handle: a.sendEvent, limit: limitMessage, maxBody: events},
		{method: post, path: r0 + "/rooms/{roomId}/send/{eventType}", handle: a.sendEvent, limit: limitMessage, maxBody: events,
			aliases: []string{id + "/send/{eventType}"}},
		// The state key may be empty, and then the slash before it is often left out.
		{method: put, path: state + "/{stateKey}", handle: a.setState, limit: limitMessage, maxBody: events},
		{method: put, path: state, handle: a.setState, limit: limitMessage, maxBody: events,
			aliases: []string{state + "/", r0 + "/rooms/{roomId}/state/{eventType}/"}},
		{method: put, path: id + "/redact/{eventId}/{txnId}", handle: a.redact, limit: limitMessage, suspended: true, maxBody: events},
		{method: post, path: id + "/redact/{eventId}", handle: a.redact, limit: limitMessage, suspended: true, maxBody: events},
	}
}

// sendEvent answers with bytes of its own making: this is the busiest path of all.
// Spec v1.19 client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid
func (a *api) sendEvent(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	content, err := c.object()
	if err != nil {
		return err
	}
	if err := c.refuseDelay(); err != nil {
		return err
	}
	r := room.SendRequest{Room: id, Sender: c.userID(), Type: c.Param("eventType")}
	if txn := c.Param("txnId"); txn != "" {
		r.Device, r.TxnID = c.deviceID(), txn
	}
	if r.Content, err = a.Voice.Prepare(c.ctx(), id, r.Sender, r.Type, content); err != nil {
		// What could be sent then may be refused now, such as a recording that has ended meanwhile; the client did not get the answer.
		if sent, before := a.Rooms.SentBefore(c.ctx(), r); before == nil && sent != "" {
			return c.sent(sent, nil)
		}
		return err
	}
	// The endpoint for redactions has checks of its own.
	if r.Type == "m.room.redaction" {
		return a.sendRedaction(c, r)
	}
	return c.sent(a.Rooms.Send(c.ctx(), r))
}

// refuseDelay refuses an event that is to be sent later (MSC4140), which is not supported: to send it at once would do the
// opposite of what was asked for, such as leaving a call that has just begun.
func (c *call) refuseDelay() error {
	if c.Request.URL.RawQuery == "" {
		return nil
	}
	for _, name := range []string{"org.matrix.msc4140.delay", "org.matrix.msc4140.parent_delay_id"} {
		if c.Query(name) != "" {
			return matrix.Unrecognized("delayed events are not supported by this server").WithStatus(http.StatusBadRequest)
		}
	}
	return nil
}

// sendRedaction is a redaction sent like any other event: from room version 11 on the content names the event.
func (a *api) sendRedaction(c *call, r room.SendRequest) error {
	var body struct {
		Redacts matrix.EventID `json:"redacts"`
		Reason  string         `json:"reason"`
	}
	if err := decodeJSON(r.Content, &body); err != nil {
		return err
	}
	event, err := matrix.ParseEventID(string(body.Redacts))
	if err != nil {
		return err
	}
	return c.sent(a.Rooms.Redact(c.ctx(), room.RedactRequest{
		Room: r.Room, Sender: r.Sender, Event: event, Reason: body.Reason, Device: r.Device, TxnID: r.TxnID, Content: r.Content,
	}))
}

func (c *call) sent(id matrix.EventID, err error) error {
	if err != nil {
		return err
	}
	b := make([]byte, 0, 80)
	b = append(b, `{"event_id":"`...)
	b = append(b, id...)
	return c.replyJSON(append(b, `"}`...))
}

// Spec v1.19 client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey
func (a *api) setState(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	content, err := c.object()
	if err != nil {
		return err
	}
	if err := c.refuseDelay(); err != nil {
		return err
	}
	typ, key := c.Param("eventType"), c.Param("stateKey")
	event, err := a.Rooms.Send(c.ctx(), room.SendRequest{Room: id, Sender: c.userID(), Type: typ, StateKey: &key, Content: content})
	if err == nil && typ == matrix.TypeTombstone && key == "" {
		a.tombstoned(c, id, content)
	}
	return c.sent(event, err)
}

// tombstoned is an upgrade that a client makes by itself.
func (a *api) tombstoned(c *call, id matrix.RoomID, content []byte) {
	var tombstone struct {
		Replacement string `json:"replacement_room"`
	}
	if json.Unmarshal(content, &tombstone) != nil {
		return
	}
	if to, err := matrix.ParseRoomID(tombstone.Replacement); err == nil && a.predecessor(c, to) == id {
		a.replaced(c, id, to)
	}
}

// A suspended account may still take back what it has said itself.
// Spec v1.19 client-server-api/#put_matrixclientv3roomsroomidredacteventidtxnid
func (a *api) redact(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	body, err := c.optionalObject()
	if err != nil {
		return err
	}
	var r struct {
		Reason string `json:"reason"`
	}
	if err := decodeJSON(body, &r); err != nil {
		return err
	}
	if c.session.Suspended {
		e, err := a.Rooms.VisibleEvent(c.ctx(), id, c.userID(), event)
		if err != nil {
			return err
		}
		if e.Sender() != c.userID() {
			return matrix.UserSuspended("this account is suspended: it can redact only what it has sent itself")
		}
	}
	request := room.RedactRequest{Room: id, Sender: c.userID(), Event: event, Reason: r.Reason, Content: body}
	if txn := c.Param("txnId"); txn != "" {
		request.Device, request.TxnID = c.deviceID(), txn
	}
	return c.sent(a.Rooms.Redact(c.ctx(), request))
}
