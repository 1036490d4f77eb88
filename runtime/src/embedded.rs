//! The log on which tasks run, backed by the broker in this process.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_broker::groups::Group;
use millstream_broker::log::commit::{Append, Commit, Fence, OffsetChange};
use millstream_broker::log::partition::Partition;
use millstream_broker::log::queue::Receipt;
use millstream_broker::log::reader::ReadRange;
use millstream_broker::log::state::StatePartition;
use millstream_broker::{Broker, BrokerError, Offset, TopicPartition};

use crate::log::{Log, LogError, ReadBatches, Step};

/// The broker, for one generation of one pipeline's consumer group.
#[derive(Clone, Debug)]
pub struct EmbeddedLog {
    broker: DebugBroker,
    fence: Fence,
}

#[derive(Clone)]
struct DebugBroker(Broker);

impl std::fmt::Debug for DebugBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Broker")
    }
}

impl EmbeddedLog {
    /// Creates a log for `group` in its current generation.
    pub fn new(broker: Broker, group: Arc<Group>) -> Self {
        let generation = group.generation();
        Self { broker: DebugBroker(broker), fence: Fence::Generation { group, generation } }
    }

    /// Converts an error of a read. If the records were deleted, the message says how to continue.
    fn unread(&self, error: BrokerError) -> LogError {
        let BrokerError::OffsetOutOfRange { topic, .. } = &error else { return error.into() };
        let group = self.fence.group().id();
        LogError::Failed(format!(
            "{error}: the records were deleted before they were read; to continue without them, reset the offsets of group \
             {group} in topic {topic} to the earliest, and resume the pipeline"
        ))
    }

    fn partition(&self, name: &TopicPartition) -> Result<Arc<Partition>, LogError> {
        let topic = self.broker.0.topic(name.topic.as_str())?;
        Ok(topic.partition(name.partition)?.clone())
    }
}

impl From<BrokerError> for LogError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::ShuttingDown => Self::ShuttingDown,
            BrokerError::DiskFull { .. } => Self::NoRoom(error.to_string()),
            BrokerError::StaleGeneration { .. } | BrokerError::StaleOffset { .. } => Self::Fenced(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// See [`Log::Receipt`].
#[derive(Debug)]
pub struct EmbeddedReceipt(Receipt);

impl Future for EmbeddedReceipt {
    type Output = Result<(), LogError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.map(drop).map_err(LogError::from))
    }
}

impl Log for EmbeddedLog {
    type Receipt = EmbeddedReceipt;

    async fn read(&self, source: &TopicPartition, from: Offset, bytes_max: usize) -> Result<ReadBatches, LogError> {
        let partition = self.partition(source)?;
        let mut end = partition.watch_end();
        loop {
            // The last stable offset moves only when the end does.
            let there = *end.borrow_and_update();
            if partition.stable_end() > from || partition.is_deleted() {
                let slice = self
                    .broker
                    .0
                    .read(&partition, ReadRange { from, until: None, bytes_max, one_at_least: true })
                    .await
                    .map_err(|error| self.unread(error))?;
                return Ok(ReadBatches { runs: slice.runs, next: slice.next });
            }
            if there < from {
                return Err(self.unread(partition.out_of_range(from)));
            }
            if end.changed().await.is_err() {
                return Err(LogError::ShuttingDown);
            }
        }
    }

    async fn commit(&self, step: Step) -> Result<EmbeddedReceipt, LogError> {
        let source = self.broker.0.topic(step.source.topic.as_str())?;
        let mut appends = Vec::with_capacity(step.outputs.len());
        for (name, batches) in step.outputs {
            let partition = self.partition(&name)?;
            appends.push(Append { partition, batches });
        }
        let offset = OffsetChange {
            group: self.fence.group().clone(),
            topic: source,
            partition: step.source.partition,
            to: Some(step.next.into()),
            expected: Some(step.from),
        };
        let commit = Commit {
            appends,
            offsets: vec![offset],
            state: step.state,
            fence: Some(self.fence.clone()),
            ..Commit::default()
        };
        Ok(EmbeddedReceipt(self.broker.0.commit(commit).await?))
    }

    fn committed(&self, source: &TopicPartition) -> Result<Option<Offset>, LogError> {
        let partition = self.partition(source)?;
        Ok(self.fence.group().committed(partition.topic_id(), source.partition))
    }

    fn accumulators(&self, store: &str, partition: u32) -> Arc<StatePartition> {
        self.broker.0.state().partition(store, partition)
    }
}
