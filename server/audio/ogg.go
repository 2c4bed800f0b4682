package audio

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// Ogg pages. RFC 3533 section 6
const (
	oggHeaderBytes = 27
	oggContinued   = 1
	oggFirst       = 2
	oggLast        = 4

	maxTagsBytes = 1 << 20 // room for a cover picture, which we throw away

	// granuleSlack is how far an Ogg page's position may be from the sum of the packets before it: recorders that
	// count in milliseconds are off by a few samples. 20 ms.
	granuleSlack = SampleRate / 50
	// maxTrim is how much sound may be cut off at the end: encoders cut less than a packet, more is a hiding place.
	maxTrim = maxPacketSamples
)

var oggCRCTable = func() (t [256]uint32) {
	for i := range t {
		r := uint32(i) << 24
		for range 8 {
			if r&0x80000000 != 0 {
				r = r<<1 ^ 0x04c11db7
			} else {
				r <<= 1
			}
		}
		t[i] = r
	}
	return t
}()

func oggCRC(crc uint32, b []byte) uint32 {
	for _, c := range b {
		crc = crc<<8 ^ oggCRCTable[byte(crc>>24)^c]
	}
	return crc
}

// oggPage is one page of a stream. Its slices are valid until the next page is read.
type oggPage struct {
	flags    byte
	granule  int64 // -1 if no packet ends on the page
	serial   uint32
	sequence uint32
	lacing   []byte
	body     []byte
}

type oggPageReader struct {
	r      io.Reader
	header [oggHeaderBytes + 255]byte
	body   [255 * 255]byte
}

// next reads a page and checks its sum. io.EOF is the end between two pages.
func (o *oggPageReader) next() (oggPage, error) {
	h := o.header[:oggHeaderBytes]
	switch _, err := io.ReadFull(o.r, h); {
	case err == io.EOF:
		return oggPage{}, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return oggPage{}, malformed("bytes after the last Ogg page, or a page cut off")
	case err != nil:
		return oggPage{}, err
	}
	if string(h[:4]) != "OggS" || h[4] != 0 {
		return oggPage{}, malformed("something that is no Ogg page")
	}
	lacing := o.header[oggHeaderBytes : oggHeaderBytes+int(h[26])]
	size := 0
	if err := o.fill(lacing); err != nil {
		return oggPage{}, err
	}
	for _, n := range lacing {
		size += int(n)
	}
	body := o.body[:size]
	if err := o.fill(body); err != nil {
		return oggPage{}, err
	}
	want := binary.LittleEndian.Uint32(h[22:])
	clear(h[22:26])
	if oggCRC(oggCRC(0, o.header[:oggHeaderBytes+len(lacing)]), body) != want {
		return oggPage{}, malformed("an Ogg page with a wrong checksum")
	}
	return oggPage{
		flags:    h[5],
		granule:  int64(binary.LittleEndian.Uint64(h[6:])),
		serial:   binary.LittleEndian.Uint32(h[14:]),
		sequence: binary.LittleEndian.Uint32(h[18:]),
		lacing:   lacing,
		body:     body,
	}, nil
}

func (o *oggPageReader) fill(b []byte) error {
	_, err := io.ReadFull(o.r, b)
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		return malformed("an Ogg page cut off")
	}
	return err
}

// OggReader reads an Ogg Opus recording: one logical stream from the first byte to the last (RFC 7845). It checks the
// checksum and number of every page, the framing of every packet, and every position against the packets before it.
type OggReader struct {
	pages oggPageReader
	head  Head

	serial   uint32
	sequence uint32 // of the next page
	partial  []byte // a packet that goes on on the next page
	packets  [][]byte
	ended    bool // the page with the mark of the end has been read
	complete bool

	started bool
	base    int64 // position before the first packet
	sum     int64 // samples in all packets read so far
	played  int64 // samples up to the position of the last page
}

// NewOggReader reads the two headers. A file that is not Ogg, or not Opus in Ogg, is ErrUnsupported.
func NewOggReader(r io.Reader) (*OggReader, error) {
	buffered := bufio.NewReaderSize(r, 1<<16)
	if magic, err := buffered.Peek(4); err != nil || string(magic) != "OggS" {
		return nil, ErrUnsupported
	}
	o := &OggReader{pages: oggPageReader{r: buffered}}
	page, err := o.pages.next()
	if err != nil {
		return nil, err
	}
	if len(page.body) < 8 || string(page.body[:8]) != "OpusHead" {
		return nil, ErrUnsupported
	}
	if page.flags != oggFirst || len(page.lacing) != 1 || page.granule != 0 {
		return nil, malformed("the Opus header does not stand alone on the first page")
	}
	o.serial, o.sequence = page.serial, page.sequence+1
	if o.head, err = ParseHead(page.body); err != nil {
		return nil, err
	}
	return o, o.readTags()
}

func (o *OggReader) readTags() error {
	for {
		page, err := o.page(maxTagsBytes)
		if err != nil {
			return err
		}
		switch {
		case len(o.packets) == 0 && page.flags&oggLast == 0:
			continue
		case len(o.packets) != 1 || o.partial != nil || page.flags&oggLast != 0:
			return malformed("the Opus comment header does not stand alone on its pages")
		}
		err = checkTags(o.packets[0])
		o.packets = nil
		return err
	}
}

// page reads the next page of the stream and appends the packets that end on it to o.packets.
func (o *OggReader) page(maxPacket int) (oggPage, error) {
	page, err := o.pages.next()
	if err == io.EOF {
		err = malformed("the Ogg stream ends within its headers")
		if o.head.Channels > 0 && o.started {
			err = io.EOF
		}
		return page, err
	}
	if err != nil {
		return page, err
	}
	switch {
	case page.flags&oggFirst != 0 && page.serial != o.serial && !o.started && len(o.partial) == 0:
		return page, ErrUnsupported // several streams side by side: a film
	case page.flags&oggFirst != 0:
		return page, malformed("a second stream is chained to the first")
	case page.serial != o.serial:
		return page, malformed("a page of another stream")
	case page.sequence != o.sequence:
		return page, malformed("Ogg page %d is missing", o.sequence)
	case (page.flags&oggContinued != 0) != (o.partial != nil):
		return page, malformed("an Ogg packet does not go on where it was broken off")
	}
	o.sequence++
	o.ended = page.flags&oggLast != 0
	body := page.body
	size := 0
	for _, n := range page.lacing {
		size += int(n)
		if n == 255 {
			continue
		}
		if len(o.partial)+size > maxPacket {
			return page, malformed("an Ogg packet of more than %d bytes", maxPacket)
		}
		packet := append(o.partial, body[:size]...)
		if o.partial == nil {
			packet = body[:size:size]
		}
		o.packets = append(o.packets, packet)
		o.partial = nil
		body, size = body[size:], 0
	}
	if size > 0 {
		if len(o.partial)+size > maxPacket {
			return page, malformed("an Ogg packet of more than %d bytes", maxPacket)
		}
		o.partial = append(o.partial, body[:size]...)
	}
	return page, nil
}

// Head is the stream's header.
func (o *OggReader) Head() Head { return o.head }

// Next reads the next packet, which is valid until the call after. At the end of a well-formed stream it returns
// io.EOF; a stream that just stops, at the end of a page, is well-formed but not Complete.
func (o *OggReader) Next() ([]byte, error) {
	for len(o.packets) == 0 {
		if o.ended {
			return nil, o.finish()
		}
		if err := o.nextAudioPage(); err != nil {
			return nil, err
		}
	}
	packet := o.packets[0]
	o.packets = o.packets[1:]
	return packet, nil
}

func (o *OggReader) nextAudioPage() error {
	o.started = true
	o.packets = o.packets[:0]
	page, err := o.page(maxPacketBytes)
	if err == io.EOF && o.partial != nil {
		return malformed("the last packet is cut off")
	}
	if err != nil {
		return err
	}
	var samples int64
	for _, packet := range o.packets {
		n, err := PacketSamples(packet)
		if err != nil {
			return err
		}
		samples += int64(n)
	}
	return o.checkGranule(page, samples)
}

// checkGranule compares the position of a page with what has been counted. RFC 7845 section 4
func (o *OggReader) checkGranule(page oggPage, samples int64) error {
	if len(o.packets) == 0 {
		if page.granule != -1 && !(o.ended && page.granule == o.base+o.played) {
			return malformed("an Ogg page has a position, but no packet ends on it")
		}
		return nil
	}
	// Any position an encoder counts to fits in 62 bits with room for sums.
	if page.granule < 0 || page.granule >= 1<<62 {
		return malformed("an Ogg page has no position")
	}
	first := o.sum == 0
	o.sum += samples
	if first && (page.granule > samples || !o.ended) {
		o.base = max(page.granule-samples, 0) // a recording may be cut out of a longer one
	}
	claimed := page.granule - o.base
	switch excess := claimed - o.sum; {
	case excess > granuleSlack:
		return malformed("an Ogg page claims %v of sound, there are %v", Duration(claimed), Duration(o.sum))
	case excess < -granuleSlack && !o.ended, excess < -maxTrim, claimed < o.played:
		return malformed("an Ogg page claims %v of sound, there are %v", Duration(claimed), Duration(o.sum))
	}
	o.played = claimed
	return nil
}

func (o *OggReader) finish() error {
	if o.partial != nil {
		return malformed("the last packet is cut off")
	}
	switch page, err := o.pages.next(); {
	case err == nil && page.flags&oggFirst != 0:
		return malformed("a second stream is chained to the first")
	case err == nil:
		return malformed("an Ogg page after the last one")
	case err != io.EOF:
		return err
	}
	o.complete = true
	return io.EOF
}

// Complete tells, after Next has returned io.EOF, whether the stream was properly ended.
func (o *OggReader) Complete() bool { return o.complete }

// Samples is what has been read so far without the pre-skip and what the last page cuts off: what there is to hear.
func (o *OggReader) Samples() int64 { return max(o.played-int64(o.head.PreSkip), 0) }

// Trim is how many samples of the last packets are not to be played.
func (o *OggReader) Trim() int { return int(max(o.sum-o.played, 0)) }

// OggWriter writes an Ogg Opus recording.
type OggWriter struct {
	w        io.Writer
	serial   uint32
	sequence uint32
	granule  int64 // at the end of the packets waiting

	lacing  []byte
	body    []byte
	samples int64 // waiting in body
	page    []byte
	err     error
}

// NewOggWriter writes the headers of a recording. The serial number tells it from others chained to it; with one
// recording to a file any number will do.
func NewOggWriter(w io.Writer, head Head, serial uint32) (*OggWriter, error) {
	o := &OggWriter{w: w, serial: serial}
	o.add(head.Append(nil))
	o.flush(oggFirst)
	o.add(appendTags(nil, "Parley"))
	o.flush(0)
	return o, o.err
}

// WritePacket appends a packet. It is written with the page that is full, after a second of sound, or with Flush; the
// last page always waits for Close.
func (o *OggWriter) WritePacket(packet []byte) error {
	samples, err := PacketSamples(packet)
	if err != nil {
		return err
	}
	if o.samples+int64(samples) > SampleRate || len(o.lacing)+len(packet)/255+1 > 255 {
		o.flush(0)
	}
	o.add(packet)
	o.samples += int64(samples)
	o.granule += int64(samples)
	return o.err
}

// Flush writes out the packets that wait: for a recording that is listened to while it is made.
func (o *OggWriter) Flush() error {
	o.flush(0)
	return o.err
}

// Close writes the last page, of whose sound the last trim samples are not to be played; they must have been written
// since the last Flush. It does not close the underlying writer.
func (o *OggWriter) Close(trim int) error {
	if int64(trim) > o.samples {
		return malformed("%d samples are to be cut off, the last Ogg page has %d", trim, o.samples)
	}
	o.granule -= int64(trim)
	o.flush(oggLast)
	return o.err
}

func (o *OggWriter) add(packet []byte) {
	for n := len(packet); ; n -= 255 {
		o.lacing = append(o.lacing, byte(min(n, 255)))
		if n < 255 {
			break
		}
	}
	o.body = append(o.body, packet...)
}

// flush writes the waiting packets as one page; on the last page, and only there, there may be none.
func (o *OggWriter) flush(flags byte) {
	if o.err != nil || len(o.lacing) == 0 && flags&oggLast == 0 {
		return
	}
	p := append(o.page[:0], "OggS\x00"...)
	p = append(p, flags)
	p = binary.LittleEndian.AppendUint64(p, uint64(o.granule))
	p = binary.LittleEndian.AppendUint32(p, o.serial)
	p = binary.LittleEndian.AppendUint32(p, o.sequence)
	p = append(p, 0, 0, 0, 0, byte(len(o.lacing)))
	p = append(append(p, o.lacing...), o.body...)
	binary.LittleEndian.PutUint32(p[22:], oggCRC(0, p))
	_, o.err = o.w.Write(p)
	o.page, o.lacing, o.body, o.samples = p, o.lacing[:0], o.body[:0], 0
	o.sequence++
}
