-- Who has played a voice message of one of our users and lets the sender know. What is here stays, though the player may call the
-- message unplayed again.
CREATE TABLE voice_heard (
  event_id TEXT NOT NULL,
  user_id TEXT NOT NULL,      -- who has played it
  sender TEXT NOT NULL,       -- of the message
  room_id TEXT NOT NULL,
  ts BIGINT NOT NULL,         -- when, in ms, by the clock of the player's server
  pos BIGINT NOT NULL,        -- stream position of the receipt
  PRIMARY KEY (event_id, user_id)
)
--@sqlite
WITHOUT ROWID
--@end
;
CREATE INDEX voice_heard_sender ON voice_heard (sender, pos);
CREATE INDEX voice_heard_room ON voice_heard (room_id);

-- When a transcript came or was changed: a stream position.
ALTER TABLE transcribed ADD COLUMN pos BIGINT NOT NULL DEFAULT 0;
CREATE INDEX transcribed_pos ON transcribed (room, pos);

-- Of a recording in another codec than Opus no more is known than how long it is.
ALTER TABLE recordings ADD COLUMN codec TEXT NOT NULL DEFAULT 'opus';
