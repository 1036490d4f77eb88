//! What can be wrong with a record batch or with columns.

/// Why bytes are no sound record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Offsets beyond what 63 bits hold.
    #[error("its base offset {0} leaves no room for its records")]
    BaseOffset(i64),
    /// Fewer bytes than a batch's header or its length field says.
    #[error("a record batch is cut short: {have} bytes are there, {need} are needed")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that are needed.
        need: usize,
    },
    /// Bytes after the batch.
    #[error("{0} bytes follow the record batch: one batch was expected")]
    TrailingBytes(usize),
    /// An older or newer message format.
    #[error("record batch format (magic) {0} is not supported: send magic 2, as Kafka clients since 0.11 do")]
    Magic(u8),
    /// The length field is impossible.
    #[error("a record batch of length {0} is impossible: a header alone has 49 bytes after it")]
    Length(i64),
    /// Over [`crate::Limits::batch_bytes_max`].
    #[error("a record batch of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The checksum does not match.
    #[error("a record batch is corrupt: its CRC-32C is {found:08x}, its bytes have {computed:08x}")]
    Crc {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// An unknown compression.
    #[error("compression codec {0} is unknown: use none, gzip, snappy, lz4 or zstd")]
    UnknownCompression(u8),
    /// Attributes that a producer must not set.
    #[error("record batch attributes {0:#06x} have bits set that are not in use")]
    Attributes(u16),
    /// Control batches are the log's own.
    #[error("a control batch cannot be produced")]
    Control,
    /// A batch of a transaction.
    #[error(
        "a record batch is part of a transaction, and transactions are not supported: produce without `transactional.id`"
    )]
    Transactional,
    /// A batch whose timestamps are those of its append, which only the log itself may say.
    #[error("a record batch has the timestamp type LogAppendTime: a producer sends CreateTime")]
    LogAppendTime,
    /// An idempotent producer's fields are not whole.
    #[error(
        "a record batch of producer id {id} has epoch {epoch} and base sequence {base_sequence}: both must be 0 or more"
    )]
    Producer {
        /// The producer's id.
        id: i64,
        /// Its epoch.
        epoch: i16,
        /// The first record's sequence number.
        base_sequence: i32,
    },
    /// The count says something else than the records.
    #[error("a record batch claims {claimed} records, {found}")]
    Count {
        /// What the header says.
        claimed: i64,
        /// What is there, in words.
        found: String,
    },
    /// A record's offset, length or field is impossible.
    #[error("record {index} of a batch is malformed: {reason}")]
    Record {
        /// From 0.
        index: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record over [`crate::Limits::record_bytes_max`].
    #[error("record {index} of a batch has {bytes} bytes, over the limit of {bytes_max}")]
    RecordTooLarge {
        /// From 0.
        index: u32,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The compressed body does not inflate.
    #[error("a record batch's {codec} body does not inflate: {reason}")]
    Inflate {
        /// The codec.
        codec: &'static str,
        /// What the codec says.
        reason: String,
    },
    /// The compressed body inflates beyond [`crate::Limits::inflated_bytes_max`].
    #[error("a record batch's body inflates to over {bytes_max} bytes: the limit")]
    InflatesTooFar {
        /// The limit.
        bytes_max: usize,
    },
}

/// Why columns do not make a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// A length below -1.
    #[error("entry {index} has length {length}")]
    NegativeLength {
        /// Which entry, from 0.
        index: usize,
        /// Its length.
        length: i32,
    },
    /// The lengths and the bytes do not match.
    #[error("the lengths add up to {sum} bytes, {bytes} are there")]
    LengthSum {
        /// What the lengths add up to.
        sum: u64,
        /// Bytes that are there.
        bytes: usize,
    },
    /// A column has another number of entries than it must.
    #[error("{column} has {found} entries, {expected} are expected")]
    EntryCount {
        /// Which column.
        column: &'static str,
        /// What it has.
        found: usize,
        /// What it must have.
        expected: usize,
    },
    /// A header name that is null or not UTF-8.
    #[error("header {index} has a name that is null or not UTF-8")]
    HeaderName {
        /// Which header, from 0, over all records.
        index: usize,
    },
}
