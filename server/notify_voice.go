package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/voice"
	"parley.im/parley/storage"
)

// maxPushedWords is how much of a transcript goes into a notification, in bytes: gateways take 4 kB of all.
const maxPushedWords = 1000

// held is a voice message of which nobody is notified until its transcript is there, or it has taken too long.
type held struct {
	room  matrix.RoomID
	event *storage.Event
	until time.Time
}

// hold keeps an event back if it is worth it.
func (n *notifier) hold(ctx context.Context, id matrix.RoomID, e *storage.Event) (bool, error) {
	wait := n.h.cfg.Voice.Transcripts.PushWait
	if wait <= 0 {
		return false, nil
	}
	expected, err := n.h.voice.Expected(ctx, e)
	if err != nil || !expected {
		return false, err
	}
	n.held = append(n.held, held{id, e, time.Now().Add(wait)})
	return true, nil
}

// release notifies of the voice messages that have waited long enough.
func (n *notifier) release(ctx context.Context) error {
	waiting := n.held
	n.held = nil
	var errs []error
	for _, h := range waiting {
		if time.Now().Before(h.until) {
			if expected, err := n.h.voice.Expected(ctx, h.event); err == nil && expected {
				n.held = append(n.held, h)
				continue
			}
		}
		errs = append(errs, n.tellHeld(ctx, h))
	}
	return errors.Join(errs...)
}

func (n *notifier) tellHeld(ctx context.Context, h held) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	e, err := n.h.db.Event(ctx, h.event.Num) // it may have been taken back meanwhile
	if errors.Is(err, storage.ErrNotFound) || err == nil && e.RedactedBy != "" {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := n.h.rooms.Room(ctx, h.room)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return nil
	}
	if err != nil {
		return err
	}
	snapshot := r.Snapshot()
	people, err := n.reachable(ctx, snapshot)
	if err != nil {
		return err
	}
	return n.tellEvent(ctx, h.room, snapshot, people, e)
}

// nextRelease is when the first of the held messages has waited long enough; nil if there is none.
func (n *notifier) nextRelease() <-chan time.Time {
	if len(n.held) == 0 {
		return nil
	}
	return time.After(time.Until(n.held[0].until))
}

// toldUpTo is the position up to which everything has been told, when all but the held messages has been up to pos.
func (n *notifier) toldUpTo(pos int64) int64 {
	for _, h := range n.held {
		pos = min(pos, h.event.Pos-1)
	}
	return pos
}

// words is what is said in an event, as a notification has it; nil if that is not known.
func (n *notifier) words(ctx context.Context, e *storage.Event) (json.RawMessage, error) {
	if n.h.cfg.Voice.Transcripts.PushWait <= 0 || !n.h.voice.Transcribes() || e.Type() != matrix.TypeMessage {
		return nil, nil
	}
	t, err := n.h.db.Transcript(ctx, e.Num)
	if errors.Is(err, storage.ErrNotFound) || err == nil && t.Text == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.Text = shortened(t.Text, maxPushedWords)
	return json.Marshal(map[string]any{"transcript": t})
}

// withWords is the content of an event with what is said in it, for a user who wants that in notifications.
func (n *notifier) withWords(ctx context.Context, user matrix.UserID, content, words json.RawMessage) (json.RawMessage, error) {
	if words == nil {
		return content, nil
	}
	wanted, err := n.h.voice.PushWanted(ctx, user)
	if err != nil || !wanted {
		return content, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(content, &m); err != nil {
		return content, nil
	}
	m[voice.UnsignedKey] = words
	return json.Marshal(m)
}

// shortened cuts a text at a word, or else between letters, and says so with an ellipsis.
func shortened(text string, limit int) string {
	const ellipsis = "…"
	if len(text) <= limit {
		return text
	}
	cut := limit - len(ellipsis)
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	if space := strings.LastIndexAny(text[:cut], " \n"); space > max(cut-40, 0) { // not in languages that write none
		cut = space
	}
	return strings.TrimRight(text[:cut], " \n") + ellipsis
}
