package audio

import (
	"encoding/binary"
	"io"
)

// MP4 files of one Opus track (ISO 14496-12, “Encapsulation of Opus in ISO Base Media File Format”), whole or in
// fragments, as Safari records them; of AAC the tables are read, too (aac.go).

const (
	maxMoovBytes = 8 << 20 // a size for each packet of hours
	maxMoofBytes = 1 << 20
	maxSamples   = 1 << 20 // five hours of 20 ms
)

// mp4Sample is where a packet lies in the file.
type mp4Sample struct {
	at   int64
	size uint32
}

type mp4Reader struct {
	r    io.ReaderAt
	size int64
	head Head
	aac  *aacConfig // nil for Opus

	samples    []mp4Sample
	timescale  uint64 // of the movie
	mediaScale uint64 // of the track
	// Ends of the sound in samples, by the table of durations and by the edit list; -1 if there is none.
	tableEnd, editEnd int64
	editLength        int64 // what the edit list plays; 0 if there is none
	fragEnd           int64 // by the durations in fragments, in the track's timescale
	trackID           uint32
	defaultSize       uint32 // of samples in fragments
	defaultDuration   uint32
	mdat              [][2]int64

	packet []byte
	next   int
	sum    int64
	trim   int
}

// mp4Box is a box in memory.
type mp4Box struct {
	kind string
	body []byte
}

func newMP4Reader(r io.ReaderAt, size int64) (*mp4Reader, error) {
	m := &mp4Reader{r: r, size: size, tableEnd: -1, editEnd: -1}
	if err := m.read(); err != nil {
		return nil, m.unlessAAC(err)
	}
	return m, nil
}

// read reads all but the packets.
func (m *mp4Reader) read() error {
	size := m.size
	idle := size
	for at := int64(0); at < size; {
		kind, body, end, err := m.topBox(at)
		if err != nil && m.head.Channels == 0 { // nobody can say that this should have been a recording
			return ErrUnsupported
		}
		if err != nil {
			return err
		}
		switch kind {
		case "moov":
			err = m.readMoov(body, end)
		case "moof":
			err = m.readMoof(at, body, end)
		case "mdat":
			m.mdat = append(m.mdat, [2]int64{body, end})
		}
		if err != nil {
			return err
		}
		at = end
	}
	if m.head.Channels == 0 {
		return ErrUnsupported
	}
	if m.tableEnd < 0 { // in fragments: the edit list was written before anyone knew the end
		m.editEnd = -1
	}
	for _, s := range m.samples {
		if !m.inData(s) {
			return malformed("an MP4 packet lies outside of the data")
		}
		idle -= int64(s.size)
	}
	if idle > maxIdleBytes+int64(len(m.samples))*32 || idle < 0 {
		return malformed("most of the MP4 file is not sound")
	}
	return nil
}

// topBox reads the head of a box at the top level: its contents are at body up to end.
func (m *mp4Reader) topBox(at int64) (kind string, body, end int64, err error) {
	var h [16]byte
	n, err := m.r.ReadAt(h[:], at)
	if err != nil && err != io.EOF {
		return "", 0, 0, err
	}
	if n < 8 {
		return "", 0, 0, malformed("the MP4 file is cut off, or something follows it")
	}
	kind = string(h[4:8])
	size, body := int64(binary.BigEndian.Uint32(h[:])), at+8
	switch size {
	case 0: // to the end of the file
		return kind, body, m.size, nil
	case 1:
		if n < 16 {
			return "", 0, 0, malformed("the MP4 file is cut off")
		}
		size, body = int64(binary.BigEndian.Uint64(h[8:])), at+16
	}
	if size < body-at || size > m.size-at {
		return "", 0, 0, malformed("the MP4 file is cut off, or something follows it")
	}
	return kind, body, at + size, nil
}

func (m *mp4Reader) load(body, end, limit int64) ([]byte, error) {
	if end-body > limit {
		return nil, malformed("an MP4 index of %d bytes", end-body)
	}
	b := make([]byte, end-body)
	_, err := m.r.ReadAt(b, body)
	if err == io.EOF {
		err = nil
	}
	return b, err
}

func (m *mp4Reader) readMoov(body, end int64) error {
	b, err := m.load(body, end, maxMoovBytes)
	if err != nil {
		return err
	}
	if m.head.Channels != 0 {
		return malformed("the MP4 file has two indexes")
	}
	var tracks int
	var trak []byte
	err = mp4Each(b, func(box mp4Box) error {
		switch box.kind {
		case "mvhd":
			m.timescale = mp4Timescale(box.body)
		case "trak":
			tracks++
			trak = box.body
		case "mvex":
			return mp4Each(box.body, func(box mp4Box) error {
				if box.kind == "trex" && len(box.body) >= 24 {
					m.defaultDuration = binary.BigEndian.Uint32(box.body[12:])
					m.defaultSize = binary.BigEndian.Uint32(box.body[16:])
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if tracks != 1 {
		return ErrUnsupported
	}
	return m.readTrak(trak)
}

// mp4Timescale reads mvhd or mdhd.
func mp4Timescale(b []byte) uint64 {
	at := 12
	if len(b) > 0 && b[0] == 1 {
		at = 20
	}
	if len(b) < at+4 {
		return 0
	}
	return uint64(binary.BigEndian.Uint32(b[at:]))
}

// mp4Find is the contents of the box at a path, or nil.
func mp4Find(b []byte, path ...string) []byte {
	for _, kind := range path {
		var found []byte
		mp4Each(b, func(box mp4Box) error {
			if box.kind == kind && found == nil {
				found = box.body
			}
			return nil
		})
		if b = found; b == nil {
			return nil
		}
	}
	return b
}

// mp4Each visits the boxes in b.
func mp4Each(b []byte, visit func(mp4Box) error) error {
	for len(b) > 0 {
		if len(b) < 8 {
			return malformed("an MP4 box is cut off")
		}
		size, head := uint64(binary.BigEndian.Uint32(b)), 8
		if size == 1 {
			if len(b) < 16 {
				return malformed("an MP4 box is cut off")
			}
			size, head = binary.BigEndian.Uint64(b[8:]), 16
		} else if size == 0 {
			size = uint64(len(b))
		}
		if size < uint64(head) || size > uint64(len(b)) {
			return malformed("an MP4 box is cut off")
		}
		if err := visit(mp4Box{string(b[4:8]), b[head:size]}); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

func (m *mp4Reader) readTrak(trak []byte) error {
	stbl := mp4Find(trak, "mdia", "minf", "stbl")
	stsd := mp4Find(stbl, "stsd")
	// Version, count and the first entry: an audio sample entry of 36 bytes, then its boxes.
	if len(stsd) < 8+36 || binary.BigEndian.Uint32(stsd[4:]) != 1 {
		return ErrUnsupported
	}
	var err error
	switch boxes := stsd[8+36:]; string(stsd[12:16]) {
	case "Opus":
		err = m.readDOps(mp4Find(boxes, "dOps"))
	case "mp4a":
		if m.aac, err = readESDS(mp4Find(boxes, "esds")); err == nil {
			m.head = Head{Channels: m.aac.channels}
		}
	default:
		err = ErrUnsupported
	}
	if err != nil {
		return err
	}
	if tkhd := mp4Find(trak, "tkhd"); len(tkhd) >= 24 {
		m.trackID = binary.BigEndian.Uint32(tkhd[12:])
		if tkhd[0] == 1 {
			m.trackID = binary.BigEndian.Uint32(tkhd[20:])
		}
	}
	m.mediaScale = mp4Timescale(mp4Find(trak, "mdia", "mdhd"))
	if m.mediaScale == 0 || m.aac == nil && m.mediaScale != SampleRate {
		return malformed("the MP4 file does not count in samples of 48 kHz")
	}
	if err := m.readTables(stbl); err != nil {
		return err
	}
	m.readEdits(mp4Find(trak, "edts", "elst"))
	return nil
}

func (m *mp4Reader) readDOps(b []byte) error {
	if len(b) < 11 || b[0] != 0 {
		return malformed("the Opus header is missing or cut off")
	}
	m.head = Head{
		Channels:  int(b[1]),
		PreSkip:   int(binary.BigEndian.Uint16(b[2:])),
		InputRate: binary.BigEndian.Uint32(b[4:]),
		Gain:      int16(binary.BigEndian.Uint16(b[8:])),
	}
	if m.head.Channels < 1 || m.head.Channels > 2 || b[10] != 0 {
		return malformed("%d channels; a recording has one or two", m.head.Channels)
	}
	return nil
}

// mp4Table checks that a table of count entries, each of entry bytes, follows b's first skip bytes.
func mp4Table(b []byte, skip, entry int) (count int, entries []byte, err error) {
	if len(b) < skip+4 {
		return 0, nil, malformed("an MP4 table is cut off")
	}
	n := binary.BigEndian.Uint32(b[skip:])
	entries = b[skip+4:]
	if uint64(n)*uint64(entry) > uint64(len(entries)) || n > maxSamples {
		return 0, nil, malformed("an MP4 table is cut off, or far too large")
	}
	return int(n), entries, nil
}

// readTables finds the packets of a file without fragments: sizes, chunks, where the chunks begin, durations.
func (m *mp4Reader) readTables(stbl []byte) error {
	stsz, stsc := mp4Find(stbl, "stsz"), mp4Find(stbl, "stsc")
	if len(stsz) < 12 {
		return malformed("the MP4 file has no table of packets")
	}
	fixed, entry := binary.BigEndian.Uint32(stsz[4:]), 4
	if fixed != 0 {
		entry = 0
	}
	count, sizes, err := mp4Table(stsz, 8, entry)
	if err != nil || count == 0 {
		return err
	}
	runs, stscEntries, err := mp4Table(stsc, 4, 12)
	if err != nil {
		return err
	}
	chunkBytes, offsets := 4, mp4Find(stbl, "stco")
	if offsets == nil {
		chunkBytes, offsets = 8, mp4Find(stbl, "co64")
	}
	chunks, offsets, err := mp4Table(offsets, 4, chunkBytes)
	if err != nil {
		return err
	}
	run, perChunk := 0, uint32(0)
	for chunk := range chunks {
		if run < runs && binary.BigEndian.Uint32(stscEntries[12*run:]) == uint32(chunk+1) {
			perChunk = binary.BigEndian.Uint32(stscEntries[12*run+4:])
			run++
		}
		var at int64
		if chunkBytes == 8 {
			at = int64(binary.BigEndian.Uint64(offsets[8*chunk:]))
		} else {
			at = int64(binary.BigEndian.Uint32(offsets[4*chunk:]))
		}
		for range perChunk {
			if len(m.samples) == count {
				return malformed("the MP4 tables contradict each other")
			}
			size := fixed
			if fixed == 0 {
				size = binary.BigEndian.Uint32(sizes[4*len(m.samples):])
			}
			m.samples = append(m.samples, mp4Sample{at, size})
			at += int64(size)
		}
	}
	if len(m.samples) != count {
		return malformed("the MP4 tables contradict each other")
	}
	return m.readDurations(mp4Find(stbl, "stts"), count)
}

func (m *mp4Reader) readDurations(stts []byte, count int) error {
	n, entries, err := mp4Table(stts, 4, 8)
	if err != nil {
		return err
	}
	var sum, samples uint64
	for i := range n {
		times := uint64(binary.BigEndian.Uint32(entries[8*i:]))
		samples += times
		sum += times * min(uint64(binary.BigEndian.Uint32(entries[8*i+4:])), 1<<24)
		if samples > uint64(count) {
			break
		}
	}
	if samples != uint64(count) {
		return malformed("the MP4 tables contradict each other")
	}
	m.tableEnd = int64(sum)
	return nil
}

// readEdits takes the end of the sound from an edit list of one entry that begins after the pre-skip.
func (m *mp4Reader) readEdits(elst []byte) {
	if len(elst) < 20 || binary.BigEndian.Uint32(elst[4:]) != 1 || m.timescale == 0 {
		return
	}
	length, start := uint64(binary.BigEndian.Uint32(elst[8:])), int64(int32(binary.BigEndian.Uint32(elst[12:])))
	if elst[0] == 1 {
		if len(elst) < 28 {
			return
		}
		length, start = binary.BigEndian.Uint64(elst[8:]), int64(binary.BigEndian.Uint64(elst[16:]))
	}
	if length == 0 || length > 1<<40 || start < 0 || start > 1<<40 || m.timescale < 8000 && m.aac == nil {
		return // too coarse to be believed to the sample, or of a file in fragments
	}
	m.editLength = int64(length * SampleRate / m.timescale)
	m.editEnd = start + m.editLength
}

// readMoof finds the packets of a fragment.
func (m *mp4Reader) readMoof(at, body, end int64) error {
	if m.head.Channels == 0 {
		return malformed("an MP4 fragment before the index")
	}
	b, err := m.load(body, end, maxMoofBytes)
	if err != nil {
		return err
	}
	return mp4Each(b, func(box mp4Box) error {
		if box.kind != "traf" {
			return nil
		}
		return m.readTraf(at, box.body)
	})
}

func (m *mp4Reader) readTraf(moof int64, traf []byte) error {
	tfhd := mp4Find(traf, "tfhd")
	if len(tfhd) < 8 || binary.BigEndian.Uint32(tfhd[4:]) != m.trackID {
		return malformed("an MP4 fragment of a track that does not exist")
	}
	flags := binary.BigEndian.Uint32(tfhd) & 0xffffff
	base, size, duration := moof, m.defaultSize, m.defaultDuration
	rest := tfhd[8:]
	take := func(n int) []byte {
		if len(rest) < n {
			rest = nil
			return make([]byte, n)
		}
		b := rest[:n]
		rest = rest[n:]
		return b
	}
	if flags&1 != 0 {
		base = int64(binary.BigEndian.Uint64(take(8)))
	}
	if flags&2 != 0 {
		take(4)
	}
	if flags&8 != 0 {
		duration = binary.BigEndian.Uint32(take(4))
	}
	if flags&16 != 0 {
		size = binary.BigEndian.Uint32(take(4))
	}
	at := base
	return mp4Each(traf, func(box mp4Box) error {
		if box.kind != "trun" {
			return nil
		}
		return m.readTrun(box.body, base, &at, size, duration)
	})
}

// readTrun reads a run of packets; at is where it begins unless it says so itself, and where it ends.
func (m *mp4Reader) readTrun(b []byte, base int64, at *int64, size, duration uint32) error {
	if len(b) < 8 {
		return malformed("an MP4 table is cut off")
	}
	flags := binary.BigEndian.Uint32(b) & 0xffffff
	head, entry, sizeAt, durationAt := 8, 0, -1, -1
	if flags&1 != 0 && len(b) >= 12 {
		*at = base + int64(int32(binary.BigEndian.Uint32(b[8:])))
		head += 4
	}
	if flags&4 != 0 {
		head += 4
	}
	for bit := uint32(0x100); bit <= 0x800; bit <<= 1 {
		if flags&bit == 0 {
			continue
		}
		switch bit {
		case 0x100:
			durationAt = entry
		case 0x200:
			sizeAt = entry
		}
		entry += 4
	}
	count := binary.BigEndian.Uint32(b[4:])
	if len(b) < head || uint64(count)*uint64(entry) > uint64(len(b)-head) || int(count) > maxSamples-len(m.samples) {
		return malformed("an MP4 table is cut off, or far too large")
	}
	for i := range int(count) {
		n := size
		if sizeAt >= 0 {
			n = binary.BigEndian.Uint32(b[head+i*entry+sizeAt:])
		}
		m.samples = append(m.samples, mp4Sample{*at, n})
		*at += int64(n)
		if durationAt >= 0 {
			duration = binary.BigEndian.Uint32(b[head+i*entry+durationAt:])
		}
		m.fragEnd += int64(min(duration, 1<<24))
	}
	return nil
}

func (m *mp4Reader) inData(s mp4Sample) bool {
	// Files in one piece have one mdat; those in fragments have their packets in order of the mdats, of which
	// earlier ones are done with.
	for i, d := range m.mdat {
		if s.at >= d[0] && s.at+int64(s.size) <= d[1] {
			m.mdat = m.mdat[i:]
			return true
		}
	}
	return false
}

// Head implements Reader.
func (m *mp4Reader) Head() Head { return m.head }

// Samples implements Reader.
func (m *mp4Reader) Samples() int64 { return max(m.sum-int64(m.trim)-int64(m.head.PreSkip), 0) }

// Trim implements Reader.
func (m *mp4Reader) Trim() int { return m.trim }

// Complete implements Reader.
func (m *mp4Reader) Complete() bool { return true }

// Next implements Reader.
func (m *mp4Reader) Next() ([]byte, error) {
	if m.next == len(m.samples) {
		return nil, m.finish()
	}
	s := m.samples[m.next]
	m.next++
	if s.size > maxPacketBytes {
		return nil, malformed("an Opus packet of %d bytes", s.size)
	}
	if cap(m.packet) < int(s.size) {
		m.packet = make([]byte, max(s.size, 2048))
	}
	m.packet = m.packet[:s.size]
	if _, err := m.r.ReadAt(m.packet, s.at); err != nil && err != io.EOF {
		return nil, err
	}
	n, err := PacketSamples(m.packet)
	m.sum += int64(n)
	return m.packet, err
}

// finish compares the ends that the file claims with the packets that were read.
func (m *mp4Reader) finish() error {
	if d := m.fragEnd - m.sum; m.tableEnd < 0 && (d > maxGap || d < -maxBehind-int64(m.head.PreSkip)) {
		return malformed("the MP4 fragments claim %v of sound, there are %v", Duration(m.fragEnd), Duration(m.sum))
	}
	end := m.sum
	for _, claimed := range []int64{m.tableEnd, m.editEnd} {
		if claimed < 0 {
			continue
		}
		if claimed > m.sum+granuleSlack || m.sum-claimed > maxTrim {
			return malformed("the MP4 file claims %v of sound, there are %v", Duration(claimed), Duration(m.sum))
		}
		end = min(end, claimed)
	}
	m.trim = int(m.sum - end)
	return io.EOF
}

// box writes a box of parts.
func box(kind string, parts ...[]byte) []byte {
	size := 8
	for _, p := range parts {
		size += len(p)
	}
	b := append(binary.BigEndian.AppendUint32(make([]byte, 0, size), uint32(size)), kind...)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// words are 32-bit numbers, big end first.
func words(v ...uint32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, w := range v {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return b
}

const packetsPerChunk = 50 // a second of sound, as a rule

// mp4 writes the track in one piece, the index before the sound, so that a player can begin and jump at once.
func (t *track) mp4() []byte {
	ftyp := box("ftyp", []byte("isom"), words(0x200), []byte("isomiso2mp41"))
	moov := t.moov(0)
	return append(append(ftyp, t.moov(uint32(len(ftyp)+len(moov)+8))...), box("mdat", t.body)...)
}

func (t *track) moov(data uint32) []byte {
	audible := uint32(t.audible())
	unity := words(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
	mvhd := box("mvhd", words(0, 0, 0, SampleRate, audible, 0x10000, 0x01000000, 0, 0), unity, make([]byte, 24), words(2))
	tkhd := box("tkhd", words(3, 0, 0, 1, 0, audible, 0, 0, 0, 0x01000000), unity, words(0, 0))
	elst := box("elst", words(0, 1, audible, uint32(t.head.PreSkip), 0x10000))
	mdhd := box("mdhd", words(0, 0, 0, SampleRate, uint32(t.sum)-uint32(t.trim), 0x55c40000))
	hdlr := box("hdlr", words(0, 0), []byte("soun"), make([]byte, 12), []byte("Parley\x00"))
	dinf := box("dinf", box("dref", words(0, 1), box("url ", words(1))))
	minf := box("minf", box("smhd", words(0, 0)), dinf, t.stbl(data))
	return box("moov", mvhd, box("trak", tkhd, box("edts", elst), box("mdia", mdhd, hdlr, minf)))
}

func (t *track) stbl(data uint32) []byte {
	h := t.head
	dOps := []byte{0, byte(h.Channels)}
	dOps = binary.BigEndian.AppendUint16(dOps, uint16(h.PreSkip))
	dOps = binary.BigEndian.AppendUint32(dOps, h.InputRate)
	dOps = binary.BigEndian.AppendUint16(dOps, uint16(h.Gain))
	dOps = append(dOps, 0)
	entry := box("Opus", words(0, 1, 0, 0, uint32(h.Channels)<<16|16, 0, SampleRate<<16), box("dOps", dOps))
	count := uint32(len(t.packets))

	var stts, sizes, offsets []uint32
	at := data
	for i, p := range t.packets {
		length := uint32(p.samples)
		if i == len(t.packets)-1 {
			length -= min(length, uint32(t.trim))
		}
		if n := len(stts); n > 0 && stts[n-1] == length {
			stts[n-2]++
		} else {
			stts = append(stts, 1, length)
		}
		sizes = append(sizes, uint32(p.size))
		if i%packetsPerChunk == 0 {
			offsets = append(offsets, at)
		}
		at += uint32(p.size)
	}
	var stsc []uint32
	if full := count / packetsPerChunk; full > 0 {
		stsc = append(stsc, 1, packetsPerChunk, 1)
	}
	if rest := count % packetsPerChunk; rest > 0 {
		stsc = append(stsc, uint32(len(offsets)), rest, 1)
	}
	parts := [][]byte{
		box("stsd", words(0, 1), entry),
		box("stts", words(append([]uint32{0, uint32(len(stts) / 2)}, stts...)...)),
		box("stsc", words(append([]uint32{0, uint32(len(stsc) / 3)}, stsc...)...)),
		box("stsz", words(append([]uint32{0, 0, count}, sizes...)...)),
		box("stco", words(append([]uint32{0, uint32(len(offsets))}, offsets...)...)),
	}
	if count > 0 { // 80 ms to be decoded ahead of any point one jumps to
		roll := -int16((80*48 + t.packets[0].samples - 1) / t.packets[0].samples)
		parts = append(parts,
			box("sgpd", words(0x01000000), []byte("roll"), words(2, 1), binary.BigEndian.AppendUint16(nil, uint16(roll))),
			box("sbgp", words(0), []byte("roll"), words(1, count, 1)))
	}
	return box("stbl", parts...)
}
