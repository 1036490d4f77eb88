//! One connection: its peer, and a timeout that ends it if the peer reads nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::broker::in_flight::BytesInFlight;
use crate::metrics::BrokerMetrics;

/// The remote end of a connection, and the limit for the bytes in flight of all its calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    /// The address of this end.
    pub(crate) local: SocketAddr,
    pub(crate) in_flight: BytesInFlight,
}

/// An accepted connection.
pub(crate) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) peer: Peer,
    /// How long the peer may leave its socket full.
    pub(super) stall_max: Duration,
    /// A timer that runs while the socket is full.
    pub(super) stalled: Option<Pin<Box<Sleep>>>,
    pub(super) _open: Open,
}

impl Connection {
    /// Returns the remote end.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Fails a connection whose socket stays full. HTTP/2's keepalive cannot end such a connection, because it would
    /// first have to write a GOAWAY frame to the peer.
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
            let reason = format!("the peer has read nothing for {stall_max:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        })
    }
}

/// Counts an open connection. Dropping it frees the connection's place within the limit.
pub(super) struct Open {
    pub(super) metrics: BrokerMetrics,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.disconnected();
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
