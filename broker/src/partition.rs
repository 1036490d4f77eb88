//! One partition: where its records are, its log end offset, and reading it.
//!
//! A run is the batches that one commit appended to one partition: they stand back to back in that
//! commit's blob, so a run is read as one slice. An extent is what a segment holds of the partition.
//! Both are in an index in memory, runs from the journal and extents from the registry at start.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use millstream_record::{BATCH_HEADER_BYTES, BatchHeader, Limits, RecordBatch, split_batches};
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;

use crate::error::BrokerError;
use crate::name::TopicName;
use crate::producer::Producers;
use crate::store::segment::{BlockFault, Extent, Sealed, SegmentId, sound_part};
use crate::store::{Location, Store, StoreError};

/// Position of a record in its partition, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);

    /// `None` for a negative number: Kafka's sentinels stay at the edges.
    pub fn new(offset: i64) -> Option<Self> {
        (offset >= 0).then_some(Self(offset))
    }

    /// The offset as record batches and journals hold it.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The offset after this one.
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The offset `records` further.
    pub fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(i64::try_from(records).unwrap_or(i64::MAX)))
    }

    /// How many records lie between `earlier` and this.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> Self {
        offset.0.unsigned_abs()
    }
}

/// A partition's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// From 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Identifies a topic's incarnation: a topic deleted and made again has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u32);

/// A partition of a topic's incarnation, in the order in which segments hold them.
pub(crate) type Place = (TopicId, u32);

/// Batches that one commit appended to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) base: Offset,
    /// The offset after the run's last record.
    pub(crate) end: Offset,
    pub(crate) first_timestamp_ms: i64,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) at: Location,
}

/// What to read of a partition.
#[derive(Clone, Copy, Debug)]
pub struct ReadRange {
    /// The first record wanted.
    pub from: Offset,
    /// Batches that begin here or later are not wanted; `None` for the log end offset.
    pub until: Option<Offset>,
    /// Of all batches.
    pub bytes_max: usize,
    /// One batch is read even where it is larger than that.
    pub one_at_least: bool,
}

/// What a read found: whole batches, in order.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Each element holds one or more batches back to back. The first batch may begin below the
    /// asked offset.
    pub runs: Vec<Bytes>,
    /// The offset to read from next; the asked one where nothing was found.
    pub next: Offset,
    /// The first offset that is kept.
    pub start: Offset,
    /// The log end offset at the time of the read.
    pub end: Offset,
}

impl Slice {
    /// Bytes of all batches.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(Bytes::len).sum()
    }
}

/// What a partition holds, in the order of offsets: extents of segments, then runs of the journal.
#[derive(Debug, Default)]
struct Index {
    /// The first offset that is kept.
    start: Offset,
    extents: Vec<Extent>,
    runs: VecDeque<Run>,
    /// Runs below the start, in order. They are in the journal still: what they say of producers is to be sealed.
    gone: Vec<Run>,
}

/// What is to be sealed of a partition.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    /// Of these only what they say of producers.
    pub(crate) gone: Vec<Run>,
    pub(crate) runs: Vec<Run>,
}

impl Index {
    /// The offset after the last record.
    fn end(&self) -> Offset {
        let held = self.runs.back().map(|run| run.end).or_else(|| self.extents.last().map(|extent| extent.end));
        held.unwrap_or_default().max(self.start)
    }

    /// Forgets what lies below the start.
    fn trim(&mut self) {
        let start = self.start;
        self.extents.retain(|extent| extent.end > start);
        while self.runs.front().is_some_and(|run| run.end <= start) {
            self.runs.pop_front();
        }
    }

    /// What a read of `bytes_max` from `offset` may touch.
    fn pieces_from(&self, offset: Offset, end: Offset, bytes_max: usize) -> Vec<Piece> {
        let mut bytes = 0u64;
        let mut wanted = |base: Offset, len: u64| {
            // One piece more than fits: the first may be cut at its front.
            let wanted = bytes <= bytes_max as u64 && base < end;
            bytes = bytes.saturating_add(len);
            wanted
        };
        let mut pieces = Vec::new();
        let first = self.extents.partition_point(|extent| extent.end <= offset);
        for extent in &self.extents[first..] {
            if !wanted(extent.base, extent.bytes) {
                return pieces;
            }
            pieces.push(Piece::Extent(*extent));
        }
        let first = self.runs.partition_point(|run| run.end <= offset);
        for run in self.runs.range(first..) {
            if !wanted(run.base, u64::from(run.at.len)) {
                return pieces;
            }
            pieces.push(Piece::Run(*run));
        }
        pieces
    }

    fn assert_in_order(&self, name: &TopicPartition) {
        let mut at = None;
        for extent in &self.extents {
            let follows = at.is_none_or(|at| extent.base == at) && extent.base < extent.end;
            assert!(follows, "{name}: an extent of offsets {}..{} cannot follow {at:?}", extent.base, extent.end);
            at = Some(extent.end);
        }
        if let (Some(at), Some(run)) = (at, self.runs.front()) {
            assert!(run.base == at, "{name}: a run at offset {} cannot follow extents to {at}", run.base);
        }
    }
}

/// How much a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionSize {
    /// Bytes of record batches.
    pub bytes: u64,
    /// Of these, in the journal.
    pub journal_bytes: u64,
    /// Extents of segments.
    pub segments: u32,
    /// The timestamp of the first record that is kept; `None` while it is empty.
    pub first_timestamp_ms: Option<i64>,
    /// The largest timestamp; `None` while it is empty.
    pub max_timestamp_ms: Option<i64>,
}

/// What a part of a read is.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Extent(Extent),
    Run(Run),
}

/// Records move while they are read when they are sealed or merged, seconds apart: a read that meets that
/// so often does not find what the index lists.
const MOVES_MAX: u32 = 1_000;

/// One partition of a topic.
pub struct Partition {
    topic_id: TopicId,
    name: TopicPartition,
    /// The next offset that the committer will assign. Only the committer writes it.
    assigned: AtomicI64,
    index: RwLock<Index>,
    /// The log end offset: what is committed. Its watchers are the waiting readers.
    end: watch::Sender<Offset>,
    deleted: AtomicBool,
    producers: Mutex<Producers>,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({})", self.name)
    }
}

impl Partition {
    pub(crate) fn new(topic_id: TopicId, name: TopicPartition) -> Self {
        Self {
            topic_id,
            name,
            assigned: AtomicI64::new(0),
            index: RwLock::default(),
            end: watch::Sender::new(Offset::ZERO),
            deleted: AtomicBool::new(false),
            producers: Mutex::default(),
        }
    }

    /// Its idempotent producers. They change with what the committer accepts, before that is on disk.
    pub(crate) fn producers(&self) -> MutexGuard<'_, Producers> {
        self.producers.lock()
    }

    /// Topic and partition.
    pub fn name(&self) -> &TopicPartition {
        &self.name
    }

    /// The topic's incarnation.
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// Topic's incarnation and partition.
    pub(crate) fn place(&self) -> Place {
        (self.topic_id, self.name.partition)
    }

    /// The first offset that is kept.
    pub fn start(&self) -> Offset {
        self.index.read().start
    }

    /// The log end offset: the next one that a reader will see written.
    pub fn end(&self) -> Offset {
        *self.end.borrow()
    }

    /// Wakes when the log end offset moves, and ends when the topic is deleted.
    pub fn watch_end(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// How much it holds.
    pub fn size(&self) -> PartitionSize {
        let index = self.index.read();
        let journal_bytes = index.runs.iter().map(|run| u64::from(run.at.len)).sum();
        let first = index.extents.first().map(|extent| extent.first_timestamp_ms);
        let extents_max = index.extents.iter().map(|extent| extent.max_timestamp_ms).max();
        let runs_max = index.runs.iter().map(|run| run.max_timestamp_ms).max();
        PartitionSize {
            bytes: journal_bytes + index.extents.iter().map(|extent| extent.bytes).sum::<u64>(),
            journal_bytes,
            segments: index.extents.len() as u32,
            first_timestamp_ms: first.or_else(|| index.runs.front().map(|run| run.first_timestamp_ms)),
            max_timestamp_ms: extents_max.max(runs_max),
        }
    }

    /// Whether the topic was deleted under whoever still holds this.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Wakes all who wait; they see that the topic is gone, or there after all.
    pub(crate) fn set_deleted(&self, deleted: bool) {
        self.deleted.store(deleted, Ordering::Release);
        self.end.send_modify(|_| {});
    }

    /// Takes the next `records` offsets. Committer only.
    pub(crate) fn assign(&self, records: u64) -> Offset {
        let base = Offset(self.assigned.load(Ordering::Relaxed));
        self.assigned.store(base.plus(records).0, Ordering::Relaxed);
        base
    }

    /// Makes a committed run visible and wakes the waiting. Committer and recovery only.
    pub(crate) fn publish(&self, run: Run) {
        {
            let mut index = self.index.write();
            let expected = index.end();
            assert!(
                run.base == expected && run.end > run.base,
                "{}: a run of offsets {}..{} cannot follow log end offset {expected}",
                self.name,
                run.base,
                run.end,
            );
            index.runs.push_back(run);
        }
        // Recovery publishes what was assigned before.
        self.assigned.fetch_max(run.end.0, Ordering::Relaxed);
        self.end.send_replace(run.end);
    }

    /// What the start finds in the registry: where the log starts, and the extents that are kept. A log
    /// that lost all its records ends where it starts.
    pub(crate) fn restore(&self, start: Offset, mut extents: Vec<Extent>) -> Result<(), String> {
        extents.sort_unstable_by_key(|extent| extent.base);
        let mut index = self.index.write();
        index.start = start;
        index.extents = extents;
        index.trim();
        if let Some(hole) = index.extents.windows(2).find(|pair| pair[0].end != pair[1].base) {
            return Err(format!("{}: offsets {} to {} are in no segment", self.name, hole[0].end, hole[1].base));
        }
        let end = index.end();
        drop(index);
        self.assigned.store(end.0, Ordering::Relaxed);
        self.end.send_replace(end);
        Ok(())
    }

    /// The runs that stand in the journal before sequence number `to`, in order.
    pub(crate) fn unsealed(&self, to: u64) -> Unsealed {
        let index = self.index.read();
        let is_before = |run: &&Run| run.at.seq < to;
        Unsealed {
            gone: index.gone.iter().take_while(is_before).copied().collect(),
            runs: index.runs.iter().take_while(is_before).copied().collect(),
        }
    }

    /// A run that was below the start before the journal was replayed.
    pub(crate) fn publish_gone(&self, run: Run) {
        self.index.write().gone.push(run);
    }

    /// What the runs before sequence number `to` say of producers is sealed, and there were no others.
    pub(crate) fn forget_gone(&self, to: u64) {
        self.index.write().gone.retain(|run| run.at.seq >= to);
    }

    /// The extents, in order.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        self.index.read().extents.clone()
    }

    /// The runs before sequence number `to` are in these extents now. Committer only.
    pub(crate) fn sealed(&self, extents: &[Extent], to: u64) {
        let mut index = self.index.write();
        while index.runs.front().is_some_and(|run| run.at.seq < to) {
            index.runs.pop_front();
        }
        index.gone.retain(|run| run.at.seq >= to);
        index.extents.extend_from_slice(extents);
        index.trim();
        index.assert_in_order(&self.name);
    }

    /// These extents, which follow one another, take the place of those with their offsets. Committer only.
    pub(crate) fn replace(&self, extents: &[Extent]) {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return };
        let mut index = self.index.write();
        index.extents.retain(|old| old.base < first.base || old.end > last.end);
        index.extents.extend_from_slice(extents);
        index.extents.sort_unstable_by_key(|extent| extent.base);
        index.trim();
        index.assert_in_order(&self.name);
    }

    /// Records below `start` are no longer kept. Returns whether a segment has less in use then. Committer only.
    pub(crate) fn set_start(&self, start: Offset) -> bool {
        let has_producers = !self.producers().is_empty();
        let mut index = self.index.write();
        let extents = index.extents.len();
        index.start = index.start.max(start);
        if has_producers {
            let gone: Vec<Run> = index.runs.iter().take_while(|run| run.end <= start).copied().collect();
            index.gone.extend(gone);
        }
        index.trim();
        index.extents.len() < extents
    }

    /// The segments that have records of it, one for each extent.
    pub(crate) fn segments(&self) -> Vec<SegmentId> {
        self.index.read().extents.iter().map(|extent| extent.segment).collect()
    }

    /// The offset from which records are kept where those last written before `time_ms` go, and of the
    /// rest no more than `bytes_max` and one extent.
    pub(crate) fn retained_from(&self, time_ms: Option<i64>, bytes_max: Option<u64>) -> Offset {
        let index = self.index.read();
        let mut start = index.start;
        let pieces = index.extents.iter().map(|extent| (extent.end, extent.max_timestamp_ms, extent.bytes));
        let runs = index.runs.iter().map(|run| (run.end, run.max_timestamp_ms, u64::from(run.at.len)));
        let mut bytes: u64 = pieces.clone().chain(runs.clone()).map(|(_, _, bytes)| bytes).sum();
        for (end, max_timestamp_ms, piece_bytes) in pieces.chain(runs) {
            let too_old = time_ms.is_some_and(|time_ms| max_timestamp_ms < time_ms);
            let too_much = bytes_max.is_some_and(|max| bytes - piece_bytes >= max);
            if !too_old && !too_much {
                break;
            }
            bytes -= piece_bytes;
            start = end;
        }
        start
    }

    /// The offset from which records are kept where those before `read_to` go: of what is stored together, all or
    /// nothing.
    pub(crate) fn unread_from(&self, read_to: Offset) -> Offset {
        let index = self.index.read();
        let ends = index.extents.iter().map(|extent| extent.end).chain(index.runs.iter().map(|run| run.end));
        ends.take_while(|end| *end <= read_to).last().unwrap_or(index.start)
    }

    /// Reads whole batches from the one that holds the range's first offset: at least one where
    /// there is one, and no more than `bytes_max` beyond that. Blocks on the disk for what memory does not hold.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::Damaged`], or [`BrokerError::Unreadable`] where the
    /// disk fails.
    pub fn read(&self, store: &Store, range: ReadRange) -> Result<Slice, BrokerError> {
        for _ in 0..MOVES_MAX {
            let read = self.read_with(range, |piece, from, room| match piece {
                Piece::Run(run) => self.read_run(store, &run, from).map(Some),
                Piece::Extent(extent) => self.read_extent(store, &extent, from, room).map(Some),
            });
            match read {
                // Sealed or merged meanwhile: it is looked up anew.
                Err(ReadError::Moved) => {}
                Err(ReadError::Broker(error)) => return Err(error),
                Ok(slice) => return Ok(slice.expect("a blocking read finds every piece")),
            }
        }
        Err(StoreError::Moved.into())
    }

    /// As [`Partition::read`], from memory alone: `None` where the disk would be needed.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`].
    pub fn read_in_memory(&self, store: &Store, range: ReadRange) -> Result<Option<Slice>, BrokerError> {
        let read = self.read_with(range, |piece, _, _| {
            let Piece::Run(run) = piece else { return Ok(None) };
            Ok(store.read_in_memory(run.at).map(|bytes| (bytes, run.end)))
        });
        read.map_err(|error| match error {
            ReadError::Broker(error) => error,
            ReadError::Moved => unreachable!("what is in memory does not move"),
        })
    }

    /// `fetch` gives batches of a piece, from the one that holds an offset on, and the offset up to which
    /// that is all there is.
    fn read_with(
        &self,
        ReadRange { from: offset, until, bytes_max, one_at_least }: ReadRange,
        fetch: impl Fn(Piece, Offset, usize) -> Result<Option<(Bytes, Offset)>, ReadError>,
    ) -> Result<Option<Slice>, ReadError> {
        let end = self.end();
        let until = until.unwrap_or(end).min(end);
        // As of one moment: what follows is not mistaken for what retention takes.
        let (start, pieces) = {
            let index = self.index.read();
            (index.start, index.pieces_from(offset, until, bytes_max))
        };
        if offset < start || offset > end {
            return Err(self.out_of_range(offset).into());
        }
        let mut slice = Slice { runs: Vec::new(), next: offset, start, end };
        let mut room = bytes_max;
        'pieces: for piece in pieces {
            let piece_end = match piece {
                Piece::Extent(extent) => extent.end,
                Piece::Run(run) => run.end,
            };
            while slice.next < piece_end {
                let fetched = match fetch(piece, slice.next, room) {
                    Ok(Some(fetched)) => fetched,
                    // What there is so far is an answer too.
                    Ok(None) | Err(_) if !slice.runs.is_empty() => break 'pieces,
                    Ok(None) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let (bytes, fetched_to) = fetched;
                let taken = take_batches(&bytes, slice.next..until, room, one_at_least && slice.runs.is_empty())
                    .map_err(|source| self.corrupt(source))?;
                match taken {
                    Took::Batches(batches) => {
                        room = room.saturating_sub(batches.bytes.len());
                        slice.next = batches.next;
                        if batches.all {
                            slice.next = slice.next.max(fetched_to.min(until));
                        }
                        slice.runs.push(batches.bytes);
                        if !batches.all {
                            break 'pieces;
                        }
                    }
                    Took::NoRoom => break 'pieces,
                    // Compaction left nothing there.
                    Took::Nothing => slice.next = fetched_to.min(until).max(slice.next),
                }
                if slice.next >= until {
                    break 'pieces;
                }
            }
        }
        Ok(Some(slice))
    }

    fn read_run(&self, store: &Store, run: &Run, from: Offset) -> Result<(Bytes, Offset), ReadError> {
        if let Some(bytes) = store.read_in_memory(run.at) {
            return Ok((bytes, run.end));
        }
        let bytes = store.read(run.at)?;
        match sound_part(&bytes, run.base..run.end, run.base) {
            // What memory holds is not checked again.
            Ok(all) if all.bytes.len() == bytes.len() => {
                store.keep(run.at, bytes.clone());
                Ok((bytes, run.end))
            }
            _ => self.sound(sound_part(&bytes, run.base..run.end, from)),
        }
    }

    fn read_extent(
        &self,
        store: &Store,
        extent: &Extent,
        from: Offset,
        room: usize,
    ) -> Result<(Bytes, Offset), ReadError> {
        self.sound(store.registry().segment_of(extent)?.read(extent, from, room)?)
    }

    fn sound(&self, read: Result<Sealed, BlockFault>) -> Result<(Bytes, Offset), ReadError> {
        read.map(|Sealed { bytes, end }| (bytes, end)).map_err(|fault| self.damaged(fault).into())
    }

    /// The offset of the first record whose timestamp is `timestamp_ms` or later; the log end
    /// offset where there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`BrokerError::Unreadable`], [`BrokerError::Damaged`], or [`BrokerError::Batch`] for a batch that does
    /// not parse.
    pub fn offset_at(&self, store: &Store, timestamp_ms: i64, limits: &Limits) -> Result<Offset, BrokerError> {
        for _ in 0..MOVES_MAX {
            match self.try_offset_at(store, timestamp_ms, limits) {
                Err(ReadError::Moved) => {}
                Err(ReadError::Broker(error)) => return Err(error),
                Ok(offset) => return Ok(offset),
            }
        }
        Err(StoreError::Moved.into())
    }

    fn try_offset_at(&self, store: &Store, timestamp_ms: i64, limits: &Limits) -> Result<Offset, ReadError> {
        let (start, end) = (self.start(), self.end());
        let candidates: Vec<Piece> = {
            let index = self.index.read();
            let extents = index.extents.iter().filter(|extent| extent.max_timestamp_ms >= timestamp_ms);
            let runs = index.runs.iter().filter(|run| run.max_timestamp_ms >= timestamp_ms);
            extents.map(|extent| Piece::Extent(*extent)).chain(runs.map(|run| Piece::Run(*run))).collect()
        };
        for piece in candidates {
            let found = match piece {
                Piece::Run(run) => {
                    let (bytes, _) = self.read_run(store, &run, run.base)?;
                    self.first_at(bytes, start, timestamp_ms, limits)?
                }
                Piece::Extent(extent) => {
                    let mut found = None;
                    let segment = store.registry().segment_of(&extent)?;
                    for base in segment.blocks_at(&extent, start, timestamp_ms) {
                        let (bytes, _) = self.read_extent(store, &extent, base, 0)?;
                        found = self.first_at(bytes, start, timestamp_ms, limits)?;
                        if found.is_some() {
                            break;
                        }
                    }
                    found
                }
            };
            if let Some(offset) = found {
                return Ok(offset.min(end));
            }
        }
        Ok(end)
    }

    fn first_at(
        &self,
        batches: Bytes,
        start: Offset,
        timestamp_ms: i64,
        limits: &Limits,
    ) -> Result<Option<Offset>, ReadError> {
        for batch in split_batches(batches) {
            let batch = batch.map_err(|source| self.corrupt(source))?;
            if batch.max_timestamp_ms() < timestamp_ms || batch.next_offset() <= start.get() {
                continue;
            }
            let found = first_at(&batch, start, timestamp_ms, limits).map_err(|source| self.corrupt(source))?;
            if let Some(offset) = found.and_then(Offset::new) {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// The error for records that the disk did not give back.
    pub(crate) fn damaged(&self, fault: BlockFault) -> BrokerError {
        BrokerError::Damaged {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            first: fault.base,
            last: Offset(fault.end.0 - 1),
            reason: fault.reason,
        }
    }

    /// The error for an offset that is not kept.
    pub fn out_of_range(&self, offset: Offset) -> BrokerError {
        BrokerError::OffsetOutOfRange {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            offset: i128::from(offset.get()),
            start: self.start(),
            end: self.end(),
        }
    }

    pub(crate) fn corrupt(&self, source: millstream_record::BatchError) -> BrokerError {
        BrokerError::Unreadable(std::sync::Arc::new(StoreError::Corrupt {
            what: format!("topic {}, partition {}", self.name.topic, self.name.partition),
            reason: source.to_string(),
        }))
    }
}

/// Why a read did not give what was asked.
enum ReadError {
    /// It stands elsewhere by now.
    Moved,
    Broker(BrokerError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Moved => Self::Moved,
            other => Self::Broker(other.into()),
        }
    }
}

impl From<BrokerError> for ReadError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

fn first_at(
    batch: &RecordBatch,
    start: Offset,
    timestamp_ms: i64,
    limits: &Limits,
) -> Result<Option<i64>, millstream_record::BatchError> {
    for record in batch.records(limits)?.iter() {
        let record = record?;
        if record.timestamp_ms >= timestamp_ms && record.offset >= start.get() {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}

enum Took {
    Batches(Batches),
    /// There is a wanted batch, but no room for it.
    NoRoom,
    /// There is no wanted batch.
    Nothing,
}

struct Batches {
    bytes: Bytes,
    /// The offset after the last batch.
    next: Offset,
    /// No wanted batch follows.
    all: bool,
}

/// Cuts from batches back to back those that hold `wanted`, up to `room` bytes; one at least where
/// `at_least_one`.
fn take_batches(
    batches: &Bytes,
    wanted: Range<Offset>,
    room: usize,
    at_least_one: bool,
) -> Result<Took, millstream_record::BatchError> {
    let mut begin = None;
    let mut at = 0;
    let mut next = wanted.start;
    let mut all = true;
    while at + BATCH_HEADER_BYTES <= batches.len() {
        let header = BatchHeader::parse(&batches[at..])?;
        if header.base_offset >= wanted.end.get() {
            break;
        }
        let batch_end = at + header.batch_bytes;
        let next_offset = header.next_offset();
        if next_offset > wanted.start.get() {
            let begin = *begin.get_or_insert(at);
            let first = at == begin && at_least_one;
            if batch_end - begin > room && !first {
                all = false;
                break;
            }
            next = Offset(next_offset);
        }
        at = batch_end;
    }
    Ok(match begin {
        None => Took::Nothing,
        Some(begin) if at > begin => Took::Batches(Batches { bytes: batches.slice(begin..at), next, all }),
        Some(_) => Took::NoRoom,
    })
}
