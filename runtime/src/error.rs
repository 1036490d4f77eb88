//! Why the runtime refuses what a user asks. `grpc/status.rs` maps these to gRPC's codes.

use millstream_broker::BrokerError;

use crate::host::ModuleError;
use crate::pipeline::Mistakes;

/// What was wrong, with which value, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Not `name` or `name:tag`.
    #[error("{reference:?} is no module reference: write name or name:tag, each 1 to 249 of a-z A-Z 0-9 . _ -")]
    InvalidReference {
        /// As given.
        reference: String,
    },
    /// Bytes that are no module.
    #[error("module {reference}: {source}")]
    Module {
        /// What it was to be called.
        reference: String,
        /// What is wrong with it.
        source: ModuleError,
    },
    /// No such module.
    #[error(
        "there is no module {reference:?}: `millstream module list` shows those there are, `millstream module push` adds one"
    )]
    UnknownModule {
        /// As asked.
        reference: String,
    },
    /// A pipeline runs it.
    #[error("module {reference} is used by pipeline {pipeline}: delete the pipeline, or apply it with another module")]
    ModuleInUse {
        /// The module.
        reference: String,
        /// Who uses it.
        pipeline: String,
    },
    /// No such pipeline.
    #[error("there is no pipeline {pipeline:?}: `millstream pipeline list` shows those there are")]
    UnknownPipeline {
        /// As asked.
        pipeline: String,
    },
    /// The file can't be run.
    #[error("{0}")]
    Mistakes(Mistakes),
    /// No such stage, or not one of the kind that is asked for.
    #[error("pipeline {pipeline} has {what}")]
    Stage {
        /// The pipeline.
        pipeline: String,
        /// What it has or has not.
        what: String,
    },
    /// A module that is stored can't be used.
    #[error("{0}")]
    Stored(String),
    /// The broker refuses.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl From<millstream_broker::store::StoreError> for RuntimeError {
    fn from(error: millstream_broker::store::StoreError) -> Self {
        Self::Broker(error.into())
    }
}
