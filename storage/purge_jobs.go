package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// The kinds of purges.
const (
	PurgeHistory   = "history"   // what an administrator wants to go from a room's history
	PurgeRoom      = "room"      // a whole room
	PurgeRetention = "retention" // what has become too old
)

// PurgeStatus says how far a purge is.
type PurgeStatus string

// The states of a purge.
const (
	PurgeWaiting PurgeStatus = "waiting"
	PurgeRunning PurgeStatus = "running"
	PurgeDone    PurgeStatus = "done"
	PurgeFailed  PurgeStatus = "failed"
)

// PurgeJob is a purge: what is to go, and how far it is. It is stored before the first row goes, and taken up again after a crash.
type PurgeJob struct {
	Num         int64 // the order; given by AddPurgeJob
	ID          string
	Room        matrix.RoomID
	Kind        string
	What        PurgeCriterion // not looked at for a whole room
	KeepLocal   bool           // what users of this server sent stays
	Forced      bool           // users of this server are made to leave the room first
	RequestedBy matrix.UserID  // empty for retention
	Status      PurgeStatus
	Error       string // of a failed one, for administrators
	Created     time.Time
	Ended       time.Time // zero while it is not over
	Claimed     time.Time // until when somebody is at it
	Total       int64     // how many events there were to look at as it began
	Events      int64     // rows that have gone
	Nodes       int64     // nodes of states that have gone
	Media       int64     // files that have gone
	LeftUsers   []matrix.UserID
}

const purgeJobColumns = `num, id, room_id, kind, depth, event_num, before_ms, pos, keep_local, forced, requested_by, status, error, created_ms, ended_ms,
	claimed_ms, total, events, nodes, media, left_users`

func intOf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// AddPurgeJob stores a new purge.
func (db *DB) AddPurgeJob(ctx context.Context, j *PurgeJob) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Raw("SELECT coalesce(max(num), 0) + 1 FROM purge_jobs").Row().Scan(&j.Num); err != nil {
			return err
		}
		left, err := json.Marshal(j.LeftUsers)
		if err != nil {
			return err
		}
		return tx.Exec("INSERT INTO purge_jobs ("+purgeJobColumns+") VALUES "+placeholders(1, 21),
			j.Num, j.ID, string(j.Room), j.Kind, j.What.Before.Depth, j.What.Before.Num, j.What.BeforeMS, j.What.Pos, intOf(j.KeepLocal), intOf(j.Forced),
			string(j.RequestedBy), string(j.Status), j.Error, millisOf(j.Created), millisOf(j.Ended), millisOf(j.Claimed), j.Total, j.Events, j.Nodes, j.Media, string(left)).Error
	})
}

// SavePurgeJob stores how far a purge is.
func (db *DB) SavePurgeJob(ctx context.Context, j *PurgeJob) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.savePurgeJob(j) })
}

func (tx *Tx) savePurgeJob(j *PurgeJob) error {
	left, err := json.Marshal(j.LeftUsers)
	if err != nil {
		return err
	}
	return tx.Exec("UPDATE purge_jobs SET status = ?, error = ?, ended_ms = ?, claimed_ms = ?, total = ?, events = ?, nodes = ?, media = ?, left_users = ?, pos = ? WHERE num = ?",
		string(j.Status), j.Error, millisOf(j.Ended), millisOf(j.Claimed), j.Total, j.Events, j.Nodes, j.Media, string(left), j.What.Pos, j.Num).Error
}

func queryPurgeJobs(query *gorm.DB) ([]*PurgeJob, error) {
	return scanAll(query, func(rows *sql.Rows) (*PurgeJob, error) {
		j := &PurgeJob{}
		var room, by, status, left string
		var keep, forced int
		var created, ended, claimed int64
		err := rows.Scan(&j.Num, &j.ID, &room, &j.Kind, &j.What.Before.Depth, &j.What.Before.Num, &j.What.BeforeMS, &j.What.Pos, &keep, &forced, &by, &status, &j.Error,
			&created, &ended, &claimed, &j.Total, &j.Events, &j.Nodes, &j.Media, &left)
		if err != nil {
			return nil, err
		}
		j.Room, j.RequestedBy, j.Status, j.KeepLocal, j.Forced = matrix.RoomID(room), matrix.UserID(by), PurgeStatus(status), keep != 0, forced != 0
		j.Created, j.Ended, j.Claimed = time.UnixMilli(created), timeOf(ended), timeOf(claimed)
		return j, json.Unmarshal([]byte(left), &j.LeftUsers)
	})
}

// PurgeJobs lists purges, the newest first, those of retention left out; of one room if room is not empty. At most limit.
func (db *DB) PurgeJobs(ctx context.Context, room matrix.RoomID, limit int) ([]*PurgeJob, error) {
	if room != "" {
		return queryPurgeJobs(db.Read(ctx).Raw("SELECT "+purgeJobColumns+" FROM purge_jobs WHERE room_id = ? AND kind <> ? ORDER BY num DESC LIMIT ?", string(room), PurgeRetention, limit))
	}
	return queryPurgeJobs(db.Read(ctx).Raw("SELECT "+purgeJobColumns+" FROM purge_jobs WHERE kind <> ? ORDER BY num DESC LIMIT ?", PurgeRetention, limit))
}

// PurgeJobByID finds a purge; ErrNotFound if there is none.
func (db *DB) PurgeJobByID(ctx context.Context, id string) (*PurgeJob, error) {
	found, err := queryPurgeJobs(db.Read(ctx).Raw("SELECT "+purgeJobColumns+" FROM purge_jobs WHERE id = ?", id))
	if err != nil || len(found) == 0 {
		return nil, firstOf(err, ErrNotFound)
	}
	return found[0], nil
}

func firstOf(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// UnfinishedPurge reports whether a room has a purge that is not over.
func (db *DB) UnfinishedPurge(ctx context.Context, room matrix.RoomID) (is bool, err error) {
	err = db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM purge_jobs WHERE room_id = ? AND status IN ('waiting', 'running'))", string(room)).Row().Scan(&is)
	return is, err
}

// ClaimPurgeJob takes the oldest purge that is not over and that nobody is at, until the given time, those of rooms under a hold left out; nil if there is none.
func (db *DB) ClaimPurgeJob(ctx context.Context, now, until time.Time) (*PurgeJob, error) {
	const open = ` FROM purge_jobs j WHERE status IN ('waiting', 'running') AND claimed_ms <= ?
		AND NOT EXISTS (SELECT 1 FROM holds WHERE kind = 'room' AND target = j.room_id) ORDER BY num LIMIT 1`
	var n int
	if err := db.Read(ctx).Raw("SELECT count(*) FROM (SELECT 1"+open+") AS found", now.UnixMilli()).Row().Scan(&n); err != nil || n == 0 {
		return nil, err
	}
	var job *PurgeJob
	err := db.Write(ctx, func(tx *Tx) error {
		found, err := queryPurgeJobs(tx.Raw("SELECT "+purgeJobColumns+open, now.UnixMilli()))
		if err != nil || len(found) == 0 {
			return err
		}
		claimed, err := tx.affect("UPDATE purge_jobs SET claimed_ms = ? WHERE num = ? AND claimed_ms = ?", until.UnixMilli(), found[0].Num, millisOf(found[0].Claimed))
		if err == nil && claimed == 1 {
			job = found[0]
			job.Claimed = until
		}
		return err
	})
	return job, err
}

// ForgetPurgeJobs deletes the rows of purges that were over before a time, and of retention all that are done.
func (db *DB) ForgetPurgeJobs(ctx context.Context, before time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM purge_jobs WHERE status IN ('done', 'failed') AND (ended_ms < ? OR kind = ? AND status = 'done')", before.UnixMilli(), PurgeRetention).Error
	})
}
