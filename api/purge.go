package api

import (
	"encoding/json"
	"errors"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// purgeRoutes are for administrators who delete, and for those who keep others from deleting. The routes under /_synapse take and give what
// Synapse's do, as far as tools for it need; docs/operations.md describes all.
func (a *api) purgeRoutes() []route {
	const (
		synapse = "/_synapse/admin"
		own     = "/_parley/admin/v1"
		small   = 64 << 10
	)
	return []route{
		{method: post, path: synapse + "/v1/purge_history/{roomId}", handle: a.purgeHistory, auth: admin, maxBody: small},
		{method: post, path: synapse + "/v1/purge_history/{roomId}/{eventId}", handle: a.purgeHistory, auth: admin, maxBody: small},
		{method: get, path: synapse + "/v1/purge_history_status/{purgeId}", handle: a.purgeHistoryStatus, auth: admin},
		{method: del, path: synapse + "/v2/rooms/{roomId}", handle: a.deleteRoom, auth: admin, maxBody: small},
		{method: get, path: synapse + "/v2/rooms/{roomId}/delete_status", handle: a.deleteRoomStatus, auth: admin},
		{method: get, path: synapse + "/v2/rooms/delete_status/{purgeId}", handle: a.deleteStatus, auth: admin},
		{method: get, path: own + "/purges", handle: a.purges, auth: admin},
		{method: post, path: own + "/purges", handle: a.addPurge, auth: admin, maxBody: small},
		{method: get, path: own + "/purges/{purgeId}", handle: a.purge, auth: admin},
		{method: get, path: own + "/holds", handle: a.holds, auth: admin},
		{method: put, path: own + "/holds/rooms/{roomId}", handle: a.holdRoom, auth: admin, maxBody: small},
		{method: del, path: own + "/holds/rooms/{roomId}", handle: a.liftRoom, auth: admin},
		{method: put, path: own + "/holds/users/{userId}", handle: a.holdUser, auth: admin, maxBody: small},
		{method: del, path: own + "/holds/users/{userId}", handle: a.liftUser, auth: admin},
		{method: get, path: own + "/held_events", handle: a.heldEvents, auth: admin},
	}
}

// purgeJob finds the purge of the path's {purgeId}.
func (c *call) purgeJob() (*storage.PurgeJob, error) {
	job, err := c.a.DB.PurgeJobByID(c.ctx(), c.Param("purgeId"))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("there is no such purge, or it was over long ago")
	}
	return job, err
}

func (a *api) purgeHistory(c *call) error {
	var r struct {
		DeleteLocal bool           `json:"delete_local_events"`
		Event       matrix.EventID `json:"purge_up_to_event_id"`
		TS          *int64         `json:"purge_up_to_ts"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	id, err := c.roomID()
	if err != nil {
		return err
	}
	q := room.HistoryPurge{Room: id, Event: r.Event, KeepLocal: !r.DeleteLocal, RequestedBy: c.userID()}
	if _, ok := c.Params.Get("eventId"); ok {
		if q.Event, err = c.eventID(); err != nil {
			return err
		}
	} else if r.TS != nil && r.Event == "" {
		if *r.TS <= 0 {
			return matrix.InvalidParam("purge_up_to_ts must be a time in milliseconds since 1970")
		}
		q.Before = time.UnixMilli(*r.TS)
	}
	purge, err := a.Rooms.PurgeHistory(c.ctx(), q)
	if err != nil {
		return err
	}
	return c.reply(map[string]string{"purge_id": purge})
}

func (a *api) purgeHistoryStatus(c *call) error {
	job, err := c.purgeJob()
	if err != nil {
		return err
	}
	answer := map[string]string{"status": "active"}
	switch job.Status {
	case storage.PurgeDone:
		answer["status"] = "complete"
	case storage.PurgeFailed:
		answer["status"], answer["error"] = "failed", job.Error
	}
	return c.reply(answer)
}

func (a *api) deleteRoom(c *call) error {
	var r struct {
		NewRoomUser matrix.UserID `json:"new_room_user_id"`
		Block       bool          `json:"block"`
		Purge       *bool         `json:"purge"`
		ForcePurge  bool          `json:"force_purge"`
	}
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	id, err := c.roomID()
	switch {
	case err != nil:
		return err
	case r.NewRoomUser != "":
		return matrix.InvalidParam("this server does not make a new room for those who were in the old one: leave out new_room_user_id")
	case r.Block:
		return matrix.InvalidParam("this server cannot block a room: leave out block")
	case r.Purge != nil && !*r.Purge:
		return matrix.InvalidParam("this server does not only shut a room down: purge must be true")
	}
	purge, err := a.Rooms.PurgeRoom(c.ctx(), room.RoomPurge{Room: id, Forced: true, RequestedBy: c.userID()})
	if err != nil {
		return err
	}
	return c.reply(map[string]string{"delete_id": purge})
}

// deleteStatusOf is how Synapse tells how far the deletion of a room is.
func deleteStatusOf(job *storage.PurgeJob) map[string]any {
	status := map[storage.PurgeStatus]string{storage.PurgeWaiting: "scheduled", storage.PurgeRunning: "active", storage.PurgeDone: "complete", storage.PurgeFailed: "failed"}
	kicked := job.LeftUsers
	if kicked == nil {
		kicked = []matrix.UserID{}
	}
	answer := map[string]any{"delete_id": job.ID, "room_id": job.Room, "status": status[job.Status],
		"shutdown_room": map[string]any{"kicked_users": kicked, "failed_to_kick_users": []string{}, "local_aliases": []string{}, "new_room_id": nil}}
	if job.Error != "" {
		answer["error"] = job.Error
	}
	return answer
}

func (a *api) deleteRoomStatus(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	jobs, err := a.DB.PurgeJobs(c.ctx(), id, 100)
	if err != nil {
		return err
	}
	results := []any{}
	for _, job := range jobs {
		if job.Kind == storage.PurgeRoom {
			results = append(results, deleteStatusOf(job))
		}
	}
	if len(results) == 0 {
		return matrix.NotFound("nobody has asked for that room to be deleted, or it was long ago")
	}
	return c.reply(map[string]any{"results": results})
}

func (a *api) deleteStatus(c *call) error {
	job, err := c.purgeJob()
	if err != nil {
		return err
	}
	return c.reply(deleteStatusOf(job))
}

// purgeAnswer is a purge as administrators get it. What it counts are rows of events, nodes of states, and files.
func purgeAnswer(job *storage.PurgeJob) map[string]any {
	answer := map[string]any{"purge_id": job.ID, "room_id": job.Room, "kind": job.Kind, "status": job.Status, "requested_by": job.RequestedBy,
		"created_ts": job.Created.UnixMilli(), "events_total": job.Total, "events": job.Events, "state_nodes": job.Nodes, "media": job.Media}
	if job.Error != "" {
		answer["error"] = job.Error
	}
	if !job.Ended.IsZero() {
		answer["ended_ts"] = job.Ended.UnixMilli()
	}
	return answer
}

func (a *api) purges(c *call) error {
	limit, err := c.limit(50, 500)
	if err != nil {
		return err
	}
	jobs, err := a.DB.PurgeJobs(c.ctx(), matrix.RoomID(c.Query("room_id")), limit)
	if err != nil {
		return err
	}
	all := []any{}
	for _, job := range jobs {
		all = append(all, purgeAnswer(job))
	}
	return c.reply(map[string]any{"purges": all})
}

func (a *api) purge(c *call) error {
	job, err := c.purgeJob()
	if err != nil {
		return err
	}
	return c.reply(purgeAnswer(job))
}

// addPurge asks for a room's history before an event or a time to be deleted, or for the whole room if neither is there.
func (a *api) addPurge(c *call) error {
	var r struct {
		Room        string `json:"room_id"`
		BeforeEvent string `json:"before_event_id"`
		BeforeTS    *int64 `json:"before_ts"`
		WholeRoom   bool   `json:"whole_room"`
		KeepLocal   bool   `json:"keep_local"`
		Force       bool   `json:"force"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	id, err := matrix.ParseRoomID(r.Room)
	if err != nil {
		return err
	}
	if r.WholeRoom {
		if r.BeforeEvent != "" || r.BeforeTS != nil {
			return matrix.InvalidParam("either the whole room or what lies before an event or a time can be deleted")
		}
		purge, err := a.Rooms.PurgeRoom(c.ctx(), room.RoomPurge{Room: id, Forced: r.Force, RequestedBy: c.userID()})
		if err != nil {
			return err
		}
		return c.reply(map[string]string{"purge_id": purge})
	}
	q := room.HistoryPurge{Room: id, KeepLocal: r.KeepLocal, RequestedBy: c.userID()}
	switch {
	case r.BeforeEvent != "" && r.BeforeTS != nil:
		return matrix.InvalidParam("give before_event_id or before_ts, not both")
	case r.BeforeEvent != "":
		if q.Event, err = matrix.ParseEventID(r.BeforeEvent); err != nil {
			return err
		}
	case r.BeforeTS != nil && *r.BeforeTS <= 0:
		return matrix.InvalidParam("before_ts must be a time in milliseconds since 1970")
	case r.BeforeTS != nil:
		q.Before = time.UnixMilli(*r.BeforeTS)
	}
	purge, err := a.Rooms.PurgeHistory(c.ctx(), q)
	if err != nil {
		return err
	}
	return c.reply(map[string]string{"purge_id": purge})
}

func (a *api) holds(c *call) error {
	list, err := a.DB.Holds(c.ctx())
	if err != nil {
		return err
	}
	all := []any{}
	for _, h := range list {
		all = append(all, map[string]any{h.Kind + "_id": h.Target, "set_by": h.SetBy, "set_ts": h.Set.UnixMilli()})
	}
	return c.reply(map[string]any{"holds": all})
}

func (c *call) setHold(kind, target string) error {
	if _, err := c.optionalObject(); err != nil {
		return err
	}
	err := c.a.DB.SetHold(c.ctx(), storage.Hold{Kind: kind, Target: target, SetBy: c.userID(), Set: time.Now()})
	if err != nil {
		return err
	}
	c.a.log.Info("legal hold set", kind, target, "by", c.userID())
	return c.reply(struct{}{})
}

func (c *call) liftHold(kind, target string) error {
	err := c.a.DB.LiftHold(c.ctx(), kind, target)
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no such hold")
	}
	if err != nil {
		return err
	}
	c.a.log.Info("legal hold lifted", kind, target, "by", c.userID())
	return c.reply(struct{}{})
}

func (a *api) holdRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	return c.setHold(storage.HoldRoom, string(id))
}

func (a *api) liftRoom(c *call) error {
	id, err := c.roomID()
	if err != nil {
		return err
	}
	return c.liftHold(storage.HoldRoom, string(id))
}

func (a *api) holdUser(c *call) error {
	id, err := c.pathUser()
	if err != nil {
		return err
	}
	return c.setHold(storage.HoldUser, string(id))
}

func (a *api) liftUser(c *call) error {
	id, err := c.pathUser()
	if err != nil {
		return err
	}
	return c.liftHold(storage.HoldUser, string(id))
}

// heldEvents lists what holds keep of events that were redacted or purged, as they were before. Who looks at it is logged.
func (a *api) heldEvents(c *call) error {
	limit, err := c.limit(100, 1000)
	if err != nil {
		return err
	}
	from, err := c.number("from", 0)
	if err != nil {
		return err
	}
	roomID, user := matrix.RoomID(c.Query("room_id")), matrix.UserID(c.Query("user_id"))
	if roomID == "" && user == "" {
		return matrix.MissingParam("room_id or user_id is missing")
	}
	list, err := a.DB.HeldEvents(c.ctx(), roomID, user, from, limit)
	if err != nil {
		return err
	}
	a.log.Info("held events read", "room", roomID, "user", user, "by", c.userID(), "count", len(list))
	type held struct {
		EventID matrix.EventID  `json:"event_id"`
		RoomID  matrix.RoomID   `json:"room_id"`
		Sender  matrix.UserID   `json:"sender"`
		KeptTS  int64           `json:"kept_ts"`
		Event   json.RawMessage `json:"event"`
	}
	answer := struct {
		Events []held `json:"events"`
		Next   int64  `json:"next_from,omitempty"`
	}{Events: []held{}}
	for _, e := range list {
		answer.Events = append(answer.Events, held{e.EventID, e.RoomID, e.Sender, e.KeptMS, e.JSON})
		if len(list) == limit {
			answer.Next = e.Num
		}
	}
	return c.reply(answer)
}
