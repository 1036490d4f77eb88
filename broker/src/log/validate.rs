//! Validation of what producers send: checks record batches, and builds record batches from single records. Nothing in
//! this module waits or writes.

use bytes::Bytes;
use millstream_record::{
    BATCH_HEADER_BYTES, BatchBuilder, BatchError, BatchHeader, Compression, Limits, NO_TIMESTAMP, RecordBatch,
    partition_for_key,
};

use super::topic::{Timestamp, Topic, TopicCompression};
use crate::error::BrokerError;
use crate::hash::HashMap;

/// Size at which a batch built from records is closed, in bytes: one journal value.
const BUILT_BATCH_BYTES: usize = 64_000;

/// Maximum encoded size of a header beside its name and value, in bytes: two lengths.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// A record that a producer sends outside a record batch. `H` iterates over its headers, names and values, in order.
#[derive(Clone, Debug)]
pub struct NewRecord<'a, H> {
    /// The timestamp in ms since the epoch; `None` stands for the server's time.
    pub timestamp_ms: Option<i64>,
    /// The key; `None` is null.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is null.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: H,
}

/// Checks records against a topic's settings, the server's limits and the server's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validator<'a> {
    pub(crate) topic: &'a Topic,
    pub(crate) limits: &'a Limits,
    pub(crate) now_ms: i64,
}

impl Validator<'_> {
    /// Checks batches for one partition. `bytes` must hold whole batches back to back. `in_transaction` says whether they
    /// may be part of a transaction.
    ///
    /// # Errors
    /// [`BrokerError::Batch`], [`BrokerError::BatchTooLarge`], [`BrokerError::NullKey`],
    /// [`BrokerError::InvalidTimestamp`].
    pub(crate) fn batches(
        &self,
        partition: u32,
        mut bytes: Bytes,
        in_transaction: bool,
    ) -> Result<Vec<RecordBatch>, BrokerError> {
        let refuse = |source| self.refused(partition, source);
        let mut batches = Vec::with_capacity(1);
        let mut records = 0;
        while !bytes.is_empty() {
            let header = BatchHeader::parse(&bytes).map_err(refuse)?;
            // A batch above the server's limit is left to `survey`, which reports that limit and not the topic's.
            if header.batch_bytes <= self.limits.batch_bytes_max {
                self.size(partition, header.batch_bytes)?;
            }
            let (batch, survey) =
                RecordBatch::survey(bytes.split_to(header.batch_bytes), self.limits).map_err(refuse)?;
            batch.check_producible(in_transaction).map_err(refuse)?;
            if let Some(index) = survey.without_key {
                self.topic.check_key(partition, records + index as usize, None)?;
            }
            records += batch.record_count() as usize;
            let codec = self.topic.meta().settings.compression.map(TopicCompression::codec);
            let batch = match codec.filter(|codec| *codec != batch.compression()) {
                Some(codec) => batch.compressed_with(self.limits, codec).map_err(refuse)?,
                None => batch,
            };
            if self.topic.meta().settings.timestamp == Timestamp::Append {
                batches.push(batch.with_append_time(self.now_ms));
                continue;
            }
            for (index, timestamp_ms) in [survey.earliest, survey.latest] {
                self.timestamp(partition, index as usize, timestamp_ms)?;
            }
            batches.push(match survey.without_timestamp {
                None => batch,
                Some(_) => batch.fill_timestamps(self.limits, self.now_ms).map_err(refuse)?,
            });
        }
        Ok(batches)
    }

    /// Builds batches from records, grouped by partition. If `partition` is `None`, records with a key are partitioned
    /// by their key, and those without a key go to partition `keyless` modulo the number of partitions.
    ///
    /// # Errors
    /// [`BrokerError::BatchTooLarge`], [`BrokerError::NullKey`], [`BrokerError::InvalidTimestamp`].
    pub(crate) fn build<'r, H>(
        &self,
        partition: Option<u32>,
        records: impl IntoIterator<Item = NewRecord<'r, H>>,
        keyless: u32,
    ) -> Result<Vec<(u32, Vec<RecordBatch>)>, BrokerError>
    where
        H: Iterator<Item = (&'r str, Option<&'r [u8]>)> + Clone,
    {
        let batch_bytes_max = self.topic.meta().settings.batch_bytes_max();
        let partitions = self.topic.partition_count();
        let codec = self.topic.meta().settings.compression.map_or(Compression::None, TopicCompression::codec);
        let is_append_time = self.topic.meta().settings.timestamp == Timestamp::Append;
        let mut builders: HashMap<u32, (BatchBuilder, Vec<RecordBatch>)> = HashMap::default();
        for (index, NewRecord { timestamp_ms, key, value, headers }) in records.into_iter().enumerate() {
            let to =
                partition.unwrap_or_else(|| key.map_or(keyless % partitions, |key| partition_for_key(key, partitions)));
            self.topic.check_key(to, index, key)?;
            let own = timestamp_ms.filter(|ms| *ms != NO_TIMESTAMP && !is_append_time);
            let timestamp_ms = own.unwrap_or(self.now_ms);
            self.timestamp(to, index, timestamp_ms)?;
            let (builder, done) = builders.entry(to).or_insert_with(|| (BatchBuilder::new(codec), Vec::new()));
            let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
            let header_bytes: usize =
                headers.clone().map(|(name, value)| HEADER_OVERHEAD_BYTES + name.len() + len(value)).sum();
            let record_bytes = header_bytes + BatchBuilder::record_bytes_max(len(key), len(value));
            if record_bytes + BATCH_HEADER_BYTES > batch_bytes_max {
                return Err(self.too_large(to, record_bytes));
            }
            if builder.encoded_bytes() + record_bytes > BUILT_BATCH_BYTES.min(batch_bytes_max) {
                done.extend(builder.finish());
            }
            builder.push(timestamp_ms, key, value, headers);
        }
        let finish = |(partition, (mut builder, mut done)): (u32, (BatchBuilder, Vec<RecordBatch>))| {
            done.extend(builder.finish());
            if is_append_time {
                done = done.into_iter().map(|batch| batch.with_append_time(self.now_ms)).collect();
            }
            (partition, done)
        };
        let mut built: Vec<_> = builders.into_iter().map(finish).collect();
        built.sort_by_key(|(partition, _)| *partition);
        Ok(built)
    }

    /// Refuses a batch that is larger than the topic's limit.
    ///
    /// # Errors
    /// [`BrokerError::BatchTooLarge`].
    fn size(&self, partition: u32, bytes: usize) -> Result<(), BrokerError> {
        if bytes > self.topic.meta().settings.batch_bytes_max() {
            return Err(self.too_large(partition, bytes));
        }
        Ok(())
    }

    /// Refuses a timestamp that is further from the server's time than the topic allows, or before 1970.
    /// [`NO_TIMESTAMP`] is accepted.
    fn timestamp(&self, partition: u32, index: usize, timestamp_ms: i64) -> Result<(), BrokerError> {
        if timestamp_ms == NO_TIMESTAMP {
            return Ok(());
        }
        let settings = &self.topic.meta().settings;
        let (before, after) = (settings.timestamp_before_max_ms, settings.timestamp_after_max_ms());
        let now_ms = self.now_ms;
        let allowed = if timestamp_ms < 0 {
            "use the time since 1970, or -1 for the server's time".to_owned()
        } else if timestamp_ms > now_ms.saturating_add_unsigned(after) {
            format!(
                "the server's time is {now_ms}, and the topic accepts timestamps up to {after} ms after that \
                 (timestamp_after_max_ms): is it in micro- or nanoseconds, or is the clock wrong?"
            )
        } else if let Some(before) = before.filter(|before| timestamp_ms < now_ms.saturating_sub_unsigned(*before)) {
            format!(
                "the server's time is {now_ms}, and the topic accepts timestamps up to {before} ms before that \
                 (timestamp_before_max_ms)"
            )
        } else {
            return Ok(());
        };
        let topic = self.topic.name().clone();
        Err(BrokerError::InvalidTimestamp { topic, partition, index, timestamp_ms, allowed })
    }

    fn refused(&self, partition: u32, source: BatchError) -> BrokerError {
        BrokerError::Batch { topic: self.topic.name().clone(), partition, source }
    }

    fn too_large(&self, partition: u32, bytes: usize) -> BrokerError {
        let batch_bytes_max = self.topic.meta().settings.batch_bytes_max();
        BrokerError::BatchTooLarge { topic: self.topic.name().clone(), partition, bytes, batch_bytes_max }
    }
}
