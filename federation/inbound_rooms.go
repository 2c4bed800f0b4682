package federation

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// maxBackfillIDs bounds the events that one request may start from.
const maxBackfillIDs = 50

// eventsAnswer is the shape of answers with events that belong to no transaction.
type eventsAnswer struct {
	Origin         matrix.ServerName `json:"origin"`
	OriginServerTS int64             `json:"origin_server_ts"`
	PDUs           []json.RawMessage `json:"pdus"`
}

func (c *call) events(pdus []json.RawMessage) eventsAnswer {
	return eventsAnswer{c.h.server, c.h.now().UnixMilli(), list(pdus)}
}

// list is never null in JSON.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// Spec v1.19 server-server-api/#get_matrixfederationv1backfillroomid
func (c *call) backfill() (any, error) {
	id, err := c.roomID()
	if err != nil {
		return nil, err
	}
	limit, err := c.number("limit", 10)
	if err != nil {
		return nil, err
	}
	named := c.QueryArray("v")
	if len(named) == 0 {
		return nil, matrix.MissingParam("v is missing")
	}
	if len(named) > maxBackfillIDs {
		return nil, matrix.InvalidParam("more than %d events", maxBackfillIDs)
	}
	from := make([]matrix.EventID, len(named))
	for i, s := range named {
		if from[i], err = parseEventID(s); err != nil {
			return nil, err
		}
	}
	pdus, err := c.h.Rooms.ServeBackfill(c.ctx(), c.origin, id, from, int(min(max(limit, 0), 100)))
	if err != nil {
		return nil, err
	}
	return c.events(pdus), nil
}

// Spec v1.19 server-server-api/#post_matrixfederationv1get_missing_eventsroomid
func (c *call) missingEvents() (any, error) {
	id, err := c.roomID()
	if err != nil {
		return nil, err
	}
	var query room.MissingEventsRequest
	if err := c.decode(&query); err != nil {
		return nil, err
	}
	if len(query.EarliestEvents) > maxBackfillIDs || len(query.LatestEvents) > maxBackfillIDs {
		return nil, matrix.InvalidParam("more than %d events", maxBackfillIDs)
	}
	for _, e := range append(query.EarliestEvents[:len(query.EarliestEvents):len(query.EarliestEvents)], query.LatestEvents...) {
		if _, err := parseEventID(string(e)); err != nil {
			return nil, err
		}
	}
	events, err := c.h.Rooms.ServeMissingEvents(c.ctx(), c.origin, id, query)
	if err != nil {
		return nil, err
	}
	return map[string]any{"events": list(events)}, nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1eventeventid
func (c *call) event() (any, error) {
	id, err := c.eventID()
	if err != nil {
		return nil, err
	}
	e, err := c.h.Rooms.EventForServer(c.ctx(), c.origin, id)
	if err != nil {
		return nil, err
	}
	return c.events([]json.RawMessage{e.JSON()}), nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1event_authroomideventid
func (c *call) eventAuth() (any, error) {
	id, event, err := c.roomAndEvent()
	if err != nil {
		return nil, err
	}
	chain, err := c.h.Rooms.EventAuthChain(c.ctx(), c.origin, id, event)
	if err != nil {
		return nil, err
	}
	return map[string]any{"auth_chain": list(chain)}, nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1stateroomid
func (c *call) state() (any, error) {
	id, event, err := c.roomAtEvent()
	if err != nil {
		return nil, err
	}
	answer, err := c.h.Rooms.StateAtEvent(c.ctx(), c.origin, id, event)
	answer.PDUs, answer.AuthChain = list(answer.PDUs), list(answer.AuthChain)
	return answer, err
}

// Spec v1.19 server-server-api/#get_matrixfederationv1state_idsroomid
func (c *call) stateIDs() (any, error) {
	id, event, err := c.roomAtEvent()
	if err != nil {
		return nil, err
	}
	answer, err := c.h.Rooms.StateIDsAt(c.ctx(), c.origin, id, event)
	answer.PDUIDs, answer.AuthChainIDs = list(answer.PDUIDs), list(answer.AuthChainIDs)
	return answer, err
}

func (c *call) roomAndEvent() (matrix.RoomID, matrix.EventID, error) {
	id, err := c.roomID()
	if err != nil {
		return "", "", err
	}
	event, err := c.eventID()
	return id, event, err
}

func (c *call) roomAtEvent() (matrix.RoomID, matrix.EventID, error) {
	id, err := c.roomID()
	if err != nil {
		return "", "", err
	}
	s, ok := c.GetQuery("event_id")
	if !ok {
		return "", "", matrix.MissingParam("event_id is missing")
	}
	event, err := parseEventID(s)
	return id, event, err
}

// Spec v1.19 server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
func (c *call) timestampToEvent() (any, error) {
	id, err := c.roomID()
	if err != nil {
		return nil, err
	}
	if _, ok := c.GetQuery("ts"); !ok {
		return nil, matrix.MissingParam("ts is missing")
	}
	ts, err := c.number("ts", 0)
	if err != nil {
		return nil, err
	}
	dir := c.Query("dir")
	if dir != "f" && dir != "b" {
		return nil, matrix.InvalidParam("dir is neither f nor b")
	}
	return c.h.Rooms.ServeTimestampToEvent(c.ctx(), c.origin, id, ts, dir == "b")
}

// Spec v1.19 server-server-api/#get_matrixfederationv1hierarchyroomid
func (c *call) hierarchy() (any, error) {
	id, err := c.roomID()
	if err != nil {
		return nil, err
	}
	answer, err := c.h.Rooms.ServeHierarchy(c.ctx(), c.origin, id, c.flag("suggested_only"))
	answer.Children, answer.InaccessibleChildren = list(answer.Children), list(answer.InaccessibleChildren)
	return answer, err
}

// Spec v1.19 server-server-api/#get_matrixfederationv1querydirectory
func (c *call) queryDirectory() (any, error) {
	s, ok := c.GetQuery("room_alias")
	if !ok {
		return nil, matrix.MissingParam("room_alias is missing")
	}
	alias, err := matrix.ParseRoomAlias(s)
	if err != nil {
		return nil, matrix.InvalidParam("%s", err)
	}
	answer, err := c.h.Rooms.ServeAlias(c.ctx(), alias)
	answer.Servers = list(answer.Servers)
	return answer, err
}

// Spec v1.19 server-server-api/#get_matrixfederationv1publicrooms
// Spec v1.19 server-server-api/#post_matrixfederationv1publicrooms
func (c *call) publicRooms() (any, error) {
	if !c.h.cfg.PublicRooms {
		return nil, matrix.Forbidden("this server does not show its rooms to other servers")
	}
	var query room.PublicRoomsRequest
	if c.Request.Method == "POST" {
		if err := c.decode(&query); err != nil {
			return nil, err
		}
	} else {
		limit, err := c.number("limit", 0)
		if err != nil {
			return nil, err
		}
		query.Limit, query.Since = int(min(max(limit, 0), 1000)), c.Query("since")
		query.IncludeAllNetworks, query.ThirdPartyInstanceID = c.flag("include_all_networks"), c.Query("third_party_instance_id")
	}
	answer, err := c.h.Rooms.PublicRooms(c.ctx(), query)
	answer.Chunk = list(answer.Chunk)
	return answer, err
}
