//! Idempotent producers: the ids that they get.

use super::Broker;
use crate::error::BrokerError;
use crate::log::catalog::NEXT_PRODUCER_ID;
use crate::log::commit::Commit;
use crate::name::{ProducerId, ProducerIdentity};
use crate::store::CatalogChange;

impl Broker {
    /// Gives a producer an id of its own, or the one that it has the next epoch (KIP-98, KIP-360). An
    /// epoch that is the last gives way to a new id.
    ///
    /// # Errors
    /// [`BrokerError::UnknownProducerId`], [`BrokerError::InvalidArgument`] for a negative epoch,
    /// [`BrokerError::ShuttingDown`], [`BrokerError::Storage`].
    pub async fn init_producer(&self, current: Option<ProducerIdentity>) -> Result<ProducerIdentity, BrokerError> {
        if let Some(ProducerIdentity { id, epoch }) = current {
            self.check_handed_out(id)?;
            if epoch < 0 {
                return Err(BrokerError::InvalidArgument {
                    what: "producer epoch",
                    value: epoch.to_string(),
                    allowed: format!("use 0 to {}", i16::MAX),
                });
            }
            if let Some(epoch) = epoch.checked_add(1) {
                return Ok(ProducerIdentity { id, epoch });
            }
        }
        let reserve = async |until: i64| {
            let catalog = vec![CatalogChange::put(NEXT_PRODUCER_ID, until.to_string().into_bytes())];
            self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
            Ok(())
        };
        Ok(ProducerIdentity { id: self.0.producer_ids.next(reserve).await?, epoch: 0 })
    }

    pub(super) fn check_handed_out(&self, producer_id: ProducerId) -> Result<(), BrokerError> {
        if self.0.producer_ids.knows(producer_id) {
            return Ok(());
        }
        Err(BrokerError::UnknownProducerId { producer_id })
    }
}
