//! OffsetCommit (key 8): the positions of a group, committed by a member, or by a client that reads without being one.

use std::sync::Arc;

use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

use super::{Call, error_code};
use crate::error::BrokerError;
use crate::groups::classic::Claim;
use crate::groups::{CommittedOffset, METADATA_BYTES_MAX};
use crate::log::topic::Topic;
use crate::name::GroupId;
use crate::store::place::Offset;

pub(super) async fn answer(call: &Call, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = GroupId::new(&request.group_id);
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let offset = match &group {
                Ok(group) => {
                    let wanted = Wanted {
                        partition: partition.partition_index,
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition.committed_metadata.as_deref().unwrap_or_default(),
                    };
                    to_offset(call, group, &topic.name, &wanted)
                }
                Err(error) => Err(error.clone().into()),
            };
            partitions.push((partition.partition_index, offset.map(|offset| offsets.push(offset))));
        }
        topics.push((topic.name, partitions));
    }
    let committed = match &group {
        Ok(group) if !offsets.is_empty() => {
            let claim = Claim {
                member: request.member_id.to_string(),
                instance: request.group_instance_id.map(|instance| instance.to_string()),
                generation: request.generation_id_or_member_epoch,
            };
            call.broker().commit_as_claimed(group, &claim, &offsets).await
        }
        _ => Ok(()),
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, valid)| {
            let error = valid.err().or_else(|| committed.clone().err());
            let code = error.map_or(0, |error| error_code::of_group(&error));
            OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(code)
        });
        OffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// An offset of a request.
pub(super) struct Wanted<'a> {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: &'a str,
}

/// Checks an offset that a client commits. It may be any offset, as in Kafka.
pub(super) fn to_offset(
    call: &Call,
    group: &GroupId,
    topic: &str,
    wanted: &Wanted<'_>,
) -> Result<(Arc<Topic>, u32, CommittedOffset), BrokerError> {
    let (topic, partition) = call.edge.partition(topic, wanted.partition)?;
    let offset = Offset::new(wanted.offset).ok_or_else(|| partition.out_of_range(wanted.offset))?;
    let metadata = wanted.metadata;
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(BrokerError::MetadataTooLarge {
            group: group.clone(),
            bytes: metadata.len(),
            bytes_max: METADATA_BYTES_MAX,
        });
    }
    let committed = CommittedOffset {
        offset,
        leader_epoch: Some(wanted.leader_epoch).filter(|epoch| *epoch >= 0),
        metadata: Some(metadata).filter(|metadata| !metadata.is_empty()).map(Arc::from),
    };
    Ok((topic, partition.name().partition, committed))
}
