//! DescribeTopicPartitions (key 75): topics with their partitions, a part at a time (KIP-966).

use std::sync::Arc;

use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::{BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};

use super::{Call, NODE_ID, TOPIC_OPERATIONS, error_code, text};
use crate::error::BrokerError;
use crate::log::topic::Topic;
use crate::name::TopicName;
use crate::store::LEADER_EPOCH;

/// Maximum number of partitions in an answer: Kafka's `max.request.partition.size.limit`.
const PARTITIONS_MAX: usize = 2_000;

pub(super) async fn answer(call: &Call, request: DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
    let mut names: Vec<String> = match request.topics.is_empty() {
        true => call.broker().topics().iter().map(|topic| topic.name().as_str().to_owned()).collect(),
        false => request.topics.iter().map(|topic| topic.name.to_string()).collect(),
    };
    names.sort();
    names.dedup();
    let (begin_topic, mut begin) = match &request.cursor {
        Some(cursor) => (cursor.topic_name.to_string(), usize::try_from(cursor.partition_index).unwrap_or(0)),
        None => (String::new(), 0),
    };
    let asked = usize::try_from(request.response_partition_limit).unwrap_or(0);
    let mut left = asked.clamp(1, PARTITIONS_MAX);
    let mut topics = Vec::new();
    let mut next = None;
    for name in names.into_iter().filter(|name| *name >= begin_topic) {
        let from = if name == begin_topic { std::mem::take(&mut begin) } else { 0 };
        if left == 0 {
            next = Some(Cursor::default().with_topic_name(text(name).into()));
            break;
        }
        match find(call, &name) {
            Ok(topic) => {
                let numbers: Vec<usize> = (from..topic.partition_count() as usize).take(left).collect();
                left -= numbers.len();
                let end = from + numbers.len();
                topics.push(described(&topic, &numbers));
                if end < topic.partition_count() as usize {
                    next = Some(Cursor::default().with_topic_name(text(name).into()).with_partition_index(end as i32));
                    break;
                }
            }
            Err(error) => topics.push(
                DescribeTopicPartitionsResponseTopic::default()
                    .with_error_code(error_code::code(&error))
                    .with_name(Some(text(name).into())),
            ),
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next)
}

fn find(call: &Call, name: &str) -> Result<Arc<Topic>, BrokerError> {
    TopicName::new(name)?;
    call.broker().topic(name)
}

fn described(topic: &Topic, partitions: &[usize]) -> DescribeTopicPartitionsResponseTopic {
    let partition = |number: &usize| {
        DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(*number as i32)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![BrokerId(NODE_ID)])
            .with_isr_nodes(vec![BrokerId(NODE_ID)])
            .with_eligible_leader_replicas(Some(Vec::new()))
            .with_last_known_elr(Some(Vec::new()))
    };
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(text(topic.name().as_str()).into()))
        .with_topic_id(topic.uuid())
        .with_is_internal(topic.meta().internal)
        .with_partitions(partitions.iter().map(partition).collect())
        .with_topic_authorized_operations(TOPIC_OPERATIONS)
}
