//! Start: reads the journal once, and passes every entry to the caller, which rebuilds memory from it.

use millstream_record::checksum;
use std::collections::HashMap;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable};

pub(crate) use super::journal::Entry;
use super::journal::{self, Location};
use super::segment::{Extent, SegmentFile, SegmentId, SegmentMeta};
use super::{JOURNAL, LOG_STARTS, MARKS, SEALED_TO, SEGMENTS, Store, StoreError, open_table};
use crate::store::place::TopicId;

/// Summary of the journal's content.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replayed {
    /// Values from here up to `sealed_to` are sealed and can be removed.
    pub(crate) trim_from: u64,
    /// Values before this sequence number are sealed into segments and tables.
    pub(crate) sealed_to: u64,
    /// The sequence number after the last value.
    pub(crate) next_seq: u64,
    /// Total size of the blobs that are not sealed.
    pub(crate) bytes: u64,
}

/// Calls `visit` with each segment that is part of the store in this transaction, and returns their files. The extents
/// are passed one segment at a time, because all of them together may take much memory.
pub(super) fn segments(
    read: &ReadTransaction,
    mut visit: impl FnMut(SegmentMeta),
) -> Result<Vec<SegmentFile>, StoreError> {
    let Some(table) = open_table(read, SEGMENTS)? else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for entry in table.iter()? {
        let (id, row) = entry?;
        let meta = segment(SegmentId(id.value()), row.value())?;
        files.push(meta.file);
        visit(meta);
    }
    Ok(files)
}

/// Encodes a registry row: the segment's metadata, and the CRC-32C of its number and metadata.
pub(super) fn segment_row(meta: &SegmentMeta) -> Vec<u8> {
    let mut row = meta.encode();
    row.extend_from_slice(&row_crc(meta.file.id, &row).to_le_bytes());
    row
}

/// Decodes a registry row.
pub(super) fn segment(id: SegmentId, row: &[u8]) -> Result<SegmentMeta, StoreError> {
    SegmentMeta::decode(id, checked_row(id, row)?)
}

/// Returns the part of a registry row that its checksum covers, once the checksum is verified.
pub(super) fn checked_row(id: SegmentId, row: &[u8]) -> Result<&[u8], StoreError> {
    match row.split_last_chunk::<4>() {
        Some((meta, crc)) if row_crc(id, meta).to_le_bytes() == *crc => Ok(meta),
        _ => Err(StoreError::Corrupt {
            what: format!("the registry's entry of segment {:016x}", id.0),
            reason: "it does not match its checksum".to_owned(),
        }),
    }
}

fn row_crc(id: SegmentId, meta: &[u8]) -> u32 {
    checksum::crc32c_append(checksum::crc32c(&id.0.to_le_bytes()), meta)
}

/// Returns the sealed mark: journal values before this sequence number are sealed into segments and tables.
pub(super) fn sealed_to(read: &ReadTransaction) -> Result<u64, StoreError> {
    Ok(mark(read, SEALED_TO)?.unwrap_or(0))
}

/// Returns a mark, or `None` if it was never set.
pub(super) fn mark(read: &ReadTransaction, name: &str) -> Result<Option<u64>, StoreError> {
    let Some(table) = open_table(read, MARKS)? else { return Ok(None) };
    Ok(table.get(name)?.map(|mark| mark.value()))
}

/// The extents of each topic, by partition.
pub(crate) type TopicExtents = HashMap<TopicId, Vec<Vec<Extent>>>;

/// Returns the files of all segments, and their extents.
pub(super) fn segments_by_topic(read: &ReadTransaction) -> Result<(Vec<SegmentFile>, TopicExtents), StoreError> {
    let mut extents = TopicExtents::new();
    let files = segments(read, |meta| {
        // Extents are sorted by topic, so each topic is looked up once per segment.
        for of_topic in meta.extents.chunk_by(|a, b| a.topic == b.topic) {
            let partitions = extents.entry(of_topic[0].topic).or_default();
            for owned in of_topic {
                let number = owned.partition as usize;
                if partitions.len() <= number {
                    partitions.resize_with(number + 1, Vec::new);
                }
                partitions[number].push(owned.extent);
            }
        }
    })?;
    Ok((files, extents))
}

impl Store {
    /// Returns what the registry says about a segment.
    pub(crate) fn segment_meta(&self, id: SegmentId) -> Result<SegmentMeta, StoreError> {
        let Some(table) = open_table(&self.db.begin_read()?, SEGMENTS)? else { return Err(StoreError::Moved) };
        let row = table.get(id.0)?.ok_or(StoreError::Moved)?;
        segment(id, row.value())
    }

    /// Returns the log start offsets, with topic and partition, of all partitions where it is set.
    pub(crate) fn log_starts(&self) -> Result<Vec<(u32, u32, i64)>, StoreError> {
        let read = self.db.begin_read()?;
        let Some(table) = open_table(&read, LOG_STARTS)? else { return Ok(Vec::new()) };
        let mut starts = Vec::new();
        for entry in table.iter()? {
            let (place, start) = entry?;
            let (topic, partition) = place.value();
            starts.push((topic, partition, start.value()));
        }
        Ok(starts)
    }

    /// Calls `visit` with each unsealed entry in commit order, and with the sequence number of its blob.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the journal is incomplete or damaged, or an I/O error.
    pub(crate) fn replay(
        &self,
        mut visit: impl FnMut(u64, Entry<'_>) -> Result<(), String>,
    ) -> Result<Replayed, StoreError> {
        let read = self.db.begin_read()?;
        let sealed_to = sealed_to(&read)?;
        let Some(table) = open_table(&read, JOURNAL)? else { return Ok(Replayed::default()) };
        let first = table.first()?.map_or(sealed_to, |(seq, _)| seq.value());
        let mut next_seq = sealed_to;
        let mut replayed_bytes = 0;
        let mut blob: Vec<u8> = Vec::new();
        let mut values = table.range(sealed_to..)?;
        while let Some(value) = values.next().transpose()? {
            let seq = value.0.value();
            let corrupt = |reason: String| StoreError::Corrupt { what: format!("journal value {seq}"), reason };
            if seq != next_seq {
                return Err(corrupt(format!("the {} values before it are missing", seq.saturating_sub(next_seq))));
            }
            let bytes = journal::blob_bytes(value.1.value()).map_err(corrupt)?;
            blob.clear();
            blob.extend_from_slice(value.1.value());
            next_seq = seq + 1;
            while blob.len() < bytes {
                let more = values.next().transpose()?.filter(|(key, _)| key.value() == next_seq);
                let Some((_, value)) = more else {
                    return Err(corrupt(format!("value {next_seq} of its blob is missing")));
                };
                blob.extend_from_slice(value.value());
                next_seq += 1;
            }
            if blob.len() != bytes {
                return Err(corrupt(format!("its blob has {} bytes, not {bytes}", blob.len())));
            }
            replayed_bytes += blob.len() as u64;
            journal::read_blob(&blob, |entry| visit(seq, entry)).map_err(corrupt)?;
        }
        Ok(Replayed { trim_from: first.min(sealed_to), sealed_to, next_seq, bytes: replayed_bytes })
    }
}

/// Returns the location of an entry's batches.
pub(crate) fn location(seq: u64, pos: u32, batches: &[u8]) -> Location {
    Location { seq, pos, len: batches.len() as u32 }
}
