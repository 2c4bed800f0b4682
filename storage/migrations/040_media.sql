-- Files by the name they have in mxc:// URIs, ours and, as a cache, other servers'.
CREATE TABLE media (
  server TEXT NOT NULL,
  media_id TEXT NOT NULL,
  -- SHA-256 of the content in hexadecimal; empty until something has been uploaded.
  hash TEXT NOT NULL,
  size BIGINT NOT NULL,
  content_type TEXT NOT NULL,
  filename TEXT NOT NULL,
  -- User ID; empty for media of other servers.
  uploader TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  -- When an ID without an upload is forgotten; 0 if there was one.
  expires_ms BIGINT NOT NULL,
  -- Last read, kept for media of other servers only.
  used_ms BIGINT NOT NULL,
  PRIMARY KEY (server, media_id)
);
CREATE INDEX media_by_uploader ON media (uploader, size) WHERE uploader <> '';
CREATE INDEX media_by_expiry ON media (expires_ms) WHERE expires_ms > 0;
CREATE INDEX media_by_use ON media (used_ms) WHERE uploader = '';

-- What stands for a blob: rows of media and of derivatives. A blob without references is doomed: it is deleted from the
-- store first and from this table then, by the one whose claim stands here; nobody may refer to it in between.
CREATE TABLE blobs (
  hash TEXT PRIMARY KEY,
  size BIGINT NOT NULL,
  refs BIGINT NOT NULL,
  -- 0 until somebody has taken it upon himself to delete the blob.
  claim BIGINT NOT NULL,
  -- When the last reference went, or when the claim was made.
  doomed_ms BIGINT NOT NULL
);
CREATE INDEX blobs_doomed ON blobs (doomed_ms) WHERE refs = 0;

-- What was made from a blob: thumbnails, and recordings in another container. They go when it goes; their own bytes are
-- blobs too.
CREATE TABLE derivatives (
  source TEXT NOT NULL,
  -- crop, scale, or a container.
  kind TEXT NOT NULL,
  -- 0 for recordings.
  width BIGINT NOT NULL,
  height BIGINT NOT NULL,
  hash TEXT NOT NULL,
  size BIGINT NOT NULL,
  content_type TEXT NOT NULL,
  PRIMARY KEY (source, kind, width, height)
);

-- What was counted in blobs that are recordings: one Opus stream of one or two channels. They go with their blob.
CREATE TABLE recordings (
  hash TEXT PRIMARY KEY,
  -- ogg, webm or mp4
  container TEXT NOT NULL,
  channels BIGINT NOT NULL,
  -- At 48 kHz, to be heard.
  samples BIGINT NOT NULL,
  -- 100 numbers from 0 to 1024 with commas between them; empty until they have been computed.
  waveform TEXT NOT NULL
);

-- Previews of links as JSON, until they expire.
CREATE TABLE url_previews (
  url TEXT PRIMARY KEY,
  body TEXT NOT NULL,
  made_ms BIGINT NOT NULL
);
CREATE INDEX url_previews_by_age ON url_previews (made_ms);
