//! The cleaner: what becomes of records that are sealed. Retention moves the first offset that is kept;
//! compaction (`compaction.rs`) leaves the last record of each key; segments that hold nothing any more
//! are removed, and others are merged (`merge.rs`).
//!
//! One thread looks at all of it, once a second. It writes new segments beside the old; one commit puts
//! them in their place, so a reader finds the old records or the new ones.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_record::Limits;

use super::committer::{Ended, Upkeep, WeakCommitQueue};
use super::compaction::compact;
use super::error::StoreError;
use super::merge::{Live, merge};
use super::segment::{OwnedExtent, SegmentFile, SegmentId};
use super::{Store, spawn};
use crate::broker::Domain;
use crate::partition::{Offset, Partition, Place};
use crate::topic::Topic;

/// A partition that could not be compacted waits for so long, in ms.
const COMPACT_AGAIN_MS: u64 = 60_000;

/// How often retention is looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Compaction begins once records that it has not seen are this part of a partition: Kafka's
/// `min.cleanable.dirty.ratio`, a half.
const DIRTY_FRACTION: u64 = 2;

pub(crate) struct Cleaner {
    pub(crate) store: Arc<Store>,
    pub(crate) domain: Arc<Domain>,
    pub(crate) queue: WeakCommitQueue,
    pub(crate) limits: Limits,
    /// Extents in use beyond which segments are merged so that there are fewer.
    pub(crate) extents_max: usize,
}

/// What earlier rounds saw.
#[derive(Default)]
struct Seen {
    /// When the tombstones that a compacted partition still has may go.
    tombstones: HashMap<Place, i64>,
    /// How often what is in use of segments had changed when that was looked at.
    changes: Option<u64>,
    /// What was read of repartition topics.
    read: HashMap<Place, Offset>,
    /// Partitions that could not be compacted, and when it is tried again.
    not_compacted: HashMap<Place, i64>,
    /// Segments that the disk does not give back: they are not merged until the next start.
    unreadable: HashSet<SegmentId>,
}

impl Cleaner {
    /// Starts the thread; it ends with the committer.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, StoreError> {
        spawn("cleaner", move || self.run())
    }

    fn run(self) {
        let mut seen = Seen::default();
        while self.wait(ROUND) {
            match self.round(&mut seen) {
                Ok(()) | Err(Ended::Closing) => {}
                Err(Ended::Failed(error)) => failed(&error),
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

    fn round(&self, seen: &mut Seen) -> Result<(), Ended> {
        let now_ms = self.domain.clock.now_ms();
        self.retain(now_ms, &mut seen.read)?;
        let Seen { tombstones, changes, not_compacted, unreadable, .. } = seen;
        let now = self.store.registry().changes();
        if *changes != Some(now) {
            *changes = Some(now);
            match self.tidy(unreadable) {
                Ok(()) => {}
                Err(Ended::Closing) => return Err(Ended::Closing),
                // What can't be read now must not keep others from being compacted.
                Err(Ended::Failed(error)) => failed(&error),
            }
        }
        let topics = self.topics();
        for topic in topics.iter().filter(|topic| topic.meta().settings.cleanup.compacts()) {
            for partition in topic.partitions() {
                let place = partition.place();
                let due = tombstones.get(&place).is_some_and(|due| *due <= now_ms);
                let waits = not_compacted.get(&place).is_some_and(|until_ms| now_ms < *until_ms);
                if waits || !(due || is_dirty(partition)) {
                    continue;
                }
                not_compacted.remove(&place);
                let settings = &topic.meta().settings;
                let horizon_ms = now_ms.saturating_add_unsigned(settings.delete_retention_ms());
                match compact(self, partition, now_ms, horizon_ms) {
                    Ok(Some(due_ms)) => drop(tombstones.insert(place, due_ms)),
                    Ok(None) => drop(tombstones.remove(&place)),
                    Err(Ended::Closing) => return Err(Ended::Closing),
                    // Nor others' from being compacted.
                    Err(Ended::Failed(error)) => {
                        failed(&error);
                        not_compacted.insert(place, now_ms.saturating_add_unsigned(COMPACT_AGAIN_MS));
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

    /// Moves the first offset that is kept of each partition whose topic does not keep all.
    fn retain(&self, now_ms: i64, read: &mut HashMap<Place, Offset>) -> Result<(), Ended> {
        let mut log_starts = Vec::new();
        let topics = self.topics();
        self.retain_unread(&topics, read, &mut log_starts);
        for topic in topics {
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

    /// A repartition topic keeps what a group that reads it has not read: its pipeline, or whoever else looks. What
    /// goes was read at the last round too: an offset further back that was on its way then counts.
    fn retain_unread(
        &self,
        topics: &[Arc<Topic>],
        read: &mut HashMap<Place, Offset>,
        log_starts: &mut Vec<(Arc<Partition>, Offset)>,
    ) {
        let internal = || topics.iter().filter(|topic| topic.meta().internal);
        let mut read_to: HashMap<Place, Option<Offset>> =
            internal().flat_map(|topic| topic.partitions()).map(|partition| (partition.place(), None)).collect();
        if read_to.is_empty() {
            return;
        }
        for group in self.domain.groups.all() {
            for (topic, partition, offset) in group.all_committed() {
                if let Some(least) = read_to.get_mut(&(topic, partition)) {
                    *least = Some(least.map_or(offset, |least| least.min(offset)));
                }
            }
        }
        let before = std::mem::take(read);
        for partition in internal().flat_map(|topic| topic.partitions()) {
            let place = partition.place();
            let Some(read_to) = read_to[&place] else { continue };
            let unread_from = partition.unread_from(read_to);
            read.insert(place, unread_from);
            let start = before.get(&place).map_or(Offset::ZERO, |before| unread_from.min(*before));
            if start > partition.start() {
                log_starts.push((partition.clone(), start));
            }
        }
    }

    // ---- segments

    /// Every segment, and what of them is in use.
    fn live(&self) -> (Vec<SegmentFile>, Live) {
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

    /// Removes segments of which nothing is in use, and merges others.
    fn tidy(&self, unreadable: &mut HashSet<SegmentId>) -> Result<(), Ended> {
        let (mut segments, live) = self.live();
        let removed: Vec<_> = segments.extract_if(.., |segment| !live.contains_key(&segment.id)).collect();
        if !removed.is_empty() {
            let removed = removed.iter().map(|segment| segment.id).collect();
            self.queue.commit_upkeep(Upkeep { removed, ..Upkeep::default() })?;
        }
        segments.retain(|segment| !unreadable.contains(&segment.id));
        merge(self, &segments, live, unreadable)
    }

    /// The rows of segments without the extents of a partition that others took the place of, and the
    /// segments that hold nothing else.
    pub(super) fn without(
        &self,
        partition: &Partition,
        offsets: Range<Offset>,
        upkeep: &mut Upkeep,
    ) -> Result<(), StoreError> {
        let mut of: Vec<SegmentId> = partition.extents().iter().map(|extent| extent.segment).collect();
        of.sort_unstable();
        of.dedup();
        let replaced = |owned: &OwnedExtent| {
            (owned.topic, owned.partition) == partition.place()
                && owned.extent.base >= offsets.start
                && owned.extent.end <= offsets.end
        };
        for id in of {
            let mut meta = self.store.segment_meta(id)?;
            let before = meta.extents.len();
            meta.extents.retain(|owned| !replaced(owned));
            match meta.extents.len() {
                0 => upkeep.removed.push(id),
                after if after < before => upkeep.segments.push(meta),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Old records stay where they are, and nothing is lost: it is tried again.
fn failed(error: &StoreError) {
    match error {
        // What moved belongs to a deleted topic: the next round sees what there is.
        StoreError::Moved => {}
        error => tracing::error!(%error, "retention, merging or compaction failed and is tried again"),
    }
}

/// Whether enough of a partition's sealed records is new to compaction.
fn is_dirty(partition: &Partition) -> bool {
    let extents = partition.extents();
    let dirty: u64 = extents.iter().filter(|extent| !extent.compacted).map(|extent| extent.bytes).sum();
    dirty > 0 && dirty * DIRTY_FRACTION >= extents.iter().map(|extent| extent.bytes).sum()
}
