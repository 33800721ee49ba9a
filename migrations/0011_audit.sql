-- Who changed what: one record a change, written in its transaction. Each is sealed with SHA-256 over itself and the seal of the one before,
-- so that none can be changed, taken out or put in between without all later ones being made anew. It outlives what it tells of.
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY,        -- 1, 2, 3, …, without a gap
    at       TEXT    NOT NULL,
    who      TEXT    NOT NULL,           -- the id of a key; `anonymous`, `local` (the command line) or `lsqd` (the server by itself)
    request  TEXT    NOT NULL,           -- the request's id; empty for what nobody asked
    action   TEXT    NOT NULL,
    subject  TEXT    NOT NULL,           -- the name of a dataset or model, the id of a key; empty for the whole database
    before   TEXT,                       -- what stood there, JSON; never what a row said
    after    TEXT,                       -- what stands there, JSON
    seal     BLOB    NOT NULL
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT raise(ABORT, 'the audit log is only ever added to');
END;

CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit
BEGIN
    SELECT raise(ABORT, 'the audit log is only ever added to');
END;
