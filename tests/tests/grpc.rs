//! The gRPC contract, call by call, through plain generated clients as they exist for any language.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use futures::StreamExt;
use millstream_api::v1::groups_client::GroupsClient;
use millstream_api::v1::log_client::LogClient;
use millstream_api::v1::member_request::Message as ToServer;
use millstream_api::v1::member_response::Message as FromServer;
use millstream_api::v1::position::At;
use millstream_api::v1::topics_client::TopicsClient;
use millstream_api::v1::{ErrorCode, Format};
use millstream_api::{ERROR_TRAILER, MESSAGE_BYTES_MAX, v1};
use millstream_record::{BatchBuilder, Compression, Limits, Record, RecordBatch, split_batches};
use millstream_tests::measure::process::settled;
use millstream_tests::server::{Server, run};
use millstream_tests::target_dir;
use tempfile::TempDir;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::groups::{Member, join};

/// Time after which a test that hangs is ended. It is no statement about speed.
const HANGS: Duration = Duration::from_secs(40);

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, future).await.unwrap_or_else(|_| panic!("the test hangs: {what}"))
}

pub(super) struct Served {
    pub(super) server: Server,
    pub(super) channel: Channel,
    pub(super) _data: TempDir,
}

impl Served {
    pub(super) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path());
        let channel = connect(&server).await;
        Self { server, channel, _data: data }
    }

    pub(super) async fn with_topic(partitions: u32) -> Self {
        let served = Self::start().await;
        served.topic("t", partitions).await;
        served
    }

    pub(super) async fn topic(&self, name: &str, partitions: u32) {
        let request = v1::CreateTopicRequest { name: name.into(), partitions: Some(partitions), ..Default::default() };
        TopicsClient::new(self.channel.clone()).create_topic(request).await.unwrap();
    }

    pub(super) fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn groups(&self) -> GroupsClient<Channel> {
        GroupsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Writes one batch with a record for each timestamp, and returns its base offset.
    pub(super) async fn produce(&self, partition: u32, timestamps: &[i64]) -> u64 {
        let answer = self.log().produce(batch_to(partition, batch(timestamps))).await.unwrap().into_inner();
        answer.appended[0].base_offset
    }

    pub(super) async fn end(&self, partition: u32) -> u64 {
        self.offsets(&[partition], At::Latest(true)).await[0]
    }

    pub(super) async fn offsets(&self, partitions: &[u32], at: At) -> Vec<u64> {
        let position = Some(v1::Position { at: Some(at) });
        let request = v1::ListOffsetsRequest { topic: "t".into(), partitions: partitions.into(), at: position };
        let offsets = self.log().list_offsets(request).await.unwrap().into_inner().offsets;
        offsets.into_iter().map(|of| of.offset).collect()
    }

    pub(super) async fn describe_group(&self, name: &str) -> v1::DescribeGroupResponse {
        let request = v1::DescribeGroupRequest { name: name.into() };
        self.groups().describe_group(request).await.unwrap().into_inner()
    }

    /// Returns the committed offset of each partition of `t` that has one.
    pub(super) async fn committed(&self, group: &str) -> BTreeMap<u32, u64> {
        let offsets = self.describe_group(group).await.offsets.into_iter();
        offsets.filter_map(|of| Some((of.partition, of.committed_offset?))).collect()
    }
}

pub(super) async fn connect(server: &Server) -> Channel {
    Channel::from_shared(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap()
}

/// Builds a batch with a record for each timestamp, whose value is the timestamp too.
pub(super) fn batch(timestamps: &[i64]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for timestamp in timestamps {
        builder.push(*timestamp, None, Some(timestamp.to_string().as_bytes()), []);
    }
    builder.finish().unwrap().into_bytes()
}

pub(super) fn batch_to(partition: u32, batches: Bytes) -> v1::ProduceRequest {
    v1::ProduceRequest { topic: "t".into(), partition: Some(partition), batches, records: Vec::new() }
}

pub(super) fn values(records: &[v1::Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(record.value.as_deref().unwrap()).unwrap()).collect()
}

/// Returns the error code in a status's trailer.
pub(super) fn code(status: &Status) -> Option<ErrorCode> {
    ErrorCode::from_str_name(status.metadata().get(ERROR_TRAILER)?.to_str().ok()?)
}

// ---- health and reflection

/// Messages in their wire format, for services whose generated types the tests do not have.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn raw(channel: &Channel) -> tonic::client::Grpc<Channel> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_serving() {
    let served = Served::start().await;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = raw(&served.channel).await.unary(Request::new(Bytes::new()), path, Raw).await.unwrap();
    // HealthCheckResponse { status: SERVING }
    assert_eq!(answer.into_inner().as_ref(), [0x08, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service_and_describes_it() {
    let served = Served::start().await;
    let ask = async |request: Vec<u8>| {
        let path = PathAndQuery::from_static("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        let requests = Request::new(futures::stream::iter([Bytes::from(request)]));
        let answers = raw(&served.channel).await.streaming(requests, path, Raw).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
        String::from_utf8_lossy(&answers.concat()).into_owned()
    };
    // ServerReflectionRequest { list_services: "" }
    let listed = ask(vec![0x3a, 0]).await;
    for service in ["Topics", "Log", "Groups", "Modules", "Pipelines", "State"] {
        let service = format!("millstream.v1.{service}");
        assert!(listed.contains(&service), "{service} is not in {listed}");
        // ServerReflectionRequest { file_containing_symbol: service }
        let request = [&[0x22, u8::try_from(service.len()).unwrap()], service.as_bytes()].concat();
        let described = ask(request).await;
        assert!(described.contains("millstream/v1/"), "{service}: {described}");
    }
    assert!(listed.contains("grpc.health.v1.Health"), "{listed}");
}

// ---- producing

#[tokio::test(flavor = "multi_thread")]
async fn a_produce_stream_is_answered_in_order_and_goes_on_after_a_refusal() {
    const REQUESTS: usize = 1_000;
    let served = Served::with_topic(2).await;
    let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
    // All requests are sent before the first answer is read.
    for number in 0..REQUESTS {
        let request = match number {
            500 => batch_to(9, batch(&[1])),
            501 => {
                let mut broken = batch(&[1]).to_vec();
                *broken.last_mut().unwrap() ^= 1;
                batch_to(0, broken.into())
            }
            502 => v1::ProduceRequest { topic: "nope".into(), ..batch_to(0, batch(&[1])) },
            _ => batch_to(number as u32 % 2, batch(&[number as i64, 0])),
        };
        sender.send(request).unwrap();
    }
    drop(sender);
    let answers = served.log().produce_stream(UnboundedReceiverStream::new(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = soon("answers", answers.map(Result::unwrap).collect()).await;
    assert_eq!(answers.len(), REQUESTS);
    let mut next = [0, 0];
    for (number, answer) in answers.iter().enumerate() {
        let refused = answer.error.as_ref().map(v1::Error::code);
        let expected = match number {
            500 => Some(ErrorCode::UnknownPartition),
            501 => Some(ErrorCode::InvalidBatch),
            502 => Some(ErrorCode::UnknownTopic),
            _ => None,
        };
        assert_eq!(refused, expected, "{number}: {answer:?}");
        if refused.is_some() {
            assert_eq!(answer.appended, []);
            continue;
        }
        let partition = number as u32 % 2;
        let base_offset = next[partition as usize];
        assert_eq!(answer.appended, [v1::Appended { partition, base_offset, record_count: 2 }], "{number}");
        next[partition as usize] += 2;
    }
    assert_eq!([served.end(0).await, served.end(1).await], next);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_records_go_to_the_partition_of_their_key() {
    let served = Served::with_topic(4).await;
    let record = |key: Option<&str>, value: &str| v1::Record {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..Default::default()
    };
    let keys = ["LAX", "JFK", "LIS", "OPO", "DTW", "LAS"];
    let records = keys.iter().map(|key| record(Some(key), key)).chain([record(None, "a"), record(None, "b")]);
    let request = v1::ProduceRequest { topic: "t".into(), records: records.collect(), ..Default::default() };
    let appended = served.log().produce(request).await.unwrap().into_inner().appended;
    assert_eq!(appended.iter().map(|appended| appended.record_count).sum::<u32>(), 8);
    let mut keyless = BTreeSet::new();
    for partition in 0..4 {
        let read = fetch(&served, partition, 0, Format::Records).await;
        for record in read.records {
            match record.key {
                Some(key) => assert_eq!(millstream_record::partition_for_key(&key, 4), partition),
                None => drop(keyless.insert(partition)),
            }
        }
    }
    assert_eq!(keyless.len(), 1, "records without a key must go to the same partition");
}

async fn fetch(served: &Served, partition: u32, offset: u64, format: Format) -> v1::PartitionRecords {
    let partition = v1::FetchPartition { topic: "t".into(), partition, offset, ..Default::default() };
    let request = v1::FetchRequest { partitions: vec![partition], format: format as i32, ..Default::default() };
    let mut partitions = served.log().fetch(request).await.unwrap().into_inner().partitions;
    assert_eq!(partitions.len(), 1);
    let read = partitions.remove(0);
    assert_eq!(read.error, None);
    read
}

fn decode(batches: &[Bytes]) -> Vec<Record> {
    let mut decoded = Vec::new();
    for batch in batches.iter().cloned().flat_map(split_batches) {
        // Checks lengths and checksums like a consumer.
        let batch = RecordBatch::check(batch.unwrap().into_bytes(), &Limits::default()).unwrap();
        let records = batch.records(&Limits::default()).unwrap();
        decoded.extend(records.iter().map(|view| records.to_record(&view.unwrap())));
    }
    decoded
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_records_and_batches_are_one_log_in_both_directions() {
    let served = Served::with_topic(1).await;
    let header = |name: &str, value: Option<&'static str>| v1::Header {
        name: name.into(),
        value: value.map(|value| value.into()),
    };
    let plain = vec![
        v1::Record {
            offset: 77,
            timestamp_ms: Some(5),
            key: Some("k".into()),
            value: Some("v".into()),
            headers: vec![header("h", Some("1")), header("h", None), header("", Some(""))],
        },
        v1::Record { timestamp_ms: Some(3), key: Some("".into()), ..Default::default() },
        v1::Record { timestamp_ms: Some(1), value: Some("".into()), ..Default::default() },
    ];
    let request = v1::ProduceRequest { topic: "t".into(), records: plain.clone(), ..Default::default() };
    served.log().produce(request).await.unwrap();
    let codecs = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for codec in codecs {
        let mut builder = BatchBuilder::new(codec);
        for record in &plain {
            let headers = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
            builder.push(record.timestamp_ms.unwrap(), record.key.as_deref(), record.value.as_deref(), headers);
        }
        let batches = builder.finish().unwrap().into_bytes();
        served.log().produce(batch_to(0, batches)).await.unwrap();
    }

    let count = plain.len() * (codecs.len() + 1);
    let expected: Vec<v1::Record> =
        (0..count).map(|offset| v1::Record { offset: offset as u64, ..plain[offset % plain.len()].clone() }).collect();
    let as_records = fetch(&served, 0, 0, Format::Records).await;
    assert_eq!(as_records.records, expected);
    assert_eq!((as_records.next_offset, as_records.log_end_offset), (count as u64, count as u64));
    let as_batches = fetch(&served, 0, 0, Format::Batches).await;
    assert_eq!(as_batches.records, []);
    assert_eq!(as_batches.next_offset, count as u64);
    let decoded = decode(&as_batches.batches).into_iter().map(|record| v1::Record {
        offset: record.offset as u64,
        timestamp_ms: Some(record.timestamp_ms),
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().map(|of| v1::Header { name: of.name, value: of.value }).collect(),
    });
    assert_eq!(decoded.collect::<Vec<_>>(), expected);
    // In the middle of a batch, plain records begin at the requested offset, while batches may begin before it.
    assert_eq!(fetch(&served, 0, 4, Format::Records).await.records[0], expected[4]);
    assert!(decode(&fetch(&served, 0, 4, Format::Batches).await.batches)[0].offset <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_a_timestamp_gets_the_servers_clock() {
    let served = Served::with_topic(1).await;
    let now_ms = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let before = now_ms();
    let request = v1::ProduceRequest { topic: "t".into(), records: vec![v1::Record::default()], ..Default::default() };
    served.log().produce(request).await.unwrap();
    let read = fetch(&served, 0, 0, Format::Records).await;
    assert!((before..=now_ms()).contains(&read.records[0].timestamp_ms.unwrap()));
}

// ---- fetching

fn fetch_request(partitions: &[u32]) -> v1::FetchRequest {
    let partitions = partitions.iter();
    let partitions = partitions.map(|&partition| v1::FetchPartition {
        topic: "t".into(),
        partition,
        offset: 0,
        ..Default::default()
    });
    v1::FetchRequest { partitions: partitions.collect(), format: Format::Records as i32, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_is_answered_when_records_come() {
    let served = Served::with_topic(2).await;
    // Without a wait, the fetch is answered at once.
    let answer = served.log().fetch(fetch_request(&[0, 1])).await.unwrap().into_inner().partitions;
    assert_eq!(answer.iter().map(|of| (of.records.len(), of.next_offset)).collect::<Vec<_>>(), [(0, 0), (0, 0)]);

    // The wait is longer than the limit of this test.
    let request = v1::FetchRequest { max_wait_ms: 60_000, ..fetch_request(&[0, 1]) };
    let mut log = served.log();
    let polling = tokio::spawn(async move { log.fetch(request).await.unwrap().into_inner().partitions });
    served.produce(1, &[7]).await;
    let answer = soon("a fetch with data", polling).await.unwrap();
    assert_eq!((answer[0].records.len(), values(&answer[1].records)), (0, vec!["7"]));

    // One batch is less than `min_bytes`, so the fetch waits for the second.
    let min_bytes = batch(&[7]).len() as u32 + 1;
    let request = v1::FetchRequest { max_wait_ms: 60_000, min_bytes, ..fetch_request(&[1]) };
    let mut log = served.log();
    let polling = tokio::spawn(async move { log.fetch(request).await.unwrap().into_inner().partitions });
    served.produce(1, &[8]).await;
    let answer = soon("a fetch with enough data", polling).await.unwrap();
    assert_eq!(values(&answer[0].records), ["7", "8"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_at_its_time_limit_with_what_there_is() {
    let served = Served::with_topic(1).await;
    let begun = Instant::now();
    let request = v1::FetchRequest { max_wait_ms: 150, ..fetch_request(&[0]) };
    let answer = soon("an empty fetch", served.log().fetch(request)).await.unwrap().into_inner().partitions;
    assert!(begun.elapsed() >= Duration::from_millis(150), "the fetch did not wait");
    assert_eq!((answer[0].records.len(), answer[0].next_offset), (0, 0));
    served.produce(0, &[7]).await;
    let request = v1::FetchRequest { max_wait_ms: 50, min_bytes: 1 << 20, ..fetch_request(&[0]) };
    let answer = soon("a short fetch", served.log().fetch(request)).await.unwrap().into_inner().partitions;
    assert_eq!(values(&answer[0].records), ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_bytes_bounds_an_answer_but_one_batch_always_comes() {
    let served = Served::with_topic(2).await;
    for number in 0..10 {
        served.produce(0, &[number]).await;
        served.produce(1, &[number]).await;
    }
    let size = batch(&[0]).len() as u32;
    let counts = async |max_bytes: u32| {
        let request = v1::FetchRequest { max_bytes, ..fetch_request(&[0, 1]) };
        let answer = served.log().fetch(request).await.unwrap().into_inner().partitions;
        let next = answer.iter().map(|of| of.next_offset).collect::<Vec<_>>();
        assert_eq!(next, answer.iter().map(|of| of.records.len() as u64).collect::<Vec<_>>());
        next.iter().sum::<u64>()
    };
    assert_eq!(counts(1).await, 1);
    assert_eq!(counts(3 * size).await, 3);
    assert_eq!(counts(3 * size + 1).await, 3);
    assert_eq!(counts(13 * size).await, 13);
    assert_eq!(counts(0).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_by_position_and_time() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[100, 200]).await;
    served.produce(0, &[300, 250, 400]).await;
    served.produce(0, &[500]).await;
    let at = async |at: At| served.offsets(&[], at).await;
    assert_eq!(at(At::Earliest(true)).await, [0, 0]);
    assert_eq!(at(At::Latest(true)).await, [6, 0]);
    assert_eq!(at(At::Offset(0)).await, [0, 0]);
    for (time, offset) in [(i64::MIN, 0), (100, 0), (101, 1), (201, 2), (260, 2), (301, 4), (500, 5), (501, 6)] {
        assert_eq!(at(At::TimestampMs(time)).await, [offset, 0], "at {time}");
    }
    assert_eq!(served.offsets(&[1], At::Latest(true)).await, [0]);
}

// ---- consuming

fn consume_request(from: Option<At>, until_end: bool) -> v1::ConsumeRequest {
    let from = from.map(|at| v1::Position { at: Some(at) });
    v1::ConsumeRequest { topic: "t".into(), from, until_end, format: Format::Records as i32, ..Default::default() }
}

async fn consume(served: &Served, request: v1::ConsumeRequest) -> BTreeMap<u32, Vec<String>> {
    let mut answers = served.log().consume(request).await.unwrap().into_inner();
    let mut read = BTreeMap::<u32, Vec<String>>::new();
    while let Some(answer) = soon("a stream until the end", answers.message()).await.unwrap() {
        for of in answer.partitions {
            assert_eq!(of.error, None);
            read.entry(of.partition).or_default().extend(values(&of.records).into_iter().map(str::to_owned));
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told_and_ends_at_the_end() {
    let served = Served::with_topic(2).await;
    for number in 0..5 {
        served.produce(0, &[number * 10, number * 10 + 1]).await;
    }
    served.produce(1, &[20, 30]).await;
    let read = async |from: Option<At>| {
        let mut read = consume(&served, consume_request(from, true)).await;
        [0, 1].map(|partition| read.remove(&partition).unwrap_or_default())
    };
    let all = ["0", "1", "10", "11", "20", "21", "30", "31", "40", "41"];
    assert_eq!(read(Some(At::Earliest(true))).await, [all.to_vec(), vec!["20", "30"]]);
    assert_eq!(read(Some(At::Latest(true))).await, [[""; 0], []]);
    assert_eq!(read(None).await, [[""; 0], []]);
    // A stream can also begin in the middle of a batch.
    assert_eq!(read(Some(At::Offset(1))).await, [all[1..].to_vec(), vec!["30"]]);
    assert_eq!(read(Some(At::TimestampMs(21))).await, [all[5..].to_vec(), vec!["30"]]);
    assert_eq!(read(Some(At::TimestampMs(1_000))).await, [[""; 0], []]);
    // A single partition, with answers of one batch each.
    let request =
        v1::ConsumeRequest { partitions: vec![0], max_bytes: 1, ..consume_request(Some(At::Offset(3)), true) };
    assert_eq!(
        consume(&served, request).await,
        BTreeMap::from([(0, all[3..].iter().map(|v| v.to_string()).collect())])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_with_what_is_written() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[1]).await;
    let latest = served.log().consume(consume_request(None, false)).await.unwrap().into_inner();
    let earliest = served.log().consume(consume_request(Some(At::Earliest(true)), false)).await.unwrap().into_inner();
    // Records written after a stream began are part of it.
    served.produce(0, &[2]).await;
    served.produce(1, &[3]).await;
    for (mut answers, expected) in [(latest, vec!["2", "3"]), (earliest, vec!["1", "2", "3"])] {
        let mut read = Vec::new();
        while read.len() < expected.len() {
            let answer = soon("a live stream", answers.message()).await.unwrap().expect("the stream does not end");
            for of in answer.partitions {
                read.extend(values(&of.records).into_iter().map(str::to_owned));
            }
        }
        read.sort();
        assert_eq!(read, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_learns_that_its_topic_is_gone() {
    let served = Served::with_topic(1).await;
    let mut answers = served.log().consume(consume_request(None, false)).await.unwrap().into_inner();
    let request = v1::DeleteTopicRequest { name: "t".into() };
    TopicsClient::new(served.channel.clone()).delete_topic(request).await.unwrap();
    let answer =
        soon("the end of a deleted topic", answers.message()).await.unwrap().expect("the error arrives before the end");
    assert_eq!(answer.partitions[0].error.as_ref().map(v1::Error::code), Some(ErrorCode::UnknownTopic));
    assert_eq!(soon("the end", answers.message()).await.unwrap(), None);
}

// ---- flow control

/// Returns the peak resident memory of a process, in bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_read_hold_up_nobody_and_cost_a_bounded_memory() {
    const BATCHES: u64 = 400;
    /// Consists of recent batches for readers at the tail (64 MiB), a member's largest credit (32 MiB), windows and
    /// answers that wait for a slow stream, and what the allocator keeps when the disk is slow. 130 to 168 MB were
    /// observed. The limit is less than half of the data that passes through.
    const GROWTH_BYTES_MAX: u64 = 190 << 20;
    let served = Served::with_topic(1).await;
    let before = peak_bytes(served.server.pid());
    // Each reader has its own connection, and does not read from it.
    let (stalled_connection, member_connection) = (connect(&served.server).await, connect(&served.server).await);
    let mut stalled = LogClient::new(stalled_connection).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request =
        v1::ConsumeRequest { format: Format::Batches as i32, ..consume_request(Some(At::Earliest(true)), false) };
    let stalled = stalled.consume(request.clone()).await.unwrap().into_inner();
    let member = v1::Join { format: Format::Batches as i32, ..join("g") };
    let member = Member::join(&member_connection, member).await.unwrap();
    member.say(ToServer::Credit(v1::Credit { bytes: u32::MAX }));

    let mut fast = served.log().consume(request).await.unwrap().into_inner();
    let writer = served.log();
    let writing = tokio::spawn(async move {
        // The batch is built only once, because the client's work is not what is measured.
        let value = vec![b'x'; 1_000_000];
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1, None, Some(&value), []);
        let batch = builder.finish().unwrap().into_bytes();
        for _ in 0..BATCHES {
            writer.clone().produce(batch_to(0, batch.clone())).await.unwrap();
        }
    });
    let (mut next, mut read_bytes) = (0, 0);
    while next < BATCHES {
        let answer = soon("the fast reader", fast.message()).await.unwrap().expect("the stream does not end");
        for of in answer.partitions {
            assert_eq!(of.error, None);
            read_bytes += of.batches.iter().map(Bytes::len).sum::<usize>();
            next = of.next_offset;
        }
    }
    writing.await.unwrap();
    assert!(read_bytes as u64 >= BATCHES * 1_000_000, "{read_bytes}");
    let grown = peak_bytes(served.server.pid()) - before;
    assert!(grown < GROWTH_BYTES_MAX, "the server grew by {grown} bytes");
    // Both readers are still connected, and can continue to read.
    let mut stalled = stalled;
    let mut next = 0;
    while next < BATCHES {
        let answer = soon("the stalled reader", stalled.message()).await.unwrap().expect("the stream does not end");
        next = answer.partitions[0].next_offset;
    }
    assert_eq!(served.describe_group("g").await.members.len(), 1);
    drop(member);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_read_makes_the_server_inflate_no_more_than_an_answer() {
    const PARTITIONS: u32 = 32;
    /// Consists of an answer of plain records (16 MiB), the batches that are decompressed for it (32 MiB), what waits
    /// in the stream, and what the allocator keeps of that. Without a bound, the credit would allow to decompress 256
    /// MiB in each round.
    const GROWTH_BYTES_MAX: u64 = 160 << 20;
    let served = Served::with_topic(PARTITIONS).await;
    let value = vec![b'x'; 8 << 20];
    let mut builder = BatchBuilder::new(Compression::Zstd);
    builder.push(1, None, Some(&value), []);
    let batch = builder.finish().unwrap().into_bytes();
    assert!(batch.len() < 10_000);
    for _ in 0..4 {
        for partition in 0..PARTITIONS {
            served.log().produce(batch_to(partition, batch.clone())).await.unwrap();
        }
    }
    let before = peak_bytes(served.server.pid());
    let connection = connect(&served.server).await;
    let mut member = Member::join(&connection, join("g")).await.unwrap();
    member.say(ToServer::Credit(v1::Credit { bytes: u32::MAX }));
    member.assigned().await;
    // Everything that is sent first waits for the member to read it.
    assert!(settled(served.server.pid()).await, "the server does not become idle");
    let grown = peak_bytes(served.server.pid()) - before;
    assert!(grown < GROWTH_BYTES_MAX, "the server grew by {grown} bytes");
    // The member is still connected, and receives every record once it reads and gives credit.
    let mut left = 4 * PARTITIONS as usize;
    while left > 0 {
        let FromServer::Records(records) = member.hear().await else { continue };
        assert_eq!(records.error, None);
        left -= records.records.len();
        member.say(ToServer::Credit(v1::Credit { bytes: 8 << 20 }));
    }
}

// ---- the client's examples

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_examples_work() {
    let served = Served::start().await;
    let example = |name: &str, arguments: &[&str]| {
        let program = target_dir().join("examples").join(name);
        assert!(program.exists(), "{} does not exist: build it with `cargo build --examples`", program.display());
        run(Command::new(program).env("MILLSTREAM_SERVER", &served.server.grpc).args(arguments), "")
    };
    let said = example("produce", &["greetings", "20"]).ok();
    assert!(said.starts_with("created topic greetings\n"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("partition ")).count(), 20, "{said}");
    for arguments in [&["greetings"][..], &["greetings", "readers"]] {
        let read = example("consume", arguments).ok();
        assert!(read.ends_with("20 records\n"), "{read}");
        for number in 0..20 {
            assert!(read.contains(&format!("key-{} = hello {number}\n", number % 5)), "{number}: {read}");
        }
    }
    // The group has read all records so far, so only new records are returned.
    example("produce", &["greetings", "3"]).ok();
    assert!(example("consume", &["greetings", "readers"]).ok().ends_with("3 records\n"));
}
