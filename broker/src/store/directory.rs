//! The data directory: who has it, and which format it is of.

use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;
use super::file_system::{FileSystem, Lock, Open};
use super::files::{Backend, Files};

pub(super) const DATABASE_FILE: &str = "millstream.redb";
const LOCK_FILE: &str = "LOCK";
pub(super) const FORMAT_FILE: &str = "FORMAT";

/// What this version writes to the format file. Another number is another layout.
pub const FORMAT: &str = "millstream data directory, format 5";

/// The format before. Its directories are refused, and its backups can be restored.
pub(super) const FORMAT_4: &str = "millstream data directory, format 4";

/// Held while the directory is open. The system releases it when the process ends, however it ends.
pub(super) struct DirectoryLock {
    _lock: Box<dyn Send + Sync>,
}

impl DirectoryLock {
    pub(super) fn take(system: &Arc<dyn FileSystem>, path: &Path) -> Result<Self, StoreError> {
        system.make_folders(path).map_err(|source| StoreError::io("make", path, source))?;
        // Before anything of ours is in it: writing into somebody's documents is not kind.
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

/// Makes the name of a new directory durable, and the names of the folders above it, which may be new too. A power loss would
/// take them away with all that is in them.
fn sync_above(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), StoreError> {
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match system.sync_folder(above) {
            // Whoever may not look into a folder did not make what is in it.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
            synced => synced.map_err(|source| StoreError::io("sync", above, source))?,
        }
    }
    Ok(())
}

/// Refuses a directory of another format; marks a new one as ours.
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

/// A directory without a format file must be new.
fn refuse_foreign_files(system: &Arc<dyn FileSystem>, path: &Path) -> Result<(), StoreError> {
    for name in system.names(path).map_err(|source| StoreError::io("read", path, source))? {
        if name != LOCK_FILE && name != FORMAT_FILE_NEW && name != "lost+found" {
            return Err(StoreError::NotADataDirectory { path: path.to_owned(), found: name });
        }
    }
    Ok(())
}

const FORMAT_FILE_NEW: &str = "FORMAT.new";

/// Whole or not at all: a crash must not leave a directory that the next start refuses.
fn write_format(system: &Arc<dyn FileSystem>, path: &Path, format_path: &Path) -> Result<(), StoreError> {
    let new = path.join(FORMAT_FILE_NEW);
    system
        .write(&new, format!("{FORMAT}\n").as_bytes())
        .and_then(|()| put_in_place(system, &new, path, FORMAT_FILE))
        .map_err(|source| StoreError::io("write", format_path, source))
}

/// Whole or not at all: redb refuses a file that a crash left before it was laid out.
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

/// Gives a file of the directory, which is whole and durable, the name under which it counts.
pub(super) fn put_in_place(
    system: &Arc<dyn FileSystem>,
    new: &Path,
    directory: &Path,
    name: &str,
) -> std::io::Result<()> {
    system.rename(new, &directory.join(name))?;
    system.sync_folder(directory)
}
