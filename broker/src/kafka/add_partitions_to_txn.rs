//! AddPartitionsToTxn (key 24): partitions join transactions.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};

use super::transactions::{self, identity};
use super::{Call, error_code};
use crate::error::BrokerError;
use crate::log::partition::Partition;

/// The first version with several transactions (KIP-890).
const SEVERAL_FROM: i16 = 4;

pub(super) async fn answer(call: &Call, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
    if call.version < SEVERAL_FROM {
        let (id, producer_id) = (&request.v3_and_below_transactional_id, request.v3_and_below_producer_id.0);
        let epoch = request.v3_and_below_producer_epoch;
        let results = add(call, id, producer_id, epoch, false, request.v3_and_below_topics).await;
        return AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results);
    }
    let mut results = Vec::with_capacity(request.transactions.len());
    for of in request.transactions {
        let id = &of.transactional_id;
        let of_topics = add(call, id, of.producer_id.0, of.producer_epoch, of.verify_only, of.topics).await;
        results.push(
            AddPartitionsToTxnResult::default()
                .with_transactional_id(of.transactional_id.clone())
                .with_topic_results(of_topics),
        );
    }
    AddPartitionsToTxnResponse::default().with_results_by_transaction(results)
}

/// Adds partitions to a transaction, or only checks that they are in it. If one of them does not exist, none is added.
async fn add(
    call: &Call,
    id: &str,
    producer_id: i64,
    epoch: i16,
    verify_only: bool,
    topics: Vec<AddPartitionsToTxnTopic>,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let find = |topic: &AddPartitionsToTxnTopic, number: i32| {
        call.edge.partition(&topic.name, number).map(|(_, partition)| partition)
    };
    let found: Vec<Vec<Result<Arc<Partition>, BrokerError>>> =
        topics.iter().map(|topic| topic.partitions.iter().map(|number| find(topic, *number)).collect()).collect();
    let all: Result<Vec<Arc<Partition>>, ()> =
        found.iter().flatten().map(|found| found.clone().map_err(drop)).collect();
    let added = match &all {
        Err(()) => Err(ResponseError::OperationNotAttempted.code()),
        Ok(all) => match identity(producer_id, epoch) {
            None => Err(ResponseError::InvalidProducerIdMapping.code()),
            Some(producer) if verify_only => {
                let verified = call.broker().is_in_transaction(id, producer, all).await;
                verified.map_err(|error| transactions::code(&error, call.version >= 2))
            }
            Some(producer) => {
                let added = call.broker().add_to_transaction(id, producer, all.clone()).await;
                let added = added.map(|()| vec![true; all.len()]);
                added.map_err(|error| transactions::code(&error, call.version >= 2))
            }
        },
    };
    let mut at = 0;
    let mut results = Vec::with_capacity(topics.len());
    for (topic, found) in topics.into_iter().zip(found) {
        let mut partitions = Vec::with_capacity(found.len());
        for (number, found) in topic.partitions.iter().zip(found) {
            let code = match (found, &added) {
                (Err(error), _) => error_code::code(&error),
                (Ok(_), Err(code)) => *code,
                (Ok(_), Ok(are_in)) if are_in[at] => 0,
                (Ok(_), Ok(_)) => ResponseError::TransactionAbortable.code(),
            };
            at += 1;
            let result = AddPartitionsToTxnPartitionResult::default().with_partition_index(*number);
            partitions.push(result.with_partition_error_code(code));
        }
        let result = AddPartitionsToTxnTopicResult::default().with_name(topic.name);
        results.push(result.with_results_by_partition(partitions));
    }
    results
}
