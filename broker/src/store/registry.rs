//! Which segments exist, and which of them are open. The table `segments` is the durable form; this is its copy in
//! memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::error::StoreError;
use super::files::{Backend, Files};
use super::segment::{Extent, FOLDER, OpenSegment, SegmentFile, SegmentId, SegmentMeta, SegmentWriter};

/// Maximum number of open segments. Each uses a file descriptor.
const OPEN_SEGMENTS_MAX: usize = 128;

/// Maximum size of the indexes of open segments, in bytes, not counting the most recently used one's. An index takes
/// some tens of KiB, but up to a quarter of the segment's size if compaction left many holes between small batches.
const OPEN_INDEX_BYTES_MAX: usize = 32 << 20;

#[derive(Debug)]
pub(crate) struct Registry {
    files: Arc<Files>,
    segments: RwLock<BTreeMap<SegmentId, SegmentFile>>,
    /// The most recently used segment is last.
    open: Mutex<VecDeque<(SegmentId, Arc<OpenSegment>)>>,
    next: AtomicU64,
    pins: Mutex<Pins>,
    changing: Mutex<()>,
    changes: AtomicU64,
}

/// Segment files that outlast their segments, because they were not deleted yet or are being copied.
#[derive(Debug, Default)]
struct Pins {
    held: usize,
    removed: Vec<SegmentId>,
}

impl Registry {
    /// Creates the registry from the segments that the table lists. New segments get numbers from `next` on. Files that
    /// the table does not list are removed, because the operation that wrote them did not complete.
    pub(super) fn open(files: Arc<Files>, segments: Vec<SegmentFile>, next: u64) -> Result<Self, StoreError> {
        // A crash may have come between the creation of the folder and its sync.
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

    /// Creates a segment file that is not yet part of the store.
    pub(crate) fn create(&self) -> Result<SegmentWriter, StoreError> {
        SegmentWriter::create(&self.files, SegmentId(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn finish(&self, writer: SegmentWriter) -> Result<SegmentMeta, StoreError> {
        writer.finish()
    }

    /// Opens an extent's segment, or returns it if it is open already.
    ///
    /// # Errors
    /// [`StoreError::Moved`] if the segment was removed: its records are elsewhere, or were deleted.
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
        // If the segment was removed meanwhile, a missing file is no error.
        if !self.segments.read().contains_key(&id) {
            return Err(StoreError::Moved);
        }
        let segment = Arc::new(opened?);
        let mut open = self.open.lock();
        // Nothing would close the segment if it were added now.
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

    /// Returns the files of the data directory.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Opens a segment's file, even if the segment was removed and only a pin keeps the file.
    pub(super) fn open_file(&self, id: SegmentId) -> Result<Backend, StoreError> {
        self.files.open(&id.file_name())
    }

    pub(crate) fn all(&self) -> Vec<SegmentFile> {
        self.segments.read().values().copied().collect()
    }

    /// Returns the number of segments and their total size in bytes.
    pub(crate) fn size(&self) -> (usize, u64) {
        let segments = self.segments.read();
        (segments.len(), segments.values().map(|segment| segment.bytes).sum())
    }

    /// Locks changes. Held while segments and the extents of partitions change together.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Notes a change in which segments are in use, so that retention and the cleaner check them again.
    pub(crate) fn touch(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often [`Registry::touch`] was called.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Adds segments that a commit made part of the store.
    pub(crate) fn added(&self, metas: &[SegmentMeta]) {
        self.segments.write().extend(metas.iter().map(|meta| (meta.file.id, meta.file)));
    }

    /// Removes segments that a commit removed from the store. The next [`Registry::unlink_removed`] deletes their
    /// files.
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

    /// Deletes the files of removed segments, unless they are being copied. This may take long, because unlinking a
    /// large file waits until the file system has freed its space. The committer therefore does not call it.
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

    /// Deletes the files of segments that are not part of the store.
    pub(crate) fn unlink(&self, ids: &[SegmentId]) {
        for id in ids {
            if let Err(error) = self.files.remove(&id.file_name()) {
                // The next start deletes all files that are not registered.
                tracing::warn!(%error, "cannot delete the file of an unused segment; the next start tries again");
            }
        }
    }

    /// Keeps the files of removed segments until the returned pin is dropped.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.pins.lock().held += 1;
        Pin(self.clone())
    }
}

/// Keeps segment files from being deleted; see [`Registry::pin`].
#[derive(Debug)]
pub(crate) struct Pin(Arc<Registry>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.lock().held -= 1;
        self.0.unlink_removed();
    }
}
