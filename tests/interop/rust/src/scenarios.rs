//! The scenarios of `cargo xtask interop`.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Outcome;
use crate::clients::{PATIENCE, Sender, admin, consumer, create, flush, producer, queue, read, send, value};

const SCENARIOS: [(&str, fn(&str) -> Outcome); 16] = [
    ("produce-consume", produce_consume),
    ("codecs", codecs),
    ("nulls-headers", nulls_headers),
    ("group", group),
    ("consumer-protocol", consumer_protocol),
    ("commit-resume", commit_resume),
    ("seek-time", seek_time),
    ("admin", administer),
    ("transactions", transactions),
    ("large", large),
    ("many-topics", many_topics),
    ("compacted", compacted),
    ("kill", kill),
    ("disconnects", kill),
    ("kill-transactions", kill_transactions),
    ("kill-consumer-protocol", kill_consumer_protocol),
];

/// Returns the scenario with a name.
pub(crate) fn named(wanted: &str) -> Option<fn(&str) -> Outcome> {
    SCENARIOS.iter().find(|(name, _)| *name == wanted).map(|(_, scenario)| *scenario)
}

fn unique(name: &str) -> String {
    format!("{name}-{:08x}", rand::random::<u32>())
}

fn same<T: PartialEq + Debug>(found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("found {found:?}, expected {expected:?}").into()) }
}

fn until(what: &str, mut done: impl FnMut() -> Outcome<bool>) -> Outcome {
    let limit = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > limit {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
    }
    Ok(())
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn produce_consume(address: &str) -> Outcome {
    let topic = unique("t");
    send(&producer(address, &[])?, &topic, numbers(1_000))?;
    let reader = consumer(address, &unique("g"), &[])?;
    reader.subscribe(&[&topic])?;
    same(read(&reader, 1_000, value)?, numbers(1_000))
}

fn codecs(address: &str) -> Outcome {
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = unique(codec);
        let values: Vec<String> = (0..200).map(|number| format!("{number} {}", codec.repeat(50))).collect();
        send(&producer(address, &[("compression.type", codec)])?, &topic, &values)?;
        let reader = consumer(address, &unique("g"), &[("check.crcs", "true")])?;
        reader.subscribe(&[&topic])?;
        same(read(&reader, 200, value)?, values)?;
    }
    Ok(())
}

fn nulls_headers(address: &str) -> Outcome {
    let topic = unique("t");
    let to = producer(address, &[])?;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "a", value: None::<&str> })
        .insert(Header { key: "b", value: Some("") });
    queue(&to, BaseRecord::to(&topic).headers(headers))?;
    queue(&to, BaseRecord::to(&topic).key(&b""[..]).payload(&b""[..]).timestamp(1_234_567_890_123))?;
    flush(&to)?;
    let reader = consumer(address, &unique("g"), &[])?;
    reader.subscribe(&[&topic])?;
    let found = read(&reader, 2, |record| {
        let headers = record.headers().map_or(Vec::new(), |headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        (record.key().map(<[u8]>::len), record.payload().map(<[u8]>::len), headers, record.timestamp().to_millis())
    })?;
    same(&found[0].2, &vec![("a".into(), Some(b"1".to_vec())), ("a".into(), None), ("b".into(), Some(Vec::new()))])?;
    same((found[0].0, found[0].1, found[1].0, found[1].1), (None, None, Some(0), Some(0)))?;
    same(found[1].3, Some(1_234_567_890_123))
}

fn group(address: &str) -> Outcome {
    for strategy in ["range", "cooperative-sticky"] {
        two_members(address, &[("partition.assignment.strategy", strategy), ("session.timeout.ms", "6000")])?;
    }
    Ok(())
}

fn consumer_protocol(address: &str) -> Outcome {
    two_members(address, &[("group.protocol", "consumer")])
}

fn two_members(address: &str, settings: &[(&str, &str)]) -> Outcome {
    let (topic, group) = (unique("t"), unique("g"));
    create(address, std::slice::from_ref(&topic), 4)?;
    let [first, second] = [consumer(address, &group, settings)?, consumer(address, &group, settings)?];
    let has = |members: &[(&BaseConsumer, usize)]| {
        for (member, _) in members {
            member.poll(Duration::from_millis(50)).transpose()?;
        }
        let mut all = true;
        for (member, count) in members {
            all &= member.assignment()?.count() == *count;
        }
        Ok(all)
    };
    first.subscribe(&[&topic])?;
    until("the first member has all", || has(&[(&first, 4)]))?;
    second.subscribe(&[&topic])?;
    until("both members have two", || has(&[(&first, 2), (&second, 2)]))?;
    drop(first);
    until("the second member has all", || has(&[(&second, 4)]))
}

fn at(topic: &str, offset: Offset) -> Outcome<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, offset)?;
    Ok(list)
}

fn committed(reader: &BaseConsumer, topic: &str) -> Outcome<Offset> {
    let found = reader.committed_offsets(at(topic, Offset::Invalid)?, PATIENCE)?;
    Ok(found.elements()[0].offset())
}

fn commit_resume(address: &str) -> Outcome {
    let (topic, group) = (unique("t"), unique("g"));
    send(&producer(address, &[])?, &topic, numbers(10))?;
    let reader = consumer(address, &group, &[])?;
    reader.subscribe(&[&topic])?;
    read(&reader, 10, value)?;
    reader.commit(&at(&topic, Offset::Offset(4))?, CommitMode::Sync)?;
    same(committed(&reader, &topic)?, Offset::Offset(4))?;
    drop(reader);
    let reader = consumer(address, &group, &[])?;
    reader.subscribe(&[&topic])?;
    same(read(&reader, 6, |record| record.offset())?, (4..10).collect())
}

fn seek_time(address: &str) -> Outcome {
    let topic = unique("t");
    let to = producer(address, &[])?;
    for number in 0..10i64 {
        let value = number.to_string();
        queue(&to, BaseRecord::to(&topic).payload(value.as_bytes()).timestamp(1_700_000_000_000 + number * 1_000))?;
    }
    flush(&to)?;
    let reader = consumer(address, &unique("g"), &[])?;
    let found = reader.offsets_for_times(at(&topic, Offset::Offset(1_700_000_003_500))?, PATIENCE)?;
    same(found.elements()[0].offset(), Offset::Offset(4))?;
    same(reader.fetch_watermarks(&topic, 0, PATIENCE)?, (0, 10))?;
    reader.assign(&found)?;
    same(read(&reader, 6, value)?, numbers(10)[4..].to_vec())
}

fn administer(address: &str) -> Outcome {
    let (topic, group, options) = (unique("t"), unique("g"), AdminOptions::new());
    create(address, std::slice::from_ref(&topic), 2)?;
    let admin = admin(address)?;
    let failed = |(name, code)| format!("{name}: {code}");
    for result in block_on(admin.create_partitions(&[NewPartitions::new(&topic, 3)], &options))? {
        result.map_err(failed)?;
    }
    let resource = ResourceSpecifier::Topic(&topic);
    for result in block_on(admin.alter_configs(&[AlterConfig::new(resource).set("retention.ms", "3600000")], &options))?
    {
        result.map_err(|(_, code)| code.to_string())?;
    }
    let described = block_on(admin.describe_configs([&resource], &options))?.remove(0)?;
    same(described.get("retention.ms").and_then(|entry| entry.value.as_deref()), Some("3600000"))?;
    send(&producer(address, &[])?, &topic, numbers(30))?;
    let reader = consumer(address, &group, &[])?;
    reader.subscribe(&[&topic])?;
    read(&reader, 30, value)?;
    reader.commit_consumer_state(CommitMode::Sync)?;
    let metadata = reader.fetch_metadata(Some(&topic), PATIENCE)?;
    same((metadata.topics()[0].partitions().len(), metadata.brokers().len()), (3, 1))?;
    let groups = reader.fetch_group_list(Some(&group), PATIENCE)?;
    same(groups.groups().iter().map(|group| group.members().len()).collect(), vec![1])?;
    drop(reader);
    for result in block_on(admin.delete_groups(&[&group], &options))? {
        result.map_err(failed)?;
    }
    for result in block_on(admin.delete_topics(&[&topic], &options))? {
        result.map_err(failed)?;
    }
    Ok(())
}

fn transactions(address: &str) -> Outcome {
    let (topic, group) = (unique("t"), unique("g"));
    let id = unique("tx");
    let to = producer(address, &[("transactional.id", &id)])?;
    to.init_transactions(PATIENCE)?;
    for (number, commits) in [true, false, true].into_iter().enumerate() {
        to.begin_transaction()?;
        send(&to, &topic, (0..10).map(|record| format!("{number}-{record}")))?;
        if commits { to.commit_transaction(PATIENCE)? } else { to.abort_transaction(PATIENCE)? }
    }
    let reader = consumer(address, &group, &[])?;
    reader.subscribe(&[&topic])?;
    let expected: Vec<_> = [0, 2].iter().flat_map(|n| (0..10).map(move |record| format!("{n}-{record}"))).collect();
    same(read(&reader, 20, value)?, expected)?;
    to.begin_transaction()?;
    let metadata = reader.group_metadata().ok_or("there is no group")?;
    to.send_offsets_to_transaction(&at(&topic, Offset::Offset(10))?, &metadata, PATIENCE)?;
    to.commit_transaction(PATIENCE)?;
    same(committed(&reader, &topic)?, Offset::Offset(10))?;
    // A producer with the same id fences this one.
    let newer = producer(address, &[("transactional.id", &id)])?;
    newer.init_transactions(PATIENCE)?;
    to.begin_transaction()?;
    queue(&to, BaseRecord::to(&topic).payload(&b"zombie"[..]))?;
    match to.commit_transaction(PATIENCE) {
        Err(KafkaError::Transaction(error)) if error.is_fatal() => Ok(()),
        other => Err(format!("the old producer is not fenced: {other:?}").into()),
    }
}

fn large(address: &str) -> Outcome {
    let (topic, value) = (unique("t"), vec![b'x'; 900_000]);
    send(&producer(address, &[("message.max.bytes", "1000000")])?, &topic, [&value; 20])?;
    let reader = consumer(address, &unique("g"), &[("fetch.message.max.bytes", "100000")])?;
    reader.subscribe(&[&topic])?;
    same(read(&reader, 20, |record| record.payload_len())?, vec![900_000; 20])
}

fn many_topics(address: &str) -> Outcome {
    let mut names: Vec<String> = (0..100).map(|_| unique("many")).collect();
    create(address, &names, 1)?;
    let to = producer(address, &[])?;
    for name in &names {
        queue(&to, BaseRecord::to(name).payload(name.as_bytes()))?;
    }
    flush(&to)?;
    let reader = consumer(address, &unique("g"), &[])?;
    reader.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut found = read(&reader, 100, value)?;
    found.sort();
    names.sort();
    same(found, names)
}

/// Records that were replaced are gone after a while, and readers pass the holes that they leave.
fn compacted(address: &str) -> Outcome {
    const ROUNDS: usize = 40;
    let topic = unique("t");
    let wanted = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    for result in block_on(admin(address)?.create_topics([&wanted], &AdminOptions::new()))? {
        result.map_err(|(name, code)| format!("{name}: {code}"))?;
    }
    let to = producer(address, &[])?;
    for round in 0..ROUNDS {
        for key in 0..100 {
            let (key, value) = (key.to_string(), format!("{round} {}", "x".repeat(1_000)));
            queue(&to, BaseRecord::to(&topic).key(key.as_bytes()).payload(value.as_bytes()))?;
        }
        flush(&to)?;
    }
    let read_all = || -> Outcome<Vec<(i64, Vec<u8>, String)>> {
        let reader = consumer(address, &unique("g"), &[("enable.partition.eof", "true")])?;
        reader.assign(&at(&topic, Offset::Beginning)?)?;
        let mut records = Vec::new();
        loop {
            match reader.poll(PATIENCE) {
                Some(Ok(record)) => {
                    records.push((record.offset(), record.key().unwrap_or_default().to_vec(), value(&record)))
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
                Some(Err(error)) => return Err(error.into()),
                None => return Err("the end does not come".into()),
            }
        }
    };
    until("records are compacted", || Ok(read_all()?.len() < ROUNDS * 100 / 2))?;
    let records = read_all()?;
    same(records.is_sorted_by(|one, next| one.0 < next.0), true)?;
    let last: std::collections::HashMap<_, _> = records.iter().map(|(_, key, value)| (key, value)).collect();
    let begins = format!("{} ", ROUNDS - 1);
    same((last.len(), last.values().all(|value| value.starts_with(&begins))), (100, true))
}

/// The server is killed again and again meanwhile, or its connections are cut.
fn kill(address: &str) -> Outcome {
    const COUNT: usize = 4_000;
    let topic = unique("t");
    let settings = [("enable.idempotence", "true"), ("message.timeout.ms", "120000"), ("linger.ms", "5")];
    let to = producer(address, &settings)?;
    for value in numbers(COUNT) {
        queue(&to, BaseRecord::to(&topic).payload(value.as_bytes()).partition(0))?;
        std::thread::sleep(Duration::from_millis(2));
    }
    flush(&to)?;
    let reader = consumer(address, &unique("g"), &[("session.timeout.ms", "6000")])?;
    reader.subscribe(&[&topic])?;
    same(read(&reader, COUNT, value)?, numbers(COUNT))
}

fn kill_transactions(address: &str) -> Outcome {
    copy_under_kills(address, &[])
}

fn kill_consumer_protocol(address: &str) -> Outcome {
    copy_under_kills(address, &[("group.protocol", "consumer")])
}

/// The server is killed again and again while records are copied exactly once.
fn copy_under_kills(address: &str, group_settings: &[(&str, &str)]) -> Outcome {
    const COUNT: usize = 1_000;
    const IN_TRANSACTION: usize = 10;
    let (topic, copy, group) = (unique("t"), unique("copy"), unique("g"));
    send(&producer(address, &[("enable.idempotence", "true")])?, &topic, numbers(COUNT))?;
    // By default, librdkafka waits for up to ten seconds until it connects again, so a short session would end meanwhile.
    let settings = [&[("reconnect.backoff.max.ms", "1000")], group_settings].concat();
    let reader = consumer(address, &group, &settings)?;
    reader.subscribe(&[&topic])?;
    let writer = || -> Outcome<Sender> {
        let settings = [
            ("transaction.timeout.ms", "20000"),
            ("message.timeout.ms", "19000"),
            ("reconnect.backoff.max.ms", "1000"),
        ];
        let writer = producer(address, &[&settings[..], &[("transactional.id", &unique("tx"))]].concat())?;
        retried(|| writer.init_transactions(Duration::from_secs(10)))?;
        Ok(writer)
    };
    let (mut to, mut done) = (writer()?, 0);
    while done < COUNT {
        let records = read(&reader, IN_TRANSACTION, |record| (value(record), record.offset()))?;
        let next = done + IN_TRANSACTION;
        // A member that joins again reads again from what is committed.
        let is_next = records.iter().map(|(_, offset)| *offset).eq(done as i64..next as i64);
        let copied = || -> Result<(), KafkaError> {
            to.begin_transaction()?;
            for (value, _) in &records {
                to.send(BaseRecord::<(), _>::to(&copy).payload(value)).map_err(|(error, _)| error)?;
            }
            let metadata = reader.group_metadata().ok_or(KafkaError::Canceled)?;
            let offsets = at(&topic, Offset::Offset(next as i64)).map_err(|_| KafkaError::Canceled)?;
            to.send_offsets_to_transaction(&offsets, &metadata, Duration::from_secs(10))?;
            retried(|| to.commit_transaction(Duration::from_secs(10)))?;
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        };
        if is_next {
            match copied() {
                Ok(()) => {
                    done = next;
                    continue;
                }
                Err(KafkaError::Transaction(error)) if error.is_fatal() => {
                    eprintln!("at {done}: {error}");
                    to = writer()?;
                }
                Err(error) => {
                    eprintln!("at {done}: {error}");
                    retried(|| to.abort_transaction(Duration::from_secs(10)))?;
                }
            }
        }
        let committed = retried(|| reader.committed_offsets(at(&topic, Offset::Invalid).unwrap(), PATIENCE))?;
        let committed = committed.elements()[0].offset().to_raw().unwrap_or(0).max(0);
        retried(|| reader.seek(&topic, 0, Offset::Offset(committed), Duration::from_secs(10)))?;
        eprintln!("again from {committed}");
        done = committed as usize;
    }
    let copied = consumer(address, &unique("g"), &[("isolation.level", "read_committed")])?;
    copied.subscribe(&[&copy])?;
    same(read(&copied, COUNT, value)?, numbers(COUNT))
}

/// Calls again what can be tried again.
fn retried<T>(mut call: impl FnMut() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let limit = Instant::now() + 2 * PATIENCE;
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_fatal() || error.txn_requires_abort() => {
                return Err(KafkaError::Transaction(error));
            }
            Err(_) if Instant::now() < limit => std::thread::sleep(Duration::from_millis(200)),
            outcome => return outcome,
        }
    }
}
