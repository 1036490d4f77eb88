//! The domain of records: topics and their partitions, what is appended to them, and what becomes of that.
//!
//! `committer.rs` shows how a write travels. It decides; the store (`crate::store`) writes what it decided.

pub(crate) mod catalog;
pub(crate) mod cleaner;
pub mod commit;
pub(crate) mod committer;
mod compaction;
pub(crate) mod domain;
pub(crate) mod expiry;
mod index;
mod merge;
mod output;
pub mod partition;
pub mod producers;
pub mod queue;
pub mod reader;
pub(crate) mod readers;
mod retention;
pub(crate) mod sealer;
pub(crate) mod start;
pub mod state;
pub mod topic;
pub mod validate;
