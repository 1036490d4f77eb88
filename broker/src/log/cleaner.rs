//! The cleaner, which maintains sealed records. Retention (`retention.rs`) advances log start offsets and removes
//! segments that are no longer in use. Compaction (`compaction.rs`) keeps only the last record of each key. Merging
//! (`merge.rs`) combines segments.
//!
//! Two threads look for work once a second. Retention has its own thread because it must not wait for compaction and
//! merging, which may rewrite many GB. The other thread writes new segments beside the old ones, and one commit
//! replaces the old ones, so that a reader finds either the old records or the new ones.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millstream_record::Limits;
use parking_lot::{Mutex, MutexGuard};

use crate::log::commit::Upkeep;
use crate::log::compaction::{KEYS_MAX, compact};
use crate::log::domain::Domain;
use crate::log::expiry::{expire_groups, expire_producer_epochs, forget_idle_producers};
use crate::log::merge::{EXTENTS_MAX, Live, merge};
use crate::log::partition::Partition;
use crate::log::queue::{Ended, WeakCommitQueue};
use crate::log::retention::{self, retain};
use crate::log::topic::Topic;
use crate::store::StoreError;
use crate::store::place::Place;
use crate::store::segment::{Extent, OwnedExtent, SegmentFile, SegmentId};
use crate::store::{Store, StoreOptions, spawn};

/// How long to wait before compaction of a partition is retried after a failure.
const COMPACT_AGAIN: Duration = Duration::from_secs(60);

/// Default interval at which the threads look for work.
const INTERVAL: Duration = Duration::from_secs(1);

/// Compaction of a partition begins once `1 / DIRTY_FRACTION` of its sealed bytes have not been compacted yet. A half
/// is the default of Kafka's `min.cleanable.dirty.ratio`.
const DIRTY_FRACTION: u64 = 2;

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
    interval: Duration,
    producer_expiry_ms: u64,
    offsets_retention_ms: u64,
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

/// State that is kept between rounds.
#[derive(Default)]
struct Seen {
    /// The registry's change count when merging last looked at the segments.
    changes: Option<u64>,
    /// Partitions whose compaction failed, and the time of the attempt.
    not_compacted: HashMap<Place, Instant>,
    /// Segments that cannot be read from disk. They are not merged until the next start.
    unreadable: HashSet<SegmentId>,
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

    /// Starts the threads. They end with the committer.
    pub(crate) fn start(self) -> Result<[JoinHandle<()>; 2], StoreError> {
        let cleaner = Arc::new(self);
        let of_retention = cleaner.clone();
        // A round of merging and compaction follows one of retention, so that expired records are not rewritten.
        let (retained, rounds) = mpsc::sync_channel(1);
        let retention = spawn("retention", move || of_retention.run_retention(&retained))?;
        Ok([retention, spawn("cleaner", move || cleaner.run(&rounds))?])
    }

    fn run_retention(&self, retained: &SyncSender<()>) {
        let _failed = self.queue.fail_on_panic("the retention thread");
        let (mut seen, mut swept) = (retention::Seen::default(), 0);
        loop {
            if self.store.wait_for_end(self.options.interval) || self.is_closing() {
                return;
            }
            let now_ms = self.domain.clock.now_ms();
            log_failure(retain(self, now_ms, &mut seen));
            let idle_ms = self.domain.idle.begin_round(now_ms);
            forget_idle_producers(self, idle_ms, self.options.producer_expiry_ms, &mut swept);
            log_failure(expire_producer_epochs(self, idle_ms, self.options.producer_expiry_ms));
            log_failure(expire_groups(self, idle_ms, now_ms, self.options.offsets_retention_ms));
            // If the other thread is busy, the pending message makes it look again when it is done.
            let _ = retained.try_send(());
        }
    }

    fn run(&self, rounds: &Receiver<()>) {
        let _failed = self.queue.fail_on_panic("the cleaner");
        let mut seen = Seen::default();
        for () in rounds {
            if self.is_closing() {
                return;
            }
            log_failure(self.round(self.domain.clock.now_ms(), &mut seen));
        }
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

    /// Merges segments and compacts partitions that need it.
    fn round(&self, now_ms: i64, seen: &mut Seen) -> Result<(), Ended> {
        let Seen { changes, not_compacted, unreadable } = seen;
        let now = self.store.registry().changes();
        if *changes != Some(now) {
            *changes = Some(now);
            match merge(self, unreadable) {
                Ok(()) => {}
                Err(Ended::Closing) => return Err(Ended::Closing),
                // A segment that cannot be read must not prevent the compaction of other partitions.
                Err(Ended::Failed(error)) => failed(&error),
            }
        }
        let topics = self.topics();
        for topic in topics.iter().filter(|topic| topic.meta().settings.cleanup.compacts()) {
            for partition in topic.partitions() {
                let place = partition.place();
                let waits = not_compacted.get(&place).is_some_and(|tried| tried.elapsed() < COMPACT_AGAIN);
                if waits || !needs_compaction(&partition.extents(), now_ms) {
                    continue;
                }
                not_compacted.remove(&place);
                let settings = &topic.meta().settings;
                let horizon_ms = now_ms.saturating_add_unsigned(settings.delete_retention_ms());
                match compact(self, partition, now_ms, horizon_ms) {
                    Ok(()) => {}
                    Err(Ended::Closing) => return Err(Ended::Closing),
                    // A partition that cannot be read must not prevent the compaction of others either.
                    Err(Ended::Failed(error)) => {
                        failed(&error);
                        not_compacted.insert(place, Instant::now());
                    }
                }
            }
        }
        Ok(())
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

fn log_failure(result: Result<(), Ended>) {
    match result {
        Err(Ended::Failed(error)) => failed(&error),
        Ok(()) | Err(Ended::Closing) => {}
    }
}

/// Logs a failure. Nothing is lost, because the old records stay where they are and the work is retried.
fn failed(error: &StoreError) {
    match error {
        // The moved records belong to a deleted topic, and the next round sees the current state.
        StoreError::Moved => {}
        error => tracing::error!(%error, "retention, merging or compaction failed and will be retried"),
    }
}

/// Returns whether enough of a partition's sealed records have not been compacted yet, or some tombstones may be
/// removed.
fn needs_compaction(extents: &[Extent], now_ms: i64) -> bool {
    let dirty: u64 = extents.iter().filter(|extent| !extent.compacted).map(|extent| extent.bytes).sum();
    let is_dirty = dirty > 0 && dirty * DIRTY_FRACTION >= extents.iter().map(|extent| extent.bytes).sum();
    is_dirty || extents.iter().any(|extent| extent.tombstones_due_ms <= now_ms)
}
