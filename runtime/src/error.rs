//! The errors with which the runtime refuses requests of users. `grpc/status.rs` maps them to gRPC codes.

use millstream_broker::BrokerError;

use crate::host::ModuleError;
use crate::pipeline::Mistakes;

/// An error whose message says what is wrong, with which value, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The reference is not `name` or `name:tag`.
    #[error(
        "{reference:?} is not a module reference: write name or name:tag, each with 1 to 249 characters of a-z A-Z 0-9 . _ -"
    )]
    InvalidReference {
        /// The reference, as given.
        reference: String,
    },
    /// The bytes are not a valid module.
    #[error("module {reference}: {source}")]
    Module {
        /// The reference under which the module was pushed.
        reference: String,
        /// What is wrong with the module.
        source: ModuleError,
    },
    /// The module does not exist.
    #[error("there is no module {reference:?}")]
    UnknownModule {
        /// The reference, as given.
        reference: String,
    },
    /// A pipeline uses the module.
    #[error("module {reference} is used by pipeline {pipeline}: delete the pipeline, or apply it with another module")]
    ModuleInUse {
        /// The module.
        reference: String,
        /// The pipeline that uses it.
        pipeline: String,
    },
    /// The pipeline does not exist.
    #[error("there is no pipeline {pipeline:?}")]
    UnknownPipeline {
        /// The name, as given.
        pipeline: String,
    },
    /// The pipeline file has mistakes.
    #[error("{0}")]
    Mistakes(Mistakes),
    /// The stage does not exist, or is not of the kind that the request needs.
    #[error("pipeline {pipeline} has {what}")]
    Stage {
        /// The pipeline.
        pipeline: String,
        /// What the pipeline has or lacks.
        what: String,
    },
    /// A stored module or pipeline cannot be used.
    #[error("{0}")]
    Stored(String),
    /// The broker refused the request.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl From<millstream_broker::store::StoreError> for RuntimeError {
    fn from(error: millstream_broker::store::StoreError) -> Self {
        Self::Broker(error.into())
    }
}
