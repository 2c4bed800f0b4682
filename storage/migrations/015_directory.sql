-- Aliases of this server.
CREATE TABLE aliases (
  alias TEXT PRIMARY KEY,
  room_id TEXT NOT NULL,
  creator TEXT NOT NULL,
  created_ms BIGINT NOT NULL
);
CREATE INDEX aliases_room ON aliases (room_id);

-- Rooms in this server's public list. network is '' for the list itself, else the list of an application service.
CREATE TABLE published_rooms (
  network TEXT NOT NULL,
  room_id TEXT NOT NULL,
  PRIMARY KEY (network, room_id)
);

-- Events that other servers sent us and we answered for, but which wait for events before them. They go when they
-- enter their room, or are given up.
CREATE TABLE inbound_events (
  room_id TEXT NOT NULL,
  event_id TEXT NOT NULL,
  origin TEXT NOT NULL,       -- the server that sent it
  depth BIGINT NOT NULL,      -- by which they are taken up
  received_ms BIGINT NOT NULL,
  json BLOB NOT NULL,
  PRIMARY KEY (room_id, event_id)
);
