//! A broker in this process, and a closed loop that appends to it as fast as possible.

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

/// Number of batches in flight, which is enough for four commits.
pub(crate) const IN_FLIGHT: usize = 64;

/// Opens a broker on a folder.
pub(crate) fn open(folder: &Path) -> Broker {
    let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
    Broker::open(folder, settings, options, Arc::new(SystemClock), &mut Registry::default()).unwrap()
}

/// Stops a broker. The blocking call runs on its own thread.
pub(crate) async fn stop(broker: Broker) {
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

/// Creates a topic.
pub(crate) async fn topic(broker: &Broker, name: &str, partitions: u32, settings: TopicSettings) -> Arc<Topic> {
    broker.create_topic(&TopicName::new(name).unwrap(), partitions, settings, false).await.unwrap()
}

/// The result of an append loop.
pub(crate) struct Appended {
    pub(crate) mb_per_s: f64,
    pub(crate) records_per_s: f64,
    /// Time from the request to the acknowledgement, in a closed loop that sends the next batch once one is
    /// acknowledged. A batch waits for the commits before its own.
    pub(crate) latency: Latency,
    /// Beginning and end of the longest of these times.
    pub(crate) longest: Range<Instant>,
    /// The longest time without an acknowledgement, in ms.
    pub(crate) stall_ms: f64,
}

/// Appends this many batches, round-robin over the partitions, with `in_flight` of them unacknowledged.
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
