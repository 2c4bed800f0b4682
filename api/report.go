package api

import (
	"strings"

	"parley.im/parley/storage"
)

// reportRoutes tell the administrators of what is not right. Spec v1.19 client-server-api/#reporting-content
func (a *api) reportRoutes() []route {
	id := client + "/rooms/{roomId}/report"
	return []route{
		{method: post, path: id, handle: a.reportRoom, limit: limitReport, suspended: true, maxBody: 64 << 10,
			aliases: []string{"/_matrix/client/unstable/org.matrix.msc4151/rooms/{roomId}/report"}},
		{method: post, path: id + "/{eventId}", handle: a.reportEvent, limit: limitReport, suspended: true, maxBody: 64 << 10},
		{method: post, path: client + "/users/{userId}/report", handle: a.reportUser, limit: limitReport, suspended: true, maxBody: 64 << 10},
	}
}

// maxReasonBytes limits what a report says; the rest is cut off.
const maxReasonBytes = 4096

func (a *api) reportRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	reason, err := c.reason()
	if err != nil {
		return err
	}
	if _, err := a.Rooms.Room(c.ctx(), id); err != nil {
		return err
	}
	return c.report(storage.Report{Room: id, Reason: reason})
}

// reportEvent takes reports of events that the reporter may see; others are M_NOT_FOUND.
func (a *api) reportEvent(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	event, err := c.eventID()
	if err != nil {
		return err
	}
	reason, err := c.reason()
	if err != nil {
		return err
	}
	e, err := a.Rooms.VisibleEvent(c.ctx(), id, c.userID(), event)
	if err != nil {
		return err
	}
	return c.report(storage.Report{Room: id, Event: event, User: e.Sender(), Reason: reason})
}

// reportUser does not say whether there is such a user.
func (a *api) reportUser(c *call) error {
	u, err := c.pathUser()
	if err != nil {
		return err
	}
	reason, err := c.reason()
	if err != nil {
		return err
	}
	return c.report(storage.Report{User: u, Reason: reason})
}

// reason reads the body of a report. The score that clients of before v1.8 send is not looked at.
func (c *call) reason() (string, error) {
	var r struct {
		Reason *string `json:"reason"`
	}
	if err := c.decodeOptional(&r); err != nil {
		return "", err
	}
	if r.Reason == nil {
		return "", nil
	}
	return strings.ToValidUTF8((*r.Reason)[:min(len(*r.Reason), maxReasonBytes)], ""), nil
}

func (c *call) report(r storage.Report) error {
	r.Reporter, r.Time = c.userID(), c.a.Now()
	if err := c.a.DB.AddReport(c.ctx(), r); err != nil {
		return err
	}
	c.a.log.Warn("reported", "request", c.id, "user", r.User, "room", r.Room, "event", r.Event, "by", r.Reporter)
	return c.done()
}
