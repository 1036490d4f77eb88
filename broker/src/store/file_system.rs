//! The file system under a store, handed in: the store's own code touches no file but through this. [`system_files`] gives the
//! machine's; tests hand in one that loses power, fills up or fails.
//!
//! What the store relies on, as POSIX and Linux's file systems give it: what was written is durable once the file was
//! synced; a name that was made, moved or removed is durable once its folder was synced; a rename within a folder happens
//! wholly or not at all. Nothing else is durable, and nothing has an order.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading. It must be there.
    Read,
    /// For reading and writing. It is made where it is missing.
    Write,
    /// As `Write`, and locked as redb locks its files. What is read is what the disk has: after a failed sync Linux keeps in
    /// memory, as if it were durable, what the disk never got, and a process that is started again would build on that.
    Database,
    /// For writing, as a new file: one that is there is an error.
    New,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file of this many bytes.
    File {
        /// Its length.
        bytes: u64,
    },
    /// A folder.
    Folder,
}

/// What came of the attempt to lock a file.
pub enum Lock {
    /// It is held until this is dropped.
    Taken(Box<dyn Send + Sync>),
    /// Another process has it, which wrote this into the file.
    Held(String),
}

/// Files and folders. Paths are as the caller of the store gave them, with the store's own names appended.
pub trait FileSystem: fmt::Debug + Send + Sync + 'static {
    /// Opens a file. It is closed when what is returned is dropped.
    ///
    /// # Errors
    /// What the disk says; [`io::ErrorKind::NotFound`] and [`io::ErrorKind::AlreadyExists`] as `how` says.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StorageBackend>>;

    /// A file without a name on the disk of `folder`, gone when it is dropped, however the process ends.
    ///
    /// # Errors
    /// What the disk says.
    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// What is at a path; `None` where there is nothing.
    ///
    /// # Errors
    /// What the disk says.
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], [`io::ErrorKind::NotADirectory`], or what the disk says.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes a folder in one that is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or what the disk says.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or a folder another name. A file that has it gives way, and so does an empty folder.
    ///
    /// # Errors
    /// [`io::ErrorKind::DirectoryNotEmpty`], or what the disk says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Whoever has it open may go on with it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or what the disk says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that is in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or what the disk says.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the disk says.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Locks a file, which is made where it is missing, and writes `holder` into it. The lock ends with the process.
    ///
    /// # Errors
    /// What the disk says.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Lock>;

    /// How many bytes the disk of `path` has room for.
    ///
    /// # Errors
    /// What the disk says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Whether another disk begins at `path`.
    fn is_mount_point(&self, path: &Path) -> bool;
}

/// What all file systems can do with these.
impl dyn FileSystem {
    /// Whether there is a file or a folder. A path that can't be looked at is not there.
    pub(super) fn exists(&self, path: &Path) -> bool {
        matches!(self.entry(path), Ok(Some(_)))
    }

    /// The length of a file; 0 where there is none.
    pub(super) fn len(&self, path: &Path) -> u64 {
        match self.entry(path) {
            Ok(Some(Entry::File { bytes })) => bytes,
            _ => 0,
        }
    }

    /// Makes a folder and those above it, where they are missing.
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

    /// All of a file.
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

    /// Writes a file anew, and makes what it holds durable, but not its name.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.open(path, Open::Write)?;
        file.set_len(bytes.len() as u64)?;
        file.write(0, bytes)?;
        file.sync_data()?;
        file.close()
    }
}

/// The machine's own file system, as the store takes one.
pub fn system_files() -> Arc<dyn FileSystem> {
    Arc::new(SystemFiles)
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
struct SystemFiles;

impl FileSystem for SystemFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StorageBackend>> {
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

    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn StorageBackend>> {
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
                // It is for a message alone: an unreadable file names nobody.
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

    fn is_mount_point(&self, path: &Path) -> bool {
        let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
        device(path).is_some_and(|of_path| device(parent(path)).is_some_and(|of_parent| of_parent != of_path))
    }
}

/// The folder that a path stands in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what is in memory of a file durable, and then drops it, so that it is read from the disk.
fn forget_cached(file: &File) -> io::Result<()> {
    file.sync_data()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that was just forked shares the lock until it runs its own program. Where
        // unlocking fails, closing is what is left.
        let _ = self.0.unlock();
    }
}

/// A file without a lock of its own: the data directory's lock covers it.
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
