package media

import (
	"context"
	"errors"
	"fmt"
	"io"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

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
