//! DescribeProducers (key 61): the producers that partitions know, with their open transactions (KIP-664).

use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse};

use super::{Call, error_code, text};

/// A number that is unknown.
const NONE: i64 = -1;

pub(super) async fn answer(call: &Call, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|number| {
            let answer = PartitionResponse::default().with_partition_index(*number);
            match call.edge.partition(&topic.name, *number) {
                Ok((_, partition)) => {
                    let mut active: Vec<ProducerState> = partition.producers().iter().map(to_state).collect();
                    active.sort_by_key(|state| state.producer_id.0);
                    answer.with_active_producers(active)
                }
                Err(error) => {
                    answer.with_error_code(error_code::code(&error)).with_error_message(Some(text(error.to_string())))
                }
            }
        });
        let partitions = partitions.collect();
        TopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn to_state((id, producer): (crate::name::ProducerId, &crate::log::producers::Producer)) -> ProducerState {
    let (last_sequence, last_append_ms) = producer.last();
    ProducerState::default()
        .with_producer_id(id.get().into())
        .with_producer_epoch(producer.epoch().into())
        .with_last_sequence(last_sequence.unwrap_or(NONE as i32))
        .with_last_timestamp(last_append_ms)
        .with_coordinator_epoch(NONE as i32)
        .with_current_txn_start_offset(producer.transaction().map_or(NONE, |first| first.get()))
}
