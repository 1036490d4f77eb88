//! Admission of requests before their bodies are read. An edge calls [`Admission::admit`] once a request announces its
//! length, and only then reads the rest of it. Until the request is admitted, the peer's data stays in its socket.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::broker::caller::Caller;

/// Admits the produce requests of one call, in order. Clones share the admitted requests.
#[derive(Clone)]
pub(crate) struct Admission {
    caller: Caller,
    admitted: Arc<Mutex<VecDeque<OwnedSemaphorePermit>>>,
}

impl Admission {
    pub(crate) fn new(caller: Caller) -> Self {
        Self { caller, admitted: Arc::default() }
    }

    /// Waits until the client has paid for its earlier requests, and until `bytes` more may be in flight on its connection.
    /// Returns at once if the broker stops.
    pub(crate) async fn admit(self, bytes: usize) {
        if let Some(permit) = self.caller.may_read(bytes).await {
            self.admitted.lock().push_back(permit);
        }
    }

    /// Returns the permit of the oldest admitted request that has not been taken yet. Its bytes count as in flight until the
    /// permit is dropped. `None` if the broker stopped before the request was admitted.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.admitted.lock().pop_front()
    }
}
