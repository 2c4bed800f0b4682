-- The index of words; storage/search.go tells how it works. A segment holds the words of some thousand events and is never
-- changed: several small ones become one larger one.
CREATE TABLE search_segments (
--@sqlite
  seg INTEGER PRIMARY KEY,
--@end
--@postgres
  seg BIGINT PRIMARY KEY,
--@end
  docs BIGINT NOT NULL,       -- how many events
  first_ts BIGINT NOT NULL,   -- origin_server_ts of the oldest and the newest, ms
  last_ts BIGINT NOT NULL,
  head BLOB NOT NULL,         -- where in its blocks what is
  dead BLOB                   -- events of it that are no longer to be found
);

-- The blocks of the segments: first their events, then their words.
CREATE TABLE search_blocks (
--@sqlite
  id INTEGER PRIMARY KEY,     -- the segment's number times 2^20, plus the block's
--@end
--@postgres
  id BIGINT PRIMARY KEY,
--@end
  data BLOB NOT NULL
);

-- When the events of a room were sent, for those that the index has passed.
CREATE TABLE event_times (
  room BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  num BIGINT NOT NULL,
  PRIMARY KEY (room, ts, num)
)
--@sqlite
WITHOUT ROWID
--@end
;

-- Events that are to be looked at again: they have come or changed elsewhere than at the end of the stream, or are gone.
CREATE TABLE index_queue (
--@sqlite
  num INTEGER PRIMARY KEY,
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  room BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  stamp BIGINT NOT NULL       -- raised when an event is queued once more
);
