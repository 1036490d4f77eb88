//! The instruments of `cargo xtask bench`, which sample, compare and report. The benchmarks themselves are in
//! `tests/bench`. This module does not depend on what is measured.

pub mod comparison;
pub mod kafka;
pub mod open_loop;
pub mod page_cache;
pub mod process;
pub mod report;
pub mod samples;
pub mod table;
pub mod turns;
