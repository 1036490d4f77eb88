//! One binary of tests, a module a feature.
#![allow(clippy::unwrap_used, missing_docs)]

mod guests;
mod invariants;
