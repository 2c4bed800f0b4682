package syncer

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// cpu is the time that this process has spent on its processors.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkFanOut has one message go to 1,000 waiting clients; cpu-µs/delivery is what one of them costs.
func BenchmarkFanOut(b *testing.B) {
	const clients = 1000
	w := newWorld(b, storagetest.New(b))
	id := w.room(alice)
	users := make([]matrix.UserID, clients)
	for i := range users {
		users[i] = matrix.UserID(fmt.Sprintf("@user%d:here", i))
	}
	w.join(id, users...)
	reqs := make([]Request, clients)
	for i, u := range users {
		c := w.client(u)
		c.SetPresence = "offline"
		c.sync()
		reqs[i] = c.Request
		reqs[i].Timeout = time.Minute
	}
	var bytes int
	began := cpu()
	for b.Loop() {
		var got sync.WaitGroup
		for i := range reqs {
			got.Go(func() {
				raw, err := w.sync.Sync(w.ctx, reqs[i])
				if err != nil {
					b.Error(err)
					return
				}
				reqs[i].Since = nextBatch(raw)
				if i == 0 {
					bytes = len(raw)
				}
			})
		}
		w.say(id, alice, "hello")
		got.Wait()
	}
	b.ReportMetric(float64((cpu()-began).Microseconds())/float64(b.N*clients), "cpu-µs/delivery")
	b.ReportMetric(float64(bytes), "bytes/answer")
}

// nextBatch finds the token, which stands first.
func nextBatch(raw []byte) string {
	const before = `{"next_batch":"`
	end := len(before)
	for raw[end] != '"' {
		end++
	}
	return string(raw[len(before):end])
}

// BenchmarkInitialSync is the first sync of somebody in 50 rooms with 30 messages each.
func BenchmarkInitialSync(b *testing.B) {
	w := newWorld(b, storagetest.New(b))
	for range 50 {
		id := w.room(alice)
		w.join(id, bob, carol)
		for i := range 30 {
			w.say(id, alice, fmt.Sprintf("message %d", i))
		}
	}
	c := w.client(bob)
	c.Filter = `{"room":{"timeline":{"limit":20},"state":{"lazy_load_members":true}}}`
	began := cpu()
	for b.Loop() {
		if _, err := w.sync.Sync(w.ctx, c.Request); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-began).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
}

// BenchmarkIdle is a poll with nothing new, of somebody in 50 rooms.
func BenchmarkIdle(b *testing.B) {
	w := newWorld(b, storagetest.New(b))
	for range 50 {
		w.room(alice)
	}
	c := w.client(alice)
	c.sync()
	for b.Loop() {
		if _, err := w.sync.Sync(w.ctx, c.Request); err != nil {
			b.Fatal(err)
		}
	}
}
