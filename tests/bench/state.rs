//! An aggregate with ten million keys under full load, measured minute by minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millstream_client::{Client, ProducerSettings, RecordRef, v1};
use millstream_tests::measure::process::resident_bytes;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::server::Server;
use tokio::task::JoinHandle;

use crate::pipelines::{apply, push};
use crate::plan::Plan;
use crate::yardstick::mix;

const NAME: &str = "state of 10,000,000 keys";
const KEYS: u64 = 10_000_000;
const MINUTES: u64 = 10;

const COUNT_ALL: &str = "
pipeline: bench
from: in
stages:
  - aggregate: bench-aggregate
to: out
";

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.client();
    let settings = v1::TopicSettings { retention_bytes: Some(1 << 30), ..Default::default() };
    client.admin().create_topic("in", Some(2), settings).await.unwrap();
    client.admin().create_topic("out", Some(2), settings).await.unwrap();
    push(&client, &["bench-aggregate"]).await;
    apply(&client, COUNT_ALL).await;
    let producing = Producing::begin(server.client(), plan.records(KEYS));
    let committed = async || {
        let described = client.admin().describe_pipeline("bench").await.unwrap();
        let pipeline = described.pipeline.unwrap();
        assert_eq!(pipeline.state, "running", "{}", pipeline.reason);
        producing.ahead.store(pipeline.lag, Ordering::SeqCst);
        described.offsets.iter().filter_map(|offset| offset.committed_offset).sum::<u64>()
    };
    // Warm-up: every key once.
    while committed().await < plan.records(KEYS) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rates = Vec::new();
    let mut memory = 0.0f64;
    for minute in 1..=plan.records(MINUTES).max(1) {
        let (begun, from) = (Instant::now(), committed().await);
        let length = Duration::from_secs(if plan.is_quick() { 10 } else { 60 });
        while begun.elapsed() < length {
            committed().await;
            memory = memory.max(resident_bytes(server.pid()) as f64 / 1e6);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let rate = (committed().await - from) as f64 / begun.elapsed().as_secs_f64();
        report.add(Figure::new(format!("{NAME}, minute {minute}"), rate, Unit::RecordsPerSecond));
        rates.push(rate);
    }
    producing.end().await;
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let figure = Figure::new(format!("{NAME}, the slowest minute"), least, Unit::RecordsPerSecond);
    report.add(figure.beside("the first", rates[0]).at_least(rates[0] / 2.0));
    report.add(Figure::new(format!("{NAME}, resident at most"), memory, Unit::Megabytes).at_most(1_000.0));
}

/// A producer that stays slightly ahead of the pipeline.
struct Producing {
    ended: Arc<AtomicBool>,
    /// Number of records that the pipeline has not read yet.
    ahead: Arc<AtomicU64>,
    sending: JoinHandle<()>,
}

impl Producing {
    fn begin(client: Client, keys: u64) -> Self {
        let (ended, ahead) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sending = tokio::spawn(send(client, keys, ended.clone(), ahead.clone()));
        Self { ended, ahead, sending }
    }

    async fn end(self) {
        self.ended.store(true, Ordering::SeqCst);
        self.sending.await.unwrap();
    }
}

/// Sends every key once, and then random keys.
async fn send(client: Client, keys: u64, ended: Arc<AtomicBool>, ahead: Arc<AtomicU64>) {
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic("in").await.unwrap();
    let value = [b'b'; 100];
    for number in 0.. {
        // The producer must not get so far ahead that retention overtakes the pipeline.
        while ahead.load(Ordering::SeqCst) > 1_000_000 && !ended.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{:08}", if number < keys { number } else { mix(number) % keys });
        drop(to.send(RecordRef::keyed(key.as_bytes(), &value)).await.unwrap());
    }
    producer.close().await.unwrap();
}
