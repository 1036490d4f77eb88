//! Whether a pipeline runs, and why not. This file must not know how a pipeline is started or ended.

use millstream_broker::groups::PipelineState;
use serde::{Deserialize, Serialize};

/// The state that a user requested for a pipeline, or that a failure caused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// The pipeline's tasks run.
    Running,
    /// A user paused the pipeline.
    Paused,
    /// The pipeline could not continue, for this reason.
    Stopped(String),
}

impl RunState {
    /// Returns the state that the broker shows for the pipeline's consumer group.
    pub(super) fn of_group(&self) -> PipelineState {
        match self {
            Self::Running => PipelineState::Running,
            Self::Paused => PipelineState::Paused,
            Self::Stopped(_) => PipelineState::Stopped,
        }
    }
}
