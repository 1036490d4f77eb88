//! CreatePartitions (key 37): adds partitions to topics.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{BrokerId, CreatePartitionsRequest, CreatePartitionsResponse};

use super::configs::Refused;
use super::create_topics::refused;
use super::{Call, NODE_ID, text};
use crate::log::topic::TopicAlteration;

pub(super) async fn answer(call: &Call, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let added = add(call, &topic, request.validate_only).await;
        let (code, reason) = added.err().map_or((0, None), |(code, reason)| (code, Some(text(reason))));
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        results.push(result.with_error_code(code).with_error_message(reason));
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn add(call: &Call, wanted: &CreatePartitionsTopic, validate_only: bool) -> Result<(), Refused> {
    let topic = call.broker().topic(&wanted.name).map_err(|error| refused(&error))?;
    let current = topic.partition_count();
    let partitions = u32::try_from(wanted.count).ok().filter(|count| *count > current).ok_or_else(|| {
        let reason = format!(
            "topic {} has {current} partitions, and {} were asked for: only more are possible",
            topic.name(),
            wanted.count
        );
        (ResponseError::InvalidPartitions.code(), reason)
    })?;
    if let Some(assignments) = &wanted.assignments {
        let is_ours = assignments.iter().all(|assigned| assigned.broker_ids == [BrokerId(NODE_ID)]);
        if !is_ours || assignments.len() != (partitions - current) as usize {
            let reason =
                format!("each of the {} new partitions must be assigned to broker {NODE_ID}", partitions - current);
            return Err((ResponseError::InvalidReplicaAssignment.code(), reason));
        }
    }
    let alteration = TopicAlteration { partitions: Some(partitions), ..TopicAlteration::default() };
    let done = if validate_only {
        call.broker().check_alteration(&topic, &alteration).map(drop)
    } else {
        call.broker().alter_topic(topic.name(), &alteration).await.map(drop)
    };
    done.map_err(|error| refused(&error))
}
