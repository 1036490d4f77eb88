//! Converts errors to messages for people and exit codes for scripts. `millstream --help` lists the codes.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use millstream_broker::store::StoreError;
use millstream_client::ClientError;
use millstream_client::v1::ErrorCode;

use crate::output::OutputError;

/// The server refused the request, or mistakes were found.
pub(crate) const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const NO_SERVER: u8 = 3;
const INTERRUPTED: u8 = 4;
const OUTCOME_UNKNOWN: u8 = 5;

/// Ctrl-C or SIGTERM arrived before the work was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: {0}")]
pub(crate) struct Interrupted(pub(crate) String);

/// Arguments that clap accepts, but that contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Prints the error to stderr and returns its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OutputError::Closed))) {
        return ExitCode::SUCCESS;
    }
    say(format_args!("error: {}", message(error)));
    ExitCode::from(code(error))
}

/// Prints a line to stderr. Errors are ignored, because there is no other place to report them.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Returns the messages of the error and its causes, without causes that the preceding messages already quote.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let cause_message = cause.to_string();
        if message.contains(&cause_message) {
            continue;
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&cause_message);
        // The client's errors are complete; their causes are details of the transport.
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            message.push_str(advice(error));
            break;
        }
        let shared = cause.downcast_ref::<Arc<StoreError>>().map(Arc::as_ref);
        if let Some(error) = cause.downcast_ref().or(shared) {
            message.push_str(advice_for_data(error));
            break;
        }
    }
    message
}

fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unavailable { .. } => {
            "\n  start one with `millstream serve --data ./millstream-data`, or set the address with --server or MILLSTREAM_SERVER"
        }
        ClientError::CallTimeout { .. } => "\n  use --call-timeout-ms to wait longer",
        ClientError::Refused { code, .. } => advice_for(*code),
        _ => "",
    }
}

const CHECK: &str = "\n  `millstream check --data DIR` finds all damage in the data directory of a stopped server, and with \
                     --repair removes it and keeps the rest";

fn advice_for_data(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotADataDirectory { .. } | StoreError::NoDataDirectory { .. } | StoreError::Missing { .. } => {
            "\n  `millstream restore --from BACKUP --data DIR` makes a data directory of a backup"
        }
        damaged if damaged.is_of_damage() => CHECK,
        _ => "",
    }
}

/// The server's errors speak of topics and groups; the commands that help are those of this program.
fn advice_for(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::UnknownTopic => {
            "\n  `millstream topic list` lists the topics, and `millstream topic create NAME` creates one"
        }
        ErrorCode::UnknownGroup => "\n  `millstream group list` lists the groups",
        ErrorCode::UnknownModule => {
            "\n  `millstream module list` lists the modules, and `millstream module push NAME FILE` adds one"
        }
        ErrorCode::UnknownPipeline => {
            "\n  `millstream pipeline list` lists the pipelines, and `millstream apply -f FILE` adds one"
        }
        ErrorCode::StorageFailed => CHECK,
        _ => "",
    }
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Interrupted>() {
            return INTERRUPTED;
        }
        if cause.is::<Usage>() {
            return USAGE;
        }
        match cause.downcast_ref() {
            Some(ClientError::Unavailable { .. } | ClientError::Timeout { .. }) => return NO_SERVER,
            Some(
                ClientError::UnknownOutcome { .. }
                | ClientError::CallTimeout { .. }
                | ClientError::Refused { code: ErrorCode::TimedOut, .. },
            ) => return OUTCOME_UNKNOWN,
            Some(ClientError::InvalidArgument { .. }) => return USAGE,
            _ => {}
        }
    }
    REFUSED
}
