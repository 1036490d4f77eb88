//! Reads segments. Everything returned was verified against its block's checksum. If a block does not match, each batch
//! is verified, so that damage only affects the batch that it is in. Data that looks damaged is read a second time, so
//! that a transient read error does not make merging or compaction drop data that is intact on disk.

use millstream_record::checksum;
use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use millstream_record::{BatchHeader, RecordBatch};
use redb::StorageBackend;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::super::error::StoreError;
use super::super::files::{Backend, Files};
use super::layout::{AbortedEntry, BlockEntry, Footer, Header, decode_extents, extent_bytes};
use super::{AbortedTransaction, Block, Extent, MAGIC, SegmentFile, SegmentId, SegmentMeta, VERSION, VERSION_2};
use crate::store::LEADER_EPOCH;
use crate::store::place::Offset;

/// A segment that is open for reading.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    name: String,
    file: Backend,
    /// `None` if the index is damaged. Each extent is then treated as one block without a checksum.
    index: Option<Index>,
}

/// The content of a segment's index, except the extents.
#[derive(Debug)]
pub(in crate::store) struct Index {
    blocks: Vec<Block>,
    aborted: Vec<AbortedTransaction>,
}

/// The result of reading an extent: whole batches, starting with the one that contains the requested offset or the next
/// one after it.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) bytes: Bytes,
    /// Everything in the extent below this offset was read.
    pub(crate) end: Offset,
}

/// A range of offsets whose records are lost, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockFault {
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    pub(crate) reason: String,
}

impl OpenSegment {
    pub(in crate::store) fn open(files: &Files, of: SegmentFile) -> Result<Self, StoreError> {
        let name = of.id.file_name();
        let file = files.open(&name)?;
        let mut segment = Self { name, file, index: None };
        let index = match segment.read_index(of.bytes)? {
            Err(_) => segment.read_index(of.bytes)?,
            sound => sound,
        };
        match index {
            Ok(index) => segment.index = Some(index),
            Err(reason) => tracing::warn!(
                segment = segment.name,
                reason,
                "the index of a segment is damaged: reads scan its batches instead"
            ),
        }
        Ok(segment)
    }

    /// Returns the metadata in the segment's own file: all extents that were written, including those that were
    /// replaced by others since. Returns `None` if its index is damaged.
    pub(in crate::store) fn own_meta(files: &Files, id: SegmentId) -> Result<Option<SegmentMeta>, StoreError> {
        let name = id.file_name();
        let file = files.open(&name)?;
        let segment = Self { name, file, index: None };
        let bytes = segment.len()?;
        let Ok((index, version)) = segment.index_bytes_of(bytes)? else { return Ok(None) };
        let Ok(parts) = IndexParts::of(&index, version) else { return Ok(None) };
        let Some(extents) = decode_extents(id, parts.extents, version) else { return Ok(None) };
        let extent_bytes = extents.iter().map(|owned| owned.extent.bytes).sum();
        Ok(Some(SegmentMeta { file: SegmentFile { id, bytes, extent_bytes }, extents }))
    }

    /// Reads the index of a file of `file_bytes` bytes. The inner error says what is wrong with the index.
    pub(in crate::store) fn read_index(&self, file_bytes: u64) -> Result<Result<Index, String>, StoreError> {
        let index = self.index_bytes_of(file_bytes)?;
        Ok(index.and_then(|(index, version)| IndexParts::of(&index, version)?.decode()))
    }

    /// Returns the bytes of the index, verified against their checksum, and the version of the segment.
    fn index_bytes_of(&self, file_bytes: u64) -> Result<Result<(Vec<u8>, u32), String>, StoreError> {
        let Some(footer_pos) = file_bytes.checked_sub(size_of::<Footer>() as u64) else {
            return Ok(Err(format!("a file of {file_bytes} bytes has no footer")));
        };
        let footer: Footer = self.layout_at(footer_pos)?;
        let (index_pos, index_bytes) = (footer.index_pos.get(), footer.index_bytes.get() as usize);
        let version = footer.version.get();
        if !is_known(version) || footer.magic.get() != MAGIC {
            return Ok(Err("its footer has not its mark".to_owned()));
        }
        if index_bytes < 4 || index_pos.checked_add(index_bytes as u64) != Some(footer_pos) {
            return Ok(Err("its index does not end where its footer starts".to_owned()));
        }
        let index = self.bytes_at(index_pos, index_bytes)?;
        if checksum::crc32c(&index) != footer.index_crc.get() {
            return Ok(Err("its index does not match its checksum".to_owned()));
        }
        Ok(Ok((index, version)))
    }

    /// Returns how much memory the index takes, in bytes.
    pub(crate) fn index_bytes(&self) -> usize {
        self.index.as_ref().map_or(0, |Index { blocks, aborted }| {
            blocks.len() * size_of::<Block>() + aborted.len() * size_of::<AbortedTransaction>()
        })
    }

    /// Returns the aborted transactions whose markers are in an extent, in marker order. Empty if the index is damaged.
    pub(crate) fn aborted(&self, extent: &Extent) -> &[AbortedTransaction] {
        let from = extent.aborted_from as usize;
        let listed = self.index.as_ref().and_then(|index| index.aborted.get(from..from + extent.aborted as usize));
        listed.unwrap_or_default()
    }

    /// Returns the blocks of an extent.
    fn blocks(&self, extent: &Extent) -> Cow<'_, [Block]> {
        let Some(Index { blocks, .. }) = &self.index else {
            return Cow::Owned(vec![Block {
                base: extent.base,
                max_timestamp_ms: extent.max_timestamp_ms,
                bytes: u32::try_from(extent.bytes).unwrap_or(u32::MAX),
                crc: 0,
            }]);
        };
        let from = extent.blocks_from as usize;
        Cow::Borrowed(blocks.get(from..from + extent.blocks as usize).unwrap_or_default())
    }

    /// Returns the base offsets of blocks that may contain records at or after both `timestamp_ms` and offset `start`.
    pub(crate) fn blocks_at(&self, extent: &Extent, start: Offset, timestamp_ms: i64) -> Vec<Offset> {
        let blocks = self.blocks(extent);
        let before = blocks.partition_point(|block| block.base <= start).saturating_sub(1);
        let found = blocks[before..].iter().filter(|block| block.max_timestamp_ms >= timestamp_ms);
        found.map(|block| block.base).collect()
    }

    /// Reads about `bytes_max` bytes, but at least one block, starting at the batch that contains `from`.
    ///
    /// # Errors
    /// The outer error if the file cannot be read, the inner error if the records at `from` are damaged.
    pub(crate) fn read(
        &self,
        extent: &Extent,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Result<Sealed, BlockFault>, StoreError> {
        let blocks = self.blocks(extent);
        let first = blocks.partition_point(|block| block.base <= from).saturating_sub(1);
        let pos = extent.pos + blocks[..first].iter().map(|block| u64::from(block.bytes)).sum::<u64>();
        let mut last = first;
        let mut len = 0usize;
        while last < blocks.len() && (last == first || len + blocks[last].bytes as usize <= bytes_max) {
            len += blocks[last].bytes as usize;
            last += 1;
        }
        let mut bytes = Bytes::from(self.bytes_at(pos, len)?);
        if let (true, Some(block)) = (self.index.is_some(), blocks.get(first))
            && checksum::crc32c(&bytes[..block.bytes as usize]) != block.crc
        {
            bytes = Bytes::from(self.bytes_at(pos, len)?);
        }
        let mut at = 0;
        for (index, block) in blocks[first..last].iter().enumerate() {
            let block_end = blocks.get(first + index + 1).map_or(extent.end, |next| next.base);
            let block_bytes = bytes.slice(at..at + block.bytes as usize);
            if self.index.is_some() && checksum::crc32c(&block_bytes) == block.crc {
                at += block.bytes as usize;
                continue;
            }
            if index > 0 {
                // The blocks before this one are intact. This one is examined when it is requested.
                return Ok(Ok(Sealed { bytes: bytes.slice(..at), end: block.base }));
            }
            return Ok(sound_part(&block_bytes, block.base..block_end, from));
        }
        let end = blocks.get(last).map_or(extent.end, |next| next.base);
        Ok(Ok(Sealed { bytes, end }))
    }

    /// Reads an extent block by block, and calls `visit` with each intact batch and each damaged part.
    pub(crate) fn visit<E: From<StoreError>>(
        &self,
        extent: &Extent,
        mut visit: impl FnMut(&Bytes, Scanned) -> Result<(), E>,
    ) -> Result<(), E> {
        let blocks = self.blocks(extent);
        let mut pos = extent.pos;
        for (index, block) in blocks.iter().enumerate() {
            let end = blocks.get(index + 1).map_or(extent.end, |next| next.base);
            let read = || Ok::<_, StoreError>(Bytes::from(self.bytes_at(pos, block.bytes as usize)?));
            let mut bytes = read()?;
            let mut found = scan(&bytes, block.base..end);
            if found.iter().any(|scanned| matches!(scanned, Scanned::Damaged { .. })) {
                bytes = read()?;
                found = scan(&bytes, block.base..end);
            }
            pos += u64::from(block.bytes);
            for scanned in found {
                visit(&bytes, scanned)?;
            }
        }
        Ok(())
    }

    fn bytes_at(&self, pos: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        match self.file.read_new(pos, len) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let mut bytes = vec![0; len];
                self.read_at(pos, &mut bytes)?;
                Ok(bytes)
            }
            read => read.map_err(|source| self.failed(source)),
        }
    }

    /// Reads a fixed layout.
    fn layout_at<T: FromBytes + IntoBytes>(&self, pos: u64) -> Result<T, StoreError> {
        let mut layout = T::new_zeroed();
        self.read_at(pos, layout.as_mut_bytes())?;
        Ok(layout)
    }

    /// Reads into bytes that are zero. Zeros stay where the file was cut off: no batch, no index and no footer is sound
    /// then.
    fn read_at(&self, pos: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        let len = bytes.len();
        match self.file.read(pos, bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let there = usize::try_from(self.len()?.saturating_sub(pos)).unwrap_or(len);
                self.file.read(pos, &mut bytes[..there.min(len)]).map_err(|source| self.failed(source))
            }
            read => read.map_err(|source| self.failed(source)),
        }
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn len(&self) -> Result<u64, StoreError> {
        self.file.len().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError::io("read", std::path::Path::new(&self.name), source)
    }

    /// Returns whether the file starts with a valid segment header.
    pub(crate) fn has_header(&self) -> Result<bool, StoreError> {
        let header: Header = self.layout_at(0)?;
        Ok(header.magic.get() == MAGIC && is_known(header.version.get()))
    }
}

/// Returns whether segments of this version can be read.
fn is_known(version: u32) -> bool {
    version == VERSION || version == VERSION_2
}

/// The encoded parts of an index.
struct IndexParts<'a> {
    extents: &'a [u8],
    blocks: &'a [BlockEntry],
    aborted: &'a [AbortedEntry],
}

impl<'a> IndexParts<'a> {
    fn of(index: &'a [u8], version: u32) -> Result<Self, String> {
        let counted = |bytes: &'a [u8]| {
            let (extent_count, rest) = U32::ref_from_prefix(bytes).ok()?;
            let extents = extent_count.get() as usize * extent_bytes(version);
            if version == VERSION_2 {
                let (extents, rest) = rest.split_at_checked(extents)?;
                let (blocks, _) = <[BlockEntry]>::ref_from_prefix(rest).ok()?;
                return Some(Self { extents, blocks, aborted: &[] });
            }
            let (block_count, rest) = U32::ref_from_prefix(rest).ok()?;
            let (extents, rest) = rest.split_at_checked(extents)?;
            let (blocks, rest) = <[BlockEntry]>::ref_from_prefix_with_elems(rest, block_count.get() as usize).ok()?;
            let (aborted, _) = <[AbortedEntry]>::ref_from_prefix(rest).ok()?;
            Some(Self { extents, blocks, aborted })
        };
        counted(index).ok_or_else(|| "its index is too short".to_owned())
    }

    fn decode(&self) -> Result<Index, String> {
        let blocks: Option<_> = self.blocks.iter().map(BlockEntry::decode).collect();
        let aborted: Option<_> = self.aborted.iter().map(AbortedEntry::decode).collect();
        Ok(Index {
            blocks: blocks.ok_or("a block starts at a negative offset")?,
            aborted: aborted.ok_or("an aborted transaction has a negative offset")?,
        })
    }
}

/// Returns the intact batches of a damaged block from the one that contains `from` or follows it, up to the next
/// damaged one.
pub(crate) fn sound_part(block: &Bytes, offsets: Range<Offset>, from: Offset) -> Result<Sealed, BlockFault> {
    let end = offsets.end;
    let mut found: Option<Range<usize>> = None;
    for scanned in scan(block, offsets) {
        match scanned {
            Scanned::Batch { at, header } if header.next_offset() > from.get() => {
                let begin = found.map_or(at, |found| found.start);
                found = Some(begin..at + header.batch_bytes);
            }
            Scanned::Damaged { fault, .. } if fault.end > from => {
                return match found {
                    Some(found) => Ok(Sealed { bytes: block.slice(found), end: fault.base }),
                    None => Err(fault),
                };
            }
            _ => {}
        }
    }
    Ok(Sealed { bytes: block.slice(found.unwrap_or_default()), end })
}

/// A part of a sequence of batches.
#[derive(Clone, Debug)]
pub(crate) enum Scanned {
    /// An intact batch at this position.
    Batch { at: usize, header: BatchHeader },
    /// Bytes without an intact batch.
    Damaged { bytes: Range<usize>, fault: BlockFault },
}

/// Walks contiguous record batches that are known to be sound, because they are in memory as they were committed. Their
/// checksums are not computed again. Where their headers do not lead to the end, everything is checked as in [`scan`].
pub(crate) fn scan_sound(bytes: &Bytes, offsets: Range<Offset>) -> Vec<Scanned> {
    let mut found = Vec::new();
    let (mut at, mut next) = (0, offsets.start.get());
    while at < bytes.len() {
        match BatchHeader::parse(&bytes[at..]) {
            Ok(header) if header.base_offset == next && header.next_offset() <= offsets.end.get() => {
                next = header.next_offset();
                found.push(Scanned::Batch { at, header });
                at += header.batch_bytes;
            }
            _ => return scan(bytes, offsets),
        }
    }
    found
}

/// Splits consecutive batches with the offsets `offsets` into parts, in order. There may be gaps between them, where
/// compaction or a repair removed batches. Neither the length nor the offsets of a damaged batch are trusted: the walk
/// continues at the next intact batch from which lengths and offsets lead to the end.
pub(crate) fn scan(bytes: &Bytes, offsets: Range<Offset>) -> Vec<Scanned> {
    let mut found = Vec::new();
    let mut walk = Walk { bytes, end: offsets.end, leads_from: usize::MAX };
    let (mut at, mut next) = (0, offsets.start);
    while at < bytes.len() {
        match walk.sound(at, next) {
            Ok(header) => {
                found.push(Scanned::Batch { at, header });
                at += header.batch_bytes;
                next = Offset::new(header.next_offset()).unwrap_or(next);
            }
            Err(reason) => {
                let (resume, base) = walk.resume(at, next).unwrap_or((bytes.len(), offsets.end));
                found.push(Scanned::Damaged { bytes: at..resume, fault: BlockFault { base: next, end: base, reason } });
                (at, next) = (resume, base);
            }
        }
    }
    found
}

struct Walk<'a> {
    bytes: &'a Bytes,
    /// The offset after the last batch.
    end: Offset,
    /// From this position on, lengths and offsets are known to lead to the end.
    leads_from: usize,
}

impl Walk<'_> {
    /// Returns the intact batch at this position, or why there is none.
    fn sound(&mut self, at: usize, next: Offset) -> Result<BatchHeader, String> {
        let header = BatchHeader::parse(&self.bytes[at..]).map_err(|error| error.to_string())?;
        check(self.bytes.slice(at..at + header.batch_bytes))?;
        // The batch's own checksum does not cover its base offset.
        if header.base_offset != next.get() && !self.leads(at, next) {
            return Err(format!("its header says that it starts at offset {}", header.base_offset));
        }
        if header.next_offset() > self.end.get() {
            return Err(format!("its header says that it ends at offset {}", header.next_offset()));
        }
        Ok(header)
    }

    /// Returns whether lengths and offsets lead from a batch here to the end.
    fn leads(&mut self, from: usize, mut next: Offset) -> bool {
        if from >= self.leads_from {
            return true;
        }
        let mut at = from;
        while at < self.bytes.len() {
            let Ok(header) = BatchHeader::parse(&self.bytes[at..]) else { return false };
            if header.base_offset < next.get() || header.next_offset() > self.end.get() {
                return false;
            }
            next = Offset::new(header.next_offset()).unwrap_or(next);
            at += header.batch_bytes;
        }
        self.leads_from = from;
        true
    }

    /// Returns where to continue after a damaged batch: the position of an intact batch, and its base offset.
    fn resume(&mut self, damaged: usize, next: Offset) -> Option<(usize, Offset)> {
        // Most damage leaves the length of the batch intact.
        let by_length = BatchHeader::parse(&self.bytes[damaged..]).map(|header| damaged + header.batch_bytes);
        if by_length.as_ref().is_ok_and(|at| *at == self.bytes.len()) {
            return None;
        }
        by_length.into_iter().chain(damaged + 1..self.bytes.len()).find_map(|at| {
            let header = BatchHeader::parse(&self.bytes[at..]).ok()?;
            let base = Offset::new(header.base_offset).filter(|base| *base > next)?;
            let batch = self.bytes.slice(at..at + header.batch_bytes);
            (self.leads(at, base) && check(batch).is_ok()).then_some((at, base))
        })
    }
}

fn check(batch: Bytes) -> Result<(), String> {
    let batch = RecordBatch::from_log(batch).map_err(|error| error.to_string())?;
    batch.verify_crc().map_err(|error| error.to_string())?;
    if batch.leader_epoch() != LEADER_EPOCH {
        return Err(format!("its leader epoch is {}, not {LEADER_EPOCH}", batch.leader_epoch()));
    }
    Ok(())
}
