//! A broker and its runtime in this process, for tests that need no network and for those that put a layer below the
//! store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::clock::SystemClock;
use millstream_broker::groups::GroupKind;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings, GroupId, Offset, TopicName};
use millstream_record::{BatchBuilder, Compression, Limits, Record, split_batches};
use millstream_runtime::{Runtime, RuntimeSettings};
use prometheus_client::registry::Registry;

/// A broker and a runtime. Call `stop` before its folder is deleted.
#[derive(Clone)]
pub struct Instance {
    /// The broker.
    pub broker: Broker,
    /// The runtime.
    pub runtime: Runtime,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Instance")
    }
}

impl Instance {
    /// Opens the broker and the runtime on the folder `data`. Must be called within a tokio runtime.
    ///
    /// # Panics
    /// Panics if it cannot be opened.
    pub fn open(data: &Path) -> Self {
        let mut registry = Registry::default();
        let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
        let broker = Broker::open(data, settings, options, Arc::new(SystemClock), &mut registry)
            .expect("the broker and the runtime open");
        let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry)
            .expect("the broker and the runtime open");
        Self { broker, runtime }
    }

    /// Creates a topic.
    ///
    /// # Panics
    /// Panics if the topic cannot be created.
    pub async fn topic(&self, name: &str, partitions: u32) {
        let name = TopicName::new(name).expect("a topic's name");
        self.broker
            .create_topic(&name, partitions, TopicSettings::default(), false)
            .await
            .expect("the topic is created");
    }

    /// Creates a consumer group that never reads, so that the repartition topic keeps its records.
    ///
    /// # Panics
    /// Panics if the topic does not exist or has already lost records.
    pub async fn keep(&self, topic: &str) {
        let topic = self.broker.topic(topic).expect("the topic exists");
        let id = GroupId::new(&format!("keeps-{}", topic.name())).expect("a group's name");
        let group =
            self.broker.groups().get_or_create(&id, GroupKind::Consumer).expect("the group is a consumer group");
        let all: Vec<_> = topic.partitions().iter().map(|of| (of.name().clone(), Offset::ZERO)).collect();
        self.broker.set_offsets(&group, &all).await.expect("the topic has all its records");
    }

    /// Pushes a module of `guests/` under its own name.
    ///
    /// # Panics
    /// Panics if the module is refused.
    pub async fn push(&self, guest: &str) {
        self.runtime.push_module(guest, crate::guest(guest)).await.expect("the module is valid");
    }

    /// Applies a pipeline file that must be valid.
    ///
    /// # Panics
    /// Panics if the file is refused.
    pub async fn apply(&self, yaml: &str) -> Vec<String> {
        match self.runtime.apply(yaml, &Default::default(), false).await {
            Ok(applied) => applied.changes,
            Err(error) => panic!("refused:\n{error}"),
        }
    }

    /// Writes records, given as keys and values, to one partition in one batch.
    ///
    /// # Panics
    /// Panics if the records are refused.
    pub async fn produce(&self, topic: &str, partition: u32, records: &[(Option<&str>, &str)]) -> Offset {
        let mut builder = BatchBuilder::new(Compression::None);
        for (index, (key, value)) in records.iter().enumerate() {
            builder.push(index as i64, key.map(str::as_bytes), Some(value.as_bytes()), []);
        }
        let batch = builder.finish().expect("the batch has at least one record");
        let topic = self.broker.topic(topic).expect("the topic exists");
        let partition = topic.partition(partition).expect("the partition exists");
        let receipt = self.broker.produce(&topic, partition, vec![batch]).await.expect("the broker accepts the batch");
        receipt.await.expect("the batch is stored").base_offsets[0]
    }

    /// Returns all records of a partition.
    ///
    /// # Panics
    /// Panics if the partition cannot be read.
    pub async fn records(&self, topic: &str, partition: u32) -> Vec<Record> {
        records(&self.broker, topic, partition).await
    }

    /// Returns all records of a topic, partition by partition.
    pub async fn all_records(&self, topic: &str) -> Vec<Record> {
        let partitions = self.broker.topic(topic).expect("the topic exists").partition_count();
        let mut all = Vec::new();
        for partition in 0..partitions {
            all.extend(self.records(topic, partition).await);
        }
        all
    }

    /// Waits until every running pipeline has read and committed all its input.
    pub async fn caught_up(&self) {
        wait_until("the pipelines have caught up", || self.runtime.is_caught_up()).await;
    }

    /// Stops the tasks and the committer.
    ///
    /// # Panics
    /// Panics if the committer panicked.
    pub async fn stop(self) {
        self.runtime.stop().await;
        let broker = self.broker.clone();
        tokio::task::spawn_blocking(move || broker.stop()).await.expect("the broker stops without a panic");
    }
}

/// Returns all records of a partition.
///
/// # Panics
/// Panics if the partition cannot be read.
pub async fn records(broker: &Broker, topic: &str, partition: u32) -> Vec<Record> {
    let topic = broker.topic(topic).expect("the topic exists");
    let partition = topic.partition(partition).expect("the partition exists");
    let mut records = Vec::new();
    let mut from = Offset::ZERO;
    while from < partition.end() {
        let range = ReadRange { from, until: None, bytes_max: 1 << 20, one_at_least: true };
        let slice = broker.read(partition, range).await.expect("the partition can be read");
        for batch in slice.runs.into_iter().flat_map(split_batches) {
            let batch = batch.expect("the batch is valid");
            let read = batch.records(&Limits::default()).expect("the records of the batch are valid");
            for view in &read {
                let record = read.to_record(&view.expect("the record is valid"));
                if record.offset >= from.get() {
                    records.push(record);
                }
            }
        }
        assert!(slice.next > from, "a read must advance");
        from = slice.next;
    }
    records
}

/// Waits for a condition. The limit is meant for tests that hang, and is no statement about speed.
///
/// # Panics
/// Panics if the condition does not become true within two minutes.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(tokio::time::Instant::now() < limit, "condition not met within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
