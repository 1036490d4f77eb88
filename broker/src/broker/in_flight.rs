//! A limit for bytes in flight, used for all queued commits and for the produce requests of one connection.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of bytes that one permit stands for. Permits are counted in 32 bits, so a permit cannot be a single byte.
const PERMIT_BYTES: usize = 1024;

/// Limits the bytes in flight. Clones share the limit.
#[derive(Clone, Debug)]
pub(crate) struct BytesInFlight {
    permits: Arc<Semaphore>,
    permits_max: u32,
}

impl BytesInFlight {
    /// Creates a limit of `bytes_max` bytes.
    pub(crate) fn up_to(bytes_max: usize) -> Self {
        let permits_max = u32::try_from(bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        // A limit above what a semaphore can count is as good as no limit.
        let permits_max = permits_max.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { permits: Arc::new(Semaphore::new(permits_max as usize)), permits_max }
    }

    /// Waits until `bytes` more may be in flight, and counts them until the permit is dropped. Requests are served in
    /// order of arrival. A request that is larger than the limit takes all of it. Never returns `None`, because the
    /// semaphore is never closed.
    pub(super) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX).min(self.permits_max);
        self.permits.clone().acquire_many_owned(permits).await.ok()
    }

    /// Returns the number of bytes in flight, rounded to whole KiB.
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
        assert!(in_flight.take(6 * PERMIT_BYTES).now_or_never().is_none(), "more than the limit was admitted");
        let second = in_flight.take(5 * PERMIT_BYTES - 1).now_or_never().expect("there is room");
        drop((first, second));
        let whole = in_flight.take(usize::MAX).now_or_never().expect("a single request is always admitted");
        assert!(in_flight.take(0).now_or_never().is_none());
        drop(whole);
        assert!(in_flight.take(0).now_or_never().is_some());
    }
}
