// Package matrixtest makes large rooms for tests and benchmarks: with real keys, hashes and signatures of several servers, always the same ones for
// the same [Size]. The events lie in a file, so that what a test measures is not the memory of the room's maker.
package matrixtest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
)

// Size says what room to make.
type Size struct {
	Version string // of the room; "" means 11
	Members int    // joined, the creator included
	States  int    // state events that are not of members, beyond those of every room
	Servers int    // that the members are on; at least 1
	Seed    uint64
}

// Large is the room that benchmarks report: 100,000 members of 50 servers and 20,000 other state events.
var Large = Size{Members: 100_000, States: 20_000, Servers: 50}

// Room is a generated room. Its first events are on the disk; [Room.Fork] makes more. It is not safe for concurrent use, but as a
// matrix.KeySource, which it is for its servers.
type Room struct {
	ID      matrix.RoomID
	Version *matrix.RoomVersion
	Servers []matrix.ServerName
	Creator matrix.UserID

	size    Size
	rand    *rand.Rand
	keys    map[matrix.ServerName]*matrix.SigningKey
	public  map[matrix.ServerName]*matrix.PublicKey
	file    *os.File
	at      []int64 // where in the file each event ends
	current map[matrix.StateTuple]stored
	last    *matrix.Event // of those in the file
	now     time.Time
}

// stored is an event in the file.
type stored struct {
	id matrix.EventID
	n  int
}

// mods is how many members, the creator first, may kick, ban and set state.
const mods = 20

// New makes a room, with its events in a file in dir.
func New(dir string, size Size) (*Room, error) {
	if size.Version == "" {
		size.Version = "11"
	}
	r := &Room{Version: matrix.LookupRoomVersion(size.Version), size: size, rand: rand.New(rand.NewPCG(size.Seed, 1)),
		keys: map[matrix.ServerName]*matrix.SigningKey{}, public: map[matrix.ServerName]*matrix.PublicKey{},
		current: make(map[matrix.StateTuple]stored, size.Members+size.States), now: time.UnixMilli(1_700_000_000_000)}
	for i := range max(size.Servers, 1) {
		if err := r.addServer(matrix.ServerName(fmt.Sprintf("s%02d.large.example", i))); err != nil {
			return nil, err
		}
	}
	r.Creator = r.Member(0)
	file, err := os.Create(filepath.Join(dir, "room.json"))
	if err != nil {
		return nil, err
	}
	r.file = file
	w := bufio.NewWriterSize(file, 1<<20)
	err = r.generate(w)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make a large room: %w", err)
	}
	return r, nil
}

// Close closes the file.
func (r *Room) Close() error { return r.file.Close() }

func (r *Room) addServer(name matrix.ServerName) error {
	seed := sha256.Sum256([]byte(name))
	key, err := matrix.NewSigningKey("ed25519:1", seed[:])
	if err != nil {
		return err
	}
	r.Servers = append(r.Servers, name)
	r.keys[name], r.public[name] = key, key.Public()
	return nil
}

// AddKey makes the key of another server known, such as that of the server that is tested.
func (r *Room) AddKey(name matrix.ServerName, key *matrix.SigningKey) {
	r.keys[name], r.public[name] = key, key.Public()
}

// Key is for matrix.KeySource.
func (r *Room) Key(_ context.Context, server matrix.ServerName, id matrix.KeyID, _ time.Time) (*matrix.PublicKey, error) {
	if key := r.public[server]; key != nil && id == "ed25519:1" {
		return key, nil
	}
	return nil, matrix.NotFound("no such key")
}

// Member is the user ID of a member by number, the creator's for 0.
func (r *Room) Member(i int) matrix.UserID {
	return matrix.UserID(fmt.Sprintf("@user%06d:%s", i, r.Servers[i%len(r.Servers)]))
}

func (r *Room) generate(w *bufio.Writer) error {
	end := int64(0)
	add := func(b matrix.Builder) error {
		var after []*matrix.Event
		if r.last != nil {
			after = append(after, r.last)
		}
		e, err := r.build(b, after, nil)
		if err != nil {
			return err
		}
		if r.last == nil {
			r.ID = matrix.RoomID(strings.Clone(string(e.RoomID())))
		}
		n, err := w.Write(e.JSON())
		end += int64(n)
		r.at = append(r.at, end)
		if e.IsState() {
			t := e.Tuple() // shares memory with the event
			r.current[matrix.StateTuple{Type: strings.Clone(t.Type), StateKey: strings.Clone(t.StateKey)}] = stored{e.ID(), len(r.at) - 1}
		}
		r.last = e
		return err
	}
	set := func(sender matrix.UserID, typ, key, content string) error {
		return add(matrix.Builder{Sender: sender, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	}
	first := [][3]string{
		{matrix.TypeCreate, "", fmt.Sprintf(`{"creator":%q,"room_version":%q}`, r.Creator, r.Version.ID)},
		{matrix.TypeMember, string(r.Creator), profile("Creator", 0)},
		{matrix.TypePowerLevels, "", r.powers(0)},
		{matrix.TypeJoinRules, "", `{"join_rule":"public"}`},
		{matrix.TypeHistoryVisibility, "", `{"history_visibility":"shared"}`},
		{matrix.TypeName, "", `{"name":"A large room"}`},
		{"m.room.topic", "", `{"topic":"Everything"}`},
	}
	if !r.Version.RoomIDIsCreateID {
		r.ID = matrix.RoomID("!large:" + string(r.Creator.Server()))
	}
	for _, st := range first {
		if err := set(r.Creator, st[0], st[1], st[2]); err != nil {
			return err
		}
	}
	for i := 1; i < r.size.Members; i++ {
		user := r.Member(i)
		if err := set(user, matrix.TypeMember, string(user), profile("Somebody", i)); err != nil {
			return err
		}
		if i%10 == 0 { // some have changed their name, so that the auth chains hold more than the state
			changed := r.Member(r.rand.IntN(i))
			if err := set(changed, matrix.TypeMember, string(changed), profile("Renamed", i)); err != nil {
				return err
			}
		}
		if i%(r.size.Members/5+1) == mods {
			if err := set(r.Creator, matrix.TypePowerLevels, "", r.powers(i)); err != nil {
				return err
			}
		}
	}
	for i := range r.size.States {
		sender := r.Member(r.rand.IntN(min(mods, r.size.Members)))
		typ, key, content := r.otherState(i, 0)
		if err := set(sender, typ, key, content); err != nil {
			return err
		}
	}
	return nil
}

func profile(name string, n int) string {
	return fmt.Sprintf(`{"avatar_url":"mxc://large.example/avatar%08d","displayname":"%s %d","membership":"join"}`, n, name, n)
}

func (r *Room) powers(n int) string {
	users := map[matrix.UserID]int{}
	for i := range min(mods, r.size.Members) {
		users[r.Member(i)] = 50
	}
	users[r.Creator] = 100
	if r.Version.PrivilegedCreators {
		delete(users, r.Creator)
	}
	content, _ := json.Marshal(map[string]any{"users": users, "ban": 50, "kick": 50, "state_default": 50, "events_default": 0,
		"events": map[string]int{"example.changed": n % 100}})
	return string(content)
}

func (r *Room) otherState(i, change int) (typ, key, content string) {
	if i%2 == 0 {
		return "m.space.child", fmt.Sprintf("!child%06d:large.example", i), fmt.Sprintf(`{"order":"%06d","via":["large.example","s00.large.example"]}`, change)
	}
	return "org.example.device", fmt.Sprintf("device-%06d", i), fmt.Sprintf(`{"building":"north","floor":%d,"label":"Meeting room %d","serial":"0f2a-%d"}`, i%12, i, change)
}

// build makes an event that follows on after, authorized by the state of overlay over that of the file.
func (r *Room) build(b matrix.Builder, after []*matrix.Event, overlay map[matrix.StateTuple]matrix.EventID) (*matrix.Event, error) {
	b.RoomID = r.ID
	if b.Type == matrix.TypeCreate && r.Version.RoomIDIsCreateID {
		b.RoomID = ""
	}
	r.now = r.now.Add(time.Millisecond)
	b.Time = r.now
	for _, e := range after {
		b.PrevEvents = append(b.PrevEvents, e.ID())
		b.Depth = max(b.Depth, e.Depth()+1)
	}
	for _, t := range b.AuthKeys(r.Version) {
		if id, ok := overlay[t]; ok {
			b.AuthEvents = append(b.AuthEvents, id)
		} else if st, ok := r.current[t]; ok {
			b.AuthEvents = append(b.AuthEvents, st.id)
		}
	}
	return b.Build(r.Version, b.Sender.Server(), r.keys[b.Sender.Server()])
}

// Len is the number of events in the file.
func (r *Room) Len() int { return len(r.at) }

// Last is the newest event in the file.
func (r *Room) Last() *matrix.Event { return r.last }

// Current is the state after the events in the file.
func (r *Room) Current() map[matrix.StateTuple]matrix.EventID {
	all := make(map[matrix.StateTuple]matrix.EventID, len(r.current))
	for t, st := range r.current {
		all[t] = st.id
	}
	return all
}

// read calls fn with events of the file. The slice is good until fn returns.
func (r *Room) read(events []int, fn func(raw []byte) error) error {
	var buf []byte
	for _, n := range events {
		from := int64(0)
		if n > 0 {
			from = r.at[n-1]
		}
		buf = slices.Grow(buf[:0], int(r.at[n]-from))[:r.at[n]-from]
		if _, err := r.file.ReadAt(buf, from); err != nil {
			return err
		}
		if err := fn(buf); err != nil {
			return err
		}
	}
	return nil
}

// parts are the events of the state, and those that are in its auth chain only: all others, as there are none but state events.
func (r *Room) parts() (state, chain []int) {
	inState := make([]bool, len(r.at))
	for _, st := range r.current {
		inState[st.n] = true
	}
	for n, in := range inState {
		if in {
			state = append(state, n)
		} else {
			chain = append(chain, n)
		}
	}
	// No server answers in the order of the graph.
	mix := rand.New(rand.NewPCG(r.size.Seed, 2))
	mix.Shuffle(len(state), func(i, j int) { state[i], state[j] = state[j], state[i] })
	return state, chain
}

// Answer gives the events that a server that is in the room answers to send_join, those of the state first.
func (r *Room) Answer(events func(inState bool, raw json.RawMessage) error) error {
	state, chain := r.parts()
	if err := r.read(state, func(raw []byte) error { return events(true, raw) }); err != nil {
		return err
	}
	return r.read(chain, func(raw []byte) error { return events(false, raw) })
}

// MakeJoin is the template of a join of user after the events in the file.
func (r *Room) MakeJoin(user matrix.UserID) (json.RawMessage, error) {
	key := string(user)
	b := matrix.Builder{RoomID: r.ID, Sender: user, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`),
		PrevEvents: []matrix.EventID{r.last.ID()}, Depth: r.last.Depth() + 1, Time: r.now}
	for _, t := range b.AuthKeys(r.Version) {
		if st, ok := r.current[t]; ok {
			b.AuthEvents = append(b.AuthEvents, st.id)
		}
	}
	return b.Template(r.Version)
}
