//! OffsetFetch (key 9): the committed offsets of groups.

use std::collections::BTreeMap;

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

/// Topics, each with partitions and their committed offsets.
type Offsets = Vec<(TopicName, Vec<(i32, Option<StoredOffset>)>)>;

/// Topics with partitions, or `None` for all in which an offset was committed.
type Wanted = Option<Vec<(TopicName, Vec<i32>)>>;

pub(super) async fn answer(call: &Call, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if call.version < SEVERAL_FROM {
        let wanted = request.topics.map(|topics| {
            let of_topic = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
            of_topic.collect()
        });
        return match offsets(call, &request.group_id, wanted) {
            Ok(offsets) => OffsetFetchResponse::default().with_topics(offsets.into_iter().map(to_topic).collect()),
            Err(code) => OffsetFetchResponse::default().with_error_code(code),
        };
    }
    let groups = request.groups.into_iter().map(|group| {
        let wanted = group.topics.map(|topics| {
            let of_topic = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
            of_topic.collect()
        });
        let answer = match offsets(call, &group.group_id, wanted) {
            Ok(offsets) => {
                OffsetFetchResponseGroup::default().with_topics(offsets.into_iter().map(to_topics).collect())
            }
            Err(code) => OffsetFetchResponseGroup::default().with_error_code(code),
        };
        answer.with_group_id(group.group_id)
    });
    OffsetFetchResponse::default().with_groups(groups.collect())
}

/// Returns the committed offsets of a group. A group that does not exist has none.
///
/// # Errors
/// Kafka's error code.
fn offsets(call: &Call, group: &str, wanted: Wanted) -> Result<Offsets, i16> {
    let id = GroupId::new(group).map_err(|error| error_code::of_group(&error.into()))?;
    let group = call.broker().groups().get(id.as_str()).ok();
    let Some(wanted) = wanted else {
        let mut all: BTreeMap<String, Vec<(i32, Option<StoredOffset>)>> = BTreeMap::new();
        for (name, stored) in group.iter().flat_map(|group| call.broker().stored_offsets(group)) {
            let partitions = all.entry(name.topic.as_str().to_owned()).or_default();
            partitions.push((name.partition as i32, Some(stored)));
        }
        return Ok(all.into_iter().map(|(topic, partitions)| (text(topic).into(), partitions)).collect());
    };
    let of_topic = |(name, partitions): (TopicName, Vec<i32>)| {
        let stored = |partition: i32| (partition, stored(call, group.as_deref(), &name, partition));
        let partitions = partitions.into_iter().map(stored).collect();
        (name, partitions)
    };
    Ok(wanted.into_iter().map(of_topic).collect())
}

fn stored(call: &Call, group: Option<&Group>, topic: &str, partition: i32) -> Option<StoredOffset> {
    let (topic, partition) = call.edge.partition(topic, partition).ok()?;
    group?.stored_offset(topic.id(), partition.name().partition)
}

/// The parts of a committed offset as they are answered: offset, leader epoch, metadata.
fn parts(stored: Option<StoredOffset>) -> (i64, i32, String) {
    let Some(StoredOffset { committed, .. }) = stored else { return (NONE.into(), NONE, String::new()) };
    let metadata = committed.metadata.as_deref().unwrap_or_default().to_owned();
    (committed.offset.get(), committed.leader_epoch.unwrap_or(NONE), metadata)
}

fn to_topic((name, partitions): (TopicName, Vec<(i32, Option<StoredOffset>)>)) -> OffsetFetchResponseTopic {
    let partitions = partitions.into_iter().map(|(index, stored)| {
        let (offset, leader_epoch, metadata) = parts(stored);
        OffsetFetchResponsePartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(leader_epoch)
            .with_metadata(Some(text(metadata)))
    });
    OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
}

fn to_topics((name, partitions): (TopicName, Vec<(i32, Option<StoredOffset>)>)) -> OffsetFetchResponseTopics {
    let partitions = partitions.into_iter().map(|(index, stored)| {
        let (offset, leader_epoch, metadata) = parts(stored);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(leader_epoch)
            .with_metadata(Some(text(metadata)))
    });
    OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
}
