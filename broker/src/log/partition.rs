//! One partition: its index, its log end offset, and its producers. The index (`index.rs`) locates its records, and
//! `reader.rs` reads them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;

use super::index::{Index, Unsealed};
use super::producers::{Producers, Transition};
use super::transactions::{Aborted, Transactions};
use crate::error::BrokerError;
use crate::name::TopicPartition;
use crate::store::StoreError;
use crate::store::journal::Run;
use crate::store::place::{Offset, Place, TopicId};
use crate::store::segment::{BlockFault, Extent, SegmentId};

/// The size of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionSize {
    /// Total size of the record batches, in bytes.
    pub bytes: u64,
    /// The part of `bytes` that is in the journal.
    pub journal_bytes: u64,
    /// Number of extents in segments.
    pub segments: u32,
    /// The timestamp of the first retained record, in ms since the epoch; `None` if the partition is empty.
    pub first_timestamp_ms: Option<i64>,
    /// The largest timestamp, in ms since the epoch; `None` if the partition is empty.
    pub max_timestamp_ms: Option<i64>,
}

/// One partition of a topic.
pub struct Partition {
    topic_id: TopicId,
    name: TopicPartition,
    /// The next offset that the committer will assign. Only the committer writes it.
    assigned: AtomicI64,
    pub(super) index: RwLock<Index>,
    /// The log end offset, which covers all committed records. Waiting readers watch it.
    end: watch::Sender<Offset>,
    /// The last stable offset: where the first open transaction begins, or the end.
    stable: AtomicI64,
    deleted: AtomicBool,
    producers: Mutex<Producers>,
    /// Whether there are or were records of transactions.
    transactional: AtomicBool,
    transactions: Mutex<Transactions>,
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
            stable: AtomicI64::new(0),
            deleted: AtomicBool::new(false),
            producers: Mutex::default(),
            transactional: AtomicBool::new(false),
            transactions: Mutex::default(),
        }
    }

    /// Returns the partition's idempotent producers. They are updated when the committer accepts a batch, before the
    /// batch is on disk.
    pub(crate) fn producers(&self) -> MutexGuard<'_, Producers> {
        self.producers.lock()
    }

    /// Returns the topic name and the partition number.
    pub fn name(&self) -> &TopicPartition {
        &self.name
    }

    /// Returns the topic's id, which identifies one incarnation of a topic name.
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// Returns the topic's id and the partition number.
    pub(crate) fn place(&self) -> Place {
        (self.topic_id, self.name.partition)
    }

    /// Returns the log start offset: the first offset that is retained.
    pub fn start(&self) -> Offset {
        self.index.read().start
    }

    /// Returns the log end offset: the offset of the next record to become visible to readers.
    pub fn end(&self) -> Offset {
        *self.end.borrow()
    }

    /// Returns the last stable offset: all records before it are of transactions that have ended, or of none. It moves only
    /// when the log end offset does.
    pub fn stable_end(&self) -> Offset {
        Offset::known(self.stable.load(Ordering::Acquire))
    }

    /// Returns whether there are or were records of transactions.
    pub(crate) fn is_transactional(&self) -> bool {
        self.transactional.load(Ordering::Acquire)
    }

    /// Notes that there are records of transactions. Returns whether that is news.
    pub(crate) fn set_transactional(&self) -> bool {
        !self.transactional.swap(true, Ordering::AcqRel)
    }

    /// Notes what an accepted batch at `offset` does to its producer's transaction. Returns the transaction if it is aborted
    /// and has records. Called only by the committer.
    pub(crate) fn accept_transition(&self, offset: Offset, transition: Transition, is_abort: bool) -> Option<Aborted> {
        self.transactions.lock().accept(offset, transition, is_abort)
    }

    /// Returns the aborted transactions that have records in a range of offsets.
    pub fn aborted(&self, from: Offset, to: Offset) -> Vec<Aborted> {
        if self.is_transactional() { self.transactions.lock().aborted(from, to) } else { Vec::new() }
    }

    /// Returns the aborted transactions that end before an offset.
    pub(crate) fn aborted_before(&self, offset: Offset) -> Vec<Aborted> {
        if self.is_transactional() { self.transactions.lock().aborted_before(offset) } else { Vec::new() }
    }

    /// Sets an aborted transaction at start.
    pub(crate) fn restore_aborted(&self, aborted: Aborted) {
        self.transactions.lock().restore_aborted(aborted);
    }

    /// Sets the last stable offset at start, when the producers are known.
    pub(crate) fn restore_stable(&self) {
        let producers = self.producers();
        let stable = self.transactions.lock().restore(producers.open_transactions(), self.end());
        self.stable.store(stable.get(), Ordering::Release);
    }

    /// Returns a receiver that is notified when the log end offset moves or the topic is deleted.
    pub fn watch_end(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Returns the size of the partition.
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

    /// Returns whether the topic has been deleted. The partition may still be referenced after that.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Marks the topic as deleted, or as not deleted after all, and wakes all waiting readers so that they notice.
    pub(crate) fn set_deleted(&self, deleted: bool) {
        self.deleted.store(deleted, Ordering::Release);
        self.end.send_modify(|_| {});
    }

    /// Assigns the next `records` offsets and returns the first. Called only by the committer.
    pub(crate) fn assign(&self, records: u64) -> Offset {
        let base = Offset::known(self.assigned.load(Ordering::Relaxed));
        self.assigned.store(base.plus(records).get(), Ordering::Relaxed);
        base
    }

    /// Makes a committed run visible and wakes the waiting readers. Called only by the committer and recovery.
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
        // During recovery, the run's offsets were assigned by an earlier process.
        self.assigned.fetch_max(run.end.get(), Ordering::Relaxed);
        let stable = if self.is_transactional() { self.transactions.lock().publish(run.end) } else { run.end };
        self.stable.store(stable.get(), Ordering::Release);
        self.end.send_replace(run.end);
    }

    /// Restores the log start offset and the extents that the registry lists. Called at startup. The end of a log
    /// without any records is its start.
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
        self.assigned.store(end.get(), Ordering::Relaxed);
        self.end.send_replace(end);
        Ok(())
    }

    /// Returns the runs that are in the journal before sequence number `to`, in order.
    pub(crate) fn unsealed(&self, to: u64) -> Unsealed {
        let index = self.index.read();
        let is_before = |run: &&Run| run.at.seq < to;
        Unsealed {
            gone: index.gone.iter().take_while(is_before).copied().collect(),
            runs: index.runs.iter().take_while(is_before).copied().collect(),
        }
    }

    /// Adds a run that was already below the log start offset when the journal was replayed.
    pub(crate) fn publish_gone(&self, run: Run) {
        self.index.write().gone.push(run);
    }

    /// Forgets the runs below the log start offset that are before sequence number `to`. Their producer state is
    /// sealed, and the partition had no other runs to seal.
    pub(crate) fn forget_gone(&self, to: u64) {
        self.index.write().gone.retain(|run| run.at.seq >= to);
    }

    /// Returns the extents, in order.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        self.index.read().extents.clone()
    }

    /// Replaces the runs before sequence number `to` with the extents that they were sealed into. Called only by the
    /// committer.
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

    /// Replaces the extents of the same offsets with `extents`, which must be consecutive. Called only by the
    /// committer.
    pub(crate) fn replace(&self, extents: &[Extent]) {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return };
        let mut index = self.index.write();
        index.extents.retain(|old| old.base < first.base || old.end > last.end);
        index.extents.extend_from_slice(extents);
        index.extents.sort_unstable_by_key(|extent| extent.base);
        index.trim();
        index.assert_in_order(&self.name);
    }

    /// Moves the log start offset to `start`, so that records below it are no longer retained. Returns whether less of
    /// a segment is in use as a result. Called only by the committer.
    pub(crate) fn set_start(&self, start: Offset) -> bool {
        let has_producers = !self.producers().is_empty();
        let mut index = self.index.write();
        let extents = index.extents.len();
        index.start = index.start.max(start);
        if self.is_transactional() {
            self.transactions.lock().forget_before(start);
        }
        if has_producers {
            let gone: Vec<Run> = index.runs.iter().take_while(|run| run.end <= start).copied().collect();
            index.gone.extend(gone);
        }
        index.trim();
        index.extents.len() < extents
    }

    /// Returns the segments that hold records of the partition, one for each extent.
    pub(crate) fn segments(&self) -> Vec<SegmentId> {
        self.index.read().extents.iter().map(|extent| extent.segment).collect()
    }

    /// Returns the offset from which records are retained. Extents and runs whose largest timestamp is before `time_ms`
    /// are dropped, and of the rest at most `bytes_max` bytes plus one extent or run are kept.
    pub(crate) fn retained_from(&self, time_ms: Option<i64>, bytes_max: Option<u64>) -> Offset {
        let index = self.index.read();
        let mut start = index.start;
        let parts = index.extents.iter().map(|extent| (extent.end, extent.max_timestamp_ms, extent.bytes));
        let runs = index.runs.iter().map(|run| (run.end, run.max_timestamp_ms, u64::from(run.at.len)));
        let mut bytes: u64 = parts.clone().chain(runs.clone()).map(|(_, _, bytes)| bytes).sum();
        for (end, max_timestamp_ms, part_bytes) in parts.chain(runs) {
            let too_old = time_ms.is_some_and(|time_ms| max_timestamp_ms < time_ms);
            let too_much = bytes_max.is_some_and(|max| bytes - part_bytes >= max);
            if !too_old && !too_much {
                break;
            }
            bytes -= part_bytes;
            start = end;
        }
        start
    }

    /// Returns the offset from which records are retained if those before `read_to` are dropped. An extent or a run is
    /// dropped only as a whole.
    pub(crate) fn unread_from(&self, read_to: Offset) -> Offset {
        let index = self.index.read();
        let ends = index.extents.iter().map(|extent| extent.end).chain(index.runs.iter().map(|run| run.end));
        ends.take_while(|end| *end <= read_to).last().unwrap_or(index.start)
    }

    /// Returns the error for records that are damaged on disk.
    pub(crate) fn damaged(&self, fault: BlockFault) -> BrokerError {
        BrokerError::Damaged {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            first: fault.base,
            last: Offset::known(fault.end.get() - 1),
            reason: fault.reason,
        }
    }

    /// Checks an offset that a client sent: it must be that of a retained record, or the log end offset.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`].
    pub fn offset_in_range(&self, offset: u64) -> Result<Offset, BrokerError> {
        let in_range = i64::try_from(offset).ok().and_then(Offset::new);
        let in_range = in_range.filter(|offset| (self.start()..=self.end()).contains(offset));
        in_range.ok_or_else(|| self.out_of_range(i128::from(offset)))
    }

    /// Returns the error for an offset that is out of range, as the client sent it.
    pub fn out_of_range(&self, offset: impl Into<i128>) -> BrokerError {
        BrokerError::OffsetOutOfRange {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            offset: offset.into(),
            start: self.start(),
            end: self.end(),
        }
    }

    pub(crate) fn corrupt(&self, source: millstream_record::BatchError) -> BrokerError {
        BrokerError::Unreadable(Arc::new(StoreError::Corrupt {
            what: format!("topic {}, partition {}", self.name.topic, self.name.partition),
            reason: source.to_string(),
        }))
    }
}
