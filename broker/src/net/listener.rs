//! Accepting connections: how many there may be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::connection::{Connection, Open, Peer};
use crate::broker::in_flight::BytesInFlight;
use crate::metrics::BrokerMetrics;

/// The same trouble is logged this often, at most.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long nothing is accepted when that fails for want of files or memory: some come free.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Bounds for connections.
#[derive(Clone, Debug)]
pub(crate) struct NetSettings {
    /// Connections at once; further ones are closed as soon as they are accepted.
    pub(crate) connections_max: usize,
    /// Bytes of one connection's produce requests that wait for their commit.
    pub(crate) connection_bytes_in_flight_max: usize,
    /// A peer may leave its socket full for this long.
    pub(crate) stall_max: Duration,
}

/// Accepts connections; those beyond the limit are closed at once.
pub(crate) fn accept(
    listener: TcpListener,
    settings: &NetSettings,
    metrics: BrokerMetrics,
) -> impl Stream<Item = io::Result<Connection>> {
    let acceptor = Acceptor {
        listener,
        free: Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS))),
        connections_max: settings.connections_max,
        connection_bytes_in_flight_max: settings.connection_bytes_in_flight_max,
        stall_max: settings.stall_max,
        metrics,
        refused: Seldom::default(),
        failed: Seldom::default(),
    };
    stream::unfold(acceptor, |mut acceptor| async {
        let connection = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

struct Acceptor {
    listener: TcpListener,
    free: Arc<Semaphore>,
    connections_max: usize,
    connection_bytes_in_flight_max: usize,
    stall_max: Duration,
    metrics: BrokerMetrics,
    refused: Seldom,
    failed: Seldom,
}

impl Acceptor {
    async fn next(&mut self) -> Connection {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            let Ok(permit) = self.free.clone().try_acquire_owned() else {
                self.metrics.refused_connection();
                if let Some(times) = self.refused.due(Instant::now()) {
                    tracing::warn!(
                        peer = %address.ip(),
                        times,
                        connections_max = self.connections_max,
                        "a connection was closed at once: as many as --connections-max allows are open"
                    );
                }
                continue;
            };
            // Acknowledgements are small and must not wait. A connection that refuses this is gone.
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            self.metrics.connected();
            let open = Open { metrics: self.metrics.clone(), _permit: permit };
            let peer = Peer { ip: address.ip(), in_flight: BytesInFlight::up_to(self.connection_bytes_in_flight_max) };
            return Connection { stream, peer, stall_max: self.stall_max, stalled: None, _open: open };
        }
    }

    async fn failed(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        // Gone before it was accepted: nobody's trouble.
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
            return;
        }
        if let Some(times) = self.failed.due(Instant::now()) {
            tracing::error!(%error, times, "cannot accept connections; may the process open more files (ulimit -n)?");
        }
        tokio::time::sleep(ACCEPT_BACKOFF).await;
    }
}

/// Counts what is not worth a line each time.
#[derive(Default)]
struct Seldom {
    said_at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// How often it happened since it was last said, where it is time to say it again.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        if self.said_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_seldom_and_counted() {
        let begin = Instant::now();
        let mut seldom = Seldom::default();
        assert_eq!(seldom.due(begin), Some(1));
        assert_eq!(seldom.due(begin), None);
        assert_eq!(seldom.due(begin + LOG_INTERVAL / 2), None);
        assert_eq!(seldom.due(begin + LOG_INTERVAL), Some(3));
    }
}
