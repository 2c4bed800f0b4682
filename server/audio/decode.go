package audio

import (
	"io"

	"github.com/pion/opus"
)

// decoder turns Opus packets into sound, mixed down to one channel. It is the only place that knows pion/opus, whose
// version is pinned: other ones may decode differently.
type decoder struct {
	opus opus.Decoder
	rate int
	skip int // samples, at rate, still to be thrown away
	pcm  [maxPacketSamples]float32
}

// newDecoder makes a decoder with an output of rate samples a second: 8,000, 12,000, 16,000, 24,000 or 48,000.
func newDecoder(head Head, rate int) (*decoder, error) {
	d := &decoder{rate: rate, skip: head.PreSkip * rate / SampleRate}
	var err error
	d.opus, err = opus.NewDecoderWithOutput(rate, 1)
	return d, err
}

// decode returns the sound of a packet, valid until the next call, without the pre-skip. A packet that cannot be
// decoded is silence of its length, as a player has it.
func (d *decoder) decode(packet []byte) ([]float32, error) {
	samples, err := PacketSamples(packet)
	if err != nil {
		return nil, err
	}
	want := samples * d.rate / SampleRate
	n := d.try(packet)
	if n != want {
		clear(d.pcm[:want])
	}
	skip := min(d.skip, want)
	d.skip -= skip
	return d.pcm[skip:want], nil
}

// try returns the number of samples decoded, -1 for an error or a panic of the decoder.
func (d *decoder) try(packet []byte) (n int) {
	defer func() {
		if v := recover(); v != nil {
			n = -1
		}
	}()
	n, err := d.opus.DecodeToFloat32(packet, d.pcm[:])
	if err != nil {
		return -1
	}
	return n
}

// decodeAll gives all there is to hear to each, in pieces.
func decodeAll(r Reader, rate int, each func([]float32)) error {
	d, err := newDecoder(r.Head(), rate)
	if err != nil {
		return err
	}
	// The end is known only when it has been reached, so as much as may be cut off is held back.
	var held []float32
	hold := maxTrim * rate / SampleRate
	for {
		packet, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		pcm, err := d.decode(packet)
		if err != nil {
			return err
		}
		held = append(held, pcm...)
		if n := len(held) - hold; n > hold {
			each(held[:n])
			held = held[:copy(held, held[n:])]
		}
	}
	each(held[:max(len(held)-r.Trim()*rate/SampleRate, 0)])
	return nil
}
