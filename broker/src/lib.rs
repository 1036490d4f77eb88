//! Partitioned topics on disk, consumer groups over them, and the servers that speak for them.
//!
//! Start at [`broker::Broker`], what the servers and the runtime call; a write's whole way is
//! `store/committer.rs`. This crate knows nothing of WebAssembly, and only `store/` knows redb.

pub mod broker;
mod catalog;
pub mod clock;
pub mod error;
pub mod fetch;
pub mod group;
pub mod grpc;
pub mod hash;
pub mod metrics;
pub mod name;
pub mod partition;
pub mod producer;
pub mod quota;
mod readers;
#[cfg(test)]
#[path = "../../sdk/record/tests/seeded/mod.rs"]
mod seeded;
mod start;
pub mod state;
pub mod store;
pub mod topic;

pub use broker::{Broker, BrokerSettings};
pub use error::BrokerError;
pub use name::{GroupId, TopicName};
pub use partition::{Offset, Partition, TopicPartition};
pub use producer::{ProducerId, ProducerIdentity};
