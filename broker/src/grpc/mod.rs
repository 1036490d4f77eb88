//! The gRPC services (`sdk/proto`), one file for each. They convert protobuf messages to domain types and back, and
//! errors to `Status`.

mod admin;
mod body;
mod calls;
pub mod groups;
mod log;
mod records;
pub mod status;
mod topics;

use std::time::Duration;

use millstream_api::v1::admin_server::AdminServer;
use millstream_api::v1::groups_server::GroupsServer;
use millstream_api::v1::log_server::LogServer;
use millstream_api::v1::topics_server::TopicsServer;
use millstream_api::{CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES, v1};
use tokio::net::TcpListener;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;

use self::calls::Calls;
use crate::broker::Broker;
use crate::net::listener::{self, NetSettings};

/// Default maximum number of open connections: a few times as many as the clients of one server usually open. 10,000
/// idle connections take 240 MB of memory.
const CONNECTIONS_MAX_DEFAULT: usize = 10_000;

/// Default maximum of bytes in flight per connection: half of the commit queue, so that no single connection can fill
/// it.
const CONNECTION_BYTES_IN_FLIGHT_MAX_DEFAULT: usize = 32 << 20;

/// Default deadline of a call, in ms: a minute, far longer than the slowest commit and the longest compilation take.
const CALL_DEADLINE_MS_DEFAULT: u64 = 60_000;

/// Default interval between pings to a peer, and default time that the peer has to answer one, in ms.
const KEEPALIVE_MS_DEFAULT: u64 = 10_000;

/// Maximum size of an HTTP/2 frame, in bytes, so that a message of one megabyte needs only a few frames.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Maximum number of concurrent requests on one connection.
const STREAMS_A_CONNECTION_MAX: u32 = 1_000;

/// Adds the broker's services to `routes`.
pub fn add_services(routes: &mut RoutesBuilder, broker: &Broker) {
    let topics = TopicsServer::new(topics::Service::new(broker.clone()));
    let log = LogServer::new(log::Service::new(broker.clone()));
    let groups = GroupsServer::new(groups::Service::new(broker.clone()));
    routes
        .add_service(AdminServer::new(admin::Service::new(broker.clone())))
        .add_service(topics)
        .add_service(log.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(groups.max_decoding_message_size(MESSAGE_BYTES_MAX));
}

/// Limits for connections and calls.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Maximum number of open connections. Further ones are closed at once.
    pub connections_max: usize,
    /// Maximum total size of the produce requests of one connection that wait for their commit, in bytes, over all its
    /// calls and streams. Further requests wait, and eventually so does the client.
    pub connection_bytes_in_flight_max: usize,
    /// Maximum duration of a call with a single answer. A fetch may take the longest long poll in addition. A shorter
    /// `grpc-timeout` of the client takes precedence.
    pub call_deadline_ms: u64,
    /// Interval between pings to a peer.
    pub keepalive_interval_ms: u64,
    /// How long a peer may take to answer a ping. A peer that does not answer in time, or that reads nothing from its
    /// socket for this time plus the interval, is considered gone: its streams end, and its members leave their groups.
    pub keepalive_timeout_ms: u64,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX_DEFAULT,
            connection_bytes_in_flight_max: CONNECTION_BYTES_IN_FLIGHT_MAX_DEFAULT,
            call_deadline_ms: CALL_DEADLINE_MS_DEFAULT,
            keepalive_interval_ms: KEEPALIVE_MS_DEFAULT,
            keepalive_timeout_ms: KEEPALIVE_MS_DEFAULT,
        }
    }
}

/// Serves `routes`, with health and reflection, until `stop` completes. Then waits for open calls to end.
///
/// # Errors
/// The error of the transport.
pub async fn serve(
    mut routes: RoutesBuilder,
    listener: TcpListener,
    broker: Broker,
    settings: ServeSettings,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    routes.add_service(health).add_service(reflection);
    let net = NetSettings {
        connections_max: settings.connections_max,
        connection_bytes_in_flight_max: settings.connection_bytes_in_flight_max,
        // The same time as a peer has to answer a ping, counted from the previous ping.
        stall_max: Duration::from_millis(settings.keepalive_interval_ms.saturating_add(settings.keepalive_timeout_ms)),
    };
    let connections = listener::accept(listener, &net, broker.metrics().clone());
    let calls = Calls::new(routes.routes(), broker, Duration::from_millis(settings.call_deadline_ms));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_A_CONNECTION_MAX)
        .http2_keepalive_interval(Some(Duration::from_millis(settings.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(settings.keepalive_timeout_ms)))
        .serve_with_incoming_shutdown(calls, connections, stop)
        .await?;
    Ok(())
}
