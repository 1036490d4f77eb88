//! The cleaner: what becomes of records that are sealed. Retention (`retention.rs`) moves the first offset that is kept,
//! and removes segments that hold nothing any more. Compaction (`compaction.rs`) leaves the last record of each key,
//! and segments are merged (`merge.rs`).
//!
//! Two threads look at that once a second: retention must not wait for what is written anew, which may be many GB. The
//! other writes new segments beside the old; one commit puts them in their place, so a reader finds the old records or
//! the new ones.

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
use crate::log::expiry::{expire_groups, forget_idle_producers};
use crate::log::merge::{EXTENTS_MAX, Live, merge};
use crate::log::partition::Partition;
use crate::log::queue::{Ended, WeakCommitQueue};
use crate::log::retention::{self, retain};
use crate::log::topic::Topic;
use crate::store::StoreError;
use crate::store::place::Place;
use crate::store::segment::{Extent, OwnedExtent, SegmentFile, SegmentId};
use crate::store::{Store, StoreOptions, spawn};

/// A partition that could not be compacted waits for so long.
const COMPACT_AGAIN: Duration = Duration::from_secs(60);

/// How often it is looked what there is to do.
const INTERVAL: Duration = Duration::from_secs(1);

/// Compaction begins once records that it has not seen are this part of a partition: Kafka's
/// `min.cleanable.dirty.ratio`, a half.
const DIRTY_FRACTION: u64 = 2;

/// What both threads work with.
pub(crate) struct Cleaner {
    pub(super) store: Arc<Store>,
    pub(super) domain: Arc<Domain>,
    pub(super) queue: WeakCommitQueue,
    pub(super) limits: Limits,
    pub(super) options: CleanerOptions,
    in_work: Mutex<InWork>,
}

/// Of [`StoreOptions`], with the defaults, and of the broker's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CleanerOptions {
    interval: Duration,
    producer_expiry_ms: u64,
    offsets_retention_ms: u64,
    pub(super) extents_max: usize,
    pub(super) keys_max: usize,
}

impl CleanerOptions {
    /// Producers that are idle for longer than `producer_expiry_ms` are forgotten, and so are the offsets of groups that
    /// nobody uses for `offsets_retention_ms`.
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

/// Segments that are merged or compacted just now: retention leaves them alone.
pub(super) type InWork = HashSet<SegmentId>;

/// When it is dropped, no segment is in work any more.
pub(super) struct Work<'a>(&'a Cleaner);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.in_work().clear();
    }
}

/// What earlier rounds saw.
#[derive(Default)]
struct Seen {
    /// How often what is in use of segments had changed when that was looked at.
    changes: Option<u64>,
    /// Partitions that could not be compacted, and when that was tried.
    not_compacted: HashMap<Place, Instant>,
    /// Segments that the disk does not give back: they are not merged until the next start.
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

    /// Starts the threads; they end with the committer.
    pub(crate) fn start(self) -> Result<[JoinHandle<()>; 2], StoreError> {
        let cleaner = Arc::new(self);
        let of_retention = cleaner.clone();
        // What goes is not written anew before.
        let (retained, rounds) = mpsc::sync_channel(1);
        let retention = spawn("retention", move || of_retention.run_retention(&retained))?;
        Ok([retention, spawn("cleaner", move || cleaner.run(&rounds))?])
    }

    fn run_retention(&self, retained: &SyncSender<()>) {
        let _failed = self.queue.fail_on_panic("the thread of retention");
        let (mut seen, mut swept) = (retention::Seen::default(), 0);
        loop {
            if self.store.wait_for_end(self.options.interval) || self.is_closing() {
                return;
            }
            let now_ms = self.domain.clock.now_ms();
            log_failure(retain(self, now_ms, &mut seen));
            let idle_ms = self.domain.idle.begin_round(now_ms);
            forget_idle_producers(self, idle_ms, self.options.producer_expiry_ms, &mut swept);
            log_failure(expire_groups(self, idle_ms, now_ms, self.options.offsets_retention_ms));
            // Where the other thread is busy it looks when it is done.
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

    /// Whether the disk has room for so many bytes more: appends and sealing come first.
    pub(super) fn has_room(&self, bytes: u64, without: &str) -> Result<bool, Ended> {
        let has_room = self.store.room().for_cleaning(bytes)?;
        if !has_room {
            tracing::warn!(bytes, "{without} while the disk has too little room for what is written anew");
        }
        Ok(has_room)
    }

    /// Merges and compacts what has a reason.
    fn round(&self, now_ms: i64, seen: &mut Seen) -> Result<(), Ended> {
        let Seen { changes, not_compacted, unreadable } = seen;
        let now = self.store.registry().changes();
        if *changes != Some(now) {
            *changes = Some(now);
            match merge(self, unreadable) {
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
                    // Nor others' from being compacted.
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

    /// Segments that are in work. Who decides what to do with segments holds this until that is done or they are in it.
    pub(super) fn in_work(&self) -> MutexGuard<'_, InWork> {
        self.in_work.lock()
    }

    /// Begins work on segments; it ends when what is returned is dropped.
    pub(super) fn begin<'a>(
        &'a self,
        mut in_work: MutexGuard<'a, InWork>,
        segments: impl IntoIterator<Item = SegmentId>,
    ) -> Work<'a> {
        in_work.extend(segments);
        Work(self)
    }

    /// Segments of which nothing is in use.
    pub(super) fn unused(&self) -> Vec<SegmentId> {
        // As in `live`, of which this needs little.
        let _changing = self.store.registry().change();
        let mut used = HashSet::new();
        for topic in self.topics() {
            topic.partitions().iter().for_each(|partition| used.extend(partition.segments()));
        }
        let all = self.store.registry().all().into_iter().map(|segment| segment.id);
        all.filter(|id| !used.contains(id)).collect()
    }

    /// Every segment, and what of them is in use.
    pub(super) fn live(&self) -> (Vec<SegmentFile>, Live) {
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

    /// The rows of segments without extents of a partition, which follow one another and which others take the place
    /// of, and the segments that hold nothing else.
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

/// Old records stay where they are, and nothing is lost: it is tried again.
fn failed(error: &StoreError) {
    match error {
        // What moved belongs to a deleted topic: the next round sees what there is.
        StoreError::Moved => {}
        error => tracing::error!(%error, "retention, merging or compaction failed and is tried again"),
    }
}

/// Whether enough of a partition's sealed records is new to compaction, or some tombstones may go.
fn needs_compaction(extents: &[Extent], now_ms: i64) -> bool {
    let dirty: u64 = extents.iter().filter(|extent| !extent.compacted).map(|extent| extent.bytes).sum();
    let is_dirty = dirty > 0 && dirty * DIRTY_FRACTION >= extents.iter().map(|extent| extent.bytes).sum();
    is_dirty || extents.iter().any(|extent| extent.tombstones_due_ms <= now_ms)
}
