//! The data directory's lock and format.

use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;
use super::file_system::{FileSystem, Lock, Open};
use super::files::{Backend, Files};

pub(super) const DATABASE_FILE: &str = "millstream.redb";
const LOCK_FILE: &str = "LOCK";
pub(super) const FORMAT_FILE: &str = "FORMAT";

/// What this version writes to the format file. The number changes with the layout of the directory.
pub const FORMAT: &str = "millstream data directory, format 5";

/// The previous format. Directories of this format are refused, but its backups can be restored.
pub(super) const FORMAT_4: &str = "millstream data directory, format 4";

/// Lock on the data directory. The operating system releases it when the process ends, even if it is killed.
pub(super) struct DirectoryLock {
    _lock: Box<dyn Send + Sync>,
}

impl DirectoryLock {
    pub(super) fn take(system: &Arc<dyn FileSystem>, path: &Path) -> Result<Self, StoreError> {
        system.make_folders(path).map_err(|source| StoreError::io("make", path, source))?;
        // This check comes before anything is written, so that another program's folder is left untouched.
        if !system.exists(&path.join(FORMAT_FILE)) {
            refuse_foreign_files(system, path)?;
            sync_above(system, path)?;
        }
        let lock_path = path.join(LOCK_FILE);
        let locked = system.lock(&lock_path, &std::process::id().to_string());
        match locked.map_err(|source| StoreError::io("lock", &lock_path, source))? {
            Lock::Taken(lock) => Ok(Self { _lock: lock }),
            Lock::Held(holder) => {
                let holder = Some(holder).filter(|pid| !pid.is_empty());
                Err(StoreError::Locked { path: path.to_owned(), holder })
            }
        }
    }
}

/// Makes the name of a new directory durable, and the names of its ancestors, which may be new too. Otherwise a power
/// loss could remove the directory with everything in it.
fn sync_above(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), StoreError> {
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match system.sync_folder(above) {
            // If this process may not open a folder, it cannot have created entries in it.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
            synced => synced.map_err(|source| StoreError::io("sync", above, source))?,
        }
    }
    Ok(())
}

/// Fails if the directory has another format. Marks a new directory with the current format.
pub(super) fn check_format(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), StoreError> {
    let format_path = path.join(FORMAT_FILE);
    match system.read(&format_path) {
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes).trim().to_owned();
            if found == FORMAT {
                return Ok(());
            }
            Err(StoreError::Format { path: path.to_owned(), found, known: FORMAT })
        }
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => write_format(system, path, &format_path),
        Err(source) => Err(StoreError::io("read", &format_path, source)),
    }
}

/// Fails if a directory without a format file contains anything that does not belong to a new data directory.
fn refuse_foreign_files(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), StoreError> {
    for name in system.names(path).map_err(|source| StoreError::io("read", path, source))? {
        if name != LOCK_FILE && name != FORMAT_FILE_NEW && name != "lost+found" {
            return Err(StoreError::NotADataDirectory { path: path.to_owned(), found: name });
        }
    }
    Ok(())
}

const FORMAT_FILE_NEW: &str = "FORMAT.new";

/// Writes the format file atomically, because a crash must not leave a directory that the next start refuses.
fn write_format(system: &Arc<dyn FileSystem>, path: &Path, format_path: &Path) -> Result<(), StoreError> {
    let new = path.join(FORMAT_FILE_NEW);
    system
        .write(&new, format!("{FORMAT}\n").as_bytes())
        .and_then(|()| put_in_place(system, &new, path, FORMAT_FILE))
        .map_err(|source| StoreError::io("write", format_path, source))
}

/// Creates a database atomically, because redb refuses a file that a crash left before its layout was complete.
pub(super) fn make_database(files: &Files, name: &str) -> Result<(), StoreError> {
    let new_name = format!("{name}.new");
    files.remove(&new_name)?;
    let (system, new) = (files.system(), files.path(&new_name));
    let backend = system.open(&new, Open::Database).map_err(|source| StoreError::io("make", &new, source))?;
    let made = redb::Builder::new().create_with_backend(Backend(backend));
    drop(made.map_err(|source| StoreError::open(&new, source))?);
    let placed = put_in_place(system, &new, files.folder(), name);
    placed.map_err(|source| StoreError::io("rename", &new, source))
}

/// Renames a complete and durable file to its final name in the directory.
pub(super) fn put_in_place(
    system: &Arc<dyn FileSystem>,
    new: &Path,
    directory: &Path,
    name: &str,
) -> std::io::Result<()> {
    system.rename(new, &directory.join(name))?;
    system.sync_folder(directory)
}
