//! Who makes a call, and what it waits for before it may go on: its client's quota, and its
//! connection's bytes in flight.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fetch::{Fetch, Fetched};
use super::quota::{ClientId, QuotaKind};
use super::{Broker, PERMIT_BYTES};
use crate::error::BrokerError;
use crate::log::reader::Slice;

/// Bounds the bytes of one connection's produce requests that wait for their commit. All calls of the connection share
/// it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BytesInFlight {
    permits: Arc<Semaphore>,
    permits_max: u32,
}

impl BytesInFlight {
    /// Up to so many bytes.
    pub(crate) fn up_to(bytes_max: usize) -> Self {
        let permits_max = u32::try_from(bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        // More than a semaphore counts is as good as no bound.
        let permits = (permits_max as usize).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(permits)), permits_max }
    }

    /// Waits until `bytes` may be in flight, first come, first served; one request that is larger than the bound gets
    /// all of it. `None` never comes: nobody closes the semaphore.
    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX).min(self.permits_max);
        self.permits.clone().acquire_many_owned(permits).await.ok()
    }
}

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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_bytes_in_flight_are_bounded_and_one_request_of_any_size_is_let_in() {
        let in_flight = BytesInFlight::up_to(10 * PERMIT_BYTES);
        let first = in_flight.take(4 * PERMIT_BYTES).now_or_never().expect("there is room");
        assert!(in_flight.take(6 * PERMIT_BYTES).now_or_never().is_none(), "more than fits was let in");
        let second = in_flight.take(5 * PERMIT_BYTES - 1).now_or_never().expect("there is room");
        drop((first, second));
        let whole = in_flight.take(usize::MAX).now_or_never().expect("one is always let in");
        assert!(in_flight.take(0).now_or_never().is_none());
        drop(whole);
        assert!(in_flight.take(0).now_or_never().is_some());
    }
}
