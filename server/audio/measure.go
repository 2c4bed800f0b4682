package audio

import (
	"encoding/binary"
	"io"
	"math"
	"slices"
	"time"
)

// WaveformPoints is how many values a waveform has.
const WaveformPoints = 100

// Sound is what a recording sounds like, in numbers.
type Sound struct {
	// Waveform is 100 values from 0 (-50 dB of full scale or less) to 1024 (full scale), each the mean power of a
	// hundredth of the recording. Of a recording of no length it is all 0.
	Waveform []int
	// Loudness is the integrated loudness by ITU-R BS.1770-4 in LUFS, -70 for silence.
	Loudness float64
	// Peak is the largest sample in dB of full scale, -100 for silence.
	Peak float64
}

// Measure decodes a recording. It takes about three milliseconds of a core for a second of sound.
func Measure(r Reader) (Sound, error) {
	w, l := waveform{}, newLoudness()
	gain := float32(math.Pow(10, float64(r.Head().Gain)/256/20))
	peak := float32(0)
	err := decodeAll(r, SampleRate, func(pcm []float32) {
		for _, s := range pcm {
			s *= gain
			w.add(s)
			l.add(float64(s))
			peak = max(peak, s, -s)
		}
	})
	if err != nil {
		return Sound{}, err
	}
	return Sound{w.points(), l.integrated(), max(decibels(float64(peak)*float64(peak)), -100)}, nil
}

// decibels of a power.
func decibels(power float64) float64 { return 10 * math.Log10(power) }

// waveform sums up the power of cells of 5 ms, so that it needs not know the length ahead.
type waveform struct {
	cells []float32
	sum   float64
	n     int
}

const cellSamples = SampleRate / 200

func (w *waveform) add(s float32) {
	w.sum += float64(s) * float64(s)
	if w.n++; w.n == cellSamples {
		w.cells = append(w.cells, float32(w.sum))
		w.sum, w.n = 0, 0
	}
}

// points gives each point its share of the cells, and of the cells on its borders the part that lies within.
func (w *waveform) points() []int {
	points := make([]int, WaveformPoints)
	cells := w.cells
	length := float64(len(cells))
	if w.n > 0 {
		length += float64(w.n) / cellSamples
		// As if the last cell were whole.
		cells = append(slices.Clip(cells), float32(w.sum*cellSamples/float64(w.n)))
	}
	if length == 0 {
		return points
	}
	width := length / WaveformPoints
	for i := range points {
		from, to := float64(i)*width, float64(i+1)*width
		power := 0.0
		for c := int(from); c < len(cells) && float64(c) < to; c++ {
			part := min(to, float64(c+1)) - max(from, float64(c))
			power += part * float64(cells[c])
		}
		points[i] = level(power / (width * cellSamples))
	}
	return points
}

// level puts a mean power on the scale of waveforms.
func level(power float64) int {
	const floor = 50 // dB
	return int(math.Round(1024 * min(max(decibels(power)+floor, 0), floor) / floor))
}

// loudness measures by ITU-R BS.1770-4: the K weighting at 48 kHz, blocks of 400 ms every 100 ms, two gates.
type loudness struct {
	shelf, pass biquad
	sum         float64
	n           int
	steps       []float64 // power of each 100 ms
}

type biquad struct{ b0, b1, b2, a1, a2, x1, x2, y1, y2 float64 }

func (f *biquad) next(x float64) float64 {
	y := f.b0*x + f.b1*f.x1 + f.b2*f.x2 - f.a1*f.y1 - f.a2*f.y2
	f.x2, f.x1, f.y2, f.y1 = f.x1, x, f.y1, y
	return y
}

// newLoudness has the coefficients of BS.1770-4, tables 1 and 2.
func newLoudness() *loudness {
	return &loudness{
		shelf: biquad{b0: 1.53512485958697, b1: -2.69169618940638, b2: 1.19839281085285, a1: -1.69065929318241, a2: 0.73248077421585},
		pass:  biquad{b0: 1, b1: -2, b2: 1, a1: -1.99004745483398, a2: 0.99007225036621},
	}
}

func (l *loudness) add(s float64) {
	s = l.pass.next(l.shelf.next(s))
	l.sum += s * s
	if l.n++; l.n == SampleRate/10 {
		l.steps = append(l.steps, l.sum/(SampleRate/10))
		l.sum, l.n = 0, 0
	}
}

func (l *loudness) integrated() float64 {
	const silence = -70
	var blocks []float64
	for i := 0; i+4 <= len(l.steps); i++ {
		blocks = append(blocks, (l.steps[i]+l.steps[i+1]+l.steps[i+2]+l.steps[i+3])/4)
	}
	if len(blocks) == 0 { // shorter than a block
		blocks = append(l.steps, l.sum/max(float64(l.n), 1))
	}
	above := func(gate float64) float64 {
		sum, n := 0.0, 0.0
		for _, power := range blocks {
			if lufs(power) > gate {
				sum += power
				n++
			}
		}
		return sum / max(n, 1)
	}
	return max(lufs(above(lufs(above(silence))-10)), silence)
}

func lufs(power float64) float64 { return -0.691 + decibels(power) }

// WAVRate is the rate of WriteWAV's sound, which speech recognition wants.
const WAVRate = 16000

// WriteWAV decodes a recording of at most longest (0 allows all) into a WAV file of 16 bits, one channel, 16 kHz. Errors
// are those of Inspect.
func WriteWAV(w io.Writer, r io.ReaderAt, size int64, longest time.Duration) error {
	info, err := Inspect(r, size, longest)
	if err != nil {
		return err
	}
	reader, _, err := Open(r, size)
	if err != nil {
		return err
	}
	const scale = SampleRate / WAVRate
	left := int(info.Samples / scale)
	h := append([]byte("RIFF"), little32(uint32(36+2*left))...)
	h = append(append(h, "WAVEfmt "...), little32(16)...)
	h = append(h, 1, 0, 1, 0) // PCM, one channel
	h = append(append(h, little32(WAVRate)...), little32(2*WAVRate)...)
	h = append(h, 2, 0, 16, 0)
	h = append(append(h, "data"...), little32(uint32(2*left))...)
	if _, err := w.Write(h); err != nil {
		return err
	}
	var out []byte
	var failed error
	put := func(pcm []float32) {
		out = out[:0]
		for _, s := range pcm[:min(len(pcm), left)] {
			out = binary.LittleEndian.AppendUint16(out, uint16(int16(min(max(s, -1), 1)*math.MaxInt16)))
		}
		left -= len(out) / 2
		if failed == nil {
			_, failed = w.Write(out)
		}
	}
	if err := decodeAll(reader, WAVRate, put); err != nil {
		return err
	}
	put(make([]float32, left)) // what rounding has cost
	return failed
}

func little32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
