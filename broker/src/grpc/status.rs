//! Maps errors to gRPC status codes and to the error codes of the API. No other module does this.

use millstream_api::{ERROR_TRAILER, v1};
use millstream_record::BatchError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::error::BrokerError;
use crate::name::{InvalidGroupId, InvalidName};

/// Converts an error to the API's error message.
pub fn to_error(error: &BrokerError) -> v1::Error {
    v1::Error { code: codes(error).0 as i32, message: error.to_string() }
}

/// Converts an error to the status of a call, with the API's error code in a trailer.
pub fn to_status(error: &BrokerError) -> Status {
    let (code, grpc) = codes(error);
    status(code, grpc, error.to_string())
}

/// Creates a status with the API's error code in a trailer.
pub fn status(code: v1::ErrorCode, grpc: Code, message: impl Into<String>) -> Status {
    let mut status = Status::new(grpc, message);
    status.metadata_mut().insert(ERROR_TRAILER, MetadataValue::from_static(code.as_str_name()));
    status
}

/// Creates the status for an invalid request.
pub fn invalid(message: impl Into<String>) -> Status {
    status(v1::ErrorCode::InvalidRequest, Code::InvalidArgument, message)
}

impl From<InvalidName> for Status {
    fn from(error: InvalidName) -> Self {
        BrokerError::from(error).into()
    }
}

impl From<InvalidGroupId> for Status {
    fn from(error: InvalidGroupId) -> Self {
        BrokerError::from(error).into()
    }
}

impl From<BrokerError> for Status {
    fn from(error: BrokerError) -> Self {
        to_status(&error)
    }
}

fn codes(error: &BrokerError) -> (v1::ErrorCode, Code) {
    use v1::ErrorCode as E;
    match error {
        BrokerError::InvalidName { .. } | BrokerError::InvalidGroupId(_) => (E::InvalidName, Code::InvalidArgument),
        BrokerError::InvalidArgument { .. }
        | BrokerError::InvalidSessionTimeout { .. }
        | BrokerError::MetadataTooLarge { .. }
        | BrokerError::InvalidGroupSetting { .. }
        | BrokerError::Protocol(_) => (E::InvalidRequest, Code::InvalidArgument),
        BrokerError::UnknownTopic { .. } => (E::UnknownTopic, Code::NotFound),
        BrokerError::UnknownTopicId { .. } => (E::UnknownTopicId, Code::NotFound),
        BrokerError::UnknownPartition { .. } => (E::UnknownPartition, Code::NotFound),
        BrokerError::TopicExists { .. } => (E::AlreadyExists, Code::AlreadyExists),
        BrokerError::TopicInUse { .. }
        | BrokerError::PartitionsInUse { .. }
        | BrokerError::TopicInternal { .. }
        | BrokerError::RecordsKept { .. }
        | BrokerError::GroupInUse { .. } => (E::InUse, Code::FailedPrecondition),
        BrokerError::InvalidTimestamp { .. } => (E::InvalidTimestamp, Code::InvalidArgument),
        BrokerError::NullKey { .. } => (E::InvalidBatch, Code::InvalidArgument),
        BrokerError::Batch { source, .. } => match source {
            BatchError::TooLarge { .. } => (E::BatchTooLarge, Code::InvalidArgument),
            BatchError::RecordTooLarge { .. } => (E::RecordTooLarge, Code::InvalidArgument),
            _ => (E::InvalidBatch, Code::InvalidArgument),
        },
        BrokerError::BatchTooLarge { .. } => (E::BatchTooLarge, Code::InvalidArgument),
        BrokerError::OffsetOutOfRange { .. } => (E::OffsetOutOfRange, Code::OutOfRange),
        BrokerError::UnknownGroup { .. } => (E::UnknownGroup, Code::NotFound),
        BrokerError::GroupOfOtherKind { .. } | BrokerError::OtherMembers { .. } => (E::InUse, Code::FailedPrecondition),
        BrokerError::StaleGeneration { .. }
        | BrokerError::StaleOffset { .. }
        | BrokerError::UnknownMember { .. }
        | BrokerError::Member { .. }
        | BrokerError::StaleMemberEpoch { .. }
        | BrokerError::NotAssigned { .. } => (E::StaleGeneration, Code::Aborted),
        BrokerError::Transaction { .. } => (E::InvalidRequest, Code::FailedPrecondition),
        BrokerError::OutOfOrderSequence { .. } => (E::OutOfOrderSequence, Code::FailedPrecondition),
        BrokerError::StaleProducerEpoch { .. } => (E::StaleProducerEpoch, Code::Aborted),
        BrokerError::DuplicateSequence { .. } => (E::DuplicateSequence, Code::AlreadyExists),
        BrokerError::UnknownProducerId { .. } => (E::UnknownProducerId, Code::NotFound),
        BrokerError::ShuttingDown => (E::ShuttingDown, Code::Unavailable),
        BrokerError::DiskFull { .. } => (E::DiskFull, Code::ResourceExhausted),
        BrokerError::Damaged { .. } => (E::StorageFailed, Code::DataLoss),
        BrokerError::Storage(_) | BrokerError::Unreadable(_) | BrokerError::UnreadableRecords { .. } => {
            (E::StorageFailed, Code::Internal)
        }
    }
}
