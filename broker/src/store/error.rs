//! Why a data directory could not be opened, read or written.

use std::path::{Path, PathBuf};

/// A storage failure. Its message says which operation failed, on which file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses the data directory.
    #[error(
        "data directory {path} is in use by another process{}: stop it first, or name another directory",
        holder.as_ref().map(|pid| format!(" ({pid})")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process ID that the holder wrote to the lock file.
        holder: Option<String>,
    },
    /// The data directory has a format that this version does not support.
    #[error(
        "data directory {path} has format {found:?}, and this version reads and writes {known:?}: make a backup with \
         the version of Millstream that wrote the directory, and restore the backup with this version; nothing was \
         changed"
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// The content of its format file.
        found: String,
        /// The format that this version reads and writes.
        known: &'static str,
    },
    /// The directory contains other files.
    #[error(
        "{path} is not a data directory: it contains {found:?} and no format file; name a new or empty \
         directory, or restore it if it is a backup"
    )]
    NotADataDirectory {
        /// The directory.
        path: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// There is no data directory.
    #[error("{path} is not a data directory: it has no file FORMAT; if it is a backup, restore it")]
    NoDataDirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// A database is missing, and creating a new one in its place would make the rest of the data worthless.
    #[error("{path} is missing or empty, and the directory holds data that needs it: go back to a backup")]
    Missing {
        /// The database's file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}{advice}", advice = io_advice(.action, .source))]
    Io {
        /// The operation, such as "open" or "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// redb failed.
    #[error("the database failed: {0}")]
    Database(#[source] Box<redb::Error>),
    /// The data that was read is not what was written.
    #[error("{what} is corrupt: {reason}")]
    Corrupt {
        /// The data that is corrupt.
        what: String,
        /// What is wrong with the data.
        reason: String,
    },
    /// The records were moved to another place. The caller must look them up again.
    #[error("the records were moved while they were read")]
    Moved,
    /// A thread of the store panicked, or could not be started.
    #[error("the store stopped: {0}")]
    Stopped(String),
    /// A thread of the store panicked.
    #[error("the store stopped: {who} panicked, see the log")]
    Panicked {
        /// The thread.
        who: String,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn open(path: &Path, source: redb::DatabaseError) -> Self {
        match source {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                let path = path.parent().unwrap_or(path).to_owned();
                Self::Locked { path, holder: None }
            }
            // The file does not begin like a database.
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if source.kind() == std::io::ErrorKind::InvalidData =>
            {
                Self::Corrupt { what: path.display().to_string(), reason: source.to_string() }
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) => Self::io("open", path, source),
            other => Self::Database(Box::new(other.into())),
        }
    }

    /// Returns the error for a panic of the thread `who`.
    pub(crate) fn panicked(who: &str) -> Self {
        Self::Panicked { who: who.to_owned() }
    }

    /// Returns whether reading stored data failed, as opposed to writing new data.
    pub(crate) fn is_of_reading(&self) -> bool {
        matches!(self, Self::Io { action: "open" | "read", .. } | Self::Corrupt { .. })
    }

    /// Returns whether stored data is, or may be, damaged: a check of the directory tells.
    pub fn is_of_damage(&self) -> bool {
        match self {
            // redb panics on some damaged pages.
            Self::Corrupt { .. } | Self::Panicked { .. } => true,
            Self::Database(error) => matches!(**error, redb::Error::Corrupted(_)),
            _ => false,
        }
    }

    /// Returns whether the disk is full or a quota is exhausted.
    pub fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let io = match self {
            Self::Io { source, .. } => source,
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(source) => source,
                _ => return false,
            },
            _ => return false,
        };
        matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

fn io_advice(action: &str, source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied, StorageFull};
    match source.kind() {
        AlreadyExists => "; a file of that name exists, name another folder",
        NotADirectory => "; name a folder, not a file",
        NotFound if action == "make" => "; create its parent folder first",
        PermissionDenied => "; the user that this process runs as lacks the permission",
        StorageFull => "; make room, and try again",
        _ => "",
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_of_a_file_is_told_with_what_to_do() {
        use std::io::ErrorKind as K;
        for (action, kind, advice) in [
            ("make", K::AlreadyExists, "name another folder"),
            ("open", K::NotADirectory, "name a folder, not a file"),
            ("make", K::NotFound, "create its parent folder first"),
            ("open", K::PermissionDenied, "the user that this process runs as lacks the permission"),
            ("write", K::StorageFull, "make room, and try again"),
        ] {
            let told = StoreError::Io { action, path: "data".into(), source: kind.into() }.to_string();
            assert!(told.contains(advice), "{told}");
        }
        let told = StoreError::Io { action: "open", path: "data".into(), source: K::NotFound.into() }.to_string();
        assert!(!told.contains(';'), "there is nothing to advise: {told}");
    }
}
