//go:build unix

package voice

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"parley.im/parley/storage/storagetest"
)

// What a transcript costs beside the model: from the message's commit to the transcript in the database, with a speech service that answers at
// once. It grows with the recording, which is decoded and sent as WAV.
func BenchmarkTranscript(b *testing.B) {
	for _, seconds := range []int{4, 15, 60} {
		b.Run(fmt.Sprint(seconds, "s"), func(b *testing.B) {
			s := newStudio(b, storagetest.New(b), nil)
			s.speech.before = func(_ int, w http.ResponseWriter, _ *http.Request, _ string) bool {
				_ = json.NewEncoder(w).Encode(map[string]string{"text": "Bis Dienstag", "language": "german"})
				return true
			}
			used := time.Duration(0)
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				s.uri = upload(b, s.Service, takeOf(b, seconds, n))
				e := s.speak("")
				if m, _, err := s.Media.Recording(b.Context(), s.uri); err != nil {
					b.Fatal(err)
				} else if _, err := s.Media.Waveform(b.Context(), m.Hash); err != nil { // which the upload has begun to compute
					b.Fatal(err)
				}
				before := cpuTime(b)
				b.StartTimer()
				s.transcribeAll()
				used += cpuTime(b) - before
				if got := s.text(e); !strings.HasPrefix(got, "Bis") {
					b.Fatal(got)
				}
			}
			b.ReportMetric(float64(used.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		})
	}
}

// cpuTime is what this process has used of all cores, which other processes do not disturb as they do the clock.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
