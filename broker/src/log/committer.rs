//! The path of a write: take queued requests, assign offsets, pack one blob, commit it, publish it, and answer. A
//! single thread does this, so no locks are needed to order writes. While it commits, the next group of requests
//! gathers.
//!
//! No request is answered with Ok before its commit returned Ok. After a failed commit there are no further commits:
//! all waiting and all later requests get its error.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use millstream_record::{RecordBatch, TransactionEnd, patch_batch};
use tokio::sync::{mpsc, watch};

use super::commit::{Commit, Committed, Needs, Upkeep};
use super::domain::Domain;
use super::partition::Partition;
use super::producers::Verdict;
use super::queue::{CommitQueue, Request};
use super::sealer::{SealJob, SealerHandle};
use super::state::StateIndex;
use super::transactions::{aborted_key, aborted_value, transactional_key};
use crate::error::BrokerError;
use crate::groups::StoredOffset;
use crate::hash::HashMap;
use crate::metrics::BrokerMetrics;
use crate::name::TopicName;
use crate::store::journal::{BlobWriter, CHUNK_BYTES, CommittedRow, Location, OffsetEntry, Run, RunHeader};
use crate::store::place::Offset;
use crate::store::recovery::Replayed;
use crate::store::{CatalogChange, DiskFull, LEADER_EPOCH, Store, StoreError, Write, spawn};

/// The committer takes queued requests until they reach this size in bytes: 16 full journal values. With larger commits
/// the cost per byte no longer decreases.
pub(crate) const COMMIT_BYTES_MAX: usize = 16 * CHUNK_BYTES;

/// Number of sealed values that a commit removes: two for each value that it writes, so that removal keeps up, and four
/// more. Removing a value reads it.
const TRIM_A_VALUE: u64 = 2;
const TRIM_VALUES_MIN: u64 = 4;

/// A request whose offsets are assigned.
struct Accepted {
    request: Request,
    committed: Committed,
    /// Changes of the catalog that follow from its batches.
    catalog: Vec<CatalogChange>,
}

pub(crate) struct Committer {
    store: Arc<Store>,
    state: Arc<StateIndex>,
    domain: Arc<Domain>,
    metrics: BrokerMetrics,
    queue: mpsc::UnboundedReceiver<Request>,
    /// Requests of the queue that arrived before upkeep which was taken first.
    set_aside: VecDeque<Request>,
    /// The sequence number of the next journal value.
    next_seq: u64,
    /// Sequence number at which the next part of the journal to be sealed begins.
    seal_from: u64,
    /// Size of the journal from there on, in bytes.
    unsealed_bytes: u64,
    /// Values that are sealed and can be removed.
    trim: Range<u64>,
    sealer: SealerHandle,
    failure: watch::Sender<Option<Arc<StoreError>>>,
}

impl Committer {
    /// Starts the committer's thread. It ends when every [`CommitQueue`] is dropped.
    pub(crate) fn start(
        store: Arc<Store>,
        state: Arc<StateIndex>,
        domain: Arc<Domain>,
        metrics: BrokerMetrics,
        replayed: Replayed,
        sealer: SealerHandle,
        failure: watch::Sender<Option<Arc<StoreError>>>,
    ) -> Result<(CommitQueue, std::thread::JoinHandle<()>), StoreError> {
        let (sender, queue) = mpsc::unbounded_channel();
        sealer.set_sealed_values(replayed.sealed_to - replayed.trim_from);
        let queue_store = store.clone();
        let committer = Self {
            store,
            state,
            domain,
            metrics,
            queue,
            set_aside: VecDeque::new(),
            next_seq: replayed.next_seq,
            seal_from: replayed.sealed_to,
            unsealed_bytes: replayed.bytes,
            trim: replayed.trim_from..replayed.sealed_to,
            sealer,
            failure,
        };
        let thread = spawn("committer", move || committer.run())?;
        Ok((CommitQueue::new(sender, queue_store), thread))
    }

    fn run(mut self) {
        let _on_end = OnEnd(self.store.clone());
        let (store, failure) = (self.store.clone(), self.failure.clone());
        let _on_panic = OnPanic { store: &store, failure: &failure };
        // The journal at start may already have its maximum size, so sealing begins before the first commit.
        self.seal();
        while let Some(requests) = self.take() {
            // The sealer's own upkeep is never delayed, because the sealer would then wait for itself.
            let writes = requests.iter().any(|request| request.upkeep.is_none());
            if writes && !requests.iter().any(Request::is_of_sealer) {
                self.sealer.wait_until_allowed(self.unsealed_bytes);
            }
            let now_ms = self.domain.clock.now_ms();
            let accepted = self.assign(requests, self.domain.idle.at(now_ms));
            if accepted.is_empty() {
                continue;
            }
            if let Some(error) = self.store.failure() {
                return self.fail(error, accepted);
            }
            let begun = Instant::now();
            let (blob, runs) = self.pack(&accepted, now_ms);
            match self.commit(&blob, &accepted) {
                Ok(seq) => {
                    self.metrics.committed(begun.elapsed(), blob.len());
                    self.publish(seq, blob, runs);
                    self.answer(seq, accepted, now_ms);
                    self.sealer.set_sealed_values(self.trim.end - self.trim.start);
                    self.seal();
                }
                Err(error) => return self.fail(Arc::new(error), accepted),
            }
        }
    }

    /// Passes the journal so far to the sealer, once it is large enough and the previous part is sealed.
    fn seal(&mut self) {
        if self.sealer.is_due(self.unsealed_bytes) {
            let (values, frozen) = (self.seal_from..self.next_seq, self.state.freeze());
            self.sealer.seal(SealJob { values, bytes: self.unsealed_bytes, frozen });
            self.seal_from = self.next_seq;
            self.unsealed_bytes = 0;
        }
    }

    /// Waits for a request, then takes all queued requests up to the size limit. Upkeep of the sealer is taken before
    /// all others, because the requests before it could make the journal exceed its maximum size.
    fn take(&mut self) -> Option<Vec<Request>> {
        while self.sealer.has_upkeep() {
            // The upkeep is in the queue, or will be soon.
            let Some(request) = self.queue.blocking_recv() else { break };
            if request.is_of_sealer() {
                self.sealer.upkeep_taken();
            }
            if request.upkeep.is_some() {
                return Some(vec![request]);
            }
            self.set_aside.push_back(request);
        }
        let first = self.set_aside.pop_front().or_else(|| self.queue.blocking_recv())?;
        let mut bytes = first.commit.bytes();
        let mut requests = vec![first];
        while bytes < COMMIT_BYTES_MAX {
            let next = self.set_aside.pop_front().or_else(|| self.queue.try_recv().ok());
            let Some(request) = next else { break };
            bytes += request.commit.bytes();
            requests.push(request);
        }
        if requests.iter().any(Request::is_of_sealer) {
            self.sealer.upkeep_taken();
        }
        Some(requests)
    }

    /// Refuses requests that must not be written, and assigns offsets to the others, in order. `idle_ms` is the time of
    /// the idle clock.
    fn assign(&self, requests: Vec<Request>, idle_ms: i64) -> Vec<Accepted> {
        let mut accepted = Vec::with_capacity(requests.len());
        let need = requests.iter().map(|request| request.commit.needs()).max().unwrap_or_default();
        let (room, for_offsets) = self.check_room(need);
        for mut request in requests {
            let checked = check(&request.commit).and_then(|()| stored_before(&request.commit));
            let checked = checked.and_then(|before| {
                let room = match (&before, request.commit.needs()) {
                    // A commit that is already stored needs no room.
                    (Some(_), _) | (_, Needs::Nothing) => &Ok(()),
                    (_, Needs::Offsets) => &for_offsets,
                    (_, Needs::Room) => &room,
                };
                let refused = room.clone().inspect_err(|_| self.metrics.refuse_disk_full());
                refused.map(|()| before)
            });
            match checked {
                Err(error) => {
                    request.answer.send(Err(error));
                }
                Ok(None) => {
                    let (committed, catalog) = assign(&request.commit, idle_ms);
                    accepted.push(Accepted { request, committed, catalog });
                }
                // The original may be in this very group, so the request is answered after the commit.
                Ok(Some(committed)) => {
                    request.commit = Commit::default();
                    accepted.push(Accepted { request, committed, catalog: Vec::new() });
                }
            }
        }
        accepted
    }

    /// Returns whether the disk has room for appends and for offsets. The disk is only queried for what is needed. If
    /// it has room for appends, it has room for offsets too.
    fn check_room(&self, need: Needs) -> (Result<(), BrokerError>, Result<(), BrokerError>) {
        let room = self.store.room();
        let checked = |full: Result<Option<DiskFull>, StoreError>| match full {
            Ok(None) => Ok(()),
            Ok(Some(full)) => Err(BrokerError::DiskFull(full)),
            Err(error) => Err(error.into()),
        };
        let appends = match need {
            Needs::Nothing => return (Ok(()), Ok(())),
            Needs::Offsets => return (Ok(()), checked(room.for_offsets())),
            Needs::Room if self.sealer.is_disk_full() => checked(room.full().map(Some)),
            Needs::Room => checked(room.for_appends()),
        };
        let offsets = if appends.is_ok() { Ok(()) } else { checked(room.for_offsets()) };
        (appends, offsets)
    }

    /// Packs everything into one blob, in which each partition's batches are contiguous.
    fn pack(&self, accepted: &[Accepted], now_ms: i64) -> (Bytes, Vec<(Arc<Partition>, Run)>) {
        let commits = || accepted.iter().map(|accepted| &accepted.request.commit);
        let bytes = commits().map(Commit::bytes).sum();
        let mut writer = BlobWriter::in_memory(self.store.blob_memory(bytes), bytes);
        let mut runs = Vec::new();
        for (partition, batches) in by_partition(accepted) {
            let (pos, len, run) = writer.batches(|out| {
                let mut run = RunHeader {
                    topic: partition.topic_id(),
                    partition: partition.name().partition,
                    base: batches[0].0,
                    end: Offset::ZERO,
                    first_timestamp_ms: batches[0].1.base_timestamp_ms(),
                    max_timestamp_ms: i64::MIN,
                };
                for (base, batch) in &batches {
                    let begin = out.len();
                    out.extend_from_slice(batch.as_bytes());
                    patch_batch(&mut out[begin..], base.get(), LEADER_EPOCH);
                    run.end = base.plus(u64::from(batch.record_count()));
                    run.max_timestamp_ms = run.max_timestamp_ms.max(batch.max_timestamp_ms());
                }
                run
            });
            runs.push((partition, run.run(Location { seq: self.next_seq, pos, len })));
        }
        for commit in commits() {
            for change in &commit.offsets {
                writer.offset(&OffsetEntry {
                    group: change.group.id().as_str(),
                    kind: change.group.kind() as u8,
                    topic: change.topic.id(),
                    partition: change.partition,
                    committed: change.to.as_ref().map(|committed| CommittedRow {
                        offset: committed.offset,
                        leader_epoch: committed.leader_epoch,
                        committed_at_ms: Some(now_ms),
                        metadata: committed.metadata.as_deref().unwrap_or_default(),
                    }),
                });
            }
            commit.state.iter().for_each(|change| writer.state(change));
            commit.drop_state.iter().for_each(|store| writer.drop_state(store));
            commit.drop_groups.iter().for_each(|group| writer.drop_group(group.id().as_str()));
        }
        let blob = if writer.is_empty() { Bytes::new() } else { writer.finish() };
        (blob, runs)
    }

    /// Writes one durable transaction. Returns the sequence number of the blob's first value.
    fn commit(&mut self, blob: &Bytes, accepted: &[Accepted]) -> Result<u64, StoreError> {
        let seq = self.next_seq;
        let values = blob.len().div_ceil(CHUNK_BYTES) as u64;
        let trimmed = (TRIM_VALUES_MIN + TRIM_A_VALUE * values).min(self.trim.end - self.trim.start);
        let mut write = Write { seq, blob, trim: self.trim.start..self.trim.start + trimmed, ..Write::default() };
        let ended: Vec<CatalogChange> = accepted.iter().flat_map(forgotten_transactions).collect();
        write.catalog.extend(&ended);
        for Accepted { request: Request { commit, upkeep, .. }, catalog, .. } in accepted {
            write.catalog.extend(&commit.catalog);
            write.catalog.extend(catalog);
            write.deleted_topics.extend(&commit.deleted_topics);
            let Some(upkeep) = upkeep.as_deref() else { continue };
            write.segments.extend(&upkeep.segments);
            write.removed.extend(&upkeep.removed);
            // The topic may have been deleted since the upkeep was decided. Nothing would remove the row then.
            let kept = upkeep.log_starts.iter().filter(|(partition, _)| !partition.is_deleted());
            // Another upkeep, or a client that deleted records, may have moved the start further.
            write.log_starts.extend(kept.map(|(partition, start)| (partition.place(), partition.start().max(*start))));
            write.sealed_to = upkeep.sealed_to.or(write.sealed_to);
        }
        self.store.write(&write)?;
        self.next_seq += values;
        self.trim.start += trimmed;
        Ok(seq)
    }

    /// Makes the commit's records visible, and wakes the readers that wait for them.
    fn publish(&mut self, seq: u64, blob: Bytes, runs: Vec<(Arc<Partition>, Run)>) {
        // The index memory of a run is counted too, so that a part of many tiny commits also reaches its maximum size.
        self.unsealed_bytes += (blob.len() + runs.len() * size_of::<Run>()) as u64;
        self.store.written(seq, blob);
        self.count(&runs);
        for (partition, run) in runs {
            partition.publish(run);
        }
    }

    /// Counts appended records and bytes by topic.
    fn count(&self, runs: &[(Arc<Partition>, Run)]) {
        let mut topics: HashMap<_, (&TopicName, u64, u64)> = HashMap::default();
        for (partition, run) in runs {
            let topic = topics.entry(partition.topic_id()).or_insert((&partition.name().topic, 0, 0));
            topic.1 += run.end.get().abs_diff(run.base.get());
            topic.2 += u64::from(run.at.len);
        }
        topics.into_values().for_each(|(name, records, bytes)| self.metrics.appended(name, records, bytes));
    }

    /// Applies the changes in memory and answers the requests. `seq` is the sequence number of the commit's blob, and
    /// `now_ms` the commit time of its offsets.
    fn answer(&mut self, seq: u64, accepted: Vec<Accepted>, now_ms: i64) {
        let mut dropped = Vec::new();
        let mut answers = Vec::with_capacity(accepted.len());
        for Accepted { request: Request { commit, upkeep, answer, _permit }, committed, .. } in accepted {
            for change in &commit.state {
                self.state.apply(change, seq);
            }
            for store in &commit.drop_state {
                self.state.drop_store(store, seq);
            }
            for change in &commit.offsets {
                let stored = |committed| StoredOffset { committed, committed_at_ms: Some(now_ms) };
                change.group.store_offset(change.topic.id(), change.partition, change.to.clone().map(stored));
            }
            for group in commit.drop_groups {
                group.clear_offsets();
                self.sealer.group_dropped(group.id());
                dropped.push(group);
            }
            if let Some(upkeep) = upkeep {
                self.publish_upkeep(*upkeep);
            }
            answers.push((answer, committed, _permit));
        }
        // Commits in the same blob may have added offsets to a dropped group again.
        dropped.iter().for_each(|group| self.domain.groups.remove(group));
        for (answer, committed, _permit) in answers {
            answer.send(Ok(committed));
        }
    }

    fn publish_upkeep(&mut self, upkeep: Upkeep) {
        self.trim.end = upkeep.sealed_to.unwrap_or(self.trim.end);
        // This comes before the answer, because the sealer then checks whether any are left.
        self.sealer.set_sealed_values(self.trim.end - self.trim.start);
        let _changing = self.store.registry().change();
        self.store.registry().added(&upkeep.segments);
        let mut is_less_in_use = false;
        for (partition, start) in &upkeep.log_starts {
            is_less_in_use |= partition.set_start(*start);
        }
        let has_changed = is_less_in_use || !upkeep.extents.is_empty() || !upkeep.removed.is_empty();
        for (partition, extents) in &upkeep.extents {
            match upkeep.sealed_to {
                Some(to) => partition.sealed(extents, to),
                None => partition.replace(extents),
            }
        }
        // This comes after the extents, so that readers find the new ones.
        self.store.registry().removed(&upkeep.removed);
        if has_changed {
            self.store.registry().touch();
        }
    }

    /// Fails all requests. Nothing is written after a failed commit, because the state on disk is unknown.
    fn fail(mut self, error: Arc<StoreError>, accepted: Vec<Accepted>) {
        tracing::error!(%error, "a commit failed: no more writes are accepted");
        self.store.fail(error.clone());
        self.failure.send_replace(Some(error.clone()));
        for Accepted { request, .. } in accepted {
            request.answer.send(Err(BrokerError::Storage(error.clone())));
        }
        while let Some(request) = self.set_aside.pop_front().or_else(|| self.queue.blocking_recv()) {
            request.answer.send(Err(BrokerError::Storage(error.clone())));
        }
    }
}

/// Wakes all threads that wait for the committer to end, whatever the outcome.
struct OnEnd(Arc<Store>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Returns an error if this commit must not be written.
fn check(commit: &Commit) -> Result<(), BrokerError> {
    if let Some(fence) = &commit.fence {
        fence.check(&commit.offsets)?;
    }
    let deleted = |topic: &TopicName| Err(BrokerError::UnknownTopic { topic: topic.as_str().to_owned() });
    for change in &commit.offsets {
        if change.topic.is_deleted() {
            return deleted(change.topic.name());
        }
        if let Some(expected) = change.expected {
            change.group.check_expected(change.topic.id(), change.partition, expected)?;
        }
    }
    for append in &commit.appends {
        if append.partition.is_deleted() {
            return deleted(&append.partition.name().topic);
        }
    }
    Ok(())
}

/// Returns the base offsets of the commit's batches if all of them are already stored or accepted in this group.
fn stored_before(commit: &Commit) -> Result<Option<Committed>, BrokerError> {
    let mut base_offsets = Vec::new();
    for (index, append) in commit.appends.iter().enumerate() {
        let verdict = append.partition.producers().check_request(append.partition.name(), &append.batches)?;
        let elsewhere = || commit.appends[..index].iter().any(|other| Arc::ptr_eq(&other.partition, &append.partition));
        match verdict {
            Verdict::NotIdempotent => {}
            _ if elsewhere() => {
                let reason = format!("{} has two appends by one producer in one commit", append.partition.name());
                return Err(BrokerError::Protocol(reason));
            }
            Verdict::New => {}
            Verdict::Duplicate { base_offset } => base_offsets.push(base_offset),
        }
    }
    match base_offsets.len() {
        0 => Ok(None),
        stored if stored == commit.appends.len() => Ok(Some(Committed { base_offsets })),
        stored => Err(BrokerError::Protocol(format!(
            "{stored} of {} appends of one commit are stored already",
            commit.appends.len()
        ))),
    }
}

/// Returns the catalog's entries of aborted transactions that are no longer needed, because their records are before the
/// log start offsets that upkeep sets.
fn forgotten_transactions(accepted: &Accepted) -> Vec<CatalogChange> {
    let log_starts = accepted.request.upkeep.iter().flat_map(|upkeep| &upkeep.log_starts);
    let entries = log_starts.flat_map(|(partition, start)| {
        let place = partition.place();
        let forgotten = partition.aborted_before(*start).into_iter();
        forgotten.map(move |aborted| CatalogChange::remove(aborted_key(place, aborted.last)))
    });
    entries.collect()
}

/// Assigns offsets. Also returns the changes of the catalog that follow from the batches: those of transactions.
fn assign(commit: &Commit, idle_ms: i64) -> (Committed, Vec<CatalogChange>) {
    let mut catalog = Vec::new();
    for change in &commit.offsets {
        change.group.accept_offset(change.topic.id(), change.partition, change.to.as_ref());
        change.group.set_active(idle_ms);
    }
    let base_offsets = commit.appends.iter().map(|append| {
        let records = append.batches.iter().map(|batch| u64::from(batch.record_count())).sum();
        let first = append.partition.assign(records);
        let (mut producers, mut base_offset) = (append.partition.producers(), first);
        for batch in &append.batches {
            if batch.is_transactional() && append.partition.set_transactional() {
                catalog.push(CatalogChange::put(transactional_key(append.partition.place()), Vec::new()));
            }
            if let Some(transition) = producers.accept(batch, base_offset, idle_ms) {
                let is_abort = batch.transaction_end() == Some(TransactionEnd::Abort);
                let aborted = append.partition.accept_transition(base_offset, transition, is_abort);
                catalog.extend(aborted.map(|aborted| {
                    CatalogChange::put(aborted_key(append.partition.place(), aborted.last), aborted_value(&aborted))
                }));
            }
            base_offset = base_offset.plus(u64::from(batch.record_count()));
        }
        first
    });
    let base_offsets = base_offsets.collect();
    (Committed { base_offsets }, catalog)
}

/// Returns each partition's batches with their base offsets, with partitions in order of first appearance.
#[allow(clippy::type_complexity)]
fn by_partition(accepted: &[Accepted]) -> Vec<(Arc<Partition>, Vec<(Offset, &RecordBatch)>)> {
    let mut places: HashMap<*const Partition, usize> = HashMap::default();
    let mut grouped: Vec<(Arc<Partition>, Vec<(Offset, &RecordBatch)>)> = Vec::new();
    for Accepted { request, committed, .. } in accepted {
        for (append, &first) in request.commit.appends.iter().zip(&committed.base_offsets) {
            if append.batches.is_empty() {
                continue;
            }
            let place = *places.entry(Arc::as_ptr(&append.partition)).or_insert_with(|| {
                grouped.push((append.partition.clone(), Vec::new()));
                grouped.len() - 1
            });
            let mut base = first;
            for batch in &append.batches {
                grouped[place].1.push((base, batch));
                base = base.plus(u64::from(batch.record_count()));
            }
        }
    }
    grouped
}

/// A panic of the committer must stop the server like a failed disk does, and not leave it hanging.
struct OnPanic<'a> {
    store: &'a Store,
    failure: &'a watch::Sender<Option<Arc<StoreError>>>,
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.store.fail(Arc::new(StoreError::panicked("the committer")));
            self.failure.send_replace(self.store.failure());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use millstream_record::{BatchBuilder, Compression};
    use prometheus_client::registry::Registry;

    use super::super::commit::Append;
    use super::*;
    use crate::clock::SystemClock;
    use crate::log::topic::TopicSettings;
    use crate::store::StoreOptions;
    use crate::{Broker, BrokerSettings};

    const JOURNAL_BYTES: u64 = 1 << 20;

    async fn open(data: &std::path::Path) -> (Broker, Arc<Partition>) {
        let settings = BrokerSettings { journal_bytes_max: JOURNAL_BYTES, ..BrokerSettings::default() };
        let clock = Arc::new(SystemClock);
        let broker = Broker::open(data, settings, StoreOptions::default(), clock, &mut Registry::default()).unwrap();
        let name = TopicName::new("t").unwrap();
        let topic = broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap();
        (broker, topic.partitions()[0].clone())
    }

    async fn append(broker: &Broker, partition: &Arc<Partition>, bytes: usize) {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(0, None, Some(&vec![b'v'; bytes]), []);
        let append = Append { partition: partition.clone(), batches: vec![builder.finish().unwrap()] };
        broker.commit(Commit { appends: vec![append], ..Commit::default() }).await.unwrap().await.unwrap();
    }

    async fn stop(broker: Broker) {
        tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
    }

    #[tokio::test]
    async fn values_that_are_sealed_are_removed_by_the_commits_that_follow() {
        // Two full values, and one with the rest of the bytes.
        const VALUES_A_COMMIT: u64 = 3;
        let data = tempfile::tempdir().unwrap();
        let (broker, partition) = open(data.path()).await;
        let part = VALUES_A_COMMIT * (JOURNAL_BYTES / 2 / (2 * CHUNK_BYTES as u64) + 1);
        let mut most_sealed = 0;
        for _ in 0..200 {
            append(&broker, &partition, 2 * CHUNK_BYTES).await;
            let (sealed, unsealed) = broker.store().journal_values();
            assert!(unsealed <= 2 * part + 2 * VALUES_A_COMMIT, "{unsealed} values are not sealed");
            // The sealed values of the previous part are removed before the next part is sealed, because a commit
            // removes twice as many values as it adds.
            assert!(
                sealed <= part + 2 * VALUES_A_COMMIT,
                "{sealed} sealed values are left of a part of at most {part}"
            );
            most_sealed = most_sealed.max(sealed);
        }
        assert!(most_sealed > 0, "sealed values are removed gradually");
        stop(broker).await;
    }

    #[tokio::test]
    async fn values_that_are_sealed_are_removed_when_nobody_writes() {
        let data = tempfile::tempdir().unwrap();
        let (broker, partition) = open(data.path()).await;
        // One commit that is a part of the journal by itself, with more values than a commit removes.
        append(&broker, &partition, 10 * CHUNK_BYTES).await;
        let limit = Instant::now() + Duration::from_secs(120);
        while broker.store().journal_values() != (0, 0) {
            assert!(Instant::now() < limit, "sealed and other values are left: {:?}", broker.store().journal_values());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(broker.store().size().segments > 0);
        stop(broker).await;
    }
}
