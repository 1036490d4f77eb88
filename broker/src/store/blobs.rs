//! An in-memory cache of blobs: the most recent ones, for tail reads, and a few that were read from disk.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use super::journal::Location;

/// Maximum total size of the recent blobs kept for tail reads, in bytes. With twice as much, nothing was
/// faster, and the server took 37 to 45 MB more under load.
pub(super) const TAIL_BYTES_MAX: usize = 32 << 20;

/// Maximum number of runs read from disk that are kept, for readers that consume a run in several reads.
const COLD_RUNS_MAX: usize = 8;

/// Runs larger than this many bytes are not kept after they are read from disk.
const COLD_RUN_BYTES_MAX: usize = 2 << 20;

/// Memory of more than this many bytes is not kept for the next blob: only a commit of a very large batch needs it.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// A slice smaller than `1 / SHARE_MIN_FRACTION` of its blob is copied instead of shared, so that a slow reader that
/// holds on to it does not keep the whole blob in memory.
const SHARE_MIN_FRACTION: usize = 8;

pub(super) struct BlobCache {
    tail: RwLock<Tail>,
    tail_bytes_max: usize,
    cold: Mutex<VecDeque<(Location, Bytes)>>,
    /// The memory of a blob that left the tail. A new blob that uses it costs the kernel no pages to clear.
    spare: Mutex<BytesMut>,
}

#[derive(Default)]
struct Tail {
    /// Each blob with the sequence number of its first value, in ascending order.
    blobs: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl BlobCache {
    pub(super) fn new(tail_bytes_max: usize) -> Self {
        Self { tail: RwLock::default(), tail_bytes_max, cold: Mutex::default(), spare: Mutex::default() }
    }

    /// Adds the blob of a commit. Sequence numbers must be ascending.
    pub(super) fn push(&self, seq: u64, blob: Bytes) {
        let mut tail = self.tail.write();
        tail.bytes += blob.len();
        tail.blobs.push_back((seq, blob));
        while tail.bytes > self.tail_bytes_max {
            let Some((_, oldest)) = tail.blobs.pop_front() else { break };
            tail.bytes -= oldest.len();
            // Only if no reader holds a part of it.
            if let Ok(memory) = oldest.try_into_mut()
                && memory.capacity() <= SPARE_BYTES_MAX
            {
                *self.spare.lock() = memory;
            }
        }
    }

    /// Returns memory for a new blob of about `bytes`, empty. The tail is bounded by the bytes of its blobs, so a blob must not
    /// have much more memory than it needs.
    pub(super) fn memory(&self, bytes: usize) -> BytesMut {
        let mut spare = self.spare.lock();
        if !(bytes..=2 * bytes).contains(&spare.capacity()) {
            return BytesMut::new();
        }
        let mut memory = std::mem::take(&mut *spare);
        memory.clear();
        memory
    }

    pub(super) fn get(&self, at: Location) -> Option<Bytes> {
        let (pos, len) = (at.pos as usize, at.len as usize);
        {
            let tail = self.tail.read();
            if let Ok(found) = tail.blobs.binary_search_by_key(&at.seq, |(seq, _)| *seq) {
                let blob = &tail.blobs[found].1;
                let small = len < blob.len() / SHARE_MIN_FRACTION;
                return Some(if small {
                    Bytes::copy_from_slice(&blob[pos..pos + len])
                } else {
                    blob.slice(pos..pos + len)
                });
            }
        }
        let cold = self.cold.lock();
        cold.iter().find(|(kept, _)| *kept == at).map(|(_, bytes)| bytes.clone())
    }

    pub(super) fn keep_cold(&self, at: Location, bytes: Bytes) {
        if bytes.len() > COLD_RUN_BYTES_MAX {
            return;
        }
        let mut cold = self.cold.lock();
        if cold.len() == COLD_RUNS_MAX {
            cold.pop_front();
        }
        cold.push_back((at, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_blob_is_used_again_for_one_of_about_its_size() {
        let cache = BlobCache::new(10_000);
        let blob = |bytes: usize| {
            let mut memory = cache.memory(bytes);
            memory.reserve(bytes);
            let capacity = memory.capacity();
            memory.resize(bytes, 1);
            (memory.freeze(), capacity)
        };
        // The first blob leaves the tail when the third one comes.
        let first = blob(6_000).0;
        let held = first.slice(..10);
        cache.push(1, first);
        cache.push(2, blob(6_000).0);
        assert_eq!(cache.memory(6_000).capacity(), 0, "a reader holds a part of the first blob");
        drop(held);
        cache.push(3, blob(6_000).0);
        assert_eq!(cache.memory(100).capacity(), 0, "a small blob must not keep much memory");
        assert_eq!(cache.memory(6_001).capacity(), 0, "it is too small");
        let again = cache.memory(5_000);
        assert!(again.capacity() >= 6_000 && again.is_empty());
        assert_eq!(cache.memory(6_000).capacity(), 0, "it is used once");
    }
}
