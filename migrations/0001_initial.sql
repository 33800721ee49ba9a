-- Datasets. A dataset is a list of segments (one for each upload or append); a segment is a list of chunks of rows; a chunk is one
-- encoded, checksummed payload a column. A segment whose dataset_id is NULL belongs to nobody: an upload under way, one that was cut
-- off, or one replaced or deleted. Such segments are invisible and are swept away in small steps.
CREATE TABLE datasets (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    revision   INTEGER NOT NULL,
    rows       INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    summary    TEXT    NOT NULL          -- schema and column summaries, JSON
) STRICT;

CREATE TABLE segments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: a fit may still be reading a discarded one
    dataset_id INTEGER REFERENCES datasets (id) ON DELETE SET NULL,
    position   INTEGER NOT NULL,
    rows       INTEGER NOT NULL
) STRICT;
CREATE INDEX segments_of_dataset ON segments (dataset_id, position);

CREATE TABLE chunks (
    id         INTEGER PRIMARY KEY,
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    position   INTEGER NOT NULL,
    first_row  INTEGER NOT NULL,
    rows       INTEGER NOT NULL,
    UNIQUE (segment_id, position)
) STRICT;

CREATE TABLE column_chunks (
    id       INTEGER PRIMARY KEY,
    chunk_id INTEGER NOT NULL REFERENCES chunks (id),
    position INTEGER NOT NULL,           -- the column's place in the segment's schema
    payload  BLOB    NOT NULL,
    UNIQUE (chunk_id, position)
) STRICT;

-- Models. `served` is an alias like any other, moved by a fit.
CREATE TABLE models (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE,
    last_version INTEGER NOT NULL,       -- numbers are never given out twice, also after a version was deleted
    created_at   TEXT    NOT NULL
) STRICT;

CREATE TABLE versions (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id   INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    document   TEXT    NOT NULL,         -- what was fitted and how, JSON
    state      BLOB    NOT NULL,         -- the square-root information at sequence 0, checksummed
    created_at TEXT    NOT NULL,
    UNIQUE (model_id, version)
) STRICT;

CREATE TABLE aliases (
    model_id INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    alias    TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    PRIMARY KEY (model_id, alias)
) STRICT, WITHOUT ROWID;

-- The update log: the order of learning. One record holds the rows of one version that were committed together.
CREATE TABLE update_log (
    version_id     INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    first_sequence INTEGER NOT NULL,
    rows           INTEGER NOT NULL,
    payload        BLOB    NOT NULL,     -- rows × (inputs, targets, weight) as f64, checksummed
    created_at     TEXT    NOT NULL,
    PRIMARY KEY (version_id, first_sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    version_id INTEGER PRIMARY KEY REFERENCES versions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL,
    state      BLOB    NOT NULL
) STRICT;

-- `_id` of a row: learnt from once; its a-priori answer is kept, so that a repeat is answered alike.
CREATE TABLE events (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    event      TEXT    NOT NULL,
    sequence   INTEGER NOT NULL,
    answer     BLOB    NOT NULL,         -- predictions then errors, f64 each
    PRIMARY KEY (version_id, event)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    key         TEXT    PRIMARY KEY,
    fingerprint BLOB    NOT NULL,        -- SHA-256 of route and body
    reply       TEXT    NOT NULL,        -- JSON: status, headers and body, or the job that answers
    created_at  TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    id          TEXT PRIMARY KEY,
    model       TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'interrupted')),
    version     INTEGER,
    problem     TEXT,
    created_at  TEXT NOT NULL,
    finished_at TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_time ON jobs (created_at);
