//! Generated types of Millstream's gRPC contract (`sdk/proto`), shared by servers and clients.
//! Nothing else belongs here.

/// Package `millstream.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("millstream.v1");

    /// The encoded `FileDescriptorSet` of the contract, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/millstream.v1.bin"));
}

/// The largest gRPC message that either side takes, in bytes: room for a fetch answer of several
/// record batches, a bound for what one message may make a peer allocate.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// HTTP/2 flow-control window of a stream, in bytes. The protocol's default of 64 KiB caps one
/// stream at a window a round trip.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// HTTP/2 flow-control window of a connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The trailer that carries the name of an [`v1::ErrorCode`] beside a gRPC status.
pub const ERROR_TRAILER: &str = "millstream-error";

/// The metadata of a call that names the client, for its quota and its metrics: 1 to 249 of
/// `a-z A-Z 0-9 . _ -`. A client without one counts as its IP address.
pub const CLIENT_ID_METADATA: &str = "millstream-client-id";
