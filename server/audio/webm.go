package audio

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
)

// EBML elements that matter here. RFC 8794, RFC 9559
const (
	ebmlHeader   = 0x1A45DFA3
	ebmlVersion  = 0x4286
	ebmlReadable = 0x42F7
	ebmlMaxID    = 0x42F2
	ebmlMaxSize  = 0x42F3
	ebmlDocType  = 0x4282
	ebmlDocVer   = 0x4287
	ebmlDocRead  = 0x4285

	mkvSegment     = 0x18538067
	mkvInfo        = 0x1549A966
	mkvScale       = 0x2AD7B1
	mkvDuration    = 0x4489
	mkvMuxer       = 0x4D80
	mkvWriter      = 0x5741
	mkvTracks      = 0x1654AE6B
	mkvTrack       = 0xAE
	mkvNumber      = 0xD7
	mkvUID         = 0x73C5
	mkvType        = 0x83
	mkvLacing      = 0x9C
	mkvCodec       = 0x86
	mkvPrivate     = 0x63A2
	mkvDelay       = 0x56AA
	mkvPreRoll     = 0x56BB
	mkvAudio       = 0xE1
	mkvRate        = 0xB5
	mkvChannels    = 0x9F
	mkvEncodings   = 0x6D80
	mkvCues        = 0x1C53BB6B
	mkvCue         = 0xBB
	mkvCueTime     = 0xB3
	mkvCueTrack    = 0xB7
	mkvCueWhere    = 0xF7
	mkvCueCluster  = 0xF1
	mkvCluster     = 0x1F43B675
	mkvTime        = 0xE7
	mkvSimpleBlock = 0xA3
	mkvBlockGroup  = 0xA0
	mkvBlock       = 0xA1
	mkvDiscard     = 0x75A2
	mkvAttachments = 0x1941A469

	maxTracksBytes = 64 << 10
	// maxIdleBytes is how much of a file may be something else than sound and its wrapping.
	maxIdleBytes = 1 << 20
	// maxGap is how far the time of a block may be ahead of the sound before it: recorders drop packets when the
	// machine is busy.
	maxGap = 5 * SampleRate
	// maxBehind is how far it may be behind.
	maxBehind = SampleRate / 10
)

// webMReader reads WebM and Matroska files of one Opus track, as browsers record them: also with sizes left open.
type webMReader struct {
	r    *bufio.Reader
	at   int64 // bytes read
	head Head

	number  uint64 // of the track
	scale   int64  // nanoseconds in a unit of time
	cluster int64  // time of the cluster in units
	end     int64  // of the segment, if it has a size; else -1
	idle    int64
	sum     int64
	trim    int
}

func newWebMReader(r io.Reader) (*webMReader, error) {
	w := &webMReader{r: bufio.NewReaderSize(r, 1<<15), scale: 1e6, end: -1}
	id, size, err := w.element()
	if err != nil || id != ebmlHeader || size < 0 || size > 1024 {
		return nil, ErrUnsupported
	}
	if err := w.skip(size); err != nil {
		return nil, ErrUnsupported
	}
	id, size, err = w.element()
	if err != nil || id != mkvSegment {
		return nil, ErrUnsupported
	}
	if size >= 0 {
		w.end = w.at + size
	}
	for w.number == 0 { // until the track is known nobody can say that this should have been a recording
		if _, err := w.step(); err != nil && w.number == 0 {
			return nil, ErrUnsupported
		} else if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// unended turns the end of the file, where there must be more, into an error.
func unended(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("the WebM file is cut off")
	}
	return err
}

// Head implements Reader.
func (w *webMReader) Head() Head { return w.head }

// Samples implements Reader.
func (w *webMReader) Samples() int64 { return max(w.sum-int64(w.trim)-int64(w.head.PreSkip), 0) }

// Trim implements Reader.
func (w *webMReader) Trim() int { return w.trim }

// Complete implements Reader: an open size at the end of a file is how browsers end their recordings.
func (w *webMReader) Complete() bool { return true }

// Next implements Reader.
func (w *webMReader) Next() ([]byte, error) {
	for {
		packet, err := w.step()
		if packet != nil || err != nil {
			return packet, err
		}
	}
}

// step reads one element: those that hold others are entered, so that an open size needs no care.
func (w *webMReader) step() ([]byte, error) {
	if w.end >= 0 && w.at >= w.end {
		if w.at > w.end {
			return nil, malformed("a WebM element reaches beyond its segment")
		}
		if _, err := w.r.Peek(1); err != io.EOF {
			return nil, malformed("something follows the WebM segment")
		}
		return nil, io.EOF
	}
	id, size, err := w.element()
	if err != nil {
		if err == io.EOF && w.end >= 0 {
			err = malformed("the WebM file is cut off")
		}
		return nil, err
	}
	if id == mkvCluster {
		return nil, nil
	}
	if size < 0 {
		return nil, malformed("a WebM element without a size")
	}
	switch id {
	case mkvInfo:
		return nil, w.readInfo(size)
	case mkvTracks:
		return nil, w.readTracks(size)
	case mkvTime:
		b, err := w.payload(size, 8)
		w.cluster = int64(min(ebmlUint(b), 1<<40))
		return nil, err
	case mkvSimpleBlock, mkvBlock:
		b, err := w.payload(size, maxPacketBytes+16)
		if err != nil {
			return nil, err
		}
		return w.block(b)
	case mkvBlockGroup:
		return w.blockGroup(size)
	case ebmlHeader, mkvSegment:
		return nil, malformed("a second WebM file is chained to the first")
	case mkvAttachments:
		return nil, malformed("the WebM file has attachments")
	}
	if w.idle += size; w.idle > maxIdleBytes {
		return nil, malformed("most of the WebM file is not sound")
	}
	return nil, w.skip(size)
}

func (w *webMReader) readInfo(size int64) error {
	b, err := w.payload(size, maxTracksBytes)
	if err != nil {
		return err
	}
	return ebmlEach(b, func(id uint32, b []byte) error {
		if id == mkvScale {
			w.scale = int64(min(ebmlUint(b), 1e9))
		}
		return nil
	})
}

func (w *webMReader) readTracks(size int64) error {
	b, err := w.payload(size, maxTracksBytes)
	if err != nil {
		return err
	}
	if w.number != 0 {
		return malformed("the WebM file lists its tracks twice")
	}
	var tracks [][]byte
	err = ebmlEach(b, func(id uint32, b []byte) error {
		if id == mkvTrack {
			tracks = append(tracks, b)
		}
		return nil
	})
	if err != nil || len(tracks) != 1 { // a film, or several languages
		return ErrUnsupported
	}
	return w.readTrack(tracks[0])
}

func (w *webMReader) readTrack(b []byte) error {
	var kind uint64
	var codec string
	var private []byte
	err := ebmlEach(b, func(id uint32, b []byte) error {
		switch id {
		case mkvNumber:
			w.number = ebmlUint(b)
		case mkvType:
			kind = ebmlUint(b)
		case mkvCodec:
			codec = string(b)
		case mkvPrivate:
			private = b
		case mkvEncodings:
			return ErrUnsupported
		}
		return nil
	})
	if err != nil {
		return err
	}
	if kind != 2 || codec != "A_OPUS" {
		return ErrUnsupported
	}
	if w.number == 0 || w.number > 127 {
		return malformed("the WebM track has no number")
	}
	w.head, err = ParseHead(private)
	return err
}

func (w *webMReader) blockGroup(size int64) (packet []byte, err error) {
	b, err := w.payload(size, maxPacketBytes+1024)
	if err != nil {
		return nil, err
	}
	discard := int64(0)
	err = ebmlEach(b, func(id uint32, b []byte) (err error) {
		switch id {
		case mkvBlock:
			if packet != nil {
				return malformed("two blocks in a WebM block group")
			}
			packet, err = w.block(b)
		case mkvDiscard:
			discard = ebmlInt(b)
		}
		return err
	})
	if err != nil || discard == 0 {
		return packet, err
	}
	if discard < 0 || discard > 1e9 {
		return nil, malformed("a WebM block throws away %d ns", discard)
	}
	if w.trim = int((discard*SampleRate + 5e8) / 1e9); w.trim > maxTrim || int64(w.trim) > w.sum {
		return nil, malformed("a WebM block throws away %v", Duration(int64(w.trim)))
	}
	return packet, nil
}

// block reads the packet of a block: track number, time, flags, packet.
func (w *webMReader) block(b []byte) ([]byte, error) {
	if w.number == 0 {
		return nil, malformed("a WebM block before the tracks")
	}
	if len(b) < 4 || uint64(b[0]) != w.number|0x80 {
		return nil, malformed("a WebM block of a track that does not exist")
	}
	if b[3]&0x06 != 0 {
		return nil, ErrUnsupported // several packets laced together
	}
	if w.trim != 0 {
		return nil, malformed("a WebM block after the one that throws away the end")
	}
	packet := b[4:]
	n, err := PacketSamples(packet)
	if err != nil {
		return nil, err
	}
	units := w.cluster + int64(int16(binary.BigEndian.Uint16(b[1:])))
	at := float64(units) * float64(w.scale) * SampleRate / 1e9
	if at-float64(w.sum) > maxGap || at-float64(w.sum) < -maxBehind-float64(w.head.PreSkip) {
		return nil, malformed("a WebM block is said to begin at %.1f s, but %.1f s come before it", at/SampleRate, float64(w.sum)/SampleRate)
	}
	w.sum += int64(n)
	return packet, nil
}

// element reads an ID and a size; -1 is an open size. io.EOF is the end before an element.
func (w *webMReader) element() (id uint32, size int64, err error) {
	first, err := w.r.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	w.at++
	n := 1
	for mask := byte(0x80); first&mask == 0; mask >>= 1 {
		if n++; n > 4 {
			return 0, 0, malformed("something that is no WebM element")
		}
	}
	id = uint32(first)
	for range n - 1 {
		b, err := w.byte()
		if err != nil {
			return 0, 0, err
		}
		id = id<<8 | uint32(b)
	}
	first, err = w.byte()
	if err != nil {
		return 0, 0, err
	}
	n = 1
	for mask := byte(0x80); first&mask == 0; mask >>= 1 {
		if n++; n > 8 {
			return 0, 0, malformed("a WebM element with a size that is none")
		}
	}
	ones := first|byte(0xff<<(8-n)) == 0xff
	size = int64(first & (0xff >> n))
	for range n - 1 {
		b, err := w.byte()
		if err != nil {
			return 0, 0, err
		}
		ones = ones && b == 0xff
		size = size<<8 | int64(b)
	}
	if ones {
		size = -1
	}
	return id, size, nil
}

func (w *webMReader) byte() (byte, error) {
	b, err := w.r.ReadByte()
	w.at++
	return b, unended(err)
}

// payload reads what is in an element, at most limit bytes. It is the caller's.
func (w *webMReader) payload(size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, malformed("a WebM element of %d bytes", size)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(w.r, b)
	w.at += size
	return b, unended(err)
}

func (w *webMReader) skip(size int64) error {
	_, err := io.CopyN(io.Discard, w.r, size)
	w.at += size
	return unended(err)
}

// ebmlEach visits the elements in b.
func ebmlEach(b []byte, visit func(id uint32, b []byte) error) error {
	for len(b) > 0 {
		id, n := ebmlVarint(b, 4, true)
		if n == 0 {
			return malformed("something that is no WebM element")
		}
		size, m := ebmlVarint(b[n:], 8, false)
		if m == 0 || size > uint64(len(b)-n-m) {
			return malformed("a WebM element is cut off")
		}
		b = b[n+m:]
		if err := visit(uint32(id), b[:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

// ebmlVarint reads a number of at most longest bytes, with the marker of its length or without. n is 0 if there is none.
func ebmlVarint(b []byte, longest int, marker bool) (v uint64, n int) {
	if len(b) == 0 || b[0] == 0 {
		return 0, 0
	}
	n = 1
	for mask := byte(0x80); b[0]&mask == 0; mask >>= 1 {
		n++
	}
	if n > longest || n > len(b) {
		return 0, 0
	}
	v = uint64(b[0])
	if !marker {
		v &= 0xff >> n
	}
	for _, c := range b[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, n
}

func ebmlUint(b []byte) (v uint64) {
	if len(b) > 8 {
		return math.MaxUint64
	}
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

func ebmlInt(b []byte) int64 {
	if len(b) == 0 || len(b) > 8 {
		return 0
	}
	shift := 64 - 8*len(b)
	return int64(ebmlUint(b)<<shift) >> shift
}

// ebml writes an element that holds parts.
func ebml(id uint32, parts ...[]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	b := appendEBMLHead(make([]byte, 0, size+12), id, size)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func appendEBMLHead(b []byte, id uint32, size int) []byte {
	for shift := 24; shift >= 0; shift -= 8 {
		if id>>shift != 0 {
			b = append(b, byte(id>>shift))
		}
	}
	// Always eight bytes, so that sizes are known before contents.
	return binary.BigEndian.AppendUint64(b, 1<<56|uint64(size))
}

func ebmlNumber(id uint32, v uint64) []byte { return ebml(id, binary.BigEndian.AppendUint64(nil, v)) }

func ebmlFloat(id uint32, v float64) []byte {
	return ebml(id, binary.BigEndian.AppendUint64(nil, math.Float64bits(v)))
}

// nanoseconds of a number of samples, rounded.
func nanoseconds(samples int64) uint64 { return (uint64(samples)*1e9 + SampleRate/2) / SampleRate }

// webM writes the track, with the points to jump to ahead of the sound.
func (t *track) webM() []byte {
	info := ebml(mkvInfo, ebmlNumber(mkvScale, 1e6), ebml(mkvMuxer, []byte("Parley")), ebml(mkvWriter, []byte("Parley")),
		ebmlFloat(mkvDuration, float64(t.audible())*1000/SampleRate))
	tracks := ebml(mkvTracks, ebml(mkvTrack,
		ebmlNumber(mkvNumber, 1), ebmlNumber(mkvUID, 1), ebmlNumber(mkvType, 2), ebmlNumber(mkvLacing, 0),
		ebml(mkvCodec, []byte("A_OPUS")), ebml(mkvPrivate, t.head.Append(nil)),
		ebmlNumber(mkvDelay, nanoseconds(int64(t.head.PreSkip))), ebmlNumber(mkvPreRoll, 80e6),
		ebml(mkvAudio, ebmlFloat(mkvRate, SampleRate), ebmlNumber(mkvChannels, uint64(t.head.Channels)))))
	clusters, times := t.webMClusters()
	cue := func(time, where uint64) []byte {
		return ebml(mkvCue, ebmlNumber(mkvCueTime, time), ebml(mkvCueWhere, ebmlNumber(mkvCueTrack, 1), ebmlNumber(mkvCueCluster, where)))
	}
	where := uint64(len(info) + len(tracks) + len(ebml(mkvCues)) + len(clusters)*len(cue(0, 0)))
	var cues [][]byte
	for i, c := range clusters {
		cues = append(cues, cue(times[i], where))
		where += uint64(len(c))
	}
	segment := append([][]byte{info, tracks, ebml(mkvCues, cues...)}, clusters...)
	header := ebml(ebmlHeader, ebmlNumber(ebmlVersion, 1), ebmlNumber(ebmlReadable, 1), ebmlNumber(ebmlMaxID, 4),
		ebmlNumber(ebmlMaxSize, 8), ebml(ebmlDocType, []byte("webm")), ebmlNumber(ebmlDocVer, 4), ebmlNumber(ebmlDocRead, 2))
	return append(header, ebml(mkvSegment, segment...)...)
}

// webMClusters makes clusters of five seconds.
func (t *track) webMClusters() (clusters [][]byte, times []uint64) {
	body := t.body
	for i := 0; i < len(t.packets); {
		start := uint64(t.packets[i].start * 1000 / SampleRate)
		parts := [][]byte{ebmlNumber(mkvTime, start)}
		for first := t.packets[i].start; i < len(t.packets) && t.packets[i].start-first < 5*SampleRate; i++ {
			p := t.packets[i]
			offset := uint16(uint64(p.start*1000/SampleRate) - start)
			block := append([]byte{0x81, byte(offset >> 8), byte(offset), 0x80}, body[:p.size]...)
			body = body[p.size:]
			if i == len(t.packets)-1 && t.trim > 0 {
				block[3] = 0
				parts = append(parts, ebml(mkvBlockGroup, ebml(mkvBlock, block), ebmlNumber(mkvDiscard, nanoseconds(int64(t.trim)))))
				continue
			}
			parts = append(parts, ebml(mkvSimpleBlock, block))
		}
		clusters = append(clusters, ebml(mkvCluster, parts...))
		times = append(times, start)
	}
	return clusters, times
}
