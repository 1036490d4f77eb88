//! The committed offsets of one group: the accepted ones, those on disk, and those that the tables do not contain yet.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::hash::{HashMap, HashSet};
use crate::store::place::{Offset, Place, TopicId};

/// Maximum size of a committed offset's metadata, in bytes: Kafka's `offset.metadata.max.bytes`.
pub const METADATA_BYTES_MAX: usize = 4096;

/// The position that a group commits in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The offset of the next record to read.
    pub offset: Offset,
    /// The leader epoch of the last record that was read, if the client knows it (KIP-320).
    pub leader_epoch: Option<i32>,
    /// Text chosen by the client, at most [`METADATA_BYTES_MAX`] bytes.
    pub metadata: Option<Arc<str>>,
}

impl From<Offset> for CommittedOffset {
    fn from(offset: Offset) -> Self {
        Self { offset, leader_epoch: None, metadata: None }
    }
}

/// A committed offset that is on disk, and its commit time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOffset {
    /// The position.
    pub committed: CommittedOffset,
    /// Commit time in milliseconds since the epoch. `None` if it was written by a version that did not store the time.
    pub committed_at_ms: Option<i64>,
}

/// The offsets of one group.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// The offsets that the committer has accepted. They are ahead of `stored` while a commit is being written.
    accepted: Mutex<HashMap<Place, Offset>>,
    /// The offsets on disk.
    stored: RwLock<HashMap<Place, StoredOffset>>,
    /// Places that changed since the journal was last sealed, so that the tables are out of date for them.
    unsealed: Mutex<HashSet<Place>>,
}

impl Offsets {
    pub(super) fn get(&self, place: Place) -> Option<StoredOffset> {
        self.stored.read().get(&place).cloned()
    }

    pub(super) fn offset(&self, place: Place) -> Option<Offset> {
        self.stored.read().get(&place).map(|stored| stored.committed.offset)
    }

    /// Returns all committed offsets, sorted by topic and partition.
    pub(super) fn all(&self) -> Vec<(Place, StoredOffset)> {
        let mut all: Vec<_> = self.stored.read().iter().map(|(place, stored)| (*place, stored.clone())).collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        all
    }

    /// Returns every place with its offset alone, in order.
    pub(super) fn all_offsets(&self) -> Vec<(TopicId, u32, Offset)> {
        let stored = self.stored.read();
        let mut all: Vec<_> = stored.iter().map(|((topic, at), of)| (*topic, *at, of.committed.offset)).collect();
        all.sort_unstable();
        all
    }

    /// Returns the places whose stored offsets satisfy a condition, in order.
    pub(super) fn places_where(&self, condition: impl Fn(Place, &StoredOffset) -> bool) -> Vec<Place> {
        let stored = self.stored.read();
        let mut places: Vec<_> =
            stored.iter().filter(|(place, of)| condition(**place, of)).map(|(place, _)| *place).collect();
        places.sort_unstable();
        places
    }

    pub(super) fn has_topic(&self, topic: TopicId) -> bool {
        self.stored.read().keys().any(|(of, _)| *of == topic)
    }

    /// Returns whether nothing was committed, and nothing is being committed.
    pub(super) fn is_empty(&self) -> bool {
        self.accepted.lock().is_empty() && self.stored.read().is_empty()
    }

    pub(super) fn accepted(&self, place: Place) -> Option<Offset> {
        self.accepted.lock().get(&place).copied()
    }

    pub(super) fn accept(&self, place: Place, offset: Option<Offset>) {
        let mut accepted = self.accepted.lock();
        match offset {
            Some(offset) => accepted.insert(place, offset),
            None => accepted.remove(&place),
        };
    }

    pub(super) fn store(&self, place: Place, offset: Option<StoredOffset>) {
        self.set_stored(place, offset);
        self.unsealed.lock().insert(place);
    }

    /// Sets an offset from the tables at start.
    pub(super) fn restore(&self, place: Place, offset: StoredOffset) {
        self.accept(place, Some(offset.committed.offset));
        self.set_stored(place, Some(offset));
    }

    fn set_stored(&self, place: Place, offset: Option<StoredOffset>) {
        let mut stored = self.stored.write();
        match offset {
            Some(offset) => stored.insert(place, offset),
            None => stored.remove(&place),
        };
    }

    /// Returns the offsets that were committed or removed since the last call.
    pub(super) fn take_unsealed(&self) -> Vec<(Place, Option<StoredOffset>)> {
        let unsealed = std::mem::take(&mut *self.unsealed.lock());
        let stored = self.stored.read();
        unsealed.into_iter().map(|place| (place, stored.get(&place).cloned())).collect()
    }

    pub(super) fn clear(&self) {
        self.accepted.lock().clear();
        self.stored.write().clear();
    }

    pub(super) fn forget_topic(&self, topic: TopicId) {
        self.accepted.lock().retain(|(of, _), _| *of != topic);
        let mut unsealed = self.unsealed.lock();
        self.stored.write().retain(|place, _| {
            if place.0 == topic {
                unsealed.insert(*place);
            }
            place.0 != topic
        });
    }
}
