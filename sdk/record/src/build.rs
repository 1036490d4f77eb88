//! Building batches. Records are encoded directly into the buffer that is sent.

use crate::checksum;
use bytes::Bytes;

use crate::batch::{BATCH_HEADER_BYTES, MAGIC, RecordBatch, TRANSACTIONAL_BIT, at};
use crate::compression::{Compression, compress};
use crate::varint;

/// Builds record batches, one at a time.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    compression: Compression,
    /// The header, followed by the uncompressed records.
    bytes: Vec<u8>,
    capacity: usize,
    count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    producer: Producer,
    transactional: bool,
}

#[derive(Clone, Copy, Debug)]
struct Producer {
    id: i64,
    epoch: i16,
    base_sequence: i32,
}

const NO_PRODUCER: Producer = Producer { id: -1, epoch: -1, base_sequence: -1 };

/// Maximum size of the fields of a record apart from its key, value and headers, in bytes: length 5, attributes 1,
/// timestamp 10, offset 5, key and value lengths 5 each, header count 5.
const RECORD_OVERHEAD_BYTES_MAX: usize = 36;

impl BatchBuilder {
    /// Creates an empty builder.
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 0)
    }

    /// Creates an empty builder with capacity for `bytes` bytes, including the header.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        Self {
            compression,
            bytes: Vec::new(),
            capacity: bytes.max(BATCH_HEADER_BYTES),
            count: 0,
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
            producer: NO_PRODUCER,
            transactional: false,
        }
    }

    /// Sets the producer's identity (KIP-98) of the current batch.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        self.producer = Producer { id, epoch, base_sequence };
    }

    /// Sets whether the current batch is part of a transaction.
    pub fn set_transactional(&mut self, transactional: bool) {
        self.transactional = transactional;
    }

    /// Appends a record. `headers` are pairs of name and value, in order.
    #[inline]
    pub fn push<'h>(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) {
        if self.count == 0 {
            self.bytes.reserve(self.capacity);
            self.bytes.resize(BATCH_HEADER_BYTES, 0);
            self.base_timestamp_ms = timestamp_ms;
            self.max_timestamp_ms = timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        encode_record(&mut self.bytes, timestamp_delta, i64::from(self.count), key, value, headers);
        self.count += 1;
    }

    /// Returns the number of records in the current batch.
    pub fn record_count(&self) -> u32 {
        self.count
    }

    /// Whether the current batch has no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the size of the current batch before compression, in bytes, including the header.
    pub fn encoded_bytes(&self) -> usize {
        self.bytes.len().max(BATCH_HEADER_BYTES)
    }

    /// Returns the maximum size that a record without headers adds for a key and value of the given lengths, in bytes.
    pub fn record_bytes_max(key_bytes: usize, value_bytes: usize) -> usize {
        RECORD_OVERHEAD_BYTES_MAX + key_bytes + value_bytes
    }

    /// Finishes the batch, with base offset 0, and empties the builder. Returns `None` if there are no records.
    pub fn finish(&mut self) -> Option<RecordBatch> {
        if self.count == 0 {
            return None;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if self.compression != Compression::None {
            let packed = compress(self.compression, &bytes[BATCH_HEADER_BYTES..]);
            bytes.truncate(BATCH_HEADER_BYTES);
            bytes.extend_from_slice(&packed);
        }
        let last_offset_delta = self.count as i32 - 1;
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(at::MAGIC, &[MAGIC]);
        let transactional = if self.transactional { TRANSACTIONAL_BIT } else { 0 };
        put(at::ATTRIBUTES, &(self.compression as u16 | transactional).to_be_bytes());
        put(at::LAST_OFFSET_DELTA, &last_offset_delta.to_be_bytes());
        put(at::BASE_TIMESTAMP, &self.base_timestamp_ms.to_be_bytes());
        put(at::MAX_TIMESTAMP, &self.max_timestamp_ms.to_be_bytes());
        put(at::PRODUCER_ID, &self.producer.id.to_be_bytes());
        put(at::PRODUCER_EPOCH, &self.producer.epoch.to_be_bytes());
        put(at::BASE_SEQUENCE, &self.producer.base_sequence.to_be_bytes());
        put(at::RECORD_COUNT, &(self.count as i32).to_be_bytes());
        put(at::LEADER_EPOCH, &(-1i32).to_be_bytes());
        seal_batch(&mut bytes);
        self.count = 0;
        self.producer = NO_PRODUCER;
        self.transactional = false;
        Some(RecordBatch::built(Bytes::from(bytes)))
    }
}

/// Sets the length and checksum in the header of an encoded batch.
pub(crate) fn seal_batch(bytes: &mut [u8]) {
    let length = bytes.len() as i32 - at::LEADER_EPOCH as i32;
    bytes[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
    let crc = checksum::crc32c(&bytes[at::ATTRIBUTES..]);
    bytes[at::CRC..at::CRC + 4].copy_from_slice(&crc.to_be_bytes());
}

/// Appends an encoded record to the body of a batch.
#[inline]
pub(crate) fn encode_record<'h>(
    out: &mut Vec<u8>,
    timestamp_delta: i64,
    offset_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
) {
    let headers = headers.into_iter();
    let (mut header_count, mut header_bytes) = (0i64, 0);
    for (name, value) in headers.clone() {
        header_count += 1;
        header_bytes += nullable_size(Some(name.as_bytes())) + nullable_size(value);
    }
    let length = 1
        + varint::size(timestamp_delta)
        + varint::size(offset_delta)
        + nullable_size(key)
        + nullable_size(value)
        + varint::size(header_count)
        + header_bytes;
    varint::put(out, length as i64);
    out.push(0);
    varint::put(out, timestamp_delta);
    varint::put(out, offset_delta);
    put_nullable(out, key);
    put_nullable(out, value);
    varint::put(out, header_count);
    for (name, value) in headers {
        put_nullable(out, Some(name.as_bytes()));
        put_nullable(out, value);
    }
}

#[inline]
fn nullable_size(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::size(bytes.len() as i64) + bytes.len())
}

#[inline]
fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::put(out, -1),
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
