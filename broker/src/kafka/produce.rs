//! Produce (key 0): record batches are queued for the committer as they came. The answer follows when they are on disk.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};
use tokio::sync::OwnedSemaphorePermit;

use super::{Call, Edge, error_code, text};
use crate::error::BrokerError;
use crate::log::queue::Receipt;

/// The `acks` of a request that wants no answer, and those of requests that want one when the records are on disk: a single
/// node makes no difference between its leader and all replicas.
const ACKS_NONE: i16 = 0;
const ACKS: [i16; 3] = [-1, ACKS_NONE, 1];

/// The offset in an answer without one.
const NO_OFFSET: i64 = -1;

/// The time of arrival of records that have timestamps of their own.
const NO_TIME: i64 = -1;

/// A request whose records are queued.
pub(super) struct Queued {
    topics: Vec<(TopicName, Vec<QueuedPartition>)>,
    wants_answer: bool,
    /// Counts the request as in flight.
    _in_flight: Option<OwnedSemaphorePermit>,
}

/// A partition's number, and its queued records with the time of their arrival (-1 if they have timestamps of their own), or
/// the reason for which they are not queued.
type QueuedPartition = (i32, Result<(Receipt, i64), Refused>);

/// The reason for which the records of one partition are not stored.
struct Refused {
    code: i16,
    message: String,
}

impl From<BrokerError> for Refused {
    fn from(error: BrokerError) -> Self {
        Self { code: error_code::code(&error), message: error.to_string() }
    }
}

/// Queues the records of a request.
pub(super) async fn queue(call: &Call, request: ProduceRequest, in_flight: Option<OwnedSemaphorePermit>) -> Queued {
    let Call { edge, caller, .. } = call;
    let bytes = request.topic_data.iter().flat_map(|topic| &topic.partition_data);
    let bytes: usize = bytes.filter_map(|partition| partition.records.as_ref()).map(bytes::Bytes::len).sum();
    let charged = caller.charge(bytes).await;
    let mut topics = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for partition in topic.partition_data {
            let queued = match &charged {
                _ if !ACKS.contains(&request.acks) => {
                    let message = format!("acks {}: use -1 (all), 0 or 1", request.acks);
                    Err(Refused { code: ResponseError::InvalidRequiredAcks.code(), message })
                }
                Err(error) => Err(error.clone().into()),
                Ok(()) => queue_partition(edge, &topic.name, partition.index, partition.records).await,
            };
            partitions.push((partition.index, queued));
        }
        topics.push((topic.name, partitions));
    }
    Queued { topics, wants_answer: request.acks != ACKS_NONE, _in_flight: in_flight }
}

async fn queue_partition(
    edge: &Edge,
    topic: &TopicName,
    partition: i32,
    records: Option<bytes::Bytes>,
) -> Result<(Receipt, i64), Refused> {
    let (topic, partition) = edge.partition(topic, partition)?;
    let records = records.filter(|records| !records.is_empty());
    let records = records.ok_or_else(|| BrokerError::Protocol("the request has no records".to_owned()))?;
    let (receipt, queued) = edge.broker.produce_bytes(&topic, partition.name().partition, records).await?;
    Ok((receipt, queued.append_time_ms.unwrap_or(NO_TIME)))
}

impl Queued {
    /// Waits until the records are on disk. Returns `None` if the client does not wait for an answer.
    pub(super) async fn answer(self) -> Option<ProduceResponse> {
        let mut responses = Vec::with_capacity(self.topics.len());
        for (name, partitions) in self.topics {
            let mut answers = Vec::with_capacity(partitions.len());
            for (index, queued) in partitions {
                let append_time_ms = queued.as_ref().map_or(NO_TIME, |(_, append_time_ms)| *append_time_ms);
                let stored = match queued {
                    Ok((receipt, _)) => receipt.await.map_err(Refused::from),
                    Err(refused) => Err(refused),
                };
                let answer =
                    PartitionProduceResponse::default().with_index(index).with_log_append_time_ms(append_time_ms);
                answers.push(match stored {
                    Ok(committed) => answer
                        .with_base_offset(committed.base_offsets.first().map_or(NO_OFFSET, |base| base.get()))
                        .with_log_start_offset(NO_OFFSET),
                    Err(Refused { code, message }) => answer
                        .with_error_code(code)
                        .with_base_offset(NO_OFFSET)
                        .with_log_start_offset(NO_OFFSET)
                        .with_error_message(Some(text(message))),
                });
            }
            responses.push(TopicProduceResponse::default().with_name(name).with_partition_responses(answers));
        }
        self.wants_answer.then(|| ProduceResponse::default().with_responses(responses))
    }
}
