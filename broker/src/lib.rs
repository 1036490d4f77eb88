//! Partitioned topics on disk, consumer groups that read them, and the gRPC server for both.
//!
//! Imports go downwards only: `grpc` and the runtime call [`broker::Broker`], which owns the log (`log/`) and the
//! groups (`groups/`). Below them is the store (`store/`), the only module that uses redb. The best place to follow a
//! write is `log/committer.rs`. This crate knows nothing of WebAssembly.

pub mod broker;
pub mod clock;
pub mod error;
pub mod groups;
pub mod grpc;
pub mod hash;
pub mod kafka;
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
