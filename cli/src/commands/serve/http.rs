//! The server's HTTP endpoints: health, readiness and metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use millstream_broker::Broker;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// State shared by all endpoints.
pub(super) struct State {
    pub(super) broker: Broker,
    pub(super) registry: Registry,
}

/// Serves until `stop` completes.
pub(super) async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    axum::serve(listener, pages).with_graceful_shutdown(stop).await
}

/// Reports whether the process is healthy. It is unhealthy after a storage failure.
async fn healthz(Extract(state): Extract<Arc<State>>) -> Response {
    match &*state.broker.failure().borrow() {
        None => "ok\n".into_response(),
        Some(failure) => (StatusCode::SERVICE_UNAVAILABLE, format!("the storage failed: {failure}\n")).into_response(),
    }
}

/// Reports whether the server accepts requests. Recovery is complete before this endpoint is served.
async fn readyz(state: Extract<Arc<State>>) -> Response {
    if state.broker.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the server is stopping\n").into_response();
    }
    healthz(state).await
}

async fn metrics(Extract(state): Extract<Arc<State>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &state.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")).into_response(),
    }
}
