//! Conversion of records between the domain and the wire, as record batches or as plain records.

use millstream_api::v1;
use millstream_record::{BatchError, Limits, split_batches};

use super::status;
use crate::broker::fetch::Fetched;
use crate::log::reader::Slice;
use crate::log::validate::NewRecord;

/// Converts a record that a client sent.
pub(super) fn to_new_record(record: &v1::Record) -> NewRecord<'_, impl Iterator<Item = (&str, Option<&[u8]>)> + Clone> {
    NewRecord {
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref())),
    }
}

/// The budget that is left for plain records in one answer, in bytes. A compressed batch that is small when stored may
/// not fit into a message as plain records.
pub(super) struct PlainBudget {
    left: usize,
    used: usize,
}

/// Maximum size of the plain records in one answer, in bytes: half of the message limit, because one record may exceed
/// it and the largest record has about that size.
const PLAIN_BYTES_MAX: usize = millstream_api::MESSAGE_BYTES_MAX / 2;

/// Maximum encoded size of a plain record beside its key, value and headers, in bytes: offset, timestamp, tags and
/// lengths. Each header is counted with the same overhead.
const PLAIN_OVERHEAD_BYTES: usize = 64;

impl Default for PlainBudget {
    fn default() -> Self {
        Self::up_to(PLAIN_BYTES_MAX)
    }
}

impl PlainBudget {
    /// Creates a budget of up to `bytes`, but no more than one answer may hold.
    pub(super) fn up_to(bytes: usize) -> Self {
        Self { left: bytes.min(PLAIN_BYTES_MAX), used: 0 }
    }

    /// Returns the bytes that have been used.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns whether no further record fits.
    pub(super) fn is_full(&self) -> bool {
        self.used > 0 && self.left < PLAIN_OVERHEAD_BYTES
    }

    /// Takes `bytes` for a record and returns whether it fits. The first record of an answer always fits.
    fn take(&mut self, bytes: usize) -> bool {
        if bytes > self.left && self.used > 0 {
            return false;
        }
        self.left = self.left.saturating_sub(bytes);
        self.used += bytes;
        true
    }
}

/// Converts the result of a fetch for one partition.
pub(super) fn to_partition_records(
    fetched: Fetched,
    from: u64,
    format: v1::Format,
    limits: &Limits,
    budget: &mut PlainBudget,
) -> v1::PartitionRecords {
    let name = fetched.partition.name();
    let mut answer = v1::PartitionRecords {
        topic: name.topic.as_str().to_owned(),
        partition: name.partition,
        next_offset: from,
        log_start_offset: fetched.partition.start().into(),
        log_end_offset: fetched.partition.stable_end().into(),
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
        v1::Format::Records => match plain(slice, from, limits, budget) {
            Ok((records, next_offset)) => (answer.records, answer.next_offset) = (records, next_offset),
            Err(source) => answer.error = Some(status::to_error(&fetched.partition.corrupt(source))),
        },
    }
    answer
}

/// Returns the plain records that fit, and the offset from which to continue.
fn plain(
    slice: Slice,
    from: u64,
    limits: &Limits,
    budget: &mut PlainBudget,
) -> Result<(Vec<v1::Record>, u64), BatchError> {
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
            if !budget.take(PLAIN_OVERHEAD_BYTES + key + value + headers) {
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
