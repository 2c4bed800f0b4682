package federation

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/singleflight"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// maxKeyTrust is how long a key is believed whatever its server says. Spec v1.19 rooms/v5/#signing-key-validity-period
	maxKeyTrust = 7 * 24 * time.Hour
	// ownKeysValid is what we promise for our own keys.
	ownKeysValid = 24 * time.Hour
	// A server whose keys could not be had is asked again after a second, and twice as long after each further time. One
	// that answered is not asked again at once, whatever key IDs somebody makes up.
	firstKeyRetry = time.Second
	maxKeyRetry   = time.Hour
	keyPause      = 10 * time.Second
	keyTimeout    = 20 * time.Second
	// maxKeysPerAnswer bounds the keys taken from one answer.
	maxKeysPerAnswer = 64
	maxKeyFetches    = 64
)

// keyring has the signing keys of other servers: in memory, behind it in the database, behind that the servers
// themselves and the notaries that the configuration names.
type keyring struct {
	c       *Client
	flights singleflight.Group
	slots   chan struct{} // bounds the fetches at the same time: anybody can name servers to us

	mu       sync.Mutex // guards byServer and what it holds; not held while reading or fetching
	byServer map[matrix.ServerName]*knownKeys
}

type knownKeys struct {
	byID     map[matrix.KeyID]knownKey
	retryAt  time.Time // no use asking before
	failures int
}

type knownKey struct {
	key        *matrix.PublicKey
	validUntil time.Time // the earlier of what the server said and maxKeyTrust after it said so
	expiredAt  time.Time // zero if it is in use
}

func newKeyring(c *Client) *keyring {
	return &keyring{c: c, slots: make(chan struct{}, maxKeyFetches), byServer: map[matrix.ServerName]*knownKeys{}}
}

// Key implements matrix.KeySource.
func (c *Client) Key(ctx context.Context, server matrix.ServerName, id matrix.KeyID, validAt time.Time) (*matrix.PublicKey, error) {
	return c.keys.Key(ctx, server, id, validAt)
}

// Key finds a key that was valid at validAt, a zero validAt meaning ever.
func (k *keyring) Key(ctx context.Context, server matrix.ServerName, id matrix.KeyID, validAt time.Time) (*matrix.PublicKey, error) {
	if id.Algorithm() != "ed25519" {
		return nil, fmt.Errorf("key %s: unknown algorithm", id)
	}
	if server == k.c.o.Server {
		return k.own(id, validAt)
	}
	known, err := k.load(ctx, server)
	if err != nil {
		return nil, err
	}
	if key := k.valid(known, id, validAt); key != nil {
		return key, nil
	}
	// A key of the past cannot become valid for a time beyond what any answer of now could promise.
	if validAt.After(k.c.o.Now().Add(maxKeyTrust)) {
		return nil, fmt.Errorf("key %s of %s: no key is valid that far in the future", id, server)
	}
	if err := k.refresh(ctx, server, known); err != nil {
		return nil, fmt.Errorf("key %s of %s: %w", id, server, err)
	}
	if key := k.valid(known, id, validAt); key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("key %s of %s: the server has no such key that was valid then", id, server)
}

func (k *keyring) own(id matrix.KeyID, validAt time.Time) (*matrix.PublicKey, error) {
	if id == k.c.o.Key.ID {
		return k.c.o.Key.Public(), nil
	}
	for _, old := range k.c.o.OldKeys {
		if old.ID == id && (validAt.IsZero() || !validAt.After(old.ExpiredAt)) {
			return old.Key, nil
		}
	}
	return nil, fmt.Errorf("this server has no key %s that was valid then", id)
}

func (k *keyring) valid(known *knownKeys, id matrix.KeyID, validAt time.Time) *matrix.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	found, ok := known.byID[id]
	switch {
	case !ok:
		return nil
	case validAt.IsZero():
	case !found.expiredAt.IsZero() && validAt.After(found.expiredAt), found.expiredAt.IsZero() && validAt.After(found.validUntil):
		return nil
	}
	return found.key
}

// load returns the keys that are known of server, from the database when they are asked for first.
func (k *keyring) load(ctx context.Context, server matrix.ServerName) (*knownKeys, error) {
	k.mu.Lock()
	known := k.byServer[server]
	k.mu.Unlock()
	if known != nil {
		return known, nil
	}
	stored, err := k.c.o.DB.ServerKeys(ctx, server)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if known = k.byServer[server]; known != nil {
		return known, nil
	}
	if len(k.byServer) >= maxCachedServers {
		clear(k.byServer)
	}
	known = &knownKeys{byID: map[matrix.KeyID]knownKey{}}
	for _, s := range stored {
		known.put(s)
	}
	k.byServer[server] = known
	return known, nil
}

// put is called with mu held.
func (known *knownKeys) put(s storage.ServerKey) {
	if key, err := matrix.NewPublicKey(s.Key); err == nil {
		known.byID[s.KeyID] = knownKey{key, s.ValidUntil, s.ExpiredAt}
	}
}

// refresh fetches the keys of server, one fetch at a time for all who wait, and not too often.
func (k *keyring) refresh(ctx context.Context, server matrix.ServerName, known *knownKeys) error {
	now := k.c.o.Now()
	k.mu.Lock()
	tooEarly := now.Before(known.retryAt)
	k.mu.Unlock()
	if tooEarly {
		return errors.New("it was asked for its keys a short while ago")
	}
	flight := k.flights.DoChan(string(server), func() (any, error) {
		k.c.wait.Add(1)
		defer k.c.wait.Done()
		ctx, cancel := context.WithTimeout(k.c.ctx, keyTimeout)
		defer cancel()
		select {
		case k.slots <- struct{}{}:
			defer func() { <-k.slots }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		_, err := k.fetch(ctx, server)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			known.failures, known.retryAt = 0, k.c.o.Now().Add(keyPause)
			return nil, nil
		}
		known.failures++
		known.retryAt = k.c.o.Now().Add(min(firstKeyRetry<<min(known.failures-1, 12), maxKeyRetry))
		return nil, err
	})
	select {
	case result := <-flight:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch asks server for its keys, then the notaries, and stores what it learns.
func (k *keyring) fetch(ctx context.Context, server matrix.ServerName) (storage.KeyAnswer, error) {
	var raw jsontext.Value
	err := k.c.call(ctx, request{server: server, method: http.MethodGet, path: "/_matrix/key/v2/server", limit: maxKeyAnswer, timeout: keyTimeout / 2, urgent: true}, &raw)
	if err == nil {
		var answer storage.KeyAnswer
		if answer, err = k.accept(ctx, server, raw); err == nil {
			return answer, nil
		}
	}
	errs := []error{err}
	for _, notary := range k.c.o.Config.Notaries {
		answer, err := k.askNotary(ctx, matrix.ServerName(notary), server)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("notary %s: %w", notary, err))
	}
	return storage.KeyAnswer{}, errors.Join(errs...)
}

// askNotary asks another server for what it knows of server's keys, and believes it if it has signed.
// Spec v1.19 server-server-api/#post_matrixkeyv2query
func (k *keyring) askNotary(ctx context.Context, notary, server matrix.ServerName) (storage.KeyAnswer, error) {
	var none storage.KeyAnswer
	if notary == server || notary == k.c.o.Server {
		return none, errors.New("cannot vouch")
	}
	body, err := encode(map[string]any{"server_keys": map[matrix.ServerName]any{
		server: map[string]any{"": map[string]any{"minimum_valid_until_ts": k.c.o.Now().Add(time.Hour).UnixMilli()}}}})
	if err != nil {
		return none, err
	}
	var answer struct {
		Keys []jsontext.Value `json:"server_keys"`
	}
	if err := k.c.call(ctx, request{server: notary, method: http.MethodPost, path: "/_matrix/key/v2/query", body: body, limit: maxKeyAnswer, timeout: keyTimeout / 2, urgent: true}, &answer); err != nil {
		return none, err
	}
	err = errors.New("it does not know the server")
	for _, raw := range answer.Keys {
		if err = k.vouched(ctx, notary, raw); err != nil {
			continue
		}
		var accepted storage.KeyAnswer
		if accepted, err = k.accept(ctx, server, raw); err == nil {
			return accepted, nil
		}
	}
	return none, err
}

// vouched checks the notary's own signature.
func (k *keyring) vouched(ctx context.Context, notary matrix.ServerName, raw []byte) error {
	err := errors.New("it has not signed its answer")
	for _, id := range matrix.SignatureKeyIDs(raw, string(notary)) {
		var key *matrix.PublicKey
		if key, err = k.Key(ctx, notary, id, k.c.o.Now()); err != nil {
			continue
		}
		if err = matrix.VerifyJSON(raw, string(notary), id, key); err == nil {
			return nil
		}
	}
	return err
}

// serverKeys is the answer of GET /_matrix/key/v2/server.
type serverKeys struct {
	ServerName matrix.ServerName            `json:"server_name"`
	ValidUntil int64                        `json:"valid_until_ts"`
	VerifyKeys map[matrix.KeyID]verifyKey   `json:"verify_keys"`
	OldKeys    map[matrix.KeyID]oldKey      `json:"old_verify_keys"`
	Signatures map[string]map[string]string `json:"signatures,omitempty"`
}

type verifyKey struct {
	Key string `json:"key"`
}

type oldKey struct {
	Key       string `json:"key"`
	ExpiredTS int64  `json:"expired_ts"`
}

// accept checks a server's statement of its keys and stores them. Each key in use must have signed the statement, so
// that nobody passes off another's key as his own.
func (k *keyring) accept(ctx context.Context, server matrix.ServerName, raw []byte) (storage.KeyAnswer, error) {
	now := k.c.o.Now()
	answer := storage.KeyAnswer{JSON: slices.Clone(raw), FetchedAt: now}
	var said serverKeys
	if err := json.Unmarshal(raw, &said); err != nil {
		return answer, err
	}
	if said.ServerName != server {
		return answer, fmt.Errorf("the answer is about %q", said.ServerName)
	}
	if len(said.VerifyKeys)+len(said.OldKeys) > maxKeysPerAnswer {
		return answer, errors.New("too many keys")
	}
	answer.ValidUntil = time.UnixMilli(said.ValidUntil)
	if answer.ValidUntil.Before(now) {
		return answer, errors.New("the answer is no longer valid")
	}
	trusted := answer.ValidUntil
	if latest := now.Add(maxKeyTrust); trusted.After(latest) {
		trusted = latest
	}
	var keys []storage.ServerKey
	for id, old := range said.OldKeys {
		key, err := matrix.ParsePublicKey(old.Key)
		if err != nil || id.Algorithm() != "ed25519" || old.ExpiredTS <= 0 {
			continue
		}
		expired := time.UnixMilli(old.ExpiredTS)
		keys = append(keys, storage.ServerKey{KeyID: id, Key: key.Bytes(), ValidUntil: expired, ExpiredAt: expired})
	}
	signed := 0
	for id, used := range said.VerifyKeys {
		key, err := matrix.ParsePublicKey(used.Key)
		if err != nil || id.Algorithm() != "ed25519" || matrix.VerifyJSON(raw, string(server), id, key) != nil {
			continue
		}
		signed++
		keys = append(keys, storage.ServerKey{KeyID: id, Key: key.Bytes(), ValidUntil: trusted})
	}
	if signed == 0 {
		return answer, errors.New("no key in use has signed the answer")
	}
	if err := k.c.o.DB.StoreServerKeys(ctx, server, keys, answer); err != nil {
		return answer, err
	}
	known, err := k.load(ctx, server)
	if err != nil {
		return answer, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		known.put(key)
	}
	return answer, nil
}

// publish is what we say about our own keys, signed.
// Spec v1.19 server-server-api/#get_matrixkeyv2server
func (k *keyring) publish() ([]byte, error) {
	o := k.c.o
	said := serverKeys{
		ServerName: o.Server,
		ValidUntil: o.Now().Add(ownKeysValid).UnixMilli(),
		VerifyKeys: map[matrix.KeyID]verifyKey{o.Key.ID: {base64.RawStdEncoding.EncodeToString(o.Key.Public().Bytes())}},
		OldKeys:    map[matrix.KeyID]oldKey{},
	}
	for _, old := range o.OldKeys {
		said.OldKeys[old.ID] = oldKey{base64.RawStdEncoding.EncodeToString(old.Key.Bytes()), old.ExpiredAt.UnixMilli()}
	}
	raw, err := encode(said)
	if err != nil {
		return nil, err
	}
	return matrix.SignJSON(raw, o.Server, o.Key)
}

// query is what a notary says about server: its last statement, fetched anew unless it is valid until minimum, with our
// signature added. nil if there is none. It never goes back to the caller's own server for more than a statement.
func (k *keyring) query(ctx context.Context, server matrix.ServerName, minimum time.Time) ([]byte, error) {
	if server == k.c.o.Server {
		return k.publish()
	}
	now := k.c.o.Now()
	if minimum.Before(now) {
		minimum = now
	}
	if latest := now.Add(maxKeyTrust); minimum.After(latest) {
		minimum = latest
	}
	answer, err := k.c.o.DB.KeyAnswer(ctx, server)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	if err != nil || answer.ValidUntil.Before(minimum) {
		known, err := k.load(ctx, server)
		if err != nil {
			return nil, err
		}
		if err := k.refresh(ctx, server, known); err == nil {
			if answer, err = k.c.o.DB.KeyAnswer(ctx, server); err != nil {
				return nil, err
			}
		}
	}
	// What is no longer valid is still of use to those who check old events.
	if len(answer.JSON) == 0 {
		return nil, nil
	}
	return matrix.SignJSON(answer.JSON, k.c.o.Server, k.c.o.Key)
}
