//! CPU cost and space savings of each codec, for flights as JSON.

use millstream_client::{Compression, ProducerSettings, v1};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;
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

/// The measurements of one codec.
#[derive(Default)]
struct Measured {
    produced: Vec<Produced>,
    stored_bytes: Vec<f64>,
    consumed: Vec<Consumed>,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let wanted = |codec: &str| plan.wants(&format!("compression, {codec}"));
    if !CODECS.iter().any(|(codec, _)| wanted(codec)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let lines: Vec<Vec<u8>> = millstream_tests::flights().into_iter().map(|flight| flight.line.into_bytes()).collect();
    let records = plan.records(RECORDS);
    produce(&server, "warm-up", Compression::None, &lines, records / 5).await;
    // The codec "none" is always measured, because the others are compared with it.
    let measured_ones: Vec<usize> = (0..CODECS.len()).filter(|index| *index == 0 || wanted(CODECS[*index].0)).collect();
    let mut measured = CODECS.map(|_| Measured::default());
    let topic = |round: usize, index: usize| format!("t{round}-{index}");
    for round in 0..plan.rounds(ROUNDS) {
        for index in order(round, &measured_ones) {
            let (topic, of) = (topic(round, index), &mut measured[index]);
            of.produced.push(produce(&server, &topic, CODECS[index].1, &lines, records).await);
            let described = server.client().admin().describe_topic(&topic).await.unwrap().topic.unwrap();
            of.stored_bytes.push(described.bytes as f64 / records as f64);
        }
    }
    load::push_to_segments(&server).await;
    // A restart clears the server's memory.
    assert!(server.terminate().success());
    server.restart();
    load::settle(&server).await;
    load::consume_cold(&server, folder.path(), "warm-up", records / 5).await;
    for round in 0..plan.rounds(ROUNDS) {
        for index in order(round, &measured_ones) {
            let consumed = load::consume_cold(&server, folder.path(), &topic(round, index), records).await;
            measured[index].consumed.push(consumed);
        }
    }
    for index in measured_ones {
        let name = format!("compression, {}", CODECS[index].0);
        add(report, &name, &measured[index], (index > 0).then_some(&measured[0]));
    }
}

fn add(report: &mut Report, name: &str, measured: &Measured, without: Option<&Measured>) {
    let mut add = |what: &str, of: fn(&Measured) -> f64, unit: Unit| {
        let figure = Figure::new(format!("{name}, {what}"), of(measured), unit);
        report.add(match without {
            Some(without) => figure.beside("not compressed", of(without)),
            None => figure,
        });
    };
    add("produce", |of| median_of(&of.produced, |of| of.records_per_s), Unit::RecordsPerSecond);
    let server_cpu = |of: &Measured| median_of(&of.produced, |of| of.server_cpu_us);
    add("produce, server CPU, sealing included", server_cpu, Unit::MicrosecondsPerRecord);
    add("produce, client CPU", |of| median_of(&of.produced, |of| of.client_cpu_us), Unit::MicrosecondsPerRecord);
    add("stored", |of| median(of.stored_bytes.clone()), Unit::BytesPerRecord);
    add("consume, cold", |of| median_of(&of.consumed, |of| of.records_per_s), Unit::RecordsPerSecond);
    add("consume, cold, server CPU", |of| median_of(&of.consumed, |of| of.server_cpu_us), Unit::MicrosecondsPerRecord);
    add("consume, cold, client CPU", |of| median_of(&of.consumed, |of| of.client_cpu_us), Unit::MicrosecondsPerRecord);
    // Checks that the reads were cold, with the smallest value of all rounds.
    let from_disk = measured.consumed.iter().map(|of| of.from_disk * 100.0).fold(f64::INFINITY, f64::min);
    report.add(Figure::new(format!("{name}, consume, read from the disk"), from_disk, Unit::Percent).at_least(90.0));
}

async fn produce(server: &Server, topic: &str, codec: Compression, lines: &[Vec<u8>], records: u64) -> Produced {
    server.client().admin().create_topic(topic, Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    let settings = ProducerSettings { compression: codec, ..ProducerSettings::default() };
    load::produce_with(server, topic, settings, records, |number, record| {
        record.value.clone_from(&lines[number as usize % lines.len()]);
    })
    .await
}
