//! Clients that send too much, read too slowly or do nothing must cost little and must not affect other clients. Covers
//! quotas, limits per connection, and deadlines.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use millstream_api::v1::log_client::LogClient;
use millstream_api::v1::position::At;
use millstream_api::v1::topics_client::TopicsClient;
use millstream_api::{CLIENT_ID_METADATA, ERROR_TRAILER, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES, v1};
use millstream_broker::broker::quota::{ClientId, QuotaSettings, Rates};
use millstream_broker::clock::SystemClock;
use millstream_broker::grpc::{self, ServeSettings};
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerSettings, TopicName};
use millstream_client::{
    Client, ClientError, ClientSettings, ConsumerSettings, Position, ProducerRecord, ProducerSettings, RecordRef,
};
use millstream_record::{BatchBuilder, Compression};
use millstream_tests::held::Held;
use millstream_tests::instance::wait_until;
use millstream_tests::server::Server;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::http;
use tonic::service::RoutesBuilder;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Waits for a future. The limit is meant for tests that hang, and is no statement about speed.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), future).await;
    done.unwrap_or_else(|_| panic!("not completed within two minutes: {what}"))
}

/// A broker and its gRPC server in this process, with topic `t` of one partition.
struct Served {
    broker: Broker,
    address: String,
    registry: Registry,
    serving: JoinHandle<()>,
    _data: TempDir,
}

impl Served {
    async fn start(broker: BrokerSettings, serve: ServeSettings) -> Self {
        Self::start_on(broker, serve, StoreOptions::default()).await
    }

    async fn start_on(settings: BrokerSettings, serve: ServeSettings, options: StoreOptions) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut registry = Registry::default();
        let broker = Broker::open(data.path(), settings, options, Arc::new(SystemClock), &mut registry).unwrap();
        let name = TopicName::new("t").unwrap();
        broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap();
        let mut routes = RoutesBuilder::default();
        grpc::add_services(&mut routes, &broker);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = grpc::serve(routes, listener, broker.clone(), serve, std::future::pending());
        let serving = tokio::spawn(async { serving.await.unwrap() });
        Self { broker, address, registry, serving, _data: data }
    }

    /// Returns a client with this id, whose call timeout is long enough to wait for a quota.
    fn client(&self, client_id: &str) -> Client {
        self.client_within(client_id, 1_000_000)
    }

    fn client_within(&self, client_id: &str, call_timeout_ms: u64) -> Client {
        let settings = ClientSettings { client_id: client_id.to_owned(), call_timeout_ms };
        Client::with_settings(&self.address, settings).unwrap()
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn end_offset(&self) -> u64 {
        self.broker.topic("t").unwrap().partition(0).unwrap().end().into()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Returns the value of a metric.
pub(super) fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

fn throttled(metrics: &str, client: &str, kind: &str) -> Option<f64> {
    value(metrics, &format!("millstream_throttled_seconds_total{{client=\"{client}\",kind=\"{kind}\"}}"))
}

fn rate(bytes_per_s: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes_per_s)
}

fn produce_rate(bytes_per_s: u64) -> Rates {
    Rates { produce_bytes_per_s_max: rate(bytes_per_s), fetch_bytes_per_s_max: None }
}

fn fetch_rate(bytes_per_s: u64) -> Rates {
    Rates { produce_bytes_per_s_max: None, fetch_bytes_per_s_max: rate(bytes_per_s) }
}

fn with_quotas<const N: usize>(default: Rates, by_client: [(&str, Rates); N]) -> BrokerSettings {
    let by_client: BTreeMap<_, _> = by_client.map(|(id, rates)| (ClientId::new(id).unwrap(), rates)).into();
    BrokerSettings { quotas: QuotaSettings { default, by_client }, ..BrokerSettings::default() }
}

/// Builds a request with one record of about `bytes` bytes.
fn request(bytes: usize) -> v1::ProduceRequest {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, Some(&vec![b'x'; bytes]), []);
    let batches = builder.finish().unwrap().into_bytes();
    v1::ProduceRequest { topic: "t".into(), partition: Some(0), batches, records: Vec::new() }
}

fn from(offset: u64) -> v1::FetchRequest {
    let partition = v1::FetchPartition { topic: "t".into(), partition: 0, offset, ..Default::default() };
    v1::FetchRequest { partitions: vec![partition], max_bytes: 1, ..Default::default() }
}

fn code(status: &Status) -> &str {
    status.metadata().get(ERROR_TRAILER).map_or("", |code| code.to_str().unwrap())
}

// ---- quotas

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_quota_holds_up_nobody_else() {
    let settings = with_quotas(Rates::default(), [("slow", produce_rate(1))]);
    // Two of the requests below fill the queue.
    let settings = BrokerSettings { queued_bytes_max: 64 << 10, ..settings };
    let served = Served::start(settings, ServeSettings::default()).await;
    let (slow, fast) = (served.client("slow").admin(), served.client("fast").admin());
    // The first request does not wait, and exhausts the quota for nine hours.
    slow.produce(request(32 << 10)).await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let slow = slow.clone();
        waiting.spawn(async move { slow.produce(request(32 << 10)).await });
    }
    let producer = served.client("slow").producer(ProducerSettings::default());
    let mut streamed = tokio::spawn(async move { producer.send(ProducerRecord::new("t", "x")).await.unwrap().await });
    for _ in 0..20 {
        soon("the other client's request is answered", fast.produce(request(32 << 10))).await.unwrap();
    }
    assert!(waiting.try_join_next().is_none(), "a throttled request was answered");
    assert!(futures::poll!(&mut streamed).is_pending(), "a throttled request was answered");
    assert_eq!(served.end_offset(), 21, "a throttled record was stored");
    // A request that is given up is counted as throttled, and its record is not stored.
    waiting.shutdown().await;
    wait_until("the throttled time is counted", || throttled(&served.metrics(), "slow", "produce").is_some()).await;
    assert_eq!(throttled(&served.metrics(), "fast", "produce"), None);
    assert_eq!(throttled(&served.metrics(), "slow", "fetch"), None);
    soon("the other client's request is answered", fast.produce(request(1))).await.unwrap();
    assert_eq!(served.end_offset(), 22);
    streamed.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_producer_stores_everything_in_order() {
    let settings = with_quotas(Rates::default(), [("slow", produce_rate(200_000))]);
    let served = Served::start(settings, ServeSettings::default()).await;
    let producer = served.client("slow").producer(ProducerSettings::default());
    let values: Vec<String> = (0..600).map(|number| format!("{number:01000}")).collect();
    let mut deliveries = Vec::new();
    for value in &values {
        let record = ProducerRecord::new("t", value.clone());
        deliveries.push(soon("the producer's buffer has room", producer.send(record)).await.unwrap());
    }
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(soon("the record is stored", delivery).await.unwrap().offset, offset as u64);
    }
    let settings = ConsumerSettings::topic("t").from(Position::Earliest).until_end();
    let records = served.client("reader").consumer(settings).unwrap().into_stream();
    let read: Vec<_> = soon("all records are read", records.try_collect()).await.unwrap();
    let read: Vec<_> = read.into_iter().map(|record| record.value.unwrap()).collect();
    assert!(read == values, "{} of {} records", read.len(), values.len());
    let metrics = served.metrics();
    assert!(
        throttled(&metrics, "slow", "produce").is_some(),
        "records for three seconds were sent without being throttled"
    );
    assert_eq!(throttled(&metrics, "reader", "fetch"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_readers_read_everything_whichever_way_they_read() {
    let slow = fetch_rate(1_000_000);
    let settings = with_quotas(Rates::default(), [("streams", slow), ("member", slow), ("fetches", slow)]);
    let served = Served::start(settings, ServeSettings::default()).await;
    let values: Vec<String> = (0..4_000).map(|number| format!("{number:01000}")).collect();
    let producer = served.client("writer").producer(ProducerSettings::default());
    for value in &values {
        drop(producer.send(ProducerRecord::new("t", value.clone())).await.unwrap());
    }
    soon("all records are stored", producer.close()).await.unwrap();
    let consumed = async |client: &str, settings: ConsumerSettings| {
        let settings = settings.from(Position::Earliest).until_end();
        let records = served.client(client).consumer(settings).unwrap().into_stream();
        let records: Vec<_> = soon("all records are read", records.try_collect()).await.unwrap();
        let read: Vec<_> = records.into_iter().map(|record| record.value.unwrap()).collect();
        assert!(read == values, "{client}: {} of {} records", read.len(), values.len());
    };
    let fetched = async {
        let (admin, mut offset) = (served.client("fetches").admin(), 0);
        while offset < values.len() as u64 {
            let request = v1::FetchRequest { max_bytes: 1 << 20, ..from(offset) };
            let answer = soon("a fetch is answered", admin.fetch(request)).await.unwrap();
            assert!(answer.partitions[0].next_offset > offset, "a fetch must advance");
            offset = answer.partitions[0].next_offset;
        }
    };
    let (streams, member) = (ConsumerSettings::topic("t"), ConsumerSettings::topic("t").group("g"));
    tokio::join!(consumed("streams", streams), consumed("member", member), fetched);
    consumed("fast", ConsumerSettings::topic("t")).await;
    let metrics = served.metrics();
    for client in ["streams", "member", "fetches"] {
        assert!(
            throttled(&metrics, client, "fetch").is_some(),
            "{client}: records for four seconds were read without being throttled"
        );
    }
    assert_eq!(throttled(&metrics, "fast", "fetch"), None);
    assert_eq!(throttled(&metrics, "writer", "produce"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_ones_own_counts_before_the_one_for_all() {
    let default = Rates { produce_bytes_per_s_max: rate(1), fetch_bytes_per_s_max: rate(1) };
    let own = Rates { produce_bytes_per_s_max: rate(1 << 40), fetch_bytes_per_s_max: rate(1 << 40) };
    let served = Served::start(with_quotas(default, [("own", own)]), ServeSettings::default()).await;
    let (own, other, third) =
        (served.client("own").admin(), served.client("other").admin(), served.client("third").admin());
    for offset in 0..20 {
        soon("the record is stored", own.produce(request(10_000))).await.unwrap();
        soon("the record is read", own.fetch(from(offset))).await.unwrap();
    }
    // Each of the other clients has its own bucket, and takes from it once.
    for client in [other, third] {
        soon("the first record is stored", client.produce(request(10_000))).await.unwrap();
        soon("the first record is read", client.fetch(from(0))).await.unwrap();
        let again = tokio::spawn(async move {
            futures::future::select(Box::pin(client.produce(request(1))), Box::pin(client.fetch(from(0)))).await;
        });
        for offset in 0..20 {
            soon("the record is stored", own.produce(request(10_000))).await.unwrap();
            soon("the record is read", own.fetch(from(offset))).await.unwrap();
        }
        assert!(!again.is_finished(), "a throttled request was answered");
        again.abort();
    }
    assert_eq!(throttled(&served.metrics(), "own", "produce"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_name_counts_as_its_address() {
    let served =
        Served::start(with_quotas(Rates::default(), [("127.0.0.1", produce_rate(1))]), ServeSettings::default()).await;
    let mut nameless = LogClient::new(served.channel().await);
    nameless.produce(request(1_000)).await.unwrap();
    // The second connection comes from the same address.
    let mut again = LogClient::new(served.channel().await);
    let again = tokio::spawn(async move { again.produce(request(1)).await });
    for _ in 0..20 {
        soon("a request of a client with an id", served.client("named").admin().produce(request(1_000))).await.unwrap();
    }
    assert!(!again.is_finished());
    again.abort();
    wait_until("the address is throttled", || throttled(&served.metrics(), "127.0.0.1", "produce").is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_id_that_is_not_allowed_is_refused() {
    let served = Served::start(BrokerSettings::default(), ServeSettings::default()).await;
    for id in ["", "a b", &"x".repeat(250)] {
        let mut request = Request::new(request(1));
        request.metadata_mut().insert(CLIENT_ID_METADATA, id.parse().unwrap());
        let status = LogClient::new(served.channel().await).produce(request).await.unwrap_err();
        assert_eq!((status.code(), code(&status)), (Code::InvalidArgument, "INVALID_REQUEST"), "{id:?}: {status}");
        assert!(status.message().contains(&format!("client id: {id:?}")), "{status}");
    }
    assert_eq!(served.end_offset(), 0);
}

// ---- limits of connections

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_has_only_so_much_in_flight() {
    let held = Held::default();
    let settings = ServeSettings { connection_bytes_in_flight_max: 1 << 20, ..ServeSettings::default() };
    let served = Served::start_on(BrokerSettings::default(), settings, held.options()).await;
    let name = TopicName::new("other").unwrap();
    served.broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap();
    let queued = || (value(&served.metrics(), "millstream_queued_bytes").unwrap() / 300_000.0).floor();
    held.hold();
    // Two streams and several single calls share one connection, on which three requests fit.
    let channel = served.channel().await;
    let mut answers = JoinSet::new();
    for _ in 0..2 {
        let mut log = LogClient::new(channel.clone());
        answers.spawn(async move {
            let stream = log.produce_stream(stream::iter(vec![request(300_000); 5])).await.unwrap().into_inner();
            stream.map(|answer| assert_eq!(answer.unwrap().error, None)).count().await
        });
    }
    for _ in 0..5 {
        let mut log = LogClient::new(channel.clone());
        answers.spawn(async move {
            log.produce(request(300_000)).await.unwrap();
            1
        });
    }
    wait_until("the requests that fit are queued", || queued() >= 3.0).await;
    // Another connection has its own limit.
    let other = served.client("other").admin();
    let to_other = v1::ProduceRequest { topic: "other".into(), ..request(300_000) };
    let others = tokio::spawn(async move { other.produce(to_other).await });
    wait_until("the request of the other connection is queued", || queued() >= 4.0).await;
    // Meanwhile everything on the first connection has arrived, because its other calls are answered one after the
    // other.
    for _ in 0..200 {
        TopicsClient::new(channel.clone()).list_topics(v1::ListTopicsRequest {}).await.unwrap();
    }
    assert_eq!(queued(), 4.0, "more bytes are in flight than the limit allows");
    held.release();
    soon("the request of the other connection is answered", others).await.unwrap().unwrap();
    let answered = soon("all requests are answered", answers.join_all()).await;
    assert_eq!(answered.into_iter().sum::<usize>(), 15);
    assert_eq!(served.end_offset(), 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_a_connections_limit_is_taken_all_the_same() {
    let settings = ServeSettings { connection_bytes_in_flight_max: 1, ..ServeSettings::default() };
    let served = Served::start(BrokerSettings::default(), settings).await;
    let admin = served.client("a").admin();
    let all = (0..10).map(|_| admin.produce(request(100_000)));
    soon("all records are stored", futures::future::try_join_all(all)).await.unwrap();
    assert_eq!(served.end_offset(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_at_once_and_the_others_go_on() {
    let settings = ServeSettings { connections_max: 2, ..ServeSettings::default() };
    let served = Served::start(BrokerSettings::default(), settings).await;
    let (first, second) = (served.channel().await, served.channel().await);
    let produce = async |channel: &Channel| LogClient::new(channel.clone()).produce(request(1)).await;
    produce(&first).await.unwrap();
    produce(&second).await.unwrap();
    let open = |count: f64| value(&served.metrics(), "millstream_connections") == Some(count);
    assert!(open(2.0));
    for refused in 1..=3 {
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        let closed = soon("the connection is closed", tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16])).await;
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let counted = value(&served.metrics(), "millstream_connections_refused_total");
        assert_eq!(counted, Some(f64::from(refused)));
    }
    produce(&first).await.unwrap();
    drop(second);
    wait_until("the connection is closed", || open(1.0)).await;
    produce(&served.channel().await).await.unwrap();
    assert_eq!(served.end_offset(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_request_is_not_read_before_the_request_is_admitted() {
    const BODY_BYTES: usize = 12 << 20;
    let settings = with_quotas(Rates::default(), [("slow", produce_rate(1))]);
    let served = Served::start(settings, ServeSettings::default()).await;
    // From now on the client is in debt for hours.
    served.client("slow").admin().produce(request(32 << 10)).await.unwrap();
    let fast = served.client("fast").admin();
    for path in ["Log/Produce", "Log/ProduceStream"] {
        let stream = TcpStream::connect(&served.address).await.unwrap();
        let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
        let working = tokio::spawn(connection);
        let mut wanted = grpc_request(&served, path, None);
        wanted.headers_mut().insert(CLIENT_ID_METADATA, "slow".parse().unwrap());
        let (_answer, mut body) = requests.send_request(wanted, false).unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let sending = tokio::spawn({
            let sent = sent.clone();
            async move {
                let mut message = vec![0; 5 + BODY_BYTES];
                message[1..5].copy_from_slice(&(BODY_BYTES as u32).to_be_bytes());
                let mut message = Bytes::from(message);
                while !message.is_empty() {
                    body.reserve_capacity(message.len());
                    let allowed = std::future::poll_fn(|context| body.poll_capacity(context)).await.unwrap().unwrap();
                    body.send_data(message.split_to(allowed), false).unwrap();
                    sent.fetch_add(allowed, Ordering::SeqCst);
                }
            }
        });
        // Meanwhile the server has the time to answer many requests of somebody else. Of this one it reads no more than
        // what it has said that any client may send, and one frame.
        wait_until("the client sends what it may", || sent.load(Ordering::SeqCst) >= STREAM_WINDOW_BYTES as usize)
            .await;
        for _ in 0..100 {
            soon("the other client's request is answered", fast.produce(request(32 << 10))).await.unwrap();
        }
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent <= STREAM_WINDOW_BYTES as usize + (1 << 20), "{path}: {sent} bytes were read");
        sending.abort();
        working.abort();
    }
}

/// Such a peer answers nothing, and its connection stays open.
#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_a_peer_that_is_gone_end() {
    let settings = ServeSettings { keepalive_interval_ms: 100, keepalive_timeout_ms: 200, ..ServeSettings::default() };
    let served = Served::start(BrokerSettings::default(), settings).await;
    let mut gone = Vec::new();
    for (path, is_all) in [("Log/ProduceStream", false), ("Log/Consume", true)] {
        let stream = TcpStream::connect(&served.address).await.unwrap();
        let (mut requests, mut connection) = h2::client::handshake(stream).await.unwrap();
        let (answer, mut body) = requests.send_request(grpc_request(&served, path, None), false).unwrap();
        // ConsumeRequest { topic: "t" }. The same bytes are a ProduceRequest that is refused.
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 3, 0x0a, 1, b't']), is_all).unwrap();
        let answer = tokio::select! {
            answer = answer => answer.unwrap(),
            ended = &mut connection => panic!("{path}: {ended:?}"),
        };
        assert_eq!(answer.headers().get("grpc-status"), None, "{path} ended at once: {answer:?}");
        // From here on the connection is not polled, so that it answers nothing.
        gone.push((requests, connection, body, answer));
    }
    let open = || value(&served.metrics(), "millstream_connections");
    wait_until("their connections are closed", || open() == Some(0.0)).await;
    drop(gone);
}

/// The socket of such a reader is full, so that not even the end of its connection can be written to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_off_its_socket_is_gone() {
    let settings = ServeSettings { keepalive_interval_ms: 100, keepalive_timeout_ms: 200, ..ServeSettings::default() };
    let served = Served::start(BrokerSettings::default(), settings).await;
    let admin = served.client("writer").admin();
    // This is far more than the kernel buffers on both sides.
    for _ in 0..64 {
        admin.produce(request(1_000_000)).await.unwrap();
    }
    drop(admin);
    let open = || value(&served.metrics(), "millstream_connections");
    wait_until("the writer is gone", || open() == Some(0.0)).await;
    let stream = TcpStream::connect(&served.address).await.unwrap();
    // The windows are so large that flow control does not block the server.
    let mut window = h2::client::Builder::new();
    window.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut requests, mut connection) = window.handshake(stream).await.unwrap();
    let (answer, mut body) = requests.send_request(grpc_request(&served, "Log/Consume", None), false).unwrap();
    // ConsumeRequest { topic: "t", from: { earliest: true } }
    let message = [0, 0, 0, 0, 7, 0x0a, 1, b't', 0x1a, 2, 0x08, 1];
    body.send_data(Bytes::copy_from_slice(&message), true).unwrap();
    let answer = tokio::select! {
        answer = answer => answer.unwrap(),
        ended = &mut connection => panic!("{ended:?}"),
    };
    assert_eq!(answer.headers().get("grpc-status"), None, "{answer:?}");
    wait_until("its connection is closed", || open() == Some(0.0)).await;
    drop((requests, connection, body, answer));
}

fn grpc_request(served: &Served, path: &str, timeout: Option<&str>) -> http::Request<()> {
    let uri = format!("http://{}/millstream.v1.{path}", served.address);
    let mut request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    request.body(()).unwrap()
}

// ---- deadlines

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_ends_and_says_so() {
    let held = Held::default();
    let settings = ServeSettings { call_deadline_ms: 50, ..ServeSettings::default() };
    let served = Served::start_on(BrokerSettings::default(), settings, held.options()).await;
    held.hold();
    let channel = served.channel().await;
    let late = soon("a produce request ends", LogClient::new(channel.clone()).produce(request(1))).await.unwrap_err();
    assert_eq!((late.code(), code(&late)), (Code::DeadlineExceeded, "TIMED_OUT"), "{late}");
    for words in ["Log/Produce", "50 ms", "--call-deadline-ms"] {
        assert!(late.message().contains(words), "{late}");
    }
    let mut topics = TopicsClient::new(channel);
    let create = v1::CreateTopicRequest { name: "late".into(), ..Default::default() };
    let late = soon("the creation of a topic ends", topics.create_topic(create)).await.unwrap_err();
    assert_eq!((late.code(), code(&late)), (Code::DeadlineExceeded, "TIMED_OUT"), "{late}");
    held.release();
    // Neither call is half done: the record that was in flight is stored, and the topic can be used.
    wait_until("the record is stored", || served.end_offset() == 1).await;
    wait_until("the topic exists", || served.broker.topic("late").is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_its_caller_gave_up_is_whole_all_the_same() {
    let held = Held::default();
    let served = Served::start_on(BrokerSettings::default(), ServeSettings::default(), held.options()).await;
    held.hold();
    let admin = served.client_within("a", 50).admin();
    let error = admin.create_topic("given-up", None, v1::TopicSettings::default()).await.unwrap_err();
    assert!(matches!(&error, ClientError::CallTimeout { call: "CreateTopic", .. }), "{error}");
    let text = error.to_string();
    for words in ["CreateTopic", &served.address, "50 ms", "call_timeout_ms"] {
        assert!(text.contains(words), "{text}");
    }
    held.release();
    wait_until("the topic exists", || served.broker.topic("given-up").is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_has_its_wait_on_top_of_the_deadline() {
    let settings = ServeSettings { call_deadline_ms: 50, ..ServeSettings::default() };
    let served = Served::start(BrokerSettings::default(), settings).await;
    // The client's own timeout also allows for the wait.
    let admin = served.client_within("a", 50).admin();
    let request = v1::FetchRequest { max_wait_ms: 500, ..from(0) };
    let answer = soon("the fetch is answered", admin.fetch(request)).await.unwrap();
    assert_eq!((answer.partitions[0].next_offset, answer.partitions[0].log_end_offset), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_deadline_holds_where_it_is_shorter() {
    let served = Served::start(BrokerSettings::default(), ServeSettings::default()).await;
    // Uses a plain HTTP/2 client, because tonic's client would not wait for the server's answer.
    let stream = TcpStream::connect(&served.address).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let working = tokio::spawn(connection);
    // The message never arrives, and the server waits for it.
    for (timeout, shown) in [("20m", "within 20 ms"), ("30000u", "within 30 ms")] {
        let wanted = grpc_request(&served, "Log/Fetch", Some(timeout));
        let (answer, _body) = requests.send_request(wanted, false).unwrap();
        let answer = soon("the call ends", answer).await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("grpc-status").as_deref(), Some("4"), "{answer:?}");
        assert_eq!(header(ERROR_TRAILER).as_deref(), Some("TIMED_OUT"));
        let message = header("grpc-message").unwrap().replace("%20", " ");
        assert!(message.contains(shown), "{message}");
    }
    working.abort();
}

// ---- many connections

const IDLE_CONNECTIONS: usize = 1_000;
const SLOW_READERS: usize = 100;

/// Maximum for all idle connections together. One takes 21 to 24 KB.
const IDLE_BYTES_MAX: u64 = 1_000 * 48 * 1024;

/// Maximum for all slow readers together. The server sends a reader that does not read as much as its window allows,
/// and keeps three more answers of 1 MiB ready. Readers of sealed records do not share their memory: one takes 4.5 MiB.
const SLOW_BYTES_MAX: u64 = 100 * 5 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_waits_until_a_full_disk_has_room_again() {
    const RECORDS: u64 = 20;
    let (free, asked) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicUsize::new(0)));
    let free_bytes = {
        let (free, asked) = (free.clone(), asked.clone());
        Arc::new(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(free.load(Ordering::SeqCst))
        })
    };
    let options = StoreOptions { free_bytes: Some(free_bytes), ..StoreOptions::default() };
    let served = Served::start_on(BrokerSettings::default(), ServeSettings::default(), options).await;
    // Without sequence numbers, batches keep their order only if they are sent one at a time.
    for (idempotent, in_flight_max) in [(true, 5), (false, 1)] {
        let settings =
            ProducerSettings { idempotent, in_flight_max, batch_bytes: 100, retry_backoff_ms: 5, ..Default::default() };
        let producer = served.client("p").producer(settings);
        // Afterwards the server knows the producer.
        drop(soon("the record is accepted", producer.send(ProducerRecord::new("t", "first"))).await.unwrap());
        soon("a flush", producer.flush()).await.unwrap();
        let begin = served.end_offset();
        free.store(0, Ordering::SeqCst);
        let before = asked.load(Ordering::SeqCst);
        let mut deliveries = JoinSet::new();
        for number in 0..RECORDS {
            let record = ProducerRecord::new("t", number.to_string());
            let delivery = soon("the record is accepted", producer.send(record)).await.unwrap();
            deliveries.spawn(async move { (number, delivery.await) });
        }
        // More attempts than one refusal of each batch in flight would cause.
        let mut first = None;
        wait_until("the producer retries", || {
            first = deliveries.try_join_next();
            first.is_some() || asked.load(Ordering::SeqCst) > before + 2 * in_flight_max + 2
        })
        .await;
        assert!(first.is_none(), "idempotent {idempotent}: a delivery completed although the disk is full: {first:?}");
        assert_eq!(served.end_offset(), begin);
        free.store(u64::MAX, Ordering::SeqCst);
        while let Some(delivered) = soon("an outcome", deliveries.join_next()).await {
            let (number, outcome) = delivered.unwrap();
            let stored = outcome.unwrap_or_else(|error| panic!("idempotent {idempotent}, record {number}: {error}"));
            assert_eq!(stored.offset, begin + number, "idempotent {idempotent}");
        }
        producer.close().await.unwrap();
        assert_eq!(served.end_offset(), begin + RECORDS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_and_slow_readers_cost_little_and_hurt_nobody() {
    // The server raises its own limit in the same way.
    rlimit::increase_nofile_limit(4_096).unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path());
    let client = server.client();
    for topic in ["large", "t"] {
        client.admin().create_topic(topic, None, v1::TopicSettings::default()).await.unwrap();
    }
    let producer = client.producer(ProducerSettings::default());
    let large = producer.topic("large").await.unwrap();
    for _ in 0..32_000 {
        drop(large.send(RecordRef::new(&[b'x'; 1_000])).await.unwrap());
    }
    soon("the record is stored", producer.close()).await.unwrap();
    // After the restart nothing of the topic is in memory, so that each reader reads its own copy.
    assert!(server.terminate().success());
    server.restart();
    let client = server.client();
    let producer = client.producer(ProducerSettings::default());
    let open = || value_of(&server, "millstream_connections");
    let (before, begun) = (server.resident_bytes(), open());

    let channel = || async {
        let channel = Channel::from_shared(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
        TopicsClient::new(channel.clone()).list_topics(v1::ListTopicsRequest {}).await.unwrap();
        channel
    };
    let idle: Vec<Channel> = stream::repeat_with(channel).take(IDLE_CONNECTIONS).buffer_unordered(50).collect().await;
    assert!(open() >= begun + idle.len() as f64, "only {} connections are open", open());
    let with_idle = server.resident_bytes();
    let grown = with_idle.saturating_sub(before);
    println!("{} idle connections: {} bytes each", idle.len(), grown / idle.len() as u64);
    assert!(grown < IDLE_BYTES_MAX, "{grown} bytes for {} idle connections", idle.len());

    let slow = || async {
        let mut log = LogClient::new(channel().await).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let from = Some(v1::Position { at: Some(At::Earliest(true)) });
        let request = v1::ConsumeRequest { topic: "large".into(), from, ..Default::default() };
        log.consume(request).await.unwrap().into_inner()
    };
    let slow: Vec<_> = stream::repeat_with(slow).take(SLOW_READERS).buffer_unordered(10).collect().await;
    let sent = || value_of(&server, "millstream_topic_bytes_out_total{topic=\"large\"}");
    // This is more than the windows take, so the server has to buffer what exceeds them.
    wait_until("the slow readers are sent as much as they accept", || sent() > (slow.len() * (3 << 20)) as f64).await;

    let reading = tokio::spawn({
        let settings = ConsumerSettings::topic("t").from(Position::Earliest);
        let mut consumer = client.consumer(settings).unwrap();
        async move {
            let mut values = Vec::new();
            while values.len() < 5_000 {
                values.push(consumer.next().await.unwrap().unwrap().value.unwrap());
            }
            values
        }
    });
    let values: Vec<String> = (0..5_000).map(|number| format!("{number:0200}")).collect();
    let mut deliveries = Vec::new();
    for value in &values {
        deliveries.push(
            soon("the producer's buffer has room", producer.send(ProducerRecord::new("t", value.clone())))
                .await
                .unwrap(),
        );
    }
    for delivery in deliveries {
        soon("the record is acknowledged", delivery).await.unwrap();
    }
    let read = soon("all records are read", reading).await.unwrap();
    assert!(read == values, "the records that were read are not those that were acknowledged");

    let grown = server.resident_bytes().saturating_sub(with_idle);
    println!("{} slow readers: {} KB each", slow.len(), grown / slow.len() as u64 / 1024);
    assert!(grown < SLOW_BYTES_MAX, "{grown} bytes for {} slow readers", slow.len());
    drop((idle, slow));
    wait_until("the other connections are closed", || open() <= begun + 2.0).await;
}

fn value_of(server: &Server, series: &str) -> f64 {
    value(&server.metrics(), series).unwrap_or(0.0)
}

#[test]
fn a_quota_that_makes_no_sense_keeps_the_server_from_starting() {
    let data = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (
            &["--quota", "a=produce:0"][..],
            "produce: \"0\" is not a number of bytes per second: write a whole number, 1 or more",
        ),
        (&["--quota", "a=produce:1,produce:2"], "twice"),
        (&["--quota", "a=produce:1", "--quota", "a=fetch:1"], "client a is given twice"),
        (&["--produce-bytes-per-s-max", "0"], "write a whole number, 1 or more"),
        (&["--connections-max", "0"], "write a whole number, 1 or more"),
    ] {
        let mut command = std::process::Command::new(millstream_tests::server::millstream());
        command
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--kafka-address", "none", "--data"])
            .arg(data.path());
        let ran = millstream_tests::server::run(command.args(arguments), "");
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
}
