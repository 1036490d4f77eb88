//! DescribeTransactions (key 65): transactional ids and their open transactions.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{DescribeTransactionsRequest, DescribeTransactionsResponse};

use super::{Call, text};

/// The time and the producer of a transactional id that is unknown.
const NONE: i64 = -1;

pub(super) async fn answer(call: &Call, request: DescribeTransactionsRequest) -> DescribeTransactionsResponse {
    let mut states = Vec::with_capacity(request.transactional_ids.len());
    for id in request.transactional_ids {
        let described = call.broker().describe_transaction(&id).await;
        let state = TransactionState::default().with_transactional_id(id);
        states.push(match described {
            Err(_) => state
                .with_error_code(ResponseError::TransactionalIdNotFound.code())
                .with_producer_id(NONE.into())
                .with_producer_epoch(NONE as i16)
                .with_transaction_start_time_ms(NONE),
            Ok(described) => {
                let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
                for partition in &described.partitions {
                    let name = partition.name();
                    topics.entry(name.topic.as_str().to_owned()).or_default().push(name.partition as i32);
                }
                let topics = topics.into_iter();
                let topics = topics.map(|(topic, partitions)| {
                    TopicData::default().with_topic(text(topic).into()).with_partitions(partitions)
                });
                state
                    .with_transaction_state(text(described.state))
                    .with_transaction_timeout_ms(i32::try_from(described.timeout_ms).unwrap_or(i32::MAX))
                    .with_transaction_start_time_ms(described.began_ms.unwrap_or(NONE))
                    .with_producer_id(described.producer.id.get().into())
                    .with_producer_epoch(described.producer.epoch)
                    .with_topics(topics.collect())
            }
        });
    }
    DescribeTransactionsResponse::default().with_transaction_states(states)
}
