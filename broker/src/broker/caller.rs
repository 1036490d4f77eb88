//! The caller of a request, and the limits that the request waits for before it proceeds: its client's quota, and its
//! connection's bytes in flight.

use tokio::sync::OwnedSemaphorePermit;

use super::Broker;
use super::fetch::{Fetch, Fetched};
use super::in_flight::BytesInFlight;
use super::quota::{ClientId, QuotaKind};
use crate::error::BrokerError;
use crate::log::reader::Slice;

/// The caller of a request. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Caller {
    broker: Broker,
    client: ClientId,
    in_flight: BytesInFlight,
}

impl Caller {
    /// Creates the caller for a client on a connection with the limit `in_flight`.
    pub(crate) fn new(broker: Broker, client: ClientId, in_flight: BytesInFlight) -> Self {
        Self { broker, client, in_flight }
    }

    /// Waits until a produce request of `bytes` may be read from the connection: the client has paid for its earlier
    /// requests, and so many bytes more may be in flight on the connection. They count as in flight until the permit is
    /// dropped, which happens when the request is answered. No part of the commit queue's limit is held while waiting.
    /// Returns `None` if the broker stops first.
    pub(crate) async fn may_read(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let admitted = async {
            self.broker.quotas().paid(&self.client, QuotaKind::Produce).await;
            self.in_flight.take(bytes).await
        };
        tokio::select! {
            // First, so that no request is admitted after one that was not.
            biased;
            () = self.broker.stopped() => None,
            permit = admitted => permit,
        }
    }

    /// Charges the client's quota for a produce request that was read, once its turn comes.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`] if the broker stops first.
    pub(crate) async fn charge(&self, bytes: usize) -> Result<(), BrokerError> {
        tokio::select! {
            biased;
            () = self.broker.stopped() => Err(BrokerError::ShuttingDown),
            () = self.broker.quotas().take(&self.client, QuotaKind::Produce, bytes) => Ok(()),
        }
    }

    /// Returns how long the client's next request of this kind will wait for its quota, in ms.
    pub(crate) fn throttled_ms(&self, kind: QuotaKind) -> u64 {
        let owed = self.broker.quotas().owed(&self.client, kind);
        u64::try_from(owed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads for the client. Waits for the client's quota before the read, and again before it returns, in case other
    /// calls of the client have read meanwhile.
    pub(crate) async fn fetch(&self, fetch: &Fetch) -> Vec<Fetched> {
        let quotas = self.broker.quotas();
        quotas.paid(&self.client, QuotaKind::Fetch).await;
        let fetched = self.broker.fetch(fetch).await;
        let bytes = fetched.iter().filter_map(|fetched| fetched.slice.as_ref().ok()).map(Slice::bytes).sum();
        quotas.take(&self.client, QuotaKind::Fetch, bytes).await;
        fetched
    }
}
