-- Other servers, as far as we send to them or hear from them. Times are milliseconds since 1970, 0 for never.
CREATE TABLE destinations (
  server TEXT PRIMARY KEY,
  -- All events that concern the server up to this stream position have been delivered. It may lag behind the truth: what
  -- is delivered twice does no harm.
  pos BIGINT NOT NULL,
  retry_at BIGINT NOT NULL DEFAULT 0,
  failures BIGINT NOT NULL DEFAULT 0,
  -- Since when the server has made HTTP Signatures.
  signs_since BIGINT NOT NULL DEFAULT 0
);

-- What is not in the stream of events but must reach another server: to-device messages, device list changes. A row
-- with an empty server is for all servers that share a room with user_id, who are not known yet.
CREATE TABLE outbox (
  pos BIGINT PRIMARY KEY,
  server TEXT NOT NULL,
  user_id TEXT NOT NULL,
  type TEXT NOT NULL,
  content BLOB NOT NULL
);
CREATE INDEX outbox_server ON outbox (server, pos);

-- The signing keys of other servers. expired_at is 0 for a key that is in use.
CREATE TABLE server_keys (
  server TEXT NOT NULL,
  key_id TEXT NOT NULL,
  public_key BLOB NOT NULL,
  valid_until BIGINT NOT NULL,
  expired_at BIGINT NOT NULL,
  PRIMARY KEY (server, key_id)
);

-- The answers of GET /_matrix/key/v2/server as their servers signed them, for those who ask us as a notary.
CREATE TABLE server_key_answers (
  server TEXT PRIMARY KEY,
  answer BLOB NOT NULL,
  valid_until BIGINT NOT NULL,
  fetched_at BIGINT NOT NULL
);
