package audio

import (
	"errors"
	"io"
	"time"
)

// Container is how the packets of a recording are wrapped.
type Container string

// The containers that can be read and written.
const (
	Ogg  Container = "ogg"
	WebM Container = "webm"
	MP4  Container = "mp4"
)

// ContentType is the MIME type of a recording in the container.
func (c Container) ContentType() string { return "audio/" + string(c) }

// ErrTooLong says that a recording is well-formed, but plays longer than is allowed.
var ErrTooLong = errors.New("the recording is too long")

// Reader gives the packets of a recording, whatever its container.
type Reader interface {
	Head() Head
	// Next reads the next packet, which is valid until the call after. Its framing has been checked. At the end
	// of a well-formed recording it returns io.EOF.
	Next() ([]byte, error)
	// Samples, after io.EOF, is what there is to hear: all packets without the pre-skip and the trim.
	Samples() int64
	// Trim, after io.EOF, is how many samples at the end are not to be played.
	Trim() int
	// Complete tells, after io.EOF, whether the recording was ended properly; it is false for an Ogg stream that
	// just stops between two pages.
	Complete() bool
}

// Open recognizes the container by its first bytes and reads the headers. It is ErrUnsupported for everything that is
// not a recording of Opus, and a *MalformedError for a bad one.
func Open(r io.ReaderAt, size int64) (Reader, Container, error) {
	reader, container, err := open(r, size)
	if m, ok := reader.(*mp4Reader); ok && err == nil && m.aac != nil {
		return nil, "", ErrUnsupported
	}
	return reader, container, err
}

// open is Open for every codec that can be counted.
func open(r io.ReaderAt, size int64) (Reader, Container, error) {
	var magic [12]byte
	n, err := r.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	whole := io.NewSectionReader(r, 0, size)
	switch {
	case n >= 4 && string(magic[:4]) == "OggS":
		o, err := NewOggReader(whole)
		return o, Ogg, err
	case n >= 4 && string(magic[:4]) == "\x1a\x45\xdf\xa3":
		w, err := newWebMReader(whole)
		return w, WebM, err
	case n >= 8 && string(magic[4:8]) == "ftyp":
		m, err := newMP4Reader(r, size)
		return m, MP4, err
	}
	return nil, "", ErrUnsupported
}

// Info is what a recording is, counted and not claimed.
type Info struct {
	Container Container
	Codec     Codec
	Head      Head // of AAC only the channels
	Packets   int
	Samples   int64 // to hear
	Complete  bool  // see Reader
}

// Duration is how long the recording plays.
func (i Info) Duration() time.Duration { return Duration(i.Samples) }

// Inspect reads a recording from its first byte to its last without decoding it. One that plays longer than longest (0
// allows all) is ErrTooLong, given up as soon as that is certain; other errors are those of Open.
func Inspect(r io.ReaderAt, size int64, longest time.Duration) (Info, error) {
	reader, container, err := open(r, size)
	if err != nil {
		return Info{}, err
	}
	if m, ok := reader.(*mp4Reader); ok && m.aac != nil {
		return m.inspectAAC(longest)
	}
	info := Info{Container: container, Codec: Opus, Head: reader.Head()}
	certain := Duration(int64(info.Head.PreSkip)) + Duration(maxTrim) + longest
	var sum int64
	for {
		packet, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Info{}, err
		}
		n, _ := PacketSamples(packet)
		sum += int64(n)
		info.Packets++
		if longest > 0 && Duration(sum) > certain {
			return Info{}, ErrTooLong
		}
	}
	info.Samples, info.Complete = reader.Samples(), reader.Complete()
	if longest > 0 && info.Duration() > longest {
		return Info{}, ErrTooLong
	}
	return info, nil
}

// Remux writes a recording in another container. The packets stay as they are: nothing is decoded, nothing is lost.
// The whole recording is held in memory. All that is written is determined by the recording.
func Remux(w io.Writer, r Reader, to Container) error {
	whole, err := readTrack(r)
	if err != nil {
		return err
	}
	switch to {
	case WebM:
		_, err = w.Write(whole.webM())
	case MP4:
		_, err = w.Write(whole.mp4())
	default:
		err = whole.ogg(w)
	}
	return err
}

// ogg writes the track. All that is cut off at the end must lie on the last page.
func (t *track) ogg(w io.Writer) error {
	const serial = 0x7061726c
	o, err := NewOggWriter(w, t.head, serial)
	if err != nil {
		return err
	}
	body := t.body
	played := t.sum - int64(t.trim)
	for _, p := range t.packets {
		if p.start <= played && played < p.start+int64(p.samples) {
			o.Flush()
		}
		if err := o.WritePacket(body[:p.size]); err != nil {
			return err
		}
		body = body[p.size:]
	}
	return o.Close(t.trim)
}

// track is a whole recording in memory.
type track struct {
	head    Head
	packets []trackPacket
	body    []byte // all packets, one after the other
	sum     int64  // samples
	trim    int
}

type trackPacket struct {
	size, samples int
	start         int64 // samples before it
}

func readTrack(r Reader) (*track, error) {
	t := &track{head: r.Head()}
	for {
		packet, err := r.Next()
		if err == io.EOF {
			t.trim = r.Trim()
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		n, err := PacketSamples(packet)
		if err != nil {
			return nil, err
		}
		t.packets = append(t.packets, trackPacket{len(packet), n, t.sum})
		t.body = append(t.body, packet...)
		t.sum += int64(n)
	}
}

// audible is what there is to hear of the track.
func (t *track) audible() int64 { return max(t.sum-int64(t.trim)-int64(t.head.PreSkip), 0) }
