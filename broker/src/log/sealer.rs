//! The sealer: moves a part of the journal to where it stays. Record batches go to segments; the last
//! accumulator of each key, the last offset of each group and what is remembered of producers go to
//! their tables. Then one commit makes the segments part of the store and ends that part of the
//! journal; the commits that follow remove its values, some each.
//!
//! One thread does it beside the commits, in steps short enough that no commit waits long for the disk.
//! When commits fill the journal faster than it is sealed, they wait for the sealer's progress, a
//! little each.

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
use crate::store::segment::{Piece, SegmentMeta, SegmentWriter, pieces};
use crate::store::{Count, Namespace, SLICE_ROWS, Store, StoreError, Tables, spawn};

/// A topic with at least this many bytes in a part of the journal gets a segment of its own; the others
/// share one, so that many small topics cost no file each.
const OWN_SEGMENT_BYTES_MIN: u64 = 8 << 20;

/// With no part to seal for this time, values that are sealed are removed all the same.
const IDLE: Duration = Duration::from_millis(50);

/// A full disk is tried again after this time: what is to be sealed is safe in the journal.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);

/// The journal is sealed in parts of at least this fraction of what it keeps. Under full load they are twice as long, and
/// there are two: one that is sealed, and one that fills.
const PARTS_OF_JOURNAL: u64 = 4;

/// The part of a journal's part that commits may be ahead of the sealer, or behind the most they may be.
const SLACK_FRACTION: u64 = 4;

/// What a row of state counts as, in bytes, beside the bytes of batches: both take about as long.
const STATE_ROW_BYTES: u64 = 256;

/// A part of the journal to be sealed.
#[derive(Debug)]
pub(crate) struct SealJob {
    /// Its sequence numbers.
    pub(crate) journal: Range<u64>,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// What aggregates changed in it.
    pub(crate) frozen: Vec<Frozen>,
}

/// How far the sealer is.
#[derive(Debug, Default)]
struct Progress {
    sealing: bool,
    /// Bytes of the part that is being sealed.
    part_bytes: u64,
    stopped: bool,
    done: u64,
    total: u64,
    /// Upkeep that the committer has not taken yet: it must not wait for the sealer in turn.
    upkeep: bool,
    /// It waits for room on the disk: the committer must not wait for that.
    disk_full: bool,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    moved: Condvar,
    /// Journal values that are sealed and still there.
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
    /// Whether so many bytes are to be sealed now.
    pub(crate) fn is_due(&self, unsealed_bytes: u64) -> bool {
        unsealed_bytes >= self.seal_bytes() && !self.shared.progress.lock().sealing
    }

    pub(crate) fn seal(&self, job: SealJob) {
        let mut progress = self.shared.progress.lock();
        *progress = Progress { sealing: true, part_bytes: job.bytes, done: 0, total: 0, ..*progress };
        drop(progress);
        // A sealer that ended said why: the store has failed.
        let _ = self.jobs.send(job);
    }

    /// Waits while the journal is ahead of the sealer: the next part fills as the one before is sealed, so that each
    /// commit waits a little, and none for long.
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

    /// The journal is handed over in parts of this many bytes or more.
    fn seal_bytes(&self) -> u64 {
        self.journal_bytes_max / PARTS_OF_JOURNAL
    }

    /// How full the next part may be while the one before is being sealed: at most twice as long as a part is, and both
    /// together no longer than the journal may be. After a crash all that it held is one part. Some of that is there at
    /// once, and some is left for the end, which takes a while and counts as nothing.
    fn allowed_bytes(&self, &Progress { part_bytes, done, total, .. }: &Progress) -> u64 {
        let most = (2 * self.seal_bytes()).min(self.journal_bytes_max.saturating_sub(part_bytes));
        if total > 0 && done >= total {
            return most;
        }
        let slack = (self.seal_bytes() / SLACK_FRACTION).min(most / 2);
        let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
        slack + ((most - 2 * slack) as f64 * share) as u64
    }

    /// Whether the sealer has upkeep that the committer has not taken yet.
    pub(crate) fn has_upkeep(&self) -> bool {
        let progress = self.shared.progress.lock();
        progress.upkeep && !progress.stopped
    }

    /// The committer has taken it. The sealer itself may learn of that much later, and commits that go on meanwhile
    /// must wait again.
    pub(crate) fn upkeep_taken(&self) {
        self.shared.progress.lock().upkeep = false;
    }

    /// Whether it waits for room on the disk.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.shared.progress.lock().disk_full
    }

    /// Says how many sealed values the journal still has.
    pub(crate) fn set_sealed_values(&self, values: u64) {
        self.shared.sealed_values.store(values, Ordering::Relaxed);
    }

    pub(crate) fn group_dropped(&self, group: &GroupId) {
        self.shared.dropped_groups.lock().push(group.as_str().to_owned());
    }
}

/// The thread's side.
pub(crate) struct Sealer {
    store: Arc<Store>,
    domain: Arc<Domain>,
    queue: WeakCommitQueue,
    jobs: mpsc::Receiver<SealJob>,
    shared: Arc<Shared>,
}

/// What connects committer and sealer, before either runs.
pub(crate) struct SealerStart {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<SealJob>,
}

/// The two sides of a sealer for a journal that keeps so many bytes.
pub(crate) fn sealer(journal_bytes_max: u64) -> (SealerHandle, SealerStart) {
    let shared = Arc::new(Shared::default());
    let (sender, jobs) = mpsc::channel();
    (SealerHandle { shared: shared.clone(), jobs: sender, journal_bytes_max }, SealerStart { shared, jobs })
}

impl SealerStart {
    /// Starts the thread; it ends with the committer.
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
        // Committers must not wait for a sealer that is gone, however it went.
        let _stopped = OnEnd(&self.shared);
        let _failed = self.queue.fail_on_panic("the sealer");
        let mut swept = Vec::new();
        let ended = loop {
            let are_left = self.shared.sealed_values.load(Ordering::Relaxed) > 0;
            let job = if are_left { self.jobs.recv_timeout(IDLE) } else { self.jobs.recv().map_err(Into::into) };
            let next = match job {
                Ok(job) => self.seal(job, &mut swept),
                // A commit removes some; with none to come, one is made for that.
                Err(RecvTimeoutError::Timeout) => self.commit(Upkeep::default()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if next.is_err() {
                break next;
            }
        };
        if let Err(Ended::Failed(error)) = ended {
            tracing::error!(%error, "the journal can't be sealed: no more writes are taken");
            self.queue.fail(error);
        }
    }

    /// `swept` is up to where the table of producers was looked through.
    fn seal(&self, job: SealJob, swept: &mut Vec<u8>) -> Result<(), Ended> {
        let (plan, gone) = self.plan(job.journal.end);
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
        self.state(job.frozen, job.journal.end)?;
        upkeep.sealed_to = Some(job.journal.end);
        self.commit(upkeep)?;
        // Where records of a partition were sealed, they went with those.
        numbered.values().for_each(|(partition, _)| partition.forget_gone(job.journal.end));
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

    /// The runs of each topic that the journal holds before `to`, and those that retention took already.
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

    /// What runs say of producers that are not sealed themselves.
    fn numbered(&self, gone: Vec<PartitionRuns>) -> Result<Numbered, Ended> {
        let mut numbered = Numbered::new();
        for (partition, runs) in gone {
            let mut headers = Vec::new();
            for run in runs {
                let bytes = self.store.read(run.at)?;
                headers.extend(pieces(&bytes, run.base..run.end).into_iter().filter_map(numbered_header));
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

    /// One segment of these partitions, sorted by topic and number.
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

    /// With the headers of each partition's batches of idempotent producers.
    fn try_segment(&self, partitions: &[PartitionRuns]) -> Result<(SegmentMeta, Vec<Vec<BatchHeader>>), Ended> {
        let registry = self.store.registry();
        let mut writer = registry.create()?;
        let mut all_headers = Vec::with_capacity(partitions.len());
        for (partition, runs) in partitions {
            let (Some(first), Some(last)) = (runs.first(), runs.last()) else { continue };
            writer.begin(partition.topic_id(), partition.name().partition, first.base, false);
            let mut headers = Vec::new();
            for run in runs {
                let bytes = self.store.read(run.at)?;
                copy_run(&mut writer, &bytes, run, &mut headers)?;
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

    /// Waits until the disk has room for more than the commits may need.
    fn wait_for_room(&self) -> Result<(), Ended> {
        while !self.store.room().for_sealing()? {
            self.disk_is_full("what is left is for the commits")?;
        }
        Ok(())
    }

    /// Says so, and waits a little.
    fn disk_is_full(&self, reason: &str) -> Result<(), Ended> {
        if !std::mem::replace(&mut self.shared.progress.lock().disk_full, true) {
            tracing::warn!(reason, "the disk is full: appends are refused, and sealing goes on when there is room");
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
            tracing::info!("the disk has room again: sealing goes on");
        }
    }

    // ---- tables

    /// What the sealed batches say of their producers, over what the tables remember: so the tables know of
    /// no batch that was not in the log. Returns how many rows that were.
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

    /// What memory has forgotten of producers, and what is left of those of deleted topics, goes from the table: of so
    /// many rows from `swept` on, more than were written, so that the table does not grow with every producer ever seen.
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
            // What it committed after it was made again may be in the tables already, and went with the rest.
            if dropped.iter().any(|dropped| dropped == group.id().as_str()) {
                offsets = group.all_stored().into_iter().map(|(place, stored)| (place, Some(stored))).collect();
            }
            taken.push((group, offsets));
        }
        // Looked up afterwards: a topic of an offset that is not there now was deleted since.
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

/// A topic's part of what is sealed.
#[derive(Debug, Default)]
struct TopicRuns {
    bytes: u64,
    partitions: Vec<PartitionRuns>,
}

type PartitionRuns = (Arc<Partition>, Vec<Run>);

/// The batches of idempotent producers that partitions have in what is sealed, in the order of offsets.
type Numbered = BTreeMap<Place, (Arc<Partition>, Vec<BatchHeader>)>;

fn numbered_header(piece: Piece) -> Option<BatchHeader> {
    match piece {
        Piece::Batch { header, .. } => ProducerId::new(header.producer_id).map(|_| header),
        Piece::Damaged { .. } => None,
    }
}

/// Copies a run's batches, and notes those of idempotent producers. One that the disk damaged stays as it is
/// and is marked: its offsets are lost, and no others.
fn copy_run(
    writer: &mut SegmentWriter,
    bytes: &Bytes,
    run: &Run,
    numbered: &mut Vec<BatchHeader>,
) -> Result<(), StoreError> {
    for piece in pieces(bytes, run.base..run.end) {
        writer.push_piece(bytes, &piece)?;
        if let Piece::Damaged { fault, .. } = &piece {
            tracing::error!(first = %fault.base, end = %fault.end, reason = fault.reason, "damaged batch in the journal");
        }
        numbered.extend(numbered_header(piece));
    }
    Ok(())
}

/// However the sealer ends: nobody waits for its progress any more.
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

    /// Quarters of 100 bytes.
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
                assert!(allowed <= JOURNAL_BYTES / 2, "no part is longer than half of it");
                assert!(allowed >= before, "it grows with the sealer's progress");
                before = allowed;
            }
        }
        // In steady load: a quarter of a part at once, all but that before the end, and then half of the journal.
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
                // One that has to wait waits until the sealer is gone.
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

    /// Whether the thread is in its wait: it ended, or it holds the lock of the progress no more and waits to be woken.
    fn is_waiting(handle: &SealerHandle, thread: &std::thread::ScopedJoinHandle<'_, ()>) -> bool {
        loop {
            if thread.is_finished() {
                return false;
            }
            // Wakes one thread that waits; it sees the same progress, and waits on.
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
        handle.seal(SealJob { journal: 0..1, bytes: 100, frozen: Vec::new() });
        assert!(!handle.is_due(1_000));
    }
}
