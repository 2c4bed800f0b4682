package api

import (
	"encoding/json"
	"sort"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// notificationRoutes list what a user was told of. Spec v1.19 client-server-api/#listing-notifications
func (a *api) notificationRoutes() []route {
	return []route{{method: get, path: client + "/notifications", handle: a.notifications, limit: limitSearch, suspended: true}}
}

// notificationDepth is how many of the newest events of a room one page looks through.
const notificationDepth = 200

// notification is one entry of the answer.
type notification struct {
	Actions json.RawMessage `json:"actions"`
	Event   json.RawMessage `json:"event"`
	Read    bool            `json:"read"`
	RoomID  matrix.RoomID   `json:"room_id"`
	TS      int64           `json:"ts"` // ms

	event *storage.Event
}

// notifications holds today's push rules against the recent events of all rooms: nothing is written when a message comes
// in only so that it can be listed here. A token is a stream position.
func (a *api) notifications(c *call) error {
	from := a.DB.Position() + 1
	if s := c.Query("from"); s != "" {
		var err error
		if from, err = strconv.ParseInt(s, 10, 64); err != nil || from < 1 {
			return matrix.InvalidParam("from is not a token that this server gave out")
		}
	}
	limit, err := c.limit(20, 100)
	if err != nil {
		return err
	}
	rules, err := a.Push.Compiled(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	rooms, err := a.Rooms.JoinedRooms(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	found := []notification{}
	for _, id := range rooms {
		in, err := a.notificationsIn(c, id, rules, from-1)
		if err != nil {
			return err
		}
		found = append(found, in...)
	}
	sort.Slice(found, func(i, j int) bool { return found[i].event.Pos > found[j].event.Pos })
	answer := map[string]any{}
	if len(found) > limit {
		found = found[:limit]
		answer["next_token"] = strconv.FormatInt(found[limit-1].event.Pos, 10)
	}
	for i := range found {
		n := &found[i]
		if n.Event, err = a.Rooms.AppendClient(c.ctx(), nil, n.event, room.Reader{User: c.userID(), Device: c.deviceID(), OmitRoomID: true}); err != nil {
			return err
		}
	}
	answer["notifications"] = found
	return c.reply(answer)
}

// notificationsIn are the notifications of one room up to a stream position, their events not yet written out.
func (a *api) notificationsIn(c *call, id matrix.RoomID, rules *push.Compiled, upTo int64) ([]notification, error) {
	r, err := a.Rooms.Room(c.ctx(), id)
	if err != nil {
		return nil, err
	}
	timeline, err := a.Rooms.Timeline(c.ctx(), id, 0, upTo, notificationDepth)
	if err != nil {
		return nil, err
	}
	events, err := a.Rooms.VisibleTo(c.ctx(), c.userID(), timeline.Events)
	if err != nil {
		return nil, err
	}
	read, err := a.readUpTo(c, id)
	if err != nil {
		return nil, err
	}
	now := r.Snapshot()
	name, _, err := a.Users.DisplayNameAndAvatar(c.ctx(), c.userID())
	if err != nil {
		return nil, err
	}
	onlyHighlights := c.Query("only") == "highlight"
	var found []notification
	for _, e := range events {
		event := push.Event{Type: e.Type(), Sender: e.Sender(), RoomID: id, Content: e.Content(), Full: e.JSON()}
		if key, ok := e.StateKey(); ok {
			event.StateKey = &key
		}
		prepared := push.Prepare(event, push.Room{Members: now.JoinedCount, SenderMayNotify: func(key string) bool {
			return now.Power.User(e.Sender()) >= now.Power.Notification(key)
		}})
		result := rules.Evaluate(prepared, name)
		if !result.Notify || onlyHighlights && !result.Highlight {
			continue
		}
		found = append(found, notification{Actions: rules.Actions(prepared, name), Read: e.Pos <= read, RoomID: id, TS: e.OriginServerTS(), event: e})
	}
	return found, nil
}

// readUpTo is the stream position up to which the asker has read the room, in whatever thread.
func (a *api) readUpTo(c *call, id matrix.RoomID) (int64, error) {
	receipts, err := a.DB.UserReceipts(c.ctx(), c.userID(), id)
	read := int64(0)
	for _, r := range receipts {
		read = max(read, r.EventPos)
	}
	return read, err
}
