//! Records between the wire's forms and the domain's: ready batches, or plain records.

use crate::hash::HashMap;
use bytes::Bytes;
use millstream_api::v1;
use millstream_record::{BatchBuilder, BatchError, Compression, Limits, RecordBatch, partition_for_key, split_batches};

use super::status;
use crate::broker::fetch::Fetched;
use crate::error::BrokerError;
use crate::log::partition::Partition;
use crate::log::reader::Slice;
use crate::log::topic::Topic;

/// Batches built from plain records are cut at this size, in bytes: one journal value.
const PLAIN_BATCH_BYTES: usize = 64_000;

/// Checks the batches of a request, whole and in order.
pub(super) fn check_batches(
    topic: &Topic,
    partition: &Partition,
    mut bytes: Bytes,
    limits: &Limits,
) -> Result<Vec<RecordBatch>, BrokerError> {
    let mut batches = Vec::with_capacity(1);
    let refuse = |source: BatchError| BrokerError::Batch {
        topic: topic.name().clone(),
        partition: partition.name().partition,
        source,
    };
    while !bytes.is_empty() {
        let header = millstream_record::BatchHeader::parse(&bytes).map_err(refuse)?;
        batches.push(RecordBatch::check(bytes.split_to(header.batch_bytes), limits).map_err(refuse)?);
    }
    Ok(batches)
}

/// Builds batches from plain records, for each partition that they go to.
pub(super) fn build_batches(
    topic: &Topic,
    partition: Option<u32>,
    records: &[v1::Record],
    now_ms: i64,
    keyless: u32,
) -> Result<Vec<(u32, Vec<RecordBatch>)>, BrokerError> {
    let batch_bytes_max = topic.meta().settings.batch_bytes_max();
    let mut builders: HashMap<u32, (BatchBuilder, Vec<RecordBatch>)> = HashMap::default();
    for (index, record) in records.iter().enumerate() {
        let to = partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_for_key(key, topic.partition_count()),
            None => keyless % topic.partition_count(),
        });
        topic.check_key(to, index, record.key.as_deref())?;
        let (builder, done) = builders.entry(to).or_insert_with(|| (BatchBuilder::new(Compression::None), Vec::new()));
        let headers = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
        let header_bytes: usize =
            headers.clone().map(|(name, value)| 10 + name.len() + value.map_or(0, <[u8]>::len)).sum();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let record_bytes =
            header_bytes + BatchBuilder::record_bytes_max(key.map_or(0, <[u8]>::len), value.map_or(0, <[u8]>::len));
        if record_bytes + millstream_record::BATCH_HEADER_BYTES > batch_bytes_max {
            return Err(BrokerError::BatchTooLarge {
                topic: topic.name().clone(),
                partition: to,
                bytes: record_bytes,
                batch_bytes_max,
            });
        }
        if builder.encoded_bytes() + record_bytes > PLAIN_BATCH_BYTES.min(batch_bytes_max) {
            done.extend(builder.finish());
        }
        builder.push(record.timestamp_ms.unwrap_or(now_ms), key, value, headers);
    }
    let finish = |(partition, (mut builder, mut done)): (u32, (BatchBuilder, Vec<RecordBatch>))| {
        done.extend(builder.finish());
        (partition, done)
    };
    let mut built: Vec<_> = builders.into_iter().map(finish).collect();
    built.sort_by_key(|(partition, _)| *partition);
    Ok(built)
}

/// What one answer may still hold of plain records, in bytes. Compressed batches are small as they are
/// stored; as plain records they need not fit a message.
pub(super) struct PlainRoom {
    left: usize,
    used: usize,
}

/// Half of a message's limit: one record more may come, and the largest is as large.
const PLAIN_BYTES_MAX: usize = millstream_api::MESSAGE_BYTES_MAX / 2;

/// A plain record's own fields in bytes, at most: offset, timestamp, tags and lengths. A header counts as much.
const PLAIN_OVERHEAD_BYTES: usize = 64;

impl Default for PlainRoom {
    fn default() -> Self {
        Self::up_to(PLAIN_BYTES_MAX)
    }
}

impl PlainRoom {
    /// No more than `bytes`, nor than an answer holds.
    pub(super) fn up_to(bytes: usize) -> Self {
        Self { left: bytes.min(PLAIN_BYTES_MAX), used: 0 }
    }

    /// What its records count.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Whether no record fits any more.
    pub(super) fn is_full(&self) -> bool {
        self.used > 0 && self.left < PLAIN_OVERHEAD_BYTES
    }

    /// Whether there is room for so many bytes; the first record of an answer always has it.
    fn take(&mut self, bytes: usize) -> bool {
        if bytes > self.left && self.used > 0 {
            return false;
        }
        self.left = self.left.saturating_sub(bytes);
        self.used += bytes;
        true
    }
}

/// What a reader gets of one partition.
pub(super) fn to_partition_records(
    fetched: Fetched,
    from: u64,
    format: v1::Format,
    limits: &Limits,
    room: &mut PlainRoom,
) -> v1::PartitionRecords {
    let name = fetched.partition.name();
    let mut answer = v1::PartitionRecords {
        topic: name.topic.as_str().to_owned(),
        partition: name.partition,
        next_offset: from,
        log_start_offset: fetched.partition.start().into(),
        log_end_offset: fetched.partition.end().into(),
        ..Default::default()
    };
    let slice = match fetched.slice {
        Ok(slice) => slice,
        Err(error) => {
            answer.error = Some(status::to_error(&error));
            return answer;
        }
    };
    answer.next_offset = slice.next.into();
    answer.log_start_offset = slice.start.into();
    answer.log_end_offset = slice.end.into();
    match format {
        v1::Format::Batches => answer.batches = slice.runs,
        v1::Format::Records => match plain(slice, from, limits, room) {
            Ok((records, next_offset)) => (answer.records, answer.next_offset) = (records, next_offset),
            Err(source) => answer.error = Some(status::to_error(&fetched.partition.corrupt(source))),
        },
    }
    answer
}

/// The records as far as there is room, and the offset to go on at.
fn plain(slice: Slice, from: u64, limits: &Limits, room: &mut PlainRoom) -> Result<(Vec<v1::Record>, u64), BatchError> {
    let mut plain = Vec::new();
    let next = slice.next.into();
    for batch in slice.runs.into_iter().flat_map(split_batches) {
        let records = batch?.records(limits)?;
        for view in &records {
            let record = records.to_record(&view?);
            let offset = record.offset.unsigned_abs();
            if offset < from {
                continue;
            }
            let header_bytes = |h: &millstream_record::Header| h.name.len() + h.value.as_ref().map_or(0, |v| v.len());
            let headers: usize = record.headers.iter().map(|h| header_bytes(h) + PLAIN_OVERHEAD_BYTES).sum();
            let (key, value) =
                (record.key.as_ref().map_or(0, |k| k.len()), record.value.as_ref().map_or(0, |v| v.len()));
            if !room.take(PLAIN_OVERHEAD_BYTES + key + value + headers) {
                return Ok((plain, offset));
            }
            let headers = record.headers.into_iter().map(|h| v1::Header { name: h.name, value: h.value });
            plain.push(v1::Record {
                offset,
                timestamp_ms: Some(record.timestamp_ms),
                key: record.key,
                value: record.value,
                headers: headers.collect(),
            });
        }
    }
    Ok((plain, next))
}
