//! One partition: its index of runs, its log end offset, and reading it.
//!
//! A run is the batches that one commit appended to one partition: they stand back to back in that
//! commit's blob, so a run is read as one slice. The index is in memory and rebuilt at start.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use millstream_record::{BATCH_HEADER_BYTES, BatchHeader, Limits, RecordBatch, split_batches};
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;

use crate::error::BrokerError;
use crate::name::TopicName;
use crate::producer::Producers;
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

/// Batches that one commit appended to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) base: Offset,
    /// The offset after the run's last record.
    pub(crate) end: Offset,
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

/// One partition of a topic.
pub struct Partition {
    topic_id: TopicId,
    name: TopicPartition,
    /// The next offset that the committer will assign. Only the committer writes it.
    assigned: AtomicI64,
    runs: RwLock<Vec<Run>>,
    /// The log end offset: what is committed. Its watchers are the waiting readers.
    end: watch::Sender<Offset>,
    bytes: AtomicU64,
    max_timestamp_ms: AtomicI64,
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
            runs: RwLock::default(),
            end: watch::Sender::new(Offset::ZERO),
            bytes: AtomicU64::new(0),
            max_timestamp_ms: AtomicI64::new(i64::MIN),
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

    /// The first offset that is kept.
    pub fn start(&self) -> Offset {
        Offset::ZERO
    }

    /// The log end offset: the next one that a reader will see written.
    pub fn end(&self) -> Offset {
        *self.end.borrow()
    }

    /// Wakes when the log end offset moves, and ends when the topic is deleted.
    pub fn watch_end(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Bytes of the batches that are kept.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The largest timestamp of its records, `None` while it is empty.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        let max = self.max_timestamp_ms.load(Ordering::Relaxed);
        (max != i64::MIN).then_some(max)
    }

    /// Whether the topic was deleted under whoever still holds this.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Wakes all who wait; they see that the topic is gone.
    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
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
            let mut runs = self.runs.write();
            let expected = runs.last().map_or(Offset::ZERO, |last| last.end);
            assert!(
                run.base == expected && run.end > run.base,
                "{}: a run of offsets {}..{} cannot follow log end offset {expected}",
                self.name,
                run.base,
                run.end,
            );
            runs.push(run);
        }
        self.bytes.fetch_add(u64::from(run.at.len), Ordering::Relaxed);
        self.max_timestamp_ms.fetch_max(run.max_timestamp_ms, Ordering::Relaxed);
        // Recovery publishes what was assigned before.
        self.assigned.fetch_max(run.end.0, Ordering::Relaxed);
        self.end.send_replace(run.end);
    }

    /// Reads whole batches from the one that holds the range's first offset: at least one where
    /// there is one, and no more than `bytes_max` beyond that. Blocks on the disk for what memory does not hold.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], or [`BrokerError::Storage`] where the disk fails.
    pub fn read(&self, store: &Store, range: ReadRange) -> Result<Slice, BrokerError> {
        self.read_with(range, |at| store.read(at).map(Some))
            .map(|slice| slice.expect("a blocking read finds every run"))
    }

    /// As [`Partition::read`], from memory alone: `None` where the disk would be needed.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`].
    pub fn read_in_memory(&self, store: &Store, range: ReadRange) -> Result<Option<Slice>, BrokerError> {
        self.read_with(range, |at| Ok(store.read_in_memory(at)))
    }

    fn read_with(
        &self,
        ReadRange { from: offset, until, bytes_max, one_at_least }: ReadRange,
        fetch: impl Fn(Location) -> Result<Option<Bytes>, StoreError>,
    ) -> Result<Option<Slice>, BrokerError> {
        let (start, end) = (self.start(), self.end());
        if offset < start || offset > end {
            return Err(self.out_of_range(offset));
        }
        let mut slice = Slice { runs: Vec::new(), next: offset, start, end };
        let until = until.unwrap_or(end).min(end);
        let mut room = bytes_max;
        for run in self.runs_from(offset, until, bytes_max) {
            let Some(bytes) = fetch(run.at)? else {
                // What memory gave so far is an answer too.
                return Ok((!slice.runs.is_empty()).then_some(slice));
            };
            assert_eq!(base_offset(&bytes), run.base.get(), "{}: a run is not where the index says", self.name);
            let taken = take_batches(&bytes, slice.next..until, room, one_at_least && slice.runs.is_empty())
                .map_err(|source| self.corrupt(source))?;
            let Some(taken) = taken else { break };
            room = room.saturating_sub(taken.bytes.len());
            slice.next = taken.next;
            slice.runs.push(taken.bytes);
            if slice.next < run.end {
                break;
            }
        }
        Ok(Some(slice))
    }

    /// The runs that a read of `bytes_max` from `offset` may touch.
    fn runs_from(&self, offset: Offset, end: Offset, bytes_max: usize) -> Vec<Run> {
        let runs = self.runs.read();
        let first = runs.partition_point(|run| run.end <= offset);
        let mut bytes = 0usize;
        runs[first..]
            .iter()
            .take_while(|run| {
                // One run more than fits: the first may be cut at its front.
                let wanted = bytes <= bytes_max;
                bytes = bytes.saturating_add(run.at.len as usize);
                wanted && run.base < end
            })
            .copied()
            .collect()
    }

    /// The offset of the first record whose timestamp is `timestamp_ms` or later; the log end
    /// offset where there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`BrokerError::Storage`], or [`BrokerError::Batch`] for a batch that does not parse.
    pub fn offset_at(&self, store: &Store, timestamp_ms: i64, limits: &Limits) -> Result<Offset, BrokerError> {
        let end = self.end();
        let candidates: Vec<Run> = {
            let runs = self.runs.read();
            runs.iter().filter(|run| run.max_timestamp_ms >= timestamp_ms).copied().collect()
        };
        for run in candidates {
            for batch in split_batches(store.read(run.at)?) {
                let batch = batch.map_err(|source| self.corrupt(source))?;
                if batch.max_timestamp_ms() < timestamp_ms {
                    continue;
                }
                let found = first_at(&batch, timestamp_ms, limits).map_err(|source| self.corrupt(source))?;
                if let Some(offset) = found.and_then(Offset::new) {
                    return Ok(offset.min(end));
                }
            }
        }
        Ok(end)
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
        BrokerError::Storage(std::sync::Arc::new(StoreError::Corrupt {
            what: format!("topic {}, partition {}", self.name.topic, self.name.partition),
            reason: source.to_string(),
        }))
    }
}

fn first_at(
    batch: &RecordBatch,
    timestamp_ms: i64,
    limits: &Limits,
) -> Result<Option<i64>, millstream_record::BatchError> {
    for record in batch.records(limits)?.iter() {
        let record = record?;
        if record.timestamp_ms >= timestamp_ms {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}

fn base_offset(run: &[u8]) -> i64 {
    run.first_chunk::<8>().map_or(-1, |bytes| i64::from_be_bytes(*bytes))
}

struct Taken {
    bytes: Bytes,
    next: Offset,
}

/// Cuts from a run the batches that hold `wanted`, up to `room` bytes; one at least where
/// `at_least_one`.
fn take_batches(
    run: &Bytes,
    wanted: Range<Offset>,
    room: usize,
    at_least_one: bool,
) -> Result<Option<Taken>, millstream_record::BatchError> {
    let mut begin = None;
    let mut at = 0;
    let mut next = wanted.start;
    while at + BATCH_HEADER_BYTES <= run.len() {
        let header = BatchHeader::parse(&run[at..])?;
        if header.base_offset >= wanted.end.get() {
            break;
        }
        let batch_end = at + header.batch_bytes;
        let next_offset = header.base_offset + i64::from(header.last_offset_delta) + 1;
        if next_offset > wanted.start.get() {
            let begin = *begin.get_or_insert(at);
            let first = at == begin && at_least_one;
            if batch_end - begin > room && !first {
                break;
            }
            next = Offset(next_offset);
        }
        at = batch_end;
    }
    Ok(begin.filter(|&begin| at > begin).map(|begin| Taken { bytes: run.slice(begin..at), next }))
}
