//! Runs pipelines of WebAssembly stages on a log.
//!
//! Start at `task.rs`, the loop that every pipeline is: read, run stages, commit. `pipeline/` is the
//! file that users write, `stage/` what each kind of stage does with columns, `host/` the only place
//! that knows wasmtime, `pipelines.rs` what users ask of the runtime.

pub mod deploy;
pub mod embedded;
pub mod encode;
pub mod failure;
pub mod host;
pub mod log;
pub mod metrics;
pub mod pipeline;
pub mod pool;
pub mod stage;
pub mod state;
pub mod task;
