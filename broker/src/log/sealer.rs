//! The sealer moves a part of the journal to its final place. Record batches go to segments. The last accumulator of
//! each key, the last offset of each group and the state of producers go to their tables. Then one commit makes the
//! segments part of the store and advances the sealed mark. Each of the following commits removes some of the sealed
//! values.
//!
//! A thread does this while commits continue, in steps that are short enough that no commit waits long for the disk. If
//! commits fill the journal faster than it is sealed, each of them waits a little for the sealer's progress.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::hash::{HashMap, HashSet};
use bytes::Bytes;
use millstream_record::BatchHeader;
use parking_lot::{Condvar, Mutex};

use crate::groups::{CommittedOffset, StoredOffset};
use crate::log::commit::Upkeep;
use crate::log::domain::Domain;
use crate::log::index::Unsealed;
use crate::log::partition::Partition;
use crate::log::producers::{Producer, Producers};
use crate::log::queue::{Ended, WeakCommitQueue};
use crate::log::state::Frozen;
use crate::name::{GroupId, ProducerId};
use crate::store::journal::{CommittedRow, Run};
use crate::store::place::{Place, TopicId};
use crate::store::segment::{Scanned, SegmentMeta, SegmentWriter, scan, scan_sound};
use crate::store::{Count, Namespace, SLICE_ROWS, Store, StoreError, Tables, spawn};

/// A topic with at least this many bytes in a part of the journal gets its own segment. The others share one, so that
/// many small topics do not each cost a file.
const OWN_SEGMENT_BYTES_MIN: u64 = 4 << 20;

/// If there was no part to seal for this long, the sealer makes a commit to remove sealed values.
const IDLE: Duration = Duration::from_millis(50);

/// How long to wait before a full disk is tried again. The data to be sealed is safe in the journal meanwhile.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);

/// The journal is sealed in parts of at least this fraction of its maximum size. Under full load the parts are twice as
/// large, and there are two: one that is being sealed, and one that fills.
const PARTS_OF_JOURNAL: u64 = 4;

/// Commits may be ahead of the sealer by this fraction of a part, and stay below the maximum by the same amount until
/// the sealer is done.
const SLACK_FRACTION: u64 = 4;

/// The weight of a row of state in the sealer's progress, in bytes of batches. Both take about the same time.
const STATE_ROW_BYTES: u64 = 256;

/// A part of the journal to be sealed.
#[derive(Debug)]
pub(crate) struct SealJob {
    /// Sequence numbers of its values.
    pub(crate) values: Range<u64>,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// The changes to the state of aggregates in it.
    pub(crate) frozen: Vec<Frozen>,
}

/// Progress of the sealer.
#[derive(Debug, Default)]
struct Progress {
    sealing: bool,
    /// Size of the part that is being sealed, in bytes.
    part_bytes: u64,
    stopped: bool,
    done: u64,
    total: u64,
    /// Whether the sealer has queued upkeep that the committer has not taken yet. The committer must then not wait for
    /// the sealer.
    upkeep: bool,
    /// Whether the sealer waits for free disk space. The committer must not wait for that.
    disk_full: bool,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    moved: Condvar,
    /// Number of journal values that are sealed but not yet removed.
    sealed_values: AtomicU64,
    /// Groups that were dropped since the last part was sealed.
    dropped_groups: Mutex<Vec<String>>,
}

/// The committer's side of the sealer.
#[derive(Debug)]
pub(crate) struct SealerHandle {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<SealJob>,
    journal_bytes_max: u64,
}

impl SealerHandle {
    /// Returns whether a part of `unsealed_bytes` is to be sealed now.
    pub(crate) fn is_due(&self, unsealed_bytes: u64) -> bool {
        unsealed_bytes >= self.seal_bytes() && !self.shared.progress.lock().sealing
    }

    pub(crate) fn seal(&self, job: SealJob) {
        let mut progress = self.shared.progress.lock();
        *progress = Progress { sealing: true, part_bytes: job.bytes, done: 0, total: 0, ..*progress };
        drop(progress);
        // If the sealer has ended, it has reported the reason and failed the store.
        let _ = self.jobs.send(job);
    }

    /// Waits while the journal is ahead of the sealer. The next part fills at the rate at which the previous one is
    /// sealed, so that each commit waits a little and none waits long.
    pub(crate) fn wait_until_allowed(&self, unsealed_bytes: u64) {
        let mut progress = self.shared.progress.lock();
        loop {
            let Progress { sealing, stopped, upkeep, disk_full, .. } = *progress;
            if stopped || !sealing || upkeep || disk_full || unsealed_bytes < self.allowed_bytes(&progress) {
                return;
            }
            self.shared.moved.wait(&mut progress);
        }
    }

    /// Returns the minimum size of a part, in bytes.
    fn seal_bytes(&self) -> u64 {
        self.journal_bytes_max / PARTS_OF_JOURNAL
    }

    /// Returns how large the next part may be while the previous one is being sealed: at most twice the minimum size of
    /// a part, and both together at most the journal's maximum size. After a crash the whole journal is one part. Some
    /// of this is allowed immediately, and some only at the end, because the last steps take a while but do not count
    /// as progress.
    fn allowed_bytes(&self, &Progress { part_bytes, done, total, .. }: &Progress) -> u64 {
        let most = (2 * self.seal_bytes()).min(self.journal_bytes_max.saturating_sub(part_bytes));
        if total > 0 && done >= total {
            return most;
        }
        let slack = (self.seal_bytes() / SLACK_FRACTION).min(most / 2);
        let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
        slack + ((most - 2 * slack) as f64 * share) as u64
    }

    /// Returns whether the sealer has upkeep that the committer has not taken yet.
    pub(crate) fn has_upkeep(&self) -> bool {
        let progress = self.shared.progress.lock();
        progress.upkeep && !progress.stopped
    }

    /// Notes that the committer has taken the upkeep. The sealer itself may notice this much later, and later commits
    /// must wait for its progress again.
    pub(crate) fn upkeep_taken(&self) {
        self.shared.progress.lock().upkeep = false;
    }

    /// Returns whether the sealer waits for free disk space.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.shared.progress.lock().disk_full
    }

    /// Sets how many sealed values the journal still has.
    pub(crate) fn set_sealed_values(&self, values: u64) {
        self.shared.sealed_values.store(values, Ordering::Relaxed);
    }

    pub(crate) fn group_dropped(&self, group: &GroupId) {
        self.shared.dropped_groups.lock().push(group.as_str().to_owned());
    }
}

/// The side of the sealer's thread.
pub(crate) struct Sealer {
    store: Arc<Store>,
    domain: Arc<Domain>,
    queue: WeakCommitQueue,
    jobs: mpsc::Receiver<SealJob>,
    shared: Arc<Shared>,
}

/// The shared parts of committer and sealer, before either runs.
pub(crate) struct SealerStart {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<SealJob>,
}

/// Returns the two sides of a sealer for a journal of at most `journal_bytes_max` bytes.
pub(crate) fn sealer(journal_bytes_max: u64) -> (SealerHandle, SealerStart) {
    let shared = Arc::new(Shared::default());
    let (sender, jobs) = mpsc::channel();
    (SealerHandle { shared: shared.clone(), jobs: sender, journal_bytes_max }, SealerStart { shared, jobs })
}

impl SealerStart {
    /// Starts the thread. It ends with the committer.
    pub(crate) fn start(
        self,
        store: Arc<Store>,
        domain: Arc<Domain>,
        queue: WeakCommitQueue,
    ) -> Result<JoinHandle<()>, StoreError> {
        let Self { shared, jobs } = self;
        let sealer = Sealer { store, domain, queue, jobs, shared };
        spawn("sealer", move || sealer.run())
    }
}

impl Sealer {
    fn run(self) {
        // The committer must not wait for a sealer that has ended, whatever the reason.
        let _stopped = OnEnd(&self.shared);
        let _failed = self.queue.fail_on_panic("the sealer");
        let mut swept = Vec::new();
        let ended = loop {
            let are_left = self.shared.sealed_values.load(Ordering::Relaxed) > 0;
            let job = if are_left { self.jobs.recv_timeout(IDLE) } else { self.jobs.recv().map_err(Into::into) };
            let next = match job {
                Ok(job) => self.seal(job, &mut swept),
                // Every commit removes some values. If there is none, an empty one is made.
                Err(RecvTimeoutError::Timeout) => self.commit(Upkeep::default()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if next.is_err() {
                break next;
            }
        };
        if let Err(Ended::Failed(error)) = ended {
            tracing::error!(%error, "the journal cannot be sealed: no more writes are accepted");
            self.queue.fail(error);
        }
    }

    /// Seals a part of the journal. `swept` is the key up to which the table of producers was searched.
    fn seal(&self, job: SealJob, swept: &mut Vec<u8>) -> Result<(), Ended> {
        let (plan, gone) = self.plan(job.values.end);
        let rows: usize = job.frozen.iter().map(Frozen::len).sum();
        let batch_bytes: u64 = plan.values().map(|topic| topic.bytes).sum();
        self.shared.progress.lock().total = batch_bytes + rows as u64 * STATE_ROW_BYTES;

        let mut numbered = self.numbered(gone)?;
        let mut upkeep = self.segments(plan, &mut numbered)?;
        self.wait_for_room()?;
        self.disk_has_room();
        let written = self.producers(&numbered)?;
        self.forget_producers(SLICE_ROWS + 2 * written, swept)?;
        self.offsets()?;
        self.state(job.frozen, job.values.end)?;
        upkeep.sealed_to = Some(job.values.end);
        self.commit(upkeep)?;
        // Runs of partitions that also had sealed records were forgotten together with these.
        numbered.values().for_each(|(partition, _)| partition.forget_gone(job.values.end));
        self.shared.progress.lock().sealing = false;
        self.shared.moved.notify_all();
        Ok(())
    }

    fn commit(&self, upkeep: Upkeep) -> Result<(), Ended> {
        self.shared.progress.lock().upkeep = true;
        self.shared.moved.notify_all();
        self.queue.commit_upkeep(Upkeep { is_of_sealer: true, ..upkeep })
    }

    fn advance(&self, by: u64) {
        self.shared.progress.lock().done += by;
        self.shared.moved.notify_all();
    }

    // ---- batches

    /// Returns the runs of each topic in the journal before `to`, and those that retention has already deleted.
    fn plan(&self, to: u64) -> (BTreeMap<TopicId, TopicRuns>, Vec<PartitionRuns>) {
        let mut plan: BTreeMap<TopicId, TopicRuns> = BTreeMap::new();
        let mut all_gone = Vec::new();
        for topic in self.domain.topics.read().values() {
            for partition in topic.partitions() {
                let Unsealed { gone, runs } = partition.unsealed(to);
                if !gone.is_empty() {
                    all_gone.push((partition.clone(), gone));
                }
                if !runs.is_empty() {
                    let planned = plan.entry(topic.id()).or_default();
                    planned.bytes += runs.iter().map(|run| u64::from(run.at.len)).sum::<u64>();
                    planned.partitions.push((partition.clone(), runs));
                }
            }
        }
        (plan, all_gone)
    }

    /// Returns the headers of batches of idempotent producers in runs that retention has already deleted.
    fn numbered(&self, gone: Vec<PartitionRuns>) -> Result<Numbered, Ended> {
        let mut numbered = Numbered::new();
        for (partition, runs) in gone {
            let mut headers = Vec::new();
            for run in runs {
                let bytes = self.store.read(run.at)?;
                headers.extend(scan(&bytes, run.base..run.end).into_iter().filter_map(numbered_header));
            }
            numbered.insert(partition.place(), (partition, headers));
        }
        Ok(numbered)
    }

    fn segments(&self, plan: BTreeMap<TopicId, TopicRuns>, numbered: &mut Numbered) -> Result<Upkeep, Ended> {
        let (large, small): (Vec<_>, Vec<_>) =
            plan.into_values().partition(|topic| topic.bytes >= OWN_SEGMENT_BYTES_MIN);
        let mut upkeep = Upkeep::default();
        for topic in large {
            self.segment(&topic.partitions, &mut upkeep, numbered)?;
        }
        let small: Vec<_> = small.into_iter().flat_map(|topic| topic.partitions).collect();
        if !small.is_empty() {
            self.segment(&small, &mut upkeep, numbered)?;
        }
        Ok(upkeep)
    }

    /// Writes one segment of these partitions, which are sorted by topic and number.
    fn segment(&self, partitions: &[PartitionRuns], upkeep: &mut Upkeep, numbered: &mut Numbered) -> Result<(), Ended> {
        let done = self.shared.progress.lock().done;
        let (meta, headers) = loop {
            self.wait_for_room()?;
            match self.try_segment(partitions) {
                Ok(sealed) => break sealed,
                Err(Ended::Failed(error)) if error.is_disk_full() => {
                    self.shared.progress.lock().done = done;
                    self.disk_is_full(&error.to_string())?;
                }
                Err(error) => return Err(error),
            }
        };
        self.disk_has_room();
        upkeep.add_segment(meta, partitions.iter().map(|(partition, _)| partition.clone()));
        for ((partition, _), headers) in partitions.iter().zip(headers).filter(|(_, headers)| !headers.is_empty()) {
            let of_partition = numbered.entry(partition.place()).or_insert_with(|| (partition.clone(), Vec::new()));
            of_partition.1.extend(headers);
        }
        Ok(())
    }

    /// Also returns the headers of each partition's batches of idempotent producers.
    fn try_segment(&self, partitions: &[PartitionRuns]) -> Result<(SegmentMeta, Vec<Vec<BatchHeader>>), Ended> {
        let registry = self.store.registry();
        let mut writer = registry.create()?;
        let mut all_headers = Vec::with_capacity(partitions.len());
        for (partition, runs) in partitions {
            let (Some(first), Some(last)) = (runs.first(), runs.last()) else { continue };
            writer.begin(partition.topic_id(), partition.name().partition, first.base, false);
            let mut headers = Vec::new();
            for run in runs {
                let (bytes, found) = match self.store.read_in_memory(run.at) {
                    Some(bytes) => (bytes.clone(), scan_sound(&bytes, run.base..run.end)),
                    None => {
                        let bytes = self.store.read(run.at)?;
                        (bytes.clone(), scan(&bytes, run.base..run.end))
                    }
                };
                copy_run(&mut writer, &bytes, found, &mut headers)?;
                self.advance(bytes.len() as u64);
                if self.queue.is_closed() {
                    return Err(Ended::Closing);
                }
            }
            writer.end(last.end);
            all_headers.push(headers);
        }
        Ok((registry.finish(writer)?, all_headers))
    }

    /// Waits until the disk has more free space than the commits may need.
    fn wait_for_room(&self) -> Result<(), Ended> {
        while !self.store.room().for_sealing()? {
            self.disk_is_full("the rest is reserved for commits")?;
        }
        Ok(())
    }

    /// Logs that the disk is full, and waits for a moment.
    fn disk_is_full(&self, reason: &str) -> Result<(), Ended> {
        if !std::mem::replace(&mut self.shared.progress.lock().disk_full, true) {
            tracing::warn!(reason, "the disk is full: appends are refused, and sealing continues when there is room");
        }
        self.shared.moved.notify_all();
        if self.queue.is_closed() {
            return Err(Ended::Closing);
        }
        std::thread::sleep(DISK_FULL_RETRY);
        Ok(())
    }

    fn disk_has_room(&self) {
        if std::mem::take(&mut self.shared.progress.lock().disk_full) {
            tracing::info!("the disk has room again: sealing continues");
        }
    }

    // ---- tables

    /// Writes the state of the producers of the sealed batches to the tables, based on their state there. The tables
    /// therefore only know of batches that are in the log. Returns the number of rows.
    fn producers(&self, numbered: &Numbered) -> Result<usize, Ended> {
        let (tables, now_ms) = (self.store.tables(), self.domain.idle.now_ms());
        let mut rows = Vec::new();
        for (partition, headers) in numbered.values() {
            let key =
                |id: ProducerId| Tables::producer_key(partition.topic_id().0, partition.name().partition, id.get());
            let ids: HashSet<ProducerId> = headers.iter().filter_map(|h| ProducerId::new(h.producer_id)).collect();
            let mut producers = Producers::default();
            tables.producers_of(ids.iter().map(|id| (id.get(), key(*id))), |id, row| {
                let corrupt = |reason| StoreError::Corrupt { what: "table producers".into(), reason };
                let before = Producer::decode(row).map_err(corrupt)?;
                ProducerId::new(id).into_iter().for_each(|id| producers.restore(id, before));
                Ok(())
            })?;
            headers.iter().for_each(|header| producers.replay(header, now_ms));
            rows.extend(producers.iter().map(|(id, producer)| (key(id), Some(producer.encode()))));
        }
        rows.chunks(SLICE_ROWS).try_for_each(|slice| tables.write_producers(slice))?;
        Ok(rows.len())
    }

    /// Removes producers from the table that memory has forgotten, or that belong to deleted topics. Examines `rows`
    /// rows from `swept` on. This is more than were written, so that the table does not grow with every producer ever
    /// seen.
    fn forget_producers(&self, rows: usize, swept: &mut Vec<u8>) -> Result<(), Ended> {
        let tables = self.store.tables();
        let partitions: HashMap<Place, Arc<Partition>> = {
            let topics = self.domain.topics.read();
            let all = topics.values().flat_map(|topic| topic.partitions());
            all.map(|partition| (partition.place(), partition.clone())).collect()
        };
        let mut forgotten = Vec::new();
        *swept = tables.producers_from(swept, rows, |topic, number, id| {
            let is_known = partitions
                .get(&(TopicId(topic), number))
                .zip(ProducerId::new(id))
                .is_some_and(|(partition, id)| partition.producers().get(id).is_some());
            if !is_known {
                forgotten.push((Tables::producer_key(topic, number, id), None));
            }
        })?;
        forgotten.chunks(SLICE_ROWS).try_for_each(|slice| tables.write_producers(slice))?;
        Ok(())
    }

    fn offsets(&self) -> Result<(), Ended> {
        let tables = self.store.tables();
        let dropped = std::mem::take(&mut *self.shared.dropped_groups.lock());
        tables.drop_groups(&dropped)?;
        let mut taken = Vec::new();
        for group in self.domain.groups.all() {
            let mut offsets = group.take_unsealed();
            // Offsets that the group committed after it was created again may already be in the tables, and were
            // removed with the rest.
            if dropped.iter().any(|dropped| dropped == group.id().as_str()) {
                offsets = group.all_stored().into_iter().map(|(place, stored)| (place, Some(stored))).collect();
            }
            taken.push((group, offsets));
        }
        // This comes after the offsets: a topic that does not exist now was deleted.
        let topics: HashSet<TopicId> = self.domain.topics.read().values().map(|topic| topic.id()).collect();
        let mut rows = Vec::new();
        for (group, offsets) in taken {
            for ((topic, partition), stored) in offsets {
                let row =
                    stored.filter(|_| topics.contains(&topic)).map(|StoredOffset { committed, committed_at_ms }| {
                        let CommittedOffset { offset, leader_epoch, metadata } = &committed;
                        let metadata = metadata.as_deref().unwrap_or_default();
                        let row =
                            CommittedRow { offset: *offset, leader_epoch: *leader_epoch, committed_at_ms, metadata };
                        Tables::offset_row(group.kind() as u8, &row)
                    });
                rows.push((Tables::offset_key(group.id().as_str(), topic.0, partition), row));
            }
        }
        rows.chunks(SLICE_ROWS).try_for_each(|slice| tables.write_offsets(slice))?;
        Ok(())
    }

    fn state(&self, frozen: Vec<Frozen>, to: u64) -> Result<(), Ended> {
        let tables = self.store.tables();
        let mut dropped: Vec<&str> = frozen.iter().filter(|part| part.drops_older()).map(Frozen::store).collect();
        dropped.sort_unstable();
        dropped.dedup();
        dropped.into_iter().try_for_each(|store| tables.drop_state(store))?;
        for part in &frozen {
            for range in part.removed() {
                self.wait_for_room()?;
                while tables.remove_state(part.place(), &range)? {
                    if self.queue.is_closed() {
                        return Err(Ended::Closing);
                    }
                }
            }
            for slice in part.sorted().chunks(SLICE_ROWS) {
                self.wait_for_room()?;
                self.disk_has_room();
                tables.write_state(part.place(), slice.iter().copied())?;
                self.advance(slice.len() as u64 * STATE_ROW_BYTES);
                if self.queue.is_closed() {
                    return Err(Ended::Closing);
                }
            }
        }
        let count = |part: &Frozen| Count { keys: part.keys, counted_to: to };
        let values = frozen.iter().filter(|part| part.place().namespace == Namespace::VALUES);
        let counts: Vec<_> = values.map(|part| (part.store(), part.place().partition, count(part))).collect();
        tables.write_counts(&counts)?;
        drop(counts);
        frozen.into_iter().for_each(Frozen::release);
        Ok(())
    }
}

/// The runs of a topic in the part that is sealed.
#[derive(Debug, Default)]
struct TopicRuns {
    bytes: u64,
    partitions: Vec<PartitionRuns>,
}

type PartitionRuns = (Arc<Partition>, Vec<Run>);

/// The batches of idempotent producers in the part that is sealed, by partition and in offset order.
type Numbered = BTreeMap<Place, (Arc<Partition>, Vec<BatchHeader>)>;

fn numbered_header(scanned: Scanned) -> Option<BatchHeader> {
    match scanned {
        Scanned::Batch { header, .. } => ProducerId::new(header.producer_id).map(|_| header),
        Scanned::Damaged { .. } => None,
    }
}

/// Copies the batches of a run, given as the result of a scan, and notes those of idempotent producers. A damaged batch is copied unchanged and marked
/// as damaged, so that only its own offsets are lost.
fn copy_run(
    writer: &mut SegmentWriter,
    bytes: &Bytes,
    found: Vec<Scanned>,
    numbered: &mut Vec<BatchHeader>,
) -> Result<(), StoreError> {
    for scanned in found {
        writer.push_scanned(bytes, &scanned)?;
        if let Scanned::Damaged { fault, .. } = &scanned {
            tracing::error!(first = %fault.base, end = %fault.end, reason = fault.reason, "damaged batch in the journal");
        }
        numbered.extend(numbered_header(scanned));
    }
    Ok(())
}

/// Wakes all threads that wait for the sealer's progress when it ends, whatever the reason.
struct OnEnd<'a>(&'a Shared);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.progress.lock().stopped = true;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four parts of 100 bytes.
    const JOURNAL_BYTES: u64 = 400;

    fn allowed(part_bytes: u64, done: u64, total: u64) -> u64 {
        let (handle, _start) = sealer(JOURNAL_BYTES);
        handle.allowed_bytes(&Progress { sealing: true, part_bytes, done, total, ..Progress::default() })
    }

    #[test]
    fn what_is_sealed_and_what_fills_are_together_no_more_than_the_journal_may_keep() {
        for part_bytes in (0..=2 * JOURNAL_BYTES).step_by(10) {
            let mut before = 0;
            for done in 0..=100 {
                let allowed = allowed(part_bytes, done, 100);
                assert!(allowed <= JOURNAL_BYTES.saturating_sub(part_bytes), "{allowed} beside {part_bytes}");
                assert!(allowed <= JOURNAL_BYTES / 2, "no part is larger than half of it");
                assert!(allowed >= before, "it grows with the sealer's progress");
                before = allowed;
            }
        }
        // In steady load: a quarter of a part immediately, all but a quarter before the end, and then half of the
        // journal.
        assert_eq!([0, 50, 99, 100].map(|done| allowed(200, done, 100)), [25, 100, 173, 200]);
        assert_eq!(allowed(200, 0, 0), 25, "it is not known yet how much there is to do");
        assert_eq!(allowed(350, 100, 100), 50);
        assert_eq!(allowed(400, 100, 100), 0);
    }

    #[test]
    fn a_commit_waits_for_the_sealers_progress_and_for_nothing_else() {
        let (handle, _start) = sealer(JOURNAL_BYTES);
        let passes = |progress: Progress, unsealed_bytes| {
            *handle.shared.progress.lock() = progress;
            let waiting = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| handle.wait_until_allowed(unsealed_bytes));
                // A commit that has to wait does so until the sealer has ended.
                let passed = !is_waiting(&handle, &waiting);
                handle.shared.progress.lock().stopped = true;
                handle.shared.moved.notify_all();
                waiting.join().is_ok().then_some(passed)
            });
            waiting.expect("it does not panic")
        };
        let sealing = || Progress { sealing: true, part_bytes: 200, done: 50, total: 100, ..Progress::default() };
        assert!(passes(Progress::default(), 1_000), "nothing is being sealed");
        assert!(passes(sealing(), 99));
        assert!(!passes(sealing(), 100));
        assert!(passes(Progress { upkeep: true, ..sealing() }, 100), "the sealer waits for a commit");
        assert!(passes(Progress { disk_full: true, ..sealing() }, 100), "the sealer waits for the disk");
        assert!(passes(Progress { stopped: true, ..sealing() }, 100), "nobody seals any more");
    }

    /// Returns whether the thread waits: true once it has released the lock on the progress and can be woken, false if
    /// it ended.
    fn is_waiting(handle: &SealerHandle, thread: &std::thread::ScopedJoinHandle<'_, ()>) -> bool {
        loop {
            if thread.is_finished() {
                return false;
            }
            // This wakes one waiting thread, which sees the same progress and waits again.
            let _progress = handle.shared.progress.lock();
            if handle.shared.moved.notify_one() {
                return true;
            }
        }
    }

    #[test]
    fn a_part_is_due_once_it_is_long_enough_and_the_one_before_is_sealed() {
        let (handle, _start) = sealer(JOURNAL_BYTES);
        assert!(!handle.is_due(99));
        assert!(handle.is_due(100));
        handle.seal(SealJob { values: 0..1, bytes: 100, frozen: Vec::new() });
        assert!(!handle.is_due(1_000));
    }
}
