package room

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

var benchContent = json.RawMessage(`{"body":"Voice message.ogg","info":{"duration":3960,"mimetype":"audio/ogg","size":12187},"m.mentions":{},"msgtype":"m.audio","org.matrix.msc1767.audio":{"duration":3960,"waveform":[0,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024,231,1024]},"org.matrix.msc3245.voice":{},"url":"mxc://example.org/abc"}`)

// BenchmarkAppend sends messages with transaction IDs from many clients at once into some rooms, with durable commits.
func BenchmarkAppend(b *testing.B) {
	for _, rooms := range []int{1, 64} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("rooms=%d/clients=%d", rooms, clients), func(b *testing.B) { benchAppend(b, rooms, clients) })
		}
	}
}

func benchAppend(b *testing.B, rooms, clients int) {
	s := newService(b, storagetest.New(b))
	ids := make([]matrix.RoomID, rooms)
	for i := range ids {
		ids[i] = create(b, s, CreateRequest{})
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	before := cpuTime(b)
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				_, err := s.Send(b.Context(), SendRequest{Room: ids[int(n)%rooms], Sender: alice, Device: "D", TxnID: fmt.Sprint("t", n), Type: matrix.TypeMessage, Content: benchContent})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op") // what counts on a busy machine
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStateChange changes one member of a large room.
func BenchmarkStateChange(b *testing.B) {
	db := storagetest.New(b)
	for _, members := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			var nodes storage.StateNodes
			changes := make([]storage.StateEntry, members)
			for i := range changes {
				changes[i] = storage.StateEntry{Type: matrix.TypeMember, Key: fmt.Sprintf("@user%d:example.org", i), Num: int64(i + 1)}
			}
			root, err := db.UpdateState(b.Context(), 1, storage.StateRoot{}, changes, &nodes)
			if err != nil {
				b.Fatal(err)
			}
			bytes := 0
			b.ResetTimer()
			for i := range b.N {
				before := nodes.Bytes()
				root, err = db.UpdateState(b.Context(), 1, root, []storage.StateEntry{{Type: matrix.TypeMember, Key: fmt.Sprintf("@user%d:example.org", i%members), Num: int64(members + i + 1)}}, &nodes)
				if err != nil {
					b.Fatal(err)
				}
				bytes += nodes.Bytes() - before
			}
			b.ReportMetric(float64(bytes)/float64(b.N), "node-B/op")
		})
	}
}
