//! The combined throughput of several producers and of several consumers on one topic, compared with that of a single
//! client.

use std::time::Instant;

use futures::future::join_all;
use millstream_client::{ConsumerSettings, Position, v1};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;
use millstream_tests::measure::turns::order;
use millstream_tests::server::Server;

use crate::load;
use crate::plan::Plan;

const ROUNDS: usize = 3;
const PARTITIONS: u32 = 16;
const VALUE_BYTES: usize = 100;
const RECORDS: u64 = 4_000_000;
/// Number of concurrent clients.
const COUNTS: [u32; 3] = [1, 4, 16];

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let (producers, consumers) = ("several producers", "several consumers");
    if plan.wants(producers) {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path());
        produce(&server, "warm-up", 1, plan.records(RECORDS) / 5).await;
        let mut rates = COUNTS.map(|_| Vec::new());
        for round in 0..plan.rounds(ROUNDS) {
            for index in order(round, &[0, 1, 2]) {
                let topic = format!("t{round}-{index}");
                rates[index].push(produce(&server, &topic, COUNTS[index], plan.records(RECORDS)).await);
            }
        }
        add(report, producers, rates);
    }
    if plan.wants(consumers) {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path());
        let records = plan.records(RECORDS);
        produce(&server, "t", 1, records).await;
        consume(&server, 1, records).await;
        let mut rates = COUNTS.map(|_| Vec::new());
        for round in 0..plan.rounds(ROUNDS) {
            for index in order(round, &[0, 1, 2]) {
                rates[index].push(consume(&server, COUNTS[index], records).await);
            }
        }
        add(report, consumers, rates);
    }
}

fn add(report: &mut Report, name: &str, rates: [Vec<f64>; COUNTS.len()]) {
    let rates = rates.map(median);
    for (count, rate) in COUNTS.iter().zip(rates) {
        let figure = Figure::new(format!("{name}, {count} on {PARTITIONS} partitions"), rate, Unit::RecordsPerSecond);
        report.add(if *count == 1 { figure } else { figure.beside("one alone", rates[0]) });
    }
}

/// Returns the combined records per second of all producers. Each has its own connection.
async fn produce(server: &Server, topic: &str, producers: u32, records: u64) -> f64 {
    server.client().admin().create_topic(topic, Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    let each = records / u64::from(producers);
    let begun = Instant::now();
    let producing = (0..producers).map(|_| {
        let (client, topic) = (server.client(), topic.to_owned());
        tokio::spawn(async move { load::send(&client, &topic, VALUE_BYTES, each).await })
    });
    join_all(producing).await.into_iter().for_each(|ended| ended.unwrap());
    let rate = (each * u64::from(producers)) as f64 / begun.elapsed().as_secs_f64();
    load::settle(server).await;
    rate
}

/// Returns the combined records per second of all consumers. Each has its own connection and its own partitions.
async fn consume(server: &Server, consumers: u32, records: u64) -> f64 {
    let begun = Instant::now();
    let reading = (0..consumers).map(|number| {
        let partitions = (number..PARTITIONS).step_by(consumers as usize);
        let settings = ConsumerSettings::topic("t").partitions(partitions).from(Position::Earliest).until_end();
        let client = server.client();
        tokio::spawn(async move { load::read(&client, settings, 1).await })
    });
    let read: u64 = join_all(reading).await.into_iter().map(|ended| ended.unwrap()).sum();
    assert_eq!(read, records, "each record must be read once");
    records as f64 / begun.elapsed().as_secs_f64()
}
