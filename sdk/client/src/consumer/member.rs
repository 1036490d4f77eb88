//! A member of a consumer group. It has one Join stream at a time, and joins again when the stream is lost.
//!
//! ```text
//! join -> assigned -> reading <-> revoking -> … -> leaving
//!   ^________________________lost_______________|
//! ```
//! This task reads its stream all the time, so that it sees a Revoke immediately. The amount of data that may arrive is
//! limited by credit, which grows as the application takes records (`shared.rs`). Partitions are given back once the
//! application has processed the records that it holds of them, and the offsets are committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_api::v1::groups_client::GroupsClient;
use millstream_api::v1::member_request::Message as ToServer;
use millstream_api::v1::member_response::Message as FromServer;
use millstream_api::{MESSAGE_BYTES_MAX, v1};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::shared::{Assigned, Fetched, Shared, UpTo, dirty, to_offsets};
use crate::backoff::Backoff;
use crate::client::Channel;
use crate::error::ClientError;
use crate::position::Position;

/// Maximum time for an orderly leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a stream ended.
enum End {
    Closed,
    Lost(ClientError),
    Failed(ClientError),
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut attempts = Attempts { backoff: Backoff::new(shared.settings.retry_backoff_ms), ever_joined: false };
    let channel = shared.client.own_channel();
    loop {
        let mut session = Session::new(&shared);
        let end = session.run(channel.clone()).await;
        let joined = session.joined;
        shared.left();
        let error = match end {
            End::Closed => break,
            End::Failed(error) => {
                shared.push_error(error);
                break;
            }
            End::Lost(error) => error,
        };
        let Some(wait) = attempts.wait_after(joined, &shared, &error) else {
            shared.push_error(error);
            break;
        };
        tracing::debug!("joining again in {wait:?}: {error}");
        tokio::select! {
            () = shared.closing() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    shared.end();
}

/// The history of streams.
struct Attempts {
    backoff: Backoff,
    ever_joined: bool,
}

impl Attempts {
    /// Returns how long to wait after a stream was lost, or `None` to give up. `joined` says whether the server
    /// accepted the stream.
    fn wait_after(&mut self, joined: bool, shared: &Shared, error: &ClientError) -> Option<Duration> {
        if joined {
            self.backoff.reset();
            self.ever_joined = true;
        }
        let reconnect_timeout = Duration::from_millis(shared.settings.reconnect_timeout_ms);
        (self.ever_joined && shared.lost(error).elapsed() <= reconnect_timeout).then(|| self.backoff.next())
    }
}

/// The state of one stream.
struct Session<'a> {
    shared: &'a Shared,
    joined: bool,
    /// Next offset to read, for each partition.
    reading: BTreeMap<(String, u32), u64>,
    /// Partitions that the server asked to give back and that are not given back yet.
    revoking: Vec<Arc<Assigned>>,
    revoke_deadline: Option<Instant>,
    /// With `until_end`, the offset at which each partition ends.
    ends: Option<BTreeMap<(String, u32), u64>>,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared) -> Self {
        let (reading, revoking) = (BTreeMap::new(), Vec::new());
        Self { shared, joined: false, reading, revoking, revoke_deadline: None, ends: None }
    }

    async fn run(&mut self, channel: Channel) -> End {
        let joining = self.join(channel);
        let mut answers = match joining.await {
            Ok(Some(answers)) => answers,
            Ok(None) => return End::Closed,
            Err(error) => return end(error),
        };
        let mut ticks = self.shared.settings.auto_commit_interval().map(|interval| {
            let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        let shared = self.shared;
        let mut closing = std::pin::pin!(shared.closing());
        loop {
            self.give_back();
            let revoke_deadline = self.revoke_deadline;
            tokio::select! {
                () = &mut closing => return self.leave(answers).await,
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => if let Err(error) = self.hear(answer) { return End::Failed(error) },
                    Ok(None) => return End::Lost(self.unavailable("the server ended the stream")),
                    Err(status) => return end(ClientError::from_status(self.shared.client.server(), &status)),
                },
                () = self.shared.moved.notified() => {}
                () = tick(&mut ticks) => self.commit(self.shared.to_commit(UpTo::Processed)),
                () = until(revoke_deadline) => self.revoke_deadline = None,
            }
        }
    }

    /// Opens the stream. Returns `None` if the consumer is closed first.
    async fn join(&mut self, channel: Channel) -> Result<Option<Streaming<v1::MemberResponse>>, ClientError> {
        let settings = &self.shared.settings;
        let (requests, receiver) = mpsc::unbounded_channel();
        let join = v1::Join {
            group: settings.group.clone().unwrap_or_default(),
            topics: settings.topics.clone(),
            client_id: settings.client_id.clone(),
            from_earliest: settings.from == Position::Earliest,
            rebalance_timeout_ms: settings.rebalance_timeout_ms,
            format: v1::Format::Batches as i32,
        };
        let _ = requests.send(v1::MemberRequest { message: Some(ToServer::Join(join)) });
        let mut client = GroupsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let shared = self.shared;
        let joining = async {
            if settings.until_end {
                let mut ends = BTreeMap::new();
                for topic in &settings.topics {
                    for end in shared.client.admin().list_offsets(topic, &[], Position::Latest).await? {
                        ends.insert((topic.clone(), end.partition), end.offset);
                    }
                }
                self.ends = Some(ends);
            }
            let answers = client.join(UnboundedReceiverStream::new(receiver)).await;
            answers.map_err(|status| ClientError::from_status(shared.client.server(), &status))
        };
        let answers = tokio::select! {
            answers = joining => answers?.into_inner(),
            () = shared.closing() => return Ok(None),
        };
        self.joined = true;
        shared.found();
        shared.joined(requests);
        Ok(Some(answers))
    }

    fn hear(&mut self, answer: v1::MemberResponse) -> Result<(), ClientError> {
        match answer.message {
            Some(FromServer::Joined(joined)) => tracing::debug!(member_id = joined.member_id, "joined"),
            Some(FromServer::Assigned(assigned)) => self.assigned(assigned),
            Some(FromServer::Revoke(revoke)) => self.revoke(&revoke),
            Some(FromServer::Records(records)) => self.records(records),
            Some(FromServer::Committed(committed)) => self.shared.committed(committed),
            None => {
                let server = self.shared.client.server().to_owned();
                let message = "a message to a member of a group has an unknown type".to_owned();
                return Err(ClientError::Protocol { server, message });
            }
        }
        Ok(())
    }

    fn assigned(&mut self, assigned: v1::Assigned) {
        let mut added = Vec::with_capacity(assigned.added.len());
        for partition in assigned.added {
            added.push(Assigned::new(partition.topic.as_str().into(), partition.partition, partition.offset));
            self.reading.insert((partition.topic, partition.partition), partition.offset);
        }
        self.shared.assign(assigned.generation, added);
        self.check_end();
    }

    fn revoke(&mut self, revoke: &v1::Revoke) {
        for partition in &revoke.partitions {
            self.reading.remove(&(partition.topic.clone(), partition.partition));
        }
        self.revoking.extend(self.shared.revoke(revoke.generation, &revoke.partitions));
        // The application gets half of the rebalance timeout. The rest is left for the answer to reach the server.
        let patience = Duration::from_millis(u64::from(self.shared.settings.rebalance_timeout_ms) / 2);
        self.revoke_deadline.get_or_insert_with(|| Instant::now() + patience);
    }

    /// Gives back revoked partitions once the application has processed their records, or once the deadline has passed.
    fn give_back(&mut self) {
        if self.revoking.is_empty() {
            self.revoke_deadline = None;
            return;
        }
        if self.revoke_deadline.is_some() && self.shared.in_hand(&self.revoking) {
            return;
        }
        let partitions = std::mem::take(&mut self.revoking);
        self.revoke_deadline = None;
        if self.shared.settings.auto_commit_interval().is_some() {
            self.commit(dirty(&partitions, UpTo::Processed));
        }
        let names = partitions
            .iter()
            .map(|partition| v1::TopicPartition { topic: partition.topic.to_string(), partition: partition.number });
        self.shared.send(ToServer::Revoked(v1::Revoked { partitions: names.collect() }));
        self.shared.given_back(&partitions);
    }

    fn records(&mut self, records: v1::PartitionRecords) {
        let bytes = records.batches.iter().map(|run| run.len()).sum();
        self.shared.received(bytes);
        self.shared.calm();
        let key = (records.topic, records.partition);
        let Some(offset) = self.reading.get_mut(&key) else {
            // The records were already sent when the partition was given back.
            return self.shared.regrant();
        };
        if let Some(error) = records.error {
            // The server continues with the other partitions. A deleted topic has no offsets to commit.
            self.reading.remove(&key);
            if error.code() == v1::ErrorCode::UnknownTopic {
                self.shared.given_back(&Vec::from_iter(self.shared.partition(&key.0, key.1)));
            }
            return self.shared.push_error(ClientError::refused(error));
        }
        if records.missed_records > 0 {
            let (topic, partition) = (&key.0, key.1);
            tracing::warn!(topic, partition, records.missed_records, "retention deleted records before they were read");
            self.shared.missed(records.missed_records);
        }
        let from = std::mem::replace(offset, records.next_offset);
        if let Some(partition) = self.shared.partition(&key.0, key.1) {
            self.shared.push(Fetched {
                partition,
                runs: records.batches,
                bytes,
                from,
                next_offset: records.next_offset,
                log_end_offset: records.log_end_offset,
            });
        }
        self.check_end();
    }

    /// With `until_end`, ends once all assigned partitions are read to their end. A member without partitions waits for
    /// an assignment.
    fn check_end(&self) {
        let Some(ends) = &self.ends else { return };
        let done = |(partition, offset): (&(String, u32), &u64)| ends.get(partition).is_none_or(|end| offset >= end);
        if !self.reading.is_empty() && self.reading.iter().all(done) {
            self.shared.end();
        }
    }

    fn commit(&self, offsets: Vec<(Arc<Assigned>, u64)>) {
        if !offsets.is_empty() {
            // Without a stream, a commit is not possible; the records are delivered again.
            let _ = self.shared.commit_as_member(to_offsets(&offsets), offsets, None);
        }
    }

    /// Waits for the answers to pending commits, and leaves the group.
    async fn leave(&mut self, mut answers: Streaming<v1::MemberResponse>) -> End {
        let leaving = async {
            while self.shared.commits_pending() {
                match answers.message().await {
                    Ok(Some(v1::MemberResponse { message: Some(FromServer::Committed(committed)) })) => {
                        self.shared.committed(committed);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
            self.shared.leave();
            while let Ok(Some(_)) = answers.message().await {}
        };
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, leaving).await;
        End::Closed
    }

    fn unavailable(&self, reason: &str) -> ClientError {
        ClientError::Unavailable { server: self.shared.client.server().to_owned(), reason: reason.to_owned() }
    }
}

/// Decides whether to join again. A member that was too slow joins again as a new member.
fn end(error: ClientError) -> End {
    if error.is_retriable() || error.code() == Some(v1::ErrorCode::StaleGeneration) {
        End::Lost(error)
    } else {
        End::Failed(error)
    }
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, poll};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tonic::codec::Codec;
    use tonic::codegen::{Bytes, http};
    use tonic_prost::ProstCodec;

    use super::*;
    use crate::{Client, ConsumerSettings};

    fn assigned(partitions: std::ops::Range<u32>) -> v1::Assigned {
        let added = |partition| v1::TopicPartitionOffset { topic: "t".into(), partition, offset: 0 };
        v1::Assigned { generation: 1, added: partitions.map(added).collect(), ..Default::default() }
    }

    fn revoke(partition: u32) -> v1::Revoke {
        v1::Revoke { generation: 2, partitions: vec![v1::TopicPartition { topic: "t".into(), partition }] }
    }

    fn shared(settings: ConsumerSettings) -> Shared {
        Shared::new(Client::new("127.0.0.1:1").unwrap(), settings.group("g"))
    }

    fn records(partition: u32, next_offset: u64, bytes: usize) -> v1::PartitionRecords {
        let batches = if bytes == 0 { Vec::new() } else { vec![Bytes::from(vec![0; bytes])] };
        v1::PartitionRecords { topic: "t".into(), partition, batches, next_offset, ..Default::default() }
    }

    /// Creates a member's stream of server messages, in the transport's encoding.
    fn answers() -> (mpsc::UnboundedSender<FromServer>, Streaming<v1::MemberResponse>) {
        let (say, said) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(said).map(|message| {
            let message = prost::Message::encode_to_vec(&v1::MemberResponse { message: Some(message) });
            // A gRPC frame: the flag for no compression, then the length of the message.
            let mut frame = vec![0];
            frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
            frame.extend_from_slice(&message);
            Ok::<_, tonic::Status>(Frame::data(Bytes::from(frame)))
        });
        let decoder = ProstCodec::<v1::MemberRequest, v1::MemberResponse>::default().decoder();
        (say, Streaming::new_response(decoder, StreamBody::new(frames), http::StatusCode::OK, None, None))
    }

    #[tokio::test]
    async fn who_leaves_hears_first_what_became_of_its_commits() {
        let shared = shared(ConsumerSettings::topic("t"));
        let (requests, mut sent) = mpsc::unbounded_channel();
        shared.joined(requests);
        let mut session = Session::new(&shared);
        session.assigned(assigned(0..1));
        let (answer, mut told) = tokio::sync::oneshot::channel();
        shared.commit_as_member(Vec::new(), Vec::new(), Some(answer)).unwrap();
        let (say, answers) = answers();
        let mut leaving = std::pin::pin!(session.leave(answers));
        say.send(FromServer::Records(records(0, 1, 10))).unwrap();
        assert!(poll!(&mut leaving).is_pending());
        assert!(!sent.is_closed() && told.try_recv().is_err(), "leaving waits for the answer");
        say.send(FromServer::Committed(v1::Committed { id: 1, error: None })).unwrap();
        assert!(poll!(&mut leaving).is_pending());
        assert!(matches!(told.try_recv(), Ok(Ok(()))));
        while sent.try_recv().is_ok() {}
        assert!(matches!(sent.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)), "the requests end");
        // The server closes the stream.
        drop(say);
        let left = tokio::time::timeout(LEAVE_TIMEOUT / 2, leaving).await;
        assert!(matches!(left, Ok(End::Closed)), "leaving waits for nothing else");
    }

    #[tokio::test]
    async fn credit_for_records_of_a_partition_that_was_given_back_is_given_again() {
        let shared = shared(ConsumerSettings { buffer_bytes_max: 1_000, ..ConsumerSettings::topic("t") });
        let (requests, mut sent) = mpsc::unbounded_channel();
        shared.joined(requests);
        let mut session = Session::new(&shared);
        session.assigned(assigned(0..2));
        session.revoke(&revoke(1));
        session.give_back();
        while sent.try_recv().is_ok() {}
        session.records(records(1, 5, 1_000));
        let granted = sent.try_recv().unwrap().message;
        assert!(matches!(granted, Some(ToServer::Credit(v1::Credit { bytes: 1_000 }))), "{granted:?}");
        // Records that are kept for the application do not give credit back.
        session.records(records(0, 5, 1_000));
        assert!(sent.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_member_is_at_the_end_once_each_of_its_partitions_is() {
        let shared = shared(ConsumerSettings::topic("t"));
        let mut session = Session::new(&shared);
        session.ends = Some((0..3).map(|partition| (("t".to_owned(), partition), 5)).collect());
        // Without partitions, the member waits for an assignment.
        session.check_end();
        session.assigned(assigned(0..2));
        for (partition, next_offset) in [(0, 5), (1, 4)] {
            session.records(records(partition, next_offset, 10));
            assert_eq!(shared.take().await.unwrap().unwrap().partition.number, partition);
            assert!(poll!(std::pin::pin!(shared.take())).is_pending(), "partition 1 has more");
        }
        session.records(records(1, 5, 10));
        assert!(shared.take().await.is_some());
        assert!(shared.take().await.is_none());
    }

    #[tokio::test]
    async fn who_was_a_member_waits_longer_each_time_until_it_is_one_again() {
        let shared = shared(ConsumerSettings { reconnect_timeout_ms: 3_600_000, ..ConsumerSettings::topic("t") });
        let error = shared.membership_lost();
        let mut attempts = Attempts { backoff: Backoff::new(100), ever_joined: false };
        assert_eq!(attempts.wait_after(false, &shared, &error), None);
        let waits = [true, false, false, true, true, false];
        let waits = waits.map(|joined| attempts.wait_after(joined, &shared, &error).unwrap().as_millis());
        assert_eq!(waits, [100, 200, 400, 100, 100, 200]);
        // The wait ends once the reconnect timeout has passed.
        let impatient = self::shared(ConsumerSettings { reconnect_timeout_ms: 0, ..ConsumerSettings::topic("t") });
        let mut attempts = Attempts { backoff: Backoff::new(100), ever_joined: false };
        impatient.lost(&error);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(attempts.wait_after(true, &impatient, &error), None);
    }

    #[test]
    fn who_was_too_slow_joins_again_and_who_is_refused_does_not() {
        use v1::ErrorCode as E;
        let ended = |code: E| end(ClientError::refused(v1::Error { code: code as i32, message: String::new() }));
        for code in [E::StaleGeneration, E::ShuttingDown, E::TimedOut] {
            assert!(matches!(ended(code), End::Lost(_)), "{code:?}");
        }
        for code in [E::InvalidRequest, E::UnknownTopic] {
            assert!(matches!(ended(code), End::Failed(_)), "{code:?}");
        }
    }

    #[tokio::test]
    async fn a_deadline_is_that_of_the_first_revoke_that_is_not_answered() {
        let shared = shared(ConsumerSettings::topic("t"));
        let mut session = Session::new(&shared);
        session.assigned(assigned(0..4));
        // The application holds no records of this partition, so it is given back immediately.
        session.revoke(&revoke(3));
        assert!(session.revoke_deadline.is_some());
        session.give_back();
        assert!(session.revoking.is_empty() && session.revoke_deadline.is_none());

        let partition = shared.partition("t", 0).unwrap();
        let (from, next_offset, log_end_offset) = (0, 1, 1);
        shared.push(Fetched { partition, runs: Vec::new(), bytes: 0, from, next_offset, log_end_offset });
        shared.take().await.unwrap().unwrap();
        session.revoke(&revoke(0));
        let deadline = session.revoke_deadline;
        session.give_back();
        assert_eq!(session.revoking.len(), 1, "the application is processing its records");
        session.revoke(&revoke(1));
        session.give_back();
        assert_eq!((session.revoking.len(), session.revoke_deadline), (2, deadline));
        // After the deadline, which the loop clears, the partitions are given back regardless.
        session.revoke_deadline = None;
        session.give_back();
        assert!(session.revoking.is_empty() && session.revoke_deadline.is_none());

        // They are also given back once the application has processed the records.
        let partition = shared.partition("t", 2).unwrap();
        shared.push(Fetched { partition, runs: Vec::new(), bytes: 0, from, next_offset, log_end_offset });
        shared.take().await.unwrap().unwrap();
        session.revoke(&revoke(2));
        session.give_back();
        assert_eq!(session.revoking.len(), 1);
        shared.settle();
        session.give_back();
        assert!(session.revoking.is_empty() && session.revoke_deadline.is_none());
    }
}
