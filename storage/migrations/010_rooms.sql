-- Rooms. num is what every other table calls the room by.
CREATE TABLE rooms (
--@sqlite
  num INTEGER PRIMARY KEY,
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  room_id TEXT NOT NULL,
  version TEXT NOT NULL,
  seq BIGINT NOT NULL,        -- raised by each append, which compares and swaps it
  pos BIGINT NOT NULL,        -- stream position of the newest event of the timeline
  tip BLOB NOT NULL,          -- event numbers of the forward extremities, as varints
  root BLOB NOT NULL,         -- state tree of the current state
  depth BIGINT NOT NULL,      -- the highest depth in the tip
  flags BIGINT NOT NULL       -- RoomFlags
);
CREATE UNIQUE INDEX rooms_id ON rooms (room_id);

-- Events, each once. Few indexes: a message should dirty less than ten pages.
CREATE TABLE events (
--@sqlite
  num INTEGER PRIMARY KEY,
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  pos BIGINT,                 -- stream position; NULL for outliers, backfilled, rejected and soft-failed events
  room BIGINT NOT NULL,
  depth BIGINT NOT NULL,
  ts BIGINT NOT NULL,         -- origin_server_ts, ms
  event_id TEXT NOT NULL,
  type TEXT NOT NULL,
  state_key TEXT,             -- NULL for what is no state event
  sender TEXT NOT NULL,
  flags BIGINT NOT NULL,      -- EventFlags
  root BLOB,                  -- state tree of the state before the event; NULL for outliers
  redacted_by TEXT,           -- event ID of the redaction that was applied; json has been pruned then
  txn TEXT,                   -- device, event type and transaction ID, separated by newlines
  json BLOB NOT NULL          -- as other servers see it
);
CREATE UNIQUE INDEX events_id ON events (event_id);
CREATE INDEX events_topological ON events (room, depth, num);
CREATE INDEX events_stream ON events (room, pos, ts) WHERE pos IS NOT NULL;
CREATE UNIQUE INDEX events_txn ON events (room, sender, txn) WHERE txn IS NOT NULL;

-- The nodes of the state trees, addressed by what they hold. They belong to one room, so that purging it frees them.
CREATE TABLE state_nodes (
  room BIGINT NOT NULL,
  hash BLOB NOT NULL,
  node BLOB NOT NULL,
  PRIMARY KEY (room, hash)
)
--@sqlite
WITHOUT ROWID
--@end
;

-- The current state of a room from a stream position on; a row only where it changed.
CREATE TABLE room_states (
  room BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  root BLOB NOT NULL,
  PRIMARY KEY (room, pos)
)
--@sqlite
WITHOUT ROWID
--@end
;

-- Who is, was or may be in a room, by its current state. A user of ours invited into a room that we are not in has a
-- row too, with the stripped state that came with the invite.
CREATE TABLE memberships (
  room BIGINT NOT NULL,
  server TEXT NOT NULL,       -- of the user
  user_id TEXT NOT NULL,
  membership TEXT NOT NULL,
  num BIGINT NOT NULL,        -- the member event
  pos BIGINT NOT NULL,        -- stream position of the change
  forgotten BIGINT NOT NULL,  -- 1 if the user has forgotten the room
  stripped BLOB,              -- JSON array of stripped state, for invites and knocks from elsewhere
  PRIMARY KEY (room, server, user_id)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX memberships_user ON memberships (user_id, room);

-- Which events relate to which.
CREATE TABLE relations (
  room BIGINT NOT NULL,
  parent TEXT NOT NULL,       -- event ID, of an event that we may not have
  num BIGINT NOT NULL,        -- the event that relates to it
  rel_type TEXT NOT NULL,
  type TEXT NOT NULL,
  sender TEXT NOT NULL,
  depth BIGINT NOT NULL,
  PRIMARY KEY (room, parent, num)
)
--@sqlite
WITHOUT ROWID
--@end
;
-- Thread roots, for the list of threads.
CREATE INDEX relations_threads ON relations (room, num) WHERE rel_type = 'm.thread';

-- Backward extremities: prev_events that we do not have, and who names them.
CREATE TABLE missing_prev (
  room BIGINT NOT NULL,
  event_id TEXT NOT NULL,     -- the missing event
  num BIGINT NOT NULL,        -- an event that has it among its prev_events
  depth BIGINT NOT NULL,      -- of that event
  PRIMARY KEY (room, event_id, num)
)
--@sqlite
WITHOUT ROWID
--@end
;

-- Redactions that came before what they redact.
CREATE TABLE pending_redactions (
  target TEXT NOT NULL,       -- event ID
  num BIGINT NOT NULL,        -- the redaction
  PRIMARY KEY (target, num)
)
--@sqlite
WITHOUT ROWID
--@end
;
