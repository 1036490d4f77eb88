//! A broker in this process whose journal is small and whose clock a test holds, so that the test sees each part of
//! the journal sealed, each round of retention and each compaction.

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

/// What a journal of [`Running::open`] keeps. It is sealed in quarters of this, and under load in halves.
pub const JOURNAL_BYTES: u64 = 200_000;

/// Bounds a loop that ends with a condition. The limit is for a test that hangs; it says nothing of speed.
#[derive(Debug)]
pub struct Limit {
    what: &'static str,
    until: Instant,
}

impl Limit {
    /// `what` is to become true.
    pub fn new(what: &'static str) -> Self {
        Self { what, until: Instant::now() + Duration::from_secs(120) }
    }

    /// Called in each turn of the loop.
    ///
    /// # Panics
    /// Where it turns for two minutes.
    pub fn check(&self) {
        assert!(Instant::now() < self.until, "not within two minutes: {}", self.what);
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
    /// One that stands at this time.
    pub fn new(now_ms: i64) -> Self {
        Self { now_ms: AtomicI64::new(now_ms), ..Self::default() }
    }

    /// Sets it.
    pub fn set_ms(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
    }

    /// From now on calls `asked` with the name of each thread that asks for the time, before it is told: `asked` may
    /// wait, or panic.
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

/// Lets retention make one round at a time. Retention asks for the time once a round.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Arc<(Mutex<RoundState>, Condvar)>);

#[derive(Debug, Default)]
struct RoundState {
    begun: u64,
    allowed: u64,
    released: bool,
}

impl Rounds {
    /// From now on retention waits before each round.
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

    /// Lets it make one round, and waits for the end of that.
    pub async fn make_one(&self) {
        let waits = || {
            let state = self.0.0.lock();
            state.begun > state.allowed
        };
        wait_until("retention waits for its round", waits).await;
        self.0.0.lock().allowed += 1;
        self.0.1.notify_all();
        wait_until("retention has made its round", waits).await;
    }

    /// Lets it go on by itself.
    pub fn release(&self) {
        self.0.0.lock().released = true;
        self.0.1.notify_all();
    }
}

/// A broker at work. `stop` it before its folder goes.
pub struct Running {
    /// The broker.
    pub broker: Broker,
    /// Its clock.
    pub clock: Arc<SetClock>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

/// One record in a batch of its own.
///
/// # Panics
/// Where it is no good record.
pub fn batch_of_one(timestamp_ms: i64, key: &str, value: Option<&str>) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(timestamp_ms, Some(key.as_bytes()), value.map(str::as_bytes), []);
    builder.finish().expect("there is a record")
}

impl Running {
    /// Opens `data` at a time.
    ///
    /// # Panics
    /// Where it does not open.
    pub fn open(data: &Path, now_ms: i64) -> Self {
        Self::open_with(data, now_ms, JOURNAL_BYTES, StoreOptions::default())
    }

    /// As [`Running::open`], with another journal and options.
    ///
    /// # Panics
    /// Where it does not open.
    pub fn open_with(data: &Path, now_ms: i64, journal_bytes_max: u64, options: StoreOptions) -> Self {
        let clock = Arc::new(SetClock::new(now_ms));
        let settings = BrokerSettings { journal_bytes_max, ..BrokerSettings::default() };
        // Most reads go to the disk.
        let options = StoreOptions { tail_bytes_max: Some(10_000), ..options };
        let broker = Broker::open(data, settings, options, clock.clone(), &mut Registry::default());
        Self { broker: broker.expect("it opens"), clock }
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// Where it can't be made.
    pub async fn topic(&self, name: &str, partitions: u32, settings: TopicSettings) -> Arc<Topic> {
        let name = TopicName::new(name).expect("a topic's name");
        self.broker.create_topic(&name, partitions, settings, false).await.expect("a new topic")
    }

    /// Writes records, keys and values, to one partition in one batch.
    ///
    /// # Panics
    /// Where they are refused.
    pub async fn produce(&self, topic: &Topic, partition: u32, timestamp_ms: i64, records: &[(&str, Option<&str>)]) {
        let mut builder = BatchBuilder::new(Compression::None);
        for (key, value) in records {
            builder.push(timestamp_ms, Some(key.as_bytes()), value.map(str::as_bytes), []);
        }
        let batch = builder.finish().expect("there are records");
        append(&self.broker, topic, partition, batch).await.expect("it is stored");
    }

    /// Fills the journal with records of another topic, so that what it held before is sealed.
    ///
    /// # Panics
    /// Where nothing is sealed.
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

    /// Ends the store's threads.
    ///
    /// # Panics
    /// Where they do not end within two minutes.
    pub async fn stop(self) {
        let broker = self.broker;
        let stopped = tokio::task::spawn_blocking(move || broker.stop());
        let stopped = tokio::time::timeout(Duration::from_secs(120), stopped).await;
        stopped.expect("the store's threads end").expect("a stop does not panic");
    }
}

/// Appends a batch, and waits until it is on disk.
///
/// # Errors
/// What the broker says.
///
/// # Panics
/// Where there is no such partition.
pub async fn append(broker: &Broker, topic: &Topic, partition: u32, batch: RecordBatch) -> Result<(), BrokerError> {
    let partition = topic.partition(partition).expect("the partition is there");
    broker.produce(topic, partition, vec![batch]).await?.await.map(drop)
}

/// Bytes of record batches that the journal holds of some topics.
pub fn journal_bytes(broker: &Broker, of: impl Fn(&Topic) -> bool) -> u64 {
    let topics = broker.topics();
    let partitions = topics.iter().filter(|topic| of(topic)).flat_map(|topic| topic.partitions());
    partitions.map(|partition| partition.size().journal_bytes).sum()
}

/// All records of a partition from an offset on.
///
/// # Panics
/// Where they can't be read.
pub async fn read_from(broker: &Broker, partition: &Arc<Partition>, from: Offset) -> Vec<Record> {
    let mut found = Vec::new();
    let mut from = from;
    while from < partition.end() {
        let range = ReadRange { from, until: None, bytes_max: 30_000, one_at_least: true };
        let slice = broker.read(partition, range).await.expect("it is read");
        for batch in slice.runs.into_iter().flat_map(split_batches) {
            let batch = batch.expect("a good batch");
            batch.verify_crc().expect("a sound batch");
            let records = batch.records(&Limits::default()).expect("good records");
            let all = records.iter().map(|view| records.to_record(&view.expect("a good record")));
            found.extend(all.filter(|record| record.offset >= from.get()));
        }
        assert!(slice.next > from, "a read goes on at {from}");
        from = slice.next;
    }
    found
}

/// A key or a value as text.
///
/// # Panics
/// Where it is none.
pub fn text(bytes: Option<&bytes::Bytes>) -> Option<String> {
    bytes.map(|bytes| String::from_utf8(bytes.to_vec()).expect("it is text"))
}

/// A member that joins with these topics, and may take a minute to give partitions back.
pub fn new_member(client_id: &str, topics: BTreeSet<TopicName>) -> NewMember {
    NewMember { client_id: client_id.to_owned(), topics, rebalance_timeout: Duration::from_secs(60) }
}
