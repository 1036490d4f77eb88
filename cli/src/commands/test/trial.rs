//! A temporary broker and runtime for one pipeline and one input.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use millstream_broker::clock::SystemClock;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings, Offset, TopicName};
use millstream_record::{BatchBuilder, Column, Compression, Record, partition_for_key, split_batches};
use millstream_runtime::host::StageKind;
use millstream_runtime::runtime::{Pipeline, RunState};
use millstream_runtime::{Runtime, RuntimeError, RuntimeSettings};
use prometheus_client::registry::Registry;

use crate::input::Line;

/// Size of the pieces in which topics are read, in bytes.
const READ_BYTES: usize = 1 << 20;

/// How often to check whether the pipeline has processed all input.
const LOOK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(2);

pub(super) struct Trial {
    broker: Broker,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

/// Keys of a state, with their values.
pub(super) type Entries = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The records of a topic, each with its partition.
pub(super) struct TopicRecords {
    pub(super) name: String,
    pub(super) records: Vec<(u32, Record)>,
}

pub(super) struct StageCounts {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) records_in: u64,
    pub(super) records_out: u64,
    pub(super) failures: u64,
}

/// The result of running the pipeline on the input.
pub(super) struct Outcome {
    pub(super) outputs: Vec<TopicRecords>,
    pub(super) dead_letters: Vec<TopicRecords>,
    pub(super) state: Vec<(String, Entries)>,
    pub(super) stages: Vec<StageCounts>,
    pub(super) stopped: Option<String>,
}

impl Trial {
    pub(super) async fn start(sources: &[String], partitions: u32) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millstream-test-")
            .tempdir()
            .context("cannot create a temporary folder")?;
        let mut registry = Registry::default();
        let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
        let broker = Broker::open(folder.path(), settings, options, Arc::new(SystemClock), &mut registry)?;
        let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry)?;
        for topic in sources {
            broker.create_topic(&TopicName::new(topic)?, partitions, TopicSettings::default(), false).await?;
        }
        Ok(Self { broker, runtime, folder })
    }

    pub(super) async fn push(&self, reference: &str, wasm: Bytes) -> Result<(), RuntimeError> {
        self.runtime.push_module(reference, wasm).await.map(drop)
    }

    pub(super) async fn apply(&self, yaml: &str, paths: &BTreeMap<String, String>) -> Result<(), RuntimeError> {
        self.runtime.apply(yaml, paths, false).await.map(drop)
    }

    /// Writes lines as a producer does: by key, or to all partitions in turn if there is no key.
    pub(super) async fn produce(&self, topic: &str, lines: &[Line]) -> anyhow::Result<()> {
        let topic = self.broker.topic(topic)?;
        let partitions = topic.partition_count();
        let batch_bytes_max = topic.meta().settings.batch_bytes_max();
        let mut builders: Vec<_> = (0..partitions).map(|_| BatchBuilder::new(Compression::None)).collect();
        let mut receipts = Vec::new();
        let now_ms = self.broker.clock().now_ms();
        for line in lines {
            let number = match &line.key {
                Some(key) => partition_for_key(key, partitions),
                None => (line.number % u64::from(partitions)) as u32,
            };
            let builder = &mut builders[number as usize];
            let bytes = BatchBuilder::record_bytes_max(line.key.as_ref().map_or(0, Bytes::len), line.value.len());
            if builder.encoded_bytes() + bytes > batch_bytes_max
                && let Some(batch) = builder.finish()
            {
                receipts.push(self.broker.produce(&topic, topic.partition(number)?, vec![batch]).await?);
            }
            builder.push(line.timestamp_ms.unwrap_or(now_ms), line.key.as_deref(), Some(&line.value), []);
        }
        for (number, mut builder) in (0..).zip(builders) {
            if let Some(batch) = builder.finish() {
                receipts.push(self.broker.produce(&topic, topic.partition(number)?, vec![batch]).await?);
            }
        }
        for receipt in receipts {
            receipt.await?;
        }
        Ok(())
    }

    /// Waits until the pipeline has processed all input or stops, and returns the result.
    pub(super) async fn outcome(&self) -> anyhow::Result<Outcome> {
        while !self.runtime.is_caught_up() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let pipelines = self.runtime.pipelines();
        let pipeline = pipelines.first().context("the pipeline is gone")?;
        let spec = pipeline.spec();
        let mut outputs = Vec::new();
        for topic in spec.outputs() {
            outputs.push(self.records(topic).await?);
        }
        let mut dead_letters = Vec::new();
        if let Some(topic) = spec.dead_letter_topic() {
            dead_letters.push(self.records(&topic).await?);
        }
        let stage = |stage: &Arc<millstream_runtime::deploy::Stage>| StageCounts {
            name: stage.name().to_string(),
            kind: stage.kind().to_string(),
            records_in: stage.metrics().records_in.get(),
            records_out: stage.metrics().records_out.get(),
            failures: stage.metrics().failures.get(),
        };
        Ok(Outcome {
            outputs,
            dead_letters,
            state: self.state(pipeline).await?,
            stages: pipeline.stages().iter().map(stage).collect(),
            stopped: match pipeline.state() {
                RunState::Stopped(reason) => Some(reason),
                RunState::Running | RunState::Paused => None,
            },
        })
    }

    async fn records(&self, name: &str) -> anyhow::Result<TopicRecords> {
        let limits = self.broker.settings().limits;
        let mut records = Vec::new();
        for partition in self.broker.topic(name)?.partitions() {
            let mut from = Offset::ZERO;
            while from < partition.end() {
                let slice = self
                    .broker
                    .read(partition, ReadRange { from, until: None, bytes_max: READ_BYTES, one_at_least: true })
                    .await?;
                for batch in slice.runs.into_iter().flat_map(split_batches) {
                    let read = batch?.records(&limits)?;
                    for view in &read {
                        let record = read.to_record(&view?);
                        // The first batch may begin before `from`.
                        if record.offset >= from.get() {
                            records.push((partition.name().partition, record));
                        }
                    }
                }
                from = slice.next;
            }
        }
        Ok(TopicRecords { name: name.to_owned(), records })
    }

    async fn state(&self, pipeline: &Pipeline) -> anyhow::Result<Vec<(String, Entries)>> {
        let mut all = Vec::new();
        for stage in pipeline.stages().iter().filter(|stage| stage.kind() == StageKind::Aggregate) {
            let mut found = Vec::new();
            for (_, partition) in self.broker.state().partitions(stage.store()) {
                found.extend(partition.scan(b"", usize::MAX)?);
            }
            found.sort();
            let keys: Column = found.iter().map(|(key, _)| Some(key.as_slice())).collect();
            let accumulators: Column = found.iter().map(|(_, accumulator)| Some(accumulator.as_slice())).collect();
            let values = self.runtime.finish(stage, keys, accumulators).await?;
            let values = values.iter().map(|value| value.map(<[u8]>::to_vec));
            all.push((stage.name().to_string(), found.into_iter().map(|(key, _)| key).zip(values).collect()));
        }
        Ok(all)
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.runtime.stop().await;
        let Self { broker, runtime, folder } = self;
        tokio::task::spawn_blocking(move || broker.stop()).await.context("the committer panicked")?;
        drop(runtime);
        folder.close().context("cannot remove the temporary folder")
    }
}
