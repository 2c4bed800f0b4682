// Package room is the heart: rooms as graphs of events. It sends, takes in, stores, authorizes and reads events, and keeps
// the state of each room.
//
// # Rooms in memory
//
// A [Room] in use is kept in memory as an immutable [Snapshot] that is replaced after each commit, before the bell rings: whoever
// is woken by the bell finds the snapshot new. A Service holds a bounded number of rooms.
//
// # The way in
//
// Every event enters the graph through [Service.update]: whoever wants to add events to a room hands in a function; one goroutine
// per room at a time runs all functions that wait on a staged copy of the room, each building on what the one before it
// left, and writes what they added in one write (see append.go). The write compares and swaps the room's sequence number, so that
// processes that share a database cannot both extend the same tip; the loser loads the room anew and runs its functions again.
//
// # What a state is
//
// A state is named by a [storage.StateRoot]; equal states have equal roots. Every event but outliers has the root of the state
// before it, and the room has a current state at every stream position ([Service.RootAt]).
package room

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Config are the operator's choices about rooms.
type Config struct {
	// DefaultVersion is the version of new rooms for which none is asked for.
	DefaultVersion string `mapstructure:"default_version" yaml:"default_version"`
	// LoadedRooms is the most rooms kept in memory.
	LoadedRooms int `mapstructure:"loaded_rooms" yaml:"loaded_rooms"`
	// Window is how many recent events of a room are kept in memory.
	Window int `mapstructure:"window" yaml:"window"`
	// MaxInvites is the most users that may be invited as a room is created.
	MaxInvites int `mapstructure:"max_invites" yaml:"max_invites"`
	// Search keeps an index of the words of messages that are not encrypted, for POST /search: about 150 bytes of disk a message and a
	// few hundredths of a millisecond. Without it there is no search; if it is turned on later, the index is made in the background.
	Search bool `mapstructure:"search" yaml:"search"`
	// PartialJoins has rooms on other servers joined without waiting for all of their members, which are fetched in the background.
	PartialJoins bool `mapstructure:"partial_joins" yaml:"partial_joins"`
	// FindColleagues lets the user directory find everyone who has an account here. Turn it off where strangers can make accounts:
	// only people with a room in common, or in a public room, are found then.
	FindColleagues bool `mapstructure:"find_colleagues" yaml:"find_colleagues"`
	// Retention is how long messages live.
	Retention RetentionConfig `mapstructure:"retention" yaml:"retention"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{DefaultVersion: "11", LoadedRooms: 2000, Window: 64, MaxInvites: 100, Search: true, PartialJoins: true, FindColleagues: true,
		Retention: RetentionConfig{Enabled: true, Interval: time.Hour}}
}

// Options are what New needs.
type Options struct {
	Config     Config
	ServerName matrix.ServerName
	DB         *storage.DB
	Key        *matrix.SigningKey
	Keys       matrix.KeySource
	// Remote asks other servers; nil if there is no federation.
	Remote Remote
	// Profile gives the name and avatar that go into the member events of a user of this server; nil: none.
	Profile func(ctx context.Context, user matrix.UserID) (Profile, error)
	// UserExists reports whether a user of this server is there to be invited; nil: all are.
	UserExists func(ctx context.Context, user matrix.UserID) (bool, error)
	// InviteAllowed asks whether user, of this server, takes invites of inviter; the error is a *matrix.Error that
	// tells the inviter's side. nil: everyone takes all.
	InviteAllowed func(ctx context.Context, user, inviter matrix.UserID, room matrix.RoomID) error
	// Ignored is whom a user of this server ignores; nil: nobody anybody. The map is not written to.
	Ignored func(ctx context.Context, user matrix.UserID) (map[matrix.UserID]bool, error)
	// AudioUnsigned gives what else goes into unsigned of an audio message when it is read again, as `"key":value`; nil: nothing.
	// It is not asked as an event is committed.
	AudioUnsigned func(ctx context.Context, e *storage.Event) ([]byte, error)
	// SearchTranscripts has searches look into transcripts of voice messages too.
	SearchTranscripts bool
	// DeleteBlobs gives back the space of files that nothing refers to any more; nil: that is done elsewhere in time.
	DeleteBlobs func(ctx context.Context) error
	Log         *slog.Logger     // nil: slog.Default()
	Now         func() time.Time // nil: time.Now
}

// Profile is what a member event says of its user. Empty fields are left out.
type Profile struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// Service is the rooms of this server. Safe for concurrent use.
type Service struct {
	o Options

	mu    sync.Mutex // guards rooms; taken before none
	rooms map[matrix.RoomID]*Room
	clock atomic.Int64 // counts uses of rooms
	epoch atomic.Int64 // raised when a room is dropped from memory

	writeMu sync.Mutex // guards the two below; taken before none
	pending []*pending
	writing bool // somebody will take what is pending

	users    users
	resolved resolved
	chains   rememberedChains
	related  related

	foreign foreign // see foreign.go
	index   indexer // see index.go

	purges     chan struct{} // has something if a purge was asked for
	purgeBatch int           // how many events one step of a purge takes
	// replayBatch is how many events one write of a replay judges again.
	replayBatch int
	atBoundary  func() error // for tests: called between two steps of a purge; may be nil

	stopListening func()
	elsewhere     atomic.Int64 // the stream position at which it was last noticed that another process has written
}

// New builds the rooms.
func New(o Options) *Service {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := DefaultConfig()
	if o.Config.DefaultVersion == "" {
		o.Config.DefaultVersion = d.DefaultVersion
	}
	if o.Config.LoadedRooms <= 0 {
		o.Config.LoadedRooms = d.LoadedRooms
	}
	if o.Config.Window <= 0 {
		o.Config.Window = d.Window
	}
	if o.Config.MaxInvites <= 0 {
		o.Config.MaxInvites = d.MaxInvites
	}
	if o.Config.Retention.Interval <= 0 {
		o.Config.Retention.Interval = d.Retention.Interval
	}
	s := &Service{o: o, rooms: map[matrix.RoomID]*Room{}, purges: make(chan struct{}, 1), purgeBatch: defaultPurgeBatch, replayBatch: defaultReplayBatch}
	s.users.rooms = map[matrix.UserID][]storage.Membership{}
	s.index.wake = make(chan struct{}, 1)
	stopHearing, stopIndexing := o.DB.Listen(s.hear), o.DB.Listen(s.index.hear)
	s.stopListening = func() { stopIndexing(); stopHearing() }
	return s
}

// Close waits for work in the background.
func (s *Service) Close() error {
	s.stopListening()
	s.foreign.partial.close()
	s.foreign.inbound.close()
	return nil
}
