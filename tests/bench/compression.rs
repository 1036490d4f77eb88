//! What each codec costs and saves, on flights as JSON.

use millstream_client::{Compression, ProducerSettings, v1};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::turns::order;
use millstream_tests::server::Server;

use crate::load::{self, Consumed, Produced, median_of};
use crate::plan::Plan;

const ROUNDS: usize = 3;
const PARTITIONS: u32 = 4;
const RECORDS: u64 = 2_000_000;

const CODECS: [(&str, Compression); 5] = [
    ("none", Compression::None),
    ("gzip", Compression::Gzip),
    ("snappy", Compression::Snappy),
    ("lz4", Compression::Lz4),
    ("zstd", Compression::Zstd),
];

/// What one codec did.
struct Round {
    produced: Produced,
    stored_bytes: f64,
    consumed: Consumed,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let wanted = |codec: &str| plan.wants(&format!("compression, {codec}"));
    if !CODECS.iter().any(|(codec, _)| wanted(codec)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let lines: Vec<Vec<u8>> = millstream_tests::flights().into_iter().map(|flight| flight.line.into_bytes()).collect();
    let records = plan.records(RECORDS);
    produce(&server, "warm-up", Compression::None, &lines, records / 5).await;
    let mut rounds = CODECS.map(|_| Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for index in order(round, &[0, 1, 2, 3, 4]) {
            // Without compression it is measured in any case: it is what the others stand beside.
            if index == 0 || wanted(CODECS[index].0) {
                let topic = format!("t{round}-{index}");
                let measured = measure(&server, &topic, CODECS[index].1, &lines, records).await;
                rounds[index].push(measured);
            }
        }
    }
    for ((codec, _), measured) in CODECS.iter().zip(&rounds).filter(|(_, measured)| !measured.is_empty()) {
        add(report, &format!("compression, {codec}"), measured, (*codec != "none").then_some(&rounds[0]));
    }
}

fn add(report: &mut Report, name: &str, measured: &[Round], without: Option<&Vec<Round>>) {
    let mut add = |what: &str, of: fn(&Round) -> f64, unit: Unit| {
        let figure = Figure::new(format!("{name}, {what}"), median_of(measured, of), unit);
        report.add(match without {
            Some(without) => figure.beside("not compressed", median_of(without, of)),
            None => figure,
        });
    };
    add("produce", |of| of.produced.records_per_s, Unit::RecordsPerSecond);
    add("produce, server CPU, sealing included", |of| of.produced.server_cpu_us, Unit::MicrosecondsPerRecord);
    add("produce, client CPU", |of| of.produced.client_cpu_us, Unit::MicrosecondsPerRecord);
    add("stored", |of| of.stored_bytes, Unit::BytesPerRecord);
    add("consume", |of| of.consumed.records_per_s, Unit::RecordsPerSecond);
    add("consume, server CPU", |of| of.consumed.server_cpu_us, Unit::MicrosecondsPerRecord);
    add("consume, client CPU", |of| of.consumed.client_cpu_us, Unit::MicrosecondsPerRecord);
}

async fn measure(server: &Server, topic: &str, codec: Compression, lines: &[Vec<u8>], records: u64) -> Round {
    let produced = produce(server, topic, codec, lines, records).await;
    let described = server.client().admin().describe_topic(topic).await.unwrap().topic.unwrap();
    let consumed = load::consume(server, topic, records).await;
    Round { produced, stored_bytes: described.bytes as f64 / records as f64, consumed }
}

async fn produce(server: &Server, topic: &str, codec: Compression, lines: &[Vec<u8>], records: u64) -> Produced {
    server.client().admin().create_topic(topic, Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    let settings = ProducerSettings { compression: codec, ..ProducerSettings::default() };
    load::produce_with(server, topic, settings, records, |number, record| {
        record.value.clone_from(&lines[number as usize % lines.len()]);
    })
    .await
}
