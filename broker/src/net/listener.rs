//! Accepting connections, up to a maximum number of open ones.

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

/// Minimum time between two log messages about the same problem.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long to wait after accepting has failed for lack of file descriptors or memory, so that some can be freed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Limits for connections.
#[derive(Clone, Debug)]
pub(crate) struct NetSettings {
    /// Maximum number of open connections. Further ones are closed as soon as they are accepted.
    pub(crate) connections_max: usize,
    /// Maximum total size of one connection's produce requests that wait for their commit, in bytes.
    pub(crate) connection_bytes_in_flight_max: usize,
    /// How long a peer may leave its socket full.
    pub(crate) stall_max: Duration,
}

/// Accepts connections. Those above the limit are closed at once.
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
                        "connections were refused because as many as --connections-max allows are open"
                    );
                }
                continue;
            };
            // Acknowledgements are small and must not be delayed. If this fails, the connection is already gone.
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            let Ok(local) = stream.local_addr() else { continue };
            self.metrics.connected();
            let open = Open { metrics: self.metrics.clone(), _permit: permit };
            let in_flight = BytesInFlight::up_to(self.connection_bytes_in_flight_max);
            let peer = Peer { ip: address.ip(), local, in_flight };
            return Connection { stream, peer, stall_max: self.stall_max, stalled: None, _open: open };
        }
    }

    async fn failed(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        // The peer closed the connection before it was accepted. That is not a problem of the server.
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
            return;
        }
        if let Some(times) = self.failed.due(Instant::now()) {
            tracing::error!(%error, times, "cannot accept connections; check the limit of open files (ulimit -n)");
        }
        tokio::time::sleep(ACCEPT_BACKOFF).await;
    }
}

/// Limits the rate of a log message, and counts how often the event occurs.
#[derive(Default)]
struct Seldom {
    said_at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// Counts one occurrence. If a message is due, returns the number of occurrences since the last message.
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
