//! The kinds of stages: each takes columns and returns columns. In all three files, `run` calls the guest with the
//! batch, and halves the batch if the call fails.

pub mod aggregate;
pub mod filter;
mod halving;
pub mod map;

use millstream_record::Columns;

use crate::failure::Failure;
use crate::host::CallError;

/// The result of a stage for a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The output records.
    pub output: Columns,
    /// The failures, in the order of their records.
    pub failures: Vec<Failure>,
    /// The failed records themselves, one for each failure.
    pub failed: Columns,
}

/// An error that keeps a stage from continuing, whatever the records are.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StageError {
    /// The guest cannot be started or configured.
    #[error(transparent)]
    Guest(CallError),
    /// The accumulators cannot be read.
    #[error("the state cannot be read: {0}")]
    State(String),
    /// The search for the failing records takes too long.
    #[error(
        "the module did not return in time {calls} times on one batch of {records} records: it blocks on too many \
         of them to find each one; fix the module, or raise call-deadline-ms"
    )]
    Stuck {
        /// Number of calls that were interrupted.
        calls: u32,
        /// Number of records in the batch.
        records: usize,
    },
}

/// Returns the failed records of `input`.
fn failed_records(input: &Columns, failures: &[Failure]) -> Columns {
    if failures.is_empty() {
        return Columns::default();
    }
    let mut mask = vec![0; input.len()];
    failures.iter().for_each(|failure| mask[failure.index as usize] = 1);
    input.select(&mask)
}
