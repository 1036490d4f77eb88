//! What a consumer returns: sets of borrowed records, or single owned records.

use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use millstream_record::{BatchError, Header, Limits, RecordIter, RecordView, Records, split_batches};

use super::shared::Fetched;
use crate::error::ClientError;

/// Consecutive records of one partition as they were received.
#[derive(Clone, Debug)]
pub struct RecordSet {
    topic: Arc<str>,
    partition: u32,
    batches: Vec<Records>,
    bytes: usize,
    first_offset: u64,
    next_offset: u64,
    log_end_offset: u64,
}

impl RecordSet {
    /// Checks and decompresses the fetched batches.
    pub(super) fn new(fetched: &Fetched, check_crcs: bool) -> Result<Self, ClientError> {
        let (topic, partition) = (fetched.partition.topic.clone(), fetched.partition.number);
        let batches = inflate(&fetched.runs, check_crcs).map_err(|source| ClientError::Batch {
            topic: topic.to_string(),
            partition,
            source,
        })?;
        Ok(Self {
            topic,
            partition,
            batches,
            bytes: fetched.bytes,
            first_offset: fetched.from,
            next_offset: fetched.next_offset,
            log_end_offset: fetched.log_end_offset,
        })
    }

    /// Returns the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Returns the partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the size of the batches as received, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the offset where this set starts. All its records have this offset or a larger one.
    pub fn first_offset(&self) -> u64 {
        self.first_offset
    }

    /// Returns the offset to continue reading at, which is also the offset to commit after this set.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Returns the partition's log end offset at the time when this set was read.
    pub fn log_end_offset(&self) -> u64 {
        self.log_end_offset
    }

    /// Returns the number of records between the end of this set and the log end offset.
    pub fn lag(&self) -> u64 {
        self.log_end_offset.saturating_sub(self.next_offset)
    }

    /// Returns an iterator over the records, which borrows them.
    pub fn iter(&self) -> RecordSetIter<'_> {
        RecordSetIter { set: self, batches: self.batches.iter(), records: None }
    }

    /// Removes the records before `offset`.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.first_offset = self.first_offset.max(offset);
    }

    /// Returns the owned records of batch `index`, starting at the first offset, or `None` after the last batch.
    pub(super) fn owned(&self, index: usize) -> Option<Vec<Result<ConsumedRecord, ClientError>>> {
        let records = self.batches.get(index)?;
        // The count in the header is not trusted: no more is reserved than a typical batch contains.
        let mut owned = Vec::with_capacity(records.claimed_count().min(4_096) as usize);
        for view in records {
            match view {
                Ok(view) if view.offset.unsigned_abs() < self.first_offset => {}
                Ok(view) => owned.push(Ok(self.own(records, &view))),
                Err(source) => owned.push(Err(self.unsound(source))),
            }
        }
        Some(owned)
    }

    fn own(&self, records: &Records, view: &RecordView<'_>) -> ConsumedRecord {
        let record = records.to_record(view);
        ConsumedRecord {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: record.offset.unsigned_abs(),
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers,
        }
    }

    fn unsound(&self, source: BatchError) -> ClientError {
        ClientError::Batch { topic: self.topic.to_string(), partition: self.partition, source }
    }
}

impl<'a> IntoIterator for &'a RecordSet {
    type Item = Result<RecordView<'a>, ClientError>;
    type IntoIter = RecordSetIter<'a>;

    fn into_iter(self) -> RecordSetIter<'a> {
        self.iter()
    }
}

/// Iterator over the records of a [`RecordSet`]. An error means that a batch is invalid.
#[derive(Clone, Debug)]
pub struct RecordSetIter<'a> {
    set: &'a RecordSet,
    batches: slice::Iter<'a, Records>,
    records: Option<RecordIter<'a>>,
}

impl<'a> Iterator for RecordSetIter<'a> {
    type Item = Result<RecordView<'a>, ClientError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(records) = &mut self.records {
                match records.next() {
                    // The first batch may start before the requested offset.
                    Some(Ok(view)) if view.offset.unsigned_abs() < self.set.first_offset => continue,
                    Some(Ok(view)) => return Some(Ok(view)),
                    Some(Err(source)) => return Some(Err(self.set.unsound(source))),
                    None => {}
                }
            }
            self.records = Some(self.batches.next()?.iter());
        }
    }
}

fn inflate(runs: &[Bytes], check_crcs: bool) -> Result<Vec<Records>, BatchError> {
    let mut inflated = Vec::new();
    for batch in runs.iter().cloned().flat_map(split_batches) {
        let batch = batch?;
        if check_crcs {
            batch.verify_crc()?;
        }
        inflated.push(batch.records(&Limits::default())?);
    }
    Ok(inflated)
}

/// A consumed record that owns its bytes, as slices of the received data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Offset of the record in the partition.
    pub offset: u64,
    /// Timestamp, in ms since the epoch.
    pub timestamp_ms: i64,
    /// Key, which may be null.
    pub key: Option<Bytes>,
    /// Value; null is a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order and including duplicates.
    pub headers: Vec<Header>,
}

#[cfg(test)]
mod tests {
    use super::super::shared::Assigned;
    use super::*;
    use bytes::BytesMut;
    use millstream_record::{BatchBuilder, Compression, patch_batch};

    /// Returns three batches of four records each, starting at offset 100.
    fn fetched(from: u64) -> Fetched {
        let mut run = BytesMut::new();
        for batch in 0..3 {
            let mut builder = BatchBuilder::new(Compression::Lz4);
            for record in 0..4 {
                builder.push(7, Some(b"key"), Some(format!("{}", batch * 4 + record).as_bytes()), [("h", None)]);
            }
            let start = run.len();
            run.extend_from_slice(builder.finish().unwrap().as_bytes());
            patch_batch(&mut run[start..], 100 + batch * 4, 0);
        }
        let partition = Assigned::new("t".into(), 3, from);
        let bytes = run.len();
        Fetched { partition, runs: vec![run.freeze()], bytes, from, next_offset: 112, log_end_offset: 120 }
    }

    #[test]
    fn records_before_the_asked_offset_are_skipped() {
        let mut set = RecordSet::new(&fetched(102), true).unwrap();
        let offsets: Vec<i64> = set.iter().map(|record| record.unwrap().offset).collect();
        assert_eq!(offsets, (102..112).collect::<Vec<_>>());
        set.skip_to(109);
        let owned: Vec<_> = (0..3).flat_map(|batch| set.owned(batch).unwrap()).map(Result::unwrap).collect();
        assert_eq!(owned.iter().map(|record| record.offset).collect::<Vec<_>>(), [109, 110, 111]);
        assert_eq!(owned[0].value.as_deref(), Some(&b"9"[..]));
        assert_eq!((owned[0].partition, owned[0].headers.len()), (3, 1));
        assert!(set.owned(3).is_none());
        assert_eq!(set.lag(), 8);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut damaged = fetched(100);
        let mut bytes = BytesMut::from(&damaged.runs[0][..]);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        damaged.runs = vec![bytes.freeze()];
        let error = RecordSet::new(&damaged, true).unwrap_err().to_string();
        assert!(error.contains("topic t, partition 3") && error.contains("CRC"), "{error}");
    }
}
