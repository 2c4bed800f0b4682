package api

import (
	"parley.im/parley/server/matrix"
)

// backupRoutes keep room keys, encrypted, for the user's other devices.
// Spec v1.19 client-server-api/#server-side-key-backups
func (a *api) backupRoutes() []route {
	version, keys := "/room_keys/version", "/room_keys/keys"
	all := []route{
		{method: post, path: client + version, handle: a.newBackup},
		{method: get, path: client + version, handle: a.backup},
		{method: get, path: client + version + "/{version}", handle: a.backup},
		{method: put, path: client + version + "/{version}", handle: a.updateBackup},
		{method: del, path: client + version + "/{version}", handle: a.deleteBackup},
	}
	for _, path := range []string{keys, keys + "/{roomId}", keys + "/{roomId}/{sessionId}"} {
		all = append(all,
			route{method: put, path: client + path, handle: a.putRoomKeys},
			route{method: get, path: client + path, handle: a.roomKeys},
			route{method: del, path: client + path, handle: a.deleteRoomKeys})
	}
	for i := range all {
		all[i].limit, all[i].suspended = limitKeys, true
		all[i].aliases = []string{"/_matrix/client/unstable" + all[i].path[len(client):]}
	}
	return all
}

func (a *api) newBackup(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	version, err := a.Keys.NewBackup(c.ctx(), c.userID(), body)
	return c.answer(map[string]string{"version": version}, err)
}

func (a *api) backup(c *call) error {
	return c.answer(a.Keys.Backup(c.ctx(), c.userID(), c.Param("version")))
}

func (a *api) updateBackup(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	if err := a.Keys.UpdateBackup(c.ctx(), c.userID(), c.Param("version"), body); err != nil {
		return err
	}
	return c.done()
}

func (a *api) deleteBackup(c *call) error {
	if err := a.Keys.DeleteBackup(c.ctx(), c.userID(), c.Param("version")); err != nil {
		return err
	}
	return c.done()
}

// backedUp reads which keys of which backup a request is about; room and session are "" where the path has none.
func (c *call) backedUp() (version string, room matrix.RoomID, session string, err error) {
	version = c.Query("version")
	if version == "" {
		return "", "", "", matrix.MissingParam("version is missing")
	}
	if _, ok := c.Params.Get("roomId"); ok {
		if room, err = c.roomID(); err != nil {
			return "", "", "", err
		}
	}
	if s, ok := c.Params.Get("sessionId"); ok {
		if session = s; session == "" {
			return "", "", "", matrix.InvalidParam("the session ID must not be empty")
		}
	}
	return version, room, session, nil
}

func (a *api) putRoomKeys(c *call) error {
	version, room, session, err := c.backedUp()
	if err != nil {
		return err
	}
	body, err := c.object()
	if err != nil {
		return err
	}
	return c.answer(a.Keys.PutRoomKeys(c.ctx(), c.userID(), version, room, session, body))
}

func (a *api) roomKeys(c *call) error {
	version, room, session, err := c.backedUp()
	if err != nil {
		return err
	}
	return c.replyRaw(a.Keys.RoomKeys(c.ctx(), c.userID(), version, room, session))
}

func (a *api) deleteRoomKeys(c *call) error {
	version, room, session, err := c.backedUp()
	if err != nil {
		return err
	}
	return c.answer(a.Keys.DeleteRoomKeys(c.ctx(), c.userID(), version, room, session))
}
