//! The errors of record batches and columns.

/// The reason why bytes are not a valid record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The offsets of the records exceed 63 bits.
    #[error("base offset {0} of a record batch is too large: the offsets of its records exceed 63 bits")]
    BaseOffset(i64),
    /// There are fewer bytes than a header has, or fewer than the length field says.
    #[error("a record batch is truncated: found {have} bytes, expected at least {need}")]
    Truncated {
        /// Number of bytes available.
        have: usize,
        /// Number of bytes needed.
        need: usize,
    },
    /// There are bytes after the batch.
    #[error("expected one record batch, but {0} bytes follow it")]
    TrailingBytes(usize),
    /// The message format is older or newer than magic 2.
    #[error("record batch format (magic) {0} is not supported: use magic 2, which Kafka clients send since 0.11")]
    Magic(u8),
    /// The length field has an impossible value.
    #[error("a record batch has invalid length {0}: the header alone takes 49 bytes after the length field")]
    Length(i64),
    /// The batch exceeds [`crate::Limits::batch_bytes_max`].
    #[error("a record batch of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// Size of the batch, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The checksum does not match.
    #[error("a record batch is corrupt: its CRC-32C is {found:08x}, but its bytes have {computed:08x}")]
    Crc {
        /// The checksum in the header.
        found: u32,
        /// The checksum computed from the bytes.
        computed: u32,
    },
    /// The compression codec is unknown.
    #[error("compression codec {0} is unknown: use none, gzip, snappy, lz4 or zstd")]
    UnknownCompression(u8),
    /// The batch has attributes that a producer must not set.
    #[error("record batch attributes {0:#06x} have bits set that a producer must not set")]
    Attributes(u16),
    /// The batch is a control batch, which only the log itself may write.
    #[error("a control batch cannot be produced")]
    Control,
    /// The batch is part of a transaction.
    #[error(
        "a record batch is part of a transaction, and transactions are not supported: produce without `transactional.id`"
    )]
    Transactional,
    /// The batch has the timestamp type LogAppendTime, which only the log itself may set.
    #[error("a record batch has the timestamp type LogAppendTime: a producer must send CreateTime")]
    LogAppendTime,
    /// The batch has a producer id but no valid epoch or base sequence.
    #[error(
        "a record batch of producer id {id} has epoch {epoch} and base sequence {base_sequence}: both must be 0 or more"
    )]
    Producer {
        /// The producer id.
        id: i64,
        /// The producer epoch.
        epoch: i16,
        /// The sequence number of the first record.
        base_sequence: i32,
    },
    /// The record count in the header does not match the records.
    #[error("a record batch claims {claimed} records, but {found}")]
    Count {
        /// The number of records according to the header.
        claimed: i64,
        /// A description of what was found instead.
        found: String,
    },
    /// A record has an impossible offset, length or field.
    #[error("record {index} of a batch is malformed: {reason}")]
    Record {
        /// Index of the record, from 0.
        index: u32,
        /// What is wrong with the record.
        reason: &'static str,
    },
    /// The record exceeds [`crate::Limits::record_bytes_max`].
    #[error("record {index} of a batch has {bytes} bytes, over the limit of {bytes_max}")]
    RecordTooLarge {
        /// Index of the record, from 0.
        index: u32,
        /// Size of the record, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The compressed body cannot be decompressed.
    #[error("a record batch's {codec} body cannot be decompressed: {reason}")]
    Inflate {
        /// Name of the codec.
        codec: &'static str,
        /// The error message of the codec.
        reason: String,
    },
    /// The decompressed body exceeds [`crate::Limits::inflated_bytes_max`].
    #[error("a record batch's body decompresses to more than {bytes_max} bytes, which is the limit")]
    InflatesTooFar {
        /// The limit, in bytes.
        bytes_max: usize,
    },
}

/// The reason why columns are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The length of an entry is below -1.
    #[error("entry {index} has length {length}")]
    NegativeLength {
        /// Index of the entry, from 0.
        index: usize,
        /// Length of the entry.
        length: i32,
    },
    /// The lengths do not add up to the number of bytes.
    #[error("the lengths add up to {sum} bytes, but there are {bytes}")]
    LengthSum {
        /// Sum of the lengths.
        sum: u64,
        /// Number of bytes in the column.
        bytes: usize,
    },
    /// A column does not have the expected number of entries.
    #[error("{column} has {found} entries, expected {expected}")]
    EntryCount {
        /// Name of the column.
        column: &'static str,
        /// Number of entries found.
        found: usize,
        /// Number of entries expected.
        expected: usize,
    },
    /// The name of a header is null or not UTF-8.
    #[error("header {index} has a name that is null or not UTF-8")]
    HeaderName {
        /// Index of the header, from 0, across all records.
        index: usize,
    },
}
