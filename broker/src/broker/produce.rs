//! Producing: checks what a client sends and queues it for the committer.

use std::sync::Arc;

use bytes::Bytes;
use millstream_record::{BatchHeader, RecordBatch, TimestampType};
use tokio_util::task::AbortOnDropHandle;

use super::Broker;
use crate::error::BrokerError;
use crate::log::commit::{Append, Commit};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::log::topic::Topic;
use crate::log::validate::{NewRecord, Validator};
use crate::name::ProducerId;
use crate::store::CatalogChange;

/// Records that have been queued for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The partition.
    pub partition: u32,
    /// Number of records.
    pub records: u32,
    /// The timestamp of all records, if the topic gives them that of their arrival.
    pub append_time_ms: Option<i64>,
}

impl Broker {
    /// Checks record batches that are back to back, and queues them to be appended to one partition. The receipt
    /// resolves when they are on disk. Batches of an idempotent producer that are already stored are not appended
    /// again; the receipt then returns the offsets at which they are stored.
    ///
    /// # Errors
    /// [`BrokerError::Batch`], [`BrokerError::BatchTooLarge`], [`BrokerError::NullKey`],
    /// [`BrokerError::InvalidTimestamp`], [`BrokerError::UnknownPartition`], [`BrokerError::UnknownProducerId`] or
    /// [`BrokerError::ShuttingDown`]. The receipt reports all other errors.
    pub async fn produce_bytes(
        &self,
        topic: &Arc<Topic>,
        partition: u32,
        bytes: Bytes,
    ) -> Result<(Receipt, Queued), BrokerError> {
        let to = topic.partition(partition)?;
        let batches = self.check_bytes(topic, partition, bytes, false).await?;
        let queued = queued(partition, &batches);
        Ok((self.append(to, batches, Vec::new()).await?, queued))
    }

    /// Checks record batches that are back to back. `in_transaction` says whether they may be part of a transaction.
    ///
    /// # Errors
    /// As [`Broker::produce_bytes`].
    pub(super) async fn check_bytes(
        &self,
        topic: &Arc<Topic>,
        partition: u32,
        bytes: Bytes,
        in_transaction: bool,
    ) -> Result<Vec<RecordBatch>, BrokerError> {
        Ok(if has_compressed(&bytes) {
            // Compressed batches may inflate to many times their size, so they are not checked on an async thread that
            // other tasks need.
            let (broker, topic) = (self.clone(), topic.clone());
            let permit = self.0.checks.clone().acquire_owned().await.map_err(|_| BrokerError::ShuttingDown)?;
            let check = move || {
                let _checking = permit;
                broker.validator(&topic).batches(partition, bytes, in_transaction)
            };
            let checked = AbortOnDropHandle::new(tokio::task::spawn_blocking(check));
            checked.await.unwrap_or(Err(BrokerError::ShuttingDown))?
        } else {
            self.validator(topic).batches(partition, bytes, in_transaction)?
        })
    }

    /// As [`Broker::produce_bytes`], but for batches that were built in this process. Blocks while compressed batches
    /// are checked.
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
            checked.extend(self.validator(topic).batches(partition.name().partition, batch.into_bytes(), false)?);
        }
        self.append(partition, checked, Vec::new()).await
    }

    /// Builds batches from records and queues them to be appended in one commit. A record goes to `partition` or, if
    /// that is `None`, to the partition of its key. Records without a key all go to one partition, which changes every
    /// millisecond.
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
            queued.push(self::queued(partition, &batches));
            commit.appends.push(Append { partition: topic.partition(partition)?.clone(), batches });
        }
        Ok((self.commit(commit).await?, queued))
    }

    fn validator<'a>(&'a self, topic: &'a Topic) -> Validator<'a> {
        Validator { topic, limits: &self.0.settings.limits, now_ms: self.0.clock.now_ms() }
    }

    /// Queues batches, and changes of the catalog in the same commit.
    pub(super) async fn append(
        &self,
        partition: &Arc<Partition>,
        batches: Vec<RecordBatch>,
        catalog: Vec<CatalogChange>,
    ) -> Result<Receipt, BrokerError> {
        for producer_id in batches.iter().filter_map(|batch| ProducerId::new(batch.producer_id())) {
            self.check_handed_out(producer_id)?;
        }
        let append = Append { partition: partition.clone(), batches };
        self.commit(Commit { appends: vec![append], catalog, ..Commit::default() }).await
    }
}

pub(super) fn queued(partition: u32, batches: &[RecordBatch]) -> Queued {
    let at_arrival = |batch: &&RecordBatch| batch.timestamp_type() == TimestampType::LogAppendTime;
    Queued {
        partition,
        records: batches.iter().map(RecordBatch::record_count).sum(),
        append_time_ms: batches.first().filter(at_arrival).map(RecordBatch::max_timestamp_ms),
    }
}

/// Returns whether one of the batches is compressed. Bytes that are not a batch are ignored here and refused later.
fn has_compressed(mut bytes: &[u8]) -> bool {
    while let Ok(header) = BatchHeader::parse(bytes) {
        if header.is_compressed {
            return true;
        }
        bytes = &bytes[header.batch_bytes..];
    }
    false
}
