-- The revision of its dataset with which a segment came: a version knows the segments up to the revision that it was fitted on. Each landing
-- counted the revision one up, and those since the last replacement are the segments that there are.
ALTER TABLE segments ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
UPDATE segments SET revision = position + (SELECT datasets.revision FROM datasets WHERE datasets.id = segments.dataset_id)
    - (SELECT max(others.position) FROM segments AS others WHERE others.dataset_id = segments.dataset_id)
WHERE dataset_id IS NOT NULL;

-- Rows of datasets that were erased: how many, and when; never what they said. It outlives its dataset, whose id is not given out again.
CREATE TABLE dataset_erasures (
    dataset_id INTEGER NOT NULL,
    revision   INTEGER NOT NULL,         -- the one that the erasure made
    rows       INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    PRIMARY KEY (dataset_id, revision)
) STRICT, WITHOUT ROWID;

-- What a kept reply tells of: rows of a version, the first and the last of them, or a dataset. What is erased there is erased in the reply too.
ALTER TABLE idempotency ADD COLUMN version_id INTEGER;
ALTER TABLE idempotency ADD COLUMN first_sequence INTEGER;
ALTER TABLE idempotency ADD COLUMN last_sequence INTEGER;
ALTER TABLE idempotency ADD COLUMN dataset_id INTEGER;
CREATE INDEX idempotency_of_version ON idempotency (version_id, last_sequence, first_sequence) WHERE version_id IS NOT NULL;
CREATE INDEX idempotency_of_dataset ON idempotency (dataset_id) WHERE dataset_id IS NOT NULL;

-- The sequence with which a remembered prediction's label was learnt.
ALTER TABLE remembered ADD COLUMN sequence INTEGER;
DROP INDEX remembered_of_version;
CREATE INDEX remembered_of_version ON remembered (version_id, sequence);
