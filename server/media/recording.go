package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// measureAheadBytes is the largest upload whose waveform is computed before anyone asks: five minutes of speech.
	measureAheadBytes = 1 << 20
	// maxRemuxBytes is the largest recording that is put into another container, which is done in memory.
	maxRemuxBytes = 32 << 20
)

// inspect counts what is in a recording. It is nil for a file that is none; the error is M_INVALID_PARAM for one that is
// not well-formed.
func (r *Repository) inspect(content io.ReaderAt, size int64) (*storage.Recording, error) {
	if !r.Config.VerifyRecordings {
		return nil, nil
	}
	info, err := audio.Inspect(content, size, 0)
	var bad *audio.MalformedError
	switch {
	case errors.As(err, &bad):
		return nil, matrix.InvalidParam("the recording cannot be accepted: %s", bad.Reason)
	case errors.Is(err, audio.ErrUnsupported):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspect recording: %w", err)
	}
	return &storage.Recording{Container: string(info.Container), Codec: string(info.Codec), Channels: info.Head.Channels, Samples: info.Samples}, nil
}

// Recording is what was counted in a file that is here, of ours or of another server's. It is M_NOT_FOUND for a file that
// is no recording, has not been uploaded, or would have to be fetched.
func (r *Repository) Recording(ctx context.Context, uri URI) (storage.Media, storage.Recording, error) {
	m, err := r.DB.Media(ctx, uri.Server, uri.MediaID)
	var known storage.Recording
	if err == nil && !m.Hash.IsZero() {
		known, err = r.DB.Recording(ctx, m.Hash)
	} else if err == nil {
		err = storage.ErrNotFound
	}
	if errors.Is(err, storage.ErrNotFound) {
		return m, known, matrix.NotFound("the file is no recording that this server has")
	}
	return m, known, err
}

// Waveform is the waveform of a recording, computed when it is first asked for: 100 numbers from 0 to 1024. It is nil for
// a recording that is too long to be decoded, or not Opus.
func (r *Repository) Waveform(ctx context.Context, hash storage.BlobHash) ([]int, error) {
	known, err := r.DB.Recording(ctx, hash)
	if err != nil || known.Waveform != nil || known.Codec != string(audio.Opus) || known.Duration() > r.Config.MaxDecoded {
		return known.Waveform, err
	}
	made := r.making.DoChan("waveform "+hash.String(), func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		return r.measure(r.life, hash)
	})
	select {
	case result := <-made:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.([]int), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// measureAhead begins to compute the waveform of what was just uploaded: the message that needs it comes within a moment.
func (r *Repository) measureAhead(hash storage.BlobHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.running.Go(func() {
		if size, err := r.Blobs.Size(r.life, hash); err != nil || size > measureAheadBytes {
			return
		}
		if _, err := r.Waveform(r.life, hash); err != nil && r.life.Err() == nil && !errors.Is(err, storage.ErrNotFound) {
			r.Log.Error("compute waveform", "err", err)
		}
	})
}

func (r *Repository) measure(ctx context.Context, hash storage.BlobHash) ([]int, error) {
	select {
	case r.soundSlots <- struct{}{}:
		defer func() { <-r.soundSlots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	reader, content, err := r.openRecording(ctx, hash)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	sound, err := audio.Measure(reader)
	if err != nil {
		return nil, fmt.Errorf("measure recording: %w", err)
	}
	return sound.Waveform, r.DB.SetWaveform(ctx, hash, sound.Waveform)
}

func (r *Repository) openRecording(ctx context.Context, hash storage.BlobHash) (audio.Reader, storage.Blob, error) {
	size, err := r.Blobs.Size(ctx, hash)
	if err != nil {
		return nil, nil, err
	}
	content, err := r.Blobs.Open(ctx, hash)
	if err != nil {
		return nil, nil, err
	}
	reader, _, err := audio.Open(content, size)
	if err != nil {
		content.Close()
		return nil, nil, fmt.Errorf("open recording: %w", err)
	}
	return reader, content, nil
}

// rendition opens a recording in the container that is asked for.
func (r *Repository) rendition(ctx context.Context, req Request) (*File, error) {
	m, fetch, err := r.find(ctx, req)
	if err != nil {
		return nil, err
	}
	if base, _, _ := strings.Cut(m.ContentType, ";"); fetch == nil && m.Hash.IsZero() && base == req.Container.ContentType() {
		return r.openLive(ctx, req.URI) // as it is recorded
	}
	if fetch != nil {
		if file, err := fetch.openAs(ctx, req.Container); file != nil || err != nil {
			return file, err
		}
		fetch.staged.Release()
	}
	if m, err = r.complete(ctx, req); err != nil {
		return nil, err
	}
	known, err := r.DB.Recording(ctx, m.Hash)
	switch {
	case errors.Is(err, storage.ErrNotFound) || err == nil && (!r.Config.Renditions || m.Size > maxRemuxBytes):
		return nil, matrix.InvalidParam("the file cannot be had in another container")
	case err != nil:
		return nil, fmt.Errorf("find recording: %w", err)
	case known.Container == string(req.Container):
		m.ContentType = req.Container.ContentType()
		return r.openBlob(ctx, m)
	case known.Codec != string(audio.Opus):
		return nil, matrix.InvalidParam("the file is a recording of %s, which stays in its container", known.Codec)
	}
	m.Filename = renamed(m.Filename, req.Container)
	m.ContentType = req.Container.ContentType()
	made, err := r.DB.Derivative(ctx, m.Hash, string(req.Container), 0, 0)
	if err == nil {
		m.Hash, m.Size = made.Hash, made.Size
		return r.openBlob(ctx, m)
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return nil, fmt.Errorf("find rendition: %w", err)
	}
	remuxed := r.making.DoChan("rendition "+m.Hash.String()+" "+string(req.Container), func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		return r.remux(r.life, m.Hash, req.Container)
	})
	select {
	case result := <-remuxed:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(picture).rendition(m), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// remux makes and keeps a recording in another container.
func (r *Repository) remux(ctx context.Context, hash storage.BlobHash, to audio.Container) (picture, error) {
	select {
	case r.soundSlots <- struct{}{}:
		defer func() { <-r.soundSlots }()
	case <-ctx.Done():
		return picture{}, ctx.Err()
	}
	reader, content, err := r.openRecording(ctx, hash)
	if err != nil {
		return picture{}, err
	}
	defer content.Close()
	var out bytes.Buffer
	if err := audio.Remux(&out, reader, to); err != nil {
		return picture{}, fmt.Errorf("remux: %w", err)
	}
	p := picture{bytes: out.Bytes(), contentType: to.ContentType()}
	p.hash, err = r.keepDerivative(ctx, p.bytes, storage.Derivative{Source: hash, Kind: string(to), ContentType: p.contentType})
	return p, err
}

func (p picture) rendition(m storage.Media) *File {
	return &File{
		ReadSeekCloser: noClose{bytes.NewReader(p.bytes)}, ContentType: p.contentType, Filename: m.Filename,
		Hash: p.hash, Size: int64(len(p.bytes)), Created: m.Created,
	}
}

// renamed gives a file name the ending of another container.
func renamed(name string, to audio.Container) string {
	if name == "" {
		return ""
	}
	return strings.TrimSuffix(name, path.Ext(name)) + "." + string(to)
}
