package room

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/matrix/matrixtest"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// The room of docs/development.md has 100000 members, which take some minutes.
var largeMembers = flag.Int("members", 2_000, "members of the room of BenchmarkLargeRoom; a fifth as many other state events")

// generated is a server with a generated room: it answers what is asked for a join.
type generated struct {
	Remote // nil: nothing else is asked
	room   *matrixtest.Room
	ours   atomic.Pointer[matrix.Event] // the newest join that we were handed
}

func (g *generated) MakeJoin(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, user matrix.UserID, _ []string) (MakeResponse, error) {
	event, err := g.room.MakeJoin(user)
	return MakeResponse{Event: event, RoomVersion: g.room.Version.ID}, err
}

func (g *generated) SendJoin(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, _ matrix.EventID, join json.RawMessage, _ bool, events EventSink) (SendJoinResponse, error) {
	e, err := matrix.ParseEvent(join, g.room.Version)
	if err != nil {
		return SendJoinResponse{}, err
	}
	g.ours.Store(e)
	return SendJoinResponse{Event: join}, g.room.Answer(events)
}

func (g *generated) EventAuth(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID) ([]json.RawMessage, error) {
	return nil, errNoAnswer
}

// largeWorld is a server that has joined a generated room, for benchmarks.
type largeWorld struct {
	*Service
	*generated
	url string
	key *matrix.SigningKey
}

const largeUser = matrix.UserID("@bob:here")

func newLargeWorld(t testing.TB, size matrixtest.Size) *largeWorld {
	room, err := matrixtest.New(t.TempDir(), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { room.Close() })
	key, err := matrix.NewSigningKey("ed25519:1", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	room.AddKey("here", key)
	return &largeWorld{generated: &generated{room: room}, key: key}
}

// open starts the server on a database, a new one if url is "". The database is closed by the caller.
func (w *largeWorld) open(t testing.TB, url string) *storage.DB {
	if url == "" {
		url = storagetest.SQLiteURL(t)
	}
	w.url = url
	db, err := storage.Open(context.Background(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w.Service = New(Options{Config: DefaultConfig(), ServerName: "here", DB: db, Key: w.key, Keys: w.room, Remote: w.generated, Log: slog.New(slog.DiscardHandler)})
	return db
}

func (w *largeWorld) join(t testing.TB) {
	t.Helper()
	err := w.joinThrough(t.Context(), JoinRequest{Room: w.room.ID, User: largeUser, Via: []matrix.ServerName{"s00.large.example"}}, json.RawMessage(`{"membership":"join"}`), false)
	if err != nil {
		t.Fatal(err)
	}
}

// heapPeak watches the heap until the function that it returns is called, which gives the largest size of all objects, garbage
// included, beyond what was there at first.
func heapPeak() func() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	runtime.GC()
	first := read()
	peak := first
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, read())
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return peak - first
	}
}

func heapLive() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// meter prints the CPU time of an operation, which means something on a busy machine, too. What is done while it is paused does not count.
type meter struct {
	b           *testing.B
	spent, from time.Duration
}

func newMeter(b *testing.B) *meter {
	m := &meter{b: b, from: cpuTime(b)}
	b.ResetTimer()
	return m
}

func (m *meter) pause() {
	m.b.StopTimer()
	m.spent += cpuTime(m.b) - m.from
}

func (m *meter) goOn() {
	m.from = cpuTime(m.b)
	m.b.StartTimer()
}

// report ends the measurement.
func (m *meter) report() {
	m.pause()
	m.b.ReportMetric(float64(m.spent.Microseconds())/1000/float64(m.b.N), "cpu-ms/op")
}

// BenchmarkLargeRoom is what a large room costs: go test ./server/room -run xxx -bench LargeRoom -members 100000
func BenchmarkLargeRoom(b *testing.B) {
	w := newLargeWorld(b, matrixtest.Size{Members: *largeMembers, States: *largeMembers / 5, Servers: 50})
	b.Run("join", func(b *testing.B) { benchLargeJoin(b, w) })

	db := w.open(b, "")
	w.join(b)
	w.benchState(b)
	w.benchRead(b)
	w.benchSend(b)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("restart", func(b *testing.B) { w.benchRestart(b) })
}

func benchLargeJoin(b *testing.B, w *largeWorld) {
	for range b.N {
		b.StopTimer()
		db := w.open(b, "")
		cpu := cpuTime(b)
		peak := heapPeak()
		b.StartTimer()
		w.join(b)
		b.StopTimer()
		b.ReportMetric(float64(peak())/(1<<20), "peak-MB")
		b.ReportMetric(float64((cpuTime(b) - cpu).Milliseconds()), "cpu-ms/op")
		b.ReportMetric(float64(w.room.Len())/b.Elapsed().Seconds()*float64(b.N), "events/s")
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func (w *largeWorld) snapshot(b *testing.B) (*Room, *Snapshot) {
	r, err := w.Room(b.Context(), w.room.ID)
	if err != nil {
		b.Fatal(err)
	}
	return r, r.Snapshot()
}

func (w *largeWorld) receive(b testing.TB, events []*matrix.Event) {
	for len(events) > 0 {
		n := min(len(events), 50)
		var raw []json.RawMessage
		for _, e := range events[:n] {
			raw = append(raw, e.JSON())
		}
		for id, err := range w.Receive(context.Background(), events[0].Sender().Server(), raw) {
			if err != nil {
				b.Fatal(id, err)
			}
		}
		events = events[n:]
	}
}

// benchState: one key, the list, differences, resolution, three forks.
func (w *largeWorld) benchState(b *testing.B) {
	ctx := context.Background()
	r, snap := w.snapshot(b)
	db := w.o.DB
	b.Run("state/one key", func(b *testing.B) {
		defer newMeter(b).report()
		for i := range b.N {
			if _, err := db.StateNum(ctx, r.Num, snap.Root, matrix.TypeMember, string(w.room.Member(i%*largeMembers)), nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("state/list", func(b *testing.B) {
		defer newMeter(b).report()
		for range b.N {
			nums, err := db.StateNums(ctx, r.Num, snap.Root, storage.AllState, nil)
			if err != nil || len(nums) < *largeMembers {
				b.Fatal(len(nums), err)
			}
		}
	})
	must := func(events []*matrix.Event, err error) []*matrix.Event {
		if err != nil {
			b.Fatal(err)
		}
		return events
	}
	base := w.room.Fork("base", w.ours.Load())
	// Two forks that differ in 100 keys: each has changed other members, and in the second case the same ones and the power levels.
	for _, kind := range []string{"100 keys", "100 keys twice and power levels"} {
		one, two := w.room.Merge("one"+kind, base), w.room.Merge("two"+kind, base)
		if kind == "100 keys" {
			w.receive(b, must(one.Rename(1000, 1050)))
			w.receive(b, must(two.Rename(1050, 1100)))
		} else {
			for _, f := range []*matrixtest.Fork{one, two} {
				events := must(f.Rename(1000, 1049))
				power, err := f.Power(len(f.Tip().ID()))
				if err != nil {
					b.Fatal(err)
				}
				w.receive(b, append(append(events, power), must(f.Rename(1049, 1099))...))
			}
		}
		roots := make([]storage.StateRoot, 2)
		for i, f := range []*matrixtest.Fork{one, two} {
			e, err := w.EventByID(ctx, f.Tip().ID())
			if err == nil {
				roots[i], err = w.RootAfter(ctx, e)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		b.Run("state/diff of "+kind, func(b *testing.B) {
			defer newMeter(b).report()
			for range b.N {
				diffs, err := db.DiffState(ctx, r.Num, roots[0], roots[1], storage.AllState, nil)
				if err != nil || len(diffs) != 100 {
					b.Fatal(len(diffs), err)
				}
			}
		})
		for _, cold := range []bool{false, true} {
			b.Run(fmt.Sprintf("resolve %s/cold=%v", kind, cold), func(b *testing.B) {
				m := newMeter(b)
				defer m.report()
				for range b.N {
					if cold {
						m.pause()
						db.ForgetRooms()
						m.goOn()
					}
					w.resolved.clear()
					if _, err := w.resolve(ctx, r, roots, &staged{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		base = w.merge(b, one, two)
	}
	b.Run("three forks of 500", func(b *testing.B) {
		m := newMeter(b)
		for i := range b.N {
			m.pause()
			var forks []*matrixtest.Fork
			var events [3][]*matrix.Event
			for j := range 3 {
				f := w.room.Merge(fmt.Sprintf("long%d-%d-%d", b.N, i, j), base)
				forks = append(forks, f)
				events[j] = must(f.Talk(500))
			}
			m.goOn()
			for n := 0; n < 500; n += 50 { // they come mixed, a transaction of each in turn
				for j := range 3 {
					w.receive(b, events[j][n:n+50])
				}
			}
			base = w.merge(b, forks...)
		}
		m.report()
		b.ReportMetric(float64(b.N*1501)/b.Elapsed().Seconds(), "events/s")
	})
}

// merge ends forks with one event that follows on all of them.
func (w *largeWorld) merge(b *testing.B, forks ...*matrixtest.Fork) *matrixtest.Fork {
	merged := w.room.Merge("merged", forks...)
	e, err := merged.Say(0, "one again")
	if err != nil {
		b.Fatal(err)
	}
	w.receive(b, []*matrix.Event{e})
	if _, snap := w.snapshot(b); len(snap.Tip) != 1 || snap.Tip[0].ID() != e.ID() {
		b.Fatalf("the tip has %d events", len(snap.Tip))
	}
	return merged
}

// counting counts the bytes of an answer.
type counting int

func (c *counting) Write(p []byte) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}

func (w *largeWorld) benchRead(b *testing.B) {
	reader := Reader{User: largeUser}
	b.Run("members", func(b *testing.B) {
		peak := heapPeak()
		m := newMeter(b)
		for range b.N {
			var all counting
			if err := w.Members(b.Context(), &all, w.room.ID, reader, MembersRequest{}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(all)/(1<<20), "MB")
		}
		m.report()
		b.ReportMetric(float64(peak())/(1<<20), "peak-MB")
	})
	b.Run("joined_members", func(b *testing.B) {
		peak := heapPeak()
		m := newMeter(b)
		for range b.N {
			var all counting
			if err := w.JoinedMembers(b.Context(), &all, w.room.ID, largeUser); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(all)/(1<<20), "MB")
		}
		m.report()
		b.ReportMetric(float64(peak())/(1<<20), "peak-MB")
	})
	b.Run("send_join of another server", func(b *testing.B) {
		peak := heapPeak()
		m := newMeter(b)
		for i := range b.N {
			user := matrix.UserID(fmt.Sprintf("@late%d-%d:s01.large.example", b.N, i))
			template, err := w.Service.MakeJoin(b.Context(), user.Server(), w.room.ID, user, versions())
			if err != nil {
				b.Fatal(err)
			}
			join, err := w.room.Sign(template.Event)
			if err != nil {
				b.Fatal(err)
			}
			answer, err := w.Service.SendJoin(b.Context(), user.Server(), w.room.ID, join.ID(), join.JSON(), false)
			if err != nil || len(answer.State) < *largeMembers {
				b.Fatal(len(answer.State), err)
			}
		}
		m.report()
		b.ReportMetric(float64(peak())/(1<<20), "peak-MB")
	})
}

func (w *largeWorld) benchSend(b *testing.B) {
	send := func(b *testing.B, typ string, key *string, i int) {
		content := benchContent
		if key != nil {
			content = json.RawMessage(fmt.Sprintf(`{"membership":"join","displayname":"Bob %d of %d"}`, i, b.N))
		}
		if _, err := w.Send(b.Context(), SendRequest{Room: w.room.ID, Sender: largeUser, Device: "D", Type: typ, StateKey: key, Content: content}); err != nil {
			b.Fatal(err)
		}
	}
	for what, key := range map[string]*string{"message": nil, "state change": new(string(largeUser))} {
		b.Run("send/"+what, func(b *testing.B) {
			typ := matrix.TypeMessage
			if key != nil {
				typ = matrix.TypeMember
			}
			send(b, typ, key, -1)
			nodes, err := w.o.DB.RoomSize(b.Context(), w.room.ID)
			if err != nil {
				b.Fatal(err)
			}
			cpu, wrote := cpuTime(b), walBytes(b)
			b.ResetTimer()
			for i := range b.N {
				send(b, typ, key, i)
			}
			b.StopTimer()
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-us/op")
			b.ReportMetric(float64(walBytes(b)-wrote)/float64(b.N), "disk-B/op")
			after, err := w.o.DB.RoomSize(b.Context(), w.room.ID)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(after.StateBytes-nodes.StateBytes)/float64(b.N), "state-B/op")
		})
	}
}

// walBytes is what this process has had written to the disk.
func walBytes(b *testing.B) int64 {
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skip(err)
	}
	var n int64
	for line := range strings.Lines(string(io)) {
		if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
			return n
		}
	}
	return 0
}

func (w *largeWorld) benchRestart(b *testing.B) {
	if info, err := os.Stat(filepath.Clean(strings.TrimPrefix(w.url, "sqlite:"))); err == nil {
		b.Logf("the database has %d MB", info.Size()>>20)
	}
	m := newMeter(b)
	defer m.report()
	for range b.N {
		m.pause()
		before := heapLive()
		m.goOn()
		db := w.open(b, w.url)
		_, err := w.Send(b.Context(), SendRequest{Room: w.room.ID, Sender: largeUser, Device: "D", Type: matrix.TypeMessage, Content: benchContent})
		if err != nil {
			b.Fatal(err)
		}
		m.pause()
		with := heapLive()
		w.Service.mu.Lock()
		clear(w.rooms)
		w.Service.mu.Unlock()
		w.o.DB.ForgetRooms()
		without := heapLive()
		b.ReportMetric(float64(with-before)/(1<<10), "server-kB")
		b.ReportMetric(float64(with-without)/(1<<10), "room-kB")
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		m.goOn()
	}
}

func (c *resolved) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young, c.old = nil, nil
}

func (g *generated) Event(context.Context, matrix.ServerName, matrix.EventID) (json.RawMessage, error) {
	return nil, errNoAnswer
}
