//! Produces and consumes over gRPC as fast as possible, with the Rust client.

use std::path::Path;
use std::time::Instant;

use millstream_client::{Client, ConsumerSettings, Position, ProducerSettings, RecordRef};
use millstream_tests::measure::open_loop::Record;
use millstream_tests::measure::page_cache::ColdFiles;
use millstream_tests::measure::process::{cpu_seconds, disk_read_bytes, settled};
use millstream_tests::measure::samples::{Latency, milliseconds};
use millstream_tests::server::Server;

/// Approximate number of timed acknowledgements in a round. Fifty of them are beyond p99.9.
const SAMPLES: u64 = 50_000;

/// The result of producing.
pub(crate) struct Produced {
    pub(crate) records_per_s: f64,
    /// Time from calling `send` to the acknowledgement. The load is a closed loop: no record was due while it waited
    /// for room.
    pub(crate) latency: Latency,
    /// CPU time per record until the server is idle, including sealing.
    pub(crate) server_cpu_us: f64,
    pub(crate) client_cpu_us: f64,
}

/// Produces this many records of `value_bytes` bytes without keys.
pub(crate) async fn produce(server: &Server, topic: &str, value_bytes: usize, records: u64) -> Produced {
    let value = vec![b'x'; value_bytes];
    produce_with(server, topic, ProducerSettings::default(), records, |_, record| {
        if record.value.is_empty() {
            record.value.clone_from(&value);
        }
    })
    .await
}

/// Produces records. `record` gets the number of each record, and derives it from the previous one.
pub(crate) async fn produce_with(
    server: &Server,
    topic: &str,
    settings: ProducerSettings,
    records: u64,
    mut record: impl FnMut(u64, &mut Record),
) -> Produced {
    let producer = server.client().producer(settings);
    let to = producer.topic(topic).await.unwrap();
    let sampled = (records / SAMPLES).max(1);
    let (server_cpu, client_cpu) = (cpu_seconds(server.pid()), cpu_seconds(std::process::id()));
    let begun = Instant::now();
    let mut waiting = Vec::new();
    let mut buffer = Record::default();
    for number in 0..records {
        record(number, &mut buffer);
        let asked = Instant::now();
        let delivery =
            to.send(RecordRef { key: buffer.key.as_deref(), ..RecordRef::new(&buffer.value) }).await.unwrap();
        if number.is_multiple_of(sampled) {
            waiting.push(tokio::spawn(async move {
                delivery.await.unwrap();
                milliseconds(asked.elapsed())
            }));
        }
    }
    producer.close().await.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let mut acknowledged_ms = Vec::with_capacity(waiting.len());
    for answer in waiting {
        acknowledged_ms.push(answer.await.unwrap());
    }
    let client_cpu = cpu_seconds(std::process::id()) - client_cpu;
    settle(server).await;
    let server_cpu = cpu_seconds(server.pid()) - server_cpu;
    Produced {
        records_per_s: records as f64 / seconds,
        latency: Latency::of(acknowledged_ms),
        server_cpu_us: server_cpu * 1e6 / records as f64,
        client_cpu_us: client_cpu * 1e6 / records as f64,
    }
}

/// Waits until the server has sealed what is due and is idle.
pub(crate) async fn settle(server: &Server) {
    if !settled(server.pid()).await {
        eprintln!("the server is still busy after a minute; its further work is not measured");
    }
}

/// Produces enough to refill the journal, so that all earlier records are in segments.
pub(crate) async fn push_to_segments(server: &Server) {
    /// Twice the amount that the journal seals at once, in bytes.
    const BYTES: u64 = 64 << 20;
    const VALUE_BYTES: u64 = 1_000;
    server.client().admin().create_topic("filler", Some(1), Default::default()).await.unwrap();
    produce(server, "filler", VALUE_BYTES as usize, BYTES / VALUE_BYTES).await;
}

/// Reads the last `records` records of each partition. Returns the records per second.
pub(crate) async fn consume_tail(client: &Client, topic: &str, records: u64) -> f64 {
    let described = client.admin().describe_topic(topic).await.unwrap();
    let from = described.partition_list.iter().map(|p| p.log_end_offset.saturating_sub(records)).min().unwrap_or(0);
    let expected = described.partition_list.iter().map(|p| p.log_end_offset.saturating_sub(from)).sum();
    let begun = Instant::now();
    read(client, ConsumerSettings::topic(topic).from(Position::Offset(from)).until_end(), expected).await;
    expected as f64 / begun.elapsed().as_secs_f64()
}

/// Reads to the end. There must be at least `expected` records. Returns the number of records.
pub(crate) async fn read(client: &Client, settings: ConsumerSettings, expected: u64) -> u64 {
    let mut consumer = client.consumer(settings).unwrap();
    let (mut records, mut bytes) = (0u64, 0usize);
    while let Some(batch) = consumer.next_batch().await {
        for record in &batch.unwrap() {
            let record = record.unwrap();
            records += 1;
            bytes += record.value.map_or(0, <[u8]>::len);
        }
    }
    assert!(records >= expected && bytes > 0, "only {records} of {expected} records were read");
    records
}

/// The result of reading a topic from its start.
pub(crate) struct Consumed {
    pub(crate) records_per_s: f64,
    pub(crate) server_cpu_us: f64,
    pub(crate) client_cpu_us: f64,
    /// Bytes that the server read from the disk, divided by the bytes of the topic's record batches.
    pub(crate) from_disk: f64,
}

/// Reads a topic from its start.
pub(crate) async fn consume(server: &Server, topic: &str, expected: u64) -> Consumed {
    let client = server.client();
    let stored = client.admin().describe_topic(topic).await.unwrap().topic.unwrap().bytes;
    let disk = disk_read_bytes(server.pid());
    let (server_cpu, client_cpu) = (cpu_seconds(server.pid()), cpu_seconds(std::process::id()));
    let begun = Instant::now();
    let records = read(&client, ConsumerSettings::topic(topic).from(Position::Earliest).until_end(), expected).await;
    let seconds = begun.elapsed().as_secs_f64();
    let us = |cpu: f64| cpu * 1e6 / records as f64;
    Consumed {
        records_per_s: records as f64 / seconds,
        server_cpu_us: us(cpu_seconds(server.pid()) - server_cpu),
        client_cpu_us: us(cpu_seconds(std::process::id()) - client_cpu),
        from_disk: (disk_read_bytes(server.pid()) - disk) as f64 / stored as f64,
    }
}

/// Like [`consume`], after the files of the server's `data` were dropped from the page cache.
pub(crate) async fn consume_cold(server: &Server, data: &Path, topic: &str, expected: u64) -> Consumed {
    ColdFiles::of(data).unwrap();
    consume(server, topic, expected).await
}

/// Returns the median of one figure over all rounds.
pub(crate) fn median_of<T>(rounds: &[T], figure: fn(&T) -> f64) -> f64 {
    millstream_tests::measure::samples::median(rounds.iter().map(figure).collect())
}

/// Sends this many records of `value_bytes` bytes without keys, and waits until all of them are acknowledged.
pub(crate) async fn send(client: &Client, topic: &str, value_bytes: usize, records: u64) {
    let producer = client.producer(ProducerSettings::default());
    let to = producer.topic(topic).await.unwrap();
    let value = vec![b'x'; value_bytes];
    for _ in 0..records {
        drop(to.send(RecordRef::new(&value)).await.unwrap());
    }
    producer.close().await.unwrap();
}
