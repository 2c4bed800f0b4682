package storage

import (
	"context"
	"database/sql"
	"errors"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// ErrLimit is returned when there are as many as may be.
var ErrLimit = errors.New("limit reached")

// Account is a person of this server as administrators see it.
type Account struct {
	UserID      matrix.UserID `json:"user_id"`
	CreatedMS   int64         `json:"created_ts"`
	Admin       bool          `json:"admin"`
	Locked      bool          `json:"locked"`
	Suspended   bool          `json:"suspended"`
	Deactivated bool          `json:"deactivated"`
	Erased      bool          `json:"erased"`
	HasPassword bool          `json:"has_password"`
}

// NewUser is an account to be made.
type NewUser struct {
	UserID            matrix.UserID
	Password          string // PHC string; "" for none
	Admin             bool
	DisplayName       string
	NameKey           string // the display name and localpart in lower case, for the directory
	RegistrationToken string // "" for none; one use of it is counted
	External          ExternalID
	NowMS             int64
}

// CreateUser makes an account. ErrTaken if the name was ever used, ErrLimit if the registration token has no use left,
// ErrLinked if the external ID has an account.
func (db *DB) CreateUser(ctx context.Context, u NewUser) error {
	return db.Write(ctx, func(tx *Tx) error {
		if u.RegistrationToken != "" {
			admin, err := tx.useRegistrationToken(u.RegistrationToken, u.NowMS)
			if err != nil {
				return err
			}
			u.Admin = u.Admin || admin
		}
		n, err := tx.affect(`INSERT INTO users (user_id, password, created_ms, admin, locked, suspended, deactivated, erased)
			VALUES (?, ?, ?, ?, FALSE, FALSE, FALSE, FALSE) ON CONFLICT DO NOTHING`, u.UserID, u.Password, u.NowMS, u.Admin)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrTaken
		}
		if u.External != (ExternalID{}) {
			if err := tx.linkExternalID(u.UserID, u.External, u.NowMS); err != nil {
				return err
			}
		}
		var name any
		if u.DisplayName != "" {
			name = []byte(u.DisplayName)
		}
		return tx.Exec("INSERT INTO profiles (user_id, displayname, name_key) VALUES (?, ?, ?)", u.UserID, name, u.NameKey).Error
	})
}

// useRegistrationToken counts one use. A token that makes administrators works only while there is none.
func (tx *Tx) useRegistrationToken(token string, nowMS int64) (admin bool, err error) {
	n, err := tx.affect(`UPDATE registration_tokens SET completed = completed + 1 WHERE token = ?
		AND (uses_allowed < 0 OR completed < uses_allowed) AND (expires_ms = 0 OR expires_ms > ?)
		AND (NOT admin OR NOT EXISTS (SELECT 1 FROM users WHERE admin))`, token, nowMS)
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, ErrLimit
	}
	err = tx.Raw("SELECT admin FROM registration_tokens WHERE token = ?", token).Row().Scan(&admin)
	return admin, err
}

const accountColumns = "user_id, created_ms, admin, locked, suspended, deactivated, erased, password <> ''"

func scanAccount(rows interface{ Scan(...any) error }) (a Account, err error) {
	err = rows.Scan(&a.UserID, &a.CreatedMS, &a.Admin, &a.Locked, &a.Suspended, &a.Deactivated, &a.Erased, &a.HasPassword)
	return a, err
}

// Account finds an account; ErrNotFound if there never was one of this name.
func (db *DB) Account(ctx context.Context, user matrix.UserID) (*Account, error) {
	a, err := scanAccount(db.Read(ctx).Raw("SELECT "+accountColumns+" FROM users WHERE user_id = ?", user).Row())
	return &a, orNotFound(err)
}

// Accounts lists accounts in the order of their IDs, starting after the given one.
func (db *DB) Accounts(ctx context.Context, after matrix.UserID, limit int) ([]Account, error) {
	return scanAll(db.Read(ctx).Raw("SELECT "+accountColumns+" FROM users WHERE user_id > ? ORDER BY user_id LIMIT ?", after, limit),
		func(rows *sql.Rows) (Account, error) { return scanAccount(rows) })
}

// HasUsers reports whether any account was ever made.
func (db *DB) HasUsers(ctx context.Context) (bool, error) {
	var has bool
	err := db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM users)").Row().Scan(&has)
	return has, err
}

// PasswordHash is the PHC string of the user, "" for none; ErrNotFound if there is no such account.
func (db *DB) PasswordHash(ctx context.Context, user matrix.UserID) (hash string, deactivated, locked bool, err error) {
	err = db.Read(ctx).Raw("SELECT password, deactivated, locked FROM users WHERE user_id = ?", user).Row().Scan(&hash, &deactivated, &locked)
	return hash, deactivated, locked, orNotFound(err)
}

// SetPassword stores a new PHC string and deletes all devices but keep; with keepAll none.
// ErrNotFound if there is no such account or it is deactivated.
func (db *DB) SetPassword(ctx context.Context, user matrix.UserID, hash string, keep matrix.DeviceID, keepAll bool) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE users SET password = ? WHERE user_id = ? AND NOT deactivated", hash, user)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		if keepAll {
			return nil
		}
		devices, err := tx.devicesBut(user, keep)
		if err != nil {
			return err
		}
		return tx.deleteDevices(user, devices)
	})
}

// ReplacePasswordHash stores the same password hashed anew, if it has not changed meanwhile.
func (db *DB) ReplacePasswordHash(ctx context.Context, user matrix.UserID, old, hash string) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("UPDATE users SET password = ? WHERE user_id = ? AND password = ?", hash, user, old).Error
	})
}

// AccountFlag is a property of an account that administrators switch.
type AccountFlag string

// The flags of [DB.SetAccountFlag]: names of columns.
const (
	FlagAdmin     AccountFlag = "admin"
	FlagLocked    AccountFlag = "locked"
	FlagSuspended AccountFlag = "suspended"
)

// SetAccountFlag switches a flag; ErrNotFound if there is no such account.
func (db *DB) SetAccountFlag(ctx context.Context, user matrix.UserID, flag AccountFlag, on bool) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE users SET "+string(flag)+" = ? WHERE user_id = ?", on, user)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// DeactivateUser ends an account for good and deletes what is only its own; its name stays taken.
func (db *DB) DeactivateUser(ctx context.Context, user matrix.UserID, erase bool) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect(`UPDATE users SET password = '', deactivated = TRUE, admin = FALSE, erased = (erased OR ?)
			WHERE user_id = ?`, erase, user)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		devices, err := tx.devicesBut(user, "")
		if err != nil {
			return err
		}
		if err := tx.deleteDevices(user, devices); err != nil {
			return err
		}
		for _, table := range []string{"account_data", "filters", "short_tokens", "cross_signing_keys", "key_backups",
			"key_backup_keys", "pushers", "push_queue"} {
			if err := tx.Exec("DELETE FROM "+table+" WHERE user_id = ?", user).Error; err != nil {
				return err
			}
		}
		if err := tx.ringPush(user); err != nil {
			return err
		}
		return tx.Exec("UPDATE profiles SET displayname = NULL, avatar_url = NULL, fields = NULL, name_key = '' WHERE user_id = ?", user).Error
	})
}

// RegistrationToken lets people register.
type RegistrationToken struct {
	Token       string
	UsesAllowed int64 // -1: any number
	Completed   int64
	ExpiresMS   int64 // 0: never
	Admin       bool  // its user becomes administrator
}

// AddRegistrationToken stores a token; ErrTaken if it exists.
func (db *DB) AddRegistrationToken(ctx context.Context, t RegistrationToken) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect(`INSERT INTO registration_tokens (token, uses_allowed, completed, expires_ms, admin)
			VALUES (?, ?, 0, ?, ?) ON CONFLICT DO NOTHING`, t.Token, t.UsesAllowed, t.ExpiresMS, t.Admin)
		if err == nil && n == 0 {
			err = ErrTaken
		}
		return err
	})
}

// ReplaceAdminToken puts the one token that makes the first administrator in place of the one before; "" only deletes.
func (db *DB) ReplaceAdminToken(ctx context.Context, token string) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("DELETE FROM registration_tokens WHERE admin").Error; err != nil || token == "" {
			return err
		}
		return tx.Exec(`INSERT INTO registration_tokens (token, uses_allowed, completed, expires_ms, admin)
			VALUES (?, 1, 0, 0, TRUE)`, token).Error
	})
}

func scanRegistrationToken(rows interface{ Scan(...any) error }) (t RegistrationToken, err error) {
	err = rows.Scan(&t.Token, &t.UsesAllowed, &t.Completed, &t.ExpiresMS, &t.Admin)
	return t, err
}

// RegistrationToken finds a token.
func (db *DB) RegistrationToken(ctx context.Context, token string) (*RegistrationToken, error) {
	t, err := scanRegistrationToken(db.Read(ctx).Raw(
		"SELECT token, uses_allowed, completed, expires_ms, admin FROM registration_tokens WHERE token = ?", token).Row())
	return &t, orNotFound(err)
}

// RegistrationTokens lists all tokens.
func (db *DB) RegistrationTokens(ctx context.Context) ([]RegistrationToken, error) {
	return scanAll(db.Read(ctx).Raw("SELECT token, uses_allowed, completed, expires_ms, admin FROM registration_tokens ORDER BY token"),
		func(rows *sql.Rows) (RegistrationToken, error) { return scanRegistrationToken(rows) })
}

// DeleteRegistrationToken deletes a token; ErrNotFound if there is none.
func (db *DB) DeleteRegistrationToken(ctx context.Context, token string) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("DELETE FROM registration_tokens WHERE token = ?", token)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// affect runs a statement and tells how many rows it touched.
func (tx *Tx) affect(sql string, args ...any) (int64, error) {
	r := tx.Exec(sql, args...)
	return r.RowsAffected, r.Error
}

// scanAll reads all rows of a query.
func scanAll[T any](query *gorm.DB, scan func(*sql.Rows) (T, error)) ([]T, error) {
	rows, err := query.Rows()
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

func orNotFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
