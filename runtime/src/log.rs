//! The log that a task reads from, and to which it commits steps atomically. `embedded.rs` implements it with the
//! broker in this process. The trait is small so that another log can replace the broker.

use std::sync::Arc;

use bytes::Bytes;
use millstream_broker::log::state::StatePartition;
use millstream_broker::store::StateChange;
use millstream_broker::{Offset, TopicPartition};
use millstream_record::RecordBatch;

/// A log that can be read, and that commits each step completely or not at all.
pub trait Log: Clone + Send + Sync + 'static {
    /// Resolves when the step is durable.
    type Receipt: Future<Output = Result<(), LogError>> + Send + Unpin + 'static;

    /// Waits for records at `from` or later, and reads whole batches of about `bytes_max` bytes.
    fn read(
        &self,
        source: &TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> impl Future<Output = Result<ReadBatches, LogError>> + Send;

    /// Queues a step. Steps are committed in the order in which they were queued.
    fn commit(&self, step: Step) -> impl Future<Output = Result<Self::Receipt, LogError>> + Send;

    /// Returns the offset at which a task continues in `source`, or `None` if none was committed.
    ///
    /// # Errors
    /// [`LogError::Failed`] if the source does not exist.
    fn committed(&self, source: &TopicPartition) -> Result<Option<Offset>, LogError>;

    /// Returns the committed accumulators of a store's partition.
    fn accumulators(&self, store: &str, partition: u32) -> Arc<StatePartition>;
}

/// Batches returned by a read.
#[derive(Clone, Debug)]
pub struct ReadBatches {
    /// Runs of one or more consecutive batches. The first batch may begin below the requested offset.
    pub runs: Vec<Bytes>,
    /// The offset to read from next.
    pub next: Offset,
}

/// The effects of a task's work on one input batch.
#[derive(Debug)]
pub struct Step {
    /// The task's source.
    pub source: TopicPartition,
    /// The offset at which the step began, or `None` if nothing was committed before. The commit is refused if the
    /// group's committed offset differs.
    pub from: Option<Offset>,
    /// The offset of the next record to read.
    pub next: Offset,
    /// Batches to append, by partition.
    pub outputs: Vec<(TopicPartition, Vec<RecordBatch>)>,
    /// Accumulators to store.
    pub state: Vec<StateChange>,
}

/// The reason why a log refuses an operation of a task.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Another task has replaced this one.
    #[error("the task was replaced: {0}")]
    Fenced(String),
    /// The log is shutting down. The task continues from its last commit when the log is available again.
    #[error("the log is shutting down")]
    ShuttingDown,
    /// The log has no space at the moment. Nothing of the step was stored, and the task retries.
    #[error("{0}")]
    NoRoom(String),
    /// The log failed, which stops the pipeline.
    #[error("{0}")]
    Failed(String),
}
