//! One connection: reads requests and writes their answers, in the same order. Later requests are read while earlier ones
//! are being answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::api::{self, Header};
use super::dispatch::{self, Answer};
use super::{Call, Edge};
use crate::broker::caller::Caller;
use crate::broker::quota::ClientId;
use crate::name::shortened;
use crate::net::connection::{Connection, Peer};

/// Maximum number of requests of a connection that wait for their answer. Kafka's clients send up to five.
const REQUESTS_MAX: usize = 16;

/// Maximum size of a request that holds no records, in bytes. Ten thousand partitions take less than half of it.
const COLD_REQUEST_BYTES_MAX: usize = 2 << 20;

/// Memory for a request is taken in parts of this size, in bytes, as its bytes arrive.
const READ_BYTES: usize = 64 << 10;

/// Bytes of a request's header before the client id: key, version, correlation id and the length of the client id.
const FIXED_HEADER_BYTES: usize = 10;

/// Serves a connection until the peer closes it, sends what is no request, or the broker stops.
pub(super) async fn run(connection: Connection, edge: Edge) {
    let peer = connection.peer().clone();
    let (reading, writing) = tokio::io::split(connection);
    let (answers, queue) = mpsc::channel(REQUESTS_MAX);
    let in_work = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn(write(writing, queue, in_work.clone()));
    let mut requests = Requests { reading, peer, edge: edge.clone(), in_work: in_work.clone() };
    loop {
        let next = tokio::select! {
            next = requests.next() => next,
            () = answers.closed() => break,
            () = edge.broker.stopped() => break,
        };
        match next {
            Ok(Some(answer)) => {
                in_work.fetch_add(1, Ordering::Relaxed);
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(refused) => {
                edge.broker.metrics().refused_kafka_request();
                tracing::warn!(peer = %requests.peer.ip, refused, "a connection of a Kafka client was closed");
                break;
            }
        }
    }
    drop(answers);
    // The writer ends with the connection. If an answer panics, only this connection ends.
    let _ = writer.await;
}

/// Writes answers in their order. Ends when there are no more of them, or if the peer is gone.
async fn write(mut writing: WriteHalf<Connection>, mut queue: mpsc::Receiver<Answer>, in_work: Arc<AtomicUsize>) {
    while let Some(answer) = queue.recv().await {
        let answer = answer.await;
        in_work.fetch_sub(1, Ordering::Relaxed);
        match answer {
            Ok(Some(answer)) => {
                if writing.write_all(&answer).await.is_err() {
                    return;
                }
            }
            Ok(None) => {}
            Err(reason) => {
                tracing::error!(reason, "a request of a Kafka client could not be answered");
                break;
            }
        }
    }
    // The peer may have closed the connection already.
    let _ = writing.shutdown().await;
}

/// The requests of a connection.
struct Requests {
    reading: ReadHalf<Connection>,
    peer: Peer,
    edge: Edge,
    /// The number of requests that are not answered yet.
    in_work: Arc<AtomicUsize>,
}

impl Requests {
    /// Reads the next request, and begins to answer it. Returns `None` at the end of the connection.
    ///
    /// # Errors
    /// A description for the log of what the peer sent.
    async fn next(&mut self) -> Result<Option<Answer>, String> {
        let Some(length) = self.length().await else { return Ok(None) };
        let most = self.edge.settings.request_bytes_max;
        let length = usize::try_from(length).ok().filter(|length| (FIXED_HEADER_BYTES..=most).contains(length));
        let length = length.ok_or_else(|| format!("a request has an impossible length, or is over {most} bytes"))?;
        let Some(header) = self.read(FIXED_HEADER_BYTES).await else { return Ok(None) };
        let [key, version] = [0, 2].map(|at| i16::from_be_bytes([header[at], header[at + 1]]));
        let correlation_id = i32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let header_of = Header { key, version, correlation_id };
        let named = i16::from_be_bytes([header[8], header[9]]);
        let name_bytes = usize::try_from(named).unwrap_or(0);
        if name_bytes > length - FIXED_HEADER_BYTES {
            return Err(format!("key {key}, version {version}: the client id is longer than the request"));
        }
        let Some(name) = self.read(name_bytes).await else { return Ok(None) };
        let name = String::from_utf8_lossy(&name).into_owned();
        let told = |reason: String| format!("client {:?}, key {key}, version {version}: {reason}", shortened(&name));
        let served = api::served(header_of).map_err(told)?;
        let rest = length - FIXED_HEADER_BYTES - name_bytes;
        // Kafka's client ids are free text. Quotas apply to those that follow the rule for names, and to addresses.
        let client = ClientId::new(&name).unwrap_or_else(|_| self.peer.ip.into());
        let call = Call {
            caller: Caller::new(self.edge.broker.clone(), client, self.peer.in_flight.clone()),
            edge: self.edge.clone(),
            version,
            client_id: name.as_str().into(),
            client_host: self.peer.ip,
            local: self.peer.local,
        };
        let in_flight = if served.key == ApiKey::Produce {
            match call.caller.may_read(rest).await {
                Some(permit) => Some(permit),
                None => return Ok(None),
            }
        } else if rest > COLD_REQUEST_BYTES_MAX {
            return Err(told(format!("{rest} bytes are over {COLD_REQUEST_BYTES_MAX}")));
        } else {
            None
        };
        let Some(mut body) = self.read(rest).await else { return Ok(None) };
        // From the first flexible version on, headers end with tagged fields.
        if served.key.request_header_version(version) >= 2 {
            skip_tagged_fields(&mut body).ok_or_else(|| told("its header cannot be read".to_owned()))?;
        }
        dispatch::begin(call, header_of, served, body, in_flight).await.map(Some).map_err(told)
    }

    /// Reads this many bytes. Returns `None` if the connection ends before.
    async fn read(&mut self, bytes: usize) -> Option<Bytes> {
        let stall_max = Duration::from_millis(self.edge.settings.stall_max_ms);
        let mut read = BytesMut::with_capacity(bytes.min(READ_BYTES));
        while read.len() < bytes {
            let left = bytes - read.len();
            read.reserve(left.min(READ_BYTES));
            let mut part = (&mut read).limit(left);
            match tokio::time::timeout(stall_max, self.reading.read_buf(&mut part)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) | Err(_) => return None,
            }
        }
        Some(read.freeze())
    }

    /// Reads the length of the next request. Returns `None` at the end of the connection, also if it was unused for too
    /// long.
    async fn length(&mut self) -> Option<i32> {
        let idle_max = Duration::from_millis(self.edge.settings.idle_max_ms);
        let mut first = [0];
        loop {
            match tokio::time::timeout(idle_max, self.reading.read(&mut first)).await {
                Ok(Ok(1..)) => break,
                Ok(Ok(0) | Err(_)) => return None,
                // A member of a group may wait for the others for a long time.
                Err(_) if self.in_work.load(Ordering::Relaxed) > 0 => {}
                Err(_) => {
                    tracing::debug!(peer = %self.peer.ip, "a connection of a Kafka client was unused for too long");
                    return None;
                }
            }
        }
        let rest = self.read(3).await?;
        Some(i32::from_be_bytes([first[0], rest[0], rest[1], rest[2]]))
    }
}

/// Skips the tagged fields of a header (KIP-482).
fn skip_tagged_fields(body: &mut Bytes) -> Option<()> {
    let count = varint(body)?;
    for _ in 0..count {
        varint(body)?;
        let bytes = usize::try_from(varint(body)?).ok().filter(|bytes| *bytes <= body.len())?;
        drop(body.split_to(bytes));
    }
    Some(())
}

/// Reads an unsigned variable-length integer of at most 32 bits. `kafka-protocol` keeps its own reader private.
fn varint(body: &mut Bytes) -> Option<u32> {
    let mut value = 0;
    for at in 0..5 {
        let byte = *body.first()?;
        drop(body.split_to(1));
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
