//! One partition: its index, its log end offset, and its producers. `index.rs` says where its records are, and `reader.rs`
//! reads them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;

use super::index::{Index, Unsealed};
use super::producers::Producers;
use crate::error::BrokerError;
use crate::name::TopicPartition;
use crate::store::StoreError;
use crate::store::journal::Run;
use crate::store::place::{Offset, Place, TopicId};
use crate::store::segment::{BlockFault, Extent, SegmentId};

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

/// One partition of a topic.
pub struct Partition {
    topic_id: TopicId,
    name: TopicPartition,
    /// The next offset that the committer will assign. Only the committer writes it.
    assigned: AtomicI64,
    pub(super) index: RwLock<Index>,
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
        let base = Offset::known(self.assigned.load(Ordering::Relaxed));
        self.assigned.store(base.plus(records).get(), Ordering::Relaxed);
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
        self.assigned.fetch_max(run.end.get(), Ordering::Relaxed);
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
        self.assigned.store(end.get(), Ordering::Relaxed);
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

    /// The error for records that the disk did not give back.
    pub(crate) fn damaged(&self, fault: BlockFault) -> BrokerError {
        BrokerError::Damaged {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            first: fault.base,
            last: Offset::known(fault.end.get() - 1),
            reason: fault.reason,
        }
    }

    /// An offset from outside: of a record that is kept, or the log end offset.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`].
    pub fn offset_in_range(&self, offset: u64) -> Result<Offset, BrokerError> {
        let in_range = i64::try_from(offset).ok().and_then(Offset::new);
        let in_range = in_range.filter(|offset| (self.start()..=self.end()).contains(offset));
        in_range.ok_or_else(|| BrokerError::OffsetOutOfRange {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            offset: i128::from(offset),
            start: self.start(),
            end: self.end(),
        })
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
        BrokerError::Unreadable(Arc::new(StoreError::Corrupt {
            what: format!("topic {}, partition {}", self.name.topic, self.name.partition),
            reason: source.to_string(),
        }))
    }
}
