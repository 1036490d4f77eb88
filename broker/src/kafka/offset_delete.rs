//! OffsetDelete (key 47): committed offsets of a group are removed (KIP-496).

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::{Call, error_code};
use crate::groups::Group;
use crate::log::topic::Topic;

pub(super) async fn answer(call: &Call, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = match call.broker().groups().get(&request.group_id) {
        Ok(group) => group,
        Err(error) => return OffsetDeleteResponse::default().with_error_code(error_code::of_group(&error)),
    };
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let index = partition.partition_index;
            let found = find(call, &group, &topic.name, index);
            partitions.push((index, found.map(|offset| offsets.push(offset))));
        }
        topics.push((topic.name, partitions));
    }
    if let Err(error) = call.broker().delete_offsets(&group, &offsets).await {
        return OffsetDeleteResponse::default().with_error_code(error_code::of_group(&error));
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, deleted)| {
            let code = deleted.err().unwrap_or(0);
            OffsetDeleteResponsePartition::default().with_partition_index(index).with_error_code(code)
        });
        OffsetDeleteResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}

/// Returns the partition, if no member of the group reads its topic.
///
/// # Errors
/// Kafka's error code.
fn find(call: &Call, group: &Group, topic: &str, partition: i32) -> Result<(Arc<Topic>, u32), i16> {
    let (topic, partition) = call.edge.partition(topic, partition).map_err(|error| error_code::of_group(&error))?;
    if group.members().reads(topic.name()) {
        return Err(ResponseError::GroupSubscribedToTopic.code());
    }
    Ok((topic, partition.name().partition))
}
