//! The batch as a whole: its header, its checksum, and sequences of consecutive batches.
//!
//! ```text
//! baseOffset i64 | batchLength i32 | partitionLeaderEpoch i32 | magic i8 | crc u32 | attributes i16
//! | lastOffsetDelta i32 | baseTimestamp i64 | maxTimestamp i64 | producerId i64 | producerEpoch i16
//! | baseSequence i32 | recordCount i32 | records
//! ```
//! All integers are big-endian. `batchLength` counts the bytes that follow it; the CRC-32C covers all bytes after the
//! `crc` field.

use crate::checksum;
use bytes::{Bytes, BytesMut};

use crate::Limits;
use crate::build::BatchBuilder;
use crate::compression::{Compression, inflate};
use crate::error::BatchError;
use crate::records::{NO_TIMESTAMP, Records, Survey, walk};

/// Size of a batch header, in bytes.
pub const BATCH_HEADER_BYTES: usize = 61;

/// Number of bytes that `batchLength` does not count: the base offset and `batchLength` itself.
const UNCOUNTED_BYTES: usize = 12;

pub(crate) const MAGIC: u8 = 2;

pub(crate) mod at {
    //! Byte positions of the header fields.
    pub(crate) const LENGTH: usize = 8;
    pub(crate) const LEADER_EPOCH: usize = 12;
    pub(crate) const MAGIC: usize = 16;
    pub(crate) const CRC: usize = 17;
    pub(crate) const ATTRIBUTES: usize = 21;
    pub(crate) const LAST_OFFSET_DELTA: usize = 23;
    pub(crate) const BASE_TIMESTAMP: usize = 27;
    pub(crate) const MAX_TIMESTAMP: usize = 35;
    pub(crate) const PRODUCER_ID: usize = 43;
    pub(crate) const PRODUCER_EPOCH: usize = 51;
    pub(crate) const BASE_SEQUENCE: usize = 53;
    pub(crate) const RECORD_COUNT: usize = 57;
}

const TIMESTAMP_TYPE_BIT: u16 = 0x08;
pub(crate) const TRANSACTIONAL_BIT: u16 = 0x10;
const CONTROL_BIT: u16 = 0x20;
const DELETE_HORIZON_BIT: u16 = 0x40;
const KNOWN_BITS: u16 = 0x7f;

/// The meaning of a batch's timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Each record has the timestamp that its producer set.
    CreateTime,
    /// All records have the batch's max timestamp.
    LogAppendTime,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Nobody who reads committed records sees its records.
    Abort = 0,
    /// Its records are visible.
    Commit = 1,
}

/// The header of a batch, read from borrowed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Size of the whole batch including its header, in bytes.
    pub batch_bytes: usize,
    /// Whether the records are compressed, with any codec.
    pub is_compressed: bool,
    /// Offset of the last record minus the base offset.
    pub last_offset_delta: i32,
    /// The timestamp that the records' timestamps are relative to, in ms since the epoch.
    pub base_timestamp_ms: i64,
    /// The largest timestamp, in ms since the epoch.
    pub max_timestamp_ms: i64,
    /// The producer id, or -1 without idempotence.
    pub producer_id: i64,
    /// The producer epoch, or -1 without idempotence.
    pub producer_epoch: i16,
    /// The sequence number of the first record, or -1 without idempotence.
    pub base_sequence: i32,
    /// Whether the batch is part of a transaction.
    pub is_transactional: bool,
    /// Whether the batch marks the end of a transaction.
    pub is_control: bool,
}

impl BatchHeader {
    /// Parses the header of the batch at the start of `bytes`, and checks that `bytes` contains the whole batch.
    ///
    /// # Errors
    /// [`BatchError`] if `bytes` is too short, or if a length or count is impossible.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        if bytes.len() < BATCH_HEADER_BYTES {
            return Err(BatchError::Truncated { have: bytes.len(), need: BATCH_HEADER_BYTES });
        }
        let magic = bytes[at::MAGIC];
        if magic != MAGIC {
            return Err(BatchError::Magic(magic));
        }
        let length = i64::from(i32_at(bytes, at::LENGTH));
        let batch_bytes = usize::try_from(length).map_or(0, |length| length + UNCOUNTED_BYTES);
        if batch_bytes < BATCH_HEADER_BYTES {
            return Err(BatchError::Length(length));
        }
        if bytes.len() < batch_bytes {
            return Err(BatchError::Truncated { have: bytes.len(), need: batch_bytes });
        }
        let last_offset_delta = i32_at(bytes, at::LAST_OFFSET_DELTA);
        if last_offset_delta < 0 {
            let found = format!("its last offset delta is {last_offset_delta}");
            return Err(BatchError::Count { claimed: i64::from(i32_at(bytes, at::RECORD_COUNT)), found });
        }
        let base_offset = i64_at(bytes, 0);
        if base_offset.checked_add(i64::from(last_offset_delta) + 1).is_none() {
            return Err(BatchError::BaseOffset(base_offset));
        }
        Ok(Self {
            base_offset,
            batch_bytes,
            is_compressed: Compression::number(u16_at(bytes, at::ATTRIBUTES)) != 0,
            last_offset_delta,
            base_timestamp_ms: i64_at(bytes, at::BASE_TIMESTAMP),
            max_timestamp_ms: i64_at(bytes, at::MAX_TIMESTAMP),
            producer_id: i64_at(bytes, at::PRODUCER_ID),
            producer_epoch: i16::from_be_bytes(array(bytes, at::PRODUCER_EPOCH)),
            base_sequence: i32_at(bytes, at::BASE_SEQUENCE),
            is_transactional: u16_at(bytes, at::ATTRIBUTES) & TRANSACTIONAL_BIT != 0,
            is_control: u16_at(bytes, at::ATTRIBUTES) & CONTROL_BIT != 0,
        })
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        // `parse` has checked that this does not overflow.
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    /// Returns the number of offsets that the batch takes.
    pub fn record_count(&self) -> u32 {
        self.last_offset_delta.unsigned_abs() + 1
    }
}

/// A record batch in shared bytes, which is cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
}

impl RecordBatch {
    /// Checks bytes from an untrusted source. They must be exactly one batch with valid lengths, checksum, attributes,
    /// record count and records. A compressed body is decompressed for this, within the limits. Only the max timestamp
    /// may be wrong, because some clients omit it or get it wrong; it is replaced by the largest timestamp of the
    /// records.
    ///
    /// # Errors
    /// [`BatchError`] that describes the first problem.
    pub fn check(bytes: Bytes, limits: &Limits) -> Result<Self, BatchError> {
        Self::survey(bytes, limits).map(|(batch, _)| batch)
    }

    /// Rejects batches of a transaction unless `in_transaction`, and batches with the timestamp type LogAppendTime, which
    /// only the log itself may set.
    ///
    /// # Errors
    /// [`BatchError::Transactional`] or [`BatchError::LogAppendTime`].
    pub fn check_producible(&self, in_transaction: bool) -> Result<(), BatchError> {
        if self.is_transactional() && !in_transaction {
            return Err(BatchError::Transactional);
        }
        if self.timestamp_type() == TimestampType::LogAppendTime {
            return Err(BatchError::LogAppendTime);
        }
        Ok(())
    }

    /// Like [`RecordBatch::check`], but also returns a summary of the records.
    ///
    /// # Errors
    /// See [`RecordBatch::check`].
    pub fn survey(bytes: Bytes, limits: &Limits) -> Result<(Self, Survey), BatchError> {
        let batch_bytes = BatchHeader::parse(&bytes)?.batch_bytes;
        if batch_bytes > limits.batch_bytes_max {
            return Err(BatchError::TooLarge { bytes: batch_bytes, bytes_max: limits.batch_bytes_max });
        }
        if bytes.len() > batch_bytes {
            return Err(BatchError::TrailingBytes(bytes.len() - batch_bytes));
        }
        let batch = Self { bytes };
        batch.verify_crc()?;
        let attributes = batch.attributes();
        if attributes & !KNOWN_BITS != 0 || attributes & DELETE_HORIZON_BIT != 0 {
            return Err(BatchError::Attributes(attributes));
        }
        if batch.is_control() {
            return Err(BatchError::Control);
        }
        let (id, epoch, base_sequence) = (batch.producer_id(), batch.producer_epoch(), batch.base_sequence());
        if id >= 0 && (epoch < 0 || base_sequence < 0) {
            return Err(BatchError::Producer { id, epoch, base_sequence });
        }
        let codec = Compression::from_attributes(attributes)?;
        let claimed = i32_at(&batch.bytes, at::RECORD_COUNT);
        let deltas = i64::from(i32_at(&batch.bytes, at::LAST_OFFSET_DELTA)) + 1;
        if claimed <= 0 || i64::from(claimed) != deltas {
            let found = format!("its offset range covers {deltas}");
            return Err(BatchError::Count { claimed: i64::from(claimed), found });
        }
        let body = inflate(codec, batch.body(), limits.inflated_bytes_max)?;
        let survey = walk(&body, claimed.unsigned_abs(), batch.base_timestamp_ms(), limits.record_bytes_max)?;
        drop(body);
        let (_, latest_ms) = survey.latest;
        if batch.max_timestamp_ms() == latest_ms || batch.timestamp_type() == TimestampType::LogAppendTime {
            return Ok((batch, survey));
        }
        Ok((batch.with_fields(&[(at::MAX_TIMESTAMP, &latest_ms.to_be_bytes())]), survey))
    }

    /// Returns the same records, with `timestamp_ms` set on those that have no timestamp. All records are encoded
    /// again.
    ///
    /// # Errors
    /// [`BatchError`] if the batch was not checked before and is malformed.
    pub fn fill_timestamps(&self, limits: &Limits, timestamp_ms: i64) -> Result<Self, BatchError> {
        self.encode_again(limits, self.compression(), timestamp_ms)
    }

    /// Returns the same records, compressed with `compression`. Records without a timestamp stay so.
    ///
    /// # Errors
    /// [`BatchError`] if the batch was not checked before and is malformed.
    pub fn compressed_with(&self, limits: &Limits, compression: Compression) -> Result<Self, BatchError> {
        self.encode_again(limits, compression, NO_TIMESTAMP)
    }

    fn encode_again(&self, limits: &Limits, compression: Compression, timestamp_ms: i64) -> Result<Self, BatchError> {
        let mut builder = BatchBuilder::with_capacity(compression, self.bytes.len());
        builder.set_producer(self.producer_id(), self.producer_epoch(), self.base_sequence());
        builder.set_transactional(self.is_transactional());
        for record in &self.records(limits)? {
            let record = record?;
            let is_missing = record.timestamp_ms == NO_TIMESTAMP;
            let timestamp_ms = if is_missing { timestamp_ms } else { record.timestamp_ms };
            builder.push(timestamp_ms, record.key, record.value, record.headers());
        }
        builder.finish().ok_or_else(|| BatchError::Count { claimed: 0, found: "its body contains none".to_owned() })
    }

    /// Wraps a batch that was read from the log. Only the header is checked; the rest is trusted.
    ///
    /// # Errors
    /// [`BatchError`] if the header is invalid.
    pub fn from_log(bytes: Bytes) -> Result<Self, BatchError> {
        let batch_bytes = BatchHeader::parse(&bytes)?.batch_bytes;
        if bytes.len() > batch_bytes {
            return Err(BatchError::TrailingBytes(bytes.len() - batch_bytes));
        }
        Compression::from_attributes(u16_at(&bytes, at::ATTRIBUTES))?;
        Ok(Self { bytes })
    }

    /// Compares the checksum in the header with the one computed from the bytes.
    ///
    /// # Errors
    /// [`BatchError::Crc`] if they differ.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let found = u32::from_be_bytes(array(&self.bytes, at::CRC));
        let computed = checksum::crc32c(&self.bytes[at::ATTRIBUTES..]);
        if found == computed { Ok(()) } else { Err(BatchError::Crc { found, computed }) }
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> i64 {
        i64_at(&self.bytes, 0)
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset().saturating_add(i64::from(i32_at(&self.bytes, at::LAST_OFFSET_DELTA)))
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// Returns the number of records according to the header.
    pub fn record_count(&self) -> u32 {
        u32::try_from(i32_at(&self.bytes, at::RECORD_COUNT)).unwrap_or(0)
    }

    /// The timestamp that the records' timestamps are relative to, in ms since the epoch.
    pub fn base_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, at::BASE_TIMESTAMP)
    }

    /// The largest timestamp, in ms since the epoch.
    pub fn max_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, at::MAX_TIMESTAMP)
    }

    /// The codec that the records are compressed with.
    pub fn compression(&self) -> Compression {
        Compression::from_attributes(self.attributes()).unwrap_or_default()
    }

    /// The meaning of the timestamps.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes() & TIMESTAMP_TYPE_BIT == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// The producer id, or -1 without idempotence.
    pub fn producer_id(&self) -> i64 {
        i64_at(&self.bytes, at::PRODUCER_ID)
    }

    /// The producer epoch, or -1 without idempotence.
    pub fn producer_epoch(&self) -> i16 {
        i16::from_be_bytes(array(&self.bytes, at::PRODUCER_EPOCH))
    }

    /// The sequence number of the first record, or -1 without idempotence.
    pub fn base_sequence(&self) -> i32 {
        i32_at(&self.bytes, at::BASE_SEQUENCE)
    }

    /// Replaces the producer's identity (KIP-98) and updates the checksum. Copies the bytes only if they are shared.
    pub fn with_producer(self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.with_fields(&[
            (at::PRODUCER_ID, &id.to_be_bytes()),
            (at::PRODUCER_EPOCH, &epoch.to_be_bytes()),
            (at::BASE_SEQUENCE, &base_sequence.to_be_bytes()),
        ])
    }

    /// Creates the control batch that ends a producer's transaction in a partition (KIP-98).
    pub fn end_of_transaction(end: TransactionEnd, producer_id: i64, producer_epoch: i16, timestamp_ms: i64) -> Self {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(producer_id, producer_epoch, -1);
        builder.set_transactional(true);
        // The key is a version and the kind of end, the value a version and the epoch of the coordinator.
        let key = [[0, 0], (end as i16).to_be_bytes()].concat();
        builder.push(timestamp_ms, Some(&key), Some(&[0; 6]), []);
        let batch = builder.finish().expect("the batch has a record");
        let attributes = batch.attributes() | CONTROL_BIT;
        batch.with_fields(&[(at::ATTRIBUTES, &attributes.to_be_bytes())])
    }

    /// Returns how a transaction ended, if this is a control batch that says so.
    pub fn transaction_end(&self) -> Option<TransactionEnd> {
        if !self.is_control() {
            return None;
        }
        let records = self.records(&Limits::default()).ok()?;
        let record = records.iter().next()?.ok()?;
        match record.key? {
            [0, 0, 0, 0, ..] => Some(TransactionEnd::Abort),
            [0, 0, 0, 1, ..] => Some(TransactionEnd::Commit),
            _ => None,
        }
    }

    /// Gives all records one timestamp, that of their arrival: the timestamp type becomes LogAppendTime.
    pub fn with_append_time(self, timestamp_ms: i64) -> Self {
        let attributes = self.attributes() | TIMESTAMP_TYPE_BIT;
        self.with_fields(&[
            (at::ATTRIBUTES, &attributes.to_be_bytes()),
            (at::MAX_TIMESTAMP, &timestamp_ms.to_be_bytes()),
        ])
    }

    /// Overwrites the header fields at the given positions and updates the checksum. Copies the bytes only if they are
    /// shared.
    fn with_fields(self, fields: &[(usize, &[u8])]) -> Self {
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        let crc = checksum::crc32c(&bytes[at::ATTRIBUTES..]);
        bytes[at::CRC..at::CRC + 4].copy_from_slice(&crc.to_be_bytes());
        Self { bytes: bytes.freeze() }
    }

    /// The leader epoch in which the batch was appended.
    pub fn leader_epoch(&self) -> i32 {
        i32_at(&self.bytes, at::LEADER_EPOCH)
    }

    /// Whether the batch is part of a Kafka transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & TRANSACTIONAL_BIT != 0
    }

    /// Whether the batch contains control records.
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL_BIT != 0
    }

    /// The batch in the form that is stored and sent.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the batch in the form that is stored and sent.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Decompresses the body. A body that is not compressed is not copied.
    ///
    /// # Errors
    /// [`BatchError`] if the body cannot be decompressed within the limits.
    pub fn records(&self, limits: &Limits) -> Result<Records, BatchError> {
        let body = match self.compression() {
            Compression::None => self.bytes.slice(BATCH_HEADER_BYTES..),
            codec => inflate(codec, self.body(), limits.inflated_bytes_max)?.into_owned().into(),
        };
        Ok(Records::new(self, body))
    }

    pub(crate) fn has_delete_horizon(&self) -> bool {
        self.attributes() & DELETE_HORIZON_BIT != 0
    }

    pub(crate) fn attributes_with_delete_horizon(&self) -> u16 {
        self.attributes() | DELETE_HORIZON_BIT
    }

    fn body(&self) -> &[u8] {
        &self.bytes[BATCH_HEADER_BYTES..]
    }

    fn attributes(&self) -> u16 {
        u16_at(&self.bytes, at::ATTRIBUTES)
    }

    /// Wraps a batch that the builder has encoded, without checking it.
    pub(crate) fn built(bytes: Bytes) -> Self {
        Self { bytes }
    }
}

/// Writes the base offset and the leader epoch into an encoded batch. The checksum does not cover these fields.
///
/// # Panics
/// Panics if `batch` is shorter than a header.
pub fn patch_batch(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[at::LEADER_EPOCH..at::LEADER_EPOCH + 4].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Returns the sequence number that is `records` after `sequence`. Sequence numbers wrap to 0 after `i32::MAX`
/// (KIP-98).
pub fn sequence_after(sequence: i32, records: u32) -> i32 {
    (sequence.cast_unsigned().wrapping_add(records) & i32::MAX.cast_unsigned()).cast_signed()
}

/// Returns an iterator over the consecutive batches in `bytes`, as slices of `bytes`.
pub fn split_batches(bytes: Bytes) -> SplitBatches {
    SplitBatches { rest: bytes }
}

/// Iterator returned by [`split_batches`]. It ends after the first error.
#[derive(Clone, Debug)]
pub struct SplitBatches {
    rest: Bytes,
}

impl Iterator for SplitBatches {
    type Item = Result<RecordBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = BatchHeader::parse(&self.rest)
            .and_then(|header| RecordBatch::from_log(self.rest.split_to(header.batch_bytes)));
        if batch.is_err() {
            self.rest.clear();
        }
        Some(batch)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array(bytes, at))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array(bytes, at))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}
