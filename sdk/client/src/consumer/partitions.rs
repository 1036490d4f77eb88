//! Reading chosen partitions with Consume streams. HTTP/2 flow control limits them to the application's pace, and after
//! a lost connection they resume at the same offsets.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::SelectAll;
use futures::{Stream, StreamExt, stream};
use millstream_api::v1::log_client::LogClient;
use millstream_api::{MESSAGE_BYTES_MAX, v1};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;

use super::shared::{Assigned, Fetched, Shared, UpTo, to_offsets};
use crate::backoff::Backoff;
use crate::client::Channel;
use crate::error::ClientError;
use crate::position::Position;

/// Maximum number of streams on one connection, half of what the server allows. Partitions that start at the same
/// offset share a stream.
const STREAMS_A_CONNECTION: usize = 500;

/// The next offset to read of one partition.
struct Reading {
    partition: Arc<Assigned>,
    offset: u64,
}

/// What is read: partitions, and the UUIDs of their topics.
#[derive(Default)]
struct Partitions {
    readings: BTreeMap<(Arc<str>, u32), Reading>,
    topic_ids: BTreeMap<Arc<str>, String>,
}

impl Partitions {
    fn assigned(&self) -> impl Iterator<Item = Arc<Assigned>> {
        self.readings.values().map(|reading| reading.partition.clone())
    }

    /// The sum of all offsets, which grows while records arrive.
    fn progress(&self) -> u64 {
        self.readings.values().map(|reading| reading.offset).sum()
    }
}

type Answers = Pin<Box<dyn Stream<Item = StreamEvent> + Send>>;

/// A message of a stream, or its end. The number is the index of the stream.
enum StreamEvent {
    Opened,
    Records(Box<v1::ConsumeResponse>),
    Ended(usize),
    Lost(Status),
}

/// The reason why reading stopped.
enum Stop {
    Closing,
    /// Everything is read, with `until_end`.
    Done,
    Lost(ClientError),
    Failed(ClientError),
}

pub(super) async fn run(shared: Arc<Shared>) {
    let committer = commit_now_and_then(&shared);
    let reader = read(&shared);
    tokio::select! {
        failure = reader => if let Some(error) = failure { shared.push_error(error) },
        () = committer => {}
    }
    shared.end();
}

/// Commits offsets that the application chose or has processed.
pub(super) async fn commit(
    shared: &Shared,
    offsets: Vec<v1::TopicPartitionOffset>,
    known: &[(Arc<Assigned>, u64)],
) -> Result<(), ClientError> {
    let group = shared.settings.group.as_deref().unwrap_or_default();
    shared.client.admin().commit_offsets(group, offsets).await?;
    known.iter().for_each(|(partition, offset)| partition.set_committed(*offset));
    Ok(())
}

async fn commit_now_and_then(shared: &Shared) {
    let Some(interval) = shared.settings.auto_commit_interval() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let offsets = shared.to_commit(UpTo::Processed);
        if !offsets.is_empty()
            && let Err(error) = commit(shared, to_offsets(&offsets), &offsets).await
        {
            tracing::warn!("an automatic commit failed: {error}");
        }
    }
}

/// Reads until the end or until an error that cannot be retried.
async fn read(shared: &Shared) -> Option<ClientError> {
    let mut partitions = match unless_closing(shared, begin(shared)).await? {
        Ok(partitions) => partitions,
        Err(error) => return Some(error),
    };
    shared.assign(0, partitions.assigned());
    let mut backoff = Backoff::new(shared.settings.retry_backoff_ms);
    let mut channels = Vec::new();
    loop {
        let before = partitions.progress();
        let error = match stream_all(shared, &mut partitions, &mut channels).await {
            Stop::Closing | Stop::Done => return None,
            Stop::Failed(error) => match unless_closing(shared, start_anew(shared, &mut partitions, error)).await? {
                Ok(()) => continue,
                Err(error) => return Some(error),
            },
            Stop::Lost(error) => error,
        };
        if partitions.progress() > before {
            backoff.reset();
            shared.calm();
        }
        if shared.lost(&error).elapsed() > Duration::from_millis(shared.settings.reconnect_timeout_ms) {
            return Some(error);
        }
        let wait = backoff.next();
        tracing::debug!("reading again in {wait:?}: {error}");
        unless_closing(shared, tokio::time::sleep(wait)).await?;
    }
}

/// Returns `None` if the consumer is closed first.
async fn unless_closing<T>(shared: &Shared, what: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = what => Some(done),
        () = shared.closing() => None,
    }
}

/// Returns the partitions with the offsets at which they start.
async fn begin(shared: &Shared) -> Result<Partitions, ClientError> {
    let admin = shared.client.admin();
    let settings = &shared.settings;
    let mut committed = HashMap::new();
    if let Some(group) = &settings.group {
        match admin.describe_group(group).await {
            Ok(described) => committed.extend(described.offsets.into_iter().filter_map(|offset| {
                let at = offset.committed_offset?;
                Some(((offset.topic, offset.partition), at))
            })),
            Err(error) if error.code() == Some(v1::ErrorCode::UnknownGroup) => {}
            Err(error) => return Err(error),
        }
    }
    let mut partitions = Partitions::default();
    for topic in &settings.topics {
        let name: Arc<str> = topic.as_str().into();
        let listed = admin.topic_offsets(topic, &settings.partitions, settings.from).await?;
        partitions.topic_ids.insert(name.clone(), listed.topic_id);
        for offset in listed.offsets {
            let number = offset.partition;
            let offset = committed.get(&(topic.clone(), number)).copied().unwrap_or(offset.offset);
            let partition = Assigned::new(name.clone(), number, offset);
            partitions.readings.insert((name.clone(), number), Reading { partition, offset });
        }
    }
    Ok(partitions)
}

/// After an error, reads the topics that were deleted and created again from their first records. Returns the error if it
/// has another cause.
async fn start_anew(shared: &Shared, partitions: &mut Partitions, error: ClientError) -> Result<(), ClientError> {
    if !matches!(error.code(), Some(v1::ErrorCode::UnknownTopic | v1::ErrorCode::UnknownTopicId)) {
        return Err(error);
    }
    let (admin, mut recreated) = (shared.client.admin(), 0);
    for topic in &shared.settings.topics {
        let listed = admin.topic_offsets(topic, &shared.settings.partitions, Position::Earliest).await?;
        let name: Arc<str> = topic.as_str().into();
        if partitions.topic_ids.get(&name) == Some(&listed.topic_id) {
            continue;
        }
        tracing::warn!(topic, "the topic was deleted and created again: reading it from its first record");
        recreated += 1;
        partitions.readings.retain(|(of, _), _| *of != name);
        for v1::PartitionOffset { partition: number, offset } in listed.offsets {
            let partition = Assigned::new(name.clone(), number, offset);
            partitions.readings.insert((name.clone(), number), Reading { partition, offset });
        }
        partitions.topic_ids.insert(name, listed.topic_id);
    }
    if recreated == 0 {
        return Err(error);
    }
    shared.recreated(recreated);
    shared.assign(0, partitions.assigned());
    Ok(())
}

async fn stream_all(shared: &Shared, partitions: &mut Partitions, channels: &mut Vec<Channel>) -> Stop {
    let mut groups: BTreeMap<(Arc<str>, u64), Vec<u32>> = BTreeMap::new();
    for ((topic, number), reading) in &partitions.readings {
        groups.entry((topic.clone(), reading.offset)).or_default().push(*number);
    }
    let mut keys: Vec<(Arc<str>, Vec<u32>)> = Vec::with_capacity(groups.len());
    let mut streams: SelectAll<Answers> = SelectAll::new();
    for (index, ((topic, offset), numbers)) in groups.into_iter().enumerate() {
        if index / STREAMS_A_CONNECTION >= channels.len() {
            channels.push(shared.client.own_channel());
        }
        let channel = channels[index / STREAMS_A_CONNECTION].clone();
        let request = v1::ConsumeRequest {
            topic: topic.to_string(),
            partitions: numbers.clone(),
            from: Some(Position::Offset(offset).into()),
            until_end: shared.settings.until_end,
            format: v1::Format::Batches as i32,
            max_bytes: u32::try_from(shared.settings.fetch_bytes_max).unwrap_or(u32::MAX),
            topic_id: partitions.topic_ids.get(&topic).cloned().unwrap_or_default(),
        };
        keys.push((topic, numbers));
        streams.push(Box::pin(open(channel, request, index)));
    }
    loop {
        let next = async {
            while shared.is_full() {
                shared.moved.notified().await;
            }
            streams.next().await
        };
        let Some(next) = unless_closing(shared, next).await else { return Stop::Closing };
        match next {
            None => return Stop::Done,
            Some(StreamEvent::Opened) => shared.found(),
            Some(StreamEvent::Records(answer)) => {
                for records in answer.partitions {
                    if let Err(error) = take(shared, partitions, records) {
                        return Stop::Failed(error);
                    }
                }
            }
            Some(StreamEvent::Ended(index)) if shared.settings.until_end => {
                let (topic, numbers) = &keys[index];
                for number in numbers {
                    partitions.readings.remove(&(topic.clone(), *number));
                }
                if partitions.readings.is_empty() {
                    return Stop::Done;
                }
            }
            Some(StreamEvent::Ended(_)) => {
                let server = shared.client.server().to_owned();
                let reason = "the server ended the stream".to_owned();
                return Stop::Lost(ClientError::Unavailable { server, reason });
            }
            Some(StreamEvent::Lost(status)) => {
                let error = ClientError::from_status(shared.client.server(), &status);
                return if error.is_retriable() { Stop::Lost(error) } else { Stop::Failed(error) };
            }
        }
    }
}

/// Opens a Consume stream and returns its events until its end.
fn open(channel: Channel, request: v1::ConsumeRequest, index: usize) -> impl Stream<Item = StreamEvent> + Send {
    let mut client = LogClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let opened = async move { client.consume(request).await };
    stream::once(opened).flat_map(move |opened| match opened {
        Err(status) => stream::iter([StreamEvent::Lost(status)]).left_stream(),
        Ok(answers) => {
            let events = answers.into_inner().map(|answer| match answer {
                Ok(answer) => StreamEvent::Records(Box::new(answer)),
                Err(status) => StreamEvent::Lost(status),
            });
            stream::iter([StreamEvent::Opened])
                .chain(events)
                .chain(stream::iter([StreamEvent::Ended(index)]))
                .right_stream()
        }
    })
}

fn take(shared: &Shared, partitions: &mut Partitions, records: v1::PartitionRecords) -> Result<(), ClientError> {
    if let Some(error) = records.error {
        return Err(ClientError::refused(error));
    }
    let key = (Arc::from(records.topic.as_str()), records.partition);
    let Some(reading) = partitions.readings.get_mut(&key) else {
        let what =
            format!("records of topic {}, partition {}, which was not requested", records.topic, records.partition);
        return Err(ClientError::Protocol { server: shared.client.server().to_owned(), message: what });
    };
    let from = std::mem::replace(&mut reading.offset, records.next_offset);
    shared.push(Fetched {
        partition: reading.partition.clone(),
        bytes: records.batches.iter().map(|run| run.len()).sum(),
        runs: records.batches,
        from,
        next_offset: records.next_offset,
        log_end_offset: records.log_end_offset,
    });
    Ok(())
}
