//! Records to send.

use std::sync::Arc;

use bytes::Bytes;
use millstream_record::Header;

use super::batching::Encode;

/// A record to send that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// Topic of the record. Many records can share one `Arc`, which is cheap to clone.
    pub topic: Arc<str>,
    /// Partition of the record. Without it, the key determines the partition, or the producer chooses one.
    pub partition: Option<u32>,
    /// Key, which may be null.
    pub key: Option<Bytes>,
    /// Value; null is a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order and including duplicates.
    pub headers: Vec<Header>,
    /// Timestamp, in ms since the epoch. Default: the current time.
    pub timestamp_ms: Option<i64>,
}

impl ProducerRecord {
    /// Creates a record without a key.
    pub fn new(topic: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            partition: None,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    /// Creates a record with a key, which determines its partition.
    pub fn keyed(topic: impl Into<Arc<str>>, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::new(topic, value) }
    }

    /// Creates a record with a key and a null value.
    pub fn tombstone(topic: impl Into<Arc<str>>, key: impl Into<Bytes>) -> Self {
        Self { value: None, ..Self::keyed(topic, key, Bytes::new()) }
    }

    /// Sets the partition of the record.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the timestamp, in ms since the epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Appends a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { name: name.into(), value: Some(value.into()) });
        self
    }
}

/// A record to send that borrows its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordRef<'a> {
    /// Partition of the record. Without it, the key determines the partition, or the producer chooses one.
    pub partition: Option<u32>,
    /// Key, which may be null.
    pub key: Option<&'a [u8]>,
    /// Value; null is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values of the headers, in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Timestamp, in ms since the epoch. Default: the current time.
    pub timestamp_ms: Option<i64>,
}

impl<'a> RecordRef<'a> {
    /// Creates a record without a key.
    pub fn new(value: &'a [u8]) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    /// Creates a record with a key, which determines its partition.
    pub fn keyed(key: &'a [u8], value: &'a [u8]) -> Self {
        Self { key: Some(key), value: Some(value), ..Self::default() }
    }
}

impl Encode for ProducerRecord {
    fn partition(&self) -> Option<u32> {
        self.partition
    }

    fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> + Clone {
        self.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()))
    }

    fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }
}

impl Encode for RecordRef<'_> {
    fn partition(&self) -> Option<u32> {
        self.partition
    }

    fn key(&self) -> Option<&[u8]> {
        self.key
    }

    fn value(&self) -> Option<&[u8]> {
        self.value
    }

    fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> + Clone {
        self.headers.iter().copied()
    }

    fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }
}
