//! Connections: how many there may be, and what all calls of one share.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::ServeSettings;
use crate::metrics::BrokerMetrics;

/// A permit of a connection's room stands for this many bytes: permits are counted in 32 bits.
const PERMIT_BYTES: usize = 1024;

/// The same trouble is logged this often, at most.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long nothing is accepted when that fails for want of files or memory: some come free.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Who is at the other end, and the room that all calls of the connection share. Cheap to clone;
/// every request carries it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) ip: IpAddr,
    pub(super) room: Room,
}

/// Room for the produce requests of one connection that wait for their commit.
#[derive(Clone, Debug)]
pub(super) struct Room {
    permits: Arc<Semaphore>,
    permits_max: u32,
}

impl Room {
    fn new(bytes_max: usize) -> Self {
        let permits_max = u32::try_from(bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        // More than a semaphore counts is as good as no bound.
        let permits = (permits_max as usize).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(permits)), permits_max }
    }

    /// Waits for room for `bytes`, first come, first served; one request that is larger than all of
    /// the room gets all of it. `None` never comes: nobody closes the room.
    pub(super) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1).unwrap_or(u32::MAX).min(self.permits_max);
        self.permits.clone().acquire_many_owned(permits).await.ok()
    }
}

/// A connection that was accepted.
pub(super) struct Connection {
    stream: TcpStream,
    peer: Peer,
    /// A peer may leave its socket full for this long.
    stall_max: Duration,
    /// Runs while the socket is full.
    stalled: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

impl Connection {
    /// Ends a connection whose socket stays full. HTTP/2's keepalive can't: its last words to the peer
    /// would have to be written first.
    fn unless_stalled(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall_max = self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall_max)));
        stalled.as_mut().poll(context).map(|()| {
            let reason = format!("the peer read nothing for {stall_max:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        })
    }
}

/// One of the connections that may be open.
struct Open {
    metrics: BrokerMetrics,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.disconnected();
    }
}

/// Accepts connections; those beyond the limit are closed at once.
pub(super) fn accept(
    listener: TcpListener,
    settings: &ServeSettings,
    metrics: BrokerMetrics,
) -> impl Stream<Item = io::Result<Connection>> {
    let acceptor = Acceptor {
        listener,
        free: Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS))),
        connections_max: settings.connections_max,
        connection_bytes_in_flight_max: settings.connection_bytes_in_flight_max,
        // As long as a peer has to answer a ping.
        stall_max: Duration::from_millis(settings.keepalive_interval_ms.saturating_add(settings.keepalive_timeout_ms)),
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
            let peer = Peer { ip: address.ip(), room: Room::new(self.connection_bytes_in_flight_max) };
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

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.unless_stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_room_holds_its_bytes_and_one_request_of_any_size() {
        let room = Room::new(10 * PERMIT_BYTES);
        let first = room.take(4 * PERMIT_BYTES).now_or_never().expect("there is room");
        assert!(room.take(6 * PERMIT_BYTES).now_or_never().is_none(), "more than fits was let in");
        let second = room.take(5 * PERMIT_BYTES - 1).now_or_never().expect("there is room");
        drop((first, second));
        let whole = room.take(usize::MAX).now_or_never().expect("one is always let in");
        assert!(room.take(0).now_or_never().is_none());
        drop(whole);
        assert!(room.take(0).now_or_never().is_some());
    }

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
