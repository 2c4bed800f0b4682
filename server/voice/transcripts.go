package voice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/storage"
)

// TranscriptsType is the type of the state event by which a room, of the account data by which a user, and of the key in
// a content by which a message says {"enabled": false} when it is not to be transcribed.
const TranscriptsType = "im.parley.voice.transcripts"

const (
	maxTranscript = 32 << 10 // bytes
	// firstRetry is how long the first retry waits; each further one waits twice as long, up to lastRetry.
	firstRetry = 5 * time.Second
	lastRetry  = time.Hour
	// fetchWait bounds the fetching of a recording from another server, and claimSlackTime what else a job takes beside the request.
	fetchWait      = time.Minute
	claimSlackTime = 2 * time.Minute
	// longestSleep is how long workers sleep at most: another process may have written.
	longestSleep = time.Minute
)

// transcriber is the part of a Service that knows what is said.
type transcriber struct {
	stop func()        // stops listening
	wake chan struct{} // there may be something to do

	mu       sync.Mutex    // guards what follows; taken before none
	changed  chan struct{} // closed, and replaced, when a job has ended
	paused   time.Time     // nothing is sent to the speech service before
	jsonOnly bool          // the service has refused verbose_json

	queueing sync.Mutex // held while voice messages become jobs
}

func (t *transcriber) init(s *Service) {
	t.stop, t.wake, t.changed = func() {}, make(chan struct{}, 1), make(chan struct{})
	if s.Transcribes() {
		t.stop = s.DB.Listen(t.hear)
	}
}

// Close stops listening to the database.
func (s *Service) Close() error {
	s.stop()
	s.stopLive()
	return nil
}

// Transcribes reports whether this server has transcripts.
func (s *Service) Transcribes() bool {
	return s.Config.Transcripts.Endpoint != "" && s.Rooms != nil && s.Client != nil && s.DB != nil
}

func (t *transcriber) hear(c storage.Commit) {
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			t.rouse()
		}
		for _, e := range c.Changes[i].Events {
			if e.Event.Type() == typeMessage && bytes.Contains(e.Event.Content(), []byte(`"m.audio"`)) {
				t.rouse()
			}
		}
	}
}

func (t *transcriber) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run transcribes what is sent and looks after what is being spoken, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	if s.live() {
		workers.Go(func() { s.runLive(ctx) })
	}
	if !s.Transcribes() {
		if s.DB != nil {
			if err := s.DB.ForgetTranscriptQueue(ctx); err != nil {
				s.Log.Error("forget what was to be transcribed", "err", err)
			}
		}
		<-ctx.Done()
		return nil
	}
	for range s.Config.Transcripts.Workers {
		workers.Go(func() { s.work(ctx) })
	}
	return nil
}

func (s *Service) work(ctx context.Context) {
	for ctx.Err() == nil {
		worked, next, err := s.transcribeNext(ctx)
		if worked && err == nil {
			continue
		}
		sleep := longestSleep
		if err != nil && ctx.Err() == nil {
			s.Log.Error("transcribe", "err", err)
			sleep = firstRetry
		} else if !next.IsZero() {
			sleep = min(max(next.Sub(s.Now()), 0), longestSleep)
		}
		timer := time.NewTimer(sleep)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// transcribeNext does the job that is due, if one is; else it tells when the next one will be, zero if that is not known.
func (s *Service) transcribeNext(ctx context.Context) (worked bool, next time.Time, err error) {
	if err := s.queue(ctx); err != nil {
		return false, next, err
	}
	s.mu.Lock()
	paused := s.paused
	s.mu.Unlock()
	now := s.Now()
	if now.Before(paused) {
		return false, paused, nil
	}
	until := now.Add(s.Config.Transcripts.Timeout + fetchWait + claimSlackTime)
	job, next, err := s.DB.ClaimTranscriptJob(ctx, now, until)
	if job == nil || err != nil {
		return false, next, err
	}
	s.rouse() // there may be another job, for another worker
	err = s.do(ctx, *job, until)
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	return true, next, err
}

func (s *Service) queue(ctx context.Context) error {
	s.queueing.Lock()
	defer s.queueing.Unlock()
	for {
		if more, err := s.DB.QueueTranscripts(ctx, s.Now()); err != nil || !more {
			return err
		}
	}
}

// do does a job. The error is ours; what goes wrong elsewhere has been dealt with.
func (s *Service) do(ctx context.Context, job storage.TranscriptJob, until time.Time) error {
	kept := context.WithoutCancel(ctx) // when we are stopped, the job goes back to the queue
	uri, err := s.transcribable(ctx, job.Num)
	if err != nil {
		return s.settle(ctx, job, storage.BlobHash{}, err)
	}
	if spoken, err := s.stillSpoken(ctx, job.Num, uri); err != nil || spoken {
		return errors.Join(err, s.DB.DeferTranscript(kept, job, storage.BlobHash{}, s.Now().Add(liveTranscript)))
	}
	fetch, cancel := context.WithTimeout(ctx, fetchWait)
	m, err := s.Media.Fetch(fetch, media.Request{URI: uri})
	cancel()
	if err != nil {
		return s.settle(ctx, job, storage.BlobHash{}, fetchError(err))
	}
	mine, err := s.DB.ClaimTranscript(kept, job, m.Hash, s.Now(), until)
	if err != nil || !mine {
		return err
	}
	var wav bytes.Buffer
	var t storage.Transcript
	if err = s.Media.WriteWAV(ctx, &wav, m.Hash, s.Config.Transcripts.MaxDuration); err == nil {
		t, err = s.ask(ctx, wav.Bytes())
	}
	if err != nil {
		return s.settle(ctx, job, m.Hash, recordingError(err))
	}
	return s.DB.FinishTranscript(kept, job, m.Hash, t, s.Now())
}

// hopeless is the error of a job that will never be done.
type hopeless struct{ error }

func (h hopeless) Unwrap() error { return h.error }

// busy is the error of a service that wants to be left alone for a while.
type busy struct {
	error
	wait time.Duration
}

func fetchError(err error) error {
	if code := matrix.ErrorCode(err); code == "M_NOT_FOUND" || code == "M_TOO_LARGE" {
		return hopeless{err}
	}
	return err
}

// recordingError finds those errors of a recording that stay.
func recordingError(err error) error {
	var bad *audio.MalformedError
	if errors.As(err, &bad) || errors.Is(err, audio.ErrUnsupported) || errors.Is(err, audio.ErrTooLong) || errors.Is(err, storage.ErrNoBlob) {
		return hopeless{err}
	}
	return err
}

// settle decides what becomes of a job that went wrong. hash is the blob that was claimed for it, if any.
func (s *Service) settle(ctx context.Context, job storage.TranscriptJob, hash storage.BlobHash, err error) error {
	kept := context.WithoutCancel(ctx)
	if ctx.Err() != nil { // we are stopped
		return s.DB.DeferTranscript(kept, job, hash, s.Now())
	}
	var never hopeless
	var later busy
	switch {
	case errors.As(err, &later):
		s.Log.Info("the speech service is busy", "wait", later.wait, "err", err)
		due := s.Now().Add(later.wait)
		s.mu.Lock()
		s.paused = due
		s.mu.Unlock()
		return s.DB.DeferTranscript(kept, job, hash, due)
	case errors.As(err, &never):
		s.Log.Debug("voice message without transcript", "num", job.Num, "err", err)
		return s.DB.DropTranscript(kept, job, hash)
	}
	job.Attempts++
	if job.Attempts >= s.Config.Transcripts.Attempts {
		s.Log.Warn("voice message without transcript", "num", job.Num, "attempts", job.Attempts, "err", err)
		return s.DB.DropTranscript(kept, job, hash)
	}
	s.Log.Info("transcript put off", "num", job.Num, "attempts", job.Attempts, "err", err)
	wait := min(firstRetry<<min(job.Attempts-1, 20), lastRetry)
	return s.DB.DeferTranscript(kept, job, hash, s.Now().Add(wait))
}

var errNotTranscribed = hopeless{errors.New("the message is not to be transcribed")}

// transcribable finds the recording of an event; errNotTranscribed for what is no voice message in clear any more, and for what
// its sender or its room does not want to be transcribed.
func (s *Service) transcribable(ctx context.Context, num int64) (uri media.URI, err error) {
	e, err := s.DB.Event(ctx, num)
	if errors.Is(err, storage.ErrNotFound) {
		return uri, errNotTranscribed
	}
	if err != nil {
		return uri, err
	}
	var address string
	content, ok := voiceInClear(e)
	if !ok || json.Unmarshal(content["url"], &address) != nil || isOff(content[TranscriptsType]) {
		return uri, errNotTranscribed
	}
	if uri, err = media.ParseURI(address); err != nil {
		return uri, hopeless{err}
	}
	if e.Sender().Server() != s.Media.Server {
		if !s.Config.Transcripts.Remote {
			return uri, errNotTranscribed
		}
	} else if off, err := s.userIsOff(ctx, e.Sender()); err != nil || off {
		return uri, errors.Join(err, unless(err, errNotTranscribed))
	}
	if off, err := s.roomIsOff(ctx, e.RoomID()); err != nil || off {
		return uri, errors.Join(err, unless(err, errNotTranscribed))
	}
	return uri, nil
}

func unless(err, otherwise error) error {
	if err != nil {
		return nil
	}
	return otherwise
}

// voiceInClear is the content of a voice message whose file the server can read.
func voiceInClear(e *storage.Event) (map[string]json.RawMessage, bool) {
	if e.Hidden() || e.RedactedBy != "" || e.Type() != typeMessage {
		return nil, false
	}
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content(), &content) != nil || !isVoice(content) || content["url"] == nil || content["file"] != nil {
		return nil, false
	}
	return content, true
}

// Expected reports whether the transcript of an event of the stream is on its way. That of a message that is still being spoken is not.
func (s *Service) Expected(ctx context.Context, e *storage.Event) (bool, error) {
	if !s.Transcribes() {
		return false, nil
	}
	if content, ok := voiceInClear(e); !ok || content[storage.LiveKey] != nil {
		return false, nil
	}
	return s.DB.TranscriptPending(ctx, e)
}

// PushWanted reports whether a user wants what is said in voice messages in notifications: all do but those with
// {"push": false} in their global account data TranscriptsType.
func (s *Service) PushWanted(ctx context.Context, user matrix.UserID) (bool, error) {
	raw, err := s.DB.AccountData(ctx, user, "", TranscriptsType)
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var said struct {
		Push *bool `json:"push"`
	}
	return json.Unmarshal(raw, &said) == nil && (said.Push == nil || *said.Push), nil
}

// isOff reads {"enabled": false}. What is there and cannot be read counts as that.
func isOff(raw json.RawMessage) bool {
	if raw == nil {
		return false
	}
	var said struct {
		Enabled *bool `json:"enabled"`
	}
	return json.Unmarshal(raw, &said) != nil || said.Enabled != nil && !*said.Enabled
}

func (s *Service) userIsOff(ctx context.Context, user matrix.UserID) (bool, error) {
	raw, err := s.DB.AccountData(ctx, user, "", TranscriptsType)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return isOff(raw), err
}

// roomIsOff asks the room's current state.
func (s *Service) roomIsOff(ctx context.Context, id matrix.RoomID) (bool, error) {
	r, err := s.Rooms.Room(ctx, id)
	if err != nil {
		return false, fmt.Errorf("find room: %w", err)
	}
	e, err := s.Rooms.StateAt(ctx, id, r.Snapshot().Root, TranscriptsType, "")
	if err != nil || e == nil {
		return false, err
	}
	return isOff(e.Content()), nil
}

// Transcript is what is said in an event that the caller may see. wait is how long to wait for one that is on its way; pending is
// true if it still is. M_NOT_FOUND if there is none and none will come.
func (s *Service) Transcript(ctx context.Context, id matrix.EventID, wait time.Duration) (t storage.Transcript, pending bool, err error) {
	none := matrix.NotFound("the event has no transcript")
	if !s.Transcribes() {
		return t, false, none
	}
	e, err := s.DB.EventByID(ctx, id)
	if err != nil {
		return t, false, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	if _, ok := voiceInClear(e); !ok {
		return t, false, none
	}
	for {
		s.mu.Lock()
		changed := s.changed // before the look into the database, so that nothing is missed
		s.mu.Unlock()
		pending, err := s.DB.TranscriptPending(ctx, e)
		if err != nil {
			return t, false, err
		}
		t, err := s.DB.Transcript(ctx, e.Num)
		switch {
		case err == nil:
			return t, false, nil
		case !errors.Is(err, storage.ErrNotFound):
			return t, false, err
		case !pending:
			return t, false, none
		}
		select {
		case <-changed:
		case <-timer.C:
			return t, true, nil
		case <-ctx.Done():
			return t, true, ctx.Err()
		}
	}
}

// CorrectTranscript stores what the sender of a voice message says is said in it; an empty text takes the transcript away. The
// caller has checked that the user may see the event. Errors: M_NOT_FOUND where there are no transcripts, M_FORBIDDEN for others
// than the sender, M_INVALID_PARAM for what is no voice message in clear and for a text that is too long.
func (s *Service) CorrectTranscript(ctx context.Context, user matrix.UserID, id matrix.EventID, text, language string) error {
	if !s.Transcribes() {
		return matrix.NotFound("this server has no transcripts")
	}
	e, err := s.DB.EventByID(ctx, id)
	if err != nil {
		return err
	}
	if e.Sender() != user {
		return matrix.Forbidden("only the sender of a voice message corrects its transcript")
	}
	if _, ok := voiceInClear(e); !ok {
		return matrix.InvalidParam("the event is not a voice message that this server can read")
	}
	if len(text) > maxTranscript || !utf8.ValidString(text) {
		return matrix.InvalidParam("a transcript has at most %d bytes", maxTranscript)
	}
	if len(language) > 35 {
		return matrix.InvalidParam("language must be a language tag such as de or pt-BR")
	}
	return s.DB.CorrectTranscript(ctx, e.Num, cleanText(text), language)
}

// UnsignedKey is the name under which events have what this server knows of them.
const UnsignedKey = "im.parley.voice"

// Unsigned is what this server knows of an audio message, as a member of unsigned: its transcript, and if it came from another server
// its true length and waveform. It is nil for most messages.
func (s *Service) Unsigned(ctx context.Context, e *storage.Event) ([]byte, error) {
	foreign := e.Sender().Server() != s.Media.Server
	if !foreign && !s.Transcribes() {
		return nil, nil
	}
	content, ok := voiceInClear(e)
	if !ok {
		return nil, nil
	}
	known := map[string]any{}
	if s.Transcribes() {
		t, err := s.DB.Transcript(ctx, e.Num)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, err
		}
		if t.Text != "" {
			known["transcript"] = t
		}
	}
	if foreign {
		if err := s.addTruth(ctx, known, content["url"]); err != nil {
			return nil, err
		}
	}
	if len(known) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(known)
	return append([]byte(`"`+UnsignedKey+`":`), b...), err
}

// addTruth adds what was counted in a recording, if it is here.
func (s *Service) addTruth(ctx context.Context, known map[string]any, address json.RawMessage) error {
	var text string
	if json.Unmarshal(address, &text) != nil {
		return nil
	}
	uri, err := media.ParseURI(text)
	if err != nil {
		return nil
	}
	_, recording, err := s.Media.Recording(ctx, uri)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return nil
	}
	if err != nil {
		return err
	}
	known["duration"] = recording.DurationMS()
	if recording.Waveform != nil {
		known["waveform"] = recording.Waveform
	}
	return nil
}
