//! Kafka's error codes for the reasons for which the broker refuses a request, chosen as Kafka chooses them, so that
//! clients try again what may succeed.

use kafka_protocol::ResponseError;
use millstream_record::BatchError;

use crate::error::{BrokerError, MemberError, TransactionError};

/// Returns the code of an error in the APIs of groups. Clients look for the coordinator again where it may be back.
pub(super) fn of_group(error: &BrokerError) -> i16 {
    match error {
        BrokerError::ShuttingDown => ResponseError::NotCoordinator.code(),
        BrokerError::DiskFull(_) => ResponseError::CoordinatorNotAvailable.code(),
        BrokerError::Storage(_) => ResponseError::NotCoordinator.code(),
        error => code(error),
    }
}

/// Returns the code of an error.
pub(super) fn code(error: &BrokerError) -> i16 {
    response_error(error).code()
}

fn response_error(error: &BrokerError) -> ResponseError {
    use ResponseError as Kafka;
    match error {
        BrokerError::InvalidName(_) => Kafka::InvalidTopicException,
        BrokerError::InvalidGroupId(_) => Kafka::InvalidGroupId,
        BrokerError::UnknownTopicId { .. } => Kafka::UnknownTopicId,
        BrokerError::InvalidArgument { .. } => Kafka::InvalidRequest,
        BrokerError::UnknownTopic { .. } | BrokerError::UnknownPartition { .. } => Kafka::UnknownTopicOrPartition,
        BrokerError::TopicExists { .. } => Kafka::TopicAlreadyExists,
        BrokerError::TopicInUse { .. }
        | BrokerError::PartitionsInUse { .. }
        | BrokerError::TopicInternal { .. }
        | BrokerError::RecordsKept { .. } => Kafka::PolicyViolation,
        BrokerError::NullKey { .. } => Kafka::InvalidRecord,
        BrokerError::InvalidTimestamp { .. } => Kafka::InvalidTimestamp,
        BrokerError::Batch { source, .. } => batch(source),
        BrokerError::BatchTooLarge { .. } => Kafka::MessageTooLarge,
        BrokerError::OutOfOrderSequence { .. } => Kafka::OutOfOrderSequenceNumber,
        BrokerError::StaleProducerEpoch { .. } => Kafka::InvalidProducerEpoch,
        BrokerError::DuplicateSequence { .. } => Kafka::DuplicateSequenceNumber,
        BrokerError::UnknownProducerId { .. } => Kafka::UnknownProducerId,
        BrokerError::OffsetOutOfRange { .. } => Kafka::OffsetOutOfRange,
        BrokerError::Damaged { .. } => Kafka::CorruptMessage,
        BrokerError::UnknownGroup { .. } => Kafka::GroupIdNotFound,
        BrokerError::GroupOfOtherKind { .. } => Kafka::InconsistentGroupProtocol,
        BrokerError::Transaction { source, .. } => transaction(source),
        BrokerError::OtherMembers { .. } => Kafka::InconsistentGroupProtocol,
        BrokerError::Member { source, .. } => member(source),
        BrokerError::InvalidSessionTimeout { .. } => Kafka::InvalidSessionTimeout,
        BrokerError::InvalidGroupSetting { .. } => Kafka::InvalidConfig,
        BrokerError::MetadataTooLarge { .. } => Kafka::OffsetMetadataTooLarge,
        BrokerError::GroupInUse { .. } => Kafka::NonEmptyGroup,
        BrokerError::StaleGeneration { .. } => Kafka::IllegalGeneration,
        BrokerError::UnknownMember { .. } => Kafka::UnknownMemberId,
        BrokerError::StaleMemberEpoch { .. } => Kafka::StaleMemberEpoch,
        BrokerError::NotAssigned { .. } | BrokerError::StaleOffset { .. } => Kafka::InvalidRequest,
        BrokerError::Protocol(_) => Kafka::InvalidRequest,
        // A client finds another leader, or this one again after it was started again.
        BrokerError::ShuttingDown => Kafka::NotLeaderOrFollower,
        // Clients try again, as they do while Kafka has too few replicas.
        BrokerError::DiskFull(_) => Kafka::NotEnoughReplicas,
        BrokerError::Storage(_) | BrokerError::Unreadable(_) | BrokerError::UnreadableRecords { .. } => {
            Kafka::KafkaStorageError
        }
    }
}

fn transaction(error: &TransactionError) -> ResponseError {
    match error {
        TransactionError::UnknownId | TransactionError::OtherProducer { .. } => ResponseError::InvalidProducerIdMapping,
        TransactionError::Fenced { .. } => ResponseError::ProducerFenced,
        TransactionError::InvalidTimeout { .. } => ResponseError::InvalidTransactionTimeout,
        TransactionError::NotAdded { .. } | TransactionError::GroupNotAdded { .. } | TransactionError::NotOpen => {
            ResponseError::InvalidTxnState
        }
    }
}

fn member(error: &MemberError) -> ResponseError {
    match error {
        MemberError::UnknownMember { .. } => ResponseError::UnknownMemberId,
        MemberError::MemberIdRequired { .. } => ResponseError::MemberIdRequired,
        MemberError::FencedInstance { .. } => ResponseError::FencedInstanceId,
        MemberError::IllegalGeneration { .. } => ResponseError::IllegalGeneration,
        MemberError::FencedEpoch { .. } => ResponseError::FencedMemberEpoch,
        MemberError::StaleEpoch { .. } => ResponseError::StaleMemberEpoch,
        MemberError::UnreleasedInstance { .. } => ResponseError::UnreleasedInstanceId,
        MemberError::Rebalancing => ResponseError::RebalanceInProgress,
        MemberError::Inconsistent { .. } => ResponseError::InconsistentGroupProtocol,
        MemberError::Full { .. } => ResponseError::GroupMaxSizeReached,
    }
}

fn batch(error: &BatchError) -> ResponseError {
    match error {
        BatchError::Crc { .. } => ResponseError::CorruptMessage,
        BatchError::TooLarge { .. } => ResponseError::MessageTooLarge,
        _ => ResponseError::InvalidRecord,
    }
}
