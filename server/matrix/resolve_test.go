package matrix

import (
	"flag"
	"iter"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var histories = flag.Int("histories", 40, "random rooms per version that state resolution is compared on")

// TestResolutionIsThatOfTheSpec compares every merge in random rooms with the slow resolution of oracle_test.go.
func TestResolutionIsThatOfTheSpec(t *testing.T) {
	for _, v := range RoomVersions() {
		if v.StateResolution == StateResolutionV1 {
			continue
		}
		t.Run(v.ID, func(t *testing.T) {
			t.Parallel()
			merges, changed, odd := 0, 0, 0
			for seed := range uint64(*histories) {
				h := newHistory(t, v, seed)
				h.merged = func(states []StateMap, got StateMap) {
					slow := &slowResolve{version: v, events: h.byID}
					want := slow.resolve(states)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("seed %d, event %d: %s", seed, len(h.events), diff)
					}
					ordered := h.resolveOrdered(states)
					if diff := cmp.Diff(want, ordered); diff != "" {
						t.Fatalf("with an order, seed %d, event %d: %s", seed, len(h.events), diff)
					}
					merges++
					if !maps.Equal(states[0], got) {
						changed++
					}
					slow.literal = true
					if !maps.Equal(slow.resolve(states), want) {
						odd++
					}
				}
				for range 80 {
					h.step()
				}
			}
			t.Logf("%d merges, %d with a change, %d differ by the letter of the auth chain", merges, changed, odd)
		})
	}
}

// resolveOrdered resolves as a server does: with the numbers of the events and only the conflicted part.
func (h *history) resolveOrdered(states []StateMap) StateMap {
	unconflicted, sets := SplitStates(states)
	resolved, err := Resolve(&Resolution{
		Version: h.version, Sets: sets, Load: h.load,
		Unconflicted: func(t StateTuple) EventID { return unconflicted[t] },
		Order:        func(id EventID) int64 { return h.number[id] },
		UnconflictedAfter: func(after int64) iter.Seq[EventID] {
			return func(yield func(EventID) bool) {
				for _, id := range unconflicted {
					if h.number[id] > after && !yield(id) {
						return
					}
				}
			}
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	maps.Copy(resolved, unconflicted)
	return resolved
}
