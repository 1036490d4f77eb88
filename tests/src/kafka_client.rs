//! A client of Kafka's protocol that sends and receives single messages.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

/// Keeps the first request of each API and version in the folder that this variable names: the initial inputs of the fuzz
/// target `kafka`, in broker/fuzz/vectors.
const FRAMES: &str = "MILLSTREAM_KEEP_FRAMES";

/// How long an answer is waited for. The limit is meant for tests that hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn keep(key: i16, version: i16, frame: &[u8]) {
    let Some(folder) = std::env::var_os(FRAMES) else { return };
    let path = std::path::Path::new(&folder).join(format!("kafka-{key:02}-{version:02}"));
    if !path.exists() {
        std::fs::write(path, frame).expect("a frame can be kept");
    }
}

/// A connection that sends and receives single messages. All its calls panic if the connection ends, or if a message has
/// another form than its API and version say.
#[derive(Debug)]
pub struct Client(TcpStream);

impl Client {
    /// Connects to the address of a server.
    ///
    /// # Panics
    /// Panics if the server does not accept the connection.
    pub fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("the limit is not zero");
        Self(stream)
    }

    /// Sends a request.
    ///
    /// # Panics
    /// Panics if the request cannot be encoded or sent.
    pub fn send<R: Request>(&mut self, version: i16, correlation_id: i32, request: &R) {
        let mut bytes = BytesMut::new();
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("test")));
        header.encode(&mut bytes, R::header_version(version)).expect("the header has what its version has");
        request.encode(&mut bytes, version).expect("the request has what its version has");
        keep(R::KEY, version, &bytes);
        self.send_frame(&bytes);
    }

    /// Sends a frame, with its length before it.
    ///
    /// # Panics
    /// Panics if the connection ended.
    pub fn send_frame(&mut self, frame: &[u8]) {
        assert!(self.try_send_frame(frame), "the connection takes a frame");
    }

    /// Sends a frame, with its length before it. Returns whether the connection took it.
    pub fn try_send_frame(&mut self, frame: &[u8]) -> bool {
        let mut bytes = BytesMut::new();
        bytes.put_i32(frame.len() as i32);
        bytes.put_slice(frame);
        self.0.write_all(&bytes).is_ok()
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// Panics if the connection ended.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the connection takes bytes");
    }

    /// Receives the next answer, without its length.
    ///
    /// # Panics
    /// Panics if the connection ends, or if no answer comes within a minute.
    pub fn receive(&mut self) -> Bytes {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("an answer comes");
        let mut bytes = vec![0; i32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut bytes).expect("an answer comes whole");
        bytes.into()
    }

    /// Receives the answer to a request, and checks its header.
    ///
    /// # Panics
    /// Panics if the answer is to another request, or has another form.
    pub fn answer<A: Decodable + HeaderVersion>(&mut self, version: i16, correlation_id: i32) -> A {
        let mut bytes = self.receive();
        let header = ResponseHeader::decode(&mut bytes, A::header_version(version)).expect("the header is valid");
        assert_eq!(header.correlation_id, correlation_id);
        let answer = A::decode(&mut bytes, version).expect("the answer is valid");
        assert!(!bytes.has_remaining(), "{} bytes follow the answer", bytes.remaining());
        answer
    }

    /// Sends a request and receives its answer.
    ///
    /// # Panics
    /// Panics in the same cases as [`Client::send`] and [`Client::answer`].
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.send(version, i32::from(version), request);
        self.answer(version, i32::from(version))
    }

    /// Waits until the server closes the connection. Returns whether it does so without an answer.
    pub fn closes(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
