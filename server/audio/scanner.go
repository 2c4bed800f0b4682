package audio

import (
	"bytes"
	"encoding/binary"
)

// MaxUnitBytes is the largest unit of a recording that is made piece by piece: an Ogg page or the few that share a packet, a WebM
// element, a fragment of MP4. Recorders write units of at most some seconds.
const MaxUnitBytes = 1 << 20

// A Scanner finds, in a recording that is still being made, the places where it could end: after a whole unit. It looks at
// the outlines of the units only; whether what is in them is well-formed is for [Inspect], when all is there. The zero value
// is at the beginning of a recording. Its fields are all that has to be kept of it: it goes on from where the last unit ended.
type Scanner struct {
	// Container is empty until the first bytes have told it.
	Container Container `json:"container,omitempty"`
	// Samples is how much sound there is in the whole units, at 48 kHz, with what players skip at the beginning.
	Samples int64 `json:"samples,omitempty"`

	Packets  int    `json:"packets,omitempty"`  // Ogg: that have been passed, two of headers first
	Ended    bool   `json:"ended,omitempty"`    // Ogg: the last page has been passed
	Track    uint32 `json:"track,omitempty"`    // MP4: number of the track
	Scale    uint32 `json:"scale,omitempty"`    // MP4: units of time in a second; 0 before the index
	Duration uint32 `json:"duration,omitempty"` // MP4: of packets that do not say, in units of time
}

// Scan passes the whole units at the beginning of b, which must begin where the units passed so far have ended, and returns
// how many bytes they are. It stops before the unit with which the recording would be longer than longest samples (0 allows all): ErrTooLong.
// Other errors are ErrUnsupported for what is no recording and a *MalformedError for what can never become one, whatever follows; the units
// before that have been passed.
func (s *Scanner) Scan(b []byte, longest int64) (whole int, err error) {
	if s.Container == "" {
		if len(b) < 12 {
			return 0, nil
		}
		switch {
		case string(b[:4]) == "OggS":
			s.Container = Ogg
		case string(b[:4]) == "\x1a\x45\xdf\xa3":
			s.Container = WebM
		case string(b[4:8]) == "ftyp":
			s.Container = MP4
		default:
			return 0, ErrUnsupported
		}
	}
	for whole < len(b) {
		next := *s
		n, err := next.unit(b[whole:])
		if err != nil || n == 0 {
			return whole, err
		}
		if longest > 0 && next.Samples > longest && next.Samples > s.Samples {
			return whole, ErrTooLong
		}
		*s = next
		whole += n
	}
	return whole, nil
}

// unit passes one unit and returns its length; 0 if it is not all there.
func (s *Scanner) unit(b []byte) (int, error) {
	switch s.Container {
	case Ogg:
		return s.oggUnit(b)
	case WebM:
		return s.webMUnit(b)
	}
	return s.mp4Unit(b)
}

// oggUnit passes pages until one at whose end a packet ends.
func (s *Scanner) oggUnit(b []byte) (int, error) {
	if s.Ended {
		return 0, malformed("something follows the last Ogg page")
	}
	within := false // the page begins within a packet
	for at := 0; ; {
		page := b[at:]
		if !bytes.HasPrefix(page, []byte("OggS\x00")[:min(len(page), 5)]) {
			return 0, malformed("something that is no Ogg page")
		}
		if len(page) < oggHeaderBytes || len(page) < oggHeaderBytes+int(page[26]) {
			return 0, nil
		}
		lacing := page[oggHeaderBytes:][:page[26]]
		size := 0
		for _, n := range lacing {
			size += int(n)
		}
		head := oggHeaderBytes + len(lacing)
		if at += head + size; at > MaxUnitBytes {
			return 0, malformed("an Ogg packet of more than %d bytes", MaxUnitBytes)
		}
		if len(b) < at {
			return 0, nil
		}
		within, size = s.oggPackets(lacing, page[head:][:size], within)
		if size < 0 {
			return 0, malformed("an Ogg packet that is no Opus")
		}
		s.Ended = page[5]&oggLast != 0
		if !within || s.Ended {
			return at, nil
		}
	}
}

// oggPackets counts the packets that begin on a page. within says whether the last one goes on behind it; n is negative for what is no packet.
func (s *Scanner) oggPackets(lacing, body []byte, within bool) (goesOn bool, n int) {
	for _, size := range lacing {
		if !within {
			if s.Packets++; s.Packets > 2 {
				samples, ok := packetClaim(body[:size])
				if !ok {
					return false, -1
				}
				s.Samples += int64(samples)
			}
		}
		within = size == 255
		body = body[size:]
	}
	return within, 0
}

// packetClaim is how long an Opus packet plays by its first bytes.
func packetClaim(p []byte) (samples int, ok bool) {
	if len(p) == 0 {
		return 0, false
	}
	frame, count := frameSamples(p[0]>>3), 1
	switch p[0] & 3 {
	case 1, 2:
		count = 2
	case 3:
		if len(p) < 2 {
			return 0, false
		}
		count = int(p[1] & 0x3f)
	}
	return count * frame, count > 0 && count*frame <= maxPacketSamples
}

// webMUnit passes one element: those that go on for as long as the recording does are entered.
func (s *Scanner) webMUnit(b []byte) (int, error) {
	id, n, err := ebmlStart(b, 4, true)
	if n == 0 || err != nil {
		return 0, err
	}
	size, m, err := ebmlStart(b[n:], 8, false)
	if m == 0 || err != nil {
		return 0, err
	}
	head := n + m
	if id == mkvSegment || id == mkvCluster {
		return head, nil
	}
	if size == 1<<(7*m)-1 || size > uint64(MaxUnitBytes-head) {
		return 0, malformed("a WebM element of more than %d bytes, or without a size", MaxUnitBytes)
	}
	if uint64(len(b)-head) < size {
		return 0, nil
	}
	body := b[head:][:size]
	switch id {
	case mkvSimpleBlock:
		err = s.webMBlock(body)
	case mkvBlockGroup:
		err = ebmlEach(body, func(id uint32, b []byte) error {
			if id == mkvBlock {
				return s.webMBlock(b)
			}
			return nil
		})
	}
	return head + int(size), err
}

func (s *Scanner) webMBlock(b []byte) error {
	if len(b) < 4 {
		return malformed("a WebM block is cut off")
	}
	samples, ok := packetClaim(b[4:])
	if !ok {
		return malformed("a WebM block that is no Opus")
	}
	s.Samples += int64(samples)
	return nil
}

// ebmlStart reads a number at the beginning of b; n is 0 if it is not all there.
func ebmlStart(b []byte, longest int, marker bool) (v uint64, n int, err error) {
	if len(b) == 0 {
		return 0, 0, nil
	}
	if b[0]>>(8-longest) == 0 {
		return 0, 0, malformed("something that is no WebM element")
	}
	v, n = ebmlVarint(b, longest, marker)
	return v, n, nil
}

// mp4Unit passes one box, or a fragment: all up to the data behind its index.
func (s *Scanner) mp4Unit(b []byte) (int, error) {
	var index []byte // of the fragment; it is read once, when all of the fragment is there
	for at := 0; ; {
		head := b[at:]
		if len(head) < 8 {
			return 0, nil
		}
		size, kind, start := uint64(binary.BigEndian.Uint32(head)), string(head[4:8]), at+8
		if size == 1 {
			if len(head) < 16 {
				return 0, nil
			}
			size, start = binary.BigEndian.Uint64(head[8:]), at+16
		}
		if size < uint64(start-at) || size > uint64(MaxUnitBytes-at) {
			return 0, malformed("an MP4 box without a size, or a fragment of more than %d bytes", MaxUnitBytes)
		}
		if uint64(len(head)) < size {
			return 0, nil
		}
		body := b[start : at+int(size)]
		at += int(size)
		switch {
		case kind == "moof" && (s.Scale == 0 || index != nil):
			return 0, malformed("an MP4 fragment before the index, or without data")
		case kind == "moof":
			index = body
		case kind == "mdat" && index != nil:
			return at, s.mp4Fragment(index)
		case kind == "moov" && index == nil:
			return at, s.mp4Index(body)
		case index == nil:
			return at, nil
		}
	}
}

func (s *Scanner) mp4Index(body []byte) error {
	if s.Scale != 0 {
		return malformed("the MP4 file has two indexes")
	}
	m := &mp4Reader{r: bytes.NewReader(body), size: int64(len(body)), tableEnd: -1, editEnd: -1}
	if err := m.readMoov(0, int64(len(body))); err != nil {
		return err
	}
	s.Track, s.Scale, s.Duration = m.trackID, uint32(m.mediaScale), m.defaultDuration
	s.addTime(m.tableEnd)
	return nil
}

func (s *Scanner) mp4Fragment(body []byte) error {
	m := &mp4Reader{trackID: s.Track, defaultDuration: s.Duration}
	err := mp4Each(body, func(box mp4Box) error {
		if box.kind != "traf" {
			return nil
		}
		return m.readTraf(0, box.body)
	})
	s.addTime(m.fragEnd)
	return err
}

// addTime adds a length in the track's units of time; none is negative.
func (s *Scanner) addTime(units int64) {
	if units > 0 {
		s.Samples += units/int64(s.Scale)*SampleRate + units%int64(s.Scale)*SampleRate/int64(s.Scale)
	}
}
