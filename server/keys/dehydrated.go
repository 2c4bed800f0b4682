package keys

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Dehydrated devices are those of MSC3814: a device without a client, which receives messages while its user is logged
// in nowhere. A later login takes it over with a secret that only the user has.

const (
	maxDehydratedBytes = 64 * 1024
	dehydratedPage     = 100 // messages in one answer
)

var errNoDehydrated = matrix.NotFound("there is no such dehydrated device")

// PutDehydratedDevice makes the user's dehydrated device in place of the one before.
// Errors: M_MISSING_PARAM, M_BAD_JSON, M_INVALID_PARAM (a real device has this ID), M_TOO_LARGE, as Upload.
func (k *Keys) PutDehydratedDevice(ctx context.Context, user matrix.UserID, body json.RawMessage) (matrix.DeviceID, error) {
	var r struct {
		DeviceID    string          `json:"device_id"`
		Data        json.RawMessage `json:"device_data"`
		Name        string          `json:"initial_device_display_name"`
		DeviceKeys  json.RawMessage `json:"device_keys"`
		OneTimeKeys json.RawMessage `json:"one_time_keys"`
		Fallback    json.RawMessage `json:"fallback_keys"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return "", matrix.BadJSON("the body has members of the wrong type")
	}
	if !present(r.Data) || !present(r.DeviceKeys) || r.DeviceID == "" {
		return "", matrix.MissingParam("device_id, device_data and device_keys are needed")
	}
	if len(r.Data) > maxDehydratedBytes {
		return "", matrix.TooLarge("device_data must not be larger than 64 KiB")
	}
	if r.Data[0] != '{' {
		return "", matrix.BadJSON("device_data must be an object")
	}
	device, err := matrix.ParseDeviceID(r.DeviceID)
	if err != nil {
		return "", err
	}
	u := storage.KeyUpload{User: user, Device: device, MaxOneTime: k.cfg.MaxOneTimeKeys}
	if u.DeviceKeys, err = checkDeviceKeys(user, device, r.DeviceKeys); err != nil {
		return "", err
	}
	if u.OneTime, err = oneTimeKeys("one_time_keys", r.OneTimeKeys); err != nil {
		return "", err
	}
	if u.Fallback, err = oneTimeKeys("fallback_keys", r.Fallback); err != nil {
		return "", err
	}
	err = k.db.PutDehydratedDevice(ctx, u, cleanName(r.Name), r.Data, k.now().UnixMilli())
	if errors.Is(err, storage.ErrTaken) {
		return "", matrix.InvalidParam("you have another device of this ID")
	}
	return device, err
}

// DehydratedDevice answers with {"device_id", "device_data"}. Error: M_NOT_FOUND.
func (k *Keys) DehydratedDevice(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	d, err := k.dehydrated(ctx, user)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"device_id": d.Device, "device_data": d.Data})
}

func (k *Keys) dehydrated(ctx context.Context, user matrix.UserID) (*storage.DehydratedDevice, error) {
	d, err := k.db.DehydratedDevice(ctx, user)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errNoDehydrated
	}
	return d, err
}

// DeleteDehydratedDevice deletes it with its keys and messages and returns its ID. Error: M_NOT_FOUND.
func (k *Keys) DeleteDehydratedDevice(ctx context.Context, user matrix.UserID) (matrix.DeviceID, error) {
	d, err := k.dehydrated(ctx, user)
	if err != nil {
		return "", err
	}
	return d.Device, k.db.DeleteDevices(ctx, user, []matrix.DeviceID{d.Device})
}

// DehydratedEvents pages through the messages that wait for it: {"events", "next_batch"}. They stay until the device is
// deleted. from is "" or the next_batch of the page before. Errors: M_NOT_FOUND, M_INVALID_PARAM.
func (k *Keys) DehydratedEvents(ctx context.Context, user matrix.UserID, device matrix.DeviceID, from string) (json.RawMessage, error) {
	d, err := k.dehydrated(ctx, user)
	if err != nil {
		return nil, err
	}
	if d.Device != device {
		return nil, errNoDehydrated
	}
	var after int64
	if from != "" {
		if after, err = strconv.ParseInt(from, 10, 64); err != nil || after < 0 {
			return nil, matrix.InvalidParam("next_batch is not a token that this server gave out")
		}
	}
	messages, err := k.db.Inbox(ctx, user, device, after, k.db.Position(), dehydratedPage)
	if err != nil {
		return nil, err
	}
	events := make([]json.RawMessage, len(messages))
	for i, m := range messages {
		events[i], after = m.Event, m.Pos
	}
	return json.Marshal(map[string]any{"events": events, "next_batch": strconv.FormatInt(after, 10)})
}
