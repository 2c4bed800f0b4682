package storage_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestAliasIsGivenOnce(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		a := storage.Alias{Alias: "#a:here", RoomID: "!r:here", Creator: "@alice:here", CreatedMS: 5}
		if err := db.CreateAlias(ctx, a); err != nil {
			t.Fatal(err)
		}
		again := a
		again.RoomID = "!other:here"
		if err := db.CreateAlias(ctx, again); !errors.Is(err, storage.ErrTaken) {
			t.Fatalf("got %v, want ErrTaken", err)
		}
		got, err := db.Alias(ctx, "#a:here")
		if err != nil || got != a {
			t.Fatalf("got %v, %v, want %v", got, err, a)
		}
		if err := db.Write(ctx, func(tx *storage.Tx) error { return tx.MoveAliases("!r:here", "!new:here") }); err != nil {
			t.Fatal(err)
		}
		all, err := db.RoomAliases(ctx, "!new:here")
		if diff := cmp.Diff([]matrix.RoomAlias{"#a:here"}, all); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		if err := db.DeleteAlias(ctx, "#a:here"); err != nil {
			t.Fatal(err)
		}
		if err := db.DeleteAlias(ctx, "#a:here"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatalf("got %v, want ErrNotFound", err)
		}
		if _, err := db.Alias(ctx, "#a:here"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatalf("got %v, want ErrNotFound", err)
		}
	})
}

func TestPublishedRoomsAreListedPerNetwork(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		for _, p := range []struct {
			network string
			room    matrix.RoomID
		}{{"", "!b:here"}, {"", "!a:here"}, {"irc", "!b:here"}, {"irc", "!c:here"}, {"", "!a:here"}} {
			if err := db.SetPublished(ctx, p.network, p.room, true); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			network string
			all     bool
			want    []matrix.RoomID
		}{
			{"", false, []matrix.RoomID{"!a:here", "!b:here"}},
			{"irc", false, []matrix.RoomID{"!b:here", "!c:here"}},
			{"", true, []matrix.RoomID{"!a:here", "!b:here", "!c:here"}},
		} {
			got, err := db.PublishedRooms(ctx, c.network, c.all)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("network %q: %v %s", c.network, err, diff)
			}
		}
		if err := db.SetPublished(ctx, "", "!b:here", false); err != nil {
			t.Fatal(err)
		}
		if got, err := db.Published(ctx, "!b:here"); err != nil || got {
			t.Errorf("got %v, %v, want it gone", got, err)
		}
	})
}

func TestInboundEventsWaitInOrderAndWithinTheLimit(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		event := func(id matrix.EventID, depth int64) storage.InboundEvent {
			return storage.InboundEvent{RoomID: "!r:there", EventID: id, Origin: "there", Depth: depth, ReceivedMS: 1, JSON: []byte(`{}`)}
		}
		if err := db.KeepInbound(ctx, 2, []storage.InboundEvent{event("$b", 7), event("$a", 3), event("$a", 3), event("$c", 1)}); err != nil {
			t.Fatal(err)
		}
		got, err := db.Inbound(ctx, "!r:there", 10)
		if diff := cmp.Diff([]storage.InboundEvent{event("$a", 3), event("$b", 7)}, got); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		if err := db.DropInbound(ctx, "!r:there", "$a"); err != nil {
			t.Fatal(err)
		}
		rooms, err := db.InboundRooms(ctx)
		if diff := cmp.Diff([]matrix.RoomID{"!r:there"}, rooms); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
	})
}

func TestFindPeopleSearchesSharedAndPublicRooms(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		err := db.Write(ctx, func(tx *storage.Tx) error {
			for i, r := range []string{"!shared:here", "!public:here", "!closed:here", "!open:here"} {
				if err := tx.Exec("INSERT INTO rooms (num, room_id, version, seq, pos, tip, root, depth, flags) VALUES (?, ?, '11', 0, 1, ?, ?, 1, ?)", i, r, []byte{}, []byte{},
					map[int]storage.RoomFlags{3: storage.OpenRoom}[i]).Error; err != nil {
					return err
				}
			}
			for i, m := range []struct {
				room              int
				server, user, key string
			}{{0, "here", "@seeker:here", "seeker"}, {0, "here", "@ann:here", "ann 100%"}, {1, "here", "@anton:here", "anton"}, {2, "here", "@anna:here", "anna"},
				{3, "here", "@adriana:here", "adriana 面包"},
				{0, "there", "@x:there", "Annika"}, {2, "there", "@y:there", "Annika too"}} {
				if err := tx.Exec("INSERT INTO memberships (room, server, user_id, membership, num, pos, forgotten) VALUES (?, ?, ?, 'join', ?, 1, 0)", m.room, m.server, m.user, i+1).Error; err != nil {
					return err
				}
				if m.server == "here" {
					if err := tx.Exec("INSERT INTO users (user_id, password, created_ms, admin, locked, suspended, deactivated, erased) VALUES (?, '', 0, false, false, false, false, false)", m.user).Error; err != nil {
						return err
					}
					if err := tx.Exec("INSERT INTO profiles (user_id, displayname, name_key) VALUES (?, ?, ?)", m.user, []byte(m.key), m.key).Error; err != nil {
						return err
					}
					continue
				}
				json := `{"content":{"membership":"join","displayname":"` + m.key + `"}}`
				if err := tx.Exec("INSERT INTO events (num, room, depth, ts, event_id, type, sender, flags, json) VALUES (?, ?, 1, 1, ?, 'm.room.member', ?, 0, ?)",
					i+1, m.room, "$"+m.user, m.user, []byte(json)).Error; err != nil {
					return err
				}
			}
			return tx.SetPublished("", "!public:here", true)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			words    []string
			everyone bool
			want     []string
		}{
			{[]string{"an"}, false, []string{"@ann:here", "@anton:here", "@adriana:here", "@x:there"}},
			{[]string{"面"}, false, []string{"@adriana:here"}},
			{[]string{"an"}, true, []string{"@ann:here", "@anna:here", "@anton:here", "@adriana:here", "@x:there"}},
			{[]string{"seeker"}, true, nil},
			{[]string{"%"}, false, []string{"@ann:here"}},
			{[]string{"annika", "there"}, true, []string{"@x:there"}},
			{[]string{"@an"}, false, []string{"@ann:here", "@anton:here"}},
		} {
			found, err := db.FindPeople(ctx, storage.PeopleQuery{Searcher: "@seeker:here", Server: "here", Words: c.words, Everyone: c.everyone, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range found {
				got = append(got, string(p.UserID))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%v: %s", c.words, diff)
			}
		}
	})
}
