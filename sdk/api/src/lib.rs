//! Types generated from Millstream's gRPC definitions (`sdk/proto`), shared by servers and clients. This crate contains
//! only these types and the constants of the protocol.

/// The types of package `millstream.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("millstream.v1");

    /// The encoded `FileDescriptorSet` of the definitions, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/millstream.v1.bin"));
}

/// Maximum size of a gRPC message that either side accepts, in bytes. It has room for a fetch answer of several record
/// batches, and limits how much a peer allocates for one message.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// HTTP/2 flow-control window of a stream, in bytes. The protocol's default of 64 KiB would limit a stream to 64 KiB
/// per round trip.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// HTTP/2 flow-control window of a connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Name of the trailer that carries the name of an [`v1::ErrorCode`] in addition to the gRPC status.
pub const ERROR_TRAILER: &str = "millstream-error";

/// Name of the call metadata that identifies the client for its quota and its metrics. The value has 1 to 249 of the
/// characters `a-z A-Z 0-9 . _ -`. A client without it is identified by its IP address.
pub const CLIENT_ID_METADATA: &str = "millstream-client-id";
