-- What was purged of a room's history: see PurgePoint. generation is raised by each purge; new state nodes carry it.
ALTER TABLE rooms ADD COLUMN purged_depth BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN purged_num BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN purged_from BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN purged_ts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN purged_pos BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN purged_gap BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;

-- The generation of the room in which a node was written last. The sweep takes only older ones.
ALTER TABLE state_nodes ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;

-- Rows that are left of purged events; there are few. 8 is the flag Purged, the highest.
CREATE INDEX events_purged ON events (room, num) WHERE flags >= 8;

-- The work of deleting, one row for each purge, in the order of num.
CREATE TABLE purge_jobs (
  num BIGINT PRIMARY KEY,
  id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  kind TEXT NOT NULL,           -- history, room, or retention
  depth BIGINT NOT NULL,        -- events before the place (depth, event_num) go,
  event_num BIGINT NOT NULL,
  before_ms BIGINT NOT NULL,    -- and those with an older origin_server_ts
  pos BIGINT NOT NULL,          -- of those with a stream position no later than this
  keep_local BIGINT NOT NULL,   -- 1: what users of this server sent stays
  forced BIGINT NOT NULL,       -- 1: users of this server are made to leave the room first
  requested_by TEXT NOT NULL,
  status TEXT NOT NULL,         -- waiting, running, done, failed
  error TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  ended_ms BIGINT NOT NULL,
  claimed_ms BIGINT NOT NULL,   -- until when somebody is at it
  total BIGINT NOT NULL,        -- how many events are to go, as counted at the beginning
  events BIGINT NOT NULL,       -- rows that have gone
  nodes BIGINT NOT NULL,
  media BIGINT NOT NULL,
  left_users TEXT NOT NULL      -- JSON array of the users of this server who were made to leave
);
CREATE UNIQUE INDEX purge_jobs_id ON purge_jobs (id);
CREATE INDEX purge_jobs_room ON purge_jobs (room_id);

-- Legal holds.
CREATE TABLE holds (
  kind TEXT NOT NULL,           -- room or user
  target TEXT NOT NULL,         -- its ID
  set_by TEXT NOT NULL,
  set_ms BIGINT NOT NULL,
  PRIMARY KEY (kind, target)
);

-- What a hold keeps of events that were redacted or purged.
CREATE TABLE held_events (
--@sqlite
  num INTEGER PRIMARY KEY,      -- of the event
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  room_id TEXT NOT NULL,
  event_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  kept_ms BIGINT NOT NULL,
  json BLOB NOT NULL            -- as it was before
);
CREATE INDEX held_events_room ON held_events (room_id, num);
CREATE INDEX held_events_sender ON held_events (sender, num);

-- Which files an event names in clear. Member events are left out: what they name are avatars, which belong to profiles.
CREATE TABLE event_media (
  num BIGINT NOT NULL,          -- of the event
  server TEXT NOT NULL,
  media_id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  PRIMARY KEY (num, server, media_id)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX event_media_use ON event_media (server, media_id);

-- 1 once an event with the file, sent by who uploaded it, was purged: the file goes with the last other one.
ALTER TABLE media ADD COLUMN published BIGINT NOT NULL DEFAULT 0;

CREATE INDEX voice_played_event ON voice_played (event_id);
