package keys

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

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

func sizeOf(b *storage.KeyBackup) *BackupSize {
	return &BackupSize{Count: b.Count, ETag: strconv.FormatInt(b.ETag, 10)}
}

const (
	maxBackupAuthBytes = 64 * 1024
	maxSessionBytes    = 64 * 1024
	keysPerWrite       = 500
)

// backupRequest is the body of POST and PUT /room_keys/version.
type backupRequest struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   *string         `json:"version"`
}

func parseBackup(body json.RawMessage) (r backupRequest, err error) {
	if err := json.Unmarshal(body, &r); err != nil {
		return r, matrix.BadJSON("the body has members of the wrong type")
	}
	switch {
	case r.Algorithm == "":
		return r, matrix.MissingParam("algorithm is missing")
	case len(r.Algorithm) > 255 || strings.Contains(r.Algorithm, "\x00"):
		return r, matrix.InvalidParam("algorithm is not valid")
	case !present(r.AuthData):
		return r, matrix.MissingParam("auth_data is missing")
	case r.AuthData[0] != '{':
		return r, matrix.BadJSON("auth_data must be an object")
	case len(r.AuthData) > maxBackupAuthBytes:
		return r, matrix.TooLarge("auth_data must not be larger than 64 KiB")
	}
	return r, nil
}

// NewBackup is POST /room_keys/version. Errors: M_MISSING_PARAM, M_BAD_JSON, M_TOO_LARGE.
func (k *Keys) NewBackup(ctx context.Context, user matrix.UserID, body json.RawMessage) (version string, err error) {
	r, err := parseBackup(body)
	if err != nil {
		return "", err
	}
	n, err := k.db.AddKeyBackup(ctx, user, r.Algorithm, r.AuthData)
	return strconv.FormatInt(n, 10), err
}

func noBackup(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no such version of the key backup")
	}
	return err
}

// parseVersion is M_NOT_FOUND for what cannot be a version.
func parseVersion(version string) (int64, error) {
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n <= 0 {
		return 0, noBackup(storage.ErrNotFound)
	}
	return n, nil
}

// Backup finds a version; "" is the newest. Error: M_NOT_FOUND.
func (k *Keys) Backup(ctx context.Context, user matrix.UserID, version string) (*BackupVersion, error) {
	var n int64
	if version != "" {
		var err error
		if n, err = parseVersion(version); err != nil {
			return nil, err
		}
	}
	b, err := k.db.KeyBackup(ctx, user, n)
	if err != nil {
		return nil, noBackup(err)
	}
	return &BackupVersion{b.Algorithm, b.AuthData, b.Count, strconv.FormatInt(b.ETag, 10), strconv.FormatInt(b.Version, 10)}, nil
}

// UpdateBackup replaces the auth_data. Errors: M_NOT_FOUND, M_INVALID_PARAM (version or algorithm differ), as NewBackup.
func (k *Keys) UpdateBackup(ctx context.Context, user matrix.UserID, version string, body json.RawMessage) error {
	r, err := parseBackup(body)
	if err != nil {
		return err
	}
	if r.Version != nil && *r.Version != version {
		return matrix.InvalidParam("version in the body and in the path differ")
	}
	old, err := k.Backup(ctx, user, version)
	if err != nil {
		return err
	}
	if old.Algorithm != r.Algorithm {
		return matrix.InvalidParam("the algorithm of a backup cannot be changed")
	}
	n, err := parseVersion(version)
	if err != nil {
		return err
	}
	return noBackup(k.db.SetKeyBackupAuth(ctx, user, n, r.AuthData))
}

// DeleteBackup deletes a version with its keys. Error: M_NOT_FOUND.
func (k *Keys) DeleteBackup(ctx context.Context, user matrix.UserID, version string) error {
	n, err := parseVersion(version)
	if err != nil {
		return err
	}
	return noBackup(k.db.DeleteKeyBackup(ctx, user, n))
}

// keyBackupData is one key as clients have it.
type keyBackupData struct {
	FirstMessageIndex *int64          `json:"first_message_index"`
	ForwardedCount    *int64          `json:"forwarded_count"`
	IsVerified        *bool           `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

type sessions struct {
	Sessions map[string]json.RawMessage `json:"sessions"`
}

type rooms struct {
	Rooms map[matrix.RoomID]json.RawMessage `json:"rooms"`
}

// parseRoomKeys reads the body of PUT /room_keys/keys[/{room}[/{session}]].
func parseRoomKeys(room matrix.RoomID, session string, body json.RawMessage) ([]storage.BackedUpKey, error) {
	if session != "" {
		key, err := parseRoomKey(room, session, body)
		return []storage.BackedUpKey{key}, err
	}
	if room != "" {
		var s sessions
		if err := json.Unmarshal(body, &s); err != nil || s.Sessions == nil {
			return nil, matrix.BadJSON("sessions must be an object")
		}
		var keys []storage.BackedUpKey
		for id, raw := range s.Sessions {
			key, err := parseRoomKey(room, id, raw)
			if err != nil {
				return nil, err
			}
			keys = append(keys, key)
		}
		return keys, nil
	}
	var r rooms
	if err := json.Unmarshal(body, &r); err != nil || r.Rooms == nil {
		return nil, matrix.BadJSON("rooms must be an object")
	}
	var keys []storage.BackedUpKey
	for id, raw := range r.Rooms {
		if id == "" {
			return nil, matrix.InvalidParam("a room ID is empty")
		}
		more, err := parseRoomKeys(id, "", raw)
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

func parseRoomKey(room matrix.RoomID, session string, raw json.RawMessage) (key storage.BackedUpKey, err error) {
	var d keyBackupData
	if err := json.Unmarshal(raw, &d); err != nil {
		return key, matrix.BadJSON("a key has members of the wrong type")
	}
	switch {
	case d.FirstMessageIndex == nil || d.ForwardedCount == nil || d.IsVerified == nil || !present(d.SessionData):
		return key, matrix.BadJSON("a key must have first_message_index, forwarded_count, is_verified and session_data")
	case d.SessionData[0] != '{':
		return key, matrix.BadJSON("session_data must be an object")
	case len(d.SessionData) > maxSessionBytes:
		return key, matrix.TooLarge("session_data must not be larger than 64 KiB")
	}
	for _, id := range []string{string(room), session} {
		if id == "" || len(id) > 255 || !utf8.ValidString(id) || strings.Contains(id, "\x00") {
			return key, matrix.InvalidParam("a room ID or session ID is not valid")
		}
	}
	return storage.BackedUpKey{Room: room, Session: session, FirstMessageIndex: *d.FirstMessageIndex,
		ForwardedCount: *d.ForwardedCount, IsVerified: *d.IsVerified, SessionData: d.SessionData}, nil
}

// PutRoomKeys stores the body of PUT /room_keys/keys[/{room}[/{session}]], whose shape depends on whether room and
// session are given; a better key of the same session is kept.
// Errors: M_NOT_FOUND (no such version), M_WRONG_ROOM_KEYS_VERSION (not the newest), M_BAD_JSON, M_MISSING_PARAM.
func (k *Keys) PutRoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string, body json.RawMessage) (*BackupSize, error) {
	if version == "" {
		return nil, matrix.MissingParam("version is missing")
	}
	n, err := parseVersion(version)
	if err != nil {
		return nil, err
	}
	keys, err := parseRoomKeys(room, session, body)
	if err != nil {
		return nil, err
	}
	var b *storage.KeyBackup
	for first := true; first || len(keys) > 0; first = false {
		piece := keys[:min(len(keys), keysPerWrite)]
		keys = keys[len(piece):]
		b, err = k.db.PutBackedUpKeys(ctx, user, n, piece)
		if errors.Is(err, storage.ErrNotCurrent) {
			return nil, matrix.WrongRoomKeysVersion(strconv.FormatInt(b.Version, 10))
		}
		if err != nil {
			return nil, noBackup(err)
		}
	}
	return sizeOf(b), nil
}

// RoomKeys answers GET of the same paths. Errors: M_NOT_FOUND (no such version; no such session when one is named),
// M_MISSING_PARAM.
func (k *Keys) RoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (json.RawMessage, error) {
	if version == "" {
		return nil, matrix.MissingParam("version is missing")
	}
	b, err := k.Backup(ctx, user, version)
	if err != nil {
		return nil, err
	}
	n, err := parseVersion(b.Version)
	if err != nil {
		return nil, err
	}
	keys, err := k.db.BackedUpKeys(ctx, user, n, room, session)
	if err != nil {
		return nil, err
	}
	if session != "" {
		if len(keys) == 0 {
			return nil, matrix.NotFound("the backup has no such key")
		}
		return encodeKey(&keys[0])
	}
	all := map[matrix.RoomID]map[string]map[string]json.RawMessage{}
	for i := range keys {
		key := &keys[i]
		if all[key.Room] == nil {
			all[key.Room] = map[string]map[string]json.RawMessage{"sessions": {}}
		}
		if all[key.Room]["sessions"][key.Session], err = encodeKey(key); err != nil {
			return nil, err
		}
	}
	if room == "" {
		return json.Marshal(map[string]any{"rooms": all})
	}
	if all[room] == nil {
		return json.RawMessage(`{"sessions":{}}`), nil
	}
	return json.Marshal(all[room])
}

func encodeKey(key *storage.BackedUpKey) (json.RawMessage, error) {
	return json.Marshal(keyBackupData{&key.FirstMessageIndex, &key.ForwardedCount, &key.IsVerified, key.SessionData})
}

// DeleteRoomKeys deletes keys of the same paths. Errors: M_NOT_FOUND (no such version), M_MISSING_PARAM.
func (k *Keys) DeleteRoomKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (*BackupSize, error) {
	if version == "" {
		return nil, matrix.MissingParam("version is missing")
	}
	n, err := parseVersion(version)
	if err != nil {
		return nil, err
	}
	b, err := k.db.DeleteBackedUpKeys(ctx, user, n, room, session)
	if err != nil {
		return nil, noBackup(err)
	}
	return sizeOf(b), nil
}

// cleanName makes a foreign device name storable.
func cleanName(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "")
	if runes := []rune(s); len(runes) > 100 {
		s = string(slices.Clip(runes[:100]))
	}
	return s
}
