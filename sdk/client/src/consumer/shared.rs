//! The state that a consumer's handle and its task share: records that are ready to be taken, and the application's
//! progress in each partition.
//!
//! There are three offsets for each partition. The application has received the records before `handed`. It has
//! processed the records before `processed`, because it has asked for more since. Offset `committed` is on disk.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_api::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::ConsumerSettings;
use crate::client::Client;
use crate::error::ClientError;

/// Marks a partition for which no committed offset is known.
const NOT_COMMITTED: u64 = u64::MAX;

/// Maximum credit that the server keeps for a member, in bytes. The server discards credit beyond it.
const CREDIT_BYTES_MAX: usize = 32 << 20;

/// A connection that is lost before this time does not end an outage.
const STEADY: Duration = Duration::from_secs(1);

/// One partition of the assignment.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) topic: Arc<str>,
    pub(super) number: u32,
    handed: AtomicU64,
    processed: AtomicU64,
    committed: AtomicU64,
    revoked: AtomicBool,
}

impl Assigned {
    pub(super) fn new(topic: Arc<str>, number: u32, offset: u64) -> Arc<Self> {
        Arc::new(Self {
            topic,
            number,
            handed: AtomicU64::new(offset),
            processed: AtomicU64::new(offset),
            committed: AtomicU64::new(NOT_COMMITTED),
            revoked: AtomicBool::new(false),
        })
    }

    /// Marks the records before `offset` as received by the application.
    #[inline]
    pub(super) fn hand_out(&self, offset: u64) {
        self.handed.store(offset, Ordering::Release);
    }

    /// Marks the records before `offset` as processed by the application.
    #[inline]
    pub(super) fn processed(&self, offset: u64) {
        self.processed.store(offset, Ordering::Release);
    }

    pub(super) fn set_committed(&self, offset: u64) {
        self.committed.store(offset, Ordering::Release);
    }

    /// Whether the partition has been or is being given to another member.
    #[inline]
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    fn settle(&self) {
        self.processed(self.handed.load(Ordering::Acquire));
    }

    fn to_commit(&self, upto: UpTo) -> Option<u64> {
        let offset = match upto {
            UpTo::Handed => &self.handed,
            UpTo::Processed => &self.processed,
        };
        let offset = offset.load(Ordering::Acquire);
        (offset != self.committed.load(Ordering::Acquire)).then_some(offset)
    }

    fn name(&self) -> v1::TopicPartition {
        v1::TopicPartition { topic: self.topic.to_string(), partition: self.number }
    }
}

/// Which offset to commit.
#[derive(Clone, Copy, Debug)]
pub(super) enum UpTo {
    /// The offset after all records that the application received.
    Handed,
    /// The offset after all records that the application processed.
    Processed,
}

/// Fetched records of one partition, as received.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) partition: Arc<Assigned>,
    pub(super) runs: Vec<Bytes>,
    pub(super) bytes: usize,
    pub(super) from: u64,
    pub(super) next_offset: u64,
    pub(super) log_end_offset: u64,
}

/// The partitions that a consumer currently reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// Generation of the group, or 0 without a group.
    pub generation: u64,
    /// The partitions, ordered by topic and number.
    pub partitions: Vec<v1::TopicPartition>,
}

/// State shared between handle and task; see the module documentation.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) settings: ConsumerSettings,
    state: Mutex<State>,
    /// Wakes the handle when there are records to take, or at the end.
    arrived: Notify,
    /// Wakes the task when there is room, or when the application has returned.
    pub(super) moved: Notify,
    closing: watch::Sender<bool>,
    pub(super) assignment: watch::Sender<Assignment>,
    trouble: Mutex<Option<Trouble>>,
    missed_records: AtomicU64,
    recreated_topics: AtomicU64,
}

/// An outage of the connection to the server.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    reason: String,
    over_at: Option<Instant>,
}

impl Trouble {
    fn goes_on(&self) -> bool {
        self.over_at.is_none_or(|at| at.elapsed() < STEADY)
    }
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Result<Fetched, ClientError>>,
    /// Total size of the records in `ready`, in bytes.
    held_bytes: usize,
    ended: bool,
    assigned: BTreeMap<(Arc<str>, u32), Arc<Assigned>>,
    generation: u64,
    /// Partition whose records the application is processing.
    in_hand: Option<Arc<Assigned>>,
    /// Set while the consumer is a member of the group.
    member: Option<Membership>,
}

/// The handle's side of a member's stream.
#[derive(Debug)]
struct Membership {
    requests: mpsc::UnboundedSender<v1::MemberRequest>,
    /// Number of bytes that the server may still send, according to the server's count.
    credit_bytes: usize,
    next_commit: u64,
    commits: HashMap<u64, Committing>,
}

#[derive(Debug)]
struct Committing {
    offsets: Vec<(Arc<Assigned>, u64)>,
    answer: Option<oneshot::Sender<Result<(), ClientError>>>,
}

impl Shared {
    pub(super) fn new(client: Client, settings: ConsumerSettings) -> Self {
        Self {
            client,
            settings,
            state: Mutex::default(),
            arrived: Notify::new(),
            moved: Notify::new(),
            closing: watch::Sender::new(false),
            assignment: watch::Sender::new(Assignment::default()),
            trouble: Mutex::default(),
            missed_records: AtomicU64::new(0),
            recreated_topics: AtomicU64::new(0),
        }
    }

    /// Counts records that retention deleted before they were read.
    pub(super) fn missed(&self, records: u64) {
        self.missed_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn missed_records(&self) -> u64 {
        self.missed_records.load(Ordering::Relaxed)
    }

    /// Counts topics that were deleted and created again while they were read.
    pub(super) fn recreated(&self, topics: u64) {
        self.recreated_topics.fetch_add(topics, Ordering::Relaxed);
    }

    pub(super) fn recreated_topics(&self) -> u64 {
        self.recreated_topics.load(Ordering::Relaxed)
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().as_ref().filter(|trouble| trouble.goes_on()).map(|trouble| trouble.reason.clone())
    }

    // The handle's side

    /// Returns the next records, and marks the previous ones as processed.
    pub(super) async fn take(&self) -> Option<Result<Fetched, ClientError>> {
        loop {
            {
                let mut state = self.state.lock();
                state.settle();
                if let Some(next) = state.ready.pop_front() {
                    if let Ok(fetched) = &next {
                        state.held_bytes -= fetched.bytes;
                        state.in_hand = Some(fetched.partition.clone());
                        self.grant(&mut state);
                    }
                    drop(state);
                    self.moved.notify_one();
                    return Some(next);
                }
                if state.ended {
                    return None;
                }
            }
            // The application is waiting, so a task that waits for it may continue.
            self.moved.notify_one();
            self.arrived.notified().await;
        }
    }

    /// Returns the offsets to commit, of all partitions that have one.
    pub(super) fn to_commit(&self, upto: UpTo) -> Vec<(Arc<Assigned>, u64)> {
        let state = self.state.lock();
        state.assigned.values().filter_map(|part| Some((part.clone(), part.to_commit(upto)?))).collect()
    }

    /// Returns those of the partitions that are part of the assignment.
    pub(super) fn find(&self, offsets: &[v1::TopicPartitionOffset]) -> Vec<(Arc<Assigned>, u64)> {
        let state = self.state.lock();
        let find = |offset: &v1::TopicPartitionOffset| {
            let key = (Arc::from(offset.topic.as_str()), offset.partition);
            Some((state.assigned.get(&key)?.clone(), offset.offset))
        };
        offsets.iter().filter_map(find).collect()
    }

    /// Sends a commit on the member's stream. The answer is sent to `answer`, which is dropped if the stream is lost.
    pub(super) fn commit_as_member(
        &self,
        offsets: Vec<v1::TopicPartitionOffset>,
        known: Vec<(Arc<Assigned>, u64)>,
        answer: Option<oneshot::Sender<Result<(), ClientError>>>,
    ) -> Result<(), ClientError> {
        let mut state = self.state.lock();
        let Some(member) = &mut state.member else { return Err(self.membership_lost()) };
        let id = member.next_commit;
        member.next_commit += 1;
        member.commits.insert(id, Committing { offsets: known, answer });
        member.send(v1::member_request::Message::Commit(v1::Commit { id, offsets }));
        Ok(())
    }

    pub(super) fn membership_lost(&self) -> ClientError {
        ClientError::MembershipLost { group: self.settings.group.clone().unwrap_or_default() }
    }

    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    // The task's side

    /// Notes that the server is unreachable, and returns since when. If the server was reachable for less than
    /// [`STEADY`], the earlier outage continues.
    pub(super) fn lost(&self, error: &ClientError) -> Instant {
        let mut trouble = self.trouble.lock();
        let before = trouble.as_ref().filter(|trouble| trouble.goes_on()).map(|trouble| trouble.since);
        if before.is_none() {
            tracing::warn!(server = self.client.server(), "reading was interrupted, retrying: {error}");
        }
        let since = before.unwrap_or_else(Instant::now);
        *trouble = Some(Trouble { since, reason: error.to_string(), over_at: None });
        since
    }

    /// Notes that the server is reachable.
    pub(super) fn found(&self) {
        if let Some(trouble) = &mut *self.trouble.lock()
            && trouble.over_at.is_none()
        {
            trouble.over_at = Some(Instant::now());
            tracing::debug!(
                server = self.client.server(),
                "the server is reachable again after {:?}",
                trouble.since.elapsed()
            );
        }
    }

    /// Clears the outage.
    pub(super) fn calm(&self) {
        *self.trouble.lock() = None;
    }

    /// Waits until the consumer is closed.
    pub(super) async fn closing(&self) {
        // The sender lives as long as `self`.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.lock().held_bytes >= self.settings.buffer_bytes_max
    }

    /// Marks the records that the application holds as processed, when the consumer is closed.
    pub(super) fn settle(&self) {
        self.state.lock().settle();
    }

    pub(super) fn push(&self, fetched: Fetched) {
        let mut state = self.state.lock();
        state.held_bytes += fetched.bytes;
        state.ready.push_back(Ok(fetched));
        drop(state);
        self.arrived.notify_one();
    }

    pub(super) fn push_error(&self, error: ClientError) {
        self.state.lock().ready.push_back(Err(error));
        self.arrived.notify_one();
    }

    /// Ends the consumer after the records that are ready.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.calm();
        self.arrived.notify_one();
    }

    pub(super) fn assign(&self, generation: u64, added: impl IntoIterator<Item = Arc<Assigned>>) {
        let mut state = self.state.lock();
        state.generation = generation;
        for part in added {
            state.assigned.insert((part.topic.clone(), part.number), part);
        }
        self.publish(&state);
    }

    /// Removes the records of these partitions that are not taken yet, and returns the partitions that were assigned.
    /// The partitions stay assigned, so that their offsets can be committed, until they are given back.
    pub(super) fn revoke(&self, generation: u64, partitions: &[v1::TopicPartition]) -> Vec<Arc<Assigned>> {
        let mut state = self.state.lock();
        state.generation = generation;
        let mut revoked = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let key = (Arc::from(partition.topic.as_str()), partition.partition);
            if let Some(part) = state.assigned.get(&key) {
                part.revoked.store(true, Ordering::Release);
                revoked.push(part.clone());
            }
        }
        state.purge();
        self.grant(&mut state);
        self.publish(&state);
        revoked
    }

    /// Removes these partitions from the assignment.
    pub(super) fn given_back(&self, partitions: &[Arc<Assigned>]) {
        let mut state = self.state.lock();
        state.assigned.retain(|_, part| !partitions.iter().any(|gone| Arc::ptr_eq(gone, part)));
    }

    /// Whether the application is processing records of one of these partitions.
    pub(super) fn in_hand(&self, partitions: &[Arc<Assigned>]) -> bool {
        let state = self.state.lock();
        let Some(in_hand) = &state.in_hand else { return false };
        partitions.iter().any(|part| Arc::ptr_eq(part, in_hand))
    }

    pub(super) fn partition(&self, topic: &str, number: u32) -> Option<Arc<Assigned>> {
        let state = self.state.lock();
        state.assigned.get(&(Arc::from(topic), number)).filter(|part| !part.is_revoked()).cloned()
    }

    /// Starts a membership when the member's stream is open.
    pub(super) fn joined(&self, requests: mpsc::UnboundedSender<v1::MemberRequest>) {
        let mut state = self.state.lock();
        state.member = Some(Membership { requests, credit_bytes: 0, next_commit: 1, commits: HashMap::new() });
        self.grant(&mut state);
    }

    /// Ends the membership when the member's stream is lost: its partitions belong to other members now.
    pub(super) fn left(&self) {
        let mut state = self.state.lock();
        state.member = None;
        for part in std::mem::take(&mut state.assigned).into_values() {
            part.revoked.store(true, Ordering::Release);
        }
        state.purge();
        self.publish(&state);
    }

    /// Deducts received bytes from the server's credit.
    pub(super) fn received(&self, bytes: usize) {
        let mut state = self.state.lock();
        if let Some(member) = &mut state.member {
            member.credit_bytes = member.credit_bytes.saturating_sub(bytes);
        }
    }

    /// Gives the server credit for the free part of the buffer, if it is enough for a message.
    pub(super) fn regrant(&self) {
        self.grant(&mut self.state.lock());
    }

    pub(super) fn send(&self, message: v1::member_request::Message) {
        if let Some(member) = &self.state.lock().member {
            member.send(message);
        }
    }

    /// Handles the answer to a commit.
    pub(super) fn committed(&self, committed: v1::Committed) {
        let mut state = self.state.lock();
        let Some(commit) = state.member.as_mut().and_then(|member| member.commits.remove(&committed.id)) else {
            return;
        };
        let outcome = committed.error.map_or(Ok(()), |error| Err(ClientError::refused(error)));
        match &outcome {
            Ok(()) => commit.offsets.iter().for_each(|(part, offset)| part.set_committed(*offset)),
            Err(error) if commit.answer.is_none() => tracing::warn!("an automatic commit was refused: {error}"),
            Err(_) => {}
        }
        if let Some(answer) = commit.answer {
            let _ = answer.send(outcome);
        }
    }

    pub(super) fn commits_pending(&self) -> bool {
        self.state.lock().member.as_ref().is_some_and(|member| !member.commits.is_empty())
    }

    /// Leaves the group by ending the requests of the member's stream.
    pub(super) fn leave(&self) {
        self.state.lock().member = None;
    }

    fn grant(&self, state: &mut State) {
        let bytes_max = self.settings.buffer_bytes_max.min(CREDIT_BYTES_MAX);
        let held_bytes = state.held_bytes;
        let Some(member) = &mut state.member else { return };
        let grant = bytes_max.saturating_sub(held_bytes + member.credit_bytes);
        // Credit is given in steps of at least a quarter of the buffer: this takes few messages, and the server does
        // not run out of credit.
        if grant >= (bytes_max / 4).max(1) {
            member.credit_bytes += grant;
            let bytes = u32::try_from(grant).unwrap_or(u32::MAX);
            member.send(v1::member_request::Message::Credit(v1::Credit { bytes }));
        }
    }

    fn publish(&self, state: &State) {
        let partitions = state.assigned.values().filter(|part| !part.is_revoked()).map(|part| part.name()).collect();
        self.assignment.send_replace(Assignment { generation: state.generation, partitions });
    }
}

impl State {
    fn settle(&mut self) {
        if let Some(part) = self.in_hand.take() {
            part.settle();
        }
    }

    fn purge(&mut self) {
        self.ready.retain(|next| next.as_ref().map_or(true, |fetched| !fetched.partition.is_revoked()));
        self.held_bytes = self.ready.iter().flatten().map(|fetched| fetched.bytes).sum();
    }
}

impl Membership {
    fn send(&self, message: v1::member_request::Message) {
        // A lost stream is detected where its answers are read.
        let _ = self.requests.send(v1::MemberRequest { message: Some(message) });
    }
}

/// Converts offsets to their gRPC form.
pub(super) fn to_offsets(offsets: &[(Arc<Assigned>, u64)]) -> Vec<v1::TopicPartitionOffset> {
    let to_offset = |(part, offset): &(Arc<Assigned>, u64)| v1::TopicPartitionOffset {
        topic: part.topic.to_string(),
        partition: part.number,
        offset: *offset,
    };
    offsets.iter().map(to_offset).collect()
}

/// Returns those of `parts` that have an offset to commit.
pub(super) fn dirty(parts: &[Arc<Assigned>], upto: UpTo) -> Vec<(Arc<Assigned>, u64)> {
    parts.iter().filter_map(|part| Some((part.clone(), part.to_commit(upto)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(buffer_bytes_max: usize) -> Shared {
        let settings = ConsumerSettings { buffer_bytes_max, ..ConsumerSettings::topic("t").group("g") };
        Shared::new(Client::new("127.0.0.1:1").unwrap(), settings)
    }

    fn fetched(partition: &Arc<Assigned>, from: u64, next_offset: u64, bytes: usize) -> Fetched {
        Fetched {
            partition: partition.clone(),
            runs: Vec::new(),
            bytes,
            from,
            next_offset,
            log_end_offset: next_offset,
        }
    }

    fn credit(requests: &mut mpsc::UnboundedReceiver<v1::MemberRequest>) -> Option<u32> {
        match requests.try_recv().ok()?.message? {
            v1::member_request::Message::Credit(credit) => Some(credit.bytes),
            _ => None,
        }
    }

    async fn hand_out(shared: &Shared) -> u64 {
        let taken = shared.take().await.unwrap().unwrap();
        taken.partition.hand_out(taken.next_offset);
        taken.from
    }

    #[tokio::test]
    async fn records_are_processed_when_more_is_asked_for() {
        let shared = shared(1_000);
        let part = Assigned::new("t".into(), 0, 5);
        shared.assign(1, [part.clone()]);
        part.set_committed(5);
        shared.push(fetched(&part, 5, 8, 10));
        shared.push(fetched(&part, 8, 9, 10));
        assert_eq!(hand_out(&shared).await, 5);
        assert!(shared.to_commit(UpTo::Processed).is_empty());
        assert_eq!(shared.to_commit(UpTo::Handed)[0].1, 8);
        assert_eq!(hand_out(&shared).await, 8);
        assert_eq!(shared.to_commit(UpTo::Processed)[0].1, 8);
        assert_eq!(shared.to_commit(UpTo::Handed)[0].1, 9);
    }

    #[test]
    fn trouble_lasts_from_the_first_loss_until_records_come_again() {
        let shared = shared(1_000);
        let error = shared.membership_lost();
        let since = shared.lost(&error);
        assert_eq!(shared.lost(&error), since);
        // A server that is reachable only for a moment does not end the outage.
        shared.found();
        assert_eq!(shared.lost(&error), since);
        shared.calm();
        assert!(shared.trouble().is_none());
        assert!(shared.lost(&error) > since);
    }

    #[tokio::test]
    async fn what_came_on_a_stream_that_is_lost_is_not_handed_out() {
        let shared = shared(1_000);
        let (sender, mut requests) = mpsc::unbounded_channel();
        let part = Assigned::new("t".into(), 0, 0);
        shared.joined(sender);
        assert_eq!(credit(&mut requests), Some(1_000));
        // The same credit is not granted twice.
        shared.regrant();
        assert_eq!(credit(&mut requests), None);
        shared.assign(1, [part.clone()]);
        shared.push(fetched(&part, 0, 1, 10));
        shared.left();
        shared.end();
        assert!(shared.take().await.is_none());
    }

    #[tokio::test]
    async fn credit_follows_what_the_application_takes() {
        let shared = shared(1_000);
        let (sender, mut requests) = mpsc::unbounded_channel();
        let part = Assigned::new("t".into(), 0, 0);
        shared.joined(sender);
        assert_eq!(credit(&mut requests), Some(1_000));
        shared.assign(1, [part.clone()]);
        for n in 0..5 {
            shared.received(200);
            shared.push(fetched(&part, n, n + 1, 200));
        }
        assert!(shared.is_full());
        assert_eq!(credit(&mut requests), None);
        hand_out(&shared).await;
        // The credit is too small for a message.
        assert_eq!(credit(&mut requests), None);
        hand_out(&shared).await;
        assert_eq!(credit(&mut requests), Some(400));
        // The server may exceed its credit by one batch.
        shared.received(900);
        shared.push(fetched(&part, 5, 6, 900));
        for _ in 0..3 {
            hand_out(&shared).await;
        }
        assert_eq!(credit(&mut requests), None);
        hand_out(&shared).await;
        assert_eq!(credit(&mut requests), Some(1_000));
    }

    #[tokio::test]
    async fn what_is_revoked_is_not_handed_out_but_can_be_committed() {
        let shared = shared(1_000);
        let (kept, gone) = (Assigned::new("t".into(), 0, 0), Assigned::new("t".into(), 1, 0));
        shared.assign(1, [kept.clone(), gone.clone()]);
        shared.push(fetched(&gone, 0, 3, 10));
        shared.push(fetched(&gone, 3, 6, 10));
        shared.push(fetched(&kept, 0, 9, 10));
        assert_eq!(hand_out(&shared).await, 0);
        let revoked = shared.revoke(2, &[gone.name()]);
        assert!(shared.in_hand(&revoked));
        assert_eq!(shared.assignment.borrow().partitions, [kept.name()]);
        assert!(shared.to_commit(UpTo::Handed).iter().any(|(part, offset)| (part.number, *offset) == (1, 3)));
        let next = shared.take().await.unwrap().unwrap();
        assert_eq!(next.partition.number, 0);
        assert!(!shared.in_hand(&revoked));
        assert_eq!(dirty(&revoked, UpTo::Processed)[0].1, 3);
        shared.given_back(&revoked);
        assert!(shared.to_commit(UpTo::Handed).iter().all(|(part, _)| part.number == 0));
    }
}
