// Package push decides who is notified of what: the push rules of the spec, their evaluation, the counting of unread
// notifications, and delivery to push gateways.
//
// A user's rules lie in the account data m.push_rules as clients see them. When they are read, the rules that every user
// has come from this package and take over from there only whether they are switched on and what they do: so a new
// version brings its rules to everybody. Pushers and what is on its way to gateways lie in storage/push.go.
package push

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Config limits rules and gateways.
type Config struct {
	// MaxRules is how many rules of their own a user may have of each kind.
	MaxRules int `mapstructure:"max_rules" yaml:"max_rules"`
	// MaxPushers is how many pushers a user may have.
	MaxPushers int `mapstructure:"max_pushers" yaml:"max_pushers"`
	// InsecureGateways also allows gateways with http:// URLs, for development.
	InsecureGateways bool `mapstructure:"insecure_gateways" yaml:"insecure_gateways"`
	// Workers is how many gateways are spoken to at the same time.
	Workers int `mapstructure:"workers" yaml:"workers"`
	// GatewayTimeout bounds one request to a gateway.
	GatewayTimeout time.Duration `mapstructure:"gateway_timeout" yaml:"gateway_timeout"`
	// GiveUpAfter is how long a notification is retried.
	GiveUpAfter time.Duration `mapstructure:"give_up_after" yaml:"give_up_after"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{MaxRules: 500, MaxPushers: 50, Workers: 4, GatewayTimeout: 10 * time.Second, GiveUpAfter: 24 * time.Hour}
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
type Push struct {
	cfg    Config
	db     *storage.DB
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	stop   func()
	wake   chan struct{} // there is something to deliver

	defaults *compiledRules // of users who have changed nothing
	compiled *storage.Memo[matrix.UserID, *Compiled]
	pushers  *storage.Memo[matrix.UserID, []storage.Pusher]
	any      *storage.Memo[struct{}, bool] // whether anybody has a pusher
}

// keptUsers is how many users' rules and pushers are kept in memory.
const keptUsers = 20000

// New builds the room; nothing runs before Run. Close is for those whose database lives on.
func New(o Options) *Push {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	p := &Push{
		cfg: o.Config, db: o.DB, client: o.Client, now: o.Now, log: o.Log,
		wake:     make(chan struct{}, 1),
		defaults: compile(defaultRules(anyUser), anyUser),
		compiled: storage.NewMemo[matrix.UserID, *Compiled](keptUsers),
		pushers:  storage.NewMemo[matrix.UserID, []storage.Pusher](keptUsers),
		any:      storage.NewMemo[struct{}, bool](1),
	}
	p.stop = o.DB.Listen(p.hear)
	return p
}

// anyUser stands for the user in the rules that all share.
const anyUser = matrix.UserID("\x00")

// Close stops listening to the database.
func (p *Push) Close() { p.stop() }

// hear drops from memory what a commit changed.
func (p *Push) hear(c storage.Commit) {
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			p.compiled.Clear()
			p.pushers.Clear()
			p.any.Clear()
			p.rouse()
		}
		for _, w := range c.Changes[i].Wakes {
			switch w.Topic {
			case storage.TopicAccountData:
				p.compiled.Drop(w.User)
			case storage.TopicPush:
				p.pushers.Drop(w.User)
				p.any.Drop(struct{}{})
				p.rouse()
			}
		}
	}
}

func (p *Push) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// KnownNone reports whether it is known at this moment, without asking the database, that nobody has a pusher.
func (p *Push) KnownNone() bool {
	any, known := p.any.Kept(struct{}{})
	return known && !any
}

// Compiled returns the user's rules, made ready; from memory when warm.
func (p *Push) Compiled(ctx context.Context, user matrix.UserID) (*Compiled, error) {
	return p.compiled.Load(user, func() (*Compiled, error) {
		stored, err := p.stored(ctx, user)
		if err != nil {
			return nil, err
		}
		if stored == nil {
			return &Compiled{user: user, rules: p.defaults}, nil
		}
		return &Compiled{user: user, rules: compile(merge(stored, user), user)}, nil
	})
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

// rawStrings makes JSON values of literals.
func rawStrings(values ...string) []json.RawMessage {
	raw := make([]json.RawMessage, len(values))
	for i, v := range values {
		raw[i] = json.RawMessage(v)
	}
	return raw
}
