//! A broker in this process, and appending to it as fast as its answers come.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_broker::clock::SystemClock;
use millstream_broker::log::queue::Receipt;
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings, TopicName};
use millstream_record::RecordBatch;
use millstream_tests::measure::samples::{Latency, milliseconds};
use prometheus_client::registry::Registry;

/// Batches that wait for an answer: four commits' worth.
pub(crate) const IN_FLIGHT: usize = 64;

/// Opens a broker on a folder.
pub(crate) fn open(folder: &Path) -> Broker {
    let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
    Broker::open(folder, settings, options, Arc::new(SystemClock), &mut Registry::default()).unwrap()
}

/// Stops a broker, which blocks.
pub(crate) async fn stop(broker: Broker) {
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

/// Makes a topic.
pub(crate) async fn topic(broker: &Broker, name: &str, partitions: u32, settings: TopicSettings) -> Arc<Topic> {
    broker.create_topic(&TopicName::new(name).unwrap(), partitions, settings, false).await.unwrap()
}

/// What appending took.
pub(crate) struct Appended {
    pub(crate) mb_per_s: f64,
    pub(crate) records_per_s: f64,
    /// From asking to the acknowledgement, where the next batch is sent once one is acknowledged: what a batch waits for
    /// the commits before its own.
    pub(crate) latency: Latency,
    /// When the longest of them began and ended.
    pub(crate) longest: Range<Instant>,
    /// The longest time in which nothing was acknowledged, in ms.
    pub(crate) stall_ms: f64,
}

/// Appends so many batches, round the partitions, with `in_flight` waiting.
pub(crate) async fn append(
    broker: &Broker,
    topic: &Topic,
    batch: &RecordBatch,
    batches: u64,
    in_flight: usize,
) -> Appended {
    let mut waiting: VecDeque<(Instant, Receipt)> = VecDeque::new();
    let mut acknowledged_ms = Vec::with_capacity(batches as usize);
    let begun = Instant::now();
    let mut longest = begun..begun;
    let (mut last, mut stall) = (begun, Duration::ZERO);
    let mut acknowledged = |asked: Instant| {
        let now = Instant::now();
        acknowledged_ms.push(milliseconds(now - asked));
        stall = stall.max(now - last);
        last = now;
        if now - asked > longest.end - longest.start {
            longest = asked..now;
        }
    };
    for number in 0..batches {
        if waiting.len() >= in_flight {
            let (asked, receipt) = waiting.pop_front().unwrap();
            receipt.await.unwrap();
            acknowledged(asked);
        }
        let partition = topic.partition((number % u64::from(topic.partition_count())) as u32).unwrap();
        waiting.push_back((Instant::now(), broker.produce(topic, partition, vec![batch.clone()]).await.unwrap()));
    }
    for (asked, receipt) in waiting {
        receipt.await.unwrap();
        acknowledged(asked);
    }
    let seconds = begun.elapsed().as_secs_f64();
    Appended {
        mb_per_s: (batches * batch.as_bytes().len() as u64) as f64 / 1e6 / seconds,
        records_per_s: (batches * u64::from(batch.record_count())) as f64 / seconds,
        latency: Latency::of(acknowledged_ms),
        longest,
        stall_ms: milliseconds(stall),
    }
}
