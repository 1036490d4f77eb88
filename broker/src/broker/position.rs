//! Positions in partitions, as clients name them, and the offsets at which they are.

use std::sync::Arc;

use super::Broker;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::store::place::Offset;

/// A position in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The first record that is still stored.
    Earliest,
    /// After the last record.
    Latest,
    /// An offset. It may be the log end offset, and none beyond it.
    Offset(u64),
    /// The first record whose timestamp is at or after this time, in milliseconds since the epoch.
    Timestamp(i64),
}

impl Broker {
    /// Returns the offset at a position.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`] for an offset that the partition does not have; for a time, the errors of a read, and
    /// [`BrokerError::ShuttingDown`].
    pub async fn offset_at(&self, partition: &Arc<Partition>, position: Position) -> Result<Offset, BrokerError> {
        match position {
            Position::Latest => Ok(partition.end()),
            Position::Earliest => Ok(partition.start()),
            Position::Offset(offset) => partition.offset_in_range(offset),
            Position::Timestamp(timestamp_ms) => {
                let (store, limits) = (self.store().clone(), self.settings().limits);
                let partition = partition.clone();
                let find = move || partition.offset_at(&store, timestamp_ms, &limits);
                self.readers().run(find).await.unwrap_or(Err(BrokerError::ShuttingDown))
            }
        }
    }
}
