//! A bound for bytes that wait for something: of all commits that are queued, and of the produce requests of one connection.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit stands for this many bytes: permits are counted in 32 bits.
const PERMIT_BYTES: usize = 1024;

/// Bounds bytes in flight. Clones share the bound.
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
        let permits_max = permits_max.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { permits: Arc::new(Semaphore::new(permits_max as usize)), permits_max }
    }

    /// Waits until `bytes` may be in flight, first come, first served; one request that is larger than the bound gets
    /// all of it. They are until the permit is dropped. `None` never comes: nobody closes the semaphore.
    pub(super) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX).min(self.permits_max);
        self.permits.clone().acquire_many_owned(permits).await.ok()
    }

    /// How many are in flight, in whole KiB.
    pub(super) fn taken(&self) -> usize {
        (self.permits_max as usize - self.permits.available_permits()) * PERMIT_BYTES
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
