-- Voice messages that are listened to while they are spoken.
CREATE TABLE live_recordings (
  media_id TEXT PRIMARY KEY,    -- of this server
  uploader TEXT NOT NULL,
  content_type TEXT NOT NULL,   -- empty until something has come
  size BIGINT NOT NULL,         -- bytes that have come
  whole BIGINT NOT NULL,        -- of them, up to the end of the last whole unit: what may be read
  scan TEXT NOT NULL,           -- what has to be known to go on from there, as JSON
  state BIGINT NOT NULL,        -- 0 open, 1 ended, 2 kept as a file, 3 cancelled
  due_ms BIGINT NOT NULL        -- when somebody must look after it: an open one is silent then
);
CREATE INDEX live_recordings_due ON live_recordings (due_ms);
CREATE INDEX live_recordings_uploader ON live_recordings (uploader);

-- What has come of them, until it is a blob.
CREATE TABLE live_chunks (
  media_id TEXT NOT NULL,
  at BIGINT NOT NULL,           -- where it begins
  bytes BLOB NOT NULL,
  PRIMARY KEY (media_id, at)
);

-- The messages with them, each until it has been edited into an ordinary one or redacted.
CREATE TABLE live_events (
--@sqlite
  num INTEGER PRIMARY KEY,      -- of the event
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  media_id TEXT NOT NULL
);
CREATE INDEX live_events_media ON live_events (media_id);
