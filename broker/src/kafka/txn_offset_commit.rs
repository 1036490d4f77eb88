//! TxnOffsetCommit (key 28): offsets of a group that take effect when the transaction commits.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};

use super::offset_commit::{Wanted, to_offset};
use super::transactions::{self, identity};
use super::{Call, error_code};
use crate::error::BrokerError;
use crate::groups::classic::Claim;
use crate::name::GroupId;

/// The first version in which the group joins the transaction with its offsets (KIP-890).
const ADDS_GROUP_FROM: i16 = 5;

pub(super) async fn answer(call: &Call, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let group = GroupId::new(&request.group_id);
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let wanted = Wanted {
                partition: partition.partition_index,
                offset: partition.committed_offset,
                leader_epoch: partition.committed_leader_epoch,
                metadata: partition.committed_metadata.as_deref().unwrap_or_default(),
            };
            let offset = match &group {
                Ok(group) => to_offset(call, group, &topic.name, &wanted),
                Err(error) => Err(BrokerError::from(error.clone())),
            };
            partitions.push((partition.partition_index, offset.map(|offset| offsets.push(offset))));
        }
        topics.push((topic.name, partitions));
    }
    let code = match (&group, identity(request.producer_id.0, request.producer_epoch)) {
        (_, None) => ResponseError::InvalidProducerIdMapping.code(),
        (Ok(group), Some(producer)) if !offsets.is_empty() => {
            let claim = Claim {
                member: request.member_id.to_string(),
                instance: request.group_instance_id.map(|instance| instance.to_string()),
                generation: request.generation_id,
            };
            let id = &request.transactional_id;
            let adds_group = call.version >= ADDS_GROUP_FROM;
            let committed = call.broker().commit_in_transaction(id, producer, group, &claim, &offsets, adds_group);
            committed.await.err().map_or(0, |error| transactions::code(&error, true))
        }
        _ => 0,
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, valid)| {
            let code = valid.err().map_or(code, |error| error_code::of_group(&error));
            TxnOffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(code)
        });
        TxnOffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}
