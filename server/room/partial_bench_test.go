package room

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/matrix/matrixtest"
)

// omitting is a server with a generated room that leaves the members out of its answer to a join.
type omitting struct {
	*generated
	powerful map[string]bool // members without whom the rest of the state cannot be judged
}

func (g *omitting) SendJoin(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, _ matrix.EventID, join json.RawMessage, omit bool, events EventSink) (SendJoinResponse, error) {
	ours, err := matrix.ParseEvent(join, g.room.Version)
	if err != nil {
		return SendJoinResponse{}, err
	}
	g.ours.Store(ours)
	err = g.room.Answer(func(inState bool, raw json.RawMessage) error {
		var e struct {
			Type   string `json:"type"`
			Sender string `json:"sender"`
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		switch {
		case !omit || e.Type != matrix.TypeMember:
			return events(inState, raw)
		case g.powerful[e.Sender]:
			return events(false, raw)
		}
		return nil
	})
	return SendJoinResponse{Event: join, MembersOmitted: omit, ServersInRoom: g.room.Servers}, err
}

func (g *omitting) StateIDs(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID) (ids StateIDsResponse, err error) {
	for _, id := range g.room.Current() {
		if id != g.room.Last().ID() {
			ids.PDUIDs = append(ids.PDUIDs, id)
		}
	}
	err = g.room.Answer(func(inState bool, raw json.RawMessage) error {
		if inState {
			return nil
		}
		e, err := matrix.ParseEvent(raw, g.room.Version)
		if err == nil {
			ids.AuthChainIDs = append(ids.AuthChainIDs, e.ID())
		}
		return err
	})
	return ids, err
}

func (g *omitting) State(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, _ matrix.EventID, events EventSink) error {
	return g.room.Answer(events)
}

func (g *omitting) Event(_ context.Context, _ matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	if id == g.room.Last().ID() {
		return g.room.Last().JSON(), nil
	}
	return nil, errNoAnswer
}

func newOmitting(w *largeWorld) *omitting {
	g := &omitting{generated: w.generated, powerful: map[string]bool{}}
	for i := range 20 {
		g.powerful[string(w.room.Member(i))] = true
	}
	return g
}

func TestAGeneratedRoomIsJoinedWithoutItsMembers(t *testing.T) {
	w := newLargeWorld(t, matrixtest.Size{Members: 1500, States: 60, Servers: 5})
	defer w.open(t, "").Close()
	w.o.Remote = newOmitting(w)
	w.join(t)
	if err := w.AwaitWhole(t.Context(), w.room.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	w.foreign.partial.running.Wait()
	w.wantState(t, joinedState(w))
	r, err := w.Service.Room(t.Context(), w.room.ID)
	if err != nil {
		t.Fatal(err)
	}
	if snap := r.Snapshot(); snap.JoinedCount != 1501 || len(snap.Servers) != 6 || snap.WholePos == 0 {
		t.Errorf("%d members of %d servers, whole since %d", snap.JoinedCount, len(snap.Servers), snap.WholePos)
	}
}

// BenchmarkPartialJoin is what a join without the members costs until one is in the room, and until all is there:
// go test ./server/room -run xxx -bench 'PartialJoin|LargeRoom/join' -members 100000
func BenchmarkPartialJoin(b *testing.B) {
	w := newLargeWorld(b, matrixtest.Size{Members: *largeMembers, States: *largeMembers / 5, Servers: 50})
	for range b.N {
		b.StopTimer()
		db := w.open(b, "")
		w.o.Remote = newOmitting(w)
		cpu, peak := cpuTime(b), heapPeak()
		b.StartTimer()
		began := time.Now()
		w.join(b)
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "join-ms")
		b.ReportMetric(float64((cpuTime(b) - cpu).Milliseconds()), "join-cpu-ms")
		if err := w.AwaitWhole(b.Context(), w.room.ID, 10*time.Minute); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		w.foreign.partial.running.Wait()
		b.ReportMetric(float64(peak())/(1<<20), "peak-MB")
		b.ReportMetric(float64((cpuTime(b) - cpu).Milliseconds()), "cpu-ms")
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
