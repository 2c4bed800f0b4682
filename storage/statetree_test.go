package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestStateTreeBehavesLikeAMap makes random changes to states and compares with maps: lookups, lists, differences, and that equal
// states have equal roots however they came about.
func TestStateTreeBehavesLikeAMap(t *testing.T) {
	db := storagetest.New(t)
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		var fresh storage.StateNodes
		type state struct {
			root storage.StateRoot
			want map[storage.StateEntry]int64 // keyed with Num 0
		}
		states := []state{{want: map[storage.StateEntry]int64{}}}
		keys := rapid.IntRange(1, 300).Draw(t, "keys")
		next := int64(1)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			base := states[rapid.IntRange(0, len(states)-1).Draw(t, "base")]
			want := map[storage.StateEntry]int64{}
			for k, v := range base.want {
				want[k] = v
			}
			var changes []storage.StateEntry
			for range rapid.IntRange(0, keys).Draw(t, "changes") {
				c := storage.StateEntry{Type: "m.room.member", Key: fmt.Sprint(rapid.IntRange(0, keys).Draw(t, "key"))}
				if rapid.Bool().Draw(t, "other") {
					c.Type = "m.space.child"
				}
				if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
					delete(want, c)
				} else {
					want[c] = next
					c.Num = next
					next++
				}
				changes = append(changes, c)
			}
			root, err := db.UpdateState(ctx, 1, base.root, changes, &fresh)
			if err != nil {
				t.Fatal(err)
			}
			states = append(states, state{root, want})
		}
		for _, s := range states {
			var all []storage.StateEntry
			var nums []int64
			for k, v := range s.want {
				got, err := db.StateNum(ctx, 1, s.root, k.Type, k.Key, &fresh)
				if err != nil || got != v {
					t.Fatalf("lookup of %v: %d, %v; want %d", k, got, err, v)
				}
				all = append(all, storage.StateEntry{Type: k.Type, Key: k.Key, Num: v})
				nums = append(nums, v)
			}
			if _, err := db.StateNum(ctx, 1, s.root, "m.room.member", "nobody", &fresh); !errors.Is(err, storage.ErrNotFound) {
				t.Fatalf("lookup of what is not there: %v", err)
			}
			again, err := db.UpdateState(ctx, 1, storage.StateRoot{}, all, &fresh)
			if err != nil || again != s.root {
				t.Fatalf("the same state made at once has another root: %v", err)
			}
			got, err := db.StateNums(ctx, 1, s.root, storage.AllState, &fresh)
			slices.Sort(got)
			slices.Sort(nums)
			if err != nil || !slices.Equal(got, nums) {
				t.Fatalf("list %v, %v; want %v", got, err, nums)
			}
		}
		a := states[rapid.IntRange(0, len(states)-1).Draw(t, "a")]
		b := states[rapid.IntRange(0, len(states)-1).Draw(t, "b")]
		want := map[storage.StateDiff]bool{}
		for k, v := range a.want {
			if b.want[k] != v {
				want[storage.StateDiff{A: v, B: b.want[k]}] = true
			}
		}
		for k, v := range b.want {
			if a.want[k] == 0 {
				want[storage.StateDiff{B: v}] = true
			}
		}
		diffs, err := db.DiffState(ctx, 1, a.root, b.root, storage.AllState, &fresh)
		if err != nil || len(diffs) != len(want) {
			t.Fatalf("%d differences, %v; want %d", len(diffs), err, len(want))
		}
		for _, d := range diffs {
			if !want[d] {
				t.Fatalf("difference %v", d)
			}
		}
	})
}
