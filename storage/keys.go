package storage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// ErrKeyExists is returned for a one-time key whose ID is taken by another key.
var ErrKeyExists = errors.New("a different one-time key has this ID")

// OneTimeKey is a one-time or fallback key of a device.
type OneTimeKey struct {
	Algorithm string
	ID        string
	Content   json.RawMessage // canonical
}

// KeyUpload is what a device uploads.
type KeyUpload struct {
	User       matrix.UserID
	Device     matrix.DeviceID
	DeviceKeys json.RawMessage // canonical; nil for none
	OneTime    []OneTimeKey
	Fallback   []OneTimeKey
	MaxOneTime int // per device; more are passed over
}

// UploadKeys stores keys of a device of this server and returns its counts of one-time keys by algorithm.
// ErrKeyExists, ErrNotFound if the device is gone, ErrDeviceIsKey.
func (db *DB) UploadKeys(ctx context.Context, u KeyUpload) (counts map[string]int, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		counts, err = tx.uploadKeys(u)
		return err
	})
	return counts, err
}

func (tx *Tx) uploadKeys(u KeyUpload) (map[string]int, error) {
	if u.DeviceKeys != nil {
		if err := tx.setOwnDeviceKeys(u); err != nil {
			return nil, err
		}
	}
	counts, err := keyCounts(tx.Raw, u.User, u.Device)
	if err != nil || len(u.OneTime)+len(u.Fallback) == 0 {
		return counts, err
	}
	if err := tx.addOneTimeKeys(u, counts); err != nil {
		return nil, err
	}
	for _, k := range u.Fallback {
		err := tx.Exec(`INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, content, used)
			VALUES (?, ?, ?, ?, ?, FALSE) ON CONFLICT (user_id, device_id, algorithm) DO UPDATE
			SET used = (fallback_keys.used AND fallback_keys.key_id = excluded.key_id), key_id = excluded.key_id, content = excluded.content`,
			u.User, u.Device, k.Algorithm, k.ID, []byte(k.Content)).Error
		if err != nil {
			return nil, err
		}
	}
	return counts, tx.ringDeviceKeys(u.User, u.Device)
}

func (tx *Tx) ringDeviceKeys(user matrix.UserID, device matrix.DeviceID) error {
	pos, err := tx.Next(1)
	tx.Ring(Change{Wakes: []Wake{{Topic: TopicDeviceKeys, Pos: pos, User: user, Device: device}}})
	return err
}

func (tx *Tx) setOwnDeviceKeys(u KeyUpload) error {
	var name string
	err := tx.Raw("SELECT display_name FROM devices WHERE user_id = ? AND device_id = ?", u.User, u.Device).Row().Scan(&name)
	if err != nil {
		return orNotFound(err)
	}
	var old []byte
	err = tx.Raw("SELECT content FROM device_keys WHERE user_id = ? AND device_id = ?", u.User, u.Device).Row().Scan(&old)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if bytes.Equal(old, u.DeviceKeys) {
		return nil
	}
	if err := tx.putDeviceKeys(u.User, u.Device, u.DeviceKeys, name); err != nil {
		return err
	}
	return tx.deviceListChanged(u.User, []matrix.DeviceID{u.Device})
}

func (tx *Tx) putDeviceKeys(user matrix.UserID, device matrix.DeviceID, content json.RawMessage, name string) error {
	return tx.Exec(`INSERT INTO device_keys (user_id, device_id, content, display_name) VALUES (?, ?, ?, ?)
		ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content, display_name = excluded.display_name`,
		user, device, []byte(content), name).Error
}

// addOneTimeKeys inserts what is new and keeps counts up to date.
func (tx *Tx) addOneTimeKeys(u KeyUpload, counts map[string]int) error {
	if len(u.OneTime) == 0 {
		return nil
	}
	seq, err := tx.Next(len(u.OneTime))
	if err != nil {
		return err
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	for i, k := range u.OneTime {
		var old []byte
		err := tx.Raw("SELECT content FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ? AND key_id = ?",
			u.User, u.Device, k.Algorithm, k.ID).Row().Scan(&old)
		switch {
		case err == nil && bytes.Equal(old, k.Content):
			continue
		case err == nil:
			return ErrKeyExists
		case !errors.Is(err, sql.ErrNoRows):
			return err
		case total >= u.MaxOneTime:
			continue
		}
		err = tx.Exec("INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, content, seq) VALUES (?, ?, ?, ?, ?, ?)",
			u.User, u.Device, k.Algorithm, k.ID, []byte(k.Content), seq+int64(i)).Error
		if err != nil {
			return err
		}
		counts[k.Algorithm]++
		total++
	}
	return nil
}

// KeyCounts counts a device's one-time keys by algorithm and names the algorithms with an unused fallback key.
func (db *DB) KeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	read := db.Read(ctx)
	if counts, err = keyCounts(read.Raw, user, device); err != nil {
		return nil, nil, err
	}
	unusedFallback, err = scanAll(read.Raw("SELECT algorithm FROM fallback_keys WHERE user_id = ? AND device_id = ? AND NOT used ORDER BY algorithm", user, device),
		func(rows *sql.Rows) (a string, err error) { return a, rows.Scan(&a) })
	return counts, unusedFallback, err
}

func keyCounts(raw rawQuery, user matrix.UserID, device matrix.DeviceID) (map[string]int, error) {
	counts := map[string]int{}
	_, err := scanAll(raw("SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = ? AND device_id = ? GROUP BY algorithm", user, device),
		func(rows *sql.Rows) (struct{}, error) {
			var algorithm string
			var n int
			err := rows.Scan(&algorithm, &n)
			counts[algorithm] = n
			return struct{}{}, err
		})
	return counts, err
}

// KeyClaim asks for one key of a device.
type KeyClaim struct {
	User      matrix.UserID
	Device    matrix.DeviceID
	Algorithm string
}

// ClaimedKey is the answer to a KeyClaim.
type ClaimedKey struct {
	KeyClaim
	ID      string
	Content json.RawMessage
}

// ClaimKeys takes a one-time key for each claim, the oldest first, or else gives out the fallback key. What has
// neither is left out. A one-time key is never given out twice.
func (db *DB) ClaimKeys(ctx context.Context, claims []KeyClaim) (claimed []ClaimedKey, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		claimed = nil
		for _, c := range claims {
			k, err := tx.claimKey(c)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			claimed = append(claimed, k)
			if err := tx.ringDeviceKeys(c.User, c.Device); err != nil {
				return err
			}
		}
		return nil
	})
	return claimed, err
}

func (tx *Tx) claimKey(c KeyClaim) (ClaimedKey, error) {
	k := ClaimedKey{KeyClaim: c}
	err := tx.Raw(`SELECT key_id, content FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ? ORDER BY seq LIMIT 1`,
		c.User, c.Device, c.Algorithm).Row().Scan(&k.ID, &k.Content)
	if err == nil {
		return k, tx.Exec("DELETE FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ? AND key_id = ?",
			c.User, c.Device, c.Algorithm, k.ID).Error
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return k, err
	}
	err = tx.Raw("SELECT key_id, content FROM fallback_keys WHERE user_id = ? AND device_id = ? AND algorithm = ?",
		c.User, c.Device, c.Algorithm).Row().Scan(&k.ID, &k.Content)
	if err != nil {
		return k, err
	}
	return k, tx.Exec("UPDATE fallback_keys SET used = TRUE WHERE user_id = ? AND device_id = ? AND algorithm = ? AND NOT used",
		c.User, c.Device, c.Algorithm).Error
}

// DeviceKey is a device's identity keys.
type DeviceKey struct {
	User        matrix.UserID
	Device      matrix.DeviceID
	Content     json.RawMessage // with the signatures that the asker may see
	DisplayName string
}

// DeviceKeys finds the keys of all devices of these users as requester sees them; "" is another server.
func (db *DB) DeviceKeys(ctx context.Context, users []matrix.UserID, requester matrix.UserID) ([]DeviceKey, error) {
	return deviceKeys(db.Read(ctx).Raw, users, requester)
}

func deviceKeys(raw rawQuery, users []matrix.UserID, requester matrix.UserID) ([]DeviceKey, error) {
	if len(users) == 0 {
		return nil, nil
	}
	signatures, err := keySignatures(raw, users, requester)
	if err != nil {
		return nil, err
	}
	return scanAll(raw("SELECT user_id, device_id, content, display_name FROM device_keys WHERE user_id IN ? ORDER BY user_id, device_id", users),
		func(rows *sql.Rows) (k DeviceKey, err error) {
			if err := rows.Scan(&k.User, &k.Device, &k.Content, &k.DisplayName); err != nil {
				return k, err
			}
			k.Content, err = withSignatures(k.Content, signatures[signatureTarget{k.User, string(k.Device)}])
			return k, err
		})
}

// CrossSigningKey is a master, self_signing or user_signing key.
type CrossSigningKey struct {
	User      matrix.UserID
	Usage     string
	PublicKey string
	Content   json.RawMessage // with the signatures that the asker may see
}

// CrossSigningKeys finds the cross-signing keys of these users as requester sees them: user-signing keys only to their
// owner; "" is another server.
func (db *DB) CrossSigningKeys(ctx context.Context, users []matrix.UserID, requester matrix.UserID) ([]CrossSigningKey, error) {
	return crossSigningKeys(db.Read(ctx).Raw, users, requester)
}

func crossSigningKeys(raw rawQuery, users []matrix.UserID, requester matrix.UserID) ([]CrossSigningKey, error) {
	if len(users) == 0 {
		return nil, nil
	}
	signatures, err := keySignatures(raw, users, requester)
	if err != nil {
		return nil, err
	}
	return scanAll(raw(`SELECT user_id, usage, public_key, content FROM cross_signing_keys
		WHERE user_id IN ? AND (usage <> 'user_signing' OR user_id = ?) ORDER BY user_id, usage`, users, requester),
		func(rows *sql.Rows) (k CrossSigningKey, err error) {
			if err := rows.Scan(&k.User, &k.Usage, &k.PublicKey, &k.Content); err != nil {
				return k, err
			}
			k.Content, err = withSignatures(k.Content, signatures[signatureTarget{k.User, k.PublicKey}])
			return k, err
		})
}

// WithSignatures adds to the keys the signatures that requester has made on them.
func (db *DB) WithSignatures(ctx context.Context, requester matrix.UserID, keys []CrossSigningKey) error {
	var users []matrix.UserID
	for _, k := range keys {
		users = append(users, k.User)
	}
	if len(users) == 0 {
		return nil
	}
	signatures, err := keySignatures(db.Read(ctx).Raw, users, requester)
	for i := 0; err == nil && i < len(keys); i++ {
		keys[i].Content, err = withSignatures(keys[i].Content, signatures[signatureTarget{keys[i].User, keys[i].PublicKey}])
	}
	return err
}

// rawQuery is the Raw method of a read handle or of a Tx.
type rawQuery = func(sql string, values ...any) *gorm.DB

type signatureTarget struct {
	user   matrix.UserID
	target string
}

// keySignatures finds the signatures on keys of these users: those by their owners, and those by requester.
func keySignatures(raw rawQuery, users []matrix.UserID, requester matrix.UserID) (map[signatureTarget][]KeySignature, error) {
	found := map[signatureTarget][]KeySignature{}
	_, err := scanAll(raw(`SELECT target_user, target, signer, key_id, signature FROM key_signatures
		WHERE target_user IN ? AND (signer = target_user OR signer = ?)`, users, requester),
		func(rows *sql.Rows) (s KeySignature, err error) {
			if err := rows.Scan(&s.TargetUser, &s.Target, &s.Signer, &s.KeyID, &s.Signature); err != nil {
				return s, err
			}
			t := signatureTarget{s.TargetUser, s.Target}
			found[t] = append(found[t], s)
			return s, nil
		})
	return found, err
}

// KeySignature is a signature on a device's keys or on a cross-signing key.
type KeySignature struct {
	TargetUser matrix.UserID
	Target     string // device ID or public key
	Signer     matrix.UserID
	KeyID      matrix.KeyID
	Signature  string
}

// withSignatures adds signatures to a signed object.
func withSignatures(content json.RawMessage, signatures []KeySignature) (json.RawMessage, error) {
	if len(signatures) == 0 {
		return content, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(content, &object); err != nil {
		return nil, err
	}
	all := map[matrix.UserID]map[matrix.KeyID]string{}
	if old := object["signatures"]; old != nil {
		if err := json.Unmarshal(old, &all); err != nil {
			return nil, err
		}
	}
	for _, s := range signatures {
		if all[s.Signer] == nil {
			all[s.Signer] = map[matrix.KeyID]string{}
		}
		all[s.Signer][s.KeyID] = s.Signature
	}
	var err error
	if object["signatures"], err = json.Marshal(all); err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

// SetCrossSigningKeys puts keys in place of those of the same usage, of a user of this server. Signatures on a key that
// is replaced by another are forgotten.
func (db *DB) SetCrossSigningKeys(ctx context.Context, user matrix.UserID, keys []CrossSigningKey) error {
	return db.Write(ctx, func(tx *Tx) error {
		var taken bool
		for _, k := range keys {
			err := tx.Raw("SELECT EXISTS (SELECT 1 FROM devices WHERE user_id = ? AND device_id = ?)", user, k.PublicKey).Row().Scan(&taken)
			if err != nil {
				return err
			}
			if taken {
				return ErrDeviceIsKey
			}
			if err := tx.putCrossSigningKey(k); err != nil {
				return err
			}
		}
		return tx.signingKeysChanged(user)
	})
}

func (tx *Tx) putCrossSigningKey(k CrossSigningKey) error {
	err := tx.Exec(`DELETE FROM key_signatures WHERE target_user = ? AND target IN
		(SELECT public_key FROM cross_signing_keys WHERE user_id = ? AND usage = ? AND public_key <> ?)`,
		k.User, k.User, k.Usage, k.PublicKey).Error
	if err != nil {
		return err
	}
	return tx.Exec(`INSERT INTO cross_signing_keys (user_id, usage, public_key, content) VALUES (?, ?, ?, ?)
		ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, content = excluded.content`,
		k.User, k.Usage, k.PublicKey, []byte(k.Content)).Error
}

// AddKeySignatures stores signatures made by one user of this server; those on the signer's own keys are told to
// everyone, those on others' keys to the signer only.
func (db *DB) AddKeySignatures(ctx context.Context, signer matrix.UserID, signatures []KeySignature) error {
	return db.Write(ctx, func(tx *Tx) error {
		var devices []matrix.DeviceID
		master, others := false, map[matrix.UserID]bool{}
		for _, s := range signatures {
			err := tx.Exec(`INSERT INTO key_signatures (target_user, target, signer, key_id, signature) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (target_user, target, signer, key_id) DO UPDATE SET signature = excluded.signature`,
				s.TargetUser, s.Target, signer, s.KeyID, s.Signature).Error
			if err != nil {
				return err
			}
			var isDevice bool
			err = tx.Raw("SELECT EXISTS (SELECT 1 FROM device_keys WHERE user_id = ? AND device_id = ?)", s.TargetUser, s.Target).Row().Scan(&isDevice)
			switch {
			case err != nil:
				return err
			case s.TargetUser != signer:
				others[s.TargetUser] = true
			case isDevice:
				devices = append(devices, matrix.DeviceID(s.Target))
			default:
				master = true
			}
		}
		if len(devices) > 0 {
			if err := tx.deviceListChanged(signer, devices); err != nil {
				return err
			}
		}
		if master {
			if err := tx.signingKeysChanged(signer); err != nil {
				return err
			}
		}
		for other := range others { // the signer alone sees these
			if _, err := tx.noteDeviceListChange(other, signer); err != nil {
				return err
			}
		}
		return nil
	})
}
