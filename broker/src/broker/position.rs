//! Positions in partitions, as clients name them, and the offsets at which they are.

use std::sync::Arc;

use millstream_record::split_batches;

use super::Broker;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::log::reader::ReadRange;
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
            Position::Latest => Ok(partition.stable_end()),
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

    /// Returns the timestamp of the record at an offset or, if compaction has removed that record, of the one after it.
    /// Returns `None` at the end of the log.
    ///
    /// # Errors
    /// As [`Broker::read`], and [`BrokerError::Batch`] for a batch that does not parse.
    pub async fn timestamp_of(&self, partition: &Arc<Partition>, offset: Offset) -> Result<Option<i64>, BrokerError> {
        let range = ReadRange { from: offset, until: None, bytes_max: 1, one_at_least: true };
        let Some(run) = self.read(partition, range).await?.runs.into_iter().next() else { return Ok(None) };
        let limits = self.settings().limits;
        let find = || {
            for batch in split_batches(run) {
                for record in &batch?.records(&limits)? {
                    let record = record?;
                    if record.offset >= offset.get() {
                        return Ok(Some(record.timestamp_ms));
                    }
                }
            }
            Ok(None)
        };
        find().map_err(|source| partition.corrupt(source))
    }
}
