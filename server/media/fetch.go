package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"sync"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// A fetch brings one file from another server. Everyone who asks for the file meanwhile follows the same fetch: they read
// the staged blob as it grows.
type fetch struct {
	repository *Repository
	uri        URI
	staged     *storage.StagedBlob

	// Guarded by repository.mu, read by followers after wait.
	changed chan struct{} // closed, and replaced, when any of the following has changed or the staged blob has grown
	started bool          // the other server has answered with a file; or done
	live    bool          // the file is being recorded
	done    bool
	err     error         // why it failed; only after done
	media   storage.Media // ContentType and Filename once started, all of it once done
}

// fetch joins the fetch of a file or begins one. The caller gets a hold on the staged blob, to be released.
func (r *Repository) fetch(req Request) (*fetch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.fetches[req.URI]; f != nil {
		f.staged.Retain()
		return f, nil
	}
	if r.closed {
		return nil, matrix.NewError(503, "M_UNKNOWN", "the server is being stopped")
	}
	staged, err := r.Blobs.Stage()
	if err != nil {
		return nil, err
	}
	staged.Retain()
	f := &fetch{repository: r, uri: req.URI, staged: staged, changed: make(chan struct{})}
	r.fetches[req.URI] = f
	r.running.Go(func() { f.run(req.Wait) })
	return f, nil
}

// run is the fetch's goroutine; it owns the staged blob's writing side.
func (f *fetch) run(wait time.Duration) {
	r := f.repository
	// The time is for a file that is there. For one that is being recorded it begins anew with every byte.
	ctx, cancel := context.WithCancelCause(r.life)
	timer := time.AfterFunc(r.Config.RemoteTimeout+wait, func() { cancel(context.DeadlineExceeded) })
	defer func() { timer.Stop(); cancel(nil) }()
	staged := f.staged
	defer func() { staged.Discard() }()
	counted := false
	m, err := f.download(ctx, wait, timer)
	timer.Reset(r.Config.RemoteTimeout)
	if err == nil {
		recording, _ := r.inspect(staged, staged.Size()) // what is not well-formed is a file like others
		staged, err = r.keep(ctx, staged, func(hash storage.BlobHash, size int64) error {
			m.Hash, m.Size, m.Created = hash, size, r.Now()
			err := r.DB.AddMedia(ctx, m, recording, 0)
			if errors.Is(err, storage.ErrMediaExists) { // another process was faster; the blob is put, its row stands
				err = nil
			}
			return err
		})
		counted = recording != nil && err == nil
	}
	if err != nil {
		r.Log.Debug("media not fetched", "server", f.uri.Server, "err", err)
	}
	f.change(func() {
		f.started, f.done, f.err, f.media = true, true, remoteError(f.uri.Server, err), m
		delete(r.fetches, f.uri)
	})
	if counted {
		r.measureAhead(m.Hash)
	}
}

// download asks the other server and writes what comes.
func (f *fetch) download(ctx context.Context, wait time.Duration, timer *time.Timer) (storage.Media, error) {
	r := f.repository
	m := storage.Media{Server: f.uri.Server, MediaID: f.uri.MediaID}
	select {
	case r.fetchSlots <- struct{}{}:
	case <-ctx.Done():
		return m, ctx.Err()
	}
	leave := sync.OnceFunc(func() { <-r.fetchSlots })
	defer leave()
	file, err := r.Remote.DownloadMedia(ctx, f.uri.Server, f.uri.MediaID, wait)
	if err != nil {
		return m, err
	}
	defer file.Body.Close()
	var body io.Reader = file.Body
	if file.Live {
		leave() // it takes long, and does not do much
		if err := f.countLive(1); err != nil {
			return m, err
		}
		defer f.countLive(-1)
		body = &patient{file.Body, timer, r.Now().Add(r.Live.RemoteLongest), r.Now}
	}
	m.ContentType = cleanContentType(file.ContentType)
	if _, params, err := mime.ParseMediaType(file.ContentDisposition); err == nil {
		m.Filename = cleanFilename(params["filename"])
	}
	f.change(func() { f.started, f.live, f.media = true, file.Live, m })
	n, err := io.Copy(growing{f}, io.LimitReader(body, r.Config.MaxRemoteBytes+1))
	if err == nil && n > r.Config.MaxRemoteBytes {
		err = matrix.TooLarge("above %d bytes", r.Config.MaxRemoteBytes)
	}
	return m, err
}

const (
	// maxLiveFrom is how many live recordings are followed at the same time from one server: each holds a connection.
	maxLiveFrom = 32
	// liveSilence is how long a live recording may be silent. The server that has it should have ended it before.
	liveSilence = 2 * time.Minute
)

// countLive counts the live recordings that are followed from a server.
func (f *fetch) countLive(n int) error {
	r := f.repository
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.liveFrom[f.uri.Server] + n
	if n > 0 && now > maxLiveFrom {
		return fmt.Errorf("%d live recordings of this server are being followed already", maxLiveFrom)
	}
	if r.liveFrom[f.uri.Server] = now; now == 0 {
		delete(r.liveFrom, f.uri.Server)
	}
	return nil
}

// patient reads a live recording: its timer begins anew with each byte.
type patient struct {
	io.Reader
	timer *time.Timer
	until time.Time
	now   func() time.Time
}

func (p *patient) Read(b []byte) (int, error) {
	if p.now().After(p.until) {
		return 0, errors.New("the live recording is longer than is followed")
	}
	p.timer.Reset(liveSilence)
	return p.Reader.Read(b)
}

// growing tells the followers of every write.
type growing struct{ *fetch }

func (g growing) Write(p []byte) (int, error) {
	n, err := g.staged.Write(p)
	g.change(func() {})
	return n, err
}

func (f *fetch) change(set func()) {
	f.repository.mu.Lock()
	defer f.repository.mu.Unlock()
	set()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait returns nil once ready, which is called under the lock, is true. If the fetch has failed by then, its error is
// returned.
func (f *fetch) wait(ctx context.Context, ready func() bool) error {
	for {
		f.repository.mu.Lock()
		ok, changed, done, err := ready(), f.changed, f.done, f.err
		f.repository.mu.Unlock()
		switch {
		case done && err != nil:
			return err
		case ok || done:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// open gives the caller's hold on the staged blob to a file.
func (f *fetch) open(ctx context.Context) (*File, error) {
	f.repository.mu.Lock()
	defer f.repository.mu.Unlock()
	file := &File{
		ReadSeekCloser: &follower{ctx: ctx, fetch: f},
		ContentType:    f.media.ContentType, Filename: f.media.Filename, Size: -1, Live: f.live && !f.done,
		whole: f.complete,
	}
	if f.done {
		file.Hash, file.Size, file.Created = f.media.Hash, f.media.Size, f.media.Created
	}
	return file, nil
}

// openAs is open for a live recording in the given container, and nil for everything else.
func (f *fetch) openAs(ctx context.Context, container audio.Container) (*File, error) {
	f.repository.mu.Lock()
	base, _, _ := strings.Cut(f.media.ContentType, ";")
	is := f.live && !f.done && base == container.ContentType()
	f.repository.mu.Unlock()
	if !is {
		return nil, nil
	}
	return f.open(ctx)
}

// complete waits for the end of the fetch.
func (f *fetch) complete(ctx context.Context) (storage.Media, error) {
	err := f.wait(ctx, func() bool { return f.done })
	return f.media, err
}

// remoteError is what a client is told of a fetch that failed. Spec v1.19 client-server-api/#content-repo-security-considerations
func remoteError(server matrix.ServerName, err error) error {
	if err == nil {
		return nil
	}
	switch matrix.ErrorCode(err) {
	case "M_NOT_FOUND":
		return matrix.NotFound("%s has no such file", server)
	case "M_NOT_YET_UPLOADED":
		return matrix.NotYetUploaded("the file has not been uploaded yet")
	case "M_TOO_LARGE":
		return matrix.TooLarge("the file is too large to be fetched from %s", server).WithStatus(502)
	}
	return &remoteFailure{matrix.NewError(502, "M_UNKNOWN", "%s did not give us the file", server), err}
}

// remoteFailure shows the client no more than what is made for it.
type remoteFailure struct {
	shown *matrix.Error
	cause error
}

func (e *remoteFailure) Error() string   { return fmt.Sprintf("%v: %v", e.shown, e.cause) }
func (e *remoteFailure) Unwrap() []error { return []error{e.shown, e.cause} }

// follower reads a fetch's blob from the beginning, waiting for what has not come yet.
type follower struct {
	ctx   context.Context
	fetch *fetch
	off   int64
}

func (r *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	staged := r.fetch.staged
	if err := r.fetch.wait(r.ctx, func() bool { return staged.Size() > r.off }); err != nil {
		return 0, err
	}
	n, err := staged.ReadAt(p, r.off)
	r.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// Seek waits for the end of the fetch.
func (r *follower) Seek(offset int64, whence int) (int64, error) {
	if err := r.fetch.wait(r.ctx, func() bool { return r.fetch.done }); err != nil {
		return r.off, err
	}
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.fetch.staged.Size()
	}
	if offset < 0 {
		return r.off, errors.New("seek before the beginning of the file")
	}
	r.off = offset
	return offset, nil
}

// Close lets go of the staged blob.
func (r *follower) Close() error {
	if r.fetch != nil {
		r.fetch.staged.Release()
	}
	r.fetch = nil
	return nil
}
