//! Writes segments: takes batches, and writes blocks and the index. Writes are small, so that the journal's commits do
//! not wait behind a large one.

use millstream_record::BatchHeader;
use millstream_record::checksum;
use redb::StorageBackend;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::super::error::StoreError;
use super::super::files::{Backend, Files};
use super::layout::{AbortedEntry, BlockEntry, ExtentEntry, Footer, Header};
use super::{
    AbortedTransaction, BLOCK_BYTES, Block, Extent, FOLDER, MAGIC, OwnedExtent, Scanned, SegmentFile, SegmentId,
    SegmentMeta, VERSION,
};
use crate::store::place::{Offset, TopicId};

/// How many bytes are buffered for one write.
const WRITE_BYTES: usize = 1 << 20;

/// How many bytes are written between syncs. A commit of the journal may have to wait for a sync of this size.
const SYNC_BYTES: usize = 2 << 20;

/// A segment that is being written. If dropped before `finish`, it removes its file. After a crash, the next start
/// does.
pub(crate) struct SegmentWriter {
    id: SegmentId,
    file: Backend,
    files: Files,
    finished: bool,
    /// Bytes that are not written yet.
    buffer: Vec<u8>,
    /// Position of the buffer in the file.
    at: u64,
    unsynced: usize,
    extents: Vec<OwnedExtent>,
    blocks: Vec<Block>,
    aborted: Vec<AbortedTransaction>,
    open: Option<OpenBlock>,
}

struct OpenBlock {
    block: Block,
    /// The offset after its last batch.
    next: Offset,
    /// Whether it contains a batch known to be damaged. The block's checksum is then made invalid, so that readers
    /// verify each batch.
    damaged: bool,
}

impl SegmentWriter {
    pub(crate) fn create(files: &Files, id: SegmentId) -> Result<Self, StoreError> {
        let file = files.create(&id.file_name())?;
        let mut buffer = Vec::with_capacity(WRITE_BYTES + BLOCK_BYTES);
        buffer.extend_from_slice(Header { magic: MAGIC.into(), version: VERSION.into() }.as_bytes());
        Ok(Self {
            id,
            file,
            files: files.clone(),
            finished: false,
            buffer,
            at: 0,
            unsynced: 0,
            extents: Vec::new(),
            blocks: Vec::new(),
            aborted: Vec::new(),
            open: None,
        })
    }

    /// Begins the extent of a partition at offset `base`. Extents must be begun in sort order.
    pub(crate) fn begin(&mut self, topic: TopicId, partition: u32, base: Offset, compacted: bool) {
        self.close_block();
        let extent = Extent {
            segment: self.id,
            base,
            end: base,
            first_timestamp_ms: i64::MAX,
            max_timestamp_ms: i64::MIN,
            pos: self.position(),
            bytes: 0,
            blocks_from: self.blocks.len() as u32,
            blocks: 0,
            tombstones_due_ms: i64::MAX,
            compacted,
            aborted_from: self.aborted.len() as u32,
            aborted: 0,
        };
        self.extents.push(OwnedExtent { topic, partition, extent });
    }

    /// Appends one intact batch to the open extent.
    pub(crate) fn push(&mut self, batch: &[u8], header: &BatchHeader) -> Result<(), StoreError> {
        let offsets = [header.base_offset, header.next_offset()].map(|at| Offset::new(at).unwrap_or_default());
        self.append(batch, offsets, header.max_timestamp_ms, false)?;
        if let Some(OwnedExtent { extent, .. }) = self.extents.last_mut() {
            // With a delete horizon (KIP-534), the base timestamp holds the horizon, which is in the future.
            let first = header.base_timestamp_ms.min(header.max_timestamp_ms);
            extent.first_timestamp_ms = extent.first_timestamp_ms.min(first);
        }
        Ok(())
    }

    /// Appends a scanned part of `bytes` to the open extent: a batch, or bytes without an intact batch.
    pub(crate) fn push_scanned(&mut self, bytes: &[u8], scanned: &Scanned) -> Result<(), StoreError> {
        match scanned {
            Scanned::Batch { at, header } => self.push(&bytes[*at..at + header.batch_bytes], header),
            Scanned::Damaged { bytes: range, fault } => self.push_damaged(&bytes[range.clone()], fault.base),
        }
    }

    /// Appends bytes that are known to be damaged to the open extent, unchanged.
    pub(crate) fn push_damaged(&mut self, bytes: &[u8], base: Offset) -> Result<(), StoreError> {
        self.append(bytes, [base, base], i64::MIN, true)
    }

    /// Sets when the tombstones in the open extent may be removed.
    pub(crate) fn tombstones_due(&mut self, due_ms: i64) {
        if let Some(OwnedExtent { extent, .. }) = self.extents.last_mut() {
            extent.tombstones_due_ms = extent.tombstones_due_ms.min(due_ms);
        }
    }

    /// Adds an aborted transaction whose marker is in the open extent.
    pub(crate) fn push_aborted(&mut self, aborted: AbortedTransaction) {
        if let Some(OwnedExtent { extent, .. }) = self.extents.last_mut() {
            extent.aborted += 1;
            self.aborted.push(aborted);
        }
    }

    /// Ends the open extent at offset `end`, exclusive. The extent may have no batches.
    pub(crate) fn end(&mut self, end: Offset) {
        self.close_block();
        let (position, blocks) = (self.position(), self.blocks.len() as u32);
        let Some(OwnedExtent { extent, .. }) = self.extents.last_mut() else { return };
        extent.end = end;
        extent.bytes = position - extent.pos;
        extent.blocks = blocks - extent.blocks_from;
        if extent.first_timestamp_ms == i64::MAX {
            extent.first_timestamp_ms = extent.max_timestamp_ms;
        }
        debug_assert!(extent.base < extent.end);
    }

    /// Returns the number of bytes so far.
    pub(crate) fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Writes the index and the footer, and makes the file durable. It becomes part of the store once it is registered.
    pub(crate) fn finish(mut self) -> Result<SegmentMeta, StoreError> {
        self.close_block();
        let index_pos = self.position();
        let mut index = Vec::with_capacity(
            8 + self.extents.len() * size_of::<ExtentEntry>()
                + self.blocks.len() * size_of::<BlockEntry>()
                + self.aborted.len() * size_of::<AbortedEntry>(),
        );
        let counts = [self.extents.len(), self.blocks.len()].map(|count| U32::new(count as u32));
        index.extend_from_slice(counts.as_bytes());
        self.extents.iter().for_each(|owned| index.extend_from_slice(ExtentEntry::from(owned).as_bytes()));
        self.blocks.iter().for_each(|block| index.extend_from_slice(BlockEntry::from(block).as_bytes()));
        self.aborted.iter().for_each(|aborted| index.extend_from_slice(AbortedEntry::from(aborted).as_bytes()));
        let footer = Footer {
            index_pos: index_pos.into(),
            index_bytes: (index.len() as u32).into(),
            index_crc: checksum::crc32c(&index).into(),
            version: VERSION.into(),
            magic: MAGIC.into(),
        };
        self.buffer.append(&mut index);
        self.buffer.extend_from_slice(footer.as_bytes());
        self.write()?;
        self.sync()?;
        self.file.close().map_err(|source| self.failed(source))?;
        self.files.sync_folder(FOLDER)?;
        self.finished = true;
        let extents = std::mem::take(&mut self.extents);
        let extent_bytes = extents.iter().map(|owned| owned.extent.bytes).sum();
        Ok(SegmentMeta { file: SegmentFile { id: self.id, bytes: self.at, extent_bytes }, extents })
    }

    fn append(
        &mut self,
        bytes: &[u8],
        [base, next]: [Offset; 2],
        max_timestamp_ms: i64,
        damaged: bool,
    ) -> Result<(), StoreError> {
        // A batch after a gap, as compaction leaves them, starts a new block, so that its position is in the index.
        if self.open.as_ref().is_some_and(|open| open.next != base) {
            self.close_block();
        }
        let open = self.open.get_or_insert(OpenBlock {
            block: Block { base, max_timestamp_ms: i64::MIN, bytes: 0, crc: 0 },
            next,
            damaged: false,
        });
        open.next = next;
        open.block.crc = checksum::crc32c_append(open.block.crc, bytes);
        open.block.bytes += bytes.len() as u32;
        open.block.max_timestamp_ms = open.block.max_timestamp_ms.max(max_timestamp_ms);
        open.damaged |= damaged;
        let full = damaged || open.block.bytes as usize >= BLOCK_BYTES;
        if let Some(OwnedExtent { extent, .. }) = self.extents.last_mut() {
            extent.max_timestamp_ms = extent.max_timestamp_ms.max(max_timestamp_ms);
        }
        self.buffer.extend_from_slice(bytes);
        if full {
            self.close_block();
        }
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn close_block(&mut self) {
        if let Some(OpenBlock { mut block, damaged, .. }) = self.open.take() {
            if damaged {
                block.crc = !block.crc;
            }
            self.blocks.push(block);
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let end = self.position();
        self.file
            .set_len(end)
            .and_then(|()| self.file.write(self.at, &self.buffer))
            .map_err(|source| self.failed(source))?;
        self.at = end;
        self.unsynced += self.buffer.len();
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.unsynced = 0;
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError::io("write", std::path::Path::new(&self.id.file_name()), source)
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        // Otherwise retries on a full disk would fill it further.
        if !self.finished
            && let Err(error) = self.files.remove(&self.id.file_name())
        {
            tracing::warn!(
                segment = self.id.file_name(), %error,
                "cannot delete an unfinished segment; the next start will delete it"
            );
        }
    }
}
