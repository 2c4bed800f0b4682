package room

import (
	"encoding/json"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestSearchFindsWordsInAnyScript(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{Name: "Bread and butter"})
		hidden := create(t, s, CreateRequest{Creator: bob})
		say(t, s, hidden, bob, "fresh bread")
		say(t, s, room, alice, "Fresh BREAD today")
		say(t, s, room, alice, "bread \"quoted\"")
		say(t, s, room, alice, "今天有新鲜面包")
		gone := say(t, s, room, alice, "bread that went stale")
		if _, err := s.Redact(t.Context(), RedactRequest{Room: room, Sender: alice, Event: gone}); err != nil {
			t.Fatal(err)
		}
		limit := 1
		for _, c := range []struct {
			q    SearchRequest
			want int
		}{
			{SearchRequest{SearchTerm: "bread"}, 3},
			{SearchRequest{SearchTerm: "today bread", EventContext: &SearchContext{IncludeProfile: true}, IncludeState: true}, 1},
			{SearchRequest{SearchTerm: "面包"}, 1},
			{SearchRequest{SearchTerm: `"quoted"`}, 1},
			{SearchRequest{SearchTerm: "bread", Keys: []string{"content.name"}}, 1},
			{SearchRequest{SearchTerm: "bread", Filter: &EventFilter{Rooms: []matrix.RoomID{hidden}}}, 0},
			{SearchRequest{SearchTerm: "bread", OrderBy: "recent", Filter: &EventFilter{Limit: &limit}}, 3},
			{SearchRequest{SearchTerm: "body"}, 0},
		} {
			raw, err := s.Search(t.Context(), Reader{User: alice}, c.q, "")
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Count int }
			if err := json.Unmarshal(raw, &got); err != nil || got.Count != c.want {
				t.Errorf("%q: %s", c.q.SearchTerm, raw)
			}
		}
		_, err := s.Search(t.Context(), Reader{User: alice}, SearchRequest{SearchTerm: " "}, "")
		wantCode(t, err, "M_INVALID_PARAM")
	})
}
