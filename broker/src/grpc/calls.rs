//! What every call passes before its service: who calls, and until when it must be answered. What must not be cut off when
//! that time is over, the domain runs to its end.
//!
//! A call that streams its answers has a deadline for their beginning only. From then on it is the
//! connection's keepalive that ends it: a peer that is gone answers no ping, or leaves its socket full
//! (`connection.rs`). One that answers pings and takes no answers stays, and is held up by HTTP/2's flow
//! control with what little it was sent.

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

use super::status;
use crate::broker::Broker;
use crate::broker::caller::Caller;
use crate::broker::fetch::WAIT_MAX;
use crate::broker::quota::ClientId;
use crate::error::BrokerError;
use crate::net::connection::{Connection, Peer};

/// A call that may wait for records before it answers.
const LONG_POLL: &str = "/millstream.v1.Log/Fetch";

/// All services, behind what every call passes.
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

    /// What the server allows a call, and what its client does.
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
        // Now, not when it is first polled: a client's deadline is watched by tonic, too, which says
        // less of it.
        let begun = Instant::now();
        let caller = match request.extensions().get::<Peer>() {
            Some(peer) => caller(&self.broker, peer, request.headers()).map_err(Status::from),
            None => Err(internal("a request without its connection")),
        };
        let caller = match caller {
            Ok(caller) => caller,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let path = request.uri().path().to_owned();
        let deadline = self.deadline(&path, request.headers());
        request.extensions_mut().insert(caller);
        let call = self.routes.call(request);
        Box::pin(async move {
            // A defect in one call is no reason to end the others of its connection.
            let answered = async {
                let answered = AssertUnwindSafe(call).catch_unwind().await;
                answered.unwrap_or_else(|_| Ok(internal(format!("{path} ended by a defect, see the log")).into_http()))
            };
            // A deadline past the end of time is none.
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

/// The client that a call's metadata names, or else the peer's address.
///
/// # Errors
/// [`BrokerError::InvalidArgument`] for a client id that is not allowed.
fn caller(broker: &Broker, peer: &Peer, headers: &HeaderMap) -> Result<Caller, BrokerError> {
    let client = match headers.get(CLIENT_ID_METADATA) {
        Some(id) => ClientId::new(&String::from_utf8_lossy(id.as_bytes()))?,
        None => peer.ip.into(),
    };
    Ok(Caller::new(broker.clone(), client, peer.in_flight.clone()))
}

/// Who made a request.
///
/// # Errors
/// A status where the request did not pass [`Calls`]: a defect.
pub(super) fn caller_of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| internal("a call without its caller"))
}

fn timed_out(path: &str, deadline: Duration) -> Status {
    let call = path.rsplit('.').next().unwrap_or(path);
    status::status(
        v1::ErrorCode::TimedOut,
        Code::DeadlineExceeded,
        format!(
            "{call} was not done within {} ms, the call's deadline; it may be done all the same: look, or send it again \
             with more time (the server allows what --call-deadline-ms says)",
            deadline.as_millis()
        ),
    )
}

fn internal(message: impl Into<String>) -> Status {
    status::status(v1::ErrorCode::Internal, Code::Internal, message)
}

/// The `grpc-timeout` header: at most eight digits and a unit. What is no timeout is none, as tonic
/// has it.
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
