//! Requests of Kafka's protocol, as a client sends them: the input is a request without its length. It passes a real
//! listener, so whatever reads, decodes and answers it is exercised. A panic of any thread is a failure, and so is a server
//! that does not answer another connection.
#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream_broker::clock::SystemClock;
use millstream_broker::kafka::{self, KafkaSettings};
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings};
use prometheus_client::registry::Registry;

/// A request for the served APIs, whose answer shows that the request before it was answered. Key, version, correlation id,
/// no client id.
const VERSIONS: [u8; 10] = [0, 18, 0, 0, 0x5a, 0x5a, 0x5a, 0x5a, 0xff, 0xff];

/// How long an answer may take until the next input is tried: fetches and members of groups wait.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long the server may take to answer another connection.
const ALIVE_WITHIN: Duration = Duration::from_secs(9);

/// The other connection asks after this many inputs.
const INPUTS_BETWEEN_CHECKS: u64 = 256;

/// An answer of more bytes is not read further.
const ANSWER_BYTES_MAX: usize = 8 << 20;

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    thread_local! {
        static CONNECTION: RefCell<(Option<TcpStream>, u64)> = const { RefCell::new((None, 0)) };
    }
    let server = *SERVER.get_or_init(start);
    CONNECTION.with_borrow_mut(|(connection, inputs)| {
        *inputs += 1;
        if inputs.is_multiple_of(INPUTS_BETWEEN_CHECKS) {
            let mut other = connect(server);
            other.set_read_timeout(Some(ALIVE_WITHIN)).unwrap();
            send(&mut other, &VERSIONS).unwrap();
            assert!(answered(&mut other), "the server does not answer another connection");
        }
        let stream = connection.get_or_insert_with(|| connect(server));
        let asked = send(stream, request).and_then(|()| send(stream, &VERSIONS));
        if asked.is_err() || !answered(stream) {
            *connection = None;
        }
    });
});

/// Starts a server on an empty folder. Its threads run until the process ends.
fn start() -> SocketAddr {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/kafka-data");
    if data.exists() {
        std::fs::remove_dir_all(&data).expect("the folder can be removed");
    }
    let (settings, options) = (BrokerSettings::default(), StoreOptions::default());
    let broker = Broker::open(&data, settings, options, Arc::new(SystemClock), &mut Registry::default());
    let broker = broker.expect("the folder can be opened");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let tokio = tokio.expect("threads can be started");
    let listener = tokio.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("there is a free port");
    let address = listener.local_addr().expect("a listener has an address");
    let settings = KafkaSettings {
        advertised: None,
        connections_max: 1_000,
        connection_bytes_in_flight_max: 64 << 20,
        request_bytes_max: 100 << 20,
        stall_max_ms: 1_000,
        idle_max_ms: 10_000,
        auto_create_topics: true,
        partitions_default: 1,
    };
    tokio.spawn(kafka::serve(listener, broker, settings, std::future::pending()));
    std::mem::forget(tokio);
    address
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("the server accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("the time is not 0");
    stream.set_nodelay(true).expect("a socket takes the option");
    stream
}

/// Sends a request, with its length before it.
fn send(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(request.len()).expect("inputs are short");
    stream.write_all(&[&length.to_be_bytes()[..], request].concat())
}

/// Reads answers, up to that of [`VERSIONS`]. Returns false if it does not come.
fn answered(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            return false;
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > ANSWER_BYTES_MAX {
            return false;
        }
        answer.resize(length, 0);
        if stream.read_exact(&mut answer).is_err() {
            return false;
        }
        if answer.starts_with(&VERSIONS[4..8]) {
            return true;
        }
    }
}
