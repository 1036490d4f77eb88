//! Who makes a call, and what it waits for before it may go on: its client's quota, and its
//! connection's room.

use millstream_api::{CLIENT_ID_METADATA, v1};
use tokio::sync::OwnedSemaphorePermit;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Request, Status};

use super::connection::{Peer, Room};
use super::status;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::fetch::{Fetch, Fetched};
use crate::log::reader::Slice;
use crate::quota::{ClientId, QuotaKind};

/// Who makes a call. Cheap to clone; every request carries it (`calls.rs`).
#[derive(Clone)]
pub(super) struct Caller {
    broker: Broker,
    client: ClientId,
    room: Room,
}

impl Caller {
    /// The client that the call's metadata names, or else the peer's address.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`] for a client id that is not allowed.
    pub(super) fn new(broker: &Broker, peer: &Peer, headers: &HeaderMap) -> Result<Self, BrokerError> {
        let client = match headers.get(CLIENT_ID_METADATA) {
            Some(id) => ClientId::new(&String::from_utf8_lossy(id.as_bytes()))?,
            None => peer.ip.into(),
        };
        Ok(Self { broker: broker.clone(), client, room: peer.room.clone() })
    }

    /// Who made a request.
    ///
    /// # Errors
    /// A status where the request did not come by way of `calls.rs`: a defect.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| status::status(v1::ErrorCode::Internal, Code::Internal, "a call without its caller"))
    }

    /// Waits until the next produce request may be read at all.
    pub(super) async fn may_produce(&self) {
        self.broker.quotas().paid(&self.client, QuotaKind::Produce).await;
    }

    /// Waits for the client's quota, then for the connection's room, which is kept until the permit
    /// is dropped: when the request is answered. Nothing of the commit queue's room is held meanwhile.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`] where the broker stops first.
    pub(super) async fn admit(&self, request: &v1::ProduceRequest) -> Result<OwnedSemaphorePermit, BrokerError> {
        let bytes = request_bytes(request);
        let admitted = async {
            self.broker.quotas().take(&self.client, QuotaKind::Produce, bytes).await;
            self.room.take(bytes).await
        };
        tokio::select! {
            permit = admitted => permit.ok_or(BrokerError::ShuttingDown),
            () = self.broker.stopped() => Err(BrokerError::ShuttingDown),
        }
    }

    /// Reads for the client, once it may: it waits for its quota before it reads, and where others
    /// of its calls read meanwhile, again before it answers.
    pub(super) async fn fetch(&self, fetch: &Fetch) -> Vec<Fetched> {
        let quotas = self.broker.quotas();
        quotas.paid(&self.client, QuotaKind::Fetch).await;
        let fetched = self.broker.fetch(fetch).await;
        let bytes = fetched.iter().filter_map(|fetched| fetched.slice.as_ref().ok()).map(Slice::bytes).sum();
        quotas.take(&self.client, QuotaKind::Fetch, bytes).await;
        fetched
    }
}

/// What a produce request counts for, in bytes: its batches, or its records' keys, values and headers.
fn request_bytes(request: &v1::ProduceRequest) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let record = |record: &v1::Record| {
        let headers = record.headers.iter().map(|header| header.name.len() + len(&header.value));
        len(&record.key) + len(&record.value) + headers.sum::<usize>()
    };
    request.batches.len() + request.records.iter().map(record).sum::<usize>()
}
