//! Converts the runtime's errors to gRPC statuses.

use millstream_api::v1;
use millstream_broker::grpc::status::{status, to_status};
use tonic::{Code, Status};

use crate::error::RuntimeError;

impl From<RuntimeError> for Status {
    fn from(error: RuntimeError) -> Self {
        use v1::ErrorCode as E;
        let (code, grpc) = match &error {
            RuntimeError::Broker(error) => return to_status(error),
            RuntimeError::InvalidReference { .. } => (E::InvalidName, Code::InvalidArgument),
            RuntimeError::Module { .. } => (E::InvalidModule, Code::InvalidArgument),
            RuntimeError::UnknownModule { .. } => (E::UnknownModule, Code::NotFound),
            RuntimeError::ModuleInUse { .. } => (E::InUse, Code::FailedPrecondition),
            RuntimeError::UnknownPipeline { .. } => (E::UnknownPipeline, Code::NotFound),
            RuntimeError::Mistakes(_) => (E::InvalidPipeline, Code::InvalidArgument),
            RuntimeError::Stage { .. } => (E::InvalidRequest, Code::InvalidArgument),
            RuntimeError::Stored(_) => (E::Internal, Code::Internal),
        };
        status(code, grpc, error.to_string())
    }
}
