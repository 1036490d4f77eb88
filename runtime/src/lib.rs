//! Runs pipelines of WebAssembly stages on a log.
//!
//! Start reading at `task.rs`, the loop that all pipelines run: read, run stages, commit. `pipeline/` handles the file
//! that users write, `stage/` runs each kind of stage on columns, `host/` is the only module that uses wasmtime, and
//! `runtime.rs` implements the operations that users request.

pub mod deploy;
pub mod embedded;
pub mod encode;
pub mod error;
pub mod failure;
pub mod grpc;
pub mod host;
pub mod log;
pub mod metrics;
pub mod modules;
pub mod pipeline;
pub mod pool;
pub mod runtime;
#[cfg(test)]
#[path = "../../sdk/record/tests/seeded/mod.rs"]
mod seeded;
pub mod stage;
pub mod state;
pub mod task;

pub use error::RuntimeError;
pub use runtime::{Runtime, RuntimeSettings};
