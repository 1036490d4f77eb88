//! The fixed layouts in the file of a segment, which the documentation of the parent module lists. All fields are
//! little-endian and stand back to back, so that a layout can be read from any bytes of its size.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AbortedTransaction, Block, Extent, OwnedExtent, SegmentId, VERSION_2};
use crate::store::place::{Offset, TopicId};

/// The flag of an extent that compaction has seen.
const COMPACTED: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: U32,
    pub(super) version: U32,
}

/// An extent in version 2.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentEntry2 {
    topic: U32,
    partition: U32,
    base: I64,
    end: I64,
    first_timestamp_ms: I64,
    max_timestamp_ms: I64,
    pos: U64,
    bytes: U64,
    blocks_from: U32,
    blocks: U32,
    tombstones_due_ms: I64,
    flags: U32,
}

/// An extent in the current version.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ExtentEntry {
    as_in_version_2: ExtentEntry2,
    aborted_from: U32,
    aborted: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BlockEntry {
    base: I64,
    max_timestamp_ms: I64,
    bytes: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct AbortedEntry {
    producer_id: I64,
    first_offset: I64,
    last_offset: I64,
    last_stable_offset: I64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Footer {
    pub(super) index_pos: U64,
    pub(super) index_bytes: U32,
    pub(super) index_crc: U32,
    pub(super) version: U32,
    pub(super) magic: U32,
}

impl From<&OwnedExtent> for ExtentEntry {
    fn from(&OwnedExtent { topic, partition, extent }: &OwnedExtent) -> Self {
        let as_in_version_2 = ExtentEntry2 {
            topic: topic.0.into(),
            partition: partition.into(),
            base: extent.base.get().into(),
            end: extent.end.get().into(),
            first_timestamp_ms: extent.first_timestamp_ms.into(),
            max_timestamp_ms: extent.max_timestamp_ms.into(),
            pos: extent.pos.into(),
            bytes: extent.bytes.into(),
            blocks_from: extent.blocks_from.into(),
            blocks: extent.blocks.into(),
            tombstones_due_ms: extent.tombstones_due_ms.into(),
            flags: if extent.compacted { COMPACTED } else { 0 }.into(),
        };
        Self { as_in_version_2, aborted_from: extent.aborted_from.into(), aborted: extent.aborted.into() }
    }
}

impl ExtentEntry2 {
    /// `None` where the extent is not sound.
    fn decode(&self, segment: SegmentId, aborted_from: u32, aborted: u32) -> Option<OwnedExtent> {
        let extent = Extent {
            segment,
            base: Offset::new(self.base.get())?,
            end: Offset::new(self.end.get())?,
            first_timestamp_ms: self.first_timestamp_ms.get(),
            max_timestamp_ms: self.max_timestamp_ms.get(),
            pos: self.pos.get(),
            bytes: self.bytes.get(),
            blocks_from: self.blocks_from.get(),
            blocks: self.blocks.get(),
            tombstones_due_ms: self.tombstones_due_ms.get(),
            compacted: self.flags.get() & COMPACTED != 0,
            aborted_from,
            aborted,
        };
        let sound = extent.base < extent.end && extent.pos.checked_add(extent.bytes).is_some();
        sound.then_some(OwnedExtent { topic: TopicId(self.topic.get()), partition: self.partition.get(), extent })
    }
}

impl ExtentEntry {
    fn decode(&self, segment: SegmentId) -> Option<OwnedExtent> {
        self.as_in_version_2.decode(segment, self.aborted_from.get(), self.aborted.get())
    }
}

/// Bytes of an extent in a segment of this version.
pub(super) fn extent_bytes(version: u32) -> usize {
    if version == VERSION_2 { size_of::<ExtentEntry2>() } else { size_of::<ExtentEntry>() }
}

/// `None` where the bytes are not a whole number of sound extents.
pub(super) fn decode_extents(segment: SegmentId, bytes: &[u8], version: u32) -> Option<Vec<OwnedExtent>> {
    if version == VERSION_2 {
        let entries = <[ExtentEntry2]>::ref_from_bytes(bytes).ok()?;
        return entries.iter().map(|entry| entry.decode(segment, 0, 0)).collect();
    }
    let entries = <[ExtentEntry]>::ref_from_bytes(bytes).ok()?;
    entries.iter().map(|entry| entry.decode(segment)).collect()
}

impl From<&Block> for BlockEntry {
    fn from(block: &Block) -> Self {
        Self {
            base: block.base.get().into(),
            max_timestamp_ms: block.max_timestamp_ms.into(),
            bytes: block.bytes.into(),
            crc: block.crc.into(),
        }
    }
}

impl BlockEntry {
    /// `None` where the block begins at a negative offset.
    pub(super) fn decode(&self) -> Option<Block> {
        Some(Block {
            base: Offset::new(self.base.get())?,
            max_timestamp_ms: self.max_timestamp_ms.get(),
            bytes: self.bytes.get(),
            crc: self.crc.get(),
        })
    }
}

impl From<&AbortedTransaction> for AbortedEntry {
    fn from(aborted: &AbortedTransaction) -> Self {
        Self {
            producer_id: aborted.producer_id.into(),
            first_offset: aborted.first_offset.get().into(),
            last_offset: aborted.last_offset.get().into(),
            last_stable_offset: aborted.last_stable_offset.get().into(),
        }
    }
}

impl AbortedEntry {
    /// `None` where an offset is negative.
    pub(super) fn decode(&self) -> Option<AbortedTransaction> {
        Some(AbortedTransaction {
            producer_id: self.producer_id.get(),
            first_offset: Offset::new(self.first_offset.get())?,
            last_offset: Offset::new(self.last_offset.get())?,
            last_stable_offset: Offset::new(self.last_stable_offset.get())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::store::segment::VERSION;

    fn four(number: u32) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    fn eight(number: i64) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    fn offset(number: i64) -> Offset {
        Offset::new(number).unwrap()
    }

    #[test]
    fn layouts_are_as_documented() {
        let extent = Extent {
            segment: SegmentId(9),
            base: offset(0x0102_0304_0506_0708),
            end: offset(0x1112_1314_1516_1718),
            first_timestamp_ms: -3,
            max_timestamp_ms: 4,
            pos: 5,
            bytes: 6,
            blocks_from: 7,
            blocks: 8,
            tombstones_due_ms: i64::MAX,
            compacted: true,
            aborted_from: 10,
            aborted: 11,
        };
        let owned = OwnedExtent { topic: TopicId(0x0102_0304), partition: 2, extent };
        let bytes = [
            four(0x0102_0304),
            four(2),
            eight(0x0102_0304_0506_0708),
            eight(0x1112_1314_1516_1718),
            eight(-3),
            eight(4),
            eight(5),
            eight(6),
            four(7),
            four(8),
            eight(i64::MAX),
            four(1),
            four(10),
            four(11),
        ]
        .concat();
        assert_eq!(ExtentEntry::from(&owned).as_bytes(), bytes);
        assert_eq!([VERSION, VERSION_2].map(extent_bytes), [84, 76]);
        assert_eq!(decode_extents(SegmentId(9), &bytes, VERSION), Some(vec![owned]));
        let of_version_2 = Extent { aborted_from: 0, aborted: 0, ..extent };
        let owned = OwnedExtent { extent: of_version_2, ..owned };
        assert_eq!(decode_extents(SegmentId(9), &bytes[..76], VERSION_2), Some(vec![owned]));
        assert_eq!(decode_extents(SegmentId(9), &bytes[..83], VERSION), None);
        assert_eq!(decode_extents(SegmentId(9), &bytes, VERSION_2), None);

        let block = Block { base: offset(1), max_timestamp_ms: -2, bytes: 3, crc: 4 };
        let entry = BlockEntry::from(&block);
        assert_eq!(entry.as_bytes(), [eight(1), eight(-2), four(3), four(4)].concat());
        assert_eq!(entry.decode(), Some(block));

        let (first_offset, last_offset, last_stable_offset) = (offset(2), offset(3), offset(4));
        let aborted = AbortedTransaction { producer_id: 1, first_offset, last_offset, last_stable_offset };
        let entry = AbortedEntry::from(&aborted);
        assert_eq!(entry.as_bytes(), [eight(1), eight(2), eight(3), eight(4)].concat());
        assert_eq!(entry.decode(), Some(aborted));

        let (index_bytes, index_crc) = (2.into(), 3.into());
        let footer = Footer { index_pos: 1.into(), index_bytes, index_crc, version: 4.into(), magic: 5.into() };
        assert_eq!(footer.as_bytes(), [eight(1), four(2), four(3), four(4), four(5)].concat());
        let header = Header { magic: 1.into(), version: 2.into() };
        assert_eq!(header.as_bytes(), [four(1), four(2)].concat());
    }

    #[test]
    fn negative_offsets_are_refused() {
        assert_eq!(BlockEntry { base: I64::new(-1), ..BlockEntry::new_zeroed() }.decode(), None);
        for negative in 1..4 {
            let mut fields = [I64::ZERO; 4];
            fields[negative] = I64::new(-1);
            let entry: AbortedEntry = zerocopy::transmute!(fields);
            assert_eq!(entry.decode(), None, "field {negative}");
        }
    }
}
