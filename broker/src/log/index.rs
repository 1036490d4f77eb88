//! The index of a partition: where its records are stored, first in extents of segments, then in runs of the journal.
//!
//! A run is the batches that one commit appended to one partition. They are back to back in that commit's blob, so a
//! run is read as one slice. An extent is the part of a segment that holds records of the partition.

use std::collections::VecDeque;

use crate::name::TopicPartition;
use crate::store::journal::Run;
use crate::store::place::Offset;
use crate::store::segment::Extent;

/// The locations of a partition's records in offset order: extents of segments, then runs of the journal.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The log start offset: the first offset that is retained.
    pub(super) start: Offset,
    pub(super) extents: Vec<Extent>,
    pub(super) runs: VecDeque<Run>,
    /// Runs below the log start offset, in order. They are still in the journal, and their producer state has to be
    /// sealed.
    pub(super) gone: Vec<Run>,
}

/// The runs of a partition that are to be sealed.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    /// Runs below the log start offset, of which only the producer state is sealed.
    pub(crate) gone: Vec<Run>,
    pub(crate) runs: Vec<Run>,
}

impl Index {
    /// Returns the offset after the last record.
    pub(super) fn end(&self) -> Offset {
        let held = self.runs.back().map(|run| run.end).or_else(|| self.extents.last().map(|extent| extent.end));
        held.unwrap_or_default().max(self.start)
    }

    /// Removes the extents and runs that are below the log start offset.
    pub(super) fn trim(&mut self) {
        let start = self.start;
        self.extents.retain(|extent| extent.end > start);
        while self.runs.front().is_some_and(|run| run.end <= start) {
            self.runs.pop_front();
        }
    }

    /// Returns the sources that a read of up to `bytes_max` bytes from `offset` may access.
    pub(super) fn sources_from(&self, offset: Offset, end: Offset, bytes_max: usize) -> Vec<BatchSource> {
        let mut bytes = 0u64;
        let mut wanted = |base: Offset, len: u64| {
            // Includes one source more than fits, because the read may skip the beginning of the first source.
            let wanted = bytes <= bytes_max as u64 && base < end;
            bytes = bytes.saturating_add(len);
            wanted
        };
        let mut sources = Vec::new();
        let first = self.extents.partition_point(|extent| extent.end <= offset);
        for extent in &self.extents[first..] {
            if !wanted(extent.base, extent.bytes) {
                return sources;
            }
            sources.push(BatchSource::Extent(*extent));
        }
        let first = self.runs.partition_point(|run| run.end <= offset);
        for run in self.runs.range(first..) {
            if !wanted(run.base, u64::from(run.at.len)) {
                return sources;
            }
            sources.push(BatchSource::Run(*run));
        }
        sources
    }

    pub(super) fn assert_in_order(&self, name: &TopicPartition) {
        let mut at = None;
        for extent in &self.extents {
            let follows = at.is_none_or(|at| extent.base == at) && extent.base < extent.end;
            assert!(follows, "{name}: an extent of offsets {}..{} cannot follow {at:?}", extent.base, extent.end);
            at = Some(extent.end);
        }
        if let (Some(at), Some(run)) = (at, self.runs.front()) {
            assert!(run.base == at, "{name}: a run at offset {} cannot follow extents to {at}", run.base);
        }
    }
}

/// A contiguous part of a partition's records.
#[derive(Clone, Copy, Debug)]
pub(super) enum BatchSource {
    Extent(Extent),
    Run(Run),
}
