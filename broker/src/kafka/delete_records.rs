//! DeleteRecords (key 21): moves log start offsets (KIP-107).

use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::{Call, error_code};
use crate::error::BrokerError;
use crate::store::place::Offset;

/// Stands for the end of the log.
const END: i64 = -1;
/// The log start offset in an answer without one.
const NONE: i64 = -1;

pub(super) async fn answer(call: &Call, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let result = DeleteRecordsPartitionResult::default().with_partition_index(partition.partition_index);
            partitions.push(match delete(call, &topic.name, partition.partition_index, partition.offset).await {
                Ok(start) => result.with_low_watermark(start.get()),
                Err(error) => result.with_low_watermark(NONE).with_error_code(error_code::code(&error)),
            });
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions));
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn delete(call: &Call, topic: &str, partition: i32, before: i64) -> Result<Offset, BrokerError> {
    let (topic, partition) = call.edge.partition(topic, partition)?;
    let before = match before {
        END => None,
        before => Some(Offset::new(before).ok_or_else(|| partition.out_of_range(before))?),
    };
    call.broker().delete_records(&topic, &partition, before).await
}
