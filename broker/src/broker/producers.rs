//! Assignment of IDs to idempotent producers.

use super::Broker;
use crate::error::BrokerError;
use crate::log::catalog_entries::{NEXT_PRODUCER_ID, producer_epoch_key};
use crate::log::commit::Commit;
use crate::name::{ProducerId, ProducerIdentity};
use crate::store::CatalogChange;

impl Broker {
    /// Returns a new ID for a producer, or the next epoch of the ID that it has (KIP-98, KIP-360). After the last epoch
    /// it returns a new ID. No two calls return the same ID and epoch, even if the server was killed in between.
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
            let now_ms = self.0.domain.idle.now_ms();
            if let Some(epoch) = self.0.domain.producer_epochs.next(ProducerIdentity { id, epoch }, now_ms) {
                let catalog = vec![CatalogChange::put(producer_epoch_key(id), epoch.to_string().into_bytes())];
                self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
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
