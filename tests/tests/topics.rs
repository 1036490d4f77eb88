//! Topics that change while they are used: their settings, their partitions, and their deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use millstream_broker::log::topic::{Change, Cleanup, TopicAlteration, TopicSettings};
use millstream_broker::{BrokerError, TopicName};
use millstream_client::{
    Client, ClientError, ConsumerSettings, Position, Producer, ProducerRecord, ProducerSettings, v1,
};
use millstream_record::partition_for_key;
use millstream_runtime::runtime::RunState;
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::server::Server;
use parking_lot::Mutex;
use tempfile::TempDir;
use v1::ErrorCode;

/// Minimum of `retention_bytes` with the default settings.
const RETENTION_BYTES_MIN: u64 = 64 << 20;

fn name(topic: &str) -> TopicName {
    TopicName::new(topic).unwrap()
}

fn started() -> (Server, Client, TempDir) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let client = server.client();
    (server, client, data)
}

fn to_partitions(topic: &str, partitions: u32) -> v1::AlterTopicRequest {
    v1::AlterTopicRequest { name: topic.into(), partitions: Some(partitions), ..Default::default() }
}

/// Waits for a future. The limit is meant for tests that hang, and is no statement about speed.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), future).await;
    done.unwrap_or_else(|_| panic!("not completed within two minutes: {what}"))
}

fn assert_refused(error: &ClientError, code: ErrorCode, words: &[&str]) {
    assert_eq!(error.code(), Some(code), "{error}");
    for words in words {
        assert!(error.to_string().contains(words), "{words:?} is not in: {error}");
    }
}

// ---- refused changes

#[tokio::test]
async fn settings_that_contradict_each_other_or_promise_too_little_are_refused_and_change_nothing() {
    let (_server, client, _data) = started();
    let admin = client.admin();
    let compact = Some(v1::Cleanup::Compact as i32);
    let min = RETENTION_BYTES_MIN.to_string();
    let wrong = [
        (
            v1::TopicSettings { cleanup: compact, retention_ms: Some(5_000), ..Default::default() },
            ["retention_ms: 5000 is not allowed", "compact,delete"],
        ),
        (
            v1::TopicSettings { cleanup: compact, retention_bytes: Some(1 << 30), ..Default::default() },
            ["retention_bytes: 1073741824 is not allowed", "compact,delete"],
        ),
        (
            v1::TopicSettings { delete_retention_ms: Some(0), ..Default::default() },
            ["delete_retention_ms: 0 is not allowed", "cleanup is \"delete\""],
        ),
        (
            v1::TopicSettings { retention_bytes: Some(RETENTION_BYTES_MIN - 1), ..Default::default() },
            ["retention_bytes: 67108863 is not allowed", &min],
        ),
        (
            v1::TopicSettings { retention_ms: Some(999), ..Default::default() },
            ["retention_ms: 999 is not allowed", "1000 or more"],
        ),
        (
            v1::TopicSettings { batch_bytes_max: Some(1023), ..Default::default() },
            ["batch_bytes_max: 1023 is not allowed", "1024 to"],
        ),
        (
            v1::TopicSettings { cleanup: Some(9), ..Default::default() },
            ["cleanup: 9 is not allowed", "CLEANUP_COMPACT"],
        ),
    ];
    let good = v1::TopicSettings { retention_ms: Some(1_000), ..Default::default() };
    admin.create_topic("t", Some(2), good).await.unwrap();
    let before = admin.describe_topic("t").await.unwrap();
    for (settings, words) in wrong {
        let error = admin.create_topic("new", None, settings).await.unwrap_err();
        assert_refused(&error, ErrorCode::InvalidRequest, &words);
        // Otherwise the topic's own retention_ms would be refused first.
        let unset = match settings.retention_ms {
            Some(_) => Vec::new(),
            None => vec![v1::TopicSetting::RetentionMs as i32],
        };
        let alter = v1::AlterTopicRequest { name: "t".into(), set: Some(settings), unset, partitions: Some(5) };
        assert_refused(&admin.alter_topic(alter).await.unwrap_err(), ErrorCode::InvalidRequest, &words);
    }
    assert_eq!(admin.describe_topic("t").await.unwrap(), before);
    assert_eq!(admin.list_topics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_alteration_that_makes_no_sense_is_refused_and_changes_nothing() {
    let (_server, client, _data) = started();
    let admin = client.admin();
    admin.create_topic("t", Some(3), Default::default()).await.unwrap();
    let before = admin.describe_topic("t").await.unwrap();
    for (partitions, words) in
        [(2, "use 3 to 10000: partitions can be added, not removed"), (0, "use 3"), (10_001, "use 3")]
    {
        let error = admin.alter_topic(to_partitions("t", partitions)).await.unwrap_err();
        let value = format!("partitions: {partitions} is not allowed");
        assert_refused(&error, ErrorCode::InvalidRequest, &[&value, words]);
    }
    let retention = v1::TopicSettings { retention_ms: Some(5_000), ..Default::default() };
    let unset = |setting| v1::AlterTopicRequest {
        name: "t".into(),
        set: Some(retention),
        unset: vec![setting],
        partitions: Some(4),
    };
    let both = admin.alter_topic(unset(v1::TopicSetting::RetentionMs as i32)).await.unwrap_err();
    assert_refused(&both, ErrorCode::InvalidRequest, &["unset: retention_ms", "set it or unset it"]);
    for unknown in [0, 77] {
        let error = admin.alter_topic(unset(unknown)).await.unwrap_err();
        assert_refused(&error, ErrorCode::InvalidRequest, &[&format!("unset: {unknown}"), "names no setting"]);
    }
    assert_refused(&admin.alter_topic(to_partitions("u", 4)).await.unwrap_err(), ErrorCode::UnknownTopic, &["\"u\""]);
    assert_refused(&admin.alter_topic(to_partitions("a b", 4)).await.unwrap_err(), ErrorCode::InvalidName, &["a b"]);
    assert_eq!(admin.describe_topic("t").await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let (_server, client, _data) = started();
    let admin = client.admin();
    let settings = v1::TopicSettings { cleanup: Some(v1::Cleanup::Compact as i32), ..Default::default() };
    admin.create_topic("t", Some(2), settings).await.unwrap();
    let record = |key: Option<&'static str>| v1::Record {
        key: key.map(|key| key.as_bytes().into()),
        value: Some("v".into()),
        ..Default::default()
    };
    let plain = v1::ProduceRequest {
        topic: "t".into(),
        partition: Some(1),
        records: vec![record(Some("a")), record(Some("")), record(None)],
        ..Default::default()
    };
    let words = ["topic t, partition 1: record 2 of the request", "no key", "nothing of this request was stored"];
    assert_refused(&admin.produce(plain).await.unwrap_err(), ErrorCode::InvalidBatch, &words);

    // Batches, plain and compressed. The second batch contains the record at fault.
    for compression in [millstream_record::Compression::None, millstream_record::Compression::Lz4] {
        let batch = |keys: &[Option<&str>]| {
            let mut builder = millstream_record::BatchBuilder::new(compression);
            keys.iter().for_each(|key| builder.push(7, key.map(str::as_bytes), Some(b"v"), []));
            builder.finish().unwrap().into_bytes()
        };
        let batches = [batch(&[Some("a"), Some("b")]), batch(&[Some("c"), None, Some("d")])].concat();
        let batches =
            v1::ProduceRequest { topic: "t".into(), partition: Some(0), batches: batches.into(), ..Default::default() };
        let words = ["topic t, partition 0: record 3 of the request"];
        assert_refused(&admin.produce(batches).await.unwrap_err(), ErrorCode::InvalidBatch, &words);
    }
    let producer = client.producer(ProducerSettings::default());
    let refused = producer.send(ProducerRecord::new("t", "v")).await.unwrap().await.unwrap_err();
    assert_refused(&refused, ErrorCode::InvalidBatch, &["record 0 of the request"]);
    assert_eq!(admin.describe_topic("t").await.unwrap().topic.unwrap().records, 0);

    producer.send(ProducerRecord::keyed("t", "k", "v")).await.unwrap().await.unwrap();
    // After its alteration, the topic accepts such records at once.
    let cleanup = vec![v1::TopicSetting::Cleanup as i32];
    let alter = v1::AlterTopicRequest { name: "t".into(), unset: cleanup, ..Default::default() };
    assert_eq!(admin.alter_topic(alter).await.unwrap().settings.unwrap().cleanup(), v1::Cleanup::Delete);
    producer.send(ProducerRecord::new("t", "v")).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_stops_before_output_without_a_key_for_a_compacted_topic() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    instance.push("level").await;
    instance.topic("lines", 1).await;
    instance.topic("out", 1).await;
    instance.apply("pipeline: p\nfrom: lines\nstages:\n  - filter: level\n    with: { level: warn }\nto: out\n").await;
    instance.produce("lines", 0, &[(None, "ERROR 0")]).await;
    instance.caught_up().await;
    // From now on the running pipeline uses the altered topic.
    let compact = TopicAlteration { cleanup: Change::Set(Cleanup::Compact), ..Default::default() };
    let before = instance.runtime.pipeline("p").unwrap();
    instance.broker.alter_topic(&name("out"), &compact).await.unwrap();
    wait_until("the pipeline is restarted", || !Arc::ptr_eq(&before, &instance.runtime.pipeline("p").unwrap())).await;
    instance.produce("lines", 0, &[(Some("k"), "ERROR 1"), (None, "ERROR 2"), (Some("k"), "ERROR 3")]).await;
    let state = || instance.runtime.pipeline("p").unwrap().state();
    wait_until("the pipeline stops", || matches!(state(), RunState::Stopped(_))).await;
    let RunState::Stopped(reason) = state() else { unreachable!() };
    for words in ["topic lines, partition 0, offset 2", "no key", "topic out is compacted"] {
        assert!(reason.contains(words), "{reason}");
    }
    let values = async || -> Vec<String> {
        let records = instance.records("out", 0).await;
        records.iter().map(|record| String::from_utf8_lossy(record.value.as_ref().unwrap()).into_owned()).collect()
    };
    assert_eq!(values().await, ["ERROR 0", "ERROR 1"]);

    let delete = TopicAlteration { cleanup: Change::Unset, ..Default::default() };
    instance.broker.alter_topic(&name("out"), &delete).await.unwrap();
    // If it is resumed before it knows of the alteration, it stops again.
    soon("the pipeline continues", async {
        loop {
            instance.runtime.resume("p").await.unwrap();
            if values().await.len() == 4 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(values().await, ["ERROR 0", "ERROR 1", "ERROR 2", "ERROR 3"]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_not_added_under_an_aggregates_state_nor_to_a_repartition_topic() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    for guest in ["count", "words"] {
        instance.push(guest).await;
    }
    instance.topic("keyed", 2).await;
    instance.topic("lines", 2).await;
    instance.apply("pipeline: direct\nfrom: keyed\nstages:\n  - aggregate: count\nto: counts\n").await;
    let between = "pipeline: between\nfrom: lines\nstages:\n  - map: words\n  - aggregate: count\nto: word-counts\n";
    instance.apply(between).await;
    let grow = |partitions| TopicAlteration { partitions: Some(partitions), ..Default::default() };

    instance.runtime.pause("direct").await.unwrap();
    let refused = instance.broker.alter_topic(&name("keyed"), &grow(3)).await.unwrap_err();
    assert!(matches!(refused, BrokerError::PartitionsInUse { .. }), "{refused}");
    let said = refused.to_string();
    for words in ["topic keyed can't have 3 partitions", "stage count", "pipeline direct", "the 2 there are"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(instance.broker.topic("keyed").unwrap().partition_count(), 2);
    // Settings can still be altered.
    let retention = TopicAlteration { retention_ms: Change::Set(60_000), ..Default::default() };
    instance.broker.alter_topic(&name("keyed"), &retention).await.unwrap();

    let internal = name("between.count.repartition");
    for alteration in [grow(3), retention] {
        let refused = instance.broker.alter_topic(&internal, &alteration).await.unwrap_err();
        assert!(matches!(refused, BrokerError::TopicInternal { .. }), "{refused}");
    }
    // Before a repartition topic, keys may be in any partition.
    instance.broker.alter_topic(&name("lines"), &grow(3)).await.unwrap();
    wait_until("there is one more task", || instance.runtime.pipeline("between").unwrap().tasks() == 5).await;
    instance.produce("lines", 2, &[(None, "a b a")]).await;
    instance.caught_up().await;
    assert_eq!(instance.all_records("word-counts").await.len(), 2);

    // A pipeline that aggregates a topic whose keys have moved gets a repartition topic.
    instance.runtime.delete("direct").await.unwrap();
    instance.produce("keyed", partition_for_key(b"k", 2), &[(Some("k"), "1")]).await;
    instance.broker.alter_topic(&name("keyed"), &grow(7)).await.unwrap();
    let key = (0..)
        .map(|n| format!("k{n}"))
        .find(|k| partition_for_key(k.as_bytes(), 2) != partition_for_key(k.as_bytes(), 7));
    let key = key.unwrap();
    instance.produce("keyed", partition_for_key(key.as_bytes(), 2), &[(Some(&key), "1")]).await;
    instance.produce("keyed", partition_for_key(key.as_bytes(), 7), &[(Some(&key), "1")]).await;
    let changes = instance.apply("pipeline: direct\nfrom: keyed\nstages:\n  - aggregate: count\nto: counts\n").await;
    assert!(changes.iter().any(|line| line.contains("direct.count.repartition: created with 7")), "{changes:?}");
    instance.caught_up().await;
    let counts = instance.all_records("counts").await;
    let of_key = counts.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    let last = of_key.last().unwrap().value.clone().unwrap();
    assert_eq!(last, "2");
    instance.stop().await;
}

// ---- effective changes

#[tokio::test(flavor = "multi_thread")]
async fn altering_under_load_loses_nothing_and_holds_at_once() {
    let (_server, client, _data) = started();
    let admin = client.admin();
    admin.create_topic("t", Some(2), Default::default()).await.unwrap();
    let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let (admin, stop, stored) = (client.admin(), stop.clone(), stored.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let record =
                        v1::Record { key: Some("k".into()), value: Some(vec![7; 500].into()), ..Default::default() };
                    let request =
                        v1::ProduceRequest { topic: "t".into(), records: vec![record; 3], ..Default::default() };
                    admin.produce(request).await.unwrap();
                    stored.fetch_add(3, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for round in 1..=20u32 {
        let seen = stored.load(Ordering::SeqCst);
        let set = v1::TopicSettings {
            retention_ms: Some(3_600_000 + u64::from(round)),
            batch_bytes_max: Some(4096 + round),
            ..Default::default()
        };
        let alter = v1::AlterTopicRequest {
            name: "t".into(),
            set: Some(set),
            partitions: Some(2 + round),
            ..Default::default()
        };
        let answered = admin.alter_topic(alter).await.unwrap();
        assert_eq!(answered.partitions, 2 + round);
        assert_eq!(answered.settings.unwrap().batch_bytes_max, Some(4096 + round));
        let described = admin.describe_topic("t").await.unwrap();
        assert_eq!(described.topic.unwrap().settings, answered.settings);
        assert_eq!(described.partition_list.len() as u32, 2 + round);
        // The limit applies to the next request.
        let record = v1::Record { value: Some(vec![7; 5000].into()), ..Default::default() };
        let request = v1::ProduceRequest { topic: "t".into(), records: vec![record], ..Default::default() };
        let limit = format!("limit of {}", 4096 + round);
        assert_refused(&admin.produce(request).await.unwrap_err(), ErrorCode::BatchTooLarge, &[&limit]);
        wait_until("more records are stored", || stored.load(Ordering::SeqCst) > seen).await;
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    let records = admin.describe_topic("t").await.unwrap().topic.unwrap().records;
    assert_eq!(records, stored.load(Ordering::SeqCst));
}

/// Partition, offset and value of each record that the members of a group received.
type Seen = Arc<Mutex<Vec<(u32, u64, String)>>>;

fn member(client: &Client, from: Position, seen: Seen) -> tokio::task::JoinHandle<()> {
    let mut consumer = client.consumer(ConsumerSettings::topic("t").group("g").from(from)).unwrap();
    tokio::spawn(async move {
        while let Some(record) = consumer.next().await {
            let record = record.unwrap();
            let value = String::from_utf8_lossy(record.value.as_ref().unwrap()).into_owned();
            seen.lock().push((record.partition, record.offset, value));
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn added_partitions_are_produced_consumed_and_processed_exactly_once() {
    const BEFORE: u32 = 2;
    const AFTER: u32 = 7;
    let (server, client, _data) = started();
    let admin = client.admin();
    admin.create_topic("t", Some(BEFORE), Default::default()).await.unwrap();
    admin.push_module("level", millstream_tests::guest("level")).await.unwrap();
    let yaml = "pipeline: p\nfrom: t\nstages:\n  - filter: level\n    with: { level: warn }\nto: out\n".to_owned();
    let applied = admin.apply_pipeline(v1::ApplyPipelineRequest { yaml, ..Default::default() }).await.unwrap();
    assert!(applied.mistakes.is_empty(), "{:?}", applied.mistakes);

    let seen = Seen::default();
    let mut members: Vec<_> = (0..2).map(|_| member(&client, Position::Earliest, seen.clone())).collect();
    let producer = client.producer(ProducerSettings { metadata_max_age_ms: 10, ..Default::default() });
    let mut sent = 0u64;
    let mut moved = BTreeSet::new();
    let mut produce = async |producer: &Producer, moved: &mut BTreeSet<u32>| {
        let key = format!("key-{}", sent % 97);
        let value = format!("ERROR {sent}");
        sent += 1;
        let at = producer.send(ProducerRecord::keyed("t", key.clone(), value)).await.unwrap().await.unwrap();
        let (old, new) = (partition_for_key(key.as_bytes(), BEFORE), partition_for_key(key.as_bytes(), AFTER));
        assert!(at.partition == new || moved.is_empty() && at.partition == old, "{key}: {}", at.partition);
        if at.partition >= BEFORE {
            moved.insert(at.partition);
        }
        sent
    };
    for _ in 0..100 {
        produce(&producer, &mut moved).await;
    }
    assert!(moved.is_empty());
    admin.alter_topic(to_partitions("t", AFTER)).await.unwrap();
    let all = soon("every new partition is written", async {
        loop {
            let sent = produce(&producer, &mut moved).await;
            if moved.len() as u32 == AFTER - BEFORE {
                break sent;
            }
        }
    })
    .await;
    producer.close().await.unwrap();

    // Partitions move between members while records arrive.
    members.push(member(&client, Position::Earliest, seen.clone()));
    wait_until("the members have all records", || {
        let seen = seen.lock();
        seen.iter().map(|(_, _, value)| value).collect::<BTreeSet<_>>().len() as u64 == all
    })
    .await;
    let places: BTreeSet<_> = seen.lock().iter().map(|(partition, offset, _)| (*partition, *offset)).collect();
    assert_eq!((places.len(), seen.lock().len()), (all as usize, all as usize), "no record may be delivered twice");
    members.iter().for_each(tokio::task::JoinHandle::abort);

    let processed = soon("the pipeline has processed all records", async {
        loop {
            let lag = admin.describe_group("p").await.unwrap();
            if lag.group.unwrap().lag == 0 && lag.offsets.len() as u32 == AFTER {
                let consumer =
                    client.consumer(ConsumerSettings::topic("out").from(Position::Earliest).until_end()).unwrap();
                break consumer.into_stream().try_collect::<Vec<_>>().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let values: BTreeSet<_> = processed.iter().map(|record| record.value.clone().unwrap()).collect();
    assert_eq!((values.len(), processed.len()), (all as usize, all as usize), "each record must be processed once");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_for_many_groups_are_added_in_commits_of_bounded_size() {
    const GROUPS: u64 = 25;
    const ADDED: u64 = 999;
    let (server, client, _data) = started();
    let admin = client.admin();
    admin.create_topic("t", Some(1), Default::default()).await.unwrap();
    let group = |number: u64| format!("a group with a name of some length, number {number}");
    let mut members = Vec::new();
    for number in 0..GROUPS {
        members.push(client.consumer(ConsumerSettings::topic("t").group(group(number))).unwrap());
        let described = async || admin.describe_group(&group(number)).await;
        soon("the group has begun", async {
            while !described().await.is_ok_and(|group| group.offsets.iter().any(|of| of.committed_offset.is_some())) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    let count = |name: &str| {
        let page = server.metrics();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
        line.unwrap_or_else(|| panic!("{name} is missing: {page}"))
    };
    let (commits, bytes) = (count("millstream_commits_total"), count("millstream_commit_bytes_total"));
    admin.alter_topic(to_partitions("t", ADDED as u32 + 1)).await.unwrap();
    let (commits, bytes) =
        (count("millstream_commits_total") - commits, count("millstream_commit_bytes_total") - bytes);
    assert!(commits >= 3 && bytes / commits < 2_000_000, "{bytes} bytes in {commits} commits");
    // Each group has an offset in each partition.
    let offsets = admin.describe_group(&group(GROUPS - 1)).await.unwrap().offsets;
    assert_eq!(offsets.iter().filter(|of| of.committed_offset == Some(0)).count() as u64, ADDED + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_began_at_the_latest_miss_nothing_of_added_partitions() {
    let (mut server, client, _data) = started();
    let admin = client.admin();
    admin.create_topic("t", Some(1), Default::default()).await.unwrap();
    let produce = async |client: &Client, partition, value: &'static str| {
        let record = v1::Record { value: Some(value.into()), ..Default::default() };
        let request = v1::ProduceRequest {
            topic: "t".into(),
            partition: Some(partition),
            records: vec![record],
            ..Default::default()
        };
        client.admin().produce(request).await.unwrap();
    };
    produce(&client, 0, "before").await;
    let seen = Seen::default();
    let reading = member(&client, Position::Latest, seen.clone());
    soon("the member has its partition", async {
        while !admin.describe_group("g").await.is_ok_and(|group| group.members.iter().any(|m| m.partitions.len() == 1))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    admin.alter_topic(to_partitions("t", 3)).await.unwrap();
    produce(&client, 1, "at once").await;
    wait_until("the member has the record", || seen.lock().len() == 1).await;
    assert_eq!(*seen.lock(), [(1, 0, "at once".to_owned())]);
    reading.abort();
    // This also holds if no member was there to commit, and after a restart.
    soon("the member has left", async {
        while !admin.describe_group("g").await.unwrap().members.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    produce(&client, 2, "meanwhile").await;
    server.kill();
    server.restart();
    let seen = Seen::default();
    let reading = member(&server.client(), Position::Latest, seen.clone());
    let values = || seen.lock().iter().map(|(_, _, value)| value.clone()).collect::<BTreeSet<_>>();
    wait_until("the member has the records that were written meanwhile", || values().contains("meanwhile")).await;
    assert!(!values().contains("before"));
    reading.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_partitions_survive_a_restart() {
    let (mut server, client, _data) = started();
    let admin = client.admin();
    let settings = v1::TopicSettings { batch_bytes_max: Some(2048), ..Default::default() };
    let created = admin.create_topic("t", Some(1), settings).await.unwrap();
    let set = v1::TopicSettings {
        cleanup: Some(v1::Cleanup::CompactAndDelete as i32),
        retention_ms: Some(60_000),
        retention_bytes: Some(RETENTION_BYTES_MIN),
        delete_retention_ms: Some(0),
        batch_bytes_max: None,
        timestamp_before_max_ms: Some(86_400_000),
        timestamp_after_max_ms: Some(0),
    };
    let unset = vec![v1::TopicSetting::BatchBytesMax as i32];
    let alter = v1::AlterTopicRequest { name: "t".into(), set: Some(set), unset, partitions: Some(4) };
    let altered = admin.alter_topic(alter).await.unwrap();
    assert_eq!((altered.settings, altered.partitions), (Some(set), 4));
    assert_eq!(altered.created_at_ms, created.created_at_ms);
    let record = v1::Record { key: Some("k".into()), value: Some("v".into()), ..Default::default() };
    let request =
        v1::ProduceRequest { topic: "t".into(), partition: Some(3), records: vec![record], ..Default::default() };
    admin.produce(request).await.unwrap();
    let before = admin.describe_topic("t").await.unwrap();
    server.kill();
    server.restart();
    let after = server.client().admin().describe_topic("t").await.unwrap();
    assert_eq!(after, before);
    assert_eq!(after.partition_list[3].log_end_offset, 1);
}

#[tokio::test]
async fn an_alteration_of_nothing_writes_nothing_and_keeps_the_topic() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    let settings = TopicSettings { retention_ms: Some(5_000), ..Default::default() };
    let before = instance.broker.create_topic(&name("t"), 2, settings, false).await.unwrap();
    let same = TopicAlteration { retention_ms: Change::Set(5_000), partitions: Some(2), ..Default::default() };
    for alteration in [TopicAlteration::default(), same] {
        let after = instance.broker.alter_topic(&name("t"), &alteration).await.unwrap();
        assert!(Arc::ptr_eq(&before, &after));
    }
    // A caller that holds the previous version of the topic can continue, because the partitions are the same.
    let more = TopicAlteration { partitions: Some(3), ..Default::default() };
    let after = instance.broker.alter_topic(&name("t"), &more).await.unwrap();
    assert!(before.partitions().iter().zip(after.partitions()).all(|(old, new)| Arc::ptr_eq(old, new)));
    assert_eq!((before.id(), before.partition_count()), (after.id(), 2));
    assert_eq!(after.meta().settings, before.meta().settings);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_began_comes_to_its_end_when_the_caller_is_gone() {
    let data = tempfile::tempdir().unwrap();
    let instance = Instance::open(data.path());
    let broker = &instance.broker;
    let known = |topic: &str| broker.topic(topic).ok();
    // Each future is dropped where it first waits.
    assert!(broker.create_topic(&name("t"), 2, TopicSettings::default(), false).now_or_never().is_none());
    wait_until("the topic exists", || known("t").is_some()).await;
    let more = TopicAlteration { partitions: Some(5), ..Default::default() };
    assert!(broker.alter_topic(&name("t"), &more).now_or_never().is_none());
    wait_until("the topic has more partitions", || known("t").is_some_and(|topic| topic.partition_count() == 5)).await;
    assert!(broker.delete_topic(&name("t")).now_or_never().is_none());
    wait_until("the topic is gone", || known("t").is_none()).await;
    instance.topic("in", 1).await;
    instance.topic("out", 1).await;
    instance.push("words").await;
    let (yaml, paths) = ("pipeline: p\nfrom: in\nstages:\n- map: words\nto: out\n", BTreeMap::new());
    let runtime = &instance.runtime;
    assert!(runtime.apply(yaml, &paths, false).now_or_never().is_none());
    let state = || runtime.pipeline("p").ok().map(|pipeline| pipeline.state());
    wait_until("the pipeline runs", || state() == Some(RunState::Running)).await;
    assert!(runtime.pause("p").now_or_never().is_none());
    wait_until("the pipeline is paused", || state() == Some(RunState::Paused)).await;
    assert!(runtime.delete("p").now_or_never().is_none());
    wait_until("the pipeline is gone", || state().is_none()).await;
    instance.stop().await;
}

// ---- deletion

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_or_writes_a_topic_that_is_deleted_is_told_and_nobody_hangs() {
    let (server, client, data) = started();
    let admin = client.admin();
    for _ in 0..5 {
        admin.create_topic("t", Some(3), Default::default()).await.unwrap();
        deleted_in_use(&client).await;
    }
    // The server still works, and a topic with the same name is a new topic.
    let created = admin.create_topic("t", Some(1), Default::default()).await.unwrap();
    assert_eq!(created.records, 0);
    let producer = client.producer(ProducerSettings::default());
    let stored = producer.send(ProducerRecord::new("t", "v")).await.unwrap().await.unwrap();
    assert_eq!((stored.partition, stored.offset), (0, 0));
    ends_well(server, data.path());
}

fn ends_well(mut server: Server, data: &Path) {
    assert!(server.terminate().success());
    drop(Server::start(data));
}

/// Reads and writes `t` in all ways, deletes it, and waits until all clients are notified.
async fn deleted_in_use(client: &Client) {
    let written = Arc::new(AtomicU64::new(0));
    let mut told: BTreeMap<&str, tokio::task::JoinHandle<ClientError>> = BTreeMap::new();
    for what in ["unary writer", "another unary writer"] {
        let (admin, written) = (client.admin(), written.clone());
        let writer = async move {
            let record = v1::Record { value: Some("v".into()), ..Default::default() };
            let request = v1::ProduceRequest { topic: "t".into(), records: vec![record], ..Default::default() };
            loop {
                match admin.produce(request.clone()).await {
                    Ok(_) => written.fetch_add(1, Ordering::SeqCst),
                    Err(error) => return error,
                };
            }
        };
        told.insert(what, tokio::spawn(writer));
    }
    let producer = client.producer(ProducerSettings::default());
    let writer = async move {
        for number in 0.. {
            let sent = producer.send(ProducerRecord::keyed("t", format!("{number}"), "v")).await;
            let stored = match sent {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            };
            if let Err(error) = stored {
                return error;
            }
        }
        unreachable!()
    };
    told.insert("producer", tokio::spawn(writer));
    for (what, settings) in [
        ("consumer", ConsumerSettings::topic("t").from(Position::Earliest)),
        ("member", ConsumerSettings::topic("t").from(Position::Earliest).group("g")),
    ] {
        let consumer = client.consumer(settings).unwrap();
        let reader = async move {
            let mut records = Box::pin(consumer.into_stream());
            loop {
                match records.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => panic!("the stream ended without an error"),
                }
            }
        };
        told.insert(what, tokio::spawn(reader));
    }
    // A long poll for more bytes than will arrive.
    let admin = client.admin();
    let poll = async move {
        let partitions = vec![v1::FetchPartition { topic: "t".into(), partition: 0, offset: 0, ..Default::default() }];
        let request = v1::FetchRequest {
            partitions,
            max_wait_ms: 60_000,
            min_bytes: u32::MAX,
            max_bytes: u32::MAX,
            ..Default::default()
        };
        loop {
            let answer = match admin.fetch(request.clone()).await {
                Ok(answer) => answer,
                Err(error) => return error,
            };
            if let Some(error) = answer.partitions.into_iter().find_map(|partition| partition.error) {
                return ClientError::Refused { code: error.code(), message: error.message };
            }
        }
    };
    told.insert("long poll", tokio::spawn(poll));
    wait_until("the writers are running", || written.load(Ordering::SeqCst) > 50).await;
    client.admin().delete_topic("t").await.unwrap();
    for (what, told) in told {
        let error = soon(what, told).await.unwrap();
        assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{what}: {error}");
    }
    assert!(client.admin().list_topics().await.unwrap().is_empty());
}
