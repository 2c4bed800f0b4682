package audio

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// madePieceByPiece are recordings as recorders write them while somebody speaks.
var madePieceByPiece = []string{"speech.ogg", "speech-silk.ogg", "frames60.ogg", "stereo-ffmpeg.ogg", "live-ffmpeg.webm", "fragments-ffmpeg.mp4", "fragments-aac.mp4"}

func testFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cuts finds all places where a recording that comes in pieces of so many bytes could end.
func cuts(t *testing.T, file []byte, piece int) (all []int, s Scanner) {
	t.Helper()
	at := 0
	for n := 0; n < len(file); {
		n = min(n+piece, len(file))
		whole, err := s.Scan(file[at:n], 0)
		if err != nil {
			t.Fatalf("at %d: %v", n, err)
		}
		if at += whole; whole > 0 {
			all = append(all, at)
		}
	}
	return all, s
}

// Wherever the scanner says that a recording could end, it can, and has there what the scanner counted.
func TestRecordingCutAfterAWholeUnitIsWellFormed(t *testing.T) {
	for _, name := range madePieceByPiece {
		t.Run(name, func(t *testing.T) {
			file := testFile(t, name)
			whole, err := Inspect(bytes.NewReader(file), int64(len(file)), 0)
			if err != nil {
				t.Fatal(err)
			}
			ends, last := cuts(t, file, 1)
			if ends[len(ends)-1] != len(file) || last.Container != whole.Container {
				t.Errorf("the last unit of a %s file ends at %d of %d", last.Container, ends[len(ends)-1], len(file))
			}
			if d := last.Samples - whole.Samples; d < -granuleSlack || d > 2*maxTrim {
				t.Errorf("%d samples were counted, there are %d to be heard", last.Samples, whole.Samples)
			}
			heard, sound := int64(0), 0
			for _, end := range ends {
				var s Scanner
				if n, err := s.Scan(file[:end], 0); n != end || err != nil {
					t.Fatalf("at once: %d of %d, %v", n, end, err)
				}
				info, err := Inspect(bytes.NewReader(file[:end]), int64(end), 0)
				if err != nil {
					if s.Samples > 0 {
						t.Fatalf("cut at %d: %v", end, err)
					}
					continue // within the headers
				}
				if info.Samples > s.Samples+granuleSlack || info.Samples < heard {
					t.Fatalf("cut at %d: %d samples to be heard, %d before, %d counted", end, info.Samples, heard, s.Samples)
				}
				heard = info.Samples
				if s.Samples > 0 {
					sound++
				}
			}
			if sound < 2 {
				t.Errorf("there are %d places to cut", sound)
			}
			for _, piece := range []int{7, 100, 1000, 4096} {
				in, s := cuts(t, file, piece)
				for _, end := range in {
					if !slices.Contains(ends, end) {
						t.Errorf("in pieces of %d: a unit ends at %d", piece, end)
					}
				}
				if s != last {
					t.Errorf("in pieces of %d: %+v, want %+v", piece, s, last)
				}
			}
		})
	}
}

func TestScannerStopsBeforeTheLimit(t *testing.T) {
	for _, name := range madePieceByPiece {
		file := testFile(t, name)
		all, err := Inspect(bytes.NewReader(file), int64(len(file)), 0)
		if err != nil {
			t.Fatal(err)
		}
		limit := all.Samples * 9 / 10
		var s Scanner
		whole, err := s.Scan(file, limit)
		if !errors.Is(err, ErrTooLong) || s.Samples > limit || s.Samples == 0 {
			t.Errorf("%s: %d samples, %v", name, s.Samples, err)
			continue
		}
		info, err := Inspect(bytes.NewReader(file[:whole]), int64(whole), 0)
		if err != nil || info.Samples > limit+granuleSlack || info.Samples == 0 {
			t.Errorf("%s: cut at %d it has %d samples, %v", name, whole, info.Samples, err)
		}
	}
}

func TestScannerRefusesWhatCannotBecomeARecording(t *testing.T) {
	ogg, webm, mp4 := testFile(t, "speech.ogg"), testFile(t, "live-ffmpeg.webm"), testFile(t, "fragments-ffmpeg.mp4")
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for name, file := range map[string][]byte{
		"text":                     []byte("this is no recording"),
		"Ogg, then something else": join(ogg, []byte("x")),
		"Ogg, then another":        join(ogg, ogg),
		"Ogg, a page spoilt":       join(ogg[:47], []byte("oops"), ogg[51:]),
		"WebM, no element":         join(webm, make([]byte, 16)),
		"WebM, a huge element":     join(webm, []byte{0xec, 0x01, 0, 0, 0, 0, 0x20, 0, 0}),
		"WebM, open size":          join(webm, []byte{0xec, 0xff}),
		"MP4, open size":           join(mp4, []byte("\x00\x00\x00\x00mdat")),
		"MP4, a huge box":          join(mp4, []byte("\x7f\x00\x00\x00mdat")),
		"MP4, twice":               join(mp4, mp4),
	} {
		var s Scanner
		_, err := s.Scan(file, 0)
		var bad *MalformedError
		if !errors.As(err, &bad) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever comes, in whatever pieces, the scanner comes to the same places.
func FuzzScanner(f *testing.F) {
	for _, name := range madePieceByPiece {
		f.Add(testFile(f, name)[:3000], uint16(500))
	}
	f.Fuzz(func(t *testing.T, file []byte, piece uint16) {
		var once Scanner
		end, onceErr := once.Scan(file, 0)
		if end < 0 || end > len(file) || once.Samples < 0 {
			t.Fatalf("at %d of %d, %d samples", end, len(file), once.Samples)
		}
		var s Scanner
		at, n := 0, 0
		var err error
		for err == nil && n < len(file) {
			n = min(n+int(piece)+1, len(file))
			var whole int
			whole, err = s.Scan(file[at:n], 0)
			at += whole
			if n-at > MaxUnitBytes+int(piece)+1 {
				t.Fatalf("%d bytes wait for their unit's end", n-at)
			}
		}
		if at != end || s != once || (err == nil) != (onceErr == nil) {
			t.Fatalf("in pieces: %d %+v %v; at once: %d %+v %v", at, s, err, end, once, onceErr)
		}
	})
}
