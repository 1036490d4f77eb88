//! Every record takes effect exactly once and in the right place during swaps, pauses, resets and rebalances under
//! load.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_broker::groups::GroupKind;
use millstream_broker::name::TopicPartition;
use millstream_broker::store::StateChange;
use millstream_broker::{BrokerError, GroupId, Offset};
use millstream_client::{Client, CommitMode, ConsumerSettings, Position, ProducerRecord, ProducerSettings, v1};
use millstream_record::{BatchBuilder, Column, Compression, Record, partition_for_key};
use millstream_runtime::embedded::EmbeddedLog;
use millstream_runtime::log::{Log, LogError, Step};
use millstream_runtime::runtime::RunState;
use millstream_tests::guest;
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::proxy::Proxy;
use millstream_tests::server::Server;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::crash::{all_records, caught_up};

// ---- load

/// A key and a value.
pub(super) type Pair = (Option<String>, String);

/// One producer for each partition, which run until they are stopped.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    produced: Arc<AtomicUsize>,
    producers: Vec<JoinHandle<Vec<Pair>>>,
}

impl Load {
    /// Starts the producers. `record` builds the record with a given number in a partition.
    pub(super) fn start(
        instance: &Instance,
        topic: &'static str,
        record: impl Fn(u32, usize) -> Pair + Clone + Send + Sync + 'static,
    ) -> Self {
        let stop = watch::Sender::new(false);
        let produced = Arc::new(AtomicUsize::new(0));
        let partitions = instance.broker.topic(topic).unwrap().partition_count();
        let producers = (0..partitions).map(|partition| {
            let (instance, record, produced) = (instance.clone(), record.clone(), produced.clone());
            let stop = stop.subscribe();
            tokio::spawn(async move {
                let mut all: Vec<Pair> = Vec::new();
                while !*stop.borrow() {
                    // The batches have many different sizes.
                    let count = 1 + all.len() % 37;
                    let batch: Vec<Pair> = (0..count).map(|index| record(partition, all.len() + index)).collect();
                    let borrowed: Vec<_> = batch.iter().map(|(key, value)| (key.as_deref(), value.as_str())).collect();
                    instance.produce(topic, partition, &borrowed).await;
                    produced.fetch_add(count, Ordering::Relaxed);
                    all.extend(batch);
                }
                all
            })
        });
        Self { producers: producers.collect(), stop, produced }
    }

    pub(super) async fn more(&self, records: usize) {
        let until = self.produced.load(Ordering::Relaxed) + records;
        wait_until("records are produced", || self.produced.load(Ordering::Relaxed) >= until).await;
    }

    /// Stops the producers, and returns what they produced, by partition.
    pub(super) async fn stop(self) -> Vec<Vec<Pair>> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for producer in self.producers {
            all.push(ended("a producer", producer).await);
        }
        all
    }
}

/// Waits for a task, and returns its result. The limit is meant for tests that hang, and is no statement about speed.
async fn ended<T>(what: &str, task: JoinHandle<T>) -> T {
    let end = tokio::time::timeout(Duration::from_secs(120), task).await;
    end.unwrap_or_else(|_| panic!("{what} did not end within two minutes")).unwrap()
}

/// Waits until the topic has more records than now.
async fn comes_out(instance: &Instance, topic: &str) {
    let topic = instance.broker.topic(topic).unwrap();
    let there = || topic.partitions().iter().map(|partition| partition.end().get()).sum::<i64>();
    let before = there();
    wait_until("the topic has new output", || there() > before).await;
}

/// Waits until the pipelines have caught up. The check is repeated as often as there are topics on a record's way,
/// because a record that has left the first topic may not have arrived in the second one when that is checked.
pub(super) async fn settled(instance: &Instance) {
    for _ in 0..3 {
        instance.caught_up().await;
    }
}

fn text(bytes: Option<&Bytes>) -> Option<&str> {
    bytes.map(|bytes| std::str::from_utf8(bytes).unwrap())
}

async fn values_of(instance: &Instance, topic: &str, partition: u32) -> Vec<String> {
    let records = instance.records(topic, partition).await;
    records.iter().map(|record| text(record.value.as_ref()).unwrap().to_owned()).collect()
}

/// Returns key and value of every record of a topic.
pub(super) async fn pairs(instance: &Instance, topic: &str) -> Vec<Pair> {
    let pair = |record: &Record| {
        (text(record.key.as_ref()).map(str::to_owned), text(record.value.as_ref()).unwrap().to_owned())
    };
    instance.all_records(topic).await.iter().map(pair).collect()
}

/// Builds a value of which modules change at most the last letter.
fn marked(partition: u32, number: usize) -> Pair {
    (None, format!("p{partition} n{number} x"))
}

/// Returns the output of bench-map for a value.
fn flipped(value: &str) -> String {
    format!("{}y", value.strip_suffix('x').unwrap())
}

/// Returns a generator that cycles through `keys` keys that belong to its partition.
pub(super) fn keyed(partitions: u32, keys: usize) -> impl Fn(u32, usize) -> Pair + Clone + Send + Sync + 'static {
    let mut of_partition: Vec<Vec<String>> = vec![Vec::new(); partitions as usize];
    for number in 0.. {
        let key = format!("k{number}");
        let of = &mut of_partition[partition_for_key(key.as_bytes(), partitions) as usize];
        if of.len() < keys {
            of.push(key);
        }
        if of_partition.iter().all(|of| of.len() == keys) {
            break;
        }
    }
    move |partition, number| {
        (Some(of_partition[partition as usize][number % keys].clone()), format!("p{partition} n{number}"))
    }
}

/// Counts the records of each key.
pub(super) fn counts<'r>(records: impl IntoIterator<Item = &'r Pair>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (key, _) in records {
        *counts.entry(key.clone().unwrap()).or_default() += 1;
    }
    counts
}

/// Returns the last count of each key, and checks that counts only grow.
pub(super) fn last_counts(updates: &[Pair]) -> BTreeMap<String, usize> {
    let mut last = BTreeMap::new();
    for (key, count) in updates {
        let count: usize = count.parse().unwrap();
        let before = last.insert(key.clone().unwrap(), count);
        assert!(before < Some(count), "{key:?}: the count {count} follows {before:?}");
    }
    last
}

fn group_of(instance: &Instance, pipeline: &str) -> Arc<millstream_broker::groups::Group> {
    instance.runtime.pipeline(pipeline).unwrap().group().clone()
}

/// Returns a module with the same code and another hash, by adding an empty custom section.
fn another_version(wasm: &Bytes) -> Bytes {
    [wasm.as_ref(), &[0, 3, 1, b'v', b'2']].concat().into()
}

async fn open(partitions: u32) -> (Instance, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.topic("in", partitions).await;
    (instance, data)
}

// ---- swaps

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_begins_where_the_old_one_ended() {
    let (instance, _data) = open(3).await;
    let file = "pipeline: p\nfrom: in\nstages:\n- map: m\nto: out\n";
    instance.runtime.push_module("m", guest("bench-map")).await.unwrap();
    instance.apply(file).await;
    let load = Load::start(&instance, "in", marked);
    comes_out(&instance, "out").await;
    load.more(500).await;
    instance.runtime.push_module("m", guest("redact")).await.unwrap();
    let changes = instance.apply(file).await;
    assert!(changes[0].starts_with("stage m: module "), "{changes:?}");
    assert_eq!(instance.apply(file).await, Vec::<String>::new());
    comes_out(&instance, "out").await;
    load.more(500).await;
    let produced = load.stop().await;
    settled(&instance).await;
    for (partition, input) in produced.iter().enumerate() {
        let out = values_of(&instance, "out", partition as u32).await;
        let of_old = out.iter().take_while(|value| value.ends_with('y')).count();
        let old = input[..of_old].iter().map(|(_, value)| flipped(value));
        let new = input[of_old..].iter().map(|(_, value)| value.clone());
        assert_eq!(out, old.chain(new).collect::<Vec<_>>(), "partition {partition}: {of_old} by the old version");
        assert!(of_old > 0 && of_old < input.len(), "both versions must have processed records");
    }
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_parameters_hold_from_one_record_on() {
    let (instance, _data) = open(2).await;
    instance.push("delayed").await;
    let file = |minutes: u32| {
        format!("pipeline: p\nfrom: in\nstages:\n- filter: delayed\n  with: {{ minutes: {minutes} }}\nto: out\n")
    };
    let delay = |number: usize| (number * 7) % 100;
    instance.apply(&file(15)).await;
    let load = Load::start(&instance, "in", move |partition, number| {
        (None, format!(r#"{{"delay":{},"number":{number},"partition":{partition}}}"#, delay(number)))
    });
    comes_out(&instance, "out").await;
    instance.apply(&file(60)).await;
    load.more(500).await;
    let produced = load.stop().await;
    settled(&instance).await;
    for (partition, input) in produced.iter().enumerate() {
        let out = values_of(&instance, "out", partition as u32).await;
        let expected = |change: usize| {
            let passes = |number: &usize| delay(*number) >= if *number < change { 15 } else { 60 };
            (0..input.len()).filter(passes).map(|number| input[number].1.clone()).collect::<Vec<_>>()
        };
        assert!(
            (1..input.len()).any(|change| out == expected(change)),
            "partition {partition}: there is no record at which the parameters change"
        );
    }
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_keeps_its_state_through_a_swap() {
    let (instance, _data) = open(2).await;
    let file = "pipeline: p\nfrom: in\nstages:\n- aggregate: counter\nto: out\n";
    instance.runtime.push_module("counter", guest("count")).await.unwrap();
    instance.apply(file).await;
    let load = Load::start(&instance, "in", keyed(2, 20));
    comes_out(&instance, "out").await;
    instance.runtime.push_module("counter", another_version(&guest("count"))).await.unwrap();
    let changes = instance.apply(file).await;
    assert!(changes[0].starts_with("stage counter: module "), "{changes:?}");
    load.more(500).await;
    comes_out(&instance, "out").await;
    // Adding another stage before the aggregate does not matter either.
    instance.push("bench-map").await;
    instance
        .apply("pipeline: p\nfrom: in\nstages:\n- map: bench-map\n  keeps-key: true\n- aggregate: counter\nto: out\n")
        .await;
    load.more(500).await;
    let produced = load.stop().await;
    settled(&instance).await;
    let out = pairs(&instance, "out").await;
    assert_eq!(last_counts(&out), counts(produced.iter().flatten()));
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_stage_that_goes_is_dropped() {
    let (instance, data) = open(1).await;
    instance.push("count").await;
    instance.push("words").await;
    let aggregate =
        |name: &str| format!("pipeline: p\nfrom: in\nstages:\n- aggregate: count\n  name: {name}\nto: out\n");
    let produce = async |instance: &Instance| instance.produce("in", 0, &[(Some("k"), "v")]).await;
    let last = async |instance: &Instance| pairs(instance, "out").await.pop().unwrap().1;
    instance.apply(&aggregate("first")).await;
    produce(&instance).await;
    instance.caught_up().await;
    assert_eq!(last(&instance).await, "1");
    // Another name is another stage, and a name that is used again is a new stage.
    for (name, count) in [("second", "1"), ("second", "2"), ("first", "1")] {
        instance.apply(&aggregate(name)).await;
        produce(&instance).await;
        instance.caught_up().await;
        assert_eq!(last(&instance).await, count, "{name}");
    }
    // A stage of another kind is a new stage too.
    let map = "pipeline: p\nfrom: in\nstages:\n- map: words\n  name: first\nto: out\n";
    let changes = instance.apply(map).await;
    assert!(changes.iter().any(|change| change.contains("its state is dropped")), "{changes:?}");
    instance.apply(&aggregate("first")).await;
    produce(&instance).await;
    instance.caught_up().await;
    assert_eq!(last(&instance).await, "1");
    // This also holds after a restart.
    instance.stop().await;
    let instance = Instance::open(data.path());
    produce(&instance).await;
    instance.caught_up().await;
    assert_eq!(last(&instance).await, "2");
    assert_eq!(instance.broker.state().partitions("p/second").iter().map(|(_, state)| state.len()).sum::<usize>(), 0);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_on_their_way_to_an_aggregate_outlive_a_change_of_the_way() {
    let (instance, _data) = open(2).await;
    instance.push("bench-map").await;
    instance.push("count").await;
    let file = |keeps_key: bool| {
        format!(
            "pipeline: p\nfrom: in\nstages:\n- map: bench-map\n  keeps-key: {keeps_key}\n- aggregate: count\nto: out\n"
        )
    };
    instance.apply(&file(false)).await;
    let load = Load::start(&instance, "in", keyed(2, 20));
    for keeps_key in [true, false, true, false, true] {
        comes_out(&instance, "out").await;
        load.more(300).await;
        instance.apply(&file(keeps_key)).await;
    }
    let produced = load.stop().await;
    settled(&instance).await;
    let out = pairs(&instance, "out").await;
    assert_eq!(last_counts(&out), counts(produced.iter().flatten()));
    instance.stop().await;
}

/// Changes the sources of a counting pipeline, and checks that its only stage keeps its state.
async fn state_survives_other_sources(before: &str, after: &str) {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.push("count").await;
    instance.topic("narrow", 2).await;
    instance.topic("wide", 5).await;
    let file = |from: &str| format!("pipeline: p\nfrom: {from}\nstages:\n- aggregate: count\nto: out\n");
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    let produce = async || {
        for key in &keys {
            instance.produce("narrow", partition_for_key(key.as_bytes(), 2), &[(Some(key), "v")]).await;
        }
    };
    instance.apply(&file(before)).await;
    produce().await;
    settled(&instance).await;
    instance.apply(&file(after)).await;
    produce().await;
    settled(&instance).await;
    let out = pairs(&instance, "out").await;
    let mut last = BTreeMap::new();
    last.extend(out.iter().map(|(key, count)| (key.clone().unwrap(), count.as_str())));
    let expected: BTreeMap<String, &str> = keys.iter().map(|key| (key.clone(), "2")).collect();
    assert_eq!(last, expected, "from {before}, then from {after}");
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_keeps_its_state_when_a_source_goes() {
    state_survives_other_sources("[narrow, wide]", "narrow").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_keeps_its_state_when_a_source_comes() {
    state_survives_other_sources("narrow", "[narrow, wide]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_a_pipeline_left_is_no_lag_of_it() {
    let (instance, _data) = open(1).await;
    instance.topic("other", 1).await;
    instance.push("bench-filter").await;
    let file = |from: &str| format!("pipeline: p\nfrom: {from}\nstages:\n- filter: bench-filter\nto: out\n");
    instance.apply(&file("[in, other]")).await;
    instance.produce("other", 0, &[(None, "b")]).await;
    instance.caught_up().await;
    instance.apply(&file("in")).await;
    instance.produce("other", 0, &[(None, "d")]).await;
    assert!(instance.runtime.is_caught_up(), "the other topic is not read, so it must not count as lag");
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_leaves_nothing_behind() {
    let (instance, _data) = open(1).await;
    instance.push("bench-map").await;
    let file = "pipeline: p\nfrom: in\nstages:\n- map: bench-map\nto: out\n";
    let applied = instance.runtime.apply(file, &Default::default(), true).await.unwrap();
    assert!(!applied.changes.is_empty());
    assert!(instance.broker.topic("out").is_err());
    assert!(instance.broker.groups().get("p").is_err(), "a dry run must not create a group");
    // The name is still available for a consumer group.
    assert!(instance.broker.groups().get_or_create(&GroupId::new("p").unwrap(), GroupKind::Consumer).is_ok());
    instance.stop().await;
}

// ---- pauses, deletion, resets

#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_restarts_lose_and_repeat_nothing() {
    let (mut instance, data) = open(3).await;
    instance.push("bench-map").await;
    instance.push("count").await;
    let file = "pipeline: p\nfrom: in\nstages:\n- map: bench-map\n  to: passed\n- aggregate: count\nto: out\n";
    instance.apply(file).await;
    let mut produced: Vec<Vec<Pair>> = vec![Vec::new(); 3];
    let record = keyed(3, 15);
    for round in 0..3 {
        let load = Load::start(&instance, "in", record.clone());
        for _ in 0..3 {
            comes_out(&instance, "out").await;
            let paused = instance.runtime.pause("p").await.unwrap();
            assert_eq!(paused.state(), RunState::Paused);
            let ends = || instance.broker.group_offsets(paused.group()).iter().map(|o| o.committed).collect::<Vec<_>>();
            let before = ends();
            load.more(100).await;
            assert_eq!(ends(), before, "a paused pipeline must not commit");
            instance.runtime.resume("p").await.unwrap();
        }
        for (all, more) in produced.iter_mut().zip(load.stop().await) {
            all.extend(more);
        }
        // Restarts in the middle of processing, and in one round while the pipeline is paused.
        if round == 1 {
            instance.runtime.pause("p").await.unwrap();
        }
        instance.stop().await;
        instance = Instance::open(data.path());
        if round == 1 {
            assert_eq!(instance.runtime.pipeline("p").unwrap().state(), RunState::Paused);
            instance.runtime.resume("p").await.unwrap();
        }
    }
    settled(&instance).await;
    for (partition, input) in produced.iter().enumerate() {
        let out = values_of(&instance, "passed", partition as u32).await;
        assert_eq!(out.len(), input.len(), "partition {partition}");
    }
    let out = pairs(&instance, "out").await;
    assert_eq!(last_counts(&out), counts(produced.iter().flatten()));
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_made_again_starts_anew() {
    let (instance, data) = open(2).await;
    instance.push("words").await;
    instance.push("count").await;
    let file = |to: &str| format!("pipeline: p\nfrom: in\nstages:\n- map: words\n- aggregate: count\nto: {to}\n");
    instance.apply(&file("first")).await;
    let load = Load::start(&instance, "in", |partition, number| (None, format!("w{} p{partition}", number % 50)));
    comes_out(&instance, "first").await;
    instance.runtime.delete("p").await.unwrap();
    assert!(instance.broker.groups().get("p").is_err());
    assert!(instance.broker.topic("p.count.repartition").is_err());
    assert!(instance.broker.state().partitions("p/count").is_empty());
    load.more(200).await;
    instance.apply(&file("second")).await;
    let produced = load.stop().await;
    settled(&instance).await;
    let words: Vec<Pair> = produced
        .iter()
        .flatten()
        .flat_map(|(_, value)| value.split(' '))
        .map(|word| (Some(word.to_owned()), String::new()))
        .collect();
    assert_eq!(last_counts(&pairs(&instance, "second").await), counts(&words));
    instance.stop().await;
    // A deleted pipeline stays deleted after a restart.
    let instance = Instance::open(data.path());
    settled(&instance).await;
    assert_eq!(last_counts(&pairs(&instance, "second").await), counts(&words));
    instance.runtime.delete("p").await.unwrap();
    instance.stop().await;
    let instance = Instance::open(data.path());
    assert!(instance.runtime.pipelines().is_empty());
    assert!(instance.broker.groups().get("p").is_err());
    assert!(instance.broker.state().partitions("p/count").is_empty());
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_pipeline_reads_again_from_there() {
    let (instance, data) = open(2).await;
    instance.push("bench-map").await;
    instance.apply("pipeline: p\nfrom: in\nstages:\n- map: bench-map\nto: out\n").await;
    let load = Load::start(&instance, "in", marked);
    load.more(500).await;
    let produced = load.stop().await;
    settled(&instance).await;
    let group = group_of(&instance, "p");
    let places: Vec<(TopicPartition, Offset)> = instance
        .broker
        .topic("in")
        .unwrap()
        .partitions()
        .iter()
        .map(|partition| (partition.name().clone(), Offset::new(partition.end().get() / 3).unwrap()))
        .collect();
    let refused = instance.broker.set_offsets(&group, &places).await;
    assert!(matches!(refused, Err(BrokerError::GroupInUse { .. })), "{refused:?}");
    instance.runtime.pause("p").await.unwrap();
    instance.broker.set_offsets(&group, &places).await.unwrap();
    // The reset survives a restart.
    instance.stop().await;
    let instance = Instance::open(data.path());
    instance.runtime.resume("p").await.unwrap();
    settled(&instance).await;
    for (partition, input) in produced.iter().enumerate() {
        let again = places[partition].1.get() as usize;
        let expected: Vec<String> = input.iter().chain(&input[again..]).map(|(_, value)| flipped(value)).collect();
        assert_eq!(values_of(&instance, "out", partition as u32).await, expected);
    }
    instance.stop().await;
}

// ---- topologies of pipelines

#[tokio::test(flavor = "multi_thread")]
async fn several_sources_and_many_keys_equal_a_native_computation() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    for (topic, partitions) in [("a", 4), ("b", 3), ("z", 1)] {
        instance.topic(topic, partitions).await;
    }
    instance.push("words").await;
    instance.push("count").await;
    let words = "pipeline: p\nfrom: [a, z, b]\nstages:\n- map: words\n  to: words\n- aggregate: count\nto: out\n";
    instance.apply(words).await;
    instance.keep("p.count.repartition").await;
    // An aggregate on several topics, without a map before it.
    instance.apply("pipeline: q\nfrom: [b, z]\nstages:\n- aggregate: count\nto: of-keys\n").await;
    let value = |partition: u32, number: usize| format!("w{} v{} u{partition}", number * 31 % 5_003, number % 7);
    let record = move |partition: u32, number: usize| (Some(format!("k{}", number % 11)), value(partition, number));
    let loads = ["a", "b", "z"].map(|topic| Load::start(&instance, topic, record));
    loads[0].more(6_000).await;
    let mut produced = Vec::new();
    for load in loads {
        produced.push(load.stop().await);
    }
    settled(&instance).await;
    let of_words: Vec<Pair> = produced
        .iter()
        .flatten()
        .flatten()
        .flat_map(|(_, value)| value.split(' ').map(|word| (Some(word.to_owned()), word.to_owned())))
        .collect();
    let expected = counts(&of_words);
    assert!(expected.len() > 1_000, "{} keys", expected.len());
    assert_eq!(last_counts(&pairs(&instance, "out").await), expected);
    assert_eq!(counts(&pairs(&instance, "words").await), expected);
    // Each record is in the partition of its key.
    for topic in ["words", "p.count.repartition", "out"] {
        for partition in 0..4 {
            for record in instance.records(topic, partition).await {
                assert_eq!(partition_for_key(record.key.as_deref().unwrap(), 4), partition);
            }
        }
    }
    let of_keys = counts(produced[1].iter().chain(&produced[2]).flatten());
    assert_eq!(last_counts(&pairs(&instance, "of-keys").await), of_keys);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repartition_topic_keeps_what_a_group_of_its_own_has_not_read() {
    let (instance, data) = open(2).await;
    instance.push("words").await;
    instance.push("count").await;
    for pipeline in ["kept", "purged"] {
        let file =
            format!("pipeline: {pipeline}\nfrom: in\nstages:\n- map: words\n- aggregate: count\nto: {pipeline}\n");
        instance.apply(&file).await;
    }
    let [kept, purged] = ["kept.count.repartition", "purged.count.repartition"];
    instance.keep(kept).await;
    let load = Load::start(&instance, "in", |_, number| (None, format!("w{} w{}", number % 50, number % 7)));
    load.more(2_000).await;
    let is_purged = |instance: &Instance| {
        let topic = instance.broker.topic(purged).unwrap();
        topic.partitions().iter().all(|partition| partition.start() == partition.end())
    };
    let starts = || instance.broker.topic(purged).unwrap().partitions().iter().map(|of| of.start()).max();
    wait_until("records are purged meanwhile", || starts() > Some(Offset::ZERO)).await;
    load.more(500).await;
    let produced = load.stop().await;
    settled(&instance).await;
    wait_until("the records that were read are purged", || is_purged(&instance)).await;
    // After a restart the pipelines continue, and their counts include all earlier records.
    instance.stop().await;
    let instance = Instance::open(data.path());
    let load = Load::start(&instance, "in", |_, number| (None, format!("w{} after", number % 50)));
    load.more(100).await;
    let after = load.stop().await;
    settled(&instance).await;
    wait_until("the records that were read are purged", || is_purged(&instance)).await;
    let words = produced.iter().chain(&after).flatten().flat_map(|(_, value)| value.split(' '));
    let words: Vec<Pair> = words.map(|word| (Some(word.to_owned()), String::new())).collect();
    for pipeline in ["kept", "purged"] {
        assert_eq!(last_counts(&pairs(&instance, pipeline).await), counts(&words), "{pipeline}");
    }
    // The topic that is kept still has every word.
    assert_eq!(pairs(&instance, kept).await.len(), words.len());
    let topic = instance.broker.topic(purged).unwrap();
    let ends: i64 = topic.partitions().iter().map(|partition| partition.end().get()).sum();
    assert_eq!(ends, words.len() as i64);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stage_may_have_an_output_of_its_own() {
    let (instance, _data) = open(3).await;
    for module in ["bench-filter", "bench-map", "words"] {
        instance.push(module).await;
    }
    // The outputs have fewer and more partitions than the source.
    instance.topic("kept", 2).await;
    instance.topic("mapped", 7).await;
    let stages = "- filter: bench-filter\n  to: kept\n- map: bench-map\n  to: mapped\n- map: words\n  to: words\n";
    instance.apply(&format!("pipeline: p\nfrom: in\nstages:\n{stages}")).await;
    // The filter keeps values whose first byte is even, which is every other letter.
    let first = |number: usize| (b'a' + (number % 26) as u8) as char;
    let load = Load::start(&instance, "in", move |partition, number| {
        (None, format!("{}{number} p{partition} x", first(number)))
    });
    load.more(2_000).await;
    let produced = load.stop().await;
    settled(&instance).await;
    let kept = |partition: usize| {
        let even = |(_, value): &&Pair| value.as_bytes()[0].is_multiple_of(2);
        produced[partition].iter().filter(even).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    // Without a key, the source's partition determines the output's. Partitions 0 and 2 share one.
    let both = values_of(&instance, "kept", 0).await;
    for partition in [0, 2] {
        let of_partition = both.iter().filter(|value| value.contains(&format!(" p{partition} ")));
        assert_eq!(of_partition.cloned().collect::<Vec<_>>(), kept(partition));
    }
    assert_eq!(both.len(), kept(0).len() + kept(2).len());
    assert_eq!(values_of(&instance, "kept", 1).await, kept(1));
    for partition in 0..7 {
        let expected = if partition < 3 { kept(partition) } else { Vec::new() };
        let expected: Vec<String> = expected.iter().map(|value| flipped(value)).collect();
        assert_eq!(values_of(&instance, "mapped", partition as u32).await, expected);
    }
    let words = pairs(&instance, "words").await;
    assert_eq!(words.len(), 3 * (0..3).map(|partition| kept(partition).len()).sum::<usize>());
    instance.stop().await;
}

// ---- fencing

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_an_old_generation_commits_nothing() {
    let (instance, _data) = open(1).await;
    instance.push("bench-map").await;
    instance.apply("pipeline: p\nfrom: in\nstages:\n- map: bench-map\nto: out\n").await;
    instance.produce("in", 0, &[(None, "ax"), (None, "bx")]).await;
    settled(&instance).await;
    let (broker, group) = (instance.broker.clone(), group_of(&instance, "p"));
    let (source, out) = (broker.topic("in").unwrap(), broker.topic("out").unwrap());
    let (source, out) = (source.partitions()[0].clone(), out.partitions()[0].clone());
    let step = |from: Option<i64>, next: i64| {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(0, None, Some(b"of a zombie"), []);
        let mut column = Column::default();
        column.push(Some(b"k"));
        Step {
            source: source.name().clone(),
            from: from.and_then(Offset::new),
            next: Offset::new(next).unwrap(),
            outputs: vec![(out.name().clone(), vec![builder.finish().unwrap()])],
            state: vec![StateChange {
                store: "p/m".into(),
                partition: 0,
                keys: column.clone(),
                accumulators: column.clone(),
                added: 1,
                ..StateChange::default()
            }],
        }
    };
    let refused = async |log: &EmbeddedLog, step: Step, why: &str| {
        let answer = log.commit(step).await.unwrap().await;
        assert!(matches!(&answer, Err(LogError::Fenced(reason)) if reason.contains(why)), "{answer:?}");
        assert_eq!(out.end().get(), 2, "no record may be written");
        assert_eq!(group.committed(source.topic_id(), 0), Offset::new(2));
        assert!(broker.state().partition("p/m", 0).is_empty());
    };

    let zombie = EmbeddedLog::new(broker.clone(), group.clone());
    // The offset matches that of the group, so only the generation identifies the zombie.
    instance.runtime.pause("p").await.unwrap();
    instance.runtime.resume("p").await.unwrap();
    refused(&zombie, step(Some(2), 2), "generation").await;
    // Steps that were queued before the generation ended, but not yet accepted, are refused too.
    instance.runtime.pause("p").await.unwrap();
    let late = EmbeddedLog::new(broker.clone(), group.clone());
    group.next_generation();
    refused(&late, step(Some(2), 2), "generation").await;

    // Steps of the current generation with wrong offsets: repeated, past the committed offset, and from the start.
    let current = EmbeddedLog::new(broker.clone(), group.clone());
    for from in [Some(0), Some(1), Some(3), None] {
        refused(&current, step(from, 2), "offset").await;
    }
    // Of two queued steps, the first has the expected offset and is accepted completely, and the second is refused.
    let receipts = [current.commit(step(Some(2), 2)).await.unwrap(), current.commit(step(Some(1), 2)).await.unwrap()];
    let [first, second] = receipts;
    first.await.unwrap();
    assert!(matches!(second.await, Err(LogError::Fenced(_))));
    assert_eq!((out.end().get(), broker.state().partition("p/m", 0).len()), (3, 1));
    // A deleted pipeline has no tasks, and their late writes do not affect a later pipeline with the same name.
    instance.runtime.delete("p").await.unwrap();
    let answer = current.commit(step(Some(2), 2)).await.unwrap().await;
    assert!(matches!(answer, Err(LogError::Fenced(_))), "{answer:?}");
    instance.stop().await;
}

// ---- groups

const TOPIC: &str = "events";
const PARTITIONS: u32 = 6;

/// Number of deliveries of each record, by partition and offset.
type Seen = Arc<Mutex<HashMap<(u32, u64), usize>>>;

struct Member {
    stop: watch::Sender<bool>,
    reading: JoinHandle<()>,
    assignment: watch::Receiver<millstream_client::Assignment>,
}

impl Member {
    /// Reads record by record or batch by batch, and commits only when it has to give up partitions.
    fn join(client: Client, seen: &Seen, one_by_one: bool) -> Self {
        let settings = ConsumerSettings::topic(TOPIC).group("g").from(Position::Earliest);
        let settings = settings.commit(CommitMode::Auto { interval_ms: 3_600_000 });
        let settings = ConsumerSettings { retry_backoff_ms: 5, ..settings };
        let mut consumer = client.consumer(settings).unwrap();
        let (stop, mut stopping) = watch::channel(false);
        let (seen, assignment) = (seen.clone(), consumer.assignments());
        let reading = tokio::spawn(async move {
            loop {
                let next = async {
                    if one_by_one {
                        let record = consumer.next().await.unwrap().unwrap();
                        return vec![(record.partition, record.offset)];
                    }
                    let set = consumer.next_batch().await.unwrap().unwrap();
                    set.iter().map(|view| (set.partition(), view.unwrap().offset as u64)).collect()
                };
                let places = tokio::select! {
                    biased;
                    _ = stopping.wait_for(|stop| *stop) => break,
                    places = next => places,
                };
                // Processing takes a while, so that some records are still held when their partitions are revoked.
                if !one_by_one {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                let mut seen = seen.lock();
                places.into_iter().for_each(|place| *seen.entry(place).or_default() += 1);
            }
            consumer.close().await.unwrap();
        });
        Self { stop, reading, assignment }
    }

    fn partitions(&self) -> usize {
        self.assignment.borrow().partitions.len()
    }

    async fn leave(self) {
        self.stop.send_replace(true);
        ended("a member", self.reading).await;
    }
}

/// Waits until the members share all partitions evenly.
async fn balanced(members: &[&Member]) {
    let share = PARTITIONS as usize / members.len();
    wait_until("every member has its share", || members.iter().all(|member| member.partitions() == share)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebalances_lose_nothing_and_pipelines_beside_them_repeat_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let (steady, shaky) = (Proxy::start(&server).await, Proxy::start(&server).await);
    let client = server.client();
    let admin = client.admin();
    admin.create_topic(TOPIC, Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    for module in ["bench-map", "words", "count"] {
        admin.push_module(module, guest(module)).await.unwrap();
    }
    let maps = format!("pipeline: maps\nfrom: {TOPIC}\nstages:\n- map: bench-map\nto: mapped\n");
    let counting =
        format!("pipeline: counting\nfrom: {TOPIC}\nstages:\n- map: words\n- aggregate: count\nto: counts\n");
    for yaml in [maps, counting] {
        let request = v1::ApplyPipelineRequest { yaml, ..Default::default() };
        let applied = admin.apply_pipeline(request).await.unwrap();
        assert!(applied.mistakes.is_empty(), "{:?}", applied.mistakes);
    }
    let (stop, mut stopping) = watch::channel(false);
    let produced = Arc::new(AtomicUsize::new(0));
    let (of_load, count) = (client.clone(), produced.clone());
    let load = tokio::spawn(async move {
        let producer = of_load.producer(ProducerSettings { linger_ms: 1, ..Default::default() });
        while !*stopping.borrow_and_update() {
            let number = count.load(Ordering::Relaxed);
            let records = (number..number + 100).map(|number| {
                let record = ProducerRecord::new(TOPIC, format!("n{} x", number % 1_000));
                record.partition((number / 10) as u32 % PARTITIONS)
            });
            for delivery in producer.send_many(records).await.unwrap() {
                delivery.await.unwrap();
            }
            count.fetch_add(100, Ordering::Relaxed);
        }
        producer.close().await.unwrap();
    });
    let seen = Seen::default();
    let sees_more = async || {
        let before = seen.lock().len();
        wait_until("members see more", || seen.lock().len() > before + 300).await;
    };

    // While members join and leave in an orderly way, no record is delivered twice.
    let first = Member::join(steady.client(), &seen, false);
    balanced(&[&first]).await;
    sees_more().await;
    let second = Member::join(steady.client(), &seen, true);
    balanced(&[&first, &second]).await;
    sees_more().await;
    let third = Member::join(steady.client(), &seen, false);
    balanced(&[&first, &second, &third]).await;
    sees_more().await;
    first.leave().await;
    balanced(&[&second, &third]).await;
    sees_more().await;
    second.leave().await;
    balanced(&[&third]).await;
    let first = Member::join(shaky.client(), &seen, true);
    let second = Member::join(steady.client(), &seen, false);
    balanced(&[&first, &second, &third]).await;
    sees_more().await;
    let twice: Vec<_> = seen.lock().iter().filter(|(_, times)| **times > 1).map(|(place, _)| *place).collect();
    assert_eq!(twice, [], "no connection was lost, so no record may be delivered twice");

    // A connection is lost, and its member reconnects. Uncommitted records are delivered again to the new owner.
    for _ in 0..3 {
        let generation = first.assignment.borrow().generation;
        shaky.cut();
        wait_until("the member has rejoined", || first.assignment.borrow().generation > generation).await;
        balanced(&[&first, &second, &third]).await;
        sees_more().await;
    }
    // A member ends without leaving the group.
    second.reading.abort();
    wait_until("the others have its partitions", || first.partitions() + third.partitions() == PARTITIONS as usize)
        .await;
    sees_more().await;

    stop.send_replace(true);
    ended("the load", load).await;
    caught_up(&client, &["maps", "counting"]).await;
    let events = all_records(&client, TOPIC).await;
    let there: usize = events.iter().map(Vec::len).sum();
    assert_eq!(there, produced.load(Ordering::Relaxed));
    wait_until("the members have seen everything", || seen.lock().len() >= there).await;
    first.leave().await;
    third.leave().await;
    for record in events.iter().flatten() {
        assert!(seen.lock().contains_key(&(record.partition, record.offset)), "{record:?}");
    }
    assert_eq!(seen.lock().len(), there);
    let offsets = admin.describe_group("g").await.unwrap().offsets;
    assert!(offsets.iter().all(|offset| offset.lag == 0), "members must commit when they leave: {offsets:?}");

    let mapped = all_records(&client, "mapped").await;
    let value = |record: &millstream_client::ConsumedRecord| text(record.value.as_ref()).unwrap().to_owned();
    for (input, output) in events.iter().zip(&mapped) {
        let expected: Vec<String> = input.iter().map(|record| flipped(&value(record))).collect();
        assert_eq!(output.iter().map(value).collect::<Vec<_>>(), expected);
    }
    let words: Vec<Pair> = (events.iter().flatten())
        .flat_map(|record| {
            value(record).split(' ').map(|word| (Some(word.to_owned()), String::new())).collect::<Vec<_>>()
        })
        .collect();
    let updates = all_records(&client, "counts").await;
    let update =
        |record: &millstream_client::ConsumedRecord| (text(record.key.as_ref()).map(str::to_owned), value(record));
    let updates: Vec<Pair> = updates.iter().flatten().map(update).collect();
    assert_eq!(last_counts(&updates), counts(&words));
}
