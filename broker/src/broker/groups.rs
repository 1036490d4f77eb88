//! Consumer groups: joining and leaving, offsets, and deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use regex_lite::Regex;
use tokio::sync::mpsc;

use super::Broker;
use super::operation::to_its_end;
use crate::error::{BrokerError, MemberError};
use crate::groups::classic::Claim;
use crate::groups::members::{Circumstances, KnownTopics, MemberEvent, NewMember};
use crate::groups::settings;
use crate::groups::{CommittedOffset, Group, GroupKind, MemberId, StoredOffset};
use crate::log::catalog_entries::{GROUP_SETTINGS_PREFIX, to_json};
use crate::log::commit::{Commit, Fence, OffsetChange};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::log::topic::Topic;
use crate::log::topics::Topics;
use crate::name::{GroupId, TopicName, TopicPartition};
use crate::store::CatalogChange;
use crate::store::place::{Offset, TopicId};

/// The position of a group in a partition.
#[derive(Clone, Debug)]
pub struct GroupOffset {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset of the next record to read, if one was committed.
    pub committed: Option<Offset>,
    /// The log end offset.
    pub end: Offset,
    /// Number of records between the committed offset, or else the log start offset, and the end.
    pub lag: u64,
}

impl Broker {
    /// Returns the positions of a group in all partitions in which it has committed, or that its members read.
    pub fn group_offsets(&self, group: &Group) -> Vec<GroupOffset> {
        let mut partitions: BTreeMap<TopicPartition, (Arc<Partition>, Option<Offset>)> = BTreeMap::new();
        for (topic, partition, offset) in group.all_committed() {
            if let Some(found) = self.partition_by_id(topic, partition) {
                partitions.insert(found.name().clone(), (found, Some(offset)));
            }
        }
        let topics = group.members().topics();
        for topic in topics.iter().filter_map(|name| self.topic(name.as_str()).ok()) {
            for partition in topic.partitions() {
                partitions.entry(partition.name().clone()).or_insert_with(|| (partition.clone(), None));
            }
        }
        let offset = |(name, (partition, committed)): (TopicPartition, (Arc<Partition>, Option<Offset>))| {
            let end = partition.end();
            let lag = end.since(committed.unwrap_or(partition.start()));
            GroupOffset { partition: name, committed, end, lag }
        };
        partitions.into_iter().map(offset).collect()
    }

    /// Returns the committed offsets of a group, by partition.
    pub fn stored_offsets(&self, group: &Group) -> Vec<(TopicPartition, StoredOffset)> {
        let named = |(topic, partition, _): (TopicId, u32, Offset)| {
            let name = self.partition_by_id(topic, partition)?.name().clone();
            Some((name, group.stored_offset(topic, partition)?))
        };
        group.all_committed().into_iter().filter_map(named).collect()
    }

    /// Adds a member to a consumer group.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::UnknownTopic`].
    pub fn join_group(
        &self,
        id: &GroupId,
        new: NewMember,
    ) -> Result<(Arc<Group>, MemberId, mpsc::UnboundedReceiver<MemberEvent>), BrokerError> {
        for topic in &new.topics {
            self.topic(topic.as_str())?;
        }
        loop {
            let group = self.0.groups.get_or_create(id, GroupKind::Consumer)?;
            let mut members = group.members();
            if group.is_removed() {
                continue;
            }
            if !members.classic.is_empty() {
                return Err(BrokerError::OtherMembers { group: id.clone() });
            }
            let members = &mut members.consumer;
            let mut topics = self.known_topics(&members.topics());
            topics.extend(self.known_topics(&new.topics));
            group.set_active(self.0.domain.idle.now_ms());
            let (member, events) = members.join(new, circumstances(&group, &topics));
            return Ok((group.clone(), member, events));
        }
    }

    /// Removes a member. Its partitions are assigned to the others.
    pub fn leave_group(&self, group: &Group, member: &MemberId) {
        let members = &mut group.members().consumer;
        if members.contains(member) {
            let topics = self.known_topics(&members.topics());
            members.leave(member, circumstances(group, &topics));
            group.set_active(self.0.domain.idle.now_ms());
        }
    }

    /// Removes the members that hold partitions beyond their deadlines. Their partitions are assigned to the others.
    pub fn remove_overdue(&self, group: &Group) {
        let members = &mut group.members().consumer;
        if members.is_overdue(Instant::now()) {
            let topics = self.known_topics(&members.topics());
            members.remove_overdue(circumstances(group, &topics));
            group.set_active(self.0.domain.idle.now_ms());
        }
    }

    /// Notes that a member gave partitions back.
    pub fn revoked(&self, group: &Group, member: &MemberId, partitions: &[TopicPartition]) {
        group.members().consumer.revoked(member, partitions, group.generation(), Instant::now());
    }

    /// Queues a member's offsets to commit. All of them are refused unless the member owns all of the partitions when
    /// the committer processes the commit.
    ///
    /// # Errors
    /// [`BrokerError::OffsetOutOfRange`], [`BrokerError::UnknownTopic`]. The receipt returns the others:
    /// [`BrokerError::UnknownMember`], [`BrokerError::NotAssigned`], [`BrokerError::Storage`].
    pub async fn commit_as_member(
        &self,
        group: &Arc<Group>,
        member: &MemberId,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<Receipt, BrokerError> {
        let fence = Some(Fence::Member { group: group.clone(), member: *member, epoch: None });
        self.commit(Commit { fence, ..self.offsets_commit(group, offsets)? }).await
    }

    /// Sets the offsets of a consumer group that has no active readers. Creates the group if it does not exist.
    ///
    /// # Errors
    /// As [`Broker::set_offsets`], and [`BrokerError::GroupOfOtherKind`].
    pub async fn commit_offsets(&self, id: &GroupId, offsets: &[(TopicPartition, Offset)]) -> Result<(), BrokerError> {
        loop {
            let group = self.0.groups.get_or_create(id, GroupKind::Consumer)?;
            match self.set_offsets(&group, offsets).await {
                // The group expired or was deleted after it was looked up.
                Err(_) if group.is_removed() => {}
                set => return set,
            }
        }
    }

    /// Commits the offsets of a client of Kafka's protocol, which says which member it is, or that it is none. Creates the
    /// group for one that is none.
    ///
    /// # Errors
    /// [`BrokerError::Member`], [`BrokerError::UnknownTopic`] if a topic was deleted meanwhile, [`BrokerError::GroupInUse`]
    /// for the group of a running pipeline, [`BrokerError::Storage`].
    pub async fn commit_as_claimed(
        &self,
        id: &GroupId,
        claim: &Claim,
        offsets: &[(Arc<Topic>, u32, CommittedOffset)],
    ) -> Result<(), BrokerError> {
        loop {
            let group = match self.0.groups.get(id.as_str()) {
                Ok(group) => group,
                Err(_) if claim.generation < 0 => self.0.groups.get_or_create(id, GroupKind::Consumer)?,
                Err(_) => {
                    let source = MemberError::IllegalGeneration { generation: claim.generation, current: 0 };
                    return Err(BrokerError::Member { group: id.clone(), source });
                }
            };
            let fence = match group.kind() {
                GroupKind::Pipeline => unused(&group)?,
                GroupKind::Consumer => {
                    Fence::Claim { group: group.clone(), claim: claim.clone(), in_transaction: false }
                }
            };
            let change = |(topic, partition, to): &(Arc<Topic>, u32, CommittedOffset)| OffsetChange {
                group: group.clone(),
                topic: topic.clone(),
                partition: *partition,
                to: Some(to.clone()),
                expected: None,
            };
            let offsets = offsets.iter().map(change).collect();
            let commit = Commit { offsets, fence: Some(fence), ..Commit::default() };
            match self.commit(commit).await?.await {
                // The group expired or was deleted after it was looked up.
                Err(_) if group.is_removed() => {}
                committed => return committed.map(drop),
            }
        }
    }

    /// Sets a group's offsets from outside, if it has no active readers.
    ///
    /// # Errors
    /// [`BrokerError::GroupInUse`], [`BrokerError::OffsetOutOfRange`], [`BrokerError::UnknownTopic`],
    /// [`BrokerError::Storage`].
    pub async fn set_offsets(
        &self,
        group: &Arc<Group>,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(), BrokerError> {
        let fence = unused(group)?;
        let commit = Commit { fence: Some(fence), ..self.offsets_commit(group, offsets)? };
        self.commit(commit).await?.await.map(drop)
    }

    fn offsets_commit(&self, group: &Arc<Group>, offsets: &[(TopicPartition, Offset)]) -> Result<Commit, BrokerError> {
        let mut commit = Commit::default();
        for (name, offset) in offsets {
            let topic = self.topic(name.topic.as_str())?;
            let partition = topic.partition(name.partition)?;
            if *offset < partition.start() || *offset > partition.end() {
                return Err(partition.out_of_range(*offset));
            }
            commit.offsets.push(OffsetChange {
                group: group.clone(),
                topic: topic.clone(),
                partition: name.partition,
                to: Some((*offset).into()),
                expected: None,
            });
        }
        Ok(commit)
    }

    /// Deletes a group that has no active readers, with its offsets.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`], [`BrokerError::GroupInUse`],
    /// [`BrokerError::GroupOfOtherKind`] for a pipeline's, [`BrokerError::Storage`].
    pub async fn delete_group(&self, id: &str) -> Result<(), BrokerError> {
        let group = self.0.groups.get(id)?;
        if group.kind() == GroupKind::Pipeline {
            let by = "it belongs to a pipeline; delete the pipeline, which also deletes the group".to_owned();
            return Err(BrokerError::GroupInUse { group: group.id().clone(), by });
        }
        let fence = Some(unused(&group)?);
        self.commit(Commit { drop_groups: vec![group], fence, ..Commit::default() }).await?.await.map(drop)
    }

    /// Changes settings of a group, which need not exist: a value of `None` stands for the default.
    ///
    /// # Errors
    /// [`BrokerError::InvalidGroupSetting`], [`BrokerError::Storage`].
    pub async fn change_group_settings(
        &self,
        id: &GroupId,
        changes: &[(String, Option<String>)],
        only_check: bool,
    ) -> Result<(), BrokerError> {
        for (name, value) in changes {
            settings::check(id, name, value.as_deref().unwrap_or("1"))?;
        }
        if only_check {
            return Ok(());
        }
        let (broker, id, changes) = (self.clone(), id.clone(), changes.to_vec());
        to_its_end(async move {
            let _changing = broker.0.changing_groups.lock().await;
            let mut all = broker.0.groups.settings(id.as_str());
            for (name, value) in changes {
                match value {
                    Some(value) => drop(all.insert(name, value)),
                    None => drop(all.remove(&name)),
                }
            }
            let key = format!("{GROUP_SETTINGS_PREFIX}{}", id.as_str());
            let entry =
                if all.is_empty() { CatalogChange::remove(key) } else { CatalogChange::put(key, to_json(&all)) };
            broker.commit_entry(entry).await?;
            broker.0.groups.set_settings(&id, all);
            Ok(())
        })
        .await
    }

    /// Removes committed offsets of a group. The group must not read the topics, which the caller checks.
    ///
    /// # Errors
    /// [`BrokerError::GroupInUse`] for the group of a running pipeline, [`BrokerError::UnknownTopic`] if a topic was deleted
    /// meanwhile, [`BrokerError::Storage`].
    pub async fn delete_offsets(&self, group: &Arc<Group>, offsets: &[(Arc<Topic>, u32)]) -> Result<(), BrokerError> {
        let fence = match group.kind() {
            GroupKind::Pipeline => Some(unused(group)?),
            GroupKind::Consumer => None,
        };
        let removal = |(topic, partition): &(Arc<Topic>, u32)| OffsetChange {
            group: group.clone(),
            topic: topic.clone(),
            partition: *partition,
            to: None,
            expected: None,
        };
        let offsets = offsets.iter().map(removal).collect();
        self.commit(Commit { offsets, fence, ..Commit::default() }).await?.await.map(drop)
    }

    pub(super) fn topics_changed(&self, topic: &TopicName) {
        for group in self.0.groups.all() {
            let members = &mut group.members().consumer;
            if members.reads(topic) {
                members.match_again(|pattern| matching(&self.0.topics.read(), pattern));
                let topics = self.known_topics(&members.topics());
                members.rebalance(circumstances(&group, &topics));
            }
        }
    }

    pub(super) fn known_topics(&self, topics: &BTreeSet<TopicName>) -> KnownTopics {
        known_topics(&self.0.topics.read(), topics)
    }
}

/// Returns those of the topics that exist.
pub(super) fn known_topics(known: &Topics, topics: &BTreeSet<TopicName>) -> KnownTopics {
    let known =
        |name: &TopicName| known.get(name.as_str()).map(|topic| (name.clone(), (topic.id(), topic.partition_count())));
    topics.iter().filter_map(known).collect()
}

/// Returns the topics whose names match a pattern.
pub(super) fn matching(known: &Topics, pattern: &Regex) -> BTreeSet<TopicName> {
    let matching = known.values().filter(|topic| !topic.meta().internal && pattern.is_match(topic.name().as_str()));
    matching.map(|topic| topic.name().clone()).collect()
}

/// Begins the next generation of a group, and returns the context of the change.
pub(super) fn circumstances<'a>(group: &Group, topics: &'a KnownTopics) -> Circumstances<'a> {
    Circumstances { generation: group.next_generation(), topics, now: Instant::now() }
}

/// Checks that a group has no active readers, and returns a fence. A reader that joins or resumes meanwhile ends the
/// fence's generation.
fn unused(group: &Arc<Group>) -> Result<Fence, BrokerError> {
    let fence = Fence::Generation { group: group.clone(), generation: group.generation() };
    group.check_unused()?;
    if group.is_removed() {
        return Err(BrokerError::UnknownGroup { group: group.id().to_string() });
    }
    Ok(fence)
}
