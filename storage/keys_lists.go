package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"

	"parley.im/parley/server/matrix"
)

// noteDeviceListChange notes that reader, or "" for everyone, sees other keys of user from now on.
func (tx *Tx) noteDeviceListChange(user, reader matrix.UserID) (pos int64, err error) {
	if pos, err = tx.Next(1); err != nil {
		return 0, err
	}
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicDeviceList, Pos: pos, User: user, Reader: reader}}})
	return pos, tx.Exec(`INSERT INTO device_list_changes (user_id, reader, pos, sent) VALUES (?, ?, ?, 0)
		ON CONFLICT (user_id, reader) DO UPDATE SET pos = excluded.pos`, user, reader, pos).Error
}

// deviceListChanged tells everyone that devices of a user of this server changed or are gone.
// Spec v1.19 server-server-api/#definition-mdevice_list_update
func (tx *Tx) deviceListChanged(user matrix.UserID, devices []matrix.DeviceID) error {
	all, err := deviceKeys(tx.Raw, []matrix.UserID{user}, "")
	if err != nil {
		return err
	}
	known := map[matrix.DeviceID]DeviceKey{}
	for _, k := range all {
		known[k.Device] = k
	}
	var previous int64
	err = tx.Raw("SELECT sent FROM device_list_changes WHERE user_id = ? AND reader = ''", user).Row().Scan(&previous)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	for _, device := range devices {
		pos, err := tx.noteDeviceListChange(user, "")
		if err != nil {
			return err
		}
		update := map[string]any{"user_id": user, "device_id": device, "stream_id": pos, "prev_id": []int64{}}
		if previous > 0 {
			update["prev_id"] = []int64{previous}
		}
		if k, ok := known[device]; ok {
			update["keys"] = k.Content // names of devices are nobody's business elsewhere
		} else {
			update["deleted"] = true
		}
		if err := tx.queueForSharers(user, "m.device_list_update", update); err != nil {
			return err
		}
		previous = pos
	}
	return tx.Exec("UPDATE device_list_changes SET sent = ? WHERE user_id = ? AND reader = ''", previous, user).Error
}

// signingKeysChanged tells everyone that cross-signing keys of a user of this server changed.
// Spec v1.19 server-server-api/#definition-msigning_key_update
func (tx *Tx) signingKeysChanged(user matrix.UserID) error {
	if _, err := tx.noteDeviceListChange(user, ""); err != nil {
		return err
	}
	keys, err := crossSigningKeys(tx.Raw, []matrix.UserID{user}, "")
	if err != nil {
		return err
	}
	update := map[string]any{"user_id": user}
	for _, k := range keys {
		update[k.Usage+"_key"] = k.Content
	}
	return tx.queueForSharers(user, "m.signing_key_update", update)
}

func (tx *Tx) queueForSharers(user matrix.UserID, eduType string, content any) error {
	encoded, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return tx.QueueEDUForSharers(user, eduType, encoded)
}

// maxNewServers is how many servers are told of a user's devices when the user joins a room; those of a larger room ask
// when they need to know.
const maxNewServers = 200

// strangersQuery lists the servers in a room, our own left out, that share no other room with a user. The room stands in each part, since
// SQLite would make the union of all rooms otherwise; and our own users, who may be many, are passed over.
const strangersQuery = `SELECT m.server FROM (
		SELECT server FROM memberships WHERE room = ? AND server < ? AND membership = 'join'
		UNION SELECT server FROM memberships WHERE room = ? AND server > ? AND membership = 'join'
		UNION SELECT server FROM partial_servers WHERE room = ? AND server <> ?) m
	WHERE NOT EXISTS (SELECT 1 FROM memberships me JOIN memberships o ON o.room = me.room AND o.server = m.server AND o.membership = 'join'
		WHERE me.user_id = ? AND me.membership = 'join' AND me.room <> ?) LIMIT ?`

// AnnounceDevices tells the servers in a room, which a user of the given server has joined, of the user's devices, as far
// as they share no other room with the user and so know nothing of them yet.
// Spec v1.19 server-server-api/#device-management
func (db *DB) AnnounceDevices(ctx context.Context, own matrix.ServerName, user matrix.UserID, room matrix.RoomID) error {
	var num int64
	err := db.Read(ctx).Raw("SELECT num FROM rooms WHERE room_id = ?", room).Row().Scan(&num)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	servers, err := scanAll(db.Read(ctx).Raw(strangersQuery, num, own, num, own, num, own, user, num, maxNewServers+1),
		func(rows *sql.Rows) (s matrix.ServerName, err error) { return s, rows.Scan(&s) })
	if err != nil || len(servers) == 0 || len(servers) > maxNewServers {
		return err
	}
	devices, err := db.Devices(ctx, user)
	if err != nil || len(devices) == 0 {
		return err
	}
	return db.Write(ctx, func(tx *Tx) error {
		var stream int64
		err := tx.Raw("SELECT COALESCE(max(sent), 0) FROM device_list_changes WHERE user_id = ? AND reader = ''", user).Row().Scan(&stream)
		if err != nil {
			return err
		}
		if stream == 0 {
			if stream, err = tx.Next(1); err != nil {
				return err
			}
			// Nobody here sees a change: the row's own position stays what it is, or is before everything.
			err = tx.Exec(`INSERT INTO device_list_changes (user_id, reader, pos, sent) VALUES (?, '', 0, ?)
				ON CONFLICT (user_id, reader) DO UPDATE SET sent = excluded.sent`, user, stream).Error
			if err != nil {
				return err
			}
		}
		keys, err := deviceKeys(tx.Raw, []matrix.UserID{user}, "")
		if err != nil {
			return err
		}
		known := map[matrix.DeviceID]json.RawMessage{}
		for _, k := range keys {
			known[k.Device] = k.Content
		}
		for _, d := range devices {
			update := map[string]any{"user_id": user, "device_id": d.DeviceID, "stream_id": stream, "prev_id": []int64{}}
			if content, ok := known[d.DeviceID]; ok {
				update["keys"] = content
			}
			encoded, err := json.Marshal(update)
			if err == nil {
				err = tx.QueueEDU(servers, "m.device_list_update", encoded)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// DeviceListChanges lists whose keys reader sees changed after position from, up to and including to. Whether the reader
// shares a room with them is not looked at.
func (db *DB) DeviceListChanges(ctx context.Context, reader matrix.UserID, from, to int64) ([]matrix.UserID, error) {
	// A later change hides an earlier one within the range: so the upper bound is left out, and one too many is told.
	if from >= to {
		return nil, nil
	}
	return scanAll(db.Read(ctx).Raw("SELECT DISTINCT user_id FROM device_list_changes WHERE pos > ? AND reader IN ('', ?)", from, reader),
		func(rows *sql.Rows) (u matrix.UserID, err error) { return u, rows.Scan(&u) })
}

// DeviceListStreamID is the stream_id of the last m.device_list_update made for a user of this server.
func (db *DB) DeviceListStreamID(ctx context.Context, user matrix.UserID) (id int64, err error) {
	err = db.Read(ctx).Raw("SELECT COALESCE(max(sent), 0) FROM device_list_changes WHERE user_id = ? AND reader = ''", user).Row().Scan(&id)
	return id, err
}

// RemoteDeviceList is the state of the kept device list of a user of another server.
type RemoteDeviceList struct {
	User     matrix.UserID
	StreamID int64
	Stale    bool // not to be used: fetch it again
}

// RemoteDeviceLists finds which of these users' device lists are kept.
func (db *DB) RemoteDeviceLists(ctx context.Context, users []matrix.UserID) (map[matrix.UserID]RemoteDeviceList, error) {
	found := map[matrix.UserID]RemoteDeviceList{}
	if len(users) == 0 {
		return found, nil
	}
	_, err := scanAll(db.Read(ctx).Raw("SELECT user_id, stream_id, stale FROM device_lists_remote WHERE user_id IN ?", users),
		func(rows *sql.Rows) (l RemoteDeviceList, err error) {
			err = rows.Scan(&l.User, &l.StreamID, &l.Stale)
			found[l.User] = l
			return l, err
		})
	return found, err
}

// SharesRoom finds which of these users are in a room together with somebody of the given server, or may be, as far as is known of a partial room.
func (db *DB) SharesRoom(ctx context.Context, server matrix.ServerName, users []matrix.UserID) (map[matrix.UserID]bool, error) {
	found := map[matrix.UserID]bool{}
	for _, user := range users {
		var shares bool
		err := db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM "+roomsOfUser+` r WHERE EXISTS (SELECT 1 FROM memberships l
			WHERE l.room = r.room AND l.server = ? AND l.membership = 'join'))`, user, user.Server(), user, server).Row().Scan(&shares)
		if err != nil {
			return nil, err
		}
		if shares {
			found[user] = true
		}
	}
	return found, nil
}

// StaleRemoteDevices notes that the device lists of these users are wanted and must be fetched.
func (db *DB) StaleRemoteDevices(ctx context.Context, users []matrix.UserID) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, user := range users {
			if err := tx.staleRemoteDevices(user); err != nil {
				return err
			}
		}
		return nil
	})
}

func (tx *Tx) staleRemoteDevices(user matrix.UserID) error {
	return tx.Exec(`INSERT INTO device_lists_remote (user_id, stream_id, stale, retry_ms) VALUES (?, 0, TRUE, 0)
		ON CONFLICT (user_id) DO UPDATE SET stale = TRUE`, user).Error
}

// NextStaleRemoteDevices lists users whose device lists must be fetched now, and when the next one is due otherwise (0:
// none is).
func (db *DB) NextStaleRemoteDevices(ctx context.Context, nowMS int64, limit int) (users []matrix.UserID, nextMS int64, err error) {
	users, err = scanAll(db.Read(ctx).Raw("SELECT user_id FROM device_lists_remote WHERE stale AND retry_ms <= ? ORDER BY retry_ms LIMIT ?", nowMS, limit),
		func(rows *sql.Rows) (u matrix.UserID, err error) { return u, rows.Scan(&u) })
	if err != nil || len(users) > 0 {
		return users, 0, err
	}
	err = db.Read(ctx).Raw("SELECT COALESCE(min(retry_ms), 0) FROM device_lists_remote WHERE stale").Row().Scan(&nextMS)
	return nil, nextMS, err
}

// RetryRemoteDevices puts off the next attempt to fetch a device list.
func (db *DB) RetryRemoteDevices(ctx context.Context, user matrix.UserID, atMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("UPDATE device_lists_remote SET retry_ms = ? WHERE user_id = ? AND stale", atMS, user).Error
	})
}

// KeepRemoteDevices stores the whole device list of a user of another server, with cross-signing keys. If it puts another
// one in place of what was kept, the user's acquaintances are told.
func (db *DB) KeepRemoteDevices(ctx context.Context, user matrix.UserID, streamID int64, devices []DeviceKey, keys []CrossSigningKey) error {
	return db.Write(ctx, func(tx *Tx) error {
		announce, err := tx.differsFromKept(user, devices, keys)
		if err != nil {
			return err
		}
		if err := tx.forgetRemoteKeys(user); err != nil {
			return err
		}
		for _, d := range devices {
			if err := tx.putDeviceKeys(user, d.Device, d.Content, d.DisplayName); err != nil {
				return err
			}
		}
		for _, k := range keys {
			if err := tx.putCrossSigningKey(k); err != nil {
				return err
			}
		}
		err = tx.Exec(`INSERT INTO device_lists_remote (user_id, stream_id, stale, retry_ms) VALUES (?, ?, FALSE, 0)
			ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, stale = FALSE, retry_ms = 0`, user, streamID).Error
		if err != nil || !announce {
			return err
		}
		_, err = tx.noteDeviceListChange(user, "")
		return err
	})
}

// differsFromKept reports whether anything was kept of the user and is not the same.
func (tx *Tx) differsFromKept(user matrix.UserID, devices []DeviceKey, keys []CrossSigningKey) (bool, error) {
	old, err := scanAll(tx.Raw(`SELECT device_id, content FROM device_keys WHERE user_id = ?
		UNION ALL SELECT usage, content FROM cross_signing_keys WHERE user_id = ?`, user, user),
		func(rows *sql.Rows) (o [2]string, err error) { return o, rows.Scan(&o[0], &o[1]) })
	if err != nil || len(old) == 0 {
		return false, err
	}
	known := map[[2]string]bool{}
	for _, o := range old {
		known[o] = true
	}
	for _, d := range devices {
		delete(known, [2]string{string(d.Device), string(d.Content)})
	}
	for _, k := range keys {
		delete(known, [2]string{k.Usage, string(k.Content)})
	}
	return len(known) > 0 || len(old) != len(devices)+len(keys), nil
}

func (tx *Tx) forgetRemoteKeys(user matrix.UserID) error {
	for _, table := range []string{"device_keys", "cross_signing_keys"} {
		if err := tx.Exec("DELETE FROM "+table+" WHERE user_id = ?", user).Error; err != nil {
			return err
		}
	}
	return nil
}

// RemoteDeviceUpdate is an m.device_list_update that came in.
type RemoteDeviceUpdate struct {
	DeviceKey
	StreamID int64
	Previous []int64
	Deleted  bool
}

// ApplyRemoteDevice applies an update to a kept device list, or marks the list as stale when something was missed, and
// tells the user's acquaintances. stale reports that the list must be fetched.
func (db *DB) ApplyRemoteDevice(ctx context.Context, u RemoteDeviceUpdate) (stale bool, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		// Without keys there is nothing to be seen yet; if the list turns out to be another one, that is told then.
		if unseen := !u.Deleted && u.Content == nil; !unseen {
			if _, err := tx.noteDeviceListChange(u.User, ""); err != nil {
				return err
			}
		}
		var streamID int64
		err := tx.Raw("SELECT stream_id, stale FROM device_lists_remote WHERE user_id = ?", u.User).Row().Scan(&streamID, &stale)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // nobody has asked for this list yet
		}
		if err != nil {
			return err
		}
		for _, p := range u.Previous {
			stale = stale || p > streamID
		}
		stale = stale || (!u.Deleted && u.Content == nil)
		switch {
		case stale:
			return tx.staleRemoteDevices(u.User)
		case u.StreamID <= streamID:
			return nil // the list was fetched later than this update was made
		case u.Deleted:
			err = tx.Exec("DELETE FROM device_keys WHERE user_id = ? AND device_id = ?", u.User, u.Device).Error
		default:
			err = tx.putDeviceKeys(u.User, u.Device, u.Content, u.DisplayName)
		}
		if err != nil {
			return err
		}
		return tx.Exec("UPDATE device_lists_remote SET stream_id = ? WHERE user_id = ?", u.StreamID, u.User).Error
	})
	return stale, err
}

// ApplyRemoteSigningKeys stores cross-signing keys of a user of another server whose device list is kept, and tells the
// user's acquaintances.
func (db *DB) ApplyRemoteSigningKeys(ctx context.Context, user matrix.UserID, keys []CrossSigningKey) error {
	return db.Write(ctx, func(tx *Tx) error {
		var kept bool
		if err := tx.Raw("SELECT EXISTS (SELECT 1 FROM device_lists_remote WHERE user_id = ?)", user).Row().Scan(&kept); err != nil {
			return err
		}
		for i := 0; kept && i < len(keys); i++ {
			if err := tx.putCrossSigningKey(keys[i]); err != nil {
				return err
			}
		}
		_, err := tx.noteDeviceListChange(user, "")
		return err
	})
}

// ForgetUnsharedDevices deletes the kept device lists of users who are in no room with anybody of the given server any
// more: nobody tells us of their changes.
func (db *DB) ForgetUnsharedDevices(ctx context.Context, server matrix.ServerName) error {
	users, err := scanAll(db.Read(ctx).Raw(`SELECT k.user_id FROM device_lists_remote k WHERE NOT EXISTS (SELECT 1 FROM memberships r
		WHERE r.user_id = k.user_id AND r.membership = 'join' AND EXISTS (SELECT 1 FROM memberships l
		WHERE l.room = r.room AND l.server = ? AND l.membership = 'join'))`, server),
		func(rows *sql.Rows) (u matrix.UserID, err error) { return u, rows.Scan(&u) })
	if err != nil || len(users) == 0 {
		return err
	}
	maybe, err := db.SharesRoom(ctx, server, users)
	if err != nil {
		return err
	}
	users = slices.DeleteFunc(users, func(u matrix.UserID) bool { return maybe[u] })
	return db.Write(ctx, func(tx *Tx) error {
		for _, user := range users {
			if err := tx.forgetRemoteKeys(user); err != nil {
				return err
			}
			if err := tx.Exec("DELETE FROM device_lists_remote WHERE user_id = ?", user).Error; err != nil {
				return err
			}
		}
		return nil
	})
}
