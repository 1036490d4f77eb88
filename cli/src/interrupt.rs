//! Requests to stop: Ctrl-C, or SIGTERM from the program that runs this process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for both signals from its creation on, so that a signal between two waits is not lost.
#[derive(Debug)]
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Replaces the default actions of both signals for the rest of the process.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
