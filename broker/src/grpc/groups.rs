//! The service `millstream.v1.Groups`: group membership on a bidirectional stream, and calls to inspect and change
//! groups and their offsets.

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
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::calls::caller_of;
use super::log::{answer, to_format};
use super::records::PlainBudget;
use super::status;
use crate::broker::caller::Caller;
use crate::broker::consumer::{Consumer, Event, Join};
use crate::broker::fetch::Fetched;
use crate::broker::position::Position;
use crate::broker::{Broker, GroupOffset};
use crate::error::BrokerError;
use crate::groups::{Group, GroupKind, MemberDescription, MembershipState};
use crate::hash::HashMap;
use crate::name::{self, GroupId, TopicName, TopicPartition};
use crate::store::place::Offset;

/// Maximum credit of a member, in bytes. It limits how much the server buffers for the member.
const CREDIT_BYTES_MAX: usize = 32 << 20;

/// Maximum size of the records in one message, in bytes. One batch may exceed it.
const MESSAGE_RECORDS_BYTES: usize = 1 << 20;

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
        self.broker.commit_offsets(&id, &offsets).await?;
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
        let members = group.members().describe();
        let mut readers: HashMap<&TopicPartition, &String> = HashMap::default();
        for member in &members {
            readers.extend(member.partitions.iter().map(|partition| (partition, &member.member_id)));
        }
        let offsets = self.broker.group_offsets(&group);
        let offsets = offsets.iter().map(|offset| {
            let reader = readers.get(&offset.partition).copied();
            to_group_offset(offset, reader.cloned())
        });
        let offsets = offsets.collect();
        let member = |member: &MemberDescription| v1::Member {
            member_id: member.member_id.clone(),
            client_id: member.client_id.clone(),
            partitions: member.partitions.iter().map(to_partition).collect(),
        };
        let members = members.iter().map(member).collect();
        Ok(Response::new(v1::DescribeGroupResponse { group: Some(to_group(&self.broker, &group)), members, offsets }))
    }

    async fn reset_group(
        &self,
        request: Request<v1::ResetGroupRequest>,
    ) -> Result<Response<v1::ResetGroupResponse>, Status> {
        use v1::reset_group_request::To;
        let request = request.into_inner();
        let position = match request.to {
            None => return Err(status::invalid("specify a position: earliest, latest, an offset or a time")),
            Some(To::Earliest(_)) => Position::Earliest,
            Some(To::Latest(_)) => Position::Latest,
            Some(To::Offset(offset)) => Position::Offset(offset),
            Some(To::TimestampMs(timestamp_ms)) => Position::Timestamp(timestamp_ms),
        };
        let group = self.broker.groups().get(&request.group)?;
        let topic = self.broker.topic(&request.topic)?;
        let mut offsets = Vec::new();
        for partition in topic.chosen_partitions(&request.partitions)? {
            let offset = self.broker.offset_at(&partition, position).await?;
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

/// Converts the position of a group in a partition.
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
            let state = match members.state() {
                MembershipState::Empty => "empty",
                MembershipState::Rebalancing => "rebalancing",
                MembershipState::Stable => "stable",
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
    let named = |v1::TopicPartitionOffset { topic, partition, offset }| {
        let topic = broker.topic(&topic)?;
        let partition = topic.partition(partition)?;
        Ok((partition.name().clone(), partition.offset_in_range(offset)?))
    };
    offsets.into_iter().map(named).collect()
}

/// Maximum number of unsent answers before the server stops reading the member's messages. Otherwise a member that
/// commits but reads no answers could fill the server's memory.
const UNSENT_MAX: usize = 256;

/// Counts the answers that wait to be sent to a member.
#[derive(Default)]
struct Unsent {
    answers: AtomicUsize,
    /// The number of these answers that contain records.
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

/// The stream of one member, with its remaining credit and its record format.
struct Session {
    broker: Broker,
    consumer: Consumer,
    /// The channel is unbounded, but its contents are limited: batches by the member's credit; plain records to one
    /// answer at a time, because each may keep a whole inflated batch in memory; and all other answers by
    /// [`UNSENT_MAX`].
    answers: mpsc::UnboundedSender<Answer>,
    unsent: Arc<Unsent>,
    format: v1::Format,
    credit_bytes: usize,
    commits: FuturesOrdered<Pin<Box<dyn Future<Output = v1::Committed> + Send + Sync>>>,
    limits: Limits,
}

/// Why a session ends; `None` if the member ended it.
type End = Option<Status>;

impl Session {
    fn start(broker: Broker, caller: Caller, join: v1::Join) -> Result<(Self, Answers), Status> {
        let format = to_format(join.format)?;
        let consumer = Consumer::join(broker.clone(), caller, to_join(join)?)?;
        let (answers, receiver) = mpsc::unbounded_channel();
        let unsent = Arc::new(Unsent::default());
        let session = Self {
            limits: broker.settings().limits,
            broker,
            consumer,
            answers,
            unsent: unsent.clone(),
            format,
            credit_bytes: 0,
            commits: FuturesOrdered::new(),
        };
        session.send(ToMember::Joined(v1::Joined { member_id: session.consumer.member().to_string() }));
        let answers = UnboundedReceiverStream::new(receiver).inspect(move |answer| unsent.sent(answer));
        Ok((session, Box::pin(answers)))
    }

    /// Runs until the member leaves, its stream is lost, or it fails to give partitions back in time.
    async fn run(mut self, mut requests: Streaming<v1::MemberRequest>) {
        let (broker, unsent) = (self.broker.clone(), self.unsent.clone());
        let end: End = loop {
            // Evaluated once per iteration, so that a notification that arrives in between is not missed.
            let waits_to_send = self.waits_to_send();
            let bytes_max = if waits_to_send { 0 } else { self.credit_bytes.min(MESSAGE_RECORDS_BYTES) };
            tokio::select! {
                biased;
                () = broker.stopped() => break Some(BrokerError::ShuttingDown.into()),
                () = unsent.one_less.notified(), if unsent.is_much() || waits_to_send => {}
                request = requests.message(), if !unsent.is_much() => match request {
                    Ok(Some(request)) => if let Err(end) = self.hear(request).await { break Some(end) },
                    // Leaving and losing the connection have the same effect for the group.
                    Ok(None) | Err(_) => break None,
                },
                Some(committed) = self.commits.next() => self.send(ToMember::Committed(committed)),
                event = self.consumer.next(bytes_max) => if let Err(end) = self.pass_on(event) { break Some(end) },
                () = self.answers.closed() => break None,
            }
        };
        // Commits that were queued before the end must be finished, because the next owner starts from them.
        while let Some(committed) = self.commits.next().await {
            self.send(ToMember::Committed(committed));
        }
        if let Some(status) = end {
            self.answer(Err(status));
        }
        // The member leaves the group when the consumer is dropped.
    }

    /// Returns whether plain records wait to be sent. No others are read meanwhile.
    fn waits_to_send(&self) -> bool {
        self.format == v1::Format::Records && self.unsent.has_records()
    }

    fn pass_on(&mut self, event: Event) -> Result<(), Status> {
        match event {
            Event::Assigned { generation, added, all } => {
                let added = added.iter().map(|(partition, offset)| to_partition_offset(partition, *offset)).collect();
                let partitions = all.iter().map(to_partition).collect();
                self.send(ToMember::Assigned(v1::Assigned { generation, added, partitions }));
            }
            Event::Revoke { generation, partitions } => {
                let partitions = partitions.iter().map(to_partition).collect();
                self.send(ToMember::Revoke(v1::Revoke { generation, partitions }));
            }
            Event::Fetched(fetched) => self.hand_out(fetched),
            Event::Missed { partition, records, log_start } => {
                self.send(ToMember::Records(v1::PartitionRecords {
                    topic: partition.topic.as_str().to_owned(),
                    partition: partition.partition,
                    next_offset: log_start.into(),
                    log_start_offset: log_start.into(),
                    log_end_offset: log_start.into(),
                    missed_records: records,
                    ..Default::default()
                }));
            }
            Event::Overdue(timeout) => {
                let member = self.consumer.member();
                return Err(status::status(
                    v1::ErrorCode::StaleGeneration,
                    Code::DeadlineExceeded,
                    format!("member {member} did not give partitions back within {timeout:?} and was removed"),
                ));
            }
        }
        Ok(())
    }

    fn hand_out(&mut self, fetched: Vec<(Fetched, Offset)>) {
        let mut budget = PlainBudget::up_to(self.credit_bytes);
        for (fetched, from) in fetched {
            let name = fetched.partition.name().clone();
            let stored_bytes = match &fetched.slice {
                // Records that do not fit are read again later.
                Ok(_) if budget.is_full() => continue,
                Ok(slice) => slice.bytes(),
                Err(_) => 0,
            };
            let (from, used) = (from.into(), budget.used());
            let records = answer(&self.broker, fetched, from, self.format, &self.limits, &mut budget);
            let bytes = match self.format {
                v1::Format::Batches => stored_bytes,
                // The member gets no records, so it would never return credit for them.
                v1::Format::Records if records.error.is_some() => 0,
                v1::Format::Records => budget.used() - used,
            };
            self.credit_bytes = self.credit_bytes.saturating_sub(bytes);
            if records.error.is_none() && records.next_offset == from {
                continue;
            }
            if let Some(next) = i64::try_from(records.next_offset).ok().and_then(Offset::new) {
                self.consumer.advance(&name, next);
            }
            self.send(ToMember::Records(records));
        }
    }

    async fn hear(&mut self, request: v1::MemberRequest) -> Result<(), Status> {
        match request.message {
            None => Err(status::invalid("the member's message is empty")),
            Some(FromMember::Join(_)) => Err(status::invalid("a member can send Join only once per stream")),
            Some(FromMember::Credit(credit)) => {
                self.credit_bytes = (self.credit_bytes + credit.bytes as usize).min(CREDIT_BYTES_MAX);
                Ok(())
            }
            Some(FromMember::Commit(v1::Commit { id, offsets })) => {
                let offsets = offsets.iter().map(|offset| (offset.topic.as_str(), offset.partition, offset.offset));
                let (queued, refused) = self.consumer.commit(offsets).await;
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
                // The next owner starts at the offsets that this member committed, so they must be on disk first.
                while let Some(committed) = self.commits.next().await {
                    self.send(ToMember::Committed(committed));
                }
                let mut partitions = Vec::with_capacity(revoked.partitions.len());
                for v1::TopicPartition { topic, partition } in revoked.partitions {
                    partitions.push(TopicPartition { topic: TopicName::new(&topic)?, partition });
                }
                self.consumer.revoked(&partitions);
                Ok(())
            }
        }
    }

    fn send(&self, message: ToMember) {
        self.answer(Ok(v1::MemberResponse { message: Some(message) }));
    }

    fn answer(&self, answer: Answer) {
        self.unsent.queued(&answer);
        // If the stream is gone, `run` ends the session.
        let _ = self.answers.send(answer);
    }
}

fn check_client_id(client_id: &str) -> Result<(), Status> {
    if name::is_valid(client_id) {
        return Ok(());
    }
    Err(status::invalid(format!(
        "client id {client_id:?} is not allowed: use 1 to 249 of the characters a-z A-Z 0-9 . _ -"
    )))
}

fn to_join(join: v1::Join) -> Result<Join, Status> {
    let group = GroupId::new(&join.group)?;
    if join.topics.is_empty() {
        return Err(status::invalid("Join names no topic to read"));
    }
    if !join.client_id.is_empty() {
        check_client_id(&join.client_id)?;
    }
    let topics = join.topics.iter().map(|name| TopicName::new(name)).collect::<Result<_, _>>()?;
    let rebalance_timeout = match join.rebalance_timeout_ms {
        0 => None,
        ms => Some(Duration::from_millis(ms.into())),
    };
    let (client_id, from_earliest) = (join.client_id, join.from_earliest);
    // The contract has no field for an assignor.
    Ok(Join { group, client_id, topics, from_earliest, rebalance_timeout, assignor: None })
}
