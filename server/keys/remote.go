package keys

import (
	"context"
	"encoding/json"
	"time"

	"golang.org/x/sync/errgroup"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	resyncAtOnce  = 8               // device lists fetched at the same time
	resyncRetry   = 5 * time.Minute // after a failure
	housekeeping  = time.Hour
	keepMessageID = 7 * 24 * time.Hour // longer than servers retry
)

// Run tells other servers of the devices of users of ours who enter a room, fetches again the device lists of remote users
// that have become stale, forgets those of users that share no room with us any more, and ends with ctx.
func (k *Keys) Run(ctx context.Context) error {
	k.left.Store(true)
	for {
		k.announce(ctx)
		wait := k.resync(ctx)
		if k.left.Swap(false) {
			if err := k.db.ForgetUnsharedDevices(ctx, k.server); err != nil && ctx.Err() == nil {
				k.log.Error("forget device lists", "err", err)
			}
		}
		if err := k.db.ForgetSeenMessages(ctx, k.now().Add(-keepMessageID).UnixMilli()); err != nil && ctx.Err() == nil {
			k.log.Error("forget message IDs", "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-k.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// announce tells the servers of the rooms that users of ours have joined of their devices.
func (k *Keys) announce(ctx context.Context) {
	k.mu.Lock()
	joined := k.joined
	k.joined = nil
	k.mu.Unlock()
	for _, j := range joined {
		if err := k.db.AnnounceDevices(ctx, k.server, j.user, j.room); err != nil && ctx.Err() == nil {
			k.log.Error("announce devices", "user", j.user, "room", j.room, "err", err)
		}
	}
}

// resync fetches all device lists that are due and says how long nothing is.
func (k *Keys) resync(ctx context.Context) time.Duration {
	for k.remote != nil && ctx.Err() == nil {
		users, nextMS, err := k.db.NextStaleRemoteDevices(ctx, k.now().UnixMilli(), resyncAtOnce)
		if err != nil {
			k.log.Error("look for stale device lists", "err", err)
			return time.Minute
		}
		if len(users) == 0 {
			if nextMS == 0 {
				return housekeeping
			}
			return min(housekeeping, max(time.Second, time.UnixMilli(nextMS).Sub(k.now())))
		}
		var group errgroup.Group
		for _, user := range users {
			group.Go(func() error { k.fetchDevices(ctx, user); return nil })
		}
		_ = group.Wait()
	}
	return housekeeping
}

// fetchDevices fetches the device list of one user and keeps it, or puts it off.
func (k *Keys) fetchDevices(ctx context.Context, user matrix.UserID) {
	asking, cancel := context.WithTimeout(ctx, k.cfg.RemoteTimeout)
	defer cancel()
	list, err := k.remote.UserDevices(asking, user.Server(), user)
	if err == nil && list.UserID != user {
		err = matrix.BadJSON("the answer is about another user")
	}
	if err == nil {
		err = k.keepDevices(ctx, user, list)
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	k.log.Info("fetch a device list", "user", user, "server", user.Server(), "err", err)
	if err := k.db.RetryRemoteDevices(ctx, user, k.now().Add(resyncRetry).UnixMilli()); err != nil {
		k.log.Error("put off a device list", "user", user, "err", err)
	}
}

// maxRemoteDevices is how many devices of one user we believe in.
const maxRemoteDevices = 1000

func (k *Keys) keepDevices(ctx context.Context, user matrix.UserID, list *UserDevices) error {
	var devices []storage.DeviceKey
	for _, d := range list.Devices {
		content, err := checkDeviceKeys(user, d.DeviceID, d.Keys)
		if err != nil || len(devices) == maxRemoteDevices || !storable(d.DeviceID) {
			continue
		}
		devices = append(devices, storage.DeviceKey{User: user, Device: d.DeviceID, Content: content, DisplayName: cleanName(d.DisplayName)})
	}
	return k.db.KeepRemoteDevices(ctx, user, list.StreamID, devices, theirSigningKeys(user, list.MasterKey, list.SelfSigningKey))
}

func storable(device matrix.DeviceID) bool {
	_, err := matrix.ParseDeviceID(string(device))
	return err == nil
}

// ReceiveDeviceListUpdate takes an m.device_list_update EDU; after a gap the whole list is fetched again (by Run).
// A *matrix.Error means that the EDU is not valid; retrying does not help.
// Spec v1.19 server-server-api/#device-management
func (k *Keys) ReceiveDeviceListUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var e struct {
		UserID   matrix.UserID   `json:"user_id"`
		DeviceID matrix.DeviceID `json:"device_id"`
		Name     string          `json:"device_display_name"`
		StreamID int64           `json:"stream_id"`
		PrevID   []int64         `json:"prev_id"`
		Deleted  bool            `json:"deleted"`
		Keys     json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(content, &e); err != nil {
		return matrix.BadJSON("m.device_list_update has members of the wrong type")
	}
	if err := k.mayUpdate(origin, e.UserID); err != nil {
		return err
	}
	if !storable(e.DeviceID) {
		return matrix.InvalidParam("device_id is not valid")
	}
	known, err := k.known(ctx, e.UserID)
	if err != nil || !known {
		return err
	}
	u := storage.RemoteDeviceUpdate{StreamID: e.StreamID, Previous: e.PrevID, Deleted: e.Deleted}
	u.User, u.Device, u.DisplayName = e.UserID, e.DeviceID, cleanName(e.Name)
	if present(e.Keys) {
		// What is not valid is left out: then the whole list is fetched.
		u.Content, _ = checkDeviceKeys(e.UserID, e.DeviceID, e.Keys)
	}
	stale, err := k.db.ApplyRemoteDevice(ctx, u)
	if stale {
		k.rouse()
	}
	return err
}

func (k *Keys) mayUpdate(origin matrix.ServerName, user matrix.UserID) error {
	if _, err := matrix.ParseUserID(string(user)); err != nil {
		return err
	}
	if user.Server() != origin || origin == k.server {
		return matrix.Forbidden("the user is not of %s", origin)
	}
	return nil
}

// known reports whether anybody here has to do with the user: changes of strangers are of no interest.
func (k *Keys) known(ctx context.Context, user matrix.UserID) (bool, error) {
	shares, err := k.db.SharesRoom(ctx, k.server, []matrix.UserID{user})
	return shares[user], err
}

// ReceiveSigningKeyUpdate takes an m.signing_key_update EDU.
// A *matrix.Error means that the EDU is not valid; retrying does not help.
func (k *Keys) ReceiveSigningKeyUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var e struct {
		UserID      matrix.UserID   `json:"user_id"`
		Master      json.RawMessage `json:"master_key"`
		SelfSigning json.RawMessage `json:"self_signing_key"`
	}
	if err := json.Unmarshal(content, &e); err != nil {
		return matrix.BadJSON("m.signing_key_update has members of the wrong type")
	}
	if err := k.mayUpdate(origin, e.UserID); err != nil {
		return err
	}
	known, err := k.known(ctx, e.UserID)
	if err != nil || !known {
		return err
	}
	return k.db.ApplyRemoteSigningKeys(ctx, e.UserID, theirSigningKeys(e.UserID, e.Master, e.SelfSigning))
}
