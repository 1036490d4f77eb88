//! Bad input is refused with an error code for programs and an explanation for people, and has no other effect: stored
//! records remain, later requests are accepted, and the server keeps running.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use millstream_api::v1::groups_client::GroupsClient;
use millstream_api::v1::log_client::LogClient;
use millstream_api::v1::modules_client::ModulesClient;
use millstream_api::v1::pipelines_client::PipelinesClient;
use millstream_api::v1::state_client::StateClient;
use millstream_api::v1::topics_client::TopicsClient;
use millstream_api::v1::{ErrorCode, Format, member_request, position, reset_group_request};
use millstream_api::{ERROR_TRAILER, MESSAGE_BYTES_MAX, v1};
use millstream_broker::clock::SystemClock;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::{StorageBackend, StoreError, StoreFile, StoreOptions};
use millstream_broker::{Broker, BrokerError, BrokerSettings, TopicName};
use millstream_client::{ClientError, ProducerRecord, ProducerSettings};
use millstream_record::{BatchBuilder, Compression, RecordBatch};
use millstream_tests::guest;
use millstream_tests::instance::Instance;
use millstream_tests::server::{Ran, Server, millstream, page, run};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// A server with topic `good` of two partitions, which contains a record from before the bad input.
struct Sound {
    server: Server,
    channel: Channel,
    _data: TempDir,
}

impl Sound {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path());
        let channel = Channel::from_shared(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
        let sound = Self { server, channel, _data: data };
        sound.server.client().admin().create_topic("good", Some(2), Default::default()).await.unwrap();
        sound.produce("before").await;
        sound
    }

    fn log(&self) -> LogClient<Channel> {
        let log = LogClient::new(self.channel.clone());
        log.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
    }

    fn topics(&self) -> TopicsClient<Channel> {
        TopicsClient::new(self.channel.clone())
    }

    fn groups(&self) -> GroupsClient<Channel> {
        GroupsClient::new(self.channel.clone())
    }

    fn modules(&self) -> ModulesClient<Channel> {
        ModulesClient::new(self.channel.clone())
    }

    fn pipelines(&self) -> PipelinesClient<Channel> {
        PipelinesClient::new(self.channel.clone())
    }

    fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.channel.clone())
    }

    async fn produce(&self, value: &str) {
        self.log().produce(batch_to("good", 0, good_batch(value))).await.unwrap();
    }

    /// Checks that a batch is refused, both alone and between good batches on a stream, where only the bad one is
    /// refused.
    async fn refuses_batch(&self, batch: impl Into<Bytes>, code: ErrorCode, words: &[&str]) {
        let batch = batch.into();
        refused(self.log().produce(batch_to("good", 0, batch.clone())).await, code, Code::InvalidArgument, words);
        let requests = [good_batch("streamed"), batch, good_batch("streamed")].map(|batch| batch_to("good", 1, batch));
        let answers = self.log().produce_stream(futures::stream::iter(requests)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
        assert_eq!(answers.len(), 3);
        named(answers[1].error.as_ref(), code, words);
        assert!(answers[0].error.is_none() && answers[2].error.is_none());
        let [first, last] = [0, 2].map(|index| answers[index].appended[0].base_offset);
        assert_eq!(last, first + 1, "no part of the refused batch may be stored");
    }

    /// Checks that nothing was lost or added, that further records are accepted, and that the server stops in an
    /// orderly way.
    async fn ends_sound(mut self) {
        self.produce("after").await;
        assert_eq!(records(&self.log(), "good", 0).await, ["before", "after"]);
        let status = self.server.terminate();
        assert_eq!(status.code(), Some(0));
    }
}

/// Returns the values of a partition.
async fn records(log: &LogClient<Channel>, topic: &str, partition: u32) -> Vec<String> {
    let request = v1::ConsumeRequest {
        topic: topic.to_owned(),
        partitions: vec![partition],
        from: Some(v1::Position { at: Some(position::At::Earliest(true)) }),
        until_end: true,
        format: Format::Records as i32,
        max_bytes: 0,
        ..Default::default()
    };
    let answers = log.clone().consume(request).await.unwrap().into_inner();
    let partitions = answers.flat_map(|answer| futures::stream::iter(answer.unwrap().partitions));
    let records = partitions.flat_map(|partition| futures::stream::iter(partition.records));
    records.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect().await
}

fn good_batch(value: &str) -> Bytes {
    built(Compression::None, [value.as_bytes()]).into_bytes()
}

fn built<'v>(compression: Compression, values: impl IntoIterator<Item = &'v [u8]>) -> RecordBatch {
    let mut builder = BatchBuilder::new(compression);
    values.into_iter().for_each(|value| builder.push(1, None, Some(value), []));
    builder.finish().unwrap()
}

fn batch_to(topic: &str, partition: u32, batches: Bytes) -> v1::ProduceRequest {
    v1::ProduceRequest { topic: topic.to_owned(), partition: Some(partition), batches, records: Vec::new() }
}

/// Asserts that a call was refused with this error code, this gRPC code, and these words in the message.
#[track_caller]
fn refused<T>(answer: Result<Response<T>, Status>, code: ErrorCode, grpc: Code, words: &[&str]) {
    let Err(status) = answer else { panic!("{code:?} {words:?}: the request was accepted") };
    let trailer = status.metadata().get(ERROR_TRAILER).map(|name| name.to_str().unwrap());
    assert_eq!((trailer, status.code()), (Some(code.as_str_name()), grpc), "{status:?}");
    says(status.message(), words);
}

/// Asserts that an answer contains an error with this code and these words.
#[track_caller]
fn named(error: Option<&v1::Error>, code: ErrorCode, words: &[&str]) {
    let error = error.unwrap_or_else(|| panic!("{code:?} {words:?}: the request was accepted"));
    assert_eq!(error.code(), code, "{error:?}");
    says(&error.message, words);
}

#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not contain {word:?}");
    }
}

/// Asserts that a command was refused with exit code 1, with these words in the error, and with nothing on stdout.
#[track_caller]
fn refused_command(ran: &Ran, words: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
    says(&ran.err, words);
}

fn at(at: position::At) -> Option<v1::Position> {
    Some(v1::Position { at: Some(at) })
}

// ---- names

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_named_by_every_call() {
    let sound = Sound::start().await;
    let (topic, words) = ("nope".to_owned(), ["there is no topic \"nope\""]);
    let (code, grpc) = (ErrorCode::UnknownTopic, Code::NotFound);
    refused(sound.log().produce(batch_to("nope", 0, good_batch("x"))).await, code, grpc, &words);
    let plain = v1::ProduceRequest {
        topic: topic.clone(),
        records: vec![v1::Record { value: Some("x".into()), ..Default::default() }],
        ..Default::default()
    };
    refused(sound.log().produce(plain).await, code, grpc, &words);
    let consume = v1::ConsumeRequest { topic: topic.clone(), ..Default::default() };
    refused(sound.log().consume(consume).await, code, grpc, &words);
    let list = v1::ListOffsetsRequest { topic: topic.clone(), ..Default::default() };
    refused(sound.log().list_offsets(list).await, code, grpc, &words);
    refused(sound.topics().describe_topic(v1::DescribeTopicRequest { name: topic.clone() }).await, code, grpc, &words);
    refused(sound.topics().delete_topic(v1::DeleteTopicRequest { name: topic.clone() }).await, code, grpc, &words);
    let join = member_request::Message::Join(v1::Join {
        group: "g".into(),
        topics: vec!["good".into(), topic.clone()],
        ..Default::default()
    });
    let member = futures::stream::iter([v1::MemberRequest { message: Some(join) }]);
    refused(sound.groups().join(member).await, code, grpc, &words);
    let offsets = vec![v1::TopicPartitionOffset { topic: topic.clone(), partition: 0, offset: 0 }];
    let commit = v1::CommitOffsetsRequest { group: "g".into(), offsets };
    refused(sound.groups().commit_offsets(commit).await, code, grpc, &words);
    // None of these calls created the group.
    let groups = sound.groups().list_groups(v1::ListGroupsRequest {}).await.unwrap().into_inner().groups;
    assert_eq!(groups, [], "a refused request must not create a group");
    // A fetch reports the error next to the records of the other partitions.
    let partitions = ["nope", "good"].map(|topic| v1::FetchPartition { topic: topic.into(), ..Default::default() });
    let fetch = v1::FetchRequest { partitions: partitions.into(), max_wait_ms: 60_000, ..Default::default() };
    let answer = sound.log().fetch(fetch).await.unwrap().into_inner().partitions;
    let of = |topic: &str| answer.iter().find(|partition| partition.topic == topic).unwrap();
    named(of("nope").error.as_ref(), code, &words);
    assert!(of("good").error.is_none() && of("good").next_offset == 1);

    for arguments in [
        &["consume", "nope", "--until-end"][..],
        &["consume", "nope", "--group", "g"],
        &["topic", "describe", "nope"],
        &["topic", "delete", "nope"],
    ] {
        refused_command(&sound.server.run(arguments), &[words[0], "`millstream topic create NAME`"]);
    }
    refused_command(&sound.server.run_with_input(&["produce", "nope"], "line\n"), &words);
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_partition_is_named_with_those_there_are() {
    let sound = Sound::start().await;
    let words = ["topic good has no partition 2: it has 2, numbered from 0"];
    let (code, grpc) = (ErrorCode::UnknownPartition, Code::NotFound);
    refused(sound.log().produce(batch_to("good", 2, good_batch("x"))).await, code, grpc, &words);
    let plain = v1::ProduceRequest {
        topic: "good".into(),
        partition: Some(2),
        records: vec![v1::Record::default()],
        ..Default::default()
    };
    refused(sound.log().produce(plain).await, code, grpc, &words);
    let consume = v1::ConsumeRequest { topic: "good".into(), partitions: vec![0, 2], ..Default::default() };
    refused(sound.log().consume(consume).await, code, grpc, &words);
    let list = v1::ListOffsetsRequest { topic: "good".into(), partitions: vec![2], ..Default::default() };
    refused(sound.log().list_offsets(list).await, code, grpc, &words);
    let partition = v1::FetchPartition { topic: "good".into(), partition: 2, offset: 0, ..Default::default() };
    let fetch = v1::FetchRequest { partitions: vec![partition], ..Default::default() };
    let answer = sound.log().fetch(fetch).await.unwrap().into_inner().partitions;
    named(answer[0].error.as_ref(), code, &words);

    refused_command(&sound.server.run(&["consume", "good", "--partition", "2", "--until-end"]), &words);
    refused_command(&sound.server.run_with_input(&["produce", "good", "--partition", "2"], "line\n"), &words);
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_group_module_or_pipeline_is_named() {
    let sound = Sound::start().await;
    let grpc = Code::NotFound;
    let name = || "nope".to_owned();

    let (code, words) = (ErrorCode::UnknownGroup, ["there is no group \"nope\""]);
    refused(sound.groups().describe_group(v1::DescribeGroupRequest { name: name() }).await, code, grpc, &words);
    refused(sound.groups().delete_group(v1::DeleteGroupRequest { name: name() }).await, code, grpc, &words);
    let reset = v1::ResetGroupRequest {
        group: name(),
        topic: "good".into(),
        to: Some(reset_group_request::To::Earliest(true)),
        ..Default::default()
    };
    refused(sound.groups().reset_group(reset).await, code, grpc, &words);
    refused_command(&sound.server.run(&["group", "describe", "nope"]), &[words[0], "`millstream group list`"]);

    let (code, words) = (ErrorCode::UnknownModule, ["there is no module \"nope\""]);
    refused(sound.modules().describe_module(v1::DescribeModuleRequest { reference: name() }).await, code, grpc, &words);
    refused(sound.modules().remove_module(v1::RemoveModuleRequest { reference: name() }).await, code, grpc, &words);
    refused_command(&sound.server.run(&["module", "describe", "nope"]), &[words[0], "`millstream module list`"]);

    let (code, words) = (ErrorCode::UnknownPipeline, ["there is no pipeline \"nope\""]);
    let mut pipelines = sound.pipelines();
    refused(pipelines.describe_pipeline(v1::DescribePipelineRequest { name: name() }).await, code, grpc, &words);
    refused(pipelines.pause_pipeline(v1::PausePipelineRequest { name: name() }).await, code, grpc, &words);
    refused(pipelines.resume_pipeline(v1::ResumePipelineRequest { name: name() }).await, code, grpc, &words);
    refused(pipelines.delete_pipeline(v1::DeletePipelineRequest { name: name() }).await, code, grpc, &words);
    let get = v1::GetStateRequest { pipeline: name(), ..Default::default() };
    refused(sound.state().get_state(get).await, code, grpc, &words);
    let list = v1::ListStateRequest { pipeline: name(), ..Default::default() };
    refused(sound.state().list_state(list).await, code, grpc, &words);
    refused_command(&sound.server.run(&["pipeline", "pause", "nope"]), &[words[0], "`millstream pipeline list`"]);
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_allowed_is_shown() {
    let sound = Sound::start().await;
    let (code, grpc) = (ErrorCode::InvalidName, Code::InvalidArgument);
    let long = "x".repeat(250);
    for bad in ["", ".", "..", "a b", "a/b", "größe", "a\0b", "../../etc/passwd", long.as_str()] {
        let shown = format!("{bad:?}");
        let words = [shown.as_str(), "a-z A-Z 0-9 . _ -"];
        let create = v1::CreateTopicRequest { name: bad.into(), ..Default::default() };
        refused(sound.topics().create_topic(create).await, code, grpc, &["topic name", words[0], words[1]]);
        let error = sound.server.client().admin().push_module(bad, guest("level")).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
        says(&error.to_string(), &[words[0], "is not a module reference", words[1]]);
        // In a pipeline file the mistake has its place too.
        let yaml = format!("pipeline: {bad:?}\nfrom: good\nstages:\n  - filter: level\nto: out\n");
        let apply = v1::ApplyPipelineRequest { yaml, ..Default::default() };
        let mistakes = sound.pipelines().apply_pipeline(apply).await.unwrap().into_inner().mistakes;
        assert_eq!((mistakes[0].line, mistakes[0].column), (1, 11), "{bad:?}: {mistakes:?}");
    }
    // Any text names a group, as in Kafka, but it must be one.
    let too_long = "x".repeat(32_768);
    for (bad, says) in [("", "the id of a group is empty"), (too_long.as_str(), "32768 bytes, and 32767 are allowed")] {
        let join = v1::Join { group: bad.into(), topics: vec!["good".into()], ..Default::default() };
        let join = v1::MemberRequest { message: Some(member_request::Message::Join(join)) };
        refused(sound.groups().join(futures::stream::iter([join])).await, code, grpc, &[says]);
        let commit = v1::CommitOffsetsRequest { group: bad.into(), offsets: Vec::new() };
        refused(sound.groups().commit_offsets(commit).await, code, grpc, &[says]);
    }
    refused_command(&sound.server.run(&["topic", "create", "a b"]), &["topic name \"a b\" is not allowed"]);
    assert!(sound.server.client().admin().list_topics().await.unwrap().iter().all(|topic| topic.name == "good"));
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_out_of_its_range_is_named_with_the_range() {
    let sound = Sound::start().await;
    let create = |partitions, batch_bytes_max| v1::CreateTopicRequest {
        name: "t".into(),
        partitions: Some(partitions),
        settings: Some(v1::TopicSettings { batch_bytes_max, ..Default::default() }),
    };
    let (code, grpc) = (ErrorCode::InvalidRequest, Code::InvalidArgument);
    for partitions in [0, 10_001, u32::MAX] {
        let words = [&format!("partitions: {partitions} is not allowed"), "1 to 10000"];
        refused(sound.topics().create_topic(create(partitions, None)).await, code, grpc, &words);
    }
    for bytes in [0, 1023, (16 << 20) + 1, u32::MAX] {
        let words = [&format!("batch_bytes_max: {bytes} is not allowed"), "1024 to 16777216"];
        refused(sound.topics().create_topic(create(1, Some(bytes))).await, code, grpc, &words);
    }
    // If both are given, it is unclear which one is meant.
    let mut both = batch_to("good", 0, good_batch("x"));
    both.records.push(v1::Record::default());
    refused(sound.log().produce(both).await, code, grpc, &["batches or records, not both"]);
    let nowhere = v1::ProduceRequest { partition: None, ..batch_to("good", 0, good_batch("x")) };
    refused(sound.log().produce(nowhere).await, code, grpc, &["must name its partition"]);
    let nothing = v1::ProduceRequest { topic: "good".into(), ..Default::default() };
    refused(sound.log().produce(nothing).await, code, grpc, &["holds no records"]);
    sound.ends_sound().await;
}

// ---- record batches

#[tokio::test(flavor = "multi_thread")]
async fn a_record_or_batch_over_its_limit_is_refused_with_both_sizes() {
    let sound = Sound::start().await;
    let client = sound.server.client();
    let settings = v1::TopicSettings { batch_bytes_max: Some(1024), ..Default::default() };
    client.admin().create_topic("small", Some(1), settings).await.unwrap();
    let (code, grpc) = (ErrorCode::BatchTooLarge, Code::InvalidArgument);

    let large = good_batch(&"x".repeat(1024));
    let words = [&format!("a record batch of {} bytes is over the limit of 1024", large.len()), "batch_bytes_max"];
    refused(sound.log().produce(batch_to("small", 0, large.clone())).await, code, grpc, &words);
    // A batch that is too large must not pass behind a good one.
    let hidden = [good_batch("x"), large].concat();
    refused(sound.log().produce(batch_to("small", 0, hidden.into())).await, code, grpc, &words);
    let plain = |bytes: usize| v1::ProduceRequest {
        topic: "small".into(),
        records: vec![
            v1::Record { value: Some("small".into()), ..Default::default() },
            v1::Record { value: Some(vec![b'x'; bytes].into()), ..Default::default() },
        ],
        ..Default::default()
    };
    refused(sound.log().produce(plain(1024)).await, code, grpc, &["over the limit of 1024"]);
    let producer = client.producer(ProducerSettings::default());
    let error = producer.send(ProducerRecord::new("small", "x".repeat(1024))).await.unwrap_err();
    assert!(matches!(error, ClientError::RecordTooLarge { bytes_max: 1024, .. }), "{error}");
    producer.send(ProducerRecord::new("small", "small")).await.unwrap().await.unwrap();
    let line = format!("small\n{}\nsmall\n", "x".repeat(1024));
    let ran = sound.server.run_with_input(&["produce", "small"], &line);
    assert_eq!(ran.code, Some(1));
    says(&ran.err, &["stdin:2", "over the limit of 1024", "stored 1 record"]);
    assert_eq!(records(&sound.log(), "small", 0).await, ["small", "small"]);

    // These exceed the largest limit that a topic may have.
    let huge = built(Compression::None, [vec![0; (16 << 20) + 1].as_slice()]).into_bytes();
    sound.refuses_batch(huge, ErrorCode::BatchTooLarge, &["over the limit of 16777216"]).await;
    let packed = built(Compression::Zstd, [&b"small"[..], &vec![0; (16 << 20) + 1]]).into_bytes();
    let words = ["record 1 of a batch", "over the limit of 16777216"];
    sound.refuses_batch(packed, ErrorCode::RecordTooLarge, &words).await;
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_and_not_dropped() {
    let sound = Sound::start().await;
    let huge = || batch_to("good", 0, vec![0; MESSAGE_BYTES_MAX + 1].into());
    let status = sound.log().produce(huge()).await.unwrap_err();
    says(status.message(), &[&MESSAGE_BYTES_MAX.to_string()]);
    // On a stream, such a message ends the stream with an error.
    let requests = [batch_to("good", 1, good_batch("x")), huge()];
    let answers = sound.log().produce_stream(futures::stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert!(answers[0].is_ok());
    let status = answers.last().unwrap().as_ref().expect_err("the stream ends with an error");
    says(status.message(), &[&MESSAGE_BYTES_MAX.to_string()]);
    sound.ends_sound().await;
}

/// Positions of the fields of a batch in Kafka's format.
mod field {
    pub(super) const LENGTH: usize = 8;
    pub(super) const MAGIC: usize = 16;
    pub(super) const CRC: usize = 17;
    pub(super) const ATTRIBUTES: usize = 21;
    pub(super) const LAST_OFFSET_DELTA: usize = 23;
    pub(super) const MAX_TIMESTAMP: usize = 35;
    pub(super) const RECORD_COUNT: usize = 57;
}

/// Builds a batch of two records in which `bytes` replace a field, with a matching checksum.
fn lying(at: usize, bytes: &[u8]) -> Bytes {
    lying_twice((at, bytes), (at, bytes))
}

fn lying_twice((at, bytes): (usize, &[u8]), (at2, bytes2): (usize, &[u8])) -> Bytes {
    let mut batch = built(Compression::None, [&b"one"[..], b"two"]).into_bytes().to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    batch[at2..at2 + bytes2.len()].copy_from_slice(bytes2);
    let crc = crc32c(&batch[field::ATTRIBUTES..]).to_be_bytes();
    batch[field::CRC..field::CRC + 4].copy_from_slice(&crc);
    batch.into()
}

/// Computes CRC-32C bit by bit, independently of the server's implementation.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_lies_is_refused_for_its_lie() {
    let sound = Sound::start().await;
    let code = ErrorCode::InvalidBatch;
    assert_eq!(lying(field::MAGIC, &[2]), built(Compression::None, [&b"one"[..], b"two"]).into_bytes());

    let mut flipped = good_batch("flipped").to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    sound.refuses_batch(flipped, code, &["topic good", "is corrupt: its CRC-32C is", "nothing of this request"]).await;
    let mut wrong_crc = good_batch("wrong").to_vec();
    wrong_crc[field::CRC..field::CRC + 4].copy_from_slice(&[0, 0, 0, 0]);
    sound.refuses_batch(wrong_crc, code, &["its CRC-32C is 00000000, but its bytes have"]).await;

    for (count, word) in [(1, "claims 1"), (3, "claims 3"), (i32::MAX, "claims 2147483647"), (-1, "claims -1")] {
        sound.refuses_batch(lying(field::RECORD_COUNT, &count.to_be_bytes()), code, &[word]).await;
    }
    // Count and last offset delta agree with each other, but not with the records.
    for count in [1i32, 3, 1 << 30] {
        let delta = (count - 1).to_be_bytes();
        let lie = lying_twice((field::RECORD_COUNT, &count.to_be_bytes()), (field::LAST_OFFSET_DELTA, &delta));
        sound.refuses_batch(lie, code, &[&format!("claims {count} records")]).await;
    }
    for (length, words) in [(i32::MAX, "is truncated"), (0, "has invalid length 0"), (-1, "has invalid length -1")] {
        sound.refuses_batch(lying(field::LENGTH, &length.to_be_bytes()), code, &[words]).await;
    }
    sound.refuses_batch(lying(field::MAGIC, &[1]), code, &["(magic) 1 is not supported"]).await;
    sound.refuses_batch(lying(field::ATTRIBUTES, &[0, 5]), code, &["compression codec 5 is unknown"]).await;
    sound.refuses_batch(lying(field::ATTRIBUTES, &[0, 0x20]), code, &["a control batch cannot be produced"]).await;
    for unused in [[0x80, 0], [0, 0x80], [0, 0x40]] {
        sound
            .refuses_batch(lying(field::ATTRIBUTES, &unused), code, &["have bits set that a producer must not set"])
            .await;
    }
    let transactional = ["is part of a transaction", "transactional.id"];
    sound.refuses_batch(lying(field::ATTRIBUTES, &[0, 0x10]), code, &transactional).await;
    sound.refuses_batch(lying(field::ATTRIBUTES, &[0, 0x08]), code, &["timestamp type LogAppendTime"]).await;
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let lie = lying(field::ATTRIBUTES, &[0, codec as u8]);
        sound.refuses_batch(lie, code, &[&format!("{codec} body cannot be decompressed")]).await;
    }
    // The length of the first record is far too large.
    sound.refuses_batch(lying(61, &[0xfe, 0xff, 0xff, 0xff, 0x0f]), code, &["record 0 of a batch"]).await;
    // Text, and what is left of a batch.
    sound.refuses_batch("hello".as_bytes(), code, &["truncated: found 5 bytes, expected at least 61"]).await;
    sound.refuses_batch([good_batch("x"), "tail".into()].concat(), code, &["found 4 bytes"]).await;
    sound.ends_sound().await;
}

fn now_ms() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

fn timestamped(codec: Compression, timestamps: &[i64]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    timestamps.iter().for_each(|timestamp_ms| builder.push(*timestamp_ms, None, Some(b"good"), []));
    builder.finish().unwrap().into_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_timestamp_of_a_batch_is_what_its_records_say() {
    const YEAR_9999_MS: i64 = 253_402_300_799_000;
    let sound = Sound::start().await;
    let now_ms = now_ms();
    let mut batches = 0;
    for codec in [Compression::None, Compression::Zstd] {
        for claimed in [-1, 0, now_ms - 1, YEAR_9999_MS] {
            let mut lie = timestamped(codec, &[now_ms, now_ms + 1, now_ms + 2]);
            lie[field::MAX_TIMESTAMP..field::MAX_TIMESTAMP + 8].copy_from_slice(&claimed.to_be_bytes());
            let crc = crc32c(&lie[field::ATTRIBUTES..]).to_be_bytes();
            lie[field::CRC..field::CRC + 4].copy_from_slice(&crc);
            let topic = format!("t{batches}");
            sound.server.client().admin().create_topic(&topic, Some(1), Default::default()).await.unwrap();
            sound.log().produce(batch_to(&topic, 0, lie.into())).await.unwrap();
            batches += 1;
            let at = Some(v1::Position { at: Some(position::At::TimestampMs(now_ms + 1)) });
            let request = v1::ListOffsetsRequest { topic: topic.clone(), partitions: vec![0], at };
            let found = sound.log().list_offsets(request).await.unwrap().into_inner().offsets;
            assert_eq!(found[0].offset, 1, "{codec}, the header says {claimed}");
            let described = sound.server.client().admin().describe_topic(&topic).await.unwrap();
            assert_eq!(described.partition_list[0].max_timestamp_ms, Some(now_ms + 2), "the header says {claimed}");
            // Readers check the batch as it is stored.
            let partition = v1::FetchPartition { topic, partition: 0, offset: 0, ..Default::default() };
            let fetch = v1::FetchRequest { partitions: vec![partition], ..Default::default() };
            let fetched = sound.log().fetch(fetch).await.unwrap().into_inner().partitions.remove(0);
            let stored = RecordBatch::from_log(fetched.batches[0].clone()).unwrap();
            stored.verify_crc().unwrap();
            assert_eq!(stored.max_timestamp_ms(), now_ms + 2);
        }
    }
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_far_from_the_servers_is_refused_and_a_missing_one_is_the_servers() {
    const HOUR_MS: i64 = 3_600_000;
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    let settings = v1::TopicSettings {
        timestamp_before_max_ms: Some(HOUR_MS as u64),
        timestamp_after_max_ms: Some(10 * HOUR_MS as u64),
        ..Default::default()
    };
    admin.create_topic("set", Some(1), settings).await.unwrap();
    let plain = |topic: &str, timestamp_ms| {
        let record = v1::Record { timestamp_ms, value: Some("good".into()), ..Default::default() };
        let topic = topic.to_owned();
        v1::ProduceRequest { topic, partition: Some(0), records: vec![record], ..Default::default() }
    };
    let begun_ms = now_ms();
    for (topic, shift_ms, words) in [
        ("good", 2 * HOUR_MS, &["up to 3600000 ms after that (timestamp_after_max_ms)", "nothing of this request"][..]),
        ("good", i64::MAX / 2, &["is it in micro- or nanoseconds"]),
        ("set", 11 * HOUR_MS, &["topic set", "36000000 ms after"]),
        ("set", -2 * HOUR_MS, &["3600000 ms before that (timestamp_before_max_ms)"]),
        ("good", -begun_ms - 5, &["the timestamp -5 ms since 1970", "use the time since 1970"]),
    ] {
        let timestamp_ms = begun_ms + shift_ms;
        let (code, grpc) = (ErrorCode::InvalidTimestamp, Code::InvalidArgument);
        refused(sound.log().produce(plain(topic, Some(timestamp_ms))).await, code, grpc, words);
        for codec in [Compression::None, Compression::Gzip] {
            // The first record is valid, but nothing of the batch is stored.
            let batch = timestamped(codec, &[begun_ms, timestamp_ms]);
            let words = [words, &["record 1 of a batch"]].concat();
            refused(sound.log().produce(batch_to(topic, 0, batch.into())).await, code, grpc, &words);
        }
    }
    admin.create_topic("near", Some(1), Default::default()).await.unwrap();
    for (topic, shift_ms) in [("near", HOUR_MS / 2), ("near", -begun_ms), ("set", 9 * HOUR_MS), ("set", -HOUR_MS / 2)] {
        sound.log().produce(plain(topic, Some(begun_ms + shift_ms))).await.unwrap();
    }
    admin.create_topic("missing", Some(1), Default::default()).await.unwrap();
    sound.log().produce(plain("missing", None)).await.unwrap();
    sound.log().produce(plain("missing", Some(-1))).await.unwrap();
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let batch = timestamped(codec, &[-1, begun_ms, -1]);
        sound.log().produce(batch_to("missing", 0, batch.into())).await.unwrap();
    }
    let partition = v1::FetchPartition { topic: "missing".into(), partition: 0, offset: 0, ..Default::default() };
    let fetch = v1::FetchRequest { partitions: vec![partition], format: Format::Records as i32, ..Default::default() };
    let fetched = sound.log().fetch(fetch).await.unwrap().into_inner().partitions.remove(0);
    assert_eq!(fetched.records.len(), 2 + 5 * 3);
    for record in fetched.records {
        let timestamp_ms = record.timestamp_ms.unwrap();
        assert!(
            (begun_ms..=now_ms()).contains(&timestamp_ms),
            "the timestamp {timestamp_ms} is not within the time of the test, which began at {begun_ms}"
        );
        assert_eq!(record.value.as_deref(), Some(&b"good"[..]));
    }
    sound.ends_sound().await;
}

/// Returns the peak resident memory of a process, in bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_bomb_is_refused_before_it_is_unpacked() {
    let sound = Sound::start().await;
    let settings = v1::TopicSettings { batch_bytes_max: Some(16 << 20), ..Default::default() };
    sound.server.client().admin().create_topic("large", Some(1), settings).await.unwrap();
    let before = peak_bytes(sound.server.pid());
    // 256 MiB in 16 records, each within its size limit.
    let record = vec![0; (16 << 20) - 100];
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bomb = built(codec, std::iter::repeat_n(record.as_slice(), 16)).into_bytes();
        assert!(bomb.len() < 16 << 20, "{codec} packs zeros");
        let words = ["decompresses to more than 33554432 bytes"];
        refused(
            sound.log().produce(batch_to("large", 0, bomb)).await,
            ErrorCode::InvalidBatch,
            Code::InvalidArgument,
            &words,
        );
    }
    // Twice the limit of a decompressed body, and the largest of the messages, but not the decompressed bombs.
    let grown = peak_bytes(sound.server.pid()) - before;
    assert!(grown < 128 << 20, "the server grew by {grown} bytes");
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_inflate_a_hundredfold_are_read_in_pieces() {
    let sound = Sound::start().await;
    const BATCHES: usize = 16;
    const RECORDS: u64 = BATCHES as u64 * 24;
    // Each batch is within the limits: 24 records of a megabyte, which are about a kilobyte when compressed.
    let record = vec![b'0'; 1 << 20];
    let batch = built(Compression::Zstd, std::iter::repeat_n(record.as_slice(), 24)).into_bytes();
    let batches = std::iter::repeat_n(batch.as_ref(), BATCHES).collect::<Vec<_>>().concat();
    sound.log().produce(batch_to("good", 1, batches.into())).await.unwrap();
    let before = peak_bytes(sound.server.pid());
    let mut next = 0;
    while next < RECORDS {
        let partition = v1::FetchPartition { topic: "good".into(), partition: 1, offset: next, ..Default::default() };
        let format = Format::Records as i32;
        let max_bytes = 16 << 20;
        let fetch = v1::FetchRequest { partitions: vec![partition], format, max_bytes, ..Default::default() };
        let answer = sound.log().fetch(fetch).await.expect("the answer fits into a message").into_inner();
        let partition = &answer.partitions[0];
        assert!(partition.error.is_none(), "{:?}", partition.error);
        assert_eq!(partition.records[0].offset, next);
        assert_eq!(partition.next_offset, next + partition.records.len() as u64);
        next = partition.next_offset;
    }
    assert_eq!(records(&sound.log(), "good", 1).await.len() as u64, RECORDS);
    // 384 MiB are read twice. A stream holds at most four answers (one being built, two waiting, one being sent). The
    // records of an answer keep up to two decompressed batches of 24 MiB alive, and its message is a copy of 16 MiB.
    let grown = peak_bytes(sound.server.pid()) - before;
    assert!(grown < 256 << 20, "the server grew by {grown} bytes");
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_takes_records_that_inflate_a_hundredfold_in_steps() {
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    admin.push_module("bench-filter", guest("bench-filter")).await.unwrap();
    // 384 MiB that the filter drops, about 20 KiB when compressed, and one record that it keeps.
    let record = vec![b'1'; 1 << 20];
    let batch = built(Compression::Zstd, std::iter::repeat_n(record.as_slice(), 24)).into_bytes();
    let batches = std::iter::repeat_n(batch.as_ref(), 16).collect::<Vec<_>>().concat();
    sound.log().produce(batch_to("good", 1, batches.into())).await.unwrap();
    sound.log().produce(batch_to("good", 1, good_batch("0 is even"))).await.unwrap();
    let before = peak_bytes(sound.server.pid());
    let yaml = "pipeline: p\nfrom: good\nstages:\n  - filter: bench-filter\nto: out\n".to_owned();
    let applied = admin.apply_pipeline(v1::ApplyPipelineRequest { yaml, ..Default::default() }).await.unwrap();
    assert_eq!(applied.mistakes, []);
    let caught_up = async {
        loop {
            let pipeline = admin.list_pipelines().await.unwrap().remove(0);
            assert_eq!(pipeline.state, "running", "{}", pipeline.reason);
            if pipeline.lag == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // The limit is meant for tests that hang, and is no statement about speed.
    tokio::time::timeout(Duration::from_secs(120), caught_up).await.expect("the pipeline catches up");
    assert_eq!(records(&sound.log(), "out", 1).await, ["0 is even"]);
    let grown = peak_bytes(sound.server.pid()) - before;
    assert!(grown < 256 << 20, "the server grew by {grown} bytes");
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_is_named_with_the_range() {
    let sound = Sound::start().await;
    let (code, grpc) = (ErrorCode::OffsetOutOfRange, Code::OutOfRange);
    for offset in [2, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
        let shown = format!("offset {offset} is out of range");
        let words = ["topic good, partition 0", shown.as_str(), "0 to 1 are there"];
        let partition = v1::FetchPartition { topic: "good".into(), partition: 0, offset, ..Default::default() };
        let fetch = v1::FetchRequest { partitions: vec![partition], max_wait_ms: 60_000, ..Default::default() };
        let answer = sound.log().fetch(fetch).await.unwrap().into_inner().partitions;
        named(answer[0].error.as_ref(), code, &words);
        let from = at(position::At::Offset(offset));
        let (topic, partitions) = ("good".to_owned(), vec![0]);
        let consume = v1::ConsumeRequest { topic, partitions, from, ..Default::default() };
        refused(sound.log().consume(consume).await, code, grpc, &words);
        let offsets = vec![v1::TopicPartitionOffset { topic: "good".into(), partition: 0, offset }];
        let commit = v1::CommitOffsetsRequest { group: "g".into(), offsets };
        refused(sound.groups().commit_offsets(commit).await, code, grpc, &words);
        let ran =
            sound.server.run(&["consume", "good", "--partition", "0", "--until-end", "--from", &offset.to_string()]);
        refused_command(&ran, &words);
    }
    let groups = sound.groups().list_groups(v1::ListGroupsRequest {}).await.unwrap().into_inner().groups;
    assert_eq!(groups, [], "a refused commit must not create a group");
    sound.ends_sound().await;
}

// ---- modules

/// Returns a section of WebAssembly: its id, its size, and its bytes.
fn section(id: u8, bytes: &[u8]) -> Vec<u8> {
    [&[id, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn name(name: &str) -> Vec<u8> {
    [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

const CORE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Returns the module `(module (import "wasi_snapshot_preview1" "sched_yield" (func)))`.
fn core_with_import() -> Vec<u8> {
    let types = section(1, &[1, 0x60, 0, 0]);
    let import = [&[1][..], &name("wasi_snapshot_preview1"), &name("sched_yield"), &[0, 0]].concat();
    [CORE, &types, &section(2, &import)].concat()
}

/// Returns the component `(component (import "…" (instance)))`.
fn component_with_import(interface: &str) -> Vec<u8> {
    let types = section(7, &[1, 0x42, 0]);
    let import = [&[1, 0][..], &name(interface), &[5, 0]].concat();
    [COMPONENT, &types, &section(10, &import)].concat()
}

/// Returns the component `(component (instance) (export "…" (instance 0)))`, with an export for each interface.
fn component_with_exports(interfaces: &[&str]) -> Vec<u8> {
    let instance = section(5, &[1, 1, 0]);
    let mut exports = vec![u8::try_from(interfaces.len()).unwrap()];
    interfaces.iter().for_each(|interface| exports.extend([&[0][..], &name(interface), &[5, 0, 0]].concat()));
    [COMPONENT, &instance, &section(11, &exports)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_stage_is_refused_with_the_reason() {
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    admin.push_module("level", guest("level")).await.unwrap();
    let cases: [(&str, Bytes, &[&str]); 12] = [
        ("empty", Bytes::new(), &["not WebAssembly: the file is empty"]),
        ("text", "fn main() {}".into(), &["not WebAssembly: it begins with \"fn main(\""]),
        ("elf", b"\x7fELF\x02\x01\x01\0\0\0".as_slice().into(), &["not WebAssembly"]),
        ("magic-alone", b"\0asm".as_slice().into(), &["not WebAssembly"]),
        ("core", CORE.to_vec().into(), &["module core:latest", "0.1.0"]),
        ("core-wasi", core_with_import().into(), &["wasi_snapshot_preview1"]),
        (
            "wasi",
            component_with_import("wasi:clocks/monotonic-clock@0.2.0").into(),
            &["it imports wasi:clocks/monotonic-clock@0.2.0", "only millstream:stage/host"],
        ),
        (
            "newer-host",
            component_with_import("millstream:stage/host@0.2.0").into(),
            &["it imports millstream:stage/host@0.2.0"],
        ),
        ("nothing", COMPONENT.to_vec().into(), &["not a stage: it exports nothing"]),
        (
            "other-world",
            component_with_exports(&["acme:other/thing@1.0.0"]).into(),
            &["not a stage: it exports acme:other/thing@1.0.0", "millstream:stage/filter"],
        ),
        (
            "two-stages",
            component_with_exports(&["millstream:stage/filter@0.1.0", "millstream:stage/map@0.1.0"]).into(),
            &["it exports filter and map", "a module can only be one stage"],
        ),
        (
            "hollow",
            component_with_exports(&["millstream:stage/filter@0.1.0"]).into(),
            &["its filter interface does not match millstream:stage@0.1.0"],
        ),
    ];
    for (reference, wasm, words) in cases {
        let error = admin.push_module(reference, wasm).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::InvalidModule), "{reference}: {error}");
        says(&error.to_string(), words);
        says(&error.to_string(), &[&format!("module {reference}:latest")]);
    }
    let large = vec![0; (16 << 20) + 1];
    let error = admin.push_module("large", large.into()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidModule), "{error}");
    says(&error.to_string(), &["exceed the limit of 16777216 (module_bytes_max)"]);

    // The existing module is unchanged and can be used.
    let modules = admin.list_modules().await.unwrap();
    assert_eq!(modules.iter().map(|module| module.reference.as_str()).collect::<Vec<_>>(), ["level:latest"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not.wasm");
    fs::write(&file, "hello").unwrap();
    let ran = sound.server.run(&["module", "push", "hello", file.to_str().unwrap()]);
    refused_command(&ran, &["module hello:latest: not WebAssembly"]);
    let ran = sound.server.run(&["module", "push", "hello", "./nowhere.wasm"]);
    refused_command(&ran, &["cannot read module ./nowhere.wasm", "No such file"]);
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_module_is_refused_whatever_the_damage() {
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    let whole = guest("count");
    let mut damaged: Vec<(String, Bytes)> = Vec::new();
    for eighth in 1..8 {
        let length = whole.len() * eighth / 8;
        damaged.push((format!("cut to {length} of {}", whole.len()), whole.slice(..length)));
    }
    let cut = damaged.len();
    // The section that describes what the module implements is parsed before anything is validated.
    let name = b"component-type";
    let section = whole.windows(name.len()).position(|window| window == name).unwrap();
    for step in 0..40 {
        let mut bytes = whole.to_vec();
        let at = section + step * 23 % (bytes.len() - section);
        bytes[at] ^= 0x41;
        damaged.push((format!("byte {at} changed"), bytes.into()));
    }
    let mut wrong = Vec::new();
    for (index, (what, wasm)) in damaged.into_iter().enumerate() {
        match admin.push_module("damaged", wasm).await {
            Err(error) if error.code() == Some(ErrorCode::InvalidModule) => {}
            // A changed byte of a name may be harmless, but a truncated module is not.
            Ok(_) if index >= cut => {}
            Ok(_) => wrong.push(format!("{what}: taken")),
            Err(error) => wrong.push(format!("{what}: {error}")),
        }
    }
    assert_eq!(wrong, [""; 0]);
    sound.ends_sound().await;
}

// ---- pipeline files

const MISTAKEN: &str = "\
pipeline: p
from: god
stagess: 1
stages:
  - map: level
  - filter: levle
    on-failure: explode
  - filter: level
    limits: { call-deadline: 5 }
to: good
dead-letters: a b
";

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_file_is_refused_with_all_its_mistakes_at_their_places() {
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    admin.push_module("level", guest("level")).await.unwrap();
    let apply = |yaml: &str| v1::ApplyPipelineRequest { yaml: yaml.into(), ..Default::default() };
    let mistakes = admin.apply_pipeline(apply(MISTAKEN)).await.unwrap().mistakes;
    let expected: [(u32, u32, &str); 8] = [
        (2, 7, "there is no topic `god`; did you mean `good`?"),
        (3, 1, "stagess"),
        (5, 5, "module `level` is for a filter stage, not for a map"),
        (6, 13, "did you mean `level`?"),
        (7, 17, "explode"),
        (8, 13, "already called `level`, on line 5"),
        (9, 15, "call-deadline"),
        (11, 15, "a b"),
    ];
    for (line, column, words) in &expected {
        let found = mistakes.iter().find(|mistake| (mistake.line, mistake.column) == (*line, *column));
        let found = found.unwrap_or_else(|| panic!("no mistake at {line}:{column}: {mistakes:#?}"));
        says(&found.message, &[words]);
    }
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    assert!(mistakes.is_sorted_by_key(|mistake| (mistake.line, mistake.column)));

    // Nothing in the file was created.
    assert_eq!(admin.list_pipelines().await.unwrap(), []);
    assert_eq!(admin.list_topics().await.unwrap().len(), 1);
    // A file that is no mapping, not YAML, empty or far too large is refused with a reason.
    for (text, words) in [
        ("", "the file has no pipeline"),
        ("just words", "the file"),
        ("pipeline: [", ""),
        ("a: &x [*x]\n", ""),
        (&"#".repeat(300_000), "the maximum is 262144"),
    ] {
        let mistakes = admin.apply_pipeline(apply(text)).await.unwrap().mistakes;
        assert!(!mistakes.is_empty(), "{}", &text[..text.len().min(20)]);
        says(&mistakes[0].message, &[words]);
    }
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_pipelines_is_refused_with_its_way() {
    let sound = Sound::start().await;
    let admin = sound.server.client().admin();
    admin.push_module("level", guest("level")).await.unwrap();
    let apply = |name: &str, from: &str, to: &str| v1::ApplyPipelineRequest {
        yaml: format!(
            "pipeline: {name}\nfrom: {from}\nstages:\n  - filter: level\n    with: {{ level: warn }}\n    on-failure: skip\nto: {to}\n"
        ),
        ..Default::default()
    };
    let mistakes = admin.apply_pipeline(apply("own", "good", "good")).await.unwrap().mistakes;
    assert_eq!((mistakes.len(), mistakes[0].line, mistakes[0].column), (1, 7, 5), "{mistakes:?}");
    says(&mistakes[0].message, &["`good` is also a source, on line 2", "would read its own output"]);

    assert_eq!(admin.apply_pipeline(apply("there", "good", "middle")).await.unwrap().mistakes, []);
    let mistakes = admin.apply_pipeline(apply("back", "middle", "good")).await.unwrap().mistakes;
    assert_eq!((mistakes.len(), mistakes[0].line, mistakes[0].column), (1, 7, 5), "{mistakes:?}");
    says(&mistakes[0].message, &["a cycle back to a source of the pipeline: good -> [there] -> middle"]);
    // The running pipeline is not affected.
    let pipelines = admin.list_pipelines().await.unwrap();
    assert_eq!((pipelines.len(), pipelines[0].state.as_str()), (1, "running"));
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_change_of_a_pipeline_leaves_the_running_version() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.topic("in", 1).await;
    instance.push("level").await;
    let file = |kind: &str| {
        format!("pipeline: p\nfrom: in\nstages:\n  - {kind}: level\n    with: {{ level: warn }}\nto: out\n")
    };
    instance.apply(&file("filter")).await;
    instance.produce("in", 0, &[(None, "ERROR before")]).await;
    let error = instance.runtime.apply(&file("map"), &BTreeMap::default().into_iter().collect(), false).await;
    says(&error.err().unwrap().to_string(), &["line 4, column 5", "is for a filter stage"]);
    instance.produce("in", 0, &[(None, "ERROR after")]).await;
    instance.caught_up().await;
    let values = instance.all_records("out").await.into_iter().map(|record| record.value.unwrap());
    assert_eq!(values.collect::<Vec<_>>(), ["ERROR before", "ERROR after"]);
    assert_eq!(instance.runtime.pipeline("p").unwrap().version(), 1);
    instance.stop().await;
}

// ---- data directories and disks

/// Runs a `millstream serve` that must end by itself. If it keeps running, it is ended with exit code 124.
fn serve(data: &Path) -> Ran {
    let mut command = Command::new("timeout");
    command.arg("30").arg(millstream()).args([
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--kafka-address",
        "none",
    ]);
    run(command.args(["--log", "error", "--data"]).arg(data), "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_a_data_directory_is_refused_and_the_first_goes_on() {
    let sound = Sound::start().await;
    let data = sound._data.path();
    let words = [data.to_str().unwrap(), &format!("in use by another process ({})", sound.server.pid())];
    refused_command(&serve(data), &words);
    // A symbolic link to the same directory is recognized too.
    let link = tempfile::tempdir().unwrap().path().join("link");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(data, &link).unwrap();
    refused_command(&serve(&link), &["in use by another process"]);
    sound.ends_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_format_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path());
    server.run(&["topic", "create", "t"]).ok();
    server.run_with_input(&["produce", "t"], "kept\n").ok();
    server.terminate();
    let format = data.path().join("FORMAT");
    let own = fs::read_to_string(&format).unwrap();
    let newer = own.replace("format 5", "format 6");
    assert_ne!(own, newer);
    for foreign in [newer.as_str(), "", "something else"] {
        fs::write(&format, foreign).unwrap();
        let before = fs::read(data.path().join("millstream.redb")).unwrap();
        let words = [&format!("has format {:?}", foreign.trim()), own.trim(), "nothing was changed"];
        refused_command(&serve(data.path()), &words);
        assert_eq!(fs::read(data.path().join("millstream.redb")).unwrap(), before);
    }
    fs::write(&format, own).unwrap();
    server.restart();
    assert_eq!(server.run(&["consume", "t", "--from", "earliest", "--until-end"]).ok(), "kept\n");
}

#[test]
fn a_folder_of_something_else_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    refused_command(&serve(folder.path()), &["is not a data directory", "thesis.txt"]);
    assert_eq!(fs::read_to_string(folder.path().join("thesis.txt")).unwrap(), "years of work");
    assert!(!folder.path().join("millstream.redb").exists());
    let file = folder.path().join("thesis.txt");
    refused_command(&serve(&file), &[file.to_str().unwrap()]);
}

/// A disk with space for a limited number of written bytes. Each write uses some of it, even if it overwrites.
#[derive(Debug)]
struct FullDisk {
    disk: Box<dyn StoreFile>,
    room: Arc<AtomicU64>,
}

impl FullDisk {
    fn take(&self, bytes: u64) -> std::io::Result<()> {
        let taken = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(bytes));
        taken.map(drop).map_err(|_| std::io::ErrorKind::StorageFull.into())
    }
}

impl StoreFile for FullDisk {}

impl StorageBackend for FullDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.take(data.len() as u64)?;
        self.disk.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.disk.close()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_that_was_acknowledged() {
    for room in [0, 70_000, 700_000] {
        let data = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let of_disk = left.clone();
        let options = StoreOptions {
            wrap: Some(Arc::new(move |_, disk| Box::new(FullDisk { disk, room: of_disk.clone() }))),
            ..Default::default()
        };
        let (settings, clock) = (BrokerSettings::default(), Arc::new(SystemClock));
        let broker = Broker::open(data.path(), settings, options, clock, &mut Registry::default()).unwrap();
        let name = TopicName::new("t").unwrap();
        let topic = broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap();
        let partition = topic.partition(0).unwrap();
        let mut acknowledged = Vec::new();
        let produce = async |number: usize| {
            let value = format!("{number} {}", "x".repeat(10_000));
            let batch = built(Compression::None, [value.as_bytes()]);
            let offset = broker.produce(&topic, partition, vec![batch]).await?.await?.base_offsets[0];
            Ok::<_, BrokerError>((u64::from(offset), value))
        };
        for number in 0..5 {
            acknowledged.push(produce(number).await.unwrap());
        }
        left.store(room, Ordering::SeqCst);
        let error = loop {
            match produce(acknowledged.len()).await {
                Ok(stored) => acknowledged.push(stored),
                Err(error) => break error,
            }
            assert!(acknowledged.len() < 1_000, "the disk does not become full");
        };
        let BrokerError::Storage(source) = &error else { panic!("{error}") };
        assert!(source.is_disk_full(), "{error}");
        says(&error.to_string(), &["storage failed, the server takes no more writes"]);
        // Free space does not help the running broker, because the file's contents are only known after it is opened
        // again.
        left.store(u64::MAX, Ordering::SeqCst);
        let error = produce(0).await.unwrap_err();
        assert!(matches!(error, BrokerError::Storage(_)), "{error}");
        let failure = broker.failure().borrow().clone();
        assert!(failure.is_some_and(|failure| failure.is_disk_full()));
        assert!(broker.create_topic(&TopicName::new("u").unwrap(), 1, TopicSettings::default(), false).await.is_err());
        // Reads still work.
        assert_eq!(u64::from(partition.end()), acknowledged.len() as u64);
        tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();

        let instance = Instance::open(data.path());
        let kept = instance.records("t", 0).await;
        for (offset, value) in &acknowledged {
            let record = &kept[usize::try_from(*offset).unwrap()];
            assert_eq!(record.value.as_deref(), Some(value.as_bytes()));
        }
        // The failed record exists once or not at all.
        assert!(kept.len() <= acknowledged.len() + 1, "{} of {}", kept.len(), acknowledged.len());
        instance.produce("t", 0, &[(None, "after")]).await;
        instance.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_disk_is_full_says_why_it_takes_no_writes_and_starts_again_with_all_it_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    // A limit on file size acts as a full disk without requiring privileges. It is 8 MiB, in blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 16384; exec \"$0\" serve --grpc 127.0.0.1:0 --http 127.0.0.1:0 \
                  --log error --data \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(millstream())
        .arg(data.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let after = |what| line.split(what).nth(1).and_then(|rest| rest.split([',', '\n']).next());
    let address = after("gRPC ").unwrap_or_else(|| panic!("{line}"));
    let client = millstream_client::Client::new(address).unwrap();
    client.admin().create_topic("t", Some(1), Default::default()).await.unwrap();
    let mut acknowledged: u64 = 0;
    let error = loop {
        let records = (0..100).map(|number| v1::Record {
            key: Some((acknowledged + number).to_string().into()),
            value: Some(vec![b'x'; 1_000].into()),
            ..Default::default()
        });
        let request = v1::ProduceRequest { topic: "t".into(), records: records.collect(), ..Default::default() };
        match client.admin().produce(request).await {
            Ok(_) => acknowledged += 100,
            Err(error) => break error,
        }
        assert!(acknowledged < 20_000, "20 MB were stored despite the limit of 8 MiB");
    };
    assert!(acknowledged > 0);
    assert_eq!(error.code(), Some(ErrorCode::StorageFailed), "{error}");
    says(&error.to_string(), &["storage failed", "until there is room on the disk and it is started again"]);
    // Reads still work, and the health page reports the failure to operators.
    let read = run(
        Command::new(millstream()).args(["--server", address, "consume", "t", "--from", "earliest", "--until-end"]),
        "",
    );
    assert_eq!(read.ok().lines().count() as u64, acknowledged);
    let (status, health) = page(after("HTTP ").unwrap_or_else(|| panic!("{line}")), "/healthz");
    assert_eq!(status, 503, "{health}");
    says(&health, &["File too large"]);
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    says(&said, &["the disk is full: no more writes are accepted; make room and restart the server", "File too large"]);

    let server = Server::start(data.path());
    let kept = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--print", "key"]).ok();
    let kept: Vec<u64> = kept.lines().map(|key| key.parse().unwrap()).collect();
    assert!(kept.len() as u64 >= acknowledged, "{} of {acknowledged}", kept.len());
    assert!(kept.into_iter().eq(0..kept_end(&server)), "the records must be in order and without duplicates");
    server.run_with_input(&["produce", "t"], "after\n").ok();
}

fn kept_end(server: &Server) -> u64 {
    let described = server.run(&["topic", "describe", "t", "--output", "json"]).ok();
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    described["partition_list"][0]["log_end_offset"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_damaged_is_refused_with_its_path() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path());
    server.run(&["topic", "create", "t"]).ok();
    server.terminate();
    fs::write(data.path().join("millstream.redb"), "this is no database").unwrap();
    let ran = serve(data.path());
    refused_command(&ran, &["database"]);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    assert_eq!(fs::read(data.path().join("millstream.redb")).unwrap(), b"this is no database");
    assert!(matches!(
        Broker::open(
            data.path(),
            BrokerSettings::default(),
            StoreOptions::default(),
            Arc::new(SystemClock),
            &mut Registry::default()
        ),
        Err(StoreError::Database(_) | StoreError::Io { .. } | StoreError::Corrupt { .. })
    ));
}
