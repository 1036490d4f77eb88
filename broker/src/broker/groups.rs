//! Consumer groups: members that come and go, offsets, and deleting a group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Broker;
use crate::error::BrokerError;
use crate::groups::assign::MemberId;
use crate::groups::members::MemberEvent;
use crate::groups::{Group, GroupKind};
use crate::log::commit::{Commit, Fence, OffsetChange};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::name::{GroupId, TopicName, TopicPartition};
use crate::store::place::Offset;

/// Where one group stands in one partition.
#[derive(Clone, Debug)]
pub struct GroupOffset {
    /// The partition.
    pub partition: TopicPartition,
    /// The next record to read, where one was committed.
    pub committed: Option<Offset>,
    /// The log end offset.
    pub end: Offset,
    /// Records between the two.
    pub lag: u64,
}

impl Broker {
    /// Where a group stands in each partition that it has committed, or that its members read.
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

    /// Adds a member to a consumer group.
    ///
    /// # Errors
    /// [`BrokerError::GroupOfOtherKind`], [`BrokerError::UnknownTopic`].
    pub fn join_group(
        &self,
        id: &GroupId,
        client_id: &str,
        topics: BTreeSet<TopicName>,
    ) -> Result<(Arc<Group>, MemberId, mpsc::UnboundedReceiver<MemberEvent>), BrokerError> {
        for topic in &topics {
            self.topic(topic.as_str())?;
        }
        loop {
            let group = self.0.groups.get_or_create(id, GroupKind::Consumer)?;
            let mut members = group.members();
            if group.is_removed() {
                continue;
            }
            let mut counts = self.partition_counts(&members.topics());
            counts.extend(self.partition_counts(&topics));
            let (member, events) = members.join(client_id, topics, &counts, group.next_generation());
            drop(members);
            return Ok((group, member, events));
        }
    }

    /// Removes a member; its partitions go to the others.
    pub fn leave_group(&self, group: &Group, member: &str) {
        let mut members = group.members();
        if members.contains(member) {
            let counts = self.partition_counts(&members.topics());
            members.leave(member, &counts, group.next_generation());
        }
    }

    /// A member gave partitions back.
    pub fn revoked(&self, group: &Group, member: &str, partitions: &[TopicPartition]) {
        group.members().revoked(member, partitions, group.generation());
    }

    /// Queues a member's offsets, where it owns the partitions.
    ///
    /// # Errors
    /// [`BrokerError::NotAssigned`], [`BrokerError::OffsetOutOfRange`],
    /// [`BrokerError::UnknownTopic`]; the receipt has the rest.
    pub async fn commit_as_member(
        &self,
        group: &Arc<Group>,
        member: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<Receipt, BrokerError> {
        let commit = {
            let members = group.members();
            if let Some((partition, _)) = offsets.iter().find(|(partition, _)| !members.owns(member, partition)) {
                return Err(BrokerError::NotAssigned {
                    group: group.id().clone(),
                    member: member.to_owned(),
                    topic: partition.topic.clone(),
                    partition: partition.partition,
                });
            }
            self.offsets_commit(group, offsets)?
        };
        self.commit(commit).await
    }

    /// Sets a group's offsets from outside, where nobody reads in it.
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
                offset: *offset,
                expected: None,
            });
        }
        Ok(commit)
    }

    /// Deletes a group that nobody reads in, with its offsets.
    ///
    /// # Errors
    /// [`BrokerError::UnknownGroup`], [`BrokerError::GroupInUse`],
    /// [`BrokerError::GroupOfOtherKind`] for a pipeline's, [`BrokerError::Storage`].
    pub async fn delete_group(&self, id: &str) -> Result<(), BrokerError> {
        let group = self.0.groups.get(id)?;
        if group.kind() == GroupKind::Pipeline {
            let by = format!("it belongs to a pipeline; `millstream pipeline delete {id}` deletes both");
            return Err(BrokerError::GroupInUse { group: group.id().clone(), by });
        }
        let fence = Some(unused(&group)?);
        self.commit(Commit { drop_groups: vec![group], fence, ..Commit::default() }).await?.await.map(drop)
    }

    pub(super) fn topics_changed(&self, topic: &TopicName) {
        for group in self.0.groups.all() {
            let mut members = group.members();
            if members.reads(topic) {
                let counts = self.partition_counts(&members.topics());
                members.rebalance(&counts, group.next_generation());
            }
        }
    }

    fn partition_counts(&self, topics: &BTreeSet<TopicName>) -> BTreeMap<TopicName, u32> {
        let known = self.0.topics.read();
        let count = |name: &TopicName| known.get(name).map(|topic| (name.clone(), topic.partition_count()));
        topics.iter().filter_map(count).collect()
    }
}

/// A group that nobody reads in; whoever joins or resumes meanwhile ends the fence's generation.
fn unused(group: &Arc<Group>) -> Result<Fence, BrokerError> {
    let fence = Fence { group: group.clone(), generation: group.generation() };
    group.check_unused()?;
    if group.is_removed() {
        return Err(BrokerError::UnknownGroup { group: group.id().to_string() });
    }
    Ok(fence)
}
