//! The files of a store in its folder, by name. Tests can wrap each of them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;

use super::error::StoreError;
use super::file_system::{FileSystem, Open, StoreFile};

/// Wraps a file of the store, for tests that inject failures. Called with the file's path each time a file is opened.
pub type WrapFile = Arc<dyn Fn(&Path, Box<dyn StoreFile>) -> Box<dyn StoreFile> + Send + Sync>;

/// The folder of a store.
#[derive(Clone)]
pub(crate) struct Files {
    system: Arc<dyn FileSystem>,
    folder: PathBuf,
    wrap: Option<WrapFile>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({})", self.folder.display())
    }
}

impl Files {
    pub(super) fn new(system: &Arc<dyn FileSystem>, folder: &Path, wrap: Option<WrapFile>) -> Self {
        Self { system: system.clone(), folder: folder.to_owned(), wrap }
    }

    /// Returns the file system that holds the folder.
    pub(super) fn system(&self) -> &Arc<dyn FileSystem> {
        &self.system
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns whether the file exists and is not empty. An empty file counts as missing: redb would make a new
    /// database of it, whereas the store puts its databases in place complete.
    pub(super) fn has(&self, name: &str) -> bool {
        self.len(name) > 0
    }

    /// Returns whether the file exists.
    pub(super) fn exists(&self, name: &str) -> bool {
        self.system.exists(&self.path(name))
    }

    /// Returns the length of a file in bytes, or 0 if there is none.
    pub(super) fn len(&self, name: &str) -> u64 {
        self.system.len(&self.path(name))
    }

    /// Opens and locks a database file, creating it if it does not exist.
    pub(super) fn database(&self, name: &str) -> Result<Backend, StoreError> {
        self.opened(name, Open::Database)
    }

    /// Creates a folder if it does not exist, and makes its name durable: if a power loss removed the folder, the files
    /// in it would be lost too.
    pub(super) fn make_folder(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        self.system.make_folders(&path).map_err(|source| StoreError::io("make", &path, source))?;
        self.sync_folder("")
    }

    /// Creates a file, or truncates an existing one to zero length.
    pub(super) fn create(&self, name: &str) -> Result<Backend, StoreError> {
        let path = self.path(name);
        let file = self.system.open(&path, Open::Write).map_err(|source| StoreError::io("open", &path, source))?;
        file.set_len(0).map_err(|source| StoreError::io("empty", &path, source))?;
        Ok(self.wrapped(&path, file))
    }

    /// Opens a file that must exist.
    pub(super) fn open(&self, name: &str) -> Result<Backend, StoreError> {
        self.opened(name, Open::Read)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match self.system.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// Returns the names of the files in a folder, or none if the folder does not exist.
    pub(super) fn names(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(folder);
        match self.system.names(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(|source| StoreError::io("read", &path, source)),
        }
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync_folder(&self, folder: &str) -> Result<(), StoreError> {
        let path = self.path(folder);
        self.system.sync_folder(&path).map_err(|source| StoreError::io("sync", &path, source))
    }

    fn opened(&self, name: &str, how: Open) -> Result<Backend, StoreError> {
        let path = self.path(name);
        let file = self.system.open(&path, how).map_err(|source| match source.downcast::<redb::DatabaseError>() {
            Ok(refused) => StoreError::open(&path, refused),
            Err(source) => StoreError::io("open", &path, source),
        })?;
        Ok(self.wrapped(&path, file))
    }

    fn wrapped(&self, path: &Path, file: Box<dyn StoreFile>) -> Backend {
        Backend(match &self.wrap {
            None => file,
            Some(wrap) => wrap(path, file),
        })
    }
}

/// An open file. redb's API requires a concrete backend type, so this wraps the trait objects that the store uses.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Box<dyn StoreFile>);

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

impl Backend {
    /// See [`StoreFile::read_new`].
    pub(super) fn read_new(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.0.read_new(offset, len)
    }
}
