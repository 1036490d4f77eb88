//! Metrics that are computed from the broker's state when they are scraped: log offsets, sizes, lags.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::WeakBroker;
use crate::log::partition::{Partition, PartitionSize};

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

/// Computes metrics from the broker's state when they are scraped: log offsets, sizes, lags.
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
            ("millstream_log_start_offset", "The first offset that is retained", |of, _| Some(of.start().get())),
            ("millstream_log_end_offset", "The next offset to be written", |of, _| Some(of.end().get())),
            ("millstream_partition_bytes", "Total size of the retained record batches, in bytes", |_, size| {
                i64::try_from(size.bytes).ok()
            }),
            (
                "millstream_partition_segments",
                "Number of segment extents that hold the partition's records",
                |_, size| Some(size.segments.into()),
            ),
            ("millstream_first_timestamp_ms", "The timestamp of the first retained record", |_, size| {
                size.first_timestamp_ms
            }),
            ("millstream_max_timestamp_ms", "The largest timestamp of the retained records", |_, size| {
                size.max_timestamp_ms
            }),
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
        let mut lag =
            encode_gauge(&mut encoder, "millstream_group_lag", "Number of records that a group has not read yet")?;
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
            "Total time that requests were delayed because of their client's quota",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        for waited in broker.quotas().throttled() {
            let labels = ThrottleLabels { client: waited.client.as_str().to_owned(), kind: waited.kind.as_str() };
            ConstCounter::new(waited.total.as_secs_f64()).encode(throttled.encode_family(&labels)?)?;
        }
        let size = broker.store().size();
        for (name, help, value) in [
            ("millstream_journal_bytes", "Size of the journal file, in bytes", size.journal_bytes),
            ("millstream_table_bytes", "Size of the file of state, offsets and producers, in bytes", size.table_bytes),
            ("millstream_segment_bytes", "Total size of the segment files, in bytes", size.segment_bytes),
            ("millstream_segments", "Number of segments on disk", size.segments as u64),
            ("millstream_queued_bytes", "Total size of queued commits, in bytes", broker.queued_bytes() as u64),
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
