//! gRPC (`sdk/proto`): one file a service; protobuf to domain and back, errors to Status.

mod admin;
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
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;

use crate::broker::Broker;

/// A peer that answers no ping for this long is gone: its streams end, its members leave.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Serves `routes`, with health and reflection, until `stop` is there; open calls may end first.
///
/// # Errors
/// What the transport says.
pub async fn serve(
    mut routes: RoutesBuilder,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    routes.add_service(health).add_service(reflection);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_A_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(TcpNoDelay(TcpListenerStream::new(listener)), stop)
        .await?;
    Ok(())
}

/// Sets TCP_NODELAY on what is accepted: acknowledgements are small and must not wait.
struct TcpNoDelay(TcpListenerStream);

impl futures::Stream for TcpNoDelay {
    type Item = std::io::Result<tokio::net::TcpStream>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::pin::Pin::new(&mut self.0)
            .poll_next(context)
            .map(|accepted| accepted.map(|stream| stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))))
    }
}
