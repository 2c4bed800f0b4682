package storage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
)

// LiveKey is the key in the content of a voice message that is still being spoken.
const LiveKey = "im.parley.voice.live"

// LiveDevice is the device by which the server itself sends the edits and redactions of live messages; LiveEndTxn the transaction ID of the edit of an
// event. So each is sent once.
const LiveDevice = matrix.DeviceID("im.parley.voice.live")

// LiveEndTxn: see LiveDevice.
func LiveEndTxn(id matrix.EventID) string { return "end " + string(id) }

// LiveState is how far a live recording is.
type LiveState int

// The states of a live recording. It goes from one to a later one only.
const (
	LiveOpen      LiveState = iota // it is being spoken
	LiveEnded                      // nothing more comes; it is to be looked at and kept
	LiveKept                       // it is an ordinary file; its messages are to be told so
	LiveCancelled                  // it is to be taken back: its messages, its bytes and its media ID
)

// LiveRecording is a recording of this server that is listened to while it is made.
type LiveRecording struct {
	MediaID     string
	Uploader    matrix.UserID
	ContentType string // empty until something has come
	Size        int64  // bytes that have come
	Whole       int64  // of them, up to the end of the last whole unit
	Scan        string // of the scanner that found that end; empty at the beginning
	State       LiveState
	Due         time.Time // when it is to be looked after
}

// ErrLiveMoved says that a live recording is not any more what the caller took it for.
var ErrLiveMoved = errors.New("the live recording has changed")

// LiveRecording finds a live recording; ErrNotFound if there is none (any more).
func (db *DB) LiveRecording(ctx context.Context, mediaID string) (LiveRecording, error) {
	l := LiveRecording{MediaID: mediaID}
	var due int64
	err := db.Read(ctx).Raw("SELECT uploader, content_type, size, whole, scan, state, due_ms FROM live_recordings WHERE media_id = ?", mediaID).Row().
		Scan(&l.Uploader, &l.ContentType, &l.Size, &l.Whole, &l.Scan, &l.State, &due)
	l.Due = time.UnixMilli(due)
	return l, orNotFound(err)
}

// StartLive makes a media ID of user's, to which nothing has been uploaded, one that is recorded live; of one that is already it changes nothing. It is
// ErrNotFound for a media ID that was not created or has expired, ErrForeign for another user's, ErrMediaExists if it has content, ErrQuota if
// the user has limit live recordings that have not ended.
func (db *DB) StartLive(ctx context.Context, server matrix.ServerName, mediaID string, user matrix.UserID, limit int, now, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		row, err := takeMedia(tx.DB, server, mediaID)
		switch {
		case err != nil:
			return err
		case row.Uploader != string(user):
			return ErrForeign
		case row.Hash != "":
			return ErrMediaExists
		}
		var known, open int
		err = tx.Raw("SELECT (SELECT count(*) FROM live_recordings WHERE media_id = ?), (SELECT count(*) FROM live_recordings WHERE uploader = ? AND state <= ?)",
			mediaID, string(user), LiveEnded).Row().Scan(&known, &open)
		switch {
		case err != nil || known > 0:
			return err
		case row.ExpiresMS <= now.UnixMilli():
			return ErrNotFound
		case open >= limit:
			return ErrQuota
		}
		if err := tx.Exec("UPDATE media SET expires_ms = 0 WHERE server = ? AND media_id = ?", string(server), mediaID).Error; err != nil {
			return err
		}
		return tx.Exec("INSERT INTO live_recordings (media_id, uploader, content_type, size, whole, scan, state, due_ms) VALUES (?, ?, '', 0, 0, '', ?, ?)",
			mediaID, string(user), LiveOpen, due.UnixMilli()).Error
	})
}

// ErrForeign says that something belongs to another user.
var ErrForeign = errors.New("it belongs to another user")

// AppendLive adds what has come to an open recording and writes down where it stands then: from is its size before, to what it is after.
// It is ErrLiveMoved if it was not open, or of another size.
func (db *DB) AppendLive(ctx context.Context, from int64, to LiveRecording, content []byte) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.exec("UPDATE live_recordings SET content_type = ?, size = ?, whole = ?, scan = ?, due_ms = ? WHERE media_id = ? AND size = ? AND state = ?",
			to.ContentType, to.Size, to.Whole, to.Scan, to.Due.UnixMilli(), to.MediaID, from, int64(LiveOpen))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrLiveMoved
		}
		if len(content) == 0 {
			return nil
		}
		_, err = tx.exec("INSERT INTO live_chunks (media_id, at, bytes) VALUES (?, ?, ?)", to.MediaID, from, content)
		return err
	})
}

// EndLive ends an open recording; with cut, what came after the last whole unit is dropped. It changes nothing of one that is not open.
func (db *DB) EndLive(ctx context.Context, mediaID string, cut bool, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		set := ""
		if cut {
			set = ", size = whole"
		}
		return tx.Exec("UPDATE live_recordings SET state = ?, due_ms = ?"+set+" WHERE media_id = ? AND state = ?", LiveEnded, due.UnixMilli(), mediaID, LiveOpen).Error
	})
}

// EndSilentLive is EndLive, with cut, for a recording to which nothing was appended up to now.
func (db *DB) EndSilentLive(ctx context.Context, mediaID string, now time.Time) (ended bool, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE live_recordings SET state = ?, size = whole WHERE media_id = ? AND state = ? AND due_ms <= ?", LiveEnded, mediaID, LiveOpen, now.UnixMilli())
		ended = n > 0
		return err
	})
	return ended, err
}

// CancelLive takes back a recording that has not been kept. It is ErrLiveMoved for another one.
func (db *DB) CancelLive(ctx context.Context, mediaID string, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		n, err := tx.affect("UPDATE live_recordings SET state = ?, due_ms = ? WHERE media_id = ? AND state <= ?", LiveCancelled, due.UnixMilli(), mediaID, LiveEnded)
		if err == nil && n == 0 {
			err = ErrLiveMoved
		}
		return err
	})
}

// KeepLive makes an ordinary file of a recording that has ended, or of one that is cancelled and under a legal hold. What AddMedia says about blobs
// holds here too. It is ErrLiveMoved if the recording, or its media ID, is not any more what it was.
func (db *DB) KeepLive(ctx context.Context, server matrix.ServerName, l LiveRecording, hash BlobHash, recording *Recording, now, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		row, err := takeMedia(tx.DB, server, l.MediaID)
		if errors.Is(err, ErrNotFound) || err == nil && row.Hash != "" {
			return ErrLiveMoved
		}
		if err != nil {
			return err
		}
		state := LiveKept
		if l.State == LiveCancelled {
			state = LiveCancelled
		}
		n, err := tx.affect("UPDATE live_recordings SET state = ?, due_ms = ? WHERE media_id = ? AND state = ? AND size = ?", state, due.UnixMilli(), l.MediaID, l.State, l.Size)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrLiveMoved
		}
		if err := tx.referToBlob(hash, l.Size); err != nil {
			return err
		}
		if recording != nil {
			if err := tx.addRecording(hash, *recording); err != nil {
				return err
			}
		}
		return tx.Exec("UPDATE media SET hash = ?, size = ?, content_type = ?, created_ms = ?, used_ms = ?, expires_ms = 0 WHERE server = ? AND media_id = ?",
			hash.String(), l.Size, l.ContentType, now.UnixMilli(), now.UnixMilli(), string(server), l.MediaID).Error
	})
}

// LiveChunk reads what has come of a recording from a place on: at most one chunk. ErrNotFound if nothing is there (any more).
func (db *DB) LiveChunk(ctx context.Context, mediaID string, from int64) ([]byte, error) {
	var at int64
	var content []byte
	err := db.Read(ctx).Raw("SELECT at, bytes FROM live_chunks WHERE media_id = ? AND at <= ? ORDER BY at DESC LIMIT 1", mediaID, from).Row().Scan(&at, &content)
	if err != nil {
		return nil, orNotFound(err)
	}
	if from >= at+int64(len(content)) {
		return nil, ErrNotFound
	}
	return content[from-at:], nil
}

// LiveBytes is how many bytes a user has in live recordings that are no files yet.
func (db *DB) LiveBytes(ctx context.Context, user matrix.UserID) (n int64, err error) {
	err = db.Read(ctx).Raw("SELECT coalesce(sum(size), 0) FROM live_recordings WHERE uploader = ? AND state <= ?", string(user), LiveEnded).Row().Scan(&n)
	return n, err
}

// LiveDue lists live recordings that are to be looked after, those first that have been for longest, and tells when the next one will be; zero
// if there is none.
func (db *DB) LiveDue(ctx context.Context, now time.Time, limit int) (due []string, next time.Time, err error) {
	rows, err := scanAll(db.Read(ctx).Raw("SELECT media_id, due_ms FROM live_recordings ORDER BY due_ms LIMIT ?", limit+1), func(rows *sql.Rows) (l LiveRecording, err error) {
		var ms int64
		err = rows.Scan(&l.MediaID, &ms)
		l.Due = time.UnixMilli(ms)
		return l, err
	})
	for _, l := range rows {
		if l.Due.After(now) || len(due) == limit {
			return due, l.Due, err
		}
		due = append(due, l.MediaID)
	}
	return due, next, err
}

// PutOffLive says when a recording is to be looked after again.
func (db *DB) PutOffLive(ctx context.Context, mediaID string, due time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("UPDATE live_recordings SET due_ms = ? WHERE media_id = ?", due.UnixMilli(), mediaID).Error
	})
}

// LiveEvents lists the messages with a live recording that have not been edited or redacted yet.
func (db *DB) LiveEvents(ctx context.Context, mediaID string) ([]*Event, error) {
	var nums []int64
	if err := db.Read(ctx).Raw("SELECT num FROM live_events WHERE media_id = ? ORDER BY num LIMIT 100", mediaID).Scan(&nums).Error; err != nil {
		return nil, err
	}
	return db.Events(ctx, nums)
}

// LiveEventDone notes that the message has been edited or redacted. Its transcript, if it waits for one, is due.
func (db *DB) LiveEventDone(ctx context.Context, num int64, now time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("UPDATE transcript_jobs SET due_ms = ? WHERE num = ? AND due_ms > ? AND attempts = 0", now.UnixMilli(), num, now.UnixMilli()).Error; err != nil {
			return err
		}
		return tx.Exec("DELETE FROM live_events WHERE num = ?", num).Error
	})
}

// HasEdit reports whether the sender of an event has edited it.
func (db *DB) HasEdit(ctx context.Context, e *Event) (has bool, err error) {
	err = db.Read(ctx).Raw("SELECT EXISTS (SELECT 1 FROM relations WHERE room = ? AND parent = ? AND rel_type = 'm.replace' AND sender = ?)",
		e.RoomNum, string(e.ID()), string(e.Sender())).Row().Scan(&has)
	return has, err
}

// liveChunksAtOnce is how many chunks are deleted in one write.
const liveChunksAtOnce = 500

// ForgetLive ends what is known of a recording that has been kept or cancelled and all of whose messages are done. Of a cancelled one that was not kept the media
// ID goes as well, unless a legal hold keeps it. It reports whether there is more to do: chunks are deleted some at a time.
func (db *DB) ForgetLive(ctx context.Context, server matrix.ServerName, mediaID string, now time.Time) (more bool, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		chunks, err := tx.affect("DELETE FROM live_chunks WHERE media_id = ? AND at IN (SELECT at FROM live_chunks WHERE media_id = ? ORDER BY at LIMIT ?)",
			mediaID, mediaID, liveChunksAtOnce)
		if more = chunks > 0; more || err != nil {
			return err
		}
		// Messages that were lost with their room or its history are nobody's any more.
		if err := tx.Exec("DELETE FROM live_events WHERE media_id = ? AND NOT EXISTS (SELECT 1 FROM events WHERE num = live_events.num)", mediaID).Error; err != nil {
			return err
		}
		if err := tx.Exec(`DELETE FROM media WHERE server = ? AND media_id = ? AND hash = ''
			AND EXISTS (SELECT 1 FROM live_recordings WHERE media_id = ? AND state = ?)`, string(server), mediaID, mediaID, LiveCancelled).Error; err != nil {
			return err
		}
		return tx.Exec("DELETE FROM live_recordings WHERE media_id = ? AND state >= ? AND NOT EXISTS (SELECT 1 FROM live_events WHERE media_id = ?)",
			mediaID, LiveKept, mediaID).Error
	})
	return more, err
}

// HeldMedia reports whether a legal hold keeps a file.
func (db *DB) HeldMedia(ctx context.Context, server matrix.ServerName, mediaID string) (bool, error) {
	row, err := takeMedia(db.Read(ctx), server, mediaID)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return heldMedia(db.Read(ctx), row)
}

// cancelLive cancels a live recording whose media ID was deleted.
func (tx *Tx) cancelLive(mediaID string) error {
	return tx.Exec("UPDATE live_recordings SET state = ?, due_ms = 0 WHERE media_id = ? AND state <= ?", LiveCancelled, mediaID, LiveEnded).Error
}

var (
	liveMark   = []byte(`"` + LiveKey + `"`)
	editMarker = []byte(`"rel_type":"m.replace"`)
)

// writeLive notes the new messages with live recordings, and cancels the recordings whose messages were redacted.
func (tx *Tx) writeLive(appends []*RoomAppend) error {
	for _, a := range appends {
		for _, e := range a.Events {
			if e.Hidden() || e.Type() != matrix.TypeMessage || !bytes.Contains(e.Content(), liveMark) {
				continue
			}
			if err := tx.addLiveEvent(e); err != nil {
				return fmt.Errorf("note a live message: %w", err)
			}
		}
		for _, e := range a.Updates {
			if e.RedactedBy == "" || e.Type() != matrix.TypeMessage {
				continue
			}
			if err := tx.Exec("UPDATE live_recordings SET state = ?, due_ms = 0 WHERE state <= ? AND media_id IN (SELECT media_id FROM live_events WHERE num = ?)",
				LiveCancelled, LiveEnded, e.Num).Error; err != nil {
				return fmt.Errorf("cancel a live recording: %w", err)
			}
			if err := tx.cancelLiveEdit(a.Room.Num, e); err != nil {
				return fmt.Errorf("redact the edit of a live message: %w", err)
			}
		}
	}
	return nil
}

// cancelLiveEdit has the edit redacted by which a live message became an ordinary one: it says all that the message said.
func (tx *Tx) cancelLiveEdit(room int64, e *Event) error {
	var num int64
	err := tx.Raw("SELECT num FROM events WHERE room = ? AND sender = ? AND txn = ? AND redacted_by IS NULL",
		room, string(e.Sender()), txnKey(LiveDevice, e.Type(), LiveEndTxn(e.ID()))).Row().Scan(&num)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	name := fmt.Sprintf("edit %d", num) // which is no media ID
	if err := tx.Exec("INSERT INTO live_recordings (media_id, uploader, content_type, size, whole, scan, state, due_ms) VALUES (?, ?, '', 0, 0, '', ?, 0) ON CONFLICT DO NOTHING",
		name, string(e.Sender()), LiveCancelled).Error; err != nil {
		return err
	}
	return tx.Exec("INSERT INTO live_events (num, media_id) VALUES (?, ?) ON CONFLICT DO NOTHING", num, name).Error
}

// addLiveEvent notes a message with a live recording of its sender's. If that has ended or been taken back since the message was looked at, it is
// looked after once more.
func (tx *Tx) addLiveEvent(e *Event) error {
	mediaID, ok := liveMediaOf(e)
	if !ok {
		return nil
	}
	n, err := tx.affect("UPDATE live_recordings SET due_ms = CASE WHEN state = ? THEN due_ms ELSE 0 END WHERE media_id = ? AND uploader = ?", LiveOpen, mediaID, string(e.Sender()))
	if err != nil {
		return err
	}
	if n == 0 {
		row, err := takeMedia(tx.DB, e.Sender().Server(), mediaID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		state := LiveCancelled
		if err == nil {
			if row.Uploader != string(e.Sender()) { // of another server, or another's
				return nil
			}
			if row.Hash != "" {
				state = LiveKept
			}
		} else if e.TxnID == "" { // not of one of our users, or none of our clients
			return nil
		}
		if err := tx.Exec("INSERT INTO live_recordings (media_id, uploader, content_type, size, whole, scan, state, due_ms) VALUES (?, ?, '', 0, 0, '', ?, 0) ON CONFLICT DO NOTHING",
			mediaID, string(e.Sender()), state).Error; err != nil {
			return err
		}
	}
	return tx.Exec("INSERT INTO live_events (num, media_id) VALUES (?, ?) ON CONFLICT DO NOTHING", e.Num, mediaID).Error
}

// liveMediaOf is the media ID in a live message, if it is of the sender's server.
func liveMediaOf(e *Event) (mediaID string, ok bool) {
	var content struct {
		URL  string          `json:"url"`
		Live json.RawMessage `json:"im.parley.voice.live"`
	}
	if json.Unmarshal(e.Content(), &content) != nil || content.Live == nil {
		return "", false
	}
	mediaID, ok = strings.CutPrefix(content.URL, "mxc://"+string(e.Sender().Server())+"/")
	return mediaID, ok && !strings.Contains(mediaID, "/")
}

// isEdit tells whether a content is that of an edit.
func isEdit(content []byte) bool {
	if !bytes.Contains(content, editMarker) {
		return false
	}
	var c struct {
		RelatesTo struct {
			RelType string `json:"rel_type"`
		} `json:"m.relates_to"`
	}
	return json.Unmarshal(content, &c) == nil && c.RelatesTo.RelType == "m.replace"
}
