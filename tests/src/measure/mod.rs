//! The instruments of `cargo xtask bench`: what it samples, compares and reports. The benchmarks themselves are in
//! `tests/bench`; nothing here knows what is measured.

pub mod comparison;
pub mod kafka;
pub mod open_loop;
pub mod page_cache;
pub mod process;
pub mod report;
pub mod samples;
pub mod table;
pub mod turns;
