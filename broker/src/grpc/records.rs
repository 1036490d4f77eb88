//! Records between the wire's forms and the domain's: ready batches, or plain records.

use millstream_api::v1;
use millstream_record::{BatchError, Limits, split_batches};

use super::status;
use crate::broker::fetch::Fetched;
use crate::log::reader::Slice;
use crate::log::validate::NewRecord;

/// A record as a client sends it.
pub(super) fn to_new_record(record: &v1::Record) -> NewRecord<'_, impl Iterator<Item = (&str, Option<&[u8]>)> + Clone> {
    NewRecord {
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref())),
    }
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
