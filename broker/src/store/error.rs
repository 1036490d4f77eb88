//! Why a data directory could not be opened, read or written.

use std::path::{Path, PathBuf};

/// A storage failure: what was done, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory.
    #[error(
        "data directory {path} is in use by another process{}: stop it first, or name another directory", holder.as_ref().map(|pid| format!(" ({pid})")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The holder's process id, as it wrote it.
        holder: Option<String>,
    },
    /// The data directory is of a format that this version does not know.
    #[error(
        "data directory {path} has format {found:?}, and this version reads and writes {known:?}: make a backup with the \
         version of Millstream that wrote the directory, and restore the backup with this version; nothing was changed"
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// What its format file says.
        found: String,
        /// What this version writes.
        known: &'static str,
    },
    /// The directory holds something else.
    #[error(
        "{path} is not a data directory: it holds {found:?} and no format file; name a new or empty one; of a backup, \
         `millstream restore` makes one"
    )]
    NotADataDirectory {
        /// The directory.
        path: PathBuf,
        /// A file in it.
        found: String,
    },
    /// There is no data directory.
    #[error("{path} is no data directory: it has no file FORMAT; of a backup, `millstream restore` makes one")]
    NoDataDirectory {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// A database is gone, and a new one in its place would make the rest worthless.
    #[error(
        "{path} is missing or empty, and the directory holds data that needs it: go back to a backup (`millstream restore`)"
    )]
    Missing {
        /// The database's file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}{advice}", advice = io_advice(.action, .source))]
    Io {
        /// "open", "write", …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// redb failed.
    #[error("the database failed: {0}{advice}", advice = advice(.0))]
    Database(#[source] Box<redb::Error>),
    /// What was read is not what was written.
    #[error("{what} is corrupt: {reason}; `millstream check` finds all damage, and with --repair keeps what is sound")]
    Corrupt {
        /// Which data.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was to be read is elsewhere by now: look it up again.
    #[error("the records were moved while they were read")]
    Moved,
    /// A thread of the store ended by a defect of ours, or could not be started.
    #[error("the store stopped: {0}")]
    Stopped(String),
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
            // It does not begin as a database does.
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if source.kind() == std::io::ErrorKind::InvalidData =>
            {
                Self::Corrupt { what: path.display().to_string(), reason: source.to_string() }
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) => Self::io("open", path, source),
            other => Self::Database(Box::new(other.into())),
        }
    }

    /// A thread of the store panicked.
    pub(crate) fn panicked(who: &str) -> Self {
        Self::Stopped(format!("{who} panicked, see the log; if redb did, `millstream check --repair` may help"))
    }

    /// Whether what was stored does not come back, and not what was to be written that failed.
    pub(crate) fn is_of_reading(&self) -> bool {
        matches!(self, Self::Io { action: "open" | "read", .. } | Self::Corrupt { .. })
    }

    /// Whether something is damaged: then it sends to `millstream check` itself.
    pub(crate) fn is_of_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::Database(error) => matches!(**error, redb::Error::Corrupted(_)),
            _ => false,
        }
    }

    /// Whether the disk is full, or a quota is.
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
        AlreadyExists => "; a file of that name is in the way, name another folder",
        NotADirectory => "; name a folder, not a file",
        NotFound if action == "make" => "; make its folder first",
        PermissionDenied => "; the user whom this runs as may not",
        StorageFull => "; make room, and try again",
        _ => "",
    }
}

fn advice(error: &redb::Error) -> &'static str {
    match error {
        redb::Error::Corrupted(_) => "; `millstream check` finds all damage, and with --repair keeps what is sound",
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
            ("make", K::NotFound, "make its folder first"),
            ("open", K::PermissionDenied, "the user whom this runs as may not"),
            ("write", K::StorageFull, "make room, and try again"),
        ] {
            let told = StoreError::Io { action, path: "data".into(), source: kind.into() }.to_string();
            assert!(told.contains(advice), "{told}");
        }
        let told = StoreError::Io { action: "open", path: "data".into(), source: K::NotFound.into() }.to_string();
        assert!(!told.contains(';'), "there is nothing to advise: {told}");
    }
}
