//! ListTransactions (key 66): transactional ids, by state, producer and age (KIP-664, KIP-994).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{ListTransactionsRequest, ListTransactionsResponse};
use regex_lite::Regex;

use super::{Call, text};

/// Kafka's names of states. Those after the first four do not occur, because a transaction ends in one commit.
const STATES: [&str; 8] = [
    "Empty",
    "Ongoing",
    "CompleteCommit",
    "CompleteAbort",
    "PrepareCommit",
    "PrepareAbort",
    "PrepareEpochFence",
    "Dead",
];

pub(super) async fn answer(call: &Call, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let unknown = request.state_filters.iter().filter(|state| !STATES.contains(&&***state)).cloned().collect();
    let pattern = request.transactional_id_pattern.as_deref().filter(|pattern| !pattern.is_empty());
    let pattern = match pattern.map(|pattern| Regex::new(&format!("^(?:{pattern})$"))).transpose() {
        Ok(pattern) => pattern,
        Err(_) => {
            return ListTransactionsResponse::default().with_error_code(ResponseError::InvalidRegularExpression.code());
        }
    };
    let now_ms = call.broker().clock().now_ms();
    let mut states = Vec::new();
    for described in call.broker().transactions().await {
        let id = described.producer.id.get();
        let is_of_state =
            request.state_filters.is_empty() || request.state_filters.iter().any(|state| **state == *described.state);
        let is_of_producer =
            request.producer_id_filters.is_empty() || request.producer_id_filters.iter().any(|of| of.0 == id);
        // -1 stands for any age.
        let is_old = request.duration_filter < 0
            || described.began_ms.is_some_and(|began_ms| now_ms.saturating_sub(began_ms) > request.duration_filter);
        let is_named = pattern.as_ref().is_none_or(|pattern| pattern.is_match(&described.id));
        if is_of_state && is_of_producer && is_old && is_named {
            states.push(
                TransactionState::default()
                    .with_transactional_id(text(&*described.id).into())
                    .with_producer_id(id.into())
                    .with_transaction_state(text(described.state)),
            );
        }
    }
    ListTransactionsResponse::default().with_unknown_state_filters(unknown).with_transaction_states(states)
}
