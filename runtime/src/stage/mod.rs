//! What each kind of stage does: columns in, columns out. The three files share one shape: `run`
//! calls the guest with the batch, and halves it where the call gives nothing.

pub mod aggregate;
pub mod filter;
mod halving;
pub mod map;

use millstream_record::Columns;

use crate::failure::Failure;
use crate::host::CallError;

/// What a stage made of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What it puts out.
    pub output: Columns,
    /// The records that it failed on, in their order.
    pub failures: Vec<Failure>,
    /// Those records themselves, one a failure.
    pub failed: Columns,
}

/// A stage that can't go on, whatever the records.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StageError {
    /// The guest can't be started or configured.
    #[error(transparent)]
    Guest(CallError),
    /// The accumulators can't be read.
    #[error("the state can't be read: {0}")]
    State(String),
    /// Finding the records at fault takes too long.
    #[error(
        "the module did not return in time {calls} times on one batch of {records} records: it is stuck on too many \
         of them to find each; fix the module, or raise call-deadline-ms"
    )]
    Stuck {
        /// Calls that were interrupted.
        calls: u32,
        /// Records of the batch.
        records: usize,
    },
}

/// The failed records of `input`.
fn failed_records(input: &Columns, failures: &[Failure]) -> Columns {
    if failures.is_empty() {
        return Columns::default();
    }
    let mut mask = vec![0; input.len()];
    failures.iter().for_each(|failure| mask[failure.index as usize] = 1);
    input.select(&mask)
}
