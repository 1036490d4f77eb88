//! What the fuzz targets do with their bytes. The tests of the crate above do the same with the inputs that
//! once failed, and with a few of their own (`tests/fuzzed.rs`).
//!
//! `cargo xtask fuzz` builds the targets with the coverage that libFuzzer wants, and runs each.

mod batch;
mod columns;

pub use batch::batch;
pub use columns::columns;
