//! `millstream check`: reads everything in a data directory and reports all damage and which records it costs. With
//! `repair` it removes the damage, so that reads continue after it. No server may use the directory meanwhile.
//!
//! `overlay.rs` keeps a check from changing anything. `rebuild.rs` reads a database that redb refuses to open.
//! `journal.rs` reads a damaged journal. `repair.rs` rewrites the intact data.

mod journal;
mod overlay;
mod rebuild;
mod repair;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millstream_record::BatchHeader;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use tempfile::TempDir;

use super::directory::{self, DATABASE_FILE, DirectoryLock};
use super::error::StoreError;
use super::file_system::{FileSystem, system_files};
use super::files::Files;
use super::journal::{BATCHES, RunHeader};
use super::segment::{BlockFault, Extent, FOLDER, OpenSegment, OwnedExtent, Scanned, SegmentId, SegmentMeta};
use super::tables::{self, Tables};
use super::{CATALOG, JOURNAL, LOG_STARTS, SEGMENTS, panics, recovery, sum};
use crate::store::place::{Offset, TopicId};
use journal::{Content, Found};
use overlay::Overlay;
pub use report::{Damage, Report};

/// An existing topic, as read from its catalog entry.
pub(crate) struct KnownTopic {
    pub(crate) id: TopicId,
    pub(crate) name: String,
    pub(crate) partitions: u32,
}

/// Reads a catalog entry from its key and value. Returns `None` if the entry is not a topic, and an error if it is a
/// topic but cannot be read.
pub(crate) type ReadTopic = fn(&str, &[u8]) -> Option<Result<KnownTopic, String>>;

/// Reads the whole data directory of a stopped server. With `repair`, keeps everything that is intact: damaged batches
/// are removed and leave a gap in the offsets, and damaged indexes are rewritten. Without `repair` nothing is changed.
/// Blocks.
///
/// # Errors
/// [`StoreError::Locked`] if a server uses the directory, [`StoreError::Format`] if it has the format of another
/// version, [`StoreError::NoDataDirectory`] if it does not exist, [`StoreError::Io`] if a file cannot be read. Damage
/// is not an error.
pub(crate) fn check(
    system: &Arc<dyn FileSystem>,
    data: &Path,
    repair: bool,
    read_topic: ReadTopic,
) -> Result<Report, StoreError> {
    if !system.exists(&data.join(directory::FORMAT_FILE)) {
        return Err(StoreError::NoDataDirectory { path: data.to_owned() });
    }
    let _lock = DirectoryLock::take(system, data)?;
    directory::check_format(system, data)?;
    let mut checked = Checked::new(system, data, None, read_topic);
    checked.run()?;
    if !checked.readable
        && let Some(rebuilt) = rebuilt(&checked.files)?
    {
        let mut again = Checked::new(system, data, Some(rebuilt), read_topic);
        again.damaged(
            DATABASE_FILE,
            "redb refuses to open it: a page is damaged, and the database was not closed cleanly",
        );
        again.run()?;
        if again.readable {
            checked = again;
        }
    }
    // Without its topic, a record looks as if its topic had been deleted. In this case nothing is removed.
    if !checked.readable || checked.catalog_is_damaged {
        checked.report.set_beyond_repair();
    }
    // A repair rewrites redb's lists of free pages even if no damage was found, because no check can see damage in
    // them.
    if repair && (checked.report.is_sound() || checked.report.is_repairable()) {
        checked.repair()?;
    }
    Ok(checked.report)
}

/// Rebuilds a database that redb refuses to open from its rows. Returns `None` if the rows cannot be read either.
fn rebuilt(files: &Files) -> Result<Option<TempDir>, StoreError> {
    match caught(|| Ok(rebuild::rebuild(files))) {
        Ok(Ok(rebuilt)) => Ok(Some(rebuilt)),
        // An error of the folder for the copy does not say anything about the stored data.
        Ok(Err(error)) if error.is_disk_full() || matches!(error, StoreError::Io { action: "make", .. }) => Err(error),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// A segment's registry entry, and its state on disk.
struct SegmentFound {
    meta: SegmentMeta,
    /// `None` if the file is missing.
    open: Option<OpenSegment>,
    /// Whether a repair must rewrite the segment.
    rewrite: bool,
}

/// A commit of the journal.
struct BlobFound {
    seqs: Range<u64>,
    entries: Vec<Found>,
    rewrite: bool,
}

/// Everything that the check found.
struct Checked {
    files: Files,
    /// The rebuilt copy of the journal's database, if redb refuses to open the original.
    rebuilt: Option<(TempDir, Files)>,
    report: Report,
    read_topic: ReadTopic,
    topics: BTreeMap<TopicId, KnownTopic>,
    /// Whether a topic may be missing in `topics` because its entry cannot be read.
    catalog_is_damaged: bool,
    log_starts: BTreeMap<(TopicId, u32), Offset>,
    segments: Vec<SegmentFound>,
    blobs: Vec<BlobFound>,
    /// Sequence numbers of journal values that are sealed and not yet removed.
    sealed_values: Vec<u64>,
    /// Ranges of offsets that neither a segment nor the journal holds.
    holes: Vec<(TopicId, u32, Range<Offset>)>,
    /// Segments whose registry rows and indexes are both damaged.
    lost_rows: Vec<SegmentId>,
    next_segment: u64,
    /// The sealed mark: journal values before this sequence number are in segments and tables.
    sealed_to: u64,
    /// Whether the journal's database could be read.
    readable: bool,
}

impl Checked {
    fn new(system: &Arc<dyn FileSystem>, data: &Path, rebuilt: Option<TempDir>, read_topic: ReadTopic) -> Self {
        Self {
            files: overlaid(system, data),
            rebuilt: rebuilt.map(|folder| {
                // The rebuilt copy is in the machine's temporary folder, whatever file system the data directory is on.
                let files = overlaid(&system_files(), folder.path());
                (folder, files)
            }),
            report: Report::default(),
            read_topic,
            topics: BTreeMap::new(),
            catalog_is_damaged: false,
            log_starts: BTreeMap::new(),
            segments: Vec::new(),
            blobs: Vec::new(),
            sealed_values: Vec::new(),
            holes: Vec::new(),
            lost_rows: Vec::new(),
            next_segment: 0,
            sealed_to: 0,
            readable: false,
        }
    }

    fn run(&mut self) -> Result<(), StoreError> {
        let journal_fault = self.database_fault(DATABASE_FILE)?;
        let read = self.files.has(DATABASE_FILE).then(|| caught(|| self.journal()));
        match read {
            Some(Ok(())) => {
                self.readable = true;
                self.continuity();
            }
            Some(Err(reason)) => self.beyond_repair(DATABASE_FILE, format!("it cannot be read: {reason}")),
            None => {}
        }
        // Damage in a journal value was reported with its records. Any other damage is to the database itself.
        if let Some(reason) = journal_fault
            && !self.is_damaged(DATABASE_FILE)
        {
            self.damaged(DATABASE_FILE, reason);
        }
        // The tables' database is created at the first start, and is empty until something is sealed.
        if self.readable && self.sealed_to == 0 && !self.files.has(tables::FILE) {
            return Ok(());
        }
        if let Some(reason) = self.database_fault(tables::FILE)? {
            self.tables_are_damaged(&reason);
        } else if let Err(reason) = caught(|| read_tables(&self.files)) {
            self.tables_are_damaged(&reason);
        }
        Ok(())
    }

    /// Returns whether damage to this file was reported already.
    fn is_damaged(&self, file: &str) -> bool {
        self.report.damages.iter().any(|damage| damage.file == file)
    }

    fn damaged(&mut self, file: &str, reason: impl Into<String>) {
        self.report.damages.push(Damage::of_file(file, reason));
    }

    fn beyond_repair(&mut self, file: &str, reason: impl std::fmt::Display) {
        self.report.damages.push(Damage::beyond_repair(file, reason));
    }

    fn tables_are_damaged(&mut self, reason: &str) {
        self.beyond_repair(tables::FILE, format!("{reason}: it contains state, committed offsets and producers"));
    }

    /// Returns the files in which to look for a database.
    fn files_of(&self, name: &str) -> &Files {
        let rebuilt = self.rebuilt.as_ref().filter(|_| name == DATABASE_FILE);
        rebuilt.map_or(&self.files, |(_, files)| files)
    }

    /// Returns what redb finds wrong with a database. It compares every page with its checksum.
    fn database_fault(&self, name: &str) -> Result<Option<String>, StoreError> {
        if !self.files.has(name) {
            return Ok(Some("it is missing or empty".to_owned()));
        }
        let backend = self.files_of(name).database(name)?;
        let integrity = caught(|| {
            let mut database = Builder::new().create_with_backend(backend).map_err(to_text)?;
            database.check_integrity().map_err(to_text)
        });
        Ok(match integrity {
            Ok(true) => None,
            Ok(false) => Some("pages of the database do not match their checksums".to_owned()),
            Err(reason) => Some(reason),
        })
    }

    // ---- the journal's database

    fn journal(&mut self) -> Result<(), String> {
        let backend = self.files_of(DATABASE_FILE).database(DATABASE_FILE).map_err(to_text)?;
        let mut builder = Builder::new();
        builder.set_cache_size(super::PAGE_CACHE_BYTES);
        let database = builder.create_with_backend(backend).map_err(to_text)?;
        self.catalog(&database)?;
        self.registry(&database)?;
        for found in 0..self.segments.len() {
            self.segment(found).map_err(to_text)?;
        }
        self.commits(&database)
    }

    fn catalog(&mut self, database: &Database) -> Result<(), String> {
        let mut damages = Vec::new();
        rows(database, CATALOG, |key, value| match (self.read_topic)(key, value) {
            None => {}
            Some(Ok(topic)) => drop(self.topics.insert(topic.id, topic)),
            Some(Err(reason)) => damages.push(format!("the catalog entry {key:?}: {reason}")),
        })?;
        self.catalog_is_damaged |= !damages.is_empty();
        damages.into_iter().for_each(|reason| self.beyond_repair(DATABASE_FILE, reason));
        rows(database, LOG_STARTS, |(topic, partition), start| {
            self.log_starts.insert((TopicId(topic), partition), Offset::new(start).unwrap_or_default());
        })
    }

    fn registry(&mut self, database: &Database) -> Result<(), String> {
        let mut found = Vec::new();
        rows(database, SEGMENTS, |id, row| {
            found.push((SegmentId(id), recovery::segment(SegmentId(id), row)));
        })?;
        let mut known = BTreeSet::new();
        let mut unknown = Vec::new();
        for (id, meta) in found {
            known.insert(id);
            self.next_segment = self.next_segment.max(id.0 + 1);
            match meta {
                Ok(meta) => self.segments.push(SegmentFound { meta, open: None, rewrite: false }),
                Err(error) => unknown.push((id, error)),
            }
        }
        for name in self.files.names(FOLDER).map_err(to_text)? {
            let id = SegmentId::from_file_name(&name);
            self.next_segment = self.next_segment.max(id.map_or(0, |id| id.0 + 1));
            if !id.is_some_and(|id| known.contains(&id)) {
                self.report.unregistered.push(format!("{FOLDER}/{name}"));
            }
        }
        // Newer segments come first, because they replace extents of older ones.
        unknown.into_iter().rev().try_for_each(|(id, error)| self.unknown_segment(id, &error)).map_err(to_text)
    }

    /// Adds a segment whose registry row is damaged, with those extents of its own index that are in use and that no
    /// other segment holds.
    fn unknown_segment(&mut self, id: SegmentId, error: &StoreError) -> Result<(), StoreError> {
        let is_there = self.files.exists(&id.file_name());
        let own = if is_there { OpenSegment::own_meta(&self.files, id)? } else { None };
        let Some(mut meta) = own else {
            self.damaged(
                DATABASE_FILE,
                format!("{error}, and the index in its file is damaged too: its records are lost"),
            );
            self.lost_rows.push(id);
            return Ok(());
        };
        self.damaged(DATABASE_FILE, format!("{error}: the index in its file replaces the entry, so no record is lost"));
        let others = || self.segments.iter().flat_map(|found| &found.meta.extents);
        meta.extents.retain(|owned| {
            let overlaps = |other: &OwnedExtent| {
                (other.topic, other.partition) == (owned.topic, owned.partition)
                    && other.extent.base < owned.extent.end
                    && owned.extent.base < other.extent.end
            };
            self.in_use(owned).is_some() && !others().any(overlaps)
        });
        self.segments.push(SegmentFound { meta, open: None, rewrite: true });
        Ok(())
    }

    // ---- segments

    fn segment(&mut self, index: usize) -> Result<(), StoreError> {
        let meta = self.segments[index].meta.clone();
        let name = meta.file.id.file_name();
        if !self.files.exists(&name) {
            self.segments[index].rewrite = true;
            for owned in &meta.extents {
                if let Some(topic) = self.in_use(owned) {
                    let OwnedExtent { partition, extent, .. } = *owned;
                    self.report.lost(&name, &topic, partition, extent.base..extent.end, "its segment is missing");
                }
            }
            return Ok(());
        }
        self.report.segments += 1;
        let segment = OpenSegment::open(&self.files, meta.file)?;
        let mut faults = Vec::new();
        if !segment.has_header()? {
            faults.push("it does not start with the magic number of a segment; no record is lost".to_owned());
        }
        if let Err(reason) = segment.read_index(meta.file.bytes)? {
            faults.push(format!("{reason}: no record is lost, but reads must scan its batches"));
        }
        let len = segment.len()?;
        if len != meta.file.bytes {
            faults.push(format!("it has {len} bytes, not {}", meta.file.bytes));
        }
        let mut lost: Vec<(String, u32, BlockFault)> = Vec::new();
        for owned in &meta.extents {
            let Some(topic) = self.in_use(owned) else { continue };
            segment.visit(&owned.extent, |_, scanned| -> Result<(), StoreError> {
                match scanned {
                    Scanned::Batch { header, .. } => self.report.count(header.batch_bytes),
                    Scanned::Damaged { fault, .. } => lost.push((topic.clone(), owned.partition, fault)),
                }
                Ok(())
            })?;
        }
        let found = &mut self.segments[index];
        found.rewrite |= !faults.is_empty() || !lost.is_empty();
        found.open = Some(segment);
        faults.into_iter().for_each(|reason| self.damaged(&name, reason));
        let lost = lost.iter().map(|(topic, partition, fault)| Damage::of_records(&name, topic, *partition, fault));
        self.report.damages.extend(lost);
        Ok(())
    }

    /// Returns the topic's name if the topic exists and the extent is not wholly before the log start offset.
    fn in_use(&self, OwnedExtent { topic, partition, extent }: &OwnedExtent) -> Option<String> {
        let kept = extent.end > self.log_start(*topic, *partition);
        self.topics.get(topic).filter(|_| kept).map(|topic| topic.name.clone())
    }

    fn log_start(&self, topic: TopicId, partition: u32) -> Offset {
        self.log_starts.get(&(topic, partition)).copied().unwrap_or_default()
    }

    // ---- commits

    fn commits(&mut self, database: &Database) -> Result<(), String> {
        let read = database.begin_read().map_err(to_text)?;
        match sum::verify(&read) {
            Ok(()) => {}
            Err(StoreError::Corrupt { what, reason }) => {
                self.catalog_is_damaged = true;
                self.beyond_repair(DATABASE_FILE, format!("{what} is damaged: {reason}"));
            }
            Err(error) => return Err(to_text(error)),
        }
        self.sealed_to = recovery::sealed_to(&read).map_err(to_text)?;
        let sealed_to = self.sealed_to;
        let mut values: Vec<(u64, Bytes)> = Vec::new();
        rows(database, JOURNAL, |seq, value| {
            if seq >= sealed_to {
                values.push((seq, Bytes::copy_from_slice(value)));
            } else {
                self.sealed_values.push(seq);
            }
        })?;
        let mut next_seq = sealed_to;
        for blob in journal::blobs(&values) {
            if blob.seqs.start != next_seq {
                let reason =
                    format!("journal values {next_seq} to {} are missing with everything in them", blob.seqs.start);
                self.beyond_repair(DATABASE_FILE, reason);
            }
            next_seq = blob.seqs.end;
            self.report.commits += 1;
            let seq = blob.seqs.start;
            let entries = journal::entries(&blob);
            let mut rewrite = blob.fault.is_some();
            if let Some(reason) = blob.fault {
                self.damaged(DATABASE_FILE, format!("journal value {seq}: {reason}"));
            }
            for found in &entries {
                if let Some(reason) = &found.fault {
                    rewrite = true;
                    self.damaged(DATABASE_FILE, format!("journal value {seq}: {reason}"));
                }
                if let Content::Run { run, known: true, batches, lost } = &found.content {
                    rewrite |= !lost.is_empty();
                    let Some(topic) = self.topics.get(&run.topic) else { continue };
                    batches.iter().for_each(|batch| self.report.count(batch.len()));
                    let lost = lost.iter();
                    let lost = lost.map(|fault| Damage::of_records(DATABASE_FILE, &topic.name, run.partition, fault));
                    self.report.damages.extend(lost);
                }
            }
            self.blobs.push(BlobFound { seqs: blob.seqs, entries, rewrite });
        }
        Ok(())
    }

    // ---- continuity of offsets

    /// Checks that every partition's offsets are contiguous from the log start offset to the last offset.
    fn continuity(&mut self) {
        /// An extent, the index of its segment, and its index in the segment.
        type Placed = (Extent, usize, usize);
        let mut extents: BTreeMap<(TopicId, u32), Vec<Placed>> = BTreeMap::new();
        for (segment, found) in self.segments.iter().enumerate() {
            for (number, owned) in found.meta.extents.iter().enumerate() {
                if self.in_use(owned).is_some() {
                    let of = extents.entry((owned.topic, owned.partition)).or_default();
                    of.push((owned.extent, segment, number));
                }
            }
        }
        let mut ends: BTreeMap<(TopicId, u32), Offset> = BTreeMap::new();
        for ((topic, partition), mut of) in extents {
            of.sort_unstable_by_key(|(extent, ..)| (extent.base, extent.segment));
            let mut next = self.log_start(topic, partition);
            for (extent, segment, number) in of {
                if extent.base > next {
                    self.hole(topic, partition, next..extent.base);
                } else if extent.base < next && next > self.log_start(topic, partition) {
                    let reason = format!(
                        "topic {}, partition {partition}: offsets {} to {} are in two segments; no record is lost",
                        self.topics[&topic].name,
                        extent.base,
                        next.min(extent.end).get() - 1
                    );
                    self.damaged(&extent.segment.file_name(), reason);
                    // The extent is cut to the offsets that no earlier extent holds.
                    let found = &mut self.segments[segment];
                    found.rewrite = true;
                    found.meta.extents[number].extent.base = next.min(extent.end);
                }
                next = next.max(extent.end);
            }
            ends.insert((topic, partition), next);
        }
        self.runs_follow(ends);
    }

    fn hole(&mut self, topic: TopicId, partition: u32, offsets: Range<Offset>) {
        let name = self.topics[&topic].name.clone();
        self.report.lost(FOLDER, &name, partition, offsets.clone(), "no segment contains them");
        self.holes.push((topic, partition, offsets));
    }

    fn runs_follow(&mut self, mut ends: BTreeMap<(TopicId, u32), Offset>) {
        // The next run of a partition may belong to a deleted topic, or be the first one after the log start offset.
        for owned in self.segments.iter().flat_map(|found| &found.meta.extents) {
            let end = ends.entry((owned.topic, owned.partition)).or_default();
            *end = (*end).max(owned.extent.end);
        }
        for (id, topic) in &self.topics {
            for partition in 0..topic.partitions {
                let end = ends.entry((*id, partition)).or_default();
                *end = (*end).max(self.log_starts.get(&(*id, partition)).copied().unwrap_or_default());
            }
        }
        let known_runs: Vec<RunHeader> =
            self.blobs.iter().flat_map(|blob| &blob.entries).filter_map(known_run).collect();
        // Partitions without records start at offset 0, and so do those of deleted topics.
        let is_followed = |place: (TopicId, u32), end: Offset| {
            known_runs.iter().any(|run| (run.topic, run.partition) == place && run.base == end)
        };
        let is_told_by_another = |place: (TopicId, u32), offsets: Range<Offset>| {
            let overlaps = |run: &RunHeader| run.base < offsets.end && offsets.start < run.end;
            known_runs.iter().any(|run| (run.topic, run.partition) == place && overlaps(run))
        };
        let mut damages = Vec::new();
        for blob in &mut self.blobs {
            let seq = blob.seqs.start;
            for found in blob.entries.iter_mut().filter(|found| found.kind == BATCHES) {
                let Content::Run { run, known, lost, batches } = &mut found.content else { continue };
                if !*known {
                    // The owner of these batches is the partition whose last offset they follow, if there is exactly
                    // one.
                    let follows = |(place, end): &(&(TopicId, u32), &Offset)| {
                        **end == run.base
                            && (run.base > Offset::ZERO || is_followed(**place, run.end))
                            && !is_told_by_another(**place, run.base..run.end)
                    };
                    let mut follows = ends.iter().filter(follows).map(|(place, _)| *place);
                    let place = follows.next().filter(|_| follows.next().is_none());
                    let Some((topic, partition)) = place else {
                        let reason =
                            format!("journal value {seq}: batches whose topic and partition are unknown are lost");
                        damages.push(Damage::of_file(DATABASE_FILE, reason));
                        found.content = Content::Lost;
                        continue;
                    };
                    (run.topic, run.partition, *known) = (topic, partition, true);
                    if let Some(topic) = self.topics.get(&topic) {
                        batches.iter().for_each(|batch| self.report.count(batch.len()));
                        let of = |fault| Damage::of_records(DATABASE_FILE, &topic.name, partition, fault);
                        damages.extend(lost.iter().map(of));
                    }
                }
                let place = (run.topic, run.partition);
                let Some(topic) = self.topics.get(&run.topic).filter(|topic| run.partition < topic.partitions) else {
                    ends.insert(place, run.end);
                    continue;
                };
                let start = self.log_starts.get(&place).copied().unwrap_or_default();
                if run.end <= start {
                    continue;
                }
                let next = ends.get(&place).copied().unwrap_or(start);
                if run.base > next {
                    let fault = BlockFault { base: next, end: run.base, reason: "no commit contains them".to_owned() };
                    damages.push(Damage::of_records(DATABASE_FILE, &topic.name, run.partition, &fault));
                    // The run now covers the gap, so that reads continue after it.
                    run.base = next;
                    blob.rewrite = true;
                } else if run.base < next && next > start {
                    let reason = format!(
                        "journal value {seq}: topic {}, partition {}: offsets {} to {} are there twice; no record is \
                         lost",
                        topic.name,
                        run.partition,
                        run.base,
                        next.min(run.end).get() - 1
                    );
                    damages.push(Damage::of_file(DATABASE_FILE, reason));
                    blob.rewrite = true;
                    batches.retain(|batch| base_offset(batch) >= next.get());
                    run.base = next;
                    if run.end <= next {
                        found.content = Content::Lost;
                        continue;
                    }
                }
                let end = run.end;
                ends.insert(place, next.max(end));
            }
        }
        self.report.damages.extend(damages);
    }
}

/// Returns the header of a run whose topic and partition are known.
fn known_run(found: &Found) -> Option<RunHeader> {
    match &found.content {
        Content::Run { run, known: true, .. } => Some(*run),
        _ => None,
    }
}

/// Returns files whose databases are repaired in memory only when they are opened.
fn overlaid(system: &Arc<dyn FileSystem>, folder: &Path) -> Files {
    let wrap = |_: &Path, file| Box::new(Overlay::new(file)) as Box<dyn super::StoreFile>;
    Files::new(system, folder, Some(Arc::new(wrap)))
}

impl Report {
    fn count(&mut self, batch_bytes: usize) {
        self.batches += 1;
        self.batch_bytes += batch_bytes as u64;
    }
}

fn base_offset(batch: &[u8]) -> i64 {
    BatchHeader::parse(batch).map_or(i64::MIN, |header| header.base_offset)
}

/// Like [`panics::caught`], but returns a panic as an error like any other damage.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panics::caught(work).unwrap_or_else(|said| Err(format!("the database failed: {said}")))
}

fn to_text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Calls `visit` with each row of a table. A missing table has no rows.
fn rows<K: redb::Key, V: redb::Value>(
    database: &Database,
    table: TableDefinition<'_, K, V>,
    mut visit: impl FnMut(K::SelfType<'_>, V::SelfType<'_>),
) -> Result<(), String> {
    let read = database.begin_read().map_err(to_text)?;
    let table = match read.open_table(table) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        other => other.map_err(to_text)?,
    };
    for row in table.iter().map_err(to_text)? {
        let (key, value) = row.map_err(to_text)?;
        visit(key.value(), value.value());
    }
    Ok(())
}

/// Reads the same rows as a start does.
fn read_tables(files: &Files) -> Result<(), String> {
    let tables = Tables::open(files).map_err(to_text)?;
    tables.counts().map_err(to_text)?;
    tables.offsets(|_| Ok(())).map_err(to_text)?;
    tables.producers(|_, _, _, _| Ok(())).map_err(to_text)
}
