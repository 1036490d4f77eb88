//! What can go wrong, in words for the person who has to act on it.

use std::error::Error;

use millstream_api::{ERROR_TRAILER, v1};
use millstream_record::BatchError;
use tonic::{Code, Status};

/// Why the client could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server understood and refused. Nothing was changed, unless the code is `TimedOut`: then the
    /// server's deadline was over, and it may be done all the same.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        code: v1::ErrorCode,
        /// Why, for people: what was wrong, with which value, and what to do.
        message: String,
    },
    /// No connection, or it was lost. A call that changes something may have done so all the same
    /// where its connection was lost; a [`crate::Producer`] says [`ClientError::UnknownOutcome`] then.
    #[error("no server answers at {server} ({reason}): is `millstream serve` running?")]
    Unavailable {
        /// Where it was looked for.
        server: String,
        /// What the transport says.
        reason: String,
    },
    /// Records were sent, and no answer came before the time was over: they may or may not be stored.
    /// Producers that are not idempotent say so as soon as a connection is lost.
    #[error(
        "topic {topic}, partition {partition}: {records} records were sent but their answer is lost ({reason}); \
         they may or may not be stored"
    )]
    UnknownOutcome {
        /// Where they were sent.
        topic: String,
        /// Where they were sent.
        partition: u32,
        /// How many share this fate.
        records: u32,
        /// How the answer was lost.
        reason: String,
    },
    /// A commit could not be made, or its answer was lost, with the member's stream. The consumer
    /// joins its group again by itself.
    #[error(
        "the consumer lost its place in group {group} and joins again: the offsets may not be committed, and records \
         may come again"
    )]
    MembershipLost {
        /// The group.
        group: String,
    },
    /// The time set for it is over; nothing was stored.
    #[error("{what}: not done within {after_ms} ms{}", last_reason(.last))]
    Timeout {
        /// What was to be done.
        what: String,
        /// The time that was allowed.
        after_ms: u64,
        /// The last failed attempt, if there was one.
        last: Option<String>,
    },
    /// A server that is there did not answer a call in time. What was to be done may be done all the
    /// same.
    #[error(
        "{call}: {server} did not answer within {after_ms} ms (call_timeout_ms); it may be done all the same: look, or \
         try again with more time"
    )]
    CallTimeout {
        /// The call, as the contract names it.
        call: &'static str,
        /// Who was asked.
        server: String,
        /// The time that was allowed.
        after_ms: u64,
    },
    /// The producer or consumer was closed.
    #[error("the {what} is closed")]
    Closed {
        /// "producer" or "consumer".
        what: &'static str,
    },
    /// No room now; only `try_send` says so, `send` waits.
    #[error(
        "the producer's buffer is full ({buffer_bytes_max} bytes, buffer_bytes_max): use send, which waits for room"
    )]
    BufferFull {
        /// The setting.
        buffer_bytes_max: usize,
    },
    /// A record that can't be sent: larger than a batch of its topic may be.
    #[error(
        "topic {topic}: a record of {bytes} bytes is over the limit of {bytes_max}: send it in parts, or raise the \
         topic's batch_bytes_max"
    )]
    RecordTooLarge {
        /// Where it was to go.
        topic: String,
        /// Its size in a batch.
        bytes: usize,
        /// What the topic takes.
        bytes_max: usize,
    },
    /// The topic has fewer partitions.
    #[error("topic {topic} has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition as asked.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// A record batch that was received is not sound.
    #[error("topic {topic}, partition {partition}: {source}")]
    Batch {
        /// Where it came from.
        topic: String,
        /// Where it came from.
        partition: u32,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A setting or argument that makes no sense.
    #[error("{what}: {reason}")]
    InvalidArgument {
        /// Its name.
        what: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The server says what this client does not understand: another version, or no Millstream.
    #[error("the answer of {server} is not understood: {message}")]
    Protocol {
        /// Who answered.
        server: String,
        /// What came, and what was expected.
        message: String,
    },
}

fn last_reason(last: &Option<String>) -> String {
    last.as_ref().map_or_else(String::new, |last| format!("; the last attempt: {last}"))
}

impl ClientError {
    /// Whether what stood in the way may pass by itself, so that the same request makes sense again.
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

    /// The server's code, where it is the server that refused.
    pub fn code(&self) -> Option<v1::ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// An error that came inside an answer.
    pub(crate) fn refused(error: v1::Error) -> Self {
        Self::Refused { code: error.code(), message: error.message }
    }

    /// What a failed call says.
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
                let message = "it does not offer this call: it is of another version, or this is not the address of its gRPC services";
                Self::Protocol { server, message: message.to_owned() }
            }
            code => Self::Protocol { server, message: format!("{} ({code:?})", status.message()) },
        }
    }

    /// An answer that lacks what the contract promises.
    pub(crate) fn lacks(server: &str, what: &str) -> Self {
        Self::Protocol { server: server.to_owned(), message: format!("it has no {what}") }
    }
}

/// The innermost error's words: "connection refused" rather than "transport error".
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
        assert_eq!(told(None), "sending: not done within 30 ms");
        assert_eq!(told(Some("refused")), "sending: not done within 30 ms; the last attempt: refused");
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
