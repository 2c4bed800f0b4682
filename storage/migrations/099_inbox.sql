-- Voice messages that a user has not played, so that an inbox is read and not computed over all that was ever said. Only users who look into
-- their inbox have rows.
CREATE TABLE voice_unplayed (
  user_id TEXT NOT NULL,
  pos BIGINT NOT NULL,        -- stream position of the message
  num BIGINT NOT NULL,        -- of the event; a message that is gone has no row in voice_messages any more
  PRIMARY KEY (user_id, pos)
)
--@sqlite
WITHOUT ROWID
--@end
;
-- Up to which stream position what came has been sorted into voice_unplayed.
CREATE TABLE voice_inboxes (
  user_id TEXT PRIMARY KEY,
  upto BIGINT NOT NULL
);
-- From now on a redaction takes a message out.
DELETE FROM voice_messages WHERE num IN (SELECT num FROM events WHERE redacted_by IS NOT NULL);
