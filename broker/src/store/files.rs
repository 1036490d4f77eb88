//! The store's files in its folder. Tests put something between the store and each of them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::error::StoreError;

/// Puts something between the store and one of its files: for tests that break them. Called with the
/// file's path each time one is opened.
pub type WrapFile = Arc<dyn Fn(&Path, Box<dyn StorageBackend>) -> Box<dyn StorageBackend> + Send + Sync>;

/// Stands in for making the names in a folder durable: for tests that break it. Called with the folder's path.
pub type SyncFolder = Arc<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// The folder of a store.
pub(crate) struct Files {
    folder: PathBuf,
    wrap: Option<WrapFile>,
    sync_folder: Option<SyncFolder>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({})", self.folder.display())
    }
}

impl Files {
    pub(super) fn new(folder: &Path, wrap: Option<WrapFile>) -> Self {
        Self { folder: folder.to_owned(), wrap, sync_folder: None }
    }

    pub(super) fn with_sync_folder(self, sync_folder: Option<SyncFolder>) -> Self {
        Self { sync_folder, ..self }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether there is such a file with something in it. Of an empty one redb would make a new database, and ours are put
    /// in their place whole.
    pub(super) fn has(&self, name: &str) -> bool {
        fs::metadata(self.path(name)).is_ok_and(|file| file.len() > 0)
    }

    /// A database's file, locked; made where it is missing.
    pub(super) fn database(&self, name: &str) -> Result<Backend, StoreError> {
        let path = self.path(name);
        let file = Self::open_file(&path, true)?;
        let backend = FileBackend::new(file).map_err(|source| StoreError::open(&path, source))?;
        Ok(self.wrapped(&path, Box::new(backend)))
    }

    /// A folder, made where it is missing, and durable: a file in one that a power loss takes away is lost too.
    pub(super) fn make_folder(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        fs::create_dir_all(&path).map_err(|source| StoreError::io("make", &path, source))?;
        self.sync_folder("")
    }

    /// A new file, empty whatever was there.
    pub(super) fn create(&self, name: &str) -> Result<Backend, StoreError> {
        let path = self.path(name);
        let file = Self::open_file(&path, true)?;
        file.set_len(0).map_err(|source| StoreError::io("empty", &path, source))?;
        Ok(self.wrapped(&path, Box::new(PlainFile(file))))
    }

    /// A file that must be there.
    pub(super) fn open(&self, name: &str) -> Result<Backend, StoreError> {
        let path = self.path(name);
        let file = Self::open_file(&path, false)?;
        Ok(self.wrapped(&path, Box::new(PlainFile(file))))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// The names of the files in a folder; none where there is no such folder.
    pub(super) fn names(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(folder);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|source| StoreError::io("read", &path, source))?,
        };
        let name =
            |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names: io::Result<Vec<_>> = entries.map(name).collect();
        names.map_err(|source| StoreError::io("read", &path, source))
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync_folder(&self, folder: &str) -> Result<(), StoreError> {
        let path = self.path(folder);
        let synced = match &self.sync_folder {
            None => File::open(&path).and_then(|file| file.sync_all()),
            Some(sync_folder) => sync_folder(&path),
        };
        synced.map_err(|source| StoreError::io("sync", &path, source))
    }

    fn open_file(path: &Path, create: bool) -> Result<File, StoreError> {
        let opened = OpenOptions::new().read(true).write(create).create(create).truncate(false).open(path);
        opened.map_err(|source| StoreError::io("open", path, source))
    }

    fn wrapped(&self, path: &Path, backend: Box<dyn StorageBackend>) -> Backend {
        Backend(match &self.wrap {
            None => backend,
            Some(wrap) => wrap(path, backend),
        })
    }
}

/// An open file. redb takes a backend by type; ours come as trait objects.
#[derive(Debug)]
pub(super) struct Backend(Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
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
