package audio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

// AAC in MP4 is counted by its packets of 1,024 samples: 3.96 s of speech, with what ffmpeg's encoder puts before it where no edit list
// takes that away again.
func TestAACIsCounted(t *testing.T) {
	for name, want := range map[string]time.Duration{
		"speech-aac.mp4":    3960 * time.Millisecond,
		"fragments-aac.mp4": 3960*time.Millisecond + 1024*time.Second/48000, // as ffprobe counts it
	} {
		info, err := inspect(fixture(t, name), time.Minute)
		if err != nil || info.Codec != AAC || info.Container != MP4 || info.Head.Channels != 1 || (info.Duration()-want).Abs() > time.Millisecond {
			t.Errorf("%s: %+v, %v, %v, want %v", name, info, info.Duration(), err, want)
		}
		if _, err := inspect(fixture(t, name), 3900*time.Millisecond); err != ErrTooLong {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := Open(bytes.NewReader(fixture(t, name)), int64(len(fixture(t, name)))); err != ErrUnsupported {
			t.Errorf("%s can be opened as if it could be decoded: %v", name, err)
		}
	}
}

// What is wrong with an AAC file makes it an ordinary one: it may be music.
func TestAACThatLiesIsNoRecording(t *testing.T) {
	good, fragments := fixture(t, "speech-aac.mp4"), fixture(t, "fragments-aac.mp4")
	edited := func(b []byte, kind string, offset int, value uint32) []byte {
		b = bytes.Clone(b)
		binary.BigEndian.PutUint32(b[bytes.Index(b, []byte(kind))+4+offset:], value)
		return b
	}
	esds := bytes.Index(good, []byte("esds"))
	config := esds + bytes.Index(good[esds:], []byte{5, 0x80, 0x80, 0x80}) + 5
	changed := func(at int, value byte) []byte {
		b := bytes.Clone(good)
		b[at] = value
		return b
	}
	for name, bad := range map[string][]byte{
		"the table claims less":          edited(good, "stts", 12, 512),
		"the table claims more":          edited(good, "stts", 12, 4096),
		"the edit claims less":           edited(good, "elst", 8, 1000),
		"the edit claims more":           edited(good, "elst", 8, 59000),
		"the clock is half as fast":      edited(good, "mdhd", 12, 22050),
		"the clock stands still":         edited(good, "mdhd", 12, 0),
		"fragments claim more":           edited(fragments, "tfhd", 8, 48000),
		"fewer sizes than packets":       edited(good, "stsz", 8, 10),
		"packets outside":                edited(good, "stco", 8, 1<<31),
		"followed by a zip file":         append(bytes.Clone(good), "PK\x03\x04 and so on"...),
		"chained":                        append(bytes.Clone(good), good...),
		"cut off":                        good[:len(good)-100],
		"MP3 in the same box":            changed(esds+bytes.Index(good[esds:], []byte{4, 0x80, 0x80, 0x80})+5, 0x6b),
		"five channels":                  changed(config+1, good[config+1]&0x87|5<<3),
		"another object type":            changed(config, 39<<3&0xf8),
		"the configuration is cut off":   changed(config-1, 1),
		"a descriptor is longer":         changed(config-1, 127),
		"the configuration is not there": changed(config-5, 9),
	} {
		if info, err := inspect(bad, 0); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

func TestParseAAC(t *testing.T) {
	for name, c := range map[string]struct {
		config []byte
		want   aacConfig
		ok     bool
	}{
		"LC 44.1 kHz stereo":          {[]byte{0x12, 0x10}, aacConfig{2, 44100, 1024}, true},
		"LC 48 kHz mono, 960 samples": {[]byte{0x11, 0x8c}, aacConfig{1, 48000, 960}, true},
		"HE-AAC, core of 24 kHz":      {[]byte{0x2b, 0x09, 0x88, 0x00}, aacConfig{1, 24000, 1024}, true},
		"a rate of its own":           {[]byte{0x17, 0x80, 0x1f, 0x40, 0x08}, aacConfig{1, 16000, 1024}, true},
		"enhanced low delay":          {[]byte{0xf8, 0xe6, 0x20, 0x00}, aacConfig{}, false},
		"cut off":                     {[]byte{0x12}, aacConfig{}, false},
		"nothing":                     {nil, aacConfig{}, false},
	} {
		if got, ok := parseAAC(c.config); ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
}
