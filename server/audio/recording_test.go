package audio

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"testing"
	"time"
)

// packetsOf reads a recording to its end.
func packetsOf(b []byte) ([][]byte, Reader, error) {
	r, _, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, nil, err
	}
	var packets [][]byte
	for {
		p, err := r.Next()
		if err == io.EOF {
			return packets, r, nil
		}
		if err != nil {
			return nil, nil, err
		}
		packets = append(packets, bytes.Clone(p))
	}
}

func inspect(b []byte, longest time.Duration) (Info, error) {
	return Inspect(bytes.NewReader(b), int64(len(b)), longest)
}

var recordings = map[string]Container{
	"speech.ogg": Ogg, "speech-silk.ogg": Ogg, "frames60.ogg": Ogg, "stereo-ffmpeg.ogg": Ogg,
	"speech-ffmpeg.webm": WebM, "live-ffmpeg.webm": WebM, "speech-ffmpeg.mp4": MP4, "fragments-ffmpeg.mp4": MP4,
}

func TestInspectCountsWhatIsThere(t *testing.T) {
	for name, container := range recordings {
		info, err := inspect(fixture(t, name), time.Minute)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := 3960 * time.Millisecond
		slack := time.Millisecond
		switch name {
		case "stereo-ffmpeg.ogg":
			want = 1200 * time.Millisecond
		case "fragments-ffmpeg.mp4", "speech-ffmpeg.webm", "live-ffmpeg.webm":
			slack = 20 * time.Millisecond // ffmpeg did not carry over what is to be cut off at the end
		}
		if info.Container != container || (info.Duration()-want).Abs() > slack || info.Packets == 0 {
			t.Errorf("%s: %+v, %v", name, info, info.Duration())
		}
	}
}

func TestTooLongIsRefused(t *testing.T) {
	for name := range recordings {
		if name == "stereo-ffmpeg.ogg" {
			continue
		}
		if _, err := inspect(fixture(t, name), 3900*time.Millisecond); err != ErrTooLong {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := inspect(fixture(t, name), time.Second); err != ErrTooLong {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever the way from container to container, the packets and what is to be played of them stay the same: so does the sound.
func TestRemuxKeepsEveryPacket(t *testing.T) {
	for name := range recordings {
		original := fixture(t, name)
		want, first, err := packetsOf(original)
		if err != nil {
			t.Fatal(name, err)
		}
		b := original
		for _, to := range []Container{WebM, MP4, Ogg, MP4, WebM, Ogg} {
			r, _, err := Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(name, to, err)
			}
			var out bytes.Buffer
			if err := Remux(&out, r, to); err != nil {
				t.Fatal(name, to, err)
			}
			b = out.Bytes()
			got, last, err := packetsOf(b)
			if err != nil {
				t.Fatal(name, to, err)
			}
			info, err := inspect(b, 0)
			if err != nil || info.Container != to {
				t.Fatal(name, to, info, err)
			}
			if !slices.EqualFunc(got, want, bytes.Equal) || last.Head() != first.Head() || last.Samples() != first.Samples() || last.Trim() != first.Trim() {
				t.Errorf("%s as %s: %d packets of %d, %+v, %+v, %d of %d samples, trim %d, %d", name, to, len(got), len(want),
					last.Head(), first.Head(), last.Samples(), first.Samples(), last.Trim(), first.Trim())
			}
		}
	}
}

// A message sounds the same in every container, to the last bit of the last sample.
func TestRenditionsDecodeToTheSameSound(t *testing.T) {
	for name := range recordings {
		b := fixture(t, name)
		want := decoded(t, b)
		info, err := inspect(b, 0)
		if err != nil || int64(len(want)) != info.Samples {
			t.Errorf("%s: %d samples of %d: %v", name, len(want), info.Samples, err)
		}
		for _, to := range []Container{Ogg, WebM, MP4} {
			r, _, err := Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(name, err)
			}
			var out bytes.Buffer
			if err := Remux(&out, r, to); err != nil {
				t.Fatal(name, to, err)
			}
			if got := decoded(t, out.Bytes()); !slices.Equal(got, want) {
				t.Errorf("%s as %s: the sound differs: %d samples of %d", name, to, len(got), len(want))
			}
		}
	}
}

// decoded is all there is to hear, bit by bit.
func decoded(t *testing.T, b []byte) (pcm []uint32) {
	t.Helper()
	r, _, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	err = decodeAll(r, SampleRate, func(part []float32) {
		for _, s := range part {
			pcm = append(pcm, math.Float32bits(s))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return pcm
}

func TestMalformedWebMIsRefused(t *testing.T) {
	r, _, _ := Open(bytes.NewReader(fixture(t, "speech.ogg")), int64(len(fixture(t, "speech.ogg"))))
	var out bytes.Buffer
	if err := Remux(&out, r, WebM); err != nil {
		t.Fatal(err)
	}
	good := out.Bytes()
	cluster := bytes.Index(good, []byte{0x1f, 0x43, 0xb6, 0x75})
	edited := func(edit func(b []byte)) []byte {
		b := bytes.Clone(good)
		edit(b)
		return b
	}
	for name, bad := range map[string][]byte{
		"cut off":                   good[:len(good)-10],
		"chained":                   append(bytes.Clone(good), good...),
		"followed by something":     append(bytes.Clone(good), "PK\x03\x04"...),
		"the track is another":      edited(func(b []byte) { b[bytes.Index(b[cluster:], []byte{0xa3})+cluster+9] = 0x82 }),
		"a block said to come late": edited(func(b []byte) { binary.BigEndian.PutUint64(b[cluster+12+9:], 100_000) }),
		"six channels":              edited(func(b []byte) { b[bytes.Index(b, []byte("OpusHead"))+9] = 6 }),
		"attachments": append(edited(func(b []byte) {
			segment := bytes.Index(b, []byte{0x18, 0x53, 0x80, 0x67}) + 4
			binary.BigEndian.PutUint64(b[segment:], binary.BigEndian.Uint64(b[segment:])+uint64(len(ebml(mkvAttachments, []byte("x")))))
		}), ebml(mkvAttachments, []byte("x"))...),
		"mostly void": append(edited(func(b []byte) {
			segment := bytes.Index(b, []byte{0x18, 0x53, 0x80, 0x67}) + 4
			binary.BigEndian.PutUint64(b[segment:], binary.BigEndian.Uint64(b[segment:])+uint64(len(ebml(0xec, make([]byte, 2<<20)))))
		}), ebml(0xec, make([]byte, 2<<20))...),
	} {
		_, err := inspect(bad, 0)
		var why *MalformedError
		if !errors.As(err, &why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	film := edited(func(b []byte) { copy(b[bytes.Index(b, []byte("A_OPUS")):], "A_FLAC") })
	if _, err := inspect(film, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("another codec: %v", err)
	}
	if _, err := inspect(good[:cluster/2], 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("cut off in the headers: %v", err)
	}
}

func TestMalformedMP4IsRefused(t *testing.T) {
	r, _, _ := Open(bytes.NewReader(fixture(t, "speech.ogg")), int64(len(fixture(t, "speech.ogg"))))
	var out bytes.Buffer
	if err := Remux(&out, r, MP4); err != nil {
		t.Fatal(err)
	}
	good := out.Bytes()
	edited := func(kind string, offset int, value uint32) []byte {
		b := bytes.Clone(good)
		binary.BigEndian.PutUint32(b[bytes.Index(b, []byte(kind))+4+offset:], value)
		return b
	}
	for name, bad := range map[string][]byte{
		"cut off":                 good[:len(good)-10],
		"followed by a zip file":  append(bytes.Clone(good), "PK\x03\x04 and so on"...),
		"followed by a free box":  append(bytes.Clone(good), box("free", make([]byte, 2<<20))...),
		"two indexes":             append(bytes.Clone(good), good[bytes.Index(good, []byte("moov"))-4:]...),
		"the edit claims less":    edited("elst", 8, SampleRate),
		"the edit claims more":    edited("elst", 8, 100*SampleRate),
		"the table claims less":   edited("stts", 12, 240),
		"more packets than sizes": edited("stsz", 8, 1<<30),
		"fewer packets":           edited("stsz", 8, 10),
		"packets outside":         edited("stco", 8, 10),
		"packets far outside":     edited("stco", 8, 1<<31),
		"another clock":           edited("mdhd", 12, 44100),
	} {
		_, err := inspect(bad, 0)
		var why *MalformedError
		if !errors.As(err, &why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	music := bytes.Clone(good)
	copy(music[bytes.Index(music, []byte("Opus")):], "mp4a")
	if _, err := inspect(music, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("another codec: %v", err)
	}
	if _, err := inspect(good[:200], 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("cut off in the index: %v", err)
	}
}

func measure(t testing.TB, b []byte) Sound {
	t.Helper()
	r, _, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Measure(r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The expected waveforms are computed from what libopus decodes.
func TestWaveformIsThatOfLibopus(t *testing.T) {
	for _, name := range []string{"speech.ogg", "speech-silk.ogg"} {
		var want []int
		if err := json.Unmarshal(fixture(t, name+".waveform.json"), &want); err != nil {
			t.Fatal(err)
		}
		got := measure(t, fixture(t, name)).Waveform
		if c := correlation(got, want); len(got) != WaveformPoints || c < 0.98 {
			t.Errorf("%s: correlation %f\n%v\n%v", name, c, got, want)
		}
		for i := range got {
			if d := got[i] - want[i]; d < -60 || d > 60 {
				t.Errorf("%s: value %d is %d, want %d", name, i, got[i], want[i])
			}
		}
	}
}

func correlation(a, b []int) float64 {
	n := float64(len(a))
	var sa, sb, saa, sbb, sab float64
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		sa, sb, saa, sbb, sab = sa+x, sb+y, saa+x*x, sbb+y*y, sab+x*y
	}
	return (n*sab - sa*sb) / math.Sqrt((n*saa-sa*sa)*(n*sbb-sb*sb))
}

func TestWaveformOfLittleAndNothing(t *testing.T) {
	for samples, want := range map[int]int{0: 0, 1: 1024, 100: 1024, 481: 1024, 48000: 1024} {
		w := waveform{}
		for range samples {
			w.add(1)
		}
		points := w.points()
		if len(points) != WaveformPoints || slices.Min(points) != want || slices.Max(points) != want {
			t.Errorf("%d samples: %v", samples, points)
		}
	}
}

// BS.1770-4: a sine of 997 Hz at full scale in one channel is -3.01 LKFS.
func TestLoudnessOfASine(t *testing.T) {
	l := newLoudness()
	for i := range 3 * SampleRate {
		l.add(math.Sin(2 * math.Pi * 997 * float64(i) / SampleRate))
	}
	if got := l.integrated(); math.Abs(got+3.01) > 0.05 {
		t.Errorf("%.2f LUFS", got)
	}
	if got := newLoudness().integrated(); got != -70 {
		t.Errorf("silence: %f", got)
	}
}

func TestWAVIsAsLongAsTheRecording(t *testing.T) {
	for _, name := range []string{"speech.ogg", "stereo-ffmpeg.ogg", "speech-ffmpeg.mp4"} {
		b := fixture(t, name)
		info, err := inspect(b, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := WriteWAV(&out, bytes.NewReader(b), int64(len(b)), time.Minute); err != nil {
			t.Fatal(err)
		}
		wav := out.Bytes()
		size := int(binary.LittleEndian.Uint32(wav[40:]))
		if size != len(wav)-44 || size/2 != int(info.Samples/3) || int(binary.LittleEndian.Uint32(wav[4:])) != len(wav)-8 {
			t.Errorf("%s: %d bytes of sound in %d, want %d", name, size, len(wav), info.Samples/3*2)
		}
		var power float64
		for i := 44; i < len(wav); i += 2 {
			s := float64(int16(binary.LittleEndian.Uint16(wav[i:]))) / 32768
			power += s * s
		}
		if db := decibels(power / float64(size/2)); db < -40 || db > -3 {
			t.Errorf("%s: %f dB", name, db)
		}
	}
}

// minute is a minute of speech, by saying the same over and over.
func minute(t testing.TB) []byte {
	packets, r, err := packetsOf(fixture(t, "speech.ogg"))
	if err != nil {
		t.Fatal(err)
	}
	var long [][]byte
	for len(long) < 3000 {
		long = append(long, packets...)
	}
	return rewrite(t, r.Head(), long[:3000], 0)
}

func BenchmarkInspectMinute(b *testing.B) {
	content := minute(b)
	for b.Loop() {
		if _, err := inspect(content, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMeasureMinute(b *testing.B) {
	content := minute(b)
	for b.Loop() {
		measure(b, content)
	}
}

func FuzzOpen(f *testing.F) {
	for name := range recordings {
		f.Add(fixture(f, name))
	}
	f.Fuzz(staysTheSame)
}

func FuzzWebM(f *testing.F) {
	f.Add(short(f, WebM))
	f.Fuzz(staysTheSame)
}

func FuzzMP4(f *testing.F) {
	f.Add(short(f, MP4))
	for _, name := range []string{"fragments-ffmpeg.mp4", "speech-aac.mp4"} {
		f.Add(fixture(f, name))
	}
	f.Fuzz(staysTheSame)
}

// short is a fifth of a second, which is fuzzed faster.
func short(f *testing.F, to Container) []byte {
	packets, r, err := packetsOf(fixture(f, "speech-silk.ogg"))
	if err != nil {
		f.Fatal(err)
	}
	ogg := rewrite(f, r.Head(), packets[:10], 0)
	if r, _, err = Open(bytes.NewReader(ogg), int64(len(ogg))); err != nil {
		f.Fatal(err)
	}
	var out bytes.Buffer
	if err := Remux(&out, r, to); err != nil {
		f.Fatal(err)
	}
	return out.Bytes()
}

// staysTheSame checks that what can be read can be written in every container and read again.
func staysTheSame(t *testing.T, b []byte) {
	info, err := inspect(b, 0)
	if err != nil {
		return
	}
	if info.Samples < 0 {
		t.Fatal(info)
	}
	if info.Codec == AAC {
		return
	}
	for _, to := range []Container{WebM, MP4, Ogg} {
		r, _, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Remux(&out, r, to); err != nil {
			t.Fatal(err)
		}
		again, err := inspect(out.Bytes(), 0)
		if err != nil || again.Packets != info.Packets {
			t.Fatalf("as %s: %v, %+v, was %+v", to, err, again, info)
		}
	}
}

func FuzzESDS(f *testing.F) {
	esds := fixture(f, "speech-aac.mp4")
	at := bytes.Index(esds, []byte("esds")) + 4
	f.Add(esds[at : at+40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := readESDS(b); err == nil && (c.rate < 7350 || c.channels < 1 || c.channels > 2) {
			t.Fatalf("%+v", c)
		}
	})
}

// FuzzOggPages fuzzes behind the checksums.
func FuzzOggPages(f *testing.F) {
	f.Add([]byte{0, 1, 255, 3, 9, 200}, int64(960))
	head := appendPage(nil, oggFirst, 0, 1, 0, []byte{19}, Head{Channels: 1, PreSkip: 312}.Append(nil))
	tags := appendTags(nil, "x")
	head = appendPage(head, 0, 0, 1, 1, []byte{byte(len(tags))}, tags)
	f.Fuzz(func(t *testing.T, b []byte, granule int64) {
		out := bytes.Clone(head)
		for n := uint32(2); len(b) >= 2; n++ {
			flags, count := b[0]&5, int(b[1])
			b = b[2:]
			count = min(count, len(b))
			lacing, size := b[:count], 0
			for _, l := range lacing {
				size += int(l)
			}
			body := make([]byte, size)
			copy(body, b[count:])
			out = appendPage(out, flags, granule*int64(n), 1, n, lacing, body)
			b = b[min(count+size, len(b)):]
		}
		if packets, o, err := readOgg(out); err == nil && (o.Samples() < 0 || len(packets) == 0 && o.Samples() > 0) {
			t.Fatal(o.Samples())
		}
	})
}

func FuzzDecode(f *testing.F) {
	packets, _, err := packetsOf(fixture(f, "speech.ogg"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packets[10], packets[11])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d, err := newDecoder(Head{Channels: 1}, SampleRate)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range [][]byte{first, second} {
			n, _ := PacketSamples(p)
			if pcm, err := d.decode(p); err == nil && len(pcm) != n {
				t.Fatalf("%d samples of %d", len(pcm), n)
			}
		}
	})
}
