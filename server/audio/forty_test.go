package audio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var keepFiles = flag.String("keep", "", "directory in which TestFortyFiles leaves its files")

// slowCount is how long an Ogg Opus file plays, in samples, counted by somebody who shares nothing with the reader: it looks for pages byte by byte, believes
// no position but the last, and has the lengths of packets from a table written out by hand.
func slowCount(t *testing.T, file []byte) int64 {
	t.Helper()
	// RFC 6716 table 2: the length of a frame for each of the 32 configurations, in tenths of a millisecond.
	frames := strings.Fields("100 200 400 600  100 200 400 600  100 200 400 600  100 200  100 200  25 50 100 200  25 50 100 200  25 50 100 200  25 50 100 200")
	var packets []string
	var packet string
	first, last := int64(-1), int64(0)
	var counted int64
	for at := strings.Index(string(file), "OggS"); at >= 0 && at < len(file); {
		position := int64(binary.LittleEndian.Uint64(file[at+6 : at+14]))
		segments := int(file[at+26])
		body := at + 27 + segments
		ends := int64(0)
		for i := range segments {
			size := int(file[at+27+i])
			packet += string(file[body : body+size])
			body += size
			if size == 255 {
				continue
			}
			if packets = append(packets, packet); len(packets) > 2 {
				tenths, err := strconv.Atoi(frames[packet[0]>>3])
				if err != nil {
					t.Fatal(err)
				}
				count := []int{1, 2, 2, 0}[packet[0]%4]
				if count == 0 {
					count = int(packet[1] % 64)
				}
				ends += int64(tenths * count * 48 / 10)
			}
			packet = ""
		}
		if ends > 0 {
			if first < 0 {
				first = max(position-ends, 0) // where the recording was cut out of a longer one
			}
			counted += ends
			last = position
		}
		at = body
	}
	if first < 0 {
		return 0
	}
	if end := last - first; end < counted { // cut off at the end
		counted = end
	}
	return max(counted-int64(binary.LittleEndian.Uint16([]byte(packets[0])[10:])), 0)
}

// packetsLike are n packets with the given first bytes; what they encode does not matter.
func packetsLike(n int, toc ...byte) (all [][]byte) {
	for i := range n {
		all = append(all, append(bytes.Clone(toc), bytes.Repeat([]byte{byte(i)}, 12)...))
	}
	return all
}

func toc(config, code byte) byte { return config<<3 | code }

// pagesOf writes a recording with so many packets to a page and positions that begin at base.
func pagesOf(head Head, tags []byte, packets [][]byte, perPage int, base int64, trim int64, ended bool) []byte {
	out := appendPage(nil, oggFirst, 0, 5, 0, []byte{19}, head.Append(nil))
	sequence := uint32(1)
	var lacing []byte
	for n := len(tags); ; n -= 255 { // the comments may need many pages
		lacing = append(lacing, byte(min(n, 255)))
		if n < 255 {
			break
		}
	}
	flags := byte(0)
	for len(lacing) > 0 {
		n := min(len(lacing), 255)
		size := 0
		for _, l := range lacing[:n] {
			size += int(l)
		}
		position := int64(-1)
		if n == len(lacing) {
			position = 0
		}
		out = appendPage(out, flags, position, 5, sequence, lacing[:n], tags[:size])
		lacing, tags, flags = lacing[n:], tags[size:], oggContinued
		sequence++
	}
	position := base
	for len(packets) > 0 {
		var lacing, body []byte
		for _, p := range packets[:min(perPage, len(packets))] {
			n, err := PacketSamples(p)
			if err != nil {
				panic(err)
			}
			position += int64(n)
			for size := len(p); ; size -= 255 {
				lacing = append(lacing, byte(min(size, 255)))
				if size < 255 {
					break
				}
			}
			body = append(body, p...)
		}
		packets = packets[min(perPage, len(packets)):]
		flags, at := byte(0), position
		if len(packets) == 0 && ended {
			flags, at = oggLast, position-trim
		}
		out = appendPage(out, flags, at, 5, sequence, lacing, body)
		sequence++
	}
	return out
}

// goodFiles are Ogg files as encoders, recorders and cutters may write them.
func goodFiles(t *testing.T) map[string][]byte {
	t.Helper()
	mono, tags := Head{Channels: 1, PreSkip: 312, InputRate: 48000}, appendTags(nil, "x")
	plain := func(head Head, packets [][]byte) []byte { return pagesOf(head, tags, packets, 20, 0, 0, true) }
	big := append([]byte{toc(31, 3), 0x82, 252 + 3, 255}, bytes.Repeat([]byte{7}, 2*1275)...)
	six := append(append([]byte{toc(31, 3), 0x86}, bytes.Repeat([]byte{252 + 3, 255}, 5)...), bytes.Repeat([]byte{7}, 6*1275)...)
	return map[string][]byte{
		"CELT 2.5 ms":           plain(mono, packetsLike(1000, toc(28, 0))),
		"CELT 5 ms":             plain(mono, packetsLike(700, toc(29, 0))),
		"CELT 10 ms":            plain(mono, packetsLike(300, toc(30, 0))),
		"CELT 20 ms":            plain(mono, packetsLike(151, toc(31, 0))),
		"SILK 10 ms":            plain(mono, packetsLike(90, toc(0, 0))),
		"SILK 40 ms":            plain(mono, packetsLike(50, toc(2, 0))),
		"SILK 60 ms":            plain(mono, packetsLike(33, toc(3, 0))),
		"hybrid 20 ms":          plain(mono, packetsLike(77, toc(15, 0))),
		"two equal frames":      plain(mono, packetsLike(40, toc(31, 1))),
		"two frames":            plain(mono, packetsLike(40, toc(31, 2), 4)),
		"three equal frames":    plain(mono, packetsLike(40, toc(31, 3), 3)),
		"120 ms":                plain(mono, packetsLike(20, toc(31, 3), 6)),
		"padded packets":        plain(mono, packetsLike(40, toc(31, 3), 0x42, 2)),
		"large packets":         plain(mono, [][]byte{big, big, big, big, big, big, big}),
		"stereo":                plain(Head{Channels: 2, PreSkip: 312, InputRate: 44100}, packetsLike(100, toc(31, 0)|4)),
		"no pre-skip":           plain(Head{Channels: 1}, packetsLike(100, toc(31, 0))),
		"pre-skip of 80 ms":     plain(Head{Channels: 1, PreSkip: 3840, InputRate: 16000, Gain: -256}, packetsLike(100, toc(31, 0))),
		"one packet":            plain(mono, packetsLike(1, toc(31, 0))),
		"one packet to a page":  pagesOf(mono, tags, packetsLike(60, toc(31, 0)), 1, 0, 0, true),
		"cut at the end":        pagesOf(mono, tags, packetsLike(60, toc(31, 0)), 20, 0, 517, true),
		"cut by a whole packet": pagesOf(mono, tags, packetsLike(61, toc(31, 0)), 20, 0, 960, true),
		"cut out of a longer":   pagesOf(mono, tags, packetsLike(60, toc(31, 0)), 20, 480_000, 100, true),
		"just stops":            pagesOf(mono, tags, packetsLike(60, toc(31, 0)), 20, 0, 0, false),
		"a picture in its tags": pagesOf(mono, append(bytes.Clone(tags), make([]byte, 200_000)...), packetsLike(60, toc(31, 0)), 20, 0, 0, true),
		"lengths change midway": plain(mono, append(packetsLike(30, toc(31, 0)), append(packetsLike(30, toc(3, 0)), packetsLike(30, toc(28, 0))...)...)),
		"sizes of 255 and 510":  plain(mono, [][]byte{append([]byte{toc(31, 0)}, make([]byte, 254)...), append([]byte{toc(31, 0)}, make([]byte, 509)...)}),
		"a minute":              minute(t),
		"of ffmpeg, stereo":     fixture(t, "stereo-ffmpeg.ogg"),
		"of opusenc":            fixture(t, "speech.ogg"),
		"of opusenc, SILK":      fixture(t, "speech-silk.ogg"),
		"of opusenc, 60 ms":     fixture(t, "frames60.ogg"),
		"pages in mid-packet":   splitPages(t, rewrite(t, mono, slices.Repeat([][]byte{six}, 20), 0)),
	}
}

// badFiles are recordings that somebody has tampered with, or that were broken on the way.
func badFiles(t *testing.T) map[string][]byte {
	t.Helper()
	mono, tags := Head{Channels: 1, PreSkip: 312, InputRate: 48000}, appendTags(nil, "x")
	good := pagesOf(mono, tags, packetsLike(200, toc(31, 0)), 20, 0, 0, true)
	with := func(packets ...[]byte) []byte { // one page of packets that no encoder makes
		out := appendPage(nil, oggFirst, 0, 5, 0, []byte{19}, mono.Append(nil))
		out = appendPage(out, 0, 0, 5, 1, []byte{byte(len(tags))}, tags)
		var lacing, body []byte
		for _, p := range packets {
			lacing, body = append(lacing, byte(len(p))), append(body, p...)
		}
		return appendPage(out, oggLast, int64(960*len(packets)), 5, 2, lacing, body)
	}
	last := bytes.LastIndex(good, []byte("OggS"))
	flipped := func(at int) []byte { b := bytes.Clone(good); b[at] ^= 0x10; return b }
	edited := func(edit func(n int, last bool, p *oggPage)) []byte { return editPages(t, good, edit) }
	remuxed := func(to Container) []byte {
		r, _, err := Open(bytes.NewReader(good), int64(len(good)))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Remux(&out, r, to); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	return map[string][]byte{
		"chained":                    append(bytes.Clone(good), good...),
		"chained without an end":     append(bytes.Clone(good[:last]), good...),
		"a zip file behind":          append(bytes.Clone(good), "PK\x05\x06 and the rest of its directory, long enough"...),
		"a page of HTML behind":      append(bytes.Clone(good), "<html><script>alert(1)</script></html>"...),
		"something between pages":    append(append(bytes.Clone(good[:last]), "junk"...), good[last:]...),
		"one bit of sound":           flipped(len(good) / 2),
		"one bit of a position":      flipped(last + 6),
		"one bit of a number":        flipped(last + 18),
		"cut off in a page":          good[:len(good)-5],
		"a page is missing":          append(bytes.Clone(good[:last-340]), good[last:]...),
		"59 s claimed of 4":          edited(func(_ int, last bool, p *oggPage) { p.granule += map[bool]int64{true: 55 * SampleRate}[last] }),
		"all positions times ten":    edited(func(_ int, _ bool, p *oggPage) { p.granule *= 10 }),
		"all positions halved":       edited(func(_ int, _ bool, p *oggPage) { p.granule /= 2 }),
		"1 s claimed of 4":           edited(func(_ int, last bool, p *oggPage) { p.granule -= map[bool]int64{true: 3 * SampleRate}[last] }),
		"positions run backwards":    edited(func(n int, _ bool, p *oggPage) { p.granule = int64(20-n) * 960 }),
		"six channels":               edited(func(n int, _ bool, p *oggPage) { p.body[9] = map[bool]byte{true: 6, false: p.body[9]}[n == 0] }),
		"unknown version":            edited(func(n int, _ bool, p *oggPage) { p.body[8] = map[bool]byte{true: 0x20, false: p.body[8]}[n == 0] }),
		"no comments":                edited(func(n int, _ bool, p *oggPage) { p.body[0] = map[bool]byte{true: 'X', false: p.body[0]}[n == 1] }),
		"pages of another stream":    edited(func(n int, _ bool, p *oggPage) { p.serial += uint32(n / 5) }),
		"an empty packet":            with([]byte{}),
		"a packet of 160 ms":         with(packetsLike(1, toc(31, 3), 8)[0]),
		"frames of no equal length":  with(append(packetsLike(1, toc(31, 1))[0], 1)),
		"more padding than packet":   with([]byte{toc(31, 3), 0x41, 200, 1}),
		"WebM and a zip file":        append(remuxed(WebM), "PK\x05\x06"...),
		"WebM, chained":              append(remuxed(WebM), remuxed(WebM)...),
		"WebM, cut off":              remuxed(WebM)[:900],
		"MP4 and a zip file":         append(remuxed(MP4), "PK\x05\x06 and more"...),
		"MP4 that begins as an HTML": append(append(remuxed(MP4), box("free", bytes.Repeat([]byte("<!-- -->"), 1<<18))...), box("uuid", []byte("<script>"))...),
		"MP4, cut off":               remuxed(MP4)[:len(remuxed(MP4))-9],
	}
}

// Forty files and more, good and bad: the good ones last as long as they do, in every container; the bad ones are refused. With opusinfo on the machine, it is
// asked, too.
func TestFortyFiles(t *testing.T) {
	good, bad := goodFiles(t), badFiles(t)
	if len(good) < 20 || len(bad) < 20 {
		t.Fatalf("%d good and %d bad files", len(good), len(bad))
	}
	dir := *keepFiles
	if dir == "" {
		dir = t.TempDir()
	}
	keep := func(name string, file []byte) string {
		path := filepath.Join(dir, strings.NewReplacer(" ", "-", ",", "", ".", "_").Replace(name)+".ogg")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	opusinfo, _ := exec.LookPath("opusinfo")
	for name, file := range good {
		want := slowCount(t, file)
		info, err := inspect(file, 0)
		if err != nil || info.Samples != want || want == 0 && name != "one packet" {
			t.Errorf("%s: %d samples, want %d: %v", name, info.Samples, want, err)
			continue
		}
		path := keep("good "+name, file)
		if opusinfo != "" {
			if said := askOpusinfo(t, opusinfo, path); (said - info.Duration()).Abs() > time.Millisecond {
				t.Errorf("%s: opusinfo says %v, want %v", name, said, info.Duration())
			}
		}
		for _, to := range []Container{WebM, MP4} {
			r, _, err := Open(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := Remux(&out, r, to); err != nil {
				t.Fatal(err)
			}
			if info, err := inspect(out.Bytes(), 0); err != nil || info.Samples != want {
				t.Errorf("%s as %s: %d samples, want %d: %v", name, to, info.Samples, want, err)
			}
		}
	}
	for name, file := range bad {
		keep("bad "+name, file)
		info, err := inspect(file, 0)
		if why := new(MalformedError); !errors.As(err, &why) || why.Reason == "" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

var opusinfoLength = regexp.MustCompile(`Playback length: (\d+)m:([\d.]+)s`)

func askOpusinfo(t *testing.T, command, path string) time.Duration {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), command, path).CombinedOutput()
	m := opusinfoLength.FindSubmatch(out)
	if m == nil {
		t.Errorf("opusinfo %s: %v\n%s", path, err, out)
		return 0
	}
	d, err := time.ParseDuration(fmt.Sprintf("%sm%ss", m[1], m[2]))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The waveform of what pion/opus decodes is that of what libopus decodes: opusdec is asked where there is one. Recorded answers of it are
// checked everywhere, in TestWaveformIsThatOfLibopus.
func TestWaveformIsThatOfOpusdec(t *testing.T) {
	opusdec, err := exec.LookPath("opusdec")
	if err != nil {
		t.Skip("there is no opusdec")
	}
	for _, name := range []string{"speech.ogg", "speech-silk.ogg", "frames60.ogg", "stereo-ffmpeg.ogg"} {
		wav := filepath.Join(t.TempDir(), "out.wav")
		if out, err := exec.CommandContext(t.Context(), opusdec, "--quiet", "--rate", "48000", "--float", "--force-wav", filepath.Join("testdata", name), wav).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		file, err := os.ReadFile(wav)
		if err != nil {
			t.Fatal(err)
		}
		got, want := measure(t, fixture(t, name)).Waveform, slowWaveform(file)
		farthest := 0
		for i := range got {
			farthest = max(farthest, got[i]-want[i], want[i]-got[i])
		}
		c := correlation(got, want)
		t.Logf("%s: the correlation is %f, the largest difference %d of 1024", name, c, farthest)
		// A tone is as loud everywhere, so that there is nothing to correlate.
		if c < 0.98 && name != "stereo-ffmpeg.ogg" || farthest > 60 {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// slowWaveform computes a waveform by its definition from a WAV file of floats at 48 kHz.
func slowWaveform(wav []byte) (points []int) {
	channels := int(binary.LittleEndian.Uint16(wav[22:]))
	data := wav[bytes.Index(wav, []byte("data"))+8:]
	samples := len(data) / 4 / channels
	for p := range WaveformPoints {
		power, n := 0.0, 0
		for i := p * samples / WaveformPoints; i < (p+1)*samples/WaveformPoints; i++ {
			mixed := 0.0
			for c := range channels {
				mixed += float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*(i*channels+c):]))) / float64(channels)
			}
			power += mixed * mixed
			n++
		}
		db := 10*math.Log10(power/float64(max(n, 1))+1e-12) + 50
		points = append(points, int(math.Round(1024*min(max(db, 0), 50)/50)))
	}
	return points
}
