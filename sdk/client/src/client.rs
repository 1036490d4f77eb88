//! The server address, and connections to the server. This file must not know what the connections are used for:
//! `admin.rs`, `producer/` and `consumer/` each add the method of [`Client`] that leads to them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream_api::{CLIENT_ID_METADATA, CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::error::ClientError;

/// Maximum time to connect to the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of keepalive pings. A server that does not answer a ping within the timeout is considered gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a received HTTP/2 frame, in bytes. A message of one megabyte takes a few frames.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// A connection that sends the client id with each call.
pub(crate) type Channel = InterceptedService<tonic::transport::Channel, Named>;

/// Interceptor that adds the client id to each call.
#[derive(Clone, Debug)]
pub(crate) struct Named(MetadataValue<Ascii>);

impl Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CLIENT_ID_METADATA, self.0.clone());
        Ok(request)
    }
}

/// The identity and timeouts of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Name of this client on the server, of 1 to 249 of the characters `a-z A-Z 0-9 . _ -`. Quotas apply to all
    /// clients with the same name together. Default "millstream-rust".
    pub client_id: String,
    /// Maximum time of a call with a single answer, in ms. This does not apply to producing, consuming and listing
    /// state; the long poll time of a fetch is added to it. Default 30,000.
    pub call_timeout_ms: u64,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { client_id: "millstream-rust".to_owned(), call_timeout_ms: 30_000 }
    }
}

/// A client of one server. It is cheap to clone and connects on first use.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The address without the scheme, for messages.
    server: String,
    endpoint: Endpoint,
    named: Named,
    call_timeout_ms: u64,
    /// The connection of short calls. Producers and consumers have their own connections, so that a slow reader does
    /// not hold up other calls.
    shared: OnceLock<Channel>,
}

impl Client {
    /// Creates a client for the server at `server`, given as `127.0.0.1:7070` or `http://host:port`. This does not
    /// connect yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidArgument`] if `server` is not a valid address.
    pub fn new(server: &str) -> Result<Self, ClientError> {
        Self::with_settings(server, ClientSettings::default())
    }

    /// Like [`Client::new`], with settings.
    ///
    /// # Errors
    /// [`ClientError::InvalidArgument`] if `server` is not a valid address, the client id is not allowed, or the call
    /// timeout is 0.
    pub fn with_settings(server: &str, settings: ClientSettings) -> Result<Self, ClientError> {
        let invalid = |reason: String| ClientError::InvalidArgument { what: "server", reason };
        let name = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        if name.contains("://") {
            return Err(invalid(format!("{server:?} is not supported: use host:port or http://host:port")));
        }
        let endpoint = Endpoint::from_shared(format!("http://{name}"))
            .ok()
            .filter(|endpoint| endpoint.uri().host().is_some() && endpoint.uri().port_u16().is_some());
        let Some(endpoint) = endpoint else {
            return Err(invalid(format!("{server:?} is not a valid address: use host:port, such as 127.0.0.1:7070")));
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
        let named = Named(client_id(&settings.client_id)?);
        let call_timeout_ms = settings.call_timeout_ms;
        if call_timeout_ms == 0 {
            let reason = "must be at least 1".to_owned();
            return Err(ClientError::InvalidArgument { what: "call_timeout_ms", reason });
        }
        let shared = OnceLock::new();
        Ok(Self(Arc::new(Inner { server: name.to_owned(), endpoint, named, call_timeout_ms, shared })))
    }

    /// Returns the server's address without the scheme.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    /// Returns the shared connection for short calls.
    pub(crate) fn channel(&self) -> Channel {
        self.0.shared.get_or_init(|| self.own_channel()).clone()
    }

    /// A new connection.
    pub(crate) fn own_channel(&self) -> Channel {
        InterceptedService::new(self.0.endpoint.connect_lazy(), self.0.named.clone())
    }

    pub(crate) fn call_timeout_ms(&self) -> u64 {
        self.0.call_timeout_ms
    }
}

/// Validates the client id. It is checked here so that an invalid id fails when the client is created and not in each
/// call.
fn client_id(id: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    let allowed = (1..=249).contains(&id.len())
        && !matches!(id, "." | "..")
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let value = if allowed { MetadataValue::try_from(id).ok() } else { None };
    value.ok_or_else(|| ClientError::InvalidArgument {
        what: "client_id",
        reason: format!("{id:?} is not allowed: use 1 to 249 of the characters a-z A-Z 0-9 . _ -"),
    })
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

    #[test]
    fn a_client_says_what_is_wrong_with_its_settings() {
        let with = |settings| Client::with_settings("127.0.0.1:7070", settings);
        for id in ["", "a b", "ü", "..", &"x".repeat(250)] {
            let settings = ClientSettings { client_id: id.to_owned(), ..ClientSettings::default() };
            let error = with(settings).unwrap_err().to_string();
            assert!(error.contains("client_id") && error.contains(&format!("{id:?}")), "{error}");
        }
        let error = with(ClientSettings { call_timeout_ms: 0, ..ClientSettings::default() }).unwrap_err();
        assert!(error.to_string().contains("call_timeout_ms"), "{error}");
    }
}
