//! Which segments there are, and those that are open. The table `segments` says it durably; this is
//! its image in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::error::StoreError;
use super::files::{Backend, Files};
use super::segment::{Extent, FOLDER, OpenSegment, SegmentFile, SegmentId, SegmentMeta, SegmentWriter};

/// Segments that are open at a time: each takes a file descriptor.
const OPEN_SEGMENTS_MAX: usize = 128;

/// Bytes of the indexes of segments that are open, beyond the most recently used one's: some tens of KiB each, and
/// where compaction left many holes between small batches up to a quarter of the segment.
const OPEN_INDEX_BYTES_MAX: usize = 32 << 20;

#[derive(Debug)]
pub(crate) struct Registry {
    files: Arc<Files>,
    segments: RwLock<BTreeMap<SegmentId, SegmentFile>>,
    /// The most recently used last.
    open: Mutex<VecDeque<(SegmentId, Arc<OpenSegment>)>>,
    next: AtomicU64,
    pins: Mutex<Pins>,
    changing: Mutex<()>,
    changes: AtomicU64,
}

/// Files that outlast their segments: nobody removed them yet, or somebody copies them.
#[derive(Debug, Default)]
struct Pins {
    held: usize,
    removed: Vec<SegmentId>,
}

impl Registry {
    /// With the segments that the table lists; new ones get numbers from `next` on. Files that the table does not list are
    /// removed: what wrote them did not come to its end.
    pub(super) fn open(files: Arc<Files>, segments: Vec<SegmentFile>, next: u64) -> Result<Self, StoreError> {
        // A crash may have come between a folder that was made and its sync.
        files.make_folder(FOLDER)?;
        let segments: BTreeMap<_, _> = segments.into_iter().map(|segment| (segment.id, segment)).collect();
        let mut next = next.max(segments.keys().next_back().map_or(0, |id| id.0 + 1));
        for name in files.names(FOLDER)? {
            let Some(id) = SegmentId::from_file_name(&name) else { continue };
            next = next.max(id.0 + 1);
            if !segments.contains_key(&id) {
                files.remove(&id.file_name())?;
            }
        }
        Ok(Self {
            files,
            segments: RwLock::new(segments),
            open: Mutex::default(),
            next: AtomicU64::new(next),
            pins: Mutex::default(),
            changing: Mutex::default(),
            changes: AtomicU64::new(0),
        })
    }

    /// A new segment, not yet part of the store.
    pub(crate) fn create(&self) -> Result<SegmentWriter, StoreError> {
        SegmentWriter::create(&self.files, SegmentId(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn finish(&self, writer: SegmentWriter) -> Result<SegmentMeta, StoreError> {
        writer.finish()
    }

    /// An extent's segment, open.
    ///
    /// # Errors
    /// [`StoreError::Moved`] where the segment is gone: its records are elsewhere, or nowhere.
    pub(crate) fn segment_of(&self, extent: &Extent) -> Result<Arc<OpenSegment>, StoreError> {
        let id = extent.segment;
        {
            let mut open = self.open.lock();
            if let Some(at) = open.iter().position(|(of, _)| *of == id)
                && let Some(found) = open.remove(at)
            {
                let segment = found.1.clone();
                open.push_back(found);
                return Ok(segment);
            }
        }
        let segment = self.segments.read().get(&id).copied().ok_or(StoreError::Moved)?;
        let opened = OpenSegment::open(&self.files, segment);
        // Removed meanwhile: then it is no fault that its file is not there.
        if !self.segments.read().contains_key(&id) {
            return Err(StoreError::Moved);
        }
        let segment = Arc::new(opened?);
        let mut open = self.open.lock();
        // Nobody would close it any more.
        if !self.segments.read().contains_key(&id) {
            return Err(StoreError::Moved);
        }
        let index_bytes = |open: &VecDeque<(SegmentId, Arc<OpenSegment>)>| -> usize {
            open.iter().map(|(_, segment)| segment.index_bytes()).sum()
        };
        while open.len() >= OPEN_SEGMENTS_MAX || index_bytes(&open) > OPEN_INDEX_BYTES_MAX {
            open.pop_front();
        }
        open.push_back((id, segment.clone()));
        Ok(segment)
    }

    /// The files that the segments are among.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// A segment's file, also where the segment was removed and a pin keeps the file.
    pub(super) fn open_file(&self, id: SegmentId) -> Result<Backend, StoreError> {
        self.files.open(&id.file_name())
    }

    pub(crate) fn all(&self) -> Vec<SegmentFile> {
        self.segments.read().values().copied().collect()
    }

    /// How many there are, and the bytes of their files.
    pub(crate) fn size(&self) -> (usize, u64) {
        let segments = self.segments.read();
        (segments.len(), segments.values().map(|segment| segment.bytes).sum())
    }

    /// Held while segments and the extents of partitions change together.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// What is in use of segments changed: retention and the cleaner look again.
    pub(crate) fn touch(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`Registry::touch`] was called.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// A commit made them part of the store.
    pub(crate) fn added(&self, metas: &[SegmentMeta]) {
        self.segments.write().extend(metas.iter().map(|meta| (meta.file.id, meta.file)));
    }

    /// A commit took them out of the store: their files go with the next [`Registry::unlink_removed`].
    pub(crate) fn removed(&self, ids: &[SegmentId]) {
        {
            let mut segments = self.segments.write();
            for id in ids {
                segments.remove(id);
            }
        }
        self.open.lock().retain(|(id, _)| !ids.contains(id));
        self.pins.lock().removed.extend_from_slice(ids);
    }

    /// Removes the files of removed segments, unless somebody copies them. It may take long: a file system frees what a
    /// large file had while whoever unlinks it waits. So the committer does not do it.
    pub(crate) fn unlink_removed(&self) {
        let removed = {
            let mut pins = self.pins.lock();
            if pins.held > 0 {
                return;
            }
            std::mem::take(&mut pins.removed)
        };
        self.unlink(&removed);
    }

    /// Removes the files of segments that are no part of the store.
    pub(crate) fn unlink(&self, ids: &[SegmentId]) {
        for id in ids {
            if let Err(error) = self.files.remove(&id.file_name()) {
                // The next start removes what is not registered.
                tracing::warn!(%error, "a segment that is no longer used stays on disk");
            }
        }
    }

    /// Keeps the files of removed segments until the pin is dropped.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.pins.lock().held += 1;
        Pin(self.clone())
    }
}

/// See [`Registry::pin`].
#[derive(Debug)]
pub(crate) struct Pin(Arc<Registry>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.lock().held -= 1;
        self.0.unlink_removed();
    }
}
