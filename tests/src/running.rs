//! A broker in this process with a small journal and a clock that the test controls, so that the test observes each
//! sealing of a part of the journal, each round of retention and each compaction.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use millstream_broker::clock::Clock;
use millstream_broker::groups::members::NewMember;
use millstream_broker::log::partition::Partition;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError, BrokerSettings, Offset, TopicName};
use millstream_record::{BatchBuilder, Compression, Limits, Record, RecordBatch, split_batches};
use parking_lot::{Condvar, Mutex};
use prometheus_client::registry::Registry;

use crate::instance::wait_until;

/// Maximum size of the journal of [`Running::open`], in bytes. It is sealed in quarters of this size, and under load in
/// halves.
pub const JOURNAL_BYTES: u64 = 200_000;

/// Bounds a loop that ends on a condition. The limit is meant for tests that hang, and is no statement about speed.
#[derive(Debug)]
pub struct Limit {
    what: &'static str,
    until: Instant,
}

impl Limit {
    /// Creates a limit for a loop that waits until `what` is true.
    pub fn new(what: &'static str) -> Self {
        Self { what, until: Instant::now() + Duration::from_secs(120) }
    }

    /// Checks the limit. Call this in each iteration of the loop.
    ///
    /// # Panics
    /// Panics after two minutes.
    pub fn check(&self) {
        assert!(Instant::now() < self.until, "condition not met within two minutes: {}", self.what);
    }
}

type Asked = dyn Fn(&str) + Send + Sync;

/// A clock that a test sets.
#[derive(Default)]
pub struct SetClock {
    now_ms: AtomicI64,
    asked: Mutex<Option<Arc<Asked>>>,
}

impl SetClock {
    /// Creates a clock that stands at this time.
    pub fn new(now_ms: i64) -> Self {
        Self { now_ms: AtomicI64::new(now_ms), ..Self::default() }
    }

    /// Sets the clock.
    pub fn set_ms(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
    }

    /// From now on, calls `asked` with the name of each thread that reads the time, before the time is returned.
    /// `asked` may wait or panic.
    pub fn on_asked(&self, asked: impl Fn(&str) + Send + Sync + 'static) {
        *self.asked.lock() = Some(Arc::new(asked));
    }
}

impl std::fmt::Debug for SetClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SetClock({})", self.now_ms.load(Ordering::SeqCst))
    }
}

impl Clock for SetClock {
    fn now_ms(&self) -> i64 {
        let asked = self.asked.lock().clone();
        if let Some((asked, name)) = asked.as_ref().zip(std::thread::current().name()) {
            asked(name);
        }
        self.now_ms.load(Ordering::SeqCst)
    }
}

/// Lets retention make one round at a time. Retention reads the clock once per round.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Arc<(Mutex<RoundState>, Condvar)>);

#[derive(Debug, Default)]
struct RoundState {
    begun: u64,
    allowed: u64,
    released: bool,
}

impl Rounds {
    /// Makes retention wait before each round from now on.
    pub fn hold(clock: &SetClock) -> Self {
        let rounds = Self::default();
        let held = rounds.clone();
        clock.on_asked(move |thread| {
            if thread == "retention" {
                held.wait();
            }
        });
        rounds
    }

    fn wait(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock();
        state.begun += 1;
        changed.wait_while(&mut state, |state| !state.released && state.begun > state.allowed);
    }

    /// Lets retention make one round, and waits until that round ends.
    pub async fn make_one(&self) {
        let waits = || {
            let state = self.0.0.lock();
            state.begun > state.allowed
        };
        wait_until("retention waits before its round", waits).await;
        self.0.0.lock().allowed += 1;
        self.0.1.notify_all();
        wait_until("retention has made its round", waits).await;
    }

    /// Lets retention proceed without waiting.
    pub fn release(&self) {
        self.0.0.lock().released = true;
        self.0.1.notify_all();
    }
}

/// A running broker. Call `stop` before its folder is deleted.
pub struct Running {
    /// The broker.
    pub broker: Broker,
    /// The broker's clock.
    pub clock: Arc<SetClock>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

/// Creates a batch of one record.
///
/// # Panics
/// Panics if the record is invalid.
pub fn batch_of_one(timestamp_ms: i64, key: &str, value: Option<&str>) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(timestamp_ms, Some(key.as_bytes()), value.map(str::as_bytes), []);
    builder.finish().expect("the batch has one record")
}

impl Running {
    /// Opens the broker on the folder `data`, with the clock at `now_ms`.
    ///
    /// # Panics
    /// Panics if the broker cannot be opened.
    pub fn open(data: &Path, now_ms: i64) -> Self {
        Self::open_with(data, now_ms, JOURNAL_BYTES, StoreOptions::default())
    }

    /// Like [`Running::open`], with another journal size and other options.
    ///
    /// # Panics
    /// Panics if the broker cannot be opened.
    pub fn open_with(data: &Path, now_ms: i64, journal_bytes_max: u64, options: StoreOptions) -> Self {
        let clock = Arc::new(SetClock::new(now_ms));
        let settings = BrokerSettings { journal_bytes_max, ..BrokerSettings::default() };
        // A small tail makes most reads go to the disk.
        let options = StoreOptions { tail_bytes_max: Some(10_000), ..options };
        let broker = Broker::open(data, settings, options, clock.clone(), &mut Registry::default());
        Self { broker: broker.expect("the broker can be opened"), clock }
    }

    /// Creates a topic.
    ///
    /// # Panics
    /// Panics if the topic cannot be created.
    pub async fn topic(&self, name: &str, partitions: u32, settings: TopicSettings) -> Arc<Topic> {
        let name = TopicName::new(name).expect("a topic's name");
        self.broker.create_topic(&name, partitions, settings, false).await.expect("the topic is created")
    }

    /// Writes records, given as keys and values, to one partition in one batch.
    ///
    /// # Panics
    /// Panics if the records are refused.
    pub async fn produce(&self, topic: &Topic, partition: u32, timestamp_ms: i64, records: &[(&str, Option<&str>)]) {
        let mut builder = BatchBuilder::new(Compression::None);
        for (key, value) in records {
            builder.push(timestamp_ms, Some(key.as_bytes()), value.map(str::as_bytes), []);
        }
        let batch = builder.finish().expect("the batch has at least one record");
        append(&self.broker, topic, partition, batch).await.expect("the batch is stored");
    }

    /// Fills the journal with records of another topic, so that its previous records are sealed.
    ///
    /// # Panics
    /// Panics if nothing is sealed.
    pub async fn seal(&self) {
        let filler = match self.broker.topic("filler") {
            Ok(filler) => filler,
            Err(_) => self.topic("filler", 1, TopicSettings::default()).await,
        };
        let value = "x".repeat(20_000);
        let limit = Limit::new("the journal is sealed");
        while journal_bytes(&self.broker, |topic| topic.name().as_str() != "filler") > 0 {
            limit.check();
            self.produce(&filler, 0, 0, &[("f", Some(&value))]).await;
        }
    }

    /// Sets the clock.
    pub fn set_ms(&self, now_ms: i64) {
        self.clock.set_ms(now_ms);
    }

    /// Stops the store's threads.
    ///
    /// # Panics
    /// Panics if the threads do not end within two minutes.
    pub async fn stop(self) {
        let broker = self.broker;
        let stopped = tokio::task::spawn_blocking(move || broker.stop());
        let stopped = tokio::time::timeout(Duration::from_secs(120), stopped).await;
        stopped.expect("the store's threads end within two minutes").expect("stopping the broker does not panic");
    }
}

/// Appends a batch, and waits until it is on disk.
///
/// # Errors
/// Returns the broker's error.
///
/// # Panics
/// Panics if the partition does not exist.
pub async fn append(broker: &Broker, topic: &Topic, partition: u32, batch: RecordBatch) -> Result<(), BrokerError> {
    let partition = topic.partition(partition).expect("the partition exists");
    broker.produce(topic, partition, vec![batch]).await?.await.map(drop)
}

/// Returns the size of the record batches of some topics in the journal, in bytes.
pub fn journal_bytes(broker: &Broker, of: impl Fn(&Topic) -> bool) -> u64 {
    let topics = broker.topics();
    let partitions = topics.iter().filter(|topic| of(topic)).flat_map(|topic| topic.partitions());
    partitions.map(|partition| partition.size().journal_bytes).sum()
}

/// Returns all records of a partition from an offset on.
///
/// # Panics
/// Panics if the records cannot be read.
pub async fn read_from(broker: &Broker, partition: &Arc<Partition>, from: Offset) -> Vec<Record> {
    let mut found = Vec::new();
    let mut from = from;
    while from < partition.stable_end() {
        let range = ReadRange { from, until: None, bytes_max: 30_000, one_at_least: true };
        let slice = broker.read(partition, range).await.expect("the partition can be read");
        for batch in slice.runs.into_iter().flat_map(split_batches) {
            let batch = batch.expect("the batch is valid");
            batch.verify_crc().expect("the batch has a valid checksum");
            let records = batch.records(&Limits::default()).expect("the records of the batch are valid");
            let all = records.iter().map(|view| records.to_record(&view.expect("the record is valid")));
            found.extend(all.filter(|record| record.offset >= from.get()));
        }
        assert!(slice.next > from, "a read at offset {from} must advance");
        from = slice.next;
    }
    found
}

/// Returns a key or a value as text.
///
/// # Panics
/// Panics if it is not UTF-8.
pub fn text(bytes: Option<&bytes::Bytes>) -> Option<String> {
    bytes.map(|bytes| String::from_utf8(bytes.to_vec()).expect("the bytes are UTF-8"))
}

/// A member that joins with these topics, and may take a minute to give partitions back.
pub fn new_member(client_id: &str, topics: BTreeSet<TopicName>) -> NewMember {
    NewMember { client_id: client_id.to_owned(), topics, rebalance_timeout: Duration::from_secs(60), assignor: None }
}
