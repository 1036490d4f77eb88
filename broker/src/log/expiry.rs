//! Expiry of unused entities: idempotent producers that have been idle for a long time (a slice of the partitions in
//! each round), their epochs, and groups without members.

use std::sync::Arc;

use super::catalog_entries::producer_epoch_key;
use super::cleaner::Cleaner;
use super::commit::{Commit, Fence, OffsetChange};
use super::queue::{Ended, wait_for_each};
use crate::groups::{Group, GroupKind, IdleSince};
use crate::hash::HashSet;
use crate::store::CatalogChange;
use crate::store::place::TopicId;

/// Maximum number of partitions that one round examines.
const PARTITIONS_A_ROUND: usize = 1_000;

/// Forgets the producers that have appended nothing for `expiry_ms`. Examines a slice of the partitions, counted over
/// all topics, that begins at `swept`, and sets `swept` to the position at which the next round continues. `idle_ms` is
/// the time of the idle clock.
pub(super) fn forget_idle_producers(cleaner: &Cleaner, idle_ms: i64, expiry_ms: u64, swept: &mut usize) {
    let before_ms = idle_ms.saturating_sub_unsigned(expiry_ms);
    let topics = cleaner.topics();
    let partitions = topics.iter().flat_map(|topic| topic.partitions());
    let mut looked_at = 0;
    for partition in partitions.skip(*swept).take(PARTITIONS_A_ROUND) {
        partition.producers().forget_idle(before_ms);
        looked_at += 1;
    }
    *swept = if looked_at == PARTITIONS_A_ROUND { *swept + looked_at } else { 0 };
}

/// Forgets the epochs that were handed out longer than `expiry_ms` ago. A producer that comes back later sends its
/// epoch itself.
pub(super) fn expire_producer_epochs(cleaner: &Cleaner, idle_ms: i64, expiry_ms: u64) -> Result<(), Ended> {
    let removed = cleaner.domain.producer_epochs.expire(idle_ms.saturating_sub_unsigned(expiry_ms), |expired| {
        let catalog = expired.into_iter().map(|id| CatalogChange::remove(producer_epoch_key(id))).collect();
        cleaner.queue.push_each(vec![Commit { catalog, ..Commit::default() }])
    });
    match removed {
        Some(receipts) => wait_for_each(receipts?),
        None => Ok(()),
    }
}

/// How long a group without offsets is kept after its last member left, in ms. A client that looked up the group may be
/// about to use it.
const WITHOUT_OFFSETS_MS: i64 = 10_000;

/// Maximum number of groups that one round removes, and so of commits that it waits for.
const GROUPS_A_ROUND: usize = 1_000;

/// Removes unused groups (KIP-211): those without members, and without a commit for `retention_ms`. Of groups with
/// members it removes offsets older than that in topics that no member reads. `idle_ms` and `wall_ms` are the times of
/// the idle clock and of the wall clock.
pub(super) fn expire_groups(cleaner: &Cleaner, idle_ms: i64, wall_ms: i64, retention_ms: u64) -> Result<(), Ended> {
    let since = IdleSince {
        with_offsets_ms: idle_ms.saturating_sub_unsigned(retention_ms),
        without_offsets_ms: idle_ms - WITHOUT_OFFSETS_MS,
    };
    let before_ms = wall_ms.saturating_sub_unsigned(retention_ms);
    let mut commits = Vec::new();
    for group in cleaner.domain.groups.all() {
        if commits.len() == GROUPS_A_ROUND {
            break;
        }
        group.set_active_if_never(idle_ms);
        if group.is_expired(since) {
            tracing::debug!(group = %group.id(), "an unused group expired");
            let fence = Some(Fence::Expired { group: group.clone(), before: since });
            commits.push(Commit { drop_groups: vec![group], fence, ..Commit::default() });
        } else if group.kind() == GroupKind::Consumer {
            commits.extend(unread_offsets(cleaner, &group, before_ms));
        }
    }
    wait_for_each(cleaner.queue.push_each(commits)?)
}

/// Returns a commit that removes the old offsets of a group in topics that none of its members reads.
fn unread_offsets(cleaner: &Cleaner, group: &Arc<Group>, before_ms: i64) -> Option<Commit> {
    let read = group.members().topics();
    if read.is_empty() {
        return None;
    }
    let topics = cleaner.domain.topics.read();
    let read: HashSet<TopicId> = read.iter().filter_map(|name| Some(topics.get(name.as_str())?.id())).collect();
    let expired = group.expired_offsets(|topic| read.contains(&topic), before_ms);
    if expired.is_empty() {
        return None;
    }
    let removal = |(topic, partition)| {
        let topic = topics.by_id(topic)?;
        let expected = Some(group.committed(topic.id(), partition));
        Some(OffsetChange { group: group.clone(), topic: Arc::clone(topic), partition, to: None, expected })
    };
    let offsets = expired.into_iter().filter_map(removal).collect();
    Some(Commit { offsets, ..Commit::default() })
}
