//! The broker with much stored and for long: sealing, cold reads, many partitions, large state, retention.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millstream_broker::clock::SystemClock;
use millstream_broker::partition::ReadRange;
use millstream_broker::store::{Receipt, StoreOptions};
use millstream_broker::topic::{Topic, TopicSettings};
use millstream_broker::{Broker, BrokerSettings, Offset, TopicName};
use millstream_client::{ProducerSettings, RecordRef, v1};
use millstream_record::RecordBatch;
use millstream_tests::server::Server;
use prometheus_client::registry::Registry;

use crate::Plan;
use crate::report::{Report, Target, median, percentile};
use crate::streaming::{pause, resident_mb};
use crate::wholeway::{apply, push};
use crate::yardstick::{self, mix};

/// Batches that wait for an answer: four commits' worth.
const IN_FLIGHT: usize = 64;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if plan.wants("sustained durable append with sealing") {
        sustained(plan, report).await;
    }
    if plan.wants("partitions curve") {
        partitions(plan, report).await;
    }
    if plan.wants("cold reader") {
        cold_reader(plan, report).await;
    }
    if plan.wants("disk in steady retention") {
        retention(plan, report).await;
    }
    if plan.wants("start with 20 GB") {
        stored(plan, report).await;
    }
    if plan.wants("state of 10,000,000 keys") {
        state(plan, report).await;
    }
}

fn open(folder: &Path) -> Broker {
    let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
    Broker::open(folder, settings, options, Arc::new(SystemClock), &mut Registry::default()).unwrap()
}

async fn stop(broker: Broker) {
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

async fn topic(broker: &Broker, name: &str, partitions: u32, settings: TopicSettings) -> Arc<Topic> {
    broker.create_topic(&TopicName::new(name).unwrap(), partitions, settings, false).await.unwrap()
}

/// What appending took.
struct Appended {
    mb_per_s: f64,
    records_per_s: f64,
    /// Milliseconds from asking to the acknowledgement, sorted.
    acknowledged_ms: Vec<f64>,
    /// When the longest of them began and ended.
    longest: Range<Instant>,
    /// The longest time in which nothing was acknowledged, in ms.
    stall_ms: f64,
}

/// Appends so many batches, round the partitions, with `in_flight` waiting.
async fn append(broker: &Broker, topic: &Topic, batch: &RecordBatch, batches: u64, in_flight: usize) -> Appended {
    let mut waiting: VecDeque<(Instant, Receipt)> = VecDeque::new();
    let mut acknowledged_ms = Vec::with_capacity(batches as usize);
    let begun = Instant::now();
    let mut longest = begun..begun;
    let (mut last, mut stall) = (begun, Duration::ZERO);
    let mut acknowledged = |asked: Instant| {
        let now = Instant::now();
        acknowledged_ms.push((now - asked).as_secs_f64() * 1e3);
        stall = stall.max(now - last);
        last = now;
        if now - asked > longest.end - longest.start {
            longest = asked..now;
        }
    };
    for number in 0..batches {
        if waiting.len() >= in_flight {
            let (asked, receipt) = waiting.pop_front().unwrap();
            receipt.await.unwrap();
            acknowledged(asked);
        }
        let partition = topic.partition((number % u64::from(topic.partition_count())) as u32).unwrap();
        waiting.push_back((Instant::now(), broker.produce(topic, partition, vec![batch.clone()]).await.unwrap()));
    }
    for (asked, receipt) in waiting {
        receipt.await.unwrap();
        acknowledged(asked);
    }
    let seconds = begun.elapsed().as_secs_f64();
    acknowledged_ms.sort_by(f64::total_cmp);
    Appended {
        mb_per_s: (batches * batch.as_bytes().len() as u64) as f64 / 1e6 / seconds,
        records_per_s: (batches * u64::from(batch.record_count())) as f64 / seconds,
        acknowledged_ms,
        longest,
        stall_ms: stall.as_secs_f64() * 1e3,
    }
}

/// 10 GB through the journal into segments, beside the bare loop before and after.
async fn sustained(plan: &Plan, report: &mut Report) {
    let name = "sustained durable append with sealing, 10 GB";
    let bare = |megabytes| {
        let folder = tempfile::tempdir().unwrap();
        yardstick::bare_redb(folder.path(), megabytes)
    };
    let before = bare(plan.records(5_000));
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    let topic = topic(&broker, "t", 4, TopicSettings::default()).await;
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = plan.records(10_000_000_000) / batch.as_bytes().len() as u64;
    let stolen = yardstick::Stolen::watch();
    let appended = append(&broker, &topic, &batch, batches, IN_FLIGHT).await;
    let stolen_ms = stolen.during(&appended.longest);
    stop(broker).await;
    drop(folder);
    let after = bare(plan.records(5_000));
    let bare = median(vec![before.mb_per_s, after.mb_per_s]);
    report.beside(
        name,
        appended.mb_per_s,
        "MB/s",
        ("bare redb, 16 x 65,472 B a commit", bare),
        Some(Target::AtLeast(0.4 * bare)),
    );
    let bare_longest_ms = before.longest_ms.max(after.longest_ms);
    let at = |part| percentile(&appended.acknowledged_ms, part);
    report.figure(format!("{name}, acknowledgement p50"), at(0.5), "ms", None);
    report.figure(format!("{name}, acknowledgement p99"), at(0.99), "ms", Some(Target::AtMost(5.0 * at(0.5))));
    report.figure(format!("{name}, acknowledgement max, behind four commits"), at(1.0), "ms", None);
    report.figure(format!("{name}, what the host took of all cores in that time"), stolen_ms, "ms", None);
    report.beside(
        format!("{name}, longest time without an acknowledgement"),
        appended.stall_ms,
        "ms",
        ("the longest of bare redb's as many commits", bare_longest_ms),
        // Where the disk itself stalls for longer, no longer than that.
        Some(Target::AtMost(bare_longest_ms.max(100.0))),
    );
}

/// Small batches, ten records of 100 bytes each, spread over more and more partitions.
async fn partitions(plan: &Plan, report: &mut Report) {
    let batch = yardstick::batch(10, 100, 1_000, 1);
    let mut one = 0.0;
    for count in [1, 100, 1_000, 10_000] {
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds(3) {
            let folder = tempfile::tempdir().unwrap();
            let broker = open(folder.path());
            let topic = topic(&broker, "t", count, TopicSettings::default()).await;
            rounds.push(append(&broker, &topic, &batch, plan.records(400_000), 1_000).await);
            stop(broker).await;
        }
        rounds.sort_by(|a, b| a.records_per_s.total_cmp(&b.records_per_s));
        let middle = &rounds[rounds.len() / 2];
        let name = format!("partitions curve, {count}");
        let target = (count == 1_000).then_some(Target::AtLeast(one / 2.0));
        report.figure(&name, middle.records_per_s, "records/s", target);
        let p50 = percentile(&middle.acknowledged_ms, 0.5);
        report.figure(format!("{name}, acknowledgement p50"), p50, "ms", None);
        report.figure(format!("{name}, p99"), percentile(&middle.acknowledged_ms, 0.99), "ms", None);
        if count == 1 {
            one = middle.records_per_s;
        }
    }
}

/// Bytes a second that one reader gets from the segments, from the start, until told to stop.
async fn read_cold(broker: Broker, topic: Arc<Topic>, until: Offset) -> f64 {
    let partition = topic.partitions()[0].clone();
    let (mut from, mut bytes) = (Offset::ZERO, 0);
    let begun = Instant::now();
    while from < until {
        let range = ReadRange { from, until: Some(until), bytes_max: 1 << 20, one_at_least: true };
        let slice = broker.read(&partition, range).await.unwrap();
        bytes += slice.bytes();
        from = slice.next;
    }
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

/// A reader of sealed records alone, and a producer beside it with and without.
async fn cold_reader(plan: &Plan, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    let (old, new) = (
        topic(&broker, "old", 1, TopicSettings::default()).await,
        topic(&broker, "new", 1, TopicSettings::default()).await,
    );
    let batch = yardstick::batch(550, 100, 1_000, 1);
    let batches = |bytes| plan.records(bytes) / batch.as_bytes().len() as u64;
    append(&broker, &old, &batch, batches(3_000_000_000), IN_FLIGHT).await;
    // What is sealed of it.
    let until = Offset::new(old.partitions()[0].end().get() / 2).unwrap();
    let alone = read_cold(broker.clone(), old.clone(), until).await;
    report.figure("cold reader from the start, alone", alone, "MB/s", Some(Target::AtLeast(500.0)));

    // At the pace of an ordinary producer: a batch every other millisecond.
    let paced = async |count: u64| {
        let mut took = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        for _ in 0..count {
            tick.tick().await;
            let asked = Instant::now();
            let partition = &new.partitions()[0];
            broker.produce(&new, partition, vec![batch.clone()]).await.unwrap().await.unwrap();
            took.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        took
    };
    let full = async || append(&broker, &new, &batch, batches(300_000_000), IN_FLIGHT).await.mb_per_s;
    // By turns, and short ones: how fast the disk is changes from one second to the next.
    let (mut without, mut with, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let (mut without_ms, mut with_ms) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds(12) {
        without.push(full().await);
        without_ms.extend(paced(plan.records(300)).await);
        let ended = Arc::new(AtomicBool::new(false));
        let reading = {
            let (broker, old, ended) = (broker.clone(), old.clone(), ended.clone());
            tokio::spawn(async move {
                let mut rates = Vec::new();
                while !ended.load(Ordering::SeqCst) {
                    rates.push(read_cold(broker.clone(), old.clone(), until).await);
                }
                rates
            })
        };
        with.push(full().await);
        with_ms.extend(paced(plan.records(300)).await);
        ended.store(true, Ordering::SeqCst);
        beside.extend(reading.await.unwrap());
    }
    without_ms.sort_by(f64::total_cmp);
    with_ms.sort_by(f64::total_cmp);
    let (without, with, beside) = (median(without), median(with), median(beside));
    report.figure("cold reader from the start, beside a producer", beside, "MB/s", None);
    report.beside(
        "cold reader, what a producer at full speed keeps",
        with,
        "MB/s",
        ("the producer alone", without),
        Some(Target::AtLeast(0.8 * without)),
    );
    let p50 = |sorted: &[f64]| percentile(sorted, 0.5);
    report.beside(
        "cold reader, acknowledgement of a paced producer, p50",
        p50(&with_ms),
        "ms",
        ("the producer alone", p50(&without_ms)),
        None,
    );
    stop(broker).await;
}

/// Bytes on disk beside what retention promises to keep, after five times as much was produced.
async fn retention(plan: &Plan, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    let keeps = 2_000_000_000;
    let settings = TopicSettings { retention_bytes: Some(keeps), ..TopicSettings::default() };
    let topic = topic(&broker, "t", 1, settings).await;
    let batch = yardstick::batch(550, 100, 1_000, 1);
    append(&broker, &topic, &batch, 5 * keeps / batch.as_bytes().len() as u64, IN_FLIGHT).await;
    let mut most = 0;
    for _ in 0..plan.records(20).max(5) {
        // Steady: as much comes as goes.
        append(&broker, &topic, &batch, 500, 8).await;
        pause(Duration::from_millis(300)).await;
        let size = broker.store().size();
        most = most.max(size.journal_bytes + size.table_bytes + size.segment_bytes);
    }
    stop(broker).await;
    report.beside(
        "disk in steady retention of 2 GB, at most",
        most as f64 / 1e6,
        "MB",
        ("what is kept", keeps as f64 / 1e6),
        Some(Target::AtMost(1.3 * keeps as f64 / 1e6)),
    );
}

/// The median start in seconds after three kills.
fn start_after_kill(server: &mut Server) -> f64 {
    let start = |_| {
        server.kill();
        let begun = Instant::now();
        server.restart();
        begun.elapsed().as_secs_f64()
    };
    median((0..3).map(start).collect())
}

/// Waits until what the partitions have in segments is joined, for ten minutes at most. Returns the seconds that it
/// took.
async fn joined(server: &Server) -> f64 {
    /// A few more than the store joins nothing below: what seals meanwhile is not waited for.
    const PIECES: u32 = 80_000;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(600) {
        let described = server.client().admin().describe_topic("in").await.unwrap();
        if described.topic.unwrap().segments <= PIECES {
            break;
        }
        pause(Duration::from_millis(500)).await;
    }
    begun.elapsed().as_secs_f64()
}

/// Start and memory with 1 GB and with 20 GB stored, in 1,000 partitions: as soon as it is stored, and once what each
/// partition has in many segments is joined.
async fn stored(plan: &Plan, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().admin().create_topic("in", Some(1_000), v1::TopicSettings::default()).await.unwrap();
    let mut gigabytes = 0;
    for until in [1, 20] {
        // A server that was started again listens elsewhere.
        let producer = server.client().producer(ProducerSettings::default());
        let to = producer.topic("in").await.unwrap();
        let value = vec![b'x'; 1_000];
        for number in 0..plan.records((until - gigabytes) * 1_000_000) {
            let key = mix(number).to_be_bytes();
            drop(to.send(RecordRef::keyed(&key, &value)).await.unwrap());
        }
        producer.close().await.unwrap();
        gigabytes = until;
        let memory = resident_mb(server.pid());
        let target = (until == 20).then_some(Target::AtMost(400.0));
        report.figure(format!("resident with {until} GB stored, 1,000 partitions"), memory, "MB", target);
        let name = format!("start with {until} GB stored, after SIGKILL");
        report.figure(&*name, start_after_kill(&mut server), "s", Some(Target::AtMost(1.0)));
        report.figure(format!("{name}: joined after"), joined(&server).await, "s", None);
        report.figure(format!("{name}, joined"), start_after_kill(&mut server), "s", Some(Target::AtMost(1.0)));
    }
    let memory = resident_mb(server.pid());
    report.figure("resident with 20 GB stored, 1,000 partitions, joined", memory, "MB", None);
}

const COUNT_ALL: &str = "
pipeline: bench
from: in
stages:
  - aggregate: bench-aggregate
to: out
";

/// Records a second, minute by minute, of an aggregate whose keys are ten million, under full load.
async fn state(plan: &Plan, report: &mut Report) {
    const KEYS: u64 = 10_000_000;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    let settings = v1::TopicSettings { retention_bytes: Some(1 << 30), ..Default::default() };
    client.admin().create_topic("in", Some(2), settings).await.unwrap();
    client.admin().create_topic("out", Some(2), settings).await.unwrap();
    push(&client, &["bench-aggregate"]).await;
    apply(&client, COUNT_ALL).await;
    let ended = Arc::new(AtomicBool::new(false));
    let ahead = Arc::new(AtomicU64::new(0));
    let producing = {
        let (client, ended, ahead) = (server.client(), ended.clone(), ahead.clone());
        tokio::spawn(async move {
            let producer = client.producer(ProducerSettings::default());
            let to = producer.topic("in").await.unwrap();
            let value = vec![b'b'; 100];
            for number in 0.. {
                // Not so far ahead that retention overtakes the pipeline.
                while ahead.load(Ordering::SeqCst) > 1_000_000 && !ended.load(Ordering::SeqCst) {
                    pause(Duration::from_millis(5)).await;
                }
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                // Every key once, and then at random.
                let random = if number < KEYS { number } else { mix(number) % KEYS };
                let key = format!("{random:08}");
                drop(to.send(RecordRef::keyed(key.as_bytes(), &value)).await.unwrap());
            }
            producer.close().await.unwrap();
        })
    };
    let committed = async || {
        let described = client.admin().describe_pipeline("bench").await.unwrap();
        let pipeline = described.pipeline.unwrap();
        assert_eq!(pipeline.state, "running", "{}", pipeline.reason);
        ahead.store(pipeline.lag, Ordering::SeqCst);
        described.offsets.iter().filter_map(|offset| offset.committed_offset).sum::<u64>()
    };
    while committed().await < plan.records(KEYS) {
        pause(Duration::from_millis(50)).await;
    }
    let mut rates = Vec::new();
    let mut memory = 0.0f64;
    for minute in 1..=plan.records(10).max(1) {
        let (begun, from) = (Instant::now(), committed().await);
        let length = Duration::from_secs(if plan.divide > 1 { 10 } else { 60 });
        while begun.elapsed() < length {
            committed().await;
            memory = memory.max(resident_mb(server.pid()));
            pause(Duration::from_millis(50)).await;
        }
        let rate = (committed().await - from) as f64 / begun.elapsed().as_secs_f64();
        report.figure(format!("state of 10,000,000 keys, minute {minute}"), rate, "records/s", None);
        rates.push(rate);
    }
    ended.store(true, Ordering::SeqCst);
    producing.await.unwrap();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    report.beside(
        "state of 10,000,000 keys, the slowest minute",
        least,
        "records/s",
        ("the first", rates[0]),
        Some(Target::AtLeast(rates[0] / 2.0)),
    );
    report.figure("state of 10,000,000 keys, resident at most", memory, "MB", Some(Target::AtMost(1_000.0)));
}
