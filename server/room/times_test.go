package room

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestTimestampToEventFindsTheClosest compares the answers with a list, for events whose times are in no order, before and while the index takes
// them up.
func TestTimestampToEventFindsTheClosest(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, "one")
		one := w.at("one")
		one.Service.o.DB = db
		s := New(one.Service.o)
		t.Cleanup(func() { s.Close() })
		w.servers["one"] = s
		one = w.at("one")
		room := one.newRoom("@alice:one", "11", "public")
		start := one.snap(room).Tip[0].OriginServerTS()
		random := rand.New(rand.NewPCG(1, 2))
		var all []*storage.Event
		for round := range 6 {
			for range 20 {
				at := time.UnixMilli(start + 1000 + random.Int64N(60))
				all = append(all, one.post(room, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, Time: at, Content: []byte(`{"msgtype":"m.text","body":"x"}`)}))
			}
			slices.SortFunc(all, func(a, b *storage.Event) int {
				return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.Depth(), b.Depth()))
			})
			for ts := start + 999; ts < start+1062; ts++ {
				for _, backwards := range []bool{false, true} {
					want := "M_NOT_FOUND"
					for i := range all {
						if e := all[i]; !backwards && e.OriginServerTS() >= ts {
							want = string(e.ID())
							break
						}
						if e := all[len(all)-1-i]; backwards && e.OriginServerTS() <= ts {
							want = string(e.ID())
							break
						}
					}
					found, err := s.TimestampToEvent(t.Context(), room, "@alice:one", ts, backwards)
					got := string(found.EventID)
					if err != nil {
						got = matrix.ErrorCode(err)
					}
					if want == "M_NOT_FOUND" && backwards { // the room's own events
						want = got
					}
					if got != want {
						t.Errorf("round %d, %d, backwards %v: %s, want %s", round, ts-start, backwards, got, want)
					}
				}
			}
			switch round { // each round finds the index in another state
			case 1:
				if err := s.catchUp(t.Context()); err != nil { // it is begun, and has taken up nothing of what was there
					t.Fatal(err)
				}
			case 2:
				if _, err := s.indexForSearch(t.Context()); err != nil {
					t.Fatal(err)
				}
			case 4:
				if err := db.Write(t.Context(), func(tx *storage.Tx) error { // all is to be looked at again
					return tx.Exec("INSERT INTO index_queue (num, room, ts, stamp) SELECT num, room, ts, 1 FROM events").Error
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestTimestampToEventNamesWhatOneMaySee(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{Preset: "public_chat", InitialState: []InitialState{{Type: matrix.TypeHistoryVisibility, Content: []byte(`{"history_visibility":"joined"}`)}}})
	before, err := s.o.DB.EventByID(t.Context(), say(t, s, room, alice, "before"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
		t.Fatal(err)
	}
	say(t, s, room, alice, "during")
	if err := s.Leave(t.Context(), MemberRequest{Room: room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	for n := range 2 * maxNear {
		say(t, s, room, alice, fmt.Sprint("after ", n))
	}
	for _, c := range []struct {
		ts        int64
		backwards bool
		want      string // whose membership the event is about
	}{{before.OriginServerTS(), false, "join"}, {1 << 52, true, "leave"}} {
		found, err := s.TimestampToEvent(t.Context(), room, bob, c.ts, c.backwards)
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.o.DB.EventByID(t.Context(), found.EventID)
		if err != nil || !e.Is(matrix.TypeMember, string(bob)) || e.Membership() != c.want {
			t.Errorf("from %d, backwards %v: %s, %v", c.ts, c.backwards, e.JSON(), err)
		}
	}
}
