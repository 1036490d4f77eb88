//! ListOffsets (key 2): the offsets at which a log starts and ends, or at a time.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse, TopicName};

use super::fetch::READ_COMMITTED;
use super::{Call, Edge, check_leader_epoch, error_code};
use crate::broker::position::Position;
use crate::error::BrokerError;
use crate::store::LEADER_EPOCH;

/// The timestamps that stand for the ends of a log.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// Stands for the record with the largest timestamp (KIP-734).
const MAX_TIMESTAMP: i64 = -3;
/// Stands for the log start offset on this server's disk (KIP-405), which is the log start offset.
const EARLIEST_LOCAL: i64 = -4;
/// Stands for the last offset in remote storage (KIP-1005). There is none.
const LATEST_TIERED: i64 = -5;

/// The answer where there is no offset or no timestamp.
const NONE: i64 = -1;
/// The leader epoch where there is none, and in versions that have none.
const NO_EPOCH: i32 = -1;
/// The first version with leader epochs (KIP-320).
const EPOCHS_FROM: i16 = 4;

pub(super) async fn answer(call: &Call, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let has_epochs = call.version >= EPOCHS_FROM;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let found = match check_leader_epoch(wanted.current_leader_epoch) {
                Ok(()) => {
                    find(&call.edge, &topic.name, wanted.partition_index, wanted.timestamp, request.isolation_level)
                        .await
                }
                Err(code) => Err(code),
            };
            let answer = ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
            partitions.push(match found {
                Ok((offset, timestamp)) => answer
                    .with_offset(offset)
                    .with_timestamp(timestamp)
                    .with_leader_epoch(if has_epochs && offset != NONE { LEADER_EPOCH } else { NO_EPOCH }),
                Err(code) => {
                    answer.with_error_code(code).with_offset(NONE).with_timestamp(NONE).with_leader_epoch(NONE as i32)
                }
            });
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// Returns an offset, and the timestamp of its record if the request was about a timestamp.
///
/// # Errors
/// Kafka's error code.
async fn find(
    edge: &Edge,
    topic: &TopicName,
    partition: i32,
    timestamp: i64,
    isolation_level: i8,
) -> Result<(i64, i64), i16> {
    let code = |error: BrokerError| error_code::code(&error);
    let (_, partition) = edge.partition(topic, partition).map_err(code)?;
    let at_ms = match timestamp {
        LATEST if isolation_level == READ_COMMITTED => return Ok((partition.stable_end().get(), NONE)),
        LATEST => return Ok((partition.end().get(), NONE)),
        EARLIEST | EARLIEST_LOCAL => return Ok((partition.start().get(), NONE)),
        LATEST_TIERED => return Ok((NONE, NONE)),
        MAX_TIMESTAMP => match partition.size().max_timestamp_ms {
            Some(max_timestamp_ms) => max_timestamp_ms,
            None => return Ok((NONE, NONE)),
        },
        at_ms if at_ms >= 0 => at_ms,
        _ => return Err(ResponseError::UnsupportedVersion.code()),
    };
    let offset = edge.broker.offset_at(&partition, Position::Timestamp(at_ms)).await.map_err(code)?;
    let found = edge.broker.timestamp_of(&partition, offset).await.map_err(code)?;
    Ok(found.map_or((NONE, NONE), |timestamp_ms| (offset.get(), timestamp_ms)))
}
