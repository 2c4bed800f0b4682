// Package keys keeps what end-to-end encryption needs of a server: device keys, one-time and fallback keys,
// cross-signing keys and their signatures, the backup of room keys, who changed devices when, and the messages from
// device to device. It never sees plain text.
//
// Everything lies in storage/keys*.go. Signatures that users make on keys lie apart from the keys, because who asks for
// a key decides which of them are shown. Of other servers' users the device list is kept as long as they share a room
// with somebody here, for only then their server tells us of changes.
package keys

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Config limits what devices may store.
type Config struct {
	// MaxOneTimeKeys per device; more are passed over.
	MaxOneTimeKeys int `mapstructure:"max_one_time_keys" yaml:"max_one_time_keys"`
	// MaxToDeviceBytes limits the content of one to-device message, in bytes of JSON.
	MaxToDeviceBytes int `mapstructure:"max_to_device_bytes" yaml:"max_to_device_bytes"`
	// MaxInbox is how many to-device messages may wait for one device; the oldest are dropped beyond.
	MaxInbox int `mapstructure:"max_inbox" yaml:"max_inbox"`
	// RemoteTimeout bounds one query of another server when the client names no timeout.
	RemoteTimeout time.Duration `mapstructure:"remote_timeout" yaml:"remote_timeout"`
}

// DefaultConfig is what holds where the file says nothing.
func DefaultConfig() Config {
	return Config{MaxOneTimeKeys: 1000, MaxToDeviceBytes: 64 * 1024, MaxInbox: 50000, RemoteTimeout: 10 * time.Second}
}

// Remote asks other servers about their users' keys. Errors are whatever the network says.
type Remote interface {
	// QueryKeys is POST /_matrix/federation/v1/user/keys/query.
	QueryKeys(ctx context.Context, server matrix.ServerName, devices map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error)
	// ClaimKeys is POST /_matrix/federation/v1/user/keys/claim.
	ClaimKeys(ctx context.Context, server matrix.ServerName, want Claim) (*ClaimResult, error)
	// UserDevices is GET /_matrix/federation/v1/user/devices/{userId}.
	UserDevices(ctx context.Context, server matrix.ServerName, user matrix.UserID) (*UserDevices, error)
}

// Options are what New needs.
type Options struct {
	Config     Config
	ServerName matrix.ServerName
	DB         *storage.DB
	Remote     Remote           // nil: no other servers
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default()
}

// Keys is the room. Safe for concurrent use.
type Keys struct {
	cfg    Config
	server matrix.ServerName
	db     *storage.DB
	remote Remote
	now    func() time.Time
	log    *slog.Logger
	stop   func()

	emptyInbox *storage.Memo[deviceKey, struct{}] // devices for which nothing waits
	counts     *storage.Memo[deviceKey, keyCounts]
	left       atomic.Bool   // somebody left a room since Run looked
	wake       chan struct{} // there is work for Run

	mu     sync.Mutex // guards joined; held for a moment only
	joined []join     // users of ours who joined a room since Run looked
}

// join is a user who has entered a room.
type join struct {
	user matrix.UserID
	room matrix.RoomID
}

// maxJoined bounds what is kept for Run: those beyond are not announced, and servers ask when they need to know.
const maxJoined = 10000

type deviceKey struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// keptDevices is how many devices' small properties are kept in memory.
const keptDevices = 50000

// New builds the room; nothing runs before Run. Close is for those whose database lives on.
func New(o Options) *Keys {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &Keys{
		cfg: o.Config, server: o.ServerName, db: o.DB, remote: o.Remote, now: o.Now, log: o.Log,
		emptyInbox: storage.NewMemo[deviceKey, struct{}](keptDevices),
		counts:     storage.NewMemo[deviceKey, keyCounts](keptDevices),
		wake:       make(chan struct{}, 1),
	}
	k.stop = o.DB.Listen(k.hear)
	return k
}

// Close stops listening to the database.
func (k *Keys) Close() { k.stop() }

// hear drops from memory what a commit changed.
func (k *Keys) hear(c storage.Commit) {
	for i := range c.Changes {
		change := &c.Changes[i]
		if change.Foreign {
			k.emptyInbox.Clear()
			k.counts.Clear()
		}
		for _, w := range change.Wakes {
			switch w.Topic {
			case storage.TopicToDevice:
				k.emptyInbox.Drop(deviceKey{w.User, w.Device})
			case storage.TopicDeviceKeys:
				k.counts.Drop(deviceKey{w.User, w.Device})
			case storage.TopicPartial: // some of those who might have been in a room are not
				k.left.Store(true)
				k.rouse()
			}
		}
		for j := range change.Events {
			if e := &change.Events[j]; e.Event.Type() == "m.room.member" {
				k.hearMember(e)
			}
		}
	}
}

func (k *Keys) hearMember(e *storage.CommittedEvent) {
	if e.Event.Membership() != "join" {
		k.left.Store(true)
		k.rouse()
		return
	}
	key, _ := e.Event.StateKey()
	user := matrix.UserID(key)
	if user.Server() != k.server || k.remote == nil {
		return
	}
	var was struct {
		Unsigned struct {
			Content struct {
				Membership string `json:"membership"`
			} `json:"prev_content"`
		} `json:"unsigned"`
	}
	_ = json.Unmarshal(e.Client, &was) // odd content counts as a join
	if was.Unsigned.Content.Membership == "join" {
		return // another display name
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.joined) < maxJoined {
		k.joined = append(k.joined, join{user, e.Room})
		k.rouse()
	}
}

func (k *Keys) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Changed returns whose devices or cross-signing keys reader sees changed after position from, up to and including
// to. The syncer keeps those that share an encrypted room with the reader, and computes who left.
func (k *Keys) Changed(ctx context.Context, reader matrix.UserID, from, to int64) ([]matrix.UserID, error) {
	return k.db.DeviceListChanges(ctx, reader, from, to)
}

// object is a JSON object taken apart.
type object = map[string]json.RawMessage

// canonicalObject takes foreign JSON apart and also returns it in canonical form.
func canonicalObject(what string, raw json.RawMessage) (object, json.RawMessage, error) {
	canonical, err := matrix.CanonicalJSONLoose(nil, raw)
	if err != nil {
		return nil, nil, matrix.BadJSON("%s is not valid JSON", what)
	}
	var o object
	if err := json.Unmarshal(canonical, &o); err != nil || o == nil {
		return nil, nil, matrix.BadJSON("%s must be an object", what)
	}
	return o, canonical, nil
}
