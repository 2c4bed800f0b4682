package media

import (
	"context"
	"errors"
	"io"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

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
