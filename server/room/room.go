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
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

var errNotYet = errors.New("room: not implemented yet")

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
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{DefaultVersion: "11", LoadedRooms: 2000, Window: 64, MaxInvites: 100}
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
	Log           *slog.Logger     // nil: slog.Default()
	Now           func() time.Time // nil: time.Now
}

// Profile is what a member event says of its user. Empty fields are left out.
type Profile struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// Service is the rooms of this server. Safe for concurrent use.
type Service struct {
	o Options
}

// New builds the rooms.
func New(o Options) *Service { return &Service{o: o} }

// Close waits for work in the background.
func (s *Service) Close() error { return nil }

// ---- rooms in memory

// Room is a room that this server knows, in memory.
type Room struct {
	ID      matrix.RoomID
	Version *matrix.RoomVersion
	Num     int64 // the number of the room's row
}

// Room gives a room that this server knows, loading it if need be. A room that it only has an invite to is known, too:
// Snapshot().Joined() tells. Errors: M_NOT_FOUND.
func (s *Service) Room(ctx context.Context, id matrix.RoomID) (*Room, error) { return nil, errNotYet }

// Snapshot is the room as of the newest commit. Never nil; it costs nothing.
func (r *Room) Snapshot() *Snapshot { return nil }

// Snapshot is a room at one stream position. It is immutable.
type Snapshot struct {
	// Pos is the stream position of the newest event of the timeline.
	Pos int64
	// Root is the current state.
	Root storage.StateRoot
	// Tip are the forward extremities; empty if we only know of the room.
	Tip []*storage.Event
	// Depth is the greatest depth in the tip.
	Depth int64

	// Decoded from the current state:

	Create            *storage.Event // nil if we only know of the room
	Power             *matrix.PowerLevels
	JoinRule          string // matrix.JoinRuleInvite if there is none
	HistoryVisibility string // "shared" if there is none
	GuestAccess       bool
	Encrypted         bool
	RoomType          string // "m.space", or "" for an ordinary room
	ACL               *ACL   // nil: all servers may take part

	// Local are the joined users of this server, with their member events. It must not be written to.
	Local map[matrix.UserID]*storage.Event
	// Servers counts the joined users of each server. It must not be written to.
	Servers map[matrix.ServerName]int
	// Joined and Invited count members.
	JoinedCount, InvitedCount int
}

// Joined reports whether this server takes part in the room, that is whether one of its users is joined.
func (s *Snapshot) Joined() bool { return len(s.Local) > 0 }

// ---- for syncer and federation: positions, states, windows

// RoomsOf lists the rooms that a user of this server has a membership in, forgotten ones included, from memory. The slice
// must not be written to.
func (s *Service) RoomsOf(ctx context.Context, user matrix.UserID) ([]storage.Membership, error) {
	return nil, errNotYet
}

// Membership is how a user stands to a room: "join" and so on, "leave" for who has never been there.
func (s *Service) Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (storage.Membership, error) {
	return storage.Membership{}, errNotYet
}

// SharedRooms lists the rooms in which both are joined, of whom one is a user of this server.
func (s *Service) SharedRooms(ctx context.Context, a, b matrix.UserID) ([]matrix.RoomID, error) {
	return nil, errNotYet
}

// SharesRoom lists those who are joined to a room in which user is joined, user included: users of this server only, if localOnly.
func (s *Service) SharesRoom(ctx context.Context, user matrix.UserID, localOnly bool) (map[matrix.UserID]bool, error) {
	return nil, errNotYet
}

// Timeline is a stretch of a room's timeline, in stream order.
type Timeline struct {
	Events []*storage.Event
	// Limited is set when there are more events between the positions asked for than were returned; the oldest are left out.
	Limited bool
}

// Timeline gives the newest events of a room with from < position <= to, at most limit, oldest first. What is recent comes from
// memory. It does not look at visibility: see [Service.VisibleTo].
func (s *Service) Timeline(ctx context.Context, room matrix.RoomID, from, to int64, limit int) (Timeline, error) {
	return Timeline{}, errNotYet
}

// RootAt is the room's current state as it was at a stream position; the zero root if the room was not there then.
func (s *Service) RootAt(ctx context.Context, room matrix.RoomID, pos int64) (storage.StateRoot, error) {
	return storage.StateRoot{}, errNotYet
}

// RootAfter is the state after an event: the state before it with the event itself.
func (s *Service) RootAfter(ctx context.Context, e *storage.Event) (storage.StateRoot, error) {
	return storage.StateRoot{}, errNotYet
}

// StateEvents lists a part of a state. The order means nothing.
func (s *Service) StateEvents(ctx context.Context, room matrix.RoomID, root storage.StateRoot, part storage.StatePart) ([]*storage.Event, error) {
	return nil, errNotYet
}

// StateAt looks up one event of a state; nil if there is none.
func (s *Service) StateAt(ctx context.Context, room matrix.RoomID, root storage.StateRoot, typ, stateKey string) (*storage.Event, error) {
	return nil, errNotYet
}

// StateDelta lists the events of state to that state from lacks. It reads only what differs.
func (s *Service) StateDelta(ctx context.Context, room matrix.RoomID, from, to storage.StateRoot) ([]*storage.Event, error) {
	return nil, errNotYet
}

// PrevToken is the token for GET /messages that goes on backwards from just before e.
func PrevToken(e *storage.Event) string { return "" }

// VisibleTo picks the events that user may see by the room's history visibility, in their order. Events of one room only.
// Spec v1.19 client-server-api/#room-history-visibility
func (s *Service) VisibleTo(ctx context.Context, user matrix.UserID, events []*storage.Event) ([]*storage.Event, error) {
	return nil, errNotYet
}

// Reader is for whom an event is written.
type Reader struct {
	User   matrix.UserID
	Device matrix.DeviceID // transaction IDs go to the device that sent the event
	// OmitRoomID leaves out room_id, as in /sync.
	OmitRoomID bool
	Fields     *matrix.EventFields
}

// AppendClient appends the event as the reader gets it, with unsigned: age, transaction ID, previous content, the redaction,
// and the bundled aggregations.
func (s *Service) AppendClient(ctx context.Context, dst []byte, e *storage.Event, r Reader) ([]byte, error) {
	return dst, errNotYet
}

// ---- for federation, inbound

// EventForServer gives an event that server may see: it has a user in the room, or had one when the event was sent, or the
// history is world-readable; else M_NOT_FOUND or M_FORBIDDEN. The event is redacted if the server may only know that it was there.
func (s *Service) EventForServer(ctx context.Context, server matrix.ServerName, id matrix.EventID) (*storage.Event, error) {
	return nil, errNotYet
}

// VisibleToServer gives, for each event of one room, whether server may see its content. Spec v1.19 server-server-api/#backfilling
func (s *Service) VisibleToServer(ctx context.Context, server matrix.ServerName, events []*storage.Event) ([]bool, error) {
	return nil, errNotYet
}

// CheckServer returns nil if server has a user in the room and its ACL allows it. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) CheckServer(ctx context.Context, room matrix.RoomID, server matrix.ServerName) error {
	return errNotYet
}

// EventByID finds an event; M_NOT_FOUND if it is not here.
func (s *Service) EventByID(ctx context.Context, id matrix.EventID) (*storage.Event, error) {
	return nil, errNotYet
}

// EventsByID finds events; those that are not here are left out.
func (s *Service) EventsByID(ctx context.Context, ids []matrix.EventID) ([]*storage.Event, error) {
	return nil, errNotYet
}

// AuthChain lists the auth chains of events, the events themselves left out, without duplicates.
func (s *Service) AuthChain(ctx context.Context, events []*storage.Event) ([]*storage.Event, error) {
	return nil, errNotYet
}

// StateIDsAt answers GET /federation/v1/state_ids: the state before an event and its auth chain.
func (s *Service) StateIDsAt(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (StateIDsResponse, error) {
	return StateIDsResponse{}, errNotYet
}

// StateAtEvent answers GET /federation/v1/state.
func (s *Service) StateAtEvent(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) (StateResponse, error) {
	return StateResponse{}, errNotYet
}

// EventAuthChain answers GET /federation/v1/event_auth.
func (s *Service) EventAuthChain(ctx context.Context, server matrix.ServerName, room matrix.RoomID, event matrix.EventID) ([]json.RawMessage, error) {
	return nil, errNotYet
}
