//! Removing records from a batch for compaction. The remaining records keep their offsets and timestamps.

use bytes::Bytes;

use crate::Limits;
use crate::batch::{BATCH_HEADER_BYTES, RecordBatch, at};
use crate::build::{encode_record, seal_batch};
use crate::compression::{Compression, compress};
use crate::error::BatchError;
use crate::records::RecordView;

/// The result of removing records from a batch.
#[derive(Clone, Debug)]
pub enum Retained {
    /// The batch is unchanged.
    All,
    /// Some records remain. The batch has the same offsets, producer and sequence number as before.
    Some(RecordBatch),
    /// No records remain.
    Nothing,
}

impl RecordBatch {
    /// Returns the time at which compaction may remove the batch's tombstones, in ms since the epoch. This is the
    /// delete horizon of KIP-534, which is stored in the base timestamp once compaction has seen a tombstone in the
    /// batch.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.has_delete_horizon().then(|| self.base_timestamp_ms())
    }

    /// Keeps the records for which `keep` returns true. If one of them is a tombstone and the batch has no delete
    /// horizon yet, its delete horizon is set to `delete_horizon_ms`. A delete horizon can make the timestamps take
    /// more bytes: a batch that would then exceed the limits gets no delete horizon, and a batch that would exceed them
    /// without it, because it is compressed again, is left unchanged.
    ///
    /// # Errors
    /// [`BatchError`] if the batch cannot be parsed.
    pub fn retain(
        &self,
        limits: &Limits,
        delete_horizon_ms: i64,
        mut keep: impl FnMut(&RecordView<'_>) -> bool,
    ) -> Result<Retained, BatchError> {
        let records = self.records(limits)?;
        let mut kept = Vec::new();
        let (mut count, mut tombstones) = (0usize, false);
        for record in &records {
            let record = record?;
            count += 1;
            if keep(&record) {
                tombstones |= record.value.is_none();
                kept.push(record);
            }
        }
        let new_horizon = tombstones && !self.has_delete_horizon();
        if kept.len() == count && !new_horizon {
            return Ok(Retained::All);
        }
        if kept.is_empty() {
            return Ok(Retained::Nothing);
        }
        // With LogAppendTime, all records have the batch's timestamp.
        let max_timestamp_ms = kept.iter().map(|record| record.timestamp_ms).max().unwrap_or_default();
        let body_with = |base_timestamp_ms: i64| -> Option<(i64, Vec<u8>)> {
            let mut body = Vec::with_capacity(records.body().len());
            for record in &kept {
                let timestamp_delta = record.timestamp_ms.wrapping_sub(base_timestamp_ms);
                let offset_delta = record.offset.wrapping_sub(self.base_offset());
                encode_record(&mut body, timestamp_delta, offset_delta, record.key, record.value, record.headers());
            }
            let inflates = body.len() <= limits.inflated_bytes_max;
            let body = match self.compression() {
                Compression::None => body,
                codec => compress(codec, &body),
            };
            let fits = inflates && BATCH_HEADER_BYTES + body.len() <= limits.batch_bytes_max;
            fits.then_some((base_timestamp_ms, body))
        };
        let with_horizon = new_horizon.then(|| body_with(delete_horizon_ms)).flatten();
        let has_new_horizon = with_horizon.is_some();
        let without = || (kept.len() < count).then(|| body_with(self.base_timestamp_ms())).flatten();
        let Some((base_timestamp_ms, body)) = with_horizon.or_else(without) else { return Ok(Retained::All) };
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES + body.len());
        bytes.extend_from_slice(&self.as_bytes()[..BATCH_HEADER_BYTES]);
        bytes.extend_from_slice(&body);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        if has_new_horizon {
            put(at::ATTRIBUTES, &self.attributes_with_delete_horizon().to_be_bytes());
        }
        put(at::BASE_TIMESTAMP, &base_timestamp_ms.to_be_bytes());
        put(at::MAX_TIMESTAMP, &max_timestamp_ms.to_be_bytes());
        put(at::RECORD_COUNT, &(kept.len() as i32).to_be_bytes());
        seal_batch(&mut bytes);
        Ok(Retained::Some(RecordBatch::built(Bytes::from(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, Record};

    fn batch(compression: Compression) -> RecordBatch {
        let mut builder = BatchBuilder::new(compression);
        builder.set_producer(7, 1, 40);
        for (index, (key, value)) in
            [("a", Some("1")), ("b", None), ("a", Some("2")), ("c", Some("3"))].into_iter().enumerate()
        {
            let headers = [("h", Some(&b"x"[..]))];
            builder.push(100 + index as i64, Some(key.as_bytes()), value.map(str::as_bytes), headers);
        }
        let mut bytes = builder.finish().unwrap().into_bytes().to_vec();
        crate::patch_batch(&mut bytes, 1_000, 0);
        RecordBatch::from_log(bytes.into()).unwrap()
    }

    fn records(batch: &RecordBatch) -> Vec<Record> {
        let records = batch.records(&Limits::default()).unwrap();
        records.iter().map(|view| records.to_record(&view.unwrap())).collect()
    }

    #[test]
    fn what_stays_is_as_it_was() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let before = batch(compression);
            let Retained::Some(after) = before.retain(&Limits::default(), 5_000, |r| r.offset != 1_000).unwrap() else {
                panic!("three of four records must remain");
            };
            after.verify_crc().unwrap();
            assert_eq!(records(&after), records(&before)[1..]);
            assert_eq!((after.base_offset(), after.next_offset(), after.record_count()), (1_000, 1_004, 3));
            assert_eq!((after.producer_id(), after.base_sequence()), (7, 40));
            assert_eq!((after.max_timestamp_ms(), after.compression()), (103, compression));
        }
    }

    #[test]
    fn what_is_retained_is_never_beyond_the_limits() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut builder = BatchBuilder::new(compression);
            (0..100).for_each(|n: i64| builder.push(n % 3, Some(&[n as u8]), None, []));
            let before = builder.finish().unwrap();
            let inflated_bytes_max = before.records(&Limits::default()).unwrap().body().len();
            let tight = Limits { inflated_bytes_max, ..Limits::default() };
            // Relative to a horizon one day ahead, a timestamp delta takes four bytes; relative to a nearby timestamp
            // it takes one.
            assert!(matches!(before.retain(&tight, 86_400_000, |_| true).unwrap(), Retained::All));
            let Retained::Some(after) = before.retain(&tight, 86_400_000, |r| r.offset > 0).unwrap() else {
                panic!("99 records must remain");
            };
            assert_eq!(after.delete_horizon_ms(), None);
            assert_eq!(records(&after), records(&before)[1..]);
            after.records(&tight).unwrap();
            let tight = Limits { batch_bytes_max: BATCH_HEADER_BYTES, ..Limits::default() };
            assert!(matches!(before.retain(&tight, 86_400_000, |r| r.offset > 0).unwrap(), Retained::All));
        }
    }

    #[test]
    fn a_tombstone_gets_its_horizon_once() {
        let before = batch(Compression::None);
        assert_eq!(before.delete_horizon_ms(), None);
        let Retained::Some(first) = before.retain(&Limits::default(), 5_000, |_| true).unwrap() else {
            panic!("the batch must get a delete horizon");
        };
        assert_eq!(first.delete_horizon_ms(), Some(5_000));
        assert_eq!(records(&first), records(&before));
        assert!(matches!(first.retain(&Limits::default(), 9_000, |_| true).unwrap(), Retained::All));
        let Retained::Some(second) = first.retain(&Limits::default(), 9_000, |r| r.offset > 1_000).unwrap() else {
            panic!("three records must remain");
        };
        assert_eq!(second.delete_horizon_ms(), Some(5_000));
        assert!(matches!(second.retain(&Limits::default(), 9_000, |_| false).unwrap(), Retained::Nothing));
    }
}
