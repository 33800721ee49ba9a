-- Several snapshots a version: a state of the past is replayed from the one before it.
CREATE TABLE states (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL,
    state      BLOB    NOT NULL,
    PRIMARY KEY (version_id, sequence)
) STRICT, WITHOUT ROWID;
INSERT INTO states (version_id, sequence, state) SELECT version_id, sequence, state FROM snapshots;
DROP TABLE snapshots;
ALTER TABLE states RENAME TO snapshots;

-- Rows of a record that were erased: their places in it, u32 each. Their cells are zeros.
ALTER TABLE update_log ADD COLUMN erased BLOB;

-- An alias may name a version as it stood at a sequence.
ALTER TABLE aliases ADD COLUMN sequence INTEGER;

-- What was erased, and when; never what it said.
CREATE TABLE erasures (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    PRIMARY KEY (version_id, sequence)
) STRICT, WITHOUT ROWID;
