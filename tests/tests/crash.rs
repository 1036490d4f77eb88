//! A server that is killed while it works. Afterwards all acknowledged records exist, and everything derived from them
//! exists exactly once.
//!
//! The workload knows nothing of the checkers below it. `MILLSTREAM_KILL_ROUNDS` sets how often the server is killed,
//! and `MILLSTREAM_TEST_SEED` repeats a run's random choices.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_client::{
    Client, CommitMode, ConsumedRecord, ConsumerSettings, Position, Producer, ProducerRecord, ProducerSettings, v1,
};
use millstream_record::partition_for_key;
use millstream_tests::instance::wait_until;
use millstream_tests::proxy::Proxy;
use millstream_tests::running::Limit;
use millstream_tests::server::{Server, start_and_kill};
use millstream_tests::{guest, keep};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Returns the number in an environment variable.
pub(super) fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

// ---- the workload

const FLIGHTS: &str = "flights";
const LINES: &str = "lines";
const GROUP: &str = "readers";

/// A pipeline with a filter, a map with its own output topic, a repartition and an aggregate.
const DELAYS: &str = r#"
pipeline: delays
from: flights
stages:
  - filter: delayed
    with: { minutes: "15" }
  - map: by-origin
    to: late-flights
  - aggregate: mean-delay
to: mean-delays
"#;

const WORDS: &str = r#"
pipeline: words
from: lines
stages:
  - map: words
  - aggregate: count
to: counts
"#;

/// Maximum number of unacknowledged records of a producer.
const WINDOW: usize = 400;

/// What the clients know.
#[derive(Default)]
struct Known {
    acks: AtomicU64,
    /// The acknowledged records: topic, partition, offset and value.
    acked: Mutex<Vec<(&'static str, u32, u64, String)>>,
    /// Values that a member of the group received, by partition and offset.
    seen: Mutex<HashMap<(u32, u64), Bytes>>,
    /// Acknowledged commits of members: partition and offset.
    committed: Mutex<HashMap<u32, u64>>,
}

/// Sends records until it is told to stop, and notes their offsets. Every record must be acknowledged eventually.
async fn produce(
    client: Client,
    topic: &'static str,
    known: Arc<Known>,
    stop: watch::Receiver<bool>,
    mut record: impl FnMut(u64) -> ProducerRecord + Send + 'static,
) {
    let producer: Producer = client.producer(ProducerSettings { linger_ms: 1, ..Default::default() });
    // The producer's first contact may coincide with the first kill, and is not retried automatically.
    let limit = Limit::new("a producer knows its topic");
    while let Err(error) = producer.topic(topic).await {
        limit.check();
        assert!(error.is_retriable(), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut on_their_way = VecDeque::new();
    for number in 0.. {
        if *stop.borrow() {
            break;
        }
        let record = record(number);
        let value = String::from_utf8(record.value.as_deref().unwrap().to_vec()).unwrap();
        on_their_way.push_back((producer.send(record).await.unwrap(), value));
        if on_their_way.len() == WINDOW {
            // Waits for half of the window only, so that batches contain many records.
            note(topic, &known, on_their_way.drain(..WINDOW / 2)).await;
        }
    }
    note(topic, &known, on_their_way.drain(..)).await;
}

async fn note(
    topic: &'static str,
    known: &Known,
    deliveries: impl Iterator<Item = (millstream_client::Delivery, String)>,
) {
    for (delivery, value) in deliveries {
        // The record must be acknowledged no matter how often the server was killed meanwhile.
        let stored = delivery.await.unwrap();
        known.acked.lock().push((topic, stored.partition, stored.offset, value));
        known.acks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs a member that notes its records and commits manually.
async fn read(client: Client, known: Arc<Known>, mut stop: watch::Receiver<bool>) {
    let settings = || {
        let settings = ConsumerSettings::topic(FLIGHTS).group(GROUP).from(Position::Earliest);
        ConsumerSettings { retry_backoff_ms: 10, ..settings.commit(CommitMode::Manual) }
    };
    let mut consumer = client.consumer(settings()).unwrap();
    let mut places: HashMap<u32, u64> = HashMap::new();
    loop {
        let next = tokio::select! {
            next = consumer.next_batch() => next,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let set = match next {
            Some(Ok(set)) => set,
            // The server was never reached, or the stream was lost.
            Some(Err(_)) => continue,
            None => {
                consumer = client.consumer(settings()).unwrap();
                continue;
            }
        };
        for view in &set {
            let view = view.unwrap();
            let value = Bytes::copy_from_slice(view.value.unwrap());
            let before = known.seen.lock().insert((set.partition(), view.offset as u64), value.clone());
            assert!(before.is_none_or(|before| before == value), "a record was replaced by another one");
        }
        places.insert(set.partition(), set.next_offset());
        let offset = v1::TopicPartitionOffset {
            topic: FLIGHTS.to_owned(),
            partition: set.partition(),
            offset: set.next_offset(),
        };
        if consumer.commit_offsets([offset]).await.is_ok() {
            known.committed.lock().insert(set.partition(), set.next_offset());
        }
    }
    consumer.close().await.unwrap();
}

async fn set_up(client: &Client) {
    let admin = client.admin();
    admin.create_topic(FLIGHTS, Some(3), v1::TopicSettings::default()).await.unwrap();
    admin.create_topic(LINES, Some(2), v1::TopicSettings::default()).await.unwrap();
    for module in ["delayed", "by-origin", "mean-delay", "words", "count"] {
        admin.push_module(module, guest(module)).await.unwrap();
    }
    for yaml in [DELAYS, WORDS] {
        let request = v1::ApplyPipelineRequest { yaml: yaml.to_owned(), ..Default::default() };
        let applied = admin.apply_pipeline(request).await.unwrap();
        assert!(applied.mistakes.is_empty(), "{:?}", applied.mistakes);
    }
    // The repartition topic of the other pipeline keeps only the records that it has not read.
    keep(client, "delays.mean-delay.repartition").await.unwrap();
}

const AIRPORTS: [&str; 12] = ["LAX", "JFK", "ORD", "DTW", "LAS", "SEA", "BOS", "MIA", "PHX", "DEN", "ATL", "SFO"];
const VOCABULARY: [&str; 9] = ["to", "be", "or", "not", "that", "is", "the", "question", "whether"];

/// Starts the producers, which run until they are stopped.
fn start_producers(
    proxy: &Proxy,
    known: &Arc<Known>,
    random: &mut StdRng,
    stop: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let flight = |name: &'static str, keyed: bool, mut random: StdRng| {
        move |number: u64| {
            let (origin, delay) = (AIRPORTS.choose(&mut random).unwrap(), random.random_range(-20..120));
            let value = json!({"id": format!("{name}-{number:07}"), "delay": delay, "origin": origin}).to_string();
            let record = ProducerRecord::new(FLIGHTS, value);
            // The record's key has nothing to do with the airport, which the pipeline finds in the value.
            if keyed { ProducerRecord { key: Some(format!("k{}", number % 17).into()), ..record } } else { record }
        }
    };
    let line = |mut random: StdRng| {
        move |number: u64| {
            let words = (0..random.random_range(0..6)).map(|_| *VOCABULARY.choose(&mut random).unwrap());
            let words: Vec<_> = words.collect();
            // The last word distinguishes records, but has only 50 different values.
            ProducerRecord::new(LINES, format!("{} n{}", words.join(" "), number % 50))
        }
    };
    let mut fork = || StdRng::seed_from_u64(random.random());
    let client = || proxy.client();
    vec![
        tokio::spawn(produce(client(), FLIGHTS, known.clone(), stop.clone(), flight("keyed", true, fork()))),
        tokio::spawn(produce(client(), FLIGHTS, known.clone(), stop.clone(), flight("loose", false, fork()))),
        tokio::spawn(produce(client(), LINES, known.clone(), stop.clone(), line(fork()))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn acked_records_survive_kill_and_what_comes_of_them_is_exactly_once() {
    let seed = number_of("MILLSTREAM_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = number_of("MILLSTREAM_KILL_ROUNDS").unwrap_or(6);
    println!("MILLSTREAM_TEST_SEED={seed} MILLSTREAM_KILL_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);

    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path());
    let proxy = Proxy::start(&server).await;
    let client = proxy.client();
    set_up(&client).await;
    let known = Arc::new(Known::default());
    let (stop_producing, producing) = watch::channel(false);
    let (stop_reading, reading) = watch::channel(false);
    let producers = start_producers(&proxy, &known, &mut random, &producing);
    let members = [0, 1].map(|_| tokio::spawn(read(proxy.client(), known.clone(), reading.clone())));

    for round in 0..rounds {
        // Sometimes the kill follows at once, but usually it comes in the middle of processing.
        let acks = random.random_range(0..4_000u64).saturating_sub(500);
        let until = known.acks.load(Ordering::Relaxed) + acks;
        wait_until("records are acknowledged", || {
            assert!(producers.iter().all(|producer| !producer.is_finished()), "a producer ended");
            known.acks.load(Ordering::Relaxed) >= until
        })
        .await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..6_000))).await;
        proxy.pass_to_nobody();
        server.kill();
        while random.random_bool(0.25) {
            start_and_kill(data.path(), &[], Duration::from_millis(random.random_range(0..80)));
        }
        let acked = known.acked.lock().len();
        let committed = known.committed.lock().clone();
        server.restart();
        proxy.pass_to(&server);
        check_after_restart(&server.client(), &known, acked, &committed).await;
        println!("round {round}: {acked} records were acknowledged, {} read", known.seen.lock().len());
    }

    stop_producing.send_replace(true);
    for producer in producers {
        producer.await.unwrap();
    }
    caught_up(&server.client(), &["delays", "words"]).await;
    let flights = all_records(&server.client(), FLIGHTS).await;
    let there: usize = flights.iter().map(Vec::len).sum();
    wait_until("the members have read everything", || known.seen.lock().len() >= there).await;
    stop_reading.send_replace(true);
    for member in members {
        member.await.unwrap();
    }
    let client = server.client();
    let lines = all_records(&client, LINES).await;
    check_sources(&known, &flights, &lines);
    check_members(&known, &flights);
    check_delays(&client, &flights).await;
    check_words(&client, &lines).await;
    check_after_restart(&client, &known, 0, &HashMap::new()).await;
    assert!(server.terminate().success());
}

// ---- the checkers

/// Waits until the pipelines have committed all their input. A record that has left one source may be on its way to the
/// next, so the lags are read once more than there are sources on a record's way.
pub(super) async fn caught_up(client: &Client, pipelines: &[&str]) {
    const SOURCES_ON_THE_WAY: usize = 2;
    let limit = tokio::time::Instant::now() + Duration::from_secs(120);
    let mut times = 0;
    while times <= SOURCES_ON_THE_WAY {
        times += 1;
        for pipeline in pipelines {
            let described = client.admin().describe_pipeline(pipeline).await.unwrap();
            let state = described.pipeline.unwrap();
            assert_eq!((state.state.as_str(), state.reason.as_str()), ("running", ""), "{pipeline}");
            if described.offsets.iter().any(|offset| offset.lag > 0) {
                times = 0;
            }
            assert!(tokio::time::Instant::now() < limit, "{pipeline} does not catch up: {:?}", described.offsets);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns every record of a topic, by partition.
pub(super) async fn all_records(client: &Client, topic: &str) -> Vec<Vec<ConsumedRecord>> {
    let partitions = client.admin().describe_topic(topic).await.unwrap().topic.unwrap().partitions;
    let mut all: Vec<Vec<ConsumedRecord>> = (0..partitions).map(|_| Vec::new()).collect();
    let settings = ConsumerSettings::topic(topic).from(Position::Earliest).until_end();
    let mut consumer = client.consumer(settings).unwrap();
    while let Some(record) = consumer.next().await {
        let record = record.unwrap();
        let partition = &mut all[record.partition as usize];
        assert_eq!(record.offset, partition.len() as u64, "{topic}: offsets must have no gaps");
        partition.push(record);
    }
    all
}

/// Checks what a server reports right after its restart: no acknowledged record and no group is past the end of its
/// log.
async fn check_after_restart(client: &Client, known: &Known, acked: usize, committed: &HashMap<u32, u64>) {
    let admin = client.admin();
    let mut ends: HashMap<(&str, u32), u64> = HashMap::new();
    for topic in [FLIGHTS, LINES] {
        for end in admin.list_offsets(topic, &[], Position::Latest).await.unwrap() {
            ends.insert((topic, end.partition), end.offset);
        }
    }
    for (topic, partition, offset, value) in &known.acked.lock()[..acked] {
        assert!(
            ends[&(*topic, *partition)] > *offset,
            "{topic}-{partition}: the acknowledged record at offset {offset} is gone: {value}"
        );
    }
    for group in admin.list_groups().await.unwrap() {
        for offset in admin.describe_group(&group.name).await.unwrap().offsets {
            let place = format!("group {} in {}-{}", group.name, offset.topic, offset.partition);
            let at = offset.committed_offset.unwrap_or_default();
            assert!(at <= offset.log_end_offset, "{place} is at {at}, past the log's end {}", offset.log_end_offset);
            if group.name == GROUP {
                let acked = committed.get(&offset.partition).copied().unwrap_or_default();
                assert!(at >= acked, "{place} is at {at}, but the commit of {acked} was acknowledged");
            }
        }
    }
}

fn text(bytes: Option<&Bytes>) -> &str {
    std::str::from_utf8(bytes.unwrap()).unwrap()
}

fn flight(record: &ConsumedRecord) -> (String, i64, String) {
    let value: Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
    let word = |name: &str| value[name].as_str().unwrap().to_owned();
    (word("id"), value["delay"].as_i64().unwrap(), word("origin"))
}

/// Checks that the sources consist of exactly the acknowledged records, at their acknowledged places, that every record
/// exists once, and that the records of one producer are in the order in which they were sent.
fn check_sources(known: &Known, flights: &[Vec<ConsumedRecord>], lines: &[Vec<ConsumedRecord>]) {
    let acked = known.acked.lock();
    let there = flights.iter().chain(lines).map(Vec::len).sum::<usize>();
    assert_eq!(acked.len(), there, "every sent record must be acknowledged and exist once");
    for (topic, partition, offset, value) in &*acked {
        let records = if *topic == FLIGHTS { flights } else { lines };
        let record = records[*partition as usize].get(*offset as usize);
        let found = record.map(|record| text(record.value.as_ref()));
        assert_eq!(found, Some(value.as_str()), "{topic}-{partition} at offset {offset}");
    }
    let mut ids = HashSet::new();
    for partition in flights {
        let mut last: HashMap<String, String> = HashMap::new();
        for record in partition {
            let (id, ..) = flight(record);
            let producer = id.split('-').next().unwrap().to_owned();
            assert_eq!(record.key.is_some(), producer == "keyed");
            let before = last.insert(producer, id.clone());
            assert!(before.as_ref() < Some(&id), "{before:?} is stored before {id}");
            assert!(ids.insert(id.clone()), "{id} exists twice");
        }
    }
}

/// Checks that the members saw every record, and no others.
fn check_members(known: &Known, flights: &[Vec<ConsumedRecord>]) {
    let seen = known.seen.lock();
    let mut there = 0;
    for record in flights.iter().flatten() {
        there += 1;
        let found = seen.get(&(record.partition, record.offset));
        assert_eq!(found, record.value.as_ref(), "flights-{} at offset {}", record.partition, record.offset);
    }
    assert_eq!(seen.len(), there, "a member saw a record that was never stored");
}

async fn check_delays(client: &Client, flights: &[Vec<ConsumedRecord>]) {
    // The source partition and offset of each flight that must pass the filter.
    let mut late: HashMap<String, (u32, u64)> = HashMap::new();
    for record in flights.iter().flatten() {
        let (id, delay, _) = flight(record);
        if delay >= 15 {
            late.insert(id, (record.partition, record.offset));
        }
    }
    for topic in ["late-flights", "delays.mean-delay.repartition"] {
        let passed = all_records(client, topic).await;
        let mut left = late.clone();
        for (number, partition) in passed.iter().enumerate() {
            // Records from one source partition must be in the order of their source offsets.
            let mut last: HashMap<u32, u64> = HashMap::new();
            for record in partition {
                let (id, _, origin) = flight(record);
                assert_eq!(text(record.key.as_ref()), origin);
                assert_eq!(partition_for_key(origin.as_bytes(), passed.len() as u32), number as u32);
                let from =
                    left.remove(&id).unwrap_or_else(|| panic!("{topic}: {id} exists twice, or has no source record"));
                let before = last.insert(from.0, from.1);
                assert!(before < Some(from.1), "{topic}: {id} is out of order");
            }
        }
        assert!(left.is_empty(), "{topic}: {} records are missing, {:?}", left.len(), left.keys().next());
    }
    // Each update must be the mean over all records of its key up to some record.
    let mut expected: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for partition in all_records(client, "delays.mean-delay.repartition").await {
        let mut sums: HashMap<String, (u64, i64)> = HashMap::new();
        for record in partition {
            let (_, delay, origin) = flight(&record);
            let (flights, minutes) = sums.entry(origin.clone()).or_default();
            (*flights, *minutes) = (*flights + 1, *minutes + delay);
            let mean = (*minutes as f64 / *flights as f64 * 10.0).round() / 10.0;
            expected.entry(origin).or_default().push(json!({"flights": flights, "mean_delay": mean}));
        }
    }
    let updates = all_records(client, "mean-delays").await;
    let flights_of = |update: &Value| update["flights"].as_u64().unwrap() as usize;
    check_updates(&updates, &expected, flights_of, |record| serde_json::from_slice(record).unwrap());
}

async fn check_words(client: &Client, lines: &[Vec<ConsumedRecord>]) {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for record in lines.iter().flatten() {
        for word in text(record.value.as_ref()).split(' ').filter(|word| !word.is_empty()) {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
    }
    let expected = counts.into_iter().map(|(word, count)| (word, (1..=count).map(Value::from).collect())).collect();
    let updates = all_records(client, "counts").await;
    let count_of = |update: &Value| update.as_u64().unwrap() as usize;
    check_updates(&updates, &expected, count_of, |record| serde_json::from_slice(record).unwrap());
}

/// Checks that each update of a key is the one expected after some number of its records, that updates of a key
/// advance, and that the last one counts all its records.
fn check_updates(
    updates: &[Vec<ConsumedRecord>],
    expected: &BTreeMap<String, Vec<Value>>,
    records_of: impl Fn(&Value) -> usize,
    parse: impl Fn(&[u8]) -> Value,
) {
    assert!(!expected.is_empty());
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for (number, partition) in updates.iter().enumerate() {
        for record in partition {
            let key = text(record.key.as_ref());
            assert_eq!(partition_for_key(key.as_bytes(), updates.len() as u32), number as u32);
            let update = parse(record.value.as_deref().unwrap());
            let records = records_of(&update);
            assert_eq!(
                Some(&update),
                expected[key].get(records.wrapping_sub(1)),
                "the update of {key} after {records} records"
            );
            let before = last.insert(key.to_owned(), records).unwrap_or_default();
            assert!(before < records, "{key}: an update after {records} records follows one after {before}");
        }
    }
    let total: BTreeMap<String, usize> = expected.iter().map(|(key, updates)| (key.clone(), updates.len())).collect();
    assert_eq!(last, total, "the last updates must count every record once");
}

#[test]
fn a_first_start_that_is_killed_leaves_a_directory_that_opens() {
    let seed = number_of("MILLSTREAM_TEST_SEED").unwrap_or_else(rand::random);
    println!("MILLSTREAM_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..8 {
        let data = tempfile::tempdir().unwrap();
        start_and_kill(data.path(), &[], Duration::from_micros(random.random_range(0..40_000)));
        // `start` panics if the server does not start.
        let _ = Server::start(data.path());
    }
}

#[test]
fn a_server_that_says_it_serves_can_be_stopped() {
    let data = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let mut server = Server::start(data.path());
        assert!(server.terminate().success(), "the server must stop in an orderly way even right after its start");
    }
}
