//! The output of the cleaner: new segments with the retained records. They exist beside the old segments until one
//! commit replaces the old segments with them.

use std::sync::Arc;

use crate::log::cleaner::Cleaner;
use crate::log::commit::Upkeep;
use crate::log::partition::Partition;
use crate::log::queue::Ended;
use crate::store::SEGMENT_BYTES;
use crate::store::StoreError;
use crate::store::pause::Pause;
use crate::store::place::Offset;
use crate::store::segment::{Extent, SegmentWriter};

/// New segments that are being written, and the extents of partitions in them.
pub(super) struct Output<'a> {
    cleaner: &'a Cleaner,
    writer: Option<SegmentWriter>,
    open: Option<Arc<Partition>>,
    /// The partitions of the open segment's extents, in the order of the extents.
    partitions: Vec<Arc<Partition>>,
    upkeep: Upkeep,
    pause: Pause,
}

impl<'a> Output<'a> {
    pub(super) fn new(cleaner: &'a Cleaner) -> Self {
        Self {
            cleaner,
            writer: None,
            open: None,
            partitions: Vec::new(),
            upkeep: Upkeep::default(),
            pause: Pause::new(cleaner.store.commits()),
        }
    }

    /// Begins an extent of a partition, in a new segment if the open one is full.
    pub(super) fn begin(&mut self, partition: &Arc<Partition>, base: Offset, compacted: bool) -> Result<(), Ended> {
        if self.is_full() {
            self.close_segment()?;
        }
        if self.writer.is_none() {
            self.writer = Some(self.cleaner.store.registry().create()?);
        }
        if let Some(writer) = &mut self.writer {
            writer.begin(partition.topic_id(), partition.name().partition, base, compacted);
        }
        self.open = Some(partition.clone());
        Ok(())
    }

    /// Returns whether the open segment has reached its full size.
    pub(super) fn is_full(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.position() >= SEGMENT_BYTES)
    }

    /// Returns the writer of the open extent.
    pub(super) fn writer(&mut self) -> Result<&mut SegmentWriter, Ended> {
        self.writer.as_mut().ok_or_else(|| Ended::Failed(StoreError::Stopped("no extent is open".into())))
    }

    /// Copies the batches of an extent unchanged, including damaged ones.
    pub(super) fn copy(&mut self, extent: &Extent) -> Result<(), Ended> {
        let segment = self.cleaner.store.registry().segment_of(extent)?;
        let writer = self.writer()?;
        writer.tombstones_due(extent.tombstones_due_ms);
        segment.visit(extent, |bytes, scanned| writer.push_scanned(bytes, &scanned))?;
        segment.aborted(extent).iter().for_each(|aborted| writer.push_aborted(*aborted));
        self.wrote(extent.bytes)
    }

    /// Accounts for `bytes` that were written: pauses to give way to commits, and fails with [`Ended::Closing`] if the
    /// store closes.
    pub(super) fn wrote(&mut self, bytes: u64) -> Result<(), Ended> {
        self.pause.rest_after(bytes, self.cleaner.store.commits());
        if self.cleaner.is_closing() { Err(Ended::Closing) } else { Ok(()) }
    }

    /// Ends the open extent. `end` is the offset after its range.
    pub(super) fn end(&mut self, end: Offset) {
        if let (Some(writer), Some(partition)) = (&mut self.writer, self.open.take()) {
            writer.end(end);
            self.partitions.push(partition);
        }
    }

    fn close_segment(&mut self) -> Result<(), Ended> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let meta = self.cleaner.store.registry().finish(writer)?;
        self.upkeep.add_segment(meta, self.partitions.drain(..));
        Ok(())
    }

    /// Finishes the open segment, and returns the upkeep that makes the new segments part of the store.
    pub(super) fn finish(mut self) -> Result<Upkeep, Ended> {
        self.close_segment()?;
        Ok(std::mem::take(&mut self.upkeep))
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        // Unfinished work is retried later, so no files may be left behind.
        let written: Vec<_> = self.upkeep.segments.iter().map(|meta| meta.file.id).collect();
        self.cleaner.store.registry().unlink(&written);
    }
}
