package room

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// world is some servers in one process that ask each other directly. Events travel only when a test says so.
type world struct {
	t       testing.TB
	servers map[matrix.ServerName]*Service
	keys    map[matrix.ServerName]*matrix.SigningKey

	mu    sync.Mutex
	now   time.Time
	asked []string                           // what was asked for: "method to"
	fault map[string]func() error            // by "method to": the error in place of the answer
	tweak map[string]func(answer any) error  // by "method to": changes an answer, to which it gets a pointer
	lie   map[string]func(answer any)        // by "method to": makes the answer, in place of the server
	made  map[matrix.EventID]json.RawMessage // events that every server gives to who asks for them
	// policy is what a policy server answers; nil if there is none.
	policy func(event json.RawMessage) (map[matrix.ServerName]map[matrix.KeyID]string, error)
}

// wholeJoins has members not left out, so that a joined room is whole at once.
func wholeJoins() Config {
	c := DefaultConfig()
	c.PartialJoins = false
	return c
}

var errNoAnswer = errors.New("no answer")

func newWorld(t *testing.T, names ...matrix.ServerName) *world {
	return newWorldOn(t, func() *storage.DB { return worldDB(t) }, names...)
}

func newWorldOn(t *testing.T, open func() *storage.DB, names ...matrix.ServerName) *world {
	w := &world{t: t, servers: map[matrix.ServerName]*Service{}, keys: map[matrix.ServerName]*matrix.SigningKey{},
		now: time.UnixMilli(1_700_000_000_000), fault: map[string]func() error{}, tweak: map[string]func(any) error{}, lie: map[string]func(any){}, made: map[matrix.EventID]json.RawMessage{}}
	for i, name := range names {
		w.addKey(name, byte(i+1))
		s := New(Options{Config: wholeJoins(), ServerName: name, DB: open(), Key: w.keys[name], Keys: w, Remote: &wire{w, name},
			Log: slog.New(slog.DiscardHandler), Now: w.tick})
		w.servers[name] = s
		t.Cleanup(func() { s.foreign.partial.close(); s.foreign.inbound.close() })
	}
	return w
}

// worldDB is an empty database: SQLite, but for the tests that TestServersOnPostgreSQL runs.
func worldDB(t *testing.T) *storage.DB {
	if onPostgreSQL(t) {
		return storagetest.NewPostgreSQL(t)
	}
	return storagetest.New(t)
}

func onPostgreSQL(t *testing.T) bool { return strings.HasPrefix(t.Name(), "TestServersOnPostgreSQL/") }

// TestServersOnPostgreSQL runs on PostgreSQL what servers do with each other: a story of each kind, since a database takes longer to make than most of
// them to be told.
func TestServersOnPostgreSQL(t *testing.T) {
	for name, story := range map[string]func(*testing.T){
		"join": TestJoinThroughAnotherServerGivesTheSameState, "gap": TestAGapIsFilledWithMissingEventsAlone, "long gap": TestAGapTooLongIsBridgedByTheStateAtItsEnd,
		"fork": TestForksConverge, "soft failure": TestAnEventThatOnlyThePastAllowsIsSoftFailed,
		"restart": TestWaitingEventsAreTakenUpAfterARestart, "backfill": TestHistoryIsFetchedWhenItIsRead, "times": TestTimestampToEventAsksOthersAcrossAGap,
		"search": TestBackfilledMessagesAreFoundInTheirPlace, "first timeline": TestHistoryFromBeforeTheFirstTimelineIsFound, "invite": TestInviteReachesTheOtherServerAndLetsItsUserIn,
		"knock":  TestKnockThroughAnotherServer,
		"return": TestAServerThatLeftComesBackToTheNewState, "two joins": TestTwoUsersJoinAnUnknownRoomAtOnce,
		"partial": TestAPartialRoomIsThereAtOnceAndWholeInTheEnd, "partial, killed": TestAPartialRoomGoesOnAfterAKill, "partial, judged again": TestWhatThePartialStateCouldNotTellIsJudgedAgain,
	} {
		t.Run(name, story)
	}
}

func (w *world) addKey(name matrix.ServerName, seed byte) {
	seeds := make([]byte, ed25519.SeedSize)
	seeds[0] = seed
	key, err := matrix.NewSigningKey("ed25519:1", seeds)
	if err != nil {
		w.t.Fatal(err)
	}
	w.keys[name] = key
}

// tick is a clock on which every look takes a millisecond.
func (w *world) tick() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(time.Millisecond)
	return w.now
}

func (w *world) Key(_ context.Context, server matrix.ServerName, id matrix.KeyID, _ time.Time) (*matrix.PublicKey, error) {
	if key := w.keys[server]; key != nil && key.ID == id {
		return key.Public(), nil
	}
	return nil, matrix.NotFound("no such key")
}

// count is how often something was asked for.
func (w *world) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.asked {
		if a == what {
			n++
		}
	}
	return n
}

// wire is what one server sees of the others.
type wire struct {
	w    *world
	from matrix.ServerName
}

// ask has the answering server answer, or the test.
func ask[A any](r *wire, method string, to matrix.ServerName, answer func(*Service) (A, error)) (A, error) {
	what := method + " " + string(to)
	r.w.mu.Lock()
	r.w.asked = append(r.w.asked, what)
	fault, tweak, lie := r.w.fault[what], r.w.tweak[what], r.w.lie[what]
	r.w.mu.Unlock()
	var none A
	if lie != nil {
		lie(&none)
		return none, nil
	}
	if fault != nil {
		if err := fault(); err != nil {
			return none, err
		}
	}
	s := r.w.servers[to]
	if s == nil {
		return none, errNoAnswer
	}
	a, err := answer(s)
	if err == nil && tweak != nil {
		err = tweak(&a)
	}
	return a, err
}

func (r *wire) MakeJoin(ctx context.Context, to matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	return ask(r, "make_join", to, func(s *Service) (MakeResponse, error) { return s.MakeJoin(ctx, r.from, room, user, versions) })
}

func (r *wire) SendJoin(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID, join json.RawMessage, omit bool, events EventSink) (SendJoinResponse, error) {
	answer, err := ask(r, "send_join", to, func(s *Service) (SendJoinResponse, error) { return s.SendJoin(ctx, r.from, room, id, join, omit) })
	return pour(answer, err, events)
}

// pour hands over the events of an answer as a client does.
func pour(answer SendJoinResponse, err error, events EventSink) (SendJoinResponse, error) {
	for _, raw := range answer.State {
		if err == nil {
			err = events(true, raw)
		}
	}
	for _, raw := range answer.AuthChain {
		if err == nil {
			err = events(false, raw)
		}
	}
	answer.State, answer.AuthChain = nil, nil
	return answer, err
}

func (r *wire) MakeLeave(ctx context.Context, to matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MakeResponse, error) {
	return ask(r, "make_leave", to, func(s *Service) (MakeResponse, error) { return s.MakeLeave(ctx, r.from, room, user) })
}

func (r *wire) SendLeave(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID, leave json.RawMessage) error {
	_, err := ask(r, "send_leave", to, func(s *Service) (struct{}, error) { return struct{}{}, s.SendLeave(ctx, r.from, room, id, leave) })
	return err
}

func (r *wire) MakeKnock(ctx context.Context, to matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []string) (MakeResponse, error) {
	return ask(r, "make_knock", to, func(s *Service) (MakeResponse, error) { return s.MakeKnock(ctx, r.from, room, user, versions) })
}

func (r *wire) SendKnock(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID, knock json.RawMessage) ([]json.RawMessage, error) {
	return ask(r, "send_knock", to, func(s *Service) ([]json.RawMessage, error) { return s.SendKnock(ctx, r.from, room, id, knock) })
}

func (r *wire) Invite(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID, invite InviteRequest) (json.RawMessage, error) {
	return ask(r, "invite", to, func(s *Service) (json.RawMessage, error) { return s.ReceiveInvite(ctx, r.from, room, id, invite) })
}

func (r *wire) ExchangeThirdPartyInvite(ctx context.Context, to matrix.ServerName, room matrix.RoomID, member json.RawMessage) error {
	_, err := ask(r, "exchange", to, func(s *Service) (struct{}, error) {
		return struct{}{}, s.ReceiveThirdPartyInvite(ctx, r.from, room, member)
	})
	return err
}

func (r *wire) AskPolicyServer(ctx context.Context, to matrix.ServerName, event json.RawMessage) (map[matrix.ServerName]map[matrix.KeyID]string, error) {
	return ask(r, "policy", to, func(*Service) (map[matrix.ServerName]map[matrix.KeyID]string, error) {
		if r.w.policy == nil {
			return nil, matrix.NotFound("this is no policy server")
		}
		return r.w.policy(event)
	})
}

func (r *wire) Backfill(ctx context.Context, to matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	return ask(r, "backfill", to, func(s *Service) ([]json.RawMessage, error) { return s.ServeBackfill(ctx, r.from, room, from, limit) })
}

func (r *wire) MissingEvents(ctx context.Context, to matrix.ServerName, room matrix.RoomID, q MissingEventsRequest) ([]json.RawMessage, error) {
	return ask(r, "missing", to, func(s *Service) ([]json.RawMessage, error) { return s.ServeMissingEvents(ctx, r.from, room, q) })
}

func (r *wire) Event(ctx context.Context, to matrix.ServerName, id matrix.EventID) (json.RawMessage, error) {
	return ask(r, "event", to, func(s *Service) (json.RawMessage, error) {
		if raw := r.w.made[id]; raw != nil {
			return raw, nil
		}
		e, err := s.EventForServer(ctx, r.from, id)
		if err != nil {
			return nil, err
		}
		return e.JSON(), nil
	})
}

func (r *wire) EventAuth(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([]json.RawMessage, error) {
	return ask(r, "event_auth", to, func(s *Service) ([]json.RawMessage, error) { return s.EventAuthChain(ctx, r.from, room, id) })
}

func (r *wire) State(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID, events EventSink) error {
	answer, err := ask(r, "state", to, func(s *Service) (StateResponse, error) { return s.StateAtEvent(ctx, r.from, room, id) })
	if err != nil {
		return err
	}
	_, err = pour(SendJoinResponse{State: answer.PDUs, AuthChain: answer.AuthChain}, nil, events)
	return err
}

func (r *wire) StateIDs(ctx context.Context, to matrix.ServerName, room matrix.RoomID, id matrix.EventID) (StateIDsResponse, error) {
	return ask(r, "state_ids", to, func(s *Service) (StateIDsResponse, error) { return s.StateIDsAt(ctx, r.from, room, id) })
}

func (r *wire) TimestampToEvent(ctx context.Context, to matrix.ServerName, room matrix.RoomID, ts int64, backwards bool) (TimestampToEventResponse, error) {
	return ask(r, "timestamp", to, func(s *Service) (TimestampToEventResponse, error) {
		return s.ServeTimestampToEvent(ctx, r.from, room, ts, backwards)
	})
}

func (r *wire) ResolveAlias(ctx context.Context, to matrix.ServerName, alias matrix.RoomAlias) (AliasResponse, error) {
	return ask(r, "alias", to, func(s *Service) (AliasResponse, error) { return s.ServeAlias(ctx, alias) })
}

func (r *wire) PublicRooms(ctx context.Context, to matrix.ServerName, q PublicRoomsRequest) (PublicRoomsResponse, error) {
	return ask(r, "rooms", to, func(s *Service) (PublicRoomsResponse, error) { return s.PublicRooms(ctx, q) })
}

func (r *wire) Hierarchy(ctx context.Context, to matrix.ServerName, room matrix.RoomID, suggested bool) (HierarchyResponse, error) {
	return ask(r, "hierarchy", to, func(s *Service) (HierarchyResponse, error) { return s.ServeHierarchy(ctx, r.from, room, suggested) })
}

// at is a server with the test's patience.
type at struct {
	*Service
	t    testing.TB
	w    *world
	name matrix.ServerName
}

func (w *world) at(name matrix.ServerName) *at { return &at{w.servers[name], w.t, w, name} }

func (a *at) user(localpart string) matrix.UserID {
	return matrix.UserID("@" + localpart + ":" + string(a.name))
}

// newRoom makes a room of user, who has all power, with a join rule.
func (a *at) newRoom(user matrix.UserID, version, joinRule string, more ...matrix.Builder) matrix.RoomID {
	a.t.Helper()
	v := matrix.LookupRoomVersion(version)
	empty, key := "", string(user)
	content := fmt.Sprintf(`{"room_version":%q,"creator":%q}`, version, user)
	powers := `{"users":{"` + key + `":100},"invite":0}`
	if v.PrivilegedCreators {
		powers = `{"invite":0}`
	}
	create := &matrix.Builder{RoomID: matrix.RoomID("!r" + fmt.Sprint(a.Service.o.Now().UnixMilli()) + ":" + string(a.name)), Sender: user, Type: matrix.TypeCreate, StateKey: &empty,
		Content: json.RawMessage(content), Time: a.o.Now(), Depth: 1}
	if v.RoomIDIsCreateID {
		create.RoomID = ""
	}
	first, err := create.Build(v, a.name, a.o.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	room := first.RoomID()
	err = a.updateNew(context.Background(), room, v, func(u *update) error {
		if _, err := u.append(entry{event: first}); err != nil {
			return err
		}
		for _, b := range append([]matrix.Builder{
			{Sender: user, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`)},
			{Sender: user, Type: matrix.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(powers)},
			{Sender: user, Type: matrix.TypeJoinRules, StateKey: &empty, Content: json.RawMessage(`{"join_rule":"` + joinRule + `"}`)},
		}, more...) {
			if _, err := u.post(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return room
}

// post builds, authorizes and appends an event.
func (u *update) post(b matrix.Builder) (*storage.Event, error) {
	e, err := u.build(&b)
	if err != nil {
		return nil, err
	}
	if err := u.allow(e); err != nil {
		return nil, fmt.Errorf("%s: %w", b.Type, err)
	}
	return u.append(entry{event: e, before: u.snap.Root})
}

// say sends a message, set a state event.
func (a *at) say(room matrix.RoomID, user matrix.UserID, body string) *storage.Event {
	a.t.Helper()
	return a.post(room, matrix.Builder{Sender: user, Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"` + body + `","msgtype":"m.text"}`)})
}

func (a *at) set(room matrix.RoomID, user matrix.UserID, typ, key, content string) *storage.Event {
	a.t.Helper()
	return a.post(room, matrix.Builder{Sender: user, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
}

func (a *at) post(room matrix.RoomID, b matrix.Builder) *storage.Event {
	a.t.Helper()
	var e *storage.Event
	err := a.update(context.Background(), room, func(u *update) (err error) {
		e, err = u.post(b)
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return e
}

// forge makes an event that may break any rule, signed by its sender's server. It is of after, by its state, if fields are not set.
func (a *at) forge(after *storage.Event, b matrix.Builder) *matrix.Event {
	a.t.Helper()
	r, err := a.Room(context.Background(), after.RoomID())
	if err != nil {
		a.t.Fatal(err)
	}
	root, err := a.RootAfter(context.Background(), after)
	if err != nil {
		a.t.Fatal(err)
	}
	b.RoomID = after.RoomID()
	if b.Time.IsZero() {
		b.Time = a.o.Now()
	}
	if b.PrevEvents == nil {
		b.PrevEvents = []matrix.EventID{after.ID()}
	}
	if b.Depth == 0 {
		b.Depth = after.Depth() + 1
	}
	if b.AuthEvents == nil {
		for _, key := range b.AuthKeys(r.Version) {
			if e, err := a.StateAt(context.Background(), r.ID, root, key.Type, key.StateKey); err != nil {
				a.t.Fatal(err)
			} else if e != nil {
				b.AuthEvents = append(b.AuthEvents, e.ID())
			}
		}
	}
	e, err := b.Build(r.Version, b.Sender.Server(), a.w.keys[b.Sender.Server()])
	if err != nil {
		a.t.Fatal(err)
	}
	return e
}

// join joins a user through another server.
func (a *at) join(room matrix.RoomID, user matrix.UserID, via ...matrix.ServerName) {
	a.t.Helper()
	if err := a.joinThrough(context.Background(), JoinRequest{Room: room, User: user, Via: via}, json.RawMessage(`{"membership":"join"}`), false); err != nil {
		a.t.Fatal(err)
	}
}

// get sends events from one server to another as a transaction and waits until none of the room's waits for a gap to be filled any more.
func (a *at) get(from matrix.ServerName, events ...*storage.Event) map[matrix.EventID]error {
	a.t.Helper()
	var raw []json.RawMessage
	for _, e := range events {
		raw = append(raw, e.JSON())
	}
	results := a.Receive(context.Background(), from, raw)
	a.quiet()
	return results
}

func (a *at) getRaw(from matrix.ServerName, events ...*matrix.Event) map[matrix.EventID]error {
	a.t.Helper()
	var stored []*storage.Event
	for _, e := range events {
		stored = append(stored, &storage.Event{Event: e})
	}
	return a.get(from, stored...)
}

// quiet waits for the work on gaps.
func (a *at) quiet() {
	a.foreign.inbound.running.Wait()
}

// snap is the room as this server sees it.
func (a *at) snap(room matrix.RoomID) *Snapshot {
	a.t.Helper()
	r, err := a.Room(context.Background(), room)
	if err != nil {
		a.t.Fatal(err)
	}
	return r.Snapshot()
}

// state is the content of a state event, "" if there is none.
func (a *at) state(room matrix.RoomID, typ, key string) string {
	a.t.Helper()
	e, err := a.StateAt(context.Background(), room, a.snap(room).Root, typ, key)
	if err != nil {
		a.t.Fatal(err)
	}
	if e == nil {
		return ""
	}
	return string(e.Content())
}

// timeline lists the bodies of the messages in the timeline.
func (a *at) timeline(room matrix.RoomID) []string {
	a.t.Helper()
	tl, err := a.Timeline(context.Background(), room, 0, 1<<60, 1000)
	if err != nil {
		a.t.Fatal(err)
	}
	return bodiesOf(tl.Events)
}

func bodiesOf(events []*storage.Event) []string {
	all := []string{}
	for _, e := range events {
		if body := contentString(e, "body", ""); body != "" {
			all = append(all, body)
		}
	}
	return all
}

// entries is a whole state, to compare servers.
func (a *at) wholeState(room matrix.RoomID) []string {
	a.t.Helper()
	events, err := a.StateEvents(context.Background(), room, a.snap(room).Root, storage.AllState)
	if err != nil {
		a.t.Fatal(err)
	}
	var all []string
	for _, e := range events {
		all = append(all, e.Type()+"|"+stateKey(e.Event)+"|"+string(e.ID()))
	}
	slices.Sort(all)
	return all
}

func (a *at) membership(room matrix.RoomID, user matrix.UserID) storage.Membership {
	a.t.Helper()
	m, err := a.Membership(context.Background(), room, user)
	if err != nil {
		a.t.Fatal(err)
	}
	return m
}

// flags are those of a stored event; -1 if it is not here.
func (a *at) flags(id matrix.EventID) storage.EventFlags {
	a.t.Helper()
	e, err := a.o.DB.EventByID(context.Background(), id)
	if errors.Is(err, storage.ErrNotFound) {
		return -1
	} else if err != nil {
		a.t.Fatal(err)
	}
	return e.Flags
}
