//! What can go wrong between the service and the file.

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite or the driver said no.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The migrations could not be applied.
    #[error("the database could not be migrated: {0}")]
    Migration(sqlx::migrate::MigrateError),
    /// The file was written by a newer lsqd.
    #[error("this database was written by a newer lsqd (schema {0}); start that version or a newer one")]
    Newer(i64),
    /// The file was written by an older lsqd.
    #[error("this database is of an older lsqd (schema {0}); `lsqd restore`, or a start of the server, brings it to the present schema")]
    Older(i64),
    /// A file that cannot be read at all.
    #[error("the database cannot be read: {0}")]
    Unreadable(String),
    /// SQLite older than 3.51.3.
    #[error("SQLite {0} is linked, but versions before 3.51.3 can corrupt a database in WAL mode; build lsqd with its bundled SQLite")]
    OldSqlite(String),
    /// A running server of another version has the file.
    #[error("the server that has this database open is of another version; use the lsqd of that version, or stop it first")]
    OtherSchema,
    /// Another process has the file.
    #[error("another lsqd has this database open; stop it, or give this one a file of its own")]
    InUse,
    /// The lock beside the file cannot be made.
    #[error("the lock file beside the database cannot be made: {0}")]
    Lock(std::io::Error),
    /// There is no file at that path.
    #[error("there is no such file")]
    NotThere,
    /// A file that is something else.
    #[error("this is not a database of lsqd")]
    NotOurs,
    /// There is something already where a file is to be written.
    #[error("there is a file already; --force puts this one in its place")]
    Exists,
    /// A path that SQLite cannot be told.
    #[error("the path is not UTF-8")]
    Path,
    /// Another process writes the same file.
    #[error("another process is making this file")]
    Busy,
    /// The owner of a copy under way wants it no longer.
    #[error("the copy was broken off")]
    Stopped,
    /// The log grew past its bound while a copy was made.
    #[error("the database changes faster than it can be copied: its log has outgrown it meanwhile")]
    Outgrown,
    /// The system refused something outside SQLite.
    #[error("{0}: {1}")]
    File(&'static str, std::io::Error),
    /// A checksum does not agree, or stored bytes do not decode.
    #[error("stored data is damaged: {0}")]
    Corrupt(&'static str),
}

impl StoreError {
    pub(crate) fn from_migration(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => Self::Newer(version),
            other => Self::Migration(other),
        }
    }

    /// Whether the file itself refused (a full disk, a failed write or sync), as opposed to a fault in our own statements.
    #[must_use]
    pub fn is_storage_failure(&self) -> bool {
        // 8 READONLY, 10 IOERR, 11 CORRUPT, 13 FULL, 14 CANTOPEN, 26 NOTADB.
        self.primary_code().is_some_and(|code| matches!(code, 8 | 10 | 11 | 13 | 14 | 26))
    }

    /// Whether SQLite found its file damaged.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self.primary_code(), Some(11 | 26))
    }

    /// Whether there is no room left on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::File(_, error) => error.kind() == std::io::ErrorKind::StorageFull,
            other => other.primary_code() == Some(13),
        }
    }

    /// SQLite's primary result code, if SQLite said no.
    #[must_use]
    pub fn primary_code(&self) -> Option<i32> {
        let Self::Database(sqlx::Error::Database(error)) = self else { return None };
        error.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff)
    }
}
