//! The cost of compaction for a producer: the same records are sent to a compacted topic and to one that is not
//! compacted, in alternating rounds. Each round has its own server, so that the compaction of one round does not affect
//! the next.

use millstream_client::{ProducerSettings, v1};
use millstream_tests::measure::open_loop::{OpenLoop, Record};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::Latency;
use millstream_tests::measure::turns::{Side, sides};
use millstream_tests::server::Server;

use crate::latency::SAMPLES_A_SECOND;
use crate::load::{self, median_of};
use crate::plan::Plan;
use crate::yardstick::mix;

const NAME: &str = "compaction";
const ROUNDS: usize = 4;
const RECORDS: u64 = 1_500_000;
const VALUE_BYTES: usize = 1_000;
/// Number of keys. It is so large that a part of the journal contains most of its keys once.
const KEYS: u64 = 50_000;
/// Records per second of the steady load: 20 MB.
const PER_SECOND: u64 = 20_000;

/// The measurements of one producer's round.
struct Round {
    records_per_s: f64,
    server_cpu_us: f64,
    /// Latencies under the steady load.
    latency: Latency,
    /// Size of the topic at the end, in MB.
    kept_mb: f64,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for side in sides(round) {
            match side {
                Side::Ours => with.push(produce(plan, v1::Cleanup::Compact).await),
                Side::Yardstick => without.push(produce(plan, v1::Cleanup::Delete).await),
            }
        }
    }
    let mut add = |what: &str, of: fn(&Round) -> f64, unit: Unit| {
        let figure = Figure::new(format!("{NAME}, {what}"), median_of(&with, of), unit);
        report.add(figure.beside("not compacted", median_of(&without, of)));
    };
    add("producer at full speed", |of| of.records_per_s, Unit::RecordsPerSecond);
    add("producer at full speed, server CPU, compaction included", |of| of.server_cpu_us, Unit::MicrosecondsPerRecord);
    // Shows that there was something to compact, and that it was compacted.
    add("kept in the end", |of| of.kept_mb, Unit::Megabytes);
    let latencies = |rounds: &[Round]| rounds.iter().map(|round| round.latency).collect::<Vec<_>>();
    let name = format!("{NAME}, {PER_SECOND}/s, acknowledgement");
    report.add_latency_beside(&name, &latencies(&with), &[("not compacted", &latencies(&without))]);
}

async fn produce(plan: &Plan, cleanup: v1::Cleanup) -> Round {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let settings = v1::TopicSettings { cleanup: Some(cleanup.into()), ..Default::default() };
    server.client().admin().create_topic("t", Some(1), settings).await.unwrap();
    // Warm-up, which also provides records to compact.
    let keyed = |number: u64, record: &mut Record| {
        record.value.resize(VALUE_BYTES, b'x');
        record.key = Some((mix(number) % KEYS).to_be_bytes().to_vec());
    };
    load::produce_with(&server, "t", ProducerSettings::default(), plan.records(RECORDS) / 5, keyed).await;
    let produced = load::produce_with(&server, "t", ProducerSettings::default(), plan.records(RECORDS), keyed).await;
    let producer = server.client().producer(ProducerSettings::default());
    let to = producer.topic("t").await.unwrap();
    let steady = OpenLoop::new(PER_SECOND, plan.seconds(10), SAMPLES_A_SECOND);
    let answered = steady.run(&to, |number, _, record| keyed(number, record)).await.unwrap();
    producer.close().await.unwrap();
    load::settle(&server).await;
    let topic = server.client().admin().describe_topic("t").await.unwrap().topic.unwrap();
    Round {
        records_per_s: produced.records_per_s,
        server_cpu_us: produced.server_cpu_us,
        latency: Latency::of(answered.acknowledged_ms),
        kept_mb: topic.bytes as f64 / 1e6,
    }
}
