// Package syncer tells clients what they have not seen yet: /sync, and what lives only there: typing, receipts, read
// markers and presence.
//
// A waiting /sync costs no query. The bell (see storage) hands over committed events already encoded; the syncer keeps,
// for users whose clients are connected, which rooms they are in and what changed where at which position, and a window
// of recent events for each of those rooms. What memory does not reach back to is read from the database. Nothing in
// memory is the only copy of anything, but for typing and presence, which are not kept over a restart.
package syncer

import (
	"container/list"
	"context"
	"log/slog"
	"sync"
	"time"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/user"
	"parley.im/parley/storage"
)

// Config limits what a /sync may ask for and says how typing and presence behave.
type Config struct {
	// MaxTimeout is the longest that a /sync waits, whatever the client asks for.
	MaxTimeout time.Duration `mapstructure:"max_timeout" yaml:"max_timeout"`
	// MaxTimeline is the most events of one room in one answer.
	MaxTimeline int `mapstructure:"max_timeline" yaml:"max_timeline"`
	// Presence switches presence on. Off, everybody seems offline and none is sent to or taken from other servers.
	Presence bool `mapstructure:"presence" yaml:"presence"`
	// PresenceIdle is after how long without activity somebody online becomes unavailable.
	PresenceIdle time.Duration `mapstructure:"presence_idle" yaml:"presence_idle"`
	// PresenceOffline is after how long without a /sync somebody becomes offline.
	PresenceOffline time.Duration `mapstructure:"presence_offline" yaml:"presence_offline"`
	// PresenceInterval is how long changes of presence, and receipts in large rooms, are gathered before waiting clients are
	// told; it grows with their number.
	PresenceInterval time.Duration `mapstructure:"presence_interval" yaml:"presence_interval"`
	// PresenceRoom is up to how many people of this server, connected at the same time, a room makes them see each other's
	// presence: what it costs grows with the square.
	PresenceRoom int `mapstructure:"presence_room" yaml:"presence_room"`
	// MaxTyping bounds how long one typing notification lasts.
	MaxTyping time.Duration `mapstructure:"max_typing" yaml:"max_typing"`
	// ForgetUsers is after how long without a /sync what is kept in memory for a user is dropped.
	ForgetUsers time.Duration `mapstructure:"forget_users" yaml:"forget_users"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{
		MaxTimeout:       2 * time.Minute,
		MaxTimeline:      100,
		Presence:         true,
		PresenceIdle:     5 * time.Minute,
		PresenceOffline:  30 * time.Second,
		PresenceInterval: 100 * time.Millisecond,
		PresenceRoom:     200,
		MaxTyping:        2 * time.Minute,
		ForgetUsers:      30 * time.Minute,
	}
}

// Options are what New needs.
type Options struct {
	Config     Config
	ServerName matrix.ServerName
	DB         *storage.DB
	Rooms      *room.Service
	Users      *user.Users
	Keys       *keys.Keys
	Push       *push.Push
	// OnEDU is told of typing, receipts and presence of users of this server, for other servers. It must not block; it
	// may call nothing of this package. nil: nobody is told.
	OnEDU func(EDU)
	// Transcripts: there may be transcripts of voice messages, which clients are told of.
	Transcripts bool
	Now         func() time.Time // nil: time.Now
	Log         *slog.Logger     // nil: slog.Default()
}

// Service is the room. Safe for concurrent use.
type Service struct {
	o   Options
	log *slog.Logger
	now func() time.Time

	// mu guards what follows, and what its types say. It is held for moments only: never while the database, another
	// room of the house or the network is asked. No other lock is taken under it but an unread's.
	mu sync.RWMutex
	// applied is the stream position up to which memory is.
	applied   int64
	heard     int64         // how often the bell has rung, of which memory knows
	appliedCh chan struct{} // closed when heard has moved
	// eph counts changes of typing and presence.
	eph           int64
	users         map[matrix.UserID]*userCache
	rooms         map[matrix.RoomID]*roomCache
	typing        map[matrix.RoomID]*typists
	presence      map[matrix.UserID]*presence
	presenceOrder list.List          // of *presence, the last changed first
	awake         map[*presence]bool // those of our users who are not offline
	presenceNews  []matrix.UserID
	presenceEDUs  []*EDU // made under the lock, to be sent after
	// receiptNews are large rooms with new receipts of which nobody has been told.
	receiptNews map[matrix.RoomID]bool
	// peers remembers of people which rooms they are in; local ones in users are not here.
	peers map[matrix.UserID]peer
	// memberChanges counts member events, to notice one that came while the database was read.
	memberChanges int64

	// queue holds what the bell told until it is applied.
	queue struct {
		sync.Mutex
		items    []queued
		busy     bool // items that were taken from here are being applied
		receipts []storage.Receipt
		rung     int64 // how often the bell has rung
		signal   chan struct{}
	}

	filters  filters
	sliding  connections
	closing  chan struct{}
	closed   sync.Once
	running  sync.WaitGroup
	stopBell func()
}

// New builds the room and begins to listen to the bell; Close ends that. Timeouts pass only while Run runs.
func New(o Options) *Service {
	s := &Service{
		o: o, log: o.Log, now: o.Now,
		appliedCh: make(chan struct{}),
		users:     map[matrix.UserID]*userCache{},
		rooms:     map[matrix.RoomID]*roomCache{},
		typing:    map[matrix.RoomID]*typists{},
		presence:  map[matrix.UserID]*presence{},
		awake:     map[*presence]bool{},

		receiptNews: map[matrix.RoomID]bool{},
		peers:       map[matrix.UserID]peer{},
		closing:     make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.o.OnEDU == nil {
		s.o.OnEDU = func(EDU) {}
	}
	s.eph = s.now().UnixMilli()
	s.queue.signal = make(chan struct{}, 1)
	s.stopBell = o.DB.Listen(s.ring)
	s.applied = o.DB.Position()
	s.running.Add(1)
	go s.listen()
	return s
}

// Run lets typing end and presence become idle or offline, drops what is no longer needed from memory, and ends with ctx.
func (s *Service) Run(ctx context.Context) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	interval := s.o.Config.PresenceInterval
	if interval <= 0 {
		interval = 100 * time.Millisecond
	}
	presence := time.NewTimer(interval)
	defer presence.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.closing:
			return nil
		case <-second.C:
			s.endTyping()
			s.ageing()
		case <-minute.C:
			s.forgetIdle()
			s.ageingElsewhere()
		case <-presence.C:
			woken := s.tellLate(ctx)
			// One telling costs each waiting client an answer: the more there are, the rarer.
			presence.Reset(max(interval, time.Duration(woken)*2*time.Millisecond))
		}
	}
}

// Close wakes everybody who waits and stops listening.
func (s *Service) Close() error {
	s.closed.Do(func() {
		s.stopBell()
		close(s.closing)
	})
	s.running.Wait()
	return nil
}

// Request is one GET /sync.
type Request struct {
	User   matrix.UserID
	Device matrix.DeviceID
	// Since is the next_batch of an earlier answer; "" is an initial sync.
	Since string
	// Filter is the query parameter: the ID of a stored filter, or a filter in JSON. "" wants everything.
	Filter string
	// FullState asks for the whole state of all rooms; the answer is immediate.
	FullState bool
	// SetPresence is "", "online", "unavailable" or "offline".
	SetPresence string
	// Timeout is how long to wait when there is nothing new; 0 does not wait.
	Timeout time.Duration
	// UseStateAfter asks for state_after in place of state (v1.16).
	UseStateAfter bool
	// UnstableStateAfter is the same by its name before it was in the spec: the answer's key is
	// org.matrix.msc4222.state_after.
	UnstableStateAfter bool
}
