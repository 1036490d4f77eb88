//! OffsetFetch (key 9): the committed offsets of groups.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};

use super::{Call, error_code, text};
use crate::groups::{Group, StoredOffset};
use crate::name::GroupId;

/// The first version that asks for several groups (KIP-709).
const SEVERAL_FROM: i16 = 8;

/// The answer where no offset was committed, and the leader epoch where none is known.
const NONE: i32 = -1;

/// The code of an offset that an open transaction commits (KIP-447).
const UNSTABLE: i16 = ResponseError::UnstableOffsetCommit.code();

/// Topics, each with partitions and their committed offsets.
type Offsets = Vec<(TopicName, Vec<(i32, Stored)>)>;

/// A committed offset, or Kafka's error code.
type Stored = Result<Option<StoredOffset>, i16>;

/// Topics with partitions, or `None` for all in which an offset was committed.
type Wanted = Option<Vec<(TopicName, Vec<i32>)>>;

pub(super) async fn answer(call: &Call, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if call.version < SEVERAL_FROM {
        let wanted = request.topics.map(|topics| {
            let of_topic = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
            of_topic.collect()
        });
        return match offsets(call, &request.group_id, wanted, request.require_stable) {
            Ok(offsets) => OffsetFetchResponse::default().with_topics(offsets.into_iter().map(to_topic).collect()),
            Err(code) => OffsetFetchResponse::default().with_error_code(code),
        };
    }
    let groups = request.groups.into_iter().map(|group| {
        if let Err(code) = check_member(call, &group) {
            return OffsetFetchResponseGroup::default().with_group_id(group.group_id).with_error_code(code);
        }
        let wanted = group.topics.map(|topics| {
            let of_topic = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
            of_topic.collect()
        });
        let answer = match offsets(call, &group.group_id, wanted, request.require_stable) {
            Ok(offsets) => {
                OffsetFetchResponseGroup::default().with_topics(offsets.into_iter().map(to_topics).collect())
            }
            Err(code) => OffsetFetchResponseGroup::default().with_error_code(code),
        };
        answer.with_group_id(group.group_id)
    });
    OffsetFetchResponse::default().with_groups(groups.collect())
}

/// Refuses a request of a member whose epoch is over (KIP-848). Clients that are no members name none.
fn check_member(call: &Call, group: &OffsetFetchRequestGroup) -> Result<(), i16> {
    let Some(member) = group.member_id.as_deref().filter(|member| !member.is_empty()) else { return Ok(()) };
    let Ok(known) = call.broker().groups().get(&group.group_id) else { return Ok(()) };
    let members = known.members();
    if group.member_epoch < 0 || members.consumer.is_empty() {
        return Ok(());
    }
    let checked = members.consumer.check_epoch(member, group.member_epoch);
    checked.map_err(|source| error_code::of_group(&known.refused(source)))
}

/// Returns the committed offsets of a group. A group that does not exist has none.
///
/// # Errors
/// Kafka's error code.
fn offsets(call: &Call, group: &str, wanted: Wanted, require_stable: bool) -> Result<Offsets, i16> {
    let id = GroupId::new(group).map_err(|error| error_code::of_group(&error.into()))?;
    let group = call.broker().groups().get(id.as_str()).ok();
    let Some(wanted) = wanted else {
        let mut all: BTreeMap<String, Vec<(i32, Stored)>> = BTreeMap::new();
        for (name, stored) in group.iter().flat_map(|group| call.broker().stored_offsets(group)) {
            let partitions = all.entry(name.topic.as_str().to_owned()).or_default();
            let is_pending =
                require_stable && is_pending(call, group.as_deref(), name.topic.as_str(), name.partition as i32);
            partitions.push((name.partition as i32, if is_pending { Err(UNSTABLE) } else { Ok(Some(stored)) }));
        }
        return Ok(all.into_iter().map(|(topic, partitions)| (text(topic).into(), partitions)).collect());
    };
    let of_topic = |(name, partitions): (TopicName, Vec<i32>)| {
        let stored = |partition: i32| {
            let is_pending = require_stable && is_pending(call, group.as_deref(), &name, partition);
            let stored = if is_pending { Err(UNSTABLE) } else { Ok(stored(call, group.as_deref(), &name, partition)) };
            (partition, stored)
        };
        let partitions = partitions.into_iter().map(stored).collect();
        (name, partitions)
    };
    Ok(wanted.into_iter().map(of_topic).collect())
}

fn stored(call: &Call, group: Option<&Group>, topic: &str, partition: i32) -> Option<StoredOffset> {
    let (topic, partition) = call.edge.partition(topic, partition).ok()?;
    group?.stored_offset(topic.id(), partition.name().partition)
}

/// Returns whether an open transaction commits an offset of the partition.
fn is_pending(call: &Call, group: Option<&Group>, topic: &str, partition: i32) -> bool {
    let found = group.zip(call.edge.partition(topic, partition).ok());
    found.is_some_and(|(group, (_, partition))| group.is_pending(partition.place()))
}

/// The parts of a committed offset as they are answered: offset, leader epoch, metadata, error code.
fn parts(stored: Stored) -> (i64, i32, String, i16) {
    let code = stored.as_ref().err().copied().unwrap_or(0);
    let Some(StoredOffset { committed, .. }) = stored.ok().flatten() else {
        return (NONE.into(), NONE, String::new(), code);
    };
    let metadata = committed.metadata.as_deref().unwrap_or_default().to_owned();
    (committed.offset.get(), committed.leader_epoch.unwrap_or(NONE), metadata, code)
}

fn to_topic((name, partitions): (TopicName, Vec<(i32, Stored)>)) -> OffsetFetchResponseTopic {
    let partitions = partitions.into_iter().map(|(index, stored)| {
        let (offset, leader_epoch, metadata, code) = parts(stored);
        OffsetFetchResponsePartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(leader_epoch)
            .with_metadata(Some(text(metadata)))
            .with_error_code(code)
    });
    OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
}

fn to_topics((name, partitions): (TopicName, Vec<(i32, Stored)>)) -> OffsetFetchResponseTopics {
    let partitions = partitions.into_iter().map(|(index, stored)| {
        let (offset, leader_epoch, metadata, code) = parts(stored);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(leader_epoch)
            .with_metadata(Some(text(metadata)))
            .with_error_code(code)
    });
    OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
}
