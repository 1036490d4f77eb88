//! What a partition holds, and where: extents of segments, then runs of the journal.
//!
//! A run is the batches that one commit appended to one partition: they stand back to back in that commit's blob, so a run
//! is read as one slice. An extent is what a segment holds of the partition.

use std::collections::VecDeque;

use crate::name::TopicPartition;
use crate::store::journal::Run;
use crate::store::place::Offset;
use crate::store::segment::Extent;

/// What a partition holds, in the order of offsets: extents of segments, then runs of the journal.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The first offset that is kept.
    pub(super) start: Offset,
    pub(super) extents: Vec<Extent>,
    pub(super) runs: VecDeque<Run>,
    /// Runs below the start, in order. They are in the journal still: what they say of producers is to be sealed.
    pub(super) gone: Vec<Run>,
}

/// What is to be sealed of a partition.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    /// Of these only what they say of producers.
    pub(crate) gone: Vec<Run>,
    pub(crate) runs: Vec<Run>,
}

impl Index {
    /// The offset after the last record.
    pub(super) fn end(&self) -> Offset {
        let held = self.runs.back().map(|run| run.end).or_else(|| self.extents.last().map(|extent| extent.end));
        held.unwrap_or_default().max(self.start)
    }

    /// Forgets what lies below the start.
    pub(super) fn trim(&mut self) {
        let start = self.start;
        self.extents.retain(|extent| extent.end > start);
        while self.runs.front().is_some_and(|run| run.end <= start) {
            self.runs.pop_front();
        }
    }

    /// What a read of `bytes_max` from `offset` may touch.
    pub(super) fn pieces_from(&self, offset: Offset, end: Offset, bytes_max: usize) -> Vec<Piece> {
        let mut bytes = 0u64;
        let mut wanted = |base: Offset, len: u64| {
            // One piece more than fits: the first may be cut at its front.
            let wanted = bytes <= bytes_max as u64 && base < end;
            bytes = bytes.saturating_add(len);
            wanted
        };
        let mut pieces = Vec::new();
        let first = self.extents.partition_point(|extent| extent.end <= offset);
        for extent in &self.extents[first..] {
            if !wanted(extent.base, extent.bytes) {
                return pieces;
            }
            pieces.push(Piece::Extent(*extent));
        }
        let first = self.runs.partition_point(|run| run.end <= offset);
        for run in self.runs.range(first..) {
            if !wanted(run.base, u64::from(run.at.len)) {
                return pieces;
            }
            pieces.push(Piece::Run(*run));
        }
        pieces
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

/// What a part of a read is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    Extent(Extent),
    Run(Run),
}
