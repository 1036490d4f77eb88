//! Producing: what a client sends is checked and queued.

use std::sync::Arc;

use bytes::Bytes;
use millstream_record::{BatchHeader, RecordBatch};
use tokio_util::task::AbortOnDropHandle;

use super::Broker;
use crate::error::BrokerError;
use crate::log::commit::{Append, Commit};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::log::topic::Topic;
use crate::log::validate::{NewRecord, Validator};
use crate::name::ProducerId;

/// Records that are queued for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The partition.
    pub partition: u32,
    /// How many records.
    pub records: u32,
}

impl Broker {
    /// Checks record batches that stand back to back, and appends them to one partition; the receipt is answered when they
    /// are on disk. Batches of an idempotent producer that are there already are not appended again: the receipt says
    /// where they are.
    ///
    /// # Errors
    /// [`BrokerError::Batch`], [`BrokerError::BatchTooLarge`], [`BrokerError::NullKey`], [`BrokerError::InvalidTimestamp`],
    /// [`BrokerError::UnknownPartition`], [`BrokerError::UnknownProducerId`] and [`BrokerError::ShuttingDown`]; the receipt
    /// has the rest.
    pub async fn produce_bytes(
        &self,
        topic: &Arc<Topic>,
        partition: u32,
        bytes: Bytes,
    ) -> Result<(Receipt, Queued), BrokerError> {
        let to = topic.partition(partition)?;
        let batches = if has_compressed(&bytes) {
            // It may inflate to many times its size: not on a thread that others wait for.
            let (broker, topic) = (self.clone(), topic.clone());
            let permit = self.0.checks.clone().acquire_owned().await.map_err(|_| BrokerError::ShuttingDown)?;
            let check = move || {
                let _checking = permit;
                broker.validator(&topic).batches(partition, bytes)
            };
            let checked = AbortOnDropHandle::new(tokio::task::spawn_blocking(check));
            checked.await.unwrap_or(Err(BrokerError::ShuttingDown))?
        } else {
            self.validator(topic).batches(partition, bytes)?
        };
        let records = batches.iter().map(RecordBatch::record_count).sum();
        Ok((self.append(to, batches).await?, Queued { partition, records }))
    }

    /// As [`Broker::produce_bytes`], for batches that were made here. Blocks while compressed ones are checked.
    ///
    /// # Errors
    /// As [`Broker::produce_bytes`].
    pub async fn produce(
        &self,
        topic: &Topic,
        partition: &Arc<Partition>,
        batches: Vec<RecordBatch>,
    ) -> Result<Receipt, BrokerError> {
        let mut checked = Vec::with_capacity(batches.len());
        for batch in batches {
            checked.extend(self.validator(topic).batches(partition.name().partition, batch.into_bytes())?);
        }
        self.append(partition, checked).await
    }

    /// Makes batches of records, and appends them all in one commit: each to the partition that is named, or by its key.
    /// Records without a key go to one partition, another each millisecond.
    ///
    /// # Errors
    /// As [`Broker::produce_bytes`].
    pub async fn produce_records<'r, H>(
        &self,
        topic: &Topic,
        partition: Option<u32>,
        records: impl IntoIterator<Item = NewRecord<'r, H>>,
    ) -> Result<(Receipt, Vec<Queued>), BrokerError>
    where
        H: Iterator<Item = (&'r str, Option<&'r [u8]>)> + Clone,
    {
        if let Some(partition) = partition {
            topic.partition(partition)?;
        }
        let validator = self.validator(topic);
        let built = validator.build(partition, records, validator.now_ms.unsigned_abs() as u32)?;
        let mut commit = Commit::default();
        let mut queued = Vec::with_capacity(built.len());
        for (partition, batches) in built {
            queued.push(Queued { partition, records: batches.iter().map(RecordBatch::record_count).sum() });
            commit.appends.push(Append { partition: topic.partition(partition)?.clone(), batches });
        }
        Ok((self.commit(commit).await?, queued))
    }

    fn validator<'a>(&'a self, topic: &'a Topic) -> Validator<'a> {
        Validator { topic, limits: &self.0.settings.limits, now_ms: self.0.clock.now_ms() }
    }

    async fn append(&self, partition: &Arc<Partition>, batches: Vec<RecordBatch>) -> Result<Receipt, BrokerError> {
        for producer_id in batches.iter().filter_map(|batch| ProducerId::new(batch.producer_id())) {
            self.check_handed_out(producer_id)?;
        }
        let append = Append { partition: partition.clone(), batches };
        self.commit(Commit { appends: vec![append], ..Commit::default() }).await
    }
}

/// Whether one of the batches is compressed. What is no batch is found out later.
fn has_compressed(mut bytes: &[u8]) -> bool {
    while let Ok(header) = BatchHeader::parse(bytes) {
        if header.is_compressed {
            return true;
        }
        bytes = &bytes[header.batch_bytes..];
    }
    false
}
