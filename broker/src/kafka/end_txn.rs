//! EndTxn (key 26): a transaction is committed or aborted. From version 5 on, the producer gets its next epoch (KIP-890).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse};
use millstream_record::TransactionEnd;

use super::Call;
use super::transactions::{self, identity};

/// The first version that knows the code for a producer that is fenced.
const FENCED_FROM: i16 = 2;
/// The first version in which the producer gets its next epoch.
const BUMPS_FROM: i16 = 5;

pub(super) async fn answer(call: &Call, request: EndTxnRequest) -> EndTxnResponse {
    let Some(producer) = identity(request.producer_id.0, request.producer_epoch) else {
        return EndTxnResponse::default().with_error_code(ResponseError::InvalidProducerIdMapping.code());
    };
    let end = if request.committed { TransactionEnd::Commit } else { TransactionEnd::Abort };
    let bumps = call.version >= BUMPS_FROM;
    match call.broker().end_transaction(&request.transactional_id, producer, end, bumps).await {
        Ok(next) if bumps => {
            EndTxnResponse::default().with_producer_id(next.id.get().into()).with_producer_epoch(next.epoch)
        }
        Ok(_) => EndTxnResponse::default(),
        Err(error) => {
            EndTxnResponse::default().with_error_code(transactions::code(&error, call.version >= FENCED_FROM))
        }
    }
}
