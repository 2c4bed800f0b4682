package storage

import (
	"context"
	"database/sql"
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// Pusher is where a user's notifications go.
type Pusher struct {
	User      matrix.UserID
	AppID     string
	PushKey   string
	Device    matrix.DeviceID // that set it
	Content   json.RawMessage // as clients see it
	CreatedMS int64
}

// SetPusher stores a pusher in place of the user's one with the same app and key; with alone those of other users with
// the same app and key are deleted. ErrLimit if the user has max others.
func (db *DB) SetPusher(ctx context.Context, p Pusher, alone bool, max int) error {
	return db.Write(ctx, func(tx *Tx) error {
		var others int
		err := tx.Raw("SELECT count(*) FROM pushers WHERE user_id = ? AND NOT (app_id = ? AND pushkey = ?)", p.User, p.AppID, p.PushKey).Row().Scan(&others)
		if err != nil {
			return err
		}
		if others >= max {
			return ErrLimit
		}
		if alone {
			if err := tx.deletePushers(p.AppID, p.PushKey, p.User); err != nil {
				return err
			}
		}
		err = tx.Exec(`INSERT INTO pushers (user_id, app_id, pushkey, device_id, content, created_ms) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, content = excluded.content, created_ms = excluded.created_ms`,
			p.User, p.AppID, p.PushKey, p.Device, []byte(p.Content), p.CreatedMS).Error
		if err != nil {
			return err
		}
		return tx.ringPush(p.User)
	})
}

func (tx *Tx) ringPush(user matrix.UserID) error {
	pos, err := tx.Next(1)
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicPush, Pos: pos, User: user}}})
	return err
}

// deletePushers deletes the pushers with this app and key of all users but one.
func (tx *Tx) deletePushers(appID, pushKey string, but matrix.UserID) error {
	users, err := scanAll(tx.Raw("SELECT user_id FROM pushers WHERE app_id = ? AND pushkey = ? AND user_id <> ?", appID, pushKey, but),
		func(rows *sql.Rows) (u matrix.UserID, err error) { return u, rows.Scan(&u) })
	if err != nil {
		return err
	}
	for _, user := range users {
		if err := tx.deletePusher(user, appID, pushKey); err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) deletePusher(user matrix.UserID, appID, pushKey string) error {
	for _, table := range []string{"pushers", "push_queue"} {
		if err := tx.Exec("DELETE FROM "+table+" WHERE user_id = ? AND app_id = ? AND pushkey = ?", user, appID, pushKey).Error; err != nil {
			return err
		}
	}
	return tx.ringPush(user)
}

// DeletePusher deletes one; it is no error if it is not there.
func (db *DB) DeletePusher(ctx context.Context, user matrix.UserID, appID, pushKey string) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.deletePusher(user, appID, pushKey) })
}

// DeletePushKey deletes the pushers of all users with a key that the gateway has rejected.
func (db *DB) DeletePushKey(ctx context.Context, appID, pushKey string) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.deletePushers(appID, pushKey, "") })
}

// Pushers lists a user's pushers.
func (db *DB) Pushers(ctx context.Context, user matrix.UserID) ([]Pusher, error) {
	return scanAll(db.Read(ctx).Raw("SELECT user_id, app_id, pushkey, device_id, content, created_ms FROM pushers WHERE user_id = ? ORDER BY created_ms, app_id, pushkey", user),
		func(rows *sql.Rows) (p Pusher, err error) {
			return p, rows.Scan(&p.User, &p.AppID, &p.PushKey, &p.Device, &p.Content, &p.CreatedMS)
		})
}

// UsersWithPushers lists who has any, at most limit of them.
func (db *DB) UsersWithPushers(ctx context.Context, limit int) ([]matrix.UserID, error) {
	return scanAll(db.Read(ctx).Raw("SELECT DISTINCT user_id FROM pushers LIMIT ?", limit),
		func(rows *sql.Rows) (u matrix.UserID, err error) { return u, rows.Scan(&u) })
}

// QueuedPush is a request on its way to a gateway.
type QueuedPush struct {
	ID        int64
	User      matrix.UserID
	AppID     string
	PushKey   string
	Body      json.RawMessage
	CreatedMS int64
	Attempts  int
}

// QueuePushes stores requests, due at once. Of each pusher only the newest max are kept.
func (db *DB) QueuePushes(ctx context.Context, pushes []QueuedPush, max int) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, p := range pushes {
			id, err := tx.Next(1)
			if err != nil {
				return err
			}
			err = tx.Exec("INSERT INTO push_queue (id, user_id, app_id, pushkey, body, created_ms, due_ms, attempts) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
				id, p.User, p.AppID, p.PushKey, []byte(p.Body), p.CreatedMS, p.CreatedMS).Error
			if err != nil {
				return err
			}
			err = tx.Exec(`DELETE FROM push_queue WHERE user_id = ? AND app_id = ? AND pushkey = ? AND id <=
				(SELECT id FROM push_queue WHERE user_id = ? AND app_id = ? AND pushkey = ? ORDER BY id DESC LIMIT 1 OFFSET ?)`,
				p.User, p.AppID, p.PushKey, p.User, p.AppID, p.PushKey, max).Error
			if err != nil {
				return err
			}
			tx.Ring(Change{Wakes: []Wake{{Topic: TopicPush, Pos: id, User: p.User}}})
		}
		return nil
	})
}

// DuePushes lists the oldest requests that are due, and when the next one is otherwise (0: there is none).
func (db *DB) DuePushes(ctx context.Context, nowMS int64, limit int) (due []QueuedPush, nextMS int64, err error) {
	due, err = scanAll(db.Read(ctx).Raw("SELECT id, user_id, app_id, pushkey, body, created_ms, attempts FROM push_queue WHERE due_ms <= ? ORDER BY id LIMIT ?", nowMS, limit),
		func(rows *sql.Rows) (p QueuedPush, err error) {
			return p, rows.Scan(&p.ID, &p.User, &p.AppID, &p.PushKey, &p.Body, &p.CreatedMS, &p.Attempts)
		})
	if err != nil || len(due) > 0 {
		return due, 0, err
	}
	err = db.Read(ctx).Raw("SELECT COALESCE(min(due_ms), 0) FROM push_queue").Row().Scan(&nextMS)
	return nil, nextMS, err
}

// DeletePush takes a request off the queue.
func (db *DB) DeletePush(ctx context.Context, id int64) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.Exec("DELETE FROM push_queue WHERE id = ?", id).Error })
}

// RetryPushes puts off all requests of a pusher after one of them failed, so that they stay in order.
func (db *DB) RetryPushes(ctx context.Context, failed QueuedPush, dueMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("UPDATE push_queue SET attempts = attempts + 1 WHERE id = ?", failed.ID).Error; err != nil {
			return err
		}
		return tx.Exec("UPDATE push_queue SET due_ms = ? WHERE user_id = ? AND app_id = ? AND pushkey = ?", dueMS, failed.User, failed.AppID, failed.PushKey).Error
	})
}
