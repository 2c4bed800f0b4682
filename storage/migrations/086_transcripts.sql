-- What is said in recordings. It outlives the recording: media of other servers come and go, and the messages stay. It goes with
-- the last message that has it.
CREATE TABLE transcripts (
  hash TEXT PRIMARY KEY,        -- of the blob
  state BIGINT NOT NULL,        -- 0 somebody is at it, 1 done, 2 there will be none
  text TEXT NOT NULL,
  language TEXT NOT NULL,       -- BCP 47, or empty
  claimed_ms BIGINT NOT NULL    -- until when somebody is at it
);

-- Which voice messages have one.
CREATE TABLE transcribed (
--@sqlite
  num INTEGER PRIMARY KEY,      -- of the event
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  room BIGINT NOT NULL,
  hash TEXT NOT NULL,           -- empty if there is only the sender's own text
  correction TEXT,              -- what the sender says it is instead
  correction_language TEXT NOT NULL
);
CREATE INDEX transcribed_room ON transcribed (room, num);
CREATE INDEX transcribed_hash ON transcribed (hash);

-- Voice messages that wait for theirs. They are taken from voice_messages: all after the position in the fact transcripts_to.
CREATE TABLE transcript_jobs (
--@sqlite
  num INTEGER PRIMARY KEY,      -- of the event
--@end
--@postgres
  num BIGINT PRIMARY KEY,
--@end
  due_ms BIGINT NOT NULL,       -- when to try; of a job that is being done, when to think that it is not
  attempts BIGINT NOT NULL
);
CREATE INDEX transcript_jobs_due ON transcript_jobs (due_ms);
CREATE INDEX voice_messages_pos ON voice_messages (pos);
