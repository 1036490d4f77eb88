//! AddOffsetsToTxn (key 25): a transaction will commit offsets of a group.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};

use super::Call;
use super::transactions::{self, identity};
use crate::name::GroupId;

/// The first version that knows the code for a producer that is fenced.
const FENCED_FROM: i16 = 2;

pub(super) async fn answer(call: &Call, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let code = match (GroupId::new(&request.group_id), identity(request.producer_id.0, request.producer_epoch)) {
        (Err(_), _) => ResponseError::InvalidGroupId.code(),
        (_, None) => ResponseError::InvalidProducerIdMapping.code(),
        (Ok(group), Some(producer)) => {
            let added = call.broker().add_group_to_transaction(&request.transactional_id, producer, &group).await;
            added.err().map_or(0, |error| transactions::code(&error, call.version >= FENCED_FROM))
        }
    };
    AddOffsetsToTxnResponse::default().with_error_code(code)
}
