//! The bodies of the fuzz targets. The tests of the parent crate (`tests/fuzzed.rs`) run them on inputs that failed in
//! the past and on generated ones.
//!
//! `cargo xtask fuzz` builds the targets with libFuzzer's coverage instrumentation and runs each of them.

mod batch;
mod columns;

pub use batch::batch;
pub use columns::columns;
