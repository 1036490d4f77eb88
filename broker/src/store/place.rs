//! The position of a record: topic ID, partition and offset.

use std::fmt;

/// Position of a record in its partition, starting at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);
    /// After the last offset of every partition.
    pub const MAX: Self = Self(i64::MAX);

    /// Returns `None` for a negative number. Kafka's sentinel values are handled at the API.
    pub fn new(offset: i64) -> Option<Self> {
        (offset >= 0).then_some(Self(offset))
    }

    /// Wraps an offset known not to be negative, because it is from a valid batch or was an [`Offset`] before.
    pub(crate) fn known(offset: i64) -> Self {
        debug_assert!(offset >= 0, "offset {offset}");
        Self(offset)
    }

    /// Returns the offset as stored in record batches and journals.
    pub fn get(self) -> i64 {
        self.0
    }

    /// Returns the offset after this one.
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// Returns the offset that is `records` further.
    pub fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(i64::try_from(records).unwrap_or(i64::MAX)))
    }

    /// Returns the number of records from `earlier` up to this offset.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Offset> for i128 {
    fn from(offset: Offset) -> Self {
        offset.0.into()
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> Self {
        offset.0.unsigned_abs()
    }
}

/// Identifies an incarnation of a topic. A topic that is deleted and created again gets a new ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u32);

/// A partition of a topic's incarnation. Segments are ordered by this.
pub type Place = (TopicId, u32);
