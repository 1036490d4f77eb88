//! Segments: immutable files with older batches, sorted by topic, partition and offset.
//!
//! ```text
//! file    = header, blocks of extents, index, footer
//! header  = magic u32, version u32
//! block   = whole record batches of one partition, back to back
//! index   = extent count u32, block count u32, extent*, block*, aborted*
//! extent  = topic u32, partition u32, base i64, end i64, first timestamp i64, max timestamp i64,
//!           position u64, bytes u64, first block u32, blocks u32, tombstones due i64, flags u32,
//!           first aborted u32, aborted u32
//! block   = base i64, max timestamp i64, bytes u32, crc u32
//! aborted = producer id i64, first offset i64, last offset i64, last stable offset i64
//! footer  = index position u64, index bytes u32, index crc u32, version u32, magic u32
//! ```
//! All integers are little-endian. An extent is a range of offsets of one partition. The blocks of an extent are
//! contiguous in the file, and blocks and aborted transactions are listed in the order of the extents. The CRC-32C of a
//! block covers all its bytes, including the fields that the checksum of a record batch leaves out.
//!
//! Version 2, which data format 4 wrote, has no block count, no aborted transactions, and extents without the last two
//! fields. Segments of version 2 are still read, because a restore copies the segments of a backup unchanged.

mod layout;
mod read;
mod write;

pub(crate) use read::{BlockFault, OpenSegment, Scanned, Sealed, scan, scan_sound, sound_part};
pub(crate) use write::SegmentWriter;

use layout::{ExtentEntry, decode_extents};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::error::StoreError;
use crate::store::place::{Offset, TopicId};

const MAGIC: u32 = u32::from_le_bytes(*b"MSSG");
const VERSION: u32 = 3;
/// The version that data format 4 wrote.
const VERSION_2: u32 = 2;

/// A block is closed once it reaches this size. It is the minimum that is read and verified at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Name of the folder of segments in the data directory.
pub(crate) const FOLDER: &str = "segments";

/// Identifies a segment. Numbers ascend and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SegmentId(pub(crate) u64);

impl SegmentId {
    /// Returns the path of its file in the data directory.
    pub(crate) fn file_name(self) -> String {
        format!("{FOLDER}/{:016x}.segment", self.0)
    }

    pub(crate) fn from_file_name(name: &str) -> Option<Self> {
        let hex = name.strip_suffix(".segment")?;
        u64::from_str_radix(hex, 16).ok().map(Self)
    }
}

/// A range of offsets of one partition in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) segment: SegmentId,
    pub(crate) base: Offset,
    /// The end of its range, exclusive. Compaction may have removed the records before it.
    pub(crate) end: Offset,
    pub(crate) first_timestamp_ms: i64,
    pub(crate) max_timestamp_ms: i64,
    /// Position of its first block in the file.
    pub(crate) pos: u64,
    pub(crate) bytes: u64,
    /// Index of its first block in the segment's index.
    pub(crate) blocks_from: u32,
    pub(crate) blocks: u32,
    /// When the first tombstone that compaction kept in it may be removed, in ms since the epoch. `i64::MAX` if there
    /// is none.
    pub(crate) tombstones_due_ms: i64,
    /// Whether compaction has processed it.
    pub(crate) compacted: bool,
    /// Index of its first aborted transaction in the segment's index.
    pub(crate) aborted_from: u32,
    /// Number of aborted transactions that end in it.
    pub(crate) aborted: u32,
}

/// An aborted transaction, as in Kafka's transaction index (`AbortedTxn`). It belongs to the extent that contains its
/// abort marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortedTransaction {
    pub(crate) producer_id: i64,
    /// Offset of the first record of the transaction.
    pub(crate) first_offset: Offset,
    /// Offset of the abort marker.
    pub(crate) last_offset: Offset,
    /// The partition's last stable offset once the marker was written. A search for the aborted transactions below an
    /// offset can end at an entry whose last stable offset is not below it.
    pub(crate) last_stable_offset: Offset,
}

/// An extent, and the topic and partition that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnedExtent {
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    pub(crate) extent: Extent,
}

/// A segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentFile {
    pub(crate) id: SegmentId,
    /// Size of the whole file.
    pub(crate) bytes: u64,
    /// Total size of all extents that were written to it.
    pub(crate) extent_bytes: u64,
}

/// The registry's entry for a segment: its file, and the extents that are in use. The file's index has all extents that
/// were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    pub(crate) file: SegmentFile,
    pub(crate) extents: Vec<OwnedExtent>,
}

impl SegmentMeta {
    /// Encodes the registry row: file bytes u64, extent bytes u64, then extents as in the file's index.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.extents.len() * size_of::<ExtentEntry>());
        out.extend_from_slice([self.file.bytes, self.file.extent_bytes].map(U64::new).as_bytes());
        self.extents.iter().for_each(|owned| out.extend_from_slice(ExtentEntry::from(owned).as_bytes()));
        out
    }

    pub(crate) fn decode(id: SegmentId, row: &[u8]) -> Result<Self, StoreError> {
        Self::decode_version(id, row, VERSION)
    }

    /// Decodes a row that data format 4 wrote.
    pub(crate) fn decode_format_4(id: SegmentId, row: &[u8]) -> Result<Self, StoreError> {
        Self::decode_version(id, row, VERSION_2)
    }

    fn decode_version(id: SegmentId, row: &[u8], version: u32) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt {
            what: format!("the registry's entry of segment {:016x}", id.0),
            reason: format!("its {} bytes are not a valid list of extents", row.len()),
        };
        let (sizes, extents) = <[U64; 2]>::ref_from_prefix(row).map_err(|_| corrupt())?;
        let [bytes, extent_bytes] = sizes.map(U64::get);
        let extents = decode_extents(id, extents, version).ok_or_else(corrupt)?;
        Ok(Self { file: SegmentFile { id, bytes, extent_bytes }, extents })
    }
}

/// A block of an extent, as the index has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Offset of its first batch.
    pub(crate) base: Offset,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millstream_record::checksum;
    use millstream_record::{BatchBuilder, BatchHeader, Compression, patch_batch};
    use proptest::prelude::*;

    use super::layout::extent_bytes;
    use super::read::{Scanned, scan, sound_part};
    use super::*;
    use crate::seeded::seeded;
    use crate::store::LEADER_EPOCH;

    /// Damage to a batch of a block.
    #[derive(Clone, Copy, Debug)]
    enum Wrong {
        Nothing,
        /// The base offset is changed by this much. The batch's checksum does not cover it.
        Base(i64),
        /// The last offset is changed by this much, under a matching checksum.
        End(i32),
        /// One byte is changed. The checksum is recomputed if the flag is set.
        Byte(usize, u8, bool),
    }

    fn wrong() -> impl Strategy<Value = Wrong> {
        prop_oneof![
            4 => Just(Wrong::Nothing),
            2 => (-5i64..6).prop_map(Wrong::Base),
            1 => (-2i32..6).prop_map(Wrong::End),
            2 => (0usize..1_000, any::<u8>(), any::<bool>()).prop_map(|(at, byte, sealed)| Wrong::Byte(at, byte, sealed)),
        ]
    }

    fn seal(batch: &mut [u8]) {
        let crc = checksum::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }

    /// Returns contiguous batches from offset 100 on with the given record counts, and the end offset.
    fn block(batches: &[(usize, Wrong)]) -> (Vec<u8>, Offset) {
        let (mut block, mut next) = (Vec::new(), 100);
        for &(records, wrong) in batches {
            let mut builder = BatchBuilder::new(Compression::None);
            (0..records).for_each(|number| builder.push(number as i64, None, Some(b"value"), []));
            let mut batch = builder.finish().unwrap().into_bytes().to_vec();
            patch_batch(&mut batch, next, LEADER_EPOCH);
            match wrong {
                Wrong::Nothing => {}
                Wrong::Base(by) => batch[..8].copy_from_slice(&(next + by).to_be_bytes()),
                Wrong::End(by) => {
                    batch[23..27].copy_from_slice(&(records as i32 - 1 + by).to_be_bytes());
                    seal(&mut batch);
                }
                Wrong::Byte(at, byte, sealed) => {
                    let at = at % batch.len();
                    batch[at] = byte;
                    if sealed {
                        seal(&mut batch);
                    }
                }
            }
            block.extend_from_slice(&batch);
            next += records as i64;
        }
        (block, Offset::new(next).unwrap())
    }

    proptest! {
        #![proptest_config(seeded())]

        #[test]
        fn a_registrys_row_of_any_bytes_is_refused_or_sound(
            extents in 0usize..4, bytes in prop::collection::vec(any::<u8>(), 0..400), plain: bool, extra in 0usize..3,
        ) {
            // Small numbers make it likely that some rows are valid.
            let mut row: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| if plain && at % 8 > 0 { 0 } else { *byte }).collect();
            row.resize(16 + extents * extent_bytes(VERSION) + extra, 0);
            match SegmentMeta::decode(SegmentId(3), &row) {
                Ok(meta) => {
                    prop_assert_eq!((extra, meta.extents.len()), (0, extents));
                    for OwnedExtent { extent, .. } in &meta.extents {
                        prop_assert!(extent.base < extent.end);
                        prop_assert!(extent.pos.checked_add(extent.bytes).is_some());
                    }
                    prop_assert_eq!(SegmentMeta::decode(SegmentId(3), &meta.encode()).unwrap(), meta);
                }
                Err(error) => prop_assert!(error.to_string().contains("0000000000000003"), "{error}"),
            }
        }

        /// Whatever the damage to a block, the parts cover each byte exactly once and in order, and each part
        /// reported as sound is a valid batch.
        #[test]
        fn a_block_of_any_bytes_is_told_part_by_part(
            batches in prop::collection::vec((1usize..4, wrong()), 1..6),
            cut in any::<prop::sample::Index>(), from in 90i64..120,
        ) {
            let (mut damaged, end) = block(&batches);
            let whole = damaged.len();
            // Half of the blocks stay whole.
            damaged.truncate(cut.index(2 * whole + 1));
            let range = Offset::new(100).unwrap()..end;
            let damaged = Bytes::from(damaged);
            let (mut at, mut next) = (0, range.start);
            for scanned in scan(&damaged, range.clone()) {
                match scanned {
                    Scanned::Batch { at: begin, header } => {
                        prop_assert_eq!(begin, at);
                        prop_assert!(header.base_offset >= next.get() && header.next_offset() <= end.get());
                        at += header.batch_bytes;
                        next = Offset::new(header.next_offset()).unwrap();
                    }
                    Scanned::Damaged { bytes, fault } => {
                        prop_assert_eq!((bytes.start, fault.base), (at, next));
                        prop_assert!(fault.end >= fault.base && !fault.reason.is_empty());
                        (at, next) = (bytes.end, fault.end);
                    }
                }
            }
            prop_assert_eq!(at, damaged.len());
            if let Ok(part) = sound_part(&damaged, range.clone(), Offset::new(from).unwrap()) {
                prop_assert!(part.end <= end);
                prop_assert!(part.bytes.is_empty() || BatchHeader::parse(&part.bytes).is_ok());
            }
            if damaged.len() == whole && batches.iter().all(|(_, wrong)| matches!(wrong, Wrong::Nothing)) {
                let all_sound = scan(&damaged, range).iter().all(|scanned| matches!(scanned, Scanned::Batch { .. }));
                prop_assert!(all_sound, "an intact block is reported as damaged");
            }
        }
    }
}
