//! A workload that uses every part of the broker, with a model of what the broker must hold, for tests that break the
//! disk below it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use millstream_broker::clock::{Clock, SystemClock};
use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::log::commit::{Append, Commit, Fence, OffsetChange};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::producers::BATCHES_REMEMBERED;
use millstream_broker::log::queue::Receipt;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::{Cleanup, TopicSettings};
use millstream_broker::store::StateChange;
use millstream_broker::store::{StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerError, BrokerSettings, GroupId, Offset, TopicName};
use millstream_record::{BatchBuilder, Column, Compression, Limits, RecordBatch, split_batches};
use prometheus_client::registry::Registry;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::disk::Disk;
use crate::running::Limit;

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Runs a case for each seed, on two threads, and prints the seed that failed.
pub fn for_seeds(cases: u64, case: impl Fn(u64) + Sync) {
    for_seeds_until(cases, || true, case);
}

/// Like [`for_seeds`], but continues with further seeds until `enough` returns true, because on a busy machine few
/// cases may meet what depends on thread scheduling. If `MILLSTREAM_TEST_SEED` is set, only that seed runs.
///
/// # Panics
/// Panics if a case panics, and if `enough` is not true within two minutes after the required cases.
pub fn for_seeds_until(cases: u64, enough: impl Fn() -> bool + Sync, case: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let count = cases * number_of("MILLSTREAM_TEST_CASES").unwrap_or(1);
    let one = number_of("MILLSTREAM_TEST_SEED");
    let (first, count) = one.map_or((0, count), |seed| (seed, 1));
    // The time starts with the first additional seed.
    let limit = OnceLock::new();
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                if one.is_some() || enough() {
                    return;
                }
                limit.get_or_init(|| Limit::new("the cases met enough of what they look for")).check();
            }
            let seed = first + number;
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| case(seed))) {
                failed.store(true, Ordering::Relaxed);
                eprintln!("the case failed with MILLSTREAM_TEST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub fn offset(number: usize) -> Offset {
    Offset::new(number as i64).unwrap()
}

// ---- the steps of a workload

pub const TOPICS: [&str; 3] = ["a", "b", "c"];
const CONSUMERS: [&str; 2] = ["readers", "others"];
pub const PIPELINE: &str = "p";
const PRODUCERS: Range<i64> = 0..3;
pub const STORES: [&str; 2] = ["p/count", "p/last"];
/// Number of partitions of each state store.
const NUMBERS: u32 = 3;
/// Maximum number of commits in flight.
const IN_FLIGHT_MAX: usize = 6;

/// Topics whose records are cleaned: the second topic is compacted by key, and the third is limited to a number of
/// bytes.
const COMPACTED: usize = 1;
const RETAINED: usize = 2;
const RETENTION_BYTES: u64 = JOURNAL_BYTES_MAX;
const JOURNAL_BYTES_MAX: u64 = 40_000;

/// Timestamp, key and value of a record.
pub type Held = (i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// A step of the workload, which happens completely or not at all.
#[derive(Clone, Debug)]
enum Step {
    CreateTopic { topic: usize, partitions: usize },
    DeleteTopic { topic: usize },
    Commit(CommitStep),
    DropGroup { group: &'static str },
    DropState { store: usize },
}

/// The records that a partition receives in a commit.
#[derive(Clone, Debug)]
struct Appended {
    place: Place,
    /// The records of each batch.
    batches: Vec<Vec<Held>>,
    /// The producer of the batches, if they have sequence numbers, and whether a new epoch begins with them.
    producer: Option<(i64, bool)>,
}

/// A store, one of its partitions, a key, and the key's accumulator.
type Changed = (usize, u32, Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, Debug, Default)]
struct CommitStep {
    appends: Vec<Appended>,
    compression: Option<Compression>,
    offsets: Vec<(&'static str, (usize, usize), usize)>,
    /// The step of the pipeline: the partition that it reads, and its committed offset afterwards.
    step: Option<((usize, usize), usize)>,
    /// Store, partition, key and accumulator of each change.
    state: Vec<Changed>,
}

pub type Place = (usize, usize);
pub type Accumulators = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything that a broker holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Whether records are cleaned. If so, this model also contains the records that were cleaned.
    cleaned: bool,
    /// Whether compaction may remove the last record of a key if it is a tombstone.
    tombstones_may_go: bool,
    pub topics: BTreeMap<usize, Vec<Vec<Held>>>,
    pub offsets: BTreeMap<(String, Place), usize>,
    /// Accumulators by store and partition. Empty partitions are left out.
    pub state: BTreeMap<(usize, u32), Accumulators>,
    /// Batches of each producer, by partition and producer.
    producers: BTreeMap<(Place, i64), Sent>,
}

/// The batches of a producer's newest epoch in a partition.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sent {
    epoch: i16,
    /// The first sequence number and the offsets of each batch.
    batches: Vec<(usize, Range<usize>)>,
}

impl Sent {
    /// Returns the next sequence number.
    fn next(&self) -> usize {
        self.batches.last().map_or(0, |(first, offsets)| first + offsets.len())
    }

    fn begin_epoch(&mut self) {
        *self = Self { epoch: self.epoch + 1, batches: Vec::new() };
    }

    /// Adds a batch that was read from the broker.
    fn add(&mut self, batch: &RecordBatch) {
        if batch.producer_epoch() > self.epoch {
            *self = Self { epoch: batch.producer_epoch(), batches: Vec::new() };
        }
        let first = batch.base_sequence() as usize;
        assert_eq!(first, self.next(), "the sequence of a producer must have no gaps");
        self.batches.push((first, batch.base_offset() as usize..batch.next_offset() as usize));
    }
}

impl Contents {
    /// Lets each producer begin a new epoch, as a producer does after it was told of a gap in its sequence.
    pub fn begin_epochs(&mut self) {
        self.producers.values_mut().for_each(Sent::begin_epoch);
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::CreateTopic { topic, partitions } => {
                self.topics.insert(*topic, vec![Vec::new(); *partitions]);
            }
            Step::DeleteTopic { topic } => {
                self.topics.remove(topic);
                self.offsets.retain(|(_, (of, _)), _| of != topic);
                self.producers.retain(|((of, _), _), _| of != topic);
            }
            Step::DropGroup { group } => self.offsets.retain(|(of, _), _| of != group),
            Step::DropState { store } => self.state.retain(|(of, _), _| of != store),
            Step::Commit(commit) => {
                for Appended { place, batches, producer } in &commit.appends {
                    let partition = &mut self.topics.get_mut(&place.0).unwrap()[place.1];
                    let mut sent = producer.map(|(id, _)| self.producers.entry((*place, id)).or_default());
                    if let (Some(sent), Some((_, true))) = (&mut sent, producer) {
                        sent.begin_epoch();
                    }
                    for records in batches {
                        let base = partition.len();
                        partition.extend(records.iter().cloned());
                        if let Some(sent) = &mut sent {
                            sent.batches.push((sent.next(), base..partition.len()));
                        }
                    }
                }
                for (group, place, at) in &commit.offsets {
                    self.offsets.insert(((*group).to_owned(), *place), *at);
                }
                if let Some((place, at)) = commit.step {
                    self.offsets.insert((PIPELINE.to_owned(), place), at);
                }
                for (store, number, key, accumulator) in &commit.state {
                    let accumulators = self.state.entry((*store, *number)).or_default();
                    match accumulator {
                        Some(new) => accumulators.insert(key.clone(), new.clone()),
                        None => accumulators.remove(key),
                    };
                    if accumulators.is_empty() {
                        self.state.remove(&(*store, *number));
                    }
                }
            }
        }
    }

    fn place(&self, random: &mut StdRng) -> Option<(Place, usize)> {
        let topic = *self.topics.keys().nth(random.random_range(0..self.topics.len().max(1)))?;
        let partitions = &self.topics[&topic];
        let partition = random.random_range(0..partitions.len());
        Some(((topic, partition), partitions[partition].len()))
    }

    /// Returns the next step of a workload.
    fn next_step(&self, random: &mut StdRng) -> Step {
        let topic = random.random_range(0..TOPICS.len());
        if self.topics.is_empty() || (!self.topics.contains_key(&topic) && random.random_bool(0.5)) {
            return Step::CreateTopic { topic, partitions: random.random_range(1..4) };
        }
        match random.random_range(0..100) {
            0..2 if self.topics.contains_key(&topic) => Step::DeleteTopic { topic },
            2..4 => Step::DropGroup { group: CONSUMERS[random.random_range(0..CONSUMERS.len())] },
            4..6 => Step::DropState { store: random.random_range(0..STORES.len()) },
            _ => Step::Commit(self.next_commit(random)),
        }
    }

    fn next_commit(&self, random: &mut StdRng) -> CommitStep {
        let mut commit =
            CommitStep { compression: random.random_bool(0.5).then_some(Compression::Lz4), ..CommitStep::default() };
        for _ in 0..random.random_range(0..4) {
            let Some((place, _)) = self.place(random) else { continue };
            let mut batches: Vec<_> = (0..random.random_range(1..4)).map(|_| records(random)).collect();
            if self.is_compacted(place.0) {
                batches.iter_mut().flatten().for_each(one_of_few_keys);
            }
            // In one commit, a partition takes at most one append of a producer, and no other append before it.
            let numbered = random.random_bool(0.6) && commit.appends.iter().all(|before| before.place != place);
            let producer = numbered.then(|| (random.random_range(PRODUCERS), random.random_bool(0.1)));
            commit.appends.push(Appended { place, batches, producer });
        }
        if random.random_bool(0.4)
            && let Some((place, end)) = self.place(random)
        {
            let group = CONSUMERS[random.random_range(0..CONSUMERS.len())];
            commit.offsets.push((group, place, random.random_range(0..=end)));
        }
        if random.random_bool(0.6)
            && let Some((place, end)) = self.place(random)
        {
            let current = self.offsets.get(&(PIPELINE.to_owned(), place)).copied().unwrap_or(0);
            commit.step = Some((place, random.random_range(current.min(end)..=end)));
        }
        // A key changes at most once in a commit, like that of an aggregate.
        let mut changed = BTreeMap::new();
        for _ in 0..random.random_range(0..5) {
            let key =
                (random.random_range(0..STORES.len()), random.random_range(0..NUMBERS), random.random_range(0..12u8));
            let len = random.random_range(0..20);
            changed.insert(key, random.random_bool(0.8).then(|| bytes(random, len)));
        }
        let state = changed.into_iter().map(|((store, number, key), value)| (store, number, vec![key], value));
        commit.state = state.collect();
        commit
    }

    fn is_compacted(&self, topic: usize) -> bool {
        self.cleaned && topic == COMPACTED
    }

    fn is_retained(&self, topic: usize) -> bool {
        self.cleaned && topic == RETAINED
    }

    fn settings(&self, topic: usize) -> TopicSettings {
        TopicSettings {
            cleanup: if self.is_compacted(topic) { Cleanup::Compact } else { Cleanup::Delete },
            retention_bytes: self.is_retained(topic).then_some(RETENTION_BYTES),
            ..TopicSettings::default()
        }
    }

    /// Returns the base offset of each append of a step.
    fn base_offsets(&self, step: &Step) -> Vec<Offset> {
        let Step::Commit(commit) = step else { return Vec::new() };
        let mut ends = BTreeMap::new();
        let base_offset = |append: &Appended| {
            let (topic, partition) = append.place;
            let end = ends.entry(append.place).or_insert_with(|| self.topics[&topic][partition].len());
            let base_offset = offset(*end);
            *end += append.batches.iter().map(Vec::len).sum::<usize>();
            base_offset
        };
        commit.appends.iter().map(base_offset).collect()
    }
}

impl CommitStep {
    /// Returns whether the broker recognizes all its records if they are sent again.
    fn is_idempotent(&self) -> bool {
        !self.appends.is_empty() && self.appends.iter().all(|append| append.producer.is_some())
    }
}

fn one_of_few_keys((_, key, _): &mut Held) {
    key.get_or_insert_with(|| b"none".to_vec()).truncate(1);
}

fn bytes(random: &mut StdRng, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.random_range(b'a'..=b'p')).collect()
}

fn records(random: &mut StdRng) -> Vec<Held> {
    // Some batches are larger than a value of the journal.
    let len = match random.random_range(0..40) {
        0 => 70_000,
        1..4 => 6_000,
        _ => random.random_range(0..300),
    };
    let count = if len > 1_000 { 1 } else { random.random_range(1..6) };
    let mut record = || {
        let key = random.random_bool(0.7).then(|| bytes(random, 3));
        let value = random.random_bool(0.9).then(|| bytes(random, len));
        (random.random_range(0..1_000), key, value)
    };
    (0..count).map(|_| record()).collect()
}

/// Producer, epoch and first sequence number.
type Numbers = (i64, i16, usize);

fn batch(records: &[Held], compression: Compression, numbers: Option<Numbers>) -> RecordBatch {
    let mut builder = BatchBuilder::new(compression);
    if let Some((id, epoch, first)) = numbers {
        builder.set_producer(id, epoch, first as i32);
    }
    for (timestamp_ms, key, value) in records {
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), []);
    }
    builder.finish().unwrap()
}

// ---- running a workload

/// The steps of a workload that were requested from a broker, with a model of the result.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// What the broker held at the last check, the steps requested since then in their order, and how many of these
    /// were acknowledged.
    there: Contents,
    asked: Vec<Step>,
    acked: usize,
    /// What the broker holds if all requested steps took effect.
    pub ahead: Contents,
    /// Number of records removed by compaction and by retention, counted at each check.
    pub cleaned: [usize; 2],
}

/// Opens a broker with this disk reserve: 0 for a disk that runs full, or a small stand-in for the default reserve.
pub fn open_with_reserve(data: &Path, options: StoreOptions, disk_reserve_bytes: u64) -> Broker {
    let settings = BrokerSettings { disk_reserve_bytes: Some(disk_reserve_bytes), ..settings() };
    open_at(Arc::new(SystemClock), settings, data, options).unwrap()
}

/// Settings with a journal so small that sealing is always in progress.
pub fn settings() -> BrokerSettings {
    BrokerSettings { journal_bytes_max: JOURNAL_BYTES_MAX, ..BrokerSettings::default() }
}

pub fn open_with(data: &Path, options: StoreOptions) -> Result<Broker, StoreError> {
    open_at(Arc::new(SystemClock), settings(), data, options)
}

pub fn open_at(
    clock: Arc<dyn Clock>,
    settings: BrokerSettings,
    data: &Path,
    options: StoreOptions,
) -> Result<Broker, StoreError> {
    let options = StoreOptions { tail_bytes_max: Some(10_000), ..options };
    Broker::open(data, settings, options, clock, &mut Registry::default())
}

fn group(broker: &Broker, name: &str) -> Arc<Group> {
    let kind = if name == PIPELINE { GroupKind::Pipeline } else { GroupKind::Consumer };
    broker.groups().get_or_create(&GroupId::new(name).unwrap(), kind).unwrap()
}

pub fn partition(broker: &Broker, (topic, partition): Place) -> Arc<Partition> {
    broker.topic(TOPICS[topic]).unwrap().partition(partition as u32).unwrap().clone()
}

/// Returns a change of one key in one partition of a store.
pub fn state_change(store: &str, partition: u32, key: &[u8], accumulator: Option<&[u8]>, added: i64) -> StateChange {
    let (mut keys, mut accumulators) = (Column::default(), Column::default());
    keys.push(Some(key));
    accumulators.push(accumulator);
    StateChange { store: store.into(), partition, keys, accumulators, added, ..StateChange::default() }
}

fn to_commit(broker: &Broker, before: &Contents, step: &CommitStep) -> Commit {
    let compression = step.compression.unwrap_or(Compression::None);
    let mut commit = Commit::default();
    for Appended { place, batches, producer } in &step.appends {
        let mut numbers = producer.map(|(id, begins)| {
            let mut sent = before.producers.get(&(*place, id)).cloned().unwrap_or_default();
            if begins {
                sent.begin_epoch();
            }
            (id, sent.epoch, sent.next())
        });
        let to_batch = |records: &Vec<Held>| {
            let batch = batch(records, compression, numbers);
            numbers = numbers.map(|(id, epoch, first)| (id, epoch, first + records.len()));
            batch
        };
        let batches = batches.iter().map(to_batch).collect();
        commit.appends.push(Append { partition: partition(broker, *place), batches });
    }
    let change = |name: &str, place: Place, at, expected| {
        let (topic, partition) = (broker.topic(TOPICS[place.0]).unwrap(), place.1 as u32);
        OffsetChange { group: group(broker, name), topic, partition, to: Some(offset(at).into()), expected }
    };
    for (name, place, at) in &step.offsets {
        commit.offsets.push(change(name, *place, *at, None));
    }
    if let Some((place, at)) = step.step {
        let expected = before.offsets.get(&(PIPELINE.to_owned(), place)).copied().map(offset);
        commit.offsets.push(change(PIPELINE, place, at, Some(expected)));
        let group = group(broker, PIPELINE);
        commit.fence = Some(Fence::Generation { generation: group.generation(), group });
    }
    for (store, number, key, accumulator) in &step.state {
        let was_there = before.state.get(&(*store, *number)).is_some_and(|keys| keys.contains_key(key));
        let added = i64::from(accumulator.is_some()) - i64::from(was_there);
        commit.state.push(state_change(STORES[*store], *number, key, accumulator.as_deref(), added));
    }
    commit
}

impl Workload {
    /// Creates a workload that continues from these contents.
    pub fn of(there: Contents) -> Self {
        Self { ahead: there.clone(), there, ..Self::default() }
    }

    /// Creates a workload with one compacted topic and one topic with retention.
    pub fn cleaned() -> Self {
        Self::of(Contents { cleaned: true, ..Contents::default() })
    }

    /// Returns the workload against which to check a copy that was started when this workload was `before` and taken
    /// while it ran. The copy contains everything that was acknowledged at `before`, and a prefix of what was requested
    /// since.
    pub fn copied_since(&self, before: &Self) -> Self {
        Self { acked: before.acked, ..self.clone() }
    }

    /// Allows that tombstones are removed, because the clock may have jumped past their retention time.
    #[must_use]
    pub fn with_tombstones_that_may_go(mut self) -> Self {
        self.there.tombstones_may_go = true;
        self.ahead.tombstones_may_go = true;
        self
    }

    /// Runs this many steps, or stops at the first step that fails.
    pub async fn run(&mut self, broker: &Broker, random: &mut StdRng, steps: usize) -> Result<(), BrokerError> {
        let mut in_flight = VecDeque::new();
        for _ in 0..steps {
            let step = self.ahead.next_step(random);
            let alone = !matches!(step, Step::Commit(_));
            let in_flight_max = if alone { 0 } else { random.random_range(0..IN_FLIGHT_MAX) };
            self.wait(&mut in_flight, in_flight_max).await?;
            self.asked.push(step.clone());
            let base_offsets = self.ahead.base_offsets(&step);
            match self.ask(broker, &step).await? {
                Some(receipt) => {
                    in_flight.push_back(InFlight { receipt, base_offsets: base_offsets.clone(), again: false })
                }
                None => self.acked += 1,
            }
            // Sends the records again, as a producer does after a timeout.
            if let Step::Commit(commit) = &step
                && commit.is_idempotent()
                && random.random_bool(0.3)
            {
                let Commit { appends, .. } = to_commit(broker, &self.ahead, commit);
                let receipt = broker.commit(Commit { appends, ..Commit::default() }).await?;
                in_flight.push_back(InFlight { receipt, base_offsets, again: true });
            }
            if alone {
                self.wait(&mut in_flight, 0).await?;
            }
            self.ahead.apply(&step);
        }
        self.wait(&mut in_flight, 0).await
    }

    /// Queues a step. Returns `None` if the step has already completed.
    async fn ask(&self, broker: &Broker, step: &Step) -> Result<Option<Receipt>, BrokerError> {
        let commit = match step {
            Step::CreateTopic { topic, partitions } => {
                let name = TopicName::new(TOPICS[*topic]).unwrap();
                broker.create_topic(&name, *partitions as u32, self.ahead.settings(*topic), false).await?;
                return Ok(None);
            }
            Step::DeleteTopic { topic } => {
                broker.delete_topic(&TopicName::new(TOPICS[*topic]).unwrap()).await?;
                return Ok(None);
            }
            Step::DropGroup { group: name } => Commit { drop_groups: vec![group(broker, name)], ..Commit::default() },
            Step::DropState { store } => Commit { drop_state: vec![STORES[*store].into()], ..Commit::default() },
            Step::Commit(commit) => to_commit(broker, &self.ahead, commit),
        };
        broker.commit(commit).await.map(Some)
    }

    /// Runs one step and waits for it. A full broker refuses the step, and then no part of it took effect.
    async fn run_one(&mut self, broker: &Broker, random: &mut StdRng) -> Result<(), BrokerError> {
        let step = self.ahead.next_step(random);
        let done = match self.ask(broker, &step).await {
            Ok(Some(receipt)) => receipt.await.map(drop),
            asked => asked.map(drop),
        };
        if !matches!(done, Err(BrokerError::DiskFull { .. })) {
            self.asked.push(step.clone());
        }
        if done.is_ok() {
            self.acked += 1;
            self.ahead.apply(&step);
        }
        done
    }

    /// Runs steps until the broker refuses one.
    pub async fn run_until_refused(&mut self, broker: &Broker, random: &mut StdRng) -> BrokerError {
        for _ in 0..10_000 {
            if let Err(error) = self.run_one(broker, random).await {
                return error;
            }
        }
        panic!("the broker does not refuse any step, although the disk should be full");
    }

    /// Waits until at most `max` commits are in flight. After a failed commit, no later one may succeed.
    async fn wait(&mut self, in_flight: &mut VecDeque<InFlight>, max: usize) -> Result<(), BrokerError> {
        while in_flight.len() > max {
            let InFlight { receipt, base_offsets, again } = in_flight.pop_front().unwrap();
            match receipt.await {
                Ok(committed) => assert_eq!(committed.base_offsets, base_offsets),
                Err(error) => {
                    for later in in_flight.drain(..) {
                        assert!(
                            later.receipt.await.is_err(),
                            "a commit was acknowledged after an earlier one had failed"
                        );
                    }
                    return Err(error);
                }
            }
            self.acked += usize::from(!again);
        }
        Ok(())
    }

    /// Like [`Workload::check`], after a failure: steps that failed are not visible, but they may exist when the store
    /// is opened again.
    pub async fn check_acked(&mut self, broker: &Broker) {
        let failed = self.asked.split_off(self.acked);
        self.check(broker).await;
        self.asked = failed;
    }

    /// Like [`Workload::check`], on a disk that may break. Returns true if the broker was read and passed the check,
    /// and false if the disk was struck meanwhile.
    pub async fn check_unless_struck(&mut self, broker: &Broker, disk: &Disk) -> bool {
        match holdings(broker).await {
            Ok(found) => self.check_holdings(broker, found).await,
            Err(error) => {
                assert!(disk.struck(), "reading failed although the disk met no fault: {error}");
                return false;
            }
        }
        true
    }

    /// Returns the number of records that are gone although neither compaction nor retention explains it. The remaining
    /// records must be correct.
    pub async fn missing(&self, broker: &Broker) -> i64 {
        let mut expected = self.there.clone();
        self.asked.iter().for_each(|step| expected.apply(step));
        let mut missing = 0;
        for topic in broker.topics() {
            let number = TOPICS.iter().position(|name| *name == topic.name().as_str()).unwrap();
            for (at, partition) in topic.partitions().iter().enumerate() {
                let records = &expected.topics[&number][at];
                let ReadAll { held, gone, kept_bytes, .. } = read_all(broker, partition).await.unwrap();
                assert_eq!(held.len(), records.len(), "offsets must not be reused");
                for (at, record) in held.iter().enumerate().filter(|(at, _)| !gone.contains(at)) {
                    assert_eq!(*record, records[at], "{} at offset {at}", partition.name());
                }
                let first_kept = usize::try_from(partition.start().get()).unwrap();
                let is_missing = |at: &&usize| {
                    **at >= first_kept && !may_be_gone(&expected, (number, 0), records, &[**at], kept_bytes)
                };
                missing += gone.iter().filter(is_missing).count() as i64;
            }
        }
        missing
    }

    /// Checks that the broker holds the previously known contents and a prefix of the steps requested since, including
    /// all acknowledged steps, and that it remembers the producers accordingly. Afterwards, what it holds is known.
    pub async fn check(&mut self, broker: &Broker) {
        let found = holdings(broker).await.unwrap();
        self.check_holdings(broker, found).await;
    }

    async fn check_holdings(&mut self, broker: &Broker, found: Holdings) {
        let mut expected = self.there.clone();
        self.asked[..self.acked].iter().for_each(|step| expected.apply(step));
        let least = expected.clone();
        let mut more = self.asked[self.acked..].iter();
        while !found.is_left_of(&expected) {
            match more.next() {
                Some(step) => expected.apply(step),
                None => {
                    let (acked, asked) = (self.acked, self.asked.len());
                    panic!(
                        "the broker does not hold the acknowledged steps ({acked} of {asked}) and a prefix of the others: {}",
                        difference(&found.contents, &least)
                    );
                }
            }
        }
        check_producers(broker, &expected).await;
        let mut cleaned = self.cleaned;
        for ((topic, _), gone) in &found.gone {
            cleaned[usize::from(*topic == RETAINED)] += gone.len();
        }
        *self = Self { there: expected.clone(), ahead: expected, cleaned, ..Self::default() };
    }
}

/// A requested commit.
struct InFlight {
    receipt: Receipt,
    /// The expected base offset of each append.
    base_offsets: Vec<Offset>,
    /// Whether the same records were sent before.
    again: bool,
}

/// Checks that a producer that sends a batch again receives the batch's offset, and that a producer that skips sequence
/// numbers is refused. Neither request stores anything. The check ends at a broker that has failed.
async fn check_producers(broker: &Broker, holds: &Contents) {
    let ask = async |place, batch| {
        let appends = vec![Append { partition: partition(broker, place), batches: vec![batch] }];
        match broker.commit(Commit { appends, ..Commit::default() }).await {
            Ok(receipt) => receipt.await.map(|committed| committed.base_offsets),
            Err(error) => Err(error),
        }
    };
    for ((place, id), sent) in &holds.producers {
        let records = &holds.topics[&place.0][place.1];
        let again = |first, offsets: &Range<usize>| {
            batch(&records[offsets.clone()], Compression::Zstd, Some((*id, sent.epoch, first)))
        };
        let remembered = sent.batches.len().saturating_sub(BATCHES_REMEMBERED);
        for (number, (first, offsets)) in sent.batches.iter().enumerate().skip(remembered.saturating_sub(1)) {
            match ask(*place, again(*first, offsets)).await {
                Ok(base_offsets) => {
                    assert!(
                        number >= remembered,
                        "{place:?}, producer {id}: a batch that is too old to be remembered was accepted"
                    );
                    assert_eq!(base_offsets, [offset(offsets.start)], "{place:?}, producer {id}");
                }
                Err(BrokerError::DuplicateSequence { .. }) if number < remembered => {}
                Err(BrokerError::Storage(_)) => return,
                Err(error) => panic!("{place:?}, producer {id}, batch {number} of {sent:?}: {error}"),
            }
        }
        if let Some((_, offsets)) = sent.batches.last() {
            match ask(*place, again(sent.next() + 1, offsets)).await {
                Err(BrokerError::OutOfOrderSequence { expected, .. }) => assert_eq!(expected, sent.next() as i32),
                Err(BrokerError::Storage(_)) => return,
                other => panic!("{place:?}, producer {id}: a gap in the sequence was answered with {other:?}"),
            }
        }
        assert_eq!(partition(broker, *place).end(), offset(records.len()), "no record may be stored twice");
    }
}

pub fn difference(found: &Contents, expected: &Contents) -> String {
    let ends = |of: &Contents| -> Vec<_> {
        of.topics.iter().map(|(topic, of)| (TOPICS[*topic], of.iter().map(Vec::len).collect::<Vec<_>>())).collect()
    };
    format!(
        "records {:?}, expected {:?}; offsets {:?}, expected {:?}; state {:?}, expected {:?}",
        ends(found),
        ends(expected),
        found.offsets,
        expected.offsets,
        found.state,
        expected.state
    )
}

/// Everything that a broker holds, some of which may have been cleaned.
struct Holdings {
    /// The contents. Cleaned records are empty.
    contents: Contents,
    /// The offsets of the cleaned records.
    gone: BTreeMap<Place, Vec<usize>>,
    /// Total size of the remaining batches, in bytes.
    kept_bytes: BTreeMap<Place, u64>,
}

impl Holdings {
    /// Returns whether these holdings are what remains of a model's contents after cleaning.
    fn is_left_of(&self, all: &Contents) -> bool {
        let mut expected = all.clone();
        for (place, gone) in &self.gone {
            let Some(records) = expected.topics.get_mut(&place.0).and_then(|topic| topic.get_mut(place.1)) else {
                return false;
            };
            if gone.last().is_some_and(|last| *last >= records.len())
                || !may_be_gone(all, *place, records, gone, self.kept_bytes[place])
            {
                return false;
            }
            gone.iter().for_each(|at| records[*at] = Held::default());
            // Without these records, the batches no longer show the producers' state; `check_producers` asks the
            // broker.
        }
        expected.cleaned = false;
        expected.tombstones_may_go = false;
        let mut found = self.contents.clone();
        found.producers.retain(|(place, _), _| !self.gone.contains_key(place));
        expected.producers.retain(|(place, _), _| !self.gone.contains_key(place));
        found == expected
    }
}

/// Returns whether compaction or retention may have removed the records at the offsets `gone`.
///
/// `kept_bytes` is the total compressed size of the remaining batches, in bytes.
fn may_be_gone(all: &Contents, (topic, _): Place, records: &[Held], gone: &[usize], kept_bytes: u64) -> bool {
    if all.is_retained(topic) {
        return gone.iter().enumerate().all(|(at, gone)| at == *gone) && kept_bytes >= RETENTION_BYTES;
    }
    let has_newer = |at: usize| records[at + 1..].iter().any(|(_, key, _)| *key == records[at].1);
    let is_due = |at: usize| all.tombstones_may_go && records[at].2.is_none();
    all.is_compacted(topic) && gone.iter().all(|at| has_newer(*at) || is_due(*at))
}

/// Reads everything that a broker holds. None of it may have been cleaned.
pub async fn contents(broker: &Broker) -> Contents {
    let Holdings { contents, gone, .. } = holdings(broker).await.unwrap();
    assert!(gone.is_empty(), "offsets must have no gaps");
    contents
}

/// Reads everything that a broker holds, and checks checksums and the number of keys in each store.
async fn holdings(broker: &Broker) -> Result<Holdings, BrokerError> {
    let (mut found, mut all_gone, mut all_kept_bytes) = (Contents::default(), BTreeMap::new(), BTreeMap::new());
    for topic in broker.topics() {
        let number = TOPICS.iter().position(|name| *name == topic.name().as_str()).unwrap();
        let mut partitions = Vec::new();
        for partition in topic.partitions() {
            let ReadAll { held, gone, kept_bytes, producers: sent } = read_all(broker, partition).await?;
            let place = (number, partitions.len());
            all_kept_bytes.insert(place, kept_bytes);
            partitions.push(held);
            if !gone.is_empty() {
                all_gone.insert(place, gone);
            }
            found.producers.extend(sent.into_iter().map(|(id, sent)| ((place, id), sent)));
        }
        found.topics.insert(number, partitions);
    }
    for name in CONSUMERS.into_iter().chain([PIPELINE]) {
        let Ok(group) = broker.groups().get(name) else { continue };
        for (id, partition, at) in group.all_committed() {
            let topics = broker.topics();
            let Some(topic) = topics.iter().find(|topic| topic.id() == id) else { continue };
            let topic = TOPICS.iter().position(|name| *name == topic.name().as_str()).unwrap();
            found.offsets.insert((name.to_owned(), (topic, partition as usize)), at.get() as usize);
        }
    }
    for (store, name) in STORES.into_iter().enumerate() {
        for number in 0..NUMBERS {
            let state = broker.state().partition(name, number);
            let entries: Accumulators = state.scan(b"", usize::MAX)?.into_iter().collect();
            assert_eq!(state.len(), entries.len(), "the number of keys of {name}, partition {number}, is wrong");
            if !entries.is_empty() {
                found.state.insert((store, number), entries);
            }
        }
    }
    Ok(Holdings { contents: found, gone: all_gone, kept_bytes: all_kept_bytes })
}

#[derive(Default)]
struct ReadAll {
    /// The records by offset. Cleaned records are empty.
    held: Vec<Held>,
    gone: Vec<usize>,
    /// Total size of the remaining batches, in bytes.
    kept_bytes: u64,
    producers: BTreeMap<i64, Sent>,
}

impl ReadAll {
    /// Marks all records from the current end up to `offset` as gone.
    fn skip_to(&mut self, offset: usize) {
        self.gone.extend(self.held.len()..offset);
        self.held.resize(self.held.len().max(offset), Held::default());
    }
}

async fn read_all(broker: &Broker, partition: &Arc<Partition>) -> Result<ReadAll, BrokerError> {
    let mut found = ReadAll::default();
    let mut from = partition.start();
    while from < partition.end() {
        let range = ReadRange { from, until: None, bytes_max: 30_000, one_at_least: true };
        let slice = match broker.read(partition, range).await {
            // Retention removed records before they could be read.
            Err(BrokerError::OffsetOutOfRange { start, .. }) if from < start => {
                (found, from) = (ReadAll::default(), start);
                continue;
            }
            read => read?,
        };
        for batch in slice.runs.iter().cloned().flat_map(split_batches).map(Result::unwrap) {
            for (at, record) in records_of(&batch) {
                assert!(at >= found.held.len(), "{}: offset {at} was read twice", partition.name());
                found.skip_to(at);
                found.held.push(record);
            }
            found.kept_bytes += batch.as_bytes().len() as u64;
            if batch.producer_id() >= 0 && found.gone.is_empty() {
                found.producers.entry(batch.producer_id()).or_default().add(&batch);
            }
        }
        assert!(slice.next > from, "a read of {} must advance", partition.name());
        found.skip_to(slice.next.get() as usize);
        from = slice.next;
    }
    found.skip_to(partition.end().get() as usize);
    Ok(found)
}

/// Returns the records of a batch with their offsets, after checking the batch's checksum.
pub fn records_of(batch: &RecordBatch) -> Vec<(usize, Held)> {
    batch.verify_crc().unwrap();
    let records = batch.records(&Limits::default()).unwrap();
    let held = |record: millstream_record::Record| {
        let (key, value) = (record.key.map(Bytes::into), record.value.map(Bytes::into));
        (usize::try_from(record.offset).unwrap(), (record.timestamp_ms, key, value))
    };
    records.iter().map(|view| held(records.to_record(&view.unwrap()))).collect()
}
