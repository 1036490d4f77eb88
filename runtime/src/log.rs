//! What a task runs on: a log to read from, and to commit a step to atomically. `embedded.rs` is the
//! broker in this process. It is kept small so that another log can take its place.

use std::sync::Arc;

use bytes::Bytes;
use millstream_broker::log::state::StatePartition;
use millstream_broker::store::StateChange;
use millstream_broker::{Offset, TopicPartition};
use millstream_record::RecordBatch;

/// Reads, and commits steps wholly or not at all.
pub trait Log: Clone + Send + Sync + 'static {
    /// Resolves when the step is durable.
    type Receipt: Future<Output = Result<(), LogError>> + Send + Unpin + 'static;

    /// Waits for records at `from` or later, and reads whole batches of about `bytes_max`.
    fn read(
        &self,
        source: &TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> impl Future<Output = Result<ReadBatches, LogError>> + Send;

    /// Queues a step. Steps are committed in the order in which they were queued.
    fn commit(&self, step: Step) -> impl Future<Output = Result<Self::Receipt, LogError>> + Send;

    /// The offset at which a task goes on in `source`, where one was committed.
    ///
    /// # Errors
    /// [`LogError::Failed`] for a source that is not there.
    fn committed(&self, source: &TopicPartition) -> Result<Option<Offset>, LogError>;

    /// The committed accumulators of a store's partition.
    fn accumulators(&self, store: &str, partition: u32) -> Arc<StatePartition>;
}

/// Batches that were read.
#[derive(Clone, Debug)]
pub struct ReadBatches {
    /// Each holds one or more batches back to back. The first may begin below the asked offset.
    pub runs: Vec<Bytes>,
    /// The offset to read from next.
    pub next: Offset,
}

/// Everything that a task does for one input batch.
#[derive(Debug)]
pub struct Step {
    /// The task's source.
    pub source: TopicPartition,
    /// Where the step began: the commit is refused where the group stands elsewhere. `None` where
    /// nothing was committed before.
    pub from: Option<Offset>,
    /// The offset of the next record to read.
    pub next: Offset,
    /// Batches to write.
    pub outputs: Vec<(TopicPartition, Vec<RecordBatch>)>,
    /// Accumulators to keep.
    pub state: Vec<StateChange>,
}

/// Why a log does not do what a task asks.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The task is no longer current: another has taken its place.
    #[error("the task was replaced: {0}")]
    Fenced(String),
    /// The log stops; the task goes on where it was when the log is back.
    #[error("the log is shutting down")]
    ShuttingDown,
    /// The log has no room now: nothing of the step was stored, and the task tries again.
    #[error("{0}")]
    NoRoom(String),
    /// The log can't: the pipeline stops with this.
    #[error("{0}")]
    Failed(String),
}
