//! From errors to what a person reads and what a script checks. `millstream --help` lists the codes.

use std::io::Write;
use std::process::ExitCode;

use millstream_client::ClientError;
use millstream_client::v1::ErrorCode;

use crate::output::OutputError;

/// Refused, or mistakes found.
pub(crate) const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const NO_SERVER: u8 = 3;
const INTERRUPTED: u8 = 4;
const OUTCOME_UNKNOWN: u8 = 5;

/// Ctrl-C or SIGTERM came before the work was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: {0}")]
pub(crate) struct Interrupted(pub(crate) String);

/// Arguments that clap takes, but that contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Says what went wrong on stderr, and answers with the code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OutputError::Closed))) {
        return ExitCode::SUCCESS;
    }
    say(format_args!("error: {}", message(error)));
    ExitCode::from(code(error))
}

/// A line on stderr. Where nobody reads stderr, there is nobody to tell.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The error with its causes, without those that the line before already quotes.
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
        // The client's errors say all there is to say; below them is transport.
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            message.push_str(advice(error));
            break;
        }
    }
    message
}

fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unavailable { .. } => {
            "\n  start one with `millstream serve --data ./millstream-data`, or name another with --server or MILLSTREAM_SERVER"
        }
        ClientError::CallTimeout { .. } => "\n  --call-timeout-ms gives it more",
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
