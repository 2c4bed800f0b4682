package media

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// LiveConfig is about recordings that are listened to while they are made.
type LiveConfig struct {
	// Enabled lets the users of this server send voice messages that others hear while they are being spoken, in rooms that are not encrypted.
	Enabled bool `mapstructure:"enabled"`
	// Idle is how long nothing may come of a recording before it is ended with what has come: its client has gone.
	Idle time.Duration `mapstructure:"idle"`
	// PerUser is how many such recordings a user may have open.
	PerUser int `mapstructure:"per_user"`
	// MaxReaders is how many people may listen to one at the same time, through each process; another server counts as one.
	MaxReaders int `mapstructure:"max_readers"`
	// RemoteLongest is how long a recording of another server's is followed; what is longer can be had when it has ended.
	RemoteLongest time.Duration `mapstructure:"remote_longest"`
}

// DefaultLiveConfig is what holds where the configuration file says nothing.
func DefaultLiveConfig() LiveConfig {
	return LiveConfig{Enabled: true, Idle: 15 * time.Second, PerUser: 2, MaxReaders: 1000, RemoteLongest: time.Hour}
}

// Validate finds values that cannot be.
func (c LiveConfig) Validate() error {
	if c.Enabled && (c.Idle < time.Second || c.PerUser <= 0 || c.MaxReaders <= 0) {
		return errors.New("idle must be a second at least, per_user and max_readers above 0")
	}
	if c.RemoteLongest <= 0 {
		return errors.New("remote_longest must be above 0")
	}
	return nil
}

const (
	// MaxLiveAppend is the most that AppendLive takes at once, in bytes.
	MaxLiveAppend = 64 << 10
	// liveWindow is how much of the latest bytes of an open recording is kept in memory for those who listen, so that they
	// need not ask the database.
	liveWindow = 128 << 10
	// livePoll is how often those who listen look whether another process, or a redaction, has changed a recording.
	livePoll = 250 * time.Millisecond
	// liveRetry is when an ended or cancelled recording is looked after again if whoever ended it did not do it.
	liveRetry = 5 * time.Second
	// writeTimeout is how long somebody may take nothing of an answer that is still arriving.
	writeTimeout = 30 * time.Second
)

// A live is a recording of this server that is being made, as this process knows it. What matters is in the rows; this is there to
// wake who listens.
type live struct {
	mediaID string

	appending sync.Mutex // held while something is appended; taken before Repository.mu. It guards tail.
	tail      []byte     // what has come after the last whole unit, if it begins at tailAt and ends where the row says
	tailAt    int64

	// Guarded by Repository.mu.
	row      storage.LiveRecording // as last seen
	gone     bool                  // there is no row any more, and no file
	looked   time.Time             // when the row was last read
	changed  chan struct{}         // closed, and replaced, when row or gone has changed
	window   []byte                // the latest bytes that may be read; they end at row.Whole
	users    int                   // those who hold this; it is forgotten with the last one
	readers  int
	lingerer bool // holds this itself while the recording is open here
}

// holdLive gives the one live of a recording, to be let go with letGo.
func (r *Repository) holdLive(mediaID string) *live {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lives[mediaID]
	if l == nil {
		l = &live{mediaID: mediaID, changed: make(chan struct{})}
		r.lives[mediaID] = l
	}
	l.users++
	return l
}

func (r *Repository) letGo(l *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.users--; l.users == 0 && r.lives[l.mediaID] == l {
		delete(r.lives, l.mediaID)
	}
}

// saw notes what a row says, unless more is known already, and wakes who listens. fresh is what has come since it was last seen, if that is known.
func (r *Repository) saw(l *live, row storage.LiveRecording, fresh []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.looked = time.Now()
	if row.State < l.row.State || row.State == l.row.State && row.Size <= l.row.Size && l.row.MediaID != "" {
		return
	}
	switch {
	case row.Whole-l.row.Whole == int64(len(fresh)) && len(l.window)+len(fresh) <= 2*liveWindow:
		l.window = append(l.window, fresh...)
	case row.Whole != l.row.Whole:
		l.window = bytes.Clone(fresh)
	}
	if n := len(l.window); n > liveWindow {
		l.window = bytes.Clone(l.window[n-liveWindow/2:])
	}
	first := l.row.Whole == 0 && row.Whole > 0
	l.row = row
	r.changeLive(l)
	if first || row.State >= storage.LiveKept {
		close(r.uploaded)
		r.uploaded = make(chan struct{})
	}
	// While a recording is open here, its latest bytes stay in memory between two appends.
	if open := row.State == storage.LiveOpen; open != l.lingerer && (fresh != nil || !open) {
		l.lingerer = open
		if open {
			l.users++
		} else if l.users--; l.users == 0 && r.lives[l.mediaID] == l {
			delete(r.lives, l.mediaID)
		}
	}
}

func (r *Repository) changeLive(l *live) {
	close(l.changed)
	l.changed = make(chan struct{})
}

// look reads a live recording's row, unless that was just done.
func (r *Repository) look(ctx context.Context, l *live) error {
	r.mu.Lock()
	recent := time.Since(l.looked) < livePoll/2
	r.mu.Unlock()
	if recent {
		return nil
	}
	return r.lookNow(ctx, l)
}

func (r *Repository) lookNow(ctx context.Context, l *live) error {
	row, err := r.DB.LiveRecording(ctx, l.mediaID)
	if errors.Is(err, storage.ErrNotFound) {
		var m storage.Media
		m, err = r.DB.Media(ctx, r.Server, l.mediaID)
		row = storage.LiveRecording{MediaID: l.mediaID, State: storage.LiveKept, Size: m.Size, Whole: m.Size}
		if errors.Is(err, storage.ErrNotFound) || err == nil && m.Hash.IsZero() {
			row.State, err = storage.LiveCancelled, nil
		}
	}
	if err != nil {
		return fmt.Errorf("look after a live recording: %w", err)
	}
	r.saw(l, row, nil)
	return nil
}

// LiveOpen tells whether a file of this server is still being spoken, or has just ended and is not a file yet.
func (r *Repository) LiveOpen(ctx context.Context, uri URI) (row storage.LiveRecording, open bool, err error) {
	if uri.Server != r.Server {
		return row, false, nil
	}
	row, err = r.DB.LiveRecording(ctx, uri.MediaID)
	if errors.Is(err, storage.ErrNotFound) {
		return row, false, nil
	}
	return row, err == nil && row.State <= storage.LiveEnded, err
}

// StartLive makes a media ID that user has got from Create, and to which nothing has been uploaded, a live recording; of one it changes nothing. It is M_NOT_FOUND,
// M_FORBIDDEN or M_CANNOT_OVERWRITE_MEDIA like UploadTo, M_LIMIT_EXCEEDED for a user who has too many open.
func (r *Repository) StartLive(ctx context.Context, user matrix.UserID, uri URI) error {
	now := r.Now()
	err := storage.ErrNotFound
	if uri.Server == r.Server {
		err = r.DB.StartLive(ctx, r.Server, uri.MediaID, user, r.Live.PerUser, now, now.Add(r.Live.Idle))
	}
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return matrix.NotFound("this media ID was not created here, or has expired")
	case errors.Is(err, storage.ErrForeign):
		return matrix.Forbidden("this media ID was created by another user")
	case errors.Is(err, storage.ErrMediaExists):
		return matrix.CannotOverwriteMedia("this media ID has content already")
	case errors.Is(err, storage.ErrQuota):
		limit := matrix.LimitExceeded(r.Live.Idle)
		limit.Message = fmt.Sprintf("you are speaking %d voice messages already", r.Live.PerUser)
		return limit
	}
	return err
}

// LiveAppend is what has come of a live recording.
type LiveAppend struct {
	Offset      int64
	Content     []byte // at most MaxLiveAppend; it is not kept
	ContentType string // as the client says
	// Longest is how long the recording may become; 0 is no limit.
	Longest time.Duration
}

// errLiveFull says that a recording was ended because more is not allowed.
var errLiveFull = errors.New("the live recording is as large as it may be")

// AppendLive adds to a live recording of user's, which begins with the first append, and returns its size then. What overlaps bytes that are there already must
// be equal to them. When it returns, what was appended survives the loss of power. Errors are those of StartLive; M_UNKNOWN (409) with the field size for an offset
// that leaves a gap; M_CANNOT_OVERWRITE_MEDIA (409) with size for a recording that has ended; M_INVALID_PARAM for what is no recording or other
// bytes than before; M_TOO_LARGE above a limit: the recording is ended then, with what fits in.
func (r *Repository) AppendLive(ctx context.Context, user matrix.UserID, uri URI, a LiveAppend) (size int64, err error) {
	if uri.Server != r.Server {
		return 0, matrix.NotFound("this media ID was not created here")
	}
	l := r.holdLive(uri.MediaID)
	defer r.letGo(l)
	l.appending.Lock()
	defer l.appending.Unlock()
	for range 5 {
		row, err := r.DB.LiveRecording(ctx, uri.MediaID)
		if errors.Is(err, storage.ErrNotFound) {
			if err = r.StartLive(ctx, user, uri); matrix.ErrorCode(err) == "M_CANNOT_OVERWRITE_MEDIA" {
				return r.appendEnded(ctx, user, uri, a)
			}
			if err == nil {
				row, err = r.DB.LiveRecording(ctx, uri.MediaID)
			}
		}
		if err != nil {
			return 0, err
		}
		size, err := r.appendTo(ctx, l, user, row, a)
		if errors.Is(err, errLiveFull) {
			return size, r.endFull(ctx, uri, a.Longest)
		}
		if !errors.Is(err, storage.ErrLiveMoved) {
			return size, err
		}
	}
	return 0, matrix.NewError(http.StatusConflict, "M_UNKNOWN", "somebody else appends to this recording")
}

func (r *Repository) appendTo(ctx context.Context, l *live, user matrix.UserID, row storage.LiveRecording, a LiveAppend) (size int64, err error) {
	switch {
	case row.Uploader != user:
		return 0, matrix.Forbidden("this media ID was created by another user")
	case row.State == storage.LiveCancelled:
		return 0, matrix.NotFound("this recording was cancelled")
	case row.State != storage.LiveOpen:
		return r.appendEnded(ctx, user, URI{r.Server, row.MediaID}, a)
	case a.Offset > row.Size:
		return 0, matrix.NewError(http.StatusConflict, "M_UNKNOWN", "the recording has %d bytes; go on from there", row.Size).With("size", row.Size)
	}
	fresh := a.Content
	if known := min(row.Size-a.Offset, int64(len(fresh))); known > 0 {
		if err := r.sameLive(ctx, row.MediaID, a.Offset, fresh[:known]); err != nil {
			return 0, err
		}
		fresh = fresh[known:]
	}
	if len(fresh) == 0 {
		return row.Size, nil
	}
	if full, err := r.liveFull(ctx, row, int64(len(fresh))); err != nil || full {
		return row.Size, errors.Join(err, onlyIf(full, errLiveFull))
	}
	tail, err := r.liveTail(ctx, l, row)
	if err != nil {
		return 0, err
	}
	var scanner audio.Scanner
	if row.Scan != "" {
		if err := json.Unmarshal([]byte(row.Scan), &scanner); err != nil {
			return 0, fmt.Errorf("where a live recording stands: %w", err)
		}
	}
	all := append(tail, fresh...)
	whole, err := scanner.Scan(all, samplesOf(a.Longest))
	var bad *audio.MalformedError
	full := errors.Is(err, audio.ErrTooLong)
	switch {
	case errors.As(err, &bad):
		return 0, matrix.InvalidParam("the recording cannot go on like this: %s", bad.Reason)
	case errors.Is(err, audio.ErrUnsupported):
		return 0, matrix.InvalidParam("a live recording must be an Ogg, WebM or MP4 file of one Opus stream")
	case full:
		fresh = fresh[:max(whole-len(tail), 0)]
	case err != nil:
		return 0, err
	}
	state, err := json.Marshal(scanner)
	if err != nil {
		return 0, err
	}
	to := row
	to.Size, to.Whole, to.Scan, to.Due = row.Size+int64(len(fresh)), row.Whole+int64(whole), string(state), r.Now().Add(r.Live.Idle)
	if to.ContentType == "" && scanner.Container != "" {
		to.ContentType = soundType(a.ContentType, scanner.Container)
	}
	if err := r.DB.AppendLive(ctx, row.Size, to, fresh); err != nil {
		return 0, err
	}
	l.tail, l.tailAt = bytes.Clone(all[whole:max(whole, len(tail)+len(fresh))]), to.Whole
	r.saw(l, to, all[:whole:whole])
	return to.Size, onlyIf(full, errLiveFull)
}

func onlyIf(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

func samplesOf(d time.Duration) int64 {
	return int64(d/time.Second)*audio.SampleRate + int64(d%time.Second)*audio.SampleRate/int64(time.Second)
}

// soundType is the content type that a client gives, if it names the container, since it may name the codec too.
func soundType(claimed string, container audio.Container) string {
	base, _, _ := strings.Cut(claimed, ";")
	if claimed = cleanContentType(claimed); claimed != defaultContentType && strings.EqualFold(strings.TrimSpace(base), container.ContentType()) {
		return claimed
	}
	return container.ContentType()
}

// liveFull tells whether a recording cannot take n more bytes.
func (r *Repository) liveFull(ctx context.Context, row storage.LiveRecording, n int64) (bool, error) {
	if row.Size+n > r.Config.MaxUploadBytes {
		return true, nil
	}
	if r.Config.UserQuotaBytes <= 0 {
		return false, nil
	}
	used, err := r.DB.UploadedBytes(ctx, row.Uploader)
	if err != nil {
		return false, err
	}
	live, err := r.DB.LiveBytes(ctx, row.Uploader)
	return used+live+n > r.Config.UserQuotaBytes, err
}

// endFull ends a recording that must not become larger and says why.
func (r *Repository) endFull(ctx context.Context, uri URI, longest time.Duration) error {
	if err := r.endLive(ctx, uri.MediaID, true); err != nil {
		return err
	}
	row, err := r.DB.LiveRecording(ctx, uri.MediaID)
	if err != nil {
		return err
	}
	return matrix.TooLarge("the voice message is as long as is allowed (%v, %d bytes); it has been ended", longest, r.Config.MaxUploadBytes).With("size", row.Size)
}

// liveTail is what has come after the last whole unit. Of what it returns nothing is overwritten by appending.
func (r *Repository) liveTail(ctx context.Context, l *live, row storage.LiveRecording) ([]byte, error) {
	if l.tailAt == row.Whole && row.Whole+int64(len(l.tail)) == row.Size {
		return l.tail[:len(l.tail):len(l.tail)], nil
	}
	var tail []byte
	for at := row.Whole; at < row.Size; {
		b, err := r.DB.LiveChunk(ctx, row.MediaID, at)
		if err != nil {
			return nil, fmt.Errorf("read a live recording: %w", err)
		}
		tail = append(tail, b...)
		at += int64(len(b))
	}
	return tail[:len(tail):len(tail)], nil
}

// sameLive is M_INVALID_PARAM if a recording has other bytes at a place than these.
func (r *Repository) sameLive(ctx context.Context, mediaID string, at int64, content []byte) error {
	for len(content) > 0 {
		b, err := r.DB.LiveChunk(ctx, mediaID, at)
		if err != nil {
			return fmt.Errorf("read a live recording: %w", err)
		}
		n := min(len(b), len(content))
		if !bytes.Equal(b[:n], content[:n]) {
			return matrix.InvalidParam("the recording has other bytes at %d", at)
		}
		at, content = at+int64(n), content[n:]
	}
	return nil
}

// appendEnded takes once more what is there already of a recording that has ended.
func (r *Repository) appendEnded(ctx context.Context, user matrix.UserID, uri URI, a LiveAppend) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	m, err := r.liveFile(ctx, uri)
	if err != nil {
		return 0, err
	}
	if m.Uploader != user {
		return 0, matrix.Forbidden("this media ID was created by another user")
	}
	ended := matrix.CannotOverwriteMedia("the recording has ended with %d bytes", m.Size).With("size", m.Size)
	if a.Offset+int64(len(a.Content)) > m.Size {
		return 0, ended
	}
	if len(a.Content) == 0 {
		return m.Size, nil
	}
	blob, err := r.Blobs.Open(ctx, m.Hash)
	if err != nil {
		return 0, err
	}
	defer blob.Close()
	there := make([]byte, len(a.Content))
	if _, err := blob.ReadAt(there, a.Offset); err != nil && err != io.EOF {
		return 0, err
	}
	if !bytes.Equal(there, a.Content) {
		return 0, matrix.InvalidParam("the recording has other bytes at %d", a.Offset)
	}
	return m.Size, nil
}

// liveFile is the file that a live recording has become, or becomes in a moment. It is M_NOT_FOUND if it was taken back.
func (r *Repository) liveFile(ctx context.Context, uri URI) (storage.Media, error) {
	l := r.holdLive(uri.MediaID)
	defer r.letGo(l)
	for {
		if err := r.look(ctx, l); err != nil {
			return storage.Media{}, err
		}
		r.mu.Lock()
		state, changed := l.row.State, l.changed
		r.mu.Unlock()
		switch state {
		case storage.LiveKept:
			m, err := r.DB.Media(ctx, uri.Server, uri.MediaID)
			if errors.Is(err, storage.ErrNotFound) || err == nil && m.Hash.IsZero() {
				return m, errLiveCancelled()
			}
			return m, err
		case storage.LiveCancelled:
			return storage.Media{}, errLiveCancelled()
		}
		select {
		case <-changed:
		case <-time.After(livePoll):
		case <-ctx.Done():
			return storage.Media{}, ctx.Err()
		}
	}
}

func errLiveCancelled() error { return matrix.NotFound("there is no such file: it was taken back") }

// EndLive ends a live recording of user's, verifies it and keeps it as a file like others. It may be called again. Errors are those of AppendLive, and
// M_INVALID_PARAM for a recording that is not well-formed: it is cancelled then.
func (r *Repository) EndLive(ctx context.Context, user matrix.UserID, uri URI, requireOpus bool) (storage.Media, storage.Recording, error) {
	row, open, err := r.LiveOpen(ctx, uri)
	if err == nil && open {
		if row.Uploader != user {
			err = matrix.Forbidden("this media ID was created by another user")
		} else if err = r.endLive(ctx, uri.MediaID, false); err == nil {
			err = r.FinishLive(ctx, uri.MediaID, requireOpus)
		}
	}
	var m storage.Media
	if err == nil {
		m, err = r.DB.Media(ctx, uri.Server, uri.MediaID)
	}
	switch {
	case errors.Is(err, storage.ErrNotFound) || err == nil && (uri.Server != r.Server || m.Hash.IsZero()):
		return m, storage.Recording{}, matrix.NotFound("there is no such recording")
	case err != nil:
		return m, storage.Recording{}, err
	case m.Uploader != user:
		return m, storage.Recording{}, matrix.Forbidden("this media ID was created by another user")
	}
	recording, err := r.DB.Recording(ctx, m.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		err = matrix.NotFound("the file is no recording")
	}
	return m, recording, err
}

func (r *Repository) endLive(ctx context.Context, mediaID string, cut bool) error {
	if err := r.DB.EndLive(ctx, mediaID, cut, r.Now().Add(liveRetry)); err != nil {
		return err
	}
	return r.lookAgain(ctx, mediaID)
}

// lookAgain tells those who listen through this process what has become of a recording.
func (r *Repository) lookAgain(ctx context.Context, mediaID string) error {
	l := r.holdLive(mediaID)
	defer r.letGo(l)
	return r.lookNow(ctx, l)
}

// FinishLive makes a file of a recording that has ended, and does nothing for any other. It is M_INVALID_PARAM if the recording is not well-formed: it is cancelled
// then. What has been done when the process dies is not done again.
func (r *Repository) FinishLive(ctx context.Context, mediaID string, requireOpus bool) error {
	done := r.making.DoChan("live "+mediaID, func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		err := r.finishLive(r.life, mediaID, requireOpus)
		return nil, errors.Join(err, r.lookAgain(r.life, mediaID))
	})
	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Repository) finishLive(ctx context.Context, mediaID string, requireOpus bool) error {
	row, err := r.DB.LiveRecording(ctx, mediaID)
	if errors.Is(err, storage.ErrNotFound) || err == nil && row.State != storage.LiveEnded {
		return nil
	}
	if err != nil {
		return err
	}
	staged, err := r.stageLive(ctx, row)
	if err != nil {
		return err
	}
	defer func() { staged.Discard() }()
	recording, err := verifyLive(staged, row.Size, requireOpus)
	if matrix.ErrorCode(err) == "M_INVALID_PARAM" {
		if cancelled := r.DB.CancelLive(ctx, mediaID, r.Now()); cancelled != nil && !errors.Is(cancelled, storage.ErrLiveMoved) {
			return cancelled
		}
	}
	if err != nil {
		return err
	}
	kept := false
	staged, err = r.keep(ctx, staged, func(hash storage.BlobHash, _ int64) error {
		err := r.DB.KeepLive(ctx, r.Server, row, hash, recording, r.Now(), r.Now().Add(liveRetry))
		kept = err == nil
		recording.Hash = hash
		return err
	})
	if errors.Is(err, storage.ErrLiveMoved) { // it was cancelled, or another process was faster
		return nil
	}
	if kept {
		r.measureAhead(recording.Hash)
	}
	return err
}

func (r *Repository) stageLive(ctx context.Context, row storage.LiveRecording) (*storage.StagedBlob, error) {
	staged, err := r.Blobs.Stage()
	if err != nil {
		return nil, err
	}
	for at := int64(0); at < row.Size && err == nil; {
		var b []byte
		if b, err = r.DB.LiveChunk(ctx, row.MediaID, at); err == nil {
			b = b[:min(int64(len(b)), row.Size-at)]
			at += int64(len(b))
			_, err = staged.Write(b)
		}
	}
	if err != nil {
		staged.Discard()
		return nil, fmt.Errorf("gather a live recording: %w", err)
	}
	return staged, nil
}

// verifyLive counts what is in a recording that has ended.
func verifyLive(content io.ReaderAt, size int64, requireOpus bool) (*storage.Recording, error) {
	info, err := audio.Inspect(content, size, 0)
	var bad *audio.MalformedError
	switch {
	case errors.As(err, &bad):
		return nil, matrix.InvalidParam("the recording cannot be accepted: %s", bad.Reason)
	case errors.Is(err, audio.ErrUnsupported):
		return nil, matrix.InvalidParam("that was no recording of one Opus stream in Ogg, WebM or MP4")
	case err != nil:
		return nil, fmt.Errorf("inspect recording: %w", err)
	case info.Samples == 0:
		return nil, matrix.InvalidParam("there is nothing to hear in the recording")
	case requireOpus && info.Codec != audio.Opus:
		return nil, matrix.InvalidParam("a voice message must be an Opus recording")
	}
	return &storage.Recording{Container: string(info.Container), Codec: string(info.Codec), Channels: info.Head.Channels, Samples: info.Samples}, nil
}

// CancelLive takes a recording of user's back before it has ended: nobody hears more of it. It is M_NOT_FOUND if there is none, M_FORBIDDEN if it
// is another user's, M_CANNOT_OVERWRITE_MEDIA if it is a file already.
func (r *Repository) CancelLive(ctx context.Context, user matrix.UserID, uri URI) error {
	none := matrix.NotFound("there is no such recording")
	if uri.Server != r.Server {
		return none
	}
	row, err := r.DB.LiveRecording(ctx, uri.MediaID)
	if errors.Is(err, storage.ErrNotFound) {
		m, err := r.DB.Media(ctx, uri.Server, uri.MediaID)
		if err == nil && m.Uploader == user && !m.Hash.IsZero() {
			return matrix.CannotOverwriteMedia("the recording has ended; redact its message instead")
		}
		if err == nil && m.Uploader == user { // nothing has come of it yet
			return r.Delete(ctx, uri)
		}
		if errors.Is(err, storage.ErrNotFound) || err == nil {
			return none
		}
		return err
	}
	if err != nil {
		return err
	}
	if row.Uploader != user {
		return matrix.Forbidden("this media ID was created by another user")
	}
	err = r.DB.CancelLive(ctx, uri.MediaID, r.Now().Add(liveRetry))
	if errors.Is(err, storage.ErrLiveMoved) {
		if row.State == storage.LiveCancelled {
			return none
		}
		return matrix.CannotOverwriteMedia("the recording has ended; redact its message instead")
	}
	if err != nil {
		return err
	}
	return r.lookAgain(ctx, uri.MediaID)
}

// KeepHeld keeps what has come of a cancelled recording if a legal hold wants that. Others are not concerned.
func (r *Repository) KeepHeld(ctx context.Context, row storage.LiveRecording) error {
	held, err := r.DB.HeldMedia(ctx, r.Server, row.MediaID)
	if err != nil || !held || row.Whole == 0 || row.State != storage.LiveCancelled {
		return err
	}
	of := row
	of.Size = row.Whole
	staged, err := r.stageLive(ctx, of)
	if errors.Is(err, storage.ErrNotFound) { // it has been done
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { staged.Discard() }()
	recording, err := verifyLive(staged, of.Size, false)
	if err != nil && matrix.ErrorCode(err) != "M_INVALID_PARAM" {
		return err
	}
	staged, err = r.keep(ctx, staged, func(hash storage.BlobHash, _ int64) error {
		return r.DB.KeepLive(ctx, r.Server, row, hash, recording, r.Now(), r.Now())
	})
	if errors.Is(err, storage.ErrLiveMoved) {
		return nil
	}
	return err
}

// ForgetLive ends what is known of a recording that is a file now, or was cancelled, and whose messages have been seen to.
func (r *Repository) ForgetLive(ctx context.Context, mediaID string) error {
	for {
		if more, err := r.DB.ForgetLive(ctx, r.Server, mediaID, r.Now()); err != nil || !more {
			return errors.Join(err, r.lookAgain(ctx, mediaID))
		}
	}
}

// lookAfterLives forgets recordings that were begun here and ended elsewhere.
func (r *Repository) lookAfterLives(ctx context.Context) error {
	r.mu.Lock()
	var open []*live
	for _, l := range r.lives {
		if l.lingerer {
			open = append(open, l)
		}
	}
	r.mu.Unlock()
	for _, l := range open {
		if err := r.look(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// LiveCounts is how many recordings are being made through this process, and how many listen to recordings that are being made here.
func (r *Repository) LiveCounts() (open, readers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lives {
		if l.lingerer {
			open++
		}
		readers += l.readers
	}
	return open, readers
}

// openLive opens a recording that is being made.
func (r *Repository) openLive(ctx context.Context, uri URI) (*File, error) {
	l := r.holdLive(uri.MediaID)
	if err := r.look(ctx, l); err != nil {
		r.letGo(l)
		return nil, err
	}
	r.mu.Lock()
	full, row := l.readers >= r.Live.MaxReaders, l.row
	ended := row.State >= storage.LiveKept
	if !full && !ended {
		l.readers++
	}
	r.mu.Unlock()
	if full || ended {
		defer r.letGo(l)
		if !ended {
			return nil, matrix.LimitExceeded(time.Second)
		}
		m, err := r.liveFile(ctx, uri)
		if err != nil {
			return nil, err
		}
		return r.openBlob(ctx, m)
	}
	reader := &liveReader{ctx: ctx, repository: r, live: l}
	return &File{ReadSeekCloser: reader, ContentType: row.ContentType, Size: -1, Live: true, whole: func(ctx context.Context) (storage.Media, error) { return r.liveFile(ctx, uri) }}, nil
}

// liveReader reads a recording from its beginning while it is made, and what is left of it when it has become a file.
type liveReader struct {
	ctx        context.Context
	repository *Repository
	live       *live // nil once closed
	off        int64
	blob       storage.Blob // nil until the recording is a file
}

func (l *liveReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if l.blob != nil {
			return l.blob.Read(p)
		}
		r := l.repository
		r.mu.Lock()
		row, changed := l.live.row, l.live.changed
		n := 0
		if from := l.off - (row.Whole - int64(len(l.live.window))); from >= 0 && l.off < row.Whole {
			n = copy(p, l.live.window[from:])
		}
		r.mu.Unlock()
		switch {
		case row.State == storage.LiveCancelled:
			return 0, errLiveCancelled()
		case n > 0:
			l.off += int64(n)
			return n, nil
		case row.State == storage.LiveKept:
			if err := l.openBlob(); err != nil {
				return 0, err
			}
			continue
		case l.off < row.Whole:
			n, err := l.readChunk(p, row.Whole)
			if n > 0 || err != nil {
				return n, err
			}
		}
		poll := time.NewTimer(livePoll)
		select {
		case <-changed:
		case <-poll.C:
			if err := r.look(l.ctx, l.live); err != nil {
				poll.Stop()
				return 0, err
			}
		case <-l.ctx.Done():
			poll.Stop()
			return 0, l.ctx.Err()
		}
		poll.Stop()
	}
}

// readChunk reads from the database; nothing if what was there has become a file meanwhile.
func (l *liveReader) readChunk(p []byte, whole int64) (int, error) {
	b, err := l.repository.DB.LiveChunk(l.ctx, l.live.mediaID, l.off)
	if errors.Is(err, storage.ErrNotFound) {
		return 0, nil
	}
	n := copy(p, b[:min(int64(len(b)), whole-l.off)])
	l.off += int64(n)
	return n, err
}

func (l *liveReader) openBlob() error {
	r := l.repository
	m, err := r.DB.Media(l.ctx, r.Server, l.live.mediaID)
	if errors.Is(err, storage.ErrNotFound) || err == nil && m.Hash.IsZero() {
		return errLiveCancelled()
	}
	if err != nil {
		return err
	}
	blob, err := r.Blobs.Open(l.ctx, m.Hash)
	if err != nil {
		return err
	}
	if _, err := blob.Seek(l.off, io.SeekStart); err != nil {
		blob.Close()
		return err
	}
	l.blob = blob
	return nil
}

// Seek waits for the end of the recording.
func (l *liveReader) Seek(offset int64, whence int) (int64, error) {
	if l.blob == nil {
		if _, err := l.repository.liveFile(l.ctx, URI{l.repository.Server, l.live.mediaID}); err != nil {
			return l.off, err
		}
		if err := l.openBlob(); err != nil {
			return l.off, err
		}
	}
	return l.blob.Seek(offset, whence)
}

// Close lets go of the recording.
func (l *liveReader) Close() error {
	if l.live == nil {
		return nil
	}
	l.repository.mu.Lock()
	l.live.readers--
	l.repository.mu.Unlock()
	l.repository.letGo(l.live)
	l.live = nil
	if l.blob != nil {
		return l.blob.Close()
	}
	return nil
}
