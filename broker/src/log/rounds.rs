//! The rounds of the cleaner, which maintains sealed records. Retention (`retention.rs`) advances log start offsets and
//! removes segments that are no longer in use. Compaction (`compaction.rs`) keeps only the last record of each key.
//! Merging (`merge.rs`) combines segments.
//!
//! Two threads look for work once a second. Retention has its own thread because it must not wait for compaction and
//! merging, which may rewrite many GB. The other thread writes new segments beside the old ones, and one commit
//! replaces the old ones, so that a reader finds either the old records or the new ones.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::log::cleaner::Cleaner;
use crate::log::compaction::compact;
use crate::log::expiry::{expire_groups, expire_producer_epochs, forget_idle_producers};
use crate::log::merge::merge;
use crate::log::queue::Ended;
use crate::log::retention::{self, retain};
use crate::store::place::Place;
use crate::store::segment::{Extent, SegmentId};
use crate::store::{StoreError, spawn};

/// How long to wait before compaction of a partition is retried after a failure.
const COMPACT_AGAIN: Duration = Duration::from_secs(60);

/// Compaction of a partition begins once `1 / DIRTY_FRACTION` of its sealed bytes have not been compacted yet. A half
/// is the default of Kafka's `min.cleanable.dirty.ratio`.
const DIRTY_FRACTION: u64 = 2;

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
