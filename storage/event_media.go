package storage

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// mediaName is a file as mxc:// URIs name it.
type mediaName struct{ server, id string }

// maxEventMedia is how many files of one event are noted.
const maxEventMedia = 64

// mediaIn finds the mxc:// URIs in a content. Those in encrypted events are not seen.
func mediaIn(content []byte) []mediaName {
	var found []mediaName
	for len(found) < maxEventMedia {
		i := bytes.Index(content, []byte("mxc://"))
		if i < 0 {
			break
		}
		content = content[i+len("mxc://"):]
		end := 0
		for end < len(content) && (isAlphanumeric(content[end]) || strings.IndexByte("./:-_[]", content[end]) >= 0) {
			end++
		}
		server, id, ok := strings.Cut(string(content[:end]), "/")
		if name := (mediaName{server, id}); ok && server != "" && id != "" && !strings.Contains(id, "/") {
			known := false
			for _, other := range found {
				known = known || other == name
			}
			if !known {
				found = append(found, name)
			}
		}
		content = content[end:]
	}
	return found
}

func isAlphanumeric(b byte) bool {
	return '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

func (tx *Tx) eventMediaInserter() *inserter {
	return tx.inserter("event_media", "num, server, media_id, room_id, sender", " ON CONFLICT DO NOTHING")
}

func addEventMedia(in *inserter, e *Event) {
	if e.Type() == memberType {
		return
	}
	for _, m := range mediaIn(e.Content()) {
		in.add(e.Num, m.server, m.id, string(e.RoomID()), string(e.Sender()))
	}
}

// writeEventMedia notes which files new events name.
func (tx *Tx) writeEventMedia(appends []*RoomAppend) error {
	in := tx.eventMediaInserter()
	for _, a := range appends {
		for _, e := range a.Events {
			addEventMedia(in, e)
		}
	}
	return in.flush()
}

// The fact that says up to which event number files were noted of the events that are older than the table; "done" after the last.
const eventMediaTo = "event_media_to"

// IndexEventMedia notes the files of events that were stored before that was done as they are stored, some at a time. It reports whether
// there may be more. No file is deleted with an event before it has come to the end.
func (db *DB) IndexEventMedia(ctx context.Context, limit int) (more bool, err error) {
	fact, err := db.Fact(ctx, eventMediaTo)
	if fact == "done" || err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	after, _ := strconv.ParseInt(fact, 10, 64) // "" is 0
	var nums []int64
	if err := db.Read(ctx).Raw("SELECT num FROM events WHERE num > ? ORDER BY num LIMIT ?", after, limit).Scan(&nums).Error; err != nil {
		return false, err
	}
	if len(nums) == 0 {
		return false, db.SetFact(ctx, eventMediaTo, "done")
	}
	events, err := db.EventsHere(ctx, nums)
	if err != nil {
		return false, err
	}
	err = db.Write(ctx, func(tx *Tx) error {
		in := tx.eventMediaInserter()
		for _, e := range events {
			addEventMedia(in, e)
		}
		return in.flush()
	})
	if err != nil {
		return false, err
	}
	return true, db.SetFact(ctx, eventMediaTo, strconv.FormatInt(nums[len(nums)-1], 10))
}

// forgetEventMedia deletes what is noted of events but those in kept, and the files that nothing else names. It returns how many files that were.
func (tx *Tx) forgetEventMedia(nums []int64, kept map[int64]bool, now time.Time) (gone int, err error) {
	var rows []struct {
		Num                     int64
		Server, MediaID, Sender string
	}
	if err := tx.Raw("SELECT num, server, media_id, sender FROM event_media WHERE num IN ?", nums).Scan(&rows).Error; err != nil || len(rows) == 0 {
		return 0, err
	}
	senders := map[mediaName][]string{}
	for _, r := range rows {
		if kept[r.Num] {
			continue
		}
		if err := tx.Exec("DELETE FROM event_media WHERE num = ? AND server = ? AND media_id = ?", r.Num, r.Server, r.MediaID).Error; err != nil {
			return gone, err
		}
		name := mediaName{r.Server, r.MediaID}
		senders[name] = append(senders[name], r.Sender)
	}
	for name, who := range senders {
		deleted, err := tx.deleteUnusedMedia(name, who, now)
		if err != nil {
			return gone, err
		}
		if deleted {
			gone++
		}
	}
	return gone, nil
}

// deleteUnusedMedia deletes a file of which some events, by senders, have gone, if nothing else names it. A file of this server goes only if who
// uploaded it has sent it into a room that was purged: nobody can have another's file deleted by naming it.
func (tx *Tx) deleteUnusedMedia(name mediaName, senders []string, now time.Time) (deleted bool, err error) {
	row, err := takeMedia(tx.DB, matrix.ServerName(name.server), name.id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, sender := range senders {
		if row.Uploader != "" && sender == row.Uploader {
			if err := tx.Exec("UPDATE media SET published = 1 WHERE server = ? AND media_id = ?", name.server, name.id).Error; err != nil {
				return false, err
			}
			break
		}
	}
	keep := false
	uri := "mxc://" + name.server + "/" + name.id
	err = tx.Raw(`SELECT EXISTS (SELECT 1 FROM event_media WHERE server = m.server AND media_id = m.media_id)
		OR m.uploader <> '' AND (m.published = 0
			OR EXISTS (SELECT 1 FROM holds WHERE kind = 'user' AND target = m.uploader)
			OR EXISTS (SELECT 1 FROM profiles WHERE user_id = m.uploader AND (avatar_url = ? OR `+tx.contains("fields")+`))
			OR EXISTS (SELECT 1 FROM account_data WHERE user_id = m.uploader AND `+tx.contains("content")+`))
		OR NOT EXISTS (SELECT 1 FROM facts WHERE name = ? AND value = 'done')
		FROM media m WHERE m.server = ? AND m.media_id = ?`, []byte(uri), uri, uri, eventMediaTo, name.server, name.id).Row().Scan(&keep)
	if err != nil || keep {
		return false, err
	}
	return true, tx.deleteMedia([]mediaRow{*row}, now)
}

// contains is a condition that a column of bytes contains a text.
func (tx *Tx) contains(column string) string {
	if tx.Dialect() == PostgreSQL {
		return "position(convert_to(?, 'UTF8') in " + column + ") > 0"
	}
	return "instr(" + column + ", CAST(? AS BLOB)) > 0"
}

// notHeld is a condition on rows of media: no legal hold keeps the file.
const notHeld = ` AND NOT EXISTS (SELECT 1 FROM holds WHERE kind = 'user' AND target = media.uploader)
	AND NOT EXISTS (SELECT 1 FROM event_media u JOIN holds h ON h.kind = 'room' AND h.target = u.room_id OR h.kind = 'user' AND h.target = u.sender
		WHERE u.server = media.server AND u.media_id = media.media_id)`

// heldMedia reports whether a legal hold keeps a file.
func heldMedia(tx *gorm.DB, row *mediaRow) (bool, error) {
	var n int
	err := tx.Raw("SELECT count(*) FROM media WHERE server = ? AND media_id = ?"+notHeld, row.Server, row.MediaID).Row().Scan(&n)
	return n == 0, err
}
