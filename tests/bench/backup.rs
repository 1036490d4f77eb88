//! The cost of a backup for a producer, at full speed and at a steady load. Rounds with and without concurrent backups
//! alternate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::StreamExt;
use millstream_client::{Client, ProducerSettings, v1};
use millstream_tests::measure::open_loop::OpenLoop;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::{Side, sides};
use millstream_tests::server::Server;
use tokio::task::JoinHandle;

use crate::latency::SAMPLES_A_SECOND;
use crate::load::{self, median_of};
use crate::plan::Plan;

const NAME: &str = "backup";
const ROUNDS: usize = 4;
/// Number of stored records of [`VALUE_BYTES`] to back up: 1 GB.
const STORED: u64 = 1_000_000;
const RECORDS: u64 = 500_000;
const VALUE_BYTES: usize = 1_000;
/// Records per second of the steady load: 20 MB.
const PER_SECOND: u64 = 20_000;

/// The measurements of one producer's round.
struct Round {
    records_per_s: f64,
    latency: Latency,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let settings = v1::TopicSettings { retention_bytes: Some(256 << 20), ..Default::default() };
    server.client().admin().create_topic("old", Some(4), v1::TopicSettings::default()).await.unwrap();
    // Retention bounds what is produced during the backups, so that all backups have a similar size.
    server.client().admin().create_topic("new", Some(4), settings).await.unwrap();
    load::produce(&server, "old", VALUE_BYTES, plan.records(STORED)).await;
    let (mut with, mut without, mut backups) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for side in sides(round) {
            match side {
                Side::Ours => {
                    let backing_up = BackingUp::begin(server.client());
                    with.push(produce(plan, &server).await);
                    backups.extend(backing_up.end().await);
                }
                Side::Yardstick => without.push(produce(plan, &server).await),
            }
            load::settle(&server).await;
        }
    }
    report.add(Figure::new(format!("{NAME}, beside a producer"), median(backups), Unit::MegabytesPerSecond));
    let rate = |rounds: &[Round]| median_of(rounds, |round| round.records_per_s);
    let figure = Figure::new(format!("{NAME}, producer at full speed"), rate(&with), Unit::RecordsPerSecond);
    report.add(figure.beside("no backup", rate(&without)));
    let latencies = |rounds: &[Round]| rounds.iter().map(|round| round.latency).collect::<Vec<_>>();
    let name = format!("{NAME}, {PER_SECOND}/s, acknowledgement");
    report.add_latency_beside(&name, &latencies(&with), &[("no backup", &latencies(&without))]);
}

async fn produce(plan: &Plan, server: &Server) -> Round {
    let begun = Instant::now();
    load::send(&server.client(), "new", VALUE_BYTES, plan.records(RECORDS)).await;
    let records_per_s = plan.records(RECORDS) as f64 / begun.elapsed().as_secs_f64();
    let producer = server.client().producer(ProducerSettings::default());
    let to = producer.topic("new").await.unwrap();
    let steady = OpenLoop::new(PER_SECOND, plan.seconds(10), SAMPLES_A_SECOND);
    let answered = steady.run(&to, |_, _, record| record.value.resize(VALUE_BYTES, b'x')).await.unwrap();
    producer.close().await.unwrap();
    Round { records_per_s, latency: Latency::of(answered.acknowledged_ms) }
}

/// Makes one backup after the other, and discards the bytes, like a client on another machine.
struct BackingUp {
    ended: Arc<AtomicBool>,
    rates: JoinHandle<Vec<f64>>,
}

impl BackingUp {
    fn begin(client: Client) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let rates = tokio::spawn(async move {
            let mut rates = Vec::new();
            while !until.load(Ordering::SeqCst) {
                rates.push(back_up(&client).await);
            }
            rates
        });
        Self { ended, rates }
    }

    /// Returns the MB per second of each backup. The last backup is read to its end.
    async fn end(self) -> Vec<f64> {
        self.ended.store(true, Ordering::SeqCst);
        self.rates.await.unwrap()
    }
}

async fn back_up(client: &Client) -> f64 {
    use v1::backup_chunk::Chunk;
    let begun = Instant::now();
    let mut chunks = client.admin().backup().await.unwrap();
    let (mut bytes, mut is_whole) = (0, false);
    while let Some(chunk) = chunks.next().await {
        match chunk.unwrap().chunk {
            Some(Chunk::Piece(piece)) => bytes += piece.bytes.len(),
            Some(Chunk::Manifest(_)) => is_whole = true,
            Some(Chunk::Begun(_)) | None => {}
        }
    }
    assert!(is_whole, "a backup must end with its manifest");
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}
