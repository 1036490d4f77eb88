//! Records: topics and their partitions, appends, and the maintenance of the log.
//!
//! `committer.rs` shows the path of a write. It decides what is written, and the store (`crate::store`) writes it.

pub(crate) mod catalog_entries;
pub(crate) mod cleaner;
pub mod commit;
pub(crate) mod committer;
mod compaction;
pub(crate) mod domain;
mod expiry;
pub(crate) mod idle_clock;
mod index;
mod merge;
mod output;
pub mod partition;
pub mod producers;
pub mod queue;
pub mod reader;
pub(crate) mod readers;
mod retention;
mod rounds;
pub(crate) mod sealer;
pub(crate) mod start;
pub mod state;
pub mod topic;
pub(crate) mod topics;
pub mod transactions;
pub mod validate;
