//! Merging rewrites several segments as new ones in which the records of a partition are contiguous again. There are
//! three reasons to merge a segment. Little of it is in use, so merging frees disk space. It is small, so merging
//! reduces the number of files. Or it holds only a few records of each of many partitions: the locations of all extents
//! are read at startup and kept in memory, so short extents are joined when there are many. A join makes them up to
//! [`JOIN_SEGMENTS_MAX`] times as long and writes their bytes once more, like a level of a log-structured merge tree,
//! until they are [`SHORT_BYTES`] long.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::log::cleaner::{Cleaner, Live};
use crate::log::output::Output;
use crate::log::partition::Partition;
use crate::log::queue::Ended;
use crate::store::place::Place;
use crate::store::segment::{Extent, SegmentFile, SegmentId};

/// Size below which a segment is small, in bytes. Several small segments are merged into one. It is half of the sealer's
/// smallest part of a journal of the default size, so that what is sealed under load is not written again.
const SMALL_BYTES: u64 = 8 << 20;

/// Minimum number of small segments to merge. Each level of merging writes its bytes once more.
const SMALL_SEGMENTS: usize = 8;

/// Maximum number of bytes in use that one merge rewrites, separately for small segments and for those with little in
/// use.
const SMALL_MERGE_BYTES_MAX: u64 = 128 << 20;

/// A segment's extents are short if they are smaller than this many bytes on average.
const SHORT_BYTES: u64 = 2 << 20;

/// Minimum number of segments with short extents to merge.
const JOIN_SEGMENTS: usize = 8;

/// Maximum number of segments with short extents to merge.
const JOIN_SEGMENTS_MAX: usize = 12;

/// Maximum number of sets of such segments that are examined in a round. Each takes about a millisecond.
const SETS_MAX: usize = 100;

/// The properties of a segment that decide whether it is merged.
struct Weighed {
    file: SegmentFile,
    /// Bytes in use.
    bytes: u64,
    /// Number of extents in use.
    extents: usize,
    /// The first and the last partition with an extent in use.
    places: (Place, Place),
}

impl Weighed {
    fn new(file: SegmentFile, live: &[(Arc<Partition>, Extent)]) -> Option<Self> {
        let places = || live.iter().map(|(partition, _)| partition.place());
        let bytes = live.iter().map(|(_, extent)| extent.bytes).sum();
        Some(Self { file, bytes, extents: live.len(), places: (places().min()?, places().max()?) })
    }

    /// Returns the level of the segment by the mean length of its extents, or `None` if they are not short.
    fn level(&self) -> Option<u32> {
        let mean = self.bytes / self.extents as u64;
        (mean < SHORT_BYTES).then(|| mean.max(1).ilog(JOIN_SEGMENTS as u64))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.places.0 <= other.places.1 && other.places.0 <= self.places.1
    }
}

/// Does one merge, if any segments need it. Further merges have to be chosen anew, because the segments have changed.
/// A segment that cannot be read ends the merge and is added to `unreadable`.
pub(super) fn merge(cleaner: &Cleaner, unreadable: &mut HashSet<SegmentId>) -> Result<(), Ended> {
    let in_work = cleaner.in_work();
    let (mut segments, mut live) = cleaner.live();
    segments.retain(|segment| !unreadable.contains(&segment.id));
    let of = |file: &SegmentFile| live.get(&file.id).and_then(|live| Weighed::new(*file, live));
    let weighed: Vec<Weighed> = segments.iter().filter_map(of).collect();
    let mut chosen = sparse_or_small(&weighed);
    if chosen.is_empty() && weighed.iter().map(|segment| segment.extents).sum::<usize>() > cleaner.options.extents_max {
        chosen = short(&weighed).take(SETS_MAX).find(|chosen| is_worth_it(chosen, &live)).unwrap_or_default();
    }
    let bytes = chosen.iter().filter_map(|id| live.get(id)).flatten().map(|(_, extent)| extent.bytes).sum();
    if chosen.is_empty() || !cleaner.has_room(bytes, "segments are not merged")? {
        return Ok(());
    }
    let _work = cleaner.begin(in_work, chosen.iter().copied());
    let mut output = Output::new(cleaner);
    for (partition, mut extents) in by_partition(chosen.iter().filter_map(|id| live.remove(id)).flatten()).into_values()
    {
        // Retention may have advanced the start meanwhile.
        let start = partition.start();
        extents.retain(|extent| extent.end > start);
        for joined in adjoining(&extents) {
            output.begin(&partition, joined[0].base, joined[0].compacted)?;
            for extent in joined {
                output.copy(extent).inspect_err(|ended| {
                    if matches!(ended, Ended::Failed(error) if error.is_of_reading()) {
                        unreadable.insert(extent.segment);
                    }
                })?;
            }
            output.end(joined[joined.len() - 1].end);
        }
    }
    let mut upkeep = output.finish()?;
    tracing::debug!(before = chosen.len(), after = upkeep.segments.len(), bytes, "merged segments");
    upkeep.removed = chosen;
    cleaner.queue.commit_upkeep(upkeep)
}

/// Chooses the segments of which less than half is in use, and small ones if there are many. Of each kind, chooses as
/// many as one merge may write, but at least one.
fn sparse_or_small(segments: &[Weighed]) -> Vec<SegmentId> {
    let (mut chosen, mut small) = (Vec::new(), Vec::new());
    let (mut chosen_bytes, mut small_bytes) = (0, 0);
    for segment in segments {
        let is_sparse = segment.bytes * 2 < segment.file.extent_bytes;
        let (of_its_kind, bytes) =
            if is_sparse { (&mut chosen, &mut chosen_bytes) } else { (&mut small, &mut small_bytes) };
        let fits = of_its_kind.is_empty() || *bytes + segment.bytes <= SMALL_MERGE_BYTES_MAX;
        if fits && (is_sparse || segment.file.bytes < SMALL_BYTES) {
            *bytes += segment.bytes;
            of_its_kind.push(segment.file.id);
        }
    }
    if small.len() >= SMALL_SEGMENTS {
        chosen.append(&mut small);
    }
    chosen
}

/// Returns sets of segments that hold overlapping ranges of partitions, beginning with the shortest extents and, within
/// a level, with the oldest segments. Because the oldest are merged first, the segments of a level are ordered by the
/// age of their records. The sets of a level include segments of lower levels, which lie between those of the level.
fn short(segments: &[Weighed]) -> impl Iterator<Item = Vec<SegmentId>> {
    let levels: BTreeSet<u32> = segments.iter().filter_map(Weighed::level).collect();
    levels.into_iter().flat_map(|level| {
        let is_short = |segment: &&Weighed| segment.level().is_some_and(|of| of <= level);
        let mut left: Vec<&Weighed> = segments.iter().filter(is_short).collect();
        let mut sets = Vec::new();
        while left.len() >= JOIN_SEGMENTS {
            let first = left[0];
            let overlapping = || left.iter().filter(|segment| segment.overlaps(first)).take(JOIN_SEGMENTS_MAX);
            let set: Vec<SegmentId> = overlapping().map(|segment| segment.file.id).collect();
            // If the first segment spans many partitions, the others may have nothing in common. They are considered
            // again without it.
            let done = if set.len() >= JOIN_SEGMENTS { JOIN_SEGMENTS / 2 } else { 1 };
            left.retain(|segment| !set[..done].contains(&segment.file.id));
            if set.len() >= JOIN_SEGMENTS {
                sets.push(set);
            }
        }
        sets
    })
}

/// Returns whether merging leaves at most half as many extents.
fn is_worth_it(chosen: &[SegmentId], live: &Live) -> bool {
    let extents = || chosen.iter().filter_map(|id| live.get(id)).flatten();
    let after: usize = by_partition(extents().cloned()).values().map(|(_, extents)| adjoining(extents).count()).sum();
    after * 2 <= extents().count()
}

/// Groups the extents by partition, in order of offsets.
fn by_partition(
    extents: impl Iterator<Item = (Arc<Partition>, Extent)>,
) -> BTreeMap<Place, (Arc<Partition>, Vec<Extent>)> {
    let mut found: BTreeMap<Place, (Arc<Partition>, Vec<Extent>)> = BTreeMap::new();
    for (partition, extent) in extents {
        found.entry(partition.place()).or_insert_with(|| (partition, Vec::new())).1.push(extent);
    }
    found.values_mut().for_each(|(_, extents)| extents.sort_unstable_by_key(|extent| extent.base));
    found
}

/// Groups consecutive extents that are either all compacted or all not compacted.
fn adjoining(extents: &[Extent]) -> impl Iterator<Item = &[Extent]> {
    extents.chunk_by(|a, b| a.end == b.base && a.compacted == b.compacted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SEGMENT_BYTES;
    use crate::store::place::TopicId;

    /// Returns a segment with one extent for each of a topic's `partitions`.
    fn segment(id: u64, partitions: std::ops::Range<u32>, bytes: u64) -> Weighed {
        let file = SegmentFile { id: SegmentId(id), bytes, extent_bytes: bytes };
        let extents = partitions.len();
        Weighed { file, bytes, extents, places: ((TopicId(1), partitions.start), (TopicId(1), partitions.end - 1)) }
    }

    fn ids(set: &[SegmentId]) -> Vec<u64> {
        set.iter().map(|id| id.0).collect()
    }

    #[test]
    fn short_extents_are_joined_level_by_level_where_they_are_of_the_same_partitions() {
        let of_many = |id| segment(id, 0..1_000, SEGMENT_BYTES);
        let sets = |segments: &[Weighed]| short(segments).map(|set| ids(&set)).collect::<Vec<_>>();
        assert!(sets(&(0..7).map(of_many).collect::<Vec<_>>()).is_empty());
        // Eight segments, and eight of another level with fewer partitions each. A ninth shares no partition with them.
        let mut all: Vec<_> = (0..8).map(of_many).collect();
        all.extend((8..16).map(|id| segment(id, 0..100, SEGMENT_BYTES)));
        all.push(segment(16, 100..200, SEGMENT_BYTES));
        let found = sets(&all);
        assert_eq!(found[0], (0..8).collect::<Vec<_>>());
        assert!(found.contains(&(8..16).collect()), "{found:?}");
        // A set has no more segments than one merge takes.
        let twenty: Vec<_> = (0..20).map(of_many).collect();
        assert_eq!(sets(&twenty)[0], (0..12).collect::<Vec<_>>());
        // Segments of two levels alternate, so each level's lie between the other's.
        let in_turn: Vec<_> = (0..8).map(|id| segment(id, 0..1_000, (20 + id % 2 * 30) << 20)).collect();
        assert_ne!(in_turn[0].level(), in_turn[1].level());
        assert_eq!(sets(&in_turn), [(0..8).collect::<Vec<_>>()]);
        // The size of the segments does not matter.
        assert_eq!(sets(&(0..8).map(|id| segment(id, 0..1_000, 1 << 30)).collect::<Vec<_>>()).len(), 1);
        // Long extents are not joined.
        assert!(sets(&(0..20).map(|id| segment(id, 0..30, SEGMENT_BYTES)).collect::<Vec<_>>()).is_empty());
    }

    #[test]
    fn segments_with_little_in_use_are_merged_at_once_and_small_ones_once_they_are_many() {
        let small = |id| segment(id, 0..1, 1 << 20);
        let sparse = |id| Weighed { bytes: SEGMENT_BYTES / 3, ..segment(id, 0..1, SEGMENT_BYTES) };
        assert!(sparse_or_small(&(0..7).map(small).collect::<Vec<_>>()).is_empty());
        assert_eq!(sparse_or_small(&(0..8).map(small).collect::<Vec<_>>()).len(), 8);
        assert_eq!(ids(&sparse_or_small(&[small(0), sparse(1), segment(2, 0..1, SEGMENT_BYTES)])), [1]);
        // No more are chosen than one merge may write.
        assert_eq!(ids(&sparse_or_small(&(0..9).map(sparse).collect::<Vec<_>>())), [0, 1, 2, 3, 4, 5]);
        // At least one is chosen, and a large one does not hold up the others.
        let large = Weighed { bytes: 4 * SEGMENT_BYTES, ..segment(0, 0..1, 10 * SEGMENT_BYTES) };
        assert_eq!(ids(&sparse_or_small(&[large])), [0]);
        let large = Weighed { bytes: 4 * SEGMENT_BYTES, ..segment(1, 0..1, 10 * SEGMENT_BYTES) };
        let mixed: Vec<_> = [sparse(0), large].into_iter().chain((2..10).map(small)).collect();
        assert_eq!(ids(&sparse_or_small(&mixed)), [0, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
