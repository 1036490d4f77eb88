//! Compares a broker with a model that consists of a few maps. After any sequence of operations, both must hold the
//! same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::broker::fetch::{Fetch, FetchFrom};
use millstream_broker::clock::SystemClock;
use millstream_broker::groups::{Group, GroupKind};
use millstream_broker::log::commit::{Append, Commit, Fence, OffsetChange};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::queue::Receipt;
use millstream_broker::log::reader::{ReadRange, Slice, View};
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::store::StateChange;
use millstream_broker::store::{StoreError, StoreOptions};
use millstream_broker::{Broker, BrokerError, BrokerSettings, GroupId, Offset, TopicName};
use millstream_record::{BatchBuilder, Column, Compression, Limits, RecordBatch, split_batches};
use millstream_tests::disk::Disk;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::DATA;
use crate::run::Run;
use millstream_tests::workload::{Accumulators, Held, block_on, offset, records_of};

// ---- the operations

const TOPICS: [&str; 3] = ["a", "b", "c"];
const CONSUMERS: [&str; 2] = ["readers", "others"];
const PIPELINES: [&str; 2] = ["p", "q"];

/// Number of distinct timestamps. There are few, so that many records share one.
const TIMESTAMPS: u64 = 40;

#[derive(Clone, Debug)]
enum Op {
    CreateTopic {
        topic: usize,
        partitions: u32,
    },
    DeleteTopic {
        topic: usize,
    },
    /// Writes that are queued one after the other before any answer is awaited, so that they share commits.
    Produce(Vec<(Place, Vec<BatchSpec>)>),
    Read {
        place: Place,
        from: f64,
        until: Option<f64>,
        bytes_max: usize,
    },
    Fetch {
        topic: usize,
        from: f64,
        bytes_max: usize,
    },
    OffsetAt {
        place: Place,
        timestamp_ms: i64,
    },
    SetOffsets {
        group: usize,
        place: Place,
        to: f64,
    },
    DeleteGroup {
        group: usize,
    },
    /// Steps of a pipeline, which are queued one after the other.
    Steps {
        pipeline: usize,
        steps: Vec<StepSpec>,
    },
    NextGeneration {
        pipeline: usize,
    },
    DropPipeline {
        pipeline: usize,
    },
    Reopen {
        stop_first: bool,
    },
}

/// A partition, if the topic exists. The partition number is taken modulo the number of partitions.
#[derive(Clone, Copy, Debug)]
struct Place {
    topic: usize,
    partition: usize,
}

#[derive(Clone, Debug)]
struct BatchSpec {
    records: usize,
    value_bytes: usize,
    compression: Compression,
    seed: u64,
}

#[derive(Clone, Debug)]
struct StepSpec {
    source: Place,
    output: Option<(Place, BatchSpec)>,
    /// Keys and accumulators, one byte each. An accumulator of `None` removes the key.
    state: Vec<(u8, Option<u8>)>,
    stale: Option<Stale>,
    advance: f64,
}

#[derive(Clone, Copy, Debug)]
enum Stale {
    Generation,
    Offset,
    NothingExpected,
}

fn place() -> impl Strategy<Value = Place> {
    (0..TOPICS.len(), 0usize..4).prop_map(|(topic, partition)| Place { topic, partition })
}

fn batch() -> impl Strategy<Value = BatchSpec> {
    use Compression::{Gzip, Lz4, None, Snappy, Zstd};
    // Most values are small. Some are larger than a value of the journal.
    let value_bytes = prop_oneof![6 => 0usize..200, 1 => 2_000usize..9_000];
    (1usize..14, value_bytes, prop::sample::select(vec![None, Gzip, Snappy, Lz4, Zstd]), any::<u64>())
        .prop_map(|(records, value_bytes, compression, seed)| BatchSpec { records, value_bytes, compression, seed })
}

fn step() -> impl Strategy<Value = StepSpec> {
    let stale = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Stale::Generation)),
        1 => Just(Some(Stale::Offset)),
        1 => Just(Some(Stale::NothingExpected)),
    ];
    let state = prop::collection::vec((0u8..5, prop::option::weighted(0.8, any::<u8>())), 0..4);
    (place(), prop::option::of((place(), batch())), state, stale, 0.0..1.0)
        .prop_map(|(source, output, state, stale, advance)| StepSpec { source, output, state, stale, advance })
}

fn op() -> impl Strategy<Value = Op> {
    let writes = prop::collection::vec((place(), prop::collection::vec(batch(), 1..4)), 1..6);
    let bytes_max = || prop_oneof![Just(0usize), 1usize..2_000, 1_000usize..200_000];
    prop_oneof![
        2 => (0..TOPICS.len(), 1u32..5).prop_map(|(topic, partitions)| Op::CreateTopic { topic, partitions }),
        1 => (0..TOPICS.len()).prop_map(|topic| Op::DeleteTopic { topic }),
        8 => writes.prop_map(Op::Produce),
        4 => (place(), 0.0..1.1, prop::option::of(0.0..1.1), bytes_max())
            .prop_map(|(place, from, until, bytes_max)| Op::Read { place, from, until, bytes_max }),
        2 => (0..TOPICS.len(), 0.0..1.0, bytes_max())
            .prop_map(|(topic, from, bytes_max)| Op::Fetch { topic, from, bytes_max }),
        2 => (place(), -2..TIMESTAMPS as i64 + 2).prop_map(|(place, timestamp_ms)| Op::OffsetAt { place, timestamp_ms }),
        3 => (0..CONSUMERS.len(), place(), 0.0..1.2).prop_map(|(group, place, to)| Op::SetOffsets { group, place, to }),
        1 => (0..CONSUMERS.len()).prop_map(|group| Op::DeleteGroup { group }),
        5 => (0..PIPELINES.len(), prop::collection::vec(step(), 1..5))
            .prop_map(|(pipeline, steps)| Op::Steps { pipeline, steps }),
        1 => (0..PIPELINES.len()).prop_map(|pipeline| Op::NextGeneration { pipeline }),
        1 => (0..PIPELINES.len()).prop_map(|pipeline| Op::DropPipeline { pipeline }),
        2 => any::<bool>().prop_map(|stop_first| Op::Reopen { stop_first }),
    ]
}

// ---- the model

#[derive(Debug, Default)]
struct ModelPartition {
    records: Vec<Held>,
    /// The offsets and the size in bytes of each batch.
    batches: Vec<(Range<usize>, usize)>,
}

impl ModelPartition {
    fn append(&mut self, batch: &RecordBatch, records: Vec<Held>) {
        let base = self.records.len();
        self.batches.push((base..base + records.len(), batch.as_bytes().len()));
        self.records.extend(records);
    }

    fn end(&self) -> usize {
        self.records.len()
    }
}

type Offsets = BTreeMap<(usize, u32), usize>;

#[derive(Debug, Default)]
struct Model {
    topics: BTreeMap<usize, Vec<ModelPartition>>,
    offsets: BTreeMap<&'static str, Offsets>,
    /// Accumulators by pipeline and partition.
    state: BTreeMap<(usize, u32), Accumulators>,
}

impl Model {
    fn partition(&self, place: Place) -> Option<(u32, &ModelPartition)> {
        let partitions = self.topics.get(&place.topic)?;
        let number = place.partition % partitions.len();
        Some((number as u32, &partitions[number]))
    }

    fn partition_mut(&mut self, place: Place) -> Option<&mut ModelPartition> {
        let partitions = self.topics.get_mut(&place.topic)?;
        let number = place.partition % partitions.len();
        partitions.get_mut(number)
    }
}

fn build(spec: &BatchSpec) -> (RecordBatch, Vec<Held>) {
    let mut random = StdRng::seed_from_u64(spec.seed);
    let mut bytes = |len: usize| (0..len).map(|_| random.random_range(b'a'..=b'p')).collect::<Vec<u8>>();
    let mut records = Vec::new();
    for index in 0..spec.records {
        let key = (!(spec.seed as usize + index).is_multiple_of(3)).then(|| bytes(index % 5));
        let value = (!(spec.seed as usize + index).is_multiple_of(7)).then(|| bytes(spec.value_bytes));
        records.push(((spec.seed.wrapping_mul(index as u64 * 2 + 1) % TIMESTAMPS) as i64, key, value));
    }
    let mut builder = BatchBuilder::new(spec.compression);
    for (timestamp_ms, key, value) in &records {
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), []);
    }
    (builder.finish().unwrap(), records)
}

/// Returns an offset at this fraction of a partition. Fractions above 1 are beyond its end.
fn part(of: usize, fraction: f64) -> usize {
    (of as f64 * fraction) as usize
}

// ---- the broker that is compared

struct Driven {
    disk: Disk,
    broker: Broker,
    model: Model,
    /// A deleted topic, as a client holds it that does not know about the deletion.
    deleted: Option<Arc<Topic>>,
}

/// Opens a broker once the previous one has released the folder. Its journal is so small that sealing is always in
/// progress.
fn open(disk: &Disk) -> Broker {
    loop {
        // A small tail makes most reads go to the disk.
        let options = StoreOptions { tail_bytes_max: Some(20_000), ..disk.options() };
        let settings = BrokerSettings { journal_bytes_max: 40_000, ..BrokerSettings::default() };
        match Broker::open(Path::new(DATA), settings, options, Arc::new(SystemClock), &mut Registry::default()) {
            Ok(broker) => return broker,
            // If the lock is never released, the simulation makes no progress, which the simulator reports.
            Err(StoreError::Locked { .. }) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("the broker cannot be opened: {error}"),
        }
    }
}

fn pipeline_group(broker: &Broker, pipeline: usize) -> Arc<Group> {
    broker.groups().get_or_create(&GroupId::new(PIPELINES[pipeline]).unwrap(), GroupKind::Pipeline).unwrap()
}

fn with_changes(mut accumulators: Accumulators, changes: &[(u8, Option<u8>)]) -> Accumulators {
    for (key, accumulator) in changes {
        match accumulator {
            Some(new) => accumulators.insert(vec![*key], vec![*new]),
            None => accumulators.remove(&vec![*key]),
        };
    }
    accumulators
}

fn store_of(pipeline: usize) -> Arc<str> {
    format!("{}/count", PIPELINES[pipeline]).into()
}

impl Driven {
    fn new() -> Self {
        let disk = Disk::default();
        let broker = open(&disk);
        Self { disk, broker, model: Model::default(), deleted: None }
    }

    fn partition(&self, place: Place) -> Option<Arc<Partition>> {
        let (number, _) = self.model.partition(place)?;
        Some(self.broker.topic(TOPICS[place.topic]).unwrap().partition(number).unwrap().clone())
    }

    async fn run(mut self, ops: Vec<Op>) {
        for op in ops {
            let checked = format!("{op:?}");
            self = self.apply(op).await;
            self.check(&checked).await;
        }
        self = self.apply(Op::Reopen { stop_first: false }).await;
        self.check("the last reopening").await;
        self.broker.stop();
    }

    async fn apply(mut self, op: Op) -> Self {
        match op {
            Op::CreateTopic { topic, partitions } => self.create_topic(topic, partitions).await,
            Op::DeleteTopic { topic } => self.delete_topic(topic).await,
            Op::Produce(writes) => self.produce(&writes).await,
            Op::Read { place, from, until, bytes_max } => self.read(place, from, until, bytes_max).await,
            Op::Fetch { topic, from, bytes_max } => self.fetch(topic, from, bytes_max).await,
            Op::OffsetAt { place, timestamp_ms } => self.offset_at(place, timestamp_ms),
            Op::SetOffsets { group, place, to } => self.set_offsets(CONSUMERS[group], place, to).await,
            Op::DeleteGroup { group } => {
                let deleted = self.broker.delete_group(CONSUMERS[group]).await;
                if self.model.offsets.remove(CONSUMERS[group]).is_some() {
                    deleted.unwrap();
                }
            }
            Op::Steps { pipeline, steps } => self.steps(pipeline, &steps).await,
            Op::NextGeneration { pipeline } => {
                pipeline_group(&self.broker, pipeline).next_generation();
            }
            Op::DropPipeline { pipeline } => {
                let group = pipeline_group(&self.broker, pipeline);
                let (drop_groups, drop_state) = (vec![group], vec![store_of(pipeline)]);
                let commit = Commit { drop_groups, drop_state, ..Commit::default() };
                self.broker.commit(commit).await.unwrap().await.unwrap();
                self.model.offsets.remove(PIPELINES[pipeline]);
                self.model.state.retain(|(of, _), _| *of != pipeline);
            }
            Op::Reopen { stop_first } => {
                if stop_first {
                    self.broker.stop();
                    let refused = self.broker.commit(Commit::default()).await;
                    assert!(matches!(refused, Err(BrokerError::ShuttingDown)), "{refused:?}");
                }
                let Self { disk, broker, model, .. } = self;
                drop(broker);
                let broker = open(&disk);
                return Self { disk, broker, model, deleted: None };
            }
        }
        self
    }

    async fn create_topic(&mut self, topic: usize, partitions: u32) {
        let name = TopicName::new(TOPICS[topic]).unwrap();
        let created = self.broker.create_topic(&name, partitions, TopicSettings::default(), false).await;
        if self.model.topics.contains_key(&topic) {
            assert!(matches!(created, Err(BrokerError::TopicExists { .. })), "{created:?}");
            return;
        }
        created.unwrap();
        self.model.topics.insert(topic, (0..partitions).map(|_| ModelPartition::default()).collect());
    }

    async fn delete_topic(&mut self, topic: usize) {
        let name = TopicName::new(TOPICS[topic]).unwrap();
        let held = self.broker.topic(TOPICS[topic]).ok();
        let deleted = self.broker.delete_topic(&name).await;
        if self.model.topics.remove(&topic).is_none() {
            assert!(matches!(deleted, Err(BrokerError::UnknownTopic { .. })), "{deleted:?}");
            return;
        }
        deleted.unwrap();
        self.deleted = held;
        self.model.offsets.values_mut().for_each(|offsets| offsets.retain(|(of, _), _| *of != topic));
    }

    async fn produce(&mut self, writes: &[(Place, Vec<BatchSpec>)]) {
        let mut queued = Vec::new();
        for (place, specs) in writes {
            let Some(partition) = self.partition(*place) else { continue };
            let topic = self.broker.topic(TOPICS[place.topic]).unwrap();
            let built: Vec<_> = specs.iter().map(build).collect();
            let batches = built.iter().map(|(batch, _)| batch.clone()).collect();
            let receipt = self.broker.produce(&topic, &partition, batches).await.unwrap();
            let model = self.model.partition_mut(*place).unwrap();
            queued.push((receipt, model.end()));
            built.into_iter().for_each(|(batch, records)| model.append(&batch, records));
        }
        if let Some(topic) = &self.deleted {
            let (batch, _) = build(&writes[0].1[0]);
            let receipt = self.broker.produce(topic, &topic.partitions()[0], vec![batch]).await.unwrap();
            let refused = receipt.await;
            assert!(matches!(refused, Err(BrokerError::UnknownTopic { .. })), "{refused:?}");
        }
        for (receipt, base) in queued {
            assert_eq!(receipt.await.unwrap().base_offsets, [offset(base)]);
        }
    }

    async fn read(&self, place: Place, from: f64, until: Option<f64>, bytes_max: usize) {
        let Some((_, model)) = self.model.partition(place) else { return };
        let partition = self.partition(place).unwrap();
        let from = part(model.end(), from);
        let until = until.map(|until| part(model.end(), until));
        let range = ReadRange { from: offset(from), until: until.map(offset), bytes_max, one_at_least: true };
        let read = self.broker.read(&partition, range).await;
        if from > model.end() {
            assert!(matches!(read, Err(BrokerError::OffsetOutOfRange { .. })), "{read:?}");
            return;
        }
        check_slice(model, &read.unwrap(), (from, until.unwrap_or(model.end())), bytes_max, true);
    }

    /// Fetches all partitions of a topic at once.
    async fn fetch(&self, topic: usize, from: f64, bytes_max: usize) {
        let Some(partitions) = self.model.topics.get(&topic) else { return };
        let of_broker = self.broker.topic(TOPICS[topic]).unwrap();
        let from: Vec<usize> = partitions.iter().map(|model| part(model.end(), from)).collect();
        let fetch = Fetch {
            from: (of_broker.partitions().iter().zip(&from))
                .map(|(partition, from)| FetchFrom {
                    partition: partition.clone(),
                    offset: offset(*from),
                    until: None,
                    bytes_max: usize::MAX,
                    view: View::Committed,
                })
                .collect(),
            bytes_min: 1,
            bytes_max,
            wait_max: Duration::ZERO,
        };
        let mut room = bytes_max;
        // Once the next batch of a partition does not fit, records of the others are only read from memory.
        let mut is_full = false;
        for ((fetched, model), from) in self.broker.fetch(&fetch).await.into_iter().zip(partitions).zip(from) {
            let slice = fetched.slice.unwrap();
            if room > 0 && !(is_full && slice.runs.is_empty()) {
                check_slice(model, &slice, (from, model.end()), room, room == bytes_max);
            } else {
                assert_eq!((slice.runs.len(), slice.next), (0, offset(from)));
            }
            room = room.saturating_sub(slice.bytes());
            is_full |= room < bytes_max && slice.next < offset(model.end());
        }
    }

    fn offset_at(&self, place: Place, timestamp_ms: i64) {
        let Some((_, model)) = self.model.partition(place) else { return };
        let partition = self.partition(place).unwrap();
        let found = partition.offset_at(self.broker.store(), timestamp_ms, &Limits::default()).unwrap();
        let expected = model.records.iter().position(|(timestamp, ..)| *timestamp >= timestamp_ms);
        assert_eq!(found, offset(expected.unwrap_or(model.end())));
    }

    async fn set_offsets(&mut self, name: &'static str, place: Place, to: f64) {
        let Some((number, model)) = self.model.partition(place) else { return };
        let (end, to) = (model.end(), part(model.end(), to));
        let partition = self.partition(place).unwrap();
        let group = self.broker.groups().get_or_create(&GroupId::new(name).unwrap(), GroupKind::Consumer).unwrap();
        let set = self.broker.set_offsets(&group, &[(partition.name().clone(), offset(to))]).await;
        if to > end {
            assert!(matches!(set, Err(BrokerError::OffsetOutOfRange { .. })), "{set:?}");
            return;
        }
        set.unwrap();
        self.model.offsets.entry(name).or_default().insert((place.topic, number), to);
    }

    async fn steps(&mut self, pipeline: usize, steps: &[StepSpec]) {
        let mut queued: Vec<(Receipt, Option<Stale>, Option<usize>)> = Vec::new();
        let group = pipeline_group(&self.broker, pipeline);
        for step in steps {
            let Some((number, source)) = self.model.partition(step.source) else { continue };
            let at = (step.source.topic, number);
            let end = source.end();
            let offsets = self.model.offsets.entry(PIPELINES[pipeline]).or_default();
            let current = offsets.get(&at).copied();
            // Without a current offset, no expectation is stale.
            let stale = step.stale.filter(|stale| !matches!(stale, Stale::NothingExpected) || current.is_some());
            let next = current.unwrap_or(0) + part(end - current.unwrap_or(0).min(end), step.advance);
            let expected = match stale {
                Some(Stale::Offset) => Some(offset(current.map_or(3, |at| at + 1))),
                Some(Stale::NothingExpected) => None,
                Some(Stale::Generation) | None => current.map(offset),
            };
            let mut generation = group.generation();
            if matches!(stale, Some(Stale::Generation)) {
                generation = generation.wrapping_sub(1);
            }
            let mut commit = Commit {
                offsets: vec![OffsetChange {
                    group: group.clone(),
                    topic: self.broker.topic(TOPICS[step.source.topic]).unwrap(),
                    partition: number,
                    to: Some(offset(next).into()),
                    expected: Some(expected),
                }],
                fence: Some(Fence::Generation { group: group.clone(), generation }),
                ..Commit::default()
            };
            let output =
                step.output.as_ref().and_then(|(place, spec)| Some((place, self.partition(*place)?, build(spec))));
            if let Some((_, partition, (batch, _))) = &output {
                commit.appends.push(Append { partition: partition.clone(), batches: vec![batch.clone()] });
            }
            if !step.state.is_empty() {
                #[allow(clippy::type_complexity)]
                let column = |of: &dyn Fn(&(u8, Option<u8>)) -> Option<u8>| {
                    let mut column = Column::default();
                    step.state
                        .iter()
                        .for_each(|entry| column.push(of(entry).map(|byte| [byte]).as_ref().map(|b| &b[..])));
                    column
                };
                let (keys, accumulators) = (column(&|entry| Some(entry.0)), column(&|entry| entry.1));
                let before = self.model.state.get(&(pipeline, number)).cloned().unwrap_or_default();
                let after = with_changes(before.clone(), &step.state);
                let added = after.len() as i64 - before.len() as i64;
                commit.state.push(StateChange {
                    store: store_of(pipeline),
                    partition: number,
                    keys,
                    accumulators,
                    added,
                    ..StateChange::default()
                });
            }
            let receipt = self.broker.commit(commit).await.unwrap();
            let mut base = None;
            if stale.is_none() {
                self.model.offsets.entry(PIPELINES[pipeline]).or_default().insert(at, next);
                if let Some((place, _, (batch, records))) = output {
                    let model = self.model.partition_mut(*place).unwrap();
                    base = Some(model.end());
                    model.append(&batch, records);
                }
                let accumulators = self.model.state.entry((pipeline, number)).or_default();
                for (key, accumulator) in &step.state {
                    match accumulator {
                        Some(accumulator) => accumulators.insert(vec![*key], vec![*accumulator]),
                        None => accumulators.remove(&vec![*key]),
                    };
                }
            }
            queued.push((receipt, stale, base));
        }
        for (receipt, stale, base) in queued {
            match (receipt.await, stale) {
                (Ok(committed), None) => {
                    assert_eq!(committed.base_offsets, base.map(offset).into_iter().collect::<Vec<_>>());
                }
                (Err(BrokerError::StaleGeneration { .. }), Some(Stale::Generation)) => {}
                (Err(BrokerError::StaleOffset { .. }), Some(Stale::Offset | Stale::NothingExpected)) => {}
                (answer, stale) => panic!("stale: {stale:?}, answer: {answer:?}"),
            }
        }
    }

    // ---- the checker

    async fn check(&self, after: &str) {
        let names: Vec<_> = self.broker.topics().iter().map(|topic| topic.name().to_string()).collect();
        let expected: Vec<_> = self.model.topics.keys().map(|topic| TOPICS[*topic]).collect();
        assert_eq!(names, expected, "after {after}");
        for (topic, partitions) in &self.model.topics {
            let of_broker = self.broker.topic(TOPICS[*topic]).unwrap();
            assert_eq!(of_broker.partitions().len(), partitions.len(), "after {after}");
            for (partition, model) in of_broker.partitions().iter().zip(partitions) {
                self.check_partition(partition, model, after).await;
            }
        }
        for name in CONSUMERS.into_iter().chain(PIPELINES) {
            self.check_offsets(name, after);
        }
        for pipeline in 0..PIPELINES.len() {
            let partitions = self.broker.state().partitions(&store_of(pipeline)).into_iter();
            let found = partitions.map(|(number, state)| {
                let entries: Accumulators = state.scan(b"", usize::MAX).unwrap().into_iter().collect();
                assert_eq!(state.len(), entries.len(), "the number of keys is wrong after {after}");
                (number, entries)
            });
            let found: BTreeMap<u32, Accumulators> =
                found.filter(|(_, of): &(u32, Accumulators)| !of.is_empty()).collect();
            let expected = self.model.state.iter().filter(|((of, _), state)| *of == pipeline && !state.is_empty());
            let expected = expected.map(|((_, number), state)| (*number, state.clone())).collect();
            assert_eq!(found, expected, "the state of {pipeline} after {after}");
        }
    }

    async fn check_partition(&self, partition: &Arc<Partition>, model: &ModelPartition, after: &str) {
        let name = partition.name();
        assert_eq!(partition.end(), offset(model.end()), "the log end offset of {name} after {after}");
        let bytes: usize = model.batches.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(partition.size().bytes, bytes as u64, "the bytes of {name} after {after}");
        let newest = model.records.iter().map(|(timestamp_ms, ..)| *timestamp_ms).max();
        assert_eq!(partition.size().max_timestamp_ms, newest, "the largest timestamp of {name} after {after}");
        let mut from = Offset::ZERO;
        while from < partition.end() {
            let slice = self
                .broker
                .read(partition, ReadRange { from, until: None, bytes_max: 50_000, one_at_least: true })
                .await
                .unwrap();
            let found = records_of_slice(&slice);
            let at = usize::try_from(from.get()).unwrap();
            assert!(!found.is_empty(), "a read of {name} must return records");
            assert_eq!(found.first().map(|(at, _)| *at), Some(at));
            for (at, record) in found {
                assert_eq!(record, model.records[at], "{name} at offset {at} after {after}");
            }
            from = slice.next;
        }
    }

    fn check_offsets(&self, name: &'static str, after: &str) {
        let mut found = Offsets::new();
        if let Ok(group) = self.broker.groups().get(name) {
            for (id, partition, at) in group.all_committed() {
                let Some(topic) = self.broker.topics().into_iter().find(|topic| topic.id() == id) else { continue };
                let topic = TOPICS.iter().position(|name| *name == topic.name().as_str()).unwrap();
                found.insert((topic, partition), at.get() as usize);
            }
        }
        let expected = self.model.offsets.get(name).cloned().unwrap_or_default();
        assert_eq!(found, expected, "the offsets of {name} after {after}");
    }
}

/// Returns the records of a slice with their offsets.
pub(crate) fn records_of_slice(slice: &Slice) -> Vec<(usize, Held)> {
    slice.runs.iter().cloned().flat_map(split_batches).flat_map(|batch| records_of(&batch.unwrap())).collect()
}

/// Checks that a read returned complete batches in order and without gaps, beginning with the batch that contains the
/// requested offset. With `one_at_least`, the first batch may have any size, and the others must fit into `bytes_max`.
/// Otherwise all batches must fit.
fn check_slice(
    model: &ModelPartition,
    slice: &Slice,
    (from, until): (usize, usize),
    bytes_max: usize,
    one_at_least: bool,
) {
    let wanted = || model.batches.iter().filter(|(at, _)| at.end > from && at.start < until);
    let lens: Vec<usize> =
        slice.runs.iter().cloned().flat_map(split_batches).map(|batch| batch.unwrap().as_bytes().len()).collect();
    let expected: Vec<usize> = wanted().map(|(_, bytes)| *bytes).take(lens.len()).collect();
    assert_eq!(lens, expected, "the batches from {from} to {until}");
    let first_fits = wanted().next().is_some_and(|(_, bytes)| one_at_least || *bytes <= bytes_max);
    assert_eq!(lens.is_empty(), !first_fits, "a read returns at least one batch if there is one");
    assert!(
        (one_at_least && lens.len() <= 1) || slice.bytes() <= bytes_max,
        "{} bytes were read, but at most {bytes_max} were requested",
        slice.bytes()
    );
    let next = wanted().nth(lens.len().wrapping_sub(1)).map_or(from, |(at, _)| at.end);
    assert_eq!(slice.next, offset(next));
    assert_eq!((slice.start, slice.end), (Offset::ZERO, offset(model.end())));
    for (at, record) in records_of_slice(slice) {
        assert_eq!(record, model.records[at], "offset {at}");
    }
}

/// Runs a sequence of operations, and checks after each that the broker holds what the model holds.
pub(crate) fn model(run: &mut Run) {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&run.seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), random);
    let ops = prop::collection::vec(op(), 10..40).new_tree(&mut runner).unwrap().current();
    if ops.iter().any(|op| matches!(op, Op::Reopen { .. })) {
        run.met("a reopening");
    }
    block_on(Driven::new().run(ops));
}
