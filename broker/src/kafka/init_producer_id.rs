//! InitProducerId (key 22): identities of idempotent and transactional producers.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use super::Call;
use super::transactions::{self, identity};

/// The first version that knows the code for a producer that is fenced.
const FENCED_FROM: i16 = 4;

pub(super) async fn answer(call: &Call, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |code: i16| {
        InitProducerIdResponse::default().with_error_code(code).with_producer_id((-1).into()).with_producer_epoch(-1)
    };
    let current = identity(request.producer_id.0, request.producer_epoch);
    let given = match &request.transactional_id {
        Some(id) if id.is_empty() => return refused(ResponseError::InvalidRequest.code()),
        Some(id) => call.broker().init_transactional(id, request.transaction_timeout_ms, current).await,
        // As in Kafka, what a producer without transactions had does not matter: some clients send zeros.
        None => call.broker().init_producer(None).await,
    };
    match given {
        Ok(given) => {
            InitProducerIdResponse::default().with_producer_id(given.id.get().into()).with_producer_epoch(given.epoch)
        }
        Err(error) => refused(transactions::code(&error, call.version >= FENCED_FROM)),
    }
}
