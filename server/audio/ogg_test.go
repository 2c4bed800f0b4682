package audio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readOgg reads a whole recording.
func readOgg(b []byte) (packets [][]byte, o *OggReader, err error) {
	o, err = NewOggReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	for {
		p, err := o.Next()
		if err == io.EOF {
			return packets, o, nil
		}
		if err != nil {
			return nil, nil, err
		}
		packets = append(packets, bytes.Clone(p))
	}
}

// The durations are those that opusinfo prints for the files.
func TestOggDurationIsWhatOpusinfoSays(t *testing.T) {
	for name, want := range map[string]time.Duration{
		"speech.ogg":        3960 * time.Millisecond,
		"speech-silk.ogg":   3960 * time.Millisecond,
		"frames60.ogg":      3960 * time.Millisecond,
		"stereo-ffmpeg.ogg": 1200 * time.Millisecond,
	} {
		_, o, err := readOgg(fixture(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := Duration(o.Samples()); (got - want).Abs() > time.Millisecond {
			t.Errorf("%s lasts %v, want %v", name, got, want)
		}
		if !o.Complete() {
			t.Errorf("%s is said to be incomplete", name)
		}
	}
}

func rewrite(t testing.TB, head Head, packets [][]byte, trim int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewOggWriter(&out, head, 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		if err := w.WritePacket(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(trim); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestOggIsWrittenAsItWasRead(t *testing.T) {
	packets, o, err := readOgg(fixture(t, "speech.ogg"))
	if err != nil {
		t.Fatal(err)
	}
	written := rewrite(t, o.Head(), packets, o.Trim())
	again, o2, err := readOgg(written)
	if err != nil {
		t.Fatal(err)
	}
	if len(again) != len(packets) || o2.Head() != o.Head() || o2.Samples() != o.Samples() || o2.Trim() != o.Trim() {
		t.Fatalf("%d packets of %d, %v, %d samples of %d", len(again), len(packets), o2.Head(), o2.Samples(), o.Samples())
	}
	for i := range packets {
		if !bytes.Equal(packets[i], again[i]) {
			t.Fatalf("packet %d differs", i)
		}
	}
}

func TestOggLongPacketsCrossPages(t *testing.T) {
	long := append([]byte{0x03 | 31<<3, 6 | 0x80}, make([]byte, 10)...) // six frames of 20 ms, lengths first
	long = long[:2]
	for range 5 {
		long = append(long, 252+3, 255) // 1275
	}
	long = append(long, bytes.Repeat([]byte{0x55}, 6*1275)...)
	var packets [][]byte
	for range 20 {
		packets = append(packets, long)
	}
	written := rewrite(t, Head{Channels: 1, PreSkip: 312}, packets, 0)
	// Merge two pages into packets that are continued: rewrite with pages broken in the middle of a packet.
	got, o, err := readOgg(splitPages(t, written))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 20 || o.Samples() != 20*5760-312 {
		t.Fatalf("%d packets, %d samples", len(got), o.Samples())
	}
	for _, p := range got {
		if !bytes.Equal(p, long) {
			t.Fatal("a packet was not put together")
		}
	}
}

// splitPages breaks every sound page behind its first 200 lacing values.
func splitPages(t *testing.T, b []byte) []byte {
	var out []byte
	sequence := uint32(0)
	r := &oggPageReader{r: bytes.NewReader(b)}
	for n := 0; ; n++ {
		page, err := r.next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		cut := len(page.lacing)
		if n >= 2 && cut > 200 {
			cut = 200
		}
		granule, flags := page.granule, page.flags
		size := 0
		for _, l := range page.lacing[:cut] {
			size += int(l)
		}
		if cut < len(page.lacing) { // positions: the packets of 31 lacing values that end before the cut
			ends := int64(0)
			for _, l := range page.lacing[cut:] {
				if l < 255 {
					ends++
				}
			}
			out = appendPage(out, flags&^oggLast, granule-ends*5760, page.serial, sequence, page.lacing[:cut], page.body[:size])
			sequence++
			flags |= oggContinued
		}
		rest, body := page.lacing[cut:], page.body[size:]
		if cut == len(page.lacing) {
			rest, body = page.lacing, page.body
		}
		out = appendPage(out, flags, granule, page.serial, sequence, rest, body)
		sequence++
	}
}

func appendPage(out []byte, flags byte, granule int64, serial, sequence uint32, lacing, body []byte) []byte {
	at := len(out)
	out = append(append(out, "OggS\x00"...), flags)
	out = binary.LittleEndian.AppendUint64(out, uint64(granule))
	out = binary.LittleEndian.AppendUint32(out, serial)
	out = binary.LittleEndian.AppendUint32(out, sequence)
	out = append(out, 0, 0, 0, 0, byte(len(lacing)))
	out = append(append(out, lacing...), body...)
	binary.LittleEndian.PutUint32(out[at+22:], oggCRC(0, out[at:]))
	return out
}

// editPages lets edit change each page before its sum is made anew.
func editPages(t *testing.T, b []byte, edit func(n int, last bool, p *oggPage)) []byte {
	var out []byte
	r := &oggPageReader{r: bytes.NewReader(b)}
	for n := 0; ; n++ {
		page, err := r.next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		edit(n, page.flags&oggLast != 0, &page)
		out = appendPage(out, page.flags, page.granule, page.serial, page.sequence, page.lacing, page.body)
	}
}

func TestMalformedOggIsRefused(t *testing.T) {
	good := fixture(t, "speech.ogg")
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for name, bad := range map[string][]byte{
		"cut off in a page":       good[:len(good)-10],
		"cut off in the headers":  good[:40],
		"damaged sound":           flip(len(good) / 2),
		"damaged header":          flip(12),
		"chained to itself":       append(bytes.Clone(good), good...),
		"followed by a zip file":  append(bytes.Clone(good), "PK\x03\x04 and so on, long enough for a page header"...),
		"followed by a few bytes": append(bytes.Clone(good), "<?"...),
		"a page is missing": func() []byte {
			at := bytes.LastIndex(good, []byte("OggS"))
			before := bytes.LastIndex(good[:at], []byte("OggS"))
			return append(bytes.Clone(good[:before]), good[at:]...)
		}(),
		"the end claims more": editPages(t, good, func(_ int, last bool, p *oggPage) {
			if last {
				p.granule += SampleRate
			}
		}),
		"the end claims less": editPages(t, good, func(_ int, last bool, p *oggPage) {
			if last {
				p.granule -= 2 * SampleRate
			}
		}),
		"all pages count half": editPages(t, good, func(_ int, _ bool, p *oggPage) { p.granule /= 2 }),
		"positions go back":    editPages(t, good, func(n int, _ bool, p *oggPage) { p.granule = int64(5-n) * 100 }),
		"huge position":        editPages(t, good, func(_ int, last bool, p *oggPage) { p.granule |= 1 << 62 }),
		"no position":          editPages(t, good, func(n int, _ bool, p *oggPage) { p.granule = -1 }),
		"six channels": editPages(t, good, func(n int, _ bool, p *oggPage) {
			if n == 0 {
				p.body[9], p.body[18] = 6, 1
			}
		}),
		"an empty packet": editPages(t, good, func(n int, _ bool, p *oggPage) {
			if n == 3 {
				p.lacing = append([]byte{0}, p.lacing...)
			}
		}),
	} {
		_, _, err := readOgg(bad)
		var why *MalformedError
		if !errors.As(err, &why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOtherFilesAreUnsupported(t *testing.T) {
	vorbis := appendPage(nil, oggFirst, 0, 1, 0, []byte{30}, append([]byte("\x01vorbis"), make([]byte, 23)...))
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte(strings.Repeat("text ", 100)), "vorbis": vorbis} {
		if _, _, err := readOgg(b); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOggThatStopsIsIncomplete(t *testing.T) {
	good := fixture(t, "speech.ogg")
	cut := good[:bytes.LastIndex(good, []byte("OggS"))]
	_, o, err := readOgg(cut)
	if err != nil {
		t.Fatal(err)
	}
	if o.Complete() || o.Samples() == 0 {
		t.Fatalf("complete %v, %d samples", o.Complete(), o.Samples())
	}
}

func TestPacketSamplesChecksTheFraming(t *testing.T) {
	for _, c := range []struct {
		packet string
		want   int // 0 is refused
	}{
		{"", 0},
		{"\x00", 480}, {"\x08", 960}, {"\x18", 2880}, {"\x60", 480}, {"\x68", 960}, {"\x80", 120}, {"\xf8", 960},
		{"\xf9ab", 1920}, {"\xf9abc", 0},
		{"\xfa\x01ab", 1920}, {"\xfa\x03ab", 0}, {"\xfa", 0}, {"\xfa\xfc", 0},
		{"\xfb", 0}, {"\xfb\x00", 0}, {"\xfb\x03abc", 2880}, {"\xfb\x03ab", 0}, {"\xfb\x06abcdef", 5760}, {"\xfb\x07abcdefg", 0},
		{"\xfb\x42\x02ab\x00\x00", 1920}, {"\xfb\x42\x09ab", 0}, {"\xfb\x42\xff", 0}, {"\xfb\x82\x01abc", 1920}, {"\xfb\x82\x09abc", 0},
		{"\xf8" + strings.Repeat("a", 1275), 960}, {"\xf8" + strings.Repeat("a", 1276), 0},
	} {
		got, err := PacketSamples([]byte(c.packet))
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%.10q: %d, %v, want %d", c.packet, got, err, c.want)
		}
	}
}

func FuzzOgg(f *testing.F) {
	for _, name := range []string{"speech-silk.ogg", "stereo-ffmpeg.ogg"} {
		f.Add(fixture(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		packets, o, err := readOgg(b)
		if err != nil {
			return
		}
		if o.Samples() < 0 || o.Trim() < 0 || o.Trim() > maxTrim {
			t.Fatalf("%d samples, %d cut off", o.Samples(), o.Trim())
		}
		again, o2, err := readOgg(rewrite(t, o.Head(), packets, o.Trim()))
		if err != nil || len(again) != len(packets) || o2.Head() != o.Head() {
			t.Fatalf("what was read and written cannot be read: %v", err)
		}
	})
}

func FuzzPacketSamples(f *testing.F) {
	f.Add([]byte("\xfb\x42\x02ab\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := PacketSamples(b); err == nil && (n < 120 || n > maxPacketSamples) {
			t.Fatalf("%d samples", n)
		}
	})
}
