// Package syncer tells clients what they have not seen yet: /sync, and what lives only there: typing, receipts, read
// markers and presence.
//
// A waiting /sync costs no query. The bell (see storage) hands over committed events already encoded; the syncer keeps,
// for users whose clients are connected, which rooms they are in and what changed where at which position, and a window
// of recent events for each of those rooms. What memory does not reach back to is read from the database. Nothing in
// memory is the only copy of anything, but for typing and presence, which are not kept over a restart.
package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

var errNotYet = errors.New("not implemented yet")

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
	// PresenceInterval is how long presence changes are gathered before waiting clients are told; it grows with their
	// number.
	PresenceInterval time.Duration `mapstructure:"presence_interval" yaml:"presence_interval"`
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
		MaxTyping:        2 * time.Minute,
		ForgetUsers:      30 * time.Minute,
	}
}

// Options are what New needs.
type Options struct {
	Config     Config
	ServerName matrix.ServerName
	DB         *storage.DB
	// OnEDU is told of typing, receipts and presence of users of this server, for other servers. It must not block; it
	// may call nothing of this package. nil: nobody is told.
	OnEDU func(EDU)
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: slog.Default()
}

// Service is the room. Safe for concurrent use.
type Service struct{ o Options }

// New builds the room and begins to listen to the bell; Close ends that. Timeouts pass only while Run runs.
func New(o Options) *Service { return &Service{o: o} }

// Run lets typing end and presence become idle or offline, drops what is no longer needed from memory, and ends with ctx.
func (s *Service) Run(ctx context.Context) error { return errNotYet }

// Close wakes everybody who waits and stops listening.
func (s *Service) Close() error { return nil }

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

// Sync answers GET /sync: the JSON of the whole answer, which the caller must not change. It waits at most the
// request's timeout, until ctx ends or the service closes.
// Errors: M_INVALID_PARAM (since, filter), M_NOT_FOUND (filter), M_BAD_JSON (filter).
// Spec v1.19 client-server-api/#get_matrixclientv3sync
func (s *Service) Sync(ctx context.Context, r Request) ([]byte, error) { return nil, errNotYet }

// ---- typing

// SetTyping says that user types in room, for at most timeout, or no longer. 0 means 30 s.
// Error: M_FORBIDDEN (not joined).
func (s *Service) SetTyping(ctx context.Context, user matrix.UserID, room matrix.RoomID, typing bool, timeout time.Duration) error {
	return errNotYet
}

// ReceiveTyping takes an m.typing EDU: {"room_id", "user_id", "typing"}. What is not origin's to say is passed over.
func (s *Service) ReceiveTyping(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}

// ---- receipts

// SetReceipt is POST /rooms/{room}/receipt/{type}/{event}. typ is m.read, m.read.private or m.fully_read; thread is nil
// for an unthreaded receipt. A receipt never goes back in the room's history: an older one changes nothing.
// Errors: M_INVALID_PARAM (type, thread), M_FORBIDDEN (not joined), M_NOT_FOUND (event).
func (s *Service) SetReceipt(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, event matrix.EventID, thread *string) error {
	return errNotYet
}

// ReadMarkers is the body of POST /rooms/{room}/read_markers. Empty ones are left as they are.
type ReadMarkers struct {
	FullyRead   matrix.EventID `json:"m.fully_read"`
	Read        matrix.EventID `json:"m.read"`
	ReadPrivate matrix.EventID `json:"m.read.private"`
}

// SetReadMarkers moves the markers given. Errors as SetReceipt.
func (s *Service) SetReadMarkers(ctx context.Context, user matrix.UserID, room matrix.RoomID, m ReadMarkers) error {
	return errNotYet
}

// ReceiveReceipts takes an m.receipt EDU. What is not origin's to say is passed over.
func (s *Service) ReceiveReceipts(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}

// ---- presence

// Presence is what is known of somebody.
type Presence struct {
	Presence        string  `json:"presence"` // online, unavailable or offline
	StatusMsg       *string `json:"status_msg,omitempty"`
	LastActiveAgo   *int64  `json:"last_active_ago,omitempty"` // ms
	CurrentlyActive *bool   `json:"currently_active,omitempty"`
}

// SetPresence is PUT /presence/{user}/status. statusMsg nil removes the message. Error: M_INVALID_PARAM.
func (s *Service) SetPresence(ctx context.Context, user matrix.UserID, device matrix.DeviceID, presence string, statusMsg *string) error {
	return errNotYet
}

// PresenceOf is GET /presence/{user}/status. Error: M_FORBIDDEN if viewer shares no room with the user.
func (s *Service) PresenceOf(ctx context.Context, viewer, user matrix.UserID) (Presence, error) {
	return Presence{}, errNotYet
}

// ReceivePresence takes an m.presence EDU. What is not origin's to say is passed over.
func (s *Service) ReceivePresence(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}

// DeviceListChanges answers GET /keys/changes: who changed devices, or came to share an encrypted room, between two
// sync tokens, and with whom none is shared any more. Error: M_INVALID_PARAM.
func (s *Service) DeviceListChanges(ctx context.Context, user matrix.UserID, from, to string) (changed, left []matrix.UserID, err error) {
	return nil, nil, errNotYet
}

// UnreadRooms is how many rooms hold unread notifications of the user, as pushers put it on the app's badge.
func (s *Service) UnreadRooms(ctx context.Context, user matrix.UserID) (int, error) {
	return 0, errNotYet
}
