//! The running tasks of a pipeline, as a handle that ends them. This file must not know what the tasks do.

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

/// The running tasks of a pipeline.
pub(super) struct Running {
    pub(super) stop: watch::Sender<bool>,
    /// Waits for the tasks.
    pub(super) supervisor: JoinHandle<()>,
}

impl Running {
    /// Ends the tasks at a commit, and waits until they have ended.
    pub(super) async fn end(self) -> Result<(), JoinError> {
        self.stop.send_replace(true);
        self.supervisor.await
    }
}
