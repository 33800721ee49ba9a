-- The checksum of an alias, and of what it points at; none of one that was set before there were such.
ALTER TABLE aliases ADD COLUMN checksum INTEGER;
