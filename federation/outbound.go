package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/storage"
)

const (
	// relayedPDU is the type of outbox rows that hold an event of another server, which we let into a room for it.
	relayedPDU = "parley.relayed_pdu"

	// maxPending is how many events wait in memory for one server; beyond, it catches up from the database.
	maxPending = 200
	// maxEphemeral is how many typing notices, receipts and presence changes wait for one server; the oldest are dropped.
	maxEphemeral = 200
	// catchUpPerRoom is how many events of one room a server is sent that was away: what is older it can ask for.
	catchUpPerRoom = 100
	// maxOutbox is how many rows are kept for a server that does not answer.
	maxOutbox = 20_000
	// lookBack is how far back in the stream a server is caught up of which only the rooms know.
	lookBack = 10_000
	// maxSending bounds the transactions under way to all servers.
	maxSending = 256
	// flushInterval is how often the positions of servers are written down.
	flushInterval = 15 * time.Second
	// idleFlushes: with every so manyth flush also the servers are moved on for which there was nothing.
	idleFlushes = 20
	sendTimeout = time.Minute
	stopGrace   = 3 * time.Second
	// maxTransactionBytes ends a transaction before the limit of what other servers take.
	maxTransactionBytes = 6 << 20
)

// Sender delivers to other servers what happens here: events of our users to the servers in their rooms, straight from
// the bell; to-device messages and device list changes from the outbox; typing, receipts and presence from memory. To
// each server one transaction is under way at a time; what comes meanwhile goes with the next one.
type Sender struct {
	c     *Client
	rooms *room.Service
	db    *storage.DB
	log   *slog.Logger

	inbox  chan struct{} // something is in incoming
	mu     sync.Mutex    // guards incoming, dests and closed; taken before destination.mu
	closed bool
	// incoming is what the bell and SendEDU leave for the router, which looks up who must have it.
	incoming incoming
	dests    map[matrix.ServerName]*destination

	// routed is the stream position up to which the router has handed on what the bell told. Only the router uses it.
	routed  int64
	slots   chan struct{}
	started string // makes transaction IDs differ from those of earlier runs
	counter atomic.Int64
	workers sync.WaitGroup
	ctx     context.Context // of Run; workers live as long
}

type incoming struct {
	position int64 // of the last commit
	events   []storage.CommittedEvent
	edus     []syncer.EDU
	outbox   map[matrix.ServerName]bool
	alive    []matrix.ServerName
}

// NewSender makes a sender. It begins to listen to the bell at once and to deliver with Run.
func NewSender(c *Client, rooms *room.Service) *Sender {
	s := &Sender{c: c, rooms: rooms, db: c.o.DB, log: c.o.Log, inbox: make(chan struct{}, 1), dests: map[matrix.ServerName]*destination{},
		slots: make(chan struct{}, maxSending), started: strconv.FormatInt(c.o.Now().UnixNano(), 36)}
	s.incoming.outbox = map[matrix.ServerName]bool{}
	return s
}

// SendEDU takes typing, a receipt or presence for the servers it concerns. It does not block, and what is not delivered
// soon is forgotten.
func (s *Sender) SendEDU(e syncer.EDU) {
	if e.Type == "m.presence" && !s.c.o.Config.Presence {
		return
	}
	s.mu.Lock()
	if len(s.incoming.edus) < 10*maxEphemeral {
		s.incoming.edus = append(s.incoming.edus, e)
	}
	s.mu.Unlock()
	s.poke()
}

func (s *Sender) poke() {
	select {
	case s.inbox <- struct{}{}:
	default:
	}
}

// hear is called by the bell: it must be quick.
func (s *Sender) hear(commit storage.Commit) {
	found := false
	s.mu.Lock()
	s.incoming.position = commit.Position
	for i := range commit.Changes {
		change := &commit.Changes[i]
		for _, e := range change.Events {
			if !e.OnlyHere && e.Event.Sender().Server() == s.c.o.Server {
				s.incoming.events = append(s.incoming.events, e)
				found = true
			}
		}
		for _, w := range change.Wakes {
			if w.Topic == storage.TopicOutbox {
				s.incoming.outbox[w.Server] = true
				found = true
			}
		}
	}
	s.mu.Unlock()
	if found {
		s.poke()
	}
}

// Run delivers until ctx ends, then writes down how far it came.
func (s *Sender) Run(ctx context.Context) error {
	if !s.c.o.Config.Enabled {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	stop := s.db.Listen(s.hear)
	defer stop()
	s.c.peers.onAlive(func(server matrix.ServerName) {
		s.mu.Lock()
		s.incoming.alive = append(s.incoming.alive, server)
		s.mu.Unlock()
		s.poke()
	})
	if err := s.resume(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("resume sending: %w", err)
	}
	flush, flushes := time.NewTicker(flushInterval), 0
	defer flush.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.closed = true // no worker starts any more
			s.mu.Unlock()
			s.workers.Wait()
			return s.storePositions(context.WithoutCancel(ctx), true)
		case <-s.inbox:
			s.route(ctx)
		case <-flush.C:
			flushes++
			if err := s.storePositions(ctx, flushes%idleFlushes == 0); err != nil && ctx.Err() == nil {
				s.log.Error("store how far servers have been delivered", "err", err)
			}
		}
	}
}

// resume finds out what was left to be delivered when the last run ended.
func (s *Sender) resume(ctx context.Context) error {
	position := s.db.Position()
	s.routed = position
	known, err := s.db.Destinations(ctx)
	if err != nil {
		return err
	}
	for _, k := range known {
		if s.c.o.Config.permits(k.Server) {
			s.dests[k.Server] = &destination{s: s, server: k.Server, pos: k.Pos, stored: k.Pos, behind: k.Pos < position}
		}
	}
	inRooms, err := s.db.JoinedServers(ctx)
	if err != nil {
		return err
	}
	for _, server := range inRooms {
		if server == s.c.o.Server || s.dests[server] != nil || !s.c.o.Config.permits(server) {
			continue
		}
		pos := max(position-lookBack, 0)
		if err := s.db.AddDestination(ctx, server, pos); err != nil {
			return err
		}
		s.dests[server] = &destination{s: s, server: server, pos: pos, stored: pos, behind: true}
	}
	waiting, err := s.db.OutboxServers(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, server := range waiting {
		s.incoming.outbox[server] = true
	}
	s.mu.Unlock()
	for _, d := range s.dests {
		if d.behind {
			d.wake()
		}
	}
	s.poke()
	return nil
}

// route hands what came in to the destinations it is for.
func (s *Sender) route(ctx context.Context) {
	s.mu.Lock()
	in := s.incoming
	s.incoming = incoming{outbox: map[matrix.ServerName]bool{}}
	s.mu.Unlock()
	for i := range in.events {
		s.routeEvent(ctx, &in.events[i])
	}
	s.routed = max(s.routed, in.position)
	for server := range in.outbox {
		if server == "" {
			if err := s.address(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("address EDUs", "err", err)
			}
			continue
		}
		if d := s.destination(ctx, server, s.routed); d != nil {
			d.addOutbox()
		}
	}
	for _, e := range in.edus {
		s.routeEDU(ctx, e)
	}
	for _, server := range in.alive {
		s.mu.Lock()
		d := s.dests[server]
		s.mu.Unlock()
		if d != nil {
			d.wake()
		}
	}
}

// routeEvent finds the servers that must have an event: those with a user in the room, and the one whose user it put out.
// The event by which we came into the room is sent on by who let us in.
func (s *Sender) routeEvent(ctx context.Context, e *storage.CommittedEvent) {
	r, err := s.rooms.Room(ctx, e.Room)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("find whom to send an event", "room", e.Room, "event", e.Event.ID(), "err", err)
		}
		return
	}
	servers := r.Snapshot().Servers
	if e.Handed {
		return
	}
	for server := range servers {
		if d := s.destination(ctx, server, e.Pos-1); d != nil {
			d.addEvent(e)
		}
	}
	if server := putOut(e.Event); server != "" && servers[server] == 0 {
		if d := s.destination(ctx, server, e.Pos-1); d != nil {
			d.addEvent(e)
		}
	}
}

// putOut is the server of a user that the event kicks, bans or whose invite it takes back; it may no longer be in the room.
func putOut(e *matrix.Event) matrix.ServerName {
	target, ok := e.StateKey()
	if !ok || e.Type() != "m.room.member" || e.Membership() != "leave" && e.Membership() != "ban" {
		return ""
	}
	return matrix.UserID(target).Server()
}

// routeEDU sends to servers that are known and well: what is short-lived is not worth more.
func (s *Sender) routeEDU(ctx context.Context, e syncer.EDU) {
	servers, err := s.serversFor(ctx, e)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("find whom to send an EDU", "type", e.Type, "err", err)
		}
		return
	}
	for server := range servers {
		if d := s.destination(ctx, server, s.routed); d != nil {
			d.addEphemeral(e)
		}
	}
}

func (s *Sender) serversFor(ctx context.Context, e syncer.EDU) (map[matrix.ServerName]int, error) {
	if e.Room == "" {
		return s.sharing(ctx, e.User)
	}
	r, err := s.rooms.Room(ctx, e.Room)
	if err != nil {
		return nil, err
	}
	return r.Snapshot().Servers, nil
}

// sharing counts the servers with which a user of ours shares rooms.
func (s *Sender) sharing(ctx context.Context, user matrix.UserID) (map[matrix.ServerName]int, error) {
	rooms, err := s.rooms.RoomsOf(ctx, user)
	if err != nil {
		return nil, err
	}
	servers := map[matrix.ServerName]int{}
	for _, m := range rooms {
		if m.Membership != "join" {
			continue
		}
		r, err := s.rooms.Room(ctx, m.Room)
		if err != nil {
			return nil, err
		}
		for server := range r.Snapshot().Servers {
			servers[server]++
		}
	}
	return servers, nil
}

// address gives the EDUs that are for all who share a room with somebody to the servers that do so now.
func (s *Sender) address(ctx context.Context) error {
	for {
		edus, err := s.db.Outbox(ctx, "", 100)
		if err != nil || len(edus) == 0 {
			return err
		}
		for _, e := range edus {
			sharing, err := s.sharing(ctx, e.User)
			if err != nil {
				return err
			}
			var servers []matrix.ServerName
			for server := range sharing {
				if server != s.c.o.Server && s.c.o.Config.permits(server) {
					servers = append(servers, server)
				}
			}
			if err := s.db.AddressEDU(ctx, e, servers); err != nil {
				return err
			}
		}
	}
}

// destination finds or makes the state of a server; nil for ourselves and for servers we do not talk to. A new one is
// written down, as delivered up to pos, before anything is sent to it.
func (s *Sender) destination(ctx context.Context, server matrix.ServerName, pos int64) *destination {
	if server == s.c.o.Server || !s.c.o.Config.permits(server) {
		return nil
	}
	s.mu.Lock()
	d := s.dests[server]
	s.mu.Unlock()
	if d != nil {
		return d
	}
	if err := s.db.AddDestination(ctx, server, pos); err != nil {
		if ctx.Err() == nil {
			s.log.Error("note a new server", "server", server, "err", err)
		}
	}
	d = &destination{s: s, server: server, pos: pos, stored: pos}
	s.mu.Lock()
	s.dests[server] = d // only the router makes them
	s.mu.Unlock()
	return d
}

// storePositions writes down how far the servers have been delivered, as far as that has changed; with idle, also for
// those for which there was nothing. The router calls it.
func (s *Sender) storePositions(ctx context.Context, idle bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	changed := map[matrix.ServerName]int64{}
	s.mu.Lock()
	if len(s.incoming.events) == 0 {
		s.routed = max(s.routed, s.incoming.position)
	}
	all := make([]*destination, 0, len(s.dests))
	for _, d := range s.dests {
		all = append(all, d)
	}
	s.mu.Unlock()
	for _, d := range all {
		d.mu.Lock()
		if idle && !d.behind && !d.catching && len(d.pending) == 0 {
			d.pos = max(d.pos, s.routed)
		}
		if d.pos > d.stored {
			changed[d.server], d.stored = d.pos, d.pos
		}
		d.mu.Unlock()
	}
	if err := s.db.MoveDestinations(ctx, changed); err != nil && !errors.Is(err, storage.ErrClosed) {
		return err
	}
	return nil
}

// transaction is what is sent at once. If it is not taken, what must not be lost is sent again in another one: events
// and to-device messages have IDs, so they may arrive twice.
type transaction struct {
	body   []byte
	events int     // how many of destination.pending it holds
	upTo   int64   // position of the last event; 0 without any
	outbox []int64 // rows it holds
}

// send delivers one transaction. Spec v1.19 server-server-api/#put_matrixfederationv1sendtxnid
func (s *Sender) send(ctx context.Context, server matrix.ServerName, body []byte) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var answer struct {
		PDUs map[matrix.EventID]struct {
			Error string `json:"error"`
		} `json:"pdus"`
	}
	// One that is under way when we stop is given a little time: broken off, it would be sent twice.
	ctx, cancel := withGrace(ctx, stopGrace)
	defer cancel()
	s.c.metrics.transaction()
	err := s.c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v1+"/send", s.nextID()), body: body, timeout: sendTimeout}, &answer)
	if err != nil {
		return err
	}
	for id, result := range answer.PDUs {
		if result.Error != "" {
			s.log.Warn("another server refused an event", "server", server, "event", id, "reason", result.Error)
		}
	}
	return nil
}

// withGrace is a context that ends a little later than ctx.
func withGrace(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-later.Done():
		}
	})
	return later, func() { stop(); cancel() }
}

// transactionBody writes the JSON of a transaction around events and EDUs that are JSON already.
func (s *Sender) transactionBody(pdus [][]byte, edus []edu) []byte {
	b := append([]byte(`{"edus":[`), eduList(edus)...)
	b = append(b, `],"origin":`...)
	b = matrix.AppendJSONString(b, string(s.c.o.Server))
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, s.c.o.Now().UnixMilli(), 10)
	b = append(b, `,"pdus":[`...)
	for i, p := range pdus {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, p...)
	}
	return append(b, `]}`...)
}

func eduList(edus []edu) (b []byte) {
	for i, e := range edus {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"content":`...)
		b = append(b, e.Content...)
		b = append(b, `,"edu_type":`...)
		b = append(matrix.AppendJSONString(b, e.Type), '}')
	}
	return b
}

func (s *Sender) nextID() string {
	return s.started + "-" + strconv.FormatInt(s.counter.Add(1), 36)
}
