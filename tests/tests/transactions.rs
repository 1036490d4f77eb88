//! Transactions through sealing, compaction and restarts: readers of committed records see what a model says.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_broker::broker::transactions::InTransaction;
use millstream_broker::log::topic::{Cleanup, Topic, TopicSettings};
use millstream_broker::name::ProducerIdentity;
use millstream_broker::{Broker, Offset};
use millstream_record::{BatchBuilder, Compression, TransactionEnd};
use millstream_tests::instance::wait_until;
use millstream_tests::running::{Running, read_from, text};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A record of the model: its key, its value, and the transaction that it belongs to.
#[derive(Clone, Debug)]
struct Written {
    key: String,
    value: String,
    transaction: Option<usize>,
}

/// A transactional producer, and the transaction that it has open.
struct Producer {
    id: String,
    identity: ProducerIdentity,
    next_sequence: BTreeMap<String, i32>,
    open: Option<usize>,
}

impl Producer {
    async fn new(broker: &Broker, id: &str) -> Self {
        let identity = broker.init_transactional(id, 60_000, None).await.unwrap();
        Self { id: id.to_owned(), identity, next_sequence: BTreeMap::new(), open: None }
    }

    async fn produce(&mut self, broker: &Broker, topic: &Arc<Topic>, key: &str, value: &str) {
        let next = self.next_sequence.entry(topic.name().as_str().to_owned()).or_default();
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(self.identity.id.get(), self.identity.epoch, *next);
        builder.set_transactional(true);
        builder.push(500, Some(key.as_bytes()), Some(value.as_bytes()), []);
        *next += 1;
        let bytes: Bytes = builder.finish().unwrap().into_bytes();
        let of = InTransaction { id: &self.id, adds_partitions: true };
        broker.produce_in_transaction(&of, topic, 0, bytes).await.unwrap().0.await.unwrap();
    }

    async fn end(&mut self, broker: &Broker, end: TransactionEnd) {
        self.identity = broker.end_transaction(&self.id, self.identity, end, true).await.unwrap();
        self.next_sequence.clear();
        self.open = None;
    }
}

/// What the log holds, and how each transaction ended.
#[derive(Default)]
struct Model {
    written: BTreeMap<&'static str, Vec<Written>>,
    ends: Vec<Option<TransactionEnd>>,
}

impl Model {
    /// Returns the committed records of a topic before the first record of an open transaction.
    fn committed(&self, topic: &str) -> Vec<(String, String)> {
        let end = |written: &Written| written.transaction.map(|transaction| self.ends[transaction]);
        let written = self.written.get(topic).into_iter().flatten();
        let stable = written.take_while(|written| end(written) != Some(None));
        let committed = stable.filter(|written| end(written) != Some(Some(TransactionEnd::Abort)));
        committed.map(|written| (written.key.clone(), written.value.clone())).collect()
    }
}

const TOPICS: [&str; 2] = ["kept", "compacted"];

async fn read(running: &Running, topic: &str) -> Vec<(String, String)> {
    let partition = running.broker.topic(topic).unwrap().partitions()[0].clone();
    let records = read_from(&running.broker, &partition, Offset::ZERO).await;
    records.iter().map(|record| (text(record.key.as_ref()).unwrap(), text(record.value.as_ref()).unwrap())).collect()
}

/// Compares what readers see with the model. Of a compacted topic, the last value of each key counts.
async fn check(running: &Running, model: &Model, seed: u64) {
    assert_eq!(read(running, "kept").await, model.committed("kept"), "seed {seed}");
    let last = |records: Vec<(String, String)>| records.into_iter().collect::<BTreeMap<_, _>>();
    assert_eq!(last(read(running, "compacted").await), last(model.committed("compacted")), "seed {seed}");
}

async fn run(seed: u64) {
    let data = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut running = Running::open(data.path(), 1_000);
    running.topic("kept", 1, TopicSettings::default()).await;
    running.topic("compacted", 1, TopicSettings { cleanup: Cleanup::Compact, ..TopicSettings::default() }).await;
    let mut model = Model::default();
    let mut producers = [Producer::new(&running.broker, "a").await, Producer::new(&running.broker, "b").await];
    for step in 0..150 {
        let name = TOPICS[random.random_range(0..2)];
        let topic = running.broker.topic(name).unwrap();
        let (key, value) = (format!("k{}", random.random_range(0..6)), format!("{step} {}", "v".repeat(500)));
        let producer = &mut producers[random.random_range(0..2)];
        match random.random_range(0..20) {
            0..5 => {
                running.produce(&topic, 0, 500, &[(&key, Some(&value))]).await;
                model.written.entry(name).or_default().push(Written { key, value, transaction: None });
            }
            5..13 => {
                let transaction = *producer.open.get_or_insert_with(|| {
                    model.ends.push(None);
                    model.ends.len() - 1
                });
                producer.produce(&running.broker, &topic, &key, &value).await;
                model.written.entry(name).or_default().push(Written { key, value, transaction: Some(transaction) });
            }
            13..17 => {
                let end = if random.random() { TransactionEnd::Commit } else { TransactionEnd::Abort };
                if let Some(transaction) = producer.open {
                    producer.end(&running.broker, end).await;
                    model.ends[transaction] = Some(end);
                }
            }
            17 => running.seal().await,
            18 => {
                running.stop().await;
                running = Running::open(data.path(), 1_000);
            }
            _ => check(&running, &model, seed).await,
        }
    }
    for producer in &mut producers {
        if let Some(transaction) = producer.open {
            producer.end(&running.broker, TransactionEnd::Commit).await;
            model.ends[transaction] = Some(TransactionEnd::Commit);
        }
    }
    check(&running, &model, seed).await;
    // What is left at the end is compacted: far less than was written.
    running.seal().await;
    let compacted = running.broker.topic("compacted").unwrap();
    let committed = model.committed("compacted").len() as u64;
    wait_until("the topic is compacted", || compacted.partitions()[0].size().bytes < committed.max(20) * 400).await;
    check(&running, &model, seed).await;
    running.stop().await;
    let running = Running::open(data.path(), 1_000);
    check(&running, &model, seed).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_records_are_seen_through_sealing_compaction_and_restarts() {
    for seed in 0..6 {
        run(seed).await;
    }
}
