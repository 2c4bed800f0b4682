// Package push decides who is notified of what: the push rules of the spec, their evaluation, the counting of unread
// notifications, and delivery to push gateways.
package push

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

var errNotYet = errors.New("not implemented yet")

// Config limits rules and gateways.
type Config struct {
	// MaxRules is how many rules of their own a user may have.
	MaxRules int `mapstructure:"max_rules" yaml:"max_rules"`
	// MaxPushers is how many pushers a user may have.
	MaxPushers int `mapstructure:"max_pushers" yaml:"max_pushers"`
	// Workers is how many gateways are spoken to at the same time.
	Workers int `mapstructure:"workers" yaml:"workers"`
	// GatewayTimeout bounds one request to a gateway.
	GatewayTimeout time.Duration `mapstructure:"gateway_timeout" yaml:"gateway_timeout"`
	// GiveUpAfter is how long a notification is retried.
	GiveUpAfter time.Duration `mapstructure:"give_up_after" yaml:"give_up_after"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{MaxRules: 1000, MaxPushers: 50, Workers: 4, GatewayTimeout: 10 * time.Second, GiveUpAfter: 24 * time.Hour}
}

// Options are what New needs.
type Options struct {
	Config Config
	DB     *storage.DB
	// Client speaks to gateways and must refuse private addresses. nil: no gateways.
	Client *http.Client
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: slog.Default()
}

// Push is the room. Safe for concurrent use.
type Push struct{ o Options }

// New builds the room; nothing runs before Run.
func New(o Options) *Push { return &Push{o: o} }

// Run delivers queued notifications to gateways and ends with ctx.
func (p *Push) Run(ctx context.Context) error { return errNotYet }

// ---- evaluation

// Event is what the rules see of an event.
type Event struct {
	Type     string
	Sender   matrix.UserID
	RoomID   matrix.RoomID
	StateKey *string // nil: no state event
	Content  json.RawMessage
	Full     json.RawMessage // the event for clients; only rules with unusual keys look at it. May be nil.
}

// Room is what the rules see of the room at the event.
type Room struct {
	Members int // joined
	// SenderMayNotify reports whether the event's sender has the power for notifications of this key ("room").
	SenderMayNotify func(key string) bool
}

// Result is what the rules say about an event for one user.
type Result struct {
	Notify    bool
	Highlight bool
	Sound     string // "" for none
}

// Compiled is one user's rules, made ready. Immutable; made once per user and kept until the rules change.
type Compiled struct{}

// Prepared is one event made ready to be held against many users' rules: its content is parsed at most once.
// Not safe for concurrent use.
type Prepared struct{}

// Prepare makes the event ready.
func Prepare(e Event, r Room) *Prepared { return &Prepared{} }

// Evaluate finds what the rules say. displayName is the user's in the room ("" for none), for old
// contains_display_name rules. The user's own events never notify. About 1 µs, no allocation for ordinary messages.
func (c *Compiled) Evaluate(p *Prepared, displayName string) Result { return Result{} }

// Actions are the actions of the rule that matched, as the gateway and /notifications want them; nil if none matched.
func (c *Compiled) Actions(p *Prepared, displayName string) json.RawMessage { return nil }

// Compiled returns the user's rules, made ready; from memory when warm.
func (p *Push) Compiled(ctx context.Context, user matrix.UserID) (*Compiled, error) {
	return nil, errNotYet
}

// Counts are the unread counts of a room or of one thread in it.
type Counts struct {
	Notifications int
	Highlights    int
}

// Add counts one more event.
func (c *Counts) Add(r Result) {
	if r.Notify {
		c.Notifications++
	}
	if r.Highlight {
		c.Highlights++
	}
}

// ---- rules

// Rules returns the answer to GET /pushrules/: {"global": {...}} with the defaults; it is also the content of
// m.push_rules.
func (p *Push) Rules(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	return nil, errNotYet
}

// KindRules and Rule answer GET /pushrules/global/{kind}[/{ruleId}]. Errors: M_NOT_FOUND, M_INVALID_PARAM (kind).
func (p *Push) KindRules(ctx context.Context, user matrix.UserID, kind string) (json.RawMessage, error) {
	return nil, errNotYet
}

// Rule answers GET /pushrules/global/{kind}/{ruleId}.
func (p *Push) Rule(ctx context.Context, user matrix.UserID, kind, id string) (json.RawMessage, error) {
	return nil, errNotYet
}

// SetRule adds or replaces a rule of the user's own; before and after name rules of the same kind ("" for none).
// Errors: M_INVALID_PARAM (kind, ID with a leading dot or a slash, pattern), M_NOT_FOUND (before, after), M_BAD_JSON.
func (p *Push) SetRule(ctx context.Context, user matrix.UserID, kind, id, before, after string, body json.RawMessage) error {
	return errNotYet
}

// DeleteRule deletes a rule of the user's own. Errors: M_NOT_FOUND, M_INVALID_PARAM (a default rule).
func (p *Push) DeleteRule(ctx context.Context, user matrix.UserID, kind, id string) error {
	return errNotYet
}

// RuleEnabled and RuleActions answer the GETs of /enabled and /actions. Error: M_NOT_FOUND.
func (p *Push) RuleEnabled(ctx context.Context, user matrix.UserID, kind, id string) (bool, error) {
	return false, errNotYet
}

// RuleActions answers GET …/actions.
func (p *Push) RuleActions(ctx context.Context, user matrix.UserID, kind, id string) (json.RawMessage, error) {
	return nil, errNotYet
}

// SetRuleEnabled and SetRuleActions also work on default rules. Errors: M_NOT_FOUND, M_BAD_JSON.
func (p *Push) SetRuleEnabled(ctx context.Context, user matrix.UserID, kind, id string, enabled bool) error {
	return errNotYet
}

// SetRuleActions replaces the actions: a JSON array.
func (p *Push) SetRuleActions(ctx context.Context, user matrix.UserID, kind, id string, actions json.RawMessage) error {
	return errNotYet
}

// CopyRoomRules copies the room rule of a room to the one that replaces it.
func (p *Push) CopyRoomRules(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	return errNotYet
}

// ---- pushers

// Pushers answers GET /pushers: {"pushers": [...]}.
func (p *Push) Pushers(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	return nil, errNotYet
}

// SetPusher is POST /pushers/set. A JSON null kind deletes it.
// Errors: M_MISSING_PARAM, M_INVALID_PARAM (URL not https or not /_matrix/push/v1/notify, lengths), M_BAD_JSON.
func (p *Push) SetPusher(ctx context.Context, user matrix.UserID, device matrix.DeviceID, body json.RawMessage) error {
	return errNotYet
}

// Notification is an event that a user is to be told of.
type Notification struct {
	User         matrix.UserID
	RoomID       matrix.RoomID
	EventID      matrix.EventID
	Event        json.RawMessage // for clients
	Result       Result
	SenderName   string
	RoomName     string
	UnreadRooms  int
	MissedCalls  int
	UserIsTarget bool
}

// Notify queues the notification for every pusher of the user and returns at once. No query for a user without pushers.
func (p *Push) Notify(ctx context.Context, n Notification) error { return errNotYet }

// Read tells the user's pushers that the unread count changed without a new event (a receipt was sent).
func (p *Push) Read(ctx context.Context, user matrix.UserID, unreadRooms int) error { return errNotYet }
