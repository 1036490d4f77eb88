//! What the APIs of transactions have in common.

use kafka_protocol::ResponseError;

use super::error_code;
use crate::error::{BrokerError, TransactionError};
use crate::name::{ProducerId, ProducerIdentity};

/// Returns the code of an error. Early versions of the APIs know one code less for a producer that is fenced (KIP-588).
pub(super) fn code(error: &BrokerError, knows_fenced: bool) -> i16 {
    match error {
        BrokerError::Transaction { source: TransactionError::Fenced { .. }, .. } if !knows_fenced => {
            ResponseError::InvalidProducerEpoch.code()
        }
        error => error_code::of_group(error),
    }
}

/// Returns a producer's identity, if there is one.
pub(super) fn identity(producer_id: i64, epoch: i16) -> Option<ProducerIdentity> {
    ProducerId::new(producer_id).map(|id| ProducerIdentity { id, epoch })
}
