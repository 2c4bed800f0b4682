package audio

import (
	"errors"
	"time"
)

// Safari recorded AAC in MP4 files before it learned Opus (18.4). Such a recording is not decoded: there is no decoder here. But it can be
// counted: each of its packets plays for as long as every other.

// Codec is how the sound of a recording is encoded.
type Codec string

// The codecs of recordings. Only Opus is decoded and put into other containers.
const (
	Opus Codec = "opus"
	AAC  Codec = "aac"
)

// aacConfig is what an MP4 file says of its AAC packets.
type aacConfig struct {
	channels int
	rate     int // samples a second
	frame    int // samples in a packet, at that rate
}

// Bounds of what the tables of an AAC recording may say beside what was counted: encoders put up to some 50 ms before the sound and
// fill up the last packet.
const (
	aacSlack  = 100 * time.Millisecond
	aacMaxCut = 250 * time.Millisecond
)

// aacRates are the rates by their index. ISO 14496-3 table 1.18
var aacRates = [...]int{96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350}

// bitReader reads numbers from bits. What is beyond the end is 0, and sets short.
type bitReader struct {
	b     []byte
	at    int
	short bool
}

func (r *bitReader) bits(n int) (v int) {
	for range n {
		v <<= 1
		if r.at/8 >= len(r.b) {
			r.short = true
			continue
		}
		v |= int(r.b[r.at/8]>>(7-r.at%8)) & 1
		r.at++
	}
	return v
}

func (r *bitReader) objectType() int {
	const escape = 31
	if t := r.bits(5); t != escape {
		return t
	}
	return 32 + r.bits(6)
}

func (r *bitReader) rate() int {
	const explicit = 15
	i := r.bits(4)
	switch {
	case i == explicit:
		return r.bits(24)
	case i < len(aacRates):
		return aacRates[i]
	}
	return 0
}

// parseAAC reads an AudioSpecificConfig (ISO 14496-3, 1.6.2.1): AAC-LC, alone or as the core of HE-AAC, with one or two channels.
func parseAAC(b []byte) (aacConfig, bool) {
	const lowComplexity, bandReplication, parametricStereo = 2, 5, 29
	r := &bitReader{b: b}
	kind := r.objectType()
	c := aacConfig{rate: r.rate(), channels: r.bits(4), frame: 1024}
	if kind == bandReplication || kind == parametricStereo {
		r.rate() // of the sound; packets are counted at the core's
		kind = r.objectType()
	}
	if r.bits(1) == 1 { // frameLengthFlag
		c.frame = 960
	}
	ok := !r.short && kind == lowComplexity && c.rate >= 7350 && c.rate <= 96000 && (c.channels == 1 || c.channels == 2)
	return c, ok
}

// mp4Descriptor finds the descriptor with the tag and returns what is in it. ISO 14496-1, 8.3.3
func mp4Descriptor(b []byte, tag byte) []byte {
	for len(b) >= 2 {
		found, size, at := b[0], 0, 1
		for range 4 {
			if at == len(b) {
				return nil
			}
			size = size<<7 | int(b[at]&0x7f)
			at++
			if b[at-1]&0x80 == 0 {
				break
			}
		}
		if size > len(b)-at {
			return nil
		}
		if found == tag {
			return b[at : at+size]
		}
		b = b[at+size:]
	}
	return nil
}

// readESDS takes the AudioSpecificConfig from an esds box; ErrUnsupported for MP3 and others that use the same box.
func readESDS(b []byte) (*aacConfig, error) {
	const esDescriptor, decoderConfig, decoderSpecific, audioObject = 3, 4, 5, 0x40
	if len(b) < 4 {
		return nil, ErrUnsupported
	}
	es := mp4Descriptor(b[4:], esDescriptor)
	if len(es) < 3 {
		return nil, ErrUnsupported
	}
	skip := 3 // ES_ID and flags
	for _, flag := range []struct {
		bit byte
		n   int
	}{{0x80, 2}, {0x20, 2}} {
		if es[2]&flag.bit != 0 {
			skip += flag.n
		}
	}
	if es[2]&0x40 != 0 || len(es) < skip { // a URL: the sound is elsewhere
		return nil, ErrUnsupported
	}
	decoder := mp4Descriptor(es[skip:], decoderConfig)
	if len(decoder) < 13 || decoder[0] != audioObject {
		return nil, ErrUnsupported
	}
	c, ok := parseAAC(mp4Descriptor(decoder[13:], decoderSpecific))
	if !ok {
		return nil, ErrUnsupported
	}
	return &c, nil
}

// countAAC tells how long an AAC recording plays. It is ErrUnsupported if the tables say something else than the number of packets: such a
// file is no recording, but may be music, and that is no crime.
func (m *mp4Reader) countAAC() (samples int64, err error) {
	time48 := func(units, scale int64) int64 {
		return int64(float64(units) * SampleRate / float64(scale))
	}
	within := func(claimed, counted int64) bool {
		return Duration(claimed-counted) <= aacSlack && Duration(counted-claimed) <= aacMaxCut
	}
	counted := time48(int64(len(m.samples))*int64(m.aac.frame), int64(m.aac.rate))
	samples = counted
	if m.tableEnd >= 0 {
		samples = time48(m.tableEnd, int64(m.mediaScale))
	} else if len(m.samples) > 0 {
		samples = time48(m.fragEnd, int64(m.mediaScale))
	}
	if !within(samples, counted) {
		return 0, ErrUnsupported
	}
	if m.editLength > 0 {
		if !within(m.editLength, samples) {
			return 0, ErrUnsupported
		}
		samples = min(samples, m.editLength)
	}
	return samples, nil
}

// inspectAAC is Inspect for an MP4 file of AAC.
func (m *mp4Reader) inspectAAC(longest time.Duration) (Info, error) {
	samples, err := m.countAAC()
	if err != nil {
		return Info{}, err
	}
	info := Info{Container: MP4, Codec: AAC, Head: m.head, Packets: len(m.samples), Samples: samples, Complete: true}
	if longest > 0 && info.Duration() > longest {
		return Info{}, ErrTooLong
	}
	return info, nil
}

// unlessAAC makes of a malformed AAC file one that is no recording.
func (m *mp4Reader) unlessAAC(err error) error {
	if bad := new(MalformedError); m.aac != nil && errors.As(err, &bad) {
		return ErrUnsupported
	}
	return err
}
