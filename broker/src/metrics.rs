//! What the broker counts, in Prometheus' terms.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::broker::WeakBroker;
use crate::log::partition::{Partition, PartitionSize};
use crate::name::TopicName;

/// Labels of a topic's series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabels {
    /// The topic.
    pub topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: String,
    topic: String,
    partition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ThrottleLabels {
    client: String,
    kind: &'static str,
}

/// The broker's counters. Cheap to clone.
#[derive(Clone)]
pub struct BrokerMetrics(Arc<Inner>);

struct Inner {
    records_in: Family<TopicLabels, Counter>,
    bytes_in: Family<TopicLabels, Counter>,
    records_out: Family<TopicLabels, Counter>,
    bytes_out: Family<TopicLabels, Counter>,
    commits: Counter,
    commit_bytes: Counter,
    commit_seconds: Histogram,
    refused_disk_full: Counter,
    connections: Gauge,
    connections_refused: Counter,
}

impl fmt::Debug for BrokerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrokerMetrics")
    }
}

impl BrokerMetrics {
    /// Makes the series and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        // 0.1 ms to 1.6 s: an fsync takes 0.3 ms on a fast disk and hundreds on a bad day.
        let commit_seconds = Histogram::new(exponential_buckets(0.0001, 2.0, 15));
        let inner = Inner {
            records_in: Family::default(),
            bytes_in: Family::default(),
            records_out: Family::default(),
            bytes_out: Family::default(),
            commits: Counter::default(),
            commit_bytes: Counter::default(),
            commit_seconds,
            refused_disk_full: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
        };
        let mut add = |name: &str, help: &str, family: &Family<TopicLabels, Counter>| {
            registry.register(format!("millstream_topic_{name}"), help, family.clone());
        };
        add("records_in", "Records appended, by topic", &inner.records_in);
        add("bytes_in", "Bytes of record batches appended, by topic", &inner.bytes_in);
        add("records_out", "Records read by clients, by topic", &inner.records_out);
        add("bytes_out", "Bytes of record batches read by clients, by topic", &inner.bytes_out);
        registry.register("millstream_commits", "Durable commits", inner.commits.clone());
        let help = "Requests refused because the disk is nearly full";
        registry.register("millstream_refused_disk_full", help, inner.refused_disk_full.clone());
        registry.register(
            "millstream_commit_bytes",
            "Bytes that commits appended to the journal",
            inner.commit_bytes.clone(),
        );
        registry.register_with_unit(
            "millstream_commit",
            "How long a durable commit took",
            Unit::Seconds,
            inner.commit_seconds.clone(),
        );
        registry.register("millstream_connections", "Connections that are open", inner.connections.clone());
        registry.register(
            "millstream_connections_refused",
            "Connections that were closed at once, as too many were open",
            inner.connections_refused.clone(),
        );
        Self(Arc::new(inner))
    }

    pub(crate) fn connected(&self) {
        self.0.connections.inc();
    }

    pub(crate) fn disconnected(&self) {
        self.0.connections.dec();
    }

    pub(crate) fn refused_connection(&self) {
        self.0.connections_refused.inc();
    }

    /// Requests that were refused because the disk is nearly full.
    pub fn refused_disk_full(&self) -> u64 {
        self.0.refused_disk_full.get()
    }

    pub(crate) fn refuse_disk_full(&self) {
        self.0.refused_disk_full.inc();
    }

    pub(crate) fn committed(&self, took: Duration, bytes: usize) {
        self.0.commits.inc();
        self.0.commit_bytes.inc_by(bytes as u64);
        self.0.commit_seconds.observe(took.as_secs_f64());
    }

    /// Counts records that a commit appended.
    pub(crate) fn appended(&self, topic: &TopicName, records: u64, bytes: u64) {
        let labels = TopicLabels { topic: topic.as_str().to_owned() };
        self.0.records_in.get_or_create(&labels).inc_by(records);
        self.0.bytes_in.get_or_create(&labels).inc_by(bytes);
    }

    /// Counts records that a client read.
    pub fn fetched(&self, topic: &TopicName, records: u64, bytes: u64) {
        let labels = TopicLabels { topic: topic.as_str().to_owned() };
        self.0.records_out.get_or_create(&labels).inc_by(records);
        self.0.bytes_out.get_or_create(&labels).inc_by(bytes);
    }

    pub(crate) fn forget(&self, topic: &TopicName) {
        let labels = TopicLabels { topic: topic.as_str().to_owned() };
        for family in [&self.0.records_in, &self.0.bytes_in, &self.0.records_out, &self.0.bytes_out] {
            family.remove(&labels);
        }
    }
}

/// What is read off the broker when somebody looks: log end offsets, sizes, lags.
#[derive(Debug)]
pub(crate) struct BrokerCollector(pub(crate) WeakBroker);

impl Collector for BrokerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(broker) = self.0.upgrade() else { return Ok(()) };
        let topics = broker.topics();
        let partitions = topics.iter().flat_map(|topic| topic.partitions());
        let partitions: Vec<_> = partitions.map(|partition| (partition, partition.size())).collect();
        type Read = fn(&Partition, &PartitionSize) -> Option<i64>;
        let gauges: [(&str, &str, Read); 6] = [
            ("millstream_log_start_offset", "The first offset that is kept", |of, _| Some(of.start().get())),
            ("millstream_log_end_offset", "The next offset to be written", |of, _| Some(of.end().get())),
            ("millstream_partition_bytes", "Bytes of the record batches that are kept", |_, size| {
                i64::try_from(size.bytes).ok()
            }),
            ("millstream_partition_segments", "Parts of segments that hold its records", |_, size| {
                Some(size.segments.into())
            }),
            ("millstream_first_timestamp_ms", "The timestamp of the first record that is kept", |_, size| {
                size.first_timestamp_ms
            }),
            ("millstream_max_timestamp_ms", "The largest timestamp of its records", |_, size| size.max_timestamp_ms),
        ];
        for (name, help, read) in gauges {
            let mut gauge = encode_gauge(&mut encoder, name, help)?;
            for (partition, size) in &partitions {
                let name = partition.name();
                let labels = PartitionLabels { topic: name.topic.as_str().to_owned(), partition: name.partition };
                if let Some(value) = read(partition, size) {
                    ConstGauge::new(value).encode(gauge.encode_family(&labels)?)?;
                }
            }
        }
        let mut lag = encode_gauge(&mut encoder, "millstream_group_lag", "Records that a group has yet to read")?;
        for group in broker.groups().all() {
            for offset in broker.group_offsets(&group) {
                let labels = GroupLabels {
                    group: group.id().as_str().to_owned(),
                    topic: offset.partition.topic.as_str().to_owned(),
                    partition: offset.partition.partition,
                };
                ConstGauge::new(i64::try_from(offset.lag).unwrap_or(i64::MAX)).encode(lag.encode_family(&labels)?)?;
            }
        }
        let mut throttled = encoder.encode_descriptor(
            "millstream_throttled",
            "How long requests waited because of their client's quota, together",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        for waited in broker.quotas().throttled() {
            let labels = ThrottleLabels { client: waited.client.as_str().to_owned(), kind: waited.kind.as_str() };
            ConstCounter::new(waited.total.as_secs_f64()).encode(throttled.encode_family(&labels)?)?;
        }
        let size = broker.store().size();
        for (name, help, value) in [
            ("millstream_journal_bytes", "Bytes of the journal's file", size.journal_bytes),
            ("millstream_table_bytes", "Bytes of the file of state, offsets and producers", size.table_bytes),
            ("millstream_segment_bytes", "Bytes of the files of segments", size.segment_bytes),
            ("millstream_segments", "Segments on disk", size.segments as u64),
            ("millstream_queued_bytes", "Bytes of commits that wait to be on disk", broker.queued_bytes() as u64),
        ] {
            let metric = encode_gauge(&mut encoder, name, help)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

fn encode_gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &'a str,
) -> Result<prometheus_client::encoding::MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}
