//! The reasons for which the broker refuses a request. `grpc/status.rs` maps them to gRPC's codes.

use std::sync::Arc;

use millstream_record::BatchError;
use uuid::Uuid;

use crate::name::{GroupId, InvalidGroupId, InvalidName, ProducerId, TopicName, TopicPartition};
use crate::store::place::Offset;
use crate::store::{DiskFull, StoreError};

/// The reason for which the broker refuses a request, with the value that was wrong and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// A name outside Kafka's rule.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// An id that no group can have.
    #[error(transparent)]
    InvalidGroupId(#[from] InvalidGroupId),
    /// The topic of that name is not the one that the client means.
    #[error(
        "topic {topic} has the UUID {current}, and the request is for {topic_id}: the topic was deleted and created again, so \
         its offsets begin anew"
    )]
    UnknownTopicId {
        /// The topic's name.
        topic: TopicName,
        /// The UUID in the request.
        topic_id: Uuid,
        /// The topic's UUID.
        current: Uuid,
    },
    /// A setting or argument outside its range.
    #[error("{what}: {value} is not allowed; {allowed}")]
    InvalidArgument {
        /// The setting's name.
        what: &'static str,
        /// The value as given.
        value: String,
        /// The allowed values.
        allowed: String,
    },
    /// No such topic.
    #[error("there is no topic {topic:?}")]
    UnknownTopic {
        /// The name in the request.
        topic: String,
    },
    /// The topic has fewer partitions.
    #[error("topic {topic} has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: TopicName,
        /// The partition in the request.
        partition: u32,
        /// The number of partitions that the topic has.
        partitions: u32,
    },
    /// A topic of that name exists.
    #[error("topic {topic} exists already")]
    TopicExists {
        /// The topic.
        topic: TopicName,
    },
    /// The topic belongs to a pipeline.
    #[error("topic {topic} is used by {}: delete {} first", users(pipelines), them(pipelines))]
    TopicInUse {
        /// The topic.
        topic: TopicName,
        /// The pipelines that use the topic.
        pipelines: Vec<String>,
    },
    /// More partitions would move keys away from their state.
    #[error(
        "topic {topic} can't have {partitions} partitions: stage {stage} of pipeline {pipeline} keeps its state by the \
         {current} there are, and keys would move away from it; delete the pipeline first, and apply it again afterwards"
    )]
    PartitionsInUse {
        /// The topic.
        topic: TopicName,
        /// The requested number of partitions.
        partitions: u32,
        /// The number of partitions that the topic has.
        current: u32,
        /// The pipeline that uses the topic.
        pipeline: String,
        /// The aggregate stage.
        stage: String,
    },
    /// The topic is the runtime's own.
    #[error("topic {topic} is a pipeline's repartition topic: only its pipeline makes, changes and deletes it")]
    TopicInternal {
        /// The topic.
        topic: TopicName,
    },
    /// Records of a topic that keeps the last one of each key cannot be deleted by offset.
    #[error(
        "topic {topic} is compacted, so its records are not deleted by offset: produce a record with the key and a null value"
    )]
    RecordsKept {
        /// The topic.
        topic: TopicName,
    },
    /// A record without a key in a topic that keeps the last record of each key.
    #[error(
        "topic {topic}, partition {partition}: record {index} of the request (from 0) has no key, and the topic is \
         compacted by key; give each record a key; nothing of this request was stored"
    )]
    NullKey {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The record's index in the request, from 0.
        index: usize,
    },
    /// A record's timestamp that its topic does not allow.
    #[error(
        "topic {topic}, partition {partition}: record {index} of a batch (from 0) has the timestamp {timestamp_ms} ms since \
         1970; {allowed}; nothing of this request was stored"
    )]
    InvalidTimestamp {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The record's index in its batch, from 0.
        index: usize,
        /// In ms since the epoch.
        timestamp_ms: i64,
        /// The allowed values.
        allowed: String,
    },
    /// A record batch that is not sound.
    #[error("topic {topic}, partition {partition}: {source}; nothing of this request was stored")]
    Batch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A batch larger than the topic takes.
    #[error(
        "topic {topic}, partition {partition}: a record batch of {bytes} bytes is over the limit \
         of {batch_bytes_max} (batch_bytes_max); send smaller batches or raise the topic's limit"
    )]
    BatchTooLarge {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The batch's size.
        bytes: usize,
        /// The topic's limit.
        batch_bytes_max: usize,
    },
    /// A producer's batch does not follow what the partition has of that producer.
    #[error(
        "topic {topic}, partition {partition}: producer id {producer_id} (epoch {epoch}) sent sequence number {found} \
         where {expected} must come; nothing of this request was stored: send what is missing first, or begin the next \
         epoch (InitProducer) at 0"
    )]
    OutOfOrderSequence {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The producer.
        producer_id: ProducerId,
        /// Its epoch, as sent.
        epoch: i16,
        /// The sequence number that must come.
        expected: i32,
        /// That of the batch's first record.
        found: i32,
    },
    /// The partition has batches of a later epoch of that producer.
    #[error(
        "topic {topic}, partition {partition}: epoch {epoch} of producer id {producer_id} is over, it is at {current}; \
         whoever sent this no longer is that producer"
    )]
    StaleProducerEpoch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The producer.
        producer_id: ProducerId,
        /// Its epoch, as sent.
        epoch: i16,
        /// The latest epoch.
        current: i16,
    },
    /// A batch that was stored, too long ago to say where.
    #[error(
        "topic {topic}, partition {partition}: sequence number {found} of producer id {producer_id} (epoch {epoch}) was \
         stored before, but where is known only from {oldest} on: the last {remembered} batches; have no more \
         than so many on their way"
    )]
    DuplicateSequence {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The producer.
        producer_id: ProducerId,
        /// Its epoch.
        epoch: i16,
        /// That of the batch's first record.
        found: i32,
        /// The oldest that is remembered.
        oldest: i32,
        /// The number of batches of a producer that the partition remembers.
        remembered: usize,
    },
    /// The broker never handed that id out.
    #[error("producer id {producer_id} was never handed out here: ask for one with InitProducer")]
    UnknownProducerId {
        /// As sent.
        producer_id: ProducerId,
    },
    /// Nothing is kept at that offset.
    #[error(
        "topic {topic}, partition {partition}: offset {offset} is out of range, {start} to {end} \
         are there (the end is the next offset to be written)"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The offset in the request.
        offset: i128,
        /// Log start offset.
        start: Offset,
        /// Log end offset.
        end: Offset,
    },
    /// Records that the disk did not give back as they were written.
    #[error(
        "topic {topic}, partition {partition}: the records at offsets {first} to {last} are damaged on disk \
         ({reason}); those after them can be read from offset {}", last.next()
    )]
    Damaged {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The first offset that is lost.
        first: Offset,
        /// The last.
        last: Offset,
        /// What is wrong with them.
        reason: String,
    },
    /// No such group.
    #[error("there is no group {group:?}")]
    UnknownGroup {
        /// The name in the request.
        group: String,
    },
    /// A consumer asks for a pipeline's group, or the other way round.
    #[error("group {group} belongs to {kind}: choose another name")]
    GroupOfOtherKind {
        /// The group.
        group: GroupId,
        /// "a pipeline" or "consumers".
        kind: &'static str,
    },
    /// The group's offsets can't be set from outside now.
    #[error("group {group} is in use: {by}")]
    GroupInUse {
        /// The group.
        group: GroupId,
        /// The user of the group, and what to do about it.
        by: String,
    },
    /// The sender's generation is over.
    #[error(
        "group {group}: generation {generation} is over, the group is at {current}; whoever sent \
         this no longer owns its partitions"
    )]
    StaleGeneration {
        /// The group.
        group: GroupId,
        /// The sender's.
        generation: u64,
        /// The group's.
        current: u64,
    },
    /// The step read from elsewhere than where the group stands.
    #[error(
        "group {group}: a step on topic id {topic_id}, partition {partition} began at {}, but the group stands at {}",
        shown(*expected), shown(*current)
    )]
    StaleOffset {
        /// The group.
        group: GroupId,
        /// The topic's id.
        topic_id: u32,
        /// The partition.
        partition: u32,
        /// The offset at which the step began, or `None` if it expected no committed offset.
        expected: Option<Offset>,
        /// The group's committed offset.
        current: Option<Offset>,
    },
    /// The sender of the request is not a member of the group.
    #[error("group {group}: {member} is not a member, or no longer one; join the group again")]
    UnknownMember {
        /// The group.
        group: GroupId,
        /// The member's id as sent.
        member: String,
    },
    /// A request of a transaction.
    #[error("transactional id {id:?}: {source}")]
    Transaction {
        /// The transactional id.
        id: String,
        /// The reason.
        source: TransactionError,
    },
    /// A member that joins by another protocol than the members that the group has.
    #[error(
        "group {group} has members that joined by another protocol; all members use the same one (group.protocol, \
         gRPC's Join counts as consumer): stop the others first, or choose another group"
    )]
    OtherMembers {
        /// The group.
        group: GroupId,
    },
    /// A request of a member by Kafka's classic protocol.
    #[error("group {group}: {source}")]
    Member {
        /// The group.
        group: GroupId,
        /// The reason.
        source: MemberError,
    },
    /// A session timeout outside the server's bounds.
    #[error(
        "group {group}: a session timeout of {session_timeout_ms} ms is not allowed; use {min_ms} to {max_ms} \
         (session.timeout.ms)"
    )]
    InvalidSessionTimeout {
        /// The group.
        group: GroupId,
        /// As sent.
        session_timeout_ms: i32,
        /// The lowest.
        min_ms: u64,
        /// The highest.
        max_ms: u64,
    },
    /// A setting of a group that is unknown, or has a value that is not allowed.
    #[error("group {group}: {name}={value}: {reason}")]
    InvalidGroupSetting {
        /// The group.
        group: GroupId,
        /// The setting.
        name: String,
        /// The value as sent.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A commit with too much metadata.
    #[error("group {group}: the metadata of an offset has {bytes} bytes, and {bytes_max} are allowed")]
    MetadataTooLarge {
        /// The group.
        group: GroupId,
        /// The size of the metadata.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A request of an earlier member epoch.
    #[error(
        "group {group}: member {member} sent member epoch {epoch}, and its epoch is {current}; send the request again once \
         the member has taken over its assignment"
    )]
    StaleMemberEpoch {
        /// The group.
        group: GroupId,
        /// The member's id.
        member: String,
        /// The epoch as sent.
        epoch: u64,
        /// The member's epoch.
        current: u64,
    },
    /// A member commits for a partition that it does not have.
    #[error("group {group}: member {member} does not own topic {topic}, partition {partition}")]
    NotAssigned {
        /// The group.
        group: GroupId,
        /// The member.
        member: String,
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
    },
    /// A message at the wrong moment of a call.
    #[error("{0}")]
    Protocol(String),
    /// The server stops.
    #[error("the server is shutting down: send it again when it is back")]
    ShuttingDown,
    /// The disk has too little room left.
    #[error(
        "the disk of {path} is nearly full: {free_bytes} bytes are free, and {reserve_bytes} are kept free to put in order \
         what is stored already; make room, or delete topics or shorten their retention: writes are then taken again, \
         without a restart; nothing of this request was stored", path = .0.path.display(), free_bytes = .0.free_bytes,
        reserve_bytes = .0.reserve_bytes
    )]
    DiskFull(DiskFull),
    /// The store failed; nothing is written any more.
    #[error("storage failed, the server takes no more writes{until}: {0}", until = until(.0))]
    Storage(Arc<StoreError>),
    /// A read failed; everything else goes on.
    #[error("the disk did not give what was asked for, everything else goes on: {0}")]
    Unreadable(Arc<StoreError>),
    /// So it was with a partition's records.
    #[error(
        "topic {}, partition {}: the records from offset {offset} on cannot be read, everything else goes on: {source}",
        partition.topic, partition.partition
    )]
    UnreadableRecords {
        /// The location of the records.
        partition: TopicPartition,
        /// The first offset of the read.
        offset: Offset,
        /// The error of the disk.
        source: Arc<StoreError>,
    },
}

/// The reason for which a request of a transaction is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// No producer has the transactional id.
    #[error(
        "no producer has asked for it, or it was not used for so long that it was forgotten; ask again (InitProducerId)"
    )]
    UnknownId,
    /// The producer has another id.
    #[error("producer id {sent} is not its producer, which is {current}")]
    OtherProducer {
        /// As sent.
        sent: ProducerId,
        /// The transactional id's.
        current: ProducerId,
    },
    /// Another producer took over, or the transaction was open for too long.
    #[error(
        "epoch {epoch} of the producer is over, it is at {current}: another producer has the transactional id now, or the \
         transaction was open for longer than its timeout (transaction.timeout.ms)"
    )]
    Fenced {
        /// As sent.
        epoch: i16,
        /// The producer's.
        current: i16,
    },
    /// The timeout is not allowed.
    #[error("a timeout of {timeout_ms} ms is not allowed; use 1 to {max_ms} (transaction.timeout.ms)")]
    InvalidTimeout {
        /// As sent.
        timeout_ms: i32,
        /// The longest.
        max_ms: u64,
    },
    /// A partition was not added to the transaction.
    #[error("{partition} was not added to the transaction")]
    NotAdded {
        /// The partition.
        partition: TopicPartition,
    },
    /// A group was not added to the transaction.
    #[error("group {group} was not added to the transaction")]
    GroupNotAdded {
        /// The group.
        group: GroupId,
    },
    /// There is no transaction to end.
    #[error("no transaction is open")]
    NotOpen,
}

/// The reason for which a request of a member by Kafka's classic protocol is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The sender is not a member.
    #[error("{member:?} is not a member, or no longer one; join the group again")]
    UnknownMember {
        /// The member's id as sent.
        member: String,
    },
    /// A new member must join again with the id that it is given (KIP-394).
    #[error("join again with the member id {member}")]
    MemberIdRequired {
        /// The id.
        member: Arc<str>,
    },
    /// Another member took over the static id (KIP-345).
    #[error("member {member:?} no longer has the group instance id {instance:?}: another member joined with it")]
    FencedInstance {
        /// The static id.
        instance: String,
        /// The member's id as sent.
        member: String,
    },
    /// The sender's generation is over.
    #[error("generation {generation} is not the group's current one, which is {current}; join the group again")]
    IllegalGeneration {
        /// The sender's.
        generation: i32,
        /// The group's.
        current: i32,
    },
    /// The sender's member epoch is over (KIP-848).
    #[error("member epoch {epoch} is over, it is {current}; join the group again")]
    FencedEpoch {
        /// The sender's.
        epoch: u64,
        /// The member's.
        current: u64,
    },
    /// The request is of an earlier member epoch (KIP-848).
    #[error(
        "member epoch {epoch} is not the member's current one, which is {current}; send it again after the next heartbeat"
    )]
    StaleEpoch {
        /// The sender's.
        epoch: i32,
        /// The member's.
        current: u64,
    },
    /// The static id belongs to a member that has not left (KIP-848).
    #[error("the group instance id {instance:?} belongs to a member that has not left; stop it first")]
    UnreleasedInstance {
        /// The static id.
        instance: String,
    },
    /// The members are joining again.
    #[error("the group is rebalancing; join it again")]
    Rebalancing,
    /// The member has no protocol in common with the others.
    #[error("{reason}; all members of a group need one protocol in common (partition.assignment.strategy)")]
    Inconsistent {
        /// What differs.
        reason: String,
    },
    /// The group has as many members as it may have.
    #[error("the group is full: {bound}")]
    Full {
        /// The bound that would be exceeded.
        bound: String,
    },
}

fn shown(offset: Option<Offset>) -> String {
    offset.map_or_else(|| "no committed offset".to_owned(), |offset| format!("offset {offset}"))
}

fn users(pipelines: &[String]) -> String {
    match pipelines {
        [one] => format!("pipeline {one}"),
        all => format!("pipelines {}", all.join(", ")),
    }
}

fn them(pipelines: &[String]) -> &'static str {
    if pipelines.len() == 1 { "the pipeline" } else { "these pipelines" }
}

/// Returns what must happen until writes are accepted again.
fn until(error: &StoreError) -> &'static str {
    if error.is_disk_full() { " until there is room on the disk and it is started again; reads go on" } else { "" }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        Self::Unreadable(Arc::new(error))
    }
}
