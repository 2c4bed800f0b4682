package matrix

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"testing"
	"time"
)

// voiceMessage is an event of about 875 bytes.
func voiceMessage(t testing.TB, v *RoomVersion) *Event {
	b := Builder{RoomID: "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Sender: "@alice:one.example.org", Type: TypeMessage,
		Content: []byte(`{"body":"Voice message","info":{"duration":4200,"mimetype":"audio/ogg","size":31337},"m.mentions":{},"msgtype":"m.audio",` +
			`"org.matrix.msc1767.audio":{"duration":4200,"waveform":[1,20,300,400,500,600,700,800,900,1000,900,800,700,600,500]},` +
			`"org.matrix.msc3245.voice":{},"url":"mxc://one.example.org/AAAAAAAAAAAAAAAAAAAAAAAA"}`),
		PrevEvents: []EventID{"$BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"},
		AuthEvents: []EventID{"$CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC", "$DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD"},
		Depth:      123, Time: time.UnixMilli(1700000000000)}
	if !v.RoomIDIsCreateID {
		b.RoomID = "!room:one.example.org"
	}
	e, err := b.Build(v, "one.example.org", testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func BenchmarkParseEvent(b *testing.B) {
	v := LookupRoomVersion("11")
	raw := voiceMessage(b, v).JSON()
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := ParseEvent(raw, v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoadEvent(b *testing.B) {
	v := LookupRoomVersion("11")
	e := voiceMessage(b, v)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := LoadEvent(e.JSON(), v, e.ID()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCanonicalJSON(b *testing.B) {
	raw := voiceMessage(b, LookupRoomVersion("11")).JSON()
	dst := make([]byte, 0, len(raw))
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		dst, _ = CanonicalJSON(dst[:0], raw)
	}
}

func BenchmarkAppendClient(b *testing.B) {
	e := voiceMessage(b, LookupRoomVersion("11"))
	dst := make([]byte, 0, 2000)
	b.ReportAllocs()
	for b.Loop() {
		dst = e.AppendClient(dst[:0], &ClientOptions{HasAge: true, AgeMS: 12, TransactionID: "t1"})
	}
}

func BenchmarkBuild(b *testing.B) {
	v := LookupRoomVersion("11")
	key := testKey(b)
	e := voiceMessage(b, v)
	builder := Builder{RoomID: e.RoomID(), Sender: e.Sender(), Type: e.Type(), Content: e.Content(), PrevEvents: e.PrevEvents(),
		AuthEvents: e.AuthEvents(), Depth: 5, Time: e.Time()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := builder.Build(v, "one.example.org", key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyEvent(b *testing.B) {
	e := voiceMessage(b, LookupRoomVersion("11"))
	keys := keyTable{"one.example.org": {"ed25519:1": testKey(b).Public()}}
	b.ReportAllocs()
	for b.Loop() {
		if err := VerifyEvent(context.Background(), e, keys); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthorizeMessage(b *testing.B) {
	r := newRoom(b, LookupRoomVersion("11"))
	state := Lookup([]*Event{r.create, r.event(membership(bob, Join)), r.event(powers(`{"users":{"@alice:a.example":100}}`))})
	e := r.event(ev{sender: bob, typ: TypeMessage, key: "-", content: `{}`})
	b.ReportAllocs()
	for b.Loop() {
		if err := Authorize(e, state); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkResolve resolves two forks of a room of 10,000 members, on each of which 50 people join and 50 change
// their profile, as a server does that knows its conflicts.
func BenchmarkResolve(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		b.Run(version, func(b *testing.B) { benchmarkResolve(b, LookupRoomVersion(version), 10000, 50) })
	}
}

func benchmarkResolve(b *testing.B, v *RoomVersion, people, k int) {
	h := newHistory(b, v, 1)
	user := func(i int) UserID { return UserID(fmt.Sprintf("@user%d:b.example", i)) }
	state := maps.Clone(h.after[h.last()])
	// put adds an event to the state without the copies that a history makes.
	put := func(state StateMap, sender UserID, typ, key, content string) {
		builder := &Builder{RoomID: h.room, Sender: sender, Type: typ, StateKey: &key, Content: []byte(content), PrevEvents: []EventID{h.last()}}
		for _, t := range builder.AuthKeys(v) {
			if id, ok := state[t]; ok {
				builder.AuthEvents = append(builder.AuthEvents, id)
			}
		}
		e := h.build(builder)
		h.events, h.byID[e.ID()] = append(h.events, e), e
		h.number[e.ID()] = int64(len(h.events))
		state[e.Tuple()] = e.ID()
	}
	for i := range people {
		put(state, user(i), TypeMember, string(user(i)), `{"membership":"join"}`)
	}
	fork := func(from int) StateMap {
		state := maps.Clone(state)
		put(state, alice, TypeTopic, "", fmt.Sprintf(`{"topic":"%d"}`, from))
		for i := range k {
			put(state, user(people+from+i), TypeMember, string(user(people+from+i)), `{"membership":"join"}`)
			put(state, user(i), TypeMember, string(user(i)), fmt.Sprintf(`{"displayname":"%d","membership":"join"}`, from))
		}
		return state
	}
	unconflicted, sets := SplitStates([]StateMap{fork(0), fork(k)})
	loads, rounds := 0, 0
	q := &Resolution{Version: v, Sets: sets,
		Load:         func(ids []EventID) ([]*Event, error) { loads += len(ids); return h.load(ids) },
		Unconflicted: func(t StateTuple) EventID { return unconflicted[t] },
		Order:        func(id EventID) int64 { return h.number[id] },
		UnconflictedAfter: func(after int64) iter.Seq[EventID] {
			return func(yield func(EventID) bool) {
				for _, e := range h.events[after:] {
					if unconflicted[e.Tuple()] == e.ID() && !yield(e.ID()) {
						return
					}
				}
			}
		},
	}
	b.ReportAllocs()
	for b.Loop() {
		rounds++
		if _, err := Resolve(q); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(loads)/float64(rounds), "loads/op")
}
