//! What retention, compaction and merging have in common: the segments and extents that are in use, those that are in
//! work, and the room that the disk must have. This file must not know when or in which order they run.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use millstream_record::Limits;
use parking_lot::{Mutex, MutexGuard};

use crate::log::commit::Upkeep;
use crate::log::domain::Domain;
use crate::log::partition::Partition;
use crate::log::queue::{Ended, WeakCommitQueue};
use crate::log::topic::Topic;
use crate::store::StoreError;
use crate::store::segment::{Extent, OwnedExtent, SegmentFile, SegmentId};
use crate::store::{Store, StoreOptions};

/// Default interval at which the threads look for work.
const INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of keys that one pass remembers, plus those of one batch: 64 MiB of memory. Records beyond this wait
/// for the next pass.
const KEYS_MAX: usize = 1 << 20;

/// Number of extents in use above which short ones are joined. This many take about 5 MB of memory and about 10 ms of a
/// start.
const EXTENTS_MAX: usize = 1 << 16;

/// The extents in use of each segment, with their partitions.
pub(super) type Live = HashMap<SegmentId, Vec<(Arc<Partition>, Extent)>>;

/// The state that both threads share.
pub(crate) struct Cleaner {
    pub(super) store: Arc<Store>,
    pub(super) domain: Arc<Domain>,
    pub(super) queue: WeakCommitQueue,
    pub(super) limits: Limits,
    pub(super) options: CleanerOptions,
    in_work: Mutex<InWork>,
}

/// Options of the cleaner, taken from [`StoreOptions`], with defaults filled in, and from the broker's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CleanerOptions {
    pub(super) interval: Duration,
    pub(super) producer_expiry_ms: u64,
    pub(super) offsets_retention_ms: u64,
    pub(super) extents_max: usize,
    pub(super) keys_max: usize,
}

impl CleanerOptions {
    /// Forgets producers that are idle for longer than `producer_expiry_ms`, and removes the offsets of groups that are
    /// unused for `offsets_retention_ms`.
    pub(crate) fn new(options: &StoreOptions, producer_expiry_ms: u64, offsets_retention_ms: u64) -> Self {
        Self {
            interval: options.cleaning_interval.unwrap_or(INTERVAL),
            producer_expiry_ms,
            offsets_retention_ms,
            extents_max: options.extents_max.unwrap_or(EXTENTS_MAX),
            keys_max: options.compaction_keys_max.unwrap_or(KEYS_MAX),
        }
    }
}

/// Segments that are currently being merged or compacted. Retention does not touch them.
pub(super) type InWork = HashSet<SegmentId>;

/// A guard of running work. When it is dropped, no segment is in work any more.
pub(super) struct Work<'a>(&'a Cleaner);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.in_work().clear();
    }
}

impl Cleaner {
    pub(crate) fn new(
        store: Arc<Store>,
        domain: Arc<Domain>,
        queue: WeakCommitQueue,
        limits: Limits,
        options: CleanerOptions,
    ) -> Self {
        Self { store, domain, queue, limits, options, in_work: Mutex::default() }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.queue.is_closed() || self.store.has_failed()
    }

    /// Returns whether the disk has room to write `bytes` more bytes. Appends and sealing have priority. If not, logs a
    /// warning that starts with `without`, which names the work that is not done.
    pub(super) fn has_room(&self, bytes: u64, without: &str) -> Result<bool, Ended> {
        let has_room = self.store.room().for_cleaning(bytes)?;
        if !has_room {
            tracing::warn!(bytes, "{without} because the disk has too little free space to rewrite them");
        }
        Ok(has_room)
    }

    pub(super) fn topics(&self) -> Vec<Arc<Topic>> {
        self.domain.topics.read().values().cloned().collect()
    }

    // ---- segments

    /// Locks the set of segments that are in work. A caller that chooses segments holds the lock until it is done with
    /// them or has added them to the set.
    pub(super) fn in_work(&self) -> MutexGuard<'_, InWork> {
        self.in_work.lock()
    }

    /// Begins work on segments. It ends when the returned guard is dropped.
    pub(super) fn begin<'a>(
        &'a self,
        mut in_work: MutexGuard<'a, InWork>,
        segments: impl IntoIterator<Item = SegmentId>,
    ) -> Work<'a> {
        in_work.extend(segments);
        Work(self)
    }

    /// Returns the segments of which nothing is in use.
    pub(super) fn unused(&self) -> Vec<SegmentId> {
        // The lock is needed for the same reason as in `live`.
        let _changing = self.store.registry().change();
        let mut used = HashSet::new();
        for topic in self.topics() {
            topic.partitions().iter().for_each(|partition| used.extend(partition.segments()));
        }
        let all = self.store.registry().all().into_iter().map(|segment| segment.id);
        all.filter(|id| !used.contains(id)).collect()
    }

    /// Returns all segments, and their extents that are in use.
    pub(super) fn live(&self) -> (Vec<SegmentFile>, Live) {
        // The lock ensures that a segment that was just added is seen together with its extents.
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

    /// Adds to `upkeep` the removal of `replaced`, consecutive extents of a partition that are replaced by others: the
    /// updated entries of segments that hold other extents too, and the removal of segments that do not.
    pub(super) fn without(
        &self,
        partition: &Partition,
        replaced: &[Extent],
        upkeep: &mut Upkeep,
    ) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (replaced.first(), replaced.last()) else { return Ok(()) };
        let is_replaced = |owned: &OwnedExtent| {
            (owned.topic, owned.partition) == partition.place()
                && owned.extent.base >= first.base
                && owned.extent.end <= last.end
        };
        let of: BTreeSet<SegmentId> = replaced.iter().map(|extent| extent.segment).collect();
        for id in of {
            let mut meta = self.store.segment_meta(id)?;
            let before = meta.extents.len();
            meta.extents.retain(|owned| !is_replaced(owned));
            match meta.extents.len() {
                0 => upkeep.removed.push(id),
                after if after < before => upkeep.segments.push(meta),
                _ => {}
            }
        }
        Ok(())
    }
}
