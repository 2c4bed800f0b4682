package matrix

import (
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var histories = flag.Int("histories", 15, "random rooms per version that state resolution is compared on")

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

// FuzzResolve draws the room as well as its version.
func FuzzResolve(f *testing.F) {
	f.Add(uint64(1), byte(11), byte(40))
	f.Add(uint64(2), byte(10), byte(40))
	versions := RoomVersions()
	f.Fuzz(func(t *testing.T, seed uint64, version, steps byte) {
		v := versions[int(version)%len(versions)]
		h := newHistory(t, v, seed)
		h.merged = func(states []StateMap, got StateMap) {
			if v.StateResolution == StateResolutionV1 {
				return
			}
			want := (&slowResolve{version: v, events: h.byID, rejected: h.rejected}).resolve(states)
			if !maps.Equal(want, got) || !maps.Equal(want, h.resolveOrdered(states)) {
				t.Fatalf("seed %d, event %d: %s", seed, len(h.events), cmp.Diff(want, got))
			}
		}
		for range steps % 100 {
			h.step()
		}
	})
}

// Auth events that were rejected are not used in the checks.
func TestRejectedAuthEventsDoNotAuthorize(t *testing.T) {
	for _, id := range []string{"2", "11", "12"} {
		v := LookupRoomVersion(id)
		for seed := range uint64(10) {
			h := newHistory(t, v, seed)
			h.merged = func(states []StateMap, _ StateMap) {
				rejected := map[EventID]bool{}
				for _, e := range h.events[4:] {
					if h.r.IntN(6) == 0 {
						rejected[e.ID()] = true
					}
				}
				got, err := ResolveStates(v, states, h.load, func(id EventID) bool { return rejected[id] })
				if err != nil {
					t.Fatal(err)
				}
				want := (&slowResolve{version: v, events: h.byID, rejected: rejected}).resolve(states)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("version %s, seed %d: %s", id, seed, diff)
				}
			}
			for range 60 {
				h.step()
			}
		}
	}
}

// An order that is the wrong way round is noticed, and the whole chains are walked.
func TestReversedOrderDoesNotChangeTheResult(t *testing.T) {
	for _, id := range []string{"11", "12"} {
		for seed := range uint64(10) {
			h := newHistory(t, LookupRoomVersion(id), seed)
			h.merged = func(states []StateMap, got StateMap) {
				for n, e := range h.events {
					h.number[e.ID()] = -int64(n)
				}
				if diff := cmp.Diff(got, h.resolveOrdered(states)); diff != "" {
					t.Fatalf("version %s, seed %d: %s", id, seed, diff)
				}
			}
			for range 60 {
				h.step()
			}
		}
	}
}

// With many power levels events, each authorized by the profile change before it and that by the power levels before,
// the number of paths between conflicted events doubles with each; the work must not.
func TestConflictedSubgraphIsWalkedOnce(t *testing.T) {
	v := LookupRoomVersion("12")
	h := newHistory(t, v, 1)
	h.extend(h.last(), bob, TypeMember, string(bob), `{"membership":"join"}`)
	base := h.last()
	var ends []EventID
	for range 2 {
		at := base
		for range 400 {
			h.extend(at, alice, TypePowerLevels, "", h.powerLevels())
			h.extend(h.last(), alice, TypeMember, string(alice), fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, h.r.IntN(1000)))
			at = h.last()
		}
		ends = append(ends, at)
	}
	loaded := 0
	states := []StateMap{h.after[ends[0]], h.after[ends[1]], h.after[base]}
	got, err := ResolveStates(v, states, func(ids []EventID) ([]*Event, error) { loaded += len(ids); return h.load(ids) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if loaded > len(h.events) {
		t.Errorf("loaded %d events of %d", loaded, len(h.events))
	}
	if got[StateTuple{TypePowerLevels, ""}] == "" || got[StateTuple{TypeCreate, ""}] != h.events[0].ID() {
		t.Errorf("got %v", got)
	}
}

func TestResolutionV1(t *testing.T) {
	v := LookupRoomVersion("1")
	h := newHistory(t, v, 3)
	levels := `{"users":{"@alice:a.example":100,"@bob:b.example":50},"events":{"m.room.topic":50}}`
	h.extend(h.last(), alice, TypePowerLevels, "", levels)
	h.extend(h.last(), bob, TypeMember, string(bob), `{"membership":"join"}`)
	base := h.last()
	// Bob sets the topic while alice takes his power: the power levels are decided first, and the topic falls.
	h.extend(base, bob, TypeTopic, "", `{"topic":"bob"}`)
	one := h.last()
	h.extend(base, alice, TypePowerLevels, "", `{"users":{"@alice:a.example":100},"events":{"m.room.topic":50}}`)
	h.extend(h.last(), alice, TypeTopic, "", `{"topic":"alice"}`)
	other := h.last()
	got, err := ResolveStates(v, []StateMap{h.after[one], h.after[other]}, h.load, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got[StateTuple{TypeTopic, ""}] != other || got[StateTuple{TypePowerLevels, ""}] != h.after[other][StateTuple{TypePowerLevels, ""}] {
		t.Errorf("got %v", got)
	}
	// The deeper of two joins counts as long as the rules allow it.
	h.extend(base, bob, TypeMember, string(bob), `{"membership":"join","displayname":"1"}`)
	shallow := h.last()
	h.extend(base, bob, TypeName, "", `{"name":"x"}`)
	h.extend(h.last(), bob, TypeMember, string(bob), `{"membership":"join","displayname":"2"}`)
	deep := h.last()
	got, err = ResolveStates(v, []StateMap{h.after[shallow], h.after[deep]}, h.load, nil)
	if err != nil || got[StateTuple{TypeMember, string(bob)}] != deep {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestResolutionOfWhatIsNotKnownFails(t *testing.T) {
	h := newHistory(t, LookupRoomVersion("11"), 1)
	name := StateTuple{TypeName, ""}
	a, b := maps.Clone(h.after[h.last()]), maps.Clone(h.after[h.last()])
	a[name], b[name] = "$unknown", "$other"
	if _, err := ResolveStates(h.version, []StateMap{a, b}, h.load, nil); err == nil {
		t.Error("events that do not exist were resolved")
	}
	broken := errors.New("the database is gone")
	if _, err := ResolveStates(h.version, []StateMap{a, b}, func([]EventID) ([]*Event, error) { return nil, broken }, nil); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestEqualStatesNeedNoResolution(t *testing.T) {
	h := newHistory(t, LookupRoomVersion("11"), 1)
	state := h.after[h.last()]
	got, err := ResolveStates(h.version, []StateMap{state, state, state}, nil, nil)
	if err != nil || !maps.Equal(got, state) {
		t.Errorf("got %v, %v", got, err)
	}
}

// The two cases for which MSC4297 changed the algorithm, each with what both algorithms make of it.
// Spec v1.19 rooms/v12/#state-resolution
func TestWorkedCasesOfResolution21(t *testing.T) {
	const erin = UserID("@erin:b.example")
	join := `{"membership":"join"}`
	rules, levels := StateTuple{TypeJoinRules, ""}, StateTuple{TypePowerLevels, ""}
	resolve := func(h *history, states ...StateMap) StateMap {
		got, err := ResolveStates(h.version, states, h.load, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := (&slowResolve{version: h.version, events: h.byID}).resolve(states); !maps.Equal(want, got) {
			t.Errorf("version %s: by the letter of the spec: %s", h.version, cmp.Diff(want, got))
		}
		return got
	}
	for id, kept := range map[string]bool{"11": false, "12": true} {
		v := LookupRoomVersion(id)
		// A. Both sides agree that alice has left. Her join rules, about which they do not agree, were allowed when she sent them:
		// the checks start from nothing, and so from their auth events, not from what is agreed upon.
		h := newHistory(t, v, 1)
		public := h.last()
		h.extend(h.last(), bob, TypeMember, string(bob), join)
		h.clock += 1000
		h.extend(h.last(), alice, TypeJoinRules, "", `{"join_rule":"invite"}`)
		invite := h.last()
		h.extend(h.last(), alice, TypeMember, string(alice), `{"membership":"leave"}`)
		left := h.last()
		stale := maps.Clone(h.after[left])
		stale[rules] = public
		got := resolve(h, h.after[left], stale)
		if want := map[bool]EventID{true: invite, false: ""}[kept]; got[rules] != want {
			t.Errorf("version %s: the join rules are %q, want %q", id, got[rules], want)
		}
		if got[StateTuple{TypeMember, string(alice)}] != left {
			t.Errorf("version %s: alice is back", id)
		}
		// B. Erin gives bob power, and bob carol. One side has forgotten both; what is between the two power levels that differ is
		// in the auth chains of both sides, by a join that they agree upon, and so is in no auth difference.
		h = newHistory(t, v, 1)
		creators := `"@alice:a.example":100,`
		if v.PrivilegedCreators {
			creators = ""
		}
		h.extend(h.last(), erin, TypeMember, string(erin), join)
		h.extend(h.last(), bob, TypeMember, string(bob), join)
		h.extend(h.last(), alice, TypePowerLevels, "", `{"users":{`+creators+`"@erin:b.example":100}}`)
		first := h.last()
		h.extend(h.last(), erin, TypePowerLevels, "", `{"users":{`+creators+`"@erin:b.example":100,"@bob:b.example":50}}`)
		h.extend(h.last(), bob, TypePowerLevels, "", `{"users":{`+creators+`"@erin:b.example":100,"@bob:b.example":50,"@carol:c.example":50}}`)
		third := h.last()
		h.extend(h.last(), carol, TypeMember, string(carol), join)
		stale = maps.Clone(h.after[h.last()])
		stale[levels] = first
		got = resolve(h, h.after[h.last()], stale)
		if want := map[bool]EventID{true: third, false: first}[kept]; got[levels] != want {
			t.Errorf("version %s: the power levels are %s, want %s", id, got[levels], want)
		}
	}
}

// No room, whoever made it up, makes resolution cost more than n log n of the events and auth events that it looks at. What is counted is work,
// not time: see resolver.work.
func TestResolutionIsNLogN(t *testing.T) {
	const own = "org.example.own"
	// Each shape gives two states of a room; n says how large.
	shapes := map[string]func(s *shape, n int) (one, two StateMap){
		// Each power levels event is authorized by a profile, and that by the power levels before: the paths double with each.
		"a ladder": func(s *shape, n int) (one, two StateMap) {
			sides := [2]StateMap{}
			for i := range sides {
				levels, member := s.levels, s.member
				for range n / 4 {
					levels = s.add(alice, TypePowerLevels, "", `{}`, levels, member)
					member = s.add(alice, TypeMember, string(alice), `{"membership":"join"}`, levels, member)
				}
				sides[i] = StateMap{{TypePowerLevels, ""}: levels, {TypeMember, string(alice)}: member}
			}
			return sides[0], sides[1]
		},
		// Many power events with the same power levels above them.
		"a fan of bans": func(s *shape, n int) (one, two StateMap) {
			one = StateMap{{TypePowerLevels, ""}: s.add(alice, TypePowerLevels, "", `{}`, s.levels, s.member)}
			for i := range n {
				user := fmt.Sprintf("@u%d:b.example", i)
				one[StateTuple{TypeMember, user}] = s.add(alice, TypeMember, user, `{"membership":"ban"}`, one[StateTuple{TypePowerLevels, ""}], s.member)
			}
			return one, StateMap{{TypePowerLevels, ""}: s.levels}
		},
		// A long chain of young events beside many old ones that are not done with.
		"a chain beside a crowd": func(s *shape, n int) (one, two StateMap) {
			two = StateMap{{TypePowerLevels, ""}: s.levels}
			for i := range n {
				two[StateTuple{own, fmt.Sprint(i)}] = s.add(alice, own, fmt.Sprint(i), `{}`, s.levels, s.member)
			}
			levels := s.levels
			for range n {
				levels = s.add(alice, TypePowerLevels, "", `{}`, levels, s.member)
			}
			return StateMap{{TypePowerLevels, ""}: levels}, two
		},
		// A long mainline, and events all along it and all along another one that never meets it.
		"a long mainline": func(s *shape, n int) (one, two StateMap) {
			one, two = StateMap{}, StateMap{}
			for i, state := range []StateMap{one, two} {
				levels := s.levels
				for k := range n / 2 {
					levels = s.add(alice, TypePowerLevels, "", `{}`, levels, s.member)
					state[StateTuple{own, fmt.Sprint(i, k)}] = s.add(alice, own, fmt.Sprint(i, k), `{}`, levels, s.member)
				}
				state[StateTuple{TypePowerLevels, ""}] = levels
			}
			return one, two
		},
		// As many auth events as an event may name, each of them naming as many.
		"a web": func(s *shape, n int) (one, two StateMap) {
			last := []EventID{s.levels, s.member}
			for i := range n / 10 {
				last = append(last, s.add(alice, own, fmt.Sprint(i), `{}`, last[max(0, len(last)-9):]...))
			}
			key := StateTuple{own, "end"}
			return StateMap{key: s.add(alice, own, "end", `{"n":1}`, last[max(0, len(last)-9):]...)}, StateMap{key: s.add(alice, own, "end", `{"n":2}`, last[:9]...)}
		},
	}
	for name, make := range shapes {
		for _, id := range []string{"1", "2", "11", "12"} {
			for _, n := range []int{200, 800} {
				s := newShape(t, LookupRoomVersion(id))
				one, two := make(s, n)
				size := 0
				for _, e := range s.events {
					size += 1 + len(e.AuthEvents())
				}
				for _, ordered := range []bool{false, true} {
					// The factor is that of the constant work on an event, by the rules and in several walks.
					if got, limit := s.work(one, two, ordered), 6*float64(size)*math.Log2(float64(size)); float64(got) > limit {
						t.Errorf("%s of %d, version %s, ordered %v: %d steps for %d events and auth events, more than %.0f", name, n, id, ordered, got, size, limit)
					}
				}
			}
		}
	}
}

// shape is a room made of events that nobody has judged.
type shape struct {
	*history
	levels, member EventID
}

func newShape(t *testing.T, v *RoomVersion) *shape {
	h := newHistory(t, v, 1)
	state := h.after[h.last()]
	return &shape{h, state[StateTuple{TypePowerLevels, ""}], state[StateTuple{TypeMember, string(alice)}]}
}

func (s *shape) add(sender UserID, typ, key, content string, auth ...EventID) EventID {
	if !s.version.RoomIDIsCreateID {
		auth = append([]EventID{s.events[0].ID()}, auth...)
	}
	s.clock++
	b := &Builder{RoomID: s.room, Sender: sender, Type: typ, StateKey: &key, Content: []byte(content), AuthEvents: auth, Time: time.UnixMilli(s.clock),
		PrevEvents: []EventID{s.events[0].ID()}, Depth: int64(len(s.events))}
	e, err := b.Build(s.version, sender.Server(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.events = append(s.events, e)
	s.byID[e.ID()], s.number[e.ID()] = e, int64(len(s.events))
	return e.ID()
}

// work resolves two states that agree on nothing, and counts.
func (s *shape) work(one, two StateMap, ordered bool) int {
	r := &Resolution{Version: s.version, Sets: []StateMap{one, two}, Load: s.load, Unconflicted: func(StateTuple) EventID { return "" }}
	if ordered {
		r.Order = func(id EventID) int64 { return s.number[id] }
	}
	_, work, err := resolve(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return work
}
