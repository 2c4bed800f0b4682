package storage

import (
	"context"
	"database/sql"
	"errors"

	"parley.im/parley/server/matrix"
)

// Device is a device of a person of this server.
type Device struct {
	UserID      matrix.UserID
	DeviceID    matrix.DeviceID
	DisplayName string
	CreatedMS   int64
	LastSeenMS  int64
	LastSeenIP  string
	UserAgent   string
}

// NewSession is a device with its tokens; the hashes are SHA-256 of the tokens.
type NewSession struct {
	User             matrix.UserID
	Device           matrix.DeviceID
	Name             string // for a new device
	IP               string
	NowMS            int64
	Access           []byte
	AccessExpiresMS  int64  // 0: never
	Refresh          []byte // nil: none
	RefreshExpiresMS int64  // 0: never
	MaxDevices       int
}

// ErrDeviceIsKey is returned for a device ID that is a cross-signing key of the same user.
var ErrDeviceIsKey = errors.New("device ID is a cross-signing key")

// OpenSession stores a session. A device that exists is taken over: its earlier tokens end.
// ErrLimit if there are MaxDevices already, ErrDeviceIsKey, ErrNotFound if the account is gone.
func (db *DB) OpenSession(ctx context.Context, s NewSession) error {
	return db.Write(ctx, func(tx *Tx) error {
		var active, isKey bool
		var devices int
		err := tx.Raw(`SELECT (SELECT count(*) FROM users WHERE user_id = ? AND NOT deactivated) > 0,
			(SELECT count(*) FROM devices WHERE user_id = ?),
			EXISTS (SELECT 1 FROM cross_signing_keys WHERE user_id = ? AND public_key = ?)`,
			s.User, s.User, s.User, s.Device).Row().Scan(&active, &devices, &isKey)
		switch {
		case err != nil:
			return err
		case !active:
			return ErrNotFound
		case isKey:
			return ErrDeviceIsKey
		}
		n, err := tx.affect(`INSERT INTO devices (user_id, device_id, display_name, created_ms, last_seen_ms, last_seen_ip, user_agent)
			VALUES (?, ?, ?, ?, ?, ?, '') ON CONFLICT DO NOTHING`, s.User, s.Device, s.Name, s.NowMS, s.NowMS, s.IP)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := tx.deleteTokens(s.User, []matrix.DeviceID{s.Device}); err != nil {
				return err
			}
		} else if devices >= s.MaxDevices {
			return ErrLimit
		}
		return tx.insertTokens(s, nil)
	})
}

// insertTokens: gorm takes a byte slice right after a parenthesis for a list, so no hash stands first.
func (tx *Tx) insertTokens(s NewSession, previous []byte) error {
	err := tx.Exec("INSERT INTO access_tokens (user_id, hash, device_id, expires_ms, refresh) VALUES (?, ?, ?, ?, ?)",
		s.User, s.Access, s.Device, s.AccessExpiresMS, orNull(s.Refresh)).Error
	if err != nil || s.Refresh == nil {
		return err
	}
	return tx.Exec("INSERT INTO refresh_tokens (user_id, hash, device_id, expires_ms, previous) VALUES (?, ?, ?, ?, ?)",
		s.User, s.Refresh, s.Device, s.RefreshExpiresMS, orNull(previous)).Error
}

// TokenOwner is whose an access token is.
type TokenOwner struct {
	User      matrix.UserID
	Device    matrix.DeviceID
	ExpiresMS int64 // 0: never
	Admin     bool
	Locked    bool
	Suspended bool
	// Replaces is the refresh token whose successor came with this access token, if that one has not been used yet.
	Replaces []byte
}

// TokenOwner finds whose access token this is the hash of.
func (db *DB) TokenOwner(ctx context.Context, hash []byte) (*TokenOwner, error) {
	var o TokenOwner
	err := db.Read(ctx).Raw(`SELECT t.user_id, t.device_id, t.expires_ms, u.admin, u.locked, u.suspended, r.previous
		FROM access_tokens t JOIN users u ON u.user_id = t.user_id AND NOT u.deactivated
		LEFT JOIN refresh_tokens r ON r.hash = t.refresh WHERE t.hash = ?`, hash).Row().
		Scan(&o.User, &o.Device, &o.ExpiresMS, &o.Admin, &o.Locked, &o.Suspended, &o.Replaces)
	return &o, orNotFound(err)
}

// ConfirmRefresh ends the refresh token that was replaced, and the access tokens that came with it, because the new pair
// is in use.
func (db *DB) ConfirmRefresh(ctx context.Context, replaced []byte) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.dropRefresh(replaced) })
}

// dropRefresh deletes a refresh token with its access tokens, and all that came before it.
func (tx *Tx) dropRefresh(hash []byte) error {
	for hash != nil {
		var previous []byte
		err := tx.Raw("SELECT previous FROM refresh_tokens WHERE hash = ?", hash).Row().Scan(&previous)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		for _, statement := range []string{
			"DELETE FROM access_tokens WHERE refresh = ?",
			"DELETE FROM refresh_tokens WHERE hash = ?",
			"UPDATE refresh_tokens SET previous = NULL WHERE previous = ?",
		} {
			if err := tx.Exec(statement, hash).Error; err != nil {
				return err
			}
		}
		hash = previous
	}
	return nil
}

// Refresh exchanges the refresh token old for the pair in s, whose User and Device it fills in. What old replaced ends
// now; old itself ends when the new pair is used. ErrNotFound if old is unknown, has expired or its account is locked or gone.
func (db *DB) Refresh(ctx context.Context, old []byte, s *NewSession) error {
	return db.Write(ctx, func(tx *Tx) error {
		var previous []byte
		err := tx.Raw(`SELECT r.user_id, r.device_id, r.previous FROM refresh_tokens r JOIN users u ON u.user_id = r.user_id
			WHERE r.hash = ? AND (r.expires_ms = 0 OR r.expires_ms > ?) AND NOT u.deactivated AND NOT u.locked`,
			old, s.NowMS).Row().Scan(&s.User, &s.Device, &previous)
		if err != nil {
			return orNotFound(err)
		}
		if err := tx.dropRefresh(previous); err != nil {
			return err
		}
		// An answer to an earlier exchange of the same token that the client never saw.
		var lost []byte
		err = tx.Raw("SELECT hash FROM refresh_tokens WHERE previous = ?", old).Row().Scan(&lost)
		if err == nil {
			err = errors.Join(tx.Exec("DELETE FROM access_tokens WHERE refresh = ?", lost).Error,
				tx.Exec("DELETE FROM refresh_tokens WHERE hash = ?", lost).Error)
		} else if errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		if err != nil {
			return err
		}
		return tx.insertTokens(*s, old)
	})
}

func (tx *Tx) deleteTokens(user matrix.UserID, devices []matrix.DeviceID) error {
	if err := tx.Exec("DELETE FROM access_tokens WHERE user_id = ? AND device_id IN ?", user, devices).Error; err != nil {
		return err
	}
	return tx.Exec("DELETE FROM refresh_tokens WHERE user_id = ? AND device_id IN ?", user, devices).Error
}

const deviceColumns = "user_id, device_id, display_name, created_ms, last_seen_ms, last_seen_ip, user_agent"

func scanDevice(rows interface{ Scan(...any) error }) (d Device, err error) {
	err = rows.Scan(&d.UserID, &d.DeviceID, &d.DisplayName, &d.CreatedMS, &d.LastSeenMS, &d.LastSeenIP, &d.UserAgent)
	return d, err
}

// Devices lists a user's devices, oldest first.
func (db *DB) Devices(ctx context.Context, user matrix.UserID) ([]Device, error) {
	return scanAll(db.Read(ctx).Raw("SELECT "+deviceColumns+" FROM devices WHERE user_id = ? ORDER BY created_ms, device_id", user),
		func(rows *sql.Rows) (Device, error) { return scanDevice(rows) })
}

// Device finds one.
func (db *DB) Device(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (*Device, error) {
	d, err := scanDevice(db.Read(ctx).Raw("SELECT "+deviceColumns+" FROM devices WHERE user_id = ? AND device_id = ?", user, device).Row())
	return &d, orNotFound(err)
}

// RenameDevice sets the display name and tells those who know the device. ErrNotFound if there is none.
func (db *DB) RenameDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE devices SET display_name = ? WHERE user_id = ? AND device_id = ?", name, user, device)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		n, err = tx.affect("UPDATE device_keys SET display_name = ? WHERE user_id = ? AND device_id = ?", name, user, device)
		if err != nil || n == 0 {
			return err
		}
		return tx.deviceListChanged(user, []matrix.DeviceID{device})
	})
}

// LastSeen is when and from where a device was last used.
type LastSeen struct {
	User      matrix.UserID
	Device    matrix.DeviceID
	AtMS      int64
	IP        string
	UserAgent string
}

// SetLastSeen writes out what was kept in memory.
func (db *DB) SetLastSeen(ctx context.Context, seen []LastSeen) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, s := range seen {
			err := tx.Exec("UPDATE devices SET last_seen_ms = ?, last_seen_ip = ?, user_agent = ? WHERE user_id = ? AND device_id = ?",
				s.AtMS, s.IP, s.UserAgent, s.User, s.Device).Error
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteDevices ends the sessions of these devices and deletes the devices with keys, messages and pushers; nil means
// all of the user's. Unknown ones are passed over.
func (db *DB) DeleteDevices(ctx context.Context, user matrix.UserID, devices []matrix.DeviceID) error {
	return db.Write(ctx, func(tx *Tx) error {
		if devices == nil {
			var err error
			if devices, err = tx.devicesBut(user, ""); err != nil {
				return err
			}
		}
		return tx.deleteDevices(user, devices)
	})
}

func (tx *Tx) devicesBut(user matrix.UserID, keep matrix.DeviceID) ([]matrix.DeviceID, error) {
	return scanAll(tx.Raw("SELECT device_id FROM devices WHERE user_id = ? AND device_id <> ?", user, keep),
		func(rows *sql.Rows) (d matrix.DeviceID, err error) { return d, rows.Scan(&d) })
}

func (tx *Tx) deleteDevices(user matrix.UserID, devices []matrix.DeviceID) error {
	if len(devices) == 0 {
		return nil
	}
	known, err := scanAll(tx.Raw("SELECT device_id FROM device_keys WHERE user_id = ? AND device_id IN ?", user, devices),
		func(rows *sql.Rows) (d matrix.DeviceID, err error) { return d, rows.Scan(&d) })
	if err != nil {
		return err
	}
	for _, table := range []string{"access_tokens", "refresh_tokens", "devices", "device_keys", "one_time_keys",
		"fallback_keys", "to_device", "dehydrated_devices"} {
		if err := tx.Exec("DELETE FROM "+table+" WHERE user_id = ? AND device_id IN ?", user, devices).Error; err != nil {
			return err
		}
	}
	n, err := tx.affect("DELETE FROM pushers WHERE user_id = ? AND device_id IN ?", user, devices)
	if err == nil && n > 0 {
		err = tx.ringPush(user)
	}
	if err != nil {
		return err
	}
	if err := tx.Exec("DELETE FROM key_signatures WHERE target_user = ? AND target IN ?", user, devices).Error; err != nil {
		return err
	}
	if len(known) == 0 {
		return nil
	}
	return tx.deviceListChanged(user, known)
}

// AddShortToken stores the hash of a token of a kind ("login", "openid") that ends soon.
func (db *DB) AddShortToken(ctx context.Context, kind string, hash []byte, user matrix.UserID, expiresMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("INSERT INTO short_tokens (kind, hash, user_id, expires_ms) VALUES (?, ?, ?, ?)", kind, hash, user, expiresMS).Error
	})
}

// ShortTokenOwner finds whose it is; ErrNotFound if it is unknown or has expired.
func (db *DB) ShortTokenOwner(ctx context.Context, kind string, hash []byte, nowMS int64) (user matrix.UserID, err error) {
	err = db.Read(ctx).Raw("SELECT user_id FROM short_tokens WHERE hash = ? AND kind = ? AND expires_ms > ?", hash, kind, nowMS).Row().Scan(&user)
	return user, orNotFound(err)
}

// UseShortToken is ShortTokenOwner for a token that can be used once.
func (db *DB) UseShortToken(ctx context.Context, kind string, hash []byte, nowMS int64) (user matrix.UserID, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		err := tx.Raw("SELECT user_id FROM short_tokens WHERE hash = ? AND kind = ? AND expires_ms > ?", hash, kind, nowMS).Row().Scan(&user)
		if err != nil {
			return orNotFound(err)
		}
		return tx.Exec("DELETE FROM short_tokens WHERE hash = ?", hash).Error
	})
	return user, err
}

// ForgetExpired deletes tokens that have expired: short-lived ones, and refresh tokens with what came with them.
func (db *DB) ForgetExpired(ctx context.Context, nowMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("DELETE FROM short_tokens WHERE expires_ms <= ?", nowMS).Error; err != nil {
			return err
		}
		return tx.Exec("DELETE FROM refresh_tokens WHERE expires_ms > 0 AND expires_ms <= ?", nowMS).Error
	})
}

func orNull(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
