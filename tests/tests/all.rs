//! One binary of tests, a module a feature.
#![allow(clippy::unwrap_used, missing_docs)]

mod backpressure;
mod backup;
mod bad_input;
mod check;
mod cli;
mod client;
mod crash;
mod exactly_once;
mod faults;
mod grpc;
mod guests;
mod idempotence;
mod invariants;
mod model;
mod readme;
mod retention;
mod soak;
mod state;
mod topics;
mod workload;
