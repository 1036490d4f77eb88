//! Ids of members of consumer groups.

use std::fmt;

use uuid::Uuid;

/// Identifies a member. Its UUID is unique, so a member from before a restart is not mistaken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    /// Counts joins, so that the members of a group are ordered by when they joined.
    joined: u64,
    uuid: Uuid,
}

impl MemberId {
    /// Creates the id of the member that is the `joined`-th to join its group.
    pub(super) fn new(joined: u64) -> Self {
        Self { joined, uuid: Uuid::new_v4() }
    }

    #[cfg(test)]
    pub(super) fn numbered(joined: u64) -> Self {
        Self { joined, uuid: Uuid::from_u128(joined.into()) }
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uuid.fmt(f)
    }
}
