package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of one request.
const (
	maxKeysPerUpload = 1000
	maxUsersPerQuery = 10000
	claimsPerWrite   = 200
	maxParallel      = 32 // servers asked at the same time
	maxTimeout       = 30 * time.Second
)

// Upload is POST /keys/upload; the answer holds the counts of one-time keys by algorithm.
// Errors: M_INVALID_PARAM (someone else's device keys, a one-time key that exists with another value), M_BAD_JSON,
// M_UNKNOWN_TOKEN if the device is gone.
func (k *Keys) Upload(ctx context.Context, user matrix.UserID, device matrix.DeviceID, body json.RawMessage) (map[string]int, error) {
	var r struct {
		DeviceKeys  json.RawMessage `json:"device_keys"`
		OneTimeKeys json.RawMessage `json:"one_time_keys"`
		Fallback    json.RawMessage `json:"fallback_keys"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, matrix.BadJSON("the body must be an object")
	}
	u := storage.KeyUpload{User: user, Device: device, MaxOneTime: k.cfg.MaxOneTimeKeys}
	var err error
	if present(r.DeviceKeys) {
		if u.DeviceKeys, err = checkDeviceKeys(user, device, r.DeviceKeys); err != nil {
			return nil, err
		}
	}
	if u.OneTime, err = oneTimeKeys("one_time_keys", r.OneTimeKeys); err != nil {
		return nil, err
	}
	if u.Fallback, err = oneTimeKeys("fallback_keys", r.Fallback); err != nil {
		return nil, err
	}
	counts, err := k.db.UploadKeys(ctx, u)
	switch {
	case errors.Is(err, storage.ErrKeyExists):
		return nil, matrix.InvalidParam("there is another one-time key with the same ID")
	case errors.Is(err, storage.ErrNotFound):
		return nil, matrix.UnknownToken(false)
	case err != nil:
		return nil, err
	}
	if _, ok := counts["signed_curve25519"]; !ok {
		counts["signed_curve25519"] = 0
	}
	return counts, nil
}

func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// checkDeviceKeys checks the identity keys of a device and returns them in canonical form, with the owner's signatures
// only. Signatures are for clients to verify. Spec v1.19 client-server-api/#device-keys
func checkDeviceKeys(user matrix.UserID, device matrix.DeviceID, raw json.RawMessage) (json.RawMessage, error) {
	o, canonical, err := canonicalObject("device_keys", raw)
	if err != nil {
		return nil, err
	}
	var d struct {
		UserID     *matrix.UserID               `json:"user_id"`
		DeviceID   *matrix.DeviceID             `json:"device_id"`
		Algorithms []string                     `json:"algorithms"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(canonical, &d); err != nil {
		return nil, matrix.BadJSON("device_keys has members of the wrong type")
	}
	if d.UserID == nil || d.DeviceID == nil || d.Algorithms == nil || d.Keys == nil || d.Signatures == nil {
		return nil, matrix.BadJSON("device_keys must have user_id, device_id, algorithms, keys and signatures")
	}
	if *d.UserID != user || *d.DeviceID != device {
		return nil, matrix.InvalidParam("device_keys are of another user or device")
	}
	return ownSignaturesOnly(o, user)
}

// ownSignaturesOnly writes the object in canonical form, without unsigned and without other users' signatures: who may
// see those is decided anew each time.
func ownSignaturesOnly(o object, owner matrix.UserID) (json.RawMessage, error) {
	o = maps.Clone(o)
	delete(o, "unsigned")
	var signatures map[matrix.UserID]json.RawMessage
	if raw, ok := o["signatures"]; ok {
		if err := json.Unmarshal(raw, &signatures); err != nil {
			return nil, matrix.BadJSON("signatures must be an object")
		}
		kept := map[matrix.UserID]json.RawMessage{}
		if own, ok := signatures[owner]; ok {
			kept[owner] = own
		}
		o["signatures"], _ = json.Marshal(kept)
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return matrix.CanonicalJSONLoose(nil, raw)
}

// oneTimeKeys reads {"algorithm:id": key} in the order in which the keys were written.
func oneTimeKeys(what string, raw json.RawMessage) ([]storage.OneTimeKey, error) {
	if !present(raw) {
		return nil, nil
	}
	if _, _, err := canonicalObject(what, raw); err != nil { // no duplicates, no lone surrogates
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return nil, matrix.BadJSON("%s must be an object", what)
	}
	var keys []storage.OneTimeKey
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, matrix.BadJSON("%s is not valid JSON", what)
		}
		id, err := matrix.ParseKeyID(name.(string)) // the names of an object are strings
		if err != nil || bytes.IndexByte([]byte(id), 0) >= 0 {
			return nil, matrix.InvalidParam("%s: a key must be named algorithm:id", what)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, matrix.BadJSON("%s is not valid JSON", what)
		}
		content, err := matrix.CanonicalJSONLoose(nil, value)
		if err != nil || content[0] != '"' && content[0] != '{' {
			return nil, matrix.BadJSON("%s: a key must be a string or an object", what)
		}
		if len(keys) == maxKeysPerUpload {
			return nil, matrix.InvalidParam("%s: more than %d keys", what, maxKeysPerUpload)
		}
		keys = append(keys, storage.OneTimeKey{Algorithm: id.Algorithm(), ID: string(id), Content: content})
	}
	return keys, nil
}

// keyCounts is what OneTimeKeyCounts answers.
type keyCounts struct {
	counts   map[string]int
	fallback []string
}

// OneTimeKeyCounts counts unclaimed one-time keys by algorithm and names the algorithms with an unused fallback key;
// both are shared and must not be changed. signed_curve25519 is always among the counts. From memory when warm.
func (k *Keys) OneTimeKeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	c, err := k.counts.Load(deviceKey{user, device}, func() (keyCounts, error) {
		counts, fallback, err := k.db.KeyCounts(ctx, user, device)
		if err != nil {
			return keyCounts{}, err
		}
		if _, ok := counts["signed_curve25519"]; !ok {
			counts["signed_curve25519"] = 0
		}
		if fallback == nil {
			fallback = []string{}
		}
		return keyCounts{counts, fallback}, nil
	})
	return c.counts, c.fallback, err
}

// QueryResult is the answer to keys/query, for clients and for servers.
type QueryResult struct {
	DeviceKeys      map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys      map[matrix.UserID]json.RawMessage                     `json:"master_keys,omitempty"`
	SelfSigningKeys map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys,omitempty"`
	UserSigningKeys map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys,omitempty"`
	Failures        map[matrix.ServerName]json.RawMessage                 `json:"failures,omitempty"`
}

func newQueryResult() *QueryResult {
	return &QueryResult{
		DeviceKeys:      map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{},
		MasterKeys:      map[matrix.UserID]json.RawMessage{},
		SelfSigningKeys: map[matrix.UserID]json.RawMessage{},
		UserSigningKeys: map[matrix.UserID]json.RawMessage{},
		Failures:        map[matrix.ServerName]json.RawMessage{},
	}
}

// wanted is which devices of which users are asked for; an empty list is all.
type wanted = map[matrix.UserID][]matrix.DeviceID

// Query is POST /keys/query: local users from the database, remote ones from the kept device lists or their servers.
// An empty device list means all devices. timeout 0 means Config.RemoteTimeout. Error: M_INVALID_PARAM (too many).
func (k *Keys) Query(ctx context.Context, requester matrix.UserID, devices map[matrix.UserID][]matrix.DeviceID, timeout time.Duration) (*QueryResult, error) {
	if len(devices) > maxUsersPerQuery {
		return nil, matrix.InvalidParam("more than %d users in one query", maxUsersPerQuery)
	}
	here, elsewhere, shared, err := k.split(ctx, devices)
	if err != nil {
		return nil, err
	}
	result := newQueryResult()
	if err := k.queryHere(ctx, requester, here, result); err != nil {
		return nil, err
	}
	if len(elsewhere) > 0 {
		if err := k.queryElsewhere(ctx, requester, elsewhere, timeout, result); err != nil {
			return nil, err
		}
	}
	if len(shared) > 0 { // keep these lists from now on
		if err := k.db.StaleRemoteDevices(ctx, shared); err != nil {
			return nil, err
		}
		k.rouse()
	}
	return result, nil
}

// split tells users whose keys are in the database from those whose server must be asked. shared are those of the
// latter whose device lists are worth keeping.
func (k *Keys) split(ctx context.Context, devices wanted) (here wanted, elsewhere map[matrix.ServerName]wanted, shared []matrix.UserID, err error) {
	here = wanted{}
	var remote []matrix.UserID
	for user, ids := range devices {
		if user.Server() == k.server {
			here[user] = ids
		} else if _, err := matrix.ParseUserID(string(user)); err == nil {
			remote = append(remote, user)
		}
	}
	if len(remote) == 0 || k.remote == nil {
		return here, nil, nil, nil
	}
	kept, err := k.db.RemoteDeviceLists(ctx, remote)
	if err != nil {
		return nil, nil, nil, err
	}
	shares, err := k.db.SharesRoom(ctx, k.server, remote)
	if err != nil {
		return nil, nil, nil, err
	}
	elsewhere = map[matrix.ServerName]wanted{}
	for _, user := range remote {
		list, ok := kept[user]
		if ok && !list.Stale && shares[user] {
			here[user] = devices[user]
			continue
		}
		if elsewhere[user.Server()] == nil {
			elsewhere[user.Server()] = wanted{}
		}
		elsewhere[user.Server()][user] = devices[user]
		if shares[user] && !ok {
			shared = append(shared, user)
		}
	}
	return here, elsewhere, shared, nil
}

// queryHere answers from the database as requester may see it; "" is another server.
func (k *Keys) queryHere(ctx context.Context, requester matrix.UserID, devices wanted, result *QueryResult) error {
	users := slices.Collect(maps.Keys(devices))
	found, err := k.db.DeviceKeys(ctx, users, requester)
	if err != nil {
		return err
	}
	for _, user := range users {
		result.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
	}
	for _, d := range found {
		if ids := devices[d.User]; len(ids) > 0 && !slices.Contains(ids, d.Device) {
			continue
		}
		if d.DisplayName != "" && requester != "" {
			if d.Content, err = withName(d.Content, d.DisplayName); err != nil {
				return err
			}
		}
		result.DeviceKeys[d.User][d.Device] = d.Content
	}
	cross, err := k.db.CrossSigningKeys(ctx, users, requester)
	if err != nil {
		return err
	}
	for _, c := range cross {
		result.setCrossSigning(c)
	}
	return nil
}

func (r *QueryResult) setCrossSigning(c storage.CrossSigningKey) {
	switch c.Usage {
	case usageMaster:
		r.MasterKeys[c.User] = c.Content
	case usageSelfSigning:
		r.SelfSigningKeys[c.User] = c.Content
	case usageUserSigning:
		r.UserSigningKeys[c.User] = c.Content
	}
}

func withName(content json.RawMessage, name string) (json.RawMessage, error) {
	var o object
	if err := json.Unmarshal(content, &o); err != nil {
		return nil, err
	}
	o["unsigned"], _ = json.Marshal(map[string]string{"device_display_name": name})
	return json.Marshal(o)
}

// failure is what clients get for a server that did not answer.
var failure = json.RawMessage(`{"message":"the server did not answer","status":503}`)

// atServers calls ask for each server, several at the same time, each within timeout, and returns who failed.
func atServers[T any](ctx context.Context, k *Keys, timeout time.Duration, all map[matrix.ServerName]T, ask func(context.Context, matrix.ServerName, T) error) map[matrix.ServerName]json.RawMessage {
	if timeout <= 0 {
		timeout = k.cfg.RemoteTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, min(timeout, maxTimeout))
	defer cancel()
	var mu sync.Mutex
	failures := map[matrix.ServerName]json.RawMessage{}
	var group errgroup.Group
	group.SetLimit(maxParallel)
	for server, want := range all {
		group.Go(func() error {
			if err := ask(ctx, server, want); err != nil {
				k.log.Info("ask another server for keys", "server", server, "err", err)
				mu.Lock()
				defer mu.Unlock()
				failures[server] = failure
			}
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
	return failures
}

// queryElsewhere asks other servers and believes each of them about its own users only.
func (k *Keys) queryElsewhere(ctx context.Context, requester matrix.UserID, all map[matrix.ServerName]wanted, timeout time.Duration, result *QueryResult) error {
	var mu sync.Mutex
	var cross []storage.CrossSigningKey
	result.Failures = atServers(ctx, k, timeout, all, func(ctx context.Context, server matrix.ServerName, devices wanted) error {
		answer, err := k.remote.QueryKeys(ctx, server, devices)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for user, ids := range devices {
			for id, raw := range answer.DeviceKeys[user] {
				content, err := checkDeviceKeys(user, id, raw)
				if err != nil || len(ids) > 0 && !slices.Contains(ids, id) {
					continue
				}
				if result.DeviceKeys[user] == nil {
					result.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
				}
				result.DeviceKeys[user][id] = content
			}
			cross = append(cross, theirSigningKeys(user, answer.MasterKeys[user], answer.SelfSigningKeys[user])...)
		}
		return nil
	})
	if err := k.db.WithSignatures(ctx, requester, cross); err != nil {
		return err
	}
	for _, c := range cross {
		result.setCrossSigning(c)
	}
	return nil
}

// theirSigningKeys reads the keys of another server's user, as far as they are valid.
func theirSigningKeys(user matrix.UserID, master, selfSigning json.RawMessage) (keys []storage.CrossSigningKey) {
	for usage, raw := range map[string]json.RawMessage{usageMaster: master, usageSelfSigning: selfSigning} {
		if present(raw) {
			if key, err := parseCrossSigningKey(user, usage, raw); err == nil {
				keys = append(keys, key.CrossSigningKey)
			}
		}
	}
	return keys
}

// LocalQuery answers another server's keys/query about users of this one; others are passed over.
func (k *Keys) LocalQuery(ctx context.Context, devices map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error) {
	here := wanted{}
	for user, ids := range devices {
		if user.Server() == k.server {
			here[user] = ids
		}
	}
	if len(here) > maxUsersPerQuery {
		return nil, matrix.InvalidParam("more than %d users in one query", maxUsersPerQuery)
	}
	result := newQueryResult()
	return result, k.queryHere(ctx, "", here, result)
}

// Claim is which algorithms are wanted of which devices.
type Claim map[matrix.UserID]map[matrix.DeviceID]string

// ClaimResult is the answer to keys/claim: user, device, "algorithm:id", key.
type ClaimResult struct {
	OneTimeKeys map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage `json:"one_time_keys"`
	Failures    map[matrix.ServerName]json.RawMessage                                  `json:"failures,omitempty"`
}

func (r *ClaimResult) add(user matrix.UserID, device matrix.DeviceID, id matrix.KeyID, key json.RawMessage) {
	if r.OneTimeKeys[user] == nil {
		r.OneTimeKeys[user] = map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage{}
	}
	r.OneTimeKeys[user][device] = map[matrix.KeyID]json.RawMessage{id: key}
}

// ClaimKeys is POST /keys/claim. A one-time key is given out once; fallback keys when none is left.
func (k *Keys) ClaimKeys(ctx context.Context, want Claim, timeout time.Duration) (*ClaimResult, error) {
	if len(want) > maxUsersPerQuery {
		return nil, matrix.InvalidParam("more than %d users in one claim", maxUsersPerQuery)
	}
	elsewhere := map[matrix.ServerName]Claim{}
	for user, devices := range want {
		server := user.Server()
		if server == k.server || server == "" {
			continue
		}
		if elsewhere[server] == nil {
			elsewhere[server] = Claim{}
		}
		elsewhere[server][user] = devices
	}
	result, err := k.LocalClaim(ctx, want)
	if err != nil || len(elsewhere) == 0 || k.remote == nil {
		return result, err
	}
	var mu sync.Mutex
	result.Failures = atServers(ctx, k, timeout, elsewhere, func(ctx context.Context, server matrix.ServerName, want Claim) error {
		answer, err := k.remote.ClaimKeys(ctx, server, want)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for user, devices := range want {
			for device, algorithm := range devices {
				for id, key := range answer.OneTimeKeys[user][device] {
					if id.Algorithm() == algorithm {
						result.add(user, device, id, key)
						break
					}
				}
			}
		}
		return nil
	})
	return result, nil
}

// LocalClaim answers another server's keys/claim about users of this one; others are passed over.
func (k *Keys) LocalClaim(ctx context.Context, want Claim) (*ClaimResult, error) {
	var claims []storage.KeyClaim
	for user, devices := range want {
		for device, algorithm := range devices {
			if user.Server() == k.server {
				claims = append(claims, storage.KeyClaim{User: user, Device: device, Algorithm: algorithm})
			}
		}
	}
	result := &ClaimResult{OneTimeKeys: map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage{}}
	for piece := range slices.Chunk(claims, claimsPerWrite) {
		claimed, err := k.db.ClaimKeys(ctx, piece)
		if err != nil {
			return nil, err
		}
		for _, c := range claimed {
			result.add(c.User, c.Device, matrix.KeyID(c.ID), c.Content)
		}
	}
	return result, nil
}

// UserDevices is the device list of one user, for other servers.
type UserDevices struct {
	UserID         matrix.UserID   `json:"user_id"`
	StreamID       int64           `json:"stream_id"`
	Devices        []UserDevice    `json:"devices"`
	MasterKey      json.RawMessage `json:"master_key,omitempty"`
	SelfSigningKey json.RawMessage `json:"self_signing_key,omitempty"`
}

// UserDevice is one device of it.
type UserDevice struct {
	DeviceID    matrix.DeviceID `json:"device_id"`
	Keys        json.RawMessage `json:"keys"`
	DisplayName string          `json:"device_display_name,omitempty"`
}

// LocalUserDevices answers GET /_matrix/federation/v1/user/devices/{userId}. Error: M_NOT_FOUND.
func (k *Keys) LocalUserDevices(ctx context.Context, user matrix.UserID) (*UserDevices, error) {
	_, err := k.db.Account(ctx, user)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("there is no such user")
	}
	if err != nil {
		return nil, err
	}
	answer := &UserDevices{UserID: user, Devices: []UserDevice{}}
	// First, so that the list is at least as new as its number: an update that comes again does no harm.
	if answer.StreamID, err = k.db.DeviceListStreamID(ctx, user); err != nil {
		return nil, err
	}
	devices, err := k.db.DeviceKeys(ctx, []matrix.UserID{user}, "")
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		answer.Devices = append(answer.Devices, UserDevice{DeviceID: d.Device, Keys: d.Content})
	}
	cross, err := k.db.CrossSigningKeys(ctx, []matrix.UserID{user}, "")
	for _, c := range cross {
		switch c.Usage {
		case usageMaster:
			answer.MasterKey = c.Content
		case usageSelfSigning:
			answer.SelfSigningKey = c.Content
		}
	}
	return answer, err
}
