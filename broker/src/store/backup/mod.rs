//! Backups: a folder with everything that a data directory held at one moment, copied while the server runs, and the
//! restore of a data directory from such a folder.
//!
//! ```text
//! BACKUP               the manifest, written last: a folder without it is no backup
//! journal              rows of the journal's database: unsealed entries, catalog, registry of segments
//! tables               rows of the tables' database: offsets, producers, state
//! segments/*.segment   copies of the data directory's segment files
//! ```
//! `snapshot.rs` takes a snapshot and copies it. `folder.rs` writes the copy, usually at the other end of a connection.
//! `restore.rs` makes a data directory from the copy. `rows.rs` defines how rows are encoded, and `format_4.rs`
//! converts the rows of the previous data format. None of them depends on how the pieces are transferred.

mod folder;
mod format_4;
mod restore;
mod rows;
mod snapshot;

use millstream_record::checksum;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use folder::BackupFolder;
pub use restore::{restore, restore_on};
pub use snapshot::{Piece, Snapshot};

use super::directory;
use super::error::StoreError;
use super::file_system::FileSystem;
use super::segment::SegmentId;

/// Name of the manifest's file.
const MANIFEST_FILE: &str = "BACKUP";
/// Name of the file with the rows of the journal's database.
const JOURNAL_FILE: &str = "journal";
/// Name of the file with the rows of the tables' database.
const TABLES_FILE: &str = "tables";

/// The backup format that this version writes. It changes with the layout of the folder or of its rows.
const FORMAT: u32 = 1;

/// The start of a manifest's first line, which ends with the checksum.
const MANIFEST_MARK: &str = "millstream backup, crc32c ";

/// Why a backup could not be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target folder is not empty.
    #[error("{} is not empty: name a folder that is new or empty; nothing was changed", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The target of a restore is a mount point. A restored data directory is built beside its target and then renamed,
    /// and a mount point cannot be replaced in this way.
    #[error(
        "{} is a mount point, which a restore cannot replace: name a folder in it, such as {}; nothing was \
         restored", path.display(), path.join("millstream-data").display()
    )]
    MountPoint {
        /// The folder.
        path: PathBuf,
    },
    /// The disk has too little room for the backup or the restored data directory.
    #[error(
        "about {bytes} bytes must be written, and the disk of {} has only {free_bytes} free: make room, or name a \
         folder on another disk", path.display()
    )]
    NoRoom {
        /// A folder on that disk.
        path: PathBuf,
        /// How many bytes must be written.
        bytes: u64,
        /// How many bytes are free.
        free_bytes: u64,
    },
    /// The data directory's disk has too little room for the copy of the journal that a backup starts with, because
    /// part of the free room is reserved for records.
    #[error(
        "a backup first copies the journal, and the disk of {} has {free_bytes} bytes free, of which {reserve_bytes} \
         are kept for stored data (disk_reserve_bytes): make room there", path.display()
    )]
    NoRoomForJournal {
        /// The data directory.
        path: PathBuf,
        /// How many bytes are free.
        free_bytes: u64,
        /// How many bytes are kept free (`disk_reserve_bytes`).
        reserve_bytes: u64,
    },
    /// The folder has no manifest.
    #[error(
        "{} is no backup, or an unfinished one: it has no file {MANIFEST_FILE}, which is written last; nothing \
         was restored", path.display()
    )]
    NotABackup {
        /// The folder.
        path: PathBuf,
    },
    /// The backup has a format that this version does not support.
    #[error(
        "the backup {} was written by Millstream {version} with {found}, and this version supports {known}: restore it \
         with the version that wrote it; nothing was restored", path.display()
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// The Millstream version that wrote the backup.
        version: String,
        /// The backup's format.
        found: String,
        /// The format that this version writes.
        known: String,
    },
    /// A file of a backup is not as it was written.
    #[error("the backup is damaged: {}: {reason}; nothing was restored, use another backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data that arrived is not what the server sent.
    #[error("the backup did not arrive as it was sent: {file}: {reason}; make it again")]
    Garbled {
        /// The backup's file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder in which the restore would build the data directory exists already: another restore is running, or
    /// one was killed.
    #[error(
        "{} is there already: another restore is running, or one was killed; remove it once no restore is running",
        path.display()
    )]
    InTheWay {
        /// Where a restore builds the data directory.
        path: PathBuf,
    },
    /// The requester cancelled the backup or the restore.
    #[error("it was cancelled before it was complete")]
    Cancelled,
    /// An I/O operation or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Store(StoreError::io(action, path, source))
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for BackupError {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        }
    )*};
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// The content of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the folder and its rows.
    pub format: u32,
    /// The format of the data directory, as in its format file. Segments and rows were copied in this format.
    pub data_format: String,
    /// The Millstream version that made the backup.
    pub version: String,
    /// The server's clock at the moment of the snapshot, in ms since the epoch.
    pub created_at_ms: i64,
    /// All files except the manifest.
    pub files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Path of the file in the folder, separated by `/`.
    pub name: String,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
}

impl Manifest {
    fn new(created_at_ms: i64, files: Vec<BackupFile>) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, data_format: directory::FORMAT.to_owned(), version, created_at_ms, files }
    }

    /// Returns the total size of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Encodes the manifest: a line with the checksum of the rest, followed by JSON.
    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec_pretty(self).expect("plain structs serialise");
        let mut text = first_line(&json).into_bytes();
        text.extend_from_slice(&json);
        text
    }

    /// Reads the manifest of the backup `folder`, and fails if this version cannot restore the backup.
    fn read(system: &Arc<dyn FileSystem>, folder: &Path) -> Result<Self, BackupError> {
        #[derive(Deserialize)]
        struct Formats {
            format: u32,
            #[serde(default)]
            data_format: String,
            #[serde(default)]
            version: String,
        }
        let path = folder.join(MANIFEST_FILE);
        let text = match system.read(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(BackupError::NotABackup { path: folder.to_owned() });
            }
            read => read.map_err(|source| BackupError::io("read", &path, source))?,
        };
        let damaged = |reason: String| BackupError::Damaged { path: path.clone(), reason };
        if !text.starts_with(MANIFEST_MARK.as_bytes()) {
            return Err(damaged(format!("it does not start with {MANIFEST_MARK:?}")));
        }
        let json = text.split_at_checked(first_line(&[]).len()).map_or(&[][..], |(_, json)| json);
        if !text.starts_with(first_line(json).as_bytes()) {
            return Err(damaged("it does not match its checksum".to_owned()));
        }
        // A manifest of another format may have other fields, so only these are read first.
        let formats: Formats = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        let known = [directory::FORMAT, directory::FORMAT_4];
        if formats.format != FORMAT || !known.contains(&formats.data_format.as_str()) {
            let shown = |format: u32, data: &str| format!("backup format {format} of \"{data}\"");
            return Err(BackupError::Format {
                path: folder.to_owned(),
                version: formats.version,
                found: shown(formats.format, &formats.data_format),
                known: shown(FORMAT, directory::FORMAT),
            });
        }
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
    }
}

fn first_line(json: &[u8]) -> String {
    format!("{MANIFEST_MARK}{:08x}\n", checksum::crc32c(json))
}

/// The files that a backup may contain. File names come from outside, and must not lead out of the folder.
enum FileName {
    Journal,
    Tables,
    Segment(SegmentId),
}

impl FileName {
    fn parse(name: &str) -> Option<Self> {
        match name {
            JOURNAL_FILE => Some(Self::Journal),
            TABLES_FILE => Some(Self::Tables),
            _ => {
                let id = SegmentId::from_file_name(name.rsplit('/').next()?)?;
                (id.file_name() == name).then_some(Self::Segment(id))
            }
        }
    }
}

/// Returns whether a folder does not exist or is empty.
fn is_vacant(system: &Arc<dyn FileSystem>, path: &Path) -> Result<bool, BackupError> {
    match system.names(path) {
        Ok(names) => Ok(names.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(BackupError::io("read", path, error)),
    }
}

/// Makes the entries of a folder durable.
fn sync_folder(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), BackupError> {
    system.sync_folder(path).map_err(|source| BackupError::io("sync", path, source))
}

/// Checks that the disk of `path` has room for `bytes` bytes.
fn check_room(system: &Arc<dyn FileSystem>, path: &Path, bytes: u64) -> Result<(), BackupError> {
    let free_bytes =
        system.free_bytes(path).map_err(|source| BackupError::io("determine the free space of", path, source))?;
    if bytes > free_bytes { Err(BackupError::NoRoom { path: path.to_owned(), bytes, free_bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::file_system::system_files;
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str, crc32c| BackupFile { name: name.to_owned(), bytes: 7, crc32c };
        Manifest::new(1_000, vec![file("journal", 1), file("segments/00000000000000ff.segment", u32::MAX)])
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST_FILE), manifest().encode()).unwrap();
        assert_eq!(Manifest::read(&system_files(), folder.path()).unwrap(), manifest());
    }

    #[test]
    fn every_byte_of_a_manifest_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let text = manifest().encode();
        for at in 0..text.len() {
            for mask in [1, 0x20, 0x80] {
                let mut damaged = text.clone();
                damaged[at] ^= mask;
                std::fs::write(folder.path().join(MANIFEST_FILE), damaged).unwrap();
                let read = Manifest::read(&system_files(), folder.path());
                assert!(matches!(read, Err(BackupError::Damaged { .. })), "byte {at}, {mask:#x}: {read:?}");
            }
        }
        for length in 0..text.len() {
            std::fs::write(folder.path().join(MANIFEST_FILE), &text[..length]).unwrap();
            let read = Manifest::read(&system_files(), folder.path());
            assert!(matches!(read, Err(BackupError::Damaged { .. })), "{length} bytes: {read:?}");
        }
    }

    #[test]
    fn a_newer_format_is_named_even_where_its_fields_are_others() {
        let folder = tempfile::tempdir().unwrap();
        let json = br#"{"format":9,"version":"7.0","data_format":"x","parts":{}}"#;
        let text = [first_line(json).as_bytes(), json].concat();
        std::fs::write(folder.path().join(MANIFEST_FILE), text).unwrap();
        let error = Manifest::read(&system_files(), folder.path()).unwrap_err().to_string();
        for word in ["Millstream 7.0", "backup format 9", "backup format 1", "nothing was restored"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_a_disk_has_no_room_for_is_refused_before_it_is_begun() {
        let folder = tempfile::tempdir().unwrap();
        let (backup, data) = (folder.path().join("backup"), folder.path().join("data"));
        let writing = BackupFolder::create(&backup).unwrap();
        writing.check_room(1).unwrap();
        let error = writing.check_room(u64::MAX).unwrap_err();
        assert!(matches!(error, BackupError::NoRoom { bytes: u64::MAX, .. }), "{error:?}");
        assert!(error.to_string().contains("make room, or name a folder on another disk"), "{error}");
        drop(writing);
        assert!(!backup.exists());

        std::fs::create_dir(&backup).unwrap();
        let mut large = manifest();
        large.files[0].bytes = u64::MAX / 2;
        std::fs::write(backup.join(MANIFEST_FILE), large.encode()).unwrap();
        let error = restore(&backup, &data, |_, _| std::ops::ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, BackupError::NoRoom { .. }), "{error:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_mount_point_is_refused_before_anything_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST_FILE), manifest().encode()).unwrap();
        // Every Linux system has a mount point there.
        let error = restore(folder.path(), Path::new("/proc"), |_, _| unreachable!()).unwrap_err();
        assert!(error.to_string().contains("such as /proc/millstream-data"), "{error}");
        let is_mount_point = |path: &Path| system_files().is_mount_point(path);
        assert!(!is_mount_point(folder.path()) && !is_mount_point(&folder.path().join("new")));
    }

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["journal", "tables", "segments/0000000000000001.segment"] {
            assert!(FileName::parse(good).is_some(), "{good}");
        }
        for bad in ["", "BACKUP", "../journal", "/etc/passwd", "segments/1.segment", "segments/../journal", "segments/"]
        {
            assert!(FileName::parse(bad).is_none(), "{bad}");
        }
    }
}
