-- Voice messages in clear, so that those not yet played are found without reading every message.
CREATE TABLE voice_messages (
--@sqlite
  num INTEGER PRIMARY KEY,    -- of the event
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  room BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  event_id TEXT NOT NULL,
  sender TEXT NOT NULL
);
CREATE INDEX voice_messages_room ON voice_messages (room, pos);

-- Which voice messages each user has played, and where they stopped in one.
CREATE TABLE voice_played (
  user_id TEXT NOT NULL,
  event_id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  played BIGINT NOT NULL,     -- 1 once it was played to its end, or marked so
  position_ms BIGINT NOT NULL,
  pos BIGINT NOT NULL,        -- stream position of the change
  PRIMARY KEY (user_id, event_id)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX voice_played_room ON voice_played (user_id, room_id, pos);
