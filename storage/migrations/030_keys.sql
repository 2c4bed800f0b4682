-- Keys of devices: of this server's users and, as far as kept (see device_lists_remote), of other servers' users.
-- content lacks the signatures of other users and of cross-signing keys, which lie in key_signatures.
CREATE TABLE device_keys (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  content BLOB NOT NULL,
  display_name TEXT NOT NULL,
  PRIMARY KEY (user_id, device_id)
);

-- seq keeps the order of upload: the oldest is given out first.
CREATE TABLE one_time_keys (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  key_id TEXT NOT NULL,
  content BLOB NOT NULL,
  seq BIGINT NOT NULL,
  PRIMARY KEY (user_id, device_id, algorithm, key_id)
);

CREATE TABLE fallback_keys (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  key_id TEXT NOT NULL,
  content BLOB NOT NULL,
  used BOOLEAN NOT NULL,
  PRIMARY KEY (user_id, device_id, algorithm)
);

-- usage is master, self_signing or user_signing; public_key is the key itself, unpadded base64.
CREATE TABLE cross_signing_keys (
  user_id TEXT NOT NULL,
  usage TEXT NOT NULL,
  public_key TEXT NOT NULL,
  content BLOB NOT NULL,
  PRIMARY KEY (user_id, usage)
);

-- Signatures added to a device's keys (target is the device ID) or a cross-signing key (target is the public key).
CREATE TABLE key_signatures (
  target_user TEXT NOT NULL,
  target TEXT NOT NULL,
  signer TEXT NOT NULL,
  key_id TEXT NOT NULL,
  signature TEXT NOT NULL,
  PRIMARY KEY (target_user, target, signer, key_id)
);

-- Who changed devices or cross-signing keys last at which position of the stream; reader '' is for everyone, another
-- one alone saw the change. sent is the stream_id of the last m.device_list_update that was made.
CREATE TABLE device_list_changes (
  user_id TEXT NOT NULL,
  reader TEXT NOT NULL,
  pos BIGINT NOT NULL,
  sent BIGINT NOT NULL,
  PRIMARY KEY (user_id, reader)
);
CREATE INDEX device_list_changes_pos ON device_list_changes (pos);

-- Users of other servers whose devices are kept in device_keys. stale: something was missed, fetch all again.
CREATE TABLE device_lists_remote (
  user_id TEXT PRIMARY KEY,
  stream_id BIGINT NOT NULL,
  stale BOOLEAN NOT NULL,
  retry_ms BIGINT NOT NULL
);
CREATE INDEX device_lists_remote_stale ON device_lists_remote (stale, retry_ms);

-- Messages that wait for a device.
CREATE TABLE to_device (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  pos BIGINT NOT NULL,
  event BLOB NOT NULL,
  PRIMARY KEY (user_id, device_id, pos)
);

-- Messages that other servers sent already: a retry is not delivered twice.
CREATE TABLE to_device_seen (
  origin TEXT NOT NULL,
  message_id TEXT NOT NULL,
  received_ms BIGINT NOT NULL,
  PRIMARY KEY (origin, message_id)
);
CREATE INDEX to_device_seen_received ON to_device_seen (received_ms);

-- etag counts changes of the keys.
CREATE TABLE key_backups (
  user_id TEXT NOT NULL,
  version BIGINT NOT NULL,
  algorithm TEXT NOT NULL,
  auth_data BLOB NOT NULL,
  etag BIGINT NOT NULL,
  deleted BOOLEAN NOT NULL,
  PRIMARY KEY (user_id, version)
);

CREATE TABLE key_backup_keys (
  user_id TEXT NOT NULL,
  version BIGINT NOT NULL,
  room_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  first_message_index BIGINT NOT NULL,
  forwarded_count BIGINT NOT NULL,
  is_verified BOOLEAN NOT NULL,
  session_data BLOB NOT NULL,
  PRIMARY KEY (user_id, version, room_id, session_id)
);

-- The one device of a user that receives messages while no real one can (MSC3814). data is encrypted for its owner.
CREATE TABLE dehydrated_devices (
  user_id TEXT PRIMARY KEY,
  device_id TEXT NOT NULL,
  data BLOB NOT NULL
);
