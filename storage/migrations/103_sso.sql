-- Whose account belongs to whom at a sign-in provider. The issuer and its subject name a person for ever; a row stays when the
-- account is deactivated, so that the person does not come back under another name.
CREATE TABLE external_ids (
  issuer TEXT NOT NULL,
  subject TEXT NOT NULL,
  user_id TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  PRIMARY KEY (issuer, subject)
);
CREATE UNIQUE INDEX external_ids_user ON external_ids (user_id, issuer);
