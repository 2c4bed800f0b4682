package room

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage/storagetest"
)

// relate sends a message or reaction that relates to an event.
func relate(t testing.TB, s *Service, room matrix.RoomID, user matrix.UserID, typ, relType string, event matrix.EventID) matrix.EventID {
	t.Helper()
	id, err := s.Send(t.Context(), SendRequest{Room: room, Sender: user, Type: typ,
		Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":"%s","m.relates_to":{"rel_type":%q,"event_id":%q,"key":%q}}`, user.Localpart(), relType, event, user)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// bundle is what unsigned says of an event's relations.
type bundle struct {
	Replace struct {
		ID matrix.EventID `json:"event_id"`
	} `json:"m.replace"`
	Thread struct {
		Latest struct {
			ID matrix.EventID `json:"event_id"`
		} `json:"latest_event"`
		Count        int
		Participated bool `json:"current_user_participated"`
	} `json:"m.thread"`
	References struct {
		Chunk []struct {
			ID matrix.EventID `json:"event_id"`
		}
	} `json:"m.reference"`
}

func bundled(t testing.TB, s *Service, room matrix.RoomID, user matrix.UserID, event matrix.EventID) bundle {
	t.Helper()
	raw, err := s.Event(t.Context(), room, Reader{User: user}, event)
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Unsigned struct {
			Relations bundle `json:"m.relations"`
		}
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return e.Unsigned.Relations
}

func roomOf(t testing.TB, s *Service, visibility string, users ...matrix.UserID) matrix.RoomID {
	t.Helper()
	room := create(t, s, CreateRequest{Preset: "public_chat", InitialState: []InitialState{{Type: matrix.TypeHistoryVisibility,
		Content: json.RawMessage(`{"history_visibility":"` + visibility + `"}`)}}})
	for _, u := range users {
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: u}); err != nil {
			t.Fatal(err)
		}
	}
	return room
}

func TestAggregationsLeaveOutIgnoredUsers(t *testing.T) {
	s := newService(t, storagetest.New(t))
	s.o.Ignored = func(_ context.Context, user matrix.UserID) (map[matrix.UserID]bool, error) {
		return map[matrix.UserID]bool{carol: user == alice}, nil
	}
	room := roomOf(t, s, "shared", bob, carol)
	root := say(t, s, room, alice, "root")
	bobs := relate(t, s, room, bob, matrix.TypeMessage, relThread, root)
	carols := relate(t, s, room, carol, matrix.TypeMessage, relThread, root)
	relate(t, s, room, carol, matrix.TypeMessage, relReference, root)
	if got := bundled(t, s, room, alice, root); got.Thread.Count != 1 || got.Thread.Latest.ID != bobs || len(got.References.Chunk) != 0 {
		t.Errorf("alice, who ignores carol, sees %+v", got)
	}
	if got := bundled(t, s, room, bob, root); got.Thread.Count != 2 || got.Thread.Latest.ID != carols || len(got.References.Chunk) != 1 || !got.Thread.Participated {
		t.Errorf("bob sees %+v", got)
	}
	begun := say(t, s, room, carol, "carol's secret")
	relate(t, s, room, bob, matrix.TypeMessage, relThread, begun)
	for user, want := range map[matrix.UserID]string{alice: "", bob: "carol's secret"} {
		page, err := s.Threads(t.Context(), room, Reader{User: user}, false, "", 1)
		if err != nil || len(page.Chunk) != 1 {
			t.Fatal(page, err)
		}
		if got := bodies(t, page.Chunk)[0]; got != want {
			t.Errorf("%s sees a thread that begins with %q, want %q", user, got, want)
		}
	}
}

func TestAggregationsHoldWhatTheReaderMaySee(t *testing.T) {
	s := newService(t, storagetest.New(t))
	for _, visibility := range []string{"joined", "shared"} {
		room := roomOf(t, s, visibility, bob)
		root := say(t, s, room, alice, "root")
		first := relate(t, s, room, alice, matrix.TypeMessage, relThread, root)
		if err := s.Leave(t.Context(), MemberRequest{Room: room, Sender: bob}); err != nil {
			t.Fatal(err)
		}
		last := relate(t, s, room, alice, matrix.TypeMessage, relThread, root)
		changed := edit(t, s, room, alice, root, "changed while bob was away")
		relate(t, s, room, alice, matrix.TypeMessage, relReference, root)
		check := func(when string, seesAll bool) {
			got := bundled(t, s, room, bob, root)
			want := bundle{}
			want.Thread.Count, want.Thread.Latest.ID = 1, first
			if seesAll {
				want.Thread.Count, want.Thread.Latest.ID, want.Replace.ID = 2, last, changed
			}
			if len(got.References.Chunk) != map[bool]int{true: 1}[seesAll] {
				t.Errorf("%s, %s: %d references", visibility, when, len(got.References.Chunk))
			}
			got.References.Chunk = nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s: (-want +got)\n%s", visibility, when, diff)
			}
		}
		check("bob has left", false)
		if _, err := s.Join(t.Context(), JoinRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		check("bob is back", visibility == "shared")
	}
}

func TestThreadsBeginAtEventsOfTheirOwn(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := create(t, s, CreateRequest{})
	root := say(t, s, room, alice, "root")
	reply := relate(t, s, room, alice, matrix.TypeMessage, relThread, root)
	_, err := s.Send(t.Context(), SendRequest{Room: room, Sender: alice, Type: matrix.TypeMessage,
		Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":"x","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, reply)})
	wantCode(t, err, "M_UNKNOWN")
	relate(t, s, room, alice, matrix.TypeMessage, relThread, root)
}

// TestRelationsRecurseThroughWhatIsChosen: "events that would match the filter, but whose only relation to the original given event is through a
// non-matching intermediate event, will not be included".
func TestRelationsRecurseThroughWhatIsChosen(t *testing.T) {
	s := newService(t, storagetest.New(t))
	room := roomOf(t, s, "shared", bob)
	root := say(t, s, room, alice, "root")
	threaded := relate(t, s, room, bob, matrix.TypeMessage, relThread, root)
	liked := relate(t, s, room, alice, "m.reaction", relAnnotation, threaded)
	direct := relate(t, s, room, bob, "m.reaction", relAnnotation, root)
	for _, c := range []struct {
		q    RelationsRequest
		want []matrix.EventID
	}{
		{RelationsRequest{}, []matrix.EventID{threaded, direct}},
		{RelationsRequest{Recurse: true}, []matrix.EventID{threaded, liked, direct}},
		{RelationsRequest{Recurse: true, RelType: relAnnotation}, []matrix.EventID{direct}},
		{RelationsRequest{Recurse: true, RelType: relThread}, []matrix.EventID{threaded}},
		{RelationsRequest{Recurse: true, RelType: relAnnotation, EventType: matrix.TypeMessage}, nil},
	} {
		c.q.Event, c.q.Forward = root, true
		page, err := s.Relations(t.Context(), room, Reader{User: alice}, c.q)
		if err != nil {
			t.Fatal(err)
		}
		var got []matrix.EventID
		for _, raw := range page.Chunk {
			var e struct {
				ID matrix.EventID `json:"event_id"`
			}
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e.ID)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v (-want +got)\n%s", c.q, diff)
		}
	}
}
