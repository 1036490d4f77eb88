//! The only place that knows redb: the data directory, the journal, the catalog, the committer.
//!
//! `committer.rs` is a write's whole way; `recovery.rs` rebuilds at start what the journal says.

mod blobs;
pub(crate) mod catalog;
pub(crate) mod committer;
mod directory;
mod error;
mod journal;
pub(crate) mod recovery;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{Builder, Database, ReadableDatabase, TableDefinition};

use blobs::BlobCache;
pub use catalog::CatalogChange;
pub use committer::{Append, Commit, Committed, Fence, OffsetChange, Receipt};
use directory::DirectoryLock;
pub use error::StoreError;
pub(crate) use journal::Location;
/// What a test harness puts under the store to break it.
pub use redb::{BackendError, StorageBackend, backends::FileBackend};

/// Every commit's blob, cut into values of at most [`journal::CHUNK_BYTES`], by sequence number.
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");

/// Small things that change seldom: topics, modules, pipelines. By kind and name, `topic/flights`.
const CATALOG: TableDefinition<&str, &[u8]> = TableDefinition::new("catalog");

/// redb's page cache, in bytes. Tail reads come from [`BlobCache`] and commits from the committer's
/// own buffers, so this needs to hold little but branch pages.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// How to open a store.
#[derive(Default)]
pub struct StoreOptions {
    /// Wraps the file that redb writes to: for tests that break it.
    pub wrap: Option<WrapBackend>,
    /// Recent blobs kept in memory for tail reads, in bytes. Default [`blobs::TAIL_BYTES_MAX`].
    pub tail_bytes_max: Option<usize>,
}

/// See [`StoreOptions::wrap`].
pub type WrapBackend = Box<dyn FnOnce(FileBackend) -> Box<dyn StorageBackend>>;

/// A data directory, open and locked.
pub struct Store {
    db: Database,
    blobs: BlobCache,
    /// Set by the first failed write: nothing is written after it.
    failed: AtomicBool,
    path: PathBuf,
    _lock: DirectoryLock,
}

impl Store {
    /// Opens or makes the data directory `path`, and locks it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another server has it, [`StoreError::Format`] for one that a
    /// newer Millstream wrote, or what the disk says.
    pub(crate) fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let lock = DirectoryLock::take(path)?;
        directory::check_format(path)?;
        let file = path.join(directory::DATABASE_FILE);
        let mut builder = Builder::new();
        builder.set_cache_size(PAGE_CACHE_BYTES);
        if !file.exists() {
            directory::make_database(path, &file, &builder)?;
        }
        let opened = match options.wrap {
            None => builder.create(&file),
            Some(wrap) => {
                let handle = std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&file)
                    .map_err(|source| StoreError::io("open", &file, source))?;
                let backend = FileBackend::new(handle).map_err(|e| StoreError::open(&file, e))?;
                builder.create_with_backend(Boxed(wrap(backend)))
            }
        };
        let db = opened.map_err(|source| StoreError::open(&file, source))?;
        Ok(Self {
            db,
            blobs: BlobCache::new(options.tail_bytes_max.unwrap_or(blobs::TAIL_BYTES_MAX)),
            failed: AtomicBool::new(false),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the database file.
    pub fn file_bytes(&self) -> u64 {
        std::fs::metadata(self.path.join(directory::DATABASE_FILE)).map_or(0, |meta| meta.len())
    }

    /// Whether a write failed: the store takes no more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Reads a part of a blob, from memory or the disk.
    pub(crate) fn read(&self, at: Location) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.blobs.get(at) {
            return Ok(bytes);
        }
        let read = self.db.begin_read()?;
        let table = read.open_table(JOURNAL)?;
        let bytes =
            journal::read_location(at, |seq| Ok(table.get(seq)?.map(|value| Bytes::copy_from_slice(value.value()))))?;
        self.blobs.keep_cold(at, bytes.clone());
        Ok(bytes)
    }

    /// Reads a part of a blob that memory holds.
    pub(crate) fn read_in_memory(&self, at: Location) -> Option<Bytes> {
        self.blobs.get(at)
    }

    /// One catalog entry.
    ///
    /// # Errors
    /// What the disk says.
    pub fn catalog_get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let read = self.db.begin_read()?;
        let table = match read.open_table(CATALOG) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            other => other?,
        };
        Ok(table.get(key)?.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// The catalog entries whose keys begin with `prefix`, in order.
    ///
    /// # Errors
    /// What the disk says.
    pub fn catalog_scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let read = self.db.begin_read()?;
        let table = match read.open_table(CATALOG) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in table.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push((key.value().to_owned(), Bytes::copy_from_slice(value.value())));
        }
        Ok(found)
    }
}

/// redb takes a backend by type; ours comes as a trait object.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.0.close()
    }
}
