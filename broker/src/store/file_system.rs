//! The file system under a store, passed in by the caller. The store accesses files only through this trait.
//! [`system_files`] returns the operating system's; tests pass one that loses power, fills up or fails.
//!
//! The store relies on these guarantees of POSIX and the Linux file systems: written data is durable once the file has
//! been synced; a created, renamed or removed name is durable once its folder has been synced; a rename within a folder
//! is atomic. It assumes nothing else about durability, and nothing about the order of writes.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;
use rustix::buffer::spare_capacity;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading. The file must exist.
    Read,
    /// For reading and writing. The file is created if it does not exist.
    Write,
    /// As `Write`, and locked in the way redb locks its files. Reads return what is on disk, not what is in the page
    /// cache: after a failed sync, Linux keeps data in memory as if it were durable although it never reached the disk,
    /// and a restarted process would build on that data.
    Database,
    /// For writing, as a new file. It is an error if the file exists.
    New,
}

/// An open file.
pub trait StoreFile: StorageBackend {
    /// Reads `len` bytes at `offset` into new memory.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, or the error of the disk.
    fn read_new(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// The kind of file system entry at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File {
        /// Length of the file, in bytes.
        bytes: u64,
    },
    /// A folder.
    Folder,
}

/// The result of an attempt to lock a file.
pub enum Lock {
    /// The lock was acquired. It is held until this value is dropped.
    Taken(Box<dyn Send + Sync>),
    /// Another process holds the lock. The string is what that process wrote into the file.
    Held(String),
}

/// Operations on files and folders. Paths are those that the caller of the store passed, with the store's own names
/// appended.
pub trait FileSystem: fmt::Debug + Send + Sync + 'static {
    /// Opens a file. It is closed when the returned value is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] or [`io::ErrorKind::AlreadyExists`], depending on `how`, or the error of the disk.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoreFile>>;

    /// Creates an unnamed temporary file on the disk of `folder`. It is removed when it is dropped or when the process
    /// ends, even by a crash.
    ///
    /// # Errors
    /// The error of the disk.
    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn StoreFile>>;

    /// Returns the kind of entry at a path, or `None` if there is none.
    ///
    /// # Errors
    /// The error of the disk.
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;

    /// Returns the names in a folder, in no particular order.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], [`io::ErrorKind::NotADirectory`], or the error of the disk.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Creates a folder. Its parent must exist.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or the error of the disk.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or a folder. An existing file or empty folder of the new name is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::DirectoryNotEmpty`], or the error of the disk.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name of a file. Handles that are open stay usable.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the error of the disk.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and everything in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the error of the disk.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// The error of the disk.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Locks a file, creating it if it does not exist, and writes `holder` into it. The lock is released when the
    /// process ends.
    ///
    /// # Errors
    /// The error of the disk.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Lock>;

    /// Returns the free space on the disk of `path`, in bytes.
    ///
    /// # Errors
    /// The error of the disk.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Returns the size of the disk of `path`, in bytes.
    fn total_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Returns whether `path` is a mount point, that is, on a different disk from its parent.
    fn is_mount_point(&self, path: &Path) -> bool;
}

/// Helpers built on the trait's methods, the same for all file systems.
impl dyn FileSystem {
    /// Returns whether there is a file or a folder at `path`. A path that cannot be examined counts as missing.
    pub(super) fn exists(&self, path: &Path) -> bool {
        matches!(self.entry(path), Ok(Some(_)))
    }

    /// Returns the length of a file in bytes, or 0 if there is none.
    pub(super) fn len(&self, path: &Path) -> u64 {
        match self.entry(path) {
            Ok(Some(Entry::File { bytes })) => bytes,
            _ => 0,
        }
    }

    /// Creates a folder and its parents if they do not exist.
    pub(super) fn make_folders(&self, path: &Path) -> io::Result<()> {
        match self.entry(path)? {
            Some(Entry::Folder) => return Ok(()),
            Some(Entry::File { .. }) => return Err(io::ErrorKind::NotADirectory.into()),
            None => {}
        }
        if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
            self.make_folders(above)?;
        }
        match self.make_folder(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Reads a whole file.
    pub(super) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if let Some(Entry::Folder) = self.entry(path)? {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let file = self.open(path, Open::Read)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read(0, &mut bytes)?;
        file.close()?;
        Ok(bytes)
    }

    /// Replaces the contents of a file, and makes the contents durable, but not the file's name.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.open(path, Open::Write)?;
        file.set_len(bytes.len() as u64)?;
        file.write(0, bytes)?;
        file.sync_data()?;
        file.close()
    }
}

/// Returns the operating system's file system.
pub fn system_files() -> Arc<dyn FileSystem> {
    Arc::new(SystemFiles)
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
struct SystemFiles;

impl FileSystem for SystemFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoreFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Read);
        let file = match how {
            Open::New => options.create_new(true),
            _ => options.create(how != Open::Read),
        }
        .open(path)?;
        match how {
            Open::Database => {
                forget_cached(&file)?;
                Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
            }
            _ => Ok(Box::new(PlainFile(file))),
        }
    }

    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn StoreFile>> {
        Ok(Box::new(PlainFile(tempfile::tempfile_in(folder)?)))
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Some(Entry::Folder)),
            Ok(found) => Ok(Some(Entry::File { bytes: found.len() })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Lock> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder is used only in a message, so a file that cannot be read yields an empty one.
                let _ = file.read_to_string(&mut holder);
                return Ok(Lock::Held(holder.trim().to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{holder}")?;
        Ok(Lock::Taken(Box::new(Locked(file))))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_blocks.saturating_mul(found.f_frsize))
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
        device(path).is_some_and(|of_path| device(parent(path)).is_some_and(|of_parent| of_parent != of_path))
    }
}

/// Returns the folder that contains `path`.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the cached pages of a file to disk and then drops them from memory, so that later reads go to the disk.
fn forget_cached(file: &File) -> io::Result<()> {
    file.sync_data()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file is not enough, because a forked child process shares the lock until it calls exec. If
        // unlocking fails, only closing is left.
        let _ = self.0.unlock();
    }
}

/// A file without a lock of its own; the lock of the data directory covers it.
#[derive(Debug)]
struct PlainFile(File);

impl StorageBackend for PlainFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_all_at(data, offset)
    }
}

impl StoreFile for PlainFile {
    /// Does not fill the memory with zeros first.
    fn read_new(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            // The capacity may be more than was asked for.
            let left = len - bytes.len();
            match rustix::io::pread(&self.0, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) if read > left => bytes.truncate(len),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }
}

impl StoreFile for FileBackend {}
