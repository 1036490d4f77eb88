//! The metrics of stages for `/metrics`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    pipeline: String,
    stage: String,
}

/// The metrics of all stages.
#[derive(Clone)]
pub struct RuntimeMetrics {
    calls: Family<Labels, Counter>,
    records_in: Family<Labels, Counter>,
    records_out: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    guest_memory: Family<Labels, Gauge<i64, std::sync::atomic::AtomicI64>>,
}

impl std::fmt::Debug for RuntimeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RuntimeMetrics")
    }
}

/// The metrics of one stage.
#[derive(Clone, Debug)]
pub struct StageMetrics {
    /// Number of batches that the stage processed.
    pub calls: Counter<u64, AtomicU64>,
    /// Number of records that the stage received.
    pub records_in: Counter<u64, AtomicU64>,
    /// Number of records that the stage emitted.
    pub records_out: Counter<u64, AtomicU64>,
    /// Number of records that the stage failed on.
    pub failures: Counter<u64, AtomicU64>,
    /// Duration of a batch, in seconds.
    pub seconds: Histogram,
    /// Linear memory of the instance that ran last, in bytes.
    pub guest_memory: Gauge,
}

/// Buckets from 10 µs, a batch of one record, to 5 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 2.0, 20))
}

impl RuntimeMetrics {
    /// Creates and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            records_in: Family::default(),
            records_out: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            guest_memory: Family::default(),
        };
        registry.register("millstream_stage_calls", "Batches that a stage processed", metrics.calls.clone());
        registry.register("millstream_stage_records_in", "Records that a stage received", metrics.records_in.clone());
        registry.register("millstream_stage_records_out", "Records that a stage emitted", metrics.records_out.clone());
        registry.register("millstream_stage_failures", "Records that a stage failed on", metrics.failures.clone());
        registry.register_with_unit(
            "millstream_stage",
            "Time that a stage took for a batch",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register_with_unit(
            "millstream_stage_guest_memory",
            "Linear memory of the instance of a stage that ran last",
            Unit::Bytes,
            metrics.guest_memory.clone(),
        );
        metrics
    }

    /// Returns the metrics of one stage.
    pub fn stage(&self, pipeline: &str, stage: &str) -> StageMetrics {
        let labels = Labels { pipeline: pipeline.to_owned(), stage: stage.to_owned() };
        StageMetrics {
            calls: self.calls.get_or_create_owned(&labels),
            records_in: self.records_in.get_or_create_owned(&labels),
            records_out: self.records_out.get_or_create_owned(&labels),
            failures: self.failures.get_or_create_owned(&labels),
            seconds: self.seconds.get_or_create_owned(&labels),
            guest_memory: self.guest_memory.get_or_create_owned(&labels),
        }
    }

    /// Removes the metrics of a stage that no longer exists.
    pub fn forget(&self, pipeline: &str, stage: &str) {
        let labels = Labels { pipeline: pipeline.to_owned(), stage: stage.to_owned() };
        self.calls.remove(&labels);
        self.records_in.remove(&labels);
        self.records_out.remove(&labels);
        self.failures.remove(&labels);
        self.seconds.remove(&labels);
        self.guest_memory.remove(&labels);
    }
}
