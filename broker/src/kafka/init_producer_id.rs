//! InitProducerId (key 22): identities of idempotent producers.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use super::{Call, error_code};
use crate::name::{ProducerId, ProducerIdentity};

pub(super) async fn answer(call: &Call, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |code: i16| {
        InitProducerIdResponse::default().with_error_code(code).with_producer_id((-1).into()).with_producer_epoch(-1)
    };
    if request.transactional_id.is_some() {
        // Clients treat this code as final. With most others they would try again for ever.
        return refused(ResponseError::TransactionalIdAuthorizationFailed.code());
    }
    let current =
        ProducerId::new(request.producer_id.0).map(|id| ProducerIdentity { id, epoch: request.producer_epoch });
    match call.broker().init_producer(current).await {
        Ok(given) => {
            InitProducerIdResponse::default().with_producer_id(given.id.get().into()).with_producer_epoch(given.epoch)
        }
        Err(error) => refused(error_code::code(&error)),
    }
}
