-- How a model's requests are shared out between its versions, and what became of it. One row a model, while a split is on.
CREATE TABLE traffic (
    model_id   INTEGER PRIMARY KEY REFERENCES models (id) ON DELETE CASCADE,
    experiment INTEGER NOT NULL UNIQUE,  -- the microsecond in which it began; labels of what was predicted in another one do not count
    revision   INTEGER NOT NULL,         -- counts the changes of the plan
    plan       TEXT    NOT NULL,         -- members and shares, JSON
    scores     TEXT    NOT NULL,         -- what the labels say, JSON; written in the transaction of the label
    counts     TEXT    NOT NULL,         -- requests and rows of each member, JSON; written now and then
    since      TEXT    NOT NULL
) STRICT;

-- What the members of a split predicted for a remembered row.
ALTER TABLE remembered ADD COLUMN members TEXT;
ALTER TABLE remembered ADD COLUMN predictions BLOB; -- members × targets, f64 each, checksummed
