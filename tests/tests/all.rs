//! A single test binary with one module for each feature.
#![allow(clippy::unwrap_used, missing_docs)]

mod backpressure;
mod backup;
mod bad_input;
mod check;
mod cli;
mod client;
mod crash;
mod exactly_once;
mod expiry;
mod failures;
mod full_disk;
mod golden;
mod groups;
mod grpc;
mod guests;
mod idempotence;
mod invariants;
mod measure;
mod readme;
mod retention;
mod simulation;
mod soak;
mod state;
mod threads;
mod topics;
