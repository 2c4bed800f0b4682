-- What people have reported to the administrators. room_id, event_id and user_id are '' where the report is not about one.
CREATE TABLE reports (
  num BIGINT PRIMARY KEY,      -- in the order in which they came
  reporter TEXT NOT NULL,
  room_id TEXT NOT NULL,
  event_id TEXT NOT NULL,
  user_id TEXT NOT NULL,       -- the sender of the event, or the user reported
  reason TEXT NOT NULL,
  created_ms BIGINT NOT NULL
);
