-- Up to which event somebody has read a room, or one thread of it. One row for each user, type and thread.
CREATE TABLE receipts (
  room_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  type TEXT NOT NULL,         -- m.read or m.read.private
  thread TEXT NOT NULL,       -- "" if unthreaded, "main", or the event ID of the thread's root
  event_id TEXT NOT NULL,
  event_pos BIGINT NOT NULL,  -- stream position of that event; 0 if it was not known when the receipt came
  ts BIGINT NOT NULL,         -- ms
  pos BIGINT NOT NULL,        -- stream position of the receipt
  PRIMARY KEY (room_id, user_id, type, thread)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX receipts_pos ON receipts (room_id, pos);
