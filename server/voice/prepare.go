package voice

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// Options are what a Service is made of.
type Options struct {
	Config Config
	DB     *storage.DB
	Media  *media.Repository
	Log    *slog.Logger

	// The rest is for transcripts, which there are none of without Rooms and Client.

	Rooms *room.Service
	// Client speaks to the speech service. It should reach nothing else, and follow no redirects.
	Client *http.Client
	// Now is time.Now if it is nil.
	Now func() time.Time
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Service is the voice room of one server.
type Service struct {
	Options
	transcriber
	tender
}

// New makes the service. Run does what goes on in the background; Close is for those whose database lives on.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Service{Options: o}
	s.transcriber.init(s)
	s.tender.init(s)
	return s
}

const (
	typeMessage = "m.room.message"
	// claimSlack is how wrong a duration may be without being called false: clients measure with a stopwatch.
	claimSlack = 1000 // ms
	// measureWait is how long a message waits for its waveform.
	measureWait = 5 * time.Second
	// maxPoints is the longest waveform that is taken from a client.
	maxPoints = 1024
)

// Prepare looks at the content of an event that sender, one of our users, is about to send to a room, and returns what is to
// be sent: for a voice message in clear whose file is here, with the duration, size, type and waveform that the file really
// has; for everything else the content as it is. content must be a JSON object. Errors are M_TOO_LARGE (413) for a message
// over the server's or the room's limit, M_INVALID_PARAM for false claims where they are refused and for a file that is no
// recording where that is required; of a message whose recording is to be heard live also M_FORBIDDEN and those of media.StartLive. Whether the sender may send there is not looked into; for somebody who is not in the
// room nothing is done.
func (s *Service) Prepare(ctx context.Context, id matrix.RoomID, sender matrix.UserID, eventType string, content json.RawMessage) (json.RawMessage, error) {
	// Nearly all events end here.
	if eventType != typeMessage || !bytes.Contains(content, []byte(`"m.audio"`)) && !bytes.Contains(content, []byte(`"`+storage.LiveKey)) {
		return content, nil
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(content, &m); err != nil {
		return content, nil
	}
	if m[storage.LiveKey] != nil {
		return s.prepareLive(ctx, id, sender, m)
	}
	if !isVoice(m) {
		return content, nil
	}
	var address string
	if json.Unmarshal(m["url"], &address) != nil {
		return content, nil // encrypted
	}
	uri, err := media.ParseURI(address)
	if err != nil {
		return content, nil
	}
	limit, in, err := s.limit(ctx, id, sender)
	if err != nil || !in {
		return content, err
	}
	file, recording, err := s.Media.Recording(ctx, uri)
	if known := matrix.ErrorCode(err) != "M_NOT_FOUND"; !known || err == nil && recording.Codec != string(audio.Opus) {
		if s.Config.RequireOpus && !file.Hash.IsZero() {
			return nil, matrix.InvalidParam("the file of a voice message must be an Opus recording in Ogg, WebM or MP4")
		}
		if !known {
			return content, limit.check(claimed(m)) // nothing better is known
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up recording: %w", err)
	}
	if err := limit.check(recording.Duration()); err != nil {
		return nil, err
	}
	return s.correct(ctx, m, file, recording)
}

// claimed is how long a message says that it lasts; 0 if it does not.
func claimed(m map[string]json.RawMessage) time.Duration {
	longest := 0.0
	for _, part := range []string{"info", "org.matrix.msc1767.audio"} {
		if ms, ok := number(object(m[part])["duration"]); ok {
			longest = max(longest, ms)
		}
	}
	return time.Duration(min(longest, maxPosition)) * time.Millisecond
}

// isVoice tells whether the flag is set that makes an audio message a voice message.
func isVoice(m map[string]json.RawMessage) bool {
	if string(m["msgtype"]) != `"m.audio"` {
		return false
	}
	for _, flag := range []string{"org.matrix.msc3245.voice", "m.voice"} {
		if _, ok := m[flag]; ok {
			return true
		}
	}
	return false
}

// truth is what a message must say of its file.
type truth struct {
	durationMS int64
	size       int64
	container  audio.Container
}

func (s *Service) correct(ctx context.Context, m map[string]json.RawMessage, file storage.Media, recording storage.Recording) (json.RawMessage, error) {
	t := truth{recording.DurationMS(), file.Size, audio.Container(recording.Container)}
	info, sound := object(m["info"]), object(m["org.matrix.msc1767.audio"])
	if s.Config.FalseClaims == RefuseClaims {
		if err := t.check(info, sound); err != nil {
			return nil, err
		}
	}
	t.write(info)
	m["info"] = encode(info)
	if file, ok := m["org.matrix.msc1767.file"]; ok {
		o := object(file)
		t.write(o)
		delete(o, "duration")
		m["org.matrix.msc1767.file"] = encode(o)
	}
	sound["duration"] = encode(t.durationMS)
	if s.Config.Waveforms && !isWaveform(sound["waveform"]) {
		waveform, err := s.waveform(ctx, file.Hash)
		if err != nil {
			return nil, err
		}
		delete(sound, "waveform")
		if waveform != nil {
			sound["waveform"] = encode(waveform)
		}
	}
	m["org.matrix.msc1767.audio"] = encode(sound)
	return encode(m), nil
}

// waveform waits a moment for the waveform of a recording; a message must not fail for want of it.
func (s *Service) waveform(ctx context.Context, hash storage.BlobHash) ([]int, error) {
	wait, cancel := context.WithTimeout(ctx, measureWait)
	defer cancel()
	waveform, err := s.Media.Waveform(wait, hash)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		s.Log.Warn("voice message without waveform", "err", err)
	}
	return waveform, nil
}

// check finds a claim that is more wrong than a client may be.
func (t truth) check(info, sound map[string]json.RawMessage) error {
	if size, ok := number(info["size"]); ok && size != float64(t.size) {
		return matrix.InvalidParam("the message says that its file has %.0f bytes; it has %d", size, t.size)
	}
	for _, claimed := range []json.RawMessage{info["duration"], sound["duration"]} {
		if ms, ok := number(claimed); ok && math.Abs(ms-float64(t.durationMS)) > claimSlack {
			return matrix.InvalidParam("the message says that it lasts %.0f ms; it lasts %d", ms, t.durationMS)
		}
	}
	return nil
}

// write puts the truth into an info block. A type that names the right container stays as it is: it may name the codec too.
func (t truth) write(info map[string]json.RawMessage) {
	info["duration"] = encode(t.durationMS)
	info["size"] = encode(t.size)
	var claimed string
	json.Unmarshal(info["mimetype"], &claimed)
	base, _, _ := strings.Cut(claimed, ";")
	if !strings.EqualFold(strings.TrimSpace(base), t.container.ContentType()) {
		info["mimetype"] = encode(t.container.ContentType())
	}
}

// isWaveform tells whether a message has a waveform that can be drawn: whole numbers up to 1024, of which one is above
// 256. One that stays below was meant for a scale of 256, or is of silence; in both cases ours is better.
func isWaveform(raw json.RawMessage) bool {
	var points []float64
	if json.Unmarshal(raw, &points) != nil || len(points) == 0 || len(points) > maxPoints {
		return false
	}
	high := false
	for _, p := range points {
		if p < 0 || p > 1024 || p != math.Trunc(p) {
			return false
		}
		high = high || p > 256
	}
	return high
}

// object reads a JSON object; what is none becomes an empty one.
func object(raw json.RawMessage) map[string]json.RawMessage {
	var o map[string]json.RawMessage
	if json.Unmarshal(raw, &o) != nil || o == nil {
		return map[string]json.RawMessage{}
	}
	return o
}

func number(raw json.RawMessage) (float64, bool) {
	var n *float64
	if len(raw) == 0 || json.Unmarshal(raw, &n) != nil || n == nil {
		return 0, false
	}
	return *n, true
}

// encode writes what has come from JSON, or is numbers and plain strings: it cannot fail.
func encode(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
