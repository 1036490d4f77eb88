//! OffsetForLeaderEpoch (key 23): where a leader epoch ends. There is one epoch, which ends at the end of the log.

use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::{Call, check_leader_epoch, error_code};
use crate::store::LEADER_EPOCH;

/// The epoch and the offset of an epoch that there is not.
const NONE: i32 = -1;

pub(super) async fn answer(call: &Call, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            let answer = EpochEndOffset::default().with_partition(wanted.partition);
            let refused =
                |code: i16| answer.clone().with_error_code(code).with_leader_epoch(NONE).with_end_offset(NONE.into());
            let partition = match call.edge.partition(&topic.topic, wanted.partition) {
                Ok((_, partition)) => partition,
                Err(error) => return refused(error_code::code(&error)),
            };
            if let Err(code) = check_leader_epoch(wanted.current_leader_epoch) {
                return refused(code);
            }
            match wanted.leader_epoch {
                LEADER_EPOCH => answer.with_leader_epoch(LEADER_EPOCH).with_end_offset(partition.end().get()),
                _ => answer.with_leader_epoch(NONE).with_end_offset(NONE.into()),
            }
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}
