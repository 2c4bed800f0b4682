package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
)

// DehydratedDevice is a device without a client: it receives messages that a later login of its user will read.
type DehydratedDevice struct {
	Device matrix.DeviceID
	Data   json.RawMessage // encrypted for its owner
}

// PutDehydratedDevice makes the dehydrated device of a user in place of the one before, with its keys. Errors as
// UploadKeys; ErrTaken if the user has a real device of this ID.
func (db *DB) PutDehydratedDevice(ctx context.Context, u KeyUpload, name string, data json.RawMessage, nowMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		old, err := dehydratedDevice(tx.Raw, u.User)
		if err == nil {
			err = tx.deleteDevices(u.User, []matrix.DeviceID{old.Device})
		} else if errors.Is(err, ErrNotFound) {
			err = nil
		}
		if err != nil {
			return err
		}
		n, err := tx.affect(`INSERT INTO devices (user_id, device_id, display_name, created_ms, last_seen_ms, last_seen_ip, user_agent)
			VALUES (?, ?, ?, ?, ?, '', '') ON CONFLICT DO NOTHING`, u.User, u.Device, name, nowMS, nowMS)
		if err == nil && n == 0 {
			err = ErrTaken
		}
		if err == nil {
			err = tx.Exec("INSERT INTO dehydrated_devices (user_id, device_id, data) VALUES (?, ?, ?)", u.User, u.Device, []byte(data)).Error
		}
		if err == nil {
			_, err = tx.uploadKeys(u)
		}
		return err
	})
}

// DehydratedDevice finds the user's.
func (db *DB) DehydratedDevice(ctx context.Context, user matrix.UserID) (*DehydratedDevice, error) {
	return dehydratedDevice(db.Read(ctx).Raw, user)
}

func dehydratedDevice(raw rawQuery, user matrix.UserID) (*DehydratedDevice, error) {
	var d DehydratedDevice
	err := raw("SELECT device_id, data FROM dehydrated_devices WHERE user_id = ?", user).Row().Scan(&d.Device, &d.Data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	return &d, err
}
