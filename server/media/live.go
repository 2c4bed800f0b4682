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
	looked   time.Time             // when the row was last read
	changed  chan struct{}         // closed, and replaced, when row has changed
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
