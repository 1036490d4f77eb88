//! Kafka's protocol: every version of every API is answered, batches are stored as they came, and nothing that a client
//! sends harms others.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, BrokerId, CreateTopicsRequest, FetchRequest, FetchResponse,
    InitProducerIdRequest, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, ProduceRequest, ProduceResponse, TopicName,
};
use kafka_protocol::protocol::{Request, StrBytes};
use millstream_record::{BatchBuilder, Compression, Limits, split_batches};
use millstream_tests::kafka_client::Client;
use millstream_tests::server::Server;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::kafka_transactions;

/// A server that serves Kafka's protocol.
pub(crate) fn started() -> (Server, TempDir) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_with(data.path(), &["--kafka-address", "127.0.0.1:0"]);
    (server, data)
}

pub(crate) fn text(name: &'static str) -> StrBytes {
    StrBytes::from_static_str(name)
}

pub(crate) fn topic(name: &'static str) -> TopicName {
    TopicName(text(name))
}

pub(crate) fn batch(timestamp_ms: i64, value: &str) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(timestamp_ms, Some(b"k"), Some(value.as_bytes()), [("h", Some(&b"1"[..])), ("h", None)]);
    builder.finish().unwrap().into_bytes()
}

pub(crate) fn produce_request(name: &'static str, partition: i32, records: Bytes) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_index(partition).with_records(Some(records));
    let data = TopicProduceData::default().with_name(topic(name)).with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![data])
}

pub(crate) fn fetch_request(name: &'static str, offset: i64) -> FetchRequest {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1 << 20);
    let wanted = FetchTopic::default().with_topic(topic(name)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(vec![wanted])
}

pub(crate) fn list_request(name: &'static str, timestamp: i64) -> ListOffsetsRequest {
    let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
    let wanted = ListOffsetsTopic::default().with_name(topic(name)).with_partitions(vec![partition]);
    ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![wanted])
}

fn versions_request(version: i16) -> ApiVersionsRequest {
    match version {
        0..3 => ApiVersionsRequest::default(),
        _ => ApiVersionsRequest::default()
            .with_client_software_name(text("test"))
            .with_client_software_version(text("1.0")),
    }
}

#[test]
fn every_version_that_is_advertised_is_answered() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let mut tried = 0;
    let advertised = client.call(0, &versions_request(0)).api_keys;
    for api in &advertised {
        // Version 0 to 2 of Produce are advertised for the sake of librdkafka, and no client sends them.
        let from = if api.api_key == ProduceRequest::KEY { 3 } else { api.min_version };
        for version in from..=api.max_version {
            tried += 1;
            match api.api_key {
                ApiVersionsRequest::KEY => {
                    let answer: ApiVersionsResponse = client.call(version, &versions_request(version));
                    assert_eq!((answer.error_code, answer.api_keys.len()), (0, advertised.len()));
                }
                MetadataRequest::KEY => {
                    let wanted = MetadataRequestTopic::default().with_name(Some(topic("t")));
                    let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
                    let answer: MetadataResponse = client.call(version, &request);
                    let found = &answer.topics[0];
                    assert_eq!((found.error_code, found.partitions.len(), answer.brokers[0].node_id.0), (0, 1, 0));
                    assert_eq!(format!("127.0.0.1:{}", answer.brokers[0].port), server.kafka());
                }
                ProduceRequest::KEY => {
                    create(&mut client, "t");
                    let value = format!("version {version}");
                    let mut request = produce_request("t", 0, batch(i64::from(version), &value));
                    if version >= 13 {
                        request.topic_data[0].name = TopicName::default();
                        request.topic_data[0].topic_id = uuid(&mut client, "t");
                    }
                    let answer: ProduceResponse = client.call(version, &request);
                    let stored = &answer.responses[0].partition_responses[0];
                    assert_eq!((stored.error_code, stored.base_offset), (0, i64::from(version) - 3));
                }
                FetchRequest::KEY => {
                    create(&mut client, "f");
                    if version == from {
                        client.call(9, &produce_request("f", 0, batch(7, "fetched")));
                    }
                    let mut request = fetch_request("f", 0);
                    if version >= 13 {
                        request.topics[0].topic = TopicName::default();
                        request.topics[0].topic_id = uuid(&mut client, "f");
                        request.replica_id = BrokerId::default();
                    }
                    if version >= 15 {
                        request.replica_id = BrokerId(-1);
                    }
                    let answer: FetchResponse = client.call(version, &request);
                    let read = &answer.responses[0].partitions[0];
                    assert_eq!((read.error_code, read.high_watermark), (0, 1), "version {version}");
                    assert_eq!(values(read.records.clone().unwrap()), ["fetched"]);
                }
                ListOffsetsRequest::KEY => {
                    create(&mut client, "l");
                    if version == from {
                        client.call(9, &produce_request("l", 0, batch(50, "first")));
                        client.call(9, &produce_request("l", 0, batch(60, "second")));
                    }
                    for (timestamp, offset, found_ms) in
                        [(-2, 0, -1), (-1, 2, -1), (51, 1, 60), (50, 0, 50), (61, -1, -1), (-3, 1, 60)]
                    {
                        let answer: ListOffsetsResponse = client.call(version, &list_request("l", timestamp));
                        let found = &answer.topics[0].partitions[0];
                        assert_eq!(
                            (found.error_code, found.offset, found.timestamp),
                            (0, offset, found_ms),
                            "version {version}, {timestamp}"
                        );
                    }
                }
                InitProducerIdRequest::KEY => {
                    let request = InitProducerIdRequest::default().with_transaction_timeout_ms(60_000);
                    let request = request.with_transactional_id(None);
                    let answer: InitProducerIdResponse = client.call(version, &request);
                    assert!(
                        answer.error_code == 0 && answer.producer_id.0 >= 0 && answer.producer_epoch == 0,
                        "{answer:?}"
                    );
                }
                other => {
                    let unique = format!("version-{version}-of-{other}");
                    kafka_transactions::answers(&mut client, other, version, &unique);
                }
            }
        }
    }
    assert!(tried > 100, "{tried} versions");
}

/// Returns the UUID of a topic.
fn uuid(client: &mut Client, name: &'static str) -> uuid::Uuid {
    let wanted = MetadataRequestTopic::default().with_name(Some(topic(name)));
    client.call(12, &MetadataRequest::default().with_topics(Some(vec![wanted]))).topics[0].topic_id
}

/// Asks for a topic, which creates it.
pub(crate) fn create(client: &mut Client, name: &'static str) {
    let wanted = MetadataRequestTopic::default().with_name(Some(topic(name)));
    client.call(9, &MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(true));
}

pub(crate) fn values(records: Bytes) -> Vec<String> {
    let mut values = Vec::new();
    for batch in split_batches(records) {
        for record in &batch.unwrap().records(&Limits::default()).unwrap() {
            values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
        }
    }
    values
}

#[test]
fn each_partition_of_a_fetch_has_a_limit_of_its_own() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let wanted = CreatableTopic::default().with_name(topic("two")).with_num_partitions(2).with_replication_factor(1);
    client.call(5, &CreateTopicsRequest::default().with_topics(vec![wanted]));
    let bytes = batch(0, "0").len() as i32;
    for (partition, value) in [(0, "0"), (0, "1"), (0, "2"), (1, "3"), (1, "4"), (1, "5")] {
        client.call(9, &produce_request("two", partition, batch(0, value)));
    }
    let mut read = |partition_max_bytes, max_bytes| {
        let mut request = fetch_request("two", 0).with_max_bytes(max_bytes);
        let first = request.topics[0].partitions[0].clone().with_partition_max_bytes(partition_max_bytes);
        request.topics[0].partitions = vec![first.clone().with_partition(1), first];
        let answer = client.call(12, &request);
        let partitions = answer.responses[0].partitions.iter();
        partitions.map(|partition| values(partition.records.clone().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(read(2 * bytes, 1 << 20), [["3", "4"], ["0", "1"]]);
    assert_eq!(read(2 * bytes, 3 * bytes), [vec!["3", "4"], vec!["0"]]);
    // The first batch comes, however small the limit is.
    assert_eq!(read(0, 1 << 20), [vec!["3"], vec![]]);
    assert_eq!(read(1 << 20, 0), [vec!["3"], vec![]]);
}

#[test]
fn a_fetch_that_names_all_partitions_may_have_any_session_id() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    client.call(9, &produce_request("t", 0, batch(0, "a")));
    for (session_id, epoch, code) in
        [(0, -1, 0), (0, 0, 0), (-1, -1, 0), (7, 0, 0), (7, 1, ResponseError::FetchSessionIdNotFound.code())]
    {
        let request = fetch_request("t", 0).with_session_id(session_id).with_session_epoch(epoch);
        let answer = client.call(12, &request);
        assert_eq!((answer.error_code, answer.session_id), (code, 0), "session {session_id}, epoch {epoch}");
        assert_eq!(answer.responses.len(), usize::from(code == 0));
    }
}

#[test]
fn a_topic_is_found_by_its_id_whether_its_name_is_null_or_empty() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    let id = uuid(&mut client, "t");
    // Java's client sends an empty name, librdkafka a null one.
    for name in [Some(TopicName::default()), None] {
        let wanted = MetadataRequestTopic::default().with_name(name).with_topic_id(id);
        let answer = client.call(12, &MetadataRequest::default().with_topics(Some(vec![wanted])));
        let found = &answer.topics[0];
        assert_eq!((found.error_code, found.name.clone(), found.partitions.len()), (0, Some(topic("t")), 1));
    }
}

#[test]
fn topics_of_kafka_itself_are_not_created_by_a_question() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let wanted = MetadataRequestTopic::default().with_name(Some(topic("__consumer_offsets")));
    let request = MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(true);
    for _ in 0..2 {
        let code = client.call(9, &request).topics[0].error_code;
        assert_eq!(code, ResponseError::UnknownTopicOrPartition.code());
    }
}

#[test]
fn producers_that_ask_with_zeros_get_identities_of_their_own() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let mut init = |id: Option<&'static str>| {
        let id = id.map(|id| text(id).into());
        let request = InitProducerIdRequest::default().with_transactional_id(id).with_transaction_timeout_ms(10_000);
        let answer: InitProducerIdResponse = client.call(5, &request.with_producer_id(0.into()).with_producer_epoch(0));
        (answer.error_code, answer.producer_id.0)
    };
    let given = [init(None), init(None), init(Some("tx"))];
    assert_eq!(given.map(|(code, _)| code), [0; 3]);
    assert_eq!(given.iter().map(|(_, id)| id).collect::<std::collections::BTreeSet<_>>().len(), 3);
    // A transactional id that is known belongs to another producer.
    assert_eq!(init(Some("tx")).0, ResponseError::ProducerFenced.code());
}

#[test]
fn clients_over_their_quota_are_told_how_long_to_wait() {
    let data = tempfile::tempdir().unwrap();
    // Named clients may produce and fetch 10 bytes per second; a second's worth of it at once.
    let quota = ["--quota", "test=produce:10,fetch:10", "--kafka-address", "127.0.0.1:0"];
    let server = Server::start_with(data.path(), &quota);
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    let records = batch(0, &"x".repeat(1_000));
    let took_ms = records.len() as i32 * 100;
    // Less has passed since the request than the test can tell, but not as much as a minute.
    let about = |ms: i32| ms - 60_000..=ms - 1_000;
    let produced = client.call(9, &produce_request("t", 0, records));
    assert!(about(took_ms).contains(&produced.throttle_time_ms), "{}", produced.throttle_time_ms);
    let fetched = client.call(12, &fetch_request("t", 0));
    assert_eq!(values(fetched.responses[0].partitions[0].records.clone().unwrap()).len(), 1);
    assert!(about(took_ms).contains(&fetched.throttle_time_ms), "{}", fetched.throttle_time_ms);
}

#[test]
fn a_version_of_api_versions_that_is_not_served_is_answered_in_version_0() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    // A flexible header and a body that this server does not know.
    let mut frame = BytesMut::new();
    frame.put_slice(&[0, 18, 0, 99, 0, 0, 0, 7, 0, 1, b'c', 0, 9, 9, 9]);
    client.send_frame(&frame);
    let answer: ApiVersionsResponse = client.answer(0, 7);
    assert_eq!(answer.error_code, ResponseError::UnsupportedVersion.code());
    assert_eq!(answer.api_keys.iter().map(|api| api.api_key).collect::<Vec<_>>(), [18]);
    // The connection stays open.
    assert_eq!(client.call(3, &versions_request(3)).error_code, 0);
}

#[test]
fn records_of_both_protocols_are_the_same() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    let sent = batch(1_000, "from Kafka");
    client.call(9, &produce_request("t", 0, sent.clone()));
    server.run_with_input(&["produce", "t"], "from gRPC\n").ok();
    assert_eq!(server.run(&["consume", "t", "--from", "earliest", "--until-end"]).ok(), "from Kafka\nfrom gRPC\n");
    let answer: FetchResponse = client.call(12, &fetch_request("t", 0));
    let records = answer.responses[0].partitions[0].records.clone().unwrap();
    assert_eq!(values(records.clone()), ["from Kafka", "from gRPC"]);
    // The batch is stored as it came, with its duplicate headers. Only the base offset and the leader epoch are the log's.
    assert_eq!(records[16..sent.len()], sent[16..]);
}

#[test]
fn errors_have_kafkas_codes_and_concern_one_partition() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    let produced = |answer: ProduceResponse| answer.responses[0].partition_responses[0].error_code;
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(produced(client.call(9, &produce_request("missing", 0, batch(0, "v")))), unknown);
    assert_eq!(produced(client.call(9, &produce_request("t", 7, batch(0, "v")))), unknown);
    assert_eq!(produced(client.call(9, &produce_request("t", -1, batch(0, "v")))), unknown);
    let mut damaged = BytesMut::from(&batch(0, "v")[..]);
    damaged[70] ^= 1;
    let corrupt = ResponseError::CorruptMessage.code();
    assert_eq!(produced(client.call(9, &produce_request("t", 0, damaged.freeze()))), corrupt);
    let acks = produce_request("t", 0, batch(0, "v")).with_acks(2);
    assert_eq!(produced(client.call(9, &acks)), ResponseError::InvalidRequiredAcks.code());
    let fetched: FetchResponse = client.call(12, &fetch_request("t", 5));
    assert_eq!(fetched.responses[0].partitions[0].error_code, ResponseError::OffsetOutOfRange.code());
    // Nothing was stored.
    let list: ListOffsetsResponse = client.call(5, &list_request("t", -1));
    assert_eq!(list.topics[0].partitions[0].offset, 0);
}

#[test]
fn answers_come_in_the_order_of_the_requests_and_acks_0_has_none() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    for number in 0..10 {
        let acks = if number % 2 == 0 { -1 } else { 0 };
        client.send(9, number, &produce_request("t", 0, batch(0, &number.to_string())).with_acks(acks));
    }
    client.send(12, 10, &fetch_request("t", 0));
    for number in (0..10).step_by(2) {
        let answer: ProduceResponse = client.answer(9, number);
        assert_eq!(answer.responses[0].partition_responses[0].base_offset, i64::from(number));
    }
    let fetched: FetchResponse = client.answer(12, 10);
    let all: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    // The last record has no acknowledgement, so it may not be there yet.
    let read = values(fetched.responses[0].partitions[0].records.clone().unwrap());
    assert!(read.len() >= 9 && all.starts_with(&read), "{read:?}");
}

#[test]
fn what_is_no_request_ends_its_connection_alone() {
    let (server, _data) = started();
    let mut other = Client::to(server.kafka());
    create(&mut other, "t");
    let header = |key: i16, version: i16| {
        let mut bytes = BytesMut::new();
        bytes.put_i16(key);
        bytes.put_i16(version);
        bytes.put_slice(&[0, 0, 0, 1, 0, 1, b'c']);
        bytes
    };
    let with = |key: i16, version: i16, body: &[u8]| [&header(key, version)[..], body].concat();
    let frames = [
        // Unknown APIs, and versions that are not served.
        with(999, 0, &[]),
        with(-1, 0, &[]),
        with(0, 2, &[0; 20]),
        with(1, 99, &[0; 20]),
        // Counts and lengths that exceed the request.
        with(3, 4, &[0x7f, 0xff, 0xff, 0xff, 0]),
        with(3, 12, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        with(
            1,
            4,
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0x7f, 0xff, 0xff, 0xff],
        ),
        // A client id and tagged fields that are longer than the request.
        [&header(3, 4)[..8], &[0x7f, 0xff]].concat(),
        with(3, 12, &[1, 1, 0xff, 0x7f]),
        // A body that is cut off.
        with(2, 5, &[0xff, 0xff]),
    ];
    for frame in &frames {
        let mut client = Client::to(server.kafka());
        client.send_frame(frame);
        assert!(client.closes(), "{frame:?}");
    }
    for length in [-1i32, 0, 3, i32::MAX] {
        let mut client = Client::to(server.kafka());
        client.send_bytes(&length.to_be_bytes());
        assert!(client.closes(), "length {length}");
    }
    // Half a request, and then silence.
    let mut silent = Client::to(server.kafka());
    silent.send_bytes(&[0, 0, 1, 0, 0, 3]);
    assert_eq!(other.call(3, &versions_request(3)).error_code, 0);
    let metrics = server.metrics();
    let refused = format!("millstream_kafka_requests_refused_total {}", frames.len() + 4);
    assert!(metrics.contains(&refused), "{metrics}");
}

/// Bytes as a request might hold them: small numbers, lengths that are wrong, names that exist, and noise.
fn noise(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(0..24) {
        match random.random_range(0..7) {
            0 => bytes.extend_from_slice(&[0, 0, 0, random.random_range(0..4)]),
            1 => bytes.extend_from_slice(&random.random::<[u8; 4]>()),
            2 => bytes.extend_from_slice(&[0, 1, b't']),
            3 => bytes.extend_from_slice(&[2, b't', random.random_range(0..3)]),
            4 => bytes.extend_from_slice(&[0x7f, 0xff, 0xff, 0xff]),
            5 => bytes.extend_from_slice(&[0xff; 4]),
            _ => bytes.extend_from_slice(&[0; 8]),
        }
    }
    bytes
}

#[test]
fn noise_in_every_version_of_every_api_harms_nobody() {
    let (server, _data) = started();
    let mut other = Client::to(server.kafka());
    // Noise may be a request that deletes topic `t`.
    create(&mut other, "kept");
    other.call(9, &produce_request("kept", 0, batch(7, "kept")));
    let advertised = other.call(3, &versions_request(3)).api_keys;
    let mut random = StdRng::seed_from_u64(17);
    for api in &advertised {
        for version in api.min_version..=api.max_version {
            for _ in 0..15 {
                let mut client = Client::to(server.kafka());
                // The connection may be closed after the first of them.
                for correlation_id in 0..3 {
                    let mut frame = BytesMut::new();
                    frame.put_i16(api.api_key);
                    frame.put_i16(version);
                    frame.put_i32(correlation_id);
                    frame.put_slice(&[0, 1, b'c']);
                    frame.put_slice(&noise(&mut random));
                    if !client.try_send_frame(&frame) {
                        break;
                    }
                }
            }
        }
    }
    // Everybody else is served, nothing was lost, and no memory is kept.
    assert_eq!(other.call(3, &versions_request(3)).error_code, 0);
    let fetched: FetchResponse = other.call(12, &fetch_request("kept", 0));
    assert_eq!(values(fetched.responses[0].partitions[0].records.clone().unwrap()), ["kept"]);
    let resident = server.resident_bytes();
    assert!(resident < 300 << 20, "{resident} bytes");
    let metrics = server.metrics();
    assert!(metrics.contains("millstream_kafka_requests_refused_total"), "{metrics}");
}
