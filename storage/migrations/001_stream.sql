-- The one counter of stream positions: a single row.
CREATE TABLE stream (
  id BIGINT PRIMARY KEY,
  position BIGINT NOT NULL
);
INSERT INTO stream (id, position) VALUES (1, 0);

-- Small facts about this server, such as its name, which must not change under a database.
CREATE TABLE facts (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
);
