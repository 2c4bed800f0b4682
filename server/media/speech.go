package media

import (
	"context"
	"io"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/storage"
)

// Fetch brings a file here, if it is another server's and is not here yet, and describes it once all of it is. Errors are
// those of Open.
func (r *Repository) Fetch(ctx context.Context, req Request) (storage.Media, error) {
	return r.complete(ctx, req)
}

// WriteWAV decodes a recording of at most longest into a WAV file of 16 bits, one channel, 16 kHz, as speech recognition
// wants it. The errors about the recording are those of [audio.Inspect]; storage.ErrNoBlob if it is gone.
func (r *Repository) WriteWAV(ctx context.Context, w io.Writer, hash storage.BlobHash, longest time.Duration) error {
	select {
	case r.soundSlots <- struct{}{}:
		defer func() { <-r.soundSlots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	size, err := r.Blobs.Size(ctx, hash)
	if err != nil {
		return err
	}
	content, err := r.Blobs.Open(ctx, hash)
	if err != nil {
		return err
	}
	defer content.Close()
	return audio.WriteWAV(w, content, size, longest)
}
