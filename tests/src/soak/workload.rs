//! The clients of the soak test: producers, group members that join and leave, and topics that are altered, created and
//! deleted. They know nothing of the checker. An error that a client must not see ends the soak test.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use millstream_client::v1::ErrorCode;
use millstream_client::{
    Client, ClientError, CommitMode, Consumer, ConsumerSettings, Delivery, Position, ProducerRecord, ProducerSettings,
    v1,
};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::model::{
    CLICKS, FLIGHTS, ID, Id, Known, PRODUCERS, PROFILES, RECENT, RETENTION_BYTES_MIN, RETENTION_MS_MIN, Stored, TOPICS,
};

/// The group whose members commit manually.
pub(super) const READERS: &str = "readers";
/// The group whose members commit automatically.
const TAILERS: &str = "tailers";

/// One pipeline with a filter, and one with a filter, a map with its own output topic, a repartition and an aggregate.
pub(super) const PIPELINES: [(&str, &str); 2] = [
    ("late", "pipeline: late\nfrom: flights\nstages:\n  - filter: delayed\n    with: { minutes: \"15\" }\nto: late\n"),
    (
        "delays",
        "pipeline: delays\nfrom: flights\nstages:\n  - filter: delayed\n    with: { minutes: \"15\" }\n  - map: \
         by-origin\n    to: late-by-origin\n  - aggregate: mean-delay\nto: mean-delays\n",
    ),
];

/// The repartition topic of the second pipeline.
pub(super) const REPARTITION: &str = "delays.mean-delay.repartition";

/// Maximum number of unacknowledged records of a producer.
const WINDOW: usize = 2_000;

/// How long a call is retried while the server is unavailable, in seconds.
const CALL_SECONDS_MAX: u64 = 120;

/// Creates topics and pipelines.
pub(super) async fn set_up(client: &Client) -> Result<()> {
    let admin = client.admin();
    for (topic, partitions) in TOPICS {
        let settings = match topic {
            CLICKS => v1::TopicSettings { retention_bytes: Some(RETENTION_BYTES_MIN), ..Default::default() },
            RECENT => v1::TopicSettings { retention_ms: Some(RETENTION_MS_MIN), ..Default::default() },
            PROFILES => v1::TopicSettings {
                cleanup: Some(v1::Cleanup::Compact.into()),
                delete_retention_ms: Some(2_000),
                ..Default::default()
            },
            _ => v1::TopicSettings::default(),
        };
        admin.create_topic(topic, Some(partitions), settings).await?;
    }
    for module in ["delayed", "by-origin", "mean-delay"] {
        admin.push_module(module, crate::guest(module)).await?;
    }
    for (_, yaml) in PIPELINES {
        let request = v1::ApplyPipelineRequest { yaml: yaml.to_owned(), ..Default::default() };
        let applied = admin.apply_pipeline(request).await?;
        ensure!(applied.mistakes.is_empty(), "{:?}", applied.mistakes);
    }
    // The checker reads this topic to learn the order of the records.
    crate::keep(client, REPARTITION).await?;
    Ok(())
}

/// The context of one client: its connection, its shared knowledge, and its stop signal.
pub(super) struct Part {
    pub(super) client: Client,
    pub(super) known: Arc<Known>,
    pub(super) seed: u64,
    pub(super) random: StdRng,
    pub(super) stop: watch::Receiver<bool>,
}

impl Part {
    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Pauses for a random time. Returns at once if the client is stopped.
    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.random.random_range(ms));
        // If the sender of the stop signal is gone, the client stops too.
        let _ = tokio::time::timeout(pause, self.stop.wait_for(|stop| *stop)).await;
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Sends a producer's records until it is stopped, and notes their offsets. Every record must be acknowledged
/// eventually.
pub(super) async fn produce(mut part: Part, index: usize) -> Result<()> {
    let sends = &PRODUCERS[index];
    let settings = ProducerSettings {
        linger_ms: part.random.random_range(0..10),
        compression: sends.compression,
        retry_backoff_ms: 20,
        ..Default::default()
    };
    let producer = part.client.producer(settings);
    // A producer retries everything except its first contact with the server.
    repeat(None, || async { producer.topic(sends.topic).await.map(drop) }).await?;
    let mut number = part.known.numbers.lock()[index];
    let mut on_their_way: VecDeque<(Delivery, Id)> = VecDeque::new();
    while !part.is_stopped() {
        for _ in 0..part.random.random_range(1..60) {
            let id = Id { producer: index as u8, number };
            let (key, value) = id.content(part.seed);
            let record = ProducerRecord {
                key: key.map(Into::into),
                value: value.map(Into::into),
                ..ProducerRecord::new(sends.topic, "")
            };
            let record = record.timestamp_ms(now_ms()).header(ID, id.to_string());
            on_their_way.push_back((producer.send(record).await.with_context(|| format!("record {id}"))?, id));
            number += 1;
        }
        while on_their_way.len() > WINDOW
            || on_their_way.front().is_some_and(|(delivery, _)| delivery.outcome().is_some())
        {
            note(&part.known, sends.topic, on_their_way.pop_front()).await?;
        }
        part.pause(5..60).await;
    }
    while !on_their_way.is_empty() {
        note(&part.known, sends.topic, on_their_way.pop_front()).await?;
    }
    producer.close().await.context("closing a producer")
}

async fn note(known: &Known, topic: &'static str, sent: Option<(Delivery, Id)>) -> Result<()> {
    let Some((delivery, id)) = sent else { return Ok(()) };
    // The record must be acknowledged no matter how often the server was killed meanwhile.
    let stored = delivery.await.with_context(|| format!("{topic}: record {id} was not acknowledged"))?;
    let timestamp_ms = stored.timestamp_ms;
    known.ack((topic, stored.partition), stored.offset, Stored { id, timestamp_ms })?;
    known.numbers.lock()[usize::from(id.producer)] = id.number + 1;
    Ok(())
}

/// Returns whether a consumer may see this error while servers are restarted, and start again.
fn passes(error: &ClientError) -> bool {
    let refused = matches!(
        error.code(),
        Some(ErrorCode::OffsetOutOfRange | ErrorCode::StaleGeneration | ErrorCode::ShuttingDown)
    );
    refused || error.is_retriable() || matches!(error, ClientError::MembershipLost { .. } | ClientError::Timeout { .. })
}

/// Runs members of a group, one after the other. Each notes its records, commits manually, and leaves after a while,
/// with or without a leave request.
pub(super) async fn read(mut part: Part) -> Result<()> {
    while !part.is_stopped() {
        let settings = ConsumerSettings::topic(FLIGHTS).group(READERS).from(Position::Earliest);
        let settings = ConsumerSettings { retry_backoff_ms: 20, ..settings.commit(CommitMode::Manual) };
        let mut consumer = part.client.consumer(settings)?;
        let life = Duration::from_millis(part.random.random_range(1_000..8_000));
        let mut stop = part.stop.clone();
        let reading = read_as_member(&part, &mut consumer);
        tokio::select! {
            read = reading => read?,
            _ = tokio::time::sleep(life) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        leave(&mut part, consumer).await?;
    }
    Ok(())
}

async fn leave(part: &mut Part, consumer: Consumer) -> Result<()> {
    if part.random.random_bool(0.3) {
        return Ok(());
    }
    match consumer.close().await {
        Err(error) if !passes(&error) => Err(error).context("leaving a group"),
        _ => Ok(()),
    }
}

/// Reads until the membership ends.
async fn read_as_member(part: &Part, consumer: &mut Consumer) -> Result<()> {
    while let Some(set) = consumer.next_batch().await {
        let set = match set {
            Ok(set) => set,
            Err(error) if passes(&error) => continue,
            Err(error) => return Err(error).context("a member of the group readers"),
        };
        let partition = set.partition();
        for view in &set {
            let view = view?;
            check_content(part.seed, &view).with_context(|| format!("{FLIGHTS}-{partition} as a member read it"))?;
            let mut seen = part.known.seen.lock();
            let seen = seen.entry(partition).or_default();
            let at = view.offset as usize;
            if seen.len() <= at {
                seen.resize(at + 1, false);
            }
            seen[at] = true;
        }
        let next = set.next_offset();
        let offset = v1::TopicPartitionOffset { topic: FLIGHTS.to_owned(), partition, offset: next };
        match consumer.commit_offsets([offset]).await {
            Ok(()) => {
                let mut committed = part.known.committed.lock();
                // Another member may have advanced and noted a larger offset meanwhile.
                let committed = committed.entry(partition).or_default();
                *committed = next.max(*committed);
            }
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error).context("a commit of the group readers"),
        }
    }
    Ok(())
}

/// Checks that a record is the one that its producer sent with its id.
pub(super) fn check_content(seed: u64, view: &millstream_client::RecordView<'_>) -> Result<Id> {
    let id = Id::of(view).with_context(|| format!("at offset {}", view.offset))?;
    let (key, value) = id.content(seed);
    ensure!(
        key.as_deref().map(str::as_bytes) == view.key && value.as_deref().map(str::as_bytes) == view.value,
        "at offset {}: record {id} differs from the one that was sent: key {:?}, value {:?}",
        view.offset,
        view.key.map(String::from_utf8_lossy),
        view.value.map(String::from_utf8_lossy),
    );
    Ok(id)
}

/// Like [`read`], but for topics whose old records are deleted, and with automatic commits.
pub(super) async fn tail(mut part: Part) -> Result<()> {
    while !part.is_stopped() {
        let settings = ConsumerSettings::topics([CLICKS, RECENT]).group(TAILERS).from(Position::Earliest);
        let settings =
            ConsumerSettings { retry_backoff_ms: 20, ..settings.commit(CommitMode::Auto { interval_ms: 300 }) };
        let mut consumer = part.client.consumer(settings)?;
        let life = tokio::time::Instant::now() + Duration::from_millis(part.random.random_range(1_000..8_000));
        let mut stop = part.stop.clone();
        loop {
            let set = tokio::select! {
                set = consumer.next_batch() => set,
                _ = tokio::time::sleep_until(life) => break,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match set {
                Some(Ok(set)) => {
                    for view in &set {
                        let place = || format!("{}-{} as a member read it", set.topic(), set.partition());
                        check_content(part.seed, &view?).with_context(place)?;
                    }
                }
                Some(Err(error)) if passes(&error) => {}
                Some(Err(error)) => return Err(error).context("a member of the group tailers"),
                None => break,
            }
        }
        leave(&mut part, consumer).await?;
    }
    Ok(())
}

/// Alters settings, and creates and deletes topics.
pub(super) async fn administer(mut part: Part) -> Result<()> {
    while !part.is_stopped() {
        part.pause(200..1_500).await;
        let mut set = v1::TopicSettings::default();
        let topic = match part.random.random_range(0..5) {
            0 => {
                set.retention_bytes = Some(part.random.random_range(RETENTION_BYTES_MIN..RETENTION_BYTES_MIN * 4));
                CLICKS
            }
            1 => {
                set.retention_ms = Some(part.random.random_range(RETENTION_MS_MIN..RETENTION_MS_MIN * 3));
                RECENT
            }
            2 => {
                set.delete_retention_ms = Some(part.random.random_range(500..5_000));
                PROFILES
            }
            3 => {
                set.batch_bytes_max = Some(part.random.random_range(100_000..2_000_000));
                FLIGHTS
            }
            _ => {
                make_and_delete(&mut part).await?;
                continue;
            }
        };
        let request = v1::AlterTopicRequest { name: topic.to_owned(), set: Some(set), ..Default::default() };
        let admin = part.client.admin();
        repeat(None, || admin.alter_topic(request.clone())).await.with_context(|| format!("altering {topic}"))?;
    }
    Ok(())
}

async fn make_and_delete(part: &mut Part) -> Result<()> {
    let name = format!("passing-{}", part.random.random::<u32>());
    let partitions = part.random.random_range(1..4);
    let admin = part.client.admin();
    let create = || async { admin.create_topic(&name, Some(partitions), v1::TopicSettings::default()).await.map(drop) };
    repeat(Some(ErrorCode::AlreadyExists), create).await.with_context(|| format!("making {name}"))?;
    let producer = part.client.producer(ProducerSettings { retry_backoff_ms: 20, ..Default::default() });
    repeat(None, || async { producer.topic(&name).await.map(drop) }).await?;
    let mut deliveries = Vec::new();
    for number in 0..part.random.random_range(0..500u32) {
        let value = format!("{number} {}", "x".repeat(part.random.random_range(0..1_000)));
        deliveries.push(producer.send(ProducerRecord::new(name.as_str(), value)).await?);
    }
    for delivery in deliveries {
        delivery.await.with_context(|| format!("a record of {name}"))?;
    }
    producer.close().await?;
    let delete = || async { admin.delete_topic(&name).await };
    repeat(Some(ErrorCode::UnknownTopic), delete).await.with_context(|| format!("deleting {name}"))?;
    part.known.deleted.lock().push(name);
    Ok(())
}

/// Retries a call while the server is unavailable. `done` is the error code that means that an earlier attempt, whose
/// answer was lost, succeeded.
async fn repeat<T, F: Future<Output = Result<T, ClientError>>>(
    done: Option<ErrorCode>,
    mut call: impl FnMut() -> F,
) -> Result<()> {
    let limit = tokio::time::Instant::now() + Duration::from_secs(CALL_SECONDS_MAX);
    let mut is_first = true;
    loop {
        match call().await {
            Ok(_) => return Ok(()),
            Err(error) if !is_first && error.code().is_some() && error.code() == done => return Ok(()),
            Err(error) if error.is_retriable() && tokio::time::Instant::now() < limit => {}
            Err(error) => return Err(error.into()),
        }
        is_first = false;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
