//! Where a record is: a topic's id, a partition and an offset.

use std::fmt;

/// Position of a record in its partition, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);

    /// `None` for a negative number: Kafka's sentinels stay at the edges.
    pub fn new(offset: i64) -> Option<Self> {
        (offset >= 0).then_some(Self(offset))
    }

    /// An offset that is known not to be negative: of a sound batch, or one that an [`Offset`] gave.
    pub(crate) fn known(offset: i64) -> Self {
        debug_assert!(offset >= 0, "offset {offset}");
        Self(offset)
    }

    /// The offset as record batches and journals hold it.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The offset after this one.
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The offset `records` further.
    pub fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(i64::try_from(records).unwrap_or(i64::MAX)))
    }

    /// How many records lie between `earlier` and this.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> Self {
        offset.0.unsigned_abs()
    }
}

/// Identifies a topic's incarnation: a topic deleted and made again has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u32);

/// A partition of a topic's incarnation, in the order in which segments hold them.
pub(crate) type Place = (TopicId, u32);
