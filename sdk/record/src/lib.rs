//! Kafka's record batch v2 (KIP-98), parsed, checked and built, and records as columns.
//!
//! Broker, runtime and client all speak in these types. Nothing here does I/O, and nothing trusts a
//! length before it is checked: whatever the bytes, parsing neither panics nor allocates more than
//! its [`Limits`] say.

mod batch;
mod build;
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
    BATCH_HEADER_BYTES, BatchHeader, RecordBatch, SplitBatches, TimestampType, patch_batch, sequence_after,
    split_batches,
};
pub use build::BatchBuilder;
pub use column::{Column, ColumnReader, Columns, ColumnsReader, HeaderColumns, Row};
pub use compression::Compression;
pub use error::{BatchError, ColumnError};
pub use partitioner::{murmur2, partition_for_key};
pub use records::{Header, HeaderIter, NO_TIMESTAMP, Record, RecordIter, RecordView, Records, Survey};
pub use retain::Retained;

/// Bounds for what is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest batch as sent, in bytes.
    pub batch_bytes_max: usize,
    /// The largest body of a compressed batch once inflated, in bytes.
    pub inflated_bytes_max: usize,
    /// The largest record, in bytes of its encoded form.
    pub record_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The largest batch that any topic may allow. Logs compress 10 to 20 times; twice the
        // batch limit lets the usual batch of 1 MiB inflate 32 times.
        Self { batch_bytes_max: 16 << 20, inflated_bytes_max: 32 << 20, record_bytes_max: 16 << 20 }
    }
}
