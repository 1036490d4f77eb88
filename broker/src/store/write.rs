//! What one commit writes: one durable transaction of the journal's database, including its small tables.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use redb::ReadableTable;

use super::catalog::CatalogChange;
use super::error::StoreError;
use super::journal::CHUNK_BYTES;
use super::place::{Offset, Place, TopicId};
use super::recovery::segment_row;
use super::segment::{SegmentId, SegmentMeta};
use super::sum::RowsSum;
use super::{CATALOG, JOURNAL, LOG_STARTS, MARKS, NEXT_SEGMENT, SEALED_TO, SEGMENTS, Store};

/// All changes of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Write<'a> {
    /// The sequence number of the blob's first journal value.
    pub(crate) seq: u64,
    /// The new content of the journal, which is cut into values of [`CHUNK_BYTES`]. It may be empty.
    pub(crate) blob: &'a [u8],
    /// Journal values that are sealed and now removed.
    pub(crate) trim: Range<u64>,
    /// Catalog entries to set or remove.
    pub(crate) catalog: Vec<&'a CatalogChange>,
    /// Topics whose log start offsets are removed.
    pub(crate) deleted_topics: Vec<TopicId>,
    /// Segments that are added to the store, or whose extents change.
    pub(crate) segments: Vec<&'a SegmentMeta>,
    /// Segments that are removed from the store.
    pub(crate) removed: Vec<SegmentId>,
    /// New log start offsets, by partition.
    pub(crate) log_starts: Vec<(Place, Offset)>,
    /// The new sealed mark: journal values before this sequence number are in segments and tables.
    pub(crate) sealed_to: Option<u64>,
}

impl Store {
    /// Commits all changes durably, or none of them.
    ///
    /// # Errors
    /// A database or I/O error. The state on disk is then unknown, so the caller makes the store [fail](Store::fail).
    pub(crate) fn write(&self, write: &Write<'_>) -> Result<(), StoreError> {
        let transaction = self.db.begin_write()?;
        {
            let mut journal = transaction.open_table(JOURNAL)?;
            for (seq, value) in (write.seq..).zip(write.blob.chunks(CHUNK_BYTES)) {
                journal.insert(seq, value)?;
            }
            for value in write.trim.clone() {
                journal.remove(value)?;
            }
        }
        let mut sum = RowsSum::default();
        if !write.catalog.is_empty() {
            let mut catalog = transaction.open_table(CATALOG)?;
            for change in &write.catalog {
                sum.set(&mut catalog, change.key.as_str(), change.value.as_deref())?;
            }
        }
        for topic in &write.deleted_topics {
            let mut starts = transaction.open_table(LOG_STARTS)?;
            let rows = starts.range((topic.0, 0)..=(topic.0, u32::MAX))?;
            let of_topic: Vec<(u32, u32)> = rows.map(|row| Ok(row?.0.value())).collect::<Result<_, StoreError>>()?;
            for place in of_topic {
                sum.set(&mut starts, place, None)?;
            }
        }
        if !write.segments.is_empty() || !write.removed.is_empty() {
            let mut segments = transaction.open_table(SEGMENTS)?;
            for meta in &write.segments {
                segments.insert(meta.file.id.0, segment_row(meta).as_slice())?;
            }
            for id in &write.removed {
                segments.remove(id.0)?;
            }
        }
        if !write.log_starts.is_empty() {
            let mut starts = transaction.open_table(LOG_STARTS)?;
            for ((topic, partition), start) in &write.log_starts {
                sum.set(&mut starts, (topic.0, *partition), Some(start.get()))?;
            }
        }
        if let Some(to) = write.sealed_to {
            sum.set(&mut transaction.open_table(MARKS)?, SEALED_TO, Some(to))?;
        }
        // A segment number is never used again, even if the segment is removed before the next start.
        if let Some(next) = write.segments.iter().map(|meta| meta.file.id.0 + 1).max() {
            let mut marks = transaction.open_table(MARKS)?;
            let known = marks.get(NEXT_SEGMENT)?.map_or(0, |mark| mark.value());
            if next > known {
                sum.set(&mut marks, NEXT_SEGMENT, Some(next))?;
            }
        }
        sum.write(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Notes that a write is on disk, and makes its blob available for reads from memory.
    pub(crate) fn written(&self, seq: u64, blob: Bytes) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        if !blob.is_empty() {
            self.blobs.push(seq, blob);
        }
    }

    /// Returns how many journal values are sealed but not yet removed, and how many are not sealed.
    #[cfg(test)]
    pub(crate) fn journal_values(&self) -> (u64, u64) {
        use redb::ReadableDatabase;
        let read = self.db.begin_read().unwrap();
        let sealed_to = super::recovery::sealed_to(&read).unwrap();
        let journal = read.open_table(JOURNAL).unwrap();
        let count = |range| journal.range(range).unwrap().count() as u64;
        (count(0..sealed_to), count(sealed_to..u64::MAX))
    }
}
