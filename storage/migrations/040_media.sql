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

-- What stands for a blob: rows of media and of thumbnails. A blob without references is doomed: it is deleted from the
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

-- Thumbnails by the blob they were made from; they go when it goes. Their own bytes are blobs too.
CREATE TABLE thumbnails (
  source TEXT NOT NULL,
  width BIGINT NOT NULL,
  height BIGINT NOT NULL,
  -- crop or scale
  method TEXT NOT NULL,
  hash TEXT NOT NULL,
  size BIGINT NOT NULL,
  content_type TEXT NOT NULL,
  PRIMARY KEY (source, width, height, method)
);

-- Previews of links as JSON, until they expire.
CREATE TABLE url_previews (
  url TEXT PRIMARY KEY,
  body TEXT NOT NULL,
  made_ms BIGINT NOT NULL
);
CREATE INDEX url_previews_by_age ON url_previews (made_ms);
