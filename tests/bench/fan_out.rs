//! Many groups read one topic, each of them completely.

use std::time::Instant;

use futures::future::join_all;
use millstream_client::{ConsumerSettings, Position, v1};
use millstream_tests::measure::process::cpu_seconds;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::turns::order;
use millstream_tests::server::Server;

use crate::load::{self, median_of};
use crate::plan::Plan;

const NAME: &str = "fan-out";
const ROUNDS: usize = 3;
const PARTITIONS: u32 = 4;
const RECORDS: u64 = 2_000_000;
/// Number of groups that read concurrently.
const COUNTS: [u32; 3] = [1, 4, 16];

/// The combined measurements of all groups.
pub(crate) struct Read {
    pub(crate) records_per_s: f64,
    pub(crate) server_cpu_us: f64,
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let records = plan.records(RECORDS);
    server.client().admin().create_topic("t", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    load::produce(&server, "t", 100, records).await;
    fan_out(&server, "warm-up", 1, records).await;
    let mut rounds = COUNTS.map(|_| Vec::new());
    for round in 0..plan.rounds(ROUNDS) {
        for index in order(round, &[0, 1, 2]) {
            rounds[index].push(fan_out(&server, &format!("{round}-{index}"), COUNTS[index], records).await);
        }
    }
    let alone = median_of(&rounds[0], |read| read.records_per_s);
    let alone_us = median_of(&rounds[0], |read| read.server_cpu_us);
    for (count, read) in COUNTS.iter().zip(&rounds) {
        let name = format!("{NAME}, {count} group{}, all together", if *count == 1 { "" } else { "s" });
        let rate = Figure::new(&name, median_of(read, |read| read.records_per_s), Unit::RecordsPerSecond);
        let cpu = median_of(read, |read| read.server_cpu_us);
        let cpu = Figure::new(format!("{name}, server CPU"), cpu, Unit::MicrosecondsPerRecord);
        let is_alone = *count == 1;
        report.add(if is_alone { rate } else { rate.beside("one group alone", alone) });
        report.add(if is_alone { cpu } else { cpu.beside("one group alone", alone_us) });
    }
}

/// Lets groups of one member each read all records. The time that members take to join is included.
pub(crate) async fn fan_out(server: &Server, name: &str, groups: u32, records: u64) -> Read {
    let cpu = cpu_seconds(server.pid());
    let begun = Instant::now();
    let reading = (0..groups).map(|number| {
        let group = format!("{name}-{number}");
        let settings = ConsumerSettings::topic("t").group(group).from(Position::Earliest).until_end();
        let client = server.client();
        tokio::spawn(async move { load::read(&client, settings, records).await })
    });
    let read: u64 = join_all(reading).await.into_iter().map(|ended| ended.unwrap()).sum();
    let seconds = begun.elapsed().as_secs_f64();
    let server_cpu_us = (cpu_seconds(server.pid()) - cpu) * 1e6 / read as f64;
    Read { records_per_s: read as f64 / seconds, server_cpu_us }
}
