package user

import (
	"context"
	"errors"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Device is as clients see it.
type Device struct {
	UserID      matrix.UserID   `json:"user_id,omitempty"`
	DeviceID    matrix.DeviceID `json:"device_id"`
	DisplayName *string         `json:"display_name,omitempty"`
	LastSeenIP  string          `json:"last_seen_ip,omitempty"`
	LastSeenMS  int64           `json:"last_seen_ts,omitempty"`
	UserAgent   string          `json:"-"`
}

// Devices lists all devices of a user of this server, oldest first.
func (u *Users) Devices(ctx context.Context, user matrix.UserID) ([]Device, error) {
	rows, err := u.db.Devices(ctx, user)
	devices := make([]Device, 0, len(rows))
	for _, row := range rows {
		devices = append(devices, u.device(row))
	}
	return devices, err
}

// Device finds one. Error: M_NOT_FOUND.
func (u *Users) Device(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (*Device, error) {
	row, err := u.db.Device(ctx, user, device)
	if err != nil {
		return nil, noDevice(err)
	}
	d := u.device(*row)
	return &d, nil
}

func noDevice(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("you have no such device")
	}
	return err
}

// device adds what is only in memory yet.
func (u *Users) device(row storage.Device) Device {
	d := Device{UserID: row.UserID, DeviceID: row.DeviceID, LastSeenIP: row.LastSeenIP, LastSeenMS: row.LastSeenMS, UserAgent: row.UserAgent}
	if row.DisplayName != "" {
		d.DisplayName = &row.DisplayName
	}
	u.seen.mu.Lock()
	defer u.seen.mu.Unlock()
	if s, ok := u.seen.at[deviceKey{row.UserID, row.DeviceID}]; ok {
		d.LastSeenIP, d.LastSeenMS, d.UserAgent = s.IP, s.AtMS, s.UserAgent
	}
	return d
}

// RenameDevice sets the display name; other servers and users hear of it. Error: M_NOT_FOUND.
func (u *Users) RenameDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error {
	return noDevice(u.db.RenameDevice(ctx, user, device, clean(name, maxDeviceName)))
}

// DeleteDevices ends the devices' sessions and deletes them with keys and messages. Unknown ones are passed over.
// Call Reauthenticate first.
func (u *Users) DeleteDevices(ctx context.Context, user matrix.UserID, devices []matrix.DeviceID) error {
	if len(devices) == 0 {
		return nil
	}
	defer u.forget(user)
	return u.db.DeleteDevices(ctx, user, devices)
}

// ChangePassword sets a new password. With logoutOthers all devices but the session's are deleted.
// Errors: M_WEAK_PASSWORD; M_FORBIDDEN if CanChangePassword says no. Call Reauthenticate first.
func (u *Users) ChangePassword(ctx context.Context, s *Session, password string, logoutOthers bool) error {
	if can, err := u.CanChangePassword(ctx, s.User); err != nil {
		return err
	} else if !can {
		return matrix.Forbidden("this account has no password here: it belongs to a company account")
	}
	return u.setPassword(ctx, s.User, password, s.Device, !logoutOthers)
}

// CanChangePassword reports whether the user has a password to change. Who signs in with a company account gets none, because it
// would let them in when the company no longer does.
func (u *Users) CanChangePassword(ctx context.Context, user matrix.UserID) (bool, error) {
	has, err := u.db.Authenticators(ctx, user)
	return u.cfg.PasswordLogin && (has.Password || len(has.Issuers) == 0), err
}

// SetPassword is an administrator's reset; with logout all devices are deleted. Errors: M_WEAK_PASSWORD, M_NOT_FOUND.
func (u *Users) SetPassword(ctx context.Context, user matrix.UserID, password string, logout bool) error {
	return u.setPassword(ctx, user, password, "", !logout)
}

func (u *Users) setPassword(ctx context.Context, user matrix.UserID, password string, keep matrix.DeviceID, keepAll bool) error {
	if err := u.checkPassword(password); err != nil {
		return err
	}
	hash, err := u.hash(ctx, password)
	if err != nil {
		return err
	}
	defer u.forget(user)
	return noAccount(u.db.SetPassword(ctx, user, hash, keep, keepAll))
}

func noAccount(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no such account on this server")
	}
	return err
}

// Deactivate ends the account for good: no login, no devices, no profile, the name stays taken. The caller leaves
// the rooms. With erase the user also asked that old messages are not shown to new members. Error: M_NOT_FOUND.
func (u *Users) Deactivate(ctx context.Context, user matrix.UserID, erase bool) error {
	defer func() {
		u.forget(user)
		u.exist.Drop(user)
		u.names.Drop(user)
		u.ignored.Drop(user)
	}()
	return noAccount(u.db.DeactivateUser(ctx, user, erase))
}

// Account is what administrators see.
type Account = storage.Account

// Account finds an account of this server, deactivated or not. Error: M_NOT_FOUND.
func (u *Users) Account(ctx context.Context, user matrix.UserID) (*Account, error) {
	a, err := u.db.Account(ctx, user)
	return a, noAccount(err)
}

// Accounts pages through all accounts in order of their IDs, starting after the given one.
func (u *Users) Accounts(ctx context.Context, after matrix.UserID, limit int) ([]Account, error) {
	return u.db.Accounts(ctx, after, limit)
}

// SetAdmin makes the user an administrator, or no longer. It takes effect on open sessions at once. Error: M_NOT_FOUND.
func (u *Users) SetAdmin(ctx context.Context, user matrix.UserID, admin bool) error {
	return u.setFlag(ctx, user, storage.FlagAdmin, admin)
}

// SetLocked locks the account: every call but logout fails with M_USER_LOCKED until it is unlocked. Error: M_NOT_FOUND.
// Spec v1.19 client-server-api/#account-locking
func (u *Users) SetLocked(ctx context.Context, user matrix.UserID, locked bool) error {
	return u.setFlag(ctx, user, storage.FlagLocked, locked)
}

// SetSuspended suspends the account: it can read, leave and redact only. Error: M_NOT_FOUND.
// Spec v1.19 client-server-api/#account-suspension
func (u *Users) SetSuspended(ctx context.Context, user matrix.UserID, suspended bool) error {
	return u.setFlag(ctx, user, storage.FlagSuspended, suspended)
}

func (u *Users) setFlag(ctx context.Context, user matrix.UserID, flag storage.AccountFlag, on bool) error {
	defer u.forget(user)
	return noAccount(u.db.SetAccountFlag(ctx, user, flag, on))
}

// IsLocal reports whether the user ID belongs to this server (not whether the account exists).
func (u *Users) IsLocal(user matrix.UserID) bool { return user.Server() == u.server }

// Exists reports whether there is an account, deactivated ones excepted. From memory when warm.
func (u *Users) Exists(ctx context.Context, user matrix.UserID) (bool, error) {
	if !u.IsLocal(user) {
		return false, nil
	}
	exists, err := u.exist.Load(user, func() (bool, error) {
		a, err := u.db.Account(ctx, user)
		if err == nil && a.Deactivated {
			err = storage.ErrNotFound
		}
		return err == nil, err
	})
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return exists, err
}
