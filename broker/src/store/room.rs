//! Room on the disk. After a full disk redb goes on only when it is opened anew, so it must not meet one: appends
//! are refused while there is still room to put in order what is stored.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backup::BackupError;
use super::error::StoreError;
use super::file_system::FileSystem;

/// Of the room that appends leave, sealing leaves this part to the commits.
const SEALING_FRACTION: u64 = 4;

/// Of the room that appends leave, commits of offsets leave this part: consumers can go on for a while, and can't fill the
/// disk by committing for ever.
const OFFSETS_FRACTION: u64 = 2;

/// Says how many bytes a disk has room for.
pub type FreeBytes = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// The disk has too little room left for appends.
#[derive(Clone, Debug)]
pub struct DiskFull {
    /// Bytes that there is room for.
    pub free_bytes: u64,
    /// Bytes that are kept free (`disk_reserve_bytes`).
    pub reserve_bytes: u64,
    /// The data directory.
    pub path: PathBuf,
}

/// The room on a data directory's disk, and how much of it is kept free.
pub(crate) struct Room {
    path: PathBuf,
    free_bytes: FreeBytes,
    reserve_bytes: u64,
}

impl Room {
    /// Without `free_bytes`, the file system is asked what it leaves to us.
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
        Self { path: path.to_owned(), free_bytes: free_bytes.unwrap_or_else(of_system), reserve_bytes }
    }

    /// Whether records may be appended; if not, how full the disk is.
    pub(crate) fn for_appends(&self) -> Result<Option<DiskFull>, StoreError> {
        if self.is_left(self.reserve_bytes)? { Ok(None) } else { self.full().map(Some) }
    }

    /// Whether offsets may be committed; if not, how full the disk is.
    pub(crate) fn for_offsets(&self) -> Result<Option<DiskFull>, StoreError> {
        if self.is_left(self.reserve_bytes / OFFSETS_FRACTION)? { Ok(None) } else { self.full().map(Some) }
    }

    /// Whether a step of sealing may be made: a segment, or a transaction of the tables.
    pub(crate) fn for_sealing(&self) -> Result<bool, StoreError> {
        self.is_left(self.reserve_bytes / SEALING_FRACTION)
    }

    /// Whether so many bytes may be written that only put in order what is sealed.
    pub(crate) fn for_cleaning(&self, bytes: u64) -> Result<bool, StoreError> {
        self.is_left(self.reserve_bytes.saturating_add(bytes))
    }

    /// Whether so many bytes of a copy may be written that goes again.
    ///
    /// # Errors
    /// [`BackupError::NoRoomForJournal`] where they may not.
    pub(crate) fn for_backup(&self, bytes: u64) -> Result<(), BackupError> {
        if self.for_cleaning(bytes)? {
            return Ok(());
        }
        let (free_bytes, reserve_bytes) = (self.free()?, self.reserve_bytes);
        Err(BackupError::NoRoomForJournal { path: self.path.clone(), free_bytes, reserve_bytes })
    }

    /// How full the disk is, for those who are refused.
    pub(crate) fn full(&self) -> Result<DiskFull, StoreError> {
        Ok(DiskFull { free_bytes: self.free()?, reserve_bytes: self.reserve_bytes, path: self.path.clone() })
    }

    fn is_left(&self, bytes: u64) -> Result<bool, StoreError> {
        Ok(bytes == 0 || self.free()? >= bytes)
    }

    fn free(&self) -> Result<u64, StoreError> {
        (self.free_bytes)().map_err(|source| StoreError::io("ask for the free room of", &self.path, source))
    }
}
