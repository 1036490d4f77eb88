//! Free space on the disk. redb must never run out of disk space, because it then works again only after it is
//! reopened. Appends are therefore refused while there is still space for sealing what is stored.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backup::BackupError;
use super::error::StoreError;
use super::file_system::FileSystem;

/// Sealing leaves this fraction (one fourth) of the reserve free for commits.
const SEALING_FRACTION: u64 = 4;

/// Commits of offsets leave this fraction (one half) of the reserve free. Consumers can continue for a while after
/// appends are refused, but they cannot fill the disk by committing indefinitely.
const OFFSETS_FRACTION: u64 = 2;

/// Returns the free space on a disk, in bytes.
pub type FreeBytes = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// Reports that the disk has too little free space for appends.
#[derive(Clone, Debug)]
pub struct DiskFull {
    /// Free space on the disk, in bytes.
    pub free_bytes: u64,
    /// The reserve that is kept free, in bytes (`disk_reserve_bytes`).
    pub reserve_bytes: u64,
    /// The data directory.
    pub path: PathBuf,
}

/// The free space on a data directory's disk, and the reserve that is kept free.
pub(crate) struct Room {
    path: PathBuf,
    free_bytes: FreeBytes,
    system: Arc<dyn FileSystem>,
    reserve_bytes: u64,
}

impl Room {
    /// Creates the check for the disk of `path`. If `free_bytes` is `None`, the free space is queried from `system`.
    pub(crate) fn new(
        system: &Arc<dyn FileSystem>,
        path: &Path,
        free_bytes: Option<FreeBytes>,
        reserve_bytes: u64,
    ) -> Self {
        let of_system = || {
            let (system, path) = (system.clone(), path.to_owned());
            Arc::new(move || system.free_bytes(&path)) as FreeBytes
        };
        let free_bytes = free_bytes.unwrap_or_else(of_system);
        Self { path: path.to_owned(), free_bytes, system: system.clone(), reserve_bytes }
    }

    /// Returns the size of the disk and the free space on it, in bytes.
    ///
    /// # Errors
    /// [`std::io::Error`] of the file system.
    pub(crate) fn disk_bytes(&self) -> std::io::Result<(u64, u64)> {
        Ok((self.system.total_bytes(&self.path)?, (self.free_bytes)()?))
    }

    /// Checks whether records may be appended. If not, returns how full the disk is.
    pub(crate) fn for_appends(&self) -> Result<Option<DiskFull>, StoreError> {
        if self.is_left(self.reserve_bytes)? { Ok(None) } else { self.full().map(Some) }
    }

    /// Checks whether offsets may be committed. If not, returns how full the disk is.
    pub(crate) fn for_offsets(&self) -> Result<Option<DiskFull>, StoreError> {
        if self.is_left(self.reserve_bytes / OFFSETS_FRACTION)? { Ok(None) } else { self.full().map(Some) }
    }

    /// Returns whether a step of sealing (a segment, or a transaction of the tables) may be done.
    pub(crate) fn for_sealing(&self) -> Result<bool, StoreError> {
        self.is_left(self.reserve_bytes / SEALING_FRACTION)
    }

    /// Returns whether merging or compaction may write `bytes` bytes of data that is already sealed.
    pub(crate) fn for_cleaning(&self, bytes: u64) -> Result<bool, StoreError> {
        self.is_left(self.reserve_bytes.saturating_add(bytes))
    }

    /// Checks whether a backup may write a temporary copy of `bytes` bytes.
    ///
    /// # Errors
    /// [`BackupError::NoRoomForJournal`] if it may not.
    pub(crate) fn for_backup(&self, bytes: u64) -> Result<(), BackupError> {
        if self.for_cleaning(bytes)? {
            return Ok(());
        }
        let (free_bytes, reserve_bytes) = (self.free()?, self.reserve_bytes);
        Err(BackupError::NoRoomForJournal { path: self.path.clone(), free_bytes, reserve_bytes })
    }

    /// Returns how full the disk is, for requests that are refused.
    pub(crate) fn full(&self) -> Result<DiskFull, StoreError> {
        Ok(DiskFull { free_bytes: self.free()?, reserve_bytes: self.reserve_bytes, path: self.path.clone() })
    }

    fn is_left(&self, bytes: u64) -> Result<bool, StoreError> {
        Ok(bytes == 0 || self.free()? >= bytes)
    }

    fn free(&self) -> Result<u64, StoreError> {
        (self.free_bytes)().map_err(|source| StoreError::io("determine the free space of", &self.path, source))
    }
}
