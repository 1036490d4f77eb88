//! The cleaner: what becomes of records that are sealed. Retention moves the first offset that is kept;
//! compaction (`compaction.rs`) leaves the last record of each key; segments that hold nothing any more
//! are removed, and those that hold little are merged.
//!
//! One thread looks at all of it, once a second. It writes new segments beside the old; one commit puts
//! them in their place, so a reader finds the old records or the new ones.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_record::Limits;

use super::committer::{Ended, Upkeep, WeakCommitQueue};
use super::compaction::compact;
use super::error::StoreError;
use super::pause::Pause;
use super::segment::{Extent, OwnedExtent, SegmentId, SegmentMeta, SegmentWriter};
use super::{Store, spawn};
use crate::broker::Domain;
use crate::partition::{Offset, Partition, TopicId};
use crate::topic::Topic;

/// How often retention is looked at.
const ROUND: Duration = Duration::from_secs(1);

/// A segment below this size is small: some of them are merged into one.
const SMALL_BYTES: u64 = 16 << 20;

/// So many small segments are merged. Each level of merging writes its bytes once more.
const MERGE_SEGMENTS: usize = 8;

/// Bytes of live records that one merge writes.
const MERGE_BYTES_MAX: u64 = 128 << 20;

/// Compaction begins once records that it has not seen are this part of a partition: Kafka's
/// `min.cleanable.dirty.ratio`, a half.
const DIRTY_FRACTION: u64 = 2;

pub(crate) struct Cleaner {
    pub(crate) store: Arc<Store>,
    pub(crate) domain: Arc<Domain>,
    pub(crate) queue: WeakCommitQueue,
    pub(crate) limits: Limits,
}

/// The extents in use of each segment, and whose they are.
type Live = HashMap<SegmentId, Vec<(Arc<Partition>, Extent)>>;

impl Cleaner {
    /// Starts the thread; it ends with the committer.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, StoreError> {
        spawn("cleaner", move || self.run())
    }

    fn run(self) {
        // When the tombstones that a compacted partition still has may go.
        let mut tombstones: HashMap<(TopicId, u32), i64> = HashMap::new();
        let mut changes = None;
        while self.wait(ROUND) {
            match self.round(&mut tombstones, &mut changes) {
                // What moved belongs to a deleted topic: the next round sees what there is.
                Ok(()) | Err(Ended::Closing | Ended::Failed(StoreError::Moved)) => {}
                // Old records stay where they are, and nothing is lost: it is tried again.
                Err(Ended::Failed(error)) => tracing::error!(%error, "retention, merging or compaction failed"),
            }
        }
    }

    /// Waits; `false` when the store closes.
    fn wait(&self, time: Duration) -> bool {
        self.store.wait_for_end(time);
        !self.is_closing()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.queue.is_closed() || self.store.has_failed()
    }

    /// Whether the disk has room for so many bytes more: appends and sealing come first.
    pub(super) fn has_room(&self, bytes: u64, without: &str) -> Result<bool, Ended> {
        let has_room = self.store.room().for_cleaning(bytes)?;
        if !has_room {
            tracing::warn!(bytes, "{without} while the disk has too little room for what is written anew");
        }
        Ok(has_room)
    }

    /// `changes` is how often what is in use of segments had changed at the last round that looked at it.
    fn round(&self, tombstones: &mut HashMap<(TopicId, u32), i64>, changes: &mut Option<u64>) -> Result<(), Ended> {
        let now_ms = self.domain.clock.now_ms();
        self.retain(now_ms)?;
        let now = self.store.registry().changes();
        if *changes != Some(now) {
            self.remove_dead()?;
            self.merge()?;
            *changes = Some(now);
        }
        let topics = self.topics();
        for topic in topics.iter().filter(|topic| topic.meta().settings.cleanup.compacts()) {
            for partition in topic.partitions() {
                let place = (partition.topic_id(), partition.name().partition);
                let due = tombstones.get(&place).is_some_and(|due| *due <= now_ms);
                if due || is_dirty(partition) {
                    tombstones.remove(&place);
                    let settings = &topic.meta().settings;
                    let horizon_ms = now_ms.saturating_add_unsigned(settings.delete_retention_ms());
                    if let Some(due_ms) = compact(self, partition, now_ms, horizon_ms)? {
                        tombstones.insert(place, due_ms);
                    }
                }
            }
        }
        Ok(())
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.domain.topics.read().values().cloned().collect()
    }

    // ---- retention

    /// Moves the first offset that is kept of each partition whose topic has a retention.
    fn retain(&self, now_ms: i64) -> Result<(), Ended> {
        let mut log_starts = Vec::new();
        for topic in self.topics() {
            let settings = &topic.meta().settings;
            if !settings.cleanup.deletes() {
                continue;
            }
            let oldest_ms = settings.retention_ms.map(|ms| now_ms.saturating_sub_unsigned(ms));
            if oldest_ms.is_none() && settings.retention_bytes.is_none() {
                continue;
            }
            for partition in topic.partitions() {
                let start = partition.retained_from(oldest_ms, settings.retention_bytes);
                if start > partition.start() {
                    log_starts.push((partition.clone(), start));
                }
            }
        }
        if log_starts.is_empty() {
            return Ok(());
        }
        self.queue.commit_upkeep(Upkeep { log_starts, ..Upkeep::default() })
    }

    // ---- segments

    /// Every segment, and what of them is in use.
    fn live(&self) -> (Vec<Arc<SegmentMeta>>, Live) {
        // A segment that was just added must be seen with its extents.
        let _changing = self.store.registry().change();
        let mut live = Live::new();
        for topic in self.topics() {
            for partition in topic.partitions() {
                for extent in partition.extents() {
                    live.entry(extent.segment).or_default().push((partition.clone(), extent));
                }
            }
        }
        (self.store.registry().all(), live)
    }

    fn remove_dead(&self) -> Result<(), Ended> {
        let (segments, live) = self.live();
        let removed: Vec<_> = segments.iter().map(|meta| meta.id).filter(|id| !live.contains_key(id)).collect();
        if removed.is_empty() {
            return Ok(());
        }
        self.queue.commit_upkeep(Upkeep { removed, ..Upkeep::default() })
    }

    /// Writes what is left of segments that hold little into one.
    fn merge(&self) -> Result<(), Ended> {
        let (segments, mut live) = self.live();
        let mut chosen: Vec<SegmentId> = Vec::new();
        let mut small: Vec<SegmentId> = Vec::new();
        let mut bytes = 0;
        for meta in &segments {
            let live_bytes: u64 = live.get(&meta.id).into_iter().flatten().map(|(_, extent)| extent.bytes).sum();
            if bytes + live_bytes > MERGE_BYTES_MAX {
                break;
            }
            if live_bytes * 2 < meta.extent_bytes {
                bytes += live_bytes;
                chosen.push(meta.id);
            } else if meta.file_bytes < SMALL_BYTES {
                bytes += live_bytes;
                small.push(meta.id);
            }
        }
        if small.len() >= MERGE_SEGMENTS {
            chosen.append(&mut small);
        }
        if chosen.is_empty() || !self.has_room(bytes, "segments are not merged")? {
            return Ok(());
        }
        let mut by_partition: BTreeMap<(TopicId, u32), (Arc<Partition>, Vec<Extent>)> = BTreeMap::new();
        for (partition, extent) in chosen.iter().filter_map(|id| live.remove(id)).flatten() {
            let place = (partition.topic_id(), partition.name().partition);
            by_partition.entry(place).or_insert_with(|| (partition, Vec::new())).1.push(extent);
        }
        let mut output = Output::new(self);
        for (partition, mut extents) in by_partition.into_values() {
            extents.sort_unstable_by_key(|extent| extent.base);
            for joined in adjoining(&extents) {
                output.begin(&partition, joined[0].base, joined[0].compacted)?;
                joined.iter().try_for_each(|extent| output.copy(extent))?;
                output.end(joined[joined.len() - 1].end);
            }
        }
        let mut upkeep = output.finish()?;
        upkeep.removed = chosen;
        self.queue.commit_upkeep(upkeep)
    }

    /// The rows of segments without the extents of a partition that others took the place of, and the
    /// segments that hold nothing else.
    pub(super) fn without(&self, partition: &Partition, offsets: Range<Offset>, upkeep: &mut Upkeep) {
        let mut of: Vec<SegmentId> = partition.extents().iter().map(|extent| extent.segment).collect();
        of.sort_unstable();
        of.dedup();
        for meta in self.store.registry().all() {
            if of.binary_search(&meta.id).is_err() {
                continue;
            }
            let replaced = |owned: &OwnedExtent| {
                (owned.topic, owned.partition) == (partition.topic_id(), partition.name().partition)
                    && owned.extent.base >= offsets.start
                    && owned.extent.end <= offsets.end
            };
            let mut meta = SegmentMeta::clone(&meta);
            let before = meta.extents.len();
            meta.extents.retain(|owned| !replaced(owned));
            match meta.extents.len() {
                0 => upkeep.removed.push(meta.id),
                after if after < before => upkeep.segments.push(meta),
                _ => {}
            }
        }
    }
}

/// Whether enough of a partition's sealed records is new to compaction.
fn is_dirty(partition: &Partition) -> bool {
    let extents = partition.extents();
    let dirty: u64 = extents.iter().filter(|extent| !extent.compacted).map(|extent| extent.bytes).sum();
    dirty > 0 && dirty * DIRTY_FRACTION >= extents.iter().map(|extent| extent.bytes).sum()
}

/// Groups extents that follow one another and are alike.
fn adjoining(extents: &[Extent]) -> impl Iterator<Item = &[Extent]> {
    extents.chunk_by(|a, b| a.end == b.base && a.compacted == b.compacted)
}

/// New segments in the making, and the extents that partitions get in them.
pub(super) struct Output<'a> {
    cleaner: &'a Cleaner,
    writer: Option<SegmentWriter>,
    open: Option<Arc<Partition>>,
    /// Of the open segment, in the order of its extents.
    partitions: Vec<Arc<Partition>>,
    upkeep: Upkeep,
    pause: Pause,
}

impl<'a> Output<'a> {
    pub(super) fn new(cleaner: &'a Cleaner) -> Self {
        Self {
            cleaner,
            writer: None,
            open: None,
            partitions: Vec::new(),
            upkeep: Upkeep::default(),
            pause: Pause::default(),
        }
    }

    /// Begins an extent of a partition.
    pub(super) fn begin(&mut self, partition: &Arc<Partition>, base: Offset, compacted: bool) -> Result<(), Ended> {
        if self.is_full() {
            self.close_segment()?;
        }
        if self.writer.is_none() {
            self.writer = Some(self.cleaner.store.registry().create()?);
        }
        if let Some(writer) = &mut self.writer {
            writer.begin(partition.topic_id(), partition.name().partition, base, compacted);
        }
        self.open = Some(partition.clone());
        Ok(())
    }

    /// Whether the segment is as long as one is.
    pub(super) fn is_full(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.position() >= super::SEGMENT_BYTES)
    }

    /// The open extent.
    pub(super) fn writer(&mut self) -> Result<&mut SegmentWriter, Ended> {
        self.writer.as_mut().ok_or_else(|| Ended::Failed(StoreError::Stopped("no extent is open".into())))
    }

    /// Copies an extent's batches as they are, damage included.
    fn copy(&mut self, extent: &Extent) -> Result<(), Ended> {
        let segment = self.cleaner.store.registry().segment_of(extent)?;
        let writer = self.writer()?;
        segment.visit(extent, |bytes, piece| writer.push_piece(bytes, &piece))?;
        self.wrote(extent.bytes)
    }

    /// Gives way to the commits, and ends early when the store closes.
    pub(super) fn wrote(&mut self, bytes: u64) -> Result<(), Ended> {
        self.pause.after(bytes);
        if self.cleaner.is_closing() { Err(Ended::Closing) } else { Ok(()) }
    }

    /// Ends the open extent before offset `end`.
    pub(super) fn end(&mut self, end: Offset) {
        if let (Some(writer), Some(partition)) = (&mut self.writer, self.open.take()) {
            writer.end(end);
            self.partitions.push(partition);
        }
    }

    fn close_segment(&mut self) -> Result<(), Ended> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let meta = self.cleaner.store.registry().finish(writer)?;
        self.upkeep.add_segment(meta, self.partitions.drain(..));
        Ok(())
    }

    /// What makes the new segments part of the store.
    pub(super) fn finish(mut self) -> Result<Upkeep, Ended> {
        self.close_segment()?;
        Ok(self.upkeep)
    }
}
