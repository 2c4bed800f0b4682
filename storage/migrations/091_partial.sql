-- Rooms that were joined with the members left out of the answer. A row stays when all has been fetched: whole_pos tells since when.
CREATE TABLE partial_rooms (
--@sqlite
  room INTEGER PRIMARY KEY,
--@end
--@postgres
  room BIGINT PRIMARY KEY,
--@end
  join_num BIGINT NOT NULL,   -- the event by which this server came in
  root BLOB NOT NULL,         -- state tree of the state before it, as far as it was told then
  since_ms BIGINT NOT NULL,
  whole_pos BIGINT NOT NULL   -- stream position at which the state became whole; 0 while it is not
);

-- The servers that were in such a room, until its state is whole.
CREATE TABLE partial_servers (
  room BIGINT NOT NULL,
  server TEXT NOT NULL,
  place BIGINT NOT NULL,      -- the order in which they are asked
  PRIMARY KEY (room, server)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX partial_servers_server ON partial_servers (server, room);

-- The events that entered such a room since, in the order in which they did: they are judged again when the state is whole.
CREATE TABLE partial_events (
  room BIGINT NOT NULL,
  seq BIGINT NOT NULL,        -- rooms.seq of the write
  place BIGINT NOT NULL,      -- within the write
  num BIGINT NOT NULL,        -- the event
  told BLOB,                  -- state trees after those prev_events that are not here, as another server has told them
  PRIMARY KEY (room, seq, place)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX partial_events_num ON partial_events (room, num);
