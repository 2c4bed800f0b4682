package api

import (
	"io"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// historyRoutes read rooms. Spec v1.19 client-server-api/#getting-events-for-a-room
func (a *api) historyRoutes() []route {
	id, v1 := client+"/rooms/{roomId}", "/_matrix/client/v1/rooms/{roomId}"
	state, relations := id+"/state/{eventType}", v1+"/relations/{eventId}"
	unstable := func(path string) []string { return []string{"/_matrix/client/unstable/rooms/{roomId}" + path} }
	return []route{
		{method: get, path: id + "/messages", handle: a.messages, suspended: true},
		{method: get, path: id + "/context/{eventId}", handle: a.eventContext, suspended: true},
		{method: get, path: id + "/event/{eventId}", handle: a.event, suspended: true},
		{method: get, path: id + "/state", handle: a.state, suspended: true, aliases: []string{id + "/state/", r0 + "/rooms/{roomId}/state/"}},
		{method: get, path: state + "/{stateKey}", handle: a.stateEvent, suspended: true},
		{method: get, path: state, handle: a.stateEvent, suspended: true, aliases: []string{state + "/", r0 + "/rooms/{roomId}/state/{eventType}/"}},
		{method: get, path: id + "/members", handle: a.members, suspended: true},
		{method: get, path: id + "/joined_members", handle: a.joinedMembers, suspended: true},
		{method: get, path: relations, handle: a.relations, suspended: true, aliases: unstable("/relations/{eventId}")},
		{method: get, path: relations + "/{relType}", handle: a.relations, suspended: true, aliases: unstable("/relations/{eventId}/{relType}")},
		{method: get, path: relations + "/{relType}/{eventType}", handle: a.relations, suspended: true,
			aliases: unstable("/relations/{eventId}/{relType}/{eventType}")},
		{method: get, path: v1 + "/threads", handle: a.threads, suspended: true, aliases: unstable("/threads")},
		{method: get, path: v1 + "/timestamp_to_event", handle: a.timestampToEvent, suspended: true,
			aliases: []string{"/_matrix/client/unstable/org.matrix.msc3030/rooms/{roomId}/timestamp_to_event"}},
	}
}

// reader is for whom events are written.
func (c *call) reader() room.Reader { return room.Reader{User: c.userID(), Device: c.deviceID()} }

// eventFilter is the query parameter filter, as JSON; nil where it is missing.
func (c *call) eventFilter() (*room.EventFilter, error) {
	s := c.Query("filter")
	if s == "" {
		return nil, nil
	}
	f := &room.EventFilter{}
	if err := decodeJSON([]byte(s), f); err != nil {
		return nil, matrix.BadJSON("the filter is not valid: %v", err)
	}
	return f, nil
}

// forward is the query parameter dir, f or b; fallback where it is missing.
func (c *call) forward(fallback string) (bool, error) {
	switch dir := c.DefaultQuery("dir", fallback); dir {
	case "f":
		return true, nil
	case "b":
		return false, nil
	case "":
		return false, matrix.MissingParam("dir is missing")
	}
	return false, matrix.InvalidParam("dir must be f or b")
}

// Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidmessages
func (a *api) messages(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	// dir is required, but Synapse takes it as f, and clients rely on it.
	forward, err := c.forward("f")
	if err != nil {
		return err
	}
	limit, err := c.limit(10, 1000)
	if err != nil {
		return err
	}
	filter, err := c.eventFilter()
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.Messages(c.ctx(), id, c.reader(), room.MessagesRequest{
		From: c.Query("from"), To: c.Query("to"), Forward: forward, Limit: limit, Filter: filter,
	}))
}

// Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidcontexteventid
func (a *api) eventContext(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	limit, err := c.number("limit", 10)
	if err != nil {
		return err
	}
	filter, err := c.eventFilter()
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.Context(c.ctx(), id, c.reader(), event, int(min(limit, 100)), filter))
}

func (a *api) event(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	return c.replyRaw(a.Rooms.Event(c.ctx(), id, c.reader(), event))
}

func (a *api) state(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	return c.stream(func(w io.Writer) error { return a.Rooms.State(c.ctx(), w, id, c.reader()) })
}

// Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidstateeventtypestatekey
func (a *api) stateEvent(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	whole := false
	switch c.Query("format") {
	case "", "content":
	case "event":
		whole = true
	default:
		return matrix.InvalidParam("format must be content or event")
	}
	return c.replyRaw(a.Rooms.StateEvent(c.ctx(), id, c.reader(), c.Param("eventType"), c.Param("stateKey"), whole))
}

// Spec v1.19 client-server-api/#get_matrixclientv3roomsroomidmembers
func (a *api) members(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	q := room.MembersRequest{At: c.Query("at"), Membership: c.Query("membership"), NotMembership: c.Query("not_membership")}
	for _, membership := range []string{q.Membership, q.NotMembership} {
		switch membership {
		case "", matrix.Join, matrix.Invite, matrix.Leave, matrix.Ban, matrix.Knock:
		default:
			return matrix.InvalidParam("there is no such membership")
		}
	}
	return c.stream(func(w io.Writer) error { return a.Rooms.Members(c.ctx(), w, id, c.reader(), q) })
}

func (a *api) joinedMembers(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	return c.stream(func(w io.Writer) error { return a.Rooms.JoinedMembers(c.ctx(), w, id, c.userID()) })
}

// Spec v1.19 client-server-api/#forming-relationships-between-events
func (a *api) relations(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	forward, err := c.forward("b")
	if err != nil {
		return err
	}
	limit, err := c.limit(50, 1000)
	if err != nil {
		return err
	}
	recurse, err := c.boolean("recurse")
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.Relations(c.ctx(), id, c.reader(), room.RelationsRequest{
		Event: event, RelType: c.Param("relType"), EventType: c.Param("eventType"),
		From: c.Query("from"), To: c.Query("to"), Forward: forward, Limit: limit, Recurse: recurse,
	}))
}

// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidthreads
func (a *api) threads(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	participated := false
	switch c.Query("include") {
	case "", "all":
	case "participated":
		participated = true
	default:
		return matrix.InvalidParam("include must be all or participated")
	}
	limit, err := c.limit(20, 1000)
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.Threads(c.ctx(), id, c.reader(), participated, c.Query("from"), limit))
}

// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
func (a *api) timestampToEvent(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	if c.Query("ts") == "" {
		return matrix.MissingParam("ts is missing")
	}
	ts, err := c.number("ts", 0)
	if err != nil {
		return err
	}
	forward, err := c.forward("")
	if err != nil {
		return err
	}
	return c.answer(a.Rooms.TimestampToEvent(c.ctx(), id, c.userID(), ts, !forward))
}
