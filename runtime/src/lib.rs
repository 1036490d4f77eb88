//! Runs pipelines of WebAssembly stages on a log.
//!
//! Start at `task.rs`, the loop that every pipeline is: read, run stages, commit. `pipeline/` is the
//! file that users write, `stage/` what each kind of stage does with columns, `host/` the only place
//! that knows wasmtime, `runtime.rs` what users ask of it.

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
