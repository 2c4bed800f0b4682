package api

import (
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/syncer"
)

// syncRoutes are what clients wait for, and what is only ever seen there. Spec v1.19 client-server-api/#syncing
func (a *api) syncRoutes() []route {
	room := client + "/rooms/{roomId}"
	return []route{
		{method: get, path: client + "/sync", handle: a.sync, suspended: true},
		{method: post, path: "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", handle: a.slidingSync, suspended: true, maxBody: 1 << 20},
		{method: get, path: client + "/keys/changes", handle: a.keyChanges, limit: limitKeys, suspended: true},
		{method: put, path: room + "/typing/{userId}", handle: a.typing, limit: limitMessage},
		{method: post, path: room + "/receipt/{receiptType}/{eventId}", handle: a.receipt, limit: limitMessage, suspended: true},
		{method: post, path: room + "/read_markers", handle: a.readMarkers, limit: limitMessage, suspended: true},
		{method: get, path: client + "/presence/{userId}/status", handle: a.presence, suspended: true},
		{method: put, path: client + "/presence/{userId}/status", handle: a.setPresence, limit: limitMessage},
	}
}

// Spec v1.19 client-server-api/#get_matrixclientv3sync
func (a *api) sync(c *call) error {
	timeout, err := c.number("timeout", 0)
	if err != nil {
		return err
	}
	fullState, err := c.boolean("full_state")
	if err != nil {
		return err
	}
	stateAfter, err := c.boolean("use_state_after")
	if err != nil {
		return err
	}
	unstableStateAfter, err := c.boolean("org.matrix.msc4222.use_state_after")
	if err != nil {
		return err
	}
	return c.replyRaw(a.Sync.Sync(c.ctx(), syncer.Request{
		User:               c.userID(),
		Device:             c.deviceID(),
		Since:              c.Query("since"),
		Filter:             c.Query("filter"),
		FullState:          fullState,
		SetPresence:        c.Query("set_presence"),
		Timeout:            milliseconds(timeout),
		UseStateAfter:      stateAfter,
		UnstableStateAfter: unstableStateAfter,
	}))
}

// slidingSync is MSC4186 in the shape that clients use today.
func (a *api) slidingSync(c *call) error {
	timeout, err := c.number("timeout", 0)
	if err != nil {
		return err
	}
	body, err := c.object()
	if err != nil {
		return err
	}
	return c.replyRaw(a.Sync.SlidingSync(c.ctx(), syncer.SlidingRequest{
		User: c.userID(), Device: c.deviceID(), Pos: c.Query("pos"), SetPresence: c.Query("set_presence"), Timeout: milliseconds(timeout), Body: body,
	}))
}

// milliseconds is a duration that a client asks for, at most a day.
func milliseconds(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), 86_400_000)) * time.Millisecond
}

// Spec v1.19 client-server-api/#get_matrixclientv3keyschanges
func (a *api) keyChanges(c *call) error {
	from, to := c.Query("from"), c.Query("to")
	if from == "" {
		return matrix.MissingParam("from is missing")
	}
	changed, left, err := a.Sync.DeviceListChanges(c.ctx(), c.userID(), from, to)
	return c.answer(map[string][]matrix.UserID{"changed": changed, "left": left}, err)
}

// Spec v1.19 client-server-api/#typing-notifications
func (a *api) typing(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	u, err := c.own()
	if err != nil {
		return err
	}
	var r struct {
		Typing  *bool `json:"typing"`
		Timeout int64 `json:"timeout"` // ms
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Typing == nil {
		return matrix.MissingParam("typing is missing")
	}
	if err := a.Sync.SetTyping(c.ctx(), u, room, *r.Typing, milliseconds(r.Timeout)); err != nil {
		return err
	}
	return c.done()
}

// Spec v1.19 client-server-api/#receipts
func (a *api) receipt(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	var r struct {
		Thread *string `json:"thread_id"`
	}
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if err := a.Sync.SetReceipt(c.ctx(), c.userID(), room, c.Param("receiptType"), event, r.Thread); err != nil {
		return err
	}
	return c.done()
}

// Spec v1.19 client-server-api/#fully-read-markers
func (a *api) readMarkers(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	var m syncer.ReadMarkers
	if err := c.decode(&m); err != nil {
		return err
	}
	if err := a.Sync.SetReadMarkers(c.ctx(), c.userID(), room, m); err != nil {
		return err
	}
	return c.done()
}

// Spec v1.19 client-server-api/#presence
func (a *api) presence(c *call) error {
	u, err := c.pathUser()
	if err != nil {
		return err
	}
	return c.answer(a.Sync.PresenceOf(c.ctx(), c.userID(), u))
}

func (a *api) setPresence(c *call) error {
	u, err := c.own()
	if err != nil {
		return err
	}
	var r struct {
		Presence  *string `json:"presence"`
		StatusMsg *string `json:"status_msg"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Presence == nil {
		return matrix.MissingParam("presence is missing")
	}
	if err := a.Sync.SetPresence(c.ctx(), u, c.deviceID(), *r.Presence, r.StatusMsg); err != nil {
		return err
	}
	return c.done()
}
