package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"parley.im/parley/server/audio"
)

// Recording is what was counted in a blob that is a recording.
type Recording struct {
	Hash      BlobHash
	Container string // "ogg", "webm" or "mp4"
	Codec     string // "opus"; of others, "aac", no more is known than how long they are
	Channels  int
	Samples   int64 // at 48 kHz, to be heard
	Waveform  []int // 100 numbers from 0 to 1024; nil if not computed yet
}

// Duration is how long the recording plays.
func (r Recording) Duration() time.Duration { return audio.Duration(r.Samples) }

// DurationMS is how many milliseconds it plays, rounded, as messages have it.
func (r Recording) DurationMS() int64 {
	return (r.Samples*1000 + audio.SampleRate/2) / audio.SampleRate
}

// Recording tells what is known of a blob; it is ErrNotFound for what is no recording.
func (db *DB) Recording(ctx context.Context, hash BlobHash) (Recording, error) {
	r := Recording{Hash: hash}
	var waveform string
	err := db.Read(ctx).Raw("SELECT container, codec, channels, samples, waveform FROM recordings WHERE hash = ?", hash.String()).Row().
		Scan(&r.Container, &r.Codec, &r.Channels, &r.Samples, &waveform)
	if errors.Is(err, sql.ErrNoRows) {
		return r, ErrNotFound
	}
	if err != nil || waveform == "" {
		return r, err
	}
	for number := range strings.SplitSeq(waveform, ",") {
		n, err := strconv.Atoi(number)
		if err != nil {
			return r, fmt.Errorf("waveform of %s: %w", hash, err)
		}
		r.Waveform = append(r.Waveform, n)
	}
	return r, nil
}

func (tx *Tx) addRecording(hash BlobHash, r Recording) error {
	return tx.Exec("INSERT INTO recordings (hash, container, codec, channels, samples, waveform) VALUES (?, ?, ?, ?, ?, '') ON CONFLICT (hash) DO NOTHING",
		hash.String(), r.Container, r.Codec, r.Channels, r.Samples).Error
}

// SetWaveform keeps the waveform of a recording, if the recording is still there.
func (db *DB) SetWaveform(ctx context.Context, hash BlobHash, waveform []int) error {
	numbers := make([]string, len(waveform))
	for i, n := range waveform {
		numbers[i] = strconv.Itoa(n)
	}
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("UPDATE recordings SET waveform = ? WHERE hash = ?", strings.Join(numbers, ","), hash.String()).Error
	})
}
