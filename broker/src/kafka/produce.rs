//! Produce (key 0): record batches are queued for the committer as they came. The answer follows when they are on disk.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};
use millstream_record::split_batches;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::{Call, Edge, error_code, text, transactions};
use crate::broker::quota::QuotaKind;
use crate::broker::transactions::InTransaction;
use crate::error::BrokerError;
use crate::log::queue::Receipt;
use crate::log::topic::Topic;

/// The `acks` of a request that wants no answer, and those of requests that want one when the records are on disk: a single
/// node makes no difference between its leader and all replicas.
const ACKS_NONE: i16 = 0;
const ACKS: [i16; 3] = [-1, ACKS_NONE, 1];

/// The offset in an answer without one.
const NO_OFFSET: i64 = -1;

/// The first version in which partitions join a transaction with their first records (KIP-890).
const ADDS_PARTITIONS_FROM: i16 = 12;
/// The first version in which topics are named by their UUIDs (KIP-516).
const UUIDS_FROM: i16 = 13;

/// The time of arrival of records that have timestamps of their own.
const NO_TIME: i64 = -1;

/// A request whose records are queued.
pub(super) struct Queued {
    topics: Vec<(TopicName, Uuid, Vec<QueuedPartition>)>,
    version: i16,
    wants_answer: bool,
    throttle_time_ms: i32,
    /// Counts the request as in flight.
    _in_flight: Option<OwnedSemaphorePermit>,
}

/// A partition's number, and its queued records with the time of their arrival (-1 if they have timestamps of their own), or
/// the reason for which they are not queued.
type QueuedPartition = (i32, Result<(Receipt, i64), Refused>);

/// The reason for which the records of one partition are not stored.
#[derive(Clone)]
struct Refused {
    code: i16,
    message: String,
    /// The records of the batch that are at fault, if they are known.
    records: Vec<i32>,
}

impl From<BrokerError> for Refused {
    fn from(error: BrokerError) -> Self {
        // In this API, a producer that is fenced hears of its epoch.
        let code = match &error {
            BrokerError::Transaction { .. } => transactions::code(&error, false),
            error => error_code::code(error),
        };
        Self { code, message: error.to_string(), records: Vec::new() }
    }
}

/// Queues the records of a request.
pub(super) async fn queue(call: &Call, request: ProduceRequest, in_flight: Option<OwnedSemaphorePermit>) -> Queued {
    let Call { edge, caller, .. } = call;
    let bytes = request.topic_data.iter().flat_map(|topic| &topic.partition_data);
    let bytes: usize = bytes.filter_map(|partition| partition.records.as_ref()).map(bytes::Bytes::len).sum();
    let charged = caller.charge(bytes).await;
    let mut topics = Vec::with_capacity(request.topic_data.len());
    let transaction = request
        .transactional_id
        .as_deref()
        .map(|id| InTransaction { id, adds_partitions: call.version >= ADDS_PARTITIONS_FROM });
    for topic in request.topic_data {
        let found = if call.version < UUIDS_FROM {
            edge.broker.topic(&topic.name).map_err(Refused::from)
        } else {
            let found = edge.broker.topic_by_uuid(topic.topic_id);
            found.ok_or_else(|| Refused {
                code: ResponseError::UnknownTopicId.code(),
                message: format!("there is no topic with the UUID {}", topic.topic_id),
                records: Vec::new(),
            })
        };
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for partition in topic.partition_data {
            let queued = match &charged {
                _ if !ACKS.contains(&request.acks) => {
                    let message = format!("acks {}: use -1 (all), 0 or 1", request.acks);
                    Err(Refused { code: ResponseError::InvalidRequiredAcks.code(), message, records: Vec::new() })
                }
                Err(error) => Err(error.clone().into()),
                Ok(()) => match &found {
                    Ok(topic) => queue_partition(edge, topic, &partition, transaction.as_ref()).await,
                    Err(refused) => Err(refused.clone()),
                },
            };
            partitions.push((partition.index, queued));
        }
        topics.push((topic.name, topic.topic_id, partitions));
    }
    Queued {
        topics,
        version: call.version,
        wants_answer: request.acks != ACKS_NONE,
        throttle_time_ms: call.throttle_time_ms(QuotaKind::Produce),
        _in_flight: in_flight,
    }
}

async fn queue_partition(
    edge: &Edge,
    topic: &Arc<Topic>,
    data: &PartitionProduceData,
    transaction: Option<&InTransaction<'_>>,
) -> Result<(Receipt, i64), Refused> {
    let number = u32::try_from(data.index).ok().filter(|number| *number < topic.partition_count());
    let number =
        number.ok_or_else(|| BrokerError::UnknownTopic { topic: format!("{}-{}", topic.name(), data.index) })?;
    let records = data.records.clone().filter(|records| !records.is_empty());
    let records = records.ok_or_else(|| BrokerError::Protocol("the request has no records".to_owned()))?;
    let produced = match transaction {
        Some(transaction) => edge.broker.produce_in_transaction(transaction, topic, number, records.clone()).await,
        None => edge.broker.produce_bytes(topic, number, records.clone()).await,
    };
    let (receipt, queued) = produced.map_err(|error| {
        let at_fault = match &error {
            BrokerError::NullKey { .. } => without_key(edge, records),
            _ => Vec::new(),
        };
        Refused { records: at_fault, ..Refused::from(error) }
    })?;
    Ok((receipt, queued.append_time_ms.unwrap_or(NO_TIME)))
}

/// Returns which records have no key, by their indexes in the request (KIP-467).
fn without_key(edge: &Edge, records: Bytes) -> Vec<i32> {
    let limits = edge.broker.settings().limits;
    let (mut found, mut index) = (Vec::new(), 0);
    for batch in split_batches(records) {
        let Ok(records) = batch.and_then(|batch| batch.records(&limits)) else { break };
        for record in &records {
            if record.is_ok_and(|record| record.key.is_none()) {
                found.push(index);
            }
            index += 1;
        }
    }
    found
}

fn record_error(index: i32) -> BatchIndexAndErrorMessage {
    let message = "the record has no key, and the topic is compacted by key";
    BatchIndexAndErrorMessage::default().with_batch_index(index).with_batch_index_error_message(Some(text(message)))
}

impl Queued {
    /// Waits until the records are on disk. Returns `None` if the client does not wait for an answer.
    pub(super) async fn answer(self) -> Option<ProduceResponse> {
        let mut responses = Vec::with_capacity(self.topics.len());
        for (name, uuid, partitions) in self.topics {
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
                    Err(Refused { code, message, records }) => answer
                        .with_error_code(code)
                        .with_base_offset(NO_OFFSET)
                        .with_log_start_offset(NO_OFFSET)
                        .with_error_message(Some(text(message)))
                        .with_record_errors(records.into_iter().map(record_error).collect()),
                });
            }
            let response = TopicProduceResponse::default().with_partition_responses(answers);
            responses.push(if self.version < UUIDS_FROM {
                response.with_name(name)
            } else {
                response.with_topic_id(uuid)
            });
        }
        let answer = ProduceResponse::default().with_responses(responses).with_throttle_time_ms(self.throttle_time_ms);
        self.wants_answer.then_some(answer)
    }
}
