//! Produce and consume over gRPC against a real server, with the Rust client.

use std::time::{Duration, Instant};

use millstream_client::{Client, ConsumerSettings, Position, ProducerSettings, RecordRef, v1};
use millstream_tests::server::Server;

use crate::Plan;
use crate::report::{Report, Target, median, percentile};

const ROUNDS: usize = 3;

/// One record in so many has its acknowledgement timed.
const SAMPLED: u64 = 1_000;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    let sizes = [
        ("100 B", 100, plan.records(5_000_000), Target::AtLeast(1e6), Target::AtLeast(2e6)),
        ("1 KiB", 1_024, plan.records(600_000), Target::AtLeast(150.0), Target::AtLeast(400.0)),
    ];
    for (size, bytes, records, produce_target, consume_target) in sizes {
        for partitions in [1, 8] {
            let name = format!("{size}, {partitions} partition{}", if partitions == 1 { "" } else { "s" });
            let (produce_name, consume_name) = (format!("produce, {name}"), format!("consume, {name}"));
            if !plan.wants(&produce_name) && !plan.wants(&consume_name) {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let mut server = Server::start(folder.path());
            let client = server.client();
            let mut produced = Vec::new();
            for round in 0..plan.rounds(ROUNDS) {
                let topic = format!("t{round}");
                client.admin().create_topic(&topic, Some(partitions), v1::TopicSettings::default()).await.unwrap();
                produced.push(produce(&client, server.pid(), &topic, bytes, records).await);
            }
            let of = |figure: fn(&Produced) -> f64| median(produced.iter().map(figure).collect());
            let (rate, mb) = (of(|p| p.records_per_s), of(|p| p.records_per_s) * bytes as f64 / 1e6);
            let by_records = bytes == 100;
            report.figure(&produce_name, rate, "records/s", by_records.then_some(produce_target));
            report.figure(&produce_name, mb, "MB/s", (!by_records).then_some(produce_target));
            report.figure(format!("{produce_name}, acknowledgement p50"), of(|p| p.p50), "ms", None);
            report.figure(format!("{produce_name}, acknowledgement p99"), of(|p| p.p99), "ms", None);
            report.figure(format!("{produce_name}, acknowledgement p99.9"), of(|p| p.p999), "ms", None);
            report.figure(format!("{produce_name}, server CPU"), of(|p| p.server_cpu_us), "us/record", None);

            let mut from_tail = Vec::new();
            let tail = (40_000_000 / bytes as u64).min(records) / u64::from(partitions);
            for _ in 0..plan.rounds(ROUNDS) {
                let last = format!("t{}", plan.rounds(ROUNDS) - 1);
                from_tail.push(consume_tail(&client, &last, tail, partitions).await);
            }
            // A restart leaves nothing in the server's memory.
            assert!(server.terminate().success());
            server.restart();
            let client = server.client();
            let mut from_start = Vec::new();
            for round in 0..plan.rounds(ROUNDS) {
                from_start.push(consume(&client, &format!("t{round}"), Position::Earliest, records).await);
            }
            for (what, rates) in [("from the tail", from_tail), ("from the start", from_start)] {
                let rate = median(rates);
                let name = format!("{consume_name}, {what}");
                report.figure(&name, rate, "records/s", by_records.then_some(consume_target));
                report.figure(&name, rate * bytes as f64 / 1e6, "MB/s", (!by_records).then_some(consume_target));
            }
        }
    }
}

struct Produced {
    records_per_s: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    server_cpu_us: f64,
}

async fn produce(client: &Client, server: u32, topic: &str, value_bytes: usize, records: u64) -> Produced {
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic(topic).await.unwrap();
    let value = vec![b'x'; value_bytes];
    let cpu = cpu_seconds(server);
    let begun = Instant::now();
    let mut samples = Vec::new();
    for number in 0..records {
        let delivery = to.send(RecordRef::new(&value)).await.unwrap();
        if number.is_multiple_of(SAMPLED) {
            let sent = Instant::now();
            samples.push(tokio::spawn(async move {
                delivery.await.unwrap();
                sent.elapsed().as_secs_f64() * 1e3
            }));
        }
    }
    producer.close().await.unwrap();
    let took = begun.elapsed().as_secs_f64();
    let server_cpu_us = (cpu_seconds(server) - cpu) * 1e6 / records as f64;
    let mut acknowledged = Vec::new();
    for sample in samples {
        acknowledged.push(sample.await.unwrap());
    }
    acknowledged.sort_by(f64::total_cmp);
    let at = |part| percentile(&acknowledged, part);
    Produced { records_per_s: records as f64 / took, p50: at(0.5), p99: at(0.99), p999: at(0.999), server_cpu_us }
}

/// Records a second of the last `records` of each partition.
async fn consume_tail(client: &Client, topic: &str, records: u64, partitions: u32) -> f64 {
    let described = client.admin().describe_topic(topic).await.unwrap();
    let from = described.partition_list.iter().map(|p| p.log_end_offset.saturating_sub(records)).min().unwrap_or(0);
    let expected = described.partition_list.iter().map(|p| p.log_end_offset.saturating_sub(from)).sum();
    let _ = partitions;
    consume(client, topic, Position::Offset(from), expected).await
}

async fn consume(client: &Client, topic: &str, from: Position, expected: u64) -> f64 {
    let begun = Instant::now();
    let mut consumer = client.consumer(ConsumerSettings::topic(topic).from(from).until_end()).unwrap();
    let (mut records, mut bytes) = (0u64, 0usize);
    while let Some(batch) = consumer.next_batch().await {
        for record in &batch.unwrap() {
            let record = record.unwrap();
            records += 1;
            bytes += record.value.map_or(0, <[u8]>::len);
        }
    }
    assert!(records >= expected && bytes > 0, "{records} of {expected} records");
    records as f64 / begun.elapsed().as_secs_f64()
}

/// CPU time of a process so far, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name in brackets: field 14 and 15 are the ticks, 100 a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Resident memory of a process in MB.
pub(crate) fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
}

/// Sleeps; the benchmark's own pacing.
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
