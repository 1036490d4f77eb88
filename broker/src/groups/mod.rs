//! Groups: which readers read which partitions, and their committed offsets. A group has offsets (`offsets.rs`) and one
//! kind of membership: consumers to which the broker assigns partitions (`members.rs`, with the assignment in
//! `assign.rs`; those of Kafka's clients in `heartbeats.rs`), clients that assign partitions among themselves (`classic.rs`, of
//! which `kept.rs` survives a restart), or a pipeline, whose tasks the runtime assigns. Offsets, lag, describe and reset are the same for all.

pub mod assign;
pub mod classic;
mod group;
pub mod heartbeats;
pub mod kept;
mod member_id;
pub mod members;
mod membership;
mod offsets;
pub mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

pub use group::{Group, GroupKind, IdleSince, PipelineState};
pub use member_id::MemberId;
pub use membership::{MemberDescription, Membership, MembershipState};
pub use offsets::{CommittedOffset, METADATA_BYTES_MAX, StoredOffset};

use self::settings::GroupSettings;
use crate::error::BrokerError;
use crate::hash::HashMap;
use crate::name::GroupId;

/// All groups, by ID.
#[derive(Debug, Default)]
pub struct Groups {
    groups: RwLock<HashMap<GroupId, Arc<Group>>>,
    settings: RwLock<BTreeMap<GroupId, GroupSettings>>,
}

impl Groups {
    /// Returns the group with this ID, and creates it if it does not exist.
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

    /// Returns the group with this ID.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`].
    pub fn get(&self, id: &str) -> Result<Arc<Group>, BrokerError> {
        let groups = self.groups.read();
        groups.get(id).cloned().ok_or_else(|| BrokerError::UnknownGroup { group: id.to_owned() })
    }

    /// Returns the settings that were made for a group. A group that does not exist may have some.
    pub fn settings(&self, id: &str) -> GroupSettings {
        self.settings.read().get(id).cloned().unwrap_or_default()
    }

    /// Returns a setting of a group that is a number of ms.
    pub fn setting_ms(&self, id: &str, name: &str) -> Option<u64> {
        self.settings.read().get(id)?.get(name)?.parse().ok()
    }

    pub(crate) fn set_settings(&self, id: &GroupId, settings: GroupSettings) {
        let mut all = self.settings.write();
        if settings.is_empty() {
            all.remove(id);
        } else {
            all.insert(id.clone(), settings);
        }
    }

    /// Returns the groups that have settings.
    pub fn with_settings(&self) -> Vec<GroupId> {
        self.settings.read().keys().cloned().collect()
    }

    /// Returns all groups, sorted by ID.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.groups.read().values().cloned().collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }

    /// Removes a group whose offsets a commit dropped, unless it has members or offsets again. A holder of the group
    /// that looked it up before can no longer write to it, because its generation ends. Only the committer and the
    /// start call this, so nothing is accepted meanwhile.
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
