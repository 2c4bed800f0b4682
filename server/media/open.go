package media

import (
	"context"
	"errors"
	"fmt"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Request says which file is to be opened and how.
type Request struct {
	URI URI
	// Wait is how long to wait for a file that is still to be uploaded, the query's timeout_ms. It is cut to the
	// configured maximum. DefaultWait is what the spec has for a request that does not say.
	Wait time.Duration
	// LocalOnly answers M_NOT_FOUND for what would have to be fetched from another server: the query's
	// allow_remote=false, and every request that another server makes.
	LocalOnly bool
	// Unauthenticated is a request on the deprecated paths: M_NOT_FOUND unless the configuration opens them.
	Unauthenticated bool
	// Container asks for a recording in this container, remuxed if it is in another one: M_INVALID_PARAM for what is no
	// recording or where renditions are turned off. Empty means as it is. Thumbnails do not regard it.
	Container audio.Container
}

// DefaultWait is the timeout_ms of a request that does not give one.
const DefaultWait = 20 * time.Second

// Open opens a file, fetching it from the server that has it if need be; several who ask at the same time are served
// by one fetch, while it runs. The caller closes the file. The error is M_NOT_FOUND; M_NOT_YET_UPLOADED (504) if the
// wait was in vain; M_TOO_LARGE (502) for a file of another server's above our limit; 502 if that server does not answer.
// ctx bounds all reading.
// Spec v1.19 client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
func (r *Repository) Open(ctx context.Context, req Request) (*File, error) {
	if req.Container != "" {
		return r.rendition(ctx, req)
	}
	m, fetch, err := r.find(ctx, req)
	if err != nil {
		return nil, err
	}
	switch {
	case fetch != nil:
		return fetch.open(ctx)
	case m.Hash.IsZero():
		return r.openLive(ctx, req.URI)
	}
	return r.openBlob(ctx, m)
}

// complete is a file's description, once all of it is here.
func (r *Repository) complete(ctx context.Context, req Request) (storage.Media, error) {
	m, fetch, err := r.find(ctx, req)
	if err == nil && fetch == nil && m.Hash.IsZero() {
		if req.Container == "" { // as for an upload; a rendition is worth waiting for until the end
			var cancel func()
			ctx, cancel = context.WithTimeout(ctx, min(max(req.Wait, time.Second), r.Config.MaxWait))
			defer cancel()
		}
		m, err := r.liveFile(ctx, req.URI)
		if errors.Is(err, context.DeadlineExceeded) {
			err = matrix.NotYetUploaded("the recording has not ended yet")
		}
		return m, err
	}
	if fetch == nil || err != nil {
		return m, err
	}
	defer fetch.staged.Release()
	if err := fetch.wait(ctx, func() bool { return fetch.done }); err != nil {
		return m, err
	}
	return fetch.media, fetch.err
}

// find gives the description of a file, or the running fetch of it, which holds the staged blob for the caller. The hash of a file that is being
// recorded here is zero.
func (r *Repository) find(ctx context.Context, req Request) (storage.Media, *fetch, error) {
	if req.Unauthenticated && !r.Config.UnauthenticatedDownloads {
		return storage.Media{}, nil, matrix.NotFound("files are read on the authenticated paths only, since Matrix 1.11")
	}
	req.Wait = min(max(req.Wait, 0), r.Config.MaxWait)
	if req.URI.Server == r.Server {
		m, err := r.findLocal(ctx, req)
		return m, nil, err
	}
	m, err := r.DB.Media(ctx, req.URI.Server, req.URI.MediaID)
	switch {
	case err == nil:
		r.noteUse(req.URI)
		return m, nil, nil
	case !errors.Is(err, storage.ErrNotFound):
		return m, nil, fmt.Errorf("find media: %w", err)
	case req.LocalOnly || r.Remote == nil:
		return m, nil, matrix.NotFound("the file is on another server")
	}
	fetch, err := r.fetch(req)
	if err != nil {
		return m, nil, err
	}
	if err := fetch.wait(ctx, func() bool { return fetch.started }); err != nil {
		fetch.staged.Release()
		return m, nil, err
	}
	return m, fetch, nil
}

// findLocal waits for the upload of a file if it must, or for the first sound of one that is being recorded.
func (r *Repository) findLocal(ctx context.Context, req Request) (storage.Media, error) {
	timeout := time.NewTimer(req.Wait)
	defer timeout.Stop()
	for {
		r.mu.Lock()
		uploaded := r.uploaded // before the look into the database, so that nothing is missed
		r.mu.Unlock()
		m, err := r.DB.Media(ctx, req.URI.Server, req.URI.MediaID)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			return m, matrix.NotFound("there is no such file")
		case err != nil:
			return m, fmt.Errorf("find media: %w", err)
		case !m.Hash.IsZero():
			return m, nil
		case m.Expires.IsZero():
			row, err := r.DB.LiveRecording(ctx, req.URI.MediaID)
			if errors.Is(err, storage.ErrNotFound) || err == nil && row.State == storage.LiveCancelled {
				return m, errLiveCancelled()
			}
			if err != nil {
				return m, fmt.Errorf("find live recording: %w", err)
			}
			if m.ContentType = row.ContentType; row.Whole > 0 {
				return m, nil
			}
		case !r.Now().Before(m.Expires):
			return m, matrix.NotFound("the file was never uploaded")
		}
		select {
		case <-uploaded:
		case <-time.After(livePoll): // another process may have got the upload
		case <-timeout.C:
			return m, matrix.NotYetUploaded("the file has not been uploaded yet")
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
}

func (r *Repository) openBlob(ctx context.Context, m storage.Media) (*File, error) {
	content, err := r.Blobs.Open(ctx, m.Hash)
	if errors.Is(err, storage.ErrNoBlob) { // deleted since we looked
		return nil, matrix.NotFound("there is no such file")
	}
	if err != nil {
		return nil, err
	}
	return &File{
		ReadSeekCloser: content, ContentType: m.ContentType, Filename: m.Filename,
		Hash: m.Hash, Size: m.Size, Created: m.Created,
	}, nil
}

// noteUse remembers that a file of another server's was read; the next sweep writes it down.
func (r *Repository) noteUse(uri URI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.used) < 100_000 {
		r.used[uri] = r.Now()
	}
}
