// Package keys keeps what end-to-end encryption needs of a server: device keys, one-time and fallback keys,
// cross-signing keys and their signatures, the backup of room keys, who changed devices when, and the messages from
// device to device. It never sees plain text.
package keys

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

// Config limits what devices may store.
type Config struct {
	// MaxOneTimeKeys per device and algorithm; more are refused.
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
type Keys struct{ o Options }

// New builds the room; nothing runs before Run.
func New(o Options) *Keys { return &Keys{o: o} }

// Run fetches again the device lists of remote users that have become stale, and ends with ctx.
func (k *Keys) Run(ctx context.Context) error { return errNotYet }

// ---- device and one-time keys

// Upload is POST /keys/upload; the answer holds the counts of one-time keys by algorithm.
// Errors: M_INVALID_PARAM (someone else's device keys, a one-time key that exists with another value), M_BAD_JSON.
func (k *Keys) Upload(ctx context.Context, user matrix.UserID, device matrix.DeviceID, body json.RawMessage) (map[string]int, error) {
	return nil, errNotYet
}

// OneTimeKeyCounts counts unclaimed one-time keys by algorithm and names the algorithms with an unused fallback key.
// signed_curve25519 is always among the counts. From memory when warm.
func (k *Keys) OneTimeKeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	return nil, nil, errNotYet
}

// QueryResult is the answer to keys/query, for clients and for servers.
type QueryResult struct {
	DeviceKeys      map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys      map[matrix.UserID]json.RawMessage                     `json:"master_keys,omitempty"`
	SelfSigningKeys map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys,omitempty"`
	UserSigningKeys map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys,omitempty"`
	Failures        map[matrix.ServerName]json.RawMessage                 `json:"failures,omitempty"`
}

// Query is POST /keys/query: local users from the database, remote ones from the kept device lists or their servers.
// An empty device list means all devices. timeout 0 means Config.RemoteTimeout.
func (k *Keys) Query(ctx context.Context, requester matrix.UserID, devices map[matrix.UserID][]matrix.DeviceID, timeout time.Duration) (*QueryResult, error) {
	return nil, errNotYet
}

// LocalQuery answers another server's keys/query about users of this one.
func (k *Keys) LocalQuery(ctx context.Context, devices map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error) {
	return nil, errNotYet
}

// Claim is which algorithms are wanted of which devices.
type Claim map[matrix.UserID]map[matrix.DeviceID]string

// ClaimResult is the answer to keys/claim: user, device, "algorithm:id", key.
type ClaimResult struct {
	OneTimeKeys map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage `json:"one_time_keys"`
	Failures    map[matrix.ServerName]json.RawMessage                                  `json:"failures,omitempty"`
}

// ClaimKeys is POST /keys/claim. A one-time key is given out once; fallback keys when none is left.
func (k *Keys) ClaimKeys(ctx context.Context, want Claim, timeout time.Duration) (*ClaimResult, error) {
	return nil, errNotYet
}

// LocalClaim answers another server's keys/claim about users of this one.
func (k *Keys) LocalClaim(ctx context.Context, want Claim) (*ClaimResult, error) {
	return nil, errNotYet
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
	return nil, errNotYet
}

// ---- cross-signing

// CrossSigningNeedsAuth reports whether the upload replaces keys that exist, so that the user must authenticate
// again first; a first upload, and one that repeats what is there, needs no authentication.
// Spec v1.19 client-server-api/#post_matrixclientv3keysdevice_signingupload
func (k *Keys) CrossSigningNeedsAuth(ctx context.Context, user matrix.UserID, body json.RawMessage) (bool, error) {
	return false, errNotYet
}

// UploadCrossSigning stores master, self-signing and user-signing keys after checking their signatures.
// Errors: M_INVALID_SIGNATURE, M_MISSING_PARAM, M_INVALID_PARAM, M_BAD_JSON.
func (k *Keys) UploadCrossSigning(ctx context.Context, user matrix.UserID, body json.RawMessage) error {
	return errNotYet
}

// UploadSignatures is POST /keys/signatures/upload. What could not be stored is in the failures: user, key, error.
func (k *Keys) UploadSignatures(ctx context.Context, user matrix.UserID, body json.RawMessage) (failures map[matrix.UserID]map[string]*matrix.Error, err error) {
	return nil, errNotYet
}

// ---- backup of room keys

// BackupVersion describes one backup.
type BackupVersion struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int64           `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

// BackupSize is the answer to changes of the keys in a backup.
type BackupSize struct {
	Count int64  `json:"count"`
	ETag  string `json:"etag"`
}

// NewBackup is POST /room_keys/version.
func (k *Keys) NewBackup(ctx context.Context, user matrix.UserID, body json.RawMessage) (version string, err error) {
	return "", errNotYet
}

// Backup finds a version; "" is the newest. Error: M_NOT_FOUND.
func (k *Keys) Backup(ctx context.Context, user matrix.UserID, version string) (*BackupVersion, error) {
	return nil, errNotYet
}

// UpdateBackup replaces the auth_data. Errors: M_NOT_FOUND, M_INVALID_PARAM (version or algorithm differ).
func (k *Keys) UpdateBackup(ctx context.Context, user matrix.UserID, version string, body json.RawMessage) error {
	return errNotYet
}

// DeleteBackup deletes a version with its keys. Error: M_NOT_FOUND.
func (k *Keys) DeleteBackup(ctx context.Context, user matrix.UserID, version string) error {
	return errNotYet
}

// PutRoomKeys stores the body of PUT /room_keys/keys[/{room}[/{session}]], whose shape depends on whether room and
// session are given; a better key of the same session is kept.
// Errors: M_NOT_FOUND (no such version), M_WRONG_ROOM_KEYS_VERSION (not the newest), M_BAD_JSON.
func (k *Keys) PutRoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string, body json.RawMessage) (*BackupSize, error) {
	return nil, errNotYet
}

// RoomKeys answers GET of the same paths. Error: M_NOT_FOUND (no such version; no such session when one is named).
func (k *Keys) RoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (json.RawMessage, error) {
	return nil, errNotYet
}

// DeleteRoomKeys deletes keys of the same paths. Error: M_NOT_FOUND (no such version).
func (k *Keys) DeleteRoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (*BackupSize, error) {
	return nil, errNotYet
}

// ---- who changed

// Changed returns whose devices or cross-signing keys reader sees changed after position from, up to and including
// to. The syncer keeps those that share an encrypted room with the reader, and computes who left.
func (k *Keys) Changed(ctx context.Context, reader matrix.UserID, from, to int64) ([]matrix.UserID, error) {
	return nil, errNotYet
}

// DevicesChanged must be called inside the write that deletes or renames devices of a local user outside of this
// room; see storage.Tx.DeviceListChanged.

// ---- to-device

// SendToDevice is PUT /sendToDevice/{eventType}/{txnId}: messages by user and device, device "*" is all of them.
// Idempotence by transaction ID is the caller's. Errors: M_BAD_JSON, M_TOO_LARGE.
func (k *Keys) SendToDevice(ctx context.Context, sender matrix.UserID, typ string, txnID string, messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage) error {
	return errNotYet
}

// ToDeviceMessage waits for a device: Event is {"type", "sender", "content"}.
type ToDeviceMessage struct {
	Pos   int64
	Event json.RawMessage
}

// ToDevice deletes the messages up to and including acked, which the device has confirmed by presenting a newer sync
// token, and returns at most limit messages with positions in (acked, upTo]. No query when nothing waits.
func (k *Keys) ToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, acked, upTo int64, limit int) ([]ToDeviceMessage, error) {
	return nil, errNotYet
}

// ---- EDUs from other servers

// ReceiveDirectToDevice takes an m.direct_to_device EDU. A message_id that origin has sent before is passed over.
func (k *Keys) ReceiveDirectToDevice(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}

// ReceiveDeviceListUpdate takes an m.device_list_update EDU; after a gap the whole list is fetched again (by Run).
func (k *Keys) ReceiveDeviceListUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}

// ReceiveSigningKeyUpdate takes an m.signing_key_update EDU.
func (k *Keys) ReceiveSigningKeyUpdate(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	return errNotYet
}
