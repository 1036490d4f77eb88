//! End-to-end throughput and latency of pipelines, and the resource usage of an idle server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream_client::{Client, ConsumerSettings, Position, ProducerSettings, RecordRef, v1};
use millstream_tests::measure::kafka::{StreamsLoad, VERSION};
use millstream_tests::measure::open_loop::OpenLoop;
use millstream_tests::measure::process::{cpu_seconds, resident_bytes};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::{Side, sides};
use millstream_tests::server::Server;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::kafka::Kafka;
use crate::latency::{LOADS_PERCENT, SAMPLES_A_SECOND, part_of};
use crate::plan::Plan;
use crate::yardstick::mix;

const ROUNDS: usize = 3;
const PARTITIONS: u32 = 4;
/// Kafka Streams is slower, so its rounds take long enough with fewer records. Its warm-up processes a third as many
/// records in the same process, while ours starts cold.
const STREAMS_RECORDS: u64 = 1_500_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    for (keys, records, least) in [(1_000, 4_000_000, 1_200_000.0), (1_000_000, 4_000_000, 400_000.0)] {
        let name = format!("pipeline filter+map+aggregate, {keys} keys");
        if plan.wants(&name) {
            // Warm-up.
            pipeline(keys, plan.records(records) / 5).await;
            let (mut ours, mut of_kafka) = (Vec::new(), Vec::new());
            for round in 0..plan.rounds(ROUNDS) {
                for side in sides(round) {
                    match side {
                        Side::Ours => ours.push(pipeline(keys, plan.records(records)).await),
                        Side::Yardstick => of_kafka.extend(kafka_streams(plan, keys, report)),
                    }
                }
            }
            let mut figure =
                Figure::new(format!("{name}, {} records", plan.records(records)), median(ours), Unit::RecordsPerSecond);
            if !of_kafka.is_empty() {
                let of = plan.records(STREAMS_RECORDS);
                figure =
                    figure.beside(format!("Kafka Streams {VERSION}, exactly once, {of} records"), median(of_kafka));
            }
            report.add(figure.at_least(least));
        }
    }
    latency(plan, report).await;
    if plan.wants("idle server") {
        idle(report).await;
    }
    let name = "module upload to first output";
    if plan.wants(name) {
        let mut seconds = Vec::new();
        for _ in 0..plan.rounds(ROUNDS) {
            seconds.push(first_output().await);
        }
        report.add(Figure::new(name, median(seconds), Unit::Seconds).at_most(1.0));
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

/// Returns the records per second, from applying the pipeline file to the commit of the last record.
async fn pipeline(keys: u64, records: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    pipeline_on(&Server::start(folder.path()), keys, records).await
}

/// Like [`pipeline`], on a server without topics.
pub(crate) async fn pipeline_on(server: &Server, keys: u64, records: u64) -> f64 {
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    push(&client, &["bench-filter", "bench-map", "bench-aggregate"]).await;
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic("in").await.unwrap();
    let mut value = vec![b'x'; 100];
    for number in 0..records {
        let random = mix(number);
        value[0] = if random.is_multiple_of(10) { b'a' } else { b'b' };
        // The key uses other digits of the number than those that the filter depends on.
        let key = format!("{:08}", random / 10 % keys);
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
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    records as f64 / begun.elapsed().as_secs_f64()
}

/// Runs the same work on a new Kafka node, with one thread per core.
fn kafka_streams(plan: &Plan, keys: u64, report: &mut Report) -> Option<f64> {
    let folder = tempfile::tempdir().unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let records = plan.records(STREAMS_RECORDS);
    let load = StreamsLoad { records, warm_up: STREAMS_RECORDS / 3, keys, threads };
    Kafka::start(folder.path(), report).streams(load, report)
}

/// Measures the time from when a record was due at the producer until the consumer has the pipeline's output, at steady
/// rates and at fractions of the maximum throughput.
async fn latency(plan: &Plan, report: &mut Report) {
    const NAME: &str = "latency produce to pipeline to consumer";
    let rounds = async |load: OpenLoop| {
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds(ROUNDS) {
            rounds.push(PassedOn::start().await.steadily(load).await);
        }
        rounds
    };
    for per_second in [1_000, 10_000] {
        let name = format!("{NAME}, {per_second}/s");
        if plan.wants(&name) {
            let load = OpenLoop::new(per_second, plan.seconds(20), SAMPLES_A_SECOND);
            report.add_latency_at_most(&format!("{name},"), &rounds(load).await, 10.0);
        }
    }
    let name = format!("{NAME}, open loop");
    if plan.wants(&name) {
        let mut most = Vec::new();
        for _ in 0..plan.rounds(ROUNDS) {
            // About ten seconds, like the open loops.
            most.push(PassedOn::start().await.at_full_speed(plan.records(10_000_000)).await);
        }
        let most = median(most);
        report.add(Figure::new(format!("{name}, the maximum (closed loop)"), most, Unit::RecordsPerSecond));
        for percent in LOADS_PERCENT {
            let load = part_of(most, percent, plan.seconds(10));
            report.add_latency(&format!("{name}, at {percent} %,"), &rounds(load).await);
        }
    }
}

/// Size of each value, in bytes. It begins with the record's due time in microseconds since the epoch, or 0 if the
/// record is not timed.
const PASSED_ON_BYTES: usize = 100;

/// A server with a pipeline that passes each record on.
pub(crate) struct PassedOn {
    server: Server,
    _data: TempDir,
}

impl PassedOn {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::start_on(Server::start(data.path()), data).await
    }

    /// Applies the pipeline on a server without topics.
    pub(crate) async fn start_on(server: Server, data: TempDir) -> Self {
        let client = server.client();
        client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
        client.admin().create_topic("out", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
        push(&client, &["bench-map"]).await;
        apply(&client, "pipeline: bench\nfrom: in\nstages:\n  - map: bench-map\nto: out\n").await;
        Self { server, _data: data }
    }

    /// Consumes this many records of the output. Returns the milliseconds since the due times of the timed records.
    fn consume(&self, records: u64) -> JoinHandle<Vec<f64>> {
        let mut consumer =
            self.server.client().consumer(ConsumerSettings::topic("out").from(Position::Earliest)).unwrap();
        tokio::spawn(async move {
            let (mut came, mut late_ms) = (0, Vec::new());
            while came < records {
                let batch = consumer.next_batch().await.unwrap().unwrap();
                let now = epoch_us();
                for record in &batch {
                    came += 1;
                    let value = record.unwrap().value.unwrap();
                    let due = u64::from_be_bytes(*value.first_chunk().unwrap());
                    if due > 0 {
                        late_ms.push(now.saturating_sub(due) as f64 / 1e3);
                    }
                }
            }
            late_ms
        })
    }

    fn settings() -> ProducerSettings {
        ProducerSettings { linger_ms: 1, ..ProducerSettings::default() }
    }

    /// Returns the records per second, measured until the consumer has the last record.
    async fn at_full_speed(self, records: u64) -> f64 {
        let consuming = self.consume(records);
        let producer = self.server.client().producer(Self::settings());
        let to = producer.topic("in").await.unwrap();
        let value = [0; PASSED_ON_BYTES];
        let begun = Instant::now();
        for number in 0..records {
            drop(to.send(RecordRef::keyed(&passed_on_key(number), &value)).await.unwrap());
        }
        producer.close().await.unwrap();
        consuming.await.unwrap();
        records as f64 / begun.elapsed().as_secs_f64()
    }

    /// Returns the latencies from the due times of records to their arrival at the consumer.
    pub(crate) async fn steadily(self, load: OpenLoop) -> Latency {
        let consuming = self.consume(load.records);
        let producer = self.server.client().producer(Self::settings());
        let to = producer.topic("in").await.unwrap();
        let (epoch, begun) = (epoch_us(), Instant::now());
        load.run(&to, |number, due, record| {
            let due = epoch + due.saturating_duration_since(begun).as_micros() as u64;
            let timed = if load.is_sampled(number) { due } else { 0 };
            record.value.resize(PASSED_ON_BYTES, b'x');
            record.value[..8].copy_from_slice(&timed.to_be_bytes());
            record.key = Some(passed_on_key(number).to_vec());
        })
        .await
        .unwrap();
        producer.close().await.unwrap();
        Latency::of(consuming.await.unwrap())
    }
}

fn passed_on_key(number: u64) -> [u8; 8] {
    (number % 1_000).to_be_bytes()
}

/// Returns the current time, in microseconds since the epoch.
fn epoch_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

async fn idle(report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    client.admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    push(&client, &["bench-filter", "bench-map", "bench-aggregate"]).await;
    apply(&client, THREE_STAGES).await;
    drop(client);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cpu = cpu_seconds(server.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = (cpu_seconds(server.pid()) - cpu) * 1e3;
    report.add(Figure::new("idle server with a pipeline, CPU in 10 s", used, Unit::Milliseconds).at_most(10.0));
    let resident = resident_bytes(server.pid()) as f64 / 1e6;
    report.add(Figure::new("idle server with a pipeline, resident memory", resident, Unit::Megabytes).at_most(80.0));
}

/// Returns the seconds from the upload of a module, to a new server that has never seen it, to the first output.
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
