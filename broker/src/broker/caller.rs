//! Who makes a call, and what it waits for before it may go on: its client's quota, and its
//! connection's bytes in flight.

use tokio::sync::OwnedSemaphorePermit;

use super::Broker;
use super::fetch::{Fetch, Fetched};
use super::in_flight::BytesInFlight;
use super::quota::{ClientId, QuotaKind};
use crate::error::BrokerError;
use crate::log::reader::Slice;

/// Who makes a call. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Caller {
    broker: Broker,
    client: ClientId,
    in_flight: BytesInFlight,
}

impl Caller {
    /// A client on a connection that bounds its bytes in flight.
    pub(crate) fn new(broker: Broker, client: ClientId, in_flight: BytesInFlight) -> Self {
        Self { broker, client, in_flight }
    }

    /// Waits until the next produce request may be read at all.
    pub(crate) async fn may_produce(&self) {
        self.broker.quotas().paid(&self.client, QuotaKind::Produce).await;
    }

    /// Waits for the client's quota, then until `bytes` more of its connection may be in flight. They are until the
    /// permit is dropped: when the request is answered. Nothing of the commit queue's bytes is held meanwhile.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`] where the broker stops first.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, BrokerError> {
        let admitted = async {
            self.broker.quotas().take(&self.client, QuotaKind::Produce, bytes).await;
            self.in_flight.take(bytes).await
        };
        tokio::select! {
            permit = admitted => permit.ok_or(BrokerError::ShuttingDown),
            () = self.broker.stopped() => Err(BrokerError::ShuttingDown),
        }
    }

    /// Reads for the client, once it may: it waits for its quota before it reads, and where others
    /// of its calls read meanwhile, again before it answers.
    pub(crate) async fn fetch(&self, fetch: &Fetch) -> Vec<Fetched> {
        let quotas = self.broker.quotas();
        quotas.paid(&self.client, QuotaKind::Fetch).await;
        let fetched = self.broker.fetch(fetch).await;
        let bytes = fetched.iter().filter_map(|fetched| fetched.slice.as_ref().ok()).map(Slice::bytes).sum();
        quotas.take(&self.client, QuotaKind::Fetch, bytes).await;
        fetched
    }
}
