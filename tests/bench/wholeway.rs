//! Pipelines end to end: throughput, latency, and what a server costs that does nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream_client::{Client, ConsumerSettings, Position, ProducerSettings, RecordRef, v1};
use millstream_tests::server::Server;

use crate::Plan;
use crate::report::{Report, Target, median, percentile};
use crate::streaming::{cpu_seconds, pause, resident_mb};
use crate::yardstick::mix;

const ROUNDS: usize = 3;
const PARTITIONS: u32 = 4;
const KAFKA_STREAMS: (&str, f64) = ("Kafka Streams, exactly once (not this run)", 242_000.0);

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    for (keys, records, least) in [(1_000, 4_000_000, 1_200_000.0), (1_000_000, 4_000_000, 400_000.0)] {
        let name = format!("pipeline filter+map+aggregate, {keys} keys");
        if plan.wants(&name) {
            let mut rates = Vec::new();
            for _ in 0..plan.rounds(ROUNDS) {
                rates.push(pipeline(keys, plan.records(records)).await);
            }
            report.beside(name, median(rates), "records/s", KAFKA_STREAMS, Some(Target::AtLeast(least)));
        }
    }
    for a_second in [1_000, 10_000] {
        let name = format!("latency produce to pipeline to consumer, {a_second}/s");
        if plan.wants(&name) {
            let sorted = latency(a_second, plan.records(20).max(3)).await;
            report.figure(format!("{name}, p50"), percentile(&sorted, 0.5), "ms", None);
            report.figure(format!("{name}, p99"), percentile(&sorted, 0.99), "ms", Some(Target::AtMost(10.0)));
            report.figure(format!("{name}, p99.9"), percentile(&sorted, 0.999), "ms", None);
        }
    }
    if plan.wants("idle server") {
        idle(report).await;
    }
    if plan.wants("module upload to first output") {
        let mut seconds = Vec::new();
        for _ in 0..plan.rounds(ROUNDS) {
            seconds.push(first_output().await);
        }
        report.figure("module upload to first output", median(seconds), "s", Some(Target::AtMost(1.0)));
    }
    if plan.wants("start with 1 GB") {
        start(plan, report).await;
    }
}

pub(crate) async fn push(client: &Client, guests: &[&str]) {
    for guest in guests {
        client.admin().push_module(guest, millstream_tests::guest(guest)).await.unwrap();
    }
}

pub(crate) async fn apply(client: &Client, yaml: &str) {
    let request = v1::ApplyPipelineRequest { yaml: yaml.to_owned(), ..Default::default() };
    let applied = client.admin().apply_pipeline(request).await.unwrap();
    assert!(applied.mistakes.is_empty(), "{:?}", applied.mistakes);
}

const THREE_STAGES: &str = "
pipeline: bench
from: in
stages:
  - filter: bench-filter
  - map: bench-map
    keeps-key: true
  - aggregate: bench-aggregate
to: out
";

/// Records a second from the file's apply to the commit of the last one.
async fn pipeline(keys: u64, records: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    push(&client, &["bench-filter", "bench-map", "bench-aggregate"]).await;
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic("in").await.unwrap();
    let mut value = vec![b'x'; 100];
    for number in 0..records {
        let random = mix(number);
        value[0] = if random.is_multiple_of(10) { b'a' } else { b'b' };
        let key = format!("{:08}", random % keys);
        drop(to.send(RecordRef::keyed(key.as_bytes(), &value)).await.unwrap());
    }
    producer.close().await.unwrap();
    let begun = Instant::now();
    apply(&client, THREE_STAGES).await;
    loop {
        let described = client.admin().describe_pipeline("bench").await.unwrap();
        let pipeline = described.pipeline.unwrap();
        assert_eq!(pipeline.state, "running", "{}", pipeline.reason);
        if pipeline.lag == 0 {
            break;
        }
        pause(Duration::from_millis(5)).await;
    }
    records as f64 / begun.elapsed().as_secs_f64()
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Milliseconds from `send` to the consumer's hand, sorted.
async fn latency(a_second: u64, seconds: u64) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    client.admin().create_topic("out", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    push(&client, &["bench-map"]).await;
    apply(&client, "pipeline: bench\nfrom: in\nstages:\n  - map: bench-map\nto: out\n").await;
    let total = a_second * seconds;
    let mut consumer = client.consumer(ConsumerSettings::topic("out").from(Position::Earliest)).unwrap();
    let consumed = tokio::spawn(async move {
        let mut all = Vec::with_capacity(total as usize);
        while all.len() < total as usize {
            let batch = consumer.next_batch().await.unwrap().unwrap();
            let now = now_us();
            for record in &batch {
                let value = record.unwrap().value.unwrap();
                let sent = u64::from_be_bytes(*value.first_chunk().unwrap());
                all.push((now.saturating_sub(sent)) as f64 / 1e3);
            }
        }
        all
    });
    let producer = client.producer(ProducerSettings { linger_ms: 1, ..ProducerSettings::default() });
    let to = producer.topic("in").await.unwrap();
    let mut value = vec![b'x'; 100];
    let begun = Instant::now();
    for number in 0..total {
        let due = begun + Duration::from_nanos(number * 1_000_000_000 / a_second);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        value[..8].copy_from_slice(&now_us().to_be_bytes());
        let key = (number % 1_000).to_be_bytes();
        drop(to.send(RecordRef::keyed(&key, &value)).await.unwrap());
    }
    producer.close().await.unwrap();
    let mut all = consumed.await.unwrap();
    // The first second is the machine's warming up.
    all.drain(..(a_second as usize).min(all.len() / 2));
    all.sort_by(f64::total_cmp);
    all
}

async fn idle(report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    push(&client, &["bench-filter", "bench-map", "bench-aggregate"]).await;
    apply(&client, THREE_STAGES).await;
    drop(client);
    pause(Duration::from_secs(3)).await;
    let cpu = cpu_seconds(server.pid());
    pause(Duration::from_secs(10)).await;
    let used = (cpu_seconds(server.pid()) - cpu) * 1e3;
    report.figure("idle server with a pipeline, CPU in 10 s", used, "ms", Some(Target::AtMost(10.0)));
    report.figure(
        "idle server with a pipeline, resident memory",
        resident_mb(server.pid()),
        "MB",
        Some(Target::AtMost(80.0)),
    );
}

/// Seconds from a module's upload to a fresh server, which has never seen it, to the first output.
async fn first_output() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(1), v1::TopicSettings::default()).await.unwrap();
    client.admin().create_topic("out", Some(1), v1::TopicSettings::default()).await.unwrap();
    let producer = client.producer(ProducerSettings::default());
    producer.topic("in").await.unwrap().send(RecordRef::new(b"{\"delay\": 100}")).await.unwrap().await.unwrap();
    let mut consumer = client.consumer(ConsumerSettings::topic("out").from(Position::Earliest)).unwrap();
    let begun = Instant::now();
    push(&client, &["delayed"]).await;
    apply(&client, "pipeline: bench\nfrom: in\nstages:\n  - filter: delayed\nto: out\n").await;
    consumer.next().await.unwrap().unwrap();
    begun.elapsed().as_secs_f64()
}

async fn start(plan: &Plan, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic("in").await.unwrap();
    let value = vec![b'x'; 1_000];
    for _ in 0..plan.records(1_000_000) {
        drop(to.send(RecordRef::new(&value)).await.unwrap());
    }
    producer.close().await.unwrap();
    assert!(server.terminate().success());
    let begun = Instant::now();
    server.restart();
    report.figure("start with 1 GB stored, after a clean stop", begun.elapsed().as_secs_f64(), "s", None);
    server.kill();
    let begun = Instant::now();
    server.restart();
    report.figure("start with 1 GB stored, after SIGKILL", begun.elapsed().as_secs_f64(), "s", None);
    let served = Instant::now();
    server.client().admin().list_topics().await.unwrap();
    assert!(served.elapsed() < Duration::from_secs(60), "it serves");
}
