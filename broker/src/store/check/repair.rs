//! Rewrites the intact data: segments beside the old ones, the commits of the journal in place, and the registry
//! together with both, in one transaction. After a crash the directory is either unchanged or repaired.

use redb::{Builder, Durability};

use super::super::directory::DATABASE_FILE;
use super::super::error::StoreError;
use super::super::files::Files;
use super::super::journal::{BlobWriter, CHUNK_BYTES};
use super::super::recovery::segment_row;
use super::super::segment::{FOLDER, Scanned, SegmentId, SegmentMeta, SegmentWriter};
use super::super::{JOURNAL, SEGMENTS, tables};
use super::journal::Content;
use super::rebuild::{rebuild, replace};
use super::{BlobFound, Checked, SegmentFound, caught, to_text};
use crate::store::place::Offset;

impl Checked {
    /// Keeps everything that is intact, and marks in the report what was repaired.
    pub(super) fn repair(&mut self) -> Result<(), StoreError> {
        let files = Files::new(self.files.system(), self.files.folder(), None);
        files.make_folder(FOLDER)?;
        if let Some((rebuilt, _)) = self.rebuilt.take() {
            replace(&rebuilt, &files)?;
        } else if let Err(reason) = renew_free_lists(&files, DATABASE_FILE) {
            // The damaged page of the database is either unused, or is rewritten below.
            if !self.is_damaged(DATABASE_FILE) {
                self.damaged(DATABASE_FILE, reason);
            }
            replace(&rebuild(&files)?, &files)?;
        }
        let renewed = renew_free_lists(&files, tables::FILE);
        let mut written = Vec::new();
        let mut removed = self.lost_rows.clone();
        for index in 0..self.segments.len() {
            if self.segments[index].rewrite {
                removed.push(self.segments[index].meta.file.id);
                let id = self.next_segment();
                written.extend(write_anew(&files, id, &self.segments[index])?);
            }
        }
        written.extend(self.fill_holes(&files)?);
        self.commit(&files, &written, &removed)?;
        removed.iter().try_for_each(|id| files.remove(&id.file_name()))?;
        if !removed.is_empty() {
            files.sync_folder(FOLDER)?;
        }
        let still = self.database_fault(DATABASE_FILE)?;
        for damage in &mut self.report.damages {
            damage.repaired = damage.repairable
                && (damage.file != DATABASE_FILE || still.is_none())
                && (damage.file != tables::FILE || renewed.is_ok());
        }
        if let Some(reason) = still {
            self.beyond_repair(DATABASE_FILE, format!("{reason}; this was not repaired"));
        }
        if let Err(reason) = renewed
            && !self.is_damaged(tables::FILE)
        {
            self.beyond_repair(tables::FILE, format!("{reason}; this was not repaired"));
        }
        Ok(())
    }

    fn next_segment(&mut self) -> SegmentId {
        self.next_segment += 1;
        SegmentId(self.next_segment - 1)
    }

    /// Writes a segment of extents without batches for the missing offsets, so that reads continue after them.
    fn fill_holes(&mut self, files: &Files) -> Result<Option<SegmentMeta>, StoreError> {
        if self.holes.is_empty() {
            return Ok(None);
        }
        let mut holes = std::mem::take(&mut self.holes);
        holes.sort_unstable_by_key(|(topic, partition, offsets)| (*topic, *partition, offsets.start));
        let mut writer = SegmentWriter::create(files, self.next_segment())?;
        for (topic, partition, offsets) in holes {
            writer.begin(topic, partition, offsets.start, false);
            writer.end(offsets.end);
        }
        writer.finish().map(Some)
    }

    fn commit(&self, files: &Files, written: &[SegmentMeta], removed: &[SegmentId]) -> Result<(), StoreError> {
        let blobs: Vec<&BlobFound> = self.blobs.iter().filter(|blob| blob.rewrite).collect();
        if written.is_empty() && removed.is_empty() && blobs.is_empty() && self.sealed_values.is_empty() {
            return Ok(());
        }
        let path = files.path(DATABASE_FILE);
        let database = Builder::new()
            .create_with_backend(files.database(DATABASE_FILE)?)
            .map_err(|source| StoreError::open(&path, source))?;
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate).map_err(|error| StoreError::Stopped(error.to_string()))?;
        {
            let mut segments = transaction.open_table(SEGMENTS)?;
            for id in removed {
                segments.remove(id.0)?;
            }
            for meta in written {
                segments.insert(meta.file.id.0, segment_row(meta).as_slice())?;
            }
            let mut journal = transaction.open_table(JOURNAL)?;
            // The next commits would remove these values anyway. Removing them now also removes a damaged page of
            // theirs.
            for seq in &self.sealed_values {
                journal.remove(seq)?;
            }
            for blob in blobs {
                let bytes = sound_entries(blob);
                let mut values = bytes.chunks(CHUNK_BYTES);
                // Every sequence number gets a value, because the next start would report a missing one.
                let nothing = BlobWriter::with_capacity(0).finish();
                for seq in blob.seqs.clone() {
                    journal.insert(seq, values.next().unwrap_or(&nothing))?;
                }
                debug_assert!(values.next().is_none(), "the rewritten commit is not longer than the original");
            }
        }
        Ok(transaction.commit()?)
    }
}

/// Recomputes redb's lists of free pages from all other pages. They are written when the database is closed. redb's own
/// check does not verify the list of regions that have free pages, and redb panics if that list is wrong once it needs
/// a page.
fn renew_free_lists(files: &Files, name: &str) -> Result<(), String> {
    if !files.has(name) {
        return Ok(());
    }
    let backend = files.database(name).map_err(to_text)?;
    caught(|| {
        let mut database = Builder::new().create_with_backend(backend).map_err(to_text)?;
        database.check_integrity().map_err(to_text)?;
        Ok(())
    })
}

/// Encodes a commit without its damaged entries. It may be empty, but its sequence number is not used again.
fn sound_entries(blob: &BlobFound) -> bytes::Bytes {
    let mut writer = BlobWriter::with_capacity(CHUNK_BYTES);
    for found in &blob.entries {
        match &found.content {
            Content::Run { run, known: true, batches, .. } => {
                writer.batches(|out| {
                    batches.iter().for_each(|batch| out.extend_from_slice(batch));
                    *run
                });
            }
            Content::Body(body) => writer.raw(found.kind, body),
            Content::Run { .. } | Content::Lost => {}
        }
    }
    writer.finish()
}

/// Writes a new segment with the intact batches of another. Its extents keep their offset ranges. Returns `None` if no
/// extent is in use.
fn write_anew(files: &Files, id: SegmentId, found: &SegmentFound) -> Result<Option<SegmentMeta>, StoreError> {
    let in_use: Vec<_> = found.meta.extents.iter().filter(|owned| owned.extent.base < owned.extent.end).collect();
    if in_use.is_empty() {
        return Ok(None);
    }
    let mut writer = SegmentWriter::create(files, id)?;
    for owned in &in_use {
        let extent = &owned.extent;
        writer.begin(owned.topic, owned.partition, extent.base, extent.compacted);
        writer.tombstones_due(extent.tombstones_due_ms);
        if let Some(segment) = &found.open {
            segment.visit(extent, |bytes, scanned| match scanned {
                Scanned::Batch { at, header } if Offset::new(header.base_offset) >= Some(extent.base) => {
                    writer.push(&bytes[at..at + header.batch_bytes], &header)
                }
                _ => Ok(()),
            })?;
            segment.aborted(extent).iter().for_each(|aborted| writer.push_aborted(*aborted));
        }
        writer.end(extent.end);
    }
    let mut meta = writer.finish()?;
    for (new, old) in meta.extents.iter_mut().zip(&in_use) {
        // For lost batches, retention uses the timestamps of the original extent.
        if new.extent.bytes == 0 {
            new.extent.first_timestamp_ms = old.extent.first_timestamp_ms;
            new.extent.max_timestamp_ms = old.extent.max_timestamp_ms;
        }
    }
    Ok(Some(meta))
}
