//! Restores a data directory from a backup: builds it beside its final path, and moves it there once all of it is
//! verified.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, ReadableDatabase as _};

use super::super::file_system::{FileSystem, Open, parent, system_files};
use super::super::files::Files;
use super::super::segment::{self, SegmentId};
use super::super::{directory, recovery, tables};
use super::format_4;
use super::rows::{self, CheckedFile, Convert, Database};
use super::{BackupError, FileName, JOURNAL_FILE, Manifest, TABLES_FILE, check_room, is_vacant, sync_folder};

/// Size of redb's page cache while rows are written, in bytes. Keys are inserted in order, so only the last pages
/// change.
const CACHE_BYTES: usize = 64 << 20;

const COPY_BYTES: usize = 1 << 20;

/// Makes the data directory `data` from the backup in the folder `from`, and returns the backup's manifest. Every
/// checksum is verified on the way. The directory appears at the end, complete and durable, or not at all; until then
/// it is built beside its path, as `data.restoring`. `progress` is called with the bytes done and the total, and
/// cancels the restore by returning a break. Blocks.
///
/// # Errors
/// [`BackupError::NotEmpty`] if `data` exists and is not empty, [`BackupError::NoRoom`], [`BackupError::NotABackup`],
/// [`BackupError::MountPoint`], [`BackupError::Format`], [`BackupError::Damaged`], [`BackupError::InTheWay`],
/// [`BackupError::Cancelled`], or an I/O error. In each case nothing is left behind.
pub fn restore(
    from: &Path,
    data: &Path,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Manifest, BackupError> {
    restore_on(&system_files(), from, data, progress)
}

/// Like [`restore`], with both folders on the given file system.
///
/// # Errors
/// As [`restore`].
pub fn restore_on(
    system: &Arc<dyn FileSystem>,
    from: &Path,
    data: &Path,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Manifest, BackupError> {
    let manifest = Manifest::read(system, from)?;
    if system.is_mount_point(data) {
        return Err(BackupError::MountPoint { path: data.to_owned() });
    }
    if !is_vacant(system, data)? {
        return Err(BackupError::NotEmpty { path: data.to_owned() });
    }
    let total = manifest.bytes();
    let mut done = 0;
    let mut advance = |bytes: u64| {
        done += bytes;
        progress(done, total)
    };
    let building = Building::begin(system, data)?;
    check_room(system, building.files.folder(), total)?;
    directory::check_format(system, building.files.folder())?;
    let mut segments = BTreeMap::new();
    let (mut journal, mut tables) = (None, None);
    for file in &manifest.files {
        let opened = CheckedFile::open(system, from, file);
        match FileName::parse(&file.name) {
            Some(FileName::Journal) => journal = Some(opened?),
            Some(FileName::Tables) => tables = Some(opened?),
            Some(FileName::Segment(id)) => {
                copy_segment(system, opened?, &building.files.path(&file.name), &mut advance)?;
                segments.insert(id, file.bytes);
            }
            None => {
                let reason = format!("it lists {:?}, which cannot be part of a backup", file.name);
                return Err(BackupError::Damaged { path: from.join(super::MANIFEST_FILE), reason });
            }
        }
    }
    let missing = |name| BackupError::Damaged { path: from.join(name), reason: "the manifest does not list it".into() };
    let tables = tables.ok_or_else(|| missing(TABLES_FILE))?;
    let convert: Convert =
        if manifest.data_format == directory::FORMAT_4 { format_4::convert } else { |_, _, _| Ok(None) };
    drop(fill(Database::Tables, tables, &building.files, tables::FILE, convert, &mut advance)?);
    let journal = journal.ok_or_else(|| missing(JOURNAL_FILE))?;
    let database = fill(Database::Journal, journal, &building.files, directory::DATABASE_FILE, convert, &mut advance)?;
    check_segments(&database, segments, from)?;
    drop(database);
    building.put(data)?;
    Ok(manifest)
}

fn fill(
    kind: Database,
    from: CheckedFile<'_>,
    files: &Files,
    name: &str,
    convert: Convert,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<redb::Database, BackupError> {
    let path = &files.path(name);
    let created = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(files.database(name)?);
    let database = created.map_err(|source| super::StoreError::open(path, source))?;
    rows::read(kind, from, &database, convert, progress).map_err(|error| written_to(path, error))?;
    Ok(database)
}

/// Adds the path to I/O errors of the database, which do not say which file they concern.
fn written_to(path: &Path, error: BackupError) -> BackupError {
    match error {
        BackupError::Store(super::StoreError::Database(error)) => match *error {
            redb::Error::Io(source) => BackupError::io("write", path, source),
            other => super::StoreError::Database(Box::new(other)).into(),
        },
        other => other,
    }
}

fn copy_segment(
    system: &Arc<dyn FileSystem>,
    mut from: CheckedFile<'_>,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), BackupError> {
    let failed = |source| BackupError::io("write", path, source);
    let folder = parent(path);
    system.make_folders(folder).map_err(|source| BackupError::io("make", folder, source))?;
    let to = system.open(path, Open::New).map_err(failed)?;
    let (mut at, mut buffer) = (0, vec![0; COPY_BYTES]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.set_len(at + read as u64).and_then(|()| to.write(at, &buffer[..read])).map_err(failed)?;
        at += read as u64;
        if progress(read as u64).is_break() {
            return Err(BackupError::Cancelled);
        }
    }
    from.end()?;
    to.sync_data().map_err(failed)
}

/// Checks that the registry and the folder have the same segments. A server trusts the registry at start, and removes
/// segment files that the registry does not list.
fn check_segments(
    database: &redb::Database,
    mut files: BTreeMap<SegmentId, u64>,
    from: &Path,
) -> Result<(), BackupError> {
    let damaged = |id: SegmentId, reason: &str| {
        Err(BackupError::Damaged { path: from.join(id.file_name()), reason: reason.to_owned() })
    };
    for segment in recovery::segments(&database.begin_read()?, drop)? {
        if files.remove(&segment.id) != Some(segment.bytes) {
            return damaged(segment.id, "it differs from its entry in the registry of segments");
        }
    }
    match files.keys().next() {
        Some(id) => damaged(*id, "the registry of segments does not list it"),
        None => Ok(()),
    }
}

/// A data directory that is being built beside its final path. If dropped before [`Building::put`], it is removed.
struct Building {
    files: Files,
    put: bool,
}

impl Building {
    fn begin(system: &Arc<dyn FileSystem>, data: &Path) -> Result<Self, BackupError> {
        let mut path = OsString::from(data.components().as_path());
        path.push(".restoring");
        let path = PathBuf::from(path);
        match system.make_folder(&path) {
            Ok(()) => Ok(Self { files: Files::new(system, &path, None), put: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(BackupError::InTheWay { path }),
            Err(source) => Err(BackupError::io("make", &path, source)),
        }
    }

    /// Makes the directory durable and renames it to `data`, replacing an empty directory.
    fn put(mut self, data: &Path) -> Result<(), BackupError> {
        let system = self.files.system().clone();
        if self.files.exists(segment::FOLDER) {
            self.files.sync_folder(segment::FOLDER)?;
        }
        self.files.sync_folder("")?;
        match system.rename(self.files.folder(), data) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(BackupError::NotEmpty { path: data.to_owned() });
            }
            renamed => renamed.map_err(|source| BackupError::io("move the restored directory to", data, source))?,
        }
        self.put = true;
        sync_folder(&system, parent(data))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.put {
            // Only the error that led here matters. If the removal fails, a broken disk may keep the folder.
            let _ = self.files.system().remove_folder(self.files.folder());
        }
    }
}
