//! Parsing, checking and building Kafka's record batch v2 (KIP-98), and a columnar form of records.
//!
//! The broker, the runtime and the client all use these types. This crate does no I/O and uses no length field before
//! checking it: for any input, parsing does not panic and allocates no more than [`Limits`] allow.

mod batch;
mod build;
pub mod checksum;
mod column;
mod compression;
mod error;
mod partitioner;
mod records;
mod retain;
#[cfg(test)]
#[path = "../tests/seeded/mod.rs"]
mod seeded;
mod varint;

pub use batch::{
    BATCH_HEADER_BYTES, BatchHeader, RecordBatch, SplitBatches, TimestampType, TransactionEnd, patch_batch,
    sequence_after, split_batches,
};
pub use build::BatchBuilder;
pub use column::{Column, ColumnReader, Columns, ColumnsReader, HeaderColumns, Row};
pub use compression::Compression;
pub use error::{BatchError, ColumnError};
pub use partitioner::{murmur2, partition_for_key};
pub use records::{Header, HeaderIter, NO_TIMESTAMP, Record, RecordIter, RecordView, Records, Survey};
pub use retain::Retained;

/// Limits on what the parser accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a batch as sent, in bytes.
    pub batch_bytes_max: usize,
    /// Maximum size of the body of a compressed batch after decompression, in bytes.
    pub inflated_bytes_max: usize,
    /// Maximum size of an encoded record, in bytes.
    pub record_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The largest batch size that a topic can be configured to allow. Logs compress 10 to 20 times; at twice the
        // batch limit, a typical batch of 1 MiB may decompress to 32 times its size.
        Self { batch_bytes_max: 16 << 20, inflated_bytes_max: 32 << 20, record_bytes_max: 16 << 20 }
    }
}
