//! One binary of tests, a module a feature.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_input;
mod guests;
mod invariants;
mod readme;
