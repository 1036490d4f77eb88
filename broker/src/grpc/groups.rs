//! `millstream.v1.Groups`: membership on one bidirectional stream, and offsets for people.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::FuturesOrdered;
use futures::{Stream, StreamExt};
use millstream_api::v1;
use millstream_api::v1::groups_server::Groups;
use millstream_api::v1::member_request::Message as FromMember;
use millstream_api::v1::member_response::Message as ToMember;
use millstream_record::Limits;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::calls::caller_of;
use super::log::{answer, resolve, to_format, to_offset, wanted_partitions};
use super::records::PlainRoom;
use super::status;
use crate::broker::caller::Caller;
use crate::broker::fetch::{Fetch, FetchFrom, Fetched};
use crate::broker::{Broker, GroupOffset};
use crate::error::BrokerError;
use crate::groups::members::MemberEvent;
use crate::groups::{Group, GroupKind};
use crate::log::partition::Partition;
use crate::log::queue::Receipt;
use crate::name::TopicPartition;
use crate::name::{GroupId, TopicName};
use crate::store::place::{Offset, TopicId};

/// How long a member may take to give partitions back, unless it says otherwise.
const REBALANCE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Credit that a member may have, in bytes: what it can make the server hold for it.
const CREDIT_BYTES_MAX: usize = 32 << 20;

/// The most that one message of records holds, in bytes; one batch more may come.
const MESSAGE_RECORDS_BYTES: usize = 1 << 20;

const FETCH_WAIT: Duration = Duration::from_secs(60);

pub(super) struct Service {
    broker: Broker,
}

impl Service {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::MemberResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Groups for Service {
    type JoinStream = Answers;

    async fn join(&self, request: Request<Streaming<v1::MemberRequest>>) -> Result<Response<Answers>, Status> {
        let caller = caller_of(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(FromMember::Join(join)) = first else {
            return Err(status::invalid("the first message of a member must be Join"));
        };
        let (session, answers) = Session::start(self.broker.clone(), caller, join)?;
        tokio::spawn(session.run(requests));
        Ok(Response::new(answers))
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let request = request.into_inner();
        let id = GroupId::new(&request.group)?;
        let offsets = to_offsets(&self.broker, request.offsets)?;
        // Made only once there is nothing left to refuse.
        let group = self.broker.groups().get_or_create(&id, GroupKind::Consumer)?;
        self.broker.set_offsets(&group, &offsets).await?;
        Ok(Response::new(v1::CommitOffsetsResponse {}))
    }

    async fn list_groups(&self, _: Request<v1::ListGroupsRequest>) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let groups = self.broker.groups().all();
        let groups = groups.iter().map(|group| to_group(&self.broker, group)).collect();
        Ok(Response::new(v1::ListGroupsResponse { groups }))
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        let group = self.broker.groups().get(&request.into_inner().name)?;
        let members: Vec<v1::Member> = group
            .members()
            .describe()
            .into_iter()
            .map(|(member_id, client_id, partitions)| v1::Member {
                member_id,
                client_id,
                partitions: partitions.iter().map(to_partition).collect(),
            })
            .collect();
        let reader = |offset: &GroupOffset| {
            let wanted = to_partition(&offset.partition);
            members.iter().find(|member| member.partitions.contains(&wanted)).map(|member| member.member_id.clone())
        };
        let offsets = self.broker.group_offsets(&group);
        let offsets = offsets.iter().map(|offset| to_group_offset(offset, reader(offset))).collect();
        Ok(Response::new(v1::DescribeGroupResponse { group: Some(to_group(&self.broker, &group)), members, offsets }))
    }

    async fn reset_group(
        &self,
        request: Request<v1::ResetGroupRequest>,
    ) -> Result<Response<v1::ResetGroupResponse>, Status> {
        use v1::position::At;
        use v1::reset_group_request::To;
        let request = request.into_inner();
        let at = match request.to {
            None => return Err(status::invalid("say where to: earliest, latest, an offset or a time")),
            Some(To::Earliest(_)) => At::Earliest(true),
            Some(To::Latest(_)) => At::Latest(true),
            Some(To::Offset(offset)) => At::Offset(offset),
            Some(To::TimestampMs(timestamp_ms)) => At::TimestampMs(timestamp_ms),
        };
        let position = v1::Position { at: Some(at) };
        let group = self.broker.groups().get(&request.group)?;
        let topic = self.broker.topic(&request.topic)?;
        let mut offsets = Vec::new();
        for partition in wanted_partitions(&topic, &request.partitions)? {
            let offset = resolve(&self.broker, &partition, Some(&position)).await?;
            offsets.push((partition.name().clone(), offset));
        }
        if request.dry_run {
            group.check_unused()?;
        } else {
            self.broker.set_offsets(&group, &offsets).await?;
        }
        let offsets = offsets.iter().map(|(partition, offset)| to_partition_offset(partition, *offset)).collect();
        Ok(Response::new(v1::ResetGroupResponse { offsets }))
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        self.broker.delete_group(&request.into_inner().name).await?;
        Ok(Response::new(v1::DeleteGroupResponse {}))
    }
}

/// Where a group stands, for people.
pub fn to_group_offset(offset: &GroupOffset, member_id: Option<String>) -> v1::GroupOffset {
    v1::GroupOffset {
        topic: offset.partition.topic.as_str().to_owned(),
        partition: offset.partition.partition,
        committed_offset: offset.committed.map(u64::from),
        log_end_offset: offset.end.into(),
        lag: offset.lag,
        member_id: member_id.unwrap_or_default(),
    }
}

fn to_group(broker: &Broker, group: &Group) -> v1::Group {
    let (kind, state, members) = match group.kind() {
        GroupKind::Consumer => {
            let members = group.members();
            let state = match (members.is_empty(), members.is_rebalancing()) {
                (true, _) => "empty",
                (false, true) => "rebalancing",
                (false, false) => "stable",
            };
            (v1::GroupKind::Consumer, state.to_owned(), members.len())
        }
        GroupKind::Pipeline => {
            let state = group.pipeline_state().map_or_else(|| "stopped".to_owned(), |state| state.to_string());
            (v1::GroupKind::Pipeline, state, 0)
        }
    };
    v1::Group {
        name: group.id().as_str().to_owned(),
        kind: kind as i32,
        state,
        members: u32::try_from(members).unwrap_or(u32::MAX),
        generation: group.generation(),
        lag: broker.group_offsets(group).iter().map(|offset| offset.lag).sum(),
    }
}

fn to_partition(partition: &TopicPartition) -> v1::TopicPartition {
    v1::TopicPartition { topic: partition.topic.as_str().to_owned(), partition: partition.partition }
}

fn to_partition_offset(partition: &TopicPartition, offset: Offset) -> v1::TopicPartitionOffset {
    v1::TopicPartitionOffset {
        topic: partition.topic.as_str().to_owned(),
        partition: partition.partition,
        offset: offset.into(),
    }
}

fn to_offsets(
    broker: &Broker,
    offsets: Vec<v1::TopicPartitionOffset>,
) -> Result<Vec<(TopicPartition, Offset)>, BrokerError> {
    offsets.iter().map(|offset| to_named_offset(broker, offset)).collect()
}

fn to_named_offset(
    broker: &Broker,
    offset: &v1::TopicPartitionOffset,
) -> Result<(TopicPartition, Offset), BrokerError> {
    let topic = broker.topic(&offset.topic)?;
    let partition = topic.partition(offset.partition)?;
    Ok((partition.name().clone(), to_offset(partition, offset.offset)?))
}

/// The same for a member. Retention may be faster than it, and nobody reads what lies between.
fn to_member_offset(
    broker: &Broker,
    mut offset: v1::TopicPartitionOffset,
) -> Result<(TopicPartition, Offset), BrokerError> {
    let start = broker.topic(&offset.topic)?.partition(offset.partition)?.start();
    offset.offset = offset.offset.max(start.into());
    to_named_offset(broker, &offset)
}

/// Answers that may wait to be sent before the member is heard again: who commits and never looks must not fill
/// memory.
const UNSENT_MAX: usize = 256;

/// What waits to be sent to a member.
#[derive(Default)]
struct Unsent {
    answers: AtomicUsize,
    /// Of these, those with records.
    records: AtomicUsize,
    one_less: Notify,
}

impl Unsent {
    fn is_much(&self) -> bool {
        self.answers.load(Ordering::Relaxed) >= UNSENT_MAX
    }

    fn has_records(&self) -> bool {
        self.records.load(Ordering::Relaxed) > 0
    }

    fn queued(&self, answer: &Answer) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(usize::from(is_of_records(answer)), Ordering::Relaxed);
    }

    fn sent(&self, answer: &Answer) {
        self.answers.fetch_sub(1, Ordering::Relaxed);
        self.records.fetch_sub(usize::from(is_of_records(answer)), Ordering::Relaxed);
        self.one_less.notify_one();
    }
}

type Answer = Result<v1::MemberResponse, Status>;

fn is_of_records(answer: &Answer) -> bool {
    matches!(answer, Ok(v1::MemberResponse { message: Some(ToMember::Records(_)) }))
}

/// One member's stream: what it reads, what it may still be sent, what it has yet to give back.
struct Session {
    broker: Broker,
    caller: Caller,
    group: Arc<Group>,
    member: String,
    events: mpsc::UnboundedReceiver<MemberEvent>,
    /// Unbounded, but batches in it are bounded by the member's credit, plain records by one answer of them, as each
    /// may keep a whole inflated batch in memory, and the others by [`UNSENT_MAX`].
    answers: mpsc::UnboundedSender<Answer>,
    unsent: Arc<Unsent>,
    from_earliest: bool,
    /// The topics as they were when it joined: partitions added since are read from their first record.
    joined: BTreeMap<TopicId, u32>,
    format: v1::Format,
    rebalance_timeout: Duration,
    credit_bytes: usize,
    reading: BTreeMap<TopicPartition, (Arc<Partition>, Offset)>,
    commits: FuturesOrdered<Pin<Box<dyn Future<Output = v1::Committed> + Send + Sync>>>,
    /// What it was asked to give back, and has not yet.
    revoking: BTreeSet<TopicPartition>,
    revoke_deadline: Option<Instant>,
    limits: Limits,
}

/// Why a session ends; `None` where the member ended it.
type End = Option<Status>;

impl Session {
    fn start(broker: Broker, caller: Caller, join: v1::Join) -> Result<(Self, Answers), Status> {
        let group = GroupId::new(&join.group)?;
        if join.topics.is_empty() {
            return Err(status::invalid("Join names no topic"));
        }
        if !join.client_id.is_empty() {
            // It becomes part of the member's name.
            GroupId::new(&join.client_id).map_err(|_| {
                status::invalid(format!(
                    "client id {:?} is not allowed: use 1 to 249 of the characters a-z A-Z 0-9 . _ -",
                    join.client_id
                ))
            })?;
        }
        let format = to_format(join.format)?;
        let topics: BTreeSet<TopicName> =
            join.topics.iter().map(|name| TopicName::new(name)).collect::<Result<_, _>>()?;
        let known = topics.iter().filter_map(|topic| broker.topic(topic.as_str()).ok());
        let joined = known.map(|topic| (topic.id(), topic.partition_count())).collect();
        let (group, member, events) = broker.join_group(&group, &join.client_id, topics)?;
        let (answers, receiver) = mpsc::unbounded_channel();
        let unsent = Arc::new(Unsent::default());
        let rebalance_timeout = match join.rebalance_timeout_ms {
            0 => REBALANCE_TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms.into()),
        };
        let session = Self {
            limits: broker.settings().limits,
            broker,
            caller,
            group,
            member,
            events,
            answers,
            unsent: unsent.clone(),
            from_earliest: join.from_earliest,
            joined,
            format,
            rebalance_timeout,
            credit_bytes: 0,
            reading: BTreeMap::new(),
            commits: FuturesOrdered::new(),
            revoking: BTreeSet::new(),
            revoke_deadline: None,
        };
        session.send(ToMember::Joined(v1::Joined { member_id: session.member.clone() }));
        let answers = UnboundedReceiverStream::new(receiver).inspect(move |answer| unsent.sent(answer));
        Ok((session, Box::pin(answers)))
    }

    /// Runs until the member leaves, its stream is lost, or it holds partitions too long.
    async fn run(mut self, mut requests: Streaming<v1::MemberRequest>) {
        let (broker, unsent) = (self.broker.clone(), self.unsent.clone());
        let end: End = loop {
            // Asked once: what is sent in between must wake it.
            let waits_to_send = self.waits_to_send();
            let fetch = if waits_to_send { None } else { self.next_fetch() };
            let fetching = async {
                match &fetch {
                    Some(fetch) => self.caller.fetch(fetch).await,
                    None => std::future::pending().await,
                }
            };
            let revoke_deadline = self.revoke_deadline;
            let too_late = async {
                match revoke_deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = broker.stopped() => break Some(BrokerError::ShuttingDown.into()),
                () = unsent.one_less.notified(), if unsent.is_much() || waits_to_send => {}
                request = requests.message(), if !unsent.is_much() => match request {
                    Ok(Some(request)) => if let Err(end) = self.hear(request).await { break Some(end) },
                    // Left, or lost: the same to the others.
                    Ok(None) | Err(_) => break None,
                },
                Some(event) = self.events.recv() => self.pass_on(event),
                Some(committed) = self.commits.next() => self.send(ToMember::Committed(committed)),
                () = too_late => break Some(status::status(
                    v1::ErrorCode::StaleGeneration,
                    Code::DeadlineExceeded,
                    format!("member {} did not give partitions back within {:?} and was removed", self.member, self.rebalance_timeout),
                )),
                fetched = fetching => self.hand_out(fetched),
                () = self.answers.closed() => break None,
            }
        };
        // What was committed before the end counts for whoever reads next.
        while let Some(committed) = self.commits.next().await {
            self.send(ToMember::Committed(committed));
        }
        if let Some(status) = end {
            self.answer(Err(status));
        }
        // Dropping the session leaves the group.
    }

    /// Whether plain records wait to be sent: no others are read meanwhile.
    fn waits_to_send(&self) -> bool {
        self.format == v1::Format::Records && self.unsent.has_records()
    }

    /// What to read next: nothing without credit.
    fn next_fetch(&self) -> Option<Fetch> {
        if self.credit_bytes == 0 || self.reading.is_empty() {
            return None;
        }
        let from = self.reading.values().map(|(partition, offset)| FetchFrom {
            partition: partition.clone(),
            // Retention may overtake a slow reader.
            offset: (*offset).max(partition.start()),
            until: None,
        });
        let mut from: Vec<FetchFrom> = from.collect();
        // The one that was served last comes last.
        from.sort_by_key(|from| std::cmp::Reverse(from.partition.end().since(from.offset)));
        let bytes_max = self.credit_bytes.min(MESSAGE_RECORDS_BYTES);
        Some(Fetch { from, bytes_min: 1, bytes_max, wait_max: FETCH_WAIT })
    }

    fn hand_out(&mut self, fetched: Vec<Fetched>) {
        let mut room = PlainRoom::up_to(self.credit_bytes);
        for fetched in fetched {
            let name = fetched.partition.name().clone();
            let Some((_, offset)) = self.reading.get_mut(&name) else { continue };
            let stored_bytes = match &fetched.slice {
                // What has no room is read again.
                Ok(slice) if slice.next <= *offset || room.is_full() => continue,
                Ok(slice) => slice.bytes(),
                Err(_) => 0,
            };
            let (from, used) = ((*offset).into(), room.used());
            let failed = fetched.slice.is_err();
            let records = answer(&self.broker, fetched, from, self.format, &self.limits, &mut room);
            let bytes = match self.format {
                v1::Format::Batches => stored_bytes,
                // Nobody gives back what did not come.
                v1::Format::Records if records.error.is_some() => 0,
                v1::Format::Records => room.used() - used,
            };
            self.credit_bytes = self.credit_bytes.saturating_sub(bytes);
            if records.error.is_none() && records.next_offset == from {
                continue;
            }
            if let Some(next) = i64::try_from(records.next_offset).ok().and_then(Offset::new) {
                *offset = next;
            }
            if failed {
                // Told once; the others are read on.
                self.reading.remove(&name);
            }
            self.send(ToMember::Records(records));
        }
    }

    async fn hear(&mut self, request: v1::MemberRequest) -> Result<(), Status> {
        match request.message {
            None => Err(status::invalid("a member's message is empty")),
            Some(FromMember::Join(_)) => Err(status::invalid("a member joins once a stream")),
            Some(FromMember::Credit(credit)) => {
                self.credit_bytes = (self.credit_bytes + credit.bytes as usize).min(CREDIT_BYTES_MAX);
                Ok(())
            }
            Some(FromMember::Commit(commit)) => {
                let id = commit.id;
                let (queued, refused) = self.commit(commit).await;
                self.commits.push_back(Box::pin(async move {
                    let failed = match queued {
                        Ok(receipt) => receipt.await.err(),
                        Err(error) => Some(error),
                    };
                    v1::Committed { id, error: failed.or(refused).map(|error| status::to_error(&error)) }
                }));
                Ok(())
            }
            Some(FromMember::Revoked(revoked)) => {
                // The next owner begins at what this member committed: that must be on disk.
                while let Some(committed) = self.commits.next().await {
                    self.send(ToMember::Committed(committed));
                }
                let mut partitions = Vec::with_capacity(revoked.partitions.len());
                for partition in revoked.partitions {
                    partitions.push(TopicPartition {
                        topic: TopicName::new(&partition.topic)?,
                        partition: partition.partition,
                    });
                }
                partitions.iter().for_each(|partition| drop(self.revoking.take(partition)));
                if self.revoking.is_empty() {
                    self.revoke_deadline = None;
                }
                self.broker.revoked(&self.group, &self.member, &partitions);
                Ok(())
            }
        }
    }

    /// Commits the offsets that can be. Of the others, why the first can't: a topic that is deleted keeps back no
    /// other's.
    async fn commit(&self, commit: v1::Commit) -> (Result<Receipt, BrokerError>, Option<BrokerError>) {
        let mut refused = None;
        let mut offsets = Vec::with_capacity(commit.offsets.len());
        for offset in commit.offsets {
            match to_member_offset(&self.broker, offset) {
                Ok(offset) => offsets.push(offset),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        match refused {
            Some(error) if offsets.is_empty() => (Err(error), None),
            refused => (self.broker.commit_as_member(&self.group, &self.member, &offsets).await, refused),
        }
    }

    fn pass_on(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Assigned { generation, added, all } => {
                let mut offsets = Vec::with_capacity(added.len());
                for name in added {
                    let topic = self.broker.topic(name.topic.as_str());
                    // A topic deleted since is taken away by the next event.
                    let Ok(partition) = topic.and_then(|topic| topic.partition(name.partition).cloned()) else {
                        continue;
                    };
                    let known = self.joined.get(&partition.topic_id()).is_some_and(|count| name.partition < *count);
                    let begin = if self.from_earliest || !known { partition.start() } else { partition.end() };
                    let committed = self.group.committed(partition.topic_id(), name.partition);
                    // Retention may have been faster than the group.
                    let offset = committed.unwrap_or(begin).max(partition.start());
                    offsets.push(to_partition_offset(&name, offset));
                    self.reading.insert(name, (partition, offset));
                }
                let partitions = all.iter().map(to_partition).collect();
                self.send(ToMember::Assigned(v1::Assigned { generation, added: offsets, partitions }));
            }
            MemberEvent::Revoke { generation, partitions } => {
                for partition in &partitions {
                    self.reading.remove(partition);
                }
                self.revoking.extend(partitions.iter().cloned());
                self.revoke_deadline.get_or_insert_with(|| Instant::now() + self.rebalance_timeout);
                let partitions = partitions.iter().map(to_partition).collect();
                self.send(ToMember::Revoke(v1::Revoke { generation, partitions }));
            }
        }
    }

    fn send(&self, message: ToMember) {
        self.answer(Ok(v1::MemberResponse { message: Some(message) }));
    }

    fn answer(&self, answer: Answer) {
        self.unsent.queued(&answer);
        // A stream that is gone ends the session elsewhere.
        let _ = self.answers.send(answer);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.broker.leave_group(&self.group, &self.member);
    }
}
