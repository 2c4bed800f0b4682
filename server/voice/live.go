package voice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// A voice message can be listened to while it is spoken. Its event is sent with the key [storage.LiveKey] in the content and a media ID to
// which nothing has been uploaded; the recording is appended to piece by piece; at the end it becomes a file like others and the event gets an
// edit that is an ordinary voice message. What is still to be done, after the end as after a cancellation, is in rows, which tend looks after:
// whoever ends a recording calls it at once, and runLive sees to what was left by a process that died, and to recordings whose client has gone.

const (
	// liveRetry is when something that went wrong is tried again.
	liveRetry = 30 * time.Second
	// liveBatch is how many recordings are looked after at a time.
	liveBatch = 50
	// liveAtOnce is how many of them at the same time: of one that has ended the waveform is waited for.
	liveAtOnce = 4
	// liveWaveform bounds the wait for the waveform of a recording that has ended; without one the edit has none.
	liveWaveform = time.Minute
	// freePieces is how many pieces of one request are stored as they come; those after them are gathered for pieceTime each.
	freePieces = 16
	pieceTime  = 20 * time.Millisecond
	// liveTranscript is how often it is looked whether a live message has ended, so that it can be written down.
	liveTranscript = 3 * time.Second
)

// tender is the part of a Service that looks after live recordings.
type tender struct {
	stopLive func()
	liveWake chan struct{}
	tending  singleflight.Group // by media ID
	started  time.Time          // nobody is called silent who could not be heard before
}

func (t *tender) init(s *Service) {
	t.stopLive, t.liveWake, t.started = func() {}, make(chan struct{}, 1), s.Now()
	if s.live() {
		t.stopLive = s.DB.Listen(t.hear)
	}
	if s.Metrics == nil {
		return
	}
	s.Metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "parley_live_recordings", Help: "Voice messages being spoken through this process."},
			func() float64 { open, _ := s.Media.LiveCounts(); return float64(open) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "parley_live_listeners", Help: "Answers by which this process passes on voice messages of this server that are being spoken."},
			func() float64 { _, readers := s.Media.LiveCounts(); return float64(readers) }))
}

// live reports whether there can be live recordings.
func (s *Service) live() bool { return s.Rooms != nil && s.DB != nil && s.Media != nil }

// LiveEnabled reports whether users of this server may send voice messages that are heard while they are spoken.
func (s *Service) LiveEnabled() bool { return s.live() && s.Config.Live.Enabled }

func (t *tender) hear(c storage.Commit) {
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			t.rouseLive()
		}
		for _, e := range c.Changes[i].Events {
			if e.Event.Type() == matrix.TypeRedaction || e.Event.Type() == typeMessage && bytes.Contains(e.Event.Content(), []byte(storage.LiveKey)) {
				t.rouseLive()
			}
		}
	}
}

func (t *tender) rouseLive() {
	select {
	case t.liveWake <- struct{}{}:
	default:
	}
}

// prepareLive looks at a message with a live recording, as Prepare does, and makes the recording ready.
func (s *Service) prepareLive(ctx context.Context, id matrix.RoomID, sender matrix.UserID, m map[string]json.RawMessage) (json.RawMessage, error) {
	if !s.LiveEnabled() {
		return nil, matrix.Forbidden("this server has no live voice messages")
	}
	var address string
	if !isVoice(m) || m["file"] != nil || json.Unmarshal(m["url"], &address) != nil {
		return nil, matrix.InvalidParam("a live message is a voice message with a url")
	}
	if string(object(m["m.relates_to"])["rel_type"]) == `"m.replace"` {
		return nil, matrix.InvalidParam("an edit is no live message")
	}
	uri, err := media.ParseURI(address)
	if err != nil {
		return nil, err
	}
	limit, in, err := s.limit(ctx, id, sender)
	if err != nil || !in {
		return encode(m), err // the sending says what is wrong
	}
	r, err := s.Rooms.Room(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("find room: %w", err)
	}
	if r.Snapshot().Encrypted {
		return nil, matrix.Forbidden("there are no live messages in an encrypted room: the server would hear them")
	}
	if err := s.Media.StartLive(ctx, sender, uri); err != nil {
		return nil, err
	}
	row, open, err := s.Media.LiveOpen(ctx, uri)
	if err != nil {
		return nil, err
	}
	if !open || row.State != storage.LiveOpen {
		return nil, matrix.CannotOverwriteMedia("the recording has ended already")
	}
	others, err := s.DB.LiveEvents(ctx, uri.MediaID)
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, matrix.InvalidParam("this recording is in another message already")
	}
	var scanner audio.Scanner
	if row.Scan != "" && json.Unmarshal([]byte(row.Scan), &scanner) == nil {
		if err := limit.check(audio.Duration(scanner.Samples)); err != nil {
			return nil, err
		}
	}
	// Nobody knows yet how long it will be, or how loud.
	for _, part := range []string{"info", "org.matrix.msc1767.audio", "org.matrix.msc1767.file"} {
		if m[part] == nil {
			continue
		}
		o := object(m[part])
		for _, claim := range []string{"duration", "size", "waveform"} {
			delete(o, claim)
		}
		m[part] = encode(o)
	}
	return encode(m), nil
}

// Piece is a part of a live recording on its way in.
type Piece struct {
	Offset      int64
	ContentType string // as the client says
	Body        io.Reader
	End         bool // nothing comes after it
}

// LiveAnswer tells how far a live recording is.
type LiveAnswer struct {
	Size     int64  `json:"size"`
	Duration *int64 `json:"duration,omitempty"` // milliseconds; once it has ended
}

// AppendLive adds to a live recording of user's as it comes, and ends it if that is said. Errors are those of media.AppendLive and media.EndLive. What has come
// before an error is kept.
func (s *Service) AppendLive(ctx context.Context, user matrix.UserID, uri media.URI, p Piece) (LiveAnswer, error) {
	var a LiveAnswer
	if !s.LiveEnabled() {
		return a, matrix.Forbidden("this server has no live voice messages")
	}
	buf := make([]byte, media.MaxLiveAppend)
	for pieces := 0; ; pieces++ {
		n, err := p.Body.Read(buf)
		if n > 0 || err == io.EOF && pieces == 0 && !p.End {
			limit, limitErr := s.liveLimit(ctx, user, uri)
			if limitErr != nil {
				return a, limitErr
			}
			size, appendErr := s.Media.AppendLive(ctx, user, uri, media.LiveAppend{Offset: p.Offset, Content: buf[:n], ContentType: p.ContentType, Longest: limit})
			if matrix.ErrorCode(appendErr) == "M_TOO_LARGE" {
				s.endFull(ctx, uri)
			}
			if appendErr != nil {
				return a, appendErr
			}
			a.Size = size
			p.Offset += int64(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			known := matrix.BadRequest("the body broke off; the recording has what came before")
			errors.As(err, &known)
			return a, known.With("size", a.Size)
		}
		if pieces > freePieces {
			select {
			case <-time.After(pieceTime):
			case <-ctx.Done():
				return a, ctx.Err()
			}
		}
	}
	if !p.End {
		return a, nil
	}
	m, recording, err := s.Media.EndLive(ctx, user, uri, s.Config.RequireOpus)
	s.rouseLive()
	if err != nil {
		if matrix.ErrorCode(err) == "M_INVALID_PARAM" { // it was cancelled
			err = errors.Join(err, s.tend(ctx, uri.MediaID))
		}
		return a, err
	}
	duration := recording.DurationMS()
	return LiveAnswer{Size: m.Size, Duration: &duration}, s.endSoon(ctx, uri.MediaID)
}

// endSoon makes a recording that has just ended due, so that the worker, of whichever process, tells its messages.
func (s *Service) endSoon(ctx context.Context, mediaID string) error {
	err := s.DB.PutOffLive(ctx, mediaID, s.Now())
	s.rouseLive()
	return err
}

// endFull keeps a recording that was ended because it had become too long. What goes wrong is tried again by the worker.
func (s *Service) endFull(ctx context.Context, uri media.URI) {
	err := s.Media.FinishLive(ctx, uri.MediaID, s.Config.RequireOpus)
	if err == nil {
		err = s.endSoon(ctx, uri.MediaID)
	}
	if err != nil {
		s.Log.Warn("live voice message not ended yet", "err", err)
	}
}

// liveLimit is how long a recording may become: the server's limit, or that of the room that it is sent to.
func (s *Service) liveLimit(ctx context.Context, user matrix.UserID, uri media.URI) (time.Duration, error) {
	longest := s.Config.MaxDuration
	events, err := s.DB.LiveEvents(ctx, uri.MediaID)
	if err != nil {
		return 0, err
	}
	for _, e := range events {
		l, _, err := s.limit(ctx, e.RoomID(), user)
		if err != nil {
			return 0, err
		}
		if l.longest > 0 && (longest <= 0 || l.longest < longest) {
			longest = l.longest
		}
	}
	return longest, nil
}

// CancelLive takes back a live recording of user's, and the message with it. Errors are those of media.CancelLive.
func (s *Service) CancelLive(ctx context.Context, user matrix.UserID, uri media.URI) error {
	if err := s.Media.CancelLive(ctx, user, uri); err != nil {
		return err
	}
	return s.tend(ctx, uri.MediaID)
}

// runLive looks after live recordings until ctx ends.
func (s *Service) runLive(ctx context.Context) {
	for ctx.Err() == nil {
		sleep := longestSleep
		due, next, err := s.DB.LiveDue(ctx, s.Now(), liveBatch)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("look for live voice messages", "err", err)
			sleep = firstRetry
		}
		var group errgroup.Group
		group.SetLimit(liveAtOnce)
		for _, mediaID := range due {
			group.Go(func() error { s.tendDue(ctx, mediaID); return nil })
		}
		_ = group.Wait()
		if len(due) == liveBatch {
			continue
		}
		if !next.IsZero() {
			sleep = min(max(next.Sub(s.Now()), pieceTime), longestSleep)
		}
		timer := time.NewTimer(sleep)
		select {
		case <-s.liveWake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// tendDue is tend for the worker, which tries again what goes wrong.
func (s *Service) tendDue(ctx context.Context, mediaID string) {
	err := s.tend(ctx, mediaID)
	if err == nil {
		return
	}
	s.Log.Error("look after a live voice message", "media", mediaID, "err", err)
	if err := s.DB.PutOffLive(ctx, mediaID, s.Now().Add(liveRetry)); err != nil && ctx.Err() == nil {
		s.Log.Error("put off a live voice message", "err", err)
	}
}

// tend does what is to be done for a live recording: it ends one that has been silent, keeps one that has ended, edits the messages with one that has been
// kept and redacts those with one that was cancelled. Each step is in the rows before the next begins, so it can be called again at any time.
func (s *Service) tend(ctx context.Context, mediaID string) error {
	_, err, _ := s.tending.Do(mediaID, func() (any, error) { return nil, s.tendAlone(context.WithoutCancel(ctx), mediaID) })
	return err
}

func (s *Service) tendAlone(ctx context.Context, mediaID string) error {
	row, err := s.DB.LiveRecording(ctx, mediaID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.State == storage.LiveOpen {
		if heard := s.started.Add(s.Config.Live.Idle); s.Now().Before(heard) && row.Due.Before(heard) {
			return s.DB.PutOffLive(ctx, mediaID, heard)
		}
		ended, err := s.DB.EndSilentLive(ctx, mediaID, s.Now())
		if err != nil || !ended {
			return err
		}
		s.Log.Info("live voice message ended: nothing came any more", "media", mediaID)
	}
	if row.State <= storage.LiveEnded {
		if err := s.Media.FinishLive(ctx, mediaID, s.Config.RequireOpus); err != nil && matrix.ErrorCode(err) != "M_INVALID_PARAM" {
			return err
		}
		if row, err = s.DB.LiveRecording(ctx, mediaID); err != nil {
			return unlessNotFound(err)
		}
	}
	settle := s.editLive
	if row.State == storage.LiveCancelled {
		if err := s.Media.KeepHeld(ctx, row); err != nil {
			return err
		}
		settle = s.redactLive
	}
	for {
		events, err := s.DB.LiveEvents(ctx, mediaID)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return s.Media.ForgetLive(ctx, mediaID)
		}
		for _, e := range events {
			if e.RedactedBy == "" && !e.Hidden() {
				if err := settle(ctx, e, mediaID); err != nil && matrix.ErrorCode(err) != "M_FORBIDDEN" { // the sender may have left the room
					return err
				}
			}
			if err := s.DB.LiveEventDone(ctx, e.Num, s.Now()); err != nil {
				return err
			}
		}
	}
}

func unlessNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

// redactLive takes a message back that was never finished. The redaction says so, because nothing of the message is left that could tell clients
// to show no trace of it.
func (s *Service) redactLive(ctx context.Context, e *storage.Event, _ string) error {
	_, err := s.Rooms.Redact(ctx, room.RedactRequest{
		Room: e.RoomID(), Sender: e.Sender(), Event: e.ID(), Device: storage.LiveDevice, TxnID: "cancel " + string(e.ID()),
		Content: encode(map[string]any{storage.LiveKey: struct{}{}}),
	})
	return err
}

// editLive makes an ordinary voice message of one that was heard live, for all clients that know edits.
func (s *Service) editLive(ctx context.Context, e *storage.Event, mediaID string) error {
	file, recording, err := s.Media.Recording(ctx, media.URI{Server: s.Media.Server, MediaID: mediaID})
	if matrix.ErrorCode(err) == "M_NOT_FOUND" { // it was deleted meanwhile
		return s.redactLive(ctx, e, mediaID)
	}
	if err != nil {
		return err
	}
	if s.Config.Waveforms {
		wait, cancel := context.WithTimeout(ctx, liveWaveform)
		if _, err := s.Media.Waveform(wait, file.Hash); err != nil {
			s.Log.Warn("live voice message without waveform", "err", err)
		}
		cancel()
	}
	content := object(e.Content())
	for _, key := range []string{storage.LiveKey, "m.relates_to"} {
		delete(content, key)
	}
	whole, err := s.correct(ctx, content, file, recording)
	if err != nil {
		return err
	}
	var body string
	_ = json.Unmarshal(content["body"], &body)
	// What stands beside m.new_content is for clients that know no edits. It is not called a voice message, of which there would be two then.
	edit := map[string]json.RawMessage{
		"msgtype": content["msgtype"], "body": encode("* " + body), "url": content["url"], "info": content["info"], "m.mentions": encode(struct{}{}),
		"m.new_content": whole, "m.relates_to": encode(map[string]string{"rel_type": "m.replace", "event_id": string(e.ID())}),
	}
	id, err := s.Rooms.Send(ctx, room.SendRequest{Room: e.RoomID(), Sender: e.Sender(), Type: typeMessage, Content: encode(edit), Device: storage.LiveDevice, TxnID: storage.LiveEndTxn(e.ID())})
	if err != nil {
		return err
	}
	if now, err := s.DB.Event(ctx, e.Num); err != nil || now.RedactedBy == "" {
		return unlessNotFound(err)
	}
	// It was redacted while this was on its way.
	_, err = s.Rooms.Redact(ctx, room.RedactRequest{Room: e.RoomID(), Sender: e.Sender(), Event: id, Device: storage.LiveDevice, TxnID: "cancel " + string(id)})
	return err
}

// stillSpoken tells whether a live message is not to be written down yet.
func (s *Service) stillSpoken(ctx context.Context, num int64, uri media.URI) (bool, error) {
	e, err := s.DB.Event(ctx, num)
	if err != nil {
		return false, unlessNotFound(err)
	}
	content, ok := voiceInClear(e)
	if !ok || content[storage.LiveKey] == nil {
		return false, nil
	}
	m, err := s.DB.Media(ctx, uri.Server, uri.MediaID)
	if err == nil && !m.Hash.IsZero() {
		return false, nil
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return false, err
	}
	if uri.Server == s.Media.Server {
		_, open, err := s.Media.LiveOpen(ctx, uri)
		return open, err
	}
	// Of another server's, its edit says that it has ended; and at some time it must have.
	if s.Now().Sub(time.UnixMilli(e.OriginServerTS())) > s.Config.Live.RemoteLongest {
		return false, nil
	}
	edited, err := s.DB.HasEdit(ctx, e)
	return !edited, err
}
