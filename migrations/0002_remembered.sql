-- Rows that were predicted to be remembered: kept for their labels, and after that until they expire, so that a label that is sent again is
-- answered alike.
CREATE TABLE remembered (
    id         BLOB    NOT NULL PRIMARY KEY, -- the prediction's id: a UUID of version 7, so new ones come last
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    cells      BLOB    NOT NULL,         -- one f64 a feature, checksummed
    label      BLOB,                     -- targets, then weight, f64 each; once learnt
    answer     BLOB,                     -- predictions, then errors, f64 each; once learnt
    created_at TEXT    NOT NULL,
    expires_at TEXT    NOT NULL
) STRICT;
CREATE INDEX remembered_of_version ON remembered (version_id);
CREATE INDEX remembered_by_expiry ON remembered (expires_at);
