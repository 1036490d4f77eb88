//! The errors of the client. Their messages address the person who has to act on them.

use std::error::Error;

use millstream_api::{ERROR_TRAILER, v1};
use millstream_record::BatchError;
use tonic::{Code, Status};

/// An error of a client operation.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused the request. Nothing was changed, unless the code is `TimedOut`: then the server's deadline
    /// passed, and the operation may nevertheless complete.
    #[error("{message}")]
    Refused {
        /// Reason for programs.
        code: v1::ErrorCode,
        /// Reason for people: what was wrong, which value caused it, and what to do.
        message: String,
    },
    /// There is no connection, or the connection was lost. If it was lost during a call that changes something, the
    /// change may have been made; for records, a [`crate::Producer`] returns [`ClientError::UnknownOutcome`] in that
    /// case.
    #[error("no server answers at {server} ({reason}): is `millstream serve` running?")]
    Unavailable {
        /// Address of the server.
        server: String,
        /// Error of the transport.
        reason: String,
    },
    /// Records were sent, but no answer arrived before the timeout. They may or may not be stored. Producers that are
    /// not idempotent return this error as soon as a connection is lost.
    #[error(
        "topic {topic}, partition {partition}: {records} records were sent but the answer was lost ({reason}); \
         they may or may not be stored"
    )]
    UnknownOutcome {
        /// Topic that the records were sent to.
        topic: String,
        /// Partition that the records were sent to.
        partition: u32,
        /// Number of records that this concerns.
        records: u32,
        /// How the answer was lost.
        reason: String,
    },
    /// A commit failed, or its answer was lost, because the member's stream was lost. The consumer joins its group
    /// again automatically.
    #[error(
        "the consumer lost its membership of group {group} and joins again: the offsets may not be committed, and \
         records may be delivered again"
    )]
    MembershipLost {
        /// The group.
        group: String,
    },
    /// The timeout passed and nothing was stored.
    #[error("{what}: timed out after {after_ms} ms{}", last_reason(.last))]
    Timeout {
        /// Description of the operation.
        what: String,
        /// The timeout, in ms.
        after_ms: u64,
        /// Error of the last attempt, if an attempt failed.
        last: Option<String>,
    },
    /// A connected server did not answer a call in time. The operation may nevertheless complete.
    #[error(
        "{call}: {server} did not answer within {after_ms} ms (call_timeout_ms); the call may still succeed: check, or \
         try again with a longer timeout"
    )]
    CallTimeout {
        /// Name of the gRPC call.
        call: &'static str,
        /// Address of the server.
        server: String,
        /// The timeout, in ms.
        after_ms: u64,
    },
    /// The producer or consumer was closed.
    #[error("the {what} is closed")]
    Closed {
        /// "producer" or "consumer".
        what: &'static str,
    },
    /// The buffer has no room for the record. Only `try_send` returns this error; `send` waits for room.
    #[error(
        "the producer's buffer is full ({buffer_bytes_max} bytes, buffer_bytes_max): use send, which waits for room"
    )]
    BufferFull {
        /// The value of the setting, in bytes.
        buffer_bytes_max: usize,
    },
    /// The record is larger than the maximum batch size of its topic.
    #[error(
        "topic {topic}: a record of {bytes} bytes is over the limit of {bytes_max}: send it in parts, or raise the \
         topic's batch_bytes_max"
    )]
    RecordTooLarge {
        /// Topic of the record.
        topic: String,
        /// Size of the record in a batch, in bytes.
        bytes: usize,
        /// Maximum size that the topic accepts, in bytes.
        bytes_max: usize,
    },
    /// The topic does not have this partition.
    #[error("topic {topic} has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The requested partition.
        partition: u32,
        /// Number of partitions of the topic.
        partitions: u32,
    },
    /// A received record batch is invalid.
    #[error("topic {topic}, partition {partition}: {source}")]
    Batch {
        /// Topic of the batch.
        topic: String,
        /// Partition of the batch.
        partition: u32,
        /// What is wrong with the batch.
        source: BatchError,
    },
    /// A setting or argument is invalid.
    #[error("{what}: {reason}")]
    InvalidArgument {
        /// Name of the setting or argument.
        what: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The server's answer does not follow the protocol: the server has another version, or it is not a Millstream
    /// server.
    #[error("unexpected answer from {server}: {message}")]
    Protocol {
        /// Address of the server.
        server: String,
        /// What was received and what was expected.
        message: String,
    },
}

fn last_reason(last: &Option<String>) -> String {
    last.as_ref().map_or_else(String::new, |last| format!("; the last attempt failed: {last}"))
}

impl ClientError {
    /// Whether the cause may be temporary, so that the same request may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused { code, .. } => {
                use v1::ErrorCode::{DiskFull, ShuttingDown, TimedOut};
                matches!(code, ShuttingDown | TimedOut | DiskFull)
            }
            Self::Unavailable { .. } | Self::CallTimeout { .. } | Self::BufferFull { .. } => true,
            _ => false,
        }
    }

    /// Returns the server's error code if the server refused the request.
    pub fn code(&self) -> Option<v1::ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Converts an error that is part of an answer.
    pub(crate) fn refused(error: v1::Error) -> Self {
        Self::Refused { code: error.code(), message: error.message }
    }

    /// Converts the status of a failed call.
    pub(crate) fn from_status(server: &str, status: &Status) -> Self {
        let code = status.metadata().get(ERROR_TRAILER).and_then(|name| name.to_str().ok());
        if let Some(code) = code {
            let code = v1::ErrorCode::from_str_name(code).unwrap_or_default();
            return Self::Refused { code, message: status.message().to_owned() };
        }
        let server = server.to_owned();
        if let Some(source) = status.source() {
            return Self::Unavailable { server, reason: root_cause(source) };
        }
        match status.code() {
            Code::Unavailable | Code::Cancelled => Self::Unavailable { server, reason: status.message().to_owned() },
            Code::Unimplemented => {
                let message = "it does not support this call: it has another version, or this is not the address of its gRPC services";
                Self::Protocol { server, message: message.to_owned() }
            }
            code => Self::Protocol { server, message: format!("{} ({code:?})", status.message()) },
        }
    }

    /// Returns the error for an answer without a required field.
    pub(crate) fn lacks(server: &str, what: &str) -> Self {
        Self::Protocol { server: server.to_owned(), message: format!("the field {what} is missing") }
    }
}

/// Returns the message of the innermost error, such as "connection refused" rather than "transport error".
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn told(status: &Status) -> ClientError {
        ClientError::from_status("127.0.0.1:7070", status)
    }

    #[test]
    fn the_servers_words_are_kept() {
        let mut status = Status::not_found("there is no topic \"t\"");
        status.metadata_mut().insert(ERROR_TRAILER, tonic::metadata::MetadataValue::from_static("UNKNOWN_TOPIC"));
        let error = told(&status);
        assert_eq!(error.code(), Some(v1::ErrorCode::UnknownTopic));
        assert_eq!(error.to_string(), "there is no topic \"t\"");
        assert!(!error.is_retriable());
    }

    #[test]
    fn who_ran_out_of_time_hears_why_the_last_attempt_failed() {
        let told = |last: Option<&str>| {
            let last = last.map(str::to_owned);
            ClientError::Timeout { what: "sending".to_owned(), after_ms: 30, last }.to_string()
        };
        assert_eq!(told(None), "sending: timed out after 30 ms");
        assert_eq!(told(Some("refused")), "sending: timed out after 30 ms; the last attempt failed: refused");
    }

    #[test]
    fn a_broken_connection_says_what_the_transport_said() {
        let status = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        let mut unavailable = Status::unavailable("tcp connect error");
        unavailable.set_source(Arc::new(std::io::Error::other("connection refused")));
        for (status, reason) in [(status, "connection reset"), (unavailable, "connection refused")] {
            let error = told(&status);
            assert!(error.is_retriable());
            let text = error.to_string();
            assert!(
                text.contains(reason) && text.contains("127.0.0.1:7070") && text.contains("millstream serve"),
                "{text}"
            );
        }
    }

    #[test]
    fn only_what_may_pass_by_itself_is_tried_again() {
        use v1::ErrorCode::{DiskFull, ShuttingDown, TimedOut};
        let is_retriable = |code: &v1::ErrorCode| {
            let refused = v1::Error { code: *code as i32, message: String::new() };
            ClientError::refused(refused).is_retriable()
        };
        let all: Vec<_> = (0..1_000).filter_map(|number| v1::ErrorCode::try_from(number).ok()).collect();
        assert!(all.len() > 20, "{all:?}");
        let (mut retriable, mut expected): (Vec<_>, _) =
            (all.into_iter().filter(is_retriable).collect(), [ShuttingDown, TimedOut, DiskFull]);
        retriable.sort_unstable();
        expected.sort_unstable();
        assert_eq!(retriable, expected);
    }

    #[test]
    fn another_server_is_not_taken_for_ours() {
        let error = told(&Status::unimplemented(""));
        assert!(matches!(&error, ClientError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains("not the address of its gRPC services"));
    }
}
