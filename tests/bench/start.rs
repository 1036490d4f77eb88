//! Server starts after a clean stop and after a kill, with little and much stored data, in few and many partitions.

use std::time::{Duration, Instant};

use millstream_client::{ProducerSettings, RecordRef, v1};
use millstream_tests::measure::process::resident_bytes;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::median;
use millstream_tests::server::Server;

use crate::load;
use crate::plan::Plan;
use crate::yardstick::mix;

/// Number of starts of which the median is taken.
const KILLS: usize = 3;
const VALUE_BYTES: usize = 1_000;
/// Number of records in a gigabyte.
const GIGABYTE: u64 = 1_000_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let name = "start with 1 GB stored, 4 partitions";
    if plan.wants(name) {
        few_partitions(plan, report, name).await;
    }
    let name = "start with 10,000 partitions";
    if plan.wants(name) {
        many_partitions(plan, report, name).await;
    }
    if plan.wants("start with 20 GB stored, 1,000 partitions") {
        much_stored(plan, report).await;
    }
}

async fn few_partitions(plan: &Plan, report: &mut Report, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().admin().create_topic("in", Some(4), v1::TopicSettings::default()).await.unwrap();
    load::send(&server.client(), "in", VALUE_BYTES, plan.records(GIGABYTE)).await;
    let after_stop = after(&mut server, |server| assert!(server.terminate().success()));
    report.add(Figure::new(format!("{name}, after a clean stop"), after_stop, Unit::Seconds));
    let after_kill = after(&mut server, Server::kill);
    report.add(Figure::new(format!("{name}, after SIGKILL"), after_kill, Unit::Seconds));
    server.client().admin().list_topics().await.unwrap();
}

/// All partitions have records, in the journal and in segments.
async fn many_partitions(plan: &Plan, report: &mut Report, name: &str) {
    const PARTITIONS: u32 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().admin().create_topic("in", Some(PARTITIONS), v1::TopicSettings::default()).await.unwrap();
    send_keyed(&server, plan.records(GIGABYTE)).await;
    load::settle(&server).await;
    let after_stop = after(&mut server, |server| assert!(server.terminate().success()));
    report.add(Figure::new(format!("{name}, after a clean stop"), after_stop, Unit::Seconds));
    let after_kill = after(&mut server, Server::kill);
    report.add(Figure::new(format!("{name}, after SIGKILL"), after_kill, Unit::Seconds));
    let described = server.client().admin().describe_topic("in").await.unwrap();
    let written = described.partition_list.iter().filter(|partition| partition.log_end_offset > 0).count();
    assert!(written * 10 > PARTITIONS as usize * 9, "only {written} partitions have records");
    report.add(Figure::new(format!("{name}, resident"), resident_mb(&server), Unit::Megabytes));
}

/// Measures starts with 1 GB and with 20 GB stored in 1,000 partitions: once right after the data was stored, and once
/// after each partition's many segments are joined.
async fn much_stored(plan: &Plan, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().admin().create_topic("in", Some(1_000), v1::TopicSettings::default()).await.unwrap();
    let mut gigabytes = 0;
    for until in [1, 20] {
        send_keyed(&server, plan.records((until - gigabytes) * GIGABYTE)).await;
        gigabytes = until;
        let stored = format!("{until} GB stored, 1,000 partitions");
        let resident = Figure::new(format!("resident with {stored}"), resident_mb(&server), Unit::Megabytes);
        report.add(if until == 20 { resident.at_most(400.0) } else { resident });
        let name = format!("start with {stored}, after SIGKILL");
        let killed = after(&mut server, Server::kill);
        report.add(Figure::new(&name, killed, Unit::Seconds).at_most(1.0));
        report.add(Figure::new(format!("{name}: joined after"), joined(&server).await, Unit::Seconds));
        let killed = after(&mut server, Server::kill);
        report.add(Figure::new(format!("{name}, joined"), killed, Unit::Seconds).at_most(1.0));
    }
    let name = "resident with 20 GB stored, 1,000 partitions, joined";
    report.add(Figure::new(name, resident_mb(&server), Unit::Megabytes));
}

fn resident_mb(server: &Server) -> f64 {
    resident_bytes(server.pid()) as f64 / 1e6
}

/// Sends records to all partitions, with keys that look random.
async fn send_keyed(server: &Server, records: u64) {
    // A restarted server listens on another port.
    let producer = server.client().producer(ProducerSettings::default());
    let to = producer.topic("in").await.unwrap();
    let value = [b'x'; VALUE_BYTES];
    for number in 0..records {
        drop(to.send(RecordRef::keyed(&mix(number).to_be_bytes(), &value)).await.unwrap());
    }
    producer.close().await.unwrap();
}

/// Ends and starts the server several times, and returns the median duration of a start in seconds.
fn after(server: &mut Server, end: impl Fn(&mut Server)) -> f64 {
    let start = |_| {
        end(server);
        let begun = Instant::now();
        server.restart();
        begun.elapsed().as_secs_f64()
    };
    median((0..KILLS).map(start).collect())
}

/// Waits until the partitions' segments are joined, for at most ten minutes. Returns the seconds that it took.
async fn joined(server: &Server) -> f64 {
    /// A little above the number of pieces below which the store joins nothing, because sealing meanwhile adds some.
    const PIECES: u32 = 80_000;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(600) {
        let described = server.client().admin().describe_topic("in").await.unwrap();
        if described.topic.unwrap().segments <= PIECES {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    begun.elapsed().as_secs_f64()
}
