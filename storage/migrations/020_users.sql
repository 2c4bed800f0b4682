-- People of this server. A row stays after deactivation, so that the name stays taken.
CREATE TABLE users (
  user_id TEXT PRIMARY KEY,
  password TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  admin BOOLEAN NOT NULL,
  locked BOOLEAN NOT NULL,
  suspended BOOLEAN NOT NULL,
  deactivated BOOLEAN NOT NULL,
  erased BOOLEAN NOT NULL
);

CREATE TABLE devices (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  display_name TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  last_seen_ms BIGINT NOT NULL,
  last_seen_ip TEXT NOT NULL,
  user_agent TEXT NOT NULL,
  PRIMARY KEY (user_id, device_id)
);

-- Tokens lie here as SHA-256. expires_ms 0 is never; refresh is the refresh token given out together with it.
CREATE TABLE access_tokens (
  hash BLOB PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  expires_ms BIGINT NOT NULL,
  refresh BLOB
);
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_refresh ON access_tokens (refresh);

-- previous is the token that this one replaces; both are valid until one of the new pair is used.
CREATE TABLE refresh_tokens (
  hash BLOB PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  expires_ms BIGINT NOT NULL,
  previous BLOB
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_previous ON refresh_tokens (previous);

-- Short-lived tokens: kind 'login' (single use) and 'openid'.
CREATE TABLE short_tokens (
  hash BLOB PRIMARY KEY,
  kind TEXT NOT NULL,
  user_id TEXT NOT NULL,
  expires_ms BIGINT NOT NULL
);
CREATE INDEX short_tokens_expires ON short_tokens (expires_ms);

-- uses_allowed -1 is any number; expires_ms 0 is never; admin makes its user an administrator.
CREATE TABLE registration_tokens (
  token TEXT PRIMARY KEY,
  uses_allowed BIGINT NOT NULL,
  completed BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL,
  admin BOOLEAN NOT NULL
);

-- name_key is the display name in lower case, for the directory; fields is a JSON object of all other fields.
CREATE TABLE profiles (
  user_id TEXT PRIMARY KEY,
  displayname BLOB,
  avatar_url BLOB,
  fields BLOB,
  name_key TEXT NOT NULL
);

-- room_id '' is global.
CREATE TABLE account_data (
  user_id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  type TEXT NOT NULL,
  content BLOB NOT NULL,
  pos BIGINT NOT NULL,
  PRIMARY KEY (user_id, room_id, type)
);

CREATE TABLE filters (
  user_id TEXT NOT NULL,
  filter_id BIGINT NOT NULL,
  hash BLOB NOT NULL,
  content BLOB NOT NULL,
  PRIMARY KEY (user_id, filter_id)
);
CREATE UNIQUE INDEX filters_hash ON filters (user_id, hash);
