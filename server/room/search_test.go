package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// searchResults is what tests look at in an answer.
type searchResults struct {
	Count      int
	Highlights []string
	NextBatch  string `json:"next_batch"`
	Indexing   bool   `json:"im.parley.indexing"`
	State      map[matrix.RoomID][]json.RawMessage
	Results    []struct {
		Rank    float64
		Result  json.RawMessage
		Context json.RawMessage
	}
	Groups map[string]map[string]struct {
		Order     int
		Results   []matrix.EventID
		NextBatch string `json:"next_batch"`
	}
}

func (r *searchResults) ids(t testing.TB) []matrix.EventID {
	t.Helper()
	ids := []matrix.EventID{}
	for _, one := range r.Results {
		var e struct {
			ID matrix.EventID `json:"event_id"`
		}
		if err := json.Unmarshal(one.Result, &e); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func search(t testing.TB, s *Service, user matrix.UserID, q SearchRequest, next string) searchResults {
	t.Helper()
	raw, err := s.Search(t.Context(), Reader{User: user}, q, next)
	if err != nil {
		t.Fatal(err)
	}
	var r searchResults
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// wantFound searches for a term and wants exactly these events, in the order of time.
func wantFound(t testing.TB, s *Service, user matrix.UserID, term string, want ...matrix.EventID) {
	t.Helper()
	r := search(t, s, user, SearchRequest{SearchTerm: term, OrderBy: "recent"}, "")
	got := r.ids(t)
	slices.Reverse(got)
	if want == nil {
		want = []matrix.EventID{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s searches for %q (-want +got)\n%s", user, term, diff)
	}
	if r.Count != len(want) {
		t.Errorf("%s searches for %q: count %d, want %d", user, term, r.Count, len(want))
	}
}

func TestSearchFindsWordsInAnyScript(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{Name: "Bread and butter", Topic: "Salt"})
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
			{SearchRequest{SearchTerm: "brea"}, 3},
			{SearchRequest{SearchTerm: "today bread", EventContext: &SearchContext{IncludeProfile: true}, IncludeState: true}, 1},
			{SearchRequest{SearchTerm: "面包"}, 1},
			{SearchRequest{SearchTerm: "鲜"}, 1},
			{SearchRequest{SearchTerm: `"quoted"`}, 1},
			{SearchRequest{SearchTerm: "bread", Keys: []string{"content.name"}}, 1},
			{SearchRequest{SearchTerm: "bread", Keys: []string{"content.topic"}}, 0},
			{SearchRequest{SearchTerm: "salt", Keys: []string{"content.topic"}}, 1},
			{SearchRequest{SearchTerm: "salt", Keys: []string{"content.topic", "content.name"}}, 1},
			{SearchRequest{SearchTerm: "bread", Keys: []string{"content.body"}}, 2},
			{SearchRequest{SearchTerm: "bread", Filter: &EventFilter{Rooms: []matrix.RoomID{hidden}}}, 0},
			{SearchRequest{SearchTerm: "bread", Filter: &EventFilter{NotRooms: []matrix.RoomID{room}}}, 0},
			{SearchRequest{SearchTerm: "bread", Filter: &EventFilter{NotSenders: []matrix.UserID{alice}}}, 0},
			{SearchRequest{SearchTerm: "bread", Filter: &EventFilter{Types: []string{"m.room.n*"}}}, 1},
			{SearchRequest{SearchTerm: "bread", OrderBy: "recent", Filter: &EventFilter{Limit: &limit}}, 3},
			{SearchRequest{SearchTerm: "body"}, 0},
			{SearchRequest{SearchTerm: "stale"}, 0},
			{SearchRequest{SearchTerm: "!?"}, 0},
		} {
			if got := search(t, s, alice, c.q, ""); got.Count != c.want || got.Indexing {
				t.Errorf("%q: %+v, want %d", c.q.SearchTerm, got, c.want)
			}
		}
		for _, bad := range []SearchRequest{{SearchTerm: " "}, {SearchTerm: strings.Repeat("x", 501)}, {SearchTerm: "x", OrderBy: "size"}, {SearchTerm: "x", Keys: []string{"content.url"}}} {
			_, err := s.Search(t.Context(), Reader{User: alice}, bad, "")
			wantCode(t, err, "M_INVALID_PARAM")
		}
		for _, bad := range []string{"x", "1.2.3", "1.2.3.4.-5.6", "1.2.3.4.5.6~room_id~!", "1.2.3.4.5.6~type~eA"} {
			_, err := s.Search(t.Context(), Reader{User: alice}, SearchRequest{SearchTerm: "bread"}, bad)
			wantCode(t, err, "M_INVALID_PARAM")
		}
	})
}

func edit(t testing.TB, s *Service, room matrix.RoomID, user matrix.UserID, event matrix.EventID, body string) matrix.EventID {
	t.Helper()
	content := fmt.Sprintf(`{"msgtype":"m.text","body":"* %s","m.new_content":{"msgtype":"m.text","body":%q},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, body, body, event)
	id, err := s.Send(t.Context(), SendRequest{Room: room, Sender: user, Type: matrix.TypeMessage, Content: json.RawMessage(content)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestEditedMessagesAreFoundByTheirNewText(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{Preset: "public_chat"})
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		m := say(t, s, room, alice, "the old words")
		wantFound(t, s, alice, "old", m)
		first := edit(t, s, room, alice, m, "the new words")
		wantFound(t, s, bob, "new", m)
		wantFound(t, s, bob, "old")
		wantFound(t, s, bob, "words", m)
		edit(t, s, room, bob, m, "forged words")
		wantFound(t, s, bob, "forged")
		second := edit(t, s, room, alice, m, "newest words")
		wantFound(t, s, bob, "newest", m)
		wantFound(t, s, bob, "the")
		for _, e := range []matrix.EventID{second, first} {
			if _, err := s.Redact(t.Context(), RedactRequest{Room: room, Sender: alice, Event: e}); err != nil {
				t.Fatal(err)
			}
		}
		wantFound(t, s, bob, "old", m)
		wantFound(t, s, bob, "new")
		edit(t, s, room, alice, m, "changed again")
		if _, err := s.Redact(t.Context(), RedactRequest{Room: room, Sender: alice, Event: m}); err != nil {
			t.Fatal(err)
		}
		wantFound(t, s, bob, "changed")
		wantFound(t, s, bob, "old")
	})
}

func TestSearchFindsWhatOneMaySee(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{Preset: "public_chat", InitialState: []InitialState{{Type: matrix.TypeHistoryVisibility, Content: json.RawMessage(`{"history_visibility":"joined"}`)}}})
	before := say(t, s, room, alice, "word before")
	join := func() {
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
	}
	join()
	during := say(t, s, room, alice, "word during")
	wantFound(t, s, bob, "word", during)
	if err := s.Leave(t.Context(), MemberRequest{Room: room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	after := say(t, s, room, alice, "word after")
	wantFound(t, s, bob, "word", during)
	wantFound(t, s, alice, "word", before, during, after)
	wantFound(t, s, carol, "word")
	edit(t, s, room, alice, during, "replaced while away")
	wantFound(t, s, bob, "word", during)
	wantFound(t, s, bob, "replaced")
	join()
	wantFound(t, s, bob, "word", during)
	if err := s.Leave(t.Context(), MemberRequest{Room: room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(t.Context(), room, bob); err != nil {
		t.Fatal(err)
	}
	wantFound(t, s, bob, "word")
	// "The search will not include rooms that are end to end encrypted."
	if _, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: matrix.TypeEncryption, StateKey: new(string), Content: json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)}); err != nil {
		t.Fatal(err)
	}
	wantFound(t, s, alice, "word")
}

func TestSearchPagesMeetEveryMatchOnce(t *testing.T) {
	s := newService(t, storagetest.New(t))
	rooms := []matrix.RoomID{create(t, s, CreateRequest{}), create(t, s, CreateRequest{})}
	var all []matrix.EventID
	for n := range 37 {
		all = append(all, say(t, s, rooms[n%2], alice, fmt.Sprint("needle ", strings.Repeat("hay ", n*7%5))))
	}
	for _, order := range []string{"recent", "rank"} {
		limit := 5
		q := SearchRequest{SearchTerm: "needle", OrderBy: order, Filter: &EventFilter{Limit: &limit}}
		q.Groupings.GroupBy = append(q.Groupings.GroupBy, struct {
			Key string `json:"key"`
		}{"room_id"})
		var got, grouped []matrix.EventID
		next, group := "", ""
		last := 2.0
		for page := 0; page < 20; page++ {
			r := search(t, s, alice, q, next)
			if r.Count != len(all) {
				t.Errorf("%s, page %d: count %d, want %d", order, page, r.Count, len(all))
			}
			got = append(got, r.ids(t)...)
			for _, one := range r.Results {
				if order == "rank" && one.Rank > last {
					t.Errorf("rank %v comes after %v", one.Rank, last)
				}
				last = one.Rank
			}
			if page == 0 {
				group = r.Groups["room_id"][string(rooms[1])].NextBatch
				grouped = r.Groups["room_id"][string(rooms[1])].Results
			}
			say(t, s, rooms[0], alice, "needle that comes later")
			if next = r.NextBatch; next == "" {
				break
			}
		}
		want := slices.Clone(all)
		if order == "recent" {
			slices.Reverse(want)
		} else {
			slices.Sort(got)
			slices.Sort(want)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", order, diff)
		}
		for page := 0; group != "" && page < 20; page++ {
			r := search(t, s, alice, q, group)
			grouped = append(grouped, r.ids(t)...)
			group = r.NextBatch
		}
		slices.Sort(grouped)
		want = nil
		for n, id := range all {
			if n%2 == 1 {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, grouped); diff != "" {
			t.Errorf("%s, in a group (-want +got)\n%s", order, diff)
		}
		limit = 100
		r := search(t, s, alice, SearchRequest{SearchTerm: "later", Filter: &EventFilter{Limit: &limit}}, "")
		for _, id := range r.ids(t) {
			if _, err := s.Redact(t.Context(), RedactRequest{Room: rooms[0], Sender: alice, Event: id}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestIndexTakesUpWhatWasThereBefore(t *testing.T) {
	storagetest.EachURL(t, func(t *testing.T, url string) {
		open := func(c Config) (*Service, func()) {
			db, err := storage.Open(t.Context(), storage.Config{URL: url}, nil)
			if err != nil {
				t.Fatal(err)
			}
			s := newService(t, db)
			s.o.Config = c
			return s, func() { s.Close(); db.Close() }
		}
		off := DefaultConfig()
		off.Search = false
		s, stop := open(off)
		room := create(t, s, CreateRequest{Name: "words"})
		var want []matrix.EventID
		for n := range 5 {
			want = append(want, say(t, s, room, alice, fmt.Sprint("word ", n)))
		}
		if err := s.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := s.Search(t.Context(), Reader{User: alice}, SearchRequest{SearchTerm: "word"}, "")
		wantCode(t, err, "M_FORBIDDEN")
		stop()
		s, stop = open(DefaultConfig()) // the index is begun, and the process ends
		if err := s.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		want = append(want, say(t, s, room, alice, "word 5"))
		stop()
		s, stop = open(DefaultConfig())
		defer stop()
		r := search(t, s, alice, SearchRequest{SearchTerm: "word", OrderBy: "recent", Keys: []string{"content.body"}}, "")
		slices.Reverse(want)
		if diff := cmp.Diff(want, r.ids(t)); diff != "" {
			t.Error(diff)
		}
		if r := search(t, s, alice, SearchRequest{SearchTerm: "words"}, ""); r.Count != 1 {
			t.Errorf("the room's name was found %d times", r.Count)
		}
	})
}

func TestIndexHoldsNoWordsOfWhatIsGone(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		s := newService(t, db)
		room := create(t, s, CreateRequest{})
		find := func(word string) int {
			found, err := db.SearchWords(t.Context(), storage.SearchQuery{Rooms: []int64{roomNum(t, s, room)}, Words: []storage.SearchWord{{Text: word}}, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			return len(found.Hits)
		}
		gone := say(t, s, room, alice, "secret plan")
		say(t, s, room, alice, "other plan")
		wantFound(t, s, alice, "secret", gone)
		if _, err := s.Redact(t.Context(), RedactRequest{Room: room, Sender: alice, Event: gone}); err != nil {
			t.Fatal(err)
		}
		if err := s.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := find("secret"); n != 0 {
			t.Errorf("the index finds what was redacted %d times", n)
		}
		for more := true; more; {
			var err error
			if more, err = db.TidyIndex(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
		var blocks []string
		if err := db.Read(t.Context()).Raw("SELECT data FROM search_blocks").Scan(&blocks).Error; err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(blocks, " "); strings.Contains(all, "secret") || !strings.Contains(all, "plan") {
			t.Errorf("the index holds %q", all)
		}
		if n := find("plan"); n != 1 {
			t.Errorf("the index finds what is left %d times", n)
		}
	})
}

func roomNum(t testing.TB, s *Service, id matrix.RoomID) int64 {
	t.Helper()
	r, err := s.Room(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return r.Num
}

func TestBackfilledMessagesAreFoundInTheirPlace(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	old := one.say(room, "@alice:one", "word from before")
	two.join(room, "@bob:two", "one")
	fresh := one.say(room, "@alice:one", "word from now")
	two.get("one", fresh)
	wantFound(t, two.Service, "@bob:two", "word", fresh.ID())
	if _, err := two.Messages(context.Background(), room, Reader{User: "@bob:two"}, MessagesRequest{Limit: 50}); err != nil {
		t.Fatal(err)
	}
	wantFound(t, two.Service, "@bob:two", "word", old.ID(), fresh.ID())
}

// TestHistoryFromBeforeTheFirstTimelineIsFound goes on backwards from where /sync begins in a room that was entered through another server.
func TestHistoryFromBeforeTheFirstTimelineIsFound(t *testing.T) {
	w := newWorld(t, "one", "two")
	one, two := w.at("one"), w.at("two")
	room := one.newRoom("@alice:one", "11", "public")
	want := []matrix.EventID{}
	for i := range 15 {
		want = append(want, one.say(room, "@alice:one", fmt.Sprint("before ", i)).ID())
	}
	slices.Reverse(want)
	two.join(room, "@bob:two", "one")
	timeline, err := two.Timeline(t.Context(), room, 0, 1<<60, 10)
	if err != nil || len(timeline.Events) != 1 {
		t.Fatalf("got %d events and %v, want the join", len(timeline.Events), err)
	}
	got := []matrix.EventID{}
	for from := fmt.Sprintf("s%d", timeline.Events[0].Pos-1); from != ""; {
		page, err := two.Messages(t.Context(), room, Reader{User: "@bob:two"}, MessagesRequest{From: from, Limit: 4})
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range page.Chunk {
			var e struct {
				ID   matrix.EventID `json:"event_id"`
				Type string         `json:"type"`
			}
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			if e.Type == matrix.TypeMessage {
				got = append(got, e.ID)
			}
		}
		from = page.End
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d messages %v, want %v", len(got), got, want)
	}
}
