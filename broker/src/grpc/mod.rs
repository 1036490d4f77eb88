//! gRPC (`sdk/proto`): one file a service; protobuf to domain and back, errors to Status.

mod admin;
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

/// Connections at once, by default: a few times what one machine's clients make, and 240 MB of memory
/// where all of them are idle.
const CONNECTIONS_MAX_DEFAULT: usize = 10_000;

/// Bytes in flight a connection, by default: half of the commit queue, so that no connection fills it.
const CONNECTION_BYTES_IN_FLIGHT_MAX_DEFAULT: usize = 32 << 20;

/// A minute for a call, by default: far beyond the slowest commit and the longest compilation.
const CALL_DEADLINE_MS_DEFAULT: u64 = 60_000;

/// How often a peer is asked for a sign of life, and how long it may take to give it, by default.
const KEEPALIVE_MS_DEFAULT: u64 = 10_000;

/// The largest HTTP/2 frame that is taken: a few frames a message of a megabyte.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Requests that one connection may have open at once.
const STREAMS_A_CONNECTION_MAX: u32 = 1_000;

/// Adds the broker's services.
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

/// Bounds for what comes in.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Connections at once; what comes beyond is closed at once.
    pub connections_max: usize,
    /// Bytes of the produce requests of one connection that wait for their commit, over all its calls
    /// and streams; what comes beyond waits, and so in the end does the client.
    pub connection_bytes_in_flight_max: usize,
    /// How long a call may take that answers once; a fetch has its longest long poll on top. A client's
    /// own `grpc-timeout` holds where it is shorter.
    pub call_deadline_ms: u64,
    /// How often a peer is pinged.
    pub keepalive_interval_ms: u64,
    /// A peer that answers no ping for this long, or reads nothing off its socket for this long and an
    /// interval, is gone: its streams end, its members leave.
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

/// Serves `routes`, with health and reflection, until `stop` is there; open calls may end first.
///
/// # Errors
/// What the transport says.
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
        // As long as a peer has to answer a ping.
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
