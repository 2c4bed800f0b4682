package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"parley.im/parley/server/matrix"
)

// Transcript is what is said in a voice message, as clients get it.
type Transcript struct {
	Text      string `json:"text"`
	Language  string `json:"language,omitempty"`  // BCP 47; empty if it is not known
	Corrected bool   `json:"corrected,omitempty"` // the sender wrote it
}

// TranscriptNews is a transcript that came, or was changed, after its event.
type TranscriptNews struct {
	Transcript
	Room matrix.RoomID
	Num  int64 // of the event
}

// TranscriptJob is a voice message that waits for its transcript.
type TranscriptJob struct {
	Num      int64 // of the event
	Attempts int   // that failed
}

// The states of a row of transcripts.
const (
	transcriptClaimed = iota
	transcriptDone
	transcriptFailed
)

// transcriptsTo is the fact that holds up to where voice messages have become jobs.
const transcriptsTo = "transcripts_to"

// Transcript finds the transcript of an event; ErrNotFound if there is none. An empty text is one: nothing was said.
func (db *DB) Transcript(ctx context.Context, num int64) (t Transcript, err error) {
	err = db.Read(ctx).Raw(`SELECT coalesce(m.correction, t.text), CASE WHEN m.correction IS NULL THEN t.language ELSE m.correction_language END, m.correction IS NOT NULL
		FROM transcribed m LEFT JOIN transcripts t ON t.hash = m.hash WHERE m.num = ? AND (m.correction IS NOT NULL OR t.state = ?)`, num, transcriptDone).
		Row().Scan(&t.Text, &t.Language, &t.Corrected)
	return t, orNotFound(err)
}

// TranscriptPending reports whether an event of the stream still waits for its transcript.
func (db *DB) TranscriptPending(ctx context.Context, e *Event) (pending bool, err error) {
	to, err := db.Fact(ctx, transcriptsTo)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if n, err := strconv.ParseInt(to, 10, 64); err != nil || e.Pos > n {
		return err == nil, err
	}
	err = db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM transcript_jobs WHERE num = ?)", e.Num).Row().Scan(&pending)
	return pending, err
}

// maxNewJobs is how many voice messages become jobs in one write.
const maxNewJobs = 500

// QueueTranscripts makes jobs of the voice messages that came since it was last called; of those from before the first
// call none. It reports whether there may be more.
func (db *DB) QueueTranscripts(ctx context.Context, now time.Time) (more bool, err error) {
	fact, err := db.InitFact(ctx, transcriptsTo, strconv.FormatInt(db.position.Load(), 10))
	if err != nil {
		return false, err
	}
	to, err := strconv.ParseInt(fact, 10, 64)
	if err != nil {
		return false, fmt.Errorf("fact %s: %w", transcriptsTo, err)
	}
	var fresh []struct{ Num, Pos int64 }
	err = db.Read(ctx).Raw("SELECT num, pos FROM voice_messages WHERE pos > ? ORDER BY pos LIMIT ?", to, maxNewJobs).Scan(&fresh).Error
	if err != nil || len(fresh) == 0 {
		return false, err
	}
	return len(fresh) == maxNewJobs, db.Write(ctx, func(tx *Tx) error {
		in := tx.inserter("transcript_jobs", "num, due_ms, attempts", " ON CONFLICT DO NOTHING")
		for _, f := range fresh {
			in.add(f.Num, now.UnixMilli(), 0)
		}
		if err := in.flush(); err != nil {
			return err
		}
		return tx.Exec("UPDATE facts SET value = ? WHERE name = ?", strconv.FormatInt(fresh[len(fresh)-1].Pos, 10), transcriptsTo).Error
	})
}

// ForgetTranscriptQueue drops all jobs: what was sent until QueueTranscripts is called again gets no transcript.
func (db *DB) ForgetTranscriptQueue(ctx context.Context) error {
	if _, err := db.Fact(ctx, transcriptsTo); errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("DELETE FROM transcript_jobs").Error; err != nil {
			return err
		}
		return tx.Exec("DELETE FROM facts WHERE name = ?", transcriptsTo).Error
	})
}

// ClaimTranscriptJob takes the job that has been due for longest; nobody else gets it before until. nil if none is due; next is
// then when one will be, zero if there is none at all.
func (db *DB) ClaimTranscriptJob(ctx context.Context, now, until time.Time) (job *TranscriptJob, next time.Time, err error) {
	for {
		var j TranscriptJob
		var due int64
		err := db.Read(ctx).Raw("SELECT num, attempts, due_ms FROM transcript_jobs ORDER BY due_ms, num LIMIT 1").Row().Scan(&j.Num, &j.Attempts, &due)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, next, nil
		}
		if err != nil {
			return nil, next, err
		}
		if due > now.UnixMilli() {
			return nil, time.UnixMilli(due), nil
		}
		var n int64
		err = db.Write(ctx, func(tx *Tx) (err error) {
			n, err = tx.affect("UPDATE transcript_jobs SET due_ms = ? WHERE num = ? AND due_ms = ?", until.UnixMilli(), j.Num, due)
			return err
		})
		if err != nil {
			return nil, next, err
		}
		if n == 1 {
			return &j, next, nil
		}
	}
}

// DeferTranscript puts a job off. hash, unless it is zero, is the blob that the caller had claimed and now gives back.
func (db *DB) DeferTranscript(ctx context.Context, job TranscriptJob, hash BlobHash, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		if !hash.IsZero() {
			if err := tx.Exec("DELETE FROM transcripts WHERE hash = ? AND state = ?", hash.String(), transcriptClaimed).Error; err != nil {
				return err
			}
		}
		return tx.Exec("UPDATE transcript_jobs SET due_ms = ?, attempts = ? WHERE num = ?", due.UnixMilli(), job.Attempts, job.Num).Error
	})
}

// DropTranscript ends a job without a transcript. With hash, unless it is zero, no message with that blob will get one.
func (db *DB) DropTranscript(ctx context.Context, job TranscriptJob, hash BlobHash) error {
	return db.Write(ctx, func(tx *Tx) error {
		if !hash.IsZero() {
			if err := tx.Exec("UPDATE transcripts SET state = ? WHERE hash = ? AND state = ?", transcriptFailed, hash.String(), transcriptClaimed).Error; err != nil {
				return err
			}
		}
		return tx.endTranscriptJob(job.Num)
	})
}

func (tx *Tx) endTranscriptJob(num int64) error {
	return tx.Exec("DELETE FROM transcript_jobs WHERE num = ?", num).Error
}

// ClaimTranscript is asked before the words of a blob are looked for. It is true for the one who shall do it, until the
// given time. Else, if it is known what is said or that it never will be, the job has ended; otherwise somebody else is
// at it, and the job comes up again when they should be done.
func (db *DB) ClaimTranscript(ctx context.Context, job TranscriptJob, hash BlobHash, now, until time.Time) (mine bool, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect(`INSERT INTO transcripts (hash, state, text, language, claimed_ms) VALUES (?, ?, '', '', ?)
			ON CONFLICT (hash) DO UPDATE SET claimed_ms = excluded.claimed_ms WHERE transcripts.state = excluded.state AND transcripts.claimed_ms <= ?`,
			hash.String(), transcriptClaimed, until.UnixMilli(), now.UnixMilli())
		if mine = n == 1; mine || err != nil {
			return err
		}
		var state int
		var claimed int64
		if err := tx.Raw("SELECT state, claimed_ms FROM transcripts WHERE hash = ?", hash.String()).Row().Scan(&state, &claimed); err != nil {
			return err
		}
		switch state {
		case transcriptDone:
			if err := tx.linkTranscript(job.Num, hash); err != nil {
				return err
			}
			return tx.endTranscriptJob(job.Num)
		case transcriptFailed:
			return tx.endTranscriptJob(job.Num)
		}
		return tx.Exec("UPDATE transcript_jobs SET due_ms = ? WHERE num = ?", claimed, job.Num).Error
	})
	return mine, err
}

// FinishTranscript stores what is said in a blob that the caller had claimed, and ends the job. Others that wait for the same
// blob are due at once.
func (db *DB) FinishTranscript(ctx context.Context, job TranscriptJob, hash BlobHash, t Transcript, now time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		var claimed int64
		err := tx.Raw("SELECT claimed_ms FROM transcripts WHERE hash = ?", hash.String()).Row().Scan(&claimed)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		err = tx.Exec(`INSERT INTO transcripts (hash, state, text, language, claimed_ms) VALUES (?, ?, ?, ?, 0)
			ON CONFLICT (hash) DO UPDATE SET state = excluded.state, text = excluded.text, language = excluded.language, claimed_ms = 0`,
			hash.String(), transcriptDone, t.Text, t.Language).Error
		if err != nil {
			return err
		}
		if err := tx.Exec("UPDATE transcript_jobs SET due_ms = ? WHERE due_ms = ?", now.UnixMilli(), claimed).Error; err != nil {
			return err
		}
		if err := tx.linkTranscript(job.Num, hash); err != nil {
			return err
		}
		return tx.endTranscriptJob(job.Num)
	})
}

// linkTranscript gives an event the transcript of a blob, unless it was redacted meanwhile.
func (tx *Tx) linkTranscript(num int64, hash BlobHash) error {
	return tx.newTranscript(num, `INSERT INTO transcribed (num, room, hash, correction, correction_language, pos)
		SELECT num, room, ?, NULL, '', ? FROM events WHERE num = ? AND redacted_by IS NULL
		ON CONFLICT (num) DO UPDATE SET hash = excluded.hash, pos = excluded.pos`, hash.String())
}

// newTranscript writes a row of transcribed with the parameters, a new position and the event's number, and tells the room.
func (tx *Tx) newTranscript(num int64, statement string, parameters ...any) error {
	pos, err := tx.Next(1)
	if err != nil {
		return err
	}
	n, err := tx.affect(statement, append(parameters, pos, num)...)
	if err != nil || n == 0 {
		return err
	}
	var room matrix.RoomID
	if err := tx.Raw("SELECT rooms.room_id FROM events JOIN rooms ON rooms.num = events.room WHERE events.num = ?", num).Row().Scan(&room); err != nil {
		return fmt.Errorf("find the room of a transcript: %w", err)
	}
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicTranscript, Pos: pos, Room: room}}})
	return tx.reindex("num = ?", num)
}

// TranscriptsBetween lists the transcripts in rooms that came or were changed at positions in (from, to], of them the latest limit,
// the latest first.
func (db *DB) TranscriptsBetween(ctx context.Context, rooms []matrix.RoomID, from, to int64, limit int) (all []TranscriptNews, err error) {
	for chunk := range slices.Chunk(rooms, maxIn) {
		found, err := scanAll(db.Read(ctx).Raw(`SELECT rooms.room_id, m.num, coalesce(m.correction, t.text, ''),
			coalesce(CASE WHEN m.correction IS NULL THEN t.language ELSE m.correction_language END, ''), m.correction IS NOT NULL
			FROM rooms JOIN transcribed m ON m.room = rooms.num LEFT JOIN transcripts t ON t.hash = m.hash AND t.state = ?
			WHERE rooms.room_id IN ? AND m.pos > ? AND m.pos <= ? ORDER BY m.pos DESC LIMIT ?`, transcriptDone, padded(chunk), from, to, limit),
			func(rows *sql.Rows) (n TranscriptNews, err error) {
				return n, rows.Scan(&n.Room, &n.Num, &n.Text, &n.Language, &n.Corrected)
			})
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// CorrectTranscript stores what the sender of an event says is said in it; nothing waits for another one any more.
func (db *DB) CorrectTranscript(ctx context.Context, num int64, text, language string) error {
	return db.Write(ctx, func(tx *Tx) error {
		err := tx.newTranscript(num, `INSERT INTO transcribed (num, room, hash, correction, correction_language, pos)
			SELECT num, room, '', ?, ?, ? FROM events WHERE num = ? AND redacted_by IS NULL
			ON CONFLICT (num) DO UPDATE SET correction = excluded.correction, correction_language = excluded.correction_language, pos = excluded.pos`, text, language)
		if err != nil {
			return err
		}
		return tx.endTranscriptJob(num)
	})
}

// forgetTranscripts deletes what was said in messages that were redacted.
func (tx *Tx) forgetTranscripts(appends []*RoomAppend) error {
	for _, a := range appends {
		for _, e := range a.Updates {
			if e.RedactedBy == "" || e.Type() != matrix.TypeMessage {
				continue
			}
			var hash string
			err := tx.Raw("DELETE FROM transcribed WHERE num = ? RETURNING hash", e.Num).Row().Scan(&hash)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err == nil {
				err = tx.Exec("DELETE FROM transcripts WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM transcribed WHERE hash = ?)", hash, hash).Error
			}
			if err != nil {
				return fmt.Errorf("delete transcript: %w", err)
			}
		}
	}
	return nil
}
