//! The only place that knows redb: the data directory, its files, the journal, segments and tables. It knows partitions
//! by their numbers, rows and bytes, and nothing of topics' settings, groups or producers.
//!
//! `write.rs` is what one commit writes; `recovery.rs` reads at start what the journal says.

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

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use redb::{Builder, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use blobs::BlobCache;
pub use catalog::CatalogChange;
pub use check::{Damage, Report};
pub(crate) use check::{KnownTopic, check};
use database::OpenDatabase;
use directory::DirectoryLock;
/// What the format file of a data directory of this version says.
pub use directory::FORMAT as DATA_FORMAT;
pub use error::StoreError;
pub use file_system::{Entry, FileSystem, Lock, Open, system_files};
use files::Files;
pub use files::WrapFile;
pub(crate) use journal::Location;
pub use journal::{KeyRange, Namespace, StateChange};
/// What a test harness puts under the store to break it.
pub use redb::{BackendError, StorageBackend};
pub(crate) use registry::Registry;
use room::Room;
pub use room::{DiskFull, FreeBytes};
pub(crate) use tables::{Count, SLICE_ROWS, StatePlace, Tables};
pub(crate) use write::Write;

/// Every commit's blob, cut into values of at most [`journal::CHUNK_BYTES`], by sequence number.
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");

/// Small things that change seldom: topics, modules, pipelines. By kind and name, `topic/flights`.
const CATALOG: TableDefinition<&str, &[u8]> = TableDefinition::new("catalog");

/// The segments that are part of the store, by number, with their extents.
const SEGMENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("segments");

/// The first offset that is kept, by topic and partition; 0 where there is no entry.
const LOG_STARTS: TableDefinition<(u32, u32), i64> = TableDefinition::new("log-starts");

/// Places in the journal.
const MARKS: TableDefinition<&str, u64> = TableDefinition::new("marks");

/// Journal values before this sequence number are in segments and tables.
const SEALED_TO: &str = "sealed-to";

/// No segment ever had this number, or a larger one.
const NEXT_SEGMENT: &str = "next-segment";

/// redb's page cache of the journal, in bytes. Tail reads come from [`BlobCache`] and commits from the
/// committer's own buffers, so this needs to hold little but branch pages.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// A segment that the cleaner writes is closed once it has this many bytes: as many as the sealer's have.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;

/// The leader epoch that batches get: one node is always the leader.
pub(crate) const LEADER_EPOCH: i32 = 0;

/// How to open a store.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// What the data directory is on. Default is the machine's own file system.
    pub file_system: Option<Arc<dyn FileSystem>>,
    /// Put between the store and each of its files: for tests that break them.
    pub wrap: Option<WrapFile>,
    /// Recent blobs kept in memory for tail reads, in bytes. Default [`blobs::TAIL_BYTES_MAX`].
    pub tail_bytes_max: Option<usize>,
    /// Says how many bytes the disk has room for: for tests. Default is what the file system of the data directory
    /// says that it leaves to us.
    pub free_bytes: Option<FreeBytes>,
    /// Ranges of offsets in segments beyond which short ones are joined. Default [`merge::EXTENTS_MAX`].
    pub extents_max: Option<usize>,
    /// Keys that one pass of compaction remembers. Default [`compaction::KEYS_MAX`].
    pub compaction_keys_max: Option<usize>,
    /// How often it is looked whether there is something to retain, to merge or to compact: for tests. Default a second.
    pub cleaning_interval: Option<Duration>,
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions").field("tail_bytes_max", &self.tail_bytes_max).finish_non_exhaustive()
    }
}

/// A data directory, open and locked.
pub struct Store {
    db: OpenDatabase,
    tables: Arc<Tables>,
    registry: Arc<Registry>,
    blobs: BlobCache,
    /// Set by the first failed write: nothing is written after it.
    failure: OnceLock<Arc<StoreError>>,
    room: Room,
    /// Since it was opened.
    commits: AtomicU64,
    /// Whether the committer has ended.
    ended: Mutex<bool>,
    ending: Condvar,
    path: PathBuf,
    _lock: DirectoryLock,
}

impl Store {
    /// Opens or makes the data directory `path`, and locks it; returns also what its segments hold. Appends leave
    /// `disk_reserve_bytes` of its disk free.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another server has it, [`StoreError::Format`] for one that a
    /// newer Millstream wrote, or what the disk says.
    pub(crate) fn open(
        path: &Path,
        options: StoreOptions,
        disk_reserve_bytes: u64,
    ) -> Result<(Self, recovery::TopicExtents), StoreError> {
        let system = options.file_system.unwrap_or_else(system_files);
        let lock = DirectoryLock::take(&system, path)?;
        directory::check_format(&system, path)?;
        let files = Arc::new(Files::new(&system, path, options.wrap));
        let file = files.path(directory::DATABASE_FILE);
        if !files.has(directory::DATABASE_FILE) {
            // The tables' is made after it.
            if files.has(tables::FILE) || !files.names(segment::FOLDER)?.is_empty() {
                return Err(StoreError::Missing { path: file });
            }
            directory::make_database(&files, directory::DATABASE_FILE)?;
        }
        let mut builder = Builder::new();
        builder.set_cache_size(PAGE_CACHE_BYTES);
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

    /// The segments.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// State, offsets and producers of the sealed part of the journal.
    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all its files.
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

    /// Room on its disk.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// How many commits there were since it was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// The committer has ended: nothing is written any more.
    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.ending.notify_all();
    }

    /// Waits so long, or until the committer has ended: whether it has.
    pub(crate) fn wait_for_end(&self, time: Duration) -> bool {
        let mut ended = self.ended.lock();
        self.ending.wait_while_for(&mut ended, |ended| !*ended, time);
        *ended
    }

    /// Whether a write failed: the store takes no more.
    pub fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Why the store takes no more writes, if so.
    pub(crate) fn failure(&self) -> Option<Arc<StoreError>> {
        self.failure.get().cloned()
    }

    /// Takes no more writes. The first reason stays.
    pub(crate) fn fail(&self, error: Arc<StoreError>) {
        self.failure.get_or_init(|| error);
    }

    /// Reads a part of a blob, from memory or the disk; what the disk gave may be damaged.
    pub(crate) fn read(&self, at: Location) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.blobs.get(at) {
            return Ok(bytes);
        }
        let read = self.db.begin_read()?;
        let table = read.open_table(JOURNAL)?;
        let value = |seq| Ok(table.get(seq)?.map(|value| Bytes::copy_from_slice(value.value())));
        match journal::read_location(at, value) {
            // Sealed since it was looked up, and gone from the journal.
            Err(_) if at.seq < recovery::sealed_to(&read)? => Err(StoreError::Moved),
            read => read,
        }
    }

    /// Keeps what was read from the disk and found sound in memory, for a reader that takes it in several reads.
    pub(crate) fn keep(&self, at: Location, bytes: Bytes) {
        self.blobs.keep_cold(at, bytes);
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
        let Some(table) = open_table(&read, CATALOG)? else { return Ok(None) };
        Ok(table.get(key)?.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// The catalog entries whose keys begin with `prefix`, in order.
    ///
    /// # Errors
    /// What the disk says.
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

/// A table, if it was ever written.
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
    spawned.map_err(|source| StoreError::Stopped(format!("no thread: {source}")))
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSize {
    /// Of the journal's database.
    pub journal_bytes: u64,
    /// Of the tables' database.
    pub table_bytes: u64,
    /// How many segments there are.
    pub segments: usize,
    /// Of their files.
    pub segment_bytes: u64,
}
