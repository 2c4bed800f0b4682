package storage_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// TestIndexFindsWhatIsInIt compares the index of words, through additions, changes and mergers, with a list that is read from end to end.
func TestIndexFindsWhatIsInIt(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		checks := 0
		rapid.Check(t, func(rt *rapid.T) {
			if checks++; checks <= 40 && db.Dialect() == storage.SQLite || checks <= 10 { // what differs between the two is little
				checkIndex(rt, t.Context(), db)
			}
		})
	})
}

func checkIndex(t *rapid.T, ctx context.Context, db *storage.DB) {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(db.DropIndex(ctx))
	state, err := db.BeginIndex(ctx, 1)
	must(err)
	there := map[int64]storage.SearchDoc{}
	num := int64(0)
	word := rapid.StringMatching(`[ab面]{1,3}`)
	doc := func(num int64) storage.SearchDoc {
		return storage.SearchDoc{Num: num, Room: rapid.Int64Range(1, 4).Draw(t, "room"), TS: rapid.Int64Range(-5, 200).Draw(t, "ts"),
			Words: rapid.SliceOfN(word, 1, 4).Draw(t, "words")}
	}
	t.Repeat(map[string]func(*rapid.T){
		"add": func(t *rapid.T) {
			step := storage.IndexStep{From: state, To: state.To + 1, Back: state.Back}
			for range rapid.SampledFrom([]int{1, 3, 40, 300}).Draw(t, "n") {
				num++
				there[num] = doc(num)
				step.Docs = append(step.Docs, there[num])
			}
			state, err = db.AddToIndex(ctx, step)
			must(err)
		},
		"change": func(t *rapid.T) {
			if num == 0 {
				return
			}
			step := storage.IndexStep{From: state, To: state.To, Back: state.Back}
			for range rapid.IntRange(1, 5).Draw(t, "n") {
				n := rapid.Int64Range(1, num).Draw(t, "num")
				old := there[n]
				step.Done = append(step.Done, storage.QueuedEvent{Num: n, Room: old.Room, TS: old.TS})
				if delete(there, n); rapid.Bool().Draw(t, "again") && !slices.ContainsFunc(step.Docs, func(d storage.SearchDoc) bool { return d.Num == n }) {
					changed := doc(n)
					changed.Room, changed.TS = old.Room, old.TS
					step.Docs = append(step.Docs, changed)
				}
			}
			for _, d := range step.Docs {
				there[d.Num] = d
			}
			state, err = db.AddToIndex(ctx, step)
			must(err)
		},
		"tidy": func(t *rapid.T) {
			_, err := db.TidyIndex(ctx, rapid.Bool().Draw(t, "free"))
			must(err)
			state, err = db.IndexState(ctx)
			must(err)
		},
		"": func(t *rapid.T) {
			q := storage.SearchQuery{Rooms: rapid.SliceOfNDistinct(rapid.Int64Range(1, 5), 1, 3, rapid.ID).Draw(t, "rooms"), Limit: rapid.SampledFrom([]int{1, 5, 10000}).Draw(t, "limit")}
			for range rapid.IntRange(1, 2).Draw(t, "sought") {
				q.Words = append(q.Words, storage.SearchWord{Text: word.Draw(t, "word"), Prefix: rapid.Bool().Draw(t, "prefix")})
			}
			if rapid.Bool().Draw(t, "bounded") {
				q.Before = storage.SearchHit{TS: rapid.Int64Range(1, 200).Draw(t, "before"), Num: rapid.Int64Range(1, num+1).Draw(t, "num")}
				q.After = storage.SearchHit{TS: rapid.Int64Range(1, 200).Draw(t, "after"), Num: rapid.Int64Range(1, num+1).Draw(t, "num")}
			}
			found, err := db.SearchWords(ctx, q)
			must(err)
			if want := scan(there, q); cmp.Diff(want, found.Hits[:len(found.Hits):len(found.Hits)]) != "" && len(want)+len(found.Hits) > 0 {
				t.Fatalf("%+v\nfound %v\nwant  %v", q, found.Hits, want)
			}
		},
	})
}

func scan(there map[int64]storage.SearchDoc, q storage.SearchQuery) (hits []storage.SearchHit) {
	for _, d := range there {
		h := storage.SearchHit{TS: d.TS, Num: d.Num, Room: d.Room}
		all := slices.Contains(q.Rooms, d.Room)
		for _, w := range q.Words {
			all = all && slices.ContainsFunc(d.Words, func(s string) bool { return s == w.Text || w.Prefix && strings.HasPrefix(s, w.Text) })
		}
		if q.Before.Num != 0 {
			all = all && h.Compare(q.Before) < 0 && h.Compare(q.After) >= 0
		}
		if all {
			hits = append(hits, h)
		}
	}
	slices.SortFunc(hits, func(a, b storage.SearchHit) int { return b.Compare(a) })
	return hits[:min(len(hits), q.Limit)]
}

func TestIndexIsWrittenByOneAtATime(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		state, err := db.BeginIndex(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		step := storage.IndexStep{From: state, To: 7, Docs: []storage.SearchDoc{{Num: 1, Room: 1, TS: 1, Words: []string{"a"}}}}
		if _, err := db.AddToIndex(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		if _, err := db.AddToIndex(t.Context(), step); err != storage.ErrMoved {
			t.Errorf("the same step again: %v, want ErrMoved", err)
		}
	})
}

// BenchmarkSearchWords looks for words among a million events in twenty rooms, of which the searcher is in ten.
func BenchmarkSearchWords(b *testing.B) {
	db := storagetest.New(b)
	fillIndex(b, db, 1_000_000)
	ten := []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, c := range []struct {
		name  string
		rooms []int64
		words []storage.SearchWord
	}{
		{"rare", ten, []storage.SearchWord{{Text: "w49999", Prefix: true}}},
		{"none", ten, []storage.SearchWord{{Text: "nobody", Prefix: true}}},
		{"common", ten, []storage.SearchWord{{Text: "w1"}}},
		{"commonPrefix", ten, []storage.SearchWord{{Text: "w1", Prefix: true}}},
		{"commonInQuietRoom", []int64{20}, []storage.SearchWord{{Text: "w1"}}},
		{"two", ten, []storage.SearchWord{{Text: "w1"}, {Text: "w4321"}}},
		{"pair", ten, []storage.SearchWord{{Text: "面包"}}},
		{"character", ten, []storage.SearchWord{{Text: "面", Prefix: true}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			hits := 0
			for b.Loop() {
				found, err := db.SearchWords(b.Context(), storage.SearchQuery{Rooms: c.rooms, Words: c.words, Limit: 500})
				if err != nil {
					b.Fatal(err)
				}
				hits = len(found.Hits)
			}
			b.ReportMetric(float64(hits), "hits")
		})
	}
}

func fillIndex(b *testing.B, db *storage.DB, events int) {
	state, err := db.BeginIndex(b.Context(), 1)
	if err != nil {
		b.Fatal(err)
	}
	words := newZipf()
	for n := 0; n < events; {
		step := storage.IndexStep{From: state, To: int64(n), Back: 0}
		for range 512 {
			n++
			d := storage.SearchDoc{Num: int64(n), Room: int64(n%19 + 1), TS: int64(n) * 1000}
			if n%1000 == 0 {
				d.Room = 20
			}
			for range 10 {
				d.Words = append(d.Words, fmt.Sprintf("w%d", words.Uint64()))
			}
			if n%300 == 0 {
				d.Words = append(d.Words, "面包", "包")
			}
			step.Docs = append(step.Docs, d)
		}
		if state, err = db.AddToIndex(b.Context(), step); err != nil {
			b.Fatal(err)
		}
		if n%4096 == 0 {
			for more := true; more; {
				if more, err = db.TidyIndex(b.Context(), false); err != nil {
					b.Fatal(err)
				}
			}
			if state, err = db.IndexState(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// newZipf draws words of 50,000 as a language does: few of them often.
func newZipf() *rand.Zipf { return rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 4, 49_999) }
