//! Partitioned topics on disk, consumer groups over them, and the servers that speak for them.
//!
//! Imports run downwards: `grpc` and the runtime call [`broker::Broker`], which has the log (`log/`) and the groups
//! (`groups/`), and below them is the store (`store/`), which alone knows redb. A write is followed best in
//! `log/committer.rs`. This crate knows nothing of WebAssembly.

pub mod broker;
pub mod clock;
pub mod error;
pub mod groups;
pub mod grpc;
pub mod hash;
pub mod log;
pub mod metrics;
pub mod name;
mod net;
#[cfg(test)]
#[path = "../../sdk/record/tests/seeded/mod.rs"]
mod seeded;
pub mod store;

pub use broker::{Broker, BrokerSettings};
pub use error::BrokerError;
pub use log::partition::Partition;
pub use name::{GroupId, ProducerId, ProducerIdentity, TopicName, TopicPartition};
pub use store::place::{Offset, TopicId};
