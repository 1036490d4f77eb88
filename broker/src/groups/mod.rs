//! Groups: who reads which partitions, and how far they are. A group has offsets (`offsets.rs`) and one kind of membership:
//! consumers, to whom the broker assigns partitions (`members.rs`, with `assign.rs` deciding who gets what), or a pipeline,
//! whose tasks the runtime assigns. Offsets, lag, describe and reset are the same for both.

pub mod assign;
mod group;
pub mod members;
mod offsets;

use std::sync::Arc;

use parking_lot::RwLock;

pub use group::{Group, GroupKind, IdleSince, PipelineState};
pub use members::MemberId;
pub use offsets::{CommittedOffset, METADATA_BYTES_MAX, StoredOffset};

use crate::error::BrokerError;
use crate::hash::HashMap;
use crate::name::GroupId;

/// Every group, by id.
#[derive(Debug, Default)]
pub struct Groups {
    groups: RwLock<HashMap<GroupId, Arc<Group>>>,
}

impl Groups {
    /// The group of that id, made where there is none.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`].
    pub fn get_or_create(&self, id: &GroupId, kind: GroupKind) -> Result<Arc<Group>, BrokerError> {
        let mut groups = self.groups.write();
        let group = groups.entry(id.clone()).or_insert_with(|| Arc::new(Group::new(id.clone(), kind)));
        if group.kind() == kind {
            return Ok(group.clone());
        }
        Err(BrokerError::GroupOfOtherKind { group: id.clone(), kind: group.kind().owner() })
    }

    /// The group of that id.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`].
    pub fn get(&self, id: &str) -> Result<Arc<Group>, BrokerError> {
        let groups = self.groups.read();
        groups.get(id).cloned().ok_or_else(|| BrokerError::UnknownGroup { group: id.to_owned() })
    }

    /// Every group, by id.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.groups.read().values().cloned().collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }

    /// Forgets a group whose offsets a commit dropped, unless it has members or offsets again. Whoever looked the group up
    /// before can't write in it any more, because its generation ends. Only the committer and a start call this: nothing
    /// is accepted meanwhile.
    pub(crate) fn remove(&self, group: &Arc<Group>) {
        let mut groups = self.groups.write();
        let members = group.members();
        let is_known = groups.get(group.id()).is_some_and(|known| Arc::ptr_eq(known, group));
        if is_known && members.is_empty() && group.has_no_offsets() {
            groups.remove(group.id());
            group.set_removed();
        }
    }
}
