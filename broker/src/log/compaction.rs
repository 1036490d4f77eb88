//! Compaction keeps the last record of each key among the sealed records of a partition, like Kafka's log cleaner.
//! Records keep their offsets. A tombstone is kept until its delete horizon (KIP-534), so that readers learn of the
//! deletion. Records without a key are kept; a topic that was not always compacted may have some. The last sealed
//! record is always kept, so that the log never ends in a hole.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::hash::HashMap;
use bytes::Bytes;
use millstream_record::{BatchHeader, RecordBatch, RecordView, Retained};
use siphasher::sip128::{Hash128, SipHasher13};

use crate::log::cleaner::Cleaner;
use crate::log::commit::Upkeep;
use crate::log::output::Output;
use crate::log::partition::Partition;
use crate::log::queue::Ended;
use crate::log::transactions::{Aborted, is_hidden};
use crate::store::StoreError;
use crate::store::place::Offset;
use crate::store::segment::{Extent, Scanned};

/// The hash of a record's key: the 128 bits of a SipHash-1-3 whose own key is drawn at random for each pass.
///
/// If two record keys had the same hash, compaction could remove the last record of one of them. The chance that a pass
/// remembers two such keys among 2^20 is 2^-89. If the pass looks up a trillion other keys, the chance that one of them
/// has the hash of a remembered key is 2^-68. Clients cannot provoke a collision, because they would have to know the
/// random key, which never leaves the pass.
type KeyHash = [u64; 2];

/// The last offset of each key in the extents that have not been compacted yet.
struct LastOffsets {
    hasher: SipHasher13,
    last: HashMap<KeyHash, i64>,
    /// All of the partition's sealed records below this offset are covered. It is the base offset of a batch, or the
    /// end.
    end: Offset,
}

impl LastOffsets {
    /// Draws the key of the hashes. Its random bits come from [`RandomState`], so that a simulation can control them.
    fn new(end: Offset) -> Self {
        let random = RandomState::new();
        let hasher = SipHasher13::new_with_keys(random.hash_one(0u64), random.hash_one(1u64));
        Self { hasher, last: HashMap::default(), end }
    }

    fn hash(&self, key: &[u8]) -> KeyHash {
        let Hash128 { h1, h2 } = self.hasher.hash(key);
        [h1, h2]
    }

    fn insert(&mut self, key: &[u8], offset: i64) {
        self.last.insert(self.hash(key), offset);
    }

    fn get(&self, key: &[u8]) -> Option<i64> {
        self.last.get(&self.hash(key)).copied()
    }
}

/// Compacts a partition's sealed records.
pub(super) fn compact(
    cleaner: &Cleaner,
    partition: &Arc<Partition>,
    now_ms: i64,
    horizon_ms: i64,
) -> Result<(), Ended> {
    let in_work = cleaner.in_work();
    let mut extents = partition.extents();
    // What becomes of the records of open transactions is not known yet.
    let stable_end = partition.stable_end();
    extents.retain(|extent| extent.end <= stable_end);
    let Some(last) = extents.last() else { return Ok(()) };
    let aborted = partition.aborted(Offset::ZERO, last.end);
    // The old segments are removed only after all retained records have been written.
    if !cleaner.has_room(extents.iter().map(|extent| extent.bytes).sum(), "records are not compacted")? {
        return Ok(());
    }
    let _work = cleaner.begin(in_work, extents.iter().map(|extent| extent.segment));
    let keys = last_offsets(cleaner, &extents, last.end, &aborted)?;
    let mut pass = Pass {
        cleaner,
        partition,
        keys,
        aborted,
        now_ms,
        horizon_ms,
        keeps: last.end.get() - 1,
        is_past: false,
        output: Output::new(cleaner),
    };
    // Retention may have advanced the start meanwhile.
    let start = partition.start();
    let is_covered = |extent: &Extent| extent.end > start && extent.base < pass.keys.end;
    let covered: Vec<Extent> = extents.into_iter().filter(is_covered).collect();
    let (Some(first), Some(last)) = (covered.first(), covered.last()) else { return Ok(()) };
    let (base, end) = (first.base, last.end);
    let mut replaced = Upkeep::default();
    cleaner.without(partition, &covered, &mut replaced)?;
    pass.output.begin(partition, base, true)?;
    covered.iter().try_for_each(|extent| pass.extent(extent))?;
    pass.output.end(end);
    let mut upkeep: Upkeep = pass.output.finish()?;
    upkeep.segments.append(&mut replaced.segments);
    upkeep.removed = replaced.removed;
    let new = join(partition, &mut upkeep);
    tracing::debug!(
        partition = %partition.name(), %base, %end,
        bytes_before = covered.iter().map(|extent| extent.bytes).sum::<u64>(), bytes_after = new, "compacted"
    );
    cleaner.queue.commit_upkeep(upkeep)
}

/// Joins the partition's new extents, which may be in several segments, so that they replace the old ones together.
/// Returns their total size in bytes.
fn join(partition: &Arc<Partition>, upkeep: &mut Upkeep) -> u64 {
    let extents: Vec<Extent> = std::mem::take(&mut upkeep.extents).into_iter().flat_map(|(_, new)| new).collect();
    let bytes = extents.iter().map(|extent| extent.bytes).sum();
    upkeep.extents.push((partition.clone(), extents));
    bytes
}

/// Collects the last offset of each key from the extents that have not been compacted yet, until `keys_max` keys are
/// remembered. `end` is the end of all extents.
fn last_offsets(cleaner: &Cleaner, extents: &[Extent], end: Offset, aborted: &[Aborted]) -> Result<LastOffsets, Ended> {
    let mut found = LastOffsets::new(end);
    for extent in extents.iter().filter(|extent| !extent.compacted) {
        if found.end < end {
            break;
        }
        let segment = cleaner.store.registry().segment_of(extent)?;
        segment.visit(extent, |bytes, scanned| -> Result<(), StoreError> {
            let Scanned::Batch { at, header } = scanned else { return Ok(()) };
            if found.end < end {
                return Ok(());
            }
            if found.last.len() >= cleaner.options.keys_max {
                found.end = base_offset(&header);
                return Ok(());
            }
            // Control batches have keys that mean something else, and nobody sees records of aborted transactions.
            if is_hidden(&header, aborted) {
                return Ok(());
            }
            let records = batch_of(bytes, at, &header)?.records(&cleaner.limits).map_err(unreadable)?;
            for record in &records {
                let record = record.map_err(unreadable)?;
                if let Some(key) = record.key {
                    found.insert(key, record.offset);
                }
            }
            Ok(())
        })?;
        if cleaner.is_closing() {
            return Err(Ended::Closing);
        }
    }
    Ok(found)
}

struct Pass<'a> {
    cleaner: &'a Cleaner,
    partition: &'a Arc<Partition>,
    keys: LastOffsets,
    /// The aborted transactions.
    aborted: Vec<Aborted>,
    now_ms: i64,
    horizon_ms: i64,
    /// The offset of the last sealed record, which is always kept.
    keeps: i64,
    /// Whether the pass is beyond the offset up to which keys are known. The rest of the last extent is kept as it is.
    is_past: bool,
    output: Output<'a>,
}

impl Pass<'_> {
    fn extent(&mut self, extent: &Extent) -> Result<(), Ended> {
        let segment = self.cleaner.store.registry().segment_of(extent)?;
        let mut aborted = segment.aborted(extent).iter().peekable();
        segment.visit(extent, |bytes, scanned| {
            let next = match &scanned {
                Scanned::Batch { header, .. } => header.next_offset(),
                Scanned::Damaged { fault, .. } => fault.end.get(),
            };
            self.scanned(bytes, scanned)?;
            // A transaction stays with its marker, which may be in another extent now.
            while let Some(aborted) = aborted.next_if(|aborted| aborted.last_offset.get() < next) {
                self.output.writer()?.push_aborted(*aborted);
            }
            Ok::<_, Ended>(())
        })?;
        for aborted in aborted {
            self.output.writer()?.push_aborted(*aborted);
        }
        Ok(())
    }

    fn scanned(&mut self, bytes: &Bytes, scanned: Scanned) -> Result<(), Ended> {
        match scanned {
            Scanned::Damaged { bytes: ref damaged, .. } => {
                self.output.writer()?.push_scanned(bytes, &scanned)?;
                self.output.wrote(damaged.len() as u64)
            }
            Scanned::Batch { at, header } => {
                self.next_extent(&header)?;
                let batch = batch_of(bytes, at, &header)?;
                let is_last = header.next_offset() > self.keeps;
                let kept = if self.is_past || header.is_control {
                    Retained::All
                } else if !is_last && is_hidden(&header, &self.aborted) {
                    Retained::Nothing
                } else {
                    self.retain(&batch)?
                };
                match &kept {
                    Retained::All => self.output.writer()?.push(batch.as_bytes(), &header)?,
                    Retained::Some(kept) => {
                        let header = BatchHeader::parse(kept.as_bytes()).map_err(unreadable)?;
                        self.output.writer()?.push(kept.as_bytes(), &header)?;
                    }
                    Retained::Nothing => {}
                }
                self.output.wrote(header.batch_bytes as u64)
            }
        }
    }

    fn retain(&mut self, batch: &RecordBatch) -> Result<Retained, Ended> {
        let horizon_ms = batch.delete_horizon_ms();
        let tombstones_go = horizon_ms.is_some_and(|horizon_ms| horizon_ms <= self.now_ms);
        let mut tombstone_stays = false;
        let keep = |record: &RecordView<'_>| {
            let Some(key) = record.key else { return true };
            if record.offset == self.keeps {
                return true;
            }
            let is_last = self.keys.get(key).is_none_or(|last| record.offset >= last);
            let stays = is_last && !(record.value.is_none() && tombstones_go);
            tombstone_stays |= stays && record.value.is_none();
            stays
        };
        let retained = batch.retain(&self.cleaner.limits, self.horizon_ms, keep).map_err(unreadable)?;
        let due_ms = match &retained {
            Retained::All => horizon_ms,
            Retained::Some(kept) => kept.delete_horizon_ms(),
            Retained::Nothing => None,
        };
        if let Some(due_ms) = due_ms.filter(|_| tombstone_stays) {
            self.output.writer()?.tombstones_due(due_ms);
        }
        Ok(retained)
    }

    /// Begins a new extent if the segment is full, or where the compacted part ends.
    fn next_extent(&mut self, header: &BatchHeader) -> Result<(), Ended> {
        let base = base_offset(header);
        let was_past = std::mem::replace(&mut self.is_past, base >= self.keys.end);
        if self.is_past != was_past || self.output.is_full() {
            self.output.end(base);
            self.output.begin(self.partition, base, !self.is_past)?;
        }
        Ok(())
    }
}

fn base_offset(header: &BatchHeader) -> Offset {
    Offset::new(header.base_offset).unwrap_or_default()
}

fn batch_of(bytes: &Bytes, at: usize, header: &BatchHeader) -> Result<RecordBatch, StoreError> {
    RecordBatch::from_log(bytes.slice(at..at + header.batch_bytes)).map_err(unreadable)
}

fn unreadable(source: millstream_record::BatchError) -> StoreError {
    StoreError::Corrupt { what: "a sealed record batch".into(), reason: source.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pass_hashes_keys_in_its_own_way() {
        let (mut pass, other) = (LastOffsets::new(Offset::ZERO), LastOffsets::new(Offset::ZERO));
        assert_eq!(pass.hash(b"key"), pass.hash(b"key"));
        assert_ne!(pass.hash(b"key"), pass.hash(b"yek"));
        assert_ne!(pass.hash(b"key"), other.hash(b"key"));
        pass.insert(b"key", 3);
        pass.insert(b"", 4);
        pass.insert(b"key", 5);
        assert_eq!((pass.get(b"key"), pass.get(b""), pass.get(b"yek")), (Some(5), Some(4), None));
    }
}
