//! The batch as a whole: header, checksum, and batches back to back.
//!
//! ```text
//! baseOffset i64 | batchLength i32 | partitionLeaderEpoch i32 | magic i8 | crc u32 | attributes i16
//! | lastOffsetDelta i32 | baseTimestamp i64 | maxTimestamp i64 | producerId i64 | producerEpoch i16
//! | baseSequence i32 | recordCount i32 | records
//! ```
//! Big-endian. `batchLength` counts the bytes after itself; the CRC-32C covers all after itself.

use bytes::{Bytes, BytesMut};

use crate::Limits;
use crate::build::BatchBuilder;
use crate::compression::{Compression, inflate};
use crate::error::BatchError;
use crate::records::{NO_TIMESTAMP, Records, Survey, walk};

/// Bytes of a batch before its records.
pub const BATCH_HEADER_BYTES: usize = 61;

/// Bytes that `batchLength` does not count: base offset and itself.
const UNCOUNTED_BYTES: usize = 12;

pub(crate) const MAGIC: u8 = 2;

pub(crate) mod at {
    //! Where each field stands.
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
const TRANSACTIONAL_BIT: u16 = 0x10;
const CONTROL_BIT: u16 = 0x20;
const DELETE_HORIZON_BIT: u16 = 0x40;
const KNOWN_BITS: u16 = 0x7f;

/// What a batch's timestamps mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Each record has the one that its producer set.
    CreateTime,
    /// All records have the batch's largest.
    LogAppendTime,
}

/// A batch's fixed part, read from borrowed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Bytes of the whole batch, header included.
    pub batch_bytes: usize,
    /// Whether the records are compressed, with whatever codec.
    pub is_compressed: bool,
    /// Last record's offset less the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to, in ms since the epoch.
    pub base_timestamp_ms: i64,
    /// The largest timestamp, in ms since the epoch.
    pub max_timestamp_ms: i64,
    /// The producer's id; -1 without idempotence.
    pub producer_id: i64,
    /// The producer's epoch; -1 without idempotence.
    pub producer_epoch: i16,
    /// The first record's sequence number; -1 without idempotence.
    pub base_sequence: i32,
}

impl BatchHeader {
    /// Reads the header of the batch at the front of `bytes`, and checks that the whole batch is
    /// there.
    ///
    /// # Errors
    /// [`BatchError`] for bytes that are too few, or lengths and counts that are impossible.
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
        })
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        // Checked by `parse`.
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    /// Offsets that the batch takes.
    pub fn record_count(&self) -> u32 {
        self.last_offset_delta.unsigned_abs() + 1
    }
}

/// A record batch over shared bytes. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
}

impl RecordBatch {
    /// Checks bytes from outside: exactly one batch, whose lengths, checksum, attributes, count and
    /// every record are true. A compressed body is inflated for that, within the limits. The largest timestamp is the
    /// one exception: some clients leave it out or get it wrong, and the batch gets that of its records.
    ///
    /// # Errors
    /// [`BatchError`] with what is wrong.
    pub fn check(bytes: Bytes, limits: &Limits) -> Result<Self, BatchError> {
        Self::survey(bytes, limits).map(|(batch, _)| batch)
    }

    /// Refuses what the log alone may say of a batch: that it is of a transaction, which is not supported yet, or that its
    /// timestamps are those of the append.
    ///
    /// # Errors
    /// [`BatchError::Transactional`], [`BatchError::LogAppendTime`].
    pub fn check_producible(&self) -> Result<(), BatchError> {
        if self.is_transactional() {
            return Err(BatchError::Transactional);
        }
        if self.timestamp_type() == TimestampType::LogAppendTime {
            return Err(BatchError::LogAppendTime);
        }
        Ok(())
    }

    /// As [`RecordBatch::check`], and says what it found of the records.
    ///
    /// # Errors
    /// As [`RecordBatch::check`].
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
            let found = format!("its offsets take {deltas}");
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

    /// The same records, where those without a timestamp have `timestamp_ms`. Encodes all of them anew.
    ///
    /// # Errors
    /// [`BatchError`] for a batch that was not checked before.
    pub fn fill_timestamps(&self, limits: &Limits, timestamp_ms: i64) -> Result<Self, BatchError> {
        let mut builder = BatchBuilder::with_capacity(self.compression(), self.bytes.len());
        builder.set_producer(self.producer_id(), self.producer_epoch(), self.base_sequence());
        for record in &self.records(limits)? {
            let record = record?;
            let is_missing = record.timestamp_ms == NO_TIMESTAMP;
            let timestamp_ms = if is_missing { timestamp_ms } else { record.timestamp_ms };
            builder.push(timestamp_ms, record.key, record.value, record.headers());
        }
        builder.finish().ok_or_else(|| BatchError::Count { claimed: 0, found: "it holds none".to_owned() })
    }

    /// Takes a batch from our own log: the header must be sound, the rest is trusted.
    ///
    /// # Errors
    /// [`BatchError`] for a header that is not.
    pub fn from_log(bytes: Bytes) -> Result<Self, BatchError> {
        let batch_bytes = BatchHeader::parse(&bytes)?.batch_bytes;
        if bytes.len() > batch_bytes {
            return Err(BatchError::TrailingBytes(bytes.len() - batch_bytes));
        }
        Compression::from_attributes(u16_at(&bytes, at::ATTRIBUTES))?;
        Ok(Self { bytes })
    }

    /// Whether the bytes are those that the checksum was made of.
    ///
    /// # Errors
    /// [`BatchError::Crc`].
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let found = u32::from_be_bytes(array(&self.bytes, at::CRC));
        let computed = crc32c::crc32c(&self.bytes[at::ATTRIBUTES..]);
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

    /// How many records the header says there are.
    pub fn record_count(&self) -> u32 {
        u32::try_from(i32_at(&self.bytes, at::RECORD_COUNT)).unwrap_or(0)
    }

    /// What the records' timestamps are relative to, in ms since the epoch.
    pub fn base_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, at::BASE_TIMESTAMP)
    }

    /// The largest timestamp, in ms since the epoch.
    pub fn max_timestamp_ms(&self) -> i64 {
        i64_at(&self.bytes, at::MAX_TIMESTAMP)
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        Compression::from_attributes(self.attributes()).unwrap_or_default()
    }

    /// What the timestamps mean.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes() & TIMESTAMP_TYPE_BIT == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// The producer's id; -1 without idempotence.
    pub fn producer_id(&self) -> i64 {
        i64_at(&self.bytes, at::PRODUCER_ID)
    }

    /// The producer's epoch; -1 without idempotence.
    pub fn producer_epoch(&self) -> i16 {
        i16::from_be_bytes(array(&self.bytes, at::PRODUCER_EPOCH))
    }

    /// The first record's sequence number; -1 without idempotence.
    pub fn base_sequence(&self) -> i32 {
        i32_at(&self.bytes, at::BASE_SEQUENCE)
    }

    /// The batch with another producer's identity (KIP-98), and the checksum of that. Copies the bytes
    /// only where they are shared.
    pub fn with_producer(self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.with_fields(&[
            (at::PRODUCER_ID, &id.to_be_bytes()),
            (at::PRODUCER_EPOCH, &epoch.to_be_bytes()),
            (at::BASE_SEQUENCE, &base_sequence.to_be_bytes()),
        ])
    }

    /// The batch with other bytes at these places of its header, and the checksum of that. Copies the bytes only where
    /// they are shared.
    fn with_fields(self, fields: &[(usize, &[u8])]) -> Self {
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        let crc = crc32c::crc32c(&bytes[at::ATTRIBUTES..]);
        bytes[at::CRC..at::CRC + 4].copy_from_slice(&crc.to_be_bytes());
        Self { bytes: bytes.freeze() }
    }

    /// The leader epoch in which it was appended.
    pub fn leader_epoch(&self) -> i32 {
        i32_at(&self.bytes, at::LEADER_EPOCH)
    }

    /// Whether it is part of a Kafka transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & TRANSACTIONAL_BIT != 0
    }

    /// Whether it holds control records.
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL_BIT != 0
    }

    /// The batch as stored and sent.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The batch as stored and sent.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Inflates the body, without a copy where it is not compressed.
    ///
    /// # Errors
    /// [`BatchError`] for a body that does not inflate within the limits.
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

    /// For the builder, which makes sound batches.
    pub(crate) fn built(bytes: Bytes) -> Self {
        Self { bytes }
    }
}

/// Writes base offset and leader epoch into an encoded batch. The checksum does not cover them.
///
/// # Panics
/// Where `batch` has fewer bytes than a header.
pub fn patch_batch(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[at::LEADER_EPOCH..at::LEADER_EPOCH + 4].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// The sequence number of the record that comes `records` after the one with `sequence`: after
/// `i32::MAX` comes 0 (KIP-98).
pub fn sequence_after(sequence: i32, records: u32) -> i32 {
    (sequence.cast_unsigned().wrapping_add(records) & i32::MAX.cast_unsigned()).cast_signed()
}

/// Iterates the whole batches that stand back to back in `bytes`, as slices of it.
pub fn split_batches(bytes: Bytes) -> SplitBatches {
    SplitBatches { rest: bytes }
}

/// See [`split_batches`]. Ends after the first error.
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
