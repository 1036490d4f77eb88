//! The way of a request to the file of its API, and of the answer back to bytes.

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, FetchRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest,
    ProduceRequest, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use tokio::sync::OwnedSemaphorePermit;

use super::api::{Api, Header};
use super::guarded::Guarded;
use super::{Edge, api_versions, fetch, init_producer_id, list_offsets, metadata, produce};
use crate::broker::caller::Caller;

/// The encoded answer to a request, or `None` if the client does not wait for one. An error is a defect of the server, which
/// ends the connection.
pub(super) type Answer = BoxFuture<'static, Result<Option<Bytes>, String>>;

/// Begins to answer a request. Requests of one connection are passed in their order, so that records are stored in that
/// order. The answer may take longer.
///
/// # Errors
/// A description for the log, if the request cannot be read.
pub(super) async fn begin(
    edge: &Edge,
    caller: &Caller,
    header: Header,
    api: Api,
    body: Bytes,
    in_flight: Option<OwnedSemaphorePermit>,
) -> Result<Answer, String> {
    let (edge, caller, version) = (edge.clone(), caller.clone(), header.version);
    Ok(match api.key {
        ApiKey::Produce => {
            let request: ProduceRequest = decode(body, version)?;
            let queued = produce::queue(&edge, &caller, request, in_flight).await;
            async move {
                match queued.answer().await {
                    Some(answer) => encode(header, &answer),
                    None => Ok(None),
                }
            }
            .boxed()
        }
        ApiKey::Fetch => {
            let request: FetchRequest = decode(body, version)?;
            async move { encode(header, &fetch::answer(&edge, &caller, request).await) }.boxed()
        }
        ApiKey::ListOffsets => {
            let request: ListOffsetsRequest = decode(body, version)?;
            async move { encode(header, &list_offsets::answer(&edge, request, version).await) }.boxed()
        }
        ApiKey::Metadata => {
            let request: MetadataRequest = decode(body, version)?;
            async move { encode(header, &metadata::answer(&edge, request, version).await) }.boxed()
        }
        ApiKey::InitProducerId => {
            let request: InitProducerIdRequest = decode(body, version)?;
            async move { encode(header, &init_producer_id::answer(&edge, request).await) }.boxed()
        }
        _ if !(api.from..=api.to).contains(&version) => {
            // The client may not know version 4 of the answer, so it gets version 0 (KIP-511).
            let header = Header { version: 0, ..header };
            async move { encode(header, &api_versions::unsupported()) }.boxed()
        }
        _ => {
            let request: ApiVersionsRequest = decode(body, version)?;
            async move { encode(header, &api_versions::answer(&request, version)) }.boxed()
        }
    })
}

/// Decodes a message, whose counts are checked before anything is allocated for them.
fn decode<M: Decodable>(mut body: Bytes, version: i16) -> Result<M, String> {
    M::decode(&mut Guarded::new(&body), version).map_err(|error| error.to_string())?;
    M::decode(&mut body, version).map_err(|error| error.to_string())
}

/// Encodes an answer, with its length and header.
fn encode<M: Encodable + HeaderVersion>(header: Header, message: &M) -> Result<Option<Bytes>, String> {
    let mut bytes = BytesMut::new();
    bytes.put_i32(0);
    let response = ResponseHeader::default().with_correlation_id(header.correlation_id);
    let encoded = response.encode(&mut bytes, M::header_version(header.version));
    let encoded = encoded.and_then(|()| message.encode(&mut bytes, header.version));
    encoded.map_err(|error| format!("cannot encode the answer to {header:?}: {error}"))?;
    let length = i32::try_from(bytes.len() - 4).map_err(|_| format!("the answer to {header:?} exceeds 2 GiB"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(Some(bytes.freeze()))
}
