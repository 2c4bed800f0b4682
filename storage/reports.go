package storage

import (
	"context"
	"time"

	"parley.im/parley/server/matrix"
)

// Report is what somebody told the administrators: about a room, an event in it, or a user.
type Report struct {
	Num      int64 // in the order in which they came; given by AddReport
	Reporter matrix.UserID
	Room     matrix.RoomID  // "" for a report of a user
	Event    matrix.EventID // "" for a report of a room or a user
	User     matrix.UserID  // the event's sender, or the user reported; "" for a report of a room
	Reason   string
	Time     time.Time
}

// AddReport keeps a report.
func (db *DB) AddReport(ctx context.Context, r Report) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec(`INSERT INTO reports (num, reporter, room_id, event_id, user_id, reason, created_ms)
			SELECT COALESCE(MAX(num), 0) + 1, ?, ?, ?, ?, ?, ? FROM reports`,
			r.Reporter, r.Room, r.Event, r.User, r.Reason, r.Time.UnixMilli()).Error
	})
}

// Reports lists reports with a number below before, the newest first; before 0 starts with the newest of all.
func (db *DB) Reports(ctx context.Context, before int64, limit int) ([]Report, error) {
	if before == 0 {
		before = 1<<63 - 1
	}
	rows, err := db.Read(ctx).Raw(`SELECT num, reporter, room_id, event_id, user_id, reason, created_ms FROM reports
		WHERE num < ? ORDER BY num DESC LIMIT ?`, before, limit).Rows()
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Report
	for rows.Next() {
		var r Report
		var ms int64
		if err := rows.Scan(&r.Num, &r.Reporter, &r.Room, &r.Event, &r.User, &r.Reason, &ms); err != nil {
			return nil, err
		}
		r.Time = time.UnixMilli(ms)
		all = append(all, r)
	}
	return all, rows.Err()
}
