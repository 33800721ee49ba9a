-- Keys. A row stays when its key is revoked: whoever asked for keys once never serves everybody again unawares.
CREATE TABLE keys (
    id         TEXT NOT NULL PRIMARY KEY,
    name       TEXT,
    digest     BLOB NOT NULL,            -- HMAC-SHA-256 of id and secret, keyed with the pepper; the secret itself is kept nowhere
    scopes     TEXT NOT NULL,            -- words, with commas between them
    models     TEXT,                     -- patterns of names, JSON; NULL is every name
    datasets   TEXT,                     -- the same
    created_at TEXT NOT NULL,
    expires_at TEXT,
    revoked_at TEXT
) STRICT, WITHOUT ROWID;

-- One row, from the first key on.
CREATE TABLE keyring (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    pepper     BLOB    NOT NULL,         -- so that a digest of one database says and opens nothing in another
    generation INTEGER NOT NULL          -- counts the changes of the keys: a running server looks at it, and reads them again
) STRICT;
CREATE TRIGGER keys_made AFTER INSERT ON keys BEGIN UPDATE keyring SET generation = generation + 1; END;
CREATE TRIGGER keys_changed AFTER UPDATE ON keys BEGIN UPDATE keyring SET generation = generation + 1; END;
CREATE TRIGGER keys_gone AFTER DELETE ON keys BEGIN UPDATE keyring SET generation = generation + 1; END;
