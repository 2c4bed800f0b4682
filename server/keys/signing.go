package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// What cross-signing keys are for.
const (
	usageMaster      = "master"
	usageSelfSigning = "self_signing"
	usageUserSigning = "user_signing"
)

// signingKey is a cross-signing key taken apart.
type signingKey struct {
	storage.CrossSigningKey
	public *matrix.PublicKey
}

// id is the key's ID in signatures.
func (s signingKey) id() matrix.KeyID { return matrix.KeyID("ed25519:" + s.PublicKey) }

// parseCrossSigningKey checks a key of one of the usages. Signatures of other users are dropped.
// Spec v1.19 client-server-api/#cross-signing
func parseCrossSigningKey(user matrix.UserID, usage string, raw json.RawMessage) (signingKey, error) {
	var s signingKey
	o, canonical, err := canonicalObject(usage+"_key", raw)
	if err != nil {
		return s, err
	}
	var key struct {
		UserID matrix.UserID                `json:"user_id"`
		Usage  []string                     `json:"usage"`
		Keys   map[matrix.KeyID]string      `json:"keys"`
		Signed map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(canonical, &key); err != nil {
		return s, matrix.BadJSON("%s_key has members of the wrong type", usage)
	}
	if key.UserID != user {
		return s, matrix.InvalidParam("%s_key is of another user", usage)
	}
	if len(key.Usage) != 1 || key.Usage[0] != usage {
		return s, matrix.InvalidParam("%s_key must have the usage %s", usage, usage)
	}
	if len(key.Keys) != 1 {
		return s, matrix.InvalidParam("%s_key must have exactly one key", usage)
	}
	for id, public := range key.Keys {
		if id.Algorithm() != "ed25519" || id.Identifier() != public {
			return s, matrix.InvalidParam("%s_key: the key must be named ed25519: and the key itself", usage)
		}
		if s.public, err = matrix.ParsePublicKey(public); err != nil {
			return s, matrix.InvalidParam("%s_key: not an ed25519 key", usage)
		}
		s.PublicKey = public
	}
	s.User, s.Usage = user, usage
	s.Content, err = ownSignaturesOnly(o, user)
	return s, err
}

// parseUpload reads the keys of POST /keys/device_signing/upload by usage.
func parseUpload(user matrix.UserID, body json.RawMessage) (map[string]signingKey, error) {
	var r struct {
		Master      json.RawMessage `json:"master_key"`
		SelfSigning json.RawMessage `json:"self_signing_key"`
		UserSigning json.RawMessage `json:"user_signing_key"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, matrix.BadJSON("the body must be an object")
	}
	keys := map[string]signingKey{}
	for usage, raw := range map[string]json.RawMessage{usageMaster: r.Master, usageSelfSigning: r.SelfSigning, usageUserSigning: r.UserSigning} {
		if !present(raw) {
			continue
		}
		key, err := parseCrossSigningKey(user, usage, raw)
		if err != nil {
			return nil, err
		}
		keys[usage] = key
	}
	return keys, nil
}

// ownSigningKeys are the stored keys of a user of this server by usage.
func (k *Keys) ownSigningKeys(ctx context.Context, user matrix.UserID) (map[string]signingKey, error) {
	stored, err := k.db.CrossSigningKeys(ctx, []matrix.UserID{user}, user)
	if err != nil {
		return nil, err
	}
	keys := map[string]signingKey{}
	for _, s := range stored {
		public, err := matrix.ParsePublicKey(s.PublicKey)
		if err != nil {
			return nil, err
		}
		keys[s.Usage] = signingKey{s, public}
	}
	return keys, nil
}

// CrossSigningNeedsAuth reports whether the upload replaces keys that exist, so that the user must authenticate
// again first; a first upload, and one that repeats what is there, needs no authentication.
// Errors as UploadCrossSigning. Spec v1.19 client-server-api/#post_matrixclientv3keysdevice_signingupload
func (k *Keys) CrossSigningNeedsAuth(ctx context.Context, user matrix.UserID, body json.RawMessage) (bool, error) {
	uploaded, err := parseUpload(user, body)
	if err != nil {
		return false, err
	}
	stored, err := k.ownSigningKeys(ctx, user)
	if err != nil {
		return false, err
	}
	if _, ok := stored[usageMaster]; !ok {
		return false, nil
	}
	for usage, key := range uploaded {
		if old, ok := stored[usage]; !ok || !sameButSignatures(old.Content, key.Content) {
			return true, nil
		}
	}
	return false, nil
}

// UploadCrossSigning stores master, self-signing and user-signing keys after checking their signatures.
// Errors: M_INVALID_SIGNATURE, M_MISSING_PARAM (no master key), M_INVALID_PARAM, M_BAD_JSON, M_FORBIDDEN (a device has
// this ID).
func (k *Keys) UploadCrossSigning(ctx context.Context, user matrix.UserID, body json.RawMessage) error {
	uploaded, err := parseUpload(user, body)
	if err != nil {
		return err
	}
	master, ok := uploaded[usageMaster]
	if !ok {
		stored, err := k.ownSigningKeys(ctx, user)
		if err != nil {
			return err
		}
		if master, ok = stored[usageMaster]; !ok {
			return matrix.MissingParam("there is no master key")
		}
	}
	var keys []storage.CrossSigningKey
	for usage, key := range uploaded {
		if usage != usageMaster {
			if err := matrix.VerifyJSON(key.Content, string(user), master.id(), master.public); err != nil {
				return invalidSignature("%s_key is not signed by the master key", usage)
			}
		}
		keys = append(keys, key.CrossSigningKey)
	}
	if len(keys) == 0 {
		return nil
	}
	err = k.db.SetCrossSigningKeys(ctx, user, keys)
	if errors.Is(err, storage.ErrDeviceIsKey) {
		return matrix.Forbidden("a device of yours has the ID of one of these keys")
	}
	return err
}

func invalidSignature(format string, args ...any) *matrix.Error {
	return matrix.NewError(400, "M_INVALID_SIGNATURE", format, args...)
}

// sameButSignatures compares two signed objects in all but signatures and unsigned.
func sameButSignatures(a, b json.RawMessage) bool {
	bare := func(raw json.RawMessage) []byte {
		o, _, err := canonicalObject("", raw)
		if err != nil {
			return nil
		}
		o = maps.Clone(o)
		delete(o, "signatures")
		delete(o, "unsigned")
		out, err := json.Marshal(o)
		if err != nil {
			return nil
		}
		out, err = matrix.CanonicalJSONLoose(nil, out)
		if err != nil {
			return nil
		}
		return out
	}
	x, y := bare(a), bare(b)
	return x != nil && bytes.Equal(x, y)
}

// maxSignatures bounds one upload.
const maxSignatures = 1000

// UploadSignatures is POST /keys/signatures/upload. What could not be stored is in the failures: user, key, error.
// Error: M_BAD_JSON, M_INVALID_PARAM (too many). Spec v1.19 client-server-api/#post_matrixclientv3keyssignaturesupload
func (k *Keys) UploadSignatures(ctx context.Context, user matrix.UserID, body json.RawMessage) (failures map[matrix.UserID]map[string]*matrix.Error, err error) {
	var all map[matrix.UserID]map[string]json.RawMessage
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, matrix.BadJSON("the body must be an object of objects")
	}
	count := 0
	for _, targets := range all {
		if count += len(targets); count > maxSignatures {
			return nil, matrix.InvalidParam("more than %d signed keys in one request", maxSignatures)
		}
	}
	failures = map[matrix.UserID]map[string]*matrix.Error{}
	mine, err := k.signers(ctx, user)
	if err != nil {
		return nil, err
	}
	var valid []storage.KeySignature
	for target, objects := range all {
		known, err := k.signable(ctx, user, target)
		if err != nil {
			return nil, err
		}
		for name, raw := range objects {
			signatures, failed := mine.check(target, name, known[name], raw)
			if failed != nil {
				if failures[target] == nil {
					failures[target] = map[string]*matrix.Error{}
				}
				failures[target][name] = failed
			}
			valid = append(valid, signatures...)
		}
	}
	if len(valid) > 0 {
		err = k.db.AddKeySignatures(ctx, user, valid)
	}
	return failures, err
}

// signers are the keys with which a user may sign.
type signers struct {
	user    matrix.UserID
	cross   map[string]signingKey
	devices map[matrix.KeyID]*matrix.PublicKey
}

func (k *Keys) signers(ctx context.Context, user matrix.UserID) (s signers, err error) {
	s = signers{user: user, devices: map[matrix.KeyID]*matrix.PublicKey{}}
	if s.cross, err = k.ownSigningKeys(ctx, user); err != nil {
		return s, err
	}
	devices, err := k.db.DeviceKeys(ctx, []matrix.UserID{user}, user)
	for _, d := range devices {
		var key struct {
			Keys map[matrix.KeyID]string `json:"keys"`
		}
		if json.Unmarshal(d.Content, &key) != nil {
			continue
		}
		id := matrix.KeyID("ed25519:" + string(d.Device))
		if public, err := matrix.ParsePublicKey(key.Keys[id]); err == nil {
			s.devices[id] = public
		}
	}
	return s, err
}

// signable finds what signer may sign of the target: devices and master key of the same user, the master key of
// another. The names are device IDs and public keys.
func (k *Keys) signable(ctx context.Context, signer, target matrix.UserID) (map[string]storedKey, error) {
	known := map[string]storedKey{}
	result, err := k.Query(ctx, signer, wanted{target: nil}, 0)
	if err != nil {
		return nil, err
	}
	if master, err := parseCrossSigningKey(target, usageMaster, result.MasterKeys[target]); err == nil {
		known[master.PublicKey] = storedKey{content: master.Content, master: true}
	}
	if signer == target {
		for id, content := range result.DeviceKeys[target] {
			known[string(id)] = storedKey{content: content}
		}
	}
	return known, nil
}

// storedKey is something that can be signed.
type storedKey struct {
	content json.RawMessage
	master  bool
}

// check finds the valid signatures of the signer on an object that claims to be known.
func (s *signers) check(target matrix.UserID, name string, known storedKey, raw json.RawMessage) ([]storage.KeySignature, *matrix.Error) {
	if known.content == nil {
		return nil, matrix.NotFound("there is no such key, or you may not sign it")
	}
	if !sameButSignatures(known.content, raw) {
		return nil, matrix.BadRequest("the key is not the one that is stored")
	}
	var signed struct {
		Signatures map[matrix.UserID]map[matrix.KeyID]string `json:"signatures"`
	}
	if json.Unmarshal(raw, &signed) != nil {
		return nil, matrix.BadJSON("signatures must be an object of objects of strings")
	}
	var valid []storage.KeySignature
	for id, signature := range signed.Signatures[s.user] {
		public := s.allowed(target, known, id)
		if public == nil || matrix.VerifyJSON(raw, string(s.user), id, public) != nil {
			continue
		}
		valid = append(valid, storage.KeySignature{TargetUser: target, Target: name, Signer: s.user, KeyID: id, Signature: signature})
	}
	if len(valid) == 0 {
		return nil, invalidSignature("no valid signature by a key of yours that may sign this")
	}
	return valid, nil
}

// allowed finds the public key for a signature, nil if such a key may not make it: self-signing keys sign own devices,
// devices the own master key, user-signing keys the master keys of others.
func (s *signers) allowed(target matrix.UserID, known storedKey, id matrix.KeyID) *matrix.PublicKey {
	switch {
	case target != s.user:
		if key, ok := s.cross[usageUserSigning]; ok && key.id() == id {
			return key.public
		}
	case known.master:
		return s.devices[id]
	default:
		if key, ok := s.cross[usageSelfSigning]; ok && key.id() == id {
			return key.public
		}
	}
	return nil
}
