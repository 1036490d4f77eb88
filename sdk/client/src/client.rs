//! Where the server is, and connections to it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream_api::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, v1};
use tonic::transport::{Channel, Endpoint};

use crate::admin::Admin;
use crate::consumer::{Consumer, ConsumerSettings};
use crate::error::ClientError;
use crate::producer::{Producer, ProducerSettings};

/// A server that does not take a connection within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that answers no ping for this long is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest HTTP/2 frame that is taken: a few frames a message of a megabyte.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// A server's address, and what can be done there. Cheap to clone; connects when first used.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// As people write it: without the scheme.
    server: String,
    endpoint: Endpoint,
    /// For short calls. Producers and consumers have connections of their own: a reader that is
    /// slow must hold up nobody else.
    shared: OnceLock<Channel>,
}

impl Client {
    /// A client for the server at `server`: `127.0.0.1:7070`, or `http://host:port`. Does not
    /// connect yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidArgument`] for what is no such address.
    pub fn new(server: &str) -> Result<Self, ClientError> {
        let invalid = |reason: String| ClientError::InvalidArgument { what: "server", reason };
        let name = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        if name.contains("://") {
            return Err(invalid(format!("{server:?} is not supported: use host:port or http://host:port")));
        }
        let endpoint = Endpoint::from_shared(format!("http://{name}"))
            .ok()
            .filter(|endpoint| endpoint.uri().host().is_some() && endpoint.uri().port_u16().is_some());
        let Some(endpoint) = endpoint else {
            return Err(invalid(format!("{server:?} is no address: use host:port, such as 127.0.0.1:7070")));
        };
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .max_frame_size(FRAME_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self(Arc::new(Inner { server: name.to_owned(), endpoint, shared: OnceLock::new() })))
    }

    /// The server's address, without a scheme.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    /// Topics, groups, modules, pipelines, state, and single reads and writes.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A producer with a connection of its own.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn producer(&self, settings: ProducerSettings) -> Producer {
        Producer::start(self.clone(), settings)
    }

    /// A consumer with a connection of its own. It connects, and joins its group if it has one, at
    /// once, in the background; what goes wrong there is what its first `next` says.
    ///
    /// # Errors
    /// [`ClientError::InvalidArgument`] for settings that contradict each other.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn consumer(&self, settings: ConsumerSettings) -> Result<Consumer, ClientError> {
        Consumer::start(self.clone(), settings)
    }

    /// The connection that short calls share.
    pub(crate) fn channel(&self) -> Channel {
        self.0.shared.get_or_init(|| self.0.endpoint.connect_lazy()).clone()
    }

    /// A new connection.
    pub(crate) fn own_channel(&self) -> Channel {
        self.0.endpoint.connect_lazy()
    }
}

/// A place in partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// The first record that is kept.
    Earliest,
    /// After the last record.
    #[default]
    Latest,
    /// The record with this offset.
    Offset(u64),
    /// The first record whose timestamp is this or later, in ms since the epoch.
    TimestampMs(i64),
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        use v1::position::At;
        let at = match position {
            Position::Earliest => At::Earliest(true),
            Position::Latest => At::Latest(true),
            Position::Offset(offset) => At::Offset(offset),
            Position::TimestampMs(timestamp_ms) => At::TimestampMs(timestamp_ms),
        };
        Self { at: Some(at) }
    }
}

impl From<Position> for v1::reset_group_request::To {
    fn from(position: Position) -> Self {
        match position {
            Position::Earliest => Self::Earliest(true),
            Position::Latest => Self::Latest(true),
            Position::Offset(offset) => Self::Offset(offset),
            Position::TimestampMs(timestamp_ms) => Self::TimestampMs(timestamp_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_scheme() {
        for server in ["127.0.0.1:7070", "http://127.0.0.1:7070", "http://127.0.0.1:7070/"] {
            assert_eq!(Client::new(server).unwrap().server(), "127.0.0.1:7070");
        }
        assert_eq!(Client::new("[::1]:7070").unwrap().server(), "[::1]:7070");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_text() {
        for server in ["", "localhost", "https://localhost:7070", "a b:1", "localhost:port"] {
            let error = Client::new(server).unwrap_err().to_string();
            assert!(error.contains(&format!("{server:?}")), "{error}");
        }
    }
}
