//! The data directory: who has it, and which format it is of.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::error::StoreError;

pub(super) const DATABASE_FILE: &str = "millstream.redb";
const LOCK_FILE: &str = "LOCK";
pub(super) const FORMAT_FILE: &str = "FORMAT";

/// What this version writes to the format file. Another number is another layout.
pub(super) const FORMAT: &str = "millstream data directory, format 4";

/// Held while the directory is open. The system releases it when the process ends, however it ends.
pub(super) struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|source| StoreError::io("make", path, source))?;
        // Before anything of ours is in it: writing into somebody's documents is not kind.
        if !path.join(FORMAT_FILE).exists() {
            refuse_foreign_files(path)?;
        }
        let lock_path = path.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|source| StoreError::io("open", &lock_path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: an unreadable lock file names nobody.
                let _ = file.read_to_string(&mut holder);
                let holder = Some(holder.trim().to_owned()).filter(|pid| !pid.is_empty());
                return Err(StoreError::Locked { path: path.to_owned(), holder });
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(StoreError::io("lock", &lock_path, source));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| StoreError::io("write", &lock_path, source))?;
        Ok(Self { file })
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that was just forked shares the lock until it runs
        // its own program. Where unlocking fails, closing is what is left.
        let _ = self.file.unlock();
    }
}

/// Refuses a directory of another format; marks a new one as ours.
pub(super) fn check_format(path: &Path) -> Result<(), StoreError> {
    let format_path = path.join(FORMAT_FILE);
    match fs::read(&format_path) {
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes).trim().to_owned();
            if found == FORMAT {
                return Ok(());
            }
            Err(StoreError::Format { path: path.to_owned(), found, known: FORMAT })
        }
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => write_format(path, &format_path),
        Err(source) => Err(StoreError::io("read", &format_path, source)),
    }
}

/// A directory without a format file must be new.
fn refuse_foreign_files(path: &Path) -> Result<(), StoreError> {
    let entries = fs::read_dir(path).map_err(|source| StoreError::io("read", path, source))?;
    for entry in entries {
        let name = entry.map_err(|source| StoreError::io("read", path, source))?.file_name();
        let name = name.to_string_lossy();
        if name != LOCK_FILE && name != FORMAT_FILE_NEW && name != "lost+found" {
            return Err(StoreError::NotADataDirectory { path: path.to_owned(), found: name.into_owned() });
        }
    }
    Ok(())
}

const FORMAT_FILE_NEW: &str = "FORMAT.new";

/// Whole or not at all: a crash must not leave a directory that the next start refuses.
fn write_format(path: &Path, format_path: &Path) -> Result<(), StoreError> {
    let new = path.join(FORMAT_FILE_NEW);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        writeln!(file, "{FORMAT}")?;
        file.sync_all()?;
        put_in_place(&new, path, FORMAT_FILE)
    };
    write().map_err(|source| StoreError::io("write", format_path, source))
}

/// Whole or not at all: redb refuses a file that a crash left before it was laid out.
pub(super) fn make_database(path: &Path, name: &str) -> Result<(), StoreError> {
    let new = path.join(format!("{name}.new"));
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(StoreError::io("remove", &new, error));
    }
    drop(redb::Builder::new().create(&new).map_err(|source| StoreError::open(&new, source))?);
    put_in_place(&new, path, name).map_err(|source| StoreError::io("rename", &new, source))
}

/// Gives a file of the directory, which is whole and durable, the name under which it counts.
pub(super) fn put_in_place(new: &Path, directory: &Path, name: &str) -> std::io::Result<()> {
    fs::rename(new, directory.join(name))?;
    File::open(directory)?.sync_all()
}
