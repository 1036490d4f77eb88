//! Storage: the data directory and its files, the journal, segments and tables. This is the only module that uses redb.
//! It handles partitions by number, rows and bytes, and does not know the settings of topics, groups or producers.
//!
//! `write.rs` defines what one commit writes. `recovery.rs` reads the journal at start.

pub mod backup;
mod blobs;
pub(crate) mod catalog;
mod check;
mod database;
mod directory;
mod error;
mod file_system;
mod files;
pub(crate) mod journal;
pub(crate) mod panics;
pub(crate) mod pause;
pub mod place;
pub(crate) mod recovery;
mod registry;
mod room;
pub(crate) mod segment;
mod sum;
mod tables;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use redb::{Builder, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use blobs::BlobCache;
pub use catalog::CatalogChange;
pub use check::{Damage, Report};
pub(crate) use check::{KnownTopic, check};
use database::OpenDatabase;
use directory::DirectoryLock;
/// The content of the format file of a data directory of this version.
pub use directory::FORMAT as DATA_FORMAT;
pub use error::StoreError;
pub use file_system::{Entry, FileSystem, Lock, Open, StoreFile, system_files};
use files::Files;
pub use files::WrapFile;
pub(crate) use journal::Location;
pub use journal::{KeyRange, Namespace, StateChange};
/// The interface of the files below the store, which test harnesses replace to inject faults.
pub use redb::{BackendError, StorageBackend};
pub(crate) use registry::Registry;
use room::Room;
pub use room::{DiskFull, FreeBytes};
pub(crate) use tables::{Count, SLICE_ROWS, StatePlace, Tables};
pub(crate) use write::Write;

/// The blobs of all commits, by sequence number. Each blob is cut into values of at most [`journal::CHUNK_BYTES`].
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");

/// Small entries that rarely change, such as topics, modules and pipelines. Keys are kind and name: `topic/flights`.
const CATALOG: TableDefinition<&str, &[u8]> = TableDefinition::new("catalog");

/// The segments that are part of the store, by segment number, with their extents.
const SEGMENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("segments");

/// The log start offset of each topic and partition. It is 0 if there is no entry.
const LOG_STARTS: TableDefinition<(u32, u32), i64> = TableDefinition::new("log-starts");

/// Positions in the journal, and the next segment number.
const MARKS: TableDefinition<&str, u64> = TableDefinition::new("marks");

/// Mark: journal values before this sequence number are sealed into segments and tables.
const SEALED_TO: &str = "sealed-to";

/// Mark: the next segment number. No segment ever had this number or a larger one.
const NEXT_SEGMENT: &str = "next-segment";

/// The size of redb's page cache of the journal, in bytes, beside the journal itself: it holds little but branch pages.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// The most of the journal that the page cache holds, in bytes. redb reads the values that it removes. With 128 MiB, a produced
/// record costs about a tenth less CPU time, for 36 MB more memory under load.
const JOURNAL_CACHE_BYTES_MAX: usize = 32 << 20;

/// The cleaner closes a segment that it writes at this size, in bytes. It is twice the size of the sealer's segments under
/// full load.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;

/// The leader epoch of all batches, which is constant because the same node is always the leader.
pub(crate) const LEADER_EPOCH: i32 = 0;

/// Options for opening a store.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// The file system of the data directory. Default is the machine's own.
    pub file_system: Option<Arc<dyn FileSystem>>,
    /// Wraps each of the store's files, so that tests can inject faults.
    pub wrap: Option<WrapFile>,
    /// Maximum size of the recent blobs kept in memory for tail reads, in bytes. Default [`blobs::TAIL_BYTES_MAX`].
    pub tail_bytes_max: Option<usize>,
    /// Returns how many bytes the disk has free, for tests. By default the file system of the data directory is asked
    /// for the space available to this process.
    pub free_bytes: Option<FreeBytes>,
    /// Number of offset ranges in segments above which short ones are merged. The merging of segments has a default.
    pub extents_max: Option<usize>,
    /// Number of keys that one pass of compaction remembers. Compaction has a default.
    pub compaction_keys_max: Option<usize>,
    /// How often retention, merging and compaction look for work, for tests. Default one second.
    pub cleaning_interval: Option<Duration>,
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions").field("tail_bytes_max", &self.tail_bytes_max).finish_non_exhaustive()
    }
}

/// An open and locked data directory.
pub struct Store {
    db: OpenDatabase,
    tables: Arc<Tables>,
    registry: Arc<Registry>,
    blobs: BlobCache,
    /// The error of the first failed write, after which nothing is written.
    failure: OnceLock<Arc<StoreError>>,
    room: Room,
    /// Number of commits since the store was opened.
    commits: AtomicU64,
    /// Whether the committer has ended.
    ended: Mutex<bool>,
    ending: Condvar,
    path: PathBuf,
    _lock: DirectoryLock,
}

impl Store {
    /// Opens or creates the data directory `path`, locks it, and returns it with the extents of its segments. Appends
    /// leave `disk_reserve_bytes` of its disk free.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process uses it, [`StoreError::Format`] if another version of Millstream wrote
    /// it, or an I/O error.
    pub(crate) fn open(
        path: &Path,
        options: StoreOptions,
        journal_bytes_max: u64,
        disk_reserve_bytes: u64,
    ) -> Result<(Self, recovery::TopicExtents), StoreError> {
        let system = options.file_system.unwrap_or_else(system_files);
        let lock = DirectoryLock::take(&system, path)?;
        directory::check_format(&system, path)?;
        let files = Arc::new(Files::new(&system, path, options.wrap));
        let file = files.path(directory::DATABASE_FILE);
        if !files.has(directory::DATABASE_FILE) {
            // The tables' database is created after this one, so nothing else may exist yet.
            if files.has(tables::FILE) || !files.names(segment::FOLDER)?.is_empty() {
                return Err(StoreError::Missing { path: file });
            }
            directory::make_database(&files, directory::DATABASE_FILE)?;
        }
        let mut builder = Builder::new();
        let journal_bytes = usize::try_from(journal_bytes_max).unwrap_or(usize::MAX);
        builder.set_cache_size(PAGE_CACHE_BYTES + journal_bytes.min(JOURNAL_CACHE_BYTES_MAX));
        let db = builder
            .create_with_backend(files.database(directory::DATABASE_FILE)?)
            .map_err(|source| StoreError::open(&file, source))?;
        let db = OpenDatabase::new(db);
        let file = files.path(tables::FILE);
        if !files.has(tables::FILE) {
            if recovery::sealed_to(&db.begin_read()?)? > 0 {
                return Err(StoreError::Missing { path: file });
            }
            directory::make_database(&files, tables::FILE)?;
        }
        let tables = Arc::new(Tables::open(&files)?);
        let read = db.begin_read()?;
        sum::verify(&read)?;
        let (segments, extents) = recovery::segments_by_topic(&read)?;
        let next_segment = recovery::mark(&read, NEXT_SEGMENT)?.unwrap_or(0);
        drop(read);
        let registry = Arc::new(Registry::open(files, segments, next_segment)?);
        let store = Self {
            db,
            tables,
            registry,
            blobs: BlobCache::new(options.tail_bytes_max.unwrap_or(blobs::TAIL_BYTES_MAX)),
            failure: OnceLock::new(),
            room: Room::new(&system, path, options.free_bytes, disk_reserve_bytes),
            commits: AtomicU64::new(0),
            ended: Mutex::default(),
            ending: Condvar::new(),
            path: path.to_owned(),
            _lock: lock,
        };
        Ok((store, extents))
    }

    /// Returns the registry of segments.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns the tables: state, offsets and producers from the sealed part of the journal.
    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Returns the path of the data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the sizes of all its files.
    pub fn size(&self) -> StoreSize {
        let files = self.registry.files();
        let (segments, segment_bytes) = self.registry.size();
        StoreSize {
            journal_bytes: files.len(directory::DATABASE_FILE),
            table_bytes: files.len(tables::FILE),
            segments,
            segment_bytes,
        }
    }

    /// Returns the free space on its disk.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// Returns the number of commits since the store was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Notes that the committer has ended, so that nothing more will be written.
    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.ending.notify_all();
    }

    /// Waits until the committer has ended, at most for `time`. Returns whether it has ended.
    pub(crate) fn wait_for_end(&self, time: Duration) -> bool {
        let mut ended = self.ended.lock();
        self.ending.wait_while_for(&mut ended, |ended| !*ended, time);
        *ended
    }

    /// Returns whether a write failed. The store then accepts no more writes.
    pub fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Returns why the store accepts no more writes, if a write failed.
    pub(crate) fn failure(&self) -> Option<Arc<StoreError>> {
        self.failure.get().cloned()
    }

    /// Makes the store refuse further writes. The first error is kept as the reason.
    pub(crate) fn fail(&self, error: Arc<StoreError>) {
        self.failure.get_or_init(|| error);
    }

    /// Reads a part of a blob from memory or from disk. Bytes from disk may be damaged.
    pub(crate) fn read(&self, at: Location) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.blobs.get(at) {
            return Ok(bytes);
        }
        let read = self.db.begin_read()?;
        let table = read.open_table(JOURNAL)?;
        let value = |seq| Ok(table.get(seq)?.map(|value| Bytes::copy_from_slice(value.value())));
        match journal::read_location(at, value) {
            // The blob was sealed after its location was looked up, and removed from the journal.
            Err(_) if at.seq < recovery::sealed_to(&read)? => Err(StoreError::Moved),
            read => read,
        }
    }

    /// Keeps bytes that were read from disk and verified, for a reader that takes them in several reads.
    pub(crate) fn keep(&self, at: Location, bytes: Bytes) {
        self.blobs.keep_cold(at, bytes);
    }

    /// Returns memory for the blob of a commit of about `bytes`, empty.
    pub(crate) fn blob_memory(&self, bytes: usize) -> BytesMut {
        self.blobs.memory(bytes)
    }

    /// Reads a part of a blob if it is in memory.
    pub(crate) fn read_in_memory(&self, at: Location) -> Option<Bytes> {
        self.blobs.get(at)
    }

    /// Returns one catalog entry.
    ///
    /// # Errors
    /// An I/O or database error.
    pub fn catalog_get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, CATALOG)? else { return Ok(None) };
        Ok(table.get(key)?.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// Returns the catalog entries whose keys start with `prefix`, in key order.
    ///
    /// # Errors
    /// An I/O or database error.
    pub fn catalog_scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, CATALOG)? else { return Ok(Vec::new()) };
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

/// Opens a table. Returns `None` if it was never written.
fn open_table<K: redb::Key, V: redb::Value>(
    read: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, StoreError> {
    match read.open_table(table) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Starts one of the store's threads.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|source| StoreError::Stopped(format!("cannot start a thread: {source}")))
}

/// Sizes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSize {
    /// Size of the journal's database, in bytes.
    pub journal_bytes: u64,
    /// Size of the tables' database, in bytes.
    pub table_bytes: u64,
    /// Number of segments.
    pub segments: usize,
    /// Total size of the segment files, in bytes.
    pub segment_bytes: u64,
}
