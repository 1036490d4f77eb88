//! A layer that every call passes through before it reaches its service. It determines the caller and enforces the
//! deadline of the call. Operations that must not be cut off at the deadline are run to completion by the domain.
//!
//! For a call that streams its answers, the deadline applies only to the start of the stream. After that, only the
//! connection's keepalive can end it, if the peer answers no ping or leaves its socket full (`connection.rs`). A peer
//! that answers pings but reads no answers keeps its stream, and HTTP/2 flow control limits the data that is buffered
//! for it.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use millstream_api::{CLIENT_ID_METADATA, v1};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::{Code, Status};

use super::body::AdmittedBody;
use super::status;
use crate::broker::Broker;
use crate::broker::caller::Caller;
use crate::broker::fetch::WAIT_MAX;
use crate::broker::quota::ClientId;
use crate::error::BrokerError;
use crate::net::admission::Admission;
use crate::net::connection::{Connection, Peer};

/// The path of the call that may wait for records before it answers.
const LONG_POLL: &str = "/millstream.v1.Log/Fetch";

/// The paths of the calls whose messages are admitted before they are read.
const PRODUCE: [&str; 2] = ["/millstream.v1.Log/Produce", "/millstream.v1.Log/ProduceStream"];

/// All services, wrapped by the layer that every call passes through.
#[derive(Clone)]
pub(super) struct Calls {
    routes: Routes,
    broker: Broker,
    call_deadline: Duration,
}

impl Calls {
    pub(super) fn new(routes: Routes, broker: Broker, call_deadline: Duration) -> Self {
        Self { routes: routes.prepare(), broker, call_deadline }
    }

    /// Returns the deadline of a call: the shorter of the server's limit and the client's timeout.
    fn deadline(&self, path: &str, headers: &HeaderMap) -> Duration {
        let allowed = match path {
            LONG_POLL => self.call_deadline.saturating_add(WAIT_MAX),
            _ => self.call_deadline,
        };
        grpc_timeout(headers).map_or(allowed, |wanted| wanted.min(allowed))
    }
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Measured from now, not from the first poll. tonic also enforces the client's deadline, but its error message
        // is less informative, so this deadline must expire first.
        let begun = Instant::now();
        let caller = match request.extensions().get::<Peer>() {
            Some(peer) => caller(&self.broker, peer, request.headers()).map_err(Status::from),
            None => Err(internal("the request has no connection information")),
        };
        let caller = match caller {
            Ok(caller) => caller,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let path = request.uri().path().to_owned();
        let deadline = self.deadline(&path, request.headers());
        request.extensions_mut().insert(caller.clone());
        if PRODUCE.contains(&path.as_str()) {
            let admission = Admission::new(caller);
            request.extensions_mut().insert(admission.clone());
            request = request.map(|body| Body::new(AdmittedBody::new(body, admission)));
        }
        let call = self.routes.call(request);
        Box::pin(async move {
            // A panic in one call must not end the other calls of its connection.
            let answered = async {
                let answered = AssertUnwindSafe(call).catch_unwind().await;
                answered.unwrap_or_else(|_| Ok(internal(format!("{path} panicked, see the log")).into_http()))
            };
            // A deadline that overflows is replaced by one in the distant future.
            let until = begun.checked_add(deadline).unwrap_or(begun + Duration::from_secs(u64::from(u32::MAX)));
            match tokio::time::timeout_at(until, answered).await {
                Ok(answered) => answered,
                Err(_) => Ok(timed_out(&path, deadline).into_http()),
            }
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer().clone()
    }
}

/// Determines the caller: the client that the call's metadata names or, without one, the peer's address.
///
/// # Errors
/// [`BrokerError::InvalidArgument`] if the client id is not allowed.
fn caller(broker: &Broker, peer: &Peer, headers: &HeaderMap) -> Result<Caller, BrokerError> {
    let client = match headers.get(CLIENT_ID_METADATA) {
        Some(id) => ClientId::new(&String::from_utf8_lossy(id.as_bytes()))?,
        None => peer.ip.into(),
    };
    Ok(Caller::new(broker.clone(), client, peer.in_flight.clone()))
}

/// Returns the caller of a request.
///
/// # Errors
/// An internal error if the request did not pass through [`Calls`], which would be a defect.
pub(super) fn caller_of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| internal("the call has no caller"))
}

/// Returns what admits the messages of a produce request.
///
/// # Errors
/// An internal error if the request did not pass through [`Calls`], which would be a defect.
pub(super) fn admission_of<T>(request: &tonic::Request<T>) -> Result<Admission, Status> {
    let admission = request.extensions().get::<Admission>().cloned();
    admission.ok_or_else(|| internal("the call has no admission"))
}

fn timed_out(path: &str, deadline: Duration) -> Status {
    let call = path.rsplit('.').next().unwrap_or(path);
    status::status(
        v1::ErrorCode::TimedOut,
        Code::DeadlineExceeded,
        format!(
            "{call} was not finished within {} ms, the call's deadline; it may still take effect: check, or send it \
             again with more time (--call-deadline-ms sets the server's limit)",
            deadline.as_millis()
        ),
    )
}

fn internal(message: impl Into<String>) -> Status {
    status::status(v1::ErrorCode::Internal, Code::Internal, message)
}

/// Parses the `grpc-timeout` header: at most eight digits and a unit. An invalid value is ignored, as tonic does.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().next_back()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3_600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        for (text, timeout) in [
            ("2H", Duration::from_secs(7_200)),
            ("3M", Duration::from_secs(180)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("250m", Duration::from_millis(250)),
            ("0u", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(read(text), Some(timeout), "{text}");
        }
        for text in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5 S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
