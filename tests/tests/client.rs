//! The Rust client against a real server: records arrive in order, failures are reported, and a server that is
//! restarted costs no more than is documented.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use millstream_client::{
    Assignment, Client, ClientError, CommitMode, Compression, ConsumedRecord, Consumer, ConsumerSettings, Delivery,
    Header, Position, Producer, ProducerRecord, ProducerSettings, RecordMetadata, RecordRef, RecordSet, v1,
};
use millstream_tests::instance::wait_until;
use millstream_tests::proxy::Proxy;
use millstream_tests::server::{Ran, Server, run};
use millstream_tests::target_dir;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A server for one test, and a client of it.
struct Running {
    server: Server,
    client: Client,
    _data: TempDir,
}

impl Running {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path());
        Self { client: server.client(), server, _data: data }
    }

    /// Like [`Running::start`], with topic `t`.
    async fn with_topic(partitions: u32) -> Self {
        let running = Self::start();
        create_topic(&running.client, "t", partitions).await;
        running
    }
}

/// A way in which a server stops and comes back on the same address.
type Restart = fn(&mut Server);

fn killed(server: &mut Server) {
    server.kill();
    server.restart_in_place();
}

fn stopped_in_good_order(server: &mut Server) {
    assert!(server.terminate().success());
    server.restart_in_place();
}

/// Waits for a future. The limit is meant for tests that hang, and is no statement about speed.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), future).await;
    done.unwrap_or_else(|_| panic!("not completed within two minutes: {what}"))
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let holding = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, holding).await;
}

async fn create_topic(client: &Client, name: &str, partitions: u32) {
    client.admin().create_topic(name, Some(partitions), Default::default()).await.unwrap();
}

/// Stores records with 31 distinct keys, in small batches.
async fn fill(client: &Client, topic: &str, records: u64) {
    let producer = client.producer(ProducerSettings { batch_bytes: 1_000, ..Default::default() });
    for number in 0..records {
        drop(send(&producer, ProducerRecord::keyed(topic, format!("{}", number % 31), format!("{number:08}"))).await);
    }
    producer.close().await.unwrap();
}

async fn send(producer: &Producer, record: ProducerRecord) -> Delivery {
    soon("the record is accepted", producer.send(record)).await.unwrap()
}

async fn store(producer: &Producer, record: ProducerRecord) -> Result<RecordMetadata, ClientError> {
    let delivery = send(producer, record).await;
    soon("an outcome", delivery).await
}

async fn send_error(producer: &Producer, record: ProducerRecord) -> ClientError {
    soon("an answer", producer.send(record)).await.map(drop).unwrap_err()
}

fn earliest(topic: &str) -> ConsumerSettings {
    ConsumerSettings::topic(topic).from(Position::Earliest)
}

/// Returns settings for a member of group `g`.
fn member() -> ConsumerSettings {
    earliest("t").group("g")
}

async fn read_all(client: &Client, topic: &str) -> Vec<ConsumedRecord> {
    let consumer = client.consumer(earliest(topic).until_end()).unwrap();
    soon("the end", consumer.into_stream().try_collect()).await.unwrap()
}

async fn next(consumer: &mut Consumer) -> ConsumedRecord {
    soon("a record", consumer.next()).await.expect("there is one more record").unwrap()
}

async fn next_error(consumer: &mut Consumer) -> ClientError {
    soon("an error", consumer.next()).await.expect("there is an error").unwrap_err()
}

async fn next_batch(consumer: &mut Consumer) -> RecordSet {
    soon("records", consumer.next_batch()).await.expect("there are more records").unwrap()
}

/// Counts the remaining records until the end.
async fn count_rest(consumer: &mut Consumer) -> usize {
    let mut count = 0;
    while let Some(set) = soon("records or the end", consumer.next_batch()).await {
        count += places(&set.unwrap()).len();
    }
    count
}

async fn assigned(consumer: &Consumer, partitions: usize) {
    let mut assignments = consumer.assignments();
    let assigned = assignments.wait_for(|assignment| assignment.partitions.len() == partitions);
    soon("an assignment", assigned).await.unwrap();
}

async fn stored(client: &Client, topic: &str) -> u64 {
    client.admin().describe_topic(topic).await.unwrap().topic.unwrap().records
}

async fn group(client: &Client, name: &str) -> v1::Group {
    client.admin().describe_group(name).await.unwrap().group.unwrap()
}

/// Partition and offset of a record.
type Place = (u32, u64);

fn places(set: &RecordSet) -> Vec<Place> {
    set.iter().map(|record| (set.partition(), record.unwrap().offset as u64)).collect()
}

/// Asserts that each partition is read from offset 0 in order, with no gaps and no duplicates.
fn assert_contiguous(places: impl IntoIterator<Item = Place>) {
    let mut next = HashMap::<u32, u64>::new();
    for (partition, offset) in places {
        let next = next.entry(partition).or_default();
        assert_eq!(offset, *next, "partition {partition}");
        *next += 1;
    }
}

fn place(record: &ConsumedRecord) -> Place {
    (record.partition, record.offset)
}

// Producing

/// Builds records with and without a key, a fixed partition, headers and a timestamp.
fn varied(topic: &str, number: u32) -> ProducerRecord {
    let (key, value) = (format!("k{}", number % 100), format!("v{number}"));
    let mut record = match number % 4 {
        0 => ProducerRecord::keyed(topic, key, value),
        1 => ProducerRecord::new(topic, value),
        2 => ProducerRecord::tombstone(topic, key),
        _ => ProducerRecord::new(topic, value).partition(number % 3).timestamp_ms(1_000 + i64::from(number)),
    };
    if number.is_multiple_of(5) {
        record = record.header("a", "1").header("a", Bytes::new());
        record.headers.push(Header { name: "null".into(), value: None });
    }
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_is_consumed_whatever_the_compression() {
    const RECORDS: u32 = 1_000;
    let running = Running::start();
    for compression in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let topic = format!("t-{compression}");
        create_topic(&running.client, &topic, 4).await;
        let settings = ProducerSettings { compression, batch_bytes: 1_000, ..Default::default() };
        let producer = running.client.producer(settings);
        let records: Vec<_> = (0..RECORDS).map(|number| varied(&topic, number)).collect();
        let deliveries = producer.send_many(records.clone()).await.unwrap();
        producer.close().await.unwrap();

        let all = read_all(&running.client, &topic).await;
        assert_contiguous(all.iter().map(place));
        assert_eq!(all.len(), records.len());
        let all: HashMap<Place, ConsumedRecord> = all.into_iter().map(|record| (place(&record), record)).collect();
        let mut last = HashMap::new();
        for (sent, delivery) in records.into_iter().zip(deliveries) {
            let at = delivery.await.unwrap();
            let got = &all[&(at.partition, at.offset)];
            assert_eq!((&got.key, &got.value, &got.headers), (&sent.key, &sent.value, &sent.headers));
            assert_eq!(got.timestamp_ms, at.timestamp_ms);
            assert_eq!(sent.timestamp_ms.unwrap_or(at.timestamp_ms), at.timestamp_ms);
            assert_eq!(sent.partition.unwrap_or(at.partition), at.partition);
            let before = last.insert(at.partition, at.offset);
            assert!(before < Some(at.offset), "{before:?} was stored before {at:?}");
        }
        assert_eq!(last.len(), 4);
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_said_at_once() {
    let running = Running::with_topic(2).await;
    let producer = running.client.producer(ProducerSettings::default());
    let error = send_error(&producer, ProducerRecord::new("nope", "x")).await;
    assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic));
    let error = send_error(&producer, ProducerRecord::new("t", "x").partition(7)).await;
    assert!(matches!(error, ClientError::UnknownPartition { partition: 7, partitions: 2, .. }), "{error}");
    let error = send_error(&producer, ProducerRecord::new("t", vec![0; 2 << 20])).await;
    assert!(matches!(error, ClientError::RecordTooLarge { .. }), "{error}");
    let large = store(&producer, ProducerRecord::new("t", vec![0; 1_000_000])).await.unwrap();
    assert_eq!(large.offset, 0);
}

#[tokio::test]
async fn a_topic_deleted_behind_the_producers_back_can_be_made_again() {
    let running = Running::with_topic(2).await;
    let producer = running.client.producer(ProducerSettings::default());
    store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
    running.client.admin().delete_topic("t").await.unwrap();

    let delivery = send(&producer, ProducerRecord::new("t", "x")).await;
    let flushed = producer.flush().await.unwrap_err();
    for error in [flushed, delivery.await.unwrap_err(), send_error(&producer, ProducerRecord::new("t", "x")).await] {
        assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic), "{error}");
    }

    create_topic(&running.client, "t", 1).await;
    let stored = store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
    assert_eq!((stored.partition, stored.offset), (0, 0));
}

#[tokio::test]
async fn a_closed_producer_says_so_to_its_clones() {
    let running = Running::with_topic(1).await;
    let producer = running.client.producer(ProducerSettings::default());
    let clone = producer.clone();
    let delivery = send(&clone, ProducerRecord::new("t", "x")).await;
    producer.close().await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0);
    let error = send_error(&clone, ProducerRecord::new("t", "x")).await;
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
    assert!(matches!(clone.flush().await, Err(ClientError::Closed { .. })));
    assert!(matches!(clone.close().await, Err(ClientError::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_server_is_every_call_says_so() {
    let mut running = Running::with_topic(1).await;
    running.server.kill();
    let client = &running.client;
    let producer = client.producer(ProducerSettings::default());
    for error in [
        client.admin().list_topics().await.unwrap_err(),
        next_error(&mut client.consumer(earliest("t")).unwrap()).await,
        next_error(&mut client.consumer(member()).unwrap()).await,
        send_error(&producer, ProducerRecord::new("t", "x")).await,
    ] {
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(&running.server.grpc), "{error}");
    }
}

/// Creates a producer with a small buffer, whose batches are never sent because of their age.
fn tight(client: &Client) -> Producer {
    client.producer(ProducerSettings { buffer_bytes_max: 8 << 10, linger_ms: 600_000, ..Default::default() })
}

#[tokio::test]
async fn a_full_buffer_makes_send_wait_but_never_for_good() {
    let running = Running::with_topic(3).await;
    let producer = tight(&running.client);
    let small = |number: u32| ProducerRecord::keyed("t", format!("{number}"), vec![1; 100]);
    for number in 0..500 {
        drop(send(&producer, small(number)).await);
    }
    let larger_than_the_buffer = ProducerRecord::new("t", vec![1; 100_000]);
    drop(send(&producer, larger_than_the_buffer).await);
    for number in 0..100 {
        drop(send(&producer, small(number)).await);
    }
    producer.close().await.unwrap();
    assert_eq!(read_all(&running.client, "t").await.len(), 601);
}

#[tokio::test]
async fn try_send_takes_what_fits() {
    let running = Running::with_topic(1).await;
    let producer = tight(&running.client);
    let record = ProducerRecord::new("t", vec![1; 100]);
    let not_looked_up = producer.try_send(&record);
    assert!(matches!(not_looked_up, Err(ClientError::BufferFull { .. })), "{not_looked_up:?}");
    let first = send(&producer, record.clone()).await;
    let fitting = 1 + std::iter::from_fn(|| producer.try_send(&record).ok()).take(1_000).count();
    assert!((50..=(8 << 10) / 100).contains(&fitting), "{fitting} records of 100 bytes fit into 8 KiB");
    assert!(first.outcome().is_none());
    producer.flush().await.unwrap();
    assert!(first.outcome().unwrap().is_ok());
    producer.try_send(&record).map(drop).unwrap();
}

#[tokio::test]
async fn a_dropped_producer_still_sends() {
    let running = Running::with_topic(1).await;
    let producer = tight(&running.client);
    drop(send(&producer, ProducerRecord::new("t", "x")).await);
    drop(producer);
    eventually("the record is stored", async || stored(&running.client, "t").await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_share_a_producer_each_keep_their_order() {
    const EACH: u32 = 500;
    let running = Running::with_topic(2).await;
    let producer = running.client.producer(ProducerSettings { batch_bytes: 1_000, ..Default::default() });
    let topic = producer.topic("t").await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..8u32 {
        let topic = topic.clone();
        tasks.spawn(async move {
            for number in 0..EACH {
                let (key, value) = (task.to_be_bytes(), number.to_be_bytes());
                drop(topic.send(RecordRef::keyed(&key, &value)).await.unwrap());
            }
        });
    }
    tasks.join_all().await;
    producer.close().await.unwrap();
    let mut next = BTreeMap::<Bytes, u32>::new();
    for record in read_all(&running.client, "t").await {
        let next = next.entry(record.key.unwrap()).or_default();
        assert_eq!(record.value.unwrap(), next.to_be_bytes()[..]);
        *next += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [EACH; 8]);
}

#[test]
fn the_end_of_the_runtime_leaves_nobody_waiting() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (running, producer, delivery) = runtime.block_on(async {
        let running = Running::with_topic(1).await;
        let producer = tight(&running.client);
        let delivery = send(&producer, ProducerRecord::new("t", "x")).await;
        (running, producer, delivery)
    });
    runtime.shutdown_timeout(Duration::from_secs(120));

    let another = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    another.block_on(async {
        let delivered = soon("an outcome", delivery).await.map(drop);
        let flushed = soon("an answer", producer.flush()).await;
        let sent = soon("an answer", producer.send(ProducerRecord::new("t", "x"))).await.map(drop);
        for end in [delivered, flushed, sent] {
            assert!(matches!(end, Err(ClientError::Closed { .. })), "{end:?}");
        }
    });
    drop(running);
}

// Producing while the server goes away

/// The sent values with their outcomes, and the stored records.
struct Produced {
    sent: Vec<(String, Result<RecordMetadata, ClientError>)>,
    stored: Vec<ConsumedRecord>,
}

/// Produces continuously during two restarts.
async fn produce_through(restart: Restart, settings: ProducerSettings) -> Produced {
    let mut running = Running::with_topic(3).await;
    let client = running.client.clone();
    let small = ProducerSettings { batch_bytes: 2_000, buffer_bytes_max: 64 << 10, retry_backoff_ms: 20, ..settings };
    let producer = client.producer(small);
    let enough = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let (producer, enough) = (producer.clone(), enough.clone());
        async move {
            let mut sent = Vec::new();
            while !enough.load(Ordering::Relaxed) {
                let value = format!("{:09}{}", sent.len(), "x".repeat(200));
                let record = ProducerRecord::keyed("t", format!("{}", sent.len() % 17), value.clone());
                sent.push((value, send(&producer, record).await));
            }
            sent
        }
    });
    let more_is_stored = async || {
        let before = stored(&client, "t").await;
        eventually("more records are stored", async || stored(&client, "t").await > before + 300).await;
    };
    for _ in 0..2 {
        more_is_stored().await;
        restart(&mut running.server);
    }
    more_is_stored().await;
    enough.store(true, Ordering::Relaxed);

    let deliveries = sending.await.unwrap();
    let closed = soon("the last outcomes", producer.close()).await;
    let mut sent = Vec::new();
    for (value, delivery) in deliveries {
        sent.push((value, delivery.await));
    }
    assert_eq!(closed.is_err(), sent.iter().any(|(_, outcome)| outcome.is_err()), "{closed:?}");
    Produced { sent, stored: read_all(&client, "t").await }
}

impl Produced {
    fn assert_acked_records_are_where_it_was_said(&self) {
        assert_contiguous(self.stored.iter().map(place));
        let stored: HashMap<Place, &ConsumedRecord> =
            self.stored.iter().map(|record| (place(record), record)).collect();
        for (value, outcome) in &self.sent {
            let Ok(at) = outcome else { continue };
            let record =
                stored.get(&(at.partition, at.offset)).unwrap_or_else(|| panic!("the record at {at:?} is lost"));
            assert_eq!(record.value.as_deref(), Some(value.as_bytes()), "{at:?}");
        }
    }

    fn assert_in_order_and_once(&self) {
        let mut last = HashMap::new();
        for record in &self.stored {
            let before = last.insert(record.partition, &record.value);
            assert!(before < Some(&record.value), "{before:?} is stored before {record:?}");
        }
    }
}

async fn assert_costs_nothing(restart: Restart, settings: ProducerSettings) {
    let produced = produce_through(restart, settings).await;
    let failed = produced.sent.iter().find_map(|(_, outcome)| outcome.as_ref().err());
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(produced.sent.len(), produced.stored.len());
    produced.assert_acked_records_are_where_it_was_said();
    produced.assert_in_order_and_once();
}

fn not_idempotent() -> ProducerSettings {
    ProducerSettings { idempotent: false, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_good_order_costs_a_producer_nothing() {
    assert_costs_nothing(stopped_in_good_order, ProducerSettings::default()).await;
    assert_costs_nothing(stopped_in_good_order, not_idempotent()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_costs_an_idempotent_producer_nothing() {
    assert_costs_nothing(killed, ProducerSettings::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_idempotence_a_kill_leaves_in_doubt_only_what_is_said_to_be() {
    let produced = produce_through(killed, not_idempotent()).await;
    produced.assert_acked_records_are_where_it_was_said();
    produced.assert_in_order_and_once();
    for (_, outcome) in &produced.sent {
        assert!(matches!(outcome, Ok(_) | Err(ClientError::UnknownOutcome { .. })), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_idempotence_retry_unknown_loses_nothing_to_a_kill() {
    let settings = ProducerSettings { retry_unknown: true, ..not_idempotent() };
    let produced = produce_through(killed, settings).await;
    produced.assert_acked_records_are_where_it_was_said();
    let failed = produced.sent.iter().find_map(|(_, outcome)| outcome.as_ref().err());
    assert!(failed.is_none(), "{failed:?}");
    assert!(produced.stored.len() >= produced.sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_producer_survives_restarts() {
    let mut running = Running::with_topic(1).await;
    // The next attempt to connect is either long overdue when the record arrives, or not due yet.
    for retry_backoff_ms in [1, 1_000] {
        for restart in [killed, stopped_in_good_order] as [Restart; 2] {
            let settings = ProducerSettings { retry_backoff_ms, ..Default::default() };
            let producer = running.client.producer(settings);
            store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
            restart(&mut running.server);
            store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
            producer.close().await.unwrap();
        }
    }
    assert_eq!(read_all(&running.client, "t").await.len(), 8);
}

#[tokio::test]
async fn a_delivery_ends_in_time_without_a_server() {
    let mut running = Running::with_topic(1).await;
    let settings = ProducerSettings { delivery_timeout_ms: 500, ..Default::default() };
    let producer = running.client.producer(settings);
    store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
    running.server.kill();
    let error = store(&producer, ProducerRecord::new("t", "x")).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { after_ms: 500, last: Some(_), .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topics_first_record_waits_for_a_server_that_was_there() {
    let mut running = Running::with_topic(1).await;
    create_topic(&running.client, "first-used-when-it-is-back", 1).await;
    let settings = ProducerSettings { delivery_timeout_ms: 500, ..Default::default() };
    let (patient, hasty) = (running.client.producer(ProducerSettings::default()), running.client.producer(settings));
    for producer in [&patient, &hasty] {
        store(producer, ProducerRecord::new("t", "x")).await.unwrap();
    }
    running.server.kill();
    let record = || ProducerRecord::new("first-used-when-it-is-back", "y");
    let error = send_error(&hasty, record()).await;
    assert!(matches!(&error, ClientError::Timeout { after_ms: 500, last: Some(_), .. }), "{error:?}");
    assert!(error.to_string().contains("looking up topic first-used-when-it-is-back"), "{error}");
    let waiting = tokio::spawn(async move { store(&patient, record()).await });
    assert!(!waiting.is_finished());
    running.server.restart_in_place();
    assert_eq!(soon("the record is stored", waiting).await.unwrap().unwrap().offset, 0);
}

#[tokio::test]
async fn a_server_that_falls_silent_leaves_the_outcome_unknown() {
    let running = Running::with_topic(1).await;
    let settings = ProducerSettings { delivery_timeout_ms: 500, ..Default::default() };
    let producer = running.client.producer(settings);
    store(&producer, ProducerRecord::new("t", "x")).await.unwrap();
    let stop = Command::new("kill").args(["-STOP", &running.server.pid().to_string()]).status().unwrap();
    assert!(stop.success());
    let error = store(&producer, ProducerRecord::new("t", "x")).await.unwrap_err();
    assert!(matches!(error, ClientError::UnknownOutcome { records: 1, .. }), "{error:?}");
}

// Consuming without a group

#[tokio::test(flavor = "multi_thread")]
async fn reading_begins_where_it_is_told_in_sets_and_one_by_one() {
    let running = Running::with_topic(1).await;
    let client = &running.client;
    let producer = client.producer(ProducerSettings { batch_bytes: 1_000, ..Default::default() });
    for number in 0..1_000 {
        drop(send(&producer, ProducerRecord::new("t", format!("{number}")).timestamp_ms(10_000 + number)).await);
    }
    producer.close().await.unwrap();
    for (from, first) in [
        (Position::Earliest, 0),
        (Position::Offset(333), 333),
        (Position::TimestampMs(10_500), 500),
        (Position::Offset(999), 999),
    ] {
        let settings = ConsumerSettings::topic("t").from(from).until_end();
        let mut consumer = client.consumer(settings.clone()).unwrap();
        assert_eq!(places(&next_batch(&mut consumer).await)[0], (0, first), "{from:?}");

        let mut consumer = client.consumer(settings).unwrap();
        let mut seen = vec![place(&next(&mut consumer).await)];
        while let Some(set) = soon("records or the end", consumer.next_batch()).await {
            seen.extend(places(&set.unwrap()));
        }
        let rest: Vec<Place> = (first..1_000).map(|offset| (0, offset)).collect();
        assert_eq!(seen, rest, "{from:?}");
        assert!(consumer.next().await.is_none());
        consumer.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_offset_that_is_not_there_is_said_once() {
    let running = Running::with_topic(1).await;
    fill(&running.client, "t", 10).await;
    let settings = ConsumerSettings::topic("t").from(Position::Offset(5_000));
    let mut consumer = running.client.consumer(settings).unwrap();
    let error = next_error(&mut consumer).await;
    assert_eq!(error.code(), Some(v1::ErrorCode::OffsetOutOfRange));
    assert!(error.to_string().contains("5000") && error.to_string().contains("10"), "{error}");
    assert!(soon("the end", consumer.next()).await.is_none());
}

#[tokio::test]
async fn latest_begins_after_what_is_there() {
    let running = Running::with_topic(1).await;
    fill(&running.client, "t", 10).await;
    let mut consumer = running.client.consumer(ConsumerSettings::topic("t")).unwrap();
    assigned(&consumer, 1).await;
    fill(&running.client, "t", 1).await;
    assert_eq!(next(&mut consumer).await.offset, 10);
    let error = consumer.commit().await.unwrap_err();
    assert!(matches!(error, ClientError::InvalidArgument { what: "group", .. }), "{error}");
    soon("a consumer at the end closes", consumer.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_that_is_given_up_loses_nothing() {
    let running = Running::with_topic(2).await;
    let client = running.client.clone();
    let mut consumer = client.consumer(ConsumerSettings { buffer_bytes_max: 1, ..earliest("t") }).unwrap();
    assert!(consumer.next().now_or_never().is_none());
    let filling = tokio::spawn(async move { fill(&client, "t", 500).await });
    let mut seen = Vec::new();
    let reading = async {
        while seen.len() < 500 {
            match consumer.next().now_or_never() {
                Some(record) => seen.push(place(&record.unwrap().unwrap())),
                None => tokio::task::yield_now().await,
            }
        }
    };
    soon("all records", reading).await;
    assert_contiguous(seen);
    filling.await.unwrap();
}

#[tokio::test]
async fn one_consumer_reads_several_topics_or_a_part_of_one() {
    let running = Running::with_topic(1).await;
    let client = &running.client;
    create_topic(client, "u", 2).await;
    fill(client, "t", 300).await;
    fill(client, "u", 500).await;
    let both = ConsumerSettings::topics(["t", "u"]).from(Position::Earliest).until_end();
    let mut consumer = client.consumer(both).unwrap();
    let mut counts = BTreeMap::<String, usize>::new();
    while let Some(set) = soon("records or the end", consumer.next_batch()).await {
        let set = set.unwrap();
        *counts.entry(set.topic().to_owned()).or_default() += places(&set).len();
    }
    assert_eq!(counts, BTreeMap::from([("t".to_owned(), 300), ("u".to_owned(), 500)]));

    let mut halves = Vec::new();
    for partition in 0..2 {
        let mut consumer = client.consumer(earliest("u").partitions([partition]).until_end()).unwrap();
        let first = next_batch(&mut consumer).await;
        assert_eq!(first.partition(), partition);
        assert_eq!(consumer.assignment().partitions.len(), 1);
        halves.push(places(&first).len() + count_rest(&mut consumer).await);
    }
    assert!(halves.iter().all(|half| *half > 0));
    assert_eq!(halves.iter().sum::<usize>(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_where_it_was_after_restarts() {
    let mut running = Running::with_topic(3).await;
    let client = &running.client;
    fill(client, "t", 600).await;
    let settings = ConsumerSettings { buffer_bytes_max: 5_000, fetch_bytes_max: 1_000, ..earliest("t") };
    let mut consumer = client.consumer(settings).unwrap();
    let mut seen = Vec::new();
    for restart in [killed, stopped_in_good_order] as [Restart; 2] {
        for _ in 0..200 {
            seen.push(place(&next(&mut consumer).await));
        }
        restart(&mut running.server);
        fill(client, "t", 200).await;
    }
    while seen.len() < 1_000 {
        seen.push(place(&next(&mut consumer).await));
    }
    assert_contiguous(seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_without_records_looks_for_its_server_anew_each_time_that_it_is_gone() {
    const RECONNECT_TIMEOUT: Duration = Duration::from_secs(6);
    let running = Running::with_topic(1).await;
    let proxy = Proxy::start(&running.server).await;
    let settings = |group: Option<&str>| ConsumerSettings {
        group: group.map(String::from),
        from: Position::Earliest,
        reconnect_timeout_ms: RECONNECT_TIMEOUT.as_millis() as u64,
        ..ConsumerSettings::topic("t")
    };
    let mut consumers = [None, Some("g")].map(|group| proxy.client().consumer(settings(group)).unwrap());
    let producer = running.client.producer(ProducerSettings::default());
    let passes = async |consumers: &mut [Consumer; 2], value: &str| {
        producer.send(ProducerRecord::new("t", value.to_owned())).await.unwrap().await.unwrap();
        for consumer in consumers {
            let record = soon("the record arrives", consumer.next()).await.unwrap().unwrap();
            assert_eq!(record.value.unwrap(), value);
            // Records that a member did not commit are delivered to it again.
            if consumer.assignment().generation > 0 {
                consumer.commit().await.unwrap();
            }
        }
    };
    passes(&mut consumers, "before").await;
    // By the last outage, the time since the first one exceeds the reconnect timeout.
    for _ in 0..3 {
        proxy.pass_to_nobody();
        proxy.cut();
        wait_until("the consumers report the outage", || consumers.iter().all(|consumer| consumer.trouble().is_some()))
            .await;
        assert!(consumers.iter().all(|consumer| consumer.trouble().unwrap().contains("127.0.0.1")));
        proxy.pass_to(&running.server);
        wait_until("the consumers have reconnected", || consumers.iter().all(|consumer| consumer.trouble().is_none()))
            .await;
        tokio::time::sleep(RECONNECT_TIMEOUT / 2).await;
    }
    passes(&mut consumers, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_partitions_with_few_records_are_written_and_read() {
    const PARTITIONS: u32 = 500;
    let running = Running::with_topic(PARTITIONS).await;
    let client = &running.client;
    let producer = client.producer(ProducerSettings::default());
    let record = |partition: u32| ProducerRecord::new("t", vec![0; 50]).partition(partition);
    // Neighbouring partitions end at different offsets.
    let mut sent = 0;
    for partition in 0..PARTITIONS {
        for _ in 0..partition % 7 {
            drop(send(&producer, record(partition)).await);
            sent += 1;
        }
    }
    producer.flush().await.unwrap();
    let all = read_all(client, "t").await;
    assert_eq!(all.len(), sent);
    assert_contiguous(all.iter().map(place));

    let mut consumer = client.consumer(ConsumerSettings::topic("t")).unwrap();
    assigned(&consumer, PARTITIONS as usize).await;
    for partition in 0..PARTITIONS {
        drop(send(&producer, record(partition)).await);
    }
    producer.close().await.unwrap();
    let mut tail = BTreeSet::new();
    for _ in 0..PARTITIONS {
        tail.insert(place(&next(&mut consumer).await));
    }
    assert!(tail.into_iter().eq((0..PARTITIONS).map(|partition| (partition, u64::from(partition % 7)))));
}

// Groups

#[tokio::test]
async fn settings_that_contradict_each_other_are_refused() {
    let client = Client::new("127.0.0.1:9").unwrap();
    for (settings, at_fault) in [
        (ConsumerSettings::default(), "topics"),
        (ConsumerSettings::topic("t").group("g").from(Position::Offset(3)), "from"),
        (ConsumerSettings::topics(["a", "b"]).partitions([1]), "partitions"),
    ] {
        let error = client.consumer(settings).map(drop).unwrap_err();
        assert!(matches!(error, ClientError::InvalidArgument { what, .. } if what == at_fault), "{error}");
    }
}

#[tokio::test]
async fn an_unknown_topic_is_said_to_members_and_others() {
    let running = Running::start();
    for settings in [earliest("nope"), earliest("nope").group("g")] {
        let mut consumer = running.client.consumer(settings).unwrap();
        let error = next_error(&mut consumer).await;
        assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_keeps_back_no_commit_of_the_others() {
    let running = Running::with_topic(1).await;
    let client = &running.client;
    create_topic(client, "gone", 1).await;
    for topic in ["t", "gone"] {
        fill(client, topic, 100).await;
    }
    let mut settings = member().commit(CommitMode::Manual);
    settings.topics.push("gone".into());
    let mut consumer = client.consumer(settings).unwrap();
    for _ in 0..200 {
        next(&mut consumer).await;
    }
    client.admin().delete_topic("gone").await.unwrap();
    // The member may or may not know of the deletion at this point.
    match soon("the commit", consumer.commit()).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic), "{error}"),
    }
    let committed = async || {
        let offsets = client.admin().describe_group("g").await.unwrap().offsets;
        offsets.into_iter().map(|offset| (offset.topic, offset.committed_offset)).collect::<Vec<_>>()
    };
    assert_eq!(committed().await, [("t".to_owned(), Some(100))]);
    assert_eq!(next_error(&mut consumer).await.code(), Some(v1::ErrorCode::UnknownTopic));
    fill(client, "t", 10).await;
    for _ in 0..10 {
        next(&mut consumer).await;
    }
    soon("the commit", consumer.commit()).await.unwrap();
    assert_eq!(committed().await, [("t".to_owned(), Some(110))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_close_hand_on_without_loss_or_repeat() {
    let running = Running::with_topic(3).await;
    fill(&running.client, "t", 1_000).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let mut consumer = running.client.consumer(member()).unwrap();
        for _ in 0..250 {
            seen.push(place(&next(&mut consumer).await));
        }
        assert_eq!(consumer.assignment().partitions.len(), 3);
        soon("a member closes", consumer.close()).await.unwrap();
    }
    assert_contiguous(seen);
    assert_eq!(group(&running.client, "g").await.lag, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manual_member_did_not_commit_comes_again() {
    let running = Running::with_topic(3).await;
    fill(&running.client, "t", 300).await;
    let settings = member().commit(CommitMode::Manual);
    let mut consumer = running.client.consumer(settings.clone()).unwrap();
    next_batch(&mut consumer).await;
    drop(consumer);

    let mut consumer = running.client.consumer(settings).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 300 {
        seen.extend(places(&next_batch(&mut consumer).await));
    }
    assert_contiguous(seen);

    let at = |offset| [v1::TopicPartitionOffset { topic: "t".into(), partition: 0, offset }];
    consumer.commit_offsets(at(7)).await.unwrap();
    let offsets = running.client.admin().describe_group("g").await.unwrap().offsets;
    let committed: Vec<_> = offsets.iter().map(|offset| (offset.partition, offset.committed_offset)).collect();
    assert!(committed.contains(&(0, Some(7))), "{committed:?}");
    consumer.commit().await.unwrap();
    assert_eq!(group(&running.client, "g").await.lag, 0);
    let error = consumer.commit_offsets(at(70_000)).await.unwrap_err();
    assert_eq!(error.code(), Some(v1::ErrorCode::OffsetOutOfRange), "{error}");
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_commit_leaves_out_the_record_in_hand() {
    let running = Running::with_topic(3).await;
    let client = &running.client;
    fill(client, "t", 300).await;
    let settings = member().commit(CommitMode::Auto { interval_ms: 20 });
    let mut consumer = client.consumer(settings).unwrap();
    for _ in 0..200 {
        next(&mut consumer).await;
    }
    eventually("199 records are committed", async || group(client, "g").await.lag <= 101).await;
    drop(consumer);
    eventually("the member is gone", async || group(client, "g").await.members == 0).await;
    assert_eq!(group(client, "g").await.lag, 101);

    // A consumer with explicit partitions begins at the group's offsets, and commits for the group.
    let mut rest = 0;
    for partition in 0..3 {
        let mut consumer = client.consumer(member().partitions([partition]).until_end()).unwrap();
        rest += count_rest(&mut consumer).await;
        consumer.close().await.unwrap();
    }
    assert_eq!(rest, 101);
    assert_eq!(group(client, "g").await.lag, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_can_end_at_the_end() {
    let running = Running::with_topic(3).await;
    fill(&running.client, "t", 300).await;
    for count in [300, 0] {
        let mut consumer = running.client.consumer(member().until_end()).unwrap();
        assert_eq!(count_rest(&mut consumer).await, count);
        consumer.close().await.unwrap();
        assert_eq!(group(&running.client, "g").await.lag, 0);
    }
}

/// A member that works until it is told to stop, and reports what it has processed.
struct Worker {
    assignments: watch::Receiver<Assignment>,
    task: JoinHandle<()>,
}

impl Worker {
    fn start(
        client: &Client,
        name: &'static str,
        seen: &mpsc::UnboundedSender<(&'static str, Vec<Place>)>,
        stop: &watch::Sender<bool>,
    ) -> Self {
        let settings = ConsumerSettings { client_id: name.into(), buffer_bytes_max: 2_000, ..member() };
        let mut consumer = client.consumer(settings).unwrap();
        let (seen, mut stop) = (seen.clone(), stop.subscribe());
        let assignments = consumer.assignments();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    set = consumer.next_batch() => seen.send((name, places(&set.unwrap().unwrap()))).unwrap(),
                    _ = stop.wait_for(|stop| *stop) => break,
                }
            }
            consumer.close().await.unwrap();
        });
        Self { assignments, task }
    }

    fn partitions(&self) -> usize {
        self.assignments.borrow().partitions.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_and_hand_over_without_repeats() {
    let running = Running::with_topic(6).await;
    let client = &running.client;
    let (sender, mut reports) = mpsc::unbounded_channel();
    let (stop, _) = watch::channel(false);
    let mut seen = HashMap::<Place, Vec<&str>>::new();
    let mut note = |(name, places): (&'static str, Vec<Place>)| {
        for place in places {
            seen.entry(place).or_default().push(name);
        }
        (name, seen.len())
    };
    let (mut workers, mut stored) = (Vec::new(), 0);
    // Each member joins while the others are working, and records are produced until it takes part.
    for newcomer in ["a", "b", "c"] {
        workers.push(Worker::start(client, newcomer, &sender, &stop));
        let mut takes_part = false;
        soon("the new member takes part", async {
            while !takes_part {
                fill(client, "t", 200).await;
                stored += 200;
                while let Ok(report) = reports.try_recv() {
                    takes_part |= note(report).0 == newcomer;
                }
            }
        })
        .await;
    }
    let shared = async || workers.iter().map(Worker::partitions).eq([2, 2, 2]);
    eventually("each member has two partitions", shared).await;
    fill(client, "t", 1_000).await;
    stored += 1_000;
    while note(soon("all records", reports.recv()).await.unwrap()).1 < stored {}
    stop.send_replace(true);
    for worker in workers {
        soon("a member closes", worker.task).await.unwrap();
    }
    while let Ok(report) = reports.try_recv() {
        note(report);
    }
    let repeats: Vec<_> = seen.iter().filter(|(_, names)| names.len() > 1).collect();
    assert!(repeats.is_empty(), "{repeats:?}");
    assert_eq!(seen.len(), stored);
    assert_eq!(group(client, "g").await.lag, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dawdles_loses_its_partition_and_nothing_is_lost() {
    let running = Running::with_topic(2).await;
    let client = &running.client;
    let producer = client.producer(ProducerSettings::default());
    // With two partitions, a second member is assigned the last one.
    for _ in 0..100 {
        drop(send(&producer, ProducerRecord::new("t", "x").partition(1)).await);
    }
    producer.flush().await.unwrap();
    let settings = ConsumerSettings { rebalance_timeout_ms: 400, ..member() };
    let mut dawdler = client.consumer(settings.clone()).unwrap();
    let in_hand = next_batch(&mut dawdler).await;
    assert_eq!((in_hand.partition(), in_hand.first_offset()), (1, 0));

    let mut other = client.consumer(settings).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 100 {
        seen.extend(places(&next_batch(&mut other).await));
    }
    assert!(seen.into_iter().eq((0..100).map(|offset| (1, offset))));
    assigned(&dawdler, 1).await;
    assigned(&other, 1).await;
    // The slow member continues with its remaining partition.
    store(&producer, ProducerRecord::new("t", "x").partition(0)).await.unwrap();
    assert_eq!(places(&next_batch(&mut dawdler).await), [(0, 0)]);
    dawdler.close().await.unwrap();
    other.close().await.unwrap();
    assert_eq!(group(client, "g").await.lag, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_asked_again_while_it_dawdles_gives_back_in_time_all_the_same() {
    const TIMEOUT: Duration = Duration::from_millis(1_200);
    // There are so many partitions that each new member is assigned some from the first member.
    const PARTITIONS: u32 = 100;
    let running = Running::with_topic(PARTITIONS).await;
    let client = &running.client;
    // The first new member is to be assigned the last partitions.
    let producer = client.producer(ProducerSettings::default());
    store(&producer, ProducerRecord::new("t", "x").partition(PARTITIONS - 1)).await.unwrap();
    let hasty = |client_id: &str| ConsumerSettings {
        client_id: client_id.into(),
        rebalance_timeout_ms: TIMEOUT.as_millis() as u32,
        ..member()
    };
    let members = async || {
        let members = client.admin().describe_group("g").await.unwrap().members;
        members.into_iter().map(|member| (member.member_id, member.partitions)).collect::<BTreeMap<_, _>>()
    };
    let mut dawdler = client.consumer(hasty("dawdler")).unwrap();
    let in_hand = next_batch(&mut dawdler).await;
    let (id, _) = members().await.pop_first().unwrap();

    // Each new member joins a fraction of the timeout after the previous one. In total this takes longer than the
    // timeout.
    let mut newcomers = Vec::new();
    for _ in 0..10 {
        newcomers.push(client.consumer(hasty("newcomer")).unwrap());
        eventually("the new member takes part", async || members().await.len() == newcomers.len() + 1).await;
        tokio::time::sleep(TIMEOUT / 6).await;
    }
    let found = members().await;
    assert!(found.contains_key(&id), "{id} was removed: {:?}", found.keys());
    // The member gave back the requested partitions, although it still held a batch of one of them.
    let fair = |count: usize| (PARTITIONS as usize).div_ceil(count);
    eventually("partitions are shared", async || {
        let found = members().await;
        found.values().all(|partitions| partitions.len() <= fair(found.len()))
    })
    .await;
    drop(in_hand);
    dawdler.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_member_may_commit_what_it_has_in_hand_before_it_gives_it_back() {
    let running = Running::with_topic(2).await;
    let client = &running.client;
    fill(client, "t", 400).await;
    let settings = ConsumerSettings { buffer_bytes_max: 1, ..member().commit(CommitMode::Manual) };
    let mut first = client.consumer(settings.clone()).unwrap();
    let mut seen = BTreeSet::new();
    // With two partitions, the second member is assigned the last one.
    let in_hand = loop {
        let set = next_batch(&mut first).await;
        assert!(places(&set).into_iter().all(|place| seen.insert(place)));
        if set.partition() == 1 {
            break set;
        }
    };
    let mut second = client.consumer(settings).unwrap();
    assigned(&first, 1).await;
    first.commit().await.unwrap();

    let (sender, mut reports) = mpsc::unbounded_channel();
    let mut rest = JoinSet::new();
    rest.spawn(async move {
        loop {
            sender.send(places(&next_batch(&mut first).await)).unwrap();
            first.commit().await.unwrap();
        }
    });
    let handed_over = next_batch(&mut second).await;
    assert_eq!((handed_over.partition(), handed_over.first_offset()), (1, in_hand.next_offset()));
    let mut new = places(&handed_over);
    loop {
        for place in new {
            assert!(seen.insert(place), "the record at {place:?} was delivered again");
        }
        if seen.len() == 400 {
            break;
        }
        new = tokio::select! {
            report = reports.recv() => report.unwrap(),
            set = next_batch(&mut second) => places(&set),
        };
    }
    second.commit().await.unwrap();
    eventually("all records are committed", async || group(client, "g").await.lag == 0).await;
    rest.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_does_not_stop_the_flow() {
    let running = Running::with_topic(4).await;
    let mut consumer = running.client.consumer(ConsumerSettings { buffer_bytes_max: 10_000, ..member() }).unwrap();
    let mut seen = Vec::new();
    for stored in [2_000, 4_000, 6_000] {
        // The buffer holds a tenth of the records, and the consumer reads nothing meanwhile.
        fill(&running.client, "t", 2_000).await;
        while seen.len() < stored - 1_000 {
            seen.extend(places(&next_batch(&mut consumer).await));
        }
    }
    while seen.len() < 6_000 {
        seen.extend(places(&next_batch(&mut consumer).await));
    }
    assert_contiguous(seen);
    consumer.close().await.unwrap();
    assert_eq!(group(&running.client, "g").await.lag, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_again_after_restarts() {
    let mut running = Running::with_topic(3).await;
    fill(&running.client, "t", 900).await;
    let settings = ConsumerSettings { buffer_bytes_max: 3_000, ..member().commit(CommitMode::Manual) };
    let mut consumer = running.client.consumer(settings).unwrap();
    let mut times_seen = HashMap::<Place, u32>::new();
    for _ in 0..300 {
        *times_seen.entry(place(&next(&mut consumer).await)).or_default() += 1;
    }
    consumer.commit().await.unwrap();
    let committed: Vec<Place> = times_seen.keys().copied().collect();
    for restart in [stopped_in_good_order, killed] as [Restart; 2] {
        for _ in 0..200 {
            *times_seen.entry(place(&next(&mut consumer).await)).or_default() += 1;
        }
        restart(&mut running.server);
    }
    while times_seen.len() < 900 {
        *times_seen.entry(place(&next(&mut consumer).await)).or_default() += 1;
    }
    for place in committed {
        assert_eq!(times_seen[&place], 1, "the record at {place:?} was committed but delivered again");
    }
    assigned(&consumer, 3).await;
    consumer.commit().await.unwrap();
    consumer.close().await.unwrap();
    assert_eq!(group(&running.client, "g").await.lag, 0);
}

// The examples

fn example(server: &Server, name: &str, arguments: &[&str]) -> Ran {
    let program = target_dir().join("examples").join(name);
    assert!(
        program.exists(),
        "{} does not exist: build it with `cargo xtask test` or `cargo build --examples`",
        program.display()
    );
    run(Command::new(program).env("MILLSTREAM_SERVER", &server.grpc).args(arguments), "")
}

#[test]
fn the_examples_do_what_they_say() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let produced = example(&server, "produce", &["greetings", "20"]).ok();
    let (created, stored) = produced.split_once('\n').unwrap();
    assert_eq!(created, "created topic greetings");
    let stored: BTreeSet<&str> = stored.lines().collect();
    assert_eq!(stored.len(), 20);

    let consumed = example(&server, "consume", &["greetings"]).ok();
    let (records, count) = consumed.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(count, "20 records");
    let records: BTreeMap<&str, &str> = records.lines().map(|line| line.split_once(": ").unwrap()).collect();
    assert_eq!(records.keys().copied().collect::<BTreeSet<_>>(), stored);
    let values: BTreeSet<String> = records.into_values().map(str::to_owned).collect();
    assert_eq!(values, (0..20).map(|number| format!("key-{} = hello {number}", number % 5)).collect());

    for count in ["20 records", "0 records"] {
        let consumed = example(&server, "consume", &["greetings", "readers"]).ok();
        assert_eq!(consumed.lines().last(), Some(count));
    }
}

/// Reads until it has `count` different values. Returns them, and how many times the topic was created again.
async fn read(consumer: &mut Consumer, count: usize) -> (BTreeSet<String>, u64) {
    let mut values = BTreeSet::new();
    while values.len() < count {
        let record = soon("a record arrives", consumer.next()).await.unwrap().unwrap();
        values.insert(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
    }
    (values, consumer.recreated_topics())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_without_a_group_reads_a_topic_that_was_created_again_from_its_first_record() {
    let running = Running::with_topic(2).await;
    let admin = running.client.admin();
    let produce = async |count: u32, what: &str| {
        let records =
            (0..count).map(|n| v1::Record { value: Some(format!("{what} {n}").into()), ..Default::default() });
        let request = v1::ProduceRequest { topic: "t".into(), records: records.collect(), ..Default::default() };
        admin.produce(request).await.unwrap();
    };
    let recreate = async || {
        admin.delete_topic("t").await.unwrap();
        create_topic(&running.client, "t", 3).await;
    };
    produce(100, "old").await;
    let proxy = Proxy::start(&running.server).await;
    let settings = ConsumerSettings { from: Position::Earliest, ..ConsumerSettings::topic("t") };
    let mut consumer = proxy.client().consumer(settings).unwrap();
    let expected = |count: u32, what: &str| (0..count).map(|n| format!("{what} {n}")).collect::<BTreeSet<_>>();
    assert_eq!(read(&mut consumer, 100).await, (expected(100, "old"), 0));

    // The connection is lost. When the reader reconnects, the topic was created again and has more records than before.
    proxy.pass_to_nobody();
    proxy.cut();
    recreate().await;
    produce(150, "new").await;
    proxy.pass_to(&running.server);
    assert_eq!(
        read(&mut consumer, 150).await,
        (expected(150, "new"), 1),
        "none of the new records is taken for an old one"
    );

    // The same, but the new topic has fewer records than the old one.
    proxy.pass_to_nobody();
    proxy.cut();
    recreate().await;
    produce(50, "newest").await;
    proxy.pass_to(&running.server);
    assert_eq!(read(&mut consumer, 50).await, (expected(50, "newest"), 2));

    // Deleting the topic without creating it again ends the reader with an error.
    admin.delete_topic("t").await.unwrap();
    let error = soon("the reader ends", consumer.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic), "{error}");
}
