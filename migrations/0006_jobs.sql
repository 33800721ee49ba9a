-- Jobs do other things than fits: what one does, and the dataset that it makes.
ALTER TABLE jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'fit';
ALTER TABLE jobs ADD COLUMN dataset TEXT;

-- What made a dataset, JSON; NULL where somebody uploaded it.
ALTER TABLE datasets ADD COLUMN origin TEXT;
