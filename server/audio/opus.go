package audio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// SampleRate is the rate of Opus' clock in samples a second.
const SampleRate = 48000

const (
	maxFrameBytes    = 1275      // RFC 6716 section 3.4 [R2]
	maxPacketSamples = 5760      // 120 ms, RFC 6716 section 3.4 [R5]
	maxPacketBytes   = 61 * 1024 // 48 frames of 1275 bytes and their lengths
)

// ErrUnsupported says that the file is none of ours: another container, another codec, or more streams than one.
var ErrUnsupported = errors.New("no Opus recording")

// A MalformedError says why a recording is refused. Its text is for people.
type MalformedError struct{ Reason string }

func (e *MalformedError) Error() string { return "bad recording: " + e.Reason }

func malformed(format string, args ...any) error {
	return &MalformedError{fmt.Sprintf(format, args...)}
}

// Duration turns a number of samples into time.
func Duration(samples int64) time.Duration {
	return time.Duration(samples/SampleRate)*time.Second + time.Duration(samples%SampleRate)*time.Second/SampleRate
}

// Head is the identification header of an Opus stream. RFC 7845 section 5.1
type Head struct {
	Channels  int    // 1 or 2
	PreSkip   int    // samples to throw away at the beginning
	InputRate uint32 // Hz of what was recorded; tells nothing about playing
	Gain      int16  // to be applied when playing, in 1/256 dB
}

// ParseHead reads an OpusHead packet. Streams of more than two channels are refused.
func ParseHead(b []byte) (Head, error) {
	if len(b) < 19 || string(b[:8]) != "OpusHead" {
		return Head{}, malformed("the Opus header is missing or cut off")
	}
	if b[8]>>4 != 0 {
		return Head{}, malformed("unknown version %d of the Opus header", b[8])
	}
	h := Head{
		Channels:  int(b[9]),
		PreSkip:   int(binary.LittleEndian.Uint16(b[10:])),
		InputRate: binary.LittleEndian.Uint32(b[12:]),
		Gain:      int16(binary.LittleEndian.Uint16(b[16:])),
	}
	if h.Channels < 1 || h.Channels > 2 || b[18] != 0 {
		return Head{}, malformed("%d channels; a recording has one or two", h.Channels)
	}
	return h, nil
}

// Append writes the header as an OpusHead packet.
func (h Head) Append(b []byte) []byte {
	b = append(b, "OpusHead\x01"...)
	b = append(b, byte(h.Channels))
	b = binary.LittleEndian.AppendUint16(b, uint16(h.PreSkip))
	b = binary.LittleEndian.AppendUint32(b, h.InputRate)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.Gain))
	return append(b, 0)
}

// appendTags writes an OpusTags packet with no comments. RFC 7845 section 5.2
func appendTags(b []byte, vendor string) []byte {
	b = append(b, "OpusTags"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(vendor)))
	b = append(b, vendor...)
	return binary.LittleEndian.AppendUint32(b, 0)
}

// checkTags looks no further into an OpusTags packet than to tell that it is one.
func checkTags(b []byte) error {
	if len(b) < 16 || string(b[:8]) != "OpusTags" {
		return malformed("the Opus comment header is missing or cut off")
	}
	vendor := binary.LittleEndian.Uint32(b[8:])
	if uint64(vendor) > uint64(len(b)-16) {
		return malformed("the Opus comment header is cut off")
	}
	return nil
}

// frameSamples is the length of one frame by the packet's configuration number. RFC 6716 section 3.1, table 2
func frameSamples(config byte) int {
	switch {
	case config < 12: // SILK: 10, 20, 40, 60 ms
		return [4]int{480, 960, 1920, 2880}[config&3]
	case config < 16: // hybrid: 10, 20 ms
		return [2]int{480, 960}[config&1]
	default: // CELT: 2.5, 5, 10, 20 ms
		return [4]int{120, 240, 480, 960}[config&3]
	}
}

// PacketSamples is how long an Opus packet plays. It checks the whole framing of the packet by the rules that RFC 6716
// section 3.4 numbers R1 to R7.
func PacketSamples(p []byte) (int, error) {
	if len(p) == 0 { // [R1]
		return 0, malformed("an empty Opus packet")
	}
	if len(p) > maxPacketBytes {
		return 0, malformed("an Opus packet of %d bytes", len(p))
	}
	frame := frameSamples(p[0] >> 3)
	body := p[1:]
	count := 1
	var err error
	switch p[0] & 3 {
	case 0:
		err = checkFrame(len(body))
	case 1: // two of the same size [R3]
		count = 2
		if len(body)%2 != 0 {
			return 0, malformed("an Opus packet of two equal frames with an odd length")
		}
		err = checkFrame(len(body) / 2)
	case 2: // two, the first with its length [R4]
		count = 2
		var n int
		if n, body, err = frameLength(body); err == nil {
			err = checkFrame(len(body) - n)
		}
	case 3:
		count, err = checkManyFrames(body, frame)
	}
	if err != nil {
		return 0, err
	}
	return count * frame, nil
}

// checkManyFrames checks a code 3 packet after its first byte. RFC 6716 section 3.2.5 [R5] to [R7]
func checkManyFrames(b []byte, frame int) (count int, err error) {
	if len(b) == 0 {
		return 0, malformed("an Opus packet without a frame count")
	}
	variable, padded := b[0]&0x80 != 0, b[0]&0x40 != 0
	count = int(b[0] & 0x3f)
	b = b[1:]
	if count == 0 || count*frame > maxPacketSamples {
		return 0, malformed("an Opus packet of %d frames", count)
	}
	padding := 0
	for padded {
		if len(b) == 0 {
			return 0, malformed("an Opus packet with its padding cut off")
		}
		n := int(b[0])
		b = b[1:]
		if padded = n == 255; padded {
			n = 254
		}
		padding += n
	}
	if padding > len(b) {
		return 0, malformed("an Opus packet with more padding than bytes")
	}
	b = b[:len(b)-padding]
	if !variable {
		if len(b)%count != 0 {
			return 0, malformed("an Opus packet of %d equal frames whose length does not divide", count)
		}
		return count, checkFrame(len(b) / count)
	}
	sum := 0
	for range count - 1 {
		var n int
		if n, b, err = frameLength(b); err != nil {
			return 0, err
		}
		sum += n
	}
	return count, checkFrame(len(b) - sum)
}

// frameLength reads a length of one or two bytes and checks that so much is left. RFC 6716 section 3.2.1
func frameLength(b []byte) (n int, rest []byte, err error) {
	switch {
	case len(b) > 0 && b[0] < 252:
		n, rest = int(b[0]), b[1:]
	case len(b) > 1:
		n, rest = int(b[1])*4+int(b[0]), b[2:]
	default:
		return 0, nil, malformed("an Opus packet with a frame length cut off")
	}
	if n > len(rest) {
		return 0, nil, malformed("an Opus packet with a frame cut off")
	}
	return n, rest, nil
}

func checkFrame(n int) error {
	if n < 0 || n > maxFrameBytes {
		return malformed("an Opus frame of %d bytes", n)
	}
	return nil
}
