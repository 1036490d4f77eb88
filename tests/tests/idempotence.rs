//! Idempotent producers: retried batches are stored once and in order, and nothing is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_api::v1::ErrorCode;
use millstream_api::v1::log_client::LogClient;
use millstream_api::{ERROR_TRAILER, v1};
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::name::ProducerIdentity;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError, BrokerSettings, TopicName};
use millstream_client::{
    Client, ClientError, Compression, Delivery, Position, Producer, ProducerRecord, ProducerSettings,
};
use millstream_record::{BatchBuilder, Limits, RecordBatch};
use millstream_tests::instance::wait_until;
use millstream_tests::proxy::Proxy;
use millstream_tests::running::{Limit, Rounds, SetClock};
use millstream_tests::server::Server;
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use super::backpressure::value;
use super::crash::all_records;

struct Running {
    server: Server,
    client: Client,
    _data: TempDir,
}

impl Running {
    /// Starts a server with topic `t`.
    async fn with_topic(partitions: u32) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path());
        let client = server.client();
        client.admin().create_topic("t", Some(partitions), v1::TopicSettings::default()).await.unwrap();
        Self { server, client, _data: data }
    }

    async fn log(&self) -> LogClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.server.grpc)).unwrap();
        LogClient::new(channel.connect().await.unwrap())
    }

    /// Kills the server and starts it again.
    fn crash(&mut self) {
        self.server.kill();
        self.server.restart();
        self.client = self.server.client();
    }

    async fn end(&self, partition: u32) -> u64 {
        self.client.admin().list_offsets("t", &[partition], Position::Latest).await.unwrap()[0].offset
    }

    /// Waits until partition 0 holds this many records.
    async fn holds(&self, records: u64) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while self.end(0).await < records {
            assert!(tokio::time::Instant::now() < limit, "there are not {records} records within two minutes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the values of each partition, in order.
    async fn values(&self) -> Vec<Vec<Bytes>> {
        let all = all_records(&self.client, "t").await;
        all.into_iter().map(|records| records.into_iter().map(|record| record.value.unwrap()).collect()).collect()
    }
}

// ---- the contract, with batches built by the test

/// The producer, and the first sequence number.
type Numbers = (v1::ProducerIdentity, i32);

fn batch((producer, first): Numbers, records: u32) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(producer.producer_id, producer.epoch as i16, first);
    for record in 0..records {
        builder.push(
            0,
            None,
            Some(format!("{} {}", producer.epoch, i64::from(first) + i64::from(record)).as_bytes()),
            [],
        );
    }
    builder.finish().unwrap().into_bytes()
}

fn request(partition: u32, batches: &[Bytes]) -> v1::ProduceRequest {
    let batches = batches.concat().into();
    v1::ProduceRequest { topic: "t".into(), partition: Some(partition), batches, records: Vec::new() }
}

async fn produce(log: &mut LogClient<Channel>, numbers: Numbers, records: u32) -> Result<u64, Status> {
    let answer = log.produce(request(0, &[batch(numbers, records)])).await?.into_inner();
    assert_eq!((answer.appended.len(), answer.appended[0].record_count), (1, records));
    Ok(answer.appended[0].base_offset)
}

async fn init(
    log: &mut LogClient<Channel>,
    current: Option<v1::ProducerIdentity>,
) -> Result<v1::ProducerIdentity, Status> {
    let answer = log.init_producer(v1::InitProducerRequest { current }).await?;
    Ok(answer.into_inner().producer.unwrap())
}

/// Returns the error code and the message of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (ErrorCode, String) {
    let status = result.unwrap_err();
    let code = status.metadata().get(ERROR_TRAILER).and_then(|code| ErrorCode::from_str_name(code.to_str().ok()?));
    (code.unwrap(), status.message().to_owned())
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: ErrorCode, words: &[&str]) {
    let (found, message) = refusal(result);
    assert_eq!(found, code, "{message}");
    words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message:?}"));
}

#[tokio::test]
async fn a_batch_that_comes_again_is_answered_with_its_first_offset_after_a_crash_too() {
    let mut running = Running::with_topic(1).await;
    let mut log = running.log().await;
    let (one, other) = (init(&mut log, None).await.unwrap(), init(&mut log, None).await.unwrap());
    assert_ne!(one.producer_id, other.producer_id);
    let mut offsets = Vec::new();
    for n in 0..7 {
        offsets.push(produce(&mut log, (one, n * 10), 10).await.unwrap());
        produce(&mut log, (other, n), 1).await.unwrap();
    }
    for crashes in 0..3 {
        for n in 2..7 {
            assert_eq!(produce(&mut log, (one, n * 10), 10).await.unwrap(), offsets[n as usize]);
        }
        let older = produce(&mut log, (one, 10), 10).await;
        assert_refused(older, ErrorCode::DuplicateSequence, &["sequence number 10 of", "from 20 on"]);
        assert_eq!(running.end(0).await, 77, "after {crashes} crashes");
        let counted = value(&running.server.metrics(), "millstream_topic_records_in_total{topic=\"t\"}");
        assert_eq!(counted, (crashes == 0).then_some(77.0), "each stored record must be counted once");
        running.crash();
        log = running.log().await;
    }
    assert_eq!(produce(&mut log, (one, 70), 1).await.unwrap(), 77);
}

#[tokio::test]
async fn what_is_out_of_order_stale_or_of_nobody_is_refused_by_name() {
    let mut running = Running::with_topic(1).await;
    let mut log = running.log().await;
    let producer = init(&mut log, None).await.unwrap();
    assert_eq!(producer.epoch, 0);
    let id = format!("producer id {}", producer.producer_id);
    produce(&mut log, (producer, 0), 5).await.unwrap();
    let next = init(&mut log, Some(producer)).await.unwrap();
    assert_eq!((next.producer_id, next.epoch), (producer.producer_id, 1));
    for crashed in [false, true] {
        let gap = produce(&mut log, (producer, 6), 5).await;
        assert_refused(gap, ErrorCode::OutOfOrderSequence, &["topic t, partition 0", &id, "number 6", "5 must come"]);
        let another = produce(&mut log, (producer, 0), 4).await;
        assert_refused(another, ErrorCode::OutOfOrderSequence, &[&id, "number 0", "5 must come"]);
        let late = produce(&mut log, (next, 5), 1).await;
        assert_refused(late, ErrorCode::OutOfOrderSequence, &[&id, "(epoch 1)", "number 5", "0 must come"]);
        if !crashed {
            running.crash();
            log = running.log().await;
        }
    }
    assert_eq!(produce(&mut log, (next, 0), 5).await.unwrap(), 5);
    let stale = produce(&mut log, (producer, 5), 1).await;
    assert_refused(stale, ErrorCode::StaleProducerEpoch, &[&id, "epoch 0", "it is at 1"]);

    let nobody = v1::ProducerIdentity { producer_id: producer.producer_id + 5_000, epoch: 0 };
    let id = format!("producer id {}", nobody.producer_id);
    let of_nobody = produce(&mut log, (nobody, 0), 1).await;
    assert_refused(of_nobody, ErrorCode::UnknownProducerId, &[&id, "InitProducer"]);
    assert_refused(init(&mut log, Some(nobody)).await, ErrorCode::UnknownProducerId, &[&id]);
    for (producer_id, epoch, words) in [(-1, 0, "-1"), (0, -1, "-1"), (0, 32_768, "32768")] {
        let refused = init(&mut log, Some(v1::ProducerIdentity { producer_id, epoch })).await;
        assert_refused(refused, ErrorCode::InvalidRequest, &[words, "producer"]);
    }
    let no_epoch = v1::ProducerIdentity { epoch: -1, ..producer };
    assert_refused(produce(&mut log, (no_epoch, 0), 1).await, ErrorCode::InvalidBatch, &["epoch -1"]);
    assert_eq!(running.end(0).await, 10);
}

#[tokio::test]
async fn ids_are_handed_out_once_whatever_happens() {
    let mut running = Running::with_topic(1).await;
    let mut ids = Vec::new();
    for count in [3, 1_001, 1] {
        let mut log = running.log().await;
        for _ in 0..count {
            ids.push(init(&mut log, None).await.unwrap().producer_id);
        }
        running.crash();
    }
    assert!(ids.is_sorted_by(|a, b| a < b));
    let mut log = running.log().await;
    let last_epoch = v1::ProducerIdentity { producer_id: ids[0], epoch: i16::MAX.into() };
    let fresh = init(&mut log, Some(last_epoch)).await.unwrap();
    assert!(fresh.producer_id > *ids.last().unwrap() && fresh.epoch == 0);
}

#[tokio::test]
async fn a_refused_request_leaves_no_trace_and_no_half() {
    let running = Running::with_topic(2).await;
    let mut log = running.log().await;
    let producer = init(&mut log, None).await.unwrap();
    let at = |first| batch((producer, first), 5);
    log.produce(request(0, &[at(0)])).await.unwrap();
    for (batches, found) in [([at(5), at(15)], "number 15"), ([at(0), at(5)], "number 5"), ([at(5), at(5)], "number 5")]
    {
        let refused = log.produce(request(0, &batches)).await;
        assert_refused(refused, ErrorCode::OutOfOrderSequence, &[found]);
    }
    let other = init(&mut log, None).await.unwrap();
    let refused = log.produce(request(0, &[at(5), batch((other, 0), 5)])).await;
    assert_refused(refused, ErrorCode::InvalidRequest, &["one producer"]);
    assert_eq!(running.end(0).await, 5);
    // Each partition has its own sequence numbers.
    for (partition, first) in [(1, 0), (0, 5)] {
        for _ in 0..2 {
            let answer = log.produce(request(partition, &[at(first), at(first + 5)])).await.unwrap().into_inner();
            assert_eq!((answer.appended[0].base_offset, answer.appended[0].record_count), (first as u64, 10));
        }
    }
    assert_eq!((running.end(0).await, running.end(1).await), (15, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_and_its_duplicates_in_one_commit_are_stored_once() {
    const BATCHES: i32 = 200;
    let running = Running::with_topic(1).await;
    let mut log = running.log().await;
    let producer = init(&mut log, None).await.unwrap();
    // With two concurrent streams, most commits contain a batch and its duplicates.
    let sending = [0, 1].map(|_| {
        let mut log = log.clone();
        tokio::spawn(async move {
            let again = |n: i32| [n, n, (n - 1).max(0)];
            let requests: Vec<_> =
                (0..BATCHES).flat_map(again).map(|n| request(0, &[batch((producer, n), 1)])).collect();
            let sent = requests.len();
            let mut answers = log.produce_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
            let mut answered = Vec::with_capacity(sent);
            while let Some(answer) = answers.message().await.unwrap() {
                answered.push(answer);
            }
            let asked: Vec<i32> = (0..BATCHES).flat_map(again).collect();
            assert_eq!(answered.len(), asked.len());
            (asked, answered)
        })
    });
    for stream in sending {
        let (asked, answered) = stream.await.unwrap();
        for (n, answer) in asked.into_iter().zip(answered) {
            match answer.error {
                None => assert_eq!(answer.appended[0].base_offset, n as u64),
                // The other stream is far ahead.
                Some(error) => assert_eq!(error.code(), ErrorCode::DuplicateSequence, "{}", error.message),
            }
        }
    }
    let values: Vec<_> = (0..BATCHES).map(|n| Bytes::from(format!("0 {n}"))).collect();
    assert_eq!(running.values().await, [values]);
}

/// Opens a broker with a clock that only moves when it is set, and with continuous retention, which also forgets idle
/// producers.
fn open(data: &Path, settings: &BrokerSettings) -> (Broker, Arc<SetClock>) {
    let clock = Arc::new(SetClock::new(0));
    let registry = &mut Registry::default();
    let options = StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..StoreOptions::default() };
    let broker = Broker::open(data, settings.clone(), options, clock.clone(), registry).unwrap();
    (broker, clock)
}

async fn create_topic(broker: &Broker, name: &str) -> Arc<Topic> {
    broker.create_topic(&TopicName::new(name).unwrap(), 1, TopicSettings::default(), false).await.unwrap()
}

async fn append(broker: &Broker, topic: &Topic, numbers: Numbers, records: u32) -> Result<i64, BrokerError> {
    let batch = RecordBatch::check(batch(numbers, records), &Limits::default()).unwrap();
    let receipt = broker.produce(topic, &topic.partitions()[0], vec![batch]).await.unwrap();
    Ok(receipt.await?.base_offsets[0].get())
}

async fn stop(broker: Broker) {
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

#[tokio::test]
async fn what_a_partition_knows_of_producers_outlives_the_journal() {
    let data = tempfile::tempdir().unwrap();
    let settings = BrokerSettings { journal_bytes_max: 100_000, ..BrokerSettings::default() };
    let (mut broker, _) = open(data.path(), &settings);
    let mut topic = create_topic(&broker, "t").await;
    let filler = create_topic(&broker, "filler").await;
    let id = broker.init_producer(None).await.unwrap().id;
    let (producer, nobody) =
        (v1::ProducerIdentity { producer_id: id.get(), epoch: 2 }, v1::ProducerIdentity { producer_id: -1, epoch: -1 });
    for n in 0..6 {
        assert_eq!(append(&broker, &topic, (producer, n * 10), 10).await.unwrap(), i64::from(n) * 10);
        // Part of the journal, with some of the batches, is sealed.
        let limit = Limit::new("the part of the journal is sealed");
        while n % 3 == 2 && topic.partitions()[0].size().journal_bytes > 0 {
            limit.check();
            append(&broker, &filler, (nobody, -1), 1_000).await.unwrap();
        }
    }
    for _ in 0..2 {
        stop(broker).await;
        (broker, _) = open(data.path(), &settings);
        topic = broker.topic("t").unwrap();
        for n in 1..6 {
            assert_eq!(append(&broker, &topic, (producer, n * 10), 10).await.unwrap(), i64::from(n) * 10);
        }
        let beyond = append(&broker, &topic, (producer, 70), 10).await;
        assert!(matches!(beyond, Err(BrokerError::OutOfOrderSequence { expected: 60, found: 70, .. })), "{beyond:?}");
    }
    assert_eq!(append(&broker, &topic, (producer, 60), 10).await.unwrap(), 60);
    stop(broker).await;
}

#[tokio::test]
async fn what_retention_takes_before_it_is_sealed_does_not_make_a_producer_unknown() {
    for restart_first in [false, true] {
        retention_before_sealing(restart_first).await;
    }
}

async fn retention_before_sealing(restart_first: bool) {
    let data = tempfile::tempdir().unwrap();
    let settings = BrokerSettings { journal_bytes_max: 100_000, ..BrokerSettings::default() };
    let (mut broker, clock) = open(data.path(), &settings);
    let retained = TopicSettings { retention_ms: Some(1_000), ..TopicSettings::default() };
    let mut topic = broker.create_topic(&TopicName::new("t").unwrap(), 1, retained, false).await.unwrap();
    let id = broker.init_producer(None).await.unwrap().id;
    let producer = v1::ProducerIdentity { producer_id: id.get(), epoch: 0 };
    for n in 0..3 {
        append(&broker, &topic, (producer, n * 10), 10).await.unwrap();
    }
    clock.set_ms(10_000);
    let partition = topic.partitions()[0].clone();
    wait_until("retention has deleted all records", || partition.start() == partition.end()).await;
    assert_eq!(broker.store().size().segments, 0, "no part of the journal may be sealed");
    if restart_first {
        stop(broker).await;
        (broker, _) = open(data.path(), &settings);
    }
    // In the second round there is nothing left to note.
    for name in ["first", "second"] {
        let filler = create_topic(&broker, name).await;
        let nobody = v1::ProducerIdentity { producer_id: -1, epoch: -1 };
        let segments = broker.store().size().segments;
        let limit = Limit::new("two parts of the journal are sealed");
        while broker.store().size().segments < segments + 2 {
            limit.check();
            append(&broker, &filler, (nobody, -1), 1_000).await.unwrap();
        }
        stop(broker).await;
        (broker, _) = open(data.path(), &settings);
        topic = broker.topic("t").unwrap();
        for n in 0..3 {
            assert_eq!(append(&broker, &topic, (producer, n * 10), 10).await.unwrap(), i64::from(n) * 10);
        }
    }
    stop(broker).await;
}

/// Waits until the partition has forgotten a producer that appended once. From then on a gap in its sequence is
/// accepted.
async fn is_forgotten(broker: &Broker, topic: &Topic, producer: v1::ProducerIdentity) {
    let limit = Limit::new("the producer is forgotten");
    while let Err(error) = append(broker, topic, (producer, 100), 1).await {
        limit.check();
        assert!(matches!(error, BrokerError::OutOfOrderSequence { expected: 1, found: 100, .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_forgets_a_producer_that_is_idle_for_a_day_by_itself() {
    let data = tempfile::tempdir().unwrap();
    assert_eq!(BrokerSettings::default().producer_expiry_ms, 86_400_000);
    let settings = BrokerSettings { producer_expiry_ms: 15_000, ..BrokerSettings::default() };
    let (broker, clock) = open(data.path(), &settings);
    let topic = create_topic(&broker, "t").await;
    let rounds = Rounds::hold(&clock);
    let mut producers = Vec::new();
    for number in 0..2 {
        let producer_id = broker.init_producer(None).await.unwrap().id.get();
        producers.push(v1::ProducerIdentity { producer_id, epoch: 0 });
        append(&broker, &topic, (producers[number], 0), 1).await.unwrap();
        clock.set_ms(8_000);
        rounds.make_one().await;
    }
    clock.set_ms(settings.producer_expiry_ms as i64 + 1);
    rounds.make_one().await;
    append(&broker, &topic, (producers[0], 100), 1)
        .await
        .expect("an unknown producer may begin with any sequence number");
    // The other producer appended eight seconds later.
    let beyond_a_gap = append(&broker, &topic, (producers[1], 100), 1).await;
    assert!(matches!(beyond_a_gap, Err(BrokerError::OutOfOrderSequence { expected: 1, found: 100, .. })));
    // A clock that is set forward by a week does not count as time that passed.
    append(&broker, &topic, (producers[1], 1), 1).await.unwrap();
    clock.set_ms(7 * 86_400_000);
    rounds.make_one().await;
    let beyond_a_gap = append(&broker, &topic, (producers[1], 100), 1).await;
    assert!(matches!(beyond_a_gap, Err(BrokerError::OutOfOrderSequence { expected: 2, found: 100, .. })));
    rounds.release();
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_handed_out_once() {
    let data = tempfile::tempdir().unwrap();
    let settings = BrokerSettings { producer_expiry_ms: 15_000, ..BrokerSettings::default() };
    let (broker, _) = open(data.path(), &settings);
    let first = broker.init_producer(None).await.unwrap();
    // Many callers with epoch 0 request a new one, both concurrently and after a restart, which reads the epochs from
    // disk.
    let calls = (0..20).map(|_| broker.init_producer(Some(first)));
    let mut epochs: Vec<i16> =
        futures::future::join_all(calls).await.into_iter().map(|got| got.unwrap().epoch).collect();
    stop(broker).await;
    let (broker, clock) = open(data.path(), &settings);
    epochs.push(broker.init_producer(Some(first)).await.unwrap().epoch);
    let distinct: BTreeSet<i16> = epochs.iter().copied().collect();
    assert_eq!(distinct, (1..=21).collect(), "{epochs:?}");

    // The epochs are forgotten together with the producer. A producer that comes back later sends its own epoch.
    let rounds = Rounds::hold(&clock);
    for second in 0..20 {
        clock.set_ms(second * 1_000);
        rounds.make_one().await;
    }
    assert_eq!(broker.store().catalog_scan("producer-epoch/").unwrap(), []);
    let (id, epoch) = (first.id, 21);
    assert_eq!(broker.init_producer(Some(ProducerIdentity { id, epoch })).await.unwrap().epoch, 22);
    // After the largest epoch, the producer gets a new ID.
    let last = ProducerIdentity { id, epoch: i16::MAX };
    let next = broker.init_producer(Some(last)).await.unwrap();
    assert!(next.id != id && next.epoch == 0, "{next:?}");
    rounds.release();
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_forgotten_leaves_nothing_on_disk() {
    let data = tempfile::tempdir().unwrap();
    let settings =
        BrokerSettings { journal_bytes_max: 100_000, producer_expiry_ms: 5_000, ..BrokerSettings::default() };
    let (broker, clock) = open(data.path(), &settings);
    let topic = create_topic(&broker, "t").await;
    let filler = create_topic(&broker, "filler").await;
    // The producers of this topic are forgotten last.
    let last = create_topic(&broker, "zz").await;
    let id = broker.init_producer(None).await.unwrap().id;
    let producer = v1::ProducerIdentity { producer_id: id.get(), epoch: 0 };
    append(&broker, &topic, (producer, 0), 1).await.unwrap();
    append(&broker, &last, (producer, 0), 1).await.unwrap();
    let seal = async || {
        let segments = broker.store().size().segments;
        let limit = Limit::new("two parts of the journal are sealed");
        while broker.store().size().segments < segments + 2 {
            limit.check();
            append(&broker, &filler, (v1::ProducerIdentity { producer_id: -1, epoch: -1 }, -1), 1_000).await.unwrap();
        }
    };
    seal().await;
    clock.set_ms(settings.producer_expiry_ms as i64 + 2_000);
    is_forgotten(&broker, &last, producer).await;
    seal().await;
    stop(broker).await;
    // With this setting, no producer is forgotten, so the server would know the producer if it were still in the
    // tables.
    let settings = BrokerSettings { producer_expiry_ms: u64::MAX, ..settings };
    let (broker, _) = open(data.path(), &settings);
    let topic = broker.topic("t").unwrap();
    assert_eq!(topic.partitions()[0].size().journal_bytes, 0, "the part of the journal is sealed");
    assert_eq!(append(&broker, &topic, (producer, 100), 1).await.unwrap(), 1);
    stop(broker).await;
}

// ---- the client

fn small() -> ProducerSettings {
    let (batch_bytes, buffer_bytes_max) = (1_000, 64 << 10);
    ProducerSettings { linger_ms: 1, batch_bytes, buffer_bytes_max, retry_backoff_ms: 1, ..Default::default() }
}

/// Sent values in order, with their deliveries.
type Sent = Vec<(String, Delivery)>;

async fn send(producer: &Producer, number: usize) -> (String, Delivery) {
    let value = format!("{number:08}{}", "x".repeat(number % 300));
    let record = ProducerRecord::keyed("t", format!("k{}", number % 23), value.clone());
    (value, producer.send(record).await.unwrap())
}

/// Asserts that all values are stored once, in order, and at their acknowledged places.
async fn assert_all_stored(running: &Running, sent: Sent) {
    let stored = running.values().await;
    assert_eq!(stored.iter().map(Vec::len).sum::<usize>(), sent.len());
    for (value, delivery) in sent {
        let at = delivery.await.unwrap();
        assert_eq!(stored[at.partition as usize][at.offset as usize], value.as_bytes(), "{at:?}");
    }
    for partition in stored {
        // Each value begins with its number.
        assert!(partition.is_sorted_by(|a, b| a < b));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_cost_a_producer_nothing_and_store_nothing_twice() {
    for compression in [Compression::None, Compression::Zstd] {
        let running = Running::with_topic(3).await;
        let proxy = Proxy::start(&running.server).await;
        let producer = proxy.client().producer(ProducerSettings { compression, ..small() });
        let (enough, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sending = tokio::spawn({
            let (producer, enough, count) = (producer.clone(), enough.clone(), count.clone());
            async move {
                let mut sent = Sent::new();
                while !enough.load(Ordering::Relaxed) {
                    sent.push(send(&producer, sent.len()).await);
                    count.store(sent.len(), Ordering::Relaxed);
                }
                sent
            }
        });
        for round in 0..25 {
            let before = count.load(Ordering::Relaxed);
            // The buffer is small, so that further records are sent only as answers arrive.
            wait_until("more records are sent", || count.load(Ordering::Relaxed) > before + 300).await;
            if round % 5 > 0 {
                proxy.lose_answers();
                proxy.answers_lost().await;
            }
            proxy.cut();
        }
        enough.store(true, Ordering::Relaxed);
        let sent = sending.await.unwrap();
        producer.close().await.unwrap();
        assert_all_stored(&running, sent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_and_a_crash_cost_a_producer_nothing() {
    let mut running = Running::with_topic(2).await;
    let proxy = Proxy::start(&running.server).await;
    let producer = proxy.client().producer(small());
    let mut sent = Sent::new();
    for _ in 0..5 {
        for _ in 0..20 {
            sent.push(send(&producer, sent.len()).await);
        }
        producer.flush().await.unwrap();
        proxy.lose_answers();
        for _ in 0..20 {
            sent.push(send(&producer, sent.len()).await);
        }
        proxy.answers_lost().await;
        proxy.pass_to_nobody();
        proxy.cut();
        running.crash();
        proxy.pass_to(&running.server);
    }
    producer.close().await.unwrap();
    assert_all_stored(&running, sent).await;
}

/// Returns bytes that compression does not make smaller.
fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_refused_costs_those_after_it_nothing() {
    let running = Running::with_topic(2).await;
    // The buffer has room for all records, so that the later ones are in flight when one is refused.
    let settings = ProducerSettings { compression: Compression::Zstd, buffer_bytes_max: 64 << 20, ..small() };
    let producer = running.client.producer(settings);
    let mut sent = Sent::new();
    let mut refused = Vec::new();
    for round in 0..10 {
        for _ in 0..100 {
            sent.push(send(&producer, sent.len()).await);
        }
        // That the record is too large is known only once it is compressed.
        let record = ProducerRecord::new("t", random_bytes(2 << 20)).partition(round % 2);
        refused.push(producer.send(record).await.unwrap());
    }
    for _ in 0..100 {
        sent.push(send(&producer, sent.len()).await);
    }
    for delivery in refused {
        let error = delivery.await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::BatchTooLarge), "{error}");
    }
    assert!(producer.flush().await.is_err());
    assert_all_stored(&running, sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_out_of_time_costs_those_after_it_nothing() {
    let running = Running::with_topic(1).await;
    let proxy = Proxy::start(&running.server).await;
    let producer = proxy.client().producer(ProducerSettings { delivery_timeout_ms: 3_000, ..small() });
    let mut expected = Vec::new();
    for round in 0..2 {
        let (value, delivery) = send(&producer, round * 2).await;
        delivery.await.unwrap();
        expected.push(Bytes::from(value));

        proxy.lose_answers();
        let (value, delivery) = send(&producer, round * 2 + 1).await;
        expected.push(Bytes::from(value));
        running.holds(expected.len() as u64).await;
        let error = delivery.await.unwrap_err();
        assert!(matches!(error, ClientError::UnknownOutcome { records: 1, .. }), "{error:?}");
        proxy.cut();
    }
    let (value, delivery) = send(&producer, 99).await;
    delivery.await.unwrap();
    expected.push(Bytes::from(value));
    assert_eq!(
        running.values().await,
        [expected],
        "the record with an unknown outcome must have been stored before its answer was lost"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_other_data_costs_a_producer_what_is_in_doubt_and_no_more() {
    let (mut first, second) = (Running::with_topic(1).await, Running::with_topic(1).await);
    // Takes an id, so that the first server's producer has an id that the second server never handed out.
    init(&mut first.log().await, None).await.unwrap();
    let proxy = Proxy::start(&first.server).await;
    let producer = proxy.client().producer(small());
    send(&producer, 0).await.1.await.unwrap();
    proxy.lose_answers();
    let (_, in_doubt) = send(&producer, 1).await;
    first.holds(2).await;
    first.server.kill();
    proxy.pass_to(&second.server);
    proxy.cut();
    let after = send(&producer, 2).await;
    let error = in_doubt.await.unwrap_err();
    assert!(matches!(error, ClientError::UnknownOutcome { records: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("never handed out"), "{error}");
    after.1.await.unwrap();
    let next = send(&producer, 3).await;
    next.1.await.unwrap();
    assert_eq!(second.values().await, [[after.0, next.0].map(Bytes::from)]);
}
