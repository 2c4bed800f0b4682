package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Upload is a file on its way in.
type Upload struct {
	Body io.Reader
	// Size is the Content-Length, -1 if the client did not give one.
	Size int64
	// ContentType is what the client says; empty means application/octet-stream.
	ContentType string
	// Filename may be empty.
	Filename string
}

// Upload stores a file of user's under a new media ID. It is M_TOO_LARGE (413) above the limit and M_FORBIDDEN above the
// user's quota, M_INVALID_PARAM for a recording that is not well-formed. When it returns, the file survives the loss of power.
// Spec v1.19 client-server-api/#post_matrixmediav3upload
func (r *Repository) Upload(ctx context.Context, user matrix.UserID, u Upload) (URI, error) {
	uri := URI{r.Server, newMediaID()}
	return uri, r.receive(ctx, user, uri, u)
}

// Create gives user a media ID to be uploaded to later, and the time until which that must happen. It is
// M_LIMIT_EXCEEDED for a user who holds too many such IDs.
// Spec v1.19 client-server-api/#post_matrixmediav1create
func (r *Repository) Create(ctx context.Context, user matrix.UserID) (uri URI, expires time.Time, err error) {
	now := r.Now()
	m := storage.Media{
		Server: r.Server, MediaID: newMediaID(), Uploader: user,
		Created: now, Expires: now.Add(r.Config.PendingExpiry),
	}
	err = r.DB.ReserveMedia(ctx, m, r.Config.MaxPendingUploads)
	if errors.Is(err, storage.ErrQuota) {
		limit := matrix.LimitExceeded(time.Minute)
		limit.Message = fmt.Sprintf("you have %d media IDs that still wait for their upload", r.Config.MaxPendingUploads)
		return URI{}, time.Time{}, limit
	}
	if err != nil {
		return URI{}, time.Time{}, fmt.Errorf("reserve media ID: %w", err)
	}
	return URI{m.Server, m.MediaID}, m.Expires, nil
}

// UploadTo stores a file under a media ID that user has got from Create. It is M_NOT_FOUND for an ID that was not
// created or has expired, M_FORBIDDEN for another user's, M_CANNOT_OVERWRITE_MEDIA (409) for one that has content;
// else as Upload. Spec v1.19 client-server-api/#put_matrixmediav3uploadservernamemediaid
func (r *Repository) UploadTo(ctx context.Context, user matrix.UserID, uri URI, u Upload) error {
	m, err := r.DB.Media(ctx, uri.Server, uri.MediaID)
	switch {
	case errors.Is(err, storage.ErrNotFound) || err == nil && uri.Server != r.Server:
		return matrix.NotFound("this media ID was not created here")
	case err != nil:
		return fmt.Errorf("find created media: %w", err)
	case m.Uploader != user:
		return matrix.Forbidden("this media ID was created by another user")
	case !m.Hash.IsZero():
		return matrix.CannotOverwriteMedia("this media ID has content already")
	case m.Expires.IsZero():
		return matrix.CannotOverwriteMedia("this media ID is being recorded live")
	case !r.Now().Before(m.Expires):
		return matrix.NotFound("this media ID has expired")
	}
	if err := r.receive(ctx, user, uri, u); err != nil {
		return err
	}
	r.mu.Lock()
	close(r.uploaded)
	r.uploaded = make(chan struct{})
	r.mu.Unlock()
	return nil
}

// receive reads an upload to its end and keeps it under uri.
func (r *Repository) receive(ctx context.Context, user matrix.UserID, uri URI, u Upload) error {
	if u.Size > r.Config.MaxUploadBytes {
		return r.tooLarge()
	}
	staged, err := r.Blobs.Stage()
	if err != nil {
		return err
	}
	defer func() { staged.Discard() }()
	n, err := io.Copy(staged, io.LimitReader(u.Body, r.Config.MaxUploadBytes+1))
	switch {
	case n > r.Config.MaxUploadBytes:
		return r.tooLarge()
	case err != nil:
		return fmt.Errorf("read upload: %w", err)
	case u.Size >= 0 && n != u.Size:
		return matrix.BadRequest("the upload has %d bytes, its Content-Length says %d", n, u.Size)
	}
	recording, err := r.inspect(staged, n)
	if err != nil {
		return err
	}
	m := storage.Media{
		Server: uri.Server, MediaID: uri.MediaID, Uploader: user, Created: r.Now(),
		ContentType: cleanContentType(u.ContentType), Filename: cleanFilename(u.Filename),
	}
	staged, err = r.keep(ctx, staged, func(hash storage.BlobHash, size int64) error {
		m.Hash, m.Size = hash, size
		return r.DB.AddMedia(ctx, m, recording, r.Config.UserQuotaBytes)
	})
	switch {
	case errors.Is(err, storage.ErrMediaExists):
		return matrix.CannotOverwriteMedia("this media ID has content already")
	case errors.Is(err, storage.ErrQuota):
		return matrix.Forbidden("this file would put you over your quota of %d bytes", r.Config.UserQuotaBytes)
	case err != nil:
		return fmt.Errorf("keep upload: %w", err)
	}
	if recording != nil {
		r.measureAhead(m.Hash)
	}
	return nil
}

func (r *Repository) tooLarge() error {
	return matrix.TooLarge("a file may have at most %d bytes", r.Config.MaxUploadBytes)
}

// keep commits a staged blob and has add write the row that refers to it. If the same blob is just being deleted, by
// this process or another, it waits for that and starts over with a copy; the staged blob that it returns is the last
// one made. When it returns nil the blob is there to stay.
func (r *Repository) keep(ctx context.Context, staged *storage.StagedBlob, add func(storage.BlobHash, int64) error) (*storage.StagedBlob, error) {
	added := false
	for try := range 20 {
		hash, size, err := staged.Commit(ctx)
		if err != nil {
			return staged, err
		}
		if !added {
			err = add(hash, size)
			added = err == nil
		}
		if err == nil {
			_, err = r.Blobs.Size(ctx, hash)
			if err == nil {
				return staged, nil
			}
		}
		if !errors.Is(err, storage.ErrBlobDoomed) && !errors.Is(err, storage.ErrNoBlob) {
			return staged, err
		}
		if errors.Is(err, storage.ErrBlobDoomed) {
			select {
			case <-time.After(time.Duration(try+1) * 20 * time.Millisecond):
			case <-ctx.Done():
				return staged, ctx.Err()
			}
		}
		if staged, err = r.copyStaged(staged); err != nil {
			return staged, err
		}
	}
	return staged, errors.New("the blob is being deleted by another process, which does not end")
}

// copyStaged stages the bytes of a blob once more and discards the old one.
func (r *Repository) copyStaged(old *storage.StagedBlob) (*storage.StagedBlob, error) {
	staged, err := r.Blobs.Stage()
	if err != nil {
		return old, err
	}
	_, err = io.Copy(staged, io.NewSectionReader(old, 0, old.Size()))
	old.Discard()
	return staged, err
}

const defaultContentType = "application/octet-stream"

// cleanContentType keeps a content type as it was given if it is one.
func cleanContentType(s string) string {
	if _, _, err := mime.ParseMediaType(s); err != nil || len(s) > 255 || !strings.Contains(s, "/") {
		return defaultContentType
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return defaultContentType
		}
	}
	return s
}

// cleanFilename drops what cannot be shown and cuts a name that is too long for any file system.
func cleanFilename(s string) string {
	s = strings.Map(func(c rune) rune {
		if c == utf8.RuneError || unicode.IsControl(c) {
			return -1
		}
		return c
	}, s)
	for len(s) > 255 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
